//! `index_map`: every entry, zero included, as a whole word that numbers its value.
//!
//! ```text
//!   symbols: u8, u16 or u32 [nrows · ncols]   0 = pruned, i + 1 = codebook[i];
//!                                             the smallest words that hold k
//!
//!   y[row] = Σ over col with s = symbols[row · ncols + col] ≠ 0 of codebook[s − 1] · x[col]
//! ```
//!
//! The published size is bit_req(K) + 32·K/(n·m) bits an entry, where K = k + 1 values count zero
//! and bit_req(K) is read as the words that number K values, 0 to K − 1. Here zero is not in the
//! codebook, so codebook and symbols together take exactly 4 bytes less than the formula says.
//! K is at most 65,537, the one case in which words have 32 bits.
//!
//! Price: space does not depend on sparsity, and a product reads every entry. It is what the
//! compressed forms are compared with: the cheapest way to share weights, and nothing else.
//!
//! Source: Han, Mao, Dally 2016, *Deep compression*, section 3, as counted by Marinò et al. 2021.

use super::{Encoded, Encoding, Layout, LayoutSpec, Parts, Product};
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::rows::{RowBlock, Rows};
use crate::words::Words;
use std::ops::Range;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "index_map",
    id: 2,
    coders: &[Coder::Fixed],
    sections: &["symbols"],
    holds_values: false,
    encode,
    read,
};

#[derive(Debug)]
struct IndexMap {
    ncols: usize,
    symbols: Words,
}

fn encode(rows: &Rows, _: &Encoding) -> Result<Encoded> {
    let (codebook, kept) = rows.shared(SPEC.name)?;
    let shape = rows.shape();
    // Row by row, so that no more than one row of wide symbols exists beside the words.
    let words = (0..shape.nrows).flat_map(|row| {
        let mut symbols = vec![0u32; shape.ncols];
        let at = rows.indptr()[row]..rows.indptr()[row + 1];
        for (&col, &symbol) in rows.cols()[at.clone()].iter().zip(&kept[at]) {
            symbols[col as usize] = u32::from(symbol) + 1;
        }
        symbols.into_iter().map(u64::from)
    });
    let symbols = Words::pack(words, codebook.k() as u64);
    Ok((Box::new(IndexMap { ncols: shape.ncols, symbols }), Some(codebook.clone())))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [] = parts.params()?;
    let (shape, k) = (parts.shape, parts.k() as u64);
    let symbols = Words::read(&parts, "symbols", k, shape.entries())?;
    let mut nnz = 0;
    for at in 0..symbols.len() {
        let symbol = symbols.get(at);
        if symbol > k {
            return Err(Error::corrupt(format!(
                "symbols[{at}] is {symbol}, expected at most k = {k} (section symbols)"
            )));
        }
        nnz += usize::from(symbol != 0);
    }
    if nnz != parts.nnz {
        return Err(Error::corrupt(format!(
            "section symbols: {nnz} kept weights, expected {}",
            parts.nnz
        )));
    }
    Ok(Box::new(IndexMap { ncols: shape.ncols, symbols }))
}

/// Entries looked up at a time in [`dot`], into a buffer in the first-level cache.
const LOOK_UP: usize = 256;

/// Σ table[words[i]] · x[i] over the words that are not 0; table[0] is +0.0.
fn dot<W: Copy + Into<u32>>(words: &[W], table: &[f32], product: &Product<'_>) -> f32 {
    let mut values = [0.0; LOOK_UP];
    let mut sum = 0.0;
    for (words, x) in words.chunks(LOOK_UP).zip(product.x.chunks(LOOK_UP)) {
        let values = &mut values[..words.len()];
        for (value, &word) in values.iter_mut().zip(words) {
            *value = table[word.into() as usize];
        }
        sum += product.kernels.dense_dot(values, x);
    }
    sum
}

impl IndexMap {
    fn row(&self, row: usize) -> Range<usize> {
        row * self.ncols..(row + 1) * self.ncols
    }
}

impl Layout for IndexMap {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        Vec::new()
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![self.symbols.as_bytes()]
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        for row in rows {
            for (col, at) in self.row(row).enumerate() {
                let symbol = self.symbols.get(at);
                if symbol != 0 {
                    out.cols.push(col as u32);
                    out.symbols.push((symbol - 1) as u16);
                }
            }
            out.end_row();
        }
        Ok(())
    }

    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        let table: Vec<f32> =
            std::iter::once(0.0).chain(product.codebook.iter().copied()).collect();
        for (row, y) in rows.zip(y) {
            let at = self.row(row);
            *y = match &self.symbols {
                Words::U8(words) => dot(&words.as_slice()[at], &table, product),
                Words::U16(words) => dot(&words.as_slice()[at], &table, product),
                Words::U32(words) => dot(&words.as_slice()[at], &table, product),
                Words::U64(_) => unreachable!("index_map: 64-bit words for k under 2^17"),
            };
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
        // Codebook −1, 0.5, 2: symbols 1, 2, 3.
        let matrix = compress(&[0.5, 0.0, 2.0, 0.0, -1.0, 0.5], 2, 3);
        assert_eq!(matrix.section_bytes(), [&[2, 0, 3, 0, 1, 2][..]]);
        assert_eq!(matrix.codebook().unwrap().values(), [-1.0, 0.5, 2.0]);
        // 0.5 · 2 + 2 · 8 and −1 · 4 + 0.5 · 8, the infinity under no kept weight in row 0.
        assert_eq!(matrix.matvec(&[2.0, f32::INFINITY, 8.0], 1).unwrap()[0], 17.0);
        assert_eq!(matrix.matvec(&[2.0, 4.0, 8.0], 1).unwrap(), [17.0, 0.0]);
    }

    #[test]
    fn symbols_and_codebook_take_4_bytes_less_than_the_published_formula() {
        for k in [1usize, 2, 254, 255, 256, 257, 65_535, 65_536] {
            let (nrows, ncols) = (263, 256);
            let weights: Vec<f32> = (0..nrows * ncols).map(|i| (i % (k + 1)) as f32).collect();
            let matrix = compress(&weights, nrows, ncols);
            let counted = k + 1;
            let bits_an_entry = f64::from(word_bits(counted as u64 - 1))
                + 32.0 * counted as f64 / (nrows * ncols) as f64;
            let sections = matrix.sections();
            let stored: usize = sections.iter().filter(|s| s.0 != "header").map(|s| s.1).sum();
            assert_eq!(
                stored + 4,
                (bits_an_entry * (nrows * ncols) as f64 / 8.0).round() as usize,
                "k = {k}"
            );
        }
    }
}
