//! The elements of `coded` on AVX2 with BMI2, and their product with a vector.
//!
//! A step is two vectors of 32 lanes. A look-up of 128 bytes is eight of 16: of the states less
//! 16·i, those under 16 keep their number and all others get the top bit, for which a shuffle gives
//! zero; the eight are put together by or.

use crate::bits::SET_BITS;
use crate::simd::tans::{ESCAPE, ElementCode, ElementCursor, Elements, TANS_LANES, Table};
use std::arch::x86_64::*;

/// Bytes that a step may look at from a stream's next byte on: 64 lanes of 7 bits, and a window.
const REACH: usize = 64;

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: the reference covers 32 readable bytes; loadu needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store(bytes: &mut [u8; 32], v: __m256i) {
    // SAFETY: the reference covers 32 writable bytes; storeu needs no alignment.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), v) };
}

#[target_feature(enable = "avx2")]
fn load_halves(bytes: &[u8; TANS_LANES]) -> [__m256i; 2] {
    let (halves, _) = bytes.as_chunks::<32>();
    [load(&halves[0]), load(&halves[1])]
}

#[target_feature(enable = "avx2")]
pub(super) fn store_halves(bytes: &mut [u8; TANS_LANES], v: [__m256i; 2]) {
    let (halves, _) = bytes.as_chunks_mut::<32>();
    for (half, v) in halves.iter_mut().zip(v) {
        store(half, v);
    }
}

/// The classes of states, and their steps.
#[target_feature(enable = "avx2")]
fn look_up(table: &Table, states: __m256i) -> (__m256i, __m256i) {
    let far = _mm256_set1_epi8(0x70);
    let (mut classes, mut steps) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    let sixteens =
        table.classes().as_chunks::<16>().0.iter().zip(table.steps().as_chunks::<16>().0);
    for (i, (class, step)) in (0_i8..).zip(sixteens) {
        // Saturating: 0x70 to 0x7f where the upper bits are i, else 0x80 and more.
        let near = _mm256_xor_si256(states, _mm256_set1_epi8(i << 4));
        let at = _mm256_adds_epu8(near, far);
        classes = _mm256_or_si256(classes, _mm256_shuffle_epi8(load_twice(class), at));
        steps = _mm256_or_si256(steps, _mm256_shuffle_epi8(load_twice(step), at));
    }
    (classes, steps)
}

/// Sixteen bytes, in either half.
#[target_feature(enable = "avx2")]
fn load_twice(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: the reference covers 16 readable bytes; loadu needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// The states after `steps`: bases, and the next bits of `bytes` from bit `at` on.
///
/// The stream, and who calls, are parameters so that the compiler sees one call of each and inlines it.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn next_states<const NARROW: bool, const CALLER: u8, const STREAM: u8>(
    steps: [__m256i; 2],
    bytes: &[u8],
    at: &mut usize,
) -> [__m256i; 2] {
    let minus_one = _mm256_set1_epi8(-1);
    let below = steps.map(|half| _mm256_add_epi8(half, minus_one));
    let mut masks = [0; TANS_LANES];
    store_halves(&mut masks, [0, 1].map(|half| _mm256_xor_si256(steps[half], below[half])));
    let (masks, _) = masks.as_chunks::<8>();
    let window = bytes[*at / 8..][..REACH].as_ptr();
    let mut bit = *at % 8;
    let mut deal = |i: usize| {
        let mask = u64::from_le_bytes(masks[i]);
        // SAFETY: before word i of 8, at most 7 + 56·i ≤ 399 bits of the window are used: masks come
        // from steps of 1 to 127, and so have at most 7 bits in each byte. 399 / 8 + 8 ≤ 64.
        let word = unsafe { window.add(bit / 8).cast::<u64>().read_unaligned() };
        let bits = _pdep_u64(word >> (bit % 8), mask) as i64;
        bit += mask.count_ones() as usize;
        bits
    };
    let (b0, b1, b2, b3) = (deal(0), deal(1), deal(2), deal(3));
    let low = _mm256_set_epi64x(b3, b2, b1, b0);
    let (b4, b5, b6, b7) = (deal(4), deal(5), deal(6), deal(7));
    let high = _mm256_set_epi64x(b7, b6, b5, b4);
    *at = *at / 8 * 8 + bit;
    let dealt = [low, high];
    [0, 1].map(|half| _mm256_or_si256(_mm256_and_si256(steps[half], below[half]), dealt[half]))
}

/// The bits of up to eight planes, as bytes.
#[target_feature(enable = "avx2")]
fn plain_bytes(planes: &[[u8; 8]]) -> [__m256i; 2] {
    let lanes = _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3,
        3, 3,
    );
    let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let mut plain = [_mm256_setzero_si256(); 2];
    for (bit, plane) in planes.iter().enumerate() {
        let plane = u64::from_le_bytes(*plane);
        let value = _mm256_set1_epi8((1u32 << bit) as i8);
        for (half, plain) in plain.iter_mut().enumerate() {
            let word = _mm256_set1_epi32((plane >> (32 * half)) as i32);
            let word = _mm256_and_si256(_mm256_shuffle_epi8(word, lanes), bits);
            let is_set = _mm256_cmpeq_epi8(word, bits);
            *plain = _mm256_or_si256(*plain, _mm256_and_si256(is_set, value));
        }
    }
    plain
}

/// Group `b` of four of a step's bytes: its 16 bytes as 32-bit numbers, in the order of elements.
#[target_feature(enable = "avx2")]
fn group(bytes: [__m256i; 2], b: usize) -> [__m256i; 2] {
    let shift = _mm_cvtsi32_si128(8 * b as i32);
    bytes.map(|half| _mm256_and_si256(_mm256_srl_epi32(half, shift), _mm256_set1_epi32(0xff)))
}

/// Each 32-bit number becomes the sum of those up to it.
#[target_feature(enable = "avx2")]
fn sums(v: __m256i) -> __m256i {
    let v = _mm256_add_epi32(v, _mm256_slli_si256::<4>(v));
    let v = _mm256_add_epi32(v, _mm256_slli_si256::<8>(v));
    // The last of the low half, in every place of the high half.
    let low = _mm256_permute2x128_si256::<0x08>(v, v);
    _mm256_add_epi32(v, _mm256_shuffle_epi32::<0xff>(low))
}

/// As [`sums`], of the two 16-bit numbers of each word.
#[target_feature(enable = "avx2")]
fn sums_16(v: __m256i) -> __m256i {
    let v = _mm256_add_epi16(v, _mm256_slli_si256::<4>(v));
    let v = _mm256_add_epi16(v, _mm256_slli_si256::<8>(v));
    let low = _mm256_permute2x128_si256::<0x08>(v, v);
    _mm256_add_epi16(v, _mm256_shuffle_epi32::<0xff>(low))
}

/// The sums of four groups of gaps up to each element, and of each whole group, for gaps of which
/// 16 stay under 2¹⁶: two groups are summed at once.
#[target_feature(enable = "avx2")]
fn narrow_groups(
    classes: [__m256i; 2],
    plain: [__m256i; 2],
    nbits: __m128i,
) -> ([[__m256i; 2]; 4], [__m256i; 4]) {
    let last = _mm256_set1_epi32(7);
    let low_byte = _mm256_set1_epi16(0xff);
    let gaps =
        |class: __m256i, plain: __m256i| _mm256_add_epi16(_mm256_sll_epi16(class, nbits), plain);
    let even = [0, 1].map(|half| {
        let low = |v: __m256i| _mm256_and_si256(v, low_byte);
        sums_16(gaps(low(classes[half]), low(plain[half])))
    });
    let odd = [0, 1].map(|half| {
        let high = |v: __m256i| _mm256_srli_epi16::<8>(v);
        sums_16(gaps(high(classes[half]), high(plain[half])))
    });
    let joined = |v: [__m256i; 2]| {
        let second = _mm256_add_epi16(v[1], _mm256_permutevar8x32_epi32(v[0], last));
        ([v[0], second], _mm256_permutevar8x32_epi32(second, last))
    };
    let ((even, even_all), (odd, odd_all)) = (joined(even), joined(odd));
    let low = |v: __m256i| _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
    let high = |v: __m256i| _mm256_srli_epi32::<16>(v);
    (
        [even.map(low), odd.map(low), even.map(high), odd.map(high)],
        [low(even_all), low(odd_all), high(even_all), high(odd_all)],
    )
}

/// The group's 16-bit ranks, in the order of elements.
#[target_feature(enable = "avx2")]
fn rank_group(
    classes: [__m256i; 2],
    low: [__m256i; 2],
    high: [__m256i; 2],
    b: usize,
    nbits: __m128i,
) -> __m256i {
    let (classes, low, high) = (group(classes, b), group(low, b), group(high, b));
    let halves = [0, 1].map(|half| {
        let plain = _mm256_or_si256(low[half], _mm256_slli_epi32::<8>(high[half]));
        _mm256_or_si256(_mm256_sll_epi32(classes[half], nbits), plain)
    });
    _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(halves[0], halves[1]))
}

/// Appends a whole step.
///
/// # Panics
/// When there is no room for it.
#[target_feature(enable = "avx2")]
#[inline]
fn store_all(out: &mut Elements, positions: [[__m256i; 2]; 4], ranks: [__m256i; 4]) {
    let to_positions: &mut [u32; TANS_LANES] =
        out.positions[out.len..].first_chunk_mut().expect("room was checked");
    let to_ranks: &mut [u16; TANS_LANES] =
        out.ranks[out.len..].first_chunk_mut().expect("room was checked");
    for b in 0..4 {
        // SAFETY: groups 0 to 3 of 16 numbers are in the arrays of 64.
        unsafe {
            let to = to_positions.as_mut_ptr().add(16 * b);
            _mm256_storeu_si256(to.cast(), positions[b][0]);
            _mm256_storeu_si256(to.add(8).cast(), positions[b][1]);
            _mm256_storeu_si256(to_ranks.as_mut_ptr().add(16 * b).cast(), ranks[b]);
        }
    }
    out.len += TANS_LANES;
}

/// Appends those of eight elements whose bits are set in `kept`.
///
/// # Panics
/// When there is no room for all of them.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
fn append(out: &mut Elements, positions: __m256i, ranks: __m128i, kept: u8) {
    let (to_positions, to_ranks) = (&mut out.positions[out.len..], &mut out.ranks[out.len..]);
    out.len += store_kept((to_positions, to_ranks), positions, ranks, kept);
}

/// Stores those of eight pairs of numbers whose bits are set in `kept`, and gives how many; what is
/// beyond them in the first eight places may be anything.
///
/// # Panics
/// When there is no room for all of them.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
pub(super) fn store_kept(
    (to_words, to_shorts): (&mut [u32], &mut [u16]),
    words: __m256i,
    shorts: __m128i,
    kept: u8,
) -> usize {
    let to_words: &mut [u32; 8] = to_words.first_chunk_mut().expect("room for 8");
    let to_shorts: &mut [u16; 8] = to_shorts.first_chunk_mut().expect("room for 8");
    // SAFETY: the table's row is 32 readable bytes, and the references cover 32 and 16 writable
    // ones; no alignment is needed.
    unsafe {
        let places = _mm256_loadu_si256(SET_BITS[usize::from(kept)].as_ptr().cast());
        let found = _mm256_permutevar8x32_epi32(words, places);
        _mm256_storeu_si256(to_words.as_mut_ptr().cast(), found);
        // Number i of 16 bits is bytes 2i and 2i + 1.
        let (low, high) = (_mm256_castsi256_si128(places), _mm256_extracti128_si256::<1>(places));
        let pairs = _mm_mullo_epi16(_mm_packus_epi32(low, high), _mm_set1_epi16(0x0202));
        let order = _mm_add_epi16(pairs, _mm_set1_epi16(0x0100));
        _mm_storeu_si128(to_shorts.as_mut_ptr().cast(), _mm_shuffle_epi8(shorts, order));
    }
    kept.count_ones() as usize
}

/// A step, decoded.
pub(super) struct Step {
    /// In four groups of 16 elements; rising but for what is not kept.
    pub(super) positions: [[__m256i; 2]; 4],
    /// Of each lane, where they fit into a byte.
    pub(super) byte_ranks: [__m256i; 2],
    /// In the order of elements, 16 bits each.
    ranks: [__m256i; 4],
    /// The elements that are kept.
    pub(super) kept: u64,
}

/// Decodes up to `nsteps` whole steps, and gives how many: fewer where a stream ends before a step's
/// reach.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
pub(super) fn decode_elements<const NARROW: bool>(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    nsteps: usize,
    out: &mut Elements,
) -> usize {
    out.check_room(nsteps);
    for_each_step::<NARROW, 0>(code, cursor, nsteps, |step, _| {
        let Step { positions, ranks, kept, .. } = step;
        if kept == u64::MAX {
            store_all(out, positions, ranks);
            return true;
        }
        for (b, (positions, ranks)) in positions.into_iter().zip(ranks).enumerate() {
            let ranks = [_mm256_castsi256_si128(ranks), _mm256_extracti128_si256::<1>(ranks)];
            for (half, (positions, ranks)) in positions.into_iter().zip(ranks).enumerate() {
                append(out, positions, ranks, (kept >> (16 * b + 8 * half)) as u8);
            }
        }
        true
    })
}

/// Hands on up to `nsteps` whole steps as long as `take` gives true, and gives how many: fewer, too,
/// where a stream ends before a step's reach. `take` gets, beside a step, one less than the position after
/// it, in every lane, and may move that, and so all that follows. `CALLER` is another one for each caller.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
pub(super) fn for_each_step<const NARROW: bool, const CALLER: u8>(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    nsteps: usize,
    mut take: impl FnMut(Step, &mut __m256i) -> bool,
) -> usize {
    let (gap_low, rank_low) = (code.gap_low_bits as usize, code.rank_low_bits as usize);
    let (gap_table, rank_table) = (&code.gaps, &code.ranks);
    let mut gap_states = load_halves(&cursor.gaps.states);
    let mut rank_states = load_halves(&cursor.ranks.states);
    let (mut gap_at, mut rank_at) = (cursor.gaps.at, cursor.ranks.at);
    let (gap_planes, _) = cursor.gap_planes.as_chunks::<8>();
    let (rank_planes, _) = cursor.rank_planes.as_chunks::<8>();
    let zero = [_mm256_setzero_si256(); 2];
    let gap_shift = _mm_cvtsi32_si128(gap_low as i32);
    let rank_shift = _mm_cvtsi32_si128(rank_low as i32);
    let marks = _mm256_set1_epi8(ESCAPE as i8);
    let last = _mm256_set1_epi32(7);
    // One less than the next position: a kept element is at the sum of gaps and of the elements up
    // to itself, less one.
    let mut base = _mm256_set1_epi32(cursor.position.wrapping_sub(1) as i32);
    let mut done = 0;
    while done < nsteps {
        let fits = |has: bool, bytes: &[u8], at: usize| !has || at / 8 + REACH <= bytes.len();
        if !fits(gap_table.is_some(), cursor.gaps.bytes, gap_at)
            || !fits(rank_table.is_some(), cursor.ranks.bytes, rank_at)
        {
            break;
        }
        let Some(gap_plain) = gap_planes.get(done * gap_low..(done + 1) * gap_low) else { break };
        let Some(rank_plain) = rank_planes.get(done * rank_low..(done + 1) * rank_low) else {
            break;
        };
        let (mut gap_classes, mut rank_classes) = (zero, zero);
        if let Some(table) = gap_table {
            let seen = gap_states.map(|states| look_up(table, states));
            gap_classes = seen.map(|(classes, _)| classes);
            gap_states = next_states::<NARROW, CALLER, 0>(
                seen.map(|seen| seen.1),
                cursor.gaps.bytes,
                &mut gap_at,
            );
        }
        if let Some(table) = rank_table {
            let seen = rank_states.map(|states| look_up(table, states));
            rank_classes = seen.map(|(classes, _)| classes);
            rank_states = next_states::<NARROW, CALLER, 1>(
                seen.map(|seen| seen.1),
                cursor.ranks.bytes,
                &mut rank_at,
            );
        }

        let (low, high) = rank_plain.split_at(rank_low.min(8));
        let (low, high) = (plain_bytes(low), plain_bytes(high));
        let ranks = [0, 1, 2, 3].map(|b| rank_group(rank_classes, low, high, b, rank_shift));
        let byte_ranks = [0, 1].map(|half| {
            _mm256_or_si256(_mm256_sll_epi16(rank_classes[half], rank_shift), low[half])
        });

        let escapes = gap_classes.map(|half| _mm256_movemask_epi8(half) as u32);
        let escapes = u64::from(escapes[0]) | u64::from(escapes[1]) << 32;
        // 1 for each element that is kept, 0 for an escape.
        let moves = gap_classes.map(|half| {
            let is_kept = _mm256_cmpeq_epi8(_mm256_and_si256(half, marks), zero[0]);
            _mm256_and_si256(is_kept, _mm256_set1_epi8(1))
        });
        let classes = gap_classes.map(|half| _mm256_andnot_si256(marks, half));
        let (low, high) = gap_plain.split_at(gap_low.min(8));
        let low = plain_bytes(low);
        let mut positions = [zero; 4];
        if NARROW {
            // Under eight plain bits, so 1 more fits.
            let plain = [0, 1].map(|half| _mm256_add_epi8(low[half], moves[half]));
            let (moved, totals) = narrow_groups(classes, plain, gap_shift);
            for b in 0..4 {
                positions[b] = moved[b].map(|moved| _mm256_add_epi32(base, moved));
                base = _mm256_add_epi32(base, totals[b]);
            }
        } else {
            let high = plain_bytes(high);
            for (b, positions) in positions.iter_mut().enumerate() {
                let (classes, moves) = (group(classes, b), group(moves, b));
                let (low, high) = (group(low, b), group(high, b));
                for half in 0..2 {
                    let gaps = _mm256_sll_epi32(classes[half], gap_shift);
                    let gaps = _mm256_add_epi32(gaps, _mm256_add_epi32(moves[half], low[half]));
                    let moved = sums(_mm256_add_epi32(gaps, _mm256_slli_epi32::<8>(high[half])));
                    positions[half] = _mm256_add_epi32(base, moved);
                    base = _mm256_add_epi32(base, _mm256_permutevar8x32_epi32(moved, last));
                }
            }
        }

        let of = |b: u32| _pext_u64(escapes, 0x1111_1111_1111_1111 << b) << (16 * b);
        let mut kept = !(of(0) | of(1) | of(2) | of(3));
        if let Some(pruned) = code.pruned {
            let pruned = _mm256_set1_epi16(pruned as i16);
            for (b, &ranks) in ranks.iter().enumerate() {
                let is_pruned = _mm256_movemask_epi8(_mm256_cmpeq_epi16(ranks, pruned)) as u32;
                kept &= !(u64::from(_pext_u32(is_pruned, 0x5555_5555)) << (16 * b));
            }
        }
        done += 1;
        if !take(Step { positions, byte_ranks, ranks, kept }, &mut base) {
            break;
        }
    }
    store_halves(&mut cursor.gaps.states, gap_states);
    store_halves(&mut cursor.ranks.states, rank_states);
    (cursor.gaps.at, cursor.ranks.at) = (gap_at, rank_at);
    cursor.gap_planes = &cursor.gap_planes[8 * gap_low * done..];
    cursor.rank_planes = &cursor.rank_planes[8 * rank_low * done..];
    cursor.position = (_mm256_cvtsi256_si32(base) as u32).wrapping_add(1);
    done
}

/// True when no position is under `start` or `len` or more over it.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn are_inside(positions: &[u32], start: u32, len: usize) -> bool {
    // Plain loops: closures of folds are not compiled for the instruction set.
    let (mut least, mut most) = (u32::MAX, 0);
    for &position in positions {
        least = position.min(least);
        most = position.max(most);
    }
    positions.is_empty() || least >= start && ((most - start) as usize) < len
}

/// True when every rank is under `len`.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn are_under(ranks: &[u16], len: usize) -> bool {
    let mut most = 0;
    for &rank in ranks {
        most = rank.max(most);
    }
    ranks.is_empty() || usize::from(most) < len
}

/// Scalar multiply–adds, whose operand comes straight from x: two look-ups a weight leave nothing
/// for wide registers to do. Whole words are loaded and cut up: loads are what binds here.
#[target_feature(enable = "avx2,fma")]
pub(in crate::simd) fn rank_dot(
    positions: &[u32],
    start: u32,
    ranks: &[u16],
    values: &[f32],
    x: &[f32],
) -> f32 {
    assert!(are_under(ranks, values.len()), "rank_dot: a rank outside the values");
    assert!(are_inside(positions, start, x.len()), "rank_dot: a position outside x");
    let first = x.as_ptr().wrapping_sub(start as usize);
    let term = |position: u32, rank: u16, sum: f32| {
        // SAFETY: no rank is outside the values, and start ≤ position < start + x.len(): both were
        // just checked. From `first`, position elements on is x at position − start.
        let (value, x) = unsafe {
            (*values.get_unchecked(usize::from(rank)), *first.wrapping_add(position as usize))
        };
        value.mul_add(x, sum)
    };
    let (position_chunks, position_rest) = positions.as_chunks::<8>();
    let (rank_chunks, rank_rest) = ranks.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (positions, ranks) in position_chunks.iter().zip(rank_chunks) {
        let pairs: [u64; 4] = bytemuck::cast(*positions);
        let fours: [u64; 2] = bytemuck::cast(*ranks);
        for i in 0..8 {
            let position = (pairs[i / 2] >> (32 * (i % 2))) as u32;
            sums[i] = term(position, (fours[i / 4] >> (16 * (i % 4))) as u16, sums[i]);
        }
    }
    for (i, (&position, &rank)) in position_rest.iter().zip(rank_rest).enumerate() {
        sums[i] = term(position, rank, sums[i]);
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}
