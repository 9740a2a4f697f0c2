//! Products of the elements of `coded` with a vector, while they are decoded.
//!
//! As on AVX-512 (`avx512/elements.rs`): decoding takes registers, and beside it inputs are copied by scalar
//! loads and stores.
//!
//! ```text
//!   step t        decode; its columns and ranks wait
//!   step t − 1    copy its inputs, each to the place where the value of its rank comes to lie
//!   step t − 2    look up its values, multiply
//!   place of lane 32h + 16i + 4q + l     32h + 8q + 4i + l: interleaving bytes to values keeps to halves
//! ```
//!
//! Columns count from the first position of a row. A step may end one row and begin the next; one that ends
//! more is multiplied element by element.

use super::symbols::{Planes, load_bytes};
use super::tans::{Step, for_each_step, store_halves};
use super::{horizontal_sum, load};
use crate::simd::tans::{ElementCode, ElementCursor, RowProducts, TANS_LANES, lane};
use std::arch::x86_64::*;

/// Most columns, so that those of two rows compare as signed numbers.
pub(super) const MAX_COLUMNS: usize = 1 << 29;

/// The place of each lane.
const PLACES: [usize; TANS_LANES] = {
    let mut places = [0; TANS_LANES];
    let mut lane = 0;
    while lane < TANS_LANES {
        places[lane] = lane / 32 * 32 + lane % 16 / 4 * 8 + lane % 32 / 16 * 4 + lane % 4;
        lane += 1;
    }
    places
};

/// The element of each place.
const ELEMENTS: [[i32; 8]; 8] = {
    let mut elements = [[0; 8]; 8];
    let mut element = 0;
    while element < TANS_LANES {
        let place = PLACES[lane(element)];
        elements[place / 8][place % 8] = element as i32;
        element += 1;
    }
    elements
};

/// A step on its way.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Waiting {
    /// Of each element, two a word.
    cols: [u64; 32],
    /// Of each lane.
    ranks: [[u8; 32]; 2],
    /// The bits of inputs, and of values where shuffles do not look them up, by places.
    x: [[u32; 8]; 8],
    values: [[u32; 8]; 8],
    rows: StepRows,
}

/// The rows of a step.
#[derive(Clone, Copy)]
struct StepRows {
    /// How many elements there are before the next row begins.
    first: usize,
    /// Whether they are of a row that is wanted.
    is_wanted: bool,
    /// The elements that are kept.
    kept: u64,
}

impl StepRows {
    /// All is of the row.
    const ONE: Self = Self { first: TANS_LANES, is_wanted: true, kept: u64::MAX };
}

/// Steps of which the last one waits for its inputs, and the one before to be multiplied.
struct Queue<'a> {
    steps: [Waiting; 4],
    /// Steps that have come in.
    taken: usize,
    /// How many of them are not multiplied yet.
    waiting: usize,
    planes: Planes,
    values: [f32; 256],
    x: &'a [f32],
    sums: [__m256; 4],
}

impl<'a> Queue<'a> {
    #[target_feature(enable = "avx2")]
    fn new(values: &[f32], x: &'a [f32]) -> Self {
        let nothing = Waiting {
            cols: [0; 32],
            ranks: [[0; 32]; 2],
            x: [[0; 8]; 8],
            values: [[0; 8]; 8],
            rows: StepRows::ONE,
        };
        let mut all = [0.0; 256];
        all[..values.len()].copy_from_slice(values);
        Self {
            steps: [nothing; 4],
            taken: 0,
            waiting: 0,
            planes: Planes::new(&all),
            values: all,
            x,
            sums: [_mm256_setzero_ps(); 4],
        }
    }

    /// Takes a step, looks up the inputs of the one before, and multiplies the one before that.
    ///
    /// # Safety
    /// Columns are inside x.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn put<const FEW: bool>(
        &mut self,
        cols: [[__m256i; 2]; 4],
        ranks: [__m256i; 2],
        rows: StepRows,
        products: &mut RowProducts<'_>,
    ) {
        let step = &mut self.steps[self.taken % 4];
        let (words, _) = step.cols.as_chunks_mut::<4>();
        for (to, &from) in words.iter_mut().zip(cols.as_flattened()) {
            // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), from) };
        }
        for (to, from) in step.ranks.iter_mut().zip(ranks) {
            // SAFETY: as above.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), from) };
        }
        step.rows = rows;
        self.taken += 1;
        self.waiting += 1;
        if self.waiting > 1 {
            // SAFETY: the caller says so.
            unsafe { self.look_up::<FEW>(2) };
        }
        if self.waiting > 2 {
            self.multiply::<FEW>(3, products);
            self.waiting = 2;
        }
    }

    /// Multiplies all that wait, and adds it to the row.
    ///
    /// # Safety
    /// As [`Self::put`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn finish<const FEW: bool>(&mut self, products: &mut RowProducts<'_>) {
        if self.waiting > 0 {
            // SAFETY: the caller says so.
            unsafe { self.look_up::<FEW>(1) };
        }
        for step in (1..=self.waiting).rev() {
            self.multiply::<FEW>(step, products);
        }
        self.waiting = 0;
        self.add_sums(products);
    }

    #[target_feature(enable = "avx2,fma")]
    fn add_sums(&mut self, products: &mut RowProducts<'_>) {
        let [a, b, c, d] = self.sums;
        products.add(horizontal_sum(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d))));
        self.sums = [_mm256_setzero_ps(); 4];
    }

    /// Copies the inputs of the last step, or of one before.
    ///
    /// # Safety
    /// As [`Self::put`].
    #[inline]
    unsafe fn look_up<const FEW: bool>(&mut self, step: usize) {
        let step = &mut self.steps[self.taken.wrapping_sub(step) % 4];
        let from = self.x.as_ptr().cast::<u32>();
        let to = step.x.as_mut_ptr().cast::<u32>();
        // Elements 16b + 8h and seven more are in lanes 32h + b and every fourth after.
        let (eights, _) = step.cols.as_chunks::<4>();
        for (eight, cols) in eights.iter().enumerate() {
            let (b, h) = (eight / 2, eight % 2);
            // SAFETY: places 32h + b to 32h + b + 28 of 64.
            let to = unsafe { to.add(32 * h + b) };
            for (pair, &cols) in cols.iter().enumerate() {
                for part in 0..2 {
                    let col = (cols >> (32 * part)) as u32 as usize;
                    // SAFETY: the caller says that columns are inside x, and the place of lane 4·(2·pair +
                    // part) is at most 28. Stores are volatile so that no compiler makes vectors of them.
                    unsafe {
                        to.add(PLACES[4 * (2 * pair + part)]).write_volatile(*from.add(col));
                    }
                }
            }
        }
        if !FEW {
            let to = step.values.as_flattened_mut();
            for (&rank, place) in step.ranks.as_flattened().iter().zip(PLACES) {
                let value = self.values[usize::from(rank)].to_bits();
                // SAFETY: a reference may be written to. Volatile as above.
                unsafe { std::ptr::from_mut(&mut to[place]).write_volatile(value) };
            }
        }
    }

    /// Adds the products of the last step, or of one before; ends a row where it does.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn multiply<const FEW: bool>(&mut self, step: usize, products: &mut RowProducts<'_>) {
        let step = &self.steps[self.taken.wrapping_sub(step) % 4];
        let mut values = [_mm256_setzero_ps(); 8];
        let (halves, _) = values.as_chunks_mut::<4>();
        let (stored, _) = step.values.as_chunks::<4>();
        for ((values, ranks), stored) in halves.iter_mut().zip(&step.ranks).zip(stored) {
            if FEW {
                *values = self.planes.look_up_fours(load_bytes(ranks));
                continue;
            }
            for (values, stored) in values.iter_mut().zip(stored) {
                *values = load(bytemuck::cast_ref(stored));
            }
        }
        let StepRows { first, is_wanted, kept } = step.rows;
        if first == TANS_LANES && kept == u64::MAX {
            for (part, (&values, x)) in values.iter().zip(&step.x).enumerate() {
                let sum = &mut self.sums[part % 4];
                *sum = _mm256_fmadd_ps(values, load(bytemuck::cast_ref(x)), *sum);
            }
            return;
        }
        let (low, high) = (_mm256_set1_epi32(kept as i32), _mm256_set1_epi32((kept >> 32) as i32));
        let mut next = [_mm256_setzero_ps(); 4];
        for (part, (&values, (x, elements))) in
            values.iter().zip(step.x.iter().zip(&ELEMENTS)).enumerate()
        {
            let x = load(bytemuck::cast_ref(x));
            // SAFETY: the reference covers 32 readable bytes; loadu needs no alignment.
            let elements = unsafe { _mm256_loadu_si256(elements.as_ptr().cast()) };
            // Their bits, moved to the signs; what is moved further, or the other way, is zero.
            let kept = _mm256_or_si256(
                _mm256_sllv_epi32(low, _mm256_sub_epi32(_mm256_set1_epi32(31), elements)),
                _mm256_sllv_epi32(high, _mm256_sub_epi32(_mm256_set1_epi32(63), elements)),
            );
            let is_first = _mm256_cmpgt_epi32(_mm256_set1_epi32(first as i32), elements);
            let of_first = _mm256_castsi256_ps(_mm256_and_si256(kept, is_first));
            let of_next = _mm256_castsi256_ps(_mm256_andnot_si256(is_first, kept));
            let sum = &mut self.sums[part % 4];
            *sum = _mm256_blendv_ps(*sum, _mm256_fmadd_ps(values, x, *sum), of_first);
            let sum = &mut next[part % 4];
            *sum = _mm256_blendv_ps(*sum, _mm256_fmadd_ps(values, x, *sum), of_next);
        }
        if first == TANS_LANES {
            return;
        }
        if is_wanted {
            self.add_sums(products);
            products.end_row();
        }
        self.sums = next;
    }
}

/// [`super::super::Kernels::multiply_elements`] for at most 256 values, gaps that are narrow or not, and
/// ranks that fit into a byte; `FEW` says that there are at most 32 values; `CALLER` is 1 or 2, by that.
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
pub(super) fn multiply_elements<const NARROW: bool, const FEW: bool, const CALLER: u8>(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    nsteps: usize,
    products: &mut RowProducts<'_>,
) -> usize {
    let (x, ncols) = (products.x(), products.x().len() as u32);
    let mut queue = Queue::new(products.values(), x);
    let words = |number: u32| _mm256_set1_epi32(number.cast_signed());
    // From here on positions are counted from the first one of the row that comes in.
    let mut start = products.start();
    let mut rows = products.rows();
    cursor.position = cursor.position.wrapping_sub(start);
    // One less than the next position.
    let mut before = cursor.position.wrapping_sub(1);
    let done = for_each_step::<NARROW, CALLER>(code, cursor, nsteps, |step, base| {
        let Step { mut positions, byte_ranks, kept, .. } = step;
        let mut last = _mm256_cvtsi256_si32(*base).cast_unsigned();
        let mut first = std::mem::replace(&mut before, last).wrapping_add(1);
        let mut step_rows = StepRows::ONE;
        let mut goes_on = true;
        if !(first <= last && last < ncols && kept == u64::MAX) {
            let (from, to) = (first.wrapping_add(start), last.wrapping_add(start));
            if to < start {
                return true;
            }
            if first == ncols {
                // A row ended with the step before.
                // SAFETY: all columns that were put in are inside x.
                unsafe { queue.finish::<FEW>(products) };
                rows -= 1;
                if rows == 0 {
                    return false;
                }
                products.end_row();
                for position in positions.as_flattened_mut() {
                    *position = _mm256_sub_epi32(*position, words(ncols));
                }
                (start, first, last) = (start + ncols, 0, last.wrapping_sub(ncols));
                before = last;
                *base = words(before);
            }
            // All rows begin at multiples of their columns, those before the first wanted one, too, so that
            // a row has the same bits wherever rows begin.
            let is_before = from < start;
            let ends = to / ncols - from.min(to) / ncols;
            if ends > 1 || !is_before && first > ncols {
                // SAFETY: all columns that were put in are inside x.
                unsafe { queue.finish::<FEW>(products) };
                let step = (positions, byte_ranks, kept);
                let Some(ended) = add_rows(&queue, step, (start, last), products) else {
                    return false;
                };
                rows = products.rows();
                (start, before) = (start + ended, last - ended);
                *base = words(before);
                return true;
            }
            // The next row's columns begin at `bound`.
            let bound = if is_before { 0 } else { ncols };
            step_rows = StepRows { first: TANS_LANES, is_wanted: !is_before, kept };
            for cols in positions.as_flattened_mut() {
                let is_next = _mm256_cmpgt_epi32(*cols, words(bound.wrapping_sub(1)));
                let count = _mm256_movemask_ps(_mm256_castsi256_ps(is_next)).count_ones();
                step_rows.first -= count as usize;
                *cols = _mm256_sub_epi32(*cols, _mm256_and_si256(words(bound), is_next));
                // What is not wanted may be anywhere.
                *cols = _mm256_min_epu32(*cols, words(ncols - 1));
            }
            if last >= ncols {
                // At the least this row's end was passed by what is not kept.
                step_rows.first = step_rows.first.min(TANS_LANES - 1);
                rows -= 1;
                goes_on = rows > 0;
                if goes_on {
                    (start, before) = (start + ncols, last - ncols);
                    *base = words(before);
                }
            }
        }
        // SAFETY: where all is kept and of this row, positions rise from the first to the last one, by less
        // than 2³¹, to less than the length of x; all others were made less.
        unsafe { queue.put::<FEW>(positions, byte_ranks, step_rows, products) };
        goes_on
    });
    // SAFETY: all columns that were put in are inside x.
    unsafe { queue.finish::<FEW>(products) };
    cursor.position = cursor.position.wrapping_add(start);
    done
}

/// Adds the elements of a step of many rows, one by one: positions, ranks, and which are kept. Positions
/// are counted from `start` on, and one less than the next is `last`. Gives how many positions the rows
/// have that end; none where the last row does.
#[target_feature(enable = "avx2,fma")]
fn add_rows(
    queue: &Queue<'_>,
    (groups, byte_ranks, kept): ([[__m256i; 2]; 4], [__m256i; 2], u64),
    (start, last): (u32, u32),
    products: &mut RowProducts<'_>,
) -> Option<u32> {
    let ncols = queue.x.len() as u32;
    let mut positions = [0; TANS_LANES];
    let (to, _) = positions.as_chunks_mut::<8>();
    for (to, &from) in to.iter_mut().zip(groups.as_flattened()) {
        // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), from) };
    }
    let mut ranks = [0; TANS_LANES];
    store_halves(&mut ranks, byte_ranks);
    let (mut ended, mut sum) = (0, 0.0);
    // The end of the step ends rows, too.
    let kept = (0..TANS_LANES).filter(|element| kept >> element & 1 == 1);
    let kept = kept.map(|element| (positions[element], Some(ranks[lane(element)])));
    for (position, rank) in kept.chain([(last, None)]) {
        if position.wrapping_add(start) < start {
            continue;
        }
        while position - ended >= ncols {
            products.add(std::mem::take(&mut sum));
            if products.rows() == 1 {
                return None;
            }
            products.end_row();
            ended += ncols;
        }
        if let Some(rank) = rank {
            let value = queue.values[usize::from(rank)];
            sum = value.mul_add(queue.x[(position - ended) as usize], sum);
        }
    }
    products.add(sum);
    Some(ended)
}
