//! NEON, which every 64-bit ARM CPU has: four lanes, thirty-two registers.
//!
//! What is not here is computed as plain Rust says it, whose loops the compiler turns into the same
//! instructions. There is no gather, so inputs are loaded one by one.
#![allow(unsafe_code)]

mod dense_rows;
mod products;
mod tiles;

use super::scalar::Scalar;
use super::tiles::Rows;
use super::{Kernels, Lanes, Spacing, SymbolRows, TileProduct};

/// Needs no proof.
pub struct Neon;

impl Kernels for Neon {
    fn name(&self) -> &'static str {
        "neon"
    }

    fn sparse_dot(&self, cols: &[u32], values: &[f32], x: &[f32]) -> f32 {
        products::sparse_dot(cols, values, x)
    }

    fn column_dots(&self, rows: &SymbolRows<'_>, cols: &[[u8; 2]], x: &[f32], y: &mut [f32]) {
        products::column_dots(rows, cols, x, y);
    }

    fn bitmap_dots(&self, rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]) {
        products::bitmap_dots(rows, words, x, y);
    }

    fn words_percent(&self) -> u64 {
        Scalar.words_percent()
    }

    fn column_panel(
        &self,
        rows: &SymbolRows<'_>,
        cols: &[[u8; 2]],
        width: usize,
        panel: &[Lanes],
        sums: &mut [Lanes],
    ) {
        match width {
            1 => products::column_panel::<1>(rows, cols, panel, sums),
            2 => products::column_panel::<2>(rows, cols, panel, sums),
            _ => panic!("column_panel: width {width}"),
        }
    }

    fn set_bits(&self, words: &[[u8; 8]], row_words: usize, cols: &mut Vec<[u8; 2]>) {
        Scalar.set_bits(words, row_words, cols);
    }

    fn spread_bitmap(
        &self,
        rows: &SymbolRows<'_>,
        words: &[[u8; 8]],
        row_words: usize,
        pitch: usize,
        out: &mut [f32],
    ) {
        Scalar.spread_bitmap(rows, words, row_words, pitch, out);
    }

    fn dense_dot(&self, w: &[f32], x: &[f32]) -> f32 {
        products::dense_dot(w, x)
    }

    fn add_panel_product(&self, cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes) {
        products::add_panel_product(cols, values, panel, sums);
    }

    fn place(&self, cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32 {
        Scalar.place(cols, taps, channel, base)
    }

    fn join(
        &self,
        positions: &[u32],
        start: u32,
        symbols: &[u16],
        spacing: &Spacing<'_>,
        out: &mut [u32],
    ) -> (u32, u16) {
        Scalar.join(positions, start, symbols, spacing, out)
    }

    fn look_up(&self, symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>) {
        Scalar.look_up(symbols, codebook, values);
    }

    fn tile(&self) -> usize {
        64
    }

    fn add_strip(&self, product: &TileProduct<'_>, output: &mut [f32]) {
        product.check(output);
        // SAFETY: checked above.
        unsafe {
            match product.strip.rows() {
                Rows::Wide(rows) => tiles::add_rows(product, rows, output),
                Rows::Joined(rows) => tiles::add_rows(product, rows, output),
                Rows::Dense(rows) => dense_rows::add_rows(product, rows, output),
            }
        }
    }

    fn rank_dot(
        &self,
        positions: &[u32],
        start: u32,
        ranks: &[u16],
        values: &[f32],
        x: &[f32],
    ) -> f32 {
        products::rank_dot(positions, start, ranks, values, x)
    }

    fn greatest_of_four(&self, width: usize, x: &[f32], out: &mut [f32]) {
        Scalar.greatest_of_four(width, x, out);
    }
}
