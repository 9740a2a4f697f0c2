//! The greatest of two by two.
//!
//! ```text
//!   64 numbers of rows of w = 2, 4 … 32 numbers, in four registers
//!     the greater of each pair:  max(x, neighbours of x exchanged), every other lane kept
//!     two registers p, q:        32 of those, w / 2 a row
//!     16 outputs:                max(upper rows of p and q, lower rows of p and q)
//! ```

use super::super::Kernels;
use super::super::scalar::Scalar;
use super::symbols::load;
use std::arch::x86_64::*;

/// [`Kernels::greatest_of_four`].
#[target_feature(enable = "avx512f")]
pub(super) fn greatest_of_four(width: usize, x: &[f32], out: &mut [f32]) {
    if !matches!(width, 2 | 4 | 8 | 16 | 32) {
        return Scalar.greatest_of_four(width, x, out);
    }
    let half = width / 2;
    let upper: [i32; 16] = std::array::from_fn(|i| (i / half * width + i % half) as i32);
    // SAFETY: the array covers 64 readable bytes; loadu needs no alignment.
    let upper = unsafe { _mm512_loadu_si512(upper.as_ptr().cast()) };
    let lower = _mm512_add_epi32(upper, _mm512_set1_epi32(half as i32));
    let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let (chunks, rest) = x.as_chunks::<64>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<16>();
    assert_eq!(chunks.len(), out_chunks.len(), "greatest_of_four: outputs");
    for (x, out) in chunks.iter().zip(out_chunks) {
        let (parts, _) = x.as_chunks::<16>();
        let pairs = |i: usize| {
            let x = load(&parts[i]);
            greater(x, _mm512_permute_ps::<0b10_11_00_01>(x))
        };
        let p = _mm512_permutex2var_ps(pairs(0), evens, pairs(1));
        let q = _mm512_permutex2var_ps(pairs(2), evens, pairs(3));
        let y = greater(_mm512_permutex2var_ps(p, upper, q), _mm512_permutex2var_ps(p, lower, q));
        // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), y) };
    }
    Scalar.greatest_of_four(width, rest, out_rest);
}

/// The greater of each two, NaN where one is.
#[inline]
#[target_feature(enable = "avx512f")]
fn greater(a: __m512, b: __m512) -> __m512 {
    // Where one is NaN, this is b.
    let most = _mm512_max_ps(a, b);
    _mm512_mask_mov_ps(most, _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), a)
}
