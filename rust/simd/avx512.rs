//! AVX-512 (F, BW, DQ, VL, VBMI, VBMI2) with BMI2: sixteen lanes, masks for what is left over.
//!
//! What is not faster here than on AVX2 is left to it.
#![allow(unsafe_code)]

mod dense_rows;
mod elements;
mod few;
mod few_grids;
mod gathering;
mod grids;
mod panels;
mod pooling;
mod quads;
mod sell;
mod sixteens;
mod symbols;
mod tans;
mod tiles;
mod whole;

use super::alike::{ACTIVE, Planes};
use super::avx2::Avx2;
use super::sell::{Inputs, MAX_SYMBOLS, Slices};
use super::shifts::{self, MAX_SHIFTS, Shift, Sorted};
use super::tans::{ElementCode, ElementCursor, Elements, RowProducts, decode_with};
use super::tiles::{CutRows, Joined, Rows, Weights};
use super::winograd::POINTS;
use super::{
    Cells, Cutting, Finish, IMAGES, Kernels, Lanes, Spacing, SymbolRows, TileProduct, Windows,
};
use std::arch::x86_64::__cpuid;

/// Proof that the CPU has AVX2 and FMA, the AVX-512 sets named above, and BMI2.
pub struct Avx512 {
    avx2: &'static Avx2,
    registers: Registers,
    /// Whether numbers are gathered by the instruction.
    gathers: bool,
}

/// How the CPU computes with registers of sixteen lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registers {
    /// Half after half: two registers of eight take as long, and need no input that fills sixteen.
    Halves,
    /// All lanes at once.
    Whole,
}

impl Avx512 {
    /// The kernels, where the CPU has the instructions: the last ones as they are fastest here, the
    /// first ones the other way.
    pub fn detect() -> Option<&'static [Self; 2]> {
        static AVX512: std::sync::OnceLock<Option<[Avx512; 2]>> = std::sync::OnceLock::new();
        let found = AVX512.get_or_init(|| {
            let has_all = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vbmi2")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("popcnt");
            let avx2 = Avx2::detect().filter(|_| has_all)?;
            // SAFETY: the CPU has these sets.
            let gathers = unsafe { gathering::gathers_faster() };
            let (other, here) = match has_whole_registers() {
                true => (Registers::Halves, Registers::Whole),
                false => (Registers::Whole, Registers::Halves),
            };
            let set = |registers, gathers| Self { avx2, registers, gathers };
            Some([set(other, !gathers), set(here, gathers)])
        });
        found.as_ref()
    }
}

/// Whether this CPU computes sixteen lanes at once, as all of Intel's with AVX-512 do; AMD's tell.
fn has_whole_registers() -> bool {
    /// "Performance Optimization Identifiers", and their bit FP512, in AMD's manual.
    const LEAF: u32 = 0x8000_001a;
    const FP512: u32 = 1 << 3;
    #[allow(unused_unsafe, reason = "newer compilers know that it is safe")]
    // SAFETY: every x86-64 CPU has the instruction.
    let cpuid = |leaf| unsafe { __cpuid(leaf) };
    let maker = cpuid(0);
    let is_amd =
        [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD";
    let has_leaf = cpuid(0x8000_0000).eax >= LEAF;
    !is_amd || has_leaf && cpuid(LEAF).eax & FP512 != 0
}

/// From so many terms on, values are put into registers.
const WORTH_A_TABLE: usize = 16;

impl Kernels for Avx512 {
    fn name(&self) -> &'static str {
        match self.registers {
            Registers::Halves => "avx512",
            Registers::Whole => "avx512full",
        }
    }

    fn sparse_dot(&self, cols: &[u32], values: &[f32], x: &[f32]) -> f32 {
        self.avx2.sparse_dot(cols, values, x)
    }

    fn column_dots(&self, rows: &SymbolRows<'_>, cols: &[[u8; 2]], x: &[f32], y: &mut [f32]) {
        if rows.k > 32 {
            return self.avx2.column_dots(rows, cols, x, y);
        }
        // SAFETY: `self` exists only where `detect` found the instructions.
        unsafe {
            match self.gathers {
                true => symbols::column_dots::<true>(rows, cols, x, y),
                false => symbols::column_dots::<false>(rows, cols, x, y),
            }
        }
    }

    fn bitmap_dots(&self, rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found the instructions.
        unsafe { symbols::bitmap_dots(rows, words, x, y) }
    }

    fn words_percent(&self) -> u64 {
        22
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
        // SAFETY: `self` exists only where `detect` found the instructions.
        unsafe { add(rows, cols, panel, sums) }
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
        // SAFETY: `self` exists only where `detect` found the instructions.
        unsafe { multiply(slices, x, sums) }
    }

    /// With more than 32 values these are gathered, inputs never. Measured where registers are whole,
    /// reckoned from shuffles a step where they are halves.
    fn sell_percent(&self, k: usize) -> Option<u64> {
        match (k, self.registers) {
            (0..=32, Registers::Whole) => Some(15),
            (0..=32, Registers::Halves) => Some(40),
            (..=MAX_SYMBOLS, _) => self.gathers.then_some(40),
            _ => None,
        }
    }

    fn set_bits(&self, words: &[[u8; 8]], row_words: usize, cols: &mut Vec<[u8; 2]>) {
        // SAFETY: `self` exists only where `detect` found the instructions.
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
        // SAFETY: `self` exists only where `detect` found the instructions.
        unsafe { dense_rows::spread_bitmap(rows, words, row_words, pitch, out) }
    }

    fn dense_dot(&self, w: &[f32], x: &[f32]) -> f32 {
        self.avx2.dense_dot(w, x)
    }

    fn add_panel_product(&self, cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes) {
        self.avx2.add_panel_product(cols, values, panel, sums);
    }

    fn place(&self, cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32 {
        match taps.len() {
            // SAFETY: `self` exists only where `detect` found AVX-512.
            1..=32 => unsafe { tiles::place(cols, taps, channel, base) },
            _ => self.avx2.place(cols, taps, channel, base),
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
            // SAFETY: `self` exists only where `detect` found AVX-512.
            1..=32 => unsafe { tiles::join(positions, start, symbols, spacing, out) },
            _ => self.avx2.join(positions, start, symbols, spacing, out),
        }
    }

    fn sort_by_tap(
        &self,
        width: u32,
        shifts: &[Shift],
        weights: shifts::Weights<'_, u16>,
        sorted: Sorted<'_, u16>,
    ) -> [u32; MAX_SHIFTS] {
        // They rise.
        if weights.0.last().is_some_and(|&col| col >= tiles::LARGE) {
            return self.avx2.sort_by_tap(width, shifts, weights, sorted);
        }
        // SAFETY: `self` exists only where `detect` found the instructions.
        unsafe { tiles::sort_by_tap(width, shifts, weights, sorted) }
    }

    fn look_up(&self, symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>) {
        match codebook.len() {
            // SAFETY: `self` exists only where `detect` found AVX-512.
            1..=32 => unsafe { tiles::look_up(symbols, codebook, values) },
            _ => self.avx2.look_up(symbols, codebook, values),
        }
    }

    fn tile(&self) -> usize {
        128
    }

    fn lanes(&self) -> usize {
        match self.registers {
            Registers::Halves => 8,
            Registers::Whole => 16,
        }
    }

    fn add_strip(&self, product: &TileProduct<'_>, output: &mut [f32]) {
        if product.size == 8 {
            return self.avx2.add_strip(product, output);
        }
        product.check(output);
        match product.strip.rows() {
            Rows::Wide(rows) => add_strip(self.registers, product, rows, output),
            Rows::Joined(rows) => add_joined(self.registers, product, rows, output),
            // SAFETY: `self` exists only where `detect` found AVX-512; checked above.
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
        let has_byte_ranks = code.has_byte_ranks();
        let decode = match (tans::Gaps::of(code), has_byte_ranks) {
            (tans::Gaps::None, true) => tans::decode_elements::<{ tans::NONE }, true>,
            (tans::Gaps::None, false) => tans::decode_elements::<{ tans::NONE }, false>,
            (tans::Gaps::Byte, true) => tans::decode_elements::<{ tans::BYTE }, true>,
            (tans::Gaps::Byte, false) => tans::decode_elements::<{ tans::BYTE }, false>,
            (tans::Gaps::Narrow, true) => tans::decode_elements::<{ tans::NARROW }, true>,
            (tans::Gaps::Narrow, false) => tans::decode_elements::<{ tans::NARROW }, false>,
            (tans::Gaps::Wide, true) => tans::decode_elements::<{ tans::WIDE }, true>,
            (tans::Gaps::Wide, false) => tans::decode_elements::<{ tans::WIDE }, false>,
        };
        decode_with(code, cursor, nsteps, out, |cursor, nsteps, out| {
            // SAFETY: `self` exists only where `detect` found every set that is named there.
            unsafe { decode(code, cursor, nsteps, out) }
        });
    }

    fn multiplies_elements_from(&self) -> usize {
        24
    }

    fn multiply_elements(
        &self,
        code: &ElementCode,
        cursor: &mut ElementCursor<'_>,
        nsteps: usize,
        products: &mut RowProducts<'_>,
    ) -> usize {
        if !code.has_byte_ranks() || products.values().len() > 256 || products.rows() == 0 {
            return 0;
        }
        let gathers = self.gathers && products.x().len() <= i32::MAX as usize;
        let multiply = match tans::Gaps::of(code) {
            tans::Gaps::None => return 0,
            tans::Gaps::Byte => elements::multiplier::<{ tans::BYTE }>(products.values(), gathers),
            tans::Gaps::Narrow => {
                elements::multiplier::<{ tans::NARROW }>(products.values(), gathers)
            }
            tans::Gaps::Wide => elements::multiplier::<{ tans::WIDE }>(products.values(), gathers),
        };
        // SAFETY: `self` exists only where `detect` found every set that is named there.
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
        let mut table = [0.0; 32];
        match table.get_mut(..values.len()) {
            Some(table) if positions.len() >= WORTH_A_TABLE => table.copy_from_slice(values),
            _ => return self.avx2.rank_dot(positions, start, ranks, values, x),
        }
        assert_eq!(positions.len(), ranks.len(), "rank_dot: positions and ranks");
        let values = (&table, values.len());
        // SAFETY: `self` exists only where `detect` found every set that is named there.
        unsafe {
            match self.gathers && x.len() <= i32::MAX as usize {
                true => elements::rank_dot::<true>(positions, start, ranks, values, x),
                false => elements::rank_dot::<false>(positions, start, ranks, values, x),
            }
        }
    }

    fn greatest_of_four(&self, width: usize, x: &[f32], out: &mut [f32]) {
        // SAFETY: `self` exists only where `detect` found AVX-512.
        unsafe { pooling::greatest_of_four(width, x, out) }
    }

    fn interleave(&self, maps: [&[f32]; IMAGES], cells: Cells, out: &mut [f32]) {
        self.avx2.interleave(maps, cells, out);
    }

    fn copy_cells(&self, rows: usize, from: (&[f32], Cells), to: (&mut [f32], Cells)) {
        self.avx2.copy_cells(rows, from, to);
    }

    fn separate(&self, x: &[f32], cells: Cells, maps: [&mut [f32]; IMAGES]) {
        self.avx2.separate(x, cells, maps);
    }

    fn greatest_of_four_cells(&self, width: usize, x: &[f32], out: &mut [f32]) {
        self.avx2.greatest_of_four_cells(width, x, out);
    }

    fn cut(&self, cutting: &Cutting<'_>, cuts: &mut Vec<u32>) {
        self.avx2.cut(cutting, cuts);
    }

    fn fill_windows(&self, windows: &Windows, x: &[f32], step: usize, out: &mut [f32]) {
        self.avx2.fill_windows(windows, x, step, out);
    }

    fn add_penalties(&self, line: Planes, lines: &[Planes], keys: &mut [u64]) {
        self.avx2.add_penalties(line, lines, keys);
    }

    fn first_penalties(&self, line: Planes, lines: &[Planes], keys: &mut Vec<u64>) {
        self.avx2.first_penalties(line, lines, keys);
    }

    fn exchange_least(&self, least: &mut [u64; ACTIVE], keys: &mut [u64]) {
        self.avx2.exchange_least(least, keys);
    }

    fn retain_up_to(&self, limit: u64, keys: &mut Vec<u64>) {
        self.avx2.retain_up_to(limit, keys);
    }

    fn add_saturating(&self, to: &mut [i16], from: &[i16]) {
        self.avx2.add_saturating(to, from);
    }

    fn add_scaled_saturating(&self, to: &mut [i16], from: &[i16], scale: i16) {
        self.avx2.add_scaled_saturating(to, from, scale);
    }

    fn transform_kernels(&self, kernels: &[f32], out: &mut [&mut [f32]; POINTS], at: usize) {
        self.avx2.transform_kernels(kernels, out, at);
    }

    fn transform_inputs(&self, rows: [&[f32]; 4], out: &mut [f32], plane: usize) {
        self.avx2.transform_inputs(rows, out, plane);
    }

    fn transform_products(
        &self,
        products: &[f32],
        plane: usize,
        finish: (&Finish<'_>, usize),
        outputs: [&mut [f32]; 2],
    ) {
        self.avx2.transform_products(products, plane, finish, outputs);
    }
}

/// Multiplies a strip of joined weights that was checked.
fn add_joined(
    registers: Registers,
    product: &TileProduct<'_>,
    rows: CutRows<'_, Joined>,
    output: &mut [f32],
) {
    if !rows.has_few_values() || !product.strip.shifts().is_empty() {
        return add_strip(registers, product, rows, output);
    }
    // SAFETY: only called where `detect` found every set that is named there, and after the check
    // that the kernels ask for.
    unsafe {
        match (product.size, product.grid.lines, registers) {
            (4, ..) => quads::add_few(product, rows, output),
            (16, _, Registers::Halves) => sixteens::add_few(product, rows, output),
            (16, _, Registers::Whole) => whole::add_few(product, rows, output),
            (64, 2, Registers::Halves) => few_grids::add_strip::<8, 2, 2>(product, rows, output),
            (64, 2, Registers::Whole) => whole::add_strip::<4, 2, 2>(product, rows, output),
            (128, 4, Registers::Halves) => few_grids::add_strip::<16, 1, 4>(product, rows, output),
            (128, 4, Registers::Whole) => whole::add_strip::<8, 1, 4>(product, rows, output),
            (64, 8, _) => few_grids::add_strip::<8, 1, 8>(product, rows, output),
            (128, 16, _) => few_grids::add_strip::<16, 1, 16>(product, rows, output),
            _ => add_strip(registers, product, rows, output),
        }
    }
}

/// Multiplies a strip that was checked.
fn add_strip(
    registers: Registers,
    product: &TileProduct<'_>,
    rows: CutRows<'_, impl Weights>,
    output: &mut [f32],
) {
    // SAFETY: only called where `detect` found AVX-512, and after the check that the kernels ask
    // for.
    unsafe {
        let has_shifts = !product.strip.shifts().is_empty();
        match (product.size, product.grid.lines, registers) {
            (64, 2, Registers::Halves) => grids::add_strip::<8, 2, 2>(product, rows, output),
            (64, 2, Registers::Whole) => tiles::add_strip::<4, 2, 2>(product, rows, output),
            (128, 4, Registers::Halves) => grids::add_strip::<16, 1, 4>(product, rows, output),
            (128, 4, Registers::Whole) => tiles::add_strip::<8, 1, 4>(product, rows, output),
            (64, 8, _) => grids::add_strip::<8, 1, 8>(product, rows, output),
            (128, 16, _) => grids::add_strip::<16, 1, 16>(product, rows, output),
            (16, ..) if has_shifts => tiles::add_shifted::<1>(product, rows, output),
            (32, ..) if has_shifts => tiles::add_shifted::<2>(product, rows, output),
            (64, ..) if has_shifts => tiles::add_shifted::<4>(product, rows, output),
            (128, ..) if has_shifts => tiles::add_shifted::<8>(product, rows, output),
            (256, ..) if has_shifts => tiles::add_shifted::<16>(product, rows, output),
            (4, ..) => quads::add_strip::<1, 8, 1>(product, rows, output),
            (16, ..) => tiles::add_strip::<1, 8, 1>(product, rows, output),
            (32, ..) => tiles::add_strip::<2, 4, 1>(product, rows, output),
            (64, ..) => tiles::add_strip::<4, 2, 1>(product, rows, output),
            (128, ..) => tiles::add_strip::<8, 1, 1>(product, rows, output),
            (256, ..) => tiles::add_strip::<16, 1, 1>(product, rows, output),
            (size, ..) => panic!("add_strip: a tile of {size}"),
        }
    }
}
