//! Products of the elements of `coded` with a vector: of those that are decoded, and while they are.
//!
//! Decoding is bound by operations on registers, products by loads, so in one loop a step is multiplied
//! beside the decoding of the next, and neither positions nor ranks are stored:
//!
//! ```text
//!   positions are counted from the first one of their row, so they are columns
//!   a step inside a row, nothing of it dropped     sums += values of ranks · x at columns
//!   any other                                      products, then the sums of each of its rows
//! ```
//!
//! Where inputs are gathered by the instruction, that is done at once. Where loads are faster, they are
//! copied by scalar loads and stores, which take no port of registers, a step later, and multiplied another
//! step later, when all stores are done. A vector at 80 to 95 % pruned takes 0.7 to 0.76 of the time of
//! decoding, then multiplying (4096 × 4096, Xeon, either way of gathering).

use super::gathering::{at_columns, at_positions};
use super::tans::{Step, for_each_step};
use crate::simd::tans::{ElementCode, ElementCursor, RowProducts};
use std::arch::x86_64::*;

/// Values of ranks: in two registers where there are at most 32, else in memory.
struct Values {
    registers: [__m512; 2],
    all: [f32; 256],
}

impl Values {
    /// At most 256 values.
    #[target_feature(enable = "avx512f")]
    fn new(values: &[f32]) -> Self {
        let mut all = [0.0; 256];
        all[..values.len()].copy_from_slice(values);
        let (sixteens, _) = all.as_chunks::<16>();
        // SAFETY: each reference covers 64 readable bytes; loadu needs no alignment.
        let registers =
            [0, 1].map(|half: usize| unsafe { _mm512_loadu_ps(sixteens[half].as_ptr()) });
        Self { registers, all }
    }

    /// The values of ranks in the lowest byte of each word.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn of<const FEW: bool, const GATHERS: bool>(&self, words: __m512i) -> __m512 {
        if FEW {
            return _mm512_permutex2var_ps(self.registers[0], words, self.registers[1]);
        }
        let ranks = _mm512_and_si512(words, _mm512_set1_epi32(0xff));
        // SAFETY: there is a value for every byte.
        unsafe { at_columns::<GATHERS>(ranks, u16::MAX, &self.all) }
    }
}

/// A step on its way.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Waiting {
    values: [[f32; 16]; 4],
    /// Two columns a word.
    cols: [u64; 32],
    /// The bits of the inputs.
    x: [u32; 64],
}

/// Steps of which the last one waits for its inputs, and the one before to be multiplied.
struct Queue {
    steps: [Waiting; 4],
    /// Steps that have come in.
    taken: usize,
    /// How many of them are not multiplied yet.
    waiting: usize,
}

impl Queue {
    const EMPTY: Self = Self {
        steps: [Waiting { values: [[0.0; 16]; 4], cols: [0; 32], x: [0; 64] }; 4],
        taken: 0,
        waiting: 0,
    };

    /// Takes a step, looks up the inputs of the one before, and multiplies the one before that.
    ///
    /// # Safety
    /// Columns are inside x, which is the same until the queue is empty.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn put(
        &mut self,
        cols: [__m512i; 4],
        values: [__m512; 4],
        x: &[f32],
        sums: &mut [__m512; 4],
    ) {
        let step = &mut self.steps[self.taken % 4];
        for group in 0..4 {
            // SAFETY: both arrays have 64 writable bytes from there on; storeu needs no alignment.
            unsafe {
                _mm512_storeu_si512(step.cols[8 * group..][..8].as_mut_ptr().cast(), cols[group]);
                _mm512_storeu_ps(step.values[group].as_mut_ptr(), values[group]);
            }
        }
        self.taken += 1;
        self.waiting += 1;
        if self.waiting > 1 {
            // SAFETY: the caller says so.
            unsafe { self.look_up(2, x) };
        }
        if self.waiting > 2 {
            self.multiply(3, sums);
            self.waiting = 2;
        }
    }

    /// Multiplies all that wait.
    ///
    /// # Safety
    /// As [`Self::put`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&mut self, x: &[f32], sums: &mut [__m512; 4]) {
        if self.waiting > 0 {
            // SAFETY: the caller says so.
            unsafe { self.look_up(1, x) };
        }
        for step in (1..=self.waiting).rev() {
            self.multiply(step, sums);
        }
        self.waiting = 0;
    }

    /// Copies the inputs of the last step, or of one before.
    ///
    /// # Safety
    /// As [`Self::put`].
    #[inline]
    unsafe fn look_up(&mut self, step: usize, x: &[f32]) {
        let step = &mut self.steps[self.taken.wrapping_sub(step) % 4];
        let x = x.as_ptr().cast::<u32>();
        for (pair, cols) in step.x.as_chunks_mut::<2>().0.iter_mut().zip(step.cols) {
            for (part, to) in pair.iter_mut().enumerate() {
                let col = (cols >> (32 * part)) as u32 as usize;
                // SAFETY: the caller says that columns are inside x. Stores are volatile so that no compiler
                // makes vectors of them.
                unsafe { std::ptr::from_mut(to).write_volatile(*x.add(col)) };
            }
        }
    }

    /// Adds the products of the last step, or of one before.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn multiply(&self, step: usize, sums: &mut [__m512; 4]) {
        let step = &self.steps[self.taken.wrapping_sub(step) % 4];
        for (group, sums) in sums.iter_mut().enumerate() {
            // SAFETY: both arrays have 64 readable bytes from there on; loadu needs no alignment.
            let (values, x) = unsafe {
                let x = step.x[16 * group..][..16].as_ptr().cast();
                (_mm512_loadu_ps(step.values[group].as_ptr()), _mm512_loadu_ps(x))
            };
            *sums = _mm512_fmadd_ps(values, x, *sums);
        }
    }
}

/// [`super::super::Kernels::multiply_elements`], for what [`multiplier`] takes.
pub(super) type Multiply =
    unsafe fn(&ElementCode, &mut ElementCursor<'_>, usize, &mut RowProducts<'_>) -> usize;

/// What multiplies elements with at most 256 values, of gaps that are `GAPS` and ranks that fit into a byte.
pub(super) fn multiplier<const GAPS: u8>(values: &[f32], gathers: bool) -> Multiply {
    match (values.len() <= 32, gathers) {
        (true, true) => multiply_elements::<GAPS, true, true>,
        (true, false) => multiply_elements::<GAPS, true, false>,
        (false, true) => multiply_elements::<GAPS, false, true>,
        (false, false) => multiply_elements::<GAPS, false, false>,
    }
}

/// `FEW` says that there are at most 32 values.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
fn multiply_elements<const GAPS: u8, const FEW: bool, const GATHERS: bool>(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    nsteps: usize,
    products: &mut RowProducts<'_>,
) -> usize {
    let values = Values::new(products.values());
    let (x, ncols) = (products.x(), products.x().len() as u32);
    let words = |number: u32| _mm512_set1_epi32(number.cast_signed());
    let mut queue = Queue::EMPTY;
    let mut sums = [_mm512_setzero_ps(); 4];
    // From here on positions are counted from the row's first one.
    cursor.position = cursor.position.wrapping_sub(products.start());
    // One less than the next position.
    let mut before = cursor.position.wrapping_sub(1);
    let done = for_each_step::<GAPS, true>(code, cursor, nsteps, |step, base| {
        let Step { positions, byte_ranks, mut kept, .. } = step;
        let last = _mm512_cvtsi512_si32(*base).cast_unsigned();
        let first = std::mem::replace(&mut before, last).wrapping_add(1);
        let values = [
            values.of::<FEW, GATHERS>(byte_ranks),
            values.of::<FEW, GATHERS>(_mm512_srli_epi32::<8>(byte_ranks)),
            values.of::<FEW, GATHERS>(_mm512_srli_epi32::<16>(byte_ranks)),
            values.of::<FEW, GATHERS>(_mm512_srli_epi32::<24>(byte_ranks)),
        ];
        if first <= last && last < ncols && kept == u64::MAX {
            // SAFETY: a step moves on by less than 2³¹, so positions rise from the first to the last one,
            // which is under the length of x.
            unsafe {
                if !GATHERS {
                    queue.put(positions, values, x, &mut sums);
                    return true;
                }
                for group in 0..4 {
                    let x = at_columns::<GATHERS>(positions[group], u16::MAX, x);
                    sums[group] = _mm512_fmadd_ps(values[group], x, sums[group]);
                }
            }
            return true;
        }
        // SAFETY: all columns that were put in are inside x.
        unsafe { queue.finish(x, &mut sums) };
        let start = products.start();
        if last.wrapping_add(start) < start {
            return true;
        }
        if first.wrapping_add(start) < start {
            for (group, &positions) in positions.iter().enumerate() {
                let positions = _mm512_add_epi32(positions, words(start));
                let is_under = _mm512_cmplt_epu32_mask(positions, words(start));
                kept &= !(u64::from(is_under) << (16 * group));
            }
        }
        // The column of each element, and its row, counted from this one on.
        let (mut cols, mut rows) = (positions, [_mm512_setzero_si512(); 4]);
        let mut ended = 0;
        while ended + 1 < products.rows() && before >= ncols {
            for (cols, rows) in cols.iter_mut().zip(&mut rows) {
                let is_past = _mm512_cmpge_epu32_mask(*cols, words(ncols));
                *cols = _mm512_mask_sub_epi32(*cols, is_past, *cols, words(ncols));
                *rows = _mm512_mask_add_epi32(*rows, is_past, *rows, words(1));
            }
            before -= ncols;
            ended += 1;
        }
        *base = words(before);
        let (mut inputs, mut wanted) = ([_mm512_setzero_ps(); 4], [0; 4]);
        for group in 0..4 {
            let is_inside = _mm512_cmplt_epu32_mask(cols[group], words(ncols));
            wanted[group] = is_inside & (kept >> (16 * group)) as u16;
            // SAFETY: what is wanted is under the length of x.
            inputs[group] = unsafe { at_columns::<GATHERS>(cols[group], wanted[group], x) };
        }
        for row in 0..=ended {
            if row > 0 {
                products.add(sum_of(sums));
                products.end_row();
                sums = [_mm512_setzero_ps(); 4];
            }
            // As inside a row, so that a row has the same bits wherever rows begin.
            for group in 0..4 {
                let of_row =
                    _mm512_mask_cmpeq_epi32_mask(wanted[group], rows[group], words(row as u32));
                let (values, inputs) = (values[group], inputs[group]);
                sums[group] = _mm512_mask3_fmadd_ps(values, inputs, sums[group], of_row);
            }
        }
        // Else the last row has ended, too.
        before < ncols
    });
    // SAFETY: all columns that were put in are inside x.
    unsafe { queue.finish(x, &mut sums) };
    products.add(sum_of(sums));
    cursor.position = cursor.position.wrapping_add(products.start());
    done
}

#[target_feature(enable = "avx512f")]
fn sum_of([a, b, c, d]: [__m512; 4]) -> f32 {
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
}

/// Whether every number is `start` or more, and by less than `len`.
#[target_feature(enable = "avx512f")]
#[inline]
fn are_inside(numbers: &[u32], start: u32, len: usize) -> bool {
    let start = _mm512_set1_epi32(start as i32);
    let mut most = _mm512_setzero_si512();
    let (chunks, rest) = numbers.as_chunks::<16>();
    for chunk in chunks {
        // SAFETY: the reference covers 64 readable bytes; loadu needs no alignment.
        let numbers = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        most = _mm512_max_epu32(most, _mm512_sub_epi32(numbers, start));
    }
    let is_rest = ((1u32 << rest.len()) - 1) as u16;
    // SAFETY: the mask leaves what is loaded inside the slice.
    let numbers = unsafe { _mm512_mask_loadu_epi32(start, is_rest, rest.as_ptr().cast()) };
    most = _mm512_max_epu32(most, _mm512_sub_epi32(numbers, start));
    let last = _mm512_set1_epi32(len.saturating_sub(1).min(u32::MAX as usize) as i32);
    chunks.is_empty() && rest.is_empty() || len > 0 && _mm512_cmpgt_epu32_mask(most, last) == 0
}

/// Whether every rank is under `len`, at most 32.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn are_under(ranks: &[u16], len: usize) -> bool {
    let (chunks, rest) = ranks.as_chunks::<32>();
    let mut most = _mm512_setzero_si512();
    for chunk in chunks {
        // SAFETY: the reference covers 64 readable bytes; loadu needs no alignment.
        let ranks = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        most = _mm512_max_epu16(most, ranks);
    }
    let is_rest = ((1u64 << rest.len()) - 1) as u32;
    // SAFETY: the mask leaves what is loaded inside the slice.
    let last = unsafe { _mm512_maskz_loadu_epi16(is_rest, rest.as_ptr().cast()) };
    let limit = _mm512_set1_epi16(len as i16);
    ranks.is_empty() || _mm512_cmpge_epu16_mask(_mm512_max_epu16(most, last), limit) == 0
}

/// `rank_dot` for up to 32 values, which are looked up in registers, sixteen at once.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn rank_dot<const GATHERS: bool>(
    positions: &[u32],
    start: u32,
    ranks: &[u16],
    (values, len): (&[f32; 32], usize),
    x: &[f32],
) -> f32 {
    assert!(are_under(ranks, len), "rank_dot: a rank outside the values");
    assert!(are_inside(positions, start, x.len()), "rank_dot: a position outside x");
    // SAFETY: both halves are 16 readable numbers.
    let table =
        unsafe { [_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(16))] };
    let gather = |positions: &[u32; 16]| {
        // SAFETY: they are inside x, which was just checked.
        unsafe { at_positions::<GATHERS>(positions, start, x) }
    };
    let (position_chunks, position_rest) = positions.as_chunks::<16>();
    let (rank_chunks, rank_rest) = ranks.as_chunks::<16>();
    let mut sums = [_mm512_setzero_ps(); 2];
    for (positions, ranks) in position_chunks.iter().zip(rank_chunks) {
        // SAFETY: the array is 32 readable bytes.
        let ranks = unsafe { _mm256_loadu_si256(ranks.as_ptr().cast()) };
        let values = _mm512_permutex2var_ps(table[0], _mm512_cvtepu16_epi32(ranks), table[1]);
        sums = [sums[1], _mm512_fmadd_ps(values, gather(positions), sums[0])];
    }
    if !position_rest.is_empty() {
        let is_rest = ((1u32 << position_rest.len()) - 1) as u16;
        let mut positions = [start; 16];
        // SAFETY: the mask leaves what is loaded inside the slices; the array is 64 writable bytes.
        let ranks = unsafe {
            let rest = _mm512_loadu_si512(positions.as_ptr().cast());
            let rest = _mm512_mask_loadu_epi32(rest, is_rest, position_rest.as_ptr().cast());
            _mm512_storeu_si512(positions.as_mut_ptr().cast(), rest);
            _mm256_maskz_loadu_epi16(is_rest, rank_rest.as_ptr().cast())
        };
        let values = _mm512_permutex2var_ps(table[0], _mm512_cvtepu16_epi32(ranks), table[1]);
        sums[0] = _mm512_mask3_fmadd_ps(values, gather(&positions), sums[0], is_rest);
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]))
}
