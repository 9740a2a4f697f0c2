//! Tiles of four outputs, a map of 2 × 2 of one image: of four weights in one register.
//!
//! Where there are up to 32 values, those of sixteen weights are taken out of two registers at once, and
//! each is dealt to its four lanes. A weight by itself would load its value, which is what binds there.

use super::super::add_strip::define_add_strip;
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Joined, Weights};
use super::super::{Finish, Start, TileProduct};
use super::few::{Few, at, define_add_few};
use std::arch::x86_64::*;

define_add_strip!(
    "avx512f,avx512vl,avx2,fma", __m128, 4, zero _mm_setzero_ps, set _mm_set1_ps, load _mm_loadu_ps,
    store _mm_storeu_ps, multiply_add _mm_fmadd_ps, add _mm_add_ps, max _mm_max_ps,
    min _mm_min_ps, rows CutRows<'_, impl Weights>,
    weight |rows: &CutRows<'_, _>, weight| {
        let (offset, value) = rows.get(weight);
        (offset, _mm_set1_ps(value))
    }
);

/// Weights that are taken together.
const TOGETHER: usize = 16;

/// Four times four lanes, each four of one weight.
const LANES: [i32; 16] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];

/// The inputs of four weights.
///
/// # Safety
/// The input holds a tile at the place of each.
#[inline]
#[target_feature(enable = "avx512f,bmi2")]
unsafe fn four_tiles(input: *const f32, weights: *const u32) -> __m512 {
    // SAFETY: the caller says so; no alignment is needed.
    unsafe {
        let tile = |i: usize| _mm_loadu_ps(at(input, weights.add(i)));
        let mut tiles = _mm512_castps128_ps512(tile(0));
        tiles = _mm512_mask_broadcast_f32x4(tiles, 0x00f0, tile(1));
        tiles = _mm512_mask_broadcast_f32x4(tiles, 0x0f00, tile(2));
        _mm512_mask_broadcast_f32x4(tiles, 0xf000, tile(3))
    }
}

/// Adds what sixteen weights make of the input, or as many of them as are `left`.
///
/// # Safety
/// Sixteen weights may be read, and the input holds a tile at the place of each.
#[inline]
#[target_feature(enable = "avx512f,bmi2")]
unsafe fn add_sixteen(
    (few, lanes): (Few, &[__m512i; 4]),
    input: *const f32,
    weights: *const u32,
    left: Option<usize>,
    sums: &mut [__m512; 2],
) {
    // SAFETY: the caller says so.
    let values = unsafe { few.sixteen(weights) };
    for (i, &lanes) in lanes.iter().enumerate() {
        // SAFETY: as above.
        let tiles = unsafe { four_tiles(input, weights.add(4 * i)) };
        let (values, sum) = (_mm512_permutexvar_ps(lanes, values), &mut sums[i % 2]);
        *sum = match left {
            None => _mm512_fmadd_ps(values, tiles, *sum),
            Some(left) => {
                let mine = _mm512_cmplt_epi32_mask(lanes, _mm512_set1_epi32(left as i32));
                _mm512_mask3_fmadd_ps(values, tiles, *sum, mine)
            }
        };
    }
}

/// The tile that the sums make: of four lanes each, of the same output.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn total([a, b]: [__m512; 2]) -> Sums<1> {
    let sums = _mm512_add_ps(a, b);
    let half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums));
    [_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))]
}

define_add_few!(
    "avx512f,avx512dq,avx512vl,bmi2,avx2,fma", vectors 1, together TOGETHER,
    lanes |i| Few::lanes(LANES.map(|lane| lane + 4 * i as i32)), zero [_mm512_setzero_ps(); 2],
    weights add_sixteen, total total, add _mm_add_ps
);
