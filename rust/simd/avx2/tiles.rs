//! Tiles of outputs in registers of eight.

use super::super::add_strip::{define_add_shifted, define_add_strip};
use super::super::cuts::{self, Cutting};
use super::super::scalar::Scalar;
use super::super::shifts::{self, MAX_SHIFTS, Shift, Sorted};
use super::super::spacing::{self, Spacing};
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Weights};
use super::super::{Finish, Kernels, Start, TileProduct};
use super::tans::store_kept;
use std::arch::x86_64::*;

define_add_strip!(
    "avx2,fma", __m256, 8, zero _mm256_setzero_ps, set _mm256_set1_ps, load _mm256_loadu_ps,
    store _mm256_storeu_ps, multiply_add _mm256_fmadd_ps, add _mm256_add_ps, max _mm256_max_ps,
    min _mm256_min_ps, rows CutRows<'_, impl Weights>,
    weight |rows: &CutRows<'_, _>, weight| {
        let (offset, value) = rows.get(weight);
        (offset, _mm256_set1_ps(value))
    }
);
define_add_shifted!(
    "avx2,fma", 8, zero _mm256_setzero_ps, load _mm256_loadu_ps, add _mm256_add_ps,
    and _mm256_and_ps, turn Turn
);

/// Takes eight lanes that follow each other out of two registers.
#[derive(Clone, Copy)]
struct Turn {
    lanes: __m256i,
    is_high: __m256,
}

impl Turn {
    /// From lane `by` of the first register on; below 0, of the one before the second.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new(by: isize) -> Self {
        let first = _mm256_set1_epi32(if by == 8 { 8 } else { (by & 7) as i32 });
        let lanes = _mm256_add_epi32(first, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        let is_high = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(7));
        Self { lanes, is_high: _mm256_castsi256_ps(is_high) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn turn(self, low: __m256, high: __m256) -> __m256 {
        let low = _mm256_permutevar8x32_ps(low, self.lanes);
        let high = _mm256_permutevar8x32_ps(high, self.lanes);
        _mm256_blendv_ps(low, high, self.is_high)
    }
}

/// Divides columns under [`LARGE`] by a number n.
///
/// The quotient is (col + ½) / n in single precision. Its error, at most col / n · 2⁻²³, is less
/// than the distance to a whole number, 1 / 2n.
#[derive(Clone, Copy)]
struct Divisor {
    n: __m256i,
    reciprocal: __m256,
    half: __m256,
}

/// The first column that [`Divisor`] does not take.
pub(super) const LARGE: u32 = 1 << 22;

impl Divisor {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new(n: u32) -> Self {
        Self {
            n: _mm256_set1_epi32(n as i32),
            reciprocal: _mm256_set1_ps(1.0 / n as f32),
            half: _mm256_set1_ps(0.5 / n as f32),
        }
    }

    /// The quotients and what is left.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn divide(self, cols: __m256i) -> (__m256i, __m256i) {
        let quotient = _mm256_fmadd_ps(_mm256_cvtepi32_ps(cols), self.reciprocal, self.half);
        let number = _mm256_cvttps_epi32(quotient);
        (number, _mm256_sub_epi32(cols, _mm256_mullo_epi32(number, self.n)))
    }
}

/// Columns to places, for up to 16 taps.
#[derive(Clone, Copy)]
struct Placing {
    taps: (__m256i, __m256i),
    divisor: Divisor,
    channel: __m256i,
    base: __m256i,
}

impl Placing {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new(taps: &[u32], channel: u32, base: u32) -> Self {
        let mut entries = [0; 16];
        entries[..taps.len()].copy_from_slice(taps);
        // SAFETY: 64 bytes are there; loadu needs no alignment.
        let taps_of = unsafe {
            let at = entries.as_ptr().cast::<__m256i>();
            (_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1)))
        };
        Self {
            taps: taps_of,
            divisor: Divisor::new(taps.len() as u32),
            channel: _mm256_set1_epi32(channel as i32),
            base: _mm256_set1_epi32(base as i32),
        }
    }

    /// The places of columns, unless one is large.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn place(self, cols: __m256i) -> Option<__m256i> {
        // As signed numbers, those from 2³¹ on are below zero.
        let above = _mm256_cmpgt_epi32(cols, _mm256_set1_epi32(LARGE as i32 - 1));
        if _mm256_movemask_epi8(_mm256_or_si256(above, _mm256_srai_epi32::<31>(cols))) != 0 {
            return None;
        }
        let (number, tap) = self.divisor.divide(cols);
        let from_low = _mm256_permutevar8x32_epi32(self.taps.0, tap);
        let from_high = _mm256_permutevar8x32_epi32(self.taps.1, tap);
        let is_high = _mm256_cmpgt_epi32(tap, _mm256_set1_epi32(7));
        let channels = _mm256_add_epi32(self.base, _mm256_mullo_epi32(number, self.channel));
        Some(_mm256_add_epi32(channels, _mm256_blendv_epi8(from_low, from_high, is_high)))
    }
}

/// The greatest of eight numbers.
#[target_feature(enable = "avx2,fma")]
fn greatest(numbers: __m256i) -> u32 {
    let mut lanes = [0u32; 8];
    // SAFETY: 32 writable bytes are there; storeu needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), numbers) };
    lanes.into_iter().fold(0, u32::max)
}

/// [`Kernels::place`], for up to 16 taps; large columns go the plain way.
#[target_feature(enable = "avx2,fma")]
pub(super) fn place(cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32 {
    let placing = Placing::new(taps, channel, base);
    let (mut reaches, mut plain) = (_mm256_setzero_si256(), 0);
    let (chunks, rest) = cols.as_chunks_mut::<8>();
    for chunk in chunks {
        // SAFETY: the reference covers 32 bytes; loadu needs no alignment.
        let cols = unsafe { _mm256_loadu_si256(chunk.as_ptr().cast()) };
        let Some(places) = placing.place(cols) else {
            plain = plain.max(Scalar.place(chunk, taps, channel, base));
            continue;
        };
        reaches = _mm256_max_epu32(reaches, places);
        // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
        unsafe { _mm256_storeu_si256(chunk.as_mut_ptr().cast(), places) };
    }
    plain = plain.max(Scalar.place(rest, taps, channel, base));
    greatest(reaches).max(plain)
}

/// [`Kernels::join`], for up to 16 taps; large columns go the plain way.
#[target_feature(enable = "avx2,fma")]
pub(super) fn join(
    positions: &[u32],
    start: u32,
    symbols: &[u16],
    spacing: &Spacing<'_>,
    out: &mut [u32],
) -> (u32, u16) {
    let base = _mm256_set1_epi32(spacing.base() as i32);
    let placing = match spacing.step() {
        Some(step) => Err(_mm256_set1_epi32(step as i32)),
        None => Ok(Placing::new(spacing.taps(), spacing.channel(), spacing.base())),
    };
    let starts = _mm256_set1_epi32(start as i32);
    let (mut reaches, mut largest) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    let mut plain = (0, 0);
    spacing::for_chunks::<8>(positions, symbols, out, |positions, symbols, out| {
        // SAFETY: the references cover 32 and 16 bytes; loadu needs no alignment.
        let (cols, symbol) = unsafe {
            let symbol = _mm256_cvtepu16_epi32(_mm_loadu_si128(symbols.as_ptr().cast()));
            (_mm256_sub_epi32(_mm256_loadu_si256(positions.as_ptr().cast()), starts), symbol)
        };
        let places = match placing {
            Err(step) => Some(_mm256_add_epi32(base, _mm256_mullo_epi32(cols, step))),
            Ok(placing) => placing.place(cols),
        };
        let Some(places) = places else {
            let (reach, symbol) = Scalar.join(positions, start, symbols, spacing, out);
            plain = (reach.max(plain.0), symbol.max(plain.1));
            return;
        };
        reaches = _mm256_max_epu32(reaches, places);
        largest = _mm256_max_epu32(largest, symbol);
        let entries = (_mm256_slli_epi32::<2>(places), _mm256_slli_epi32::<24>(symbol));
        let entries = _mm256_or_si256(entries.0, entries.1);
        // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), entries) };
    });
    (greatest(reaches).max(plain.0), plain.1.max(greatest(largest) as u16))
}

/// [`Kernels::cut`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn cut(cutting: &Cutting<'_>, to: &mut Vec<u32>) {
    let mask = _mm256_set1_epi32(cutting.mask as i32);
    cuts::cut(cutting, to, |weights, limit| {
        let limit = _mm256_set1_epi32(limit as i32);
        let (eights, _) = weights.as_chunks::<8>();
        let mut under = 0;
        for eight in eights {
            // SAFETY: the reference covers 32 bytes; loadu needs no alignment.
            let weights = unsafe { _mm256_loadu_si256(eight.as_ptr().cast()) };
            let numbers = _mm256_and_si256(weights, mask);
            // Those that are not under the limit are their maximum with it.
            let is_above = _mm256_cmpeq_epi32(_mm256_max_epu32(numbers, limit), numbers);
            under += _mm256_movemask_ps(_mm256_castsi256_ps(is_above)).count_zeros() - 24;
        }
        under as usize
    });
}

/// [`Kernels::sort_by_tap`], for columns under [`LARGE`]; a part after the other.
#[target_feature(enable = "avx2,fma,popcnt")]
pub(super) fn sort_by_tap(
    width: u32,
    shifts: &[Shift],
    (cols, symbols): shifts::Weights<'_, u16>,
    (sorted_cols, sorted_symbols): Sorted<'_, u16>,
) -> [u32; MAX_SHIFTS] {
    shifts::check_lengths((cols, symbols), (sorted_cols, sorted_symbols));
    let (col_chunks, col_rest) = cols.as_chunks::<8>();
    let (symbol_chunks, symbol_rest) = symbols.as_chunks::<8>();
    let (mut last_cols, mut last_symbols) = ([0; 8], [0; 8]);
    last_cols[..col_rest.len()].copy_from_slice(col_rest);
    last_symbols[..symbol_rest.len()].copy_from_slice(symbol_rest);
    let divisor = Divisor::new(width);
    let (mut counts, mut at) = ([0; MAX_SHIFTS], 0);
    for (count, shift) in counts.iter_mut().zip(shifts) {
        let (column, start) = (_mm256_set1_epi32(shift.column() as i32), at);
        let mut add = |cols: &[u32; 8], symbols: &[u16; 8], is_there: u8| {
            // SAFETY: the references cover 32 and 16 readable bytes; no alignment is needed.
            let (cols, symbols) = unsafe {
                (_mm256_loadu_si256(cols.as_ptr().cast()), _mm_loadu_si128(symbols.as_ptr().cast()))
            };
            let (_, tap) = divisor.divide(cols);
            let is_column = _mm256_castsi256_ps(_mm256_cmpeq_epi32(tap, column));
            let kept = _mm256_movemask_ps(is_column) as u8 & is_there;
            // What is stored beyond those that are kept makes way for what follows.
            let to = (&mut sorted_cols[at..], &mut sorted_symbols[at..]);
            at += store_kept(to, cols, symbols, kept);
        };
        for (cols, symbols) in col_chunks.iter().zip(symbol_chunks) {
            add(cols, symbols, u8::MAX);
        }
        add(&last_cols, &last_symbols, ((1u32 << col_rest.len()) - 1) as u8);
        *count = (at - start) as u32;
    }
    assert_eq!(at, cols.len(), "sort_by_tap: tap columns");
    counts
}
