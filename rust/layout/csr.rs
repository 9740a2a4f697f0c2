//! `csr`: compressed sparse rows with f32 values; the paper's CSC of the transposed matrix.
//!
//! ```text
//!   indptr: u8 … u64 [nrows + 1]           where each row starts; the words hold nnz
//!   cols:   u8, u16 or u32 [nnz]           the smallest words that hold ncols − 1
//!   values: f32 [nnz]
//! ```
//!
//! The published size is s·(b + bit_req(n)) + bit_req(n)/n bits an entry for density s, b = 32 and
//! n columns. Columns and values take just that; the formula's last term gives each of m rows a
//! start of a column's width, which cannot hold nnz. Stored are m + 1 starts wide enough for nnz.
//!
//! Price: a value costs 4 bytes, however few distinct ones there are; a product only widens the
//! columns. Any f32 goes in, which makes it the form of a pruned but unquantized matrix.
//!
//! Source: the classic sparse form (Tinney, Walker 1967), as counted by Marinò et al. 2021.

use super::{Encoded, Encoding, Layout, LayoutSpec, Parts, check_cols};
use crate::array::Array;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::rows::{RowBlock, Rows};
use crate::words::Words;
use std::ops::Range;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "csr",
    id: 1,
    coders: &[Coder::Fixed],
    sections: &["indptr", "cols", "values"],
    holds_values: true,
    encode,
    read,
};

#[derive(Debug)]
struct Csr {
    indptr: Words,
    cols: Words,
    values: Array<f32>,
}

fn encode(rows: &Rows, _: &Encoding) -> Result<Encoded> {
    let shape = rows.shape();
    let csr = Csr {
        indptr: Words::pack(rows.indptr().iter().map(|&i| i as u64), rows.nnz() as u64),
        cols: Words::pack(
            rows.cols().iter().map(|&c| u64::from(c)),
            shape.ncols.saturating_sub(1) as u64,
        ),
        values: rows.to_values().into(),
    };
    Ok((Box::new(csr), None))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [] = parts.params()?;
    let (shape, nnz) = (parts.shape, parts.nnz);
    let csr = Csr {
        indptr: Words::read(&parts, "indptr", nnz as u64, shape.nrows.saturating_add(1))?,
        cols: Words::read(&parts, "cols", shape.ncols.saturating_sub(1) as u64, nnz)?,
        values: parts.section_of("values", nnz)?,
    };
    let mut last = 0;
    for row in 0..=shape.nrows {
        let at = csr.indptr.get(row);
        if at < last
            || at > nnz as u64
            || (row == 0 && at != 0)
            || (row == shape.nrows && at != nnz as u64)
        {
            return Err(Error::corrupt(format!(
                "csr: indptr[{row}] is {at}, expected rising numbers from 0 to nnz = {nnz} (section indptr)"
            )));
        }
        last = at;
    }
    if let Some(at) = csr.values.as_slice().iter().position(|v| v.to_bits() == 0) {
        return Err(Error::corrupt(format!(
            "csr: values[{at}] is +0.0, expected kept weights (section values)"
        )));
    }
    let mut cols = Vec::new();
    for row in 0..shape.nrows {
        cols.clear();
        csr.cols.append_to(csr.row(row), &mut cols);
        check_cols(&cols, row, shape.ncols)?;
    }
    Ok(Box::new(csr))
}

impl Csr {
    fn row(&self, row: usize) -> Range<usize> {
        self.indptr.get(row) as usize..self.indptr.get(row + 1) as usize
    }
}

impl Layout for Csr {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        Vec::new()
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![self.indptr.as_bytes(), self.cols.as_bytes(), self.values.as_bytes()]
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        for row in rows {
            let entries = self.row(row);
            self.cols.append_to(entries.clone(), &mut out.cols);
            out.values.extend_from_slice(&self.values.as_slice()[entries]);
            out.end_row();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CompressedMatrix;
    use crate::words::word_bits;

    fn compress(weights: &[f32], nrows: usize, ncols: usize) -> CompressedMatrix {
        crate::layout::compress_as(&SPEC, weights, nrows, ncols)
    }

    #[test]
    fn a_small_matrix_is_stored_byte_by_byte_as_worked_by_hand() {
        let matrix = compress(&[0.0, 1.0, -2.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0], 3, 3);
        // 1.0 is 0x3f800000, −2.0 is 0xc0000000, 0.5 is 0x3f000000.
        let values = [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0, 0, 0, 0x3f];
        let expected: [&[u8]; 3] = [&[0, 2, 2, 3], &[1, 2, 0], &values];
        assert_eq!(matrix.section_bytes(), expected);
        assert_eq!(matrix.matvec(&[2.0, 3.0, 4.0], 1).unwrap(), [-5.0, 0.0, 1.0]);
    }

    #[test]
    fn columns_and_values_take_what_the_published_formula_says() {
        for ncols in [3usize, 256, 257, 65_536, 65_537] {
            let weights: Vec<f32> = (0..4 * ncols).map(|i| (i % 7) as f32).collect();
            let matrix = compress(&weights, 4, ncols);
            let lens: Vec<usize> = matrix.section_bytes().iter().map(|s| s.len()).collect();
            let (b, bit_req) = (32, word_bits(ncols as u64 - 1) as usize);
            assert_eq!((lens[1] + lens[2]) * 8, matrix.nnz() * (b + bit_req), "n = {ncols}");
            assert_eq!(lens[0] * 8, 5 * word_bits(matrix.nnz() as u64) as usize);
        }
    }
}
