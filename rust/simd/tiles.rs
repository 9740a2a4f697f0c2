//! Taps: kept weights as places in an input, row by row, that tiles of outputs are summed from.
//!
//! ```text
//!   rows    row 0: (offset, value) (offset, value) …   row 1: …
//!   strips  cuts of each row where its inputs leave the first-level cache
//!   tile    sums[row][p] += Σ value · input[offset + start + p]      p in [0, size)
//! ```
//!
//! Where there are up to 256 values and few enough places, offset and symbol are joined in 32 bits,
//! half of what a wide weight takes: what binds a kernel is the number of loads, and a layer goes
//! by once for each group of images, from the second or third level of the cache.
//!
//! Taps know the furthest place that they read, so a kernel checks one number for a whole tile
//! instead of one a weight. That is why the fields are private: [`Taps::fill`] and [`Filling`] alone
//! set them, and look at what [`Kernels::place`] and [`Kernels::join`] made.
#![allow(unsafe_code)]

mod filling;
mod product;
mod sorting;

use super::dense_rows::{self, Dense, DenseRows};
use super::shifts::Shift;
use super::{Cutting, Kernels, Spacing};
pub use filling::Filling;
pub use product::{COLUMN, COLUMN_PITCH, Finish, GRID_LINE, Grid, Start, TileProduct};
use sorting::Sorting;
use std::sync::Arc;

/// Outputs of the largest tile of any instruction set.
pub const LARGEST_TILE: usize = 256;

/// Outputs of the smallest tile.
pub const SMALLEST_TILE: usize = 4;

/// Outputs of the smallest tile of dense rows.
pub const SMALLEST_DENSE_TILE: usize = 8;

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
    /// No place is as much.
    pub end: usize,
    /// The tap columns, where their sums are moved instead of their inputs; else none.
    pub shifts: Arc<[Shift]>,
    /// Whether weights are sorted by strip, which pays where they are read several times. With shifts
    /// they always are.
    pub is_sorted: bool,
}

impl Places {
    /// Where the inputs of a group of rows start.
    ///
    /// # Panics
    /// When that is at 2³² places or more.
    fn base(&self, group: usize) -> u32 {
        u32::try_from(group * self.group_step).expect("taps: under 2^32 places")
    }
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
    /// Where each row's part of each strip starts among the weights, never above their number. As
    /// decoded, row by row, strip `s` of row `r` is `cuts[s · nrows + r] .. cuts[(s + 1) · nrows + r]`.
    /// Where they are sorted they lie strip by strip, and part `p` of n, one for each shift or one in
    /// all, starts at `cuts[(s · nrows + r) · n + p]` and ends at the next cut.
    cuts: Vec<u32>,
    shifts: Option<Arc<[Shift]>>,
    is_sorted: bool,
    sorting: Sorting,
    wide: Wide,
    joined: Joined,
    dense: Dense,
    form: Form,
    /// Columns of a strip, where rows are dense.
    strip: usize,
    /// No offset is above it.
    reach: u32,
    /// Where rows start, while they are handed over run by run.
    starts: Vec<usize>,
}

/// Where the weights are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Wide,
    Joined,
    Dense,
}

/// Weights as they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Wide {
    offsets: Vec<u32>,
    /// As long as `offsets`.
    values: Vec<f32>,
}

/// Weights of up to 256 values at places under [`JOINED_PLACES`].
#[derive(Clone, Debug, Default)]
pub(super) struct Joined {
    /// From the lowest bit on: 24 bits of offset in bytes, 8 bits of symbol; then [`ROOM`] zeros.
    entries: Vec<u32>,
    codebook: Box<Values>,
    /// No symbol is above it.
    largest: u16,
}

/// Joined weights that may be read from any weight on, past the end of its row: all are places of the
/// input.
pub(super) const ROOM: usize = 16;

/// Places whose offsets in bytes take 24 bits.
const JOINED_PLACES: usize = 1 << 22;
/// The bits of the offset in an entry.
pub(super) const OFFSET: u32 = (1 << OFFSET_BITS) - 1;
/// How many these are.
pub(super) const OFFSET_BITS: u32 = 24;

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
        assert!(u32::try_from(cols.len()).is_ok(), "taps: {} weights", cols.len());
        let has_values = values.len() == cols.len();
        assert!(has_values || symbols.len() == cols.len(), "taps: columns and symbols");
        let nrows = indptr.len().saturating_sub(1);
        // None until all of them are checked: what panics before leaves nothing to read.
        self.nrows = 0;
        self.shifts = Some(&places.shifts).filter(|shifts| !shifts.is_empty()).cloned();
        let (count, step) = (places.count, places.strip);
        let cutting = Cutting { weights: cols, mask: u32::MAX, indptr, count, step };
        kernels.cut(&cutting, &mut self.cuts);
        let mut symbols = symbols;
        self.is_sorted = self.shifts.is_some() || places.is_sorted;
        if self.is_sorted {
            let shifts = self.shifts.as_deref().unwrap_or(&[]);
            let is_one_group = places.count == 1 || first + nrows <= places.group_rows;
            assert!(is_one_group, "taps: strips of several groups of rows");
            let of_weights = has_values.then_some(&**values);
            self.sorting.sort(kernels, shifts, &self.cuts, nrows, (cols, symbols, of_weights));
            std::mem::swap(&mut self.cuts, &mut self.sorting.cuts);
            std::mem::swap(cols, &mut self.sorting.cols);
            match has_values {
                true => std::mem::swap(values, &mut self.sorting.values),
                false => symbols = &self.sorting.symbols,
            }
        }
        let is_small = codebook.len() <= 256 && places.end <= JOINED_PLACES;
        let is_joined = !has_values && is_small;
        self.form = if is_joined { Form::Joined } else { Form::Wide };
        self.reach = 0;
        let mut largest = 0;
        let mut row = 0;
        if is_joined {
            self.joined.entries.resize(cols.len(), 0);
        }
        let spacing = Spacing::new(&places.taps, places.channel);
        while row < nrows {
            let group = (first + row) / places.group_rows;
            let next = nrows.min((group + 1) * places.group_rows - first);
            let base = places.base(group);
            let range = indptr[row]..indptr[next];
            let reach = if is_joined {
                let (cols, symbols) = (&cols[range.clone()], &symbols[range.clone()]);
                let entries = &mut self.joined.entries[range];
                let spacing = spacing.at(base);
                let (reach, symbol) = kernels.join(cols, 0, symbols, &spacing, entries);
                largest = largest.max(symbol);
                reach
            } else {
                kernels.place(&mut cols[range], &places.taps, places.channel, base)
            };
            self.reach = self.reach.max(reach);
            row = next;
        }
        if is_joined {
            self.check_joined(cols.len(), largest, codebook);
        } else {
            if !has_values {
                values.clear();
                kernels.look_up(symbols, codebook, values);
            }
            assert_eq!(cols.len(), values.len(), "taps: columns and values");
            std::mem::swap(&mut self.wide.offsets, cols);
            std::mem::swap(&mut self.wide.values, values);
        }
        self.nrows = nrows;
    }

    /// Takes the values of joined weights, and checks these.
    ///
    /// # Panics
    /// When places or symbols do not fit.
    fn check_joined(&mut self, len: usize, largest: u16, codebook: &[f32]) {
        assert!((self.reach as usize) < JOINED_PLACES, "taps: place {}", self.reach);
        assert!(len == 0 || usize::from(largest) < codebook.len(), "taps: symbols");
        self.joined.codebook.0[..codebook.len()].copy_from_slice(codebook);
        self.joined.largest = largest;
        let entries = &mut self.joined.entries;
        entries.resize(entries.len().max(len + ROOM), 0);
        entries[len..len + ROOM].fill(0);
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
        assert!(places.shifts.is_empty(), "taps: dense rows with shifts");
        self.cuts.clear();
        self.shifts = None;
        (self.form, self.nrows, self.strip, self.is_sorted) = (Form::Dense, 0, places.strip, false);
        let offsets = &mut self.dense.offsets;
        offsets.clear();
        offsets.extend(0..u32::try_from(ncols).expect("taps: under 2^32 columns"));
        self.reach = kernels.place(offsets, &places.taps, places.channel, 0);
        std::mem::swap(&mut self.dense.weights, weights);
        self.nrows = nrows;
    }

    /// The memory of dense rows, which are gone.
    pub fn take_dense(&mut self) -> Vec<f32> {
        self.nrows = 0;
        std::mem::take(&mut self.dense.weights)
    }

    /// Gives back the memory that only filling needs.
    pub fn shrink(&mut self) {
        self.sorting = Sorting::default();
        self.starts = Vec::new();
        self.joined.entries.truncate(self.cuts.last().map_or(0, |&end| end as usize) + ROOM);
        self.joined.entries.shrink_to_fit();
    }

    /// The number of rows.
    pub fn nrows(&self) -> usize {
        self.nrows
    }

    /// Parts of a row's strip.
    fn parts(&self) -> usize {
        self.shifts.as_ref().map_or(1, |shifts| shifts.len())
    }

    /// Bytes in use.
    pub fn nbytes(&self) -> usize {
        let weights = match self.form {
            Form::Wide => 8 * self.wide.offsets.len(),
            Form::Joined => 4 * self.joined.entries.len() + size_of::<Values>(),
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
        let (parts, row) = (self.parts(), number * self.nrows + start);
        let to_end = if self.is_sorted { 1 } else { self.nrows };
        let rows = match self.form {
            Form::Wide => Rows::Wide(CutRows::new(&self.cuts, parts, row, to_end, &self.wide)),
            Form::Joined => {
                Rows::Joined(CutRows::new(&self.cuts, parts, row, to_end, &self.joined))
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

    /// What is done to the sums of each part of a row; nothing where there is one part.
    pub(super) fn shifts(&self) -> &'a [Shift] {
        self.taps.shifts.as_deref().unwrap_or(&[])
    }
}

/// The rows of a strip.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    Wide(CutRows<'a, Wide>),
    Joined(CutRows<'a, Joined>),
    Dense(DenseRows<'a>),
}

/// The ranges of rows among weights of one form.
#[derive(Debug)]
pub(super) struct CutRows<'a, T> {
    /// From the first part of the first row on.
    cuts: &'a [u32],
    /// Parts of a row.
    parts: usize,
    /// From the start of a part to its end.
    to_end: usize,
    taps: &'a T,
}

impl<T> Clone for CutRows<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for CutRows<'_, T> {}

impl<'a, T> CutRows<'a, T> {
    /// From row `row` of all strips' rows on.
    fn new(cuts: &'a [u32], parts: usize, row: usize, to_end: usize, taps: &'a T) -> Self {
        Self { cuts: &cuts[row * parts..], parts, to_end, taps }
    }
}

impl<T: Weights> CutRows<'_, T> {
    /// The range of weights of a part of a row, which are there.
    #[inline(always)]
    pub(super) fn range(&self, row: usize, part: usize) -> std::ops::Range<usize> {
        let at = row * self.parts + part;
        self.cuts[at] as usize..self.cuts[at + self.to_end] as usize
    }

    /// Has the CPU fetch the first weights of a row, if there is one.
    #[inline(always)]
    pub(super) fn prefetch(&self, row: usize) {
        if let Some(&start) = self.cuts.get(row * self.parts) {
            self.taps.prefetch(start as usize);
        }
    }

    /// Offset in bytes and value of a weight.
    ///
    /// # Safety
    /// It is in the range of a row.
    #[inline(always)]
    pub(super) unsafe fn get(&self, weight: usize) -> (usize, f32) {
        // SAFETY: cuts are never above the number of weights.
        unsafe { self.taps.get(weight) }
    }
}

impl<'a> CutRows<'a, Joined> {
    /// Whether all symbols are under 32.
    pub(super) fn has_few_values(&self) -> bool {
        self.taps.largest < 32
    }

    /// The values of symbols under 32.
    #[inline(always)]
    pub(super) fn first_values(&self) -> &'a [f32; 32] {
        self.taps.codebook.0.first_chunk().expect("256 values")
    }

    /// Joined weights from one on, which may be read, and [`ROOM`] from there.
    ///
    /// # Safety
    /// It is in the range of a row, or its end.
    #[inline(always)]
    pub(super) unsafe fn entries(&self, weight: usize) -> *const u32 {
        // SAFETY: cuts are never above the number of weights, after which there is room.
        unsafe { self.taps.entries.as_ptr().add(weight) }
    }
}

/// A form that weights have.
pub(super) trait Weights {
    /// Offset in bytes and value of a weight.
    ///
    /// # Safety
    /// There are more weights.
    unsafe fn get(&self, weight: usize) -> (usize, f32);

    /// Has the CPU fetch some weights from one on.
    fn prefetch(&self, weight: usize);
}

impl Weights for Wide {
    #[inline(always)]
    fn prefetch(&self, weight: usize) {
        super::prefetch(&self.offsets, weight);
        super::prefetch(&self.values, weight);
    }

    #[inline(always)]
    unsafe fn get(&self, weight: usize) -> (usize, f32) {
        // SAFETY: both vectors have as many.
        unsafe {
            (*self.offsets.get_unchecked(weight) as usize * 4, *self.values.get_unchecked(weight))
        }
    }
}

impl Weights for Joined {
    #[inline(always)]
    fn prefetch(&self, weight: usize) {
        super::prefetch(&self.entries, weight);
        super::prefetch(&self.entries, weight + 16);
    }

    #[inline(always)]
    unsafe fn get(&self, weight: usize) -> (usize, f32) {
        // SAFETY: the caller says so.
        let entry = unsafe { *self.entries.get_unchecked(weight) };
        ((entry & OFFSET) as usize, self.codebook.0[(entry >> OFFSET_BITS) as usize])
    }
}
