//! Products of slices of sixteen rows with a few vectors: sliced ELLPACK whose inputs fit in registers.
//!
//! ```text
//!   a block is 32 columns of a slice. Its weights lie in steps of sixteen slots, one for each row:
//!
//!           row 0   row 1   …   row 15
//!   step 0  slot    slot        slot     slot = column in the block | symbol << 5, or EMPTY: the first
//!   step 1  slot    EMPTY       slot     weights of all rows, the second ones, …
//!
//!   for each block:  inputs of 32 columns ─▶ two registers
//!     for each step: sums += value[slot >> 5] · input[slot & 31]      both by vpermi2ps, no gather
//! ```
//!
//! A row's sum stays in its lane from block to block, so no row has a start or an end of its own, and
//! with several vectors a slot is unpacked once for all of them.

use super::{LANES, Lanes};

/// Rows of a slice: one for each lane.
pub const SLICE_ROWS: usize = LANES;
/// Columns of a block: two registers of inputs.
pub const BLOCK_COLS: usize = 32;
/// Vectors that are multiplied at once, at most: inputs and sums of so many fit in registers.
pub const MAX_VECTORS: usize = 8;
/// A slot that no weight is in.
pub const EMPTY: u16 = 1 << 15;
/// Bits of a slot before the symbol.
pub const COLUMN_BITS: u32 = BLOCK_COLS.trailing_zeros();
/// A slot has room for symbols under this number.
pub const MAX_SYMBOLS: usize = 256;

/// Steps ahead of which slots are fetched: the CPU does so by itself only within a page.
#[cfg(target_arch = "x86_64")]
pub(super) const AHEAD: usize = 32;

/// The inputs of a block, of one vector.
pub type Inputs = [f32; BLOCK_COLS];
/// A slot of each row of a slice.
pub type Step = [u16; SLICE_ROWS];

/// Where a block of a slice is, and how many steps it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Steps, 1 to [`BLOCK_COLS`].
    pub steps: usize,
    /// The number of the block: its first column divided by [`BLOCK_COLS`].
    pub number: usize,
}

impl Block {
    /// The block as it is stored.
    pub fn pack(self) -> u32 {
        (self.number << COLUMN_BITS | (self.steps - 1)) as u32
    }

    /// The block that is stored so.
    #[inline(always)]
    pub fn unpack(stored: u32) -> Self {
        Self { steps: stored as usize % BLOCK_COLS + 1, number: stored as usize >> COLUMN_BITS }
    }
}

/// Slices of a matrix as they are stored.
#[derive(Clone, Copy)]
pub struct Slices<'a> {
    /// How many blocks each slice has.
    pub counts: &'a [u32],
    /// The [`Block`]s of all slices; those of as many steps next to each other, so that loops end where
    /// the CPU expects.
    pub blocks: &'a [u32],
    /// The steps of all blocks; what follows the last one is not used.
    pub steps: &'a [Step],
    /// The values of symbols.
    pub codebook: &'a [f32; MAX_SYMBOLS],
    /// How many of the values are in use: up to 32 are looked up faster.
    pub k: usize,
}

/// A function that takes the number of vectors as a parameter of its type, for `$vectors` of them.
#[cfg(target_arch = "x86_64")]
macro_rules! for_vectors {
    ($multiply:ident, $vectors:expr) => {
        match $vectors {
            1 => sell::$multiply::<1>,
            2 => sell::$multiply::<2>,
            3 => sell::$multiply::<3>,
            4 => sell::$multiply::<4>,
            5 => sell::$multiply::<5>,
            6 => sell::$multiply::<6>,
            7 => sell::$multiply::<7>,
            _ => sell::$multiply::<{ super::sell::MAX_VECTORS }>,
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use for_vectors;

/// What [`super::Kernels::slice_products`] computes, one weight after the other.
pub(super) fn products(slices: &Slices<'_>, x: &[Inputs], sums: &mut [Lanes], vectors: usize) {
    let (mut blocks, mut steps) = (slices.blocks, slices.steps);
    for (&count, sums) in slices.counts.iter().zip(sums.chunks_exact_mut(vectors)) {
        sums.fill([0.0; LANES]);
        let (mine, others) = blocks.split_at(count as usize);
        blocks = others;
        for block in mine.iter().map(|&block| Block::unpack(block)) {
            let x = &x[block.number * vectors..][..vectors];
            let (mine, others) = steps.split_at(block.steps);
            steps = others;
            for step in mine {
                for (lane, &slot) in step.iter().enumerate().filter(|&(_, &slot)| slot < EMPTY) {
                    let value = slices.codebook[usize::from(slot >> COLUMN_BITS) % MAX_SYMBOLS];
                    for (sums, x) in sums.iter_mut().zip(x) {
                        sums[lane] += value * x[usize::from(slot) % BLOCK_COLS];
                    }
                }
            }
        }
    }
}

/// Panics unless there are sums of `vectors` for each slice, and so many vectors may be multiplied.
pub(super) fn check(slices: &Slices<'_>, sums: &[Lanes], vectors: usize) {
    assert!((1..=MAX_VECTORS).contains(&vectors), "slice_products: {vectors} vectors");
    assert_eq!(sums.len(), slices.counts.len() * vectors, "slice_products: sums");
}
