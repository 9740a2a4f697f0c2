//! `hac`: canonical Huffman codewords of every entry, zeros included (Huffman address map).
//!
//! ```text
//!   stream: row 0: code(w₀₀) code(w₀₁) … │ row 1: code(w₁₀) …     no gaps between rows
//!
//!   published (raw)                          coded
//!     codebook in the codewords' order         codebook as it is
//!     zero_rank: u32, where zero stands        code_lengths: packed, of zero, then each symbol
//!       in that order (if there is a zero)     row_ends: Offsets
//!     first_symbols, first_codewords,          stream
//!       length_starts (module `published`)
//!     row_ends: u32 or u64 [nrows]
//!     stream: u32 [⌈bits / 32⌉]
//! ```
//!
//! Parameters: the arrangement (0 coded, 1 published), the stream's bits, and the width of a code
//! length with three of `row_ends`, or the longest codeword.
//!
//! Decoding skips pruned entries: 11 bits index a table of entries that hold some zeros, at most
//! one kept weight, and zeros again.
//!
//! ```text
//!   31    28 27 26 25     22 21 20  19    16 15     0
//!  │ nbits  │  0  │ entries │ kept │ before │ symbol │    all 0: a codeword over 11 bits comes first
//! ```
//!
//! As in `entropy::huffman`, three look-ups a window and four rows in turns.
//!
//! Price: never under one bit an entry, 3.1 % of dense, however sparse; 1.03 of the order-0 entropy
//! where 60 % are pruned, 1.8 where 90 % are. 4096 × 4096 at 90 % encodes in 17 ms and decodes in 9
//! ms on one core of an AMD EPYC. Zeros and values in one code need no row counts. An alphabet with
//! one symbol has no bits, and rows are then whole by their number of columns, as always here.
//!
//! Source: Marinò et al. 2021, "Compact representations of convolutional neural networks via weight
//! pruning and quantization" (HAC).

use super::published::{self, CodeTable, check_empty};
use super::row_ends::RowEnds;
use super::{Columns, Encoded, Encoding, Layout, LayoutSpec, Parts, check_rows};
use crate::array::Array;
use crate::codebook::Codebook;
use crate::entropy::Coder;
use crate::entropy::huffman::{Code, LANES, PRIMARY_BITS, Search, Writer, check_padding, window};
use crate::error::{Error, Result};
use crate::interruption;
use crate::rows::{RowBlock, Rows, Shape};
use std::ops::Range;
use std::sync::Arc;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "hac",
    id: 5,
    coders: &[Coder::Huffman],
    sections: &[
        "zero_rank",
        "first_symbols",
        "first_codewords",
        "length_starts",
        "code_lengths",
        "row_ends",
        "stream",
    ],
    holds_values: false,
    encode,
    read,
};

/// More entries than this are refused: each takes a bit and more.
const MAX_ENTRIES: u64 = 1 << 40;

#[derive(Debug)]
struct Hac {
    ncols: usize,
    code: StoredCode,
    row_ends: RowEnds,
    total_bits: u64,
    stream: Array<u32>,
    entries: Entries,
}

#[derive(Debug)]
enum StoredCode {
    Raw { zero_rank: Array<u32>, table: CodeTable, longest: u32 },
    Coded { lengths: Array<u8>, width: u64 },
}

/// What the stream holds.
#[derive(Debug)]
enum Entries {
    /// Nothing is kept.
    Pruned,
    /// Everything is kept, and is this symbol.
    All(u16),
    /// At least two different entries.
    Mixed(Box<Table>),
}

fn encode(rows: &Rows, encoding: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared("hac")?;
    let Shape { nrows, ncols } = rows.shape();
    let entries = rows.shape().entries() as u64;
    // Symbol 0 of the code is zero, symbol s + 1 the codebook's s.
    let mut histogram = vec![0u64; codebook.k() + 1];
    histogram[0] = entries - rows.nnz() as u64;
    symbols.iter().for_each(|&symbol| histogram[usize::from(symbol) + 1] += 1);
    if entries > MAX_ENTRIES && histogram.iter().filter(|&&count| count > 0).count() > 1 {
        return Err(Error::invalid(format!(
            "hac: {entries} entries, expected at most 2^40 (each takes a bit or more)"
        )));
    }
    let code = Code::from_histogram(&histogram);
    let codewords = code.codewords();
    let total_bits = code.cost(&histogram);
    let mut writer = Writer::with_capacity(total_bits);
    let mut row_bits = Vec::with_capacity(nrows);
    let zeros = ZeroRun::new(codewords[0]);
    for row in 0..nrows {
        interruption::check()?;
        let (start, mut next) = (writer.position(), 0);
        let at = rows.indptr()[row]..rows.indptr()[row + 1];
        for (&col, &symbol) in rows.cols()[at.clone()].iter().zip(&symbols[at]) {
            zeros.put(col as usize - next, &mut writer);
            next = col as usize + 1;
            let (codeword, length) = codewords[usize::from(symbol) + 1];
            writer.put(codeword, length);
        }
        zeros.put(ncols - next, &mut writer);
        row_bits.push(writer.position() - start);
    }
    assert_eq!(writer.position(), total_bits, "hac: the stream is not what the code costs");
    let (stored, names, codebook) = match encoding.columns {
        Columns::Coded => {
            let (lengths, width) = code.pack();
            let stored = StoredCode::Coded { lengths: lengths.into(), width };
            (stored, Names::Coded, codebook.clone())
        }
        Columns::Raw => {
            let zero_rank = code.order().iter().position(|&s| s == 0).map(|rank| rank as u32);
            let kept = code.order().iter().filter(|&&s| s > 0);
            let values: Vec<f32> = kept.map(|&s| codebook.values()[s as usize - 1]).collect();
            let stored = StoredCode::Raw {
                zero_rank: Vec::from_iter(zero_rank).into(),
                table: CodeTable::new(&code),
                longest: code.longest(),
            };
            (stored, Names::Raw { zero_rank }, Arc::new(Codebook::new(values)?))
        }
    };
    let code = if encoding.columns == Columns::Raw { code.by_rank() } else { code };
    let hac = Hac {
        ncols,
        code: stored,
        row_ends: RowEnds::new(&row_bits, encoding.columns),
        total_bits,
        stream: writer.finish().into(),
        entries: Entries::new(&code, names),
    };
    Ok((Box::new(hac), Some(codebook)))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let (nnz, entries) = (parts.nnz, parts.shape.entries());
    let (columns, total_bits, code_param, ends) = match parts.params[..] {
        [published::CODED, total, width, a, b, c] => (Columns::Coded, total, width, [a, b, c]),
        [published::RAW, total, longest] => (Columns::Raw, total, longest, [0; 3]),
        _ => {
            return Err(Error::corrupt(format!(
                "params: {:?}, expected 0 and five numbers or 1 and two",
                parts.params
            )));
        }
    };
    let (stored, code, names) = match columns {
        Columns::Coded => {
            let tables = ["zero_rank", "first_symbols", "first_codewords", "length_starts"];
            check_empty(&parts, &tables, columns)?;
            let lengths = parts.section("code_lengths")?;
            let code = Code::unpack(&lengths, parts.k() + 1, code_param)
                .map_err(|e| e.within("section code_lengths"))?;
            (StoredCode::Coded { lengths, width: code_param }, code, Names::Coded)
        }
        Columns::Raw => {
            check_empty(&parts, &["code_lengths"], columns)?;
            let has_zero = nnz < entries;
            let zero_rank = parts.section_of::<u32>("zero_rank", usize::from(has_zero))?;
            let k = parts.k() + usize::from(has_zero);
            let zero = zero_rank.as_slice().first().copied();
            if zero.is_some_and(|rank| rank as usize >= k) {
                return Err(Error::corrupt(format!(
                    "section zero_rank: {zero:?}, expected under k = {k}"
                )));
            }
            let (table, code) = CodeTable::read(&parts, k, code_param)?;
            let longest = code.longest();
            (StoredCode::Raw { zero_rank, table, longest }, code, Names::Raw { zero_rank: zero })
        }
    };
    let stream = parts.section::<u32>("stream")?;
    check_padding(stream.as_slice(), total_bits)?;
    // A lone symbol costs no bits, and any other at least one: the stream bounds the work below.
    let fits = match code.order() {
        [] => entries == 0 && total_bits == 0,
        _ if entries == 0 => false,
        [_] => total_bits == 0,
        _ => entries as u64 <= total_bits,
    };
    if !fits {
        return Err(Error::corrupt(format!(
            "stream: {total_bits} bits for {entries} entries of {} symbols",
            code.order().len()
        )));
    }
    let hac = Hac {
        ncols: parts.shape.ncols,
        code: stored,
        row_ends: RowEnds::read(&parts, columns, total_bits, ends)?,
        total_bits,
        stream,
        entries: Entries::new(&code, names),
    };
    match hac.entries {
        Entries::Pruned if nnz == 0 => {}
        Entries::All(_) if nnz == entries => {}
        Entries::Mixed(_) => check_rows(&hac, &parts)?,
        _ => {
            return Err(Error::corrupt(format!(
                "stream: nnz = {nnz} of {entries} entries, but all have the same codeword"
            )));
        }
    }
    Ok(Box::new(hac))
}

impl Layout for Hac {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn orders_codebook(&self) -> bool {
        matches!(self.code, StoredCode::Raw { .. })
    }

    fn params(&self) -> Vec<u64> {
        match self.code {
            StoredCode::Raw { longest, .. } => {
                vec![published::RAW, self.total_bits, longest.into()]
            }
            StoredCode::Coded { width, .. } => {
                let [a, b, c] = self.row_ends.params();
                vec![published::CODED, self.total_bits, width, a, b, c]
            }
        }
    }

    fn sections(&self) -> Vec<&[u8]> {
        let (zero_rank, tables, lengths): (&[u8], [&[u8]; 3], &[u8]) = match &self.code {
            StoredCode::Raw { zero_rank, table, .. } => {
                (zero_rank.as_bytes(), table.sections(), &[])
            }
            StoredCode::Coded { lengths, .. } => (&[], [&[]; 3], lengths.as_bytes()),
        };
        let [symbols, codewords, starts] = tables;
        let (ends, stream) = (self.row_ends.as_bytes(), self.stream.as_bytes());
        vec![zero_rank, symbols, codewords, starts, lengths, ends, stream]
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        match &self.entries {
            Entries::Pruned => out.indptr.resize(rows.len() + 1, 0),
            Entries::All(symbol) => {
                for _ in rows {
                    out.cols.extend(0..self.ncols as u32);
                    out.symbols.resize(out.cols.len(), *symbol);
                    out.end_row();
                }
            }
            Entries::Mixed(table) => {
                let bounds = self.row_ends.bounds(rows.clone());
                let nlanes = rows.len().min(LANES);
                let mut cols = vec![0; nlanes * self.ncols];
                let mut symbols = vec![0; nlanes * self.ncols];
                for first in rows.clone().step_by(LANES) {
                    let bounds = &bounds[first - rows.start..];
                    let mut lanes: Vec<Lane<'_>> = cols
                        .chunks_exact_mut(self.ncols)
                        .zip(symbols.chunks_exact_mut(self.ncols))
                        .zip(&bounds[..bounds.len() - 1])
                        .map(|((cols, symbols), &at)| Lane { at, col: 0, kept: 0, cols, symbols })
                        .collect();
                    table.decode(self.stream.as_slice(), &mut lanes);
                    for (i, lane) in lanes.iter().enumerate() {
                        if lane.at != bounds[i + 1] {
                            return Err(Error::corrupt(format!(
                                "row {}: codewords end at bit {}, expected {}",
                                first + i,
                                lane.at,
                                bounds[i + 1]
                            )));
                        }
                        out.cols.extend_from_slice(&lane.cols[..lane.kept]);
                        out.symbols.extend_from_slice(&lane.symbols[..lane.kept]);
                        out.end_row();
                    }
                }
            }
        }
        Ok(())
    }
}

/// What the symbols of a code stand for.
#[derive(Clone, Copy)]
enum Names {
    /// Zero, then the codebook.
    Coded,
    /// The codebook, with zero put in at a rank.
    Raw { zero_rank: Option<u32> },
}

/// A zero among a table's symbols.
const ZERO: u32 = u32::MAX;

impl Names {
    /// The codebook's symbol, or [`ZERO`].
    fn name(self, symbol: u32) -> u32 {
        match self {
            Self::Coded => symbol.checked_sub(1).unwrap_or(ZERO),
            Self::Raw { zero_rank: None } => symbol,
            Self::Raw { zero_rank: Some(rank) } => match symbol.cmp(&rank) {
                std::cmp::Ordering::Less => symbol,
                std::cmp::Ordering::Equal => ZERO,
                std::cmp::Ordering::Greater => symbol - 1,
            },
        }
    }
}

impl Entries {
    fn new(code: &Code, names: Names) -> Self {
        match *code.order() {
            [] => Self::Pruned,
            [symbol] => match names.name(symbol) {
                ZERO => Self::Pruned,
                symbol => Self::All(symbol as u16),
            },
            _ => Self::Mixed(Box::new(Table::new(Search::new(code, |s| names.name(s))))),
        }
    }
}

/// The codeword of zero, repeated as often as a word holds it.
struct ZeroRun {
    pattern: u32,
    repeats: usize,
    length: u32,
}

impl ZeroRun {
    fn new((codeword, length): (u32, u32)) -> Self {
        let repeats = 32usize.checked_div(length as usize).unwrap_or(0);
        let pattern = (0..repeats).fold(0u64, |pattern, _| pattern << length | u64::from(codeword));
        Self { pattern: pattern as u32, repeats, length }
    }

    /// Writes `count` zeros.
    fn put(&self, mut count: usize, writer: &mut Writer) {
        if self.length == 0 {
            return;
        }
        while count > 0 {
            let n = count.min(self.repeats);
            let width = n as u32 * self.length;
            writer.put((u64::from(self.pattern) & ((1 << width) - 1)) as u32, width);
            count -= n;
        }
    }
}

/// A row that is being decoded.
struct Lane<'a> {
    at: u64,
    /// The column of the next entry.
    col: usize,
    /// How many kept weights were found: never more than `col`.
    kept: usize,
    /// Room for a whole row.
    cols: &'a mut [u32],
    symbols: &'a mut [u16],
}

/// The look-up table drawn in the module page.
#[derive(Debug)]
struct Table {
    search: Search,
    primary: [u32; 1 << PRIMARY_BITS],
}

/// Look-ups that one window serves, and the most entries they cover.
const LOOKUPS: usize = 3;
const MOST: usize = LOOKUPS * PRIMARY_BITS as usize;

impl Table {
    fn new(search: Search) -> Self {
        let mut primary = [0; 1 << PRIMARY_BITS];
        for (index, entry) in primary.iter_mut().enumerate() {
            let (mut entries, mut before, mut kept, mut nbits) = (0, 0, None, 0);
            for (symbol, end) in search.prefix(index) {
                match (symbol, kept) {
                    (ZERO, None) => before += 1,
                    (ZERO, Some(_)) => {}
                    (_, None) => kept = Some(symbol),
                    (_, Some(_)) => break,
                }
                (entries, nbits) = (entries + 1, end);
            }
            let has_kept = u32::from(kept.is_some());
            *entry =
                nbits << 28 | entries << 22 | has_kept << 20 | before << 16 | kept.unwrap_or(0);
        }
        Self { search, primary }
    }

    /// Decodes a row in each lane.
    fn decode(&self, words: &[u32], lanes: &mut [Lane<'_>]) {
        if let Some(four) = lanes.first_chunk_mut::<LANES>() {
            self.turns(words, four);
        }
        for lane in lanes {
            self.turns(words, std::array::from_mut(lane));
            self.finish(words, lane);
        }
    }

    /// Decodes while every row has room for whatever a window can hold.
    ///
    /// Bits, entries and kept weights are summed up in one number, as an entry has them above bit
    /// 20: 256 · bits + 4 · entries + kept.
    fn turns<const N: usize>(&self, words: &[u32], lanes: &mut [Lane<'_>; N]) {
        while lanes.iter().all(|lane| lane.col + MOST <= lane.cols.len()) {
            let at: [u64; N] = std::array::from_fn(|i| lanes[i].at);
            let first: [u32; N] = std::array::from_fn(|i| lanes[i].col as u32);
            let mut tops: [u64; N] = std::array::from_fn(|i| window(words, at[i]));
            let mut taken = [0u32; N];
            let mut rooms = lanes.each_mut().map(|lane| {
                let cols = lane.cols[lane.kept..].first_chunk_mut::<4>();
                cols.zip(lane.symbols[lane.kept..].first_chunk_mut::<4>())
            });
            for _ in 0..LOOKUPS {
                for i in 0..N {
                    let Some((cols, symbols)) = &mut rooms[i] else { return };
                    let entry = self.primary[(tops[i] >> (64 - PRIMARY_BITS)) as usize];
                    let (n, col) = ((taken[i] & 3) as usize, first[i] + (taken[i] >> 2 & 63));
                    if entry == 0 {
                        let (symbol, length) = self.long(words, at[i] + u64::from(taken[i] >> 8));
                        (cols[n], symbols[n]) = (col, symbol as u16);
                        taken[i] += length << 8 | 1 << 2 | u32::from(symbol != ZERO);
                        tops[i] = window(words, at[i] + u64::from(taken[i] >> 8));
                        continue;
                    }
                    (cols[n], symbols[n]) = (col + (entry >> 16 & 15), entry as u16);
                    taken[i] += entry >> 20;
                    tops[i] <<= entry >> 28;
                }
            }
            for (lane, taken) in lanes.iter_mut().zip(taken) {
                lane.at += u64::from(taken >> 8);
                lane.col += (taken >> 2 & 63) as usize;
                lane.kept += (taken & 3) as usize;
            }
        }
    }

    /// The symbol and the length of a codeword that is too long for the table.
    #[cold]
    #[inline(never)]
    fn long(&self, words: &[u32], at: u64) -> (u32, u32) {
        self.search.find(window(words, at))
    }

    /// Decodes the rest of a row, never an entry too many.
    fn finish(&self, words: &[u32], lane: &mut Lane<'_>) {
        while lane.col < lane.cols.len() {
            let window = window(words, lane.at);
            let entry = self.primary[(window >> (64 - PRIMARY_BITS)) as usize];
            let entries = (entry >> 22 & 15) as usize;
            let (before, symbol, kept, covered, nbits);
            if entries > 0 && lane.col + entries <= lane.cols.len() {
                (before, symbol, kept) = (entry >> 16 & 15, entry as u16, entry >> 20 & 1 == 1);
                (covered, nbits) = (entries, entry >> 28);
            } else {
                let (found, length) = self.search.find(window);
                (before, symbol, kept) = (0, found as u16, found != ZERO);
                (covered, nbits) = (1, length);
            }
            if kept {
                lane.cols[lane.kept] = lane.col as u32 + before;
                lane.symbols[lane.kept] = symbol;
                lane.kept += 1;
            }
            lane.col += covered;
            lane.at += u64::from(nbits);
        }
    }
}
