//! Tiles of outputs in registers of sixteen.

use super::super::{Strip, Sums};
use std::arch::x86_64::*;

/// Registers of sums stay in place while the weights go by: `VECTORS` for the tile, times
/// `WEIGHTS` in turn, so that additions of small tiles overlap too.
///
/// # Safety
/// [`Strip::check`] was called for tiles of 16 · `VECTORS`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_strip<const VECTORS: usize, const WEIGHTS: usize>(
    strip: Strip<'_>,
    input: &[f32],
    mode: Sums,
    sums: &mut [f32],
) {
    for (row, sums) in sums.chunks_exact_mut(16 * VECTORS).enumerate() {
        let (offsets, values) = strip.row(row);
        if offsets.is_empty() && mode == Sums::Continue {
            continue;
        }
        let (parts, _) = sums.as_chunks_mut::<16>();
        let mut acc = [[_mm512_setzero_ps(); VECTORS]; WEIGHTS];
        if mode == Sums::Continue {
            for (acc, part) in acc[0].iter_mut().zip(&*parts) {
                // SAFETY: the reference covers 64 bytes; loadu needs no alignment.
                *acc = unsafe { _mm512_loadu_ps(part.as_ptr()) };
            }
        }
        let add = |acc: &mut [__m512; VECTORS], offset: u32, value: f32| {
            let value = _mm512_set1_ps(value);
            for (vector, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller checked that 16 · VECTORS numbers from every offset are there.
                let x =
                    unsafe { _mm512_loadu_ps(input.as_ptr().add(offset as usize + 16 * vector)) };
                *acc = _mm512_fmadd_ps(value, x, *acc);
            }
        };
        let (offset_chunks, offset_rest) = offsets.as_chunks::<WEIGHTS>();
        let (value_chunks, value_rest) = values.as_chunks::<WEIGHTS>();
        for (offsets, values) in offset_chunks.iter().zip(value_chunks) {
            for i in 0..WEIGHTS {
                add(&mut acc[i], offsets[i], values[i]);
            }
        }
        for (i, (&offset, &value)) in offset_rest.iter().zip(value_rest).enumerate() {
            add(&mut acc[i], offset, value);
        }
        for (vector, part) in parts.iter_mut().enumerate() {
            let mut sum = acc[0][vector];
            for acc in &acc[1..] {
                sum = _mm512_add_ps(sum, acc[vector]);
            }
            // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
            unsafe { _mm512_storeu_ps(part.as_mut_ptr(), sum) };
        }
    }
}
