//! Tiles of four outputs, a map of 2 × 2 of one image: of four weights in one register.
//!
//! Where there are up to 32 values, those of sixteen weights are taken out of two registers at once, and
//! each is dealt to its four lanes. A weight by itself would load its value, which is what binds there.

use super::super::add_strip::define_add_strip;
use super::super::tiles::{COLUMN_PITCH, CutRows, Joined, Weights};
use super::super::{Finish, Start, TileProduct};
use super::few::{Few, at};
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

/// The sum of the four lanes that are of the same output.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn folded(sums: __m512) -> __m128 {
    let half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums));
    _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half))
}

/// # Safety
/// [`TileProduct::check`] was called for this output, the tile is 4, and there are no shifts.
#[target_feature(enable = "avx512f,avx512dq,avx512vl,bmi2,avx2,fma")]
pub(super) unsafe fn add_few(
    product: &TileProduct<'_>,
    rows: CutRows<'_, Joined>,
    output: &mut [f32],
) {
    let TileProduct { input, strip, finish, stride, .. } = *product;
    let lanes = std::array::from_fn(|i| Few::lanes(LANES.map(|lane| lane + 4 * i as i32)));
    let (few, input) = ((Few::new(rows.first_values()), &lanes), input.as_ptr());
    let mut to = output.as_mut_ptr();
    let starts = starts(product, to);
    let (mut from, [from_stride, _]) = starts.unwrap_or((to, [0, 0]));
    for row in 0..strip.nrows() {
        let range = rows.range(row, 0);
        let mut sums = [_mm512_setzero_ps(); 2];
        let mut weight = range.start;
        while weight + TOGETHER <= range.end {
            // SAFETY: all are in the row's range; the input was checked.
            unsafe { add_sixteen(few, input, rows.entries(weight), None, &mut sums) };
            weight += TOGETHER;
        }
        if weight < range.end {
            let left = Some(range.end - weight);
            // SAFETY: there is room behind the row, and what is read there is a place of the input too.
            unsafe { add_sixteen(few, input, rows.entries(weight), left, &mut sums) };
        }
        let mut sums = [folded(_mm512_add_ps(sums[0], sums[1]))];
        if starts.is_some() {
            // SAFETY: the output, or the sums, were checked for this row.
            let [start] = unsafe { load_sums::<1, 1>(from, 0) };
            sums[0] = _mm_add_ps(start, sums[0]);
        }
        if let Some(finish) = finish {
            finish_sums(&mut sums, finish, row);
        }
        // SAFETY: the output was checked for this row.
        unsafe { store_sums::<1, 1>(sums, to, 0) };
        // Past the last row these point anywhere, and nothing reads them.
        (from, to) = (from.wrapping_add(from_stride), to.wrapping_add(stride));
    }
}
