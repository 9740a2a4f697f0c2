//! Numbers of sixteen places: by the gather instruction, or by sixteen loads.
//!
//! Which of them is faster no feature tells. Loads are where the CPU gathers by microcode, some by design and
//! some since gathering was found to leak; elsewhere the instruction takes two thirds of their time. So
//! both are timed once, for some microseconds. They give the same bits.

use std::arch::x86_64::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The numbers in some columns.
///
/// # Safety
/// All columns are inside x.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn in_columns<const GATHERS: bool>(cols: &[[u8; 2]; 16], x: &[f32]) -> __m512 {
    if GATHERS {
        // SAFETY: the array is 32 readable bytes; the caller says the rest.
        return unsafe {
            let cols = _mm512_cvtepu16_epi32(_mm256_loadu_si256(cols.as_ptr().cast()));
            _mm512_i32gather_ps::<4>(cols, x.as_ptr())
        };
    }
    // Four columns a load: loads are what binds here.
    let fours: [[u8; 8]; 4] = bytemuck::cast(*cols);
    let x = |col: u64| {
        let col = (col & 0xffff) as usize;
        debug_assert!(col < x.len());
        // SAFETY: the caller says so.
        unsafe { *x.get_unchecked(col) }
    };
    sixteen(
        fours.map(u64::from_le_bytes).map(|four| [four, four >> 16, four >> 32, four >> 48].map(x)),
    )
}

/// The numbers at some positions, of which `start` is the first of x.
///
/// # Safety
/// All positions are inside x, which has at most 2³¹ numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn at_positions<const GATHERS: bool>(
    positions: &[u32; 16],
    start: u32,
    x: &[f32],
) -> __m512 {
    if GATHERS {
        let start = _mm512_set1_epi32(start.cast_signed());
        // SAFETY: the array is 64 readable bytes; the caller says the rest.
        return unsafe {
            let places = _mm512_sub_epi32(_mm512_loadu_si512(positions.as_ptr().cast()), start);
            _mm512_i32gather_ps::<4>(places, x.as_ptr())
        };
    }
    let first = x.as_ptr().wrapping_sub(start as usize);
    let x = |position: u64| {
        // SAFETY: the caller says so.
        unsafe { *first.wrapping_add(position as u32 as usize) }
    };
    // Two positions a load.
    let pairs: [[u64; 2]; 4] = bytemuck::cast(*positions);
    sixteen(pairs.map(|[low, high]| [low, low >> 32, high, high >> 32].map(x)))
}

/// The numbers in those columns that are `wanted`; any of them in the place of others.
///
/// # Safety
/// Wanted columns are inside x, which has one number or more, and at most 2³¹.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(super) unsafe fn at_columns<const GATHERS: bool>(
    cols: __m512i,
    wanted: __mmask16,
    x: &[f32],
) -> __m512 {
    if GATHERS {
        let zero = _mm512_setzero_ps();
        // SAFETY: the caller says so.
        return unsafe { _mm512_mask_i32gather_ps::<4>(zero, wanted, cols, x.as_ptr()) };
    }
    let mut places = [0; 16];
    // SAFETY: the array is 64 writable bytes; places are those of wanted columns, or 0.
    unsafe {
        let cols = _mm512_maskz_mov_epi32(wanted, cols);
        _mm512_storeu_si512(places.as_mut_ptr().cast(), cols);
        at_positions::<false>(&places, 0, x)
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sixteen(quarters: [[f32; 4]; 4]) -> __m512 {
    let [a, b, c, d] = quarters.map(|[a, b, c, d]| _mm_setr_ps(a, b, c, d));
    let (low, high) = (_mm256_set_m128(b, a), _mm256_set_m128(d, c));
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
}

/// Whether the instruction is faster than loads on this CPU.
///
/// # Safety
/// It has AVX-512 F and DQ.
pub(super) unsafe fn gathers_faster() -> bool {
    const ROUNDS: usize = 16;
    let x = [1.0; 1024];
    let cols: [[[u8; 2]; 16]; 64] = std::array::from_fn(|i| {
        std::array::from_fn(|j| (((16 * i + j) * 389 % x.len()) as u16).to_le_bytes())
    });
    let mut best = [Duration::MAX; 2];
    for _ in 0..ROUNDS {
        for (gathers, best) in best.iter_mut().enumerate() {
            let start = Instant::now();
            // SAFETY: all columns are inside x; the caller says the rest.
            black_box(unsafe {
                match gathers {
                    0 => sum_of::<false>(black_box(&cols), &x),
                    _ => sum_of::<true>(black_box(&cols), &x),
                }
            });
            *best = (*best).min(start.elapsed());
        }
    }
    best[1] < best[0]
}

/// The sum of the numbers in all columns, lane by lane.
///
/// # Safety
/// As [`in_columns`].
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn sum_of<const GATHERS: bool>(cols: &[[[u8; 2]; 16]], x: &[f32]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 2];
    for cols in cols {
        // SAFETY: the caller says so.
        let found = unsafe { in_columns::<GATHERS>(cols, x) };
        sums = [sums[1], _mm512_add_ps(sums[0], found)];
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}
