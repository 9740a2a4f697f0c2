//! Decoded rows, cut into strips of input channels that stay in the first-level cache.

use crate::rows::RowBlock;
use crate::simd::Strip;

/// The kept weights of some rows, strip after strip.
#[derive(Debug, Default)]
pub struct Schedule {
    strips: Vec<Strip>,
    /// Strips in use; others are kept for their memory.
    count: usize,
}

/// How rows are cut and where their weights' inputs are.
#[derive(Debug)]
pub(super) struct Cuts {
    /// Columns of a strip.
    pub(super) width: usize,
    /// Strips.
    pub(super) count: usize,
    /// The place of each column.
    pub(super) places: Vec<u32>,
    /// Rows of a group of channels, and from one group's inputs to the next.
    pub(super) group_rows: usize,
    pub(super) group_step: usize,
}

impl Cuts {
    /// The first place that strip `number` may read.
    pub(super) fn strip_columns(&self, number: usize) -> usize {
        number * self.width
    }
}

impl Schedule {
    /// Starts a schedule of no rows.
    pub(super) fn clear(&mut self, cuts: &Cuts) {
        self.count = cuts.count;
        if self.strips.len() < self.count {
            self.strips.resize_with(self.count, Strip::default);
        }
        self.strips[..self.count].iter_mut().for_each(Strip::clear);
    }

    /// Adds the rows of `block`, whose first one is row `first` of the matrix.
    pub(super) fn push(&mut self, block: &RowBlock, first: usize, cuts: &Cuts) {
        for row in 0..block.nrows() {
            let base = ((first + row) / cuts.group_rows * cuts.group_step) as u32;
            let (mut cols, mut values) = block.row(row);
            for (number, strip) in self.strips[..self.count].iter_mut().enumerate() {
                let end = if number + 1 == self.count {
                    cols.len()
                } else {
                    find(cols, cuts.strip_columns(number + 1) as u32, self.count - number)
                };
                strip.push_row(&cols[..end], &values[..end], base, &cuts.places);
                (cols, values) = (&cols[end..], &values[end..]);
            }
        }
    }

    /// The strips.
    pub(super) fn strips(&self) -> &[Strip] {
        &self.strips[..self.count]
    }

    /// Bytes in use.
    pub fn nbytes(&self) -> usize {
        self.strips().iter().map(Strip::nbytes).sum()
    }
}

/// The first place in rising `cols` that is not under `limit`, which is likely near the end of the
/// first of `parts` equal parts.
fn find(cols: &[u32], limit: u32, parts: usize) -> usize {
    let mut at = cols.len() / parts;
    while at < cols.len() && cols[at] < limit {
        at += 1;
    }
    while at > 0 && cols[at - 1] >= limit {
        at -= 1;
    }
    at
}
