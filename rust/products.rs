//! Products of a compressed matrix: with a vector, a batch, and the transpose for gradients.
//!
//! ```text
//!   for each block of rows:                  decode once into columns and values
//!     for each panel of 16 batch members:    [ncols][16], one broadcast a kept weight
//!       for each row: sums[row] += Σ value · panel[col]
//! ```
//!
//! No dense copy of the matrix exists at any time: a block of rows is decoded into a small buffer
//! and used for the whole batch. Cutting rows into strips of columns, so that a panel's part stays
//! in the first-level cache, was tried and gained nothing: each strip of a row starts anew.
//!
//! Work is cut into blocks of rows, and each output is summed by one thread in one order, so the
//! result has the same bits for any number of threads.

use crate::error::{Error, Result};
use crate::layout::Product;
use crate::matrix::{CompressedMatrix, zip_chunks};
use crate::rows::{RowBlock, Shape, filled};
use crate::simd::{self, Kernels, LANES, Lanes};
use crate::threads;

impl CompressedMatrix {
    /// y = W·x on the active instruction set: `x` has ncols numbers, the result nrows.
    ///
    /// # Errors
    /// `InvalidArgument` when x has another length.
    pub fn matvec(&self, x: &[f32], threads: usize) -> Result<Vec<f32>> {
        self.matvec_on(simd::active()?, x, threads)
    }

    /// [`CompressedMatrix::matvec`] on a chosen instruction set.
    ///
    /// # Errors
    /// As [`CompressedMatrix::matvec`].
    pub fn matvec_on(
        &self,
        kernels: &'static dyn Kernels,
        x: &[f32],
        threads: usize,
    ) -> Result<Vec<f32>> {
        self.check_input("matvec", x.len(), 1)?;
        let mut y = filled(0.0, self.shape().nrows, 1)?;
        let product = Product { codebook: self.codebook_values(), x, kernels };
        let unit = self.layout.block_rows();
        let ranges = threads::split(self.shape().nrows, self.useful(threads, 1), unit);
        let items = zip_chunks(ranges, &mut y, 1);
        threads::for_each(threads, items, |(rows, y)| self.layout.matvec(&product, rows, y))?;
        Ok(y)
    }

    /// Y = X·Wᵀ on the active instruction set: `x` is `[batch, ncols]`, the result
    /// `[batch, nrows]`, both row-major.
    ///
    /// # Errors
    /// `InvalidArgument` when x has another length.
    pub fn matmul(&self, x: &[f32], batch: usize, threads: usize) -> Result<Vec<f32>> {
        self.matmul_on(simd::active()?, x, batch, threads)
    }

    /// [`CompressedMatrix::matmul`] on a chosen instruction set.
    ///
    /// # Errors
    /// As [`CompressedMatrix::matmul`].
    pub fn matmul_on(
        &self,
        kernels: &'static dyn Kernels,
        x: &[f32],
        batch: usize,
        threads: usize,
    ) -> Result<Vec<f32>> {
        self.check_input("matmul", x.len(), batch)?;
        if batch == 1 {
            return self.matvec_on(kernels, x, threads);
        }
        let Shape { nrows, ncols } = self.shape();
        let panels = to_panels(x, batch, ncols)?;
        // Transposed while it is computed: [nrows][panels · LANES], so that threads own whole rows.
        let npanels = batch.div_ceil(LANES);
        let mut by_row: Vec<Lanes> = filled([0.0; LANES], nrows, npanels)?;
        let block_rows = self.layout.block_rows();
        let ranges = threads::split(nrows, self.useful(threads, batch), block_rows);
        let items = zip_chunks(ranges, &mut by_row, npanels);
        threads::for_each(threads, items, |(rows, out)| {
            let mut block = RowBlock::default();
            let blocks = out.chunks_mut(block_rows.saturating_mul(npanels.max(1)));
            for (start, out) in rows.clone().step_by(block_rows).zip(blocks) {
                self.decode(start..rows.end.min(start + block_rows), &mut block)?;
                for panel in 0..npanels {
                    let inputs = &panels[panel * ncols..(panel + 1) * ncols];
                    for row in 0..block.nrows() {
                        let (cols, values) = block.row(row);
                        let sums = &mut out[row * npanels + panel];
                        kernels.add_panel_product(cols, values, inputs, sums);
                    }
                }
            }
            Ok(())
        })?;
        let mut y = filled(0.0, batch, nrows)?;
        for (row, lanes) in by_row.chunks_exact(npanels.max(1)).enumerate() {
            for (member, &value) in lanes.as_flattened()[..batch].iter().enumerate() {
                y[member * nrows + row] = value;
            }
        }
        Ok(y)
    }

    /// Y = X·W on the active instruction set, the gradient of [`CompressedMatrix::matmul`] by its
    /// input: `x` is `[batch, nrows]`, the result `[batch, groups · ncols]`, both row-major. With
    /// groups, as in a convolution, the rows form that many equal groups, each with columns of its
    /// own in the result.
    ///
    /// Threads share the batch, so each output is summed over the rows in order.
    ///
    /// # Errors
    /// `InvalidArgument` when x has another length.
    pub fn matmul_transposed(
        &self,
        x: &[f32],
        batch: usize,
        groups: usize,
        threads: usize,
    ) -> Result<Vec<f32>> {
        let Shape { nrows, ncols } = self.shape();
        if groups == 0 || !nrows.is_multiple_of(groups) || ncols.checked_mul(groups).is_none() {
            return Err(Error::invalid(format!(
                "matmul_transposed: {groups} groups, expected a divisor of nrows = {nrows}"
            )));
        }
        let (group_rows, width) = ((nrows / groups).max(1), groups * ncols);
        if Some(x.len()) != nrows.checked_mul(batch) {
            return Err(Error::invalid(format!(
                "matmul_transposed: x has {} numbers, expected {batch} · nrows = {batch} · {nrows}",
                x.len()
            )));
        }
        let npanels = batch.div_ceil(LANES);
        let panels = to_panels(x, batch, nrows)?;
        let mut sums: Vec<Lanes> = filled([0.0; LANES], npanels, width)?;
        let ranges = threads::split(npanels, self.useful(threads, batch), 1);
        let items = zip_chunks(ranges, &mut sums, width);
        threads::for_each(threads, items, |(mine, sums)| {
            let mut block = RowBlock::default();
            for start in (0..nrows).step_by(self.layout.block_rows()) {
                self.decode(start..nrows.min(start + self.layout.block_rows()), &mut block)?;
                for (panel, sums) in mine.clone().zip(sums.chunks_exact_mut(width.max(1))) {
                    for row in 0..block.nrows() {
                        let inputs = &panels[panel * nrows + start + row];
                        let first = (start + row) / group_rows * ncols;
                        let (cols, values) = block.row(row);
                        for (&col, &value) in cols.iter().zip(values) {
                            for (sum, x) in sums[first + col as usize].iter_mut().zip(inputs) {
                                *sum += value * x;
                            }
                        }
                    }
                }
            }
            Ok(())
        })?;
        let mut y = filled(0.0, batch, width)?;
        for (member, y) in y.chunks_exact_mut(width.max(1)).enumerate() {
            let panel = &sums[member / LANES * width..][..width];
            for (y, lanes) in y.iter_mut().zip(panel) {
                *y = lanes[member % LANES];
            }
        }
        Ok(y)
    }

    fn check_input(&self, what: &str, len: usize, batch: usize) -> Result<()> {
        if Some(len) == self.shape().ncols.checked_mul(batch) {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{what}: x has {len} numbers, expected {batch} · ncols = {batch} · {}",
            self.shape().ncols
        )))
    }

    /// As many threads as the work is worth: one for each 64 Ki multiply–adds, at most `threads`.
    fn useful(&self, threads: usize, batch: usize) -> usize {
        threads.min(self.nnz().saturating_mul(batch) >> 16).max(1)
    }
}

/// Turns `[batch, ncols]` into panels `[batch / LANES][ncols][LANES]`, the last filled with zeros.
fn to_panels(x: &[f32], batch: usize, ncols: usize) -> Result<Vec<Lanes>> {
    let mut panels = filled([0.0; LANES], batch.div_ceil(LANES), ncols)?;
    for (member, x) in x.chunks_exact(ncols.max(1)).enumerate() {
        let panel = &mut panels[member / LANES * ncols..][..ncols];
        for (lanes, &x) in panel.iter_mut().zip(x) {
            lanes[member % LANES] = x;
        }
    }
    Ok(panels)
}
