//! Taps: kept weights as places in an input, row by row, that tiles of outputs are summed from.
//!
//! ```text
//!   rows    row 0: (offset, value) (offset, value) …   row 1: …
//!   strips  cuts of each row where its inputs leave the first-level cache
//!   tile    sums[row][p] += Σ value · input[offset + start + p]      p in [0, size)
//! ```
//!
//! Where there are up to 256 values and few enough places, a weight is narrow: 16 bits of offset,
//! in units that all places are multiples of, and 8 bits of symbol, 3 bytes instead of 8. A layer
//! goes by once for each group of images, from the second or third level of the cache.
//!
//! Taps know the furthest place that they read, so a kernel checks one number for a whole tile
//! instead of one a weight. That is why the fields are private: [`Taps::fill`] alone sets them, and
//! looks at what [`Kernels::place`] made.
#![allow(unsafe_code)]

use super::Kernels;
use super::dense_rows::{self, Dense, DenseRows};

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
    /// Every place is a multiple of 2 to this.
    pub shift: u32,
}

/// Decoded rows: what [`Taps::fill`] takes. Vectors are exchanged for what was there before, so
/// that memory goes round.
#[derive(Debug)]
pub struct Decoded<'a> {
    /// Where each row starts, and the end.
    pub indptr: &'a [usize],
    /// The columns.
    pub cols: &'a mut Vec<u32>,
    /// The symbols; none where there are values.
    pub symbols: &'a [u16],
    /// The values of symbols.
    pub codebook: &'a [f32],
    /// The values; none where there are symbols.
    pub values: &'a mut Vec<f32>,
}

/// Rows of (offset, value), cut into strips, and the furthest offset.
#[derive(Clone, Debug, Default)]
pub struct Taps {
    nrows: usize,
    /// Strip by strip, then the end: where each row's part starts among the weights, rising from
    /// strip to strip and never above their number. Strip `s` of row `r` is
    /// `cuts[s · nrows + r] .. cuts[(s + 1) · nrows + r]`.
    cuts: Vec<u32>,
    wide: Wide,
    narrow: Narrow,
    dense: Dense,
    form: Form,
    /// Columns of a strip, where rows are dense.
    strip: usize,
    /// No offset is above it.
    reach: u32,
}

/// Where the weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Wide,
    Narrow,
    Dense,
}

/// Weights as they are.
#[derive(Clone, Debug, Default)]
struct Wide {
    offsets: Vec<u32>,
    /// As long as `offsets`.
    values: Vec<f32>,
}

/// Weights of up to 256 values at places that 16 bits hold.
#[derive(Clone, Debug, Default)]
struct Narrow {
    /// Offsets shifted right.
    offsets: Vec<u16>,
    /// As long as `offsets`.
    symbols: Vec<u8>,
    codebook: Box<Values>,
    shift: u32,
}

/// The values of every symbol of 8 bits.
#[derive(Clone, Debug)]
struct Values([f32; 256]);

impl Default for Values {
    fn default() -> Self {
        Self([0.0; 256])
    }
}

impl Taps {
    /// Takes rows, of which the first is row `first` of the matrix.
    ///
    /// # Panics
    /// When the lengths do not fit, a symbol is outside the codebook, or there are 2³² weights or
    /// places.
    pub fn fill(
        &mut self,
        kernels: &dyn Kernels,
        decoded: Decoded<'_>,
        first: usize,
        places: &Places,
    ) {
        let Decoded { indptr, cols, symbols, codebook, values } = decoded;
        let len = u32::try_from(cols.len()).expect("taps: under 2^32 weights");
        let has_values = values.len() == cols.len();
        assert!(has_values || symbols.len() == cols.len(), "taps: columns and symbols");
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
        self.reach = 0;
        let mut row = 0;
        while row < nrows {
            let group = (first + row) / places.group_rows;
            let next = nrows.min((group + 1) * places.group_rows - first);
            let base = u32::try_from(group * places.group_step).expect("taps: under 2^32 places");
            let cols = &mut cols[indptr[row]..indptr[next]];
            self.reach = self.reach.max(kernels.place(cols, &places.taps, places.channel, base));
            row = next;
        }
        let is_small = codebook.len() <= 256 && self.reach >> places.shift < 1 << 16;
        self.form = Form::Wide;
        if !has_values && is_small {
            self.form = Form::Narrow;
            let narrow = &mut self.narrow;
            narrow.shift = places.shift;
            narrow.codebook.0[..codebook.len()].copy_from_slice(codebook);
            let is_symbol = symbols.iter().fold(0, |all, &symbol| all.max(symbol));
            assert!(cols.is_empty() || usize::from(is_symbol) < codebook.len(), "taps: symbols");
            kernels.narrow(cols, symbols, places.shift, &mut narrow.offsets, &mut narrow.symbols);
            assert!(narrow.offsets.len() == cols.len() && narrow.symbols.len() == cols.len());
            return;
        }
        if !has_values {
            values.clear();
            kernels.look_up(symbols, codebook, values);
        }
        assert_eq!(cols.len(), values.len(), "taps: columns and values");
        std::mem::swap(&mut self.wide.offsets, cols);
        std::mem::swap(&mut self.wide.values, values);
    }

    /// Takes dense rows of `ncols` columns from `weights`, a row at each multiple of their
    /// [`dense_rows::pitch`]; the vector is exchanged for the last one. All rows share their inputs.
    ///
    /// # Panics
    /// When there are fewer weights, several groups of rows, or 2³² places.
    pub fn fill_dense(
        &mut self,
        kernels: &dyn Kernels,
        weights: &mut Vec<f32>,
        [nrows, ncols]: [usize; 2],
        places: &Places,
    ) {
        assert!(weights.len() >= nrows * dense_rows::pitch(ncols), "taps: dense rows");
        assert!(places.group_step == 0 || places.group_rows >= nrows, "taps: one group of rows");
        self.cuts.clear();
        (self.form, self.nrows, self.strip) = (Form::Dense, nrows, places.strip);
        let offsets = &mut self.dense.offsets;
        offsets.clear();
        offsets.extend(0..u32::try_from(ncols).expect("taps: under 2^32 columns"));
        self.reach = kernels.place(offsets, &places.taps, places.channel, 0);
        std::mem::swap(&mut self.dense.weights, weights);
    }

    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// Bytes in use.
    pub fn nbytes(&self) -> usize {
        let weights = match self.form {
            Form::Wide => 8 * self.wide.offsets.len(),
            Form::Narrow => 3 * self.narrow.offsets.len() + size_of::<Values>(),
            Form::Dense => 4 * (self.dense.offsets.len() + self.dense.weights.len()),
        };
        4 * self.cuts.len() + weights
    }

    /// Whether nothing reads the input.
    fn is_empty(&self) -> bool {
        match self.form {
            Form::Dense => self.dense.offsets.is_empty(),
            _ => self.cuts.last().is_none_or(|&end| end == 0),
        }
    }

    /// Strip `number` of rows `start .. end`.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn strip(&self, number: usize, start: usize, end: usize) -> Strip<'_> {
        assert!(start <= end && end <= self.nrows, "taps: rows {start} to {end}");
        let (first, last) = (number * self.nrows, (number + 1) * self.nrows);
        let cuts =
            || (&self.cuts[first + start..first + end], &self.cuts[last + start..last + end]);
        let rows = match self.form {
            Form::Wide => {
                let (starts, ends) = cuts();
                Rows::Wide(WideRows { starts, ends, taps: &self.wide })
            }
            Form::Narrow => {
                let (starts, ends) = cuts();
                Rows::Narrow(NarrowRows { starts, ends, taps: &self.narrow })
            }
            Form::Dense => {
                let ncols = self.dense.offsets.len();
                let at = |number: usize| (number * self.strip).min(ncols);
                Rows::Dense(DenseRows::new(&self.dense, at(number)..at(number + 1), start..end))
            }
        };
        Strip { rows, nrows: end - start, taps: self }
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
    rows: Rows<'a>,
    nrows: usize,
    taps: &'a Taps,
}

impl<'a> Strip<'a> {
    /// The rows, in the form that they have.
    pub(super) fn rows(&self) -> Rows<'a> {
        self.rows
    }

    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }
}

/// The rows of a strip.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    Wide(WideRows<'a>),
    Narrow(NarrowRows<'a>),
    Dense(DenseRows<'a>),
}

/// Rows whose weights a kernel goes through, whatever their form.
pub(super) trait TapRows: Copy {
    /// The range of weights of a row, which are there.
    fn range(self, row: usize) -> std::ops::Range<usize>;

    /// Offset and value of a weight.
    ///
    /// # Safety
    /// It is in the range of a row.
    unsafe fn get(self, weight: usize) -> (usize, f32);
}

#[derive(Clone, Copy, Debug)]
pub(super) struct WideRows<'a> {
    starts: &'a [u32],
    ends: &'a [u32],
    taps: &'a Wide,
}

impl TapRows for WideRows<'_> {
    #[inline(always)]
    fn range(self, row: usize) -> std::ops::Range<usize> {
        self.starts[row] as usize..self.ends[row] as usize
    }

    #[inline(always)]
    unsafe fn get(self, weight: usize) -> (usize, f32) {
        // SAFETY: cuts are never above the length of both vectors.
        unsafe {
            (
                *self.taps.offsets.get_unchecked(weight) as usize,
                *self.taps.values.get_unchecked(weight),
            )
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct NarrowRows<'a> {
    starts: &'a [u32],
    ends: &'a [u32],
    taps: &'a Narrow,
}

impl TapRows for NarrowRows<'_> {
    #[inline(always)]
    fn range(self, row: usize) -> std::ops::Range<usize> {
        self.starts[row] as usize..self.ends[row] as usize
    }

    #[inline(always)]
    unsafe fn get(self, weight: usize) -> (usize, f32) {
        // SAFETY: cuts are never above the length of both vectors.
        let (offset, symbol) = unsafe {
            (*self.taps.offsets.get_unchecked(weight), *self.taps.symbols.get_unchecked(weight))
        };
        (usize::from(offset) << self.taps.shift, self.taps.codebook.0[usize::from(symbol)])
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
            taps.is_empty() || taps.reach as usize + size <= input.len(),
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
