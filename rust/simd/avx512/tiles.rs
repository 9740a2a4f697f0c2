//! Tiles of outputs in registers of sixteen; tables of up to 32 entries in two registers.

use super::super::add_strip::{define_add_shifted, define_add_strip};
use super::super::scalar::Scalar;
use super::super::shifts::{self, MAX_SHIFTS, Shift, Sorted};
use super::super::spacing::{self, Spacing};
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Weights};
use super::super::{Finish, Kernels, Start, TileProduct};
use std::arch::x86_64::*;

define_add_strip!(
    "avx512f", __m512, 16, zero _mm512_setzero_ps, set _mm512_set1_ps, load _mm512_loadu_ps,
    store _mm512_storeu_ps, multiply_add _mm512_fmadd_ps, add _mm512_add_ps, max _mm512_max_ps,
    min _mm512_min_ps, rows CutRows<'_, impl Weights>,
    weight |rows: &CutRows<'_, _>, weight| {
        let (offset, value) = rows.get(weight);
        (offset, _mm512_set1_ps(value))
    }
);
define_add_shifted!(
    "avx512f", 16, zero _mm512_setzero_ps, load _mm512_loadu_ps, add _mm512_add_ps, and and, turn Turn
);

#[inline]
#[target_feature(enable = "avx512f")]
fn and(a: __m512, b: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_castps_si512(b)))
}

/// Takes sixteen lanes that follow each other out of two registers.
#[derive(Clone, Copy)]
struct Turn {
    lanes: __m512i,
}

impl Turn {
    /// From lane `by` of the first register on; below 0, of the one before the second.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(by: isize) -> Self {
        let first = _mm512_set1_epi32((by & 15) as i32);
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        Self { lanes: _mm512_add_epi32(first, lanes) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn turn(self, low: __m512, high: __m512) -> __m512 {
        _mm512_permutex2var_ps(low, self.lanes, high)
    }
}

/// `table` and zeros, in two registers.
#[target_feature(enable = "avx512f")]
fn two_registers(table: &[u32]) -> (__m512i, __m512i) {
    let mut entries = [0; 32];
    entries[..table.len()].copy_from_slice(table);
    // SAFETY: 128 bytes are there; loadu needs no alignment.
    unsafe {
        (
            _mm512_loadu_si512(entries.as_ptr().cast()),
            _mm512_loadu_si512(entries.as_ptr().add(16).cast()),
        )
    }
}

/// Divides columns under [`LARGE`] by a number n.
///
/// The quotient is (col + ½) / n in single precision. Its error, at most col / n · 2⁻²³, is less
/// than the distance to a whole number, 1 / 2n.
#[derive(Clone, Copy)]
struct Divisor {
    n: __m512i,
    reciprocal: __m512,
    half: __m512,
}

/// The first column that [`Divisor`] does not take.
pub(super) const LARGE: u32 = 1 << 22;

impl Divisor {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(n: u32) -> Self {
        Self {
            n: _mm512_set1_epi32(n as i32),
            reciprocal: _mm512_set1_ps(1.0 / n as f32),
            half: _mm512_set1_ps(0.5 / n as f32),
        }
    }

    /// The quotients and what is left.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn divide(self, cols: __m512i) -> (__m512i, __m512i) {
        let quotient = _mm512_fmadd_ps(_mm512_cvtepu32_ps(cols), self.reciprocal, self.half);
        let number = _mm512_cvttps_epu32(quotient);
        (number, _mm512_sub_epi32(cols, _mm512_mullo_epi32(number, self.n)))
    }
}

/// Columns to places, for up to 32 taps.
#[derive(Clone, Copy)]
struct Placing {
    taps: (__m512i, __m512i),
    divisor: Divisor,
    channel: __m512i,
    base: __m512i,
}

impl Placing {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(taps: &[u32], channel: u32, base: u32) -> Self {
        Self {
            taps: two_registers(taps),
            divisor: Divisor::new(taps.len() as u32),
            channel: _mm512_set1_epi32(channel as i32),
            base: _mm512_set1_epi32(base as i32),
        }
    }

    /// The places of columns, unless one is large.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn place(self, cols: __m512i) -> Option<__m512i> {
        if _mm512_cmpge_epu32_mask(cols, _mm512_set1_epi32(LARGE as i32)) != 0 {
            return None;
        }
        let (number, tap) = self.divisor.divide(cols);
        let channels = _mm512_add_epi32(self.base, _mm512_mullo_epi32(number, self.channel));
        let (low, high) = self.taps;
        Some(_mm512_add_epi32(channels, _mm512_permutex2var_epi32(low, tap, high)))
    }
}

/// [`Kernels::place`], for up to 32 taps; large columns go the plain way.
#[target_feature(enable = "avx512f")]
pub(super) fn place(cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32 {
    let placing = Placing::new(taps, channel, base);
    let (mut reaches, mut plain) = (_mm512_setzero_si512(), 0);
    let (chunks, rest) = cols.as_chunks_mut::<16>();
    for chunk in chunks {
        // SAFETY: the reference covers 64 bytes; loadu needs no alignment.
        let cols = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        let Some(places) = placing.place(cols) else {
            plain = plain.max(Scalar.place(chunk, taps, channel, base));
            continue;
        };
        reaches = _mm512_max_epu32(reaches, places);
        // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
        unsafe { _mm512_storeu_si512(chunk.as_mut_ptr().cast(), places) };
    }
    plain = plain.max(Scalar.place(rest, taps, channel, base));
    _mm512_reduce_max_epu32(reaches).max(plain)
}

/// [`Kernels::join`], for up to 32 taps; large columns go the plain way.
#[target_feature(enable = "avx512f")]
pub(super) fn join(
    positions: &[u32],
    start: u32,
    symbols: &[u16],
    spacing: &Spacing<'_>,
    out: &mut [u32],
) -> (u32, u16) {
    let base = _mm512_set1_epi32(spacing.base() as i32);
    let placing = match spacing.step() {
        Some(step) => Err(_mm512_set1_epi32(step as i32)),
        None => Ok(Placing::new(spacing.taps(), spacing.channel(), spacing.base())),
    };
    let starts = _mm512_set1_epi32(start as i32);
    let (mut reaches, mut largest) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    let mut plain = (0, 0);
    spacing::for_chunks::<16>(positions, symbols, out, |positions, symbols, out| {
        // SAFETY: the references cover 64 and 32 bytes; loadu needs no alignment.
        let (cols, symbol) = unsafe {
            let symbol = _mm512_cvtepu16_epi32(_mm256_loadu_si256(symbols.as_ptr().cast()));
            (_mm512_sub_epi32(_mm512_loadu_si512(positions.as_ptr().cast()), starts), symbol)
        };
        let places = match placing {
            Err(step) => Some(_mm512_add_epi32(base, _mm512_mullo_epi32(cols, step))),
            Ok(placing) => placing.place(cols),
        };
        let Some(places) = places else {
            let (reach, symbol) = Scalar.join(positions, start, symbols, spacing, out);
            plain = (reach.max(plain.0), symbol.max(plain.1));
            return;
        };
        reaches = _mm512_max_epu32(reaches, places);
        largest = _mm512_max_epu32(largest, symbol);
        let entries = (_mm512_slli_epi32::<2>(places), _mm512_slli_epi32::<24>(symbol));
        let entries = _mm512_or_si512(entries.0, entries.1);
        // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), entries) };
    });
    let (reach, symbol) = (_mm512_reduce_max_epu32(reaches), _mm512_reduce_max_epu32(largest));
    (reach.max(plain.0), plain.1.max(symbol as u16))
}

/// [`Kernels::sort_by_tap`], for columns under [`LARGE`]; a part after the other.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")]
pub(super) fn sort_by_tap(
    width: u32,
    shifts: &[Shift],
    (cols, symbols): shifts::Weights<'_, u16>,
    (sorted_cols, sorted_symbols): Sorted<'_, u16>,
) -> [u32; MAX_SHIFTS] {
    shifts::check_lengths((cols, symbols), (sorted_cols, sorted_symbols));
    let len = cols.len();
    let divisor = Divisor::new(width);
    let (mut counts, mut at) = ([0; MAX_SHIFTS], 0);
    for (count, shift) in counts.iter_mut().zip(shifts) {
        let (column, start) = (_mm512_set1_epi32(shift.column() as i32), at);
        for first in (0..len).step_by(16) {
            let is_there = u16::MAX >> (16 - (len - first).min(16));
            // SAFETY: the mask leaves what is loaded inside both slices, which are as long.
            let (cols, symbols) = unsafe {
                (
                    _mm512_maskz_loadu_epi32(is_there, cols.as_ptr().add(first).cast()),
                    _mm256_maskz_loadu_epi16(is_there, symbols.as_ptr().add(first).cast()),
                )
            };
            let (_, tap) = divisor.divide(cols);
            let kept = _mm512_mask_cmpeq_epi32_mask(is_there, tap, column);
            let nkept = kept.count_ones() as usize;
            // What is stored beyond those that are kept makes way for what follows.
            let to_cols: &mut [u32; 16] = sorted_cols[at..].first_chunk_mut().expect("room");
            let to_symbols: &mut [u16; 16] = sorted_symbols[at..].first_chunk_mut().expect("room");
            // SAFETY: the references cover 64 and 32 writable bytes; no alignment is needed.
            unsafe {
                let cols = _mm512_maskz_compress_epi32(kept, cols);
                _mm512_storeu_si512(to_cols.as_mut_ptr().cast(), cols);
                let symbols = _mm256_maskz_compress_epi16(kept, symbols);
                _mm256_storeu_si256(to_symbols.as_mut_ptr().cast(), symbols);
            }
            at += nkept;
        }
        *count = (at - start) as u32;
    }
    assert_eq!(at, len, "sort_by_tap: tap columns");
    counts
}

/// [`Kernels::look_up`] for up to 32 values.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn look_up(symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>) {
    let (low, high) = two_registers(bytemuck::cast_slice(codebook));
    let k = _mm512_set1_epi32(codebook.len() as i32);
    let start = values.len();
    values.resize(start + symbols.len(), 0.0);
    let (chunks, rest) = symbols.as_chunks::<16>();
    let (out, out_rest) = values[start..].as_chunks_mut::<16>();
    let mut is_outside = 0;
    for (symbols, out) in chunks.iter().zip(out) {
        // SAFETY: the references cover 32 bytes, and 64 writable bytes; no alignment is needed.
        unsafe {
            let symbols = _mm512_cvtepu16_epi32(_mm256_loadu_si256(symbols.as_ptr().cast()));
            is_outside |= _mm512_cmpge_epu32_mask(symbols, k);
            let value = _mm512_permutex2var_epi32(low, symbols, high);
            _mm512_storeu_si512(out.as_mut_ptr().cast(), value);
        }
    }
    assert!(is_outside == 0, "look_up: a symbol outside the codebook of {}", codebook.len());
    for (symbol, out) in rest.iter().zip(out_rest) {
        *out = codebook[usize::from(*symbol)];
    }
}
