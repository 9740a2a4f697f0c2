//! Inner loops for each instruction set, chosen once at run time.
//!
//! [`Kernels`] lists the loops; `scalar.rs` is their specification, written first, and an
//! instruction set's file overrides a loop only where that was measured to be faster. A value of
//! an instruction set's type proves that the CPU has it. This folder alone may say `unsafe`, and
//! it knows slices only.
//!
//! `TERSENET_SIMD=scalar|avx2|avx512` forces one, so that every path on a machine can be tested.

mod add_strip;
pub mod alike;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod dense;
pub mod dense_rows;
mod interleaving;
mod saturating;
mod scalar;
mod shifts;
pub mod tans;
mod tiles;
mod winograd;

use crate::error::{Error, Result};
use alike::{ACTIVE, Planes};
use std::sync::OnceLock;
use tans::{ElementCode, ElementCursor, Elements};

/// Batch lanes of a panel: [`Kernels::add_panel_product`] multiplies for this many inputs at once.
pub const LANES: usize = 16;

/// One panel row: a column's inputs for [`LANES`] members of the batch.
pub type Lanes = [f32; LANES];

pub use interleaving::{Cells, IMAGES};
pub use scalar::maximum;
pub use shifts::{MAX_MOVE, MAX_SHIFTS, Shift};
pub use tiles::{
    Decoded, Finish, GRID_LINE, Grid, LARGEST_TILE, Places, SMALLEST_TILE, Start, Strip, Taps,
    TileProduct,
};
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

    /// Replaces each column by four times its place, as [`Kernels::place`] says, and its symbol in
    /// the upper 8 bits; returns the greatest place and symbol, 0 for none. A place or symbol that
    /// does not fit spoils its column.
    ///
    /// # Panics
    /// When there are no taps, or not as many symbols as columns.
    fn join(
        &self,
        cols: &mut [u32],
        symbols: &[u16],
        taps: &[u32],
        channel: u32,
        base: u32,
    ) -> (u32, u16);

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
    );

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
    fn add_penalties(&self, line: Planes, lines: &[Planes], keys: &mut [u64]);

    /// Replaces the keys by one for each of `lines`, in order, with its penalty alone.
    fn first_penalties(&self, line: Planes, lines: &[Planes], keys: &mut Vec<u64>);

    /// Exchanges keys so that `least`, which is in order, holds the least of all, in order.
    fn exchange_least(&self, least: &mut [u64; ACTIVE], keys: &mut [u64]);

    /// Leaves the keys of at most `limit`.
    fn retain_up_to(&self, limit: u64, keys: &mut Vec<u64>);

    /// `to[i] += from[i]`, at most 32,767 and at least −32,768.
    ///
    /// # Panics
    /// When the slices differ in length.
    fn add_saturating(&self, to: &mut [i16], from: &[i16]);

    /// `to[i] += ⌊from[i] · scale / 2¹⁶⌋`, at most 32,767 and at least −32,768.
    ///
    /// # Panics
    /// When the slices differ in length.
    fn add_scaled_saturating(&self, to: &mut [i16], from: &[i16], scale: i16);
}

impl std::fmt::Debug for dyn Kernels {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Every instruction set that this CPU has, the plainest first.
pub fn available() -> Vec<&'static dyn Kernels> {
    let mut sets: Vec<&'static dyn Kernels> = vec![&scalar::Scalar];
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = avx2::Avx2::detect() {
        sets.push(avx2);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = avx512::Avx512::detect() {
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

/// Has the CPU fetch the start of `values`, which are read soon.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: fetching reads nothing, wherever the pointer leads; every x86-64 CPU has SSE.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bound of a sum of n products in any order, fused or not, against the exact sum.
    fn bound(terms: impl Iterator<Item = (f32, f32)>) -> f64 {
        let (n, sum) = terms.fold((0.0, 0.0), |(n, sum), (a, b)| {
            (n + 1.0, sum + (f64::from(a) * f64::from(b)).abs())
        });
        (n + 2.0) * 2f64.powi(-24) * sum + n * 2f64.powi(-149)
    }

    fn weight() -> impl Strategy<Value = f32> {
        prop_oneof![4 => -2.0f32..2.0, 1 => Just(0.0f32), 1 => Just(-0.0f32), 1 => -1e-38f32..1e-38]
    }

    proptest! {
        #[test]
        fn every_kernel_of_every_instruction_set_is_within_the_bound_at_every_length(
            pairs in prop::collection::vec((weight(), weight()), 0..=4 * LANES + 1),
            lane in 0..LANES,
        ) {
            let (w, x): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let cols: Vec<u32> = (0..w.len() as u32).rev().collect();
            let reversed: Vec<f32> = w.iter().rev().copied().collect();
            let mut panel = vec![[f32::NAN; LANES]; w.len()];
            for (row, &x) in panel.iter_mut().zip(&x) {
                row[lane] = x;
            }
            let exact: f64 = pairs.iter().map(|&(w, x)| f64::from(w) * f64::from(x)).sum();
            let bound = bound(pairs.iter().copied());
            for set in available() {
                let name = set.name();
                let mut input = vec![0.0; w.len() + LARGEST_TILE];
                for (i, &x) in x.iter().enumerate() {
                    input[i + lane] = x;
                }
                let places = Places {
                    taps: vec![0],
                    channel: 1,
                    strip: w.len() / 2,
                    count: 2,
                    group_rows: 3,
                    group_step: 0,
                    end: w.len(),
                    shifts: Default::default(),
                    is_sorted: false,
                };
                let indptr = [0, 0, w.len(), w.len()];
                let (mut all, mut values) = ((0..w.len() as u32).collect(), w.clone());
                let mut taps = Taps::default();
                let decoded = Decoded {
                    indptr: &indptr,
                    cols: &mut all,
                    symbols: &[],
                    codebook: &[],
                    values: &mut values,
                };
                taps.fill(set, decoded, 0, &places);
                for size in [8, 16, 32, 64, 128, LARGEST_TILE] {
                    let mut sums = vec![f32::NAN; 3 * size];
                    let first = TileProduct {
                        strip: taps.strip(0, 0, 3),
                        size,
                        input: &input,
                        start: Start::Zero,
                        finish: None,
                        stride: size,
                        grid: Grid::LINE,
                    };
                    set.add_strip(&first, &mut sums);
                    let before = sums.clone();
                    let second = TileProduct {
                        strip: taps.strip(1, 0, 3),
                        start: Start::Output,
                        ..first
                    };
                    set.add_strip(&second, &mut sums);
                    // The same, finished, into rows further apart.
                    let vectors = [[2.0, -0.5, 1.0], [0.0, 1.5, 0.25]];
                    let (floor, ceiling) = (-0.5, 4.0);
                    let finish = Finish {
                        scale: Some(&vectors[0]), shift: Some(&vectors[1]), floor, ceiling,
                    };
                    let last = TileProduct {
                        start: Start::Sums(&before), finish: Some(finish), stride: size + 3, ..second
                    };
                    let mut finished = vec![f32::NAN; 3 * size + 6];
                    set.add_strip(&last, &mut finished);
                    for (row, sums) in sums.chunks_exact(size).enumerate() {
                        for (at, &sum) in sums.iter().enumerate() {
                            let found = finished[row * (size + 3) + at];
                            let exact = f64::from(sum) * f64::from(vectors[0][row]);
                            let exact = (exact + f64::from(vectors[1][row])).clamp(-0.5, 4.0);
                            let far = 2f64.powi(-22) * (exact.abs() + f64::from(sum).abs() + 2.0);
                            prop_assert!((f64::from(found) - exact).abs() <= far, "{found} {exact}");
                        }
                        prop_assert!(row == 2 || finished[row * (size + 3) + size].is_nan());
                    }
                    prop_assert!(sums[..size].iter().chain(&sums[2 * size..]).all(|&y| y == 0.0));
                    let Some(&shifted) = sums[size..2 * size].get(lane) else { continue };
                    let shifted = f64::from(shifted);
                    prop_assert!((shifted - exact).abs() <= bound, "{name} strip {shifted} {exact}");
                }
                let dense = f64::from(set.dense_dot(&w, &x));
                prop_assert!((dense - exact).abs() <= bound, "{name} dense {dense} {exact}");
                let sparse = f64::from(set.sparse_dot(&cols, &reversed, &x));
                prop_assert!((sparse - exact).abs() <= bound, "{name} sparse {sparse} {exact}");
                let mut values = [f32::NAN; 256];
                values[..reversed.len()].copy_from_slice(&reversed);
                let symbols: Vec<u8> = (0..reversed.len() as u8).collect();
                let stored: Vec<[u8; 2]> = cols.iter().map(|&col| (col as u16).to_le_bytes()).collect();
                let counts = [symbols.len() as u32];
                for k in [32, 128, 256].into_iter().filter(|&k| k >= symbols.len()) {
                    let rows =
                        SymbolRows { counts: &counts, symbols: &symbols, codebook: &values, k };
                    let mut y = [f32::NAN];
                    set.column_dots(&rows, &stored, &x, &mut y);
                    let symbol = f64::from(y[0]);
                    prop_assert!((symbol - exact).abs() <= bound, "{name} symbol {symbol} {exact}");
                }
                // As ranks of up to 32 values and of more, and positions from somewhere on.
                for start in [0, 7, u32::MAX - 100] {
                    let positions: Vec<u32> = cols.iter().map(|&col| col + start).collect();
                    let ranks: Vec<u16> = (0..reversed.len() as u16).collect();
                    let all = f64::from(set.rank_dot(&positions, start, &ranks, &values, &x));
                    prop_assert!((all - exact).abs() <= bound, "{name} rank {all} {exact}");
                    let (n, some) = (ranks.len(), ranks.len().min(32));
                    let few = set.rank_dot(&positions[..some], start, &ranks[..some], &values[..some], &x)
                        + set.rank_dot(&positions[some..], start, &ranks[..n - some], &values[some..], &x);
                    prop_assert!((f64::from(few) - exact).abs() <= bound, "{name} rank {few} {exact}");
                }
                // In two parts, the second added to the first.
                let mut sums = [0.0; LANES];
                let cut = cols.len() / 3;
                set.add_panel_product(&cols[..cut], &reversed[..cut], &panel, &mut sums);
                set.add_panel_product(&cols[cut..], &reversed[cut..], &panel, &mut sums);
                let sum = f64::from(sums[lane]);
                prop_assert!((sum - exact).abs() <= bound, "{name} panel {sum} {exact}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_instruction_set_places_and_looks_up_the_same(
            cols in prop::collection::vec(prop_oneof![0u32..70_000, (1u32 << 22) - 2000..(1 << 22) + 2000], 0..100), taps in 1usize..40, k in 1usize..300,
            channel in 0u32..900, base in 0u32..1000,
        ) {
            let taps: Vec<u32> = (0..taps as u32).map(|t| t * t % 97).collect();
            let place = |&col: &u32| {
                base + col / taps.len() as u32 * channel + taps[col as usize % taps.len()]
            };
            let expected: Vec<u32> = cols.iter().map(place).collect();
            let codebook: Vec<f32> = (0..k).map(|i| i as f32 - 7.5).collect();
            let symbols: Vec<u16> = cols.iter().map(|&col| (col as usize % k) as u16).collect();
            let values: Vec<f32> = symbols.iter().map(|&s| codebook[usize::from(s)]).collect();
            for set in available() {
                let mut found = cols.clone();
                let reach = set.place(&mut found, &taps, channel, base);
                prop_assert_eq!(&found, &expected, "{}", set.name());
                prop_assert_eq!(reach, expected.iter().copied().max().unwrap_or(0));
                let mut found = cols.clone();
                let (reach, symbol) = set.join(&mut found, &symbols, &taps, channel, base);
                prop_assert_eq!(reach, expected.iter().copied().max().unwrap_or(0));
                prop_assert_eq!(symbol, symbols.iter().copied().max().unwrap_or(0));
                for ((&joined, &place), &symbol) in found.iter().zip(&expected).zip(&symbols) {
                    let fits = place < 1 << 22 && symbol < 256;
                    prop_assert!(!fits || joined == place * 4 + (u32::from(symbol) << 24));
                }
                let mut found = vec![1.0];
                set.look_up(&symbols, &codebook, &mut found);
                prop_assert_eq!(&found[1..], &values, "{}", set.name());
            }
        }
    }

    #[test]
    fn a_pruned_weight_contributes_nothing_where_x_is_not_finite() {
        for set in available() {
            for len in [1, 7, 8, 9, 16, 33, 64, 65] {
                let mut w = vec![0.0; len];
                let mut x = vec![f32::NAN; len];
                w[len - 1] = 2.0;
                x[len - 1] = 3.0;
                assert_eq!(set.dense_dot(&w, &x), 6.0, "{} {len}", set.name());
                w[len - 1] = -0.0;
                x[len - 1] = f32::INFINITY;
                assert!(set.dense_dot(&w, &x).is_nan(), "{} {len}", set.name());
            }
        }
    }

    #[test]
    fn a_column_outside_x_panics_on_every_instruction_set() {
        for set in available() {
            for len in [1, 8, 17] {
                let mut cols = vec![0; len];
                cols[len - 1] = 5;
                let values = vec![1.0; len];
                let dot = std::panic::catch_unwind(|| set.sparse_dot(&cols, &values, &[1.0; 5]));
                let panel = std::panic::catch_unwind(|| {
                    set.add_panel_product(&cols, &values, &[[1.0; LANES]; 5], &mut [0.0; LANES])
                });
                let stored: Vec<[u8; 2]> =
                    cols.iter().map(|&col| (col as u16).to_le_bytes()).collect();
                let symbol = std::panic::catch_unwind(|| {
                    let (counts, symbols) = ([len as u32], vec![0; len]);
                    let codebook = &[1.0; 256];
                    let rows = SymbolRows { counts: &counts, symbols: &symbols, codebook, k: 2 };
                    set.column_dots(&rows, &stored, &[1.0; 5], &mut [0.0])
                });
                let symbol_panel = std::panic::catch_unwind(|| {
                    let (counts, symbols) = ([len as u32], vec![0; len]);
                    let codebook = &[1.0; 256];
                    let rows = SymbolRows { counts: &counts, symbols: &symbols, codebook, k: 2 };
                    let panel = [[1.0; LANES]; 10];
                    set.column_panel(&rows, &stored, 2, &panel, &mut [[0.0; LANES]; 2])
                });
                assert!(symbol_panel.is_err(), "{} {len}", set.name());
                let places = Places {
                    taps: vec![0],
                    channel: 1,
                    strip: 6,
                    count: 1,
                    group_rows: 1,
                    group_step: 0,
                    end: 6,
                    shifts: Default::default(),
                    is_sorted: false,
                };
                let mut taps = Taps::default();
                let decoded = Decoded {
                    indptr: &[0, len],
                    cols: &mut cols.clone(),
                    symbols: &[],
                    codebook: &[],
                    values: &mut values.clone(),
                };
                taps.fill(set, decoded, 0, &places);
                let tile = |size: usize, inputs: usize| {
                    std::panic::catch_unwind(|| {
                        let (input, mut sums) = (vec![1.0; inputs], vec![0.0; size]);
                        let product = TileProduct {
                            strip: taps.strip(0, 0, 1),
                            size,
                            input: &input,
                            start: Start::Zero,
                            finish: None,
                            stride: size,
                            grid: Grid::LINE,
                        };
                        set.add_strip(&product, &mut sums)
                    })
                };
                let (shifted, odd_tile) = (tile(64, 68), tile(24, 64));
                let ranks = vec![0; len];
                let rank = |values: &[f32], start: u32| {
                    std::panic::catch_unwind(|| {
                        set.rank_dot(&cols, start, &ranks, values, &[1.0; 5])
                    })
                };
                let is_outside = rank(&[1.0; 2], 0).is_err() && rank(&[1.0; 64], 0).is_err();
                assert!(is_outside && rank(&[1.0; 2], 6).is_err(), "{} {len}", set.name());
                assert!(rank(&[], 0).is_err(), "{} {len}", set.name());
                assert!(dot.is_err() && panel.is_err() && symbol.is_err(), "{} {len}", set.name());
                let symbol = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
                let look_up = std::panic::catch_unwind(|| {
                    set.look_up(&symbol[..=len - 1], &[1.0; 3], &mut Vec::new())
                });
                assert!(look_up.is_err() == (len == 17), "{} {len}", set.name());
                assert!(shifted.is_err() && odd_tile.is_err(), "{} {len}", set.name());
            }
        }
    }

    proptest! {
        #[test]
        fn rows_of_symbols_are_within_the_bound_and_touch_only_what_they_keep(
            nrows in 0usize..5, ncols in 0usize..300, k in 1usize..=256, density in 0.0f64..1.2,
            seed in any::<u64>(),
        ) {
            let mut state = seed | 1;
            let mut random = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) as f64 / (1u64 << 53) as f64
            };
            let kept: Vec<Vec<usize>> = (0..nrows)
                .map(|_| (0..ncols).filter(|_| random() < density).collect())
                .collect();
            let mut codebook = [f32::NAN; 256];
            codebook[..k].fill_with(|| random() as f32 - 0.5);
            // Nothing is kept in some columns; there x is not finite.
            let x: Vec<f32> = (0..ncols)
                .map(|col| match kept.iter().any(|row| row.contains(&col)) {
                    true => random() as f32 - 0.5,
                    false => f32::INFINITY,
                })
                .collect();
            let (mut counts, mut symbols, mut cols) = (Vec::new(), Vec::new(), Vec::new());
            let row_words = ncols.div_ceil(64);
            let mut words = vec![[0u8; 8]; nrows * row_words];
            let mut expected = Vec::new();
            for (r, row) in kept.iter().enumerate() {
                let mut terms = Vec::new();
                for &col in row {
                    let symbol = (random() * k as f64) as usize;
                    symbols.push(symbol as u8);
                    cols.push((col as u16).to_le_bytes());
                    words[r * row_words + col / 64][col % 64 / 8] |= 1 << (col % 8);
                    terms.push((codebook[symbol], x[col]));
                }
                counts.push(row.len() as u32);
                let exact: f64 = terms.iter().map(|&(w, x)| f64::from(w) * f64::from(x)).sum();
                expected.push((exact, bound(terms.into_iter())));
            }
            let rows = SymbolRows { counts: &counts, symbols: &symbols, codebook: &codebook, k };
            for set in available() {
                let mut found = vec![[1, 1]];
                set.set_bits(&words, row_words, &mut found);
                prop_assert_eq!(&found, &cols);
                for width in [1, 2] {
                    // x in one lane, among others that are not finite.
                    let lane = seed as usize % (width * LANES);
                    let mut panel = vec![[f32::NAN; LANES]; ncols * width];
                    for (col, &x) in x.iter().enumerate() {
                        panel[col * width + lane / LANES][lane % LANES] = x;
                    }
                    let mut sums = vec![[0.0; LANES]; nrows * width];
                    set.column_panel(&rows, &cols, width, &panel, &mut sums);
                    for (r, &(exact, bound)) in expected.iter().enumerate() {
                        let y = f64::from(sums[r * width + lane / LANES][lane % LANES]);
                        prop_assert!((y - exact).abs() <= bound, "{} {y} {exact}", set.name());
                    }
                }
                let (mut by_cols, mut by_bits) = (vec![f32::NAN; nrows], vec![f32::NAN; nrows]);
                set.column_dots(&rows, &cols, &x, &mut by_cols);
                set.bitmap_dots(&rows, &words, &x, &mut by_bits);
                for (r, &(exact, bound)) in expected.iter().enumerate() {
                    for y in [by_cols[r], by_bits[r]] {
                        let what = set.name();
                        prop_assert!((f64::from(y) - exact).abs() <= bound, "{what} {y} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_unknown_instruction_set_is_an_error_that_lists_those_there_are() {
        let error = choose(&available(), Some("mmx")).err().unwrap().to_string();
        assert!(error.contains("mmx") && error.contains("scalar"), "{error}");
        assert_eq!(choose(&available(), Some("scalar")).unwrap().name(), "scalar");
    }
}
