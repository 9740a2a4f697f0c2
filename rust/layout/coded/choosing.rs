//! What the encoder of `coded` chooses, and the blocks that it writes.
//!
//! ```text
//!   form:   every entry an element if that takes fewer bits, where over two fifths are kept
//!   ranks:  for each number of plain bits, in the codebook's order and by frequency:
//!               the bits of classes, plain bits and order; the fewest
//!   gaps:   for plain bits near log2 of the median gap, for some numbers of classes:
//!               the bits of classes, plain bits, and of the escapes with the ranks they carry
//! ```
//!
//! The bits of classes are those of their counts of states, which is what is stored in the end.

use super::{Form, MAX_BLOCK_ROWS, MAX_RANK_LOW_BITS, Parameters};
use crate::bits::{self, BitWriter, bit_width};
use crate::entropy::tans::{Counts, MAX_CLASSES, STATE_BITS};
use crate::rows::{Rows, Shape};
use crate::simd::tans::{MAX_GAP_LOW_BITS, TANS_LANES, lane, lanes_in_use};

/// Elements of a block: its first states are then one part in 300 at most of nine bits each.
const BLOCK_ELEMENTS: usize = 1 << 16;
/// Gap classes under the escape that are tried, beside as many as there are.
const CLASSES_TRIED: [u32; 18] =
    [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 127];

/// Bits that an escape may cost beside its own: a step with one takes a third longer.
const ESCAPE_BITS: f64 = 8.0;

/// How to encode a matrix.
pub(super) struct Choice {
    pub(super) parameters: Parameters,
    /// Counts of gap classes; none for one class.
    pub(super) gaps: Option<Counts>,
    /// Counts of rank classes; none for one class.
    pub(super) ranks: Option<Counts>,
    /// The number of each rank.
    pub(super) order: Vec<u16>,
}

/// A code of ranks, and its bits.
struct RankCode {
    nbits: f64,
    low_bits: u32,
    is_ordered: bool,
    counts: Option<Counts>,
    order: Vec<u16>,
}

/// A code of gaps, and its bits.
struct GapCode {
    nbits: f64,
    low_bits: u32,
    classes: usize,
    counts: Option<Counts>,
}

/// The choice with the fewest bits for rows that keep something.
pub(super) fn choose(rows: &Rows, symbols: &[u16], k: usize) -> Choice {
    let mut histogram = vec![0u64; k];
    symbols.iter().for_each(|&symbol| histogram[usize::from(symbol)] += 1);
    let (nnz, entries) = (rows.nnz(), rows.shape().entries());
    let ranks = rank_code(&histogram);
    let kept_rows = block_rows(rows.shape(), nnz);
    let gaps = gap_code(rows, kept_rows, &ranks);
    let every = (k < 1 << 16 && nnz * 5 > entries * 2 && nnz < entries).then(|| {
        histogram.insert(0, (entries - nnz) as u64);
        rank_code(&histogram)
    });
    let (form, block_rows, gaps, ranks) = match every {
        Some(every) if every.nbits < gaps.nbits + ranks.nbits => {
            let none = GapCode { nbits: 0.0, low_bits: 0, classes: 1, counts: None };
            (Form::Every, block_rows(rows.shape(), entries), none, every)
        }
        _ => (Form::Kept, kept_rows, gaps, ranks),
    };
    let parameters = Parameters {
        form,
        block_rows,
        gap_low_bits: gaps.low_bits,
        gap_classes: gaps.classes,
        rank_low_bits: ranks.low_bits,
        is_ordered: ranks.is_ordered,
    };
    Choice { parameters, gaps: gaps.counts, ranks: ranks.counts, order: ranks.order }
}

/// Rows of about equal blocks of at most about [`BLOCK_ELEMENTS`].
fn block_rows(shape: Shape, nelements: usize) -> usize {
    let most = MAX_BLOCK_ROWS.min(u32::MAX as usize / shape.ncols.max(1)).max(1);
    let nblocks = nelements.div_ceil(BLOCK_ELEMENTS).max(1);
    shape.nrows.div_ceil(nblocks).clamp(1, most)
}

fn rank_code(histogram: &[u64]) -> RankCode {
    let identity: Vec<u16> = (0..histogram.len()).map(|number| number as u16).collect();
    let mut by_frequency = identity.clone();
    by_frequency.sort_by_key(|&number| std::cmp::Reverse(histogram[usize::from(number)]));
    let total = histogram.iter().sum::<u64>() as f64;
    let width = bit_width(histogram.len() as u64 - 1);
    let order_bits = histogram.len() as f64 * f64::from(width);
    let mut best: Option<RankCode> = None;
    for low_bits in width.saturating_sub(7)..=width.min(MAX_RANK_LOW_BITS) {
        for (order, is_ordered) in [(&identity, false), (&by_frequency, true)] {
            if is_ordered && (low_bits == 0 || low_bits == width) {
                continue;
            }
            let mut classes = vec![0; histogram.len().div_ceil(1 << low_bits)];
            for (rank, &number) in order.iter().enumerate() {
                classes[rank >> low_bits] += histogram[usize::from(number)];
            }
            let counts = (classes.len() > 1).then(|| Counts::from_histogram(&classes));
            let nbits = counts.as_ref().map_or(0.0, |counts| {
                counts.cost(&classes) + Counts::stored_bits(classes.len()) as f64
            }) + total * f64::from(low_bits)
                + if is_ordered { order_bits } else { 0.0 };
            if best.as_ref().is_none_or(|best| nbits < best.nbits) {
                best = Some(RankCode { nbits, low_bits, is_ordered, counts, order: order.clone() });
            }
        }
    }
    best.expect("one number of plain bits at least is tried")
}

/// The gaps before each kept weight of a block of rows.
fn gaps(rows: &Rows, block: std::ops::Range<usize>) -> impl Iterator<Item = u32> {
    let (first, ncols) = (block.start, rows.shape().ncols);
    let mut next = 0;
    block
        .flat_map(move |row| {
            let start = (row - first) * ncols;
            rows.row_cols(row).iter().map(move |&col| (start + col as usize) as u32)
        })
        .map(move |position| {
            let gap = position - next;
            next = position.wrapping_add(1);
            gap
        })
}

/// How often each high part of a gap occurs: those under the length counted, others listed.
struct Highs {
    counted: Vec<u64>,
    others: Vec<u32>,
}

impl Highs {
    /// The histogram of classes with `classes` under the escape, and the number of escapes.
    fn classes(&self, classes: u32) -> (Vec<u64>, u64) {
        let mut histogram = vec![0; classes as usize + 1];
        let mut escapes = 0;
        let counted = (0..).zip(&self.counted).map(|(high, &count)| (high, count));
        for (high, count) in counted.chain(self.others.iter().map(|&high| (high, 1))) {
            histogram[(high % classes) as usize] += count;
            escapes += count * u64::from(high / classes);
        }
        histogram[classes as usize] = escapes;
        (histogram, escapes)
    }
}

fn gap_code(rows: &Rows, block_rows: usize, ranks: &RankCode) -> GapCode {
    let nrows = rows.shape().nrows;
    let all: Vec<u32> = (0..nrows)
        .step_by(block_rows)
        .flat_map(|start| gaps(rows, start..nrows.min(start + block_rows)))
        .collect();
    let mut widths = [0u64; 33];
    all.iter().for_each(|&gap| widths[bit_width(gap.into()) as usize] += 1);
    let mut under = 0;
    let fitting = widths.iter().take_while(|&&count| {
        under += count;
        under * 2 <= all.len() as u64
    });
    let middle = (fitting.count() as u32).saturating_sub(1).min(MAX_GAP_LOW_BITS);
    // What an escape carries is a rank of the commonest class; and it costs time.
    let escape_bits = ESCAPE_BITS
        + ranks.counts.as_ref().map_or(0.0, |counts| 7.0 - counts.largest().1.log2())
        + f64::from(ranks.low_bits);
    let mut best: Option<GapCode> = None;
    for low_bits in middle.saturating_sub(2)..=(middle + 1).min(MAX_GAP_LOW_BITS) {
        let mut highs = Highs { counted: vec![0; 1024], others: Vec::new() };
        for gap in &all {
            let high = gap >> low_bits;
            match highs.counted.get_mut(high as usize) {
                Some(count) => *count += 1,
                None => highs.others.push(high),
            }
        }
        let last = highs.counted.iter().rposition(|&count| count > 0).unwrap_or(0);
        let last = highs.others.iter().copied().max().unwrap_or(0).max(last as u32);
        highs.counted.truncate(last as usize + 1);
        let plain = f64::from(low_bits);
        let mut keep = |code: GapCode| {
            if best.as_ref().is_none_or(|best| code.nbits < best.nbits) {
                best = Some(code);
            }
        };
        if last == 0 {
            let nbits = plain * all.len() as f64;
            keep(GapCode { nbits, low_bits, classes: 1, counts: None });
            continue;
        }
        let fewer = CLASSES_TRIED.into_iter().filter(|&classes| classes <= last);
        for classes in fewer.chain((last < MAX_CLASSES as u32 - 1).then_some(last + 1)) {
            let (histogram, escapes) = highs.classes(classes);
            let counts = Counts::from_histogram(&histogram);
            let nbits = counts.cost(&histogram)
                + (all.len() as u64 + escapes) as f64 * plain
                + escapes as f64 * escape_bits
                + Counts::stored_bits(histogram.len()) as f64;
            keep(GapCode { nbits, low_bits, classes: histogram.len(), counts: Some(counts) });
        }
    }
    best.expect("one number of plain bits at least is tried")
}

/// How the elements of blocks become bytes.
pub(super) struct Coding<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) gaps: &'a Option<Counts>,
    pub(super) ranks: &'a Option<Counts>,
    /// The rank of each number.
    pub(super) rank_of: &'a [u16],
}

impl Coding<'_> {
    /// Appends block `block` to `out`; gives its number of elements, and bytes of gap classes.
    pub(super) fn encode_block(
        &self,
        rows: &Rows,
        symbols: &[u16],
        block: usize,
        out: &mut Vec<u8>,
    ) -> (usize, usize) {
        let block = self.parameters.rows(block, rows.shape().nrows);
        let kept = rows.indptr()[block.start]..rows.indptr()[block.end];
        let (mut gap_parts, mut ranks) = (Vec::new(), Vec::with_capacity(kept.len()));
        match self.parameters.form {
            Form::Kept => {
                let escape = self.parameters.gap_classes as u32 - 1;
                let escape_rank = self.ranks.as_ref().map_or(0, |counts| counts.largest().0) as u16
                    * (1 << self.parameters.rank_low_bits);
                for (gap, &symbol) in gaps(rows, block).zip(&symbols[kept]) {
                    let mut high = gap >> self.parameters.gap_low_bits;
                    while escape > 0 && high >= escape {
                        gap_parts.push((escape as u8, 0));
                        ranks.push(escape_rank);
                        high -= escape;
                    }
                    let plain = gap & ((1 << self.parameters.gap_low_bits) - 1);
                    gap_parts.push((high as u8, plain as u16));
                    ranks.push(self.rank_of[usize::from(symbol)]);
                }
            }
            Form::Every => {
                let ncols = rows.shape().ncols;
                let mut at = kept.start;
                for row in block {
                    let first = ranks.len();
                    ranks.resize(first + ncols, self.rank_of[0]);
                    for &col in rows.row_cols(row) {
                        let number = usize::from(symbols[at]) + 1;
                        ranks[first + col as usize] = self.rank_of[number];
                        at += 1;
                    }
                }
                gap_parts.resize(ranks.len(), (0, 0));
            }
        }
        let low = self.parameters.rank_low_bits;
        let rank_parts: Vec<(u8, u16)> =
            ranks.iter().map(|&rank| ((rank >> low) as u8, rank & ((1 << low) - 1))).collect();
        let before = out.len();
        let mut states = BitWriter::new();
        self.put_classes(self.gaps, &gap_parts, &mut states, out);
        let gap_length = out.len() - before;
        self.put_classes(self.ranks, &rank_parts, &mut states, out);
        put_planes(self.parameters.gap_low_bits, &gap_parts, out);
        put_planes(low, &rank_parts, out);
        out.extend(states.finish());
        (ranks.len(), gap_length)
    }

    fn put_classes(
        &self,
        counts: &Option<Counts>,
        parts: &[(u8, u16)],
        states: &mut BitWriter,
        out: &mut Vec<u8>,
    ) {
        let Some(counts) = counts else { return };
        let classes: Vec<u8> = parts.iter().map(|part| part.0).collect();
        let mut writer = BitWriter::new();
        let first = counts.encoder().encode(&classes, &mut writer);
        out.extend(writer.finish());
        for element in 0..classes.len().min(TANS_LANES) {
            states.put(first[lane(element)].into(), STATE_BITS);
        }
    }
}

/// Appends the plain bits of each step, plane after plane.
fn put_planes(nbits: u32, parts: &[(u8, u16)], out: &mut Vec<u8>) {
    let mut writer = BitWriter::new();
    for step in parts.chunks(TANS_LANES) {
        let in_use = lanes_in_use(step.len());
        for bit in 0..nbits {
            let mut lanes = in_use;
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize;
                writer.put(u64::from(step[lane / 4 + lane % 4 * 16].1 >> bit & 1), 1);
                lanes &= lanes - 1;
            }
        }
    }
    debug_assert!(bits::packed_nbytes(parts.len(), nbits).is_some());
    out.extend(writer.finish());
}
