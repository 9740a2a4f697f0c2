//! Products of rows of 8-bit symbols with a vector.
//!
//! ```text
//!   64 columns of a bitmap, with up to 32 values:
//!     symbols  ─vpexpandb by the word─▶ a byte a column ─vpermb─▶ byte 4j + b is column 16b + j
//!     ─shift right by 8b─▶ indices of columns 16b … 16b + 15 in their low bits ─vpermi2ps─▶ values
//!     ─multiply–add by bits 16b … of the word, x as it lies─▶ sums[b]
//! ```
//!
//! With up to 256 values each of the four bytes of a value is looked up for 64 columns at once
//! (`vpermi2b`), and the bytes are interleaved.

use super::super::{SymbolRows, counted};
use super::gathering::in_columns;
use std::arch::x86_64::*;

/// The codebook in registers: as it is, and by bytes.
pub(super) struct Tables {
    floats: [__m512; 2],
    /// Byte b of value 64q + i is byte i of `planes[b][q]`.
    planes: [[__m512i; 4]; 4],
}

impl Tables {
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub(super) fn new(codebook: &[f32; 256]) -> Self {
        let mut planes = [[_mm512_setzero_si512(); 4]; 4];
        for (b, plane) in planes.iter_mut().enumerate() {
            for (part, values) in plane.iter_mut().zip(codebook.as_chunks::<64>().0) {
                let bytes: [u8; 64] = std::array::from_fn(|i| values[i].to_le_bytes()[b]);
                *part = load_bytes(&bytes);
            }
        }
        let (sixteens, _) = codebook.as_chunks::<16>();
        Self { floats: [load(&sixteens[0]), load(&sixteens[1])], planes }
    }
}

/// Sixteen numbers.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(values: &[f32; 16]) -> __m512 {
    // SAFETY: the reference covers 64 readable bytes; loadu needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_bytes(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference covers 64 readable bytes; loadu needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The order of bytes that [`look_up`] takes: for shifts, or for interleaving.
#[target_feature(enable = "avx512f")]
pub(super) fn byte_order<const K: usize>() -> __m512i {
    load_bytes(&std::array::from_fn(|i| {
        let from = if K <= 32 {
            16 * (i % 4) + i / 4
        } else {
            // Byte 16l + 4q + i comes from column 16q + 4l + i.
            16 * (i / 4 % 4) + 4 * (i / 16) + i % 4
        };
        from as u8
    }))
}

/// The values of 64 symbols in [`byte_order`], in the order of their columns; symbols under K.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
pub(super) fn look_up<const K: usize>(tables: &Tables, symbols: __m512i) -> [__m512; 4] {
    if K <= 32 {
        let [low, high] = tables.floats;
        return [
            _mm512_permutex2var_ps(low, symbols, high),
            _mm512_permutex2var_ps(low, _mm512_srli_epi32::<8>(symbols), high),
            _mm512_permutex2var_ps(low, _mm512_srli_epi32::<16>(symbols), high),
            _mm512_permutex2var_ps(low, _mm512_srli_epi32::<24>(symbols), high),
        ];
    }
    let is_high = _mm512_movepi8_mask(symbols);
    let plane = |[a, b, c, d]: [__m512i; 4]| {
        let low = _mm512_permutex2var_epi8(a, symbols, b);
        if K <= 128 {
            return low;
        }
        _mm512_mask_blend_epi8(is_high, low, _mm512_permutex2var_epi8(c, symbols, d))
    };
    let [a, b, c, d] = tables.planes.map(plane);
    let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
    let (high_ab, high_cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_castsi512_ps(_mm512_unpacklo_epi16(ab, cd)),
        _mm512_castsi512_ps(_mm512_unpackhi_epi16(ab, cd)),
        _mm512_castsi512_ps(_mm512_unpacklo_epi16(high_ab, high_cd)),
        _mm512_castsi512_ps(_mm512_unpackhi_epi16(high_ab, high_cd)),
    ]
}

/// [`super::super::Kernels::bitmap_dots`].
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
pub(super) fn bitmap_dots(rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]) {
    let k = rows.k;
    match k {
        0..=32 => bitmap_dots_of::<32>(rows, words, x, y),
        33..=128 => bitmap_dots_of::<128>(rows, words, x, y),
        _ => bitmap_dots_of::<256>(rows, words, x, y),
    }
}

#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
fn bitmap_dots_of<const K: usize>(
    rows: &SymbolRows<'_>,
    words: &[[u8; 8]],
    x: &[f32],
    y: &mut [f32],
) {
    let row_words = x.len().div_ceil(64);
    assert_eq!(words.len(), row_words * y.len(), "bitmap_dots: words");
    if row_words == 0 {
        return y.fill(0.0);
    }
    let (tables, order) = (Tables::new(rows.codebook), byte_order::<K>());
    let (whole, rest) = x.as_chunks::<64>();
    let mut last = [0.0; 64];
    last[..rest.len()].copy_from_slice(rest);
    let has_rest = !rest.is_empty();
    let valid = if has_rest { (1u64 << rest.len()) - 1 } else { u64::MAX };
    let mut at = 0;
    for (words, y) in words.chunks_exact(row_words).zip(y) {
        let mut sums = [_mm512_setzero_ps(); 4];
        let mut add = |word: u64, x: &[f32; 64]| {
            let symbols = load_first(&rows.symbols[at.min(rows.symbols.len())..]);
            at += word.count_ones() as usize;
            let symbols = _mm512_maskz_expand_epi8(word, symbols);
            let values = look_up::<K>(&tables, _mm512_permutexvar_epi8(order, symbols));
            let (x, _) = x.as_chunks::<16>();
            for b in 0..4 {
                let kept = (word >> (16 * b)) as u16;
                sums[b] = _mm512_mask3_fmadd_ps(values[b], load(&x[b]), sums[b], kept);
            }
        };
        for (word, x) in words.iter().zip(whole) {
            add(u64::from_le_bytes(*word), x);
        }
        if has_rest {
            add(u64::from_le_bytes(words[row_words - 1]) & valid, &last);
        }
        let [a, b, c, d] = sums;
        *y = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)));
    }
}

/// The first 64 bytes, or all there are and zeros.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_first(bytes: &[u8]) -> __m512i {
    match bytes.first_chunk() {
        Some(bytes) => load_bytes(bytes),
        None => load_last(bytes),
    }
}

/// Fewer than 64 bytes, and zeros.
#[cold]
#[target_feature(enable = "avx512f")]
fn load_last(bytes: &[u8]) -> __m512i {
    let mut all = [0; 64];
    all[..bytes.len()].copy_from_slice(bytes);
    load_bytes(&all)
}

/// [`super::super::Kernels::column_dots`] for up to 32 values.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2")]
pub(super) fn column_dots<const GATHERS: bool>(
    rows: &SymbolRows<'_>,
    cols: &[[u8; 2]],
    x: &[f32],
    y: &mut [f32],
) {
    let cols = counted(rows, cols, y.len());
    let (sixteens, _) = rows.codebook.as_chunks::<16>();
    let (low, high) = (load(&sixteens[0]), load(&sixteens[1]));
    let gather = |cols: &[[u8; 2]; 16]| {
        // SAFETY: `check_columns` found all that are gathered inside x.
        unsafe { in_columns::<GATHERS>(cols, x) }
    };
    let values = |symbols: &[u8; 16]| {
        // SAFETY: the reference covers 16 readable bytes; loadu needs no alignment.
        let symbols = unsafe { _mm_loadu_si128(symbols.as_ptr().cast()) };
        _mm512_permutex2var_ps(low, _mm512_cvtepu8_epi32(symbols), high)
    };
    let mut at = 0;
    for (&count, y) in rows.counts.iter().zip(y) {
        let count = count as usize;
        // The last sixteen reach into what follows the row.
        let reach = cols.len().min(at + count.next_multiple_of(16));
        check_columns(&cols[at..reach], x.len());
        let (col_chunks, col_rest) = cols[at..at + count].as_chunks::<16>();
        let (symbol_chunks, _) = rows.symbols[at..at + count].as_chunks::<16>();
        let mut sums = [_mm512_setzero_ps(); 2];
        for (cols, symbols) in col_chunks.iter().zip(symbol_chunks) {
            sums = [sums[1], _mm512_fmadd_ps(values(symbols), gather(cols), sums[0])];
        }
        if !col_rest.is_empty() {
            // What follows the row is multiplied too, and left out of the sum.
            let from = at + count - col_rest.len();
            let is_row = ((1u32 << col_rest.len()) - 1) as u16;
            let product = match (cols[from..].first_chunk(), rows.symbols[from..].first_chunk()) {
                (Some(cols), Some(symbols)) => (values(symbols), gather(cols)),
                _ => {
                    let (mut last_cols, mut last_symbols) = ([[0; 2]; 16], [0; 16]);
                    last_cols[..col_rest.len()].copy_from_slice(col_rest);
                    last_symbols[..col_rest.len()].copy_from_slice(&rows.symbols[from..at + count]);
                    (values(&last_symbols), gather(&last_cols))
                }
            };
            sums[1] = _mm512_mask3_fmadd_ps(product.0, product.1, sums[1], is_row);
        }
        *y = horizontal_sum(_mm512_add_ps(sums[0], sums[1]));
        at += count;
    }
}

/// The sum of sixteen lanes.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn horizontal_sum(v: __m512) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Panics unless every column is under `ncols`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn check_columns(cols: &[[u8; 2]], ncols: usize) {
    let (chunks, rest) = cols.as_chunks::<32>();
    let mut most = _mm512_setzero_si512();
    for chunk in chunks {
        // SAFETY: the reference covers 64 readable bytes; loadu needs no alignment.
        let cols = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        most = _mm512_max_epu16(most, cols);
    }
    let is_rest = ((1u64 << rest.len()) - 1) as u32;
    // SAFETY: the mask leaves what is loaded inside the slice.
    let last = unsafe { _mm512_maskz_loadu_epi16(is_rest, rest.as_ptr().cast()) };
    let last_column = ncols.saturating_sub(1).min(usize::from(u16::MAX));
    let limit = _mm512_set1_epi16(last_column as i16);
    let outside = _mm512_cmpgt_epu16_mask(_mm512_max_epu16(most, last), limit);
    if outside != 0 || ncols == 0 && !cols.is_empty() {
        outside_column(cols, ncols);
    }
}

/// Panics with a column that is not under `ncols`.
#[cold]
fn outside_column(cols: &[[u8; 2]], ncols: usize) -> ! {
    let most = cols.iter().map(|&col| u16::from_le_bytes(col)).max().unwrap_or(0);
    panic!("column_dots: column {most}, expected under {ncols}");
}

/// [`super::super::Kernels::set_bits`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
pub(super) fn set_bits(words: &[[u8; 8]], row_words: usize, cols: &mut Vec<[u8; 2]>) {
    let count: usize = words.iter().map(|w| u64::from_le_bytes(*w).count_ones() as usize).sum();
    cols.clear();
    cols.resize(count + 32, [0; 2]);
    let first: [u16; 32] = std::array::from_fn(|i| i as u16);
    // SAFETY: the array is 64 readable bytes; loadu needs no alignment.
    let first = unsafe { _mm512_loadu_si512(first.as_ptr().cast()) };
    let mut at = 0;
    for row in words.chunks(row_words.max(1)) {
        for (base, word) in (0..).step_by(64).zip(row) {
            let word = u64::from_le_bytes(*word);
            for half in 0..2 {
                let kept = (word >> (32 * half)) as u32;
                let places = _mm512_add_epi16(first, _mm512_set1_epi16((base + 32 * half) as i16));
                let places = _mm512_maskz_compress_epi16(kept, places);
                let room: &mut [[u8; 2]; 32] = cols[at..].first_chunk_mut().expect("room for 32");
                // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
                unsafe { _mm512_storeu_si512(room.as_mut_ptr().cast(), places) };
                at += kept.count_ones() as usize;
            }
        }
    }
    cols.truncate(count);
}
