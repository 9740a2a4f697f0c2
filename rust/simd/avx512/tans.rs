//! The elements of `coded` on AVX-512: a step of 64 lanes in one register.
//!
//! Positions are sums over lanes. A vector holds four groups of 16 elements, one in each byte of
//! its words; as pairs of 16-bit numbers, two groups are summed at once as long as 16 gaps stay
//! under 2¹⁶, else each group is summed in 32 bits. Where a gap fits into a byte, its class is
//! looked up shifted and with the 1 of a kept element, and what is left is to add the plain bits.
//!
//! Bits are dealt to all lanes at once. The table says how many each takes; where they are is a sum
//! of bytes over the lanes before, in the word and in the words before it. One permutation moves
//! every word's bits to the word, one shift each lane's to the lane. Dealt word by word, by `pdep` on
//! scalar registers, they took a third more time (VGG19's layers, one Zen 4 core).
//!
//! The escape is marked by the top bit of a step: mask and state do not see it.

use crate::simd::tans::{ESCAPE, ElementCode, ElementCursor, Elements, STATES, TANS_LANES, Table};
use std::arch::x86_64::*;

/// Bytes that a step may look at from a stream's next byte on: 64 lanes of 7 bits, and a window.
const REACH: usize = 64;
/// A register's bytes, each from its place.
macro_rules! register {
    (|$at:ident| $byte:expr) => {{
        let mut bytes = [0; 64];
        let mut $at = 0;
        while $at < 64 {
            bytes[$at] = $byte as u8;
            $at += 1;
        }
        bytes
    }};
}

/// The bytes of a step in the order of elements.
const SEQUENCE: [u8; 64] = register!(|element| element % 16 * 4 + element / 16);
/// The first byte of each word, for all words.
const FIRST_BYTES: [u8; 64] = register!(|at| at % 8 * 8);
/// All bits of the bytes of a word that stand for words before it.
const EARLIER_WORDS: [u8; 64] = register!(|at| if at % 8 < at / 8 { 255 } else { 0 });
/// The number of each byte in its word.
const WORD_BYTES: [u8; 64] = register!(|at| at % 8);

/// What the gaps of a code take.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Gaps {
    /// There are none: every entry is an element.
    None,
    /// A byte.
    Byte,
    /// 16 of them fewer than 16 bits, plain bits a byte.
    Narrow,
    /// 32 bits.
    Wide,
}

impl Gaps {
    pub(super) fn of(code: &ElementCode) -> Self {
        match code.gap_limit() {
            1 if code.gaps.is_none() => Self::None,
            0..256 => Self::Byte,
            _ if code.has_narrow_gaps() => Self::Narrow,
            _ => Self::Wide,
        }
    }
}

#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: the reference covers 64 readable bytes; loadu needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// A table in registers.
#[derive(Clone, Copy)]
struct Registers {
    classes: [__m512i; 2],
    steps: [__m512i; 2],
    /// Bits that states take.
    counts: [__m512i; 2],
}

impl Registers {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(table: Option<&Table>) -> Self {
        let halves = |bytes: &[u8; STATES]| {
            let (halves, _) = bytes.as_chunks::<64>();
            [load(&halves[0]), load(&halves[1])]
        };
        let one = _mm512_set1_epi8(1);
        match table {
            Some(table) => Self {
                classes: halves(table.classes()),
                steps: halves(table.steps()),
                counts: halves(table.counts()),
            },
            None => {
                Self { classes: [_mm512_setzero_si512(); 2], steps: [one; 2], counts: [one; 2] }
            }
        }
    }

    /// Classes without the mark of the escape, which goes to the steps.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn with_marked_steps(self) -> Self {
        let mark = _mm512_set1_epi8(ESCAPE as i8);
        let steps = [0, 1].map(|half| {
            _mm512_or_si512(self.steps[half], _mm512_and_si512(self.classes[half], mark))
        });
        Self { classes: self.classes.map(|half| _mm512_andnot_si512(mark, half)), steps, ..self }
    }

    /// Classes shifted left by `nbits`; each under 256.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn shifted(self, nbits: u32) -> Self {
        let shift = _mm_cvtsi32_si128(nbits as i32);
        // Only what is shifted out of a byte into the next one may be lost: nothing.
        Self { classes: self.classes.map(|half| _mm512_sll_epi16(half, shift)), ..self }
    }

    /// Classes and 1 for those whose step is not marked.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn with_moves(self) -> Self {
        let one = _mm512_set1_epi8(1);
        let classes = [0, 1].map(|half| {
            let kept = !_mm512_movepi8_mask(self.steps[half]);
            _mm512_mask_add_epi8(self.classes[half], kept, self.classes[half], one)
        });
        Self { classes, ..self }
    }

    /// The classes of states, their steps, and the bits that they take.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn look_up(self, states: __m512i) -> [__m512i; 3] {
        [self.classes, self.steps, self.counts]
            .map(|[low, high]| _mm512_permutex2var_epi8(low, states, high))
    }
}

/// The states after `steps`: bases, and the next bits of `bytes` from bit `at` on, `counts` of them
/// for each lane. The top bit of a step is of no meaning.
///
/// Where a lane's bits are is a sum over the lanes before it: of the eight in its word, and of the
/// words. Each word's bits are moved to its start, and from there to the lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vbmi")]
fn next_states(steps: __m512i, counts: __m512i, bytes: &[u8], at: &mut usize) -> __m512i {
    let below = _mm512_add_epi8(steps, _mm512_set1_epi8(-1));
    let masks = _mm512_xor_si512(steps, below);
    // Bits of the lanes before each one in its word, at most 49: as a product, its bytes are sums.
    let within = _mm512_mullo_epi64(counts, _mm512_set1_epi64(0x0101_0101_0101_0100));
    // Bits of every word, in each word; of those before it, at most 392; of all, at most 448.
    let zero = _mm512_setzero_si512();
    let words = _mm512_permutexvar_epi8(load(&FIRST_BYTES), _mm512_sad_epu8(counts, zero));
    let starts = _mm512_sad_epu8(_mm512_and_si512(words, load(&EARLIER_WORDS)), zero);
    let total = _mm512_sad_epu8(words, zero);
    // The eight bytes from the first one of a word on, and where in it the word starts.
    let bit = *at % 8;
    let starts = _mm512_add_epi64(starts, _mm512_set1_epi64(bit as i64));
    let first = _mm512_multishift_epi64_epi8(_mm512_set1_epi8(3), starts);
    let window = load(bytes[*at / 8..].first_chunk::<REACH>().expect("a step's reach was checked"));
    let eight = _mm512_permutexvar_epi8(_mm512_add_epi8(first, load(&WORD_BYTES)), window);
    let shift = _mm512_and_si512(_mm512_multishift_epi64_epi8(zero, starts), _mm512_set1_epi8(7));
    let before = _mm512_add_epi8(within, shift);
    let dealt = _mm512_multishift_epi64_epi8(before, eight);
    *at += _mm_cvtsi128_si64(_mm512_castsi512_si128(total)) as usize;
    _mm512_or_si512(_mm512_and_si512(steps, below), _mm512_and_si512(dealt, masks))
}

/// `start` and the bits of up to eight planes.
#[target_feature(enable = "avx512f,avx512bw")]
fn add_planes(start: __m512i, planes: &[[u8; 8]]) -> __m512i {
    let mut plain = start;
    // One by one: as a loop it becomes twice the code.
    macro_rules! add {
        ($($bit:literal)*) => { $(
            let Some(plane) = planes.get($bit) else { return plain };
            let bits = _mm512_set1_epi8((1u32 << $bit) as i8);
            plain = _mm512_mask_add_epi8(plain, u64::from_le_bytes(*plane), plain, bits);
        )* };
    }
    add!(0 1 2 3 4 5 6 7);
    plain
}

/// Sums over the words of a vector: each 32-bit word becomes the sum of those up to it.
#[target_feature(enable = "avx512f")]
fn sums_32(mut v: __m512i) -> __m512i {
    let zero = _mm512_setzero_si512();
    v = _mm512_add_epi32(v, _mm512_alignr_epi32::<15>(v, zero));
    v = _mm512_add_epi32(v, _mm512_alignr_epi32::<14>(v, zero));
    v = _mm512_add_epi32(v, _mm512_alignr_epi32::<12>(v, zero));
    _mm512_add_epi32(v, _mm512_alignr_epi32::<8>(v, zero))
}

/// As [`sums_32`], of the two 16-bit numbers of each word.
#[target_feature(enable = "avx512f,avx512bw")]
fn sums_16(mut v: __m512i) -> __m512i {
    let zero = _mm512_setzero_si512();
    v = _mm512_add_epi16(v, _mm512_alignr_epi32::<15>(v, zero));
    v = _mm512_add_epi16(v, _mm512_alignr_epi32::<14>(v, zero));
    v = _mm512_add_epi16(v, _mm512_alignr_epi32::<12>(v, zero));
    _mm512_add_epi16(v, _mm512_alignr_epi32::<8>(v, zero))
}

/// The sums of four groups up to each element, and of each whole group.
type GroupSums = ([__m512i; 4], [__m512i; 4]);

/// The groups of two vectors of 16-bit gaps.
#[target_feature(enable = "avx512f,avx512bw")]
fn narrow_groups(even: __m512i, odd: __m512i) -> GroupSums {
    let last = _mm512_set1_epi32(15);
    let low = _mm512_set1_epi32(0xffff);
    let (even, odd) = (sums_16(even), sums_16(odd));
    let (even_all, odd_all) =
        (_mm512_permutexvar_epi32(last, even), _mm512_permutexvar_epi32(last, odd));
    (
        [
            _mm512_and_si512(even, low),
            _mm512_and_si512(odd, low),
            _mm512_srli_epi32::<16>(even),
            _mm512_srli_epi32::<16>(odd),
        ],
        [
            _mm512_and_si512(even_all, low),
            _mm512_and_si512(odd_all, low),
            _mm512_srli_epi32::<16>(even_all),
            _mm512_srli_epi32::<16>(odd_all),
        ],
    )
}

/// The groups of gaps of 32 bits: classes, plain bits, and 1 where an element is kept.
#[target_feature(enable = "avx512f,avx512bw")]
fn wide_groups(classes: __m512i, moves: __m512i, planes: &[[u8; 8]]) -> GroupSums {
    let (low, high) = planes.split_at(planes.len().min(8));
    let low = add_planes(_mm512_setzero_si512(), low);
    let high = add_planes(_mm512_setzero_si512(), high);
    let nbits = _mm_cvtsi32_si128(planes.len() as i32);
    let group = |shift: u32| {
        let part = |v: __m512i| {
            let v = _mm512_srl_epi32(v, _mm_cvtsi32_si128(shift as i32));
            _mm512_and_si512(v, _mm512_set1_epi32(0xff))
        };
        let gaps = _mm512_sll_epi32(part(classes), nbits);
        let gaps = _mm512_add_epi32(gaps, _mm512_add_epi32(part(moves), part(low)));
        sums_32(_mm512_add_epi32(gaps, _mm512_slli_epi32::<8>(part(high))))
    };
    let groups = [group(0), group(8), group(16), group(24)];
    (groups, groups.map(|group| _mm512_permutexvar_epi32(_mm512_set1_epi32(15), group)))
}

/// Keeps what `kept` marks of positions in four groups and of ranks in two halves.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
fn keep(out: &mut Elements, positions: [__m512i; 4], ranks: [__m512i; 2], kept: u64) {
    let to_positions: &mut [u32; TANS_LANES] =
        out.positions[out.len..].first_chunk_mut().expect("room for a step was checked");
    let to_ranks: &mut [u16; TANS_LANES] =
        out.ranks[out.len..].first_chunk_mut().expect("room for a step was checked");
    let (to_positions, to_ranks) = (to_positions.as_mut_ptr(), to_ranks.as_mut_ptr());
    out.len += kept.count_ones() as usize;
    if kept == u64::MAX {
        for (group, &positions) in positions.iter().enumerate() {
            // SAFETY: groups 0 to 3 of 16 words are in the array of 64.
            unsafe { _mm512_storeu_si512(to_positions.add(16 * group).cast(), positions) };
        }
        for (half, &ranks) in ranks.iter().enumerate() {
            // SAFETY: halves 0 and 1 of 32 words are in the array of 64.
            unsafe { _mm512_storeu_si512(to_ranks.add(32 * half).cast(), ranks) };
        }
        return;
    }
    let mut at = 0;
    for (group, &positions) in positions.iter().enumerate() {
        let mask = (kept >> (16 * group)) as u16;
        let positions = _mm512_maskz_compress_epi32(mask, positions);
        // SAFETY: at most 16 words a group are counted, so at ≤ 16·group ≤ 48, and 16 words from
        // there are in the array of 64.
        unsafe { _mm512_storeu_si512(to_positions.add(at).cast(), positions) };
        at += mask.count_ones() as usize;
    }
    let low = _mm512_maskz_compress_epi16(kept as u32, ranks[0]);
    let high = _mm512_maskz_compress_epi16((kept >> 32) as u32, ranks[1]);
    let at = (kept as u32).count_ones() as usize;
    // SAFETY: 32 words from 0 and from at ≤ 32 are in the array of 64.
    unsafe {
        _mm512_storeu_si512(to_ranks.cast(), low);
        _mm512_storeu_si512(to_ranks.add(at).cast(), high);
    }
}

pub(super) const NONE: u8 = Gaps::None as u8;
pub(super) const BYTE: u8 = Gaps::Byte as u8;
pub(super) const NARROW: u8 = Gaps::Narrow as u8;
pub(super) const WIDE: u8 = Gaps::Wide as u8;

/// A step, decoded.
pub(super) struct Step {
    /// In four groups of 16 elements; rising but for what is not kept.
    pub(super) positions: [__m512i; 4],
    /// Of each lane, where they fit into a byte.
    pub(super) byte_ranks: __m512i,
    /// In the order of elements, 16 bits each.
    pub(super) ranks: [__m512i; 2],
    /// The elements that are kept.
    pub(super) kept: u64,
}

/// Decodes up to `nsteps` whole steps, and gives how many: fewer where a stream ends before a step's
/// reach. `GAPS` is a [`Gaps`]; `BYTE_RANKS` says that ranks fit into a byte.
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
pub(super) fn decode_elements<const GAPS: u8, const BYTE_RANKS: bool>(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    nsteps: usize,
    out: &mut Elements,
) -> usize {
    out.check_room(nsteps);
    for_each_step::<GAPS, BYTE_RANKS>(code, cursor, nsteps, |step, _| {
        keep(out, step.positions, step.ranks, step.kept);
        true
    })
}

/// Hands on up to `nsteps` whole steps as long as `take` gives true, and gives how many: fewer, too,
/// where a stream ends before a step's reach. `take` gets, beside a step, one less than the position after
/// it, in every lane, and may move that, and so all that follows. `GAPS` is a [`Gaps`]; `BYTE_RANKS` says
/// that ranks fit into a byte.
#[inline]
#[target_feature(
    enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,bmi1,bmi2,popcnt"
)]
pub(super) fn for_each_step<const GAPS: u8, const BYTE_RANKS: bool>(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    nsteps: usize,
    mut take: impl FnMut(Step, &mut __m512i) -> bool,
) -> usize {
    let (gap_low, rank_low) = (code.gap_low_bits, code.rank_low_bits);
    let mut gap_table = Registers::new(code.gaps.as_ref()).with_marked_steps();
    if GAPS == BYTE {
        gap_table = gap_table.shifted(gap_low).with_moves();
    }
    let mut rank_table = Registers::new(code.ranks.as_ref());
    if BYTE_RANKS {
        rank_table = rank_table.shifted(rank_low);
    }
    let (has_gaps, has_ranks) = (code.gaps.is_some(), code.ranks.is_some());
    let (mut gap_states, mut rank_states) = (load(&cursor.gaps.states), load(&cursor.ranks.states));
    let (gap_bytes, rank_bytes) = (cursor.gaps.bytes, cursor.ranks.bytes);
    let (mut gap_at, mut rank_at) = (cursor.gaps.at, cursor.ranks.at);
    let (mut gap_planes, _) = cursor.gap_planes.as_chunks::<8>();
    let (mut rank_planes, _) = cursor.rank_planes.as_chunks::<8>();
    let sequence = load(&SEQUENCE);
    let low_bytes = _mm512_set1_epi16(0xff);
    // One less than the next position: a kept element is at the sum of gaps and of the elements up
    // to itself, less one.
    let mut base = _mm512_set1_epi32(cursor.position.wrapping_sub(1) as i32);
    let gap_shift = _mm_cvtsi32_si128(gap_low as i32);
    let rank_shift = _mm_cvtsi32_si128(rank_low as i32);
    let mut done = 0;
    while done < nsteps {
        let fits = |has: bool, bytes: &[u8], at: usize| !has || at / 8 + REACH <= bytes.len();
        if !fits(has_gaps, gap_bytes, gap_at) || !fits(has_ranks, rank_bytes, rank_at) {
            break;
        }
        let Some((gap_plain, gap_rest)) = gap_planes.split_at_checked(gap_low as usize) else {
            break;
        };
        let Some((rank_plain, rank_rest)) = rank_planes.split_at_checked(rank_low as usize) else {
            break;
        };
        (gap_planes, rank_planes) = (gap_rest, rank_rest);
        let [gap_classes, gap_steps, gap_counts] = gap_table.look_up(gap_states);
        let [rank_classes, rank_steps, rank_counts] = rank_table.look_up(rank_states);
        if has_gaps {
            gap_states = next_states(gap_steps, gap_counts, gap_bytes, &mut gap_at);
        }
        if has_ranks {
            rank_states = next_states(rank_steps, rank_counts, rank_bytes, &mut rank_at);
        }

        // Ranks in the order of elements, 16 bits each.
        let halves = |bytes: __m512i| {
            let bytes = _mm512_permutexvar_epi8(sequence, bytes);
            [
                _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes)),
                _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64::<1>(bytes)),
            ]
        };
        let byte_ranks = add_planes(rank_classes, if BYTE_RANKS { rank_plain } else { &[] });
        let ranks = if BYTE_RANKS {
            halves(byte_ranks)
        } else {
            let (low, high) = rank_plain.split_at(rank_plain.len().min(8));
            let low = halves(add_planes(_mm512_setzero_si512(), low));
            let high = halves(add_planes(_mm512_setzero_si512(), high));
            let classes = halves(rank_classes);
            [0, 1].map(|half| {
                let plain = _mm512_or_si512(low[half], _mm512_slli_epi16::<8>(high[half]));
                _mm512_or_si512(_mm512_sll_epi16(classes[half], rank_shift), plain)
            })
        };

        if GAPS == NONE {
            let one_to_16 =
                _mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
            let first = _mm512_add_epi32(base, one_to_16);
            let groups = [0, 16, 32, 48];
            let positions = groups.map(|before| _mm512_add_epi32(first, _mm512_set1_epi32(before)));
            base = _mm512_add_epi32(base, _mm512_set1_epi32(64));
            let kept = code.pruned.map_or(u64::MAX, |pruned| {
                let pruned = _mm512_set1_epi16(pruned as i16);
                let [low, high] = ranks.map(|ranks| _mm512_cmpneq_epi16_mask(ranks, pruned));
                u64::from(low) | u64::from(high) << 32
            });
            done += 1;
            if !take(Step { positions, byte_ranks, ranks, kept }, &mut base) {
                break;
            }
            continue;
        }
        let escapes = _mm512_movepi8_mask(gap_steps);
        let (sums, totals) = if GAPS == BYTE {
            let gaps = add_planes(gap_classes, gap_plain);
            narrow_groups(_mm512_and_si512(gaps, low_bytes), _mm512_srli_epi16::<8>(gaps))
        } else {
            let moves = _mm512_maskz_mov_epi8(!escapes, _mm512_set1_epi8(1));
            if GAPS == NARROW {
                let plain = add_planes(moves, gap_plain);
                let (even, odd) =
                    (_mm512_and_si512(gap_classes, low_bytes), _mm512_srli_epi16::<8>(gap_classes));
                narrow_groups(
                    _mm512_add_epi16(
                        _mm512_sll_epi16(even, gap_shift),
                        _mm512_and_si512(plain, low_bytes),
                    ),
                    _mm512_add_epi16(
                        _mm512_sll_epi16(odd, gap_shift),
                        _mm512_srli_epi16::<8>(plain),
                    ),
                )
            } else {
                wide_groups(gap_classes, moves, gap_plain)
            }
        };
        let second = _mm512_add_epi32(base, totals[0]);
        let pair = _mm512_add_epi32(totals[0], totals[1]);
        let third = _mm512_add_epi32(base, pair);
        let fourth = _mm512_add_epi32(third, totals[2]);
        let positions = [
            _mm512_add_epi32(base, sums[0]),
            _mm512_add_epi32(second, sums[1]),
            _mm512_add_epi32(third, sums[2]),
            _mm512_add_epi32(fourth, sums[3]),
        ];
        base = _mm512_add_epi32(fourth, totals[3]);
        let mut kept = u64::MAX;
        if escapes != 0 {
            let group = |b: u32| _pext_u64(escapes, 0x1111_1111_1111_1111 << b) << (16 * b);
            kept = !(group(0) | group(1) | group(2) | group(3));
        }
        done += 1;
        if !take(Step { positions, byte_ranks, ranks, kept }, &mut base) {
            break;
        }
    }
    let unmarked = _mm512_set1_epi8(!ESCAPE as i8);
    // SAFETY: both arrays are 64 writable bytes; storeu needs no alignment.
    unsafe {
        let states = _mm512_and_si512(gap_states, unmarked);
        _mm512_storeu_si512(cursor.gaps.states.as_mut_ptr().cast(), states);
        _mm512_storeu_si512(cursor.ranks.states.as_mut_ptr().cast(), rank_states);
    }
    (cursor.gaps.at, cursor.ranks.at) = (gap_at, rank_at);
    cursor.gap_planes = &cursor.gap_planes[8 * gap_low as usize * done..];
    cursor.rank_planes = &cursor.rank_planes[8 * rank_low as usize * done..];
    cursor.position = (_mm512_cvtsi512_si32(base) as u32).wrapping_add(1);
    done
}
