//! `cser`: in each row, the columns of equal values side by side, each value named once.
//!
//! ```text
//!   colI:   u8, u16 or u32 [nnz]            columns, grouped by row and value; rising in a group
//!   OI:     u8, u16 or u32 [groups]         each group's place in O; rising in a row
//!   OPtr:   u8 … u64 [groups + 1]           where each group starts in colI
//!   rowPtr: u8 … u64 [nrows + 1]            where each row's groups start in OI and OPtr
//!
//!   y[row] = Σ over the row's groups g of O[OI[g]] · (Σ of x[c] over the group's columns c)
//! ```
//!
//! O lists the distinct values by frequency, the first one implicit: its columns are not stored.
//! The implicit value here is always the pruned zero, O[0], even where another value is more
//! frequent, since a pruned weight must contribute nothing, not even at an x that is not finite.
//! O[1], O[2], … is the codebook, which `encode` puts in the order of falling frequency (ties by
//! value, values that do not occur left out).
//!
//! The published size in bits is
//!
//! ```text
//!   32·|O| + |colI|·bit_req(n) + |OI|·bit_req(|O|) + |OPtr|·bit_req(|colI|) + |rowPtr|·bit_req(|OPtr|)
//! ```
//!
//! with each array in the smallest words that hold the places it can name (of n columns: 0 to
//! n − 1). Codebook and sections take exactly 4 bytes less: zero is not in them.
//!
//! By the distributive law a group costs one multiplication, whatever its length. The sums run in
//! f64: a sum of large inputs overflows f32 where the same inputs times a small weight would not.
//! An infinite weight is multiplied entry by entry, for ∞·a + ∞·b is not ∞·(a + b) where a = −b or
//! a = 0. Decoding sorts each row's columns, O(nnz · log(nnz a row)).
//!
//! Source: Wiedemann, Müller, Samek 2018, *Compact and computationally efficient representation of
//! deep neural networks*, section III (CSER).

use super::{Encoded, Encoding, Layout, LayoutSpec, Parts, Product, check_rows};
use crate::codebook::{Codebook, total_order};
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::interruption;
use crate::rows::{RowBlock, Rows};
use crate::words::Words;
use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "cser",
    id: 3,
    coders: &[Coder::Fixed],
    sections: &["colI", "OI", "OPtr", "rowPtr"],
    holds_values: false,
    encode,
    read,
};

#[derive(Debug)]
struct Cser {
    cols: Words,
    group_values: Words,
    group_starts: Words,
    row_starts: Words,
}

/// The codebook by falling frequency in `symbols`, and the place there of each old symbol.
fn by_frequency(codebook: &Codebook, symbols: &[u16]) -> Result<(Codebook, Vec<u16>)> {
    let mut counts = vec![0usize; codebook.k()];
    symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
    let values = codebook.values();
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| counts[i] > 0).collect();
    order.sort_unstable_by_key(|&i| (Reverse(counts[i]), total_order(values[i])));
    let mut places = vec![0; values.len()];
    for (place, &old) in order.iter().enumerate() {
        places[old] = place as u16;
    }
    let values: Vec<f32> = order.iter().map(|&old| values[old]).collect();
    Ok((Codebook::new(values)?, places))
}

fn encode(rows: &Rows, _: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared(SPEC.name)?;
    let (codebook, places) = by_frequency(codebook, symbols)?;
    let shape = rows.shape();
    let mut cols = Vec::with_capacity(rows.nnz());
    let (mut group_values, mut group_starts, mut row_starts) = (vec![], vec![], vec![0]);
    let mut entries: Vec<(u16, u32)> = Vec::new();
    for row in 0..shape.nrows {
        interruption::check()?;
        let at = rows.indptr()[row]..rows.indptr()[row + 1];
        let places = symbols[at.clone()].iter().map(|&symbol| places[usize::from(symbol)]);
        entries.clear();
        entries.extend(places.zip(rows.cols()[at].iter().copied()));
        entries.sort_unstable();
        for group in entries.chunk_by(|a, b| a.0 == b.0) {
            group_values.push(u64::from(group[0].0) + 1);
            group_starts.push(cols.len() as u64);
            cols.extend(group.iter().map(|&(_, col)| u64::from(col)));
        }
        row_starts.push(group_values.len() as u64);
    }
    group_starts.push(cols.len() as u64);
    let groups = group_values.len() as u64;
    let cser = Cser {
        cols: Words::pack(cols.into_iter(), shape.ncols.saturating_sub(1) as u64),
        group_values: Words::pack(group_values.into_iter(), codebook.k() as u64),
        group_starts: Words::pack(group_starts.into_iter(), rows.nnz() as u64),
        row_starts: Words::pack(row_starts.into_iter(), groups),
    };
    Ok((Box::new(cser), Some(Arc::new(codebook))))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [] = parts.params()?;
    let (shape, k, nnz) = (parts.shape, parts.k() as u64, parts.nnz);
    let group_values = Words::read_all(&parts, "OI", k)?;
    let groups = group_values.len();
    let cser = Cser {
        cols: Words::read(&parts, "colI", shape.ncols.saturating_sub(1) as u64, nnz)?,
        group_starts: Words::read(&parts, "OPtr", nnz as u64, groups + 1)?,
        row_starts: Words::read(&parts, "rowPtr", groups as u64, shape.nrows.saturating_add(1))?,
        group_values,
    };
    check_starts("OPtr", &cser.group_starts, nnz as u64)?;
    check_starts("rowPtr", &cser.row_starts, groups as u64)?;
    for row in 0..shape.nrows {
        let mut last = 0;
        for group in cser.groups(row) {
            let place = cser.group_values.get(group);
            if place <= last || place > k {
                return Err(Error::corrupt(format!(
                    "OI[{group}] is {place}, expected from {} to k = {k} (section OI)",
                    last + 1
                )));
            }
            last = place;
            let columns = cser.columns(group);
            let is_rising =
                columns.clone().skip(1).all(|i| cser.cols.get(i - 1) < cser.cols.get(i));
            if columns.is_empty() || !is_rising {
                return Err(Error::corrupt(format!(
                    "group {group} in row {row} is empty or falls, expected rising columns \
                     (section colI)"
                )));
            }
        }
    }
    check_rows(&cser, &parts)?;
    Ok(Box::new(cser))
}

/// Checks that `starts` rise from 0 to `end`.
fn check_starts(name: &str, starts: &Words, end: u64) -> Result<()> {
    let mut last = 0;
    for i in 0..starts.len() {
        let start = starts.get(i);
        let is_end = i + 1 == starts.len();
        if start < last || start > end || (i == 0 && start != 0) || (is_end && start != end) {
            return Err(Error::corrupt(format!(
                "{name}[{i}] is {start}, expected rising numbers from 0 to {end} (section {name})"
            )));
        }
        last = start;
    }
    Ok(())
}

/// value · Σ x[cols[i]], in f64.
fn group_product<W: Copy + Into<u32>>(cols: &[W], value: f32, x: &[f32]) -> f64 {
    let inputs = cols.iter().map(|&col| f64::from(x[col.into() as usize]));
    let value = f64::from(value);
    if value.is_finite() { value * inputs.sum::<f64>() } else { inputs.map(|x| value * x).sum() }
}

impl Cser {
    /// The groups of `row`.
    fn groups(&self, row: usize) -> Range<usize> {
        self.row_starts.get(row) as usize..self.row_starts.get(row + 1) as usize
    }

    /// Where the columns of `group` are.
    fn columns(&self, group: usize) -> Range<usize> {
        self.group_starts.get(group) as usize..self.group_starts.get(group + 1) as usize
    }
}

impl Layout for Cser {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn orders_codebook(&self) -> bool {
        true
    }

    fn params(&self) -> Vec<u64> {
        Vec::new()
    }

    fn sections(&self) -> Vec<&[u8]> {
        [&self.cols, &self.group_values, &self.group_starts, &self.row_starts]
            .map(Words::as_bytes)
            .to_vec()
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        let mut entries: Vec<u64> = Vec::new();
        for row in rows {
            entries.clear();
            for group in self.groups(row) {
                let symbol = self.group_values.get(group) - 1;
                entries.extend(self.columns(group).map(|i| self.cols.get(i) << 16 | symbol));
            }
            entries.sort_unstable();
            out.cols.extend(entries.iter().map(|entry| (entry >> 16) as u32));
            out.symbols.extend(entries.iter().map(|&entry| entry as u16));
            out.end_row();
        }
        Ok(())
    }

    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        for (row, y) in rows.zip(y) {
            let mut sum = 0.0;
            for group in self.groups(row) {
                let value = product.codebook[self.group_values.get(group) as usize - 1];
                let at = self.columns(group);
                sum += match &self.cols {
                    Words::U8(cols) => group_product(&cols.as_slice()[at], value, product.x),
                    Words::U16(cols) => group_product(&cols.as_slice()[at], value, product.x),
                    Words::U32(cols) => group_product(&cols.as_slice()[at], value, product.x),
                    Words::U64(_) => unreachable!("cser: 64-bit words for columns under 2^32"),
                };
            }
            *y = sum as f32;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Shape;
    use crate::words::word_bits;
    use crate::{CompressedMatrix, Request};

    fn compress(weights: &[f32], nrows: usize, ncols: usize) -> CompressedMatrix {
        crate::layout::compress_as(&SPEC, weights, nrows, ncols)
    }

    #[test]
    fn a_small_matrix_is_stored_byte_by_byte_as_worked_by_hand() {
        #[rustfmt::skip]
        let weights = [
            3.0, 0.0, 2.0, 3.0, 2.0,
            0.0, 0.0, 0.0, 0.0, 0.0,
            4.0, 3.0, 3.0, 0.0, 4.0,
        ];
        // 3 occurs four times, 2 and 4 twice, the smaller value first: O = 0 (implicit), 3, 2, 4.
        let matrix = compress(&weights, 3, 5);
        assert_eq!(matrix.codebook().unwrap().values(), [3.0, 2.0, 4.0]);
        let expected: [&[u8]; 4] = [
            &[0, 3, 2, 4, 1, 2, 0, 4], // colI: row 0's threes and twos, row 2's threes and fours
            &[1, 2, 1, 3],             // OI
            &[0, 2, 4, 6, 8],          // OPtr
            &[0, 2, 2, 4],             // rowPtr: row 1 has no group
        ];
        assert_eq!(matrix.section_bytes(), expected);
        // 3 · (1 + 4) + 2 · (3 + 5) and 3 · (2 + 3) + 4 · (1 + 5).
        assert_eq!(matrix.matvec(&[1.0, 2.0, 3.0, 4.0, 5.0], 1).unwrap(), [31.0, 0.0, 39.0]);
    }

    #[test]
    fn codebook_and_sections_take_4_bytes_less_than_the_published_formula() {
        let widths = [(1, 3), (37, 255), (37, 256), (37, 257), (300, 300), (2, 65_537)];
        for (nrows, ncols) in widths {
            for k in [1usize, 2, 255, 256, 300] {
                let weight = |i: usize| if i % 3 == 1 { 0.0 } else { (i * i % k) as f32 + 1.0 };
                let weights: Vec<f32> = (0..nrows * ncols).map(weight).collect();
                let matrix = compress(&weights, nrows, ncols);
                // The groups, counted from the dense matrix.
                let mut groups = 0;
                let mut values: Vec<u32> = Vec::new();
                for row in weights.chunks(ncols) {
                    let mut kept: Vec<u32> =
                        row.iter().map(|w| w.to_bits()).filter(|&w| w != 0).collect();
                    kept.sort_unstable();
                    kept.dedup();
                    groups += kept.len();
                    values.extend(kept);
                }
                values.sort_unstable();
                values.dedup();
                let (o, nnz) = (values.len() + 1, matrix.nnz());
                let bit_req = |largest: usize| word_bits(largest as u64) as usize;
                let bits = 32 * o
                    + nnz * bit_req(ncols - 1)
                    + groups * bit_req(o - 1)
                    + (groups + 1) * bit_req(nnz)
                    + (nrows + 1) * bit_req(groups);
                let sections = matrix.sections();
                let stored: usize = sections.iter().filter(|s| s.0 != "header").map(|s| s.1).sum();
                assert_eq!(stored + 4, bits / 8, "{nrows} × {ncols}, k = {k}");
            }
        }
    }

    #[test]
    fn an_infinite_weight_and_a_sum_of_inputs_past_f32_multiply_as_entry_by_entry() {
        let inf = f32::INFINITY;
        let matrix = compress(&[inf, inf, 0.0, 0.25, 0.25, 0.25], 2, 3);
        let y = matrix.matvec(&[1.0, -2.0, 0.5], 1).unwrap();
        assert!(y[0].is_nan(), "∞ − ∞ is {}", y[0]);
        assert_eq!(y[1], -0.125);
        let y = matrix.matvec(&[3e38, 3e38, 0.0], 1).unwrap();
        assert_eq!(y, [inf, 1.5e38]);
        assert!(matrix.matvec(&[0.0, 1.0, 0.0], 1).unwrap()[0].is_nan(), "∞ · 0 + ∞ · 1");
    }

    #[test]
    fn values_that_do_not_occur_leave_the_codebook() {
        let shape = Shape::new(1, 3).unwrap();
        let codebook = Arc::new(Codebook::new(vec![7.0, 8.0, 9.0]).unwrap());
        let rows = Rows::from_symbols(&[2, 0, 2], &[true; 3], codebook, shape).unwrap();
        let request = Request { layout: Some(&SPEC), ..Request::default() };
        let matrix = CompressedMatrix::from_rows(&rows, &request).unwrap();
        assert_eq!(matrix.codebook().unwrap().values(), [9.0, 7.0]);
        assert_eq!(matrix.decompress(1).unwrap(), [9.0, 7.0, 9.0]);
    }
}
