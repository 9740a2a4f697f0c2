//! Dense rows in pieces of twice eight outputs and six rows, twelve registers of sums; and bitmaps
//! spread to dense rows.
//!
//! ```text
//!   for every 8 columns of a bitmap, by their byte of the word:
//!     the next 8 values ─vpermps by a table row─▶ each at its column ─zeros where none is kept─▶ row
//! ```

use super::super::dense_rows::{DenseRows, start};
use super::super::{SymbolRows, TileProduct};
use super::load;
use super::symbols::{Planes, load_bytes};
use std::arch::x86_64::*;

/// Adds all rows; piece by piece of the outputs, whose inputs stay in the first-level cache.
///
/// # Safety
/// [`TileProduct::check`] was called for this output.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn add_rows(product: &TileProduct<'_>, rows: DenseRows<'_>, output: &mut [f32]) {
    let mut at = 0;
    while at < product.size {
        let mut row = 0;
        while row < rows.nrows() {
            let left = rows.nrows() - row;
            // SAFETY: the caller checked the whole tile, of which this is a part: sizes are
            // multiples of 8, and of 16 where one is left.
            row += unsafe {
                match (product.size - at, left) {
                    (8, 6..) => piece::<1, 6>(product, rows, row, at, output),
                    (8, 2..) => piece::<1, 2>(product, rows, row, at, output),
                    (8, _) => piece::<1, 1>(product, rows, row, at, output),
                    (_, 6..) => piece::<2, 6>(product, rows, row, at, output),
                    (_, 4..) => piece::<2, 4>(product, rows, row, at, output),
                    (_, 2..) => piece::<2, 2>(product, rows, row, at, output),
                    (_, _) => piece::<2, 1>(product, rows, row, at, output),
                }
            };
        }
        at += 16;
    }
}

/// Adds `N` rows from `first` on to 8 · `V` outputs from `at` on; gives `N`.
///
/// # Safety
/// [`TileProduct::check`] was called for this output, and the tile has outputs up to
/// `at` + 8 · `V`.
#[target_feature(enable = "avx2,fma")]
unsafe fn piece<const V: usize, const N: usize>(
    product: &TileProduct<'_>,
    rows: DenseRows<'_>,
    first: usize,
    at: usize,
    output: &mut [f32],
) -> usize {
    let mut acc = [[_mm256_setzero_ps(); V]; N];
    for (i, acc) in acc.iter_mut().enumerate() {
        let from = start(product, output, first + i, at).unwrap_or(&[]);
        for (acc, part) in acc.iter_mut().zip(from.as_chunks::<8>().0) {
            *acc = load(part);
        }
    }
    let (offsets, weights) = (rows.offsets(), rows.rows::<N>(first));
    for (col, &offset) in offsets.iter().enumerate() {
        let inputs: [__m256; V] = std::array::from_fn(|v| {
            // SAFETY: the caller checked that a whole tile can be read at every offset.
            unsafe { _mm256_loadu_ps(product.input.as_ptr().add(offset as usize + at + 8 * v)) }
        });
        for (acc, weights) in acc.iter_mut().zip(weights) {
            // SAFETY: a row has as many weights as there are offsets.
            let weight = _mm256_set1_ps(unsafe { *weights.get_unchecked(col) });
            for (acc, &inputs) in acc.iter_mut().zip(&inputs) {
                *acc = _mm256_fmadd_ps(weight, inputs, *acc);
            }
        }
    }
    for (row, acc) in (first..).zip(acc) {
        let output = &mut output[row * product.stride + at..][..8 * V];
        for (mut sum, part) in acc.into_iter().zip(output.as_chunks_mut::<8>().0) {
            if let Some(finish) = product.finish {
                let (scale, shift) = finish.row(row);
                sum = _mm256_fmadd_ps(sum, _mm256_set1_ps(scale), _mm256_set1_ps(shift));
                // In this order, NaN stays NaN.
                sum = _mm256_max_ps(_mm256_set1_ps(finish.floor), sum);
                sum = _mm256_min_ps(_mm256_set1_ps(finish.ceiling), sum);
            }
            // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
            unsafe { _mm256_storeu_ps(part.as_mut_ptr(), sum) };
        }
    }
    N
}

/// Row m: for each set bit of m the number of those below it, for the others a negative number.
static RANKS: [[i32; 8]; 256] = {
    let mut table = [[-1; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut found) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte][bit] = found;
                found += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// Words whose values are looked up before they are spread: what stays in the cache.
const PIECE_WORDS: usize = 32;

/// [`super::super::Kernels::spread_bitmap`].
#[target_feature(enable = "avx2,fma,popcnt")]
pub(super) fn spread_bitmap(
    rows: &SymbolRows<'_>,
    words: &[[u8; 8]],
    row_words: usize,
    pitch: usize,
    out: &mut [f32],
) {
    let planes = Planes::new(rows.codebook);
    let mut values = [0.0f32; PIECE_WORDS * 64 + 8];
    let mut symbols = rows.symbols;
    for (words, out) in words.chunks_exact(row_words.max(1)).zip(out.chunks_mut(pitch.max(1))) {
        for (words, out) in words.chunks(PIECE_WORDS).zip(out.chunks_mut(PIECE_WORDS * 64)) {
            let kept = words.iter().map(|word| u64::from_le_bytes(*word).count_ones() as usize);
            let kept = kept.sum();
            let (mine, rest) = symbols.split_at(kept);
            symbols = rest;
            match rows.k {
                0..=32 => look_up(mine, &mut values, planes),
                _ => mine
                    .iter()
                    .zip(&mut values)
                    .for_each(|(&symbol, value)| *value = rows.codebook[usize::from(symbol)]),
            }
            let mut at = 0;
            let (eights, _) = out.as_chunks_mut::<8>();
            for (&byte, out) in words.as_flattened().iter().zip(eights) {
                let eight: &[f32; 8] = values[at..].first_chunk().expect("room for 8");
                // SAFETY: a row of the table is 32 readable bytes, `out` 32 writable ones; loadu
                // and storeu need no alignment.
                unsafe {
                    let ranks = _mm256_loadu_si256(RANKS[usize::from(byte)].as_ptr().cast());
                    let spread = _mm256_permutevar8x32_ps(load(eight), ranks);
                    let pruned = _mm256_castsi256_ps(ranks);
                    let spread = _mm256_blendv_ps(spread, _mm256_setzero_ps(), pruned);
                    _mm256_storeu_ps(out.as_mut_ptr(), spread);
                }
                at += byte.count_ones() as usize;
            }
        }
    }
}

/// The values of symbols under 32.
#[target_feature(enable = "avx2,fma,popcnt")]
#[inline]
fn look_up(symbols: &[u8], values: &mut [f32], planes: Planes) {
    let (chunks, rest) = symbols.as_chunks::<32>();
    let mut last = [0; 32];
    last[..rest.len()].copy_from_slice(rest);
    let last = (!rest.is_empty()).then_some(&last);
    for (symbols, values) in chunks.iter().chain(last).zip(values.chunks_mut(32)) {
        let found = planes.look_up(load_bytes(symbols));
        for (found, values) in found.into_iter().zip(values.as_chunks_mut::<8>().0) {
            // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
            unsafe { _mm256_storeu_ps(values.as_mut_ptr(), found) };
        }
    }
}
