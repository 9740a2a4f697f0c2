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
//! Slices of rows (`sell`) are multiplied as they lie, eight vectors at a time; where a CPU is slower at
//! that, more vectors take them as rows.
//!
//! Where most weights are kept, a batch is the convolution of as many images of one place, whose
//! engine multiplies dense rows, a block of them at a time (`convolution/density.rs`).
//!
//! Work is cut into blocks of rows, and each output is summed by one thread in one order, so the
//! result has the same bits for any number of threads.

mod panels;

use crate::convolution::{self, Geometry};
use crate::error::{Error, Result};
use crate::interruption;
use crate::layout::sell::Sell;
use crate::layout::{Layout, Product};
use crate::matrix::{CompressedMatrix, zip_chunks};
use crate::rows::{RowBlock, Shape, filled};
use crate::simd::sell::MAX_VECTORS;
use crate::simd::{self, Kernels, LANES, Lanes};
use crate::threads;
use panels::{Panels, Starts};
use std::ops::Range;

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
        let mut y = filled(0.0, self.shape().nrows, 1)?;
        self.matvec_into(kernels, x, threads, &mut y)?;
        Ok(y)
    }

    /// [`CompressedMatrix::matvec_on`] into `y`, whose nrows numbers may be anything.
    ///
    /// # Errors
    /// As [`CompressedMatrix::matvec`].
    pub(crate) fn matvec_into(
        &self,
        kernels: &'static dyn Kernels,
        x: &[f32],
        threads: usize,
        y: &mut [f32],
    ) -> Result<()> {
        self.check_input("matvec", x.len(), 1)?;
        if let Some(grouped) = self.layout.grouped() {
            let parts = grouped.inner().matvec_on(kernels, x, threads)?;
            y.copy_from_slice(&grouped.joined(&parts, 1)?);
            return Ok(());
        }
        let product = Product { codebook: self.codebook_values(), x, kernels };
        let unit = self.layout.block_rows();
        match self.useful(threads, 1) {
            1 => interruption::check()
                .and_then(|()| self.layout.matvec(&product, 0..self.shape().nrows, y)),
            threads => {
                let ranges = threads::split(self.shape().nrows, threads, unit);
                let items = zip_chunks(ranges, y, 1);
                threads::for_each(threads, items, |(rows, y)| self.layout.matvec(&product, rows, y))
            }
        }
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
        let may_be_slices = batch <= MAX_VECTORS || !self.is_in_slow_slices(kernels);
        if may_be_slices && self.is_multiplied_in_slices() {
            let mut y = filled(0.0, batch, nrows)?;
            self.matmul_into(kernels, x, batch, threads, &mut y)?;
            return Ok(y);
        }
        let grouped = self.layout.grouped();
        let stored = grouped.map_or(self, |grouped| grouped.inner());
        if convolution::batch_is_faster_dense(kernels, stored, batch) {
            let shape = [batch, ncols, 1, 1];
            let y = stored.conv_on(kernels, x, shape, &Geometry::POINT, None, threads)?.0;
            return match grouped {
                Some(grouped) => grouped.joined(&y, batch),
                None => Ok(y),
            };
        }
        let threads = stored.useful(threads, batch);
        let block_rows = stored.block_rows();
        let panels = Panels::new(x, batch, ncols, stored.layout.panel_width())?;
        let mut y = filled(0.0, batch, nrows)?;
        // What groups of rows have in common comes first: their rows start from that.
        let ngroups = grouped.map_or(0, |grouped| grouped.len());
        let mut common: Vec<Lanes> = filled([0.0; LANES], ngroups, panels.groups)?;
        if ngroups > 0 {
            let ranges = threads::split(ngroups, threads, block_rows);
            let items = zip_chunks(ranges, &mut common, panels.groups);
            threads::for_each(threads, items, |(rows, common)| {
                let start = rows.start;
                panels.multiply(kernels, stored, rows, None, |rows, first, width, sums| {
                    for (row, sums) in rows.zip(sums.chunks_exact(width)) {
                        let at = (row - start) * panels.groups + first;
                        common[at..at + width].copy_from_slice(sums);
                    }
                })
            })?;
        }
        let numbers = grouped.map_or(Ok(Vec::new()), |grouped| grouped.numbers(0..nrows))?;
        let starts = grouped.map(|_| Starts { numbers: &numbers, first: ngroups, sums: &common });
        // Each thread owns whole rows: its part of every output. Blocks count from the first group.
        let before = ngroups % block_rows;
        let mut ranges = threads::split(before + nrows, threads, block_rows);
        for range in &mut ranges {
            *range = range.start.max(before) - before..range.end.max(before) - before;
        }
        let items = zip_outputs(&ranges, &mut y, nrows);
        threads::for_each(threads, items, |(rows, mut outputs)| {
            let rows = ngroups + rows.start..ngroups + rows.end;
            let start = rows.start;
            panels.multiply(kernels, stored, rows, starts, |rows, first, width, sums| {
                let outputs = outputs[first * LANES..].iter_mut().take(width * LANES);
                for (lane, y) in outputs.enumerate() {
                    let y = &mut y[rows.start - start..rows.end - start];
                    for (y, sums) in y.iter_mut().zip(sums.chunks_exact(width)) {
                        *y = sums[lane / LANES][lane % LANES];
                    }
                }
            })
        })?;
        Ok(y)
    }

    /// Whether batches are multiplied by [`CompressedMatrix::matmul_into`].
    pub(crate) fn is_multiplied_in_slices(&self) -> bool {
        self.layout.sell().is_some_and(Sell::has_small_symbols)
    }

    /// [`CompressedMatrix::matmul_on`] of slices into `y`, which may be anything. One thread allocates
    /// nothing that an earlier call did.
    ///
    /// # Errors
    /// As [`CompressedMatrix::matmul`].
    ///
    /// # Panics
    /// When the matrix is not in slices.
    pub(crate) fn matmul_into(
        &self,
        kernels: &'static dyn Kernels,
        x: &[f32],
        batch: usize,
        threads: usize,
        y: &mut [f32],
    ) -> Result<()> {
        self.check_input("matmul", x.len(), batch)?;
        let sell = self.layout.sell().expect("a matrix in slices");
        let Shape { nrows, ncols } = self.shape();
        if nrows == 0 || batch == 0 {
            return Ok(());
        }
        let threads = self.useful(threads, batch);
        // Without inputs all results are zeros, whatever the vectors.
        let inputs = x.chunks((MAX_VECTORS * ncols).max(1));
        if ncols == 0 {
            y.fill(0.0);
        }
        for (x, y) in inputs.zip(y.chunks_mut(MAX_VECTORS * nrows)) {
            interruption::check()?;
            let product = Product { codebook: self.codebook_values(), x, kernels };
            let vectors = y.len() / nrows;
            if threads == 1 {
                sell.multiply(&product, vectors, 0..nrows, |row, sums, lane| {
                    let y = y[row..].iter_mut().step_by(nrows);
                    y.zip(sums).for_each(|(y, sums)| *y = sums[lane]);
                })?;
                continue;
            }
            let ranges = threads::split(nrows, threads, sell.block_rows());
            let items = zip_outputs(&ranges, y, nrows);
            threads::for_each(threads, items, |(rows, mut outputs)| {
                sell.multiply(&product, vectors, rows.clone(), |row, sums, lane| {
                    let y = outputs.iter_mut().map(|y| &mut y[row - rows.start]);
                    y.zip(sums).for_each(|(y, sums)| *y = sums[lane]);
                })
            })?;
        }
        Ok(())
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
        let panels = Panels::new(x, batch, nrows, 1)?;
        let (npanels, panels) = (panels.groups, panels.as_slice());
        let mut sums: Vec<Lanes> = filled([0.0; LANES], npanels, width)?;
        let ranges = threads::split(npanels, self.useful(threads, batch), 1);
        let items = zip_chunks(ranges, &mut sums, width);
        threads::for_each(threads, items, |(mine, sums)| {
            let mut block = RowBlock::default();
            for start in (0..nrows).step_by(self.layout.block_rows()) {
                interruption::check()?;
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

/// Pairs each range of rows with its part of each output of `nrows` numbers in `y`.
fn zip_outputs<'a>(
    ranges: &[Range<usize>],
    y: &'a mut [f32],
    nrows: usize,
) -> Vec<(Range<usize>, Vec<&'a mut [f32]>)> {
    let mut items: Vec<_> = ranges.iter().map(|rows| (rows.clone(), Vec::new())).collect();
    for y in y.chunks_exact_mut(nrows.max(1)) {
        for ((_, outputs), (_, y)) in items.iter_mut().zip(zip_chunks(ranges.to_vec(), y, 1)) {
            outputs.push(y);
        }
    }
    items
}
