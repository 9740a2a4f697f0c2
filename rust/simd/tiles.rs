//! Strips: kept weights as places in an input, row by row, that tiles of outputs are summed from.
//!
//! ```text
//!   strip   row 0: (offset, value) (offset, value) …   row 1: …
//!   tile    sums[row][p] += Σ value · input[offset + start + p]      p in [0, size)
//! ```
//!
//! A strip knows the furthest place that it reads, so a kernel checks one number for a whole tile
//! instead of one a weight. That is why its fields are private: [`Strip::push_row`] alone fills it.

/// Outputs of the largest tile of any instruction set.
pub const LARGEST_TILE: usize = 256;

/// Outputs of the smallest tile.
pub const SMALLEST_TILE: usize = 8;

/// Rows of (offset, value), and the furthest offset.
#[derive(Clone, Debug, Default)]
pub struct Strip {
    /// `cuts[i] ..= cuts[i + 1]` are the weights of row `i`; rising, the last one the length.
    cuts: Vec<u32>,
    offsets: Vec<u32>,
    /// As long as `offsets`.
    values: Vec<f32>,
    /// No offset is above it.
    reach: u32,
}

impl Strip {
    /// Empties the strip: no rows.
    pub fn clear(&mut self) {
        self.cuts.clear();
        self.cuts.push(0);
        self.offsets.clear();
        self.values.clear();
        self.reach = 0;
    }

    /// Adds a row: weight `i` is at `base + places[cols[i]]`.
    ///
    /// # Panics
    /// When the slices differ in length, a column has no place, or there are 2³² weights.
    pub fn push_row(&mut self, cols: &[u32], values: &[f32], base: u32, places: &[u32]) {
        assert_eq!(cols.len(), values.len(), "strip: columns and values");
        let mut reach = self.reach;
        self.offsets.extend(cols.iter().map(|&col| {
            let offset = base + places[col as usize];
            reach = reach.max(offset);
            offset
        }));
        self.values.extend_from_slice(values);
        self.reach = reach;
        let end = u32::try_from(self.offsets.len()).expect("strip: under 2^32 weights");
        self.cuts.push(end);
    }

    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.cuts.len().saturating_sub(1)
    }

    /// Bytes in use.
    pub fn nbytes(&self) -> usize {
        4 * (self.cuts.len() + self.offsets.len() + self.values.len())
    }

    /// Rows `start .. end`.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn rows(&self, start: usize, end: usize) -> StripRows<'_> {
        assert!(start <= end && end <= self.nrows(), "strip: rows {start} to {end}");
        StripRows { cuts: &self.cuts[start..=end], strip: self }
    }
}

/// Some rows of a strip.
#[derive(Clone, Copy, Debug)]
pub struct StripRows<'a> {
    cuts: &'a [u32],
    strip: &'a Strip,
}

impl<'a> StripRows<'a> {
    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.cuts.len() - 1
    }

    /// Offsets and values of row `row`, of one length.
    #[inline]
    pub(super) fn row(&self, row: usize) -> (&'a [u32], &'a [f32]) {
        let range = self.cuts[row] as usize..self.cuts[row + 1] as usize;
        (&self.strip.offsets[range.clone()], &self.strip.values[range])
    }

    /// Checks that tiles of `size` at every offset lie in `input`, and that sums are there for
    /// every row: after this a kernel may read without checks.
    ///
    /// # Panics
    /// When not.
    pub(super) fn check(&self, size: usize, input: &[f32], sums: &[f32]) {
        assert_eq!(sums.len(), self.nrows() * size, "add_strip: sums");
        let is_empty = self.strip.offsets.is_empty();
        assert!(
            is_empty || self.strip.reach as usize + size <= input.len(),
            "add_strip: a tile of {size} at {} of {}",
            self.strip.reach,
            input.len()
        );
    }
}

/// Whether a strip is the first one of its rows: sums start at 0, or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// Start at 0, whatever is there.
    Start,
    /// Add to what is there.
    Continue,
}
