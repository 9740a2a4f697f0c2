//! `cla`: compressed linear algebra, columns in co-coded groups with lists of the rows they share.
//!
//! The columns of W (its inputs) form the groups and its rows (outputs) fill the lists. A group of
//! columns G has a dictionary of the distinct tuples W[row, G]; y = W·x takes each tuple's product
//! with x once and adds it to every row that has the tuple:
//!
//! ```text
//!   for each group G:  for each tuple t of G:  u = Σ over j with t[j] ≠ 0 of t[j] · x[G[j]]
//!                                              y[row] += u   for every row in t's list
//!
//!   group kind     stored beside the columns G                      an entry of the tuple costs
//!   0 offsets OLE  the tuples that are not all zero, a list each    u16 a row
//!   1 runs    RLE  the tuples that are not all zero, a list each    2 × u16 a run of rows
//!   2 codes   DDC  all tuples, the number of its tuple for a row    u8 (≤ 256 tuples) or u16 a row
//!   3 plain   UC   the entries as they are                          a word an entry
//!
//!   kinds:   u8 [groups]
//!   sizes:   words for max(nrows, ncols) [groups][2]     columns and tuples (0 if plain)
//!   cols:    words for ncols − 1                         each group's columns, rising
//!   tuples:  words for k                                 0 = pruned, i + 1 = codebook[i]
//!   starts:  words for the length of lists [lists + 1]   where each tuple's list starts
//!   lists:   u16    a list = for each segment of 65,535 rows up to the last that has one:
//!                   │ count │ offset in the segment … │     or  │ count │ (offset, length) … │
//!   codes8:  u8  [nrows] a group        codes16: u16 [nrows] a group
//!   symbols: words for k                each plain group, column by column
//! ```
//!
//! Columns with nothing kept are in no group. A segment is one row short of 2¹⁶, so that a count
//! fits its word when every row is in the list; runs end at the segment's end. A range of rows
//! skips whole segments and finds its place in one by binary search, so it costs a few steps a
//! list, whatever the length. (The published runs form no segments, and take 2 bytes a list less.)
//!
//! The published dictionary holds floating-point values; here matrices share a codebook, so it
//! holds words into that: 3 bytes a tuple's entry less than f32 for k < 256. Everything is counted
//! as stored: a group of offsets with d tuples, z listed rows and b segments takes
//! |G|·bit_req(n)/8 + d·(4 + |G|·bit_req(k + 1)/8) + 2·b + 2·z bytes, and kind and sizes.
//!
//! Which columns share a group: see `cocoding.rs`. A planned group that turns out larger than its
//! columns on their own is taken apart again. Then each group takes its cheapest kind.
//!
//! Source: Elgohary, Boehm, Haas, Reiss, Reinwald 2016, *Compressed linear algebra for large-scale
//! machine learning*, sections 3 and 4; dense dictionary codes from its 2018 journal version.

mod building;
mod cocoding;

use super::{Encoded, Encoding, Layout, LayoutSpec, Parts, Product, check_cols};
use crate::array::Array;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::interruption;
use crate::rows::{RowBlock, Rows};
use crate::words::Words;
use building::Builder;
use cocoding::{Columns, Counts, Prices, TupleRows};
use std::ops::Range;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "cla",
    id: 4,
    coders: &[Coder::Fixed],
    sections: &[
        "kinds", "sizes", "cols", "tuples", "starts", "lists", "codes8", "codes16", "symbols",
    ],
    holds_values: false,
    encode,
    read,
};

/// Rows in a segment of a list: the most whose count, offsets and run lengths fit 16 bits.
const SEGMENT_ROWS: usize = u16::MAX as usize;

/// The most tuples that 8-bit codes tell apart.
const MAX_TUPLES_8: usize = 1 << 8;

/// The most tuples that 16-bit codes tell apart.
const MAX_TUPLES_16: usize = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Offsets,
    Runs,
    Codes,
    Plain,
}

const KINDS: [Kind; 4] = [Kind::Offsets, Kind::Runs, Kind::Codes, Kind::Plain];

#[derive(Debug)]
struct Cla {
    nrows: usize,
    kinds: Array<u8>,
    sizes: Words,
    cols: Words,
    tuples: Words,
    starts: Words,
    lists: Array<u16>,
    codes8: Array<u8>,
    codes16: Array<u16>,
    symbols: Words,
}

/// One group's places in the sections; also what all groups before it take of each.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    group: usize,
    cols: usize,
    tuples: usize,
    lists: usize,
    codes8: usize,
    codes16: usize,
    symbols: usize,
}

/// A group of columns, and where it is stored.
struct Group {
    kind: Kind,
    width: usize,
    ntuples: usize,
    at: Places,
}

impl Group {
    /// The places after this group; none when they overflow.
    fn next(&self, nrows: usize) -> Option<Places> {
        let mut at = self.at;
        at.group += 1;
        at.cols = at.cols.checked_add(self.width)?;
        at.tuples = at.tuples.checked_add(self.width.checked_mul(self.ntuples)?)?;
        let (counter, amount) = match self.kind {
            Kind::Offsets | Kind::Runs => (&mut at.lists, self.ntuples),
            Kind::Codes if self.ntuples <= MAX_TUPLES_8 => (&mut at.codes8, nrows),
            Kind::Codes => (&mut at.codes16, nrows),
            Kind::Plain => (&mut at.symbols, self.width.checked_mul(nrows)?),
        };
        *counter = counter.checked_add(amount)?;
        Some(at)
    }
}

fn segment_of(row: u32) -> usize {
    row as usize / SEGMENT_ROWS
}

fn encode(rows: &Rows, _: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared(SPEC.name)?;
    let shape = rows.shape();
    let columns = Columns::new(rows, symbols);
    let prices = Prices::new(shape, codebook.k());
    let exact = |cols: &[u32]| {
        let group = TupleRows::new(&columns, cols);
        let (kind, nbytes) = prices.cheapest(&Counts::of(&group));
        (group, kind, nbytes)
    };
    let mut builder = Builder::default();
    for cols in cocoding::plan(&columns, &prices)? {
        interruption::check()?;
        let together = exact(&cols);
        let alone: Vec<_> = match cols.len() {
            1 => Vec::new(),
            _ => cols.iter().map(|col| exact(std::slice::from_ref(col))).collect(),
        };
        if alone.is_empty() || together.2 <= alone.iter().map(|group| group.2).sum() {
            builder.add(&together.0, together.1, shape.nrows);
        } else {
            alone.iter().for_each(|(group, kind, _)| builder.add(group, *kind, shape.nrows));
        }
    }
    Ok((Box::new(builder.finish(shape, codebook.k())), Some(codebook.clone())))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [] = parts.params()?;
    let (shape, k) = (parts.shape, parts.k() as u64);
    let kinds = parts.section::<u8>("kinds")?;
    let lists = parts.section::<u16>("lists")?;
    let cla = Cla {
        nrows: shape.nrows,
        sizes: Words::read(
            &parts,
            "sizes",
            shape.nrows.max(shape.ncols) as u64,
            kinds.len().saturating_mul(2),
        )?,
        cols: Words::read_all(&parts, "cols", shape.ncols.saturating_sub(1) as u64)?,
        tuples: Words::read_all(&parts, "tuples", k)?,
        starts: Words::read_all(&parts, "starts", lists.len() as u64)?,
        codes8: parts.section("codes8")?,
        codes16: parts.section("codes16")?,
        symbols: Words::read_all(&parts, "symbols", k)?,
        kinds,
        lists,
    };
    cla.check_places()?;
    let mut cols = Vec::new();
    cla.cols.append_to(0..cla.cols.len(), &mut cols);
    for group in cla.groups() {
        let cols = &cols[group.at.cols..][..group.width];
        if !cols.is_sorted() {
            return Err(group.error("columns that fall, expected rising ones (section cols)"));
        }
    }
    cols.sort_unstable();
    check_cols(&cols, 0, shape.ncols).map_err(|e| e.within("section cols, sorted"))?;
    for (name, words) in [("tuples", &cla.tuples), ("symbols", &cla.symbols)] {
        if let Some(at) = (0..words.len()).find(|&at| words.get(at) > k) {
            return Err(Error::corrupt(format!(
                "{name}[{at}] is {}, expected at most k = {k} (section {name})",
                words.get(at)
            )));
        }
    }
    let mut nnz = 0u64;
    for group in cla.groups() {
        nnz = nnz.saturating_add(cla.check_group(&group)?);
    }
    if nnz != parts.nnz as u64 {
        return Err(Error::corrupt(format!("groups: {nnz} kept weights, expected {}", parts.nnz)));
    }
    Ok(Box::new(cla))
}

impl Group {
    fn error(&self, what: &str) -> Error {
        Error::corrupt(format!("group {} of kind {:?}: {what}", self.at.group, self.kind))
    }
}

impl Cla {
    fn group(&self, at: Places) -> Option<Group> {
        let kind = *KINDS.get(usize::from(*self.kinds.as_slice().get(at.group)?))?;
        let width = self.sizes.get(2 * at.group) as usize;
        let ntuples = self.sizes.get(2 * at.group + 1) as usize;
        Some(Group { kind, width, ntuples, at })
    }

    fn groups(&self) -> impl Iterator<Item = Group> + '_ {
        let next = |group: &Group| self.group(group.next(self.nrows)?);
        std::iter::successors(self.group(Places::default()), next)
    }

    /// Checks kinds and sizes, that the sections hold just what they say, and where lists start.
    fn check_places(&self) -> Result<()> {
        let mut at = Places::default();
        while at.group < self.kinds.len() {
            let group = self.group(at).ok_or_else(|| {
                let kind = self.kinds.as_slice()[at.group];
                Error::corrupt(format!("kinds[{}] is {kind}, expected at most 3", at.group))
            })?;
            let most = match group.kind {
                Kind::Plain => 0,
                Kind::Codes => self.nrows.min(MAX_TUPLES_16),
                Kind::Offsets | Kind::Runs => self.nrows,
            };
            if group.width == 0 || group.ntuples > most || (most > 0 && group.ntuples == 0) {
                return Err(group.error(&format!(
                    "{} columns and {} tuples, expected some columns and at most {most} tuples",
                    group.width, group.ntuples
                )));
            }
            at = group
                .next(self.nrows)
                .ok_or_else(|| group.error("places past 2^64, expected less (section sizes)"))?;
        }
        let found = [
            ("cols", self.cols.len(), at.cols),
            ("tuples", self.tuples.len(), at.tuples),
            ("starts", self.starts.len(), at.lists.saturating_add(1)),
            ("codes8", self.codes8.len(), at.codes8),
            ("codes16", self.codes16.len(), at.codes16),
            ("symbols", self.symbols.len(), at.symbols),
        ];
        if let Some((name, found, expected)) = found.iter().find(|(_, found, need)| found != need) {
            return Err(Error::corrupt(format!(
                "section {name}: {found} elements, expected {expected} for the groups"
            )));
        }
        let end = self.lists.len() as u64;
        let mut last = 0;
        for i in 0..self.starts.len() {
            let start = self.starts.get(i);
            let is_last = i + 1 == self.starts.len();
            if start < last || start > end || i == 0 && start > 0 || is_last && start < end {
                return Err(Error::corrupt(format!(
                    "starts[{i}] is {start}, expected rising numbers from 0 to {end}"
                )));
            }
            last = start;
        }
        Ok(())
    }

    /// Checks that a group's rows have one tuple each, and counts its kept weights.
    fn check_group(&self, group: &Group) -> Result<u64> {
        let kept = |tuple: usize| {
            let at = group.at.tuples + tuple * group.width;
            (at..at + group.width).filter(|&at| self.tuples.get(at) != 0).count() as u64
        };
        match group.kind {
            Kind::Offsets | Kind::Runs => {
                let (mut nnz, mut runs) = (0u64, Vec::new());
                for tuple in 0..group.ntuples {
                    let from = runs.len();
                    self.check_list(group, group.at.lists + tuple, &mut runs)?;
                    let nrows: u64 = runs[from..].iter().map(|&(_, length)| length as u64).sum();
                    if kept(tuple) == 0 {
                        return Err(group.error(&format!(
                            "tuple {tuple} is all zero, expected a kept weight (section tuples)"
                        )));
                    }
                    nnz = nnz.saturating_add(nrows.saturating_mul(kept(tuple)));
                }
                runs.sort_unstable();
                if let Some(pair) = runs.windows(2).find(|w| w[0].0 + w[0].1 > w[1].0) {
                    return Err(group.error(&format!(
                        "row {} is in two lists, expected one (section lists)",
                        pair[1].0
                    )));
                }
                Ok(nnz)
            }
            Kind::Codes => {
                let mut counts = vec![0u64; group.ntuples];
                for row in 0..self.nrows {
                    let code = self.code(group, row);
                    *counts.get_mut(code).ok_or_else(|| {
                        group.error(&format!(
                            "code {code} of row {row}, expected under {} tuples",
                            group.ntuples
                        ))
                    })? += 1;
                }
                let nnz = counts.iter().enumerate().map(|(tuple, n)| n.saturating_mul(kept(tuple)));
                Ok(nnz.fold(0, u64::saturating_add))
            }
            Kind::Plain => {
                let words = group.at.symbols..group.at.symbols + group.width * self.nrows;
                Ok(words.filter(|&at| self.symbols.get(at) != 0).count() as u64)
            }
        }
    }

    /// Checks that a list's counts fill it and its rows rise, and appends them as (row, length).
    fn check_list(&self, group: &Group, list: usize, runs: &mut Vec<(usize, usize)>) -> Result<()> {
        let size = if group.kind == Kind::Offsets { 1 } else { 2 };
        let mut words = self.list(list);
        let mut segment = 0;
        let mut is_ended = false;
        while let [count, rest @ ..] = words {
            let nwords = usize::from(*count) * size;
            let bounds = segment * SEGMENT_ROWS..((segment + 1) * SEGMENT_ROWS).min(self.nrows);
            if nwords > rest.len() || bounds.is_empty() {
                return Err(group.error(&format!(
                    "segment {segment} of list {list} has {nwords} words, expected at most {} of \
                     {} rows (section lists)",
                    rest.len(),
                    bounds.len()
                )));
            }
            let mut free = bounds.start;
            for item in rest[..nwords].chunks_exact(size) {
                let row = bounds.start + usize::from(item[0]);
                let length = item.get(1).map_or(1, |&length| usize::from(length));
                if row < free || length == 0 || row + length > bounds.end {
                    return Err(group.error(&format!(
                        "rows {row} to {} in list {list}, expected some in [{free}, {}) (section \
                         lists)",
                        row + length,
                        bounds.end
                    )));
                }
                runs.push((row, length));
                free = row + length;
            }
            is_ended = nwords > 0;
            words = &rest[nwords..];
            segment += 1;
        }
        if is_ended {
            return Ok(());
        }
        Err(group.error(&format!("list {list} ends empty, expected a row (section lists)")))
    }

    fn list(&self, list: usize) -> &[u16] {
        let at = self.starts.get(list) as usize..self.starts.get(list + 1) as usize;
        &self.lists.as_slice()[at]
    }

    /// Calls `each` with (first, length) for the parts of a list's rows that are in `rows`.
    #[inline(always)]
    fn for_rows(
        &self,
        kind: Kind,
        list: usize,
        rows: &Range<usize>,
        each: impl FnMut(usize, usize),
    ) {
        let mut each = each;
        let mut words = self.list(list);
        let mut base = 0;
        while let [count, rest @ ..] = words {
            if base >= rows.end {
                return;
            }
            let low = rows.start.saturating_sub(base);
            let high = rows.end - base;
            if kind == Kind::Offsets {
                let (offsets, rest) = rest.split_at(usize::from(*count));
                let first = match low {
                    0 => 0,
                    _ => offsets.partition_point(|&offset| usize::from(offset) < low),
                };
                for &offset in &offsets[first..] {
                    if usize::from(offset) >= high {
                        break;
                    }
                    each(base + usize::from(offset), 1);
                }
                words = rest;
            } else {
                let (runs, rest) = rest.split_at(usize::from(*count) * 2);
                let end = |run: &[u16; 2]| usize::from(run[0]) + usize::from(run[1]);
                let (runs, _) = runs.as_chunks::<2>();
                for run in &runs[runs.partition_point(|run| end(run) <= low)..] {
                    let from = usize::from(run[0]).max(low);
                    if from >= high {
                        break;
                    }
                    each(base + from, end(run).min(high) - from);
                }
                words = rest;
            }
            base += SEGMENT_ROWS;
        }
    }

    #[inline]
    fn code(&self, group: &Group, row: usize) -> usize {
        if group.ntuples <= MAX_TUPLES_8 {
            usize::from(self.codes8.as_slice()[group.at.codes8 + row])
        } else {
            usize::from(self.codes16.as_slice()[group.at.codes16 + row])
        }
    }

    /// The kept entries of a tuple as (column, symbol).
    fn tuple(&self, group: &Group, tuple: usize) -> impl Iterator<Item = (usize, u16)> {
        let at = group.at.tuples + tuple * group.width;
        (0..group.width).filter_map(move |j| {
            let symbol = self.tuples.get(at + j).checked_sub(1)?;
            Some((self.cols.get(group.at.cols + j) as usize, symbol as u16))
        })
    }

    /// Calls `each` with (row in `rows`, column, symbol) for the kept weights of `rows`.
    fn for_entries(&self, rows: &Range<usize>, mut each: impl FnMut(usize, usize, u16)) {
        for group in self.groups() {
            match group.kind {
                Kind::Offsets | Kind::Runs => {
                    for tuple in 0..group.ntuples {
                        self.for_rows(group.kind, group.at.lists + tuple, rows, |row, length| {
                            for row in row..row + length {
                                self.tuple(&group, tuple).for_each(|(c, s)| each(row, c, s));
                            }
                        });
                    }
                }
                Kind::Codes => {
                    for row in rows.clone() {
                        let tuple = self.code(&group, row);
                        self.tuple(&group, tuple).for_each(|(col, symbol)| each(row, col, symbol));
                    }
                }
                Kind::Plain => {
                    for j in 0..group.width {
                        let col = self.cols.get(group.at.cols + j) as usize;
                        let at = group.at.symbols + j * self.nrows;
                        for row in rows.clone() {
                            if let Some(symbol) = self.symbols.get(at + row).checked_sub(1) {
                                each(row, col, symbol as u16);
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Layout for Cla {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        Vec::new()
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![
            self.kinds.as_bytes(),
            self.sizes.as_bytes(),
            self.cols.as_bytes(),
            self.tuples.as_bytes(),
            self.starts.as_bytes(),
            self.lists.as_bytes(),
            self.codes8.as_bytes(),
            self.codes16.as_bytes(),
            self.symbols.as_bytes(),
        ]
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        let start = rows.start;
        let mut entries = Vec::new();
        self.for_entries(&rows, |row, col, symbol| {
            entries.push(((row - start) as u32, (col as u64) << 16 | u64::from(symbol)));
        });
        // Counting sort by row, then each row by column: groups interleave.
        out.indptr.resize(rows.len() + 1, 0);
        entries.iter().for_each(|&(row, _)| out.indptr[row as usize + 1] += 1);
        for row in 0..rows.len() {
            out.indptr[row + 1] += out.indptr[row];
        }
        let mut next = out.indptr.clone();
        let mut by_row = vec![0u64; entries.len()];
        for (row, entry) in entries {
            by_row[next[row as usize]] = entry;
            next[row as usize] += 1;
        }
        for row in out.indptr.windows(2) {
            by_row[row[0]..row[1]].sort_unstable();
        }
        out.cols.extend(by_row.iter().map(|entry| (entry >> 16) as u32));
        out.symbols.extend(by_row.iter().map(|&entry| entry as u16));
        Ok(())
    }

    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        y.fill(0.0);
        let start = rows.start;
        let times =
            |(col, symbol): (usize, u16)| product.codebook[usize::from(symbol)] * product.x[col];
        let mut products: Vec<f32> = Vec::new();
        for group in self.groups() {
            match group.kind {
                Kind::Offsets | Kind::Runs => {
                    for tuple in 0..group.ntuples {
                        let u: f32 = self.tuple(&group, tuple).map(times).sum();
                        self.for_rows(group.kind, group.at.lists + tuple, &rows, |row, length| {
                            y[row - start..][..length].iter_mut().for_each(|y| *y += u);
                        });
                    }
                }
                Kind::Codes => {
                    products.clear();
                    let tuples = 0..group.ntuples;
                    products.extend(tuples.map(|t| self.tuple(&group, t).map(times).sum::<f32>()));
                    for (row, y) in rows.clone().zip(&mut *y) {
                        *y += products[self.code(&group, row)];
                    }
                }
                Kind::Plain => {
                    for j in 0..group.width {
                        let col = self.cols.get(group.at.cols + j) as usize;
                        let at = group.at.symbols + j * self.nrows;
                        for (row, y) in rows.clone().zip(&mut *y) {
                            if let Some(symbol) = self.symbols.get(at + row).checked_sub(1) {
                                *y += times((col, symbol as u16));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
