//! Taps: kept weights as places in an input, row by row, that tiles of outputs are summed from.
//!
//! ```text
//!   rows    row 0: (offset, value) (offset, value) …   row 1: …
//!   strips  cuts of each row where its inputs leave the first-level cache
//!   tile    sums[row][p] += Σ value · input[offset + start + p]      p in [0, size)
//! ```
//!
//! Taps know the furthest place that they read, so a kernel checks one number for a whole tile
//! instead of one a weight. That is why the fields are private: [`Taps::fill`] alone sets them, and
//! looks at what [`Kernels::place`] made.

use super::Kernels;

/// Outputs of the largest tile of any instruction set.
pub const LARGEST_TILE: usize = 256;

/// Outputs of the smallest tile.
pub const SMALLEST_TILE: usize = 8;

/// Where the columns of a matrix are in an input, and how rows are cut.
///
/// Column `c · taps.len() + t` is at `c · channel + taps[t]`, plus its group's base.
#[derive(Clone, Debug)]
pub struct Places {
    /// The place of each tap in its channel.
    pub taps: Vec<u32>,
    /// From one channel to the next.
    pub channel: u32,
    /// Columns of a strip.
    pub strip: usize,
    /// Strips.
    pub count: usize,
    /// Rows that share their inputs, and from the inputs of one such group to the next.
    pub group_rows: usize,
    /// See `group_rows`.
    pub group_step: usize,
}

/// Rows of (offset, value), cut into strips, and the furthest offset.
#[derive(Clone, Debug, Default)]
pub struct Taps {
    nrows: usize,
    /// Strip by strip, then the end: where each row's part starts in `offsets`, rising from strip
    /// to strip and never above the length. Strip `s` of row `r` is
    /// `cuts[s · nrows + r] .. cuts[(s + 1) · nrows + r]`.
    cuts: Vec<u32>,
    offsets: Vec<u32>,
    /// As long as `offsets`.
    values: Vec<f32>,
    /// No offset is above it.
    reach: u32,
}

impl Taps {
    /// Takes rows, of which the first is row `first` of the matrix: `indptr` says where each starts
    /// in `cols` and `values`, which are exchanged for what was here, so that memory goes round.
    ///
    /// # Panics
    /// When the lengths do not fit, or there are 2³² weights or places.
    pub fn fill(
        &mut self,
        kernels: &dyn Kernels,
        indptr: &[usize],
        cols: &mut Vec<u32>,
        values: &mut Vec<f32>,
        first: usize,
        places: &Places,
    ) {
        assert_eq!(cols.len(), values.len(), "taps: columns and values");
        let len = u32::try_from(cols.len()).expect("taps: under 2^32 weights");
        let nrows = indptr.len().saturating_sub(1);
        self.nrows = nrows;
        self.cuts.clear();
        self.cuts.resize(nrows * (places.count + 1), len);
        for row in 0..nrows {
            let (mut at, end) = (indptr[row], indptr[row + 1]);
            self.cuts[row] = at as u32;
            for strip in 1..places.count {
                let limit = (strip * places.strip) as u32;
                at += find(&cols[at..end], limit, places.count + 1 - strip);
                self.cuts[strip * nrows + row] = at as u32;
            }
            self.cuts[places.count * nrows + row] = end as u32;
        }
        std::mem::swap(&mut self.offsets, cols);
        std::mem::swap(&mut self.values, values);
        self.reach = 0;
        let mut row = 0;
        while row < nrows {
            let group = (first + row) / places.group_rows;
            let next = nrows.min((group + 1) * places.group_rows - first);
            let base = u32::try_from(group * places.group_step).expect("taps: under 2^32 places");
            let offsets = &mut self.offsets[indptr[row]..indptr[next]];
            let reach = kernels.place(offsets, &places.taps, places.channel, base);
            self.reach = self.reach.max(reach);
            row = next;
        }
    }

    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// Bytes in use.
    pub fn nbytes(&self) -> usize {
        4 * (self.cuts.len() + self.offsets.len() + self.values.len())
    }

    /// Strip `number` of rows `start .. end`.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn strip(&self, number: usize, start: usize, end: usize) -> Strip<'_> {
        assert!(start <= end && end <= self.nrows, "taps: rows {start} to {end}");
        let (starts, ends) = (number * self.nrows, (number + 1) * self.nrows);
        Strip {
            starts: &self.cuts[starts + start..starts + end],
            ends: &self.cuts[ends + start..ends + end],
            taps: self,
        }
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

/// One strip of some rows.
#[derive(Clone, Copy, Debug)]
pub struct Strip<'a> {
    starts: &'a [u32],
    /// As many as `starts`.
    ends: &'a [u32],
    taps: &'a Taps,
}

impl<'a> Strip<'a> {
    /// Offsets and values of row `row`, of one length.
    #[inline]
    pub(super) fn row(&self, row: usize) -> (&'a [u32], &'a [f32]) {
        let range = self.starts[row] as usize..self.ends[row] as usize;
        (&self.taps.offsets[range.clone()], &self.taps.values[range])
    }

    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.starts.len()
    }
}

/// Where a row's sums start.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// At 0, whatever is in the output.
    Zero,
    /// At what is in the output.
    Output,
    /// At other sums, `[rows, size]`.
    Sums(&'a [f32]),
}

/// What is done to the sums of a row before they are stored: `scale · sum + shift`, between
/// `floor` and `ceiling`, NaN where it is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// One number a row, or none for 1.
    pub scale: Option<&'a [f32]>,
    /// One number a row, or none for −0.0, which changes nothing.
    pub shift: Option<&'a [f32]>,
    /// −∞ for none.
    pub floor: f32,
    /// ∞ for none.
    pub ceiling: f32,
}

impl Finish<'_> {
    /// Nothing is done.
    pub const NOTHING: Self =
        Self { scale: None, shift: None, floor: f32::NEG_INFINITY, ceiling: f32::INFINITY };

    /// Finishes one sum a row.
    ///
    /// # Panics
    /// When scale or shift has fewer numbers.
    pub fn apply(&self, sums: &mut [f32]) {
        for (row, sum) in sums.iter_mut().enumerate() {
            *sum = self.of(*sum, self.row(row));
        }
    }

    /// What becomes of a sum of a row with this scale and shift.
    #[inline]
    pub(super) fn of(&self, sum: f32, (scale, shift): (f32, f32)) -> f32 {
        let y = sum * scale + shift;
        // Comparisons, so that NaN stays NaN.
        let y = if y < self.floor { self.floor } else { y };
        if y > self.ceiling { self.ceiling } else { y }
    }

    /// Scale and shift of row `row`.
    #[inline]
    pub(super) fn row(&self, row: usize) -> (f32, f32) {
        (self.scale.map_or(1.0, |scale| scale[row]), self.shift.map_or(-0.0, |shift| shift[row]))
    }
}

/// One strip times one tile of the input: what [`Kernels::add_strip`] computes.
#[derive(Clone, Copy, Debug)]
pub struct TileProduct<'a> {
    /// The weights.
    pub strip: Strip<'a>,
    /// Outputs of the tile: a power of two from [`SMALLEST_TILE`] to [`LARGEST_TILE`].
    pub size: usize,
    /// The input from the tile's first place on.
    pub input: &'a [f32],
    /// Where sums start.
    pub start: Start<'a>,
    /// What is done to them at the end; none where more strips follow.
    pub finish: Option<Finish<'a>>,
    /// From one row of the output to the next.
    pub stride: usize,
}

impl TileProduct<'_> {
    /// Checks everything that a kernel relies on: after this it may read tiles of `size` at every
    /// offset of the input, and write `size` numbers of each row of the output.
    ///
    /// # Panics
    /// When something does not fit.
    pub(super) fn check(&self, output: &[f32]) {
        let Self { strip, size, input, start, finish, stride } = self;
        let (nrows, taps) = (strip.nrows(), strip.taps);
        let is_size = size.is_power_of_two() && (SMALLEST_TILE..=LARGEST_TILE).contains(size);
        assert!(is_size, "add_strip: a tile of {size}");
        assert!(
            taps.offsets.is_empty() || taps.reach as usize + size <= input.len(),
            "add_strip: a tile of {size} at {} of {}",
            taps.reach,
            input.len()
        );
        let needed = nrows.checked_sub(1).and_then(|n| n.checked_mul(*stride)?.checked_add(*size));
        let is_output = stride >= size && (nrows == 0 || needed.is_some_and(|n| n <= output.len()));
        assert!(is_output, "add_strip: {nrows} rows of {stride}, {} numbers", output.len());
        if let Start::Sums(sums) = start {
            assert_eq!(sums.len(), nrows * size, "add_strip: sums");
        }
        for vector in finish.iter().flat_map(|finish| [finish.scale, finish.shift]).flatten() {
            assert_eq!(vector.len(), nrows, "add_strip: scale and shift");
        }
    }
}
