//! `grouped`: rows that are alike share a common part, stored and multiplied once.
//!
//! ```text
//!   groups:  one field of `width` bits for each row: the number of its group, from 1 on; 0 for none
//!   inner:   a matrix of the layout that goes with the coder (fixed: `packed`, tans: `coded`):
//!              rows 0 … g − 1       what each group has in common
//!              rows g … g + nrows   what each row has of its own
//!
//!   y[row] = inner[g + row] · x + inner[group − 1] · x
//! ```
//!
//! Nothing is ever subtracted: what is common is what every row of the group holds, at the same
//! columns with the same symbols, and a row's own part keeps other columns. So decoding is exact, and
//! an infinity or a NaN reaches the rows that keep it, and no others. A vector is multiplied with all
//! inner rows, then each row adds the sum of its group; in a batch the sums of groups come first, and
//! those of their rows start from them (`products.rs`). Convolutions decode rows whole, so they gain
//! nothing but bytes, and the automatic choice leaves kernels of more than one tap alone.
//!
//! Entries and bytes that are left of a trained VGG19's first linear layer (4096 × 512, of the authors of
//! HAC) and of DeepDTA's (1024 × 192), and milliseconds of a vector · of a batch of 32, one thread of a
//! Zen 3 core, AVX2, without and with groups:
//!
//! ```text
//!                  entries     coded, bytes        coded, ms                  packed for speed, ms
//!   VGG19, 60 %       58 %  665,661 → 484,389  2.03 · 8.09 → 1.43 · 3.12   0.53 · 2.23 → 0.39 · 0.94
//!          80 %       70 %  432,119 → 348,568  2.13 · 8.16 → 1.54 · 8.06   0.43 · 1.22 → 0.29 · 1.02
//!          90 %       40 %  177,877 →  94,984  0.69 · 1.36 → 0.38 · 0.94   0.19 · 0.46 → 0.15 · 0.33
//!          97 %       26 %   56,147 →  23,470  0.33 · 0.69 → 0.12 · 0.43   0.11 · 0.28 → 0.08 · 0.22
//!          99 %       23 %   22,719 →  10,247  0.18 · 0.67 → 0.04 · 0.45   0.08 · 0.29 → 0.06 · 0.28
//!   DeepDTA, 60 %     94 %   52,970 →  56,934  0.22 · 0.41 → 0.23 · 0.47   0.06 · 0.14 → 0.06 · 0.16
//! ```
//!
//! Each row costs some time of its own, so that time falls less than the entries do. DeepDTA's rows are
//! hardly alike: groups cost bytes and time there, and are not chosen.
//!
//! Price: a group's common part is decoded again with each block of rows that is decoded, which has as
//! many rows as there are groups, so decoding (not multiplying) takes up to twice as long. Encoding takes
//! a tenth of a second for a million entries that share nothing, and some tenths where much is shared.

mod grouping;

use super::{BLOCK_ROWS, Encoded, Encoding, Layout, LayoutSpec, Parts, check_rows, coded, packed};
use crate::array::Array;
use crate::bits;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::matrix::{CompressedMatrix, Request};
use crate::rows::{RowBlock, Rows, Shape, filled};
pub(crate) use grouping::Grouping;
use std::ops::Range;

pub(crate) const SPEC: LayoutSpec = LayoutSpec {
    name: "grouped",
    id: 10,
    coders: &[Coder::Fixed, Coder::Tans],
    sections: &[
        "groups",
        // packed
        "row_nnz",
        "forms",
        "ends",
        "positions",
        "symbols",
        // coded; `ends` is there already
        "counts",
        "order",
        "lengths",
        "gap_ends",
        "blocks",
    ],
    holds_values: false,
    encode,
    read,
};

/// Bits of a group's number, at most.
const MAX_WIDTH: u64 = 16;
/// Parameters before those of the inner matrix.
const NPARAMS: usize = 3;
/// A matrix in this layout.
#[derive(Debug)]
pub struct Grouped {
    shape: Shape,
    /// Groups.
    len: usize,
    width: u32,
    groups: Array<u8>,
    inner: CompressedMatrix,
}

/// The layout of the inner matrix.
fn inner_spec(coder: Coder) -> &'static LayoutSpec {
    if coder == Coder::Tans { &coded::SPEC } else { &packed::SPEC }
}

fn encode(rows: &Rows, encoding: &Encoding) -> Result<Encoded> {
    encode_with(rows, &Grouping::of(rows)?, encoding)
}

/// Encodes rows in the groups that were found for them.
///
/// # Errors
/// `InvalidArgument` for more than 2³² − 1 rows and groups.
pub(crate) fn encode_with(
    rows: &Rows,
    grouping: &Grouping<'_>,
    encoding: &Encoding,
) -> Result<Encoded> {
    let (codebook, _) = rows.shared(SPEC.name)?;
    let Shape { nrows, ncols } = rows.shape();
    let len = grouping.len();
    let mut inner = Rows::with_codebook(Shape::new(len + nrows, ncols)?, codebook.clone());
    for group in 0..len {
        let common = grouping.common(group);
        common.for_each_besides(grouping::Entries::NONE, |col, symbol| inner.push(col, symbol));
        inner.end_row();
    }
    for (row, &number) in grouping.numbers.iter().enumerate() {
        let common = match number {
            0 => grouping::Entries::NONE,
            number => grouping.common(usize::from(number) - 1),
        };
        grouping.row(row).for_each_besides(common, |col, symbol| inner.push(col, symbol));
        inner.end_row();
    }
    let request = Request {
        layout: Some(inner_spec(encoding.coder)),
        goal: encoding.goal,
        ..Request::default()
    };
    let width = bits::bit_width(len as u64);
    let grouped = Grouped {
        shape: rows.shape(),
        len,
        width,
        groups: bits::pack(grouping.numbers.iter().map(|&number| number.into()), width).into(),
        inner: CompressedMatrix::from_rows(&inner.finish(), &request)?,
    };
    Ok((Box::new(grouped), Some(codebook.clone())))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let Shape { nrows, ncols } = parts.shape;
    let Some(([len, width, inner_nnz], inner_params)) = parts.params.split_first_chunk() else {
        return Err(Error::corrupt(format!(
            "params: {} numbers, expected {NPARAMS} and those of the inner matrix",
            parts.params.len()
        )));
    };
    let (len, width, inner_nnz) = (*len, *width, *inner_nnz);
    let least = u64::from(bits::bit_width(len));
    // Without groups there are no bits, and rows need not be looked at one by one.
    let most = if len == 0 { 0 } else { MAX_WIDTH };
    if len > nrows as u64 || !(least..=most).contains(&width) {
        return Err(Error::corrupt(format!(
            "params: {len} groups in {width} bits, expected at most {nrows} groups, in {least} to \
             {most} bits"
        )));
    }
    let (len, width) = (len as usize, width as u32);
    let nbytes = bits::packed_nbytes(nrows, width)
        .ok_or_else(|| Error::corrupt("section groups: over 2^64 bits"))?;
    let groups: Array<u8> = parts.section_of("groups", nbytes)?;
    if bits::peek(groups.as_slice(), nrows * width as usize) != 0 {
        return Err(Error::corrupt("section groups: bits after the last row, expected zeros"));
    }
    let spec = inner_spec(parts.coder);
    let (mut inner_sections, mut others) = (Vec::new(), Vec::new());
    for section in &parts.sections[1..] {
        match spec.sections.contains(&section.0) {
            true => inner_sections.push(section.clone()),
            false => others.push(section.0),
        }
    }
    for name in others {
        parts.section_of::<u8>(name, 0)?;
    }
    let shape = Shape::new(len + nrows, ncols).map_err(|e| Error::corrupt(e.to_string()))?;
    let inner_nnz = usize::try_from(inner_nnz).unwrap_or(usize::MAX);
    let inner = Parts {
        shape,
        nnz: inner_nnz,
        codebook: parts.codebook.clone(),
        coder: parts.coder,
        params: inner_params.to_vec(),
        sections: inner_sections,
    };
    let inner = CompressedMatrix::read(spec, inner)?;
    let grouped = Grouped { shape: parts.shape, len, width, groups, inner };
    if len > 0 {
        check_rows(&grouped, &parts)?;
    } else if inner_nnz != parts.nnz {
        return Err(Error::corrupt(format!(
            "params: {inner_nnz} kept weights without groups, expected {}",
            parts.nnz
        )));
    }
    Ok(Box::new(grouped))
}

/// Adds the entries of two rows to `out`, whose symbols go with them.
///
/// # Errors
/// `Corrupt` when both keep a column.
fn push_joined(
    own: (&[u32], &[u16]),
    common: (&[u32], &[u16]),
    row: usize,
    out: &mut RowBlock,
) -> Result<()> {
    let (mut i, mut j) = (0, 0);
    while i < own.0.len() && j < common.0.len() {
        let is_own = own.0[i] < common.0[j];
        if own.0[i] == common.0[j] {
            return Err(Error::corrupt(format!(
                "row {row}: column {} in its own part and in that of its group, expected it in one",
                own.0[i]
            )));
        }
        let ((cols, symbols), at) = if is_own { (own, i) } else { (common, j) };
        out.cols.push(cols[at]);
        out.symbols.push(symbols[at]);
        i += usize::from(is_own);
        j += usize::from(!is_own);
    }
    for ((cols, symbols), at) in [(own, i), (common, j)] {
        out.cols.extend_from_slice(&cols[at..]);
        out.symbols.extend_from_slice(&symbols[at..]);
    }
    out.end_row();
    Ok(())
}

/// The columns and symbols of decoded row `row`.
fn entries(block: &RowBlock, row: usize) -> (&[u32], &[u16]) {
    let range = block.indptr[row]..block.indptr[row + 1];
    (&block.cols[range.clone()], &block.symbols[range])
}

impl Grouped {
    /// The numbers of the groups of `rows`, from 1 on; 0 for none.
    ///
    /// # Errors
    /// `Corrupt` when there is no such group.
    pub(crate) fn numbers(&self, rows: Range<usize>) -> Result<Vec<u16>> {
        let mut numbers = filled(0, rows.len(), 1)?;
        let at = rows.start * self.width as usize;
        bits::unpack(self.groups.as_slice(), at, self.width, &mut numbers);
        if let Some(row) = numbers.iter().position(|&number| usize::from(number) > self.len) {
            return Err(Error::corrupt(format!(
                "row {}: group {}, expected one of {} (section groups)",
                rows.start + row,
                numbers[row],
                self.len
            )));
        }
        Ok(numbers)
    }

    /// The number of groups: rows of the inner matrix before those of each row.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The matrix of what groups have in common and what rows have of their own.
    pub(crate) fn inner(&self) -> &CompressedMatrix {
        &self.inner
    }

    /// The product of a batch from that of the inner matrix: to each row's output that of its group
    /// is added.
    ///
    /// # Errors
    /// As [`Layout::decode`].
    pub(crate) fn joined(&self, sums: &[f32], batch: usize) -> Result<Vec<f32>> {
        let nrows = self.shape.nrows;
        let numbers = self.numbers(0..nrows)?;
        let mut y = filled(0.0, batch, nrows)?;
        // Those of groups, after a zero for rows without one.
        let mut common = vec![0.0; self.len + 1];
        let members = sums.chunks_exact((self.len + nrows).max(1));
        for (sums, y) in members.zip(y.chunks_exact_mut(nrows.max(1))) {
            let (groups, own) = sums.split_at(self.len);
            common[1..].copy_from_slice(groups);
            for ((y, own), &number) in y.iter_mut().zip(own).zip(&numbers) {
                *y = own + common[usize::from(number)];
            }
        }
        Ok(y)
    }
}

impl Layout for Grouped {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn coder(&self) -> Coder {
        self.inner.coder()
    }

    fn grouped(&self) -> Option<&Grouped> {
        Some(self)
    }

    fn params(&self) -> Vec<u64> {
        let mut params = vec![self.len as u64, self.width.into(), self.inner.nnz() as u64];
        params.extend(self.inner.layout.params());
        params
    }

    fn sections(&self) -> Vec<&[u8]> {
        let (spec, inner) = (self.inner.layout(), self.inner.section_bytes());
        let of_inner = |name: &str| {
            let at = spec.sections.iter().position(|&section| section == name);
            at.map_or(&[][..], |at| inner[at])
        };
        let rest = SPEC.sections[1..].iter().map(|name| of_inner(name));
        std::iter::once(self.groups.as_slice()).chain(rest).collect()
    }

    /// At least as many as there are groups, which are decoded with every block.
    fn block_rows(&self) -> usize {
        let groups = self.len.next_multiple_of(BLOCK_ROWS);
        self.inner.block_rows().max(groups).min(self.shape.nrows.max(1))
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        let numbers = self.numbers(rows.clone())?;
        let used = numbers.iter().filter(|&&number| number > 0).map(|&n| usize::from(n) - 1);
        let used = used.clone().min().unwrap_or(0)..used.max().map_or(0, |last| last + 1);
        let (mut common, mut own) = (RowBlock::default(), RowBlock::default());
        self.inner.decode_symbols(used.clone(), &mut common)?;
        self.inner.decode_symbols(self.len + rows.start..self.len + rows.end, &mut own)?;
        let in_groups = numbers.iter().filter(|&&number| number > 0);
        let in_common = in_groups.map(|&number| {
            let group = usize::from(number) - 1 - used.start;
            common.indptr[group + 1] - common.indptr[group]
        });
        out.reserve(rows.len(), own.cols.len().saturating_add(in_common.sum()))?;
        out.clear();
        for (row, &number) in numbers.iter().enumerate() {
            let of_group = match number {
                0 => (&[][..], &[][..]),
                number => entries(&common, usize::from(number) - 1 - used.start),
            };
            push_joined(entries(&own, row), of_group, rows.start + row, out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
