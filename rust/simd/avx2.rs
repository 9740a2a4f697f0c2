//! AVX2 and FMA: eight lanes, four independent sums so that the additions overlap.
//!
//! Inputs are gathered by plain, checked loads: on most CPUs faster than the gather instruction.
#![allow(unsafe_code)]

mod dense_rows;
mod elements;
mod interleaving;
mod panels;
mod pooling;
mod quads;
mod sell;
mod symbols;
pub(super) mod tans;
mod tiles;
mod windows;

use super::alike::{self, ACTIVE, Planes};
use super::saturating;
use super::scalar::Scalar;
use super::sell::{Inputs, Slices};
use super::shifts::{self, MAX_SHIFTS, Shift, Sorted};
use super::tans::{ElementCode, ElementCursor, Elements, RowProducts, decode_with};
use super::tiles::{CutRows, Rows, Weights};
use super::winograd::{self, POINTS};
use super::{
    Cells, Cutting, Finish, IMAGES, Kernels, Lanes, Spacing, SymbolRows, TileProduct, Windows,
};
use std::arch::x86_64::*;

/// Proof that the CPU has AVX2 and FMA.
pub struct Avx2 {
    /// True when it also has BMI1, BMI2 and POPCNT, as all but a few do.
    has_bmi2: bool,
}

impl Avx2 {
    /// The kernels, where the CPU has the instructions.
    pub fn detect() -> Option<&'static Self> {
        static AVX2: std::sync::OnceLock<Option<Avx2>> = std::sync::OnceLock::new();
        let found = AVX2.get_or_init(|| {
            let has_bmi2 = is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("popcnt");
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"))
                .then_some(Self { has_bmi2 })
        });
        found.as_ref()
    }
}

impl Kernels for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn sparse_dot(&self, cols: &[u32], values: &[f32], x: &[f32]) -> f32 {
        assert_eq!(cols.len(), values.len(), "sparse_dot: columns and values");
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { sparse_dot(cols, values, x) }
    }

    fn column_dots(&self, rows: &SymbolRows<'_>, cols: &[[u8; 2]], x: &[f32], y: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { symbols::column_dots(rows, cols, x, y) }
    }

    fn bitmap_dots(&self, rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { symbols::bitmap_dots(rows, words, x, y) }
    }

    fn words_percent(&self) -> u64 {
        50
    }

    fn slice_products(
        &self,
        slices: &Slices<'_>,
        vectors: usize,
        x: &[Inputs],
        sums: &mut [Lanes],
    ) {
        super::sell::check(slices, sums, vectors);
        let multiply = super::sell::for_vectors!(products, vectors);
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { multiply(slices, x, sums) }
    }

    fn column_panel(
        &self,
        rows: &SymbolRows<'_>,
        cols: &[[u8; 2]],
        width: usize,
        panel: &[Lanes],
        sums: &mut [Lanes],
    ) {
        let add = match width {
            1 => panels::column_panel::<1>,
            2 => panels::column_panel::<2>,
            _ => panic!("column_panel: width {width}"),
        };
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { add(rows, cols, panel, sums) }
    }

    fn set_bits(&self, words: &[[u8; 8]], row_words: usize, cols: &mut Vec<[u8; 2]>) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { symbols::set_bits(words, row_words, cols) }
    }

    fn spread_bitmap(
        &self,
        rows: &SymbolRows<'_>,
        words: &[[u8; 8]],
        row_words: usize,
        pitch: usize,
        out: &mut [f32],
    ) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { dense_rows::spread_bitmap(rows, words, row_words, pitch, out) }
    }

    fn dense_dot(&self, w: &[f32], x: &[f32]) -> f32 {
        assert_eq!(w.len(), x.len(), "dense_dot: weights and inputs");
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { dense_dot(w, x) }
    }

    fn add_panel_product(&self, cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes) {
        assert_eq!(cols.len(), values.len(), "add_panel_product: columns and values");
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { add_panel_product(cols, values, panel, sums) }
    }

    fn place(&self, cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32 {
        match taps.len() {
            // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
            1..=16 => unsafe { tiles::place(cols, taps, channel, base) },
            _ => Scalar.place(cols, taps, channel, base),
        }
    }

    fn join(
        &self,
        positions: &[u32],
        start: u32,
        symbols: &[u16],
        spacing: &Spacing<'_>,
        out: &mut [u32],
    ) -> (u32, u16) {
        match spacing.ntaps() {
            // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
            1..=16 => unsafe { tiles::join(positions, start, symbols, spacing, out) },
            _ => Scalar.join(positions, start, symbols, spacing, out),
        }
    }

    fn sort_by_tap(
        &self,
        width: u32,
        shifts: &[Shift],
        weights: shifts::Weights<'_, u16>,
        sorted: Sorted<'_, u16>,
    ) -> [u32; MAX_SHIFTS] {
        // Columns rise.
        if !self.has_bmi2 || weights.0.last().is_some_and(|&col| col >= tiles::LARGE) {
            return Scalar.sort_by_tap(width, shifts, weights, sorted);
        }
        // SAFETY: `detect` found POPCNT beside AVX2.
        unsafe { tiles::sort_by_tap(width, shifts, weights, sorted) }
    }

    fn look_up(&self, symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>) {
        Scalar.look_up(symbols, codebook, values);
    }

    fn tile(&self) -> usize {
        64
    }

    fn add_strip(&self, product: &TileProduct<'_>, output: &mut [f32]) {
        product.check(output);
        match product.strip.rows() {
            Rows::Wide(rows) => add_strip_of(product, rows, output),
            Rows::Joined(rows) => add_strip_of(product, rows, output),
            // SAFETY: `self` exists only where `detect` found AVX2 and FMA; checked above.
            Rows::Dense(rows) => unsafe { dense_rows::add_rows(product, rows, output) },
        }
    }

    fn decode_elements(
        &self,
        code: &ElementCode,
        cursor: &mut ElementCursor<'_>,
        nsteps: usize,
        out: &mut Elements,
    ) {
        if !self.has_bmi2 {
            return super::scalar::Scalar.decode_elements(code, cursor, nsteps, out);
        }
        let decode = match code.has_narrow_gaps() {
            true => tans::decode_elements::<true>,
            false => tans::decode_elements::<false>,
        };
        decode_with(code, cursor, nsteps, out, |cursor, nsteps, out| {
            // SAFETY: `self` exists only where `detect` found AVX2, and it found BMI2 too.
            unsafe { decode(code, cursor, nsteps, out) }
        });
    }

    fn multiplies_elements_from(&self) -> usize {
        // Where a step of 64 ends more than one row, its elements are added one by one.
        if self.has_bmi2 { 64 } else { usize::MAX }
    }

    fn multiply_elements(
        &self,
        code: &ElementCode,
        cursor: &mut ElementCursor<'_>,
        nsteps: usize,
        products: &mut RowProducts<'_>,
    ) -> usize {
        let fits = self.has_bmi2
            && code.has_byte_ranks()
            && code.pruned.is_none()
            && products.values().len() <= 256
            && products.x().len() <= elements::MAX_COLUMNS;
        if !fits || products.rows() == 0 {
            return 0;
        }
        let multiply = match (code.has_narrow_gaps(), products.values().len() <= 32) {
            (true, true) => elements::multiply_elements::<true, true, 1>,
            (true, false) => elements::multiply_elements::<true, false, 2>,
            (false, true) => elements::multiply_elements::<false, true, 1>,
            (false, false) => elements::multiply_elements::<false, false, 2>,
        };
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA, and it found BMI2 too.
        unsafe { multiply(code, cursor, nsteps, products) }
    }

    fn rank_dot(
        &self,
        positions: &[u32],
        start: u32,
        ranks: &[u16],
        values: &[f32],
        x: &[f32],
    ) -> f32 {
        assert_eq!(positions.len(), ranks.len(), "rank_dot: positions and ranks");
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { tans::rank_dot(positions, start, ranks, values, x) }
    }

    fn greatest_of_four(&self, width: usize, x: &[f32], out: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { pooling::greatest_of_four(width, x, out) }
    }

    fn interleave(&self, maps: [&[f32]; IMAGES], cells: Cells, out: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found AVX2.
        unsafe { interleaving::interleave(maps, cells, out) }
    }

    fn copy_cells(&self, rows: usize, from: (&[f32], Cells), to: (&mut [f32], Cells)) {
        // SAFETY: `self` exists only where `detect` found AVX2.
        unsafe { interleaving::copy_cells(rows, from, to) }
    }

    fn separate(&self, x: &[f32], cells: Cells, maps: [&mut [f32]; IMAGES]) {
        // SAFETY: `self` exists only where `detect` found AVX2.
        unsafe { interleaving::separate(x, cells, maps) }
    }

    fn greatest_of_four_cells(&self, width: usize, x: &[f32], out: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { pooling::greatest_of_four_cells(width, x, out) }
    }

    fn cut(&self, cutting: &Cutting<'_>, cuts: &mut Vec<u32>) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { tiles::cut(cutting, cuts) }
    }

    fn fill_windows(&self, windows: &Windows, x: &[f32], step: usize, out: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found AVX2.
        unsafe { windows::fill(windows, x, step, out) }
    }

    fn add_penalties(&self, line: Planes, lines: &[Planes], keys: &mut [u64]) {
        if self.has_bmi2 {
            // SAFETY: `detect` found POPCNT beside AVX2.
            return unsafe { add_penalties(line, lines, keys) };
        }
        Scalar.add_penalties(line, lines, keys);
    }

    fn first_penalties(&self, line: Planes, lines: &[Planes], keys: &mut Vec<u64>) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { first_penalties(line, lines, keys) }
    }

    fn exchange_least(&self, least: &mut [u64; ACTIVE], keys: &mut [u64]) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { exchange_least(least, keys) }
    }

    fn retain_up_to(&self, limit: u64, keys: &mut Vec<u64>) {
        if self.has_bmi2 {
            // SAFETY: `detect` found POPCNT beside AVX2.
            return unsafe { retain_up_to(limit, keys) };
        }
        Scalar.retain_up_to(limit, keys);
    }

    fn add_saturating(&self, to: &mut [i16], from: &[i16]) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { add_saturating(to, from) }
    }

    fn add_scaled_saturating(&self, to: &mut [i16], from: &[i16], scale: i16) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { add_scaled_saturating(to, from, scale) }
    }

    fn transform_kernels(&self, kernels: &[f32], out: &mut [&mut [f32]; POINTS], at: usize) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { transform_kernels(kernels, out, at) }
    }

    fn transform_inputs(&self, rows: [&[f32]; 4], out: &mut [f32], plane: usize) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { transform_inputs(rows, out, plane) }
    }

    fn transform_products(
        &self,
        products: &[f32],
        plane: usize,
        finish: (&Finish<'_>, usize),
        outputs: [&mut [f32]; 2],
    ) {
        // SAFETY: `self` exists only where `detect` found AVX2 and FMA.
        unsafe { transform_products(products, plane, finish, outputs) }
    }
}

#[target_feature(enable = "avx2")]
fn transform_kernels(kernels: &[f32], out: &mut [&mut [f32]; POINTS], at: usize) {
    winograd::transform_kernels(kernels, out, at);
}

#[target_feature(enable = "avx2")]
fn transform_inputs(rows: [&[f32]; 4], out: &mut [f32], plane: usize) {
    winograd::transform_inputs(rows, out, plane);
}

#[target_feature(enable = "avx2")]
fn transform_products(
    products: &[f32],
    plane: usize,
    finish: (&Finish<'_>, usize),
    outputs: [&mut [f32]; 2],
) {
    winograd::transform_products(products, plane, finish, outputs);
}

#[target_feature(enable = "avx2,popcnt")]
fn add_penalties(line: Planes, lines: &[Planes], keys: &mut [u64]) {
    alike::add_penalties(line, lines, keys);
}

#[target_feature(enable = "avx2")]
fn first_penalties(line: Planes, lines: &[Planes], keys: &mut Vec<u64>) {
    alike::first_penalties(line, lines, keys);
}

#[target_feature(enable = "avx2")]
fn exchange_least(least: &mut [u64; ACTIVE], keys: &mut [u64]) {
    alike::exchange_least(least, keys);
}

/// For each choice of four keys their halves, moved down to the front.
const RETAINED: [[i32; 8]; 16] = {
    let mut table = [[0; 8]; 16];
    let mut choice = 0;
    while choice < 16 {
        let (mut from, mut to) = (0, 0);
        while from < 4 {
            if choice >> from & 1 != 0 {
                table[choice][to] = 2 * from;
                table[choice][to + 1] = 2 * from + 1;
                to += 2;
            }
            from += 1;
        }
        choice += 1;
    }
    table
};

#[target_feature(enable = "avx2,popcnt")]
fn retain_up_to(limit: u64, keys: &mut Vec<u64>) {
    // Unsigned numbers compare as signed ones do whose top bit is the other one.
    let top = _mm256_set1_epi64x(i64::MIN);
    let limits = _mm256_xor_si256(_mm256_set1_epi64x(limit as i64), top);
    let nchunks = keys.len() / 4;
    let mut len = 0;
    for chunk in 0..nchunks {
        // SAFETY: the chunk is inside, and so is what is written: `len` is at most `4 · chunk`.
        unsafe {
            let at = keys.as_mut_ptr();
            let found = _mm256_loadu_si256(at.add(4 * chunk).cast());
            let is_more = _mm256_cmpgt_epi64(_mm256_xor_si256(found, top), limits);
            let choice = !_mm256_movemask_pd(_mm256_castsi256_pd(is_more)) as usize & 15;
            let order = _mm256_loadu_si256(RETAINED[choice].as_ptr().cast());
            _mm256_storeu_si256(at.add(len).cast(), _mm256_permutevar8x32_epi32(found, order));
            len += choice.count_ones() as usize;
        }
    }
    for i in 4 * nchunks..keys.len() {
        let key = keys[i];
        keys[len] = key;
        len += usize::from(key <= limit);
    }
    keys.truncate(len);
}

#[target_feature(enable = "avx2")]
fn add_saturating(to: &mut [i16], from: &[i16]) {
    saturating::add(to, from);
}

/// The compiler does not see that half of each product is enough.
#[target_feature(enable = "avx2")]
fn add_scaled_saturating(to: &mut [i16], from: &[i16], scale: i16) {
    assert_eq!(to.len(), from.len(), "add_scaled_saturating: lengths");
    let (to, to_rest) = to.as_chunks_mut::<16>();
    let (from, from_rest) = from.as_chunks::<16>();
    let scales = _mm256_set1_epi16(scale);
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: each reference covers 32 bytes; loadu and storeu need no alignment.
        unsafe {
            let scaled = _mm256_mulhi_epi16(_mm256_loadu_si256(from.as_ptr().cast()), scales);
            let sum = _mm256_adds_epi16(_mm256_loadu_si256(to.as_ptr().cast()), scaled);
            _mm256_storeu_si256(to.as_mut_ptr().cast(), sum);
        }
    }
    saturating::add_scaled(to_rest, from_rest, scale);
}

/// The sum of eight lanes.
#[target_feature(enable = "avx2,fma")]
fn horizontal_sum(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

#[target_feature(enable = "avx2,fma")]
fn load(values: &[f32; 8]) -> __m256 {
    // SAFETY: the reference covers 32 readable bytes; loadu needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx2,fma")]
fn sparse_dot(cols: &[u32], values: &[f32], x: &[f32]) -> f32 {
    let (col_chunks, col_rest) = cols.as_chunks::<8>();
    let (value_chunks, value_rest) = values.as_chunks::<8>();
    let mut sums = [_mm256_setzero_ps(); 2];
    for (c, v) in col_chunks.iter().zip(value_chunks) {
        let x = _mm256_setr_ps(
            x[c[0] as usize],
            x[c[1] as usize],
            x[c[2] as usize],
            x[c[3] as usize],
            x[c[4] as usize],
            x[c[5] as usize],
            x[c[6] as usize],
            x[c[7] as usize],
        );
        sums = [sums[1], _mm256_fmadd_ps(load(v), x, sums[0])];
    }
    let mut sum = horizontal_sum(_mm256_add_ps(sums[0], sums[1]));
    for (&col, &value) in col_rest.iter().zip(value_rest) {
        sum += value * x[col as usize];
    }
    sum
}

#[target_feature(enable = "avx2,fma")]
fn dense_dot(w: &[f32], x: &[f32]) -> f32 {
    let (w_chunks, w_rest) = w.as_chunks::<8>();
    let (x_chunks, x_rest) = x.as_chunks::<8>();
    let zero = _mm256_setzero_si256();
    let mut sums = [_mm256_setzero_ps(); 4];
    for (w, x) in w_chunks.iter().zip(x_chunks) {
        let w = load(w);
        let pruned = _mm256_cmpeq_epi32(_mm256_castps_si256(w), zero);
        let x = _mm256_andnot_ps(_mm256_castsi256_ps(pruned), load(x));
        sums = [sums[1], sums[2], sums[3], _mm256_fmadd_ps(w, x, sums[0])];
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let rest: f32 =
        w_rest.iter().zip(x_rest).filter(|(w, _)| w.to_bits() != 0).map(|(w, x)| w * x).sum();
    horizontal_sum(sum) + rest
}

#[target_feature(enable = "avx2,fma")]
fn add_panel_product(cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes) {
    let (col_chunks, col_rest) = cols.as_chunks::<4>();
    let (value_chunks, value_rest) = values.as_chunks::<4>();
    let mut low = [_mm256_setzero_ps(); 4];
    let mut high = [_mm256_setzero_ps(); 4];
    for (cols, values) in col_chunks.iter().zip(value_chunks) {
        for i in 0..4 {
            let (halves, _) = panel[cols[i] as usize].as_chunks::<8>();
            let value = _mm256_set1_ps(values[i]);
            low[i] = _mm256_fmadd_ps(value, load(&halves[0]), low[i]);
            high[i] = _mm256_fmadd_ps(value, load(&halves[1]), high[i]);
        }
    }
    for (i, (&col, &value)) in col_rest.iter().zip(value_rest).enumerate() {
        let (halves, _) = panel[col as usize].as_chunks::<8>();
        let value = _mm256_set1_ps(value);
        low[i] = _mm256_fmadd_ps(value, load(&halves[0]), low[i]);
        high[i] = _mm256_fmadd_ps(value, load(&halves[1]), high[i]);
    }
    let (halves, _) = sums.as_chunks_mut::<8>();
    for (half, parts) in halves.iter_mut().zip([low, high]) {
        let part =
            _mm256_add_ps(_mm256_add_ps(parts[0], parts[1]), _mm256_add_ps(parts[2], parts[3]));
        let sum = _mm256_add_ps(load(half), part);
        // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
        unsafe { _mm256_storeu_ps(half.as_mut_ptr(), sum) };
    }
}

/// Multiplies a strip that was checked.
fn add_strip_of(product: &TileProduct<'_>, rows: CutRows<'_, impl Weights>, output: &mut [f32]) {
    // SAFETY: only called where `detect` found AVX2 and FMA, and after the check that the
    // kernels ask for.
    unsafe {
        let has_shifts = !product.strip.shifts().is_empty();
        match product.size {
            64 if product.grid.lines == 2 => tiles::add_strip::<8, 1, 2>(product, rows, output),
            128 if product.grid.lines == 4 => tiles::add_strip::<16, 1, 4>(product, rows, output),
            64 if product.grid.lines == 8 => tiles::add_strip::<8, 1, 8>(product, rows, output),
            128 if product.grid.lines == 16 => tiles::add_strip::<16, 1, 16>(product, rows, output),
            16 if has_shifts => tiles::add_shifted::<2>(product, rows, output),
            32 if has_shifts => tiles::add_shifted::<4>(product, rows, output),
            64 if has_shifts => tiles::add_shifted::<8>(product, rows, output),
            128 if has_shifts => tiles::add_shifted::<16>(product, rows, output),
            256 if has_shifts => tiles::add_shifted::<32>(product, rows, output),
            4 => quads::add_strip::<1, 8, 1>(product, rows, output),
            8 => tiles::add_strip::<1, 8, 1>(product, rows, output),
            16 => tiles::add_strip::<2, 4, 1>(product, rows, output),
            32 => tiles::add_strip::<4, 2, 1>(product, rows, output),
            64 => tiles::add_strip::<8, 1, 1>(product, rows, output),
            128 => tiles::add_strip::<16, 1, 1>(product, rows, output),
            256 => tiles::add_strip::<32, 1, 1>(product, rows, output),
            size => panic!("add_strip: a tile of {size}"),
        }
    }
}
