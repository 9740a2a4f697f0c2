//! Dense rows in pieces of sixteen outputs and six rows: twenty-four registers of sums.

use super::super::TileProduct;
use super::super::dense_rows::{DenseRows, start};
use std::arch::aarch64::*;

/// Lanes of a register.
const QUAD: usize = 4;

/// Adds all rows; piece by piece of the outputs, whose inputs stay in the first-level cache.
///
/// # Safety
/// [`TileProduct::check`] was called for this output.
pub(super) unsafe fn add_rows(product: &TileProduct<'_>, rows: DenseRows<'_>, output: &mut [f32]) {
    let mut at = 0;
    while at < product.size {
        let mut row = 0;
        while row < rows.nrows() {
            // SAFETY: the caller checked the whole tile, of which this is a part: sizes are
            // multiples of 8, and of 16 where one is left.
            row += unsafe {
                match (product.size - at, rows.nrows() - row) {
                    (8, 6..) => piece::<2, 6>(product, rows, row, at, output),
                    (8, 2..) => piece::<2, 2>(product, rows, row, at, output),
                    (8, _) => piece::<2, 1>(product, rows, row, at, output),
                    (_, 6..) => piece::<4, 6>(product, rows, row, at, output),
                    (_, 4..) => piece::<4, 4>(product, rows, row, at, output),
                    (_, 2..) => piece::<4, 2>(product, rows, row, at, output),
                    (_, _) => piece::<4, 1>(product, rows, row, at, output),
                }
            };
        }
        at += 16;
    }
}

/// Adds `N` rows from `first` on to 4 · `V` outputs from `at` on; gives `N`.
///
/// # Safety
/// [`TileProduct::check`] was called for this output, and the tile has outputs up to
/// `at` + 4 · `V`.
#[target_feature(enable = "neon")]
unsafe fn piece<const V: usize, const N: usize>(
    product: &TileProduct<'_>,
    rows: DenseRows<'_>,
    first: usize,
    at: usize,
    output: &mut [f32],
) -> usize {
    let mut acc = [[vdupq_n_f32(0.0); V]; N];
    for (i, acc) in acc.iter_mut().enumerate() {
        let from = start(product, output, first + i, at).unwrap_or(&[]);
        for (acc, part) in acc.iter_mut().zip(from.as_chunks::<QUAD>().0) {
            // SAFETY: the reference covers four numbers.
            *acc = unsafe { vld1q_f32(part.as_ptr()) };
        }
    }
    let (offsets, weights) = (rows.offsets(), rows.rows::<N>(first));
    for (col, &offset) in offsets.iter().enumerate() {
        let inputs: [float32x4_t; V] = std::array::from_fn(|v| {
            // SAFETY: the caller checked that a whole tile can be read at every offset.
            unsafe { vld1q_f32(product.input.as_ptr().add(offset as usize + at + QUAD * v)) }
        });
        for (acc, weights) in acc.iter_mut().zip(weights) {
            // SAFETY: a row has as many weights as there are offsets.
            let weight = vdupq_n_f32(unsafe { *weights.get_unchecked(col) });
            for (acc, &inputs) in acc.iter_mut().zip(&inputs) {
                *acc = vfmaq_f32(*acc, weight, inputs);
            }
        }
    }
    for (row, acc) in (first..).zip(acc) {
        let output = &mut output[row * product.stride + at..][..QUAD * V];
        for (mut sum, part) in acc.into_iter().zip(output.as_chunks_mut::<QUAD>().0) {
            if let Some(finish) = product.finish {
                let (scale, shift) = finish.row(row);
                sum = vfmaq_f32(vdupq_n_f32(shift), sum, vdupq_n_f32(scale));
                // NaN stays NaN.
                sum = vmaxq_f32(vdupq_n_f32(finish.floor), sum);
                sum = vminq_f32(vdupq_n_f32(finish.ceiling), sum);
            }
            // SAFETY: the reference covers four numbers.
            unsafe { vst1q_f32(part.as_mut_ptr(), sum) };
        }
    }
    N
}
