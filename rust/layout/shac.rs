//! `shac`: the columns of kept weights, and canonical Huffman codewords of their symbols (sparse
//! Huffman address map).
//!
//! ```text
//!   published (raw)                          coded
//!     codebook in the codewords' order         codebook as it is
//!     first_symbols, first_codewords,          code_lengths: packed, of each symbol
//!       length_starts (module `published`)     gap_lengths: packed, of each bucket (module `gaps`)
//!     row_counts: bit_req(ncols) [nrows]       row_counts: Offsets
//!     cols:       bit_req(ncols) [nnz]
//!     row_ends:   u32 or u64 [nrows]           row_ends: Offsets
//!     stream:     u32 [⌈bits / 32⌉]            stream
//!
//!   stream, raw:    row 0: code(w) code(w) …                                         │ row 1: …
//!   stream, coded:  row 0: buckets of the gaps │ their plain bits │ code(w) code(w) … │ row 1: …
//! ```
//!
//! Parameters, raw: 1, the stream's bits, the longest codeword. Coded: 0, the stream's bits, the
//! width of a code length; precision, number and width of the gap buckets; three of `row_counts`;
//! three of `row_ends`.
//!
//! Why: 16-bit columns are most of the published format where few weights are kept; their gaps take
//! a third of that. Gaps and symbols stand apart in a row so that each kind decodes several a
//! look-up, four rows in turns. A row's number of kept weights is stored, not found by its end,
//! because codewords may have no bits.
//!
//! Price: a row costs two lengths beside its entries, about 14 to 20 bits; below a dozen kept
//! weights a row that is felt. Bytes of a trained VGG19's layer of 4096 × 512, row ends counted
//! throughout:
//!
//! ```text
//!   sparsity              60 %      90 %      95 %      97 %     99 %
//!   published        2,114,471   507,834   266,840   162,477   69,187
//!   coded              670,564   177,093   102,280    60,901   26,561
//!   order-0 entropy    662,489   184,927   107,011    60,679   23,790
//! ```
//!
//! (Favourite gaps put it under the order-0 entropy of the entries.) 4096 × 4096 random weights at
//! 90 % sparsity decode in 3.6 ns a kept weight where gaps have no plain bits, 5.2 where they do.
//!
//! Source: Marinò et al. 2021, "Compact representations of convolutional neural networks via weight
//! pruning and quantization" (sHAC). The coded columns are ours.

use super::gaps::Gaps;
use super::published::{self, CodeTable, check_empty};
use super::row_ends::{RowEnds, offset_bounds, read_offsets};
use super::{Columns, Encoded, Encoding, Layout, LayoutSpec, Parts, check_rows};
use crate::array::Array;
use crate::codebook::Codebook;
use crate::entropy::Coder;
use crate::entropy::huffman::{Code, Decoder, Lane, Writer, check_padding};
use crate::error::{Error, Result};
use crate::interruption;
use crate::offsets::Offsets;
use crate::rows::{RowBlock, Rows, Shape};
use crate::words::Words;
use std::ops::Range;
use std::sync::Arc;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "shac",
    id: 6,
    coders: &[Coder::Huffman],
    sections: &[
        "first_symbols",
        "first_codewords",
        "length_starts",
        "code_lengths",
        "gap_lengths",
        "row_counts",
        "cols",
        "row_ends",
        "stream",
    ],
    holds_values: false,
    encode,
    read,
};

#[derive(Debug)]
struct Shac {
    shape: Shape,
    columns: StoredColumns,
    row_ends: RowEnds,
    total_bits: u64,
    stream: Array<u32>,
    /// None when nothing is kept.
    decoder: Option<Box<Decoder>>,
}

/// What differs between the arrangements: the code, the counts and the columns.
#[derive(Debug)]
enum StoredColumns {
    Raw {
        table: CodeTable,
        longest: u32,
        counts: Words,
        cols: Words,
        /// The kept weights before every [`STRIDE`]th row, derived.
        kept_before: Vec<usize>,
    },
    Coded {
        lengths: Array<u8>,
        width: u64,
        gaps: Box<Gaps>,
        gap_params: [u64; 3],
        gap_lengths: Array<u8>,
        /// None when nothing is kept.
        counts: Option<Offsets>,
    },
}

/// Rows between two sums of kept weights.
const STRIDE: usize = 64;

fn encode(rows: &Rows, encoding: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared("shac")?;
    let mut histogram = vec![0u64; codebook.k()];
    symbols.iter().for_each(|&symbol| histogram[usize::from(symbol)] += 1);
    let code = Code::from_histogram(&histogram);
    let codewords = code.codewords();
    let gaps = match encoding.columns {
        Columns::Coded => Some(Box::new(Gaps::new(rows, encoding.goal))),
        Columns::Raw => None,
    };
    let gap_codewords = gaps.as_ref().map_or_else(Vec::new, |gaps| gaps.codewords());
    let mut writer = Writer::with_capacity(code.cost(&histogram));
    let (mut row_bits, mut counts) = (Vec::new(), Vec::new());
    for row in 0..rows.shape().nrows {
        interruption::check()?;
        let start = writer.position();
        if let Some(gaps) = &gaps {
            gaps.put(&gap_codewords, rows.row_cols(row), &mut writer);
        }
        let range = rows.indptr()[row]..rows.indptr()[row + 1];
        counts.push(range.len() as u64);
        for &symbol in &symbols[range] {
            let (codeword, length) = codewords[usize::from(symbol)];
            writer.put(codeword, length);
        }
        row_bits.push(writer.position() - start);
    }
    let (columns, codebook, code) = match gaps {
        Some(gaps) => {
            let (gap_params, gap_lengths) = gaps.stored();
            let (lengths, width) = code.pack();
            let columns = StoredColumns::Coded {
                lengths: lengths.into(),
                width,
                gaps,
                gap_params,
                gap_lengths: gap_lengths.into(),
                counts: (rows.nnz() > 0).then(|| Offsets::from_lengths(&counts)),
            };
            (columns, codebook.clone(), code)
        }
        None => {
            let ncols = rows.shape().ncols as u64;
            let columns = StoredColumns::Raw {
                table: CodeTable::new(&code),
                longest: code.longest(),
                kept_before: rows.indptr().iter().copied().step_by(STRIDE).collect(),
                counts: Words::pack(counts.into_iter(), ncols),
                cols: Words::pack(rows.cols().iter().map(|&col| col.into()), ncols),
            };
            let values: Vec<f32> =
                code.order().iter().map(|&s| codebook.values()[s as usize]).collect();
            (columns, Arc::new(Codebook::new(values)?), code.by_rank())
        }
    };
    let shac = Shac {
        shape: rows.shape(),
        columns,
        row_ends: RowEnds::new(&row_bits, encoding.columns),
        total_bits: writer.position(),
        stream: writer.finish().into(),
        decoder: (rows.nnz() > 0).then(|| Box::new(Decoder::new(&code))),
    };
    Ok((Box::new(shac), Some(codebook)))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let (columns, code, total_bits, ends) = match parts.params[..] {
        [published::RAW, total, longest] => {
            check_empty(&parts, &["code_lengths", "gap_lengths"], Columns::Raw)?;
            let (columns, code) = read_raw(&parts, longest)?;
            (columns, code, total, [0; 3])
        }
        [published::CODED, total, width, p, n, w, a, b, c, d, e, f] => {
            let tables = ["first_symbols", "first_codewords", "length_starts", "cols"];
            check_empty(&parts, &tables, Columns::Coded)?;
            let lengths = parts.section("code_lengths")?;
            let code = Code::unpack(&lengths, parts.k(), width)
                .map_err(|e| e.within("section code_lengths"))?;
            let columns = StoredColumns::Coded {
                lengths,
                width,
                gaps: Box::new(Gaps::read(&parts, [p, n, w])?),
                gap_params: [p, n, w],
                gap_lengths: parts.section("gap_lengths")?,
                counts: read_offsets(&parts, "row_counts", parts.nnz as u64, [a, b, c])?,
            };
            (columns, code, total, [d, e, f])
        }
        _ => {
            return Err(Error::corrupt(format!(
                "params: {:?}, expected 0 and eleven numbers or 1 and two",
                parts.params
            )));
        }
    };
    let stream = parts.section::<u32>("stream")?;
    check_padding(stream.as_slice(), total_bits)?;
    let kind = match &columns {
        StoredColumns::Raw { .. } => Columns::Raw,
        StoredColumns::Coded { .. } => Columns::Coded,
    };
    let has_code = !code.order().is_empty();
    let shac = Shac {
        shape: parts.shape,
        columns,
        row_ends: RowEnds::read(&parts, kind, total_bits, ends)?,
        total_bits,
        stream,
        decoder: has_code.then(|| Box::new(Decoder::new(&code))),
    };
    if has_code != (parts.nnz > 0) || (!has_code && total_bits > 0) {
        return Err(Error::corrupt(format!(
            "stream: {total_bits} bits and {} symbols with codewords for nnz = {}",
            code.order().len(),
            parts.nnz
        )));
    }
    if let StoredColumns::Coded { gaps, counts, .. } = &shac.columns {
        if has_code != gaps.decoder().is_some() {
            return Err(Error::corrupt(format!(
                "section gap_lengths: codewords for gaps, expected them exactly when nnz = {} is over 0",
                parts.nnz
            )));
        }
        if let (Some(gap), 0 | 1, Some(counts)) = (gaps.only(), code.order().len(), counts) {
            check_free(&shac, gap, counts)?;
            return Ok(Box::new(shac));
        }
        // A kept weight takes at least one bit, so the stream bounds the work below.
        if parts.nnz as u64 > total_bits {
            return Err(Error::corrupt(format!(
                "stream: {total_bits} bits, expected at least nnz = {}",
                parts.nnz
            )));
        }
    }
    if has_code {
        check_rows(&shac, &parts)?;
    }
    Ok(Box::new(shac))
}

/// Takes the published code, counts and columns; the columns themselves are not checked.
fn read_raw(parts: &Parts, longest: u64) -> Result<(StoredColumns, Code)> {
    let (Shape { nrows, ncols }, nnz) = (parts.shape, parts.nnz);
    let (table, code) = CodeTable::read(parts, parts.k(), longest)?;
    let counts = Words::read(parts, "row_counts", ncols as u64, nrows)?;
    let cols = Words::read(parts, "cols", ncols as u64, nnz)?;
    let mut kept_before = Vec::with_capacity(nrows / STRIDE + 1);
    let mut kept = 0usize;
    for row in 0..nrows {
        if row % STRIDE == 0 {
            kept_before.push(kept);
        }
        kept = usize::try_from(counts.get(row))
            .ok()
            .and_then(|count| kept.checked_add(count))
            .filter(|&kept| kept <= nnz)
            .ok_or_else(|| {
                Error::corrupt(format!("section row_counts: over nnz = {nnz} at row {row}"))
            })?;
    }
    if kept != nnz {
        return Err(Error::corrupt(format!(
            "section row_counts: sum {kept}, expected nnz = {nnz}"
        )));
    }
    if nrows.is_multiple_of(STRIDE) {
        kept_before.push(kept);
    }
    let longest = code.longest();
    Ok((StoredColumns::Raw { table, longest, counts, cols, kept_before }, code))
}

/// Checks rows that take no bits: one symbol, every kept weight after `gap` pruned ones.
fn check_free(shac: &Shac, gap: u64, counts: &Offsets) -> Result<()> {
    let (ncols, total_bits) = (shac.shape.ncols, shac.total_bits);
    let most = (0..counts.len()).map(|row| counts.length(row)).max().unwrap_or(0);
    let fits = (gap + 1).checked_mul(most).is_some_and(|cols| cols <= ncols as u64);
    if !fits || total_bits > 0 {
        return Err(Error::corrupt(format!(
            "stream: {total_bits} bits and rows of up to {most} weights, {gap} pruned before each, \
             expected none and rows of {ncols}"
        )));
    }
    Ok(())
}

impl Layout for Shac {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn orders_codebook(&self) -> bool {
        matches!(self.columns, StoredColumns::Raw { .. })
    }

    fn params(&self) -> Vec<u64> {
        match &self.columns {
            StoredColumns::Raw { longest, .. } => {
                vec![published::RAW, self.total_bits, u64::from(*longest)]
            }
            StoredColumns::Coded { width, gap_params, counts, .. } => {
                let mut params = vec![published::CODED, self.total_bits, *width];
                params.extend(gap_params);
                params.extend(counts.as_ref().map_or([0; 3], Offsets::params));
                params.extend(self.row_ends.params());
                params
            }
        }
    }

    fn sections(&self) -> Vec<&[u8]> {
        let (ends, stream) = (self.row_ends.as_bytes(), self.stream.as_bytes());
        match &self.columns {
            StoredColumns::Raw { table, counts, cols, .. } => {
                let [symbols, codewords, starts] = table.sections();
                let (counts, cols) = (counts.as_bytes(), cols.as_bytes());
                vec![symbols, codewords, starts, &[], &[], counts, cols, ends, stream]
            }
            StoredColumns::Coded { lengths, gap_lengths, counts, .. } => {
                let counts = counts.as_ref().map_or(&[][..], Offsets::as_bytes);
                let (lengths, gap_lengths) = (lengths.as_bytes(), gap_lengths.as_bytes());
                vec![&[], &[], &[], lengths, gap_lengths, counts, &[], ends, stream]
            }
        }
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        let Some(decoder) = &self.decoder else {
            out.indptr.resize(rows.len() + 1, 0);
            return Ok(());
        };
        let words = self.stream.as_slice();
        let bounds = self.row_ends.bounds(rows.clone());
        let ends = match &self.columns {
            StoredColumns::Raw { counts, cols, kept_before, .. } => {
                let from = rows.start / STRIDE * STRIDE;
                let before = (from..rows.start).map(|row| counts.get(row) as usize).sum::<usize>();
                let kept = kept_before[rows.start / STRIDE] + before;
                out.indptr.extend(rows.clone().scan(0, |end, row| {
                    *end += counts.get(row) as usize;
                    Some(*end)
                }));
                let nnz = out.indptr[rows.len()];
                cols.append_to(kept..kept + nnz, &mut out.cols);
                out.symbols.resize(nnz, 0);
                decode_rows(decoder, words, &bounds, &out.indptr, &mut out.symbols)
            }
            StoredColumns::Coded { gaps, counts, .. } => {
                let (Some(counts), Some(buckets)) = (counts, gaps.decoder()) else {
                    unreachable!("shac: symbols without counts or gaps");
                };
                let kept = offset_bounds(counts, rows.clone());
                out.indptr.extend(kept[1..].iter().map(|&end| (end - kept[0]) as usize));
                out.symbols.resize(out.indptr[rows.len()], 0);
                // The symbols' room holds the buckets first.
                let mut ends = decode_rows(buckets, words, &bounds, &out.indptr, &mut out.symbols);
                for (i, at) in ends.iter_mut().enumerate() {
                    let row = &out.symbols[out.indptr[i]..out.indptr[i + 1]];
                    let (next, end) = gaps.finish_row(row, words, *at, &mut out.cols);
                    if next > self.shape.ncols as u64 {
                        return Err(Error::corrupt(format!(
                            "row {}: column {}, expected under ncols = {}",
                            rows.start + i,
                            next - 1,
                            self.shape.ncols
                        )));
                    }
                    *at = end;
                }
                decode_rows(decoder, words, &ends, &out.indptr, &mut out.symbols)
            }
        };
        match ends.iter().zip(&bounds[1..]).position(|(end, expected)| end != expected) {
            None => Ok(()),
            Some(i) => Err(Error::corrupt(format!(
                "row {}: codewords end at bit {}, expected {}",
                rows.start + i,
                ends[i],
                bounds[i + 1]
            ))),
        }
    }
}

/// Decodes rows that start at `starts` into `out`, cut at `indptr`, and gives where each ends.
fn decode_rows(
    decoder: &Decoder,
    words: &[u32],
    starts: &[u64],
    indptr: &[usize],
    mut out: &mut [u16],
) -> Vec<u64> {
    let mut lanes = Vec::with_capacity(indptr.len());
    for (range, &at) in indptr.windows(2).zip(starts) {
        let (row, rest) = out.split_at_mut(range[1] - range[0]);
        lanes.push(Lane::new(at, row));
        out = rest;
    }
    decoder.decode(words, &mut lanes);
    lanes.iter().map(|lane| lane.at).collect()
}
