//! Tiles of sixteen outputs, in two registers of eight, of weights of up to 32 values.
//!
//! The values of eight weights are taken out of two registers at once, and each is dealt to all lanes.
//! A weight by itself would load its value, which is what binds there.

use super::super::TileProduct;
use super::super::tiles::{CutRows, Joined};
use super::few::{Few, at};
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

/// # Safety
/// [`TileProduct::check`] was called for this output, the tile is 16, and there are no shifts.
#[target_feature(enable = "avx512f,avx512vl,bmi2,avx2,fma")]
pub(super) unsafe fn add_few(
    product: &TileProduct<'_>,
    rows: CutRows<'_, Joined>,
    output: &mut [f32],
) {
    let TileProduct { input, strip, finish, stride, .. } = *product;
    let lanes = std::array::from_fn(|i| _mm512_castsi512_si256(Few::lanes([i as i32; 16])));
    let (few, input) = ((Few::new(rows.first_values()), &lanes), input.as_ptr());
    let mut to = output.as_mut_ptr();
    let starts = starts(product, to);
    let (mut from, [from_stride, _]) = starts.unwrap_or((to, [0, 0]));
    for row in 0..strip.nrows() {
        let range = rows.range(row, 0);
        let mut sums = [[_mm256_setzero_ps(); 2]; SUMS];
        if starts.is_some() {
            // SAFETY: the output, or the sums, were checked for this row.
            sums[0] = unsafe { load_sums::<2, 1>(from, 0) };
        }
        let mut weight = range.start;
        while weight + TOGETHER <= range.end {
            // SAFETY: all are in the row's range, behind which there is room; the input was checked.
            unsafe { add_eight(few, input, rows.entries(weight), None, &mut sums) };
            weight += TOGETHER;
        }
        if weight < range.end {
            let left = Some(range.end - weight);
            // SAFETY: as above; what is read behind the row's end is a place of the input too.
            unsafe { add_eight(few, input, rows.entries(weight), left, &mut sums) };
        }
        let [a, b, c, d] = sums;
        let add = |a: Sums<2>, b: Sums<2>| [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])];
        let mut sums = add(add(a, b), add(c, d));
        if let Some(finish) = finish {
            finish_sums(&mut sums, finish, row);
        }
        // SAFETY: the output was checked for this row.
        unsafe { store_sums::<2, 1>(sums, to, 0) };
        // Past the last row these point anywhere, and nothing reads them.
        (from, to) = (from.wrapping_add(from_stride), to.wrapping_add(stride));
    }
}
