//! `coded`: gaps and symbols in 64 lanes of tANS, decoded a block of rows at a time.
//!
//! ```text
//!   counts:  states of each gap class, then of each rank class, 7 bits each
//!   order:   the symbol of each rank, where ranks go by frequency
//!   lengths: elements of each block of rows ([`Offsets`])
//!   gap_ends, ends: bytes of each block's gap stream, of all of it ([`Offsets`])
//!   blocks:  │ gap classes │ rank classes │ gap planes │ rank planes │ first states │ next block …
//!
//!   element = gap to the last kept weight of the block, row after row, and rank of the symbol
//!   gap     = class · 2^gap_low_bits + plain bits        class and plain bits of its own
//!   rank    = class · 2^rank_low_bits + plain bits       for each of the two
//! ```
//!
//! A block's kept weights are one sequence, dealt to the lanes in turns, so that rows may have any
//! length, and rows that end cost nothing: the gap runs on over them (`simd/tans.rs` has the
//! lanes). The last gap class is an escape that moves on and keeps nothing. Where more than half is
//! kept, every entry is an element, its symbol one of k + 1, and there are no gaps; the encoder
//! takes what is smaller. It also chooses how much of a gap is plain bits: a geometric distribution
//! is nearly flat over a class that is far narrower than its mean. The same goes for symbols, where
//! those of a class are neighbours in the codebook, or alike in frequency.
//!
//! Space: within 2 % of the order-0 entropy of positions and symbols for large matrices: the states
//! cost 0.3 to 1 %, and a block's first states 112 bytes, which is why a block has up to 64 Ki
//! elements. Time: about 0.3 ns an element; a row in the middle of a block costs those before it.

mod choosing;
mod decoding;

use super::{Encoded, Encoding, Layout, LayoutSpec, Parts, Product, Runs};
use crate::array::Array;
use crate::bits::{self, BitWriter};
use crate::entropy::Coder;
use crate::entropy::tans::{Counts, MAX_CLASSES};
use crate::error::{Error, Result};
use crate::interruption;
use crate::offsets::Offsets;
use crate::rows::{RowBlock, Rows, Shape};
use crate::simd;
use crate::simd::tans::{ElementCode, MAX_GAP_LOW_BITS};
use choosing::Choice;
use std::ops::Range;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "coded",
    id: 8,
    coders: &[Coder::Tans],
    sections: &["counts", "order", "lengths", "gap_ends", "ends", "blocks"],
    holds_values: false,
    encode,
    read,
};

/// Most rows of a block, so that rows are bounded by bytes.
const MAX_BLOCK_ROWS: usize = 1 << 16;
/// Plain bits of a rank: fewer than the 16 of a symbol, so that a class is left.
const MAX_RANK_LOW_BITS: u32 = 15;
const NPARAMS: usize = 17;

/// What is an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A kept weight: its gap and its symbol.
    Kept,
    /// An entry: 0 where it is pruned, else its symbol plus 1.
    Every,
}

/// The numbers that tell how elements are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parameters {
    form: Form,
    block_rows: usize,
    gap_low_bits: u32,
    gap_classes: usize,
    rank_low_bits: u32,
    is_ordered: bool,
}

impl Parameters {
    /// The numbers that ranks stand for: symbols, or 0 and symbols plus 1.
    fn alphabet(&self, k: usize) -> usize {
        k + usize::from(self.form == Form::Every)
    }

    fn rank_classes(&self, k: usize) -> usize {
        self.alphabet(k).div_ceil(1 << self.rank_low_bits)
    }

    /// The rows of block `block`.
    fn rows(&self, block: usize, nrows: usize) -> Range<usize> {
        let start = block * self.block_rows;
        start..nrows.min(start + self.block_rows)
    }

    /// The blocks that hold some of `rows`: the number of each, its rows, and those wanted of them.
    fn blocks(
        &self,
        rows: &Range<usize>,
        nrows: usize,
    ) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
        let rows = rows.clone();
        let first = rows.start / self.block_rows;
        let last = if rows.is_empty() { first } else { rows.end.div_ceil(self.block_rows) };
        (first..last).map(move |block| {
            let in_block = self.rows(block, nrows);
            let wanted = rows.start.max(in_block.start)..rows.end.min(in_block.end);
            (block, in_block, wanted)
        })
    }
}

/// A matrix in this layout; none of anything where nothing is kept.
#[derive(Debug)]
struct Coded {
    shape: Shape,
    parameters: Parameters,
    code: ElementCode,
    /// The symbol of each rank (of that of pruned entries 0); empty where rank and symbol are the
    /// same.
    symbols: Vec<u16>,
    counts: Array<u8>,
    order: Array<u8>,
    lengths: Offsets,
    gap_ends: Offsets,
    ends: Offsets,
    blocks: Array<u8>,
}

/// Nothing is kept: no blocks.
#[derive(Debug)]
struct Empty;

/// The element code of parameters and counts.
fn element_code(
    parameters: &Parameters,
    gaps: Option<&Counts>,
    ranks: Option<&Counts>,
    pruned: Option<u16>,
) -> ElementCode {
    ElementCode {
        gaps: gaps.map(|counts| counts.table(true)),
        gap_low_bits: parameters.gap_low_bits,
        ranks: ranks.map(|counts| counts.table(false)),
        rank_low_bits: parameters.rank_low_bits,
        pruned,
    }
}

fn encode(rows: &Rows, _: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared("coded")?;
    if rows.nnz() == 0 {
        return Ok((Box::new(Empty), Some(codebook.clone())));
    }
    let Choice { parameters, gaps, ranks, order } = choosing::choose(rows, symbols, codebook.k());
    let alphabet = parameters.alphabet(codebook.k());
    let mut rank_of = vec![0u16; alphabet];
    order.iter().enumerate().for_each(|(rank, &number)| rank_of[usize::from(number)] = rank as u16);
    let coding =
        choosing::Coding { parameters: &parameters, gaps: &gaps, ranks: &ranks, rank_of: &rank_of };
    let (mut lengths, mut gap_lengths, mut nbytes) = (Vec::new(), Vec::new(), Vec::new());
    let mut blocks = Vec::new();
    for block in 0..rows.shape().nrows.div_ceil(parameters.block_rows) {
        interruption::check()?;
        let before = blocks.len();
        let (length, gap_length) = coding.encode_block(rows, symbols, block, &mut blocks);
        lengths.push(length as u64);
        gap_lengths.push(gap_length as u64);
        nbytes.push((blocks.len() - before) as u64);
    }
    let mut counts = BitWriter::new();
    [&gaps, &ranks].into_iter().flatten().for_each(|stored| stored.write(&mut counts));
    let width = bits::bit_width(alphabet as u64 - 1);
    let stored = if parameters.is_ordered { order.as_slice() } else { &[] };
    let coded = Coded {
        shape: rows.shape(),
        parameters,
        code: element_code(&parameters, gaps.as_ref(), ranks.as_ref(), pruned(&parameters, &order)),
        symbols: symbols_of(&parameters, &order),
        counts: counts.finish().into(),
        order: bits::pack(stored.iter().map(|&number| number.into()), width).into(),
        lengths: Offsets::from_lengths(&lengths),
        gap_ends: Offsets::from_lengths(&gap_lengths),
        ends: Offsets::from_lengths(&nbytes),
        blocks: blocks.into(),
    };
    Ok((Box::new(coded), Some(codebook.clone())))
}

/// The rank of pruned entries, where they are elements.
fn pruned(parameters: &Parameters, order: &[u16]) -> Option<u16> {
    let rank = (parameters.form == Form::Every).then(|| order.iter().position(|&n| n == 0))?;
    rank.map(|rank| rank as u16)
}

/// The symbol of each rank of this order; nothing where they are the same.
fn symbols_of(parameters: &Parameters, order: &[u16]) -> Vec<u16> {
    match (parameters.form, parameters.is_ordered) {
        (Form::Kept, false) => Vec::new(),
        (Form::Kept, true) => order.to_vec(),
        (Form::Every, _) => order.iter().map(|number| number.saturating_sub(1)).collect(),
    }
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let params: [u64; NPARAMS] = parts.params()?;
    if parts.nnz == 0 {
        for name in SPEC.sections {
            parts.section_of::<u8>(name, 0)?;
        }
        if params.iter().any(|&param| param != 0) {
            return Err(Error::corrupt("params: a number over 0 with nnz = 0, expected zeros"));
        }
        return Ok(Box::new(Empty));
    }
    let [
        form,
        block_rows,
        gap_low,
        gap_classes,
        rank_low,
        is_ordered,
        nelements,
        gap_nbytes,
        offsets @ ..,
    ] = params;
    let (shape, k) = (parts.shape, parts.k());
    let parameters =
        read_parameters([form, block_rows, gap_low, gap_classes, rank_low, is_ordered], shape, k)?;
    let expected = match (parameters.form, parameters.gap_classes) {
        (Form::Every, _) => Some(shape.entries() as u64),
        (Form::Kept, 1) => Some(parts.nnz as u64),
        _ => None,
    };
    if nelements < parts.nnz as u64 || expected.is_some_and(|expected| nelements != expected) {
        return Err(Error::corrupt(format!(
            "params: {nelements} elements, expected {} for nnz = {}",
            expected.map_or_else(|| "more".into(), |expected| expected.to_string()),
            parts.nnz
        )));
    }
    let (gaps, ranks, counts) = read_counts(&parts, &parameters)?;
    let order_section = parts.section("order")?;
    let order = read_order(&order_section, &parameters, k)?;
    let blocks = parts.section::<u8>("blocks")?;
    let nblocks = shape.nrows.div_ceil(parameters.block_rows);
    let read_offsets = |name: &str, total: u64, at: usize| {
        let params = [offsets[at], offsets[at + 1], offsets[at + 2]];
        Offsets::read(nblocks, total, params, parts.section(name)?)
            .map_err(|e| e.within(&format!("section {name}")))
    };
    let coded = Coded {
        shape,
        parameters,
        code: element_code(&parameters, gaps.as_ref(), ranks.as_ref(), pruned(&parameters, &order)),
        symbols: symbols_of(&parameters, &order),
        counts,
        order: order_section,
        lengths: read_offsets("lengths", nelements, 0)?,
        gap_ends: read_offsets("gap_ends", gap_nbytes, 3)?,
        ends: read_offsets("ends", blocks.len() as u64, 6)?,
        blocks,
    };
    coded.check_blocks(simd::active()?, parts.nnz, k)?;
    Ok(Box::new(coded))
}

fn read_parameters(params: [u64; 6], shape: Shape, k: usize) -> Result<Parameters> {
    let [form, block_rows, gap_low, gap_classes, rank_low, is_ordered] = params;
    let fits = form <= 1
        && (1..=MAX_BLOCK_ROWS as u64).contains(&block_rows)
        && block_rows.checked_mul(shape.ncols as u64).is_some_and(|n| n <= u64::from(u32::MAX))
        && gap_low <= u64::from(MAX_GAP_LOW_BITS)
        && (1..=MAX_CLASSES as u64).contains(&gap_classes)
        && rank_low <= u64::from(MAX_RANK_LOW_BITS)
        && is_ordered <= 1
        && (form == 0 || (gap_low, gap_classes) == (0, 1));
    let parameters = Parameters {
        form: if form == 0 { Form::Kept } else { Form::Every },
        block_rows: block_rows as usize,
        gap_low_bits: gap_low as u32,
        gap_classes: gap_classes as usize,
        rank_low_bits: rank_low as u32,
        is_ordered: is_ordered == 1,
    };
    if !fits || parameters.alphabet(k) > 1 << 16 || parameters.rank_classes(k) > MAX_CLASSES {
        return Err(Error::corrupt(format!(
            "params: form {form}, blocks of {block_rows} rows, {gap_low} and {rank_low} plain bits, \
             {gap_classes} gap classes and order {is_ordered} for k = {k}, expected ones that go \
             together"
        )));
    }
    Ok(parameters)
}

type StoredCounts = (Option<Counts>, Option<Counts>, Array<u8>);

/// The counts of gap and rank classes; none of either where there is one class.
fn read_counts(parts: &Parts, parameters: &Parameters) -> Result<StoredCounts> {
    let stored = |nclasses: usize| if nclasses > 1 { nclasses } else { 0 };
    let gap_classes = stored(parameters.gap_classes);
    let rank_classes = stored(parameters.rank_classes(parts.k()));
    let nbits = Counts::stored_bits(gap_classes + rank_classes);
    let bytes: Array<u8> = parts.section_of("counts", nbits.div_ceil(8))?;
    if bits::peek(bytes.as_slice(), nbits) != 0 {
        return Err(Error::corrupt("section counts: bits after the last count, expected zeros"));
    }
    let read = |at: usize, nclasses: usize| {
        let counts = (nclasses > 0)
            .then(|| Counts::read(bytes.as_slice(), Counts::stored_bits(at), nclasses));
        counts.transpose().map_err(|e| e.within("section counts"))
    };
    let (gaps, ranks) = (read(0, gap_classes)?, read(gap_classes, rank_classes)?);
    Ok((gaps, ranks, bytes))
}

/// The numbers in the order of their ranks.
fn read_order(bytes: &Array<u8>, parameters: &Parameters, k: usize) -> Result<Vec<u16>> {
    let alphabet = parameters.alphabet(k);
    let width = bits::bit_width(alphabet as u64 - 1);
    let nbits = if parameters.is_ordered { alphabet * width as usize } else { 0 };
    if bytes.len() != nbits.div_ceil(8) || bits::peek(bytes.as_slice(), nbits) != 0 {
        return Err(Error::corrupt(format!(
            "section order: {} bytes, expected {nbits} bits and zeros after them",
            bytes.len()
        )));
    }
    let mut order: Vec<u16> = (0..alphabet).map(|number| number as u16).collect();
    if parameters.is_ordered {
        bits::unpack(bytes.as_slice(), 0, width, &mut order);
        let mut seen = vec![false; alphabet];
        for &number in &order {
            if seen.get(usize::from(number)) != Some(&false) {
                return Err(Error::corrupt(format!(
                    "section order: {number} twice or over {alphabet}, expected each number once"
                )));
            }
            seen[usize::from(number)] = true;
        }
    }
    Ok(order)
}

impl Layout for Coded {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn runs(&self) -> Option<&dyn Runs> {
        Some(self)
    }

    fn params(&self) -> Vec<u64> {
        let Parameters { form, block_rows, gap_low_bits, gap_classes, rank_low_bits, is_ordered } =
            self.parameters;
        let mut params = vec![
            u64::from(form == Form::Every),
            block_rows as u64,
            gap_low_bits.into(),
            gap_classes as u64,
            rank_low_bits.into(),
            is_ordered.into(),
            self.lengths.start(self.lengths.len()),
            self.gap_ends.start(self.gap_ends.len()),
        ];
        for offsets in [&self.lengths, &self.gap_ends, &self.ends] {
            params.extend(offsets.params());
        }
        params
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![
            self.counts.as_slice(),
            self.order.as_slice(),
            self.lengths.as_bytes(),
            self.gap_ends.as_bytes(),
            self.ends.as_bytes(),
            self.blocks.as_slice(),
        ]
    }

    fn block_rows(&self) -> usize {
        self.parameters.block_rows.min(self.shape.nrows)
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        self.decode_rows(simd::active()?, rows, out)
    }

    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        self.multiply(product, rows, y)
    }
}

impl Layout for Empty {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        vec![0; NPARAMS]
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![&[]; SPEC.sections.len()]
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        rows.for_each(|_| out.end_row());
        Ok(())
    }
}
