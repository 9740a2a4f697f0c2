//! Where most weights are kept: from which density on dense rows are faster than kept weights.
//!
//! Kept weights cost as much as there are of them, dense rows as much as there are entries; each is
//! a line in the number of outputs (members of the batch, or pixels of all images):
//!
//! ```text
//!   kept weights   density · (decode + outputs · multiply)    taps in a convolution
//!   dense rows               decode + outputs · multiply      simd/dense_rows.rs
//! ```
//!
//! Time of kept weights ÷ time of dense rows, one thread of a Zen 3 core, AVX2, k = 32, laid out
//! for speed, the least of interleaved runs; dense rows are worth it where that is over 1:
//!
//! ```text
//!   kept                                100 %   80 %   60 %   50 %   40 %   30 %
//!   conv 64 → 64, 32 × 32,   batch 1      1.3    1.1    0.9    0.7    0.6    0.5
//!                            batch 8      1.1    0.9    0.8    0.6    0.6    0.4
//!     its taps kept,         batch 1      1.2    1.0    0.8           0.6
//!   256 → 256, 16 × 16,      batch 1      1.6    1.3    1.1    0.9    0.8    0.6
//!                            batch 8      1.3    1.1    0.9    0.8    0.6    0.5
//!   512 → 512, 4 × 4,        batch 1      2.9    2.9    2.1    1.8    1.7    1.4
//!                            batch 8      1.8    1.4    1.1    0.9    0.8    0.6
//!                            batch 32     1.0    0.9    0.7    0.7    0.5
//!   matmul, 512 × 512,       batch 8      1.8    1.5    1.3    1.1    1.0    0.9
//!                            batch 16     1.4    1.2    1.0    0.9    0.8    0.7
//!                            batch 32     1.4    1.3    1.1    1.0    0.8    0.6
//!                            batch 128    1.7    1.6    1.3    1.2    1.0    0.7
//!   matmul, 4096 × 4096,     batch 8      1.9    1.6    1.8    1.9    1.5    1.2
//!                            batch 16     1.6    1.3    1.6    2.1    1.4    1.0
//!                            batch 32     1.6    1.5    1.6    1.7    1.1    0.9
//!                            batch 128    2.1    2.1    1.5    2.0    1.2    1.0
//! ```
//!
//! A batch of vectors has no pixels that lie together, so its kept weights come out worse: from
//! about half on, and where rows are so wide that the inputs of a panel leave the second-level
//! cache, from two fifths on. Layouts that are entropy-coded or hold columns are decoded in more
//! time either way, and cross at about the same densities. Dense rows that lie so are multiplied at
//! any density that a layer may have.
//!
//! Where few outputs share a tap, its own load binds, though it was decoded before. The same, taps kept,
//! batch 1, one Zen 4 core, AVX-512 · AVX2:
//!
//! ```text
//!   kept                                    100 %        60 %        40 %
//!   512 → 512, 2 × 2                    2.4 · 1.7   1.7 · 1.2   1.0 · 0.7
//!   512 → 512, 4 × 4                    3.0 · 2.0   2.1 · 1.4   1.4 · 0.8
//!   256 → 256, 8 × 8                    2.1 · 1.5   1.3 · 0.9   0.8 · 0.8
//!   128 → 128, 16 × 16                  1.0 · 1.0   0.8 · 0.8   0.7 · 0.7
//! ```
//!
//! That is so where a layout's bits are spread to dense rows. Of others, kept weights are decoded either
//! way, and then put to their places: dense rows pay only where so many outputs share them that a
//! multiplication costs more than a decoded weight. Values that lie in dense rows are the other extreme,
//! it takes longest to find the kept ones. The same for 512 → 512, 4 × 4, batch 1 · 256 → 256, 8 × 8,
//! batch 4 · 16, one Xeon core, AVX-512, k = 32:
//!
//! ```text
//!   kept                                       100 %             70 %             50 %             30 %
//!   bits, spread               2.8 · 1.7 · 1.4  2.1 · 1.2 · 1.0  1.6 · 0.9 · 0.8  1.2 · 0.6 · 0.5
//!   columns, put                                0.8 · 1.0 · 0.9  0.6 · 0.8 · 0.7  0.5 · 0.5 · 0.5
//!   coded, put                 0.6 · 1.1 · 1.7  0.5 · 0.8 · 1.1  0.5 · 0.7 · 0.8  0.4 · 0.5 · 0.5
//!   dense rows, as they lie    4.9 · 2.0 · 1.7  6.8 · 2.2 · 1.3  8.0 · 2.1 · 1.1  6.9 · 1.6 · 0.7
//! ```
//!
//! Only ratios of costs count here. With AVX-512 both lines are half as steep where the CPU
//! multiplies twice 512 bits a cycle; where it does so once, taps lose less to their loads, and the
//! lines cross a little later.

use crate::layout::DenseSource;
use crate::matrix::CompressedMatrix;
use crate::simd::{Kernels, LARGEST_TILE};

/// How the weights of a layer come to a product that does not take dense rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoding {
    /// Block by block, each time.
    EachRun,
    /// Before, once.
    Once,
}

/// Nanoseconds an entry, and an entry and output: dense rows.
const DENSE: [f64; 2] = [0.5, 0.028];
/// The same for a kept weight as a tap.
const TAPS: [f64; 2] = [2.2, 0.033];
/// The same for a tap that was decoded before: it is loaded and looked up for few outputs as for many.
const KEPT_TAPS: [f64; 2] = [1.1, 0.031];
/// Nanoseconds a kept weight that is decoded, of layouts that put it to its place.
const DECODE: f64 = 1.4;
/// Nanoseconds an entry of stored dense rows to find the kept ones.
const FIND: f64 = 5.0;
/// The density from which on a batch of vectors is multiplied as dense rows.
const BATCH_DENSITY: f64 = 0.48;
/// The same for rows of [`WIDE_COLS`] and more.
const WIDE_BATCH_DENSITY: f64 = 0.38;
/// 32 inputs a column are half a second-level cache of 512 KiB.
const WIDE_COLS: usize = 2048;

/// Numbers of the dense rows that have to be decoded together, at most: 16 MiB.
const MAX_BLOCK: usize = 1 << 22;

/// Whether `outputs` of a convolution, of one place if `is_point`, take less time from dense rows.
pub(super) fn dense_is_faster(
    kernels: &dyn Kernels,
    matrix: &CompressedMatrix,
    outputs: usize,
    is_point: bool,
    decoding: Decoding,
) -> bool {
    let shape = matrix.shape();
    let is_small = shape.ncols.saturating_mul(matrix.block_rows()) <= MAX_BLOCK;
    if !kernels.shares_inputs() || outputs < 2 || !is_small {
        return false;
    }
    let density = matrix.nnz() as f64 / shape.entries().max(1) as f64;
    let source = matrix.dense_source();
    match decoding {
        _ if !is_point || source == DenseSource::Stored => {
            of_entry(source, decoding, outputs as f64, density)
        }
        _ if shape.ncols >= WIDE_COLS => density >= WIDE_BATCH_DENSITY,
        Decoding::EachRun => density >= BATCH_DENSITY,
        Decoding::Once => of_entry(source, decoding, outputs as f64, density),
    }
}

/// Whether dense rows take less time for an entry and its outputs.
fn of_entry(rows: DenseSource, decoding: Decoding, outputs: f64, density: f64) -> bool {
    let line = |[decode, multiply]: [f64; 2]| decode + outputs * multiply;
    let dense = line(DENSE) + if rows == DenseSource::Kept { density * DECODE } else { 0.0 };
    let taps = match (decoding, rows) {
        (Decoding::Once, _) => density * line(KEPT_TAPS),
        (_, DenseSource::Stored) => FIND + density * line([0.0, TAPS[1]]),
        (_, DenseSource::Bits) => density * line(TAPS),
        (_, DenseSource::Kept) => density * line([DECODE, TAPS[1]]),
    };
    dense <= taps
}

/// The density from which on 3 × 3 kernels are multiplied as `winograd.rs` says, where shapes allow it.
const WINOGRAD_DENSITY: f64 = 0.7;

/// Whether kernels are dense enough to be transformed.
pub(super) fn winograd_is_faster(kernels: &dyn Kernels, matrix: &CompressedMatrix) -> bool {
    let density = matrix.nnz() as f64 / matrix.shape().entries().max(1) as f64;
    kernels.shares_inputs() && density >= WINOGRAD_DENSITY
}

/// Whether a batch of vectors takes less time as a convolution of one place with dense rows, and
/// can be one.
pub(crate) fn batch_is_faster_dense(
    kernels: &dyn Kernels,
    matrix: &CompressedMatrix,
    batch: usize,
) -> bool {
    // Places have 32 bits.
    let inputs = batch.max(LARGEST_TILE).saturating_mul(matrix.shape().ncols);
    inputs < 1 << 31 && dense_is_faster(kernels, matrix, batch, true, Decoding::EachRun)
}

/// The exponent of a number that is infinite or NaN.
const EXPONENT: u32 = f32::INFINITY.to_bits();
/// From here on sums of inputs may not be finite where sums of products are.
const LARGE: f32 = 1e30;

/// Whether no number is infinite or NaN.
pub(super) fn all_finite(x: &[f32]) -> bool {
    all_under(x, EXPONENT)
}

/// Whether numbers may be added to each other before they are multiplied.
pub(super) fn all_moderate(x: &[f32]) -> bool {
    all_under(x, LARGE.to_bits() & EXPONENT)
}

fn all_under(x: &[f32], exponent: u32) -> bool {
    // In parts without a branch, for wide registers.
    x.chunks(1 << 12)
        .all(|x| x.iter().fold(true, |is_under, x| is_under & (x.to_bits() & EXPONENT < exponent)))
}
