//! Products of rows of 8-bit symbols with a vector.
//!
//! ```text
//!   a bitmap:  for every 8 columns, by their byte of the word:
//!     8 of x ─vpermps by a table row─▶ those that are kept, together ─▶ buffer
//!   then, as many as are kept:  Σ codebook[symbol] · buffer
//! ```
//!
//! Spreading the values to their columns instead took a quarter longer. Up to 32 values are looked
//! up by byte shuffles, one for each byte of a value and half of the codebook; more are loaded one
//! by one. Columns are compared with the length of x before they are used, many at a time.

use super::super::{SymbolRows, counted};
use super::{horizontal_sum, load};
use crate::bits::SET_BITS;
use std::arch::x86_64::*;

/// Columns that are compared with the length of x at a time, which then are in the cache.
const CHECKED_COLS: usize = 1024;

/// Kept weights of a row from which on shuffles are faster than loads one by one.
const WORTH_SHUFFLES: usize = 384;

/// Columns of a row that are gathered before they are multiplied: what stays in the cache.
const PIECE_WORDS: usize = 64;

/// Inputs of kept weights, and room for a register more.
type Buffer = [f32; PIECE_WORDS * 64 + 8];

/// The codebook's first 32 values by bytes: byte b of value 16h + i is byte i of each half of
/// `planes[b][h]`.
#[derive(Clone, Copy)]
pub(super) struct Planes([[__m256i; 2]; 4]);

impl Planes {
    #[target_feature(enable = "avx2")]
    pub(super) fn new(codebook: &[f32; 256]) -> Self {
        let (sixteens, _) = codebook.as_chunks::<16>();
        let mut planes = [[_mm256_setzero_si256(); 2]; 4];
        for (b, plane) in planes.iter_mut().enumerate() {
            for (half, values) in plane.iter_mut().zip(sixteens) {
                *half = load_bytes(&std::array::from_fn(|i| values[i % 16].to_le_bytes()[b]));
            }
        }
        Self(planes)
    }

    /// The values of 32 symbols under 32, in order.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn look_up(self, symbols: __m256i) -> [__m256; 4] {
        // Interleaving keeps to halves, so fours 2q and 2q + 1 go to place q of either half.
        let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
        self.look_up_fours(_mm256_permutevar8x32_epi32(symbols, order))
    }

    /// The values of 32 symbols under 32: in vector q those of fours q and q + 4.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn look_up_fours(self, symbols: __m256i) -> [__m256; 4] {
        // A shuffle gives zero for an index with its highest bit set.
        let low_half = _mm256_adds_epu8(symbols, _mm256_set1_epi8(0x70));
        let high_half = _mm256_sub_epi8(symbols, _mm256_set1_epi8(16));
        let [a, b, c, d] = self.0.map(|[low, high]| {
            _mm256_or_si256(
                _mm256_shuffle_epi8(low, low_half),
                _mm256_shuffle_epi8(high, high_half),
            )
        });
        let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
        let (high_ab, high_cd) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
        [
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(ab, cd)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(ab, cd)),
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(high_ab, high_cd)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(high_ab, high_cd)),
        ]
    }
}

#[target_feature(enable = "avx2")]
pub(super) fn load_bytes(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference covers 32 readable bytes; loadu needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
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
    let cols = counted(rows, cols, y.len());
    let planes = Planes::new(rows.codebook);
    let (mut at, mut checked) = (0, 0);
    for (&count, y) in rows.counts.iter().zip(y) {
        let range = at..at + count as usize;
        if range.end > checked {
            let next = cols.len().min(range.end.max(checked + CHECKED_COLS));
            let are_inside = is_inside(&cols[checked..next], x.len());
            assert!(are_inside, "column_dots: a column outside x of {}", x.len());
            checked = next;
        }
        let (cols, symbols) = (&cols[range.clone()], &rows.symbols[range.clone()]);
        // SAFETY: every column of the row is inside x.
        *y = unsafe {
            match rows.k {
                0..=32 if cols.len() >= WORTH_SHUFFLES => {
                    gathered_dot(cols, symbols, rows.codebook, planes, x)
                }
                _ => one_by_one(cols, symbols, rows.codebook, x),
            }
        };
        at = range.end;
    }
}

/// Whether every column is under `len`.
#[target_feature(enable = "avx2")]
fn is_inside(cols: &[[u8; 2]], len: usize) -> bool {
    let Some(last) = len.checked_sub(1) else { return cols.is_empty() };
    let Ok(last) = u16::try_from(last) else { return true };
    let (chunks, rest) = cols.as_flattened().as_chunks::<32>();
    // A plain loop: the closure of a fold is not compiled for the instruction set.
    let mut most = _mm256_setzero_si256();
    for chunk in chunks {
        most = _mm256_max_epu16(most, load_bytes(chunk));
    }
    let beyond = _mm256_subs_epu16(most, _mm256_set1_epi16(last as i16));
    let (rest, _) = rest.as_chunks::<2>();
    _mm256_testz_si256(beyond, beyond) == 1 && rest.iter().all(|&c| u16::from_le_bytes(c) <= last)
}

/// The inputs of eight columns. Loads one by one beat the gather instruction on most CPUs.
///
/// # Safety
/// Every column is inside x.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn inputs_at(cols: &[[u8; 2]; 8], x: &[f32]) -> __m256 {
    // SAFETY: the caller says so.
    let [a, b, c, d, e, f, g, h] =
        cols.map(|col| unsafe { *x.get_unchecked(usize::from(u16::from_le_bytes(col))) });
    _mm256_setr_ps(a, b, c, d, e, f, g, h)
}

/// Σ value · input over one row, for up to 32 values.
///
/// # Safety
/// Every column is inside x.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn gathered_dot(
    cols: &[[u8; 2]],
    symbols: &[u8],
    codebook: &[f32; 256],
    planes: Planes,
    x: &[f32],
) -> f32 {
    let (col_chunks, col_rest) = cols.as_chunks::<32>();
    let (symbol_chunks, symbol_rest) = symbols.as_chunks::<32>();
    let mut sums = [_mm256_setzero_ps(); 4];
    for (cols, symbols) in col_chunks.iter().zip(symbol_chunks) {
        let values = planes.look_up(load_bytes(symbols));
        let (eights, _) = cols.as_chunks::<8>();
        for i in 0..4 {
            // SAFETY: the caller says so.
            let inputs = unsafe { inputs_at(&eights[i], x) };
            sums[i] = _mm256_fmadd_ps(values[i], inputs, sums[i]);
        }
    }
    let [a, b, c, d] = sums;
    let sum = horizontal_sum(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d)));
    // SAFETY: the caller says so.
    sum + unsafe { one_by_one(col_rest, symbol_rest, codebook, x) }
}

/// Σ value · input over one row, for any number of values.
///
/// # Safety
/// Every column is inside x.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn one_by_one(cols: &[[u8; 2]], symbols: &[u8], codebook: &[f32; 256], x: &[f32]) -> f32 {
    let (col_chunks, col_rest) = cols.as_chunks::<8>();
    let (symbol_chunks, symbol_rest) = symbols.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (cols, symbols) in col_chunks.iter().zip(symbol_chunks) {
        // A whole word of symbols is loaded and cut up: loads are what binds here.
        let symbols = u64::from_le_bytes(*symbols);
        for i in 0..8 {
            let col = usize::from(u16::from_le_bytes(cols[i]));
            let value = codebook[usize::from((symbols >> (8 * i)) as u8)];
            // SAFETY: the caller says so.
            sums[i] = value.mul_add(unsafe { *x.get_unchecked(col) }, sums[i]);
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
    let planes = Planes::new(rows.codebook);
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
            *y += match rows.k {
                0..=32 => buffered_dot(symbols, &buffer, kept, planes),
                _ => buffered_dot_one_by_one(&symbols[..kept], &buffer[..kept], rows.codebook),
            };
            at += kept;
        }
    }
}

/// Appends those of 64 inputs whose bits are set to the `kept` in the buffer; gives their number.
#[target_feature(enable = "avx2,fma,popcnt")]
#[inline]
fn gather(word: u64, x: &[f32; 64], buffer: &mut Buffer, kept: usize) -> usize {
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

/// Σ value · input over the first `kept` of the buffer.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn buffered_dot(symbols: &[u8], buffer: &Buffer, kept: usize, planes: Planes) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 2];
    let mut add = |symbols: &[u8; 32], inputs: &[f32; 32], mask: Option<[__m256; 4]>| {
        let mut values = planes.look_up(load_bytes(symbols));
        if let Some(mask) = mask {
            values = std::array::from_fn(|i| _mm256_and_ps(values[i], mask[i]));
        }
        let (inputs, _) = inputs.as_chunks::<8>();
        for i in 0..4 {
            sums[i % 2] = _mm256_fmadd_ps(values[i], load(&inputs[i]), sums[i % 2]);
        }
    };
    let (symbol_chunks, symbol_rest) = symbols[..kept].as_chunks::<32>();
    let (input_chunks, _) = buffer[..kept].as_chunks::<32>();
    for (symbols, inputs) in symbol_chunks.iter().zip(input_chunks) {
        add(symbols, inputs, None);
    }
    let rest = symbol_rest.len();
    if rest > 0 {
        let (mut last_symbols, mut last_inputs) = ([0; 32], [0.0; 32]);
        last_symbols[..rest].copy_from_slice(symbol_rest);
        last_inputs[..rest].copy_from_slice(&buffer[kept - rest..kept]);
        let mask = std::array::from_fn(|i| first_lanes(rest.saturating_sub(8 * i)));
        add(&last_symbols, &last_inputs, Some(mask));
    }
    horizontal_sum(_mm256_add_ps(sums[0], sums[1]))
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

/// [`super::super::Kernels::set_bits`].
#[target_feature(enable = "avx2,popcnt")]
pub(super) fn set_bits(words: &[[u8; 8]], row_words: usize, cols: &mut Vec<[u8; 2]>) {
    let count: usize = words.iter().map(|w| u64::from_le_bytes(*w).count_ones() as usize).sum();
    cols.clear();
    cols.resize(count + 8, [0; 2]);
    let mut at = 0;
    for row in words.chunks(row_words.max(1)) {
        for (base, &byte) in (0..).step_by(8).zip(row.as_flattened()) {
            let [low, high] = [0, 4].map(|i| {
                let places: &[u32; 4] = SET_BITS[usize::from(byte)][i..].first_chunk().expect("8");
                // SAFETY: the reference covers 16 readable bytes; loadu needs no alignment.
                unsafe { _mm_loadu_si128(places.as_ptr().cast()) }
            });
            let places = _mm_add_epi16(_mm_packus_epi32(low, high), _mm_set1_epi16(base as i16));
            let room: &mut [[u8; 2]; 8] = cols[at..].first_chunk_mut().expect("room for 8");
            // SAFETY: the reference covers 16 writable bytes; storeu needs no alignment.
            unsafe { _mm_storeu_si128(room.as_mut_ptr().cast(), places) };
            at += byte.count_ones() as usize;
        }
    }
    cols.truncate(count);
}
