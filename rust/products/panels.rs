//! A batch as panels of lanes, and its products with the rows of a layout.
//!
//! ```text
//!   for each panel, or all of them where rows are decoded:
//!     for each block of rows:
//!       sums = 0, or the sums of each row's group      then Layout::add_panels
//! ```

use crate::error::Result;
use crate::interruption;
use crate::layout::{Layout, PanelProduct, lend_buffers};
use crate::lines::Lines;
use crate::matrix::CompressedMatrix;
use crate::simd::{Kernels, LANES, Lanes};
use std::ops::Range;

/// Columns that are turned at a time.
const SQUARE: usize = 64;

/// `[batch, ncols]` turned into panels, as [`PanelProduct`] has them, the last lanes filled with
/// zeros.
pub(super) struct Panels {
    lanes: Lines,
    ncols: usize,
    /// Groups of lanes to a column of a panel, and of all panels.
    width: usize,
    pub groups: usize,
}

/// Sums that rows start from, those of their groups of rows.
#[derive(Clone, Copy)]
pub(super) struct Starts<'a> {
    /// The number of each row's group, from 1 on, and which row is the first of these.
    pub numbers: &'a [u16],
    pub first: usize,
    /// As many groups of lanes for each group of rows as the batch has.
    pub sums: &'a [Lanes],
}

impl Panels {
    /// Panels of `width` groups of lanes a column.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub fn new(x: &[f32], batch: usize, ncols: usize, width: usize) -> Result<Self> {
        let groups = batch.div_ceil(LANES);
        let width = width.min(groups).max(1);
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
        Ok(Self { lanes: panels, ncols, width, groups })
    }

    pub fn as_slice(&self) -> &[Lanes] {
        self.lanes.as_slice()
    }

    /// Multiplies `rows` of `matrix` with every panel. Hands out, for each panel of each block of
    /// rows, the block, the number of the panel's first group of lanes, how many it has, and as many
    /// sums for each row.
    ///
    /// # Errors
    /// As [`Layout::decode`].
    pub fn multiply(
        &self,
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        rows: Range<usize>,
        starts: Option<Starts<'_>>,
        mut take: impl FnMut(Range<usize>, usize, usize, &[Lanes]),
    ) -> Result<()> {
        let (ncols, block_rows) = (self.ncols, matrix.block_rows());
        let layout: &dyn Layout = &*matrix.layout;
        let mut buffers = lend_buffers();
        let most = rows.len().min(block_rows).saturating_mul(self.groups);
        let mut sums = Lines::zeroed::<Lanes>(most)?;
        let sums = sums.as_mut_slice();
        // Where rows need no decoding, a panel stays in the cache for all of them.
        let at_once = if self.width > 1 { self.width } else { self.groups.max(1) };
        let panels = self.as_slice().chunks((at_once * ncols).max(1));
        for (panels, first) in panels.zip((0..).step_by(at_once)) {
            let groups = panels.len() / ncols;
            let product = PanelProduct {
                codebook: matrix.codebook_values(),
                panels,
                ncols,
                width: self.width.min(groups),
                kernels,
            };
            let mut start = rows.start;
            while start < rows.end {
                interruption::check()?;
                let block = start..rows.end.min((start / block_rows + 1) * block_rows);
                start = block.end;
                let nrows = block.len();
                let sums = &mut sums[..nrows * groups];
                match starts {
                    None => sums.fill([0.0; LANES]),
                    Some(starts) => {
                        let mut first = first;
                        for (width, _, sums) in product.parts(sums, nrows) {
                            starts.put(block.clone(), first..first + width, self.groups, sums);
                            first += width;
                        }
                    }
                }
                layout.add_panels(&product, block.clone(), &mut buffers, sums)?;
                let mut first = first;
                for (width, _, sums) in product.parts(sums, nrows) {
                    take(block.clone(), first, width, sums);
                    first += width;
                }
            }
        }
        Ok(())
    }
}

impl Starts<'_> {
    /// Puts those of `rows` into `sums`: of all `groups` groups of lanes those of `panel`.
    fn put(self, rows: Range<usize>, panel: Range<usize>, groups: usize, sums: &mut [Lanes]) {
        let numbers = &self.numbers[rows.start - self.first..rows.end - self.first];
        for (sums, &number) in sums.chunks_exact_mut(panel.len()).zip(numbers) {
            match usize::from(number).checked_sub(1) {
                None => sums.fill([0.0; LANES]),
                Some(group) => {
                    sums.copy_from_slice(&self.sums[group * groups..][..groups][panel.clone()]);
                }
            }
        }
    }
}
