//! Products of slices with up to eight vectors, in registers of eight: half of a slice's rows at a time.
//!
//! ```text
//!   for each half of a slice, for each block, for each step:
//!     slots ─vpmovsxwd─▶ s                              EMPTY is a sign
//!     32 numbers in four rows of eight ─vpermps by the lowest three bits─▶ four candidates
//!                                      ─vblendvps by the two bits above──▶ one
//!     sums of each vector += value · input, but where slots are empty
//! ```
//!
//! Values are found as inputs are, by the bits of the symbol, where there are up to 32; others one by
//! one. Shuffles take their numbers from the first-level cache: there are too few registers.

use super::super::Lanes;
use super::super::prefetch;
use super::super::sell::{
    AHEAD, BLOCK_COLS, Block, COLUMN_BITS, EMPTY, Inputs, MAX_SYMBOLS, SLICE_ROWS, Slices, Step,
};
use std::arch::x86_64::*;

const HALF: usize = SLICE_ROWS / 2;

/// [`super::super::Kernels::slice_products`] for V vectors.
#[target_feature(enable = "avx2,fma")]
pub(super) fn products<const V: usize>(slices: &Slices<'_>, x: &[Inputs], sums: &mut [Lanes]) {
    match slices.k {
        0..=32 => products_of::<V, 32>(slices, x, sums),
        _ => products_of::<V, MAX_SYMBOLS>(slices, x, sums),
    }
}

#[target_feature(enable = "avx2,fma")]
fn products_of<const V: usize, const K: usize>(
    slices: &Slices<'_>,
    x: &[Inputs],
    sums: &mut [Lanes],
) {
    let (mut blocks, mut steps) = (slices.blocks, slices.steps);
    for (&count, sums) in slices.counts.iter().zip(sums.chunks_exact_mut(V)) {
        let (mine, others) = blocks.split_at(count as usize);
        blocks = others;
        let mut rest = steps;
        for half in 0..2 {
            rest = steps;
            let mut totals = [_mm256_setzero_ps(); V];
            for &block in mine {
                let Block { steps: nsteps, number } = Block::unpack(block);
                let x: &[Inputs; V] = x[number * V..].first_chunk().expect("inputs of every block");
                let (mine, others) = rest.split_at(nsteps);
                for (step, at) in mine.iter().zip(AHEAD..) {
                    if half == 0 {
                        prefetch(rest, at);
                    }
                    add::<V, K>(step, half, slices.codebook, x, &mut totals);
                }
                rest = others;
            }
            for (sums, total) in sums.iter_mut().zip(totals) {
                let sums = &mut sums.as_chunks_mut::<HALF>().0[half];
                // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
                unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), total) };
            }
        }
        steps = rest;
    }
}

/// Adds the products of half a step to the sums of each vector.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add<const V: usize, const K: usize>(
    step: &Step,
    half: usize,
    codebook: &[f32; MAX_SYMBOLS],
    x: &[Inputs; V],
    sums: &mut [__m256; V],
) {
    const { assert!(EMPTY == 1 << 15, "the sign of a slot") };
    let stored = &step.as_chunks::<HALF>().0[half];
    // SAFETY: the reference covers 16 readable bytes; loadu needs no alignment.
    let slots = _mm256_cvtepi16_epi32(unsafe { _mm_loadu_si128(stored.as_ptr().cast()) });
    let kept = _mm256_castsi256_ps(_mm256_cmpgt_epi32(slots, _mm256_set1_epi32(-1)));
    let values = if K <= BLOCK_COLS {
        let values = codebook.first_chunk().expect("256 values");
        look_up(values, Choice::new(_mm256_srli_epi32::<{ COLUMN_BITS as i32 }>(slots)))
    } else {
        let value = |slot: u16| codebook[usize::from(slot >> COLUMN_BITS) % MAX_SYMBOLS];
        let [a, b, c, d, e, f, g, h] = *stored;
        _mm256_setr_ps(
            value(a),
            value(b),
            value(c),
            value(d),
            value(e),
            value(f),
            value(g),
            value(h),
        )
    };
    let values = _mm256_and_ps(values, kept);
    let columns = Choice::new(slots);
    for (sums, x) in sums.iter_mut().zip(x) {
        // What no row keeps may be anything, and zero times that as well.
        let inputs = _mm256_and_ps(look_up(x, columns), kept);
        *sums = _mm256_fmadd_ps(inputs, values, *sums);
    }
}

/// Which of 32 numbers each lane takes.
#[derive(Clone, Copy)]
struct Choice {
    /// In its lowest three bits which of eight.
    of_eight: __m256i,
    /// As signs, whether of the second eight of sixteen, and whether of the second sixteen.
    is_second: [__m256; 2],
}

impl Choice {
    /// By the lowest five bits.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn new(numbers: __m256i) -> Self {
        let is_second = [
            _mm256_castsi256_ps(_mm256_slli_epi32::<28>(numbers)),
            _mm256_castsi256_ps(_mm256_slli_epi32::<27>(numbers)),
        ];
        Self { of_eight: numbers, is_second }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn look_up(numbers: &[f32; BLOCK_COLS], Choice { of_eight, is_second }: Choice) -> __m256 {
    let (eights, _) = numbers.as_chunks::<8>();
    let of = |eight: usize| {
        // SAFETY: the reference covers 32 readable bytes; loadu needs no alignment.
        let eight = unsafe { _mm256_loadu_ps(eights[eight].as_ptr()) };
        _mm256_permutevar8x32_ps(eight, of_eight)
    };
    let low = _mm256_blendv_ps(of(0), of(1), is_second[0]);
    let high = _mm256_blendv_ps(of(2), of(3), is_second[0]);
    _mm256_blendv_ps(low, high, is_second[1])
}
