//! Products of slices with up to eight vectors: inputs, values and sums in registers.
//!
//! ```text
//!   a step:  slots ─vpmovsxwd─▶ s     EMPTY is a sign: vpmovd2m
//!            values: vpermi2ps by s >> 5     inputs: vpermi2ps by s, of each vector
//!            sums of each vector += value · input, but where slots are empty
//! ```
//!
//! Three shuffles, a shift, a mask and a multiply–add for one vector: three cycles for sixteen slots.
//! With more than 32 values they are gathered, which takes sixteen loads.

use super::super::prefetch;
use super::super::sell::{AHEAD, Block, COLUMN_BITS, EMPTY, Inputs, MAX_SYMBOLS, Slices, Step};
use super::super::{LANES, Lanes};
use super::symbols::load;
use std::arch::x86_64::*;

/// [`super::super::Kernels::slice_products`] for V vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn products<const V: usize>(slices: &Slices<'_>, x: &[Inputs], sums: &mut [Lanes]) {
    match slices.k {
        0..=32 => products_of::<V, 32>(slices, x, sums),
        _ => products_of::<V, MAX_SYMBOLS>(slices, x, sums),
    }
}

/// What values are looked up in: the first 32 in registers, or all of them in memory.
struct Values<'a> {
    few: [__m512; 2],
    all: &'a [f32; MAX_SYMBOLS],
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn products_of<const V: usize, const K: usize>(
    slices: &Slices<'_>,
    x: &[Inputs],
    sums: &mut [Lanes],
) {
    let (sixteens, _) = slices.codebook.as_chunks::<LANES>();
    let few = [load(&sixteens[0]), load(&sixteens[1])];
    let values = Values { few, all: slices.codebook };
    let zeros = [_mm512_setzero_ps(); V];
    let (mut blocks, mut steps) = (slices.blocks, slices.steps);
    for (&count, sums) in slices.counts.iter().zip(sums.chunks_exact_mut(V)) {
        let (mine, others) = blocks.split_at(count as usize);
        blocks = others;
        // Of a single vector two, in turn: a sum takes longer to add to than a step.
        let (mut even, mut odd) = (zeros, zeros);
        for &block in mine {
            let Block { steps: nsteps, number } = Block::unpack(block);
            let x: &[Inputs; V] = x[number * V..].first_chunk().expect("inputs of every block");
            let (mut low, mut high) = (zeros, zeros);
            for v in 0..V {
                let (halves, _) = x[v].as_chunks::<LANES>();
                (low[v], high[v]) = (load(&halves[0]), load(&halves[1]));
            }
            let (mine, others) = steps.split_at(nsteps);
            if V == 1 {
                let (pairs, last) = mine.as_chunks::<2>();
                for (pair, at) in pairs.iter().zip((AHEAD..).step_by(2)) {
                    prefetch(steps, at);
                    add::<V, K>(&pair[0], &values, (&low, &high), &mut even);
                    add::<V, K>(&pair[1], &values, (&low, &high), &mut odd);
                }
                for step in last {
                    add::<V, K>(step, &values, (&low, &high), &mut even);
                }
            } else {
                for (step, at) in mine.iter().zip(AHEAD..) {
                    prefetch(steps, at);
                    add::<V, K>(step, &values, (&low, &high), &mut even);
                }
            }
            steps = others;
        }
        for v in 0..V {
            let total = if V == 1 { _mm512_add_ps(even[v], odd[v]) } else { even[v] };
            // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
            unsafe { _mm512_storeu_ps(sums[v].as_mut_ptr(), total) };
        }
    }
}

/// Adds the products of a step to the sums of each vector.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn add<const V: usize, const K: usize>(
    step: &Step,
    values: &Values<'_>,
    (low, high): (&[__m512; V], &[__m512; V]),
    sums: &mut [__m512; V],
) {
    const { assert!(EMPTY == 1 << 15, "the sign of a slot") };
    // SAFETY: the reference covers 32 readable bytes; loadu needs no alignment.
    let slots = _mm512_cvtepi16_epi32(unsafe { _mm256_loadu_si256(step.as_ptr().cast()) });
    let kept = !_mm512_movepi32_mask(slots);
    let symbols = _mm512_srli_epi32::<COLUMN_BITS>(slots);
    let values = if K <= 32 {
        _mm512_permutex2var_ps(values.few[0], symbols, values.few[1])
    } else {
        let symbols = _mm512_and_si512(symbols, _mm512_set1_epi32(MAX_SYMBOLS as i32 - 1));
        // SAFETY: every index is under the codebook's length.
        unsafe { _mm512_i32gather_ps::<4>(symbols, values.all.as_ptr()) }
    };
    for v in 0..V {
        let inputs = _mm512_permutex2var_ps(low[v], slots, high[v]);
        sums[v] = _mm512_mask3_fmadd_ps(inputs, values, sums[v], kept);
    }
}
