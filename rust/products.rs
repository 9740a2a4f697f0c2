//! Products of a compressed matrix: with a vector, a batch, and the transpose for gradients.
//!
//! ```text
//!   for each block of rows:                  decode once into columns and values
//!     for each panel of 16 batch members:    [ncols][16], one broadcast a kept weight
//!       for each row: sums[row] += Σ value · panel[col]
//! ```
//!
//! No dense copy of the matrix exists at any time: a block of rows is decoded into a small buffer
//! and used for the whole batch. A layout whose rows are multiplied as they lie (`packed`) takes
//! panels of 32, one panel for all rows, so that it stays in the second-level cache: at batch 64
//! that is half again as fast as all panels for each block. Cutting rows into strips of columns
//! for the first-level cache gained nothing: each strip of a row starts anew.
//!
//! Where most weights are kept, a batch is the convolution of as many images of one place, whose
//! engine multiplies dense rows, a block of them at a time (`convolution/density.rs`).
//!
//! Work is cut into blocks of rows, and each output is summed by one thread in one order, so the
//! result has the same bits for any number of threads.

use crate::convolution::{self, Geometry};
use crate::error::{Error, Result};
use crate::layout::{Buffers, PanelProduct, Product};
use crate::lines::Lines;
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
        if let Some(grouped) = self.layout.grouped() {
            return grouped.matmul(kernels, x, 1, threads);
        }
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
        if let Some(grouped) = self.layout.grouped() {
            return grouped.matmul(kernels, x, batch, threads);
        }
        let Shape { nrows, ncols } = self.shape();
        if convolution::batch_is_faster_dense(kernels, self, batch) {
            let shape = [batch, ncols, 1, 1];
            return Ok(self.conv_on(kernels, x, shape, &Geometry::POINT, None, threads)?.0);
        }
        let block_rows = self.block_rows();
        let mut y = filled(0.0, batch, nrows)?;
        let groups = batch.div_ceil(LANES);
        let width = self.layout.panel_width().min(groups).max(1);
        let panels = to_panels(x, batch, ncols, width)?;
        let (codebook, panels) = (self.codebook_values(), panels.as_slice());
        let panels_at_once = if width > 1 { width } else { groups.max(1) };
        // Each thread owns whole rows: its part of every output.
        let ranges = threads::split(nrows, self.useful(threads, batch), block_rows);
        let mut items: Vec<_> = ranges.iter().map(|rows| (rows.clone(), Vec::new())).collect();
        for y in y.chunks_exact_mut(nrows.max(1)) {
            for ((_, outputs), (_, y)) in items.iter_mut().zip(zip_chunks(ranges.clone(), y, 1)) {
                outputs.push(y);
            }
        }
        threads::for_each(threads, items, |(rows, mut outputs)| {
            let mut buffers = Buffers::default();
            let mut sums =
                Lines::zeroed::<Lanes>(rows.len().min(block_rows).saturating_mul(groups))?;
            let sums = sums.as_mut_slice();
            // Where rows need no decoding, a panel stays in the cache for all of them.
            let panels = panels.chunks((panels_at_once * ncols).max(1));
            let members = outputs.chunks_mut(panels_at_once * LANES);
            for (panels, members) in panels.zip(members) {
                let groups = panels.len() / ncols;
                let width = width.min(groups);
                let product = PanelProduct { codebook, panels, ncols, width, kernels };
                for start in rows.clone().step_by(block_rows) {
                    let block = start..rows.end.min(start + block_rows);
                    let outputs = start - rows.start..block.end - rows.start;
                    let nrows = block.len();
                    let sums = &mut sums[..nrows * groups];
                    sums.fill([0.0; LANES]);
                    self.layout.add_panels(&product, block, &mut buffers, sums)?;
                    let mut members = members.iter_mut();
                    for (width, _, sums) in product.parts(sums, nrows) {
                        for lane in 0..width * LANES {
                            let Some(y) = members.next() else { break };
                            let y = &mut y[outputs.clone()];
                            for (y, sums) in y.iter_mut().zip(sums.chunks_exact(width)) {
                                *y = sums[lane / LANES][lane % LANES];
                            }
                        }
                    }
                }
            }
            Ok(())
        })?;
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
        let panels = to_panels(x, batch, nrows, 1)?;
        let panels = panels.as_slice::<Lanes>();
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

/// Columns that are turned at a time.
const SQUARE: usize = 64;

/// Turns `[batch, ncols]` into panels of `width` groups of lanes a column, as [`PanelProduct`] has
/// them, the last lanes filled with zeros.
fn to_panels(x: &[f32], batch: usize, ncols: usize, width: usize) -> Result<Lines> {
    let groups = batch.div_ceil(LANES);
    let mut panels = Lines::zeroed::<Lanes>(groups.saturating_mul(ncols))?;
    let lanes = panels.as_mut_slice::<Lanes>();
    // In small squares, of which both sides stay in the cache.
    for start in (0..ncols).step_by(SQUARE) {
        let cols = start..ncols.min(start + SQUARE);
        for (member, x) in x.chunks_exact(ncols).enumerate() {
            let (panel, group) = (member / LANES / width * width, member / LANES % width);
            let width = width.min(groups - panel);
            let panel = &mut lanes[panel * ncols + start * width + group..];
            for (lanes, &x) in panel.iter_mut().step_by(width).zip(&x[cols.clone()]) {
                lanes[member % LANES] = x;
            }
        }
    }
    Ok(panels)
}
