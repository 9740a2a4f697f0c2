//! The greatest of two by two.
//!
//! ```text
//!   32 numbers of rows of w = 2, 4, 8, 16 numbers, in four registers
//!     the greater of each pair:  max(even lanes, odd lanes), of two registers at once
//!     two registers p, q:        16 of those, w / 2 a row
//!     8 outputs:                 max(upper rows of p and q, lower rows of p and q)
//! ```

use super::super::scalar::Scalar;
use super::super::{Kernels, interleaving};
use super::load;
use std::arch::x86_64::*;

/// [`Kernels::greatest_of_four`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn greatest_of_four(width: usize, x: &[f32], out: &mut [f32]) {
    if !matches!(width, 2 | 4 | 8 | 16) {
        return Scalar.greatest_of_four(width, x, out);
    }
    let half = width / 2;
    let upper: [i32; 8] = std::array::from_fn(|i| (i / half * width + i % half) as i32);
    // SAFETY: the array covers 32 readable bytes; loadu needs no alignment.
    let upper = unsafe { _mm256_loadu_si256(upper.as_ptr().cast()) };
    let lower = _mm256_add_epi32(upper, _mm256_set1_epi32(half as i32));
    let (chunks, rest) = x.as_chunks::<32>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<8>();
    assert_eq!(chunks.len(), out_chunks.len(), "greatest_of_four: outputs");
    for (x, out) in chunks.iter().zip(out_chunks) {
        let (parts, _) = x.as_chunks::<8>();
        let pairs = |i: usize| {
            let (a, b) = (load(&parts[i]), load(&parts[i + 1]));
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(a, b);
            let odd = _mm256_shuffle_ps::<0b11_01_11_01>(a, b);
            // Quarters lie a, b, a, b.
            let most = _mm256_castps_pd(greater(even, odd));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(most))
        };
        let (p, q) = (pairs(0), pairs(2));
        let y = greater(lanes_of(p, q, upper), lanes_of(p, q, lower));
        // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), y) };
    }
    Scalar.greatest_of_four(width, rest, out_rest);
}

/// [`Kernels::greatest_of_four_cells`].
#[target_feature(enable = "avx2,fma")]
pub(super) fn greatest_of_four_cells(width: usize, x: &[f32], out: &mut [f32]) {
    for (rows, out) in interleaving::checked_rows(width, x, out) {
        let (upper, lower) = rows.split_at(rows.len() / 2);
        let (upper, lower) = (upper.as_chunks::<16>().0, lower.as_chunks::<16>().0);
        let (out, _) = out.as_chunks_mut::<8>();
        for ((upper, lower), out) in upper.iter().zip(lower).zip(out) {
            let pair = |cells: &[f32; 16]| {
                let (cells, _) = cells.as_chunks::<8>();
                greater(load(&cells[0]), load(&cells[1]))
            };
            // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), greater(pair(upper), pair(lower))) };
        }
    }
}

/// Lanes of two registers by number, from 0 to 15.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn lanes_of(p: __m256, q: __m256, lanes: __m256i) -> __m256 {
    let is_second = _mm256_castsi256_ps(_mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(7)));
    let (p, q) = (_mm256_permutevar8x32_ps(p, lanes), _mm256_permutevar8x32_ps(q, lanes));
    _mm256_blendv_ps(p, q, is_second)
}

/// The greater of each two, NaN where one is.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn greater(a: __m256, b: __m256) -> __m256 {
    // Where one is NaN, this is b.
    let most = _mm256_max_ps(a, b);
    _mm256_blendv_ps(most, a, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a))
}
