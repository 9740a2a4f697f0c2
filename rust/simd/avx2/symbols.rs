//! Products of rows of 8-bit symbols with a vector.
//!
//! ```text
//!   a bitmap:  for every 8 columns, by their byte of the word:
//!     8 of x ─vpermps by a table row─▶ those that are kept, together ─▶ buffer
//!   then, as many as are kept:  Σ codebook[symbol] · buffer
//! ```
//!
//! Up to 32 values are held in four registers (`vpermps`); more are loaded one by one, and then
//! multiplied one by one too: two look-ups a weight leave nothing for wide registers to do.

use super::super::{SymbolRows, check_symbols};
use super::{horizontal_sum, load};
use std::arch::x86_64::*;

/// Columns of a row that are gathered before they are multiplied: what stays in the cache.
const PIECE_WORDS: usize = 64;

/// Row m: the places of the set bits of m, then zeros.
static SET_BITS: [[u32; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut found) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte][found] = bit as u32;
                found += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// The codebook's first 32 values in registers.
#[derive(Clone, Copy)]
struct Table([__m256; 4]);

impl Table {
    #[target_feature(enable = "avx2,fma")]
    fn new(codebook: &[f32; 256]) -> Self {
        let (eights, _) = codebook.as_chunks::<8>();
        Self([load(&eights[0]), load(&eights[1]), load(&eights[2]), load(&eights[3])])
    }

    /// The values of eight symbols under 32.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn look_up(self, symbols: &[u8; 8]) -> __m256 {
        let [a, b, c, d] = self.0;
        // SAFETY: the reference covers 8 readable bytes; loadu needs no alignment.
        let symbols = unsafe { _mm256_cvtepu8_epi32(_mm_loadu_si64(symbols.as_ptr())) };
        let bit_3 = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(symbols));
        let bit_4 = _mm256_castsi256_ps(_mm256_slli_epi32::<27>(symbols));
        let of = |part| _mm256_permutevar8x32_ps(part, symbols);
        let low = _mm256_blendv_ps(of(a), of(b), bit_3);
        let high = _mm256_blendv_ps(of(c), of(d), bit_3);
        _mm256_blendv_ps(low, high, bit_4)
    }
}

/// All bits in the first `count` of eight lanes.
#[target_feature(enable = "avx2")]
fn first_lanes(count: usize) -> __m256 {
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), lanes))
}

/// [`super::super::Kernels::column_dots`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn column_dots(rows: &SymbolRows<'_>, cols: &[[u8; 2]], x: &[f32], y: &mut [f32]) {
    check_symbols(rows, cols.len(), y.len());
    let mut at = 0;
    for (&count, y) in rows.counts.iter().zip(y) {
        let range = at..at + count as usize;
        *y = one_by_one(&cols[range.clone()], &rows.symbols[range.clone()], rows.codebook, x);
        at = range.end;
    }
}

#[target_feature(enable = "avx2,fma")]
fn one_by_one(cols: &[[u8; 2]], symbols: &[u8], codebook: &[f32; 256], x: &[f32]) -> f32 {
    let (col_chunks, col_rest) = cols.as_chunks::<8>();
    let (symbol_chunks, symbol_rest) = symbols.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (cols, symbols) in col_chunks.iter().zip(symbol_chunks) {
        // Whole words are loaded and cut up: loads are what binds here.
        let symbols = u64::from_le_bytes(*symbols);
        let (pairs, _) = cols.as_flattened().as_chunks::<8>();
        let cols = [u64::from_le_bytes(pairs[0]), u64::from_le_bytes(pairs[1])];
        for i in 0..8 {
            let col = (cols[i / 4] >> (16 * (i % 4))) as u16;
            let value = codebook[usize::from((symbols >> (8 * i)) as u8)];
            sums[i] = value.mul_add(x[usize::from(col)], sums[i]);
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for (&col, &symbol) in col_rest.iter().zip(symbol_rest) {
        sum += codebook[usize::from(symbol)] * x[usize::from(u16::from_le_bytes(col))];
    }
    sum
}

/// [`super::super::Kernels::bitmap_dots`].
#[target_feature(enable = "avx2,fma,popcnt")]
pub(super) fn bitmap_dots(rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]) {
    let row_words = x.len().div_ceil(64);
    assert_eq!(words.len(), row_words * y.len(), "bitmap_dots: words");
    if row_words == 0 {
        return y.fill(0.0);
    }
    let table = Table::new(rows.codebook);
    let (whole, rest) = x.as_chunks::<64>();
    let mut last = [0.0; 64];
    last[..rest.len()].copy_from_slice(rest);
    let has_rest = !rest.is_empty();
    let valid = if has_rest { (1u64 << rest.len()) - 1 } else { u64::MAX };
    let mut buffer = [0.0f32; PIECE_WORDS * 64 + 8];
    let mut at = 0;
    for (words, y) in words.chunks_exact(row_words).zip(y) {
        *y = 0.0;
        for (piece, words) in words.chunks(PIECE_WORDS).enumerate() {
            let mut kept = 0;
            let from = piece * PIECE_WORDS;
            let mut end = (from + words.len()).min(whole.len());
            for (word, x) in words.iter().zip(&whole[from.min(end)..end]) {
                kept = gather(u64::from_le_bytes(*word), x, &mut buffer, kept);
            }
            if has_rest && from + words.len() == row_words {
                end += 1;
                let word = u64::from_le_bytes(words[words.len() - 1]);
                kept = gather(word & valid, &last, &mut buffer, kept);
            }
            debug_assert_eq!(end - from, words.len());
            let symbols = &rows.symbols[at.min(rows.symbols.len())..];
            let inputs = &buffer[..kept];
            *y += match rows.k {
                0..=32 => buffered_dot(symbols, inputs, table),
                _ => buffered_dot_one_by_one(&symbols[..kept], inputs, rows.codebook),
            };
            at += kept;
        }
    }
}

/// Appends those of 64 inputs whose bits are set to the `kept` in the buffer; gives their number.
#[target_feature(enable = "avx2,fma,popcnt")]
#[inline]
fn gather(
    word: u64,
    x: &[f32; 64],
    buffer: &mut [f32; PIECE_WORDS * 64 + 8],
    kept: usize,
) -> usize {
    assert!(kept <= (PIECE_WORDS - 1) * 64);
    let (eights, _) = x.as_chunks::<8>();
    let mut at = kept;
    for (byte, x) in word.to_le_bytes().into_iter().zip(eights) {
        // SAFETY: a row of the table is 32 readable bytes; loadu needs no alignment.
        let places = unsafe { _mm256_loadu_si256(SET_BITS[usize::from(byte)].as_ptr().cast()) };
        let found = _mm256_permutevar8x32_ps(load(x), places);
        // SAFETY: at most 56 places were taken of this word before, and `kept` leaves room for 64
        // and 8 more.
        unsafe { _mm256_storeu_ps(buffer.as_mut_ptr().add(at), found) };
        at += byte.count_ones() as usize;
    }
    at
}

/// Σ value · input, for as many as there are inputs.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn buffered_dot(symbols: &[u8], inputs: &[f32], table: Table) -> f32 {
    let symbols = &symbols[..inputs.len()];
    let (symbol_chunks, symbol_rest) = symbols.as_chunks::<8>();
    let (input_chunks, input_rest) = inputs.as_chunks::<8>();
    let mut sums = [_mm256_setzero_ps(); 4];
    for (i, (symbols, inputs)) in symbol_chunks.iter().zip(input_chunks).enumerate() {
        sums[i % 4] = _mm256_fmadd_ps(table.look_up(symbols), load(inputs), sums[i % 4]);
    }
    if !input_rest.is_empty() {
        let (mut last_symbols, mut last_inputs) = ([0; 8], [0.0; 8]);
        last_symbols[..symbol_rest.len()].copy_from_slice(symbol_rest);
        last_inputs[..input_rest.len()].copy_from_slice(input_rest);
        let is_row = first_lanes(input_rest.len());
        let values = _mm256_and_ps(table.look_up(&last_symbols), is_row);
        sums[3] = _mm256_fmadd_ps(values, load(&last_inputs), sums[3]);
    }
    let [a, b, c, d] = sums;
    horizontal_sum(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)))
}

#[target_feature(enable = "avx2,fma")]
fn buffered_dot_one_by_one(symbols: &[u8], inputs: &[f32], codebook: &[f32; 256]) -> f32 {
    let (symbol_chunks, symbol_rest) = symbols.as_chunks::<8>();
    let (input_chunks, input_rest) = inputs.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (symbols, inputs) in symbol_chunks.iter().zip(input_chunks) {
        let symbols = u64::from_le_bytes(*symbols);
        for i in 0..8 {
            let value = codebook[usize::from((symbols >> (8 * i)) as u8)];
            sums[i] = value.mul_add(inputs[i], sums[i]);
        }
    }
    let rest = symbol_rest.iter().zip(input_rest);
    sums.iter().sum::<f32>() + rest.map(|(&s, &x)| codebook[usize::from(s)] * x).sum::<f32>()
}
