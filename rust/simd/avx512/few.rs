//! Weights of up to 32 values, which stay in two registers.

use super::super::tiles::OFFSET_BITS;
use std::arch::x86_64::*;

/// The values of all symbols.
#[derive(Clone, Copy)]
pub(super) struct Few {
    low: __m512,
    high: __m512,
}

impl Few {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(values: &[f32; 32]) -> Self {
        // SAFETY: 128 bytes are there; loadu needs no alignment.
        let part = |i: usize| unsafe { _mm512_loadu_ps(values.as_ptr().add(16 * i)) };
        Self { low: part(0), high: part(1) }
    }

    /// The values of sixteen joined weights.
    ///
    /// # Safety
    /// They may be read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sixteen(self, weights: *const u32) -> __m512 {
        // SAFETY: the caller says so; no alignment is needed.
        let weights = unsafe { _mm512_loadu_si512(weights.cast()) };
        let symbols = _mm512_srli_epi32::<OFFSET_BITS>(weights);
        _mm512_permutex2var_ps(self.low, symbols, self.high)
    }

    /// Eight times the value of a joined weight.
    ///
    /// # Safety
    /// It may be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    pub(super) unsafe fn one(self, weight: *const u32) -> __m256 {
        // SAFETY: the caller says so.
        let weight = _mm512_set1_epi32(unsafe { *weight }.cast_signed());
        let symbols = _mm512_srli_epi32::<OFFSET_BITS>(weight);
        _mm512_castps512_ps256(_mm512_permutex2var_ps(self.low, symbols, self.high))
    }

    /// Numbers of lanes, which the compiler does not know: it would take values out of known lanes by
    /// two instructions instead of one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn lanes(lanes: [i32; 16]) -> __m512i {
        let lanes = std::hint::black_box(lanes);
        // SAFETY: 64 bytes are there; loadu needs no alignment.
        unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
    }
}

/// The offset of a joined weight in bytes.
///
/// # Safety
/// It may be read.
#[inline]
#[target_feature(enable = "bmi2")]
pub(super) unsafe fn offset(weight: *const u32) -> usize {
    // SAFETY: the caller says so. In this form a load and the mask are one operation.
    _bzhi_u32(unsafe { *weight }, OFFSET_BITS) as usize
}

/// The place of a joined weight in the input.
///
/// # Safety
/// It may be read.
#[inline]
#[target_feature(enable = "bmi2")]
pub(super) unsafe fn at(input: *const f32, weight: *const u32) -> *const f32 {
    // SAFETY: the caller says so.
    input.wrapping_byte_add(unsafe { offset(weight) })
}
