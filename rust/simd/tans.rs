//! Elements of the layout `coded`: tANS in 64 lanes, and what every instruction set starts from.
//!
//! ```text
//!   step t holds elements 64t … 64t + 63; element 16b + j of a step is in byte lane 4j + b
//!
//!   lane     0    1    2    3    4    5  …  62   63         a shift of 32-bit words by 8b bits
//!   element  0   16   32   48    1   17  …  47   63         leaves 16 consecutive elements
//!
//!   for each lane of a step, in the order of lanes:         (of gaps, then the same for ranks)
//!       class, c = classes[state], steps[state]
//!       mask     = c ^ (c − 1)                              2^nbits − 1
//!       state    = (c & (c − 1)) + next nbits bits          base + bits
//!   gap  = class · 2^low + plain bits                       rank likewise
//!   position += gap;  keep (position, rank);  position += 1
//! ```
//!
//! Every state takes one bit or more, so its base and number of bits fit into one byte: c is base +
//! 2^(nbits − 1), and the base has no bit under 2^nbits. Eight lanes take at most 56 bits, so one
//! unaligned word serves them all: `pdep` deals its bits out by the eight masks at once, or, on
//! AVX-512, a shift of each byte's own, for all words together. The look-ups of 128 bytes stay in
//! registers.
//!
//! An element of the last gap class, the escape, moves the position on and keeps nothing. Without
//! gaps every entry is an element, and those of one rank, the pruned ones, are not kept.
//!
//! Plain bits are planes: a word for each bit and step, bit l that of lane l; in a last step of
//! fewer than 64 elements a field of as many bits, for the lanes in use, in their order.
//!
//! Source: tANS is Duda 2013, arXiv:1311.2540.

use crate::bits;

/// Lanes of a step.
pub const TANS_LANES: usize = 64;
/// States of a code.
pub const STATES: usize = 128;
/// Steps that decode at a time.
pub const CHUNK_STEPS: usize = 16;
/// Most plain bits of a gap: a chunk then moves on by under 2³² positions.
pub const MAX_GAP_LOW_BITS: u32 = 14;
/// Marks the escape among the classes of gaps.
pub const ESCAPE: u8 = 0x80;

/// What each state of a code stands for.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub struct Table {
    /// The class; of gaps, [`ESCAPE`] is added to the last one.
    classes: [u8; STATES],
    /// base + 2^(nbits − 1), with 1 ≤ nbits ≤ 7 and a base under 128 without bits under 2^nbits.
    steps: [u8; STATES],
    /// nbits.
    counts: [u8; STATES],
    /// The largest class, without the mark of an escape.
    largest: u8,
}

impl Table {
    /// A table of each state's class and step.
    ///
    /// # Panics
    /// When a step is 0 or over 127: a state would take no bits, or over 7.
    pub fn new(classes: [u8; STATES], steps: [u8; STATES]) -> Self {
        assert!(steps.iter().all(|step| (1..128).contains(step)), "tans: a step not in 1 to 127");
        let counts = steps.map(|step| step.trailing_zeros() as u8 + 1);
        let largest = classes.iter().fold(0, |largest, class| largest.max(class & !ESCAPE));
        Self { classes, steps, counts, largest }
    }

    /// The class of each state.
    pub fn classes(&self) -> &[u8; STATES] {
        &self.classes
    }

    /// The step of each state.
    pub fn steps(&self) -> &[u8; STATES] {
        &self.steps
    }

    /// How many bits each state takes.
    pub fn counts(&self) -> &[u8; STATES] {
        &self.counts
    }
}

/// How elements are coded; none of either table where there is one class.
#[derive(Clone, Debug)]
pub struct ElementCode {
    /// The code of gap classes.
    pub gaps: Option<Table>,
    /// Plain bits of a gap, at most [`MAX_GAP_LOW_BITS`].
    pub gap_low_bits: u32,
    /// The code of rank classes.
    pub ranks: Option<Table>,
    /// Plain bits of a rank; a class and they make at most 16 bits.
    pub rank_low_bits: u32,
    /// The rank of pruned entries, where every entry is an element.
    pub pruned: Option<u16>,
}

impl ElementCode {
    /// More than any gap that may be decoded: what the largest class and all plain bits make, and 1.
    pub(super) fn gap_limit(&self) -> u32 {
        let largest = self.gaps.as_ref().map_or(0, |table| table.largest);
        (u32::from(largest) + 1) << self.gap_low_bits
    }

    /// True when 16 gaps, and 1 for each, stay under 2¹⁶, and plain bits and 1 fit into a byte.
    pub(super) fn has_narrow_gaps(&self) -> bool {
        self.gap_limit() < 4096 && self.gap_low_bits < 8
    }

    /// True when every rank that may be decoded is under 256.
    pub(super) fn has_byte_ranks(&self) -> bool {
        let largest = self.ranks.as_ref().map_or(0, |table| table.largest);
        (u32::from(largest) + 1) << self.rank_low_bits <= 256
    }
}

/// One tANS stream: its bits, and where in them and in which states it is.
#[derive(Clone, Debug)]
pub struct TansStream<'a> {
    /// The bytes from the stream's first on, and as many after its last as there are.
    pub bytes: &'a [u8],
    /// The next bit.
    pub at: usize,
    /// The state of each lane.
    pub states: [u8; TANS_LANES],
}

/// Where the decoding of a block of elements is.
#[derive(Clone, Debug)]
pub struct ElementCursor<'a> {
    /// Gap classes.
    pub gaps: TansStream<'a>,
    /// Rank classes.
    pub ranks: TansStream<'a>,
    /// Plain bits of gaps from the next step on.
    pub gap_planes: &'a [u8],
    /// Plain bits of ranks from the next step on.
    pub rank_planes: &'a [u8],
    /// The next position, modulo 2³².
    pub position: u32,
}

/// The product of a matrix's rows with a vector, while their elements decode.
#[derive(Debug)]
pub struct RowProducts<'a> {
    values: &'a [f32],
    x: &'a [f32],
    /// The first position of the first row in `y`.
    start: u32,
    y: &'a mut [f32],
}

impl<'a> RowProducts<'a> {
    /// The products of the rows from position `start` on, of `x.len()` positions each, that are to be
    /// added to `y`; `values` are those of ranks.
    ///
    /// # Panics
    /// When there are no columns, no row begins at the start, or one ends at 2³² or later.
    pub fn new(values: &'a [f32], x: &'a [f32], start: u32, y: &'a mut [f32]) -> Self {
        let end = x.len().checked_mul(y.len()).and_then(|n| n.checked_add(start as usize));
        let fits = end.is_some_and(|end| u32::try_from(end).is_ok());
        assert!(fits && !x.is_empty(), "row products: {} rows of {}", y.len(), x.len());
        assert!((start as usize).is_multiple_of(x.len()), "row products: from {start} on");
        Self { values, x, start, y }
    }

    /// The values of ranks.
    pub(super) fn values(&self) -> &'a [f32] {
        self.values
    }

    /// The vector.
    pub(super) fn x(&self) -> &'a [f32] {
        self.x
    }

    /// The first position of the first row that is not ended.
    pub(super) fn start(&self) -> u32 {
        self.start
    }

    /// Rows that are not ended.
    pub(super) fn rows(&self) -> usize {
        self.y.len()
    }

    /// Adds to the first row that is not ended.
    pub(super) fn add(&mut self, sum: f32) {
        if let Some(y) = self.y.first_mut() {
            *y += sum;
        }
    }

    /// Ends that row.
    pub(super) fn end_row(&mut self) {
        let y = std::mem::take(&mut self.y);
        self.y = y.get_mut(1..).unwrap_or_default();
        self.start += self.x.len() as u32;
    }
}

/// Room for a chunk, and for vectors that are stored whole.
const ROOM: usize = CHUNK_STEPS * TANS_LANES + TANS_LANES;

/// The kept weights of a chunk of elements: 6 KiB, for the stack.
#[derive(Clone, Debug)]
pub struct Elements {
    pub(super) positions: [u32; ROOM],
    pub(super) ranks: [u16; ROOM],
    pub(super) len: usize,
}

impl Default for Elements {
    /// None yet.
    fn default() -> Self {
        Self { positions: [0; ROOM], ranks: [0; ROOM], len: 0 }
    }
}

impl Elements {
    /// Removes all.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Their positions, modulo 2³².
    pub fn positions(&self) -> &[u32] {
        &self.positions[..self.len]
    }

    /// Their ranks.
    pub fn ranks(&self) -> &[u16] {
        &self.ranks[..self.len]
    }

    #[inline]
    fn push(&mut self, position: u32, rank: u16) {
        self.positions[self.len] = position;
        self.ranks[self.len] = rank;
        self.len += 1;
    }

    /// Makes sure that `nsteps` more fit.
    pub(super) fn check_room(&self, nsteps: usize) {
        assert!(self.len + nsteps * TANS_LANES <= ROOM - TANS_LANES, "elements: too many steps");
    }
}

/// The lane of element `element` of a step.
#[inline]
pub const fn lane(element: usize) -> usize {
    element % 16 * 4 + element / 16
}

/// The lanes that the first `count` elements of a step are in, as bits.
pub fn lanes_in_use(count: usize) -> u64 {
    (0..count).fold(0, |lanes, element| lanes | 1 << lane(element))
}

/// The specification: decodes a step of `count` ≤ 64 elements.
pub fn decode_step(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    count: usize,
    out: &mut Elements,
) {
    out.check_room(1);
    let in_use = lanes_in_use(count);
    let gap_classes = next_classes(code.gaps.as_ref(), &mut cursor.gaps, in_use);
    let rank_classes = next_classes(code.ranks.as_ref(), &mut cursor.ranks, in_use);
    let gap_low = next_plain(code.gap_low_bits, &mut cursor.gap_planes, in_use);
    let rank_low = next_plain(code.rank_low_bits, &mut cursor.rank_planes, in_use);
    for element in 0..count {
        let lane = lane(element);
        let class = gap_classes[lane];
        let gap = u32::from(class & !ESCAPE) << code.gap_low_bits | u32::from(gap_low[lane]);
        let rank = u16::from(rank_classes[lane]) << code.rank_low_bits | rank_low[lane];
        cursor.position = cursor.position.wrapping_add(gap);
        if class & ESCAPE == 0 {
            if code.pruned != Some(rank) {
                out.push(cursor.position, rank);
            }
            cursor.position = cursor.position.wrapping_add(1);
        }
    }
}

/// Decodes `nsteps` whole steps with `fast`, which gives how many it did; steps that it does not do,
/// near the end of a stream, follow the specification.
pub(super) fn decode_with(
    code: &ElementCode,
    cursor: &mut ElementCursor<'_>,
    nsteps: usize,
    out: &mut Elements,
    fast: impl Fn(&mut ElementCursor<'_>, usize, &mut Elements) -> usize,
) {
    let mut left = nsteps;
    while left > 0 {
        left -= fast(cursor, left, out);
        if left > 0 {
            decode_step(code, cursor, TANS_LANES, out);
            left -= 1;
        }
    }
}

/// The classes of the lanes in use, and the states after them.
fn next_classes(
    table: Option<&Table>,
    stream: &mut TansStream<'_>,
    in_use: u64,
) -> [u8; TANS_LANES] {
    let mut classes = [0; TANS_LANES];
    let Some(table) = table else { return classes };
    for (lane, class) in classes.iter_mut().enumerate() {
        if in_use >> lane & 1 == 1 {
            let state = usize::from(stream.states[lane]);
            *class = table.classes[state];
            let step = table.steps[state];
            let mask = step ^ (step - 1);
            let bits = bits::peek(stream.bytes, stream.at) as u8 & mask;
            stream.at += mask.count_ones() as usize;
            stream.states[lane] = (step & (step - 1)) + bits;
        }
    }
    classes
}

/// The plain bits of the lanes in use; moves `planes` on where the step is whole.
fn next_plain(nbits: u32, planes: &mut &[u8], in_use: u64) -> [u16; TANS_LANES] {
    let mut plain = [0; TANS_LANES];
    let mut at = 0;
    for bit in 0..nbits {
        for (lane, plain) in plain.iter_mut().enumerate() {
            if in_use >> lane & 1 == 1 {
                *plain |= ((bits::peek(planes, at) & 1) as u16) << bit;
                at += 1;
            }
        }
    }
    if in_use == u64::MAX {
        *planes = planes.get(at / 8..).unwrap_or(&[]);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::tans::Counts;
    use crate::simd::available;
    use proptest::prelude::*;

    #[test]
    fn elements_take_lanes_as_the_module_page_draws_them() {
        assert_eq!([0, 16, 32, 48, 1, 17, 63].map(lane), [0, 1, 2, 3, 4, 5, 63]);
        assert_eq!(lanes_in_use(0), 0);
        assert_eq!(lanes_in_use(17), 0x1111_1111_1111_1111 | 2);
        assert_eq!(lanes_in_use(64), u64::MAX);
    }

    #[test]
    fn a_step_worked_out_by_hand_comes_out() {
        // Counts 64, 64: even states are class 0, odd ones the escape; each takes one bit, and state
        // s leads to s rounded down to even, plus the bit.
        let table = Counts::from_histogram(&[1, 1]).table(true);
        let mut states = [0; TANS_LANES];
        states[lane(1)] = 1;
        let stream = |bytes| TansStream { bytes, at: 0, states };
        let mut cursor = ElementCursor {
            gaps: stream(&[0b110]),
            ranks: stream(&[]),
            // Two planes of three elements.
            gap_planes: &[0b100_011],
            rank_planes: &[0b101],
            position: 10,
        };
        let code = ElementCode {
            gaps: Some(table),
            gap_low_bits: 2,
            ranks: None,
            rank_low_bits: 1,
            pruned: None,
        };
        let mut out = Elements::default();
        decode_step(&code, &mut cursor, 3, &mut out);
        // Gaps 1, then an escape by 4 + 1, then 2: 11, 12 + 5 + 2.
        assert_eq!((out.positions(), out.ranks()), (&[11, 19][..], &[1, 1][..]));
        assert_eq!((cursor.position, cursor.gaps.at), (20, 3));
        assert_eq!(cursor.gaps.states[..9], [0, 0, 0, 0, 1, 0, 0, 0, 1]);
    }

    fn counts(classes: usize, seed: u64) -> Counts {
        let share = |i: u64| (seed >> (i % 48)).wrapping_mul(i + 1) % 1000;
        Counts::from_histogram(&(0..classes as u64).map(share).collect::<Vec<_>>())
    }

    /// A code, and random streams to decode by it.
    #[derive(Debug)]
    struct Coded {
        code: ElementCode,
        streams: [Vec<u8>; 2],
        planes: [Vec<u8>; 2],
        states: Vec<u8>,
        at: usize,
        position: u32,
    }

    impl Coded {
        /// Streams for about `nsteps` steps, and `spare` bytes more.
        fn random(code: ElementCode, nsteps: usize, spare: usize, seed: u64) -> Self {
            let mut state = seed | 1;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            };
            let mut bytes = |len: usize| (0..len).map(|_| next()).collect::<Vec<u8>>();
            let streams = [bytes(spare + 20 * nsteps), bytes(500 - spare + 20 * nsteps)];
            let planes = [code.gap_low_bits, code.rank_low_bits]
                .map(|bits| bytes(8 * bits as usize * nsteps));
            let states = bytes(128).iter().map(|byte| byte % 128).collect();
            Self { code, streams, planes, states, at: spare % 13, position: seed as u32 }
        }

        fn cursor(&self) -> ElementCursor<'_> {
            let stream = |i: usize| TansStream {
                bytes: &self.streams[i],
                at: self.at,
                states: self.states[64 * i..][..64].try_into().unwrap(),
            };
            ElementCursor {
                gaps: stream(0),
                ranks: stream(1),
                gap_planes: &self.planes[0],
                rank_planes: &self.planes[1],
                position: self.position,
            }
        }
    }

    /// A code of so many classes.
    fn code(
        classes: [usize; 2],
        low_bits: [u32; 2],
        pruned: Option<u16>,
        seed: u64,
    ) -> ElementCode {
        let [gaps, ranks] = classes;
        ElementCode {
            gaps: (gaps > 1).then(|| counts(gaps, seed).table(true)),
            gap_low_bits: low_bits[0],
            ranks: (ranks > 1).then(|| counts(ranks, !seed).table(false)),
            rank_low_bits: low_bits[1],
            pruned,
        }
    }

    fn left(cursor: ElementCursor<'_>) -> impl PartialEq + std::fmt::Debug {
        let planes = [cursor.gap_planes.len(), cursor.rank_planes.len()];
        (cursor.position, planes, [cursor.gaps, cursor.ranks].map(|s| (s.at, s.states)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn every_instruction_set_decodes_the_same_at_every_length_and_up_to_the_last_byte(
            (gap_classes, rank_classes) in (0usize..128, 0usize..128),
            (gap_low_bits, rank_low_bits) in (0..=MAX_GAP_LOW_BITS, 0u32..16),
            is_narrow in any::<bool>(),
            has_pruned in any::<bool>(),
            nsteps in 0..=CHUNK_STEPS,
            spare in 0usize..500,
            seed in any::<u64>(),
        ) {
            let (gap_low_bits, rank_low_bits) =
                if is_narrow { (gap_low_bits / 3, rank_low_bits / 5) } else { (gap_low_bits, rank_low_bits) };
            let ranks_fit = rank_classes.max(1) << rank_low_bits <= 1 << 16;
            let rank_classes = if ranks_fit { rank_classes } else { (1 << 16) >> rank_low_bits };
            let pruned = (has_pruned && gap_classes < 2 && gap_low_bits == 0).then_some(3);
            let code = code([gap_classes, rank_classes], [gap_low_bits, rank_low_bits], pruned, seed);
            let coded = Coded::random(code, nsteps, spare, seed);
            let decode = |set: &dyn crate::simd::Kernels| {
                let (mut cursor, mut out) = (coded.cursor(), Elements::default());
                // In two parts, the second going on where the first ended.
                set.decode_elements(&coded.code, &mut cursor, nsteps / 3, &mut out);
                set.decode_elements(&coded.code, &mut cursor, nsteps - nsteps / 3, &mut out);
                (out.positions().to_vec(), out.ranks().to_vec(), left(cursor))
            };
            let sets = available();
            let expected = decode(sets[0]);
            for set in sets {
                prop_assert_eq!(&decode(set), &expected, "{}", set.name());
            }
        }

        #[test]
        fn rows_are_multiplied_while_they_decode_as_after_that(
            (gap_classes, gap_low_bits) in (2usize..128, prop_oneof![0u32..4, 0..=MAX_GAP_LOW_BITS]),
            (rank_classes, rank_low_bits) in (0usize..128, 0u32..4),
            nvalues in prop_oneof![1usize..33, 1usize..257],
            ncols in prop_oneof![1usize..20, 1usize..5000],
            (rows_before, nrows) in (0u32..3, 0usize..30),
            nsteps in 0usize..40,
            spare in 0usize..500,
            seed in any::<u64>(),
        ) {
            let ranks_fit = rank_classes.max(1) << rank_low_bits <= 256;
            let rank_classes = if ranks_fit { rank_classes } else { 256 >> rank_low_bits };
            let code = code([gap_classes, rank_classes], [gap_low_bits, rank_low_bits], None, seed);
            let mut coded = Coded::random(code, 3 * nsteps + 8, spare, seed);
            coded.position %= 3 * ncols as u32;
            let number = |i: usize| ((i * 37 + seed as usize % 1000) % 101) as f32 / 16.0 - 3.0;
            // Every rank has a value, as in a file.
            let nvalues = nvalues.max(rank_classes.max(1) << rank_low_bits);
            let values: Vec<f32> = (0..nvalues).map(number).collect();
            let x: Vec<f32> = (0..ncols).map(|i| number(i + 1000)).collect();
            let start = rows_before * ncols as u32;
            for set in available() {
                let multiply = |start: u32, y: &mut [f32]| {
                    let mut cursor = coded.cursor();
                    let mut products = RowProducts::new(&values, &x, start, y);
                    let code = &coded.code;
                    let done = set.multiply_elements(code, &mut cursor, nsteps, &mut products);
                    (done, cursor)
                };
                let mut y = vec![1.0; nrows];
                let (done, cursor) = multiply(start, &mut y);
                prop_assert!(done <= nsteps);
                let is_wide = set.name().starts_with("avx");
                prop_assert_eq!(done > 0, is_wide && nsteps > 0 && nrows > 0, "{}", set.name());
                // With the rows before.
                let mut all = vec![1.0; rows_before as usize + nrows];
                multiply(0, &mut all);
                let mut both = y.iter().zip(&all[rows_before as usize..]);
                let is_same = both.all(|(a, b)| a.to_bits() == b.to_bits());
                prop_assert!(is_same, "{}: {y:?}, {all:?}", set.name());
                let (mut expected, mut all) = (vec![1.0f64; nrows], vec![1.0f64; nrows]);
                let mut reference = coded.cursor();
                for _ in 0..done {
                    let mut step = Elements::default();
                    decode_step(&coded.code, &mut reference, TANS_LANES, &mut step);
                    for (&position, &rank) in step.positions().iter().zip(step.ranks()) {
                        let Some(at) = position.checked_sub(start) else { continue };
                        let (row, col) = (at as usize / ncols, at as usize % ncols);
                        if row < nrows {
                            let product = f64::from(values[usize::from(rank)]) * f64::from(x[col]);
                            expected[row] += product;
                            all[row] += product.abs();
                        }
                    }
                }
                let is_ended = reference.position >= start + (nrows * ncols) as u32;
                prop_assert!(done < 1 || done == nsteps || is_ended, "{}: {done}", set.name());
                prop_assert_eq!(left(cursor), left(reference), "{}", set.name());
                for ((found, expected), all) in y.iter().zip(expected).zip(all) {
                    prop_assert!((f64::from(*found) - expected).abs() <= 1e-5 * all, "{}", set.name());
                }
            }
        }
    }

    #[test]
    fn more_steps_than_a_chunk_holds_panic() {
        let stream = TansStream { bytes: &[], at: 0, states: [0; TANS_LANES] };
        let cursor = ElementCursor {
            gaps: stream.clone(),
            ranks: stream,
            gap_planes: &[],
            rank_planes: &[],
            position: 0,
        };
        let code = ElementCode {
            gaps: None,
            gap_low_bits: 0,
            ranks: None,
            rank_low_bits: 0,
            pruned: None,
        };
        for set in available() {
            let run = |nsteps: usize| {
                std::panic::catch_unwind(|| {
                    let mut out = Elements::default();
                    set.decode_elements(&code, &mut cursor.clone(), nsteps, &mut out);
                })
            };
            assert!(run(CHUNK_STEPS).is_ok() && run(CHUNK_STEPS + 1).is_err(), "{}", set.name());
        }
    }
}
