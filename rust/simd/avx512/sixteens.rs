//! Tiles of sixteen outputs, in two registers of eight, of weights of up to 32 values.
//!
//! The values of eight weights are taken out of two registers at once, and each is dealt to all lanes.
//! A weight by itself would load its value, which is what binds there.

use super::super::TileProduct;
use super::super::tiles::{CutRows, Joined};
use super::few::{Few, at, define_add_few};
use super::grids::{Sums, finish_sums, load_sums, starts, store_sums};
use std::arch::x86_64::*;

/// Weights that are taken together, and their sums in turn.
const TOGETHER: usize = 8;
const SUMS: usize = 4;

/// Adds what eight weights make of the input, or as many of them as are `left`.
///
/// # Safety
/// Sixteen weights may be read, and the input holds a tile at the places of the first eight.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,bmi2,avx2,fma")]
unsafe fn add_eight(
    (few, lanes): (Few, &[__m256i; TOGETHER]),
    input: *const f32,
    weights: *const u32,
    left: Option<usize>,
    sums: &mut [Sums<2>; SUMS],
) {
    // SAFETY: the caller says so; no alignment is needed.
    unsafe {
        let values = _mm512_castps512_ps256(few.sixteen(weights));
        for (weight, &lanes) in lanes.iter().enumerate() {
            let value = _mm256_permutexvar_ps(lanes, values);
            let place = at(input, weights.add(weight));
            for (i, sum) in sums[weight % SUMS].iter_mut().enumerate() {
                let tile = _mm256_loadu_ps(place.add(8 * i));
                *sum = match left {
                    None => _mm256_fmadd_ps(value, tile, *sum),
                    Some(left) => {
                        let mine = _mm256_cmplt_epi32_mask(lanes, _mm256_set1_epi32(left as i32));
                        _mm256_mask3_fmadd_ps(value, tile, *sum, mine)
                    }
                };
            }
        }
    }
}

/// The tile that the sums make.
#[inline]
#[target_feature(enable = "avx2")]
fn total([a, b, c, d]: [Sums<2>; SUMS]) -> Sums<2> {
    let add = |a: Sums<2>, b: Sums<2>| [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
    add(add(a, b), add(c, d))
}

define_add_few!(
    "avx512f,avx512vl,bmi2,avx2,fma", vectors 2, together TOGETHER,
    lanes |i| _mm512_castsi512_si256(Few::lanes([i as i32; 16])),
    zero [[_mm256_setzero_ps(); 2]; SUMS], weights add_eight, total total, add _mm256_add_ps
);
