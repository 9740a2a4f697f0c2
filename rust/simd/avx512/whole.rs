//! Tiles of weights of up to 32 values, where sixteen lanes are computed at once: lines of grids, and
//! tiles of sixteen outputs.
//!
//! Two registers of eight, which `few_grids.rs` and `sixteens.rs` take, are then twice the loads and
//! twice the additions. Where cells of eight images are apart by an odd number of them, a load straddles
//! two cache lines, which still is faster than two loads.

use super::super::add_strip::define_add_strip;
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Joined};
use super::super::{Finish, Start, TileProduct};
use super::few::{Few, at, define_add_few, offset};
use std::arch::x86_64::*;

define_add_strip!(
    "avx512f,bmi2", __m512, 16, zero _mm512_setzero_ps, set _mm512_set1_ps, load _mm512_loadu_ps,
    store _mm512_storeu_ps, multiply_add _mm512_fmadd_ps, add _mm512_add_ps, max _mm512_max_ps,
    min _mm512_min_ps, rows CutRows<'_, Joined>,
    weight |rows: &CutRows<'_, _>, weight| {
        let weight = rows.entries(weight);
        (offset(weight), Few::new(rows.first_values()).one(weight))
    }
);

/// Weights that are taken together, and their sums in turn.
const TOGETHER: usize = 16;
const SUMS: usize = 4;

/// Adds what sixteen weights make of the input, or as many of them as are `left`.
///
/// # Safety
/// Sixteen weights may be read, and the input holds a tile at the place of each.
#[inline]
#[target_feature(enable = "avx512f,bmi2")]
unsafe fn add_sixteen(
    (few, lanes): (Few, &[__m512i; TOGETHER]),
    input: *const f32,
    weights: *const u32,
    left: Option<usize>,
    sums: &mut [__m512; SUMS],
) {
    // SAFETY: the caller says so; no alignment is needed.
    unsafe {
        let values = few.sixteen(weights);
        for (weight, &lanes) in lanes.iter().enumerate() {
            let value = _mm512_permutexvar_ps(lanes, values);
            let (tile, sum) = (at(input, weights.add(weight)), &mut sums[weight % SUMS]);
            *sum = match left {
                None => _mm512_fmadd_ps(value, _mm512_loadu_ps(tile), *sum),
                Some(left) => {
                    let mine = _mm512_cmplt_epi32_mask(lanes, _mm512_set1_epi32(left as i32));
                    _mm512_mask3_fmadd_ps(value, _mm512_loadu_ps(tile), *sum, mine)
                }
            };
        }
    }
}

/// The tile that the sums make.
#[inline]
#[target_feature(enable = "avx512f")]
fn total([a, b, c, d]: [__m512; SUMS]) -> Sums<1> {
    [_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d))]
}

define_add_few!(
    "avx512f,bmi2", vectors 1, together TOGETHER, lanes |i| Few::lanes([i as i32; 16]),
    zero [_mm512_setzero_ps(); SUMS], weights add_sixteen, total total, add _mm512_add_ps
);
