//! Inner loops for each instruction set, chosen once at run time.
//!
//! [`Kernels`] lists the loops; `scalar.rs` is their specification, written first, and an
//! instruction set's file overrides a loop only where that was measured to be faster. A value of
//! an instruction set's type proves that the CPU has it. This folder alone may say `unsafe`, and
//! it knows slices only.
//!
//! `TERSENET_SIMD=scalar|neon|avx2|avx512|avx512full` forces one, so that every path on a machine can be
//! tested. AVX-512 is there twice: for CPUs that compute its registers half by half, and for those that
//! compute them whole.

// Instruction sets share what not all of them use.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports, unused_macros))]

mod add_strip;
pub mod alike;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cuts;
pub mod dense;
pub mod dense_rows;
mod interleaving;
#[cfg(target_arch = "aarch64")]
mod neon;
mod saturating;
mod scalar;
pub mod sell;
mod shifts;
mod spacing;
pub mod tans;
#[cfg(test)]
mod tests;
mod tiles;
mod windows;
mod winograd;

use crate::error::{Error, Result};
use alike::{ACTIVE, Planes};
use sell::{Inputs, Slices};
use std::sync::OnceLock;
use tans::{ElementCode, ElementCursor, Elements, RowProducts};

/// Batch lanes of a panel: [`Kernels::add_panel_product`] multiplies for this many inputs at once.
pub const LANES: usize = 16;

/// One panel row: a column's inputs for [`LANES`] members of the batch.
pub type Lanes = [f32; LANES];

pub use cuts::Cutting;
pub use interleaving::{Cells, IMAGES};
pub use scalar::maximum;
pub use shifts::{MAX_MOVE, MAX_SHIFTS, Shift};
pub use spacing::Spacing;
pub use tiles::{
    COLUMN, COLUMN_PITCH, Decoded, Filling, Finish, GRID_LINE, Grid, LARGEST_TILE, Places,
    SMALLEST_DENSE_TILE, SMALLEST_TILE, Start, Strip, Taps, TileProduct,
};
pub use windows::Windows;
pub use winograd::{POINTS, TAPS};

/// Rows of kept weights as they are stored: the value of each is `codebook[symbol]`.
#[derive(Clone, Copy)]
pub struct SymbolRows<'a> {
    /// How many weights each row keeps.
    pub counts: &'a [u32],
    /// The symbols, row by row, each under `k`; what follows the last row is not used.
    pub symbols: &'a [u8],
    /// The values of symbols.
    pub codebook: &'a [f32; 256],
    /// How many of the values are in use: the fewer, the faster they are looked up.
    pub k: usize,
}

/// Panics unless columns, symbols and `nrows` outputs suffice for what `rows` counts; gives the
/// columns that are counted.
fn counted<'a>(rows: &SymbolRows<'_>, cols: &'a [[u8; 2]], nrows: usize) -> &'a [[u8; 2]] {
    let nnz: usize = rows.counts.iter().map(|&count| count as usize).sum();
    assert_eq!(rows.counts.len(), nrows, "symbol rows: counts and outputs");
    assert!(cols.len() >= nnz && rows.symbols.len() >= nnz, "symbol rows: columns and symbols");
    &cols[..nnz]
}

/// Columns at a time whose part of a panel, `nbytes` a column, stays in the second-level cache, and
/// of which rows keep enough to be worth starting anew.
fn strip_cols(rows: &SymbolRows<'_>, ncols: usize, nbytes: usize) -> usize {
    const CACHE_NBYTES: usize = 512 << 10;
    const ROW_WEIGHTS: usize = 12;
    let nnz: usize = rows.counts.iter().map(|&count| count as usize).sum();
    let enough = (ncols * rows.counts.len() * ROW_WEIGHTS).div_ceil(nnz.max(1));
    enough.max(CACHE_NBYTES / nbytes)
}

/// The inner loops. Sums may differ in order between instruction sets, never between calls.
pub trait Kernels: Send + Sync + std::panic::RefUnwindSafe {
    /// The name that `TERSENET_SIMD` takes.
    fn name(&self) -> &'static str;

    /// `Σ values[i] · x[cols[i]]`.
    ///
    /// # Panics
    /// When the slices differ in length or a column is outside x.
    fn sparse_dot(&self, cols: &[u32], values: &[f32], x: &[f32]) -> f32;

    /// `y[r] = Σ value · x[col]` over row r, whose columns are stored as 16-bit little-endian
    /// numbers, row by row; what follows the last row is not used.
    ///
    /// # Panics
    /// When there are fewer columns or symbols than `rows` counts, other counts than outputs, or a
    /// column outside x.
    fn column_dots(&self, rows: &SymbolRows<'_>, cols: &[[u8; 2]], x: &[f32], y: &mut [f32]);

    /// `y[r] = Σ value · x[col]` over row r, whose columns are the set bits of its ⌈ncols / 64⌉
    /// little-endian words; bits past the last column are not used.
    ///
    /// # Panics
    /// When the words are not as many as y's rows need. Where there are fewer symbols than bits,
    /// it may panic or take any of the values.
    fn bitmap_dots(&self, rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]);

    /// How many bits in a hundred have to be set for [`Kernels::bitmap_dots`] to be faster than
    /// [`Kernels::column_dots`].
    fn words_percent(&self) -> u64;

    /// `sums[r] = Σ value · x[col]` over the weights of each row of slices, a lane a row, for each of
    /// `vectors` vectors: `x` has the inputs of each for the first block of columns, for the second
    /// one, …, and `sums` the lanes of each for the first slice, for the second one, ….
    ///
    /// # Panics
    /// When sums are not those of all slices, there are fewer blocks or steps than are counted, or
    /// inputs than blocks, or no or more than [`sell::MAX_VECTORS`] vectors.
    fn slice_products(
        &self,
        slices: &Slices<'_>,
        vectors: usize,
        x: &[Inputs],
        sums: &mut [Lanes],
    ) {
        sell::check(slices, sums, vectors);
        sell::products(slices, x, sums, vectors);
    }

    /// How many slots in a hundred have to be taken for [`Kernels::slice_products`] with k values to be
    /// faster than [`Kernels::column_dots`]; none where it never is.
    fn sell_percent(&self, _k: usize) -> Option<u64> {
        None
    }

    /// Adds `Σ value · panel[col]` over row r to `sums[r]`, for every lane. Columns are stored as
    /// for [`Kernels::column_dots`]; panel and sums have `width` groups of lanes, 1 or 2, for each
    /// column and each row.
    ///
    /// # Panics
    /// As [`Kernels::column_dots`], and for another width.
    fn column_panel(
        &self,
        rows: &SymbolRows<'_>,
        cols: &[[u8; 2]],
        width: usize,
        panel: &[Lanes],
        sums: &mut [Lanes],
    );

    /// Fills `cols` with the places of the set bits of each row, as 16-bit little-endian numbers; a
    /// row is `row_words` ≤ 1024 little-endian words.
    fn set_bits(&self, words: &[[u8; 8]], row_words: usize, cols: &mut Vec<[u8; 2]>);

    /// Writes rows as dense ones, a row at each multiple of `pitch`: the value of each set bit of its
    /// `row_words` little-endian words at its column, +0.0 at the others, 64 columns a word.
    ///
    /// # Panics
    /// When there are fewer symbols than bits; and where a row ends outside `out` it may panic or
    /// leave columns as they are.
    fn spread_bitmap(
        &self,
        rows: &SymbolRows<'_>,
        words: &[[u8; 8]],
        row_words: usize,
        pitch: usize,
        out: &mut [f32],
    );

    /// `Σ w[i] · x[i]` over the entries of w that are not +0.0.
    ///
    /// # Panics
    /// When the slices differ in length.
    fn dense_dot(&self, w: &[f32], x: &[f32]) -> f32;

    /// Adds `Σ values[i] · panel[cols[i]]` to `sums`, for every lane.
    ///
    /// # Panics
    /// When the slices differ in length or a column is outside the panel.
    fn add_panel_product(&self, cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes);

    /// Replaces each column `c · taps.len() + t` by its place `base + c · channel + taps[t]`, and
    /// returns the greatest place, 0 for none.
    ///
    /// # Panics
    /// When there are no taps, or (in debug) a place is 2³² or more.
    fn place(&self, cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32;

    /// Fills `out` with four times the place of each column, which is a position less `start`, and
    /// its symbol in the upper 8 bits; returns the greatest place and symbol, 0 for none. A place or
    /// symbol that does not fit spoils its entry.
    ///
    /// # Panics
    /// When lengths differ.
    fn join(
        &self,
        positions: &[u32],
        start: u32,
        symbols: &[u16],
        spacing: &Spacing<'_>,
        out: &mut [u32],
    ) -> (u32, u16);

    /// Fills `cuts` with where strips of rows start, all rows' first strip first, and their ends.
    ///
    /// # Panics
    /// When rows are not in the weights.
    fn cut(&self, cutting: &Cutting<'_>, cuts: &mut Vec<u32>) {
        let mask = cutting.mask;
        cuts::cut(cutting, cuts, |weights, limit| cuts::count_under(weights, mask, limit));
    }

    /// Sorts the weights of a row by their tap column, `col % width`, in the order of `shifts`, which
    /// are those of all tap columns; weights of one stay in the order they had. Columns rise. Returns
    /// how many there are of each. What is sorted has room for [`shifts::SORT_ROOM`] more, which may
    /// become anything.
    ///
    /// # Panics
    /// When lengths differ, there is no such room, or the shifts are others.
    fn sort_by_tap(
        &self,
        width: u32,
        shifts: &[Shift],
        weights: shifts::Weights<'_, u16>,
        sorted: shifts::Sorted<'_, u16>,
    ) -> [u32; MAX_SHIFTS] {
        shifts::sort(width, shifts, weights, sorted)
    }

    /// Appends `codebook[symbol]` of every symbol to `values`.
    ///
    /// # Panics
    /// When a symbol is outside the codebook.
    fn look_up(&self, symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>);

    /// Outputs of the tile that [`Kernels::add_strip`] is fastest at: a power of two, no larger
    /// than [`LARGEST_TILE`].
    fn tile(&self) -> usize;

    /// Outputs of a register of that tile.
    fn lanes(&self) -> usize {
        8
    }

    /// Whether [`Kernels::add_strip`] loads the inputs of a column once for several dense rows, and
    /// so is faster at them than at taps of as many weights.
    fn shares_inputs(&self) -> bool {
        true
    }

    /// Sums `Σ value · input[offset + p]` over the weights of each row, for p in [0, size), finishes
    /// the sums and stores them in `output`, a row at each multiple of the stride.
    ///
    /// # Panics
    /// When sizes do not fit, or a tile ends outside the input.
    fn add_strip(&self, product: &TileProduct<'_>, output: &mut [f32]);

    /// Decodes `nsteps` whole steps and appends what they keep to `out`: see [`tans`].
    ///
    /// # Panics
    /// When `out` would hold more than [`tans::CHUNK_STEPS`] steps.
    fn decode_elements(
        &self,
        code: &ElementCode,
        cursor: &mut ElementCursor<'_>,
        nsteps: usize,
        out: &mut Elements,
    ) {
        (0..nsteps).for_each(|_| tans::decode_step(code, cursor, tans::TANS_LANES, out));
    }

    /// Elements of a row, on average, from which on [`Kernels::multiply_elements`] is faster than
    /// decoding first.
    fn multiplies_elements_from(&self) -> usize {
        usize::MAX
    }

    /// Decodes up to `nsteps` whole steps, adds what they keep to products, and gives how many: fewer
    /// near the end of a stream, or after the last row; none where this set does not do both at once.
    fn multiply_elements(
        &self,
        _code: &ElementCode,
        _cursor: &mut ElementCursor<'_>,
        _nsteps: usize,
        _products: &mut RowProducts<'_>,
    ) -> usize {
        0
    }

    /// `Σ values[ranks[i]] · x[positions[i] − start]`.
    ///
    /// # Panics
    /// When the slices differ in length, a rank is outside the values, or a position
    /// under the start or outside x.
    fn rank_dot(
        &self,
        positions: &[u32],
        start: u32,
        ranks: &[u16],
        values: &[f32],
        x: &[f32],
    ) -> f32;

    /// Fills `out` with the greatest of each two by two numbers of rows of `width`: NaN where one is.
    ///
    /// # Panics
    /// When the width is odd, x is not whole pairs of rows, or `out` not a quarter as long.
    fn greatest_of_four(&self, width: usize, x: &[f32], out: &mut [f32]);

    /// Puts the numbers of maps side by side into cells; what is between cells stays.
    ///
    /// # Panics
    /// When maps differ in length, rows or cells overlap, or `out` is too short.
    fn interleave(&self, maps: [&[f32]; IMAGES], cells: Cells, out: &mut [f32]) {
        interleaving::interleave(maps, cells, out);
    }

    /// Copies rows of cells to others; what is between those stays.
    ///
    /// # Panics
    /// When rows have another number of cells there, rows or cells overlap, or end outside.
    fn copy_cells(&self, rows: usize, from: (&[f32], Cells), to: (&mut [f32], Cells)) {
        interleaving::copy_cells(rows, from, to);
    }

    /// Takes maps out of cells.
    ///
    /// # Panics
    /// As [`Kernels::interleave`].
    fn separate(&self, x: &[f32], cells: Cells, maps: [&mut [f32]; IMAGES]) {
        interleaving::separate(x, cells, maps);
    }

    /// Fills `out` with the greatest of each two by two cells of rows of `width` cells of [`IMAGES`]
    /// numbers, each number with those of its image: NaN where one is.
    ///
    /// # Panics
    /// When the width is odd, x is not whole pairs of rows, or `out` not a quarter as long.
    fn greatest_of_four_cells(&self, width: usize, x: &[f32], out: &mut [f32]) {
        interleaving::greatest_of_four(width, x, out);
    }

    /// Fills `out` with an output of `windows` for each channel of `x`, one at each multiple of `step`.
    ///
    /// # Panics
    /// When a number is outside x.
    fn fill_windows(&self, windows: &Windows, x: &[f32], step: usize, out: &mut [f32]) {
        windows::fill(windows, x, step, out);
    }

    /// Transforms 3 × 3 kernels, one after the other: number `p` of 16 of kernel `i` to place `at + i`
    /// of `out[p]` ([`winograd`]).
    ///
    /// # Panics
    /// When there is no such place.
    fn transform_kernels(&self, kernels: &[f32], out: &mut [&mut [f32]; POINTS], at: usize) {
        winograd::transform_kernels(kernels, out, at);
    }

    /// Transforms a row of tiles, four by four inputs that overlap by two: number `p` of 16 of tile
    /// `i` at `p · plane + i`.
    ///
    /// # Panics
    /// When rows differ in length or have less than two numbers, or `out` has no such place.
    fn transform_inputs(&self, rows: [&[f32]; 4], out: &mut [f32], plane: usize) {
        winograd::transform_inputs(rows, out, plane);
    }

    /// Transforms 16 planes of products of a row of tiles to two rows of finished outputs of a row of
    /// the matrix. The lower one may be empty.
    ///
    /// # Panics
    /// When a tile has no products, or the row no scale or shift.
    fn transform_products(
        &self,
        products: &[f32],
        plane: usize,
        finish: (&Finish<'_>, usize),
        outputs: [&mut [f32]; 2],
    ) {
        winograd::transform_products(products, plane, finish, outputs);
    }

    /// Adds to each key, whose low 16 bits are a place in `lines` and whose upper ones a penalty, how
    /// unlike that line is to `line`: 7 for each entry that one of the two keeps, 4 for each that
    /// both keep, and differs.
    ///
    /// # Panics
    /// When a place is outside `lines`.
    fn add_penalties(&self, line: Planes, lines: &[Planes], keys: &mut [u64]) {
        alike::add_penalties(line, lines, keys);
    }

    /// Replaces the keys by one for each of `lines`, in order, with its penalty alone.
    fn first_penalties(&self, line: Planes, lines: &[Planes], keys: &mut Vec<u64>) {
        alike::first_penalties(line, lines, keys);
    }

    /// Exchanges keys so that `least`, which is in order, holds the least of all, in order.
    fn exchange_least(&self, least: &mut [u64; ACTIVE], keys: &mut [u64]) {
        alike::exchange_least(least, keys);
    }

    /// Leaves the keys of at most `limit`.
    fn retain_up_to(&self, limit: u64, keys: &mut Vec<u64>) {
        alike::retain_up_to(limit, keys);
    }

    /// `to[i] += from[i]`, at most 32,767 and at least −32,768.
    ///
    /// # Panics
    /// When the slices differ in length.
    fn add_saturating(&self, to: &mut [i16], from: &[i16]) {
        saturating::add(to, from);
    }

    /// `to[i] += ⌊from[i] · scale / 2¹⁶⌋`, at most 32,767 and at least −32,768.
    ///
    /// # Panics
    /// When the slices differ in length.
    fn add_scaled_saturating(&self, to: &mut [i16], from: &[i16], scale: i16) {
        saturating::add_scaled(to, from, scale);
    }
}

impl std::fmt::Debug for dyn Kernels {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Numbers that the first-level cache of this CPU holds, as far as it tells.
pub fn cached_numbers() -> usize {
    (gemm_common::cache::CACHE_INFO[0].cache_bytes / size_of::<f32>()).clamp(4 << 10, 16 << 10)
}

/// Every instruction set that this CPU has, the fastest one last.
pub fn available() -> Vec<&'static dyn Kernels> {
    let mut sets: Vec<&'static dyn Kernels> = vec![&scalar::Scalar];
    #[cfg(target_arch = "aarch64")]
    sets.push(&neon::Neon);
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = avx2::Avx2::detect() {
        sets.push(avx2);
    }
    #[cfg(target_arch = "x86_64")]
    for avx512 in avx512::Avx512::detect().into_iter().flatten() {
        sets.push(avx512);
    }
    sets
}

/// The best of `sets`, or the one named `forced`.
///
/// # Errors
/// `InvalidArgument` when it is not among them.
fn choose(sets: &[&'static dyn Kernels], forced: Option<&str>) -> Result<&'static dyn Kernels> {
    let Some(name) = forced else { return Ok(sets[sets.len() - 1]) };
    sets.iter().find(|set| set.name() == name).copied().ok_or_else(|| {
        let names: Vec<&str> = sets.iter().map(|set| set.name()).collect();
        Error::invalid(format!(
            "TERSENET_SIMD: {name:?}, expected one of {} on this machine",
            names.join(", ")
        ))
    })
}

/// The instruction set in use: the best there is, unless `TERSENET_SIMD` names another.
///
/// # Errors
/// `InvalidArgument` when `TERSENET_SIMD` names one that is unknown or not on this machine.
pub fn active() -> Result<&'static dyn Kernels> {
    static ACTIVE: OnceLock<&'static dyn Kernels> = OnceLock::new();
    if let Some(set) = ACTIVE.get() {
        return Ok(*set);
    }
    let forced = std::env::var("TERSENET_SIMD").ok().filter(|name| !name.is_empty());
    let set = choose(&available(), forced.as_deref())?;
    Ok(*ACTIVE.get_or_init(|| set))
}

/// Has the CPU fetch what is in `values` from place `at` on, which is read soon, if it is there.
#[inline(always)]
pub fn prefetch<T>(values: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: fetching reads nothing, wherever the pointer leads; every x86-64 CPU has SSE.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().wrapping_add(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at);
}
