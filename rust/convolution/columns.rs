//! Maps cut into columns of eight outputs: a row of one is a cache line, and has the neighbours too.
//!
//! ```text
//!   channel c, column b, row r     x[c][r − top][8 b − left …], 16 numbers, zeros where there is padding
//!   tile                           8 or 16 rows of a column
//!   y[line][p] += w[ky][kx] · x[place(c, ky, kx) + 16 line + p]         p in [0, 8), strip by strip
//! ```
//!
//! One copy serves all taps, every load lies within a cache line, and a tap is an offset whatever its
//! row and column. A copy for each tap (im2col), or for each tap column, is three to nine times as
//! large, so that strips are as many times shorter, and its rows are filled up to cache lines: 3 × 3
//! kernels of 256 channels, one map of 8 × 8, 90 and 95 % pruned, took 0.134 and 0.088 ms with it, and
//! take 0.110 and 0.069 ms; 128 channels at 24 × 24 0.34 and 0.20, now 0.26 and 0.17 ms (one Zen 4
//! core). Where rows of outputs fill cache lines by themselves, one copy for each tap column is as
//! good, and laid out by whole rows.
//!
//! Where the CPU computes sixteen lanes at once a column fills half of them: there the copies win, except
//! on small maps that few weights read (256 channels at 8 × 8, 90 % pruned, 0.145 ms instead of 0.158,
//! 128 at 24 × 24 0.29 instead of 0.38; but ResNet-56, batch 1, is a tenth faster with columns; a Xeon).
//!
//! Price: that input of one image a thread.

use super::Geometry;
use super::maps::Maps;
use super::scratch::TileMemory;
use super::tile::Tile;
use crate::error::Result;
use crate::interruption;
use crate::simd::{COLUMN, COLUMN_PITCH, Grid, Kernels, Windows};

/// Where everything is, for one shape of input.
#[derive(Debug)]
pub(super) struct Columns {
    /// Where the numbers of a channel are from.
    windows: Windows,
    /// Channels, and numbers of one in the input.
    input: [usize; 2],
    /// Rows of a column, with those that taps reach.
    rows: usize,
    /// Lines of a tile.
    lines: usize,
    /// Tiles of a column, and columns.
    tiles: [usize; 2],
    /// The place of each tap in its channel, row of taps by row.
    pub(super) taps: Vec<u32>,
}

/// Kept weights of a row from which on lines of 8 pay, where a register holds two of them.
const LINE_WEIGHTS: usize = 128;

impl Columns {
    /// How an input `[images, channels, height, width]` is laid out, where that is possible and rows of
    /// outputs do not fill cache lines anyway; rows of the matrix keep so many weights.
    pub(super) fn new(
        kernels: &dyn Kernels,
        input: [usize; 4],
        geometry: &Geometry,
        output: [usize; 2],
        row_weights: usize,
    ) -> Option<Self> {
        let span = |dim: usize| (geometry.kernel[dim] - 1) * geometry.dilation[dim];
        let is_plain = [geometry.stride, geometry.spread] == [[1, 1]; 2] && geometry.groups == 1;
        let has_neighbours = geometry.kernel[1] > 1 && span(1) <= COLUMN_PITCH - COLUMN;
        let are_columns = output[0] > 0 && output[1] % COLUMN_PITCH == COLUMN;
        let pays = kernels.lanes() == COLUMN || output[1] == COLUMN && row_weights < LINE_WEIGHTS;
        let is_possible = is_plain && has_neighbours && are_columns && pays;
        if !is_possible || input[2..].contains(&0) {
            return None;
        }
        let fits =
            |lines: &usize| lines * COLUMN <= kernels.tile() && output[0].is_multiple_of(*lines);
        let lines = [16, 8].into_iter().find(fits)?;
        let [height, width] = [input[2], input[3]];
        let rows = output[0].checked_add(span(0))?;
        let tiles = [output[0] / lines, output[1] / COLUMN];
        let len = tiles[1].checked_mul(rows)?.checked_mul(COLUMN_PITCH)?;
        len.checked_mul(input[1]).filter(|&numbers| u32::try_from(numbers).is_ok())?;
        let source = |at: usize| {
            let (line, col) = (at / COLUMN_PITCH, at % COLUMN_PITCH);
            let [top, left] = geometry.padding.map(|[before, _]| before);
            let y = (line % rows).checked_sub(top).filter(|&y| y < height)?;
            let x = (line / rows * COLUMN + col).checked_sub(left).filter(|&x| x < width)?;
            let is_read = col < COLUMN + span(1);
            is_read.then_some((y * width + x) as u32)
        };
        let windows = Windows::new(&(0..len).map(source).collect::<Vec<_>>())?;
        let place = |ky: usize, kx: usize| {
            (ky * geometry.dilation[0] * COLUMN_PITCH + kx * geometry.dilation[1]) as u32
        };
        let taps = (0..geometry.kernel[0])
            .flat_map(|ky| (0..geometry.kernel[1]).map(move |kx| (ky, kx)))
            .map(|(ky, kx)| place(ky, kx))
            .collect();
        Some(Self { windows, input: [input[1], height * width], rows, lines, tiles, taps })
    }

    /// Numbers of a channel of what is laid out.
    pub(super) fn channel(&self) -> usize {
        self.windows.numbers()
    }

    /// Numbers of what is laid out.
    pub(super) fn len(&self) -> usize {
        self.input[0] * self.channel()
    }

    /// Numbers that a tile reads of one channel.
    pub(super) fn footprint(&self) -> usize {
        (self.lines + self.rows - self.tiles[0] * self.lines) * COLUMN_PITCH
    }

    /// Lays out some channels, of which the first is number `first`, of an image `x`.
    pub(super) fn fill(&self, kernels: &dyn Kernels, x: &[f32], first: usize, out: &mut [f32]) {
        let area = self.input[1];
        kernels.fill_windows(&self.windows, &x[first * area..], area, out);
    }

    /// Computes all outputs of an image for the rows of the segments of `tile`; `maps` are its
    /// outputs from the first of these rows on.
    pub(super) fn multiply(
        &self,
        tile: &Tile<'_>,
        memory: &mut TileMemory,
        maps: &mut Maps<'_>,
    ) -> Result<()> {
        let nrows: usize = tile.segments.iter().map(|segment| segment.rows.len()).sum();
        let size = self.lines * COLUMN;
        let width = self.tiles[1] * COLUMN;
        let area = self.tiles[0] * self.lines * width;
        let sums = memory.sums.at_least(nrows * size)?;
        let Some(map) = maps.get(0) else { return Ok(()) };
        for column in 0..self.tiles[1] {
            for number in 0..self.tiles[0] {
                interruption::check()?;
                let from = (column * self.rows + number * self.lines) * COLUMN_PITCH;
                let start = number * self.lines * width + column * COLUMN;
                let product = Tile {
                    input: &tile.input[from..],
                    size,
                    grid: Grid { lines: self.lines, pitch: COLUMN_PITCH, output_pitch: width },
                    ..*tile
                };
                product.multiply(sums, Some((&mut map[start..], area)));
                if let Some(activation) = tile.epilogue.activation {
                    for line in 0..nrows * self.lines {
                        let at = line / self.lines * area + start + line % self.lines * width;
                        activation(&mut map[at..at + COLUMN]);
                    }
                }
            }
        }
        Ok(())
    }
}
