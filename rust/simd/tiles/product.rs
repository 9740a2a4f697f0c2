//! One strip times one tile: where sums start, how they are finished, how a tile lies.

use super::{Form, LARGEST_TILE, SMALLEST_DENSE_TILE, SMALLEST_TILE, Strip};
use std::ops::Range;

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

impl<'a> Finish<'a> {
    /// That of some rows.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let of = |numbers: Option<&'a [f32]>| numbers.map(|numbers| &numbers[rows.clone()]);
        Self { scale: of(self.scale), shift: of(self.shift), ..*self }
    }
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
    pub(in crate::simd) fn of(&self, sum: f32, (scale, shift): (f32, f32)) -> f32 {
        let y = sum * scale + shift;
        // Comparisons, so that NaN stays NaN.
        let y = if y < self.floor { self.floor } else { y };
        if y > self.ceiling { self.ceiling } else { y }
    }

    /// Scale and shift of row `row`.
    #[inline]
    pub(in crate::simd) fn row(&self, row: usize) -> (f32, f32) {
        (self.scale.map_or(1.0, |scale| scale[row]), self.shift.map_or(-0.0, |shift| shift[row]))
    }
}

/// How the outputs of a tile lie: one line of numbers that follow each other, or several.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Lines: 1; 2 or 4 of [`GRID_LINE`] outputs; 8 or 16 of [`COLUMN`].
    pub lines: usize,
    /// From one line to the next in the input; of 8 or 16, [`COLUMN_PITCH`].
    pub pitch: usize,
    /// The same in the output.
    pub output_pitch: usize,
}

impl Grid {
    /// One line.
    pub const LINE: Self = Self { lines: 1, pitch: 0, output_pitch: 0 };
}

/// Outputs of a line of a grid.
pub const GRID_LINE: usize = 32;

/// Outputs of a line of a column.
pub const COLUMN: usize = 8;

/// From one line of a column to the next.
pub const COLUMN_PITCH: usize = 16;

/// One strip times one tile of the input: what [`Kernels::add_strip`] computes.
#[derive(Clone, Copy, Debug)]
pub struct TileProduct<'a> {
    /// The weights.
    pub strip: Strip<'a>,
    /// Outputs of the tile: a power of two from [`SMALLEST_TILE`] to [`LARGEST_TILE`], and from
    /// [`SMALLEST_DENSE_TILE`] on where rows are dense.
    pub size: usize,
    /// The input from the tile's first place on.
    pub input: &'a [f32],
    /// Where sums start.
    pub start: Start<'a>,
    /// What is done to them at the end; none where more strips follow.
    pub finish: Option<Finish<'a>>,
    /// From one row of the output to the next.
    pub stride: usize,
    /// How the tile lies in the input and the output; in [`Start::Sums`] it is one line.
    pub grid: Grid,
}

impl TileProduct<'_> {
    /// Checks everything that a kernel relies on: after this it may read tiles of `size` at every
    /// offset of the input, and write `size` numbers of each row of the output, both as the grid says.
    ///
    /// # Panics
    /// When something does not fit.
    pub(in crate::simd) fn check(&self, output: &[f32]) {
        let Self { strip, size, input, start, finish, stride, grid } = self;
        let (nrows, taps) = (strip.nrows(), strip.taps);
        let smallest = match taps.form {
            Form::Dense => SMALLEST_DENSE_TILE,
            _ => SMALLEST_TILE,
        };
        let is_size = size.is_power_of_two() && (smallest..=LARGEST_TILE).contains(size);
        assert!(is_size, "add_strip: a tile of {size}");
        let is_plain = strip.shifts().is_empty() && taps.form != Form::Dense;
        let is_grid = match grid.lines {
            1 => true,
            lines @ (2 | 4) => *size == lines * GRID_LINE && is_plain,
            lines @ (8 | 16) => *size == lines * COLUMN && grid.pitch == COLUMN_PITCH && is_plain,
            _ => false,
        };
        assert!(is_grid, "add_strip: a tile of {size} in {} lines", grid.lines);
        let spread = |pitch: usize| {
            let lines =
                pitch.checked_mul(grid.lines - 1).and_then(|n| n.checked_add(size / grid.lines));
            lines.expect("add_strip: a grid of under 2^64 numbers")
        };
        let reach = spread(grid.pitch).checked_add(taps.reach as usize);
        assert!(
            taps.is_empty() || reach.is_some_and(|reach| reach <= input.len()),
            "add_strip: a tile of {size} at {} of {}",
            taps.reach,
            input.len()
        );
        let len = spread(grid.output_pitch);
        let needed = nrows.checked_sub(1).and_then(|n| n.checked_mul(*stride)?.checked_add(len));
        let is_output = *stride >= len && (nrows == 0 || needed.is_some_and(|n| n <= output.len()));
        assert!(is_output, "add_strip: {nrows} rows of {stride}, {} numbers", output.len());
        if let Start::Sums(sums) = start {
            assert_eq!(sums.len(), nrows * size, "add_strip: sums");
        }
        for shift in strip.shifts() {
            let row = shift.row();
            assert!(size.is_multiple_of(row), "add_strip: a tile of {size}, rows of {row}");
        }
        for vector in finish.iter().flat_map(|finish| [finish.scale, finish.shift]).flatten() {
            assert_eq!(vector.len(), nrows, "add_strip: scale and shift");
        }
    }
}
