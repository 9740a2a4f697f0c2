//! The specification: every kernel in plain Rust, on every machine.

use super::tans::{self, ElementCode, ElementCursor, Elements, TANS_LANES};
use super::{Kernels, Lanes, TILE};

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

    fn add_shifted_product(
        &self,
        offsets: &[u32],
        values: &[f32],
        input: &[f32],
        sums: &mut [f32],
    ) {
        assert_eq!(offsets.len(), values.len(), "add_shifted_product: offsets and values");
        assert!(matches!(sums.len(), 8 | 16 | 32 | TILE), "add_shifted_product: the tile");
        for (&offset, &value) in offsets.iter().zip(values) {
            let input = &input[offset as usize..][..sums.len()];
            for (sum, x) in sums.iter_mut().zip(input) {
                *sum += value * x;
            }
        }
    }

    fn decode_elements(
        &self,
        code: &ElementCode,
        cursor: &mut ElementCursor<'_>,
        nsteps: usize,
        out: &mut Elements,
    ) {
        (0..nsteps).for_each(|_| tans::decode_step(code, cursor, TANS_LANES, out));
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
}
