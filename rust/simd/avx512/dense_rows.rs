//! Dense rows in pieces of twice sixteen outputs and twelve rows, 24 registers of sums; and bitmaps
//! spread to dense rows, 64 columns at a time as they are for products with a vector.

use super::super::dense_rows::{DenseRows, start};
use super::super::{SymbolRows, TileProduct};
use super::symbols::{Tables, byte_order, load, load_first, look_up};
use std::arch::x86_64::*;

/// Adds all rows; piece by piece of the outputs, whose inputs stay in the first-level cache.
///
/// # Safety
/// [`TileProduct::check`] was called for this output, and the tile has 16 outputs or more.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_rows(product: &TileProduct<'_>, rows: DenseRows<'_>, output: &mut [f32]) {
    let mut at = 0;
    while at < product.size {
        let mut row = 0;
        while row < rows.nrows() {
            let left = rows.nrows() - row;
            // SAFETY: the caller checked the whole tile, of which this is a part: sizes are
            // multiples of 16, and of 32 where one is left.
            row += unsafe {
                match (product.size - at, left) {
                    (16, 12..) => piece::<1, 12>(product, rows, row, at, output),
                    (16, 4..) => piece::<1, 4>(product, rows, row, at, output),
                    (16, _) => piece::<1, 1>(product, rows, row, at, output),
                    (_, 12..) => piece::<2, 12>(product, rows, row, at, output),
                    (_, 8..) => piece::<2, 8>(product, rows, row, at, output),
                    (_, 4..) => piece::<2, 4>(product, rows, row, at, output),
                    (_, 2..) => piece::<2, 2>(product, rows, row, at, output),
                    (_, _) => piece::<2, 1>(product, rows, row, at, output),
                }
            };
        }
        at += 32;
    }
}

/// Adds `N` rows from `first` on to 16 · `V` outputs from `at` on; gives `N`.
///
/// # Safety
/// [`TileProduct::check`] was called for this output, and the tile has outputs up to
/// `at` + 16 · `V`.
#[target_feature(enable = "avx512f")]
unsafe fn piece<const V: usize, const N: usize>(
    product: &TileProduct<'_>,
    rows: DenseRows<'_>,
    first: usize,
    at: usize,
    output: &mut [f32],
) -> usize {
    let mut acc = [[_mm512_setzero_ps(); V]; N];
    for (i, acc) in acc.iter_mut().enumerate() {
        let from = start(product, output, first + i, at).unwrap_or(&[]);
        for (acc, part) in acc.iter_mut().zip(from.as_chunks::<16>().0) {
            *acc = load(part);
        }
    }
    let (offsets, weights) = (rows.offsets(), rows.rows::<N>(first));
    for (col, &offset) in offsets.iter().enumerate() {
        let inputs: [__m512; V] = std::array::from_fn(|v| {
            // SAFETY: the caller checked that a whole tile can be read at every offset.
            unsafe { _mm512_loadu_ps(product.input.as_ptr().add(offset as usize + at + 16 * v)) }
        });
        for (acc, weights) in acc.iter_mut().zip(weights) {
            // SAFETY: a row has as many weights as there are offsets.
            let weight = _mm512_set1_ps(unsafe { *weights.get_unchecked(col) });
            for (acc, &inputs) in acc.iter_mut().zip(&inputs) {
                *acc = _mm512_fmadd_ps(weight, inputs, *acc);
            }
        }
    }
    for (row, acc) in (first..).zip(acc) {
        let output = &mut output[row * product.stride + at..][..16 * V];
        for (mut sum, part) in acc.into_iter().zip(output.as_chunks_mut::<16>().0) {
            if let Some(finish) = product.finish {
                let (scale, shift) = finish.row(row);
                sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(scale), _mm512_set1_ps(shift));
                // In this order, NaN stays NaN.
                sum = _mm512_max_ps(_mm512_set1_ps(finish.floor), sum);
                sum = _mm512_min_ps(_mm512_set1_ps(finish.ceiling), sum);
            }
            // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
            unsafe { _mm512_storeu_ps(part.as_mut_ptr(), sum) };
        }
    }
    N
}

/// [`super::super::Kernels::spread_bitmap`].
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
pub(super) fn spread_bitmap(
    rows: &SymbolRows<'_>,
    words: &[[u8; 8]],
    row_words: usize,
    pitch: usize,
    out: &mut [f32],
) {
    match rows.k {
        0..=32 => spread_bitmap_of::<32>(rows, words, row_words, pitch, out),
        33..=128 => spread_bitmap_of::<128>(rows, words, row_words, pitch, out),
        _ => spread_bitmap_of::<256>(rows, words, row_words, pitch, out),
    }
}

#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
fn spread_bitmap_of<const K: usize>(
    rows: &SymbolRows<'_>,
    words: &[[u8; 8]],
    row_words: usize,
    pitch: usize,
    out: &mut [f32],
) {
    let (tables, order) = (Tables::new(rows.codebook), byte_order::<K>());
    let mut symbols = rows.symbols;
    for (words, out) in words.chunks_exact(row_words.max(1)).zip(out.chunks_mut(pitch.max(1))) {
        for (word, out) in words.iter().zip(out.as_chunks_mut::<64>().0) {
            let word = u64::from_le_bytes(*word);
            let spread = _mm512_maskz_expand_epi8(word, load_first(symbols));
            symbols = &symbols[word.count_ones() as usize..];
            let values = look_up::<K>(&tables, _mm512_permutexvar_epi8(order, spread));
            for (b, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let kept = (word >> (16 * b)) as u16;
                // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
                unsafe {
                    _mm512_storeu_ps(out.as_mut_ptr(), _mm512_maskz_mov_ps(kept, values[b]));
                }
            }
        }
    }
}
