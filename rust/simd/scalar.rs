//! The specification, but for what [`Kernels`] computes by default: plain Rust, on every machine.
#![allow(unsafe_code)]

use super::tiles::{CutRows, Rows, Weights};
use super::{
    Kernels, LARGEST_TILE, Lanes, Spacing, Start, SymbolRows, TileProduct, counted, dense_rows,
};

/// No instruction set at all.
pub struct Scalar;

impl Kernels for Scalar {
    fn name(&self) -> &'static str {
        "scalar"
    }

    fn sparse_dot(&self, cols: &[u32], values: &[f32], x: &[f32]) -> f32 {
        assert_eq!(cols.len(), values.len(), "sparse_dot: columns and values");
        cols.iter().zip(values).map(|(&col, &value)| value * x[col as usize]).sum()
    }

    fn column_dots(&self, rows: &SymbolRows<'_>, cols: &[[u8; 2]], x: &[f32], y: &mut [f32]) {
        let cols = counted(rows, cols, y.len());
        let mut weights = cols.iter().zip(rows.symbols);
        for (&count, y) in rows.counts.iter().zip(y) {
            let row = weights.by_ref().take(count as usize);
            *y = row
                .map(|(&col, &symbol)| {
                    rows.codebook[usize::from(symbol)] * x[usize::from(u16::from_le_bytes(col))]
                })
                .sum();
        }
    }

    fn bitmap_dots(&self, rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]) {
        assert_eq!(words.len(), x.len().div_ceil(64) * y.len(), "bitmap_dots: words");
        let mut symbols = rows.symbols.iter();
        let mut words = words.iter();
        for y in y {
            *y = 0.0;
            for (x, word) in x.chunks(64).zip(words.by_ref()) {
                let mut word = u64::from_le_bytes(*word) & (u64::MAX >> (64 - x.len()));
                while word != 0 {
                    let symbol = symbols.next().copied().unwrap_or(0);
                    *y += rows.codebook[usize::from(symbol)] * x[word.trailing_zeros() as usize];
                    word &= word - 1;
                }
            }
        }
    }

    fn words_percent(&self) -> u64 {
        50
    }

    fn column_panel(
        &self,
        rows: &SymbolRows<'_>,
        cols: &[[u8; 2]],
        width: usize,
        panel: &[Lanes],
        sums: &mut [Lanes],
    ) {
        assert!(matches!(width, 1 | 2), "column_panel: width {width}");
        let cols = counted(rows, cols, sums.len() / width);
        let mut weights = cols.iter().zip(rows.symbols);
        for (&count, sums) in rows.counts.iter().zip(sums.chunks_exact_mut(width)) {
            for (&col, &symbol) in weights.by_ref().take(count as usize) {
                let value = rows.codebook[usize::from(symbol)];
                let inputs = &panel[usize::from(u16::from_le_bytes(col)) * width..][..width];
                for (sum, x) in sums.as_flattened_mut().iter_mut().zip(inputs.as_flattened()) {
                    *sum += value * x;
                }
            }
        }
    }

    fn set_bits(&self, words: &[[u8; 8]], row_words: usize, cols: &mut Vec<[u8; 2]>) {
        cols.clear();
        for row in words.chunks(row_words.max(1)) {
            for (base, word) in (0..).step_by(64).zip(row) {
                let mut word = u64::from_le_bytes(*word);
                while word != 0 {
                    cols.push(((base + word.trailing_zeros()) as u16).to_le_bytes());
                    word &= word - 1;
                }
            }
        }
    }

    fn spread_bitmap(
        &self,
        rows: &SymbolRows<'_>,
        words: &[[u8; 8]],
        row_words: usize,
        pitch: usize,
        out: &mut [f32],
    ) {
        let mut symbols = rows.symbols.iter();
        for (words, out) in words.chunks_exact(row_words.max(1)).zip(out.chunks_mut(pitch.max(1))) {
            for (word, out) in words.iter().zip(out.chunks_exact_mut(64)) {
                let word = u64::from_le_bytes(*word);
                for (bit, out) in out.iter_mut().enumerate() {
                    *out = match word >> bit & 1 {
                        1 => rows.codebook[usize::from(*symbols.next().expect("a symbol a bit"))],
                        _ => 0.0,
                    };
                }
            }
        }
    }

    fn dense_dot(&self, w: &[f32], x: &[f32]) -> f32 {
        assert_eq!(w.len(), x.len(), "dense_dot: weights and inputs");
        w.iter().zip(x).filter(|(w, _)| w.to_bits() != 0).map(|(w, x)| w * x).sum()
    }

    fn add_panel_product(&self, cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes) {
        assert_eq!(cols.len(), values.len(), "add_panel_product: columns and values");
        for (&col, &value) in cols.iter().zip(values) {
            for (sum, x) in sums.iter_mut().zip(&panel[col as usize]) {
                *sum += value * x;
            }
        }
    }

    fn place(&self, cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32 {
        let (count, mut reach) = (taps.len() as u32, 0);
        for col in cols {
            *col = base + *col / count * channel + taps[(*col % count) as usize];
            reach = reach.max(*col);
        }
        reach
    }

    fn join(
        &self,
        positions: &[u32],
        start: u32,
        symbols: &[u16],
        spacing: &Spacing<'_>,
        out: &mut [u32],
    ) -> (u32, u16) {
        let is_even = positions.len() == symbols.len() && positions.len() == out.len();
        assert!(is_even, "join: positions, symbols and entries");
        let mut reach = 0;
        for ((&position, &symbol), out) in positions.iter().zip(symbols).zip(out) {
            let place = spacing.place(position.wrapping_sub(start));
            reach = reach.max(place);
            *out = place << 2 | u32::from(symbol) << 24;
        }
        (reach, symbols.iter().copied().max().unwrap_or(0))
    }

    fn look_up(&self, symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>) {
        values.extend(symbols.iter().map(|&symbol| codebook[usize::from(symbol)]));
    }

    fn tile(&self) -> usize {
        64
    }

    fn shares_inputs(&self) -> bool {
        false
    }

    fn add_strip(&self, product: &TileProduct<'_>, output: &mut [f32]) {
        product.check(output);
        match product.strip.rows() {
            Rows::Wide(rows) => add_strip(product, rows, output),
            Rows::Joined(rows) => add_strip(product, rows, output),
            Rows::Dense(rows) => dense_rows::add_rows(product, rows, output),
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
        assert_eq!(positions.len(), ranks.len(), "rank_dot: positions and ranks");
        let products = positions.iter().zip(ranks).map(|(&position, &rank)| {
            values[usize::from(rank)] * x[(position as usize).wrapping_sub(start as usize)]
        });
        products.sum()
    }

    fn greatest_of_four(&self, width: usize, x: &[f32], out: &mut [f32]) {
        let is_fit = width > 0 && width.is_multiple_of(2) && x.len() == 4 * out.len();
        assert!(is_fit && x.len().is_multiple_of(2 * width), "greatest_of_four: rows of {width}");
        for (rows, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width / 2)) {
            let (upper, lower) = rows.split_at(width);
            let pairs = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
            for (y, (&[a, b], &[c, d])) in out.iter_mut().zip(pairs) {
                *y = maximum(maximum(a, b), maximum(c, d));
            }
        }
    }
}

/// The greater of two numbers, NaN where one is.
#[inline]
pub fn maximum(a: f32, b: f32) -> f32 {
    if a.is_nan() || a > b { a } else { b }
}

fn add_strip(product: &TileProduct<'_>, rows: CutRows<'_, impl Weights>, output: &mut [f32]) {
    let TileProduct { strip, size, input, start, finish, stride, grid } = *product;
    let len = size / grid.lines;
    let add = |weights: std::ops::Range<usize>, sums: &mut [f32]| {
        for weight in weights {
            // SAFETY: it is in the row's range.
            let (offset, value) = unsafe { rows.get(weight) };
            for (line, sums) in sums.chunks_exact_mut(len).enumerate() {
                let x = &input[offset / 4 + line * grid.pitch..][..len];
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += value * x);
            }
        }
    };
    let mut tile = [0.0; LARGEST_TILE];
    let tile = &mut tile[..size];
    for (row, output) in output.chunks_mut(stride).take(strip.nrows()).enumerate() {
        match start {
            Start::Zero => tile.fill(0.0),
            Start::Output => {
                for (line, sums) in tile.chunks_exact_mut(len).enumerate() {
                    sums.copy_from_slice(&output[line * grid.output_pitch..][..len]);
                }
            }
            Start::Sums(sums) => tile.copy_from_slice(&sums[row * size..][..size]),
        }
        if strip.shifts().is_empty() {
            add(rows.range(row, 0), tile);
        }
        for (part, shift) in strip.shifts().iter().enumerate() {
            let mut own = [0.0; LARGEST_TILE];
            add(rows.range(row, part), &mut own[..size]);
            for (p, (sum, &reach)) in tile.iter_mut().zip(shift.reach()).enumerate() {
                if reach != 0 {
                    *sum += own[p.wrapping_add_signed(shift.by())];
                }
            }
        }
        if let Some(finish) = finish {
            let of_row = finish.row(row);
            tile.iter_mut().for_each(|sum| *sum = finish.of(*sum, of_row));
        }
        for (line, sums) in tile.chunks_exact(len).enumerate() {
            output[line * grid.output_pitch..][..len].copy_from_slice(sums);
        }
    }
}
