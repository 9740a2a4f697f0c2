//! The specification: every kernel in plain Rust, on every machine.

use super::{Kernels, Lanes, Start, TileProduct};

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

    fn symbol_dot(
        &self,
        cols: &[[u8; 2]],
        symbols: &[u8],
        codebook: &[f32; 256],
        x: &[f32],
    ) -> f32 {
        assert_eq!(cols.len(), symbols.len(), "symbol_dot: columns and symbols");
        let products = cols.iter().zip(symbols).map(|(&col, &symbol)| {
            codebook[usize::from(symbol)] * x[usize::from(u16::from_le_bytes(col))]
        });
        products.sum()
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

    fn look_up(&self, symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>) {
        values.extend(symbols.iter().map(|&symbol| codebook[usize::from(symbol)]));
    }

    fn tile(&self) -> usize {
        64
    }

    fn add_strip(&self, product: &TileProduct<'_>, output: &mut [f32]) {
        product.check(output);
        let TileProduct { strip, size, input, start, finish, stride } = *product;
        for (row, output) in output.chunks_mut(stride).take(strip.nrows()).enumerate() {
            let output = &mut output[..size];
            match start {
                Start::Zero => output.fill(0.0),
                Start::Output => (),
                Start::Sums(sums) => output.copy_from_slice(&sums[row * size..][..size]),
            }
            let (offsets, values) = strip.row(row);
            for (&offset, &value) in offsets.iter().zip(values) {
                let input = &input[offset as usize..][..size];
                for (sum, x) in output.iter_mut().zip(input) {
                    *sum += value * x;
                }
            }
            let Some(finish) = finish else { continue };
            let of_row = finish.row(row);
            output.iter_mut().for_each(|sum| *sum = finish.of(*sum, of_row));
        }
    }
}
