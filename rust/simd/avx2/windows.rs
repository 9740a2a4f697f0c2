//! Eight numbers of two registers, turned to their places.

use super::super::windows::{OUTPUTS, Window, Windows};
use std::arch::x86_64::*;

/// [`super::super::Kernels::fill_windows`].
#[target_feature(enable = "avx2")]
pub(super) fn fill(windows: &Windows, x: &[f32], step: usize, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(windows.numbers().max(1)).enumerate() {
        let x = &x[i * step..];
        let Some(inside) = windows.inside(x.len()) else {
            windows.fill(x, out);
            continue;
        };
        let (whole, rest) = out.as_chunks_mut::<OUTPUTS>();
        for (window, out) in inside.iter().zip(&mut *whole) {
            // SAFETY: the window is inside x; the reference covers 32 writable bytes.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), numbers(window, x)) };
        }
        if let Some(window) = inside.get(whole.len()) {
            let mut last = [0.0; OUTPUTS];
            // SAFETY: as above.
            unsafe { _mm256_storeu_ps(last.as_mut_ptr(), numbers(window, x)) };
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

/// The numbers of a window.
///
/// # Safety
/// It is inside `x`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn numbers(window: &Window, x: &[f32]) -> __m256 {
    // SAFETY: 16 numbers are there, the caller says, and the lanes are eight bytes.
    let (low, high, lanes) = unsafe {
        let x = x.as_ptr().add(window.from as usize);
        let lanes = _mm_loadl_epi64(window.lanes.as_ptr().cast());
        (_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8)), _mm256_cvtepi8_epi32(lanes))
    };
    let low = _mm256_permutevar8x32_ps(low, lanes);
    let high = _mm256_permutevar8x32_ps(high, lanes);
    let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(lanes));
    let is_zero = _mm256_castsi256_ps(_mm256_srai_epi32::<31>(lanes));
    _mm256_andnot_ps(is_zero, _mm256_blendv_ps(low, high, is_high))
}
