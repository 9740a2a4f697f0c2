//! `dense`: every entry as an f32, row by row; the reference that occupancy is measured against.
//!
//! ```text
//!   values: f32 [nrows · ncols]
//! ```
//!
//! An entry +0.0 is pruned: it contributes nothing to a product even where x is not finite.

use super::{Buffers, DenseSource, Encoded, Encoding, Layout, LayoutSpec, Parts, Product, Spread};
use crate::array::Array;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::rows::{RowBlock, Rows};
use std::ops::Range;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "dense",
    id: 0,
    coders: &[Coder::Fixed],
    sections: &["values"],
    holds_values: true,
    encode,
    read,
};

#[derive(Debug)]
struct Dense {
    ncols: usize,
    values: Array<f32>,
}

fn encode(rows: &Rows, _: &Encoding) -> Result<Encoded> {
    let shape = rows.shape();
    let mut values = vec![0.0; shape.entries()];
    let kept = rows.to_values();
    for row in 0..shape.nrows {
        let at = rows.indptr()[row]..rows.indptr()[row + 1];
        for (&col, &value) in rows.cols()[at.clone()].iter().zip(&kept[at]) {
            values[row * shape.ncols + col as usize] = value;
        }
    }
    Ok((Box::new(Dense { ncols: shape.ncols, values: values.into() }), None))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [] = parts.params()?;
    let values = parts.section_of::<f32>("values", parts.shape.entries())?;
    let nnz = values.as_slice().iter().filter(|v| v.to_bits() != 0).count();
    if nnz != parts.nnz {
        return Err(Error::corrupt(format!(
            "section values: {nnz} kept weights, expected {}",
            parts.nnz
        )));
    }
    Ok(Box::new(Dense { ncols: parts.shape.ncols, values }))
}

impl Layout for Dense {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        Vec::new()
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![self.values.as_bytes()]
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        for row in rows {
            let entries = &self.values.as_slice()[row * self.ncols..][..self.ncols];
            for (col, &value) in entries.iter().enumerate() {
                if value.to_bits() != 0 {
                    out.cols.push(col as u32);
                    out.values.push(value);
                }
            }
            out.end_row();
        }
        Ok(())
    }

    fn decode_dense(
        &self,
        spread: &Spread<'_>,
        rows: Range<usize>,
        _: &mut Buffers,
        out: &mut [f32],
    ) -> Result<()> {
        for (row, out) in rows.zip(out.chunks_exact_mut(spread.pitch)) {
            let entries = &self.values.as_slice()[row * self.ncols..][..self.ncols];
            out[..self.ncols].copy_from_slice(entries);
        }
        Ok(())
    }

    fn dense_source(&self) -> DenseSource {
        DenseSource::Stored
    }

    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        for (row, y) in rows.zip(y) {
            let entries = &self.values.as_slice()[row * self.ncols..][..self.ncols];
            *y = product.kernels.dense_dot(entries, product.x);
        }
        Ok(())
    }
}
