//! Tiles of outputs in registers of four: sixteen of the thirty-two for a tile of 64.

use super::super::add_strip::define_add_strip;
use super::super::shifts::MAX_MOVE;
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Weights};
use super::super::{Finish, LARGEST_TILE, Start, TileProduct};
use std::arch::aarch64::*;

/// Lanes of a register.
const QUAD: usize = 4;

define_add_strip!(
    "neon", float32x4_t, 4, zero zero, set vdupq_n_f32, load vld1q_f32, store vst1q_f32,
    multiply_add multiply_add, add vaddq_f32, max vmaxq_f32, min vminq_f32,
    rows CutRows<'_, impl Weights>,
    weight |rows: &CutRows<'_, _>, weight| {
        let (offset, value) = rows.get(weight);
        (offset, vdupq_n_f32(value))
    }
);

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> float32x4_t {
    vdupq_n_f32(0.0)
}

/// a · b + c.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    vfmaq_f32(c, a, b)
}

/// Multiplies a strip.
///
/// # Safety
/// [`TileProduct::check`] was called for this output.
pub(super) unsafe fn add_rows(
    product: &TileProduct<'_>,
    rows: CutRows<'_, impl Weights>,
    output: &mut [f32],
) {
    // SAFETY: the caller says so, and the size is that of the tile.
    unsafe {
        let has_shifts = !product.strip.shifts().is_empty();
        match product.size {
            64 if product.grid.lines == 2 => add_strip::<16, 1, 2>(product, rows, output),
            128 if product.grid.lines == 4 => add_strip::<32, 1, 4>(product, rows, output),
            64 if product.grid.lines == 8 => add_strip::<16, 1, 8>(product, rows, output),
            128 if product.grid.lines == 16 => add_strip::<32, 1, 16>(product, rows, output),
            16 if has_shifts => add_shifted::<4>(product, rows, output),
            32 if has_shifts => add_shifted::<8>(product, rows, output),
            64 if has_shifts => add_shifted::<16>(product, rows, output),
            128 if has_shifts => add_shifted::<32>(product, rows, output),
            256 if has_shifts => add_shifted::<64>(product, rows, output),
            4 => add_strip::<1, 8, 1>(product, rows, output),
            8 => add_strip::<2, 8, 1>(product, rows, output),
            16 => add_strip::<4, 4, 1>(product, rows, output),
            32 => add_strip::<8, 2, 1>(product, rows, output),
            64 => add_strip::<16, 1, 1>(product, rows, output),
            128 => add_strip::<32, 1, 1>(product, rows, output),
            256 => add_strip::<64, 1, 1>(product, rows, output),
            size => panic!("add_strip: a tile of {size}"),
        }
    }
}

/// As `add_strip`, with shifts: sums that move are stored, and loaded from where they move to.
///
/// # Safety
/// [`TileProduct::check`] was called for this output, and the tile is the lanes times `VECTORS`.
#[target_feature(enable = "neon")]
unsafe fn add_shifted<const VECTORS: usize>(
    product: &TileProduct<'_>,
    rows: CutRows<'_, impl Weights>,
    output: &mut [f32],
) {
    let TileProduct { strip, finish, stride, .. } = *product;
    let input = (product.input, 0);
    let mut to = output.as_mut_ptr();
    let starts = starts(product, to);
    let (mut from, [from_stride, _]) = starts.unwrap_or((to, [0, 0]));
    // The neighbours of the tile's ends are not reached.
    let mut moved = [0.0f32; LARGEST_TILE + 2 * MAX_MOVE];
    for row in 0..strip.nrows() {
        let mut sums = [zero(); VECTORS];
        if starts.is_some() {
            // SAFETY: the output, or the sums, were checked for this row.
            sums = unsafe { load_sums::<VECTORS, 1>(from, 0) };
        }
        for (part, shift) in strip.shifts().iter().enumerate() {
            let mut own = if shift.by() == 0 { sums } else { [zero(); VECTORS] };
            for weight in rows.range(row, part) {
                // SAFETY: it is in the row's range; the input was checked.
                unsafe { add_weight::<VECTORS, 1>(&rows, weight, input, &mut own) };
            }
            if shift.by() == 0 {
                sums = own;
                continue;
            }
            let reaches = shift.reach().as_chunks::<QUAD>().0;
            let start = MAX_MOVE.wrapping_add_signed(shift.by());
            // SAFETY: a tile has room after the first `MAX_MOVE` numbers, and as many behind it.
            unsafe {
                store_sums::<VECTORS, 1>(own, moved[MAX_MOVE..].as_mut_ptr(), 0);
                let own = load_sums::<VECTORS, 1>(moved[start..].as_ptr(), 0);
                for ((sum, own), reach) in sums.iter_mut().zip(own).zip(reaches) {
                    let own = vandq_u32(vreinterpretq_u32_f32(own), vld1q_u32(reach.as_ptr()));
                    *sum = vaddq_f32(*sum, vreinterpretq_f32_u32(own));
                }
            }
        }
        if let Some(finish) = finish {
            finish_sums(&mut sums, finish, row);
        }
        // SAFETY: the output was checked for this row.
        unsafe { store_sums::<VECTORS, 1>(sums, to, 0) };
        // Past the last row these point anywhere, and nothing reads them.
        (from, to) = (from.wrapping_add(from_stride), to.wrapping_add(stride));
    }
}
