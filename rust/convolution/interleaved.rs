//! A batch with images innermost: the numbers of eight images, or sixteen, are a cell.
//!
//! ```text
//!   interleaved numbers   [images / 8, channels, height, width, 8]
//!   tile                  2 or 4 lines of 32 outputs: 4 places of 8 images, or 2 of 16
//!   for each row of tiles, a band, and there for each tile, or for all where maps are large:
//!     its input           each channel's rows of cells, zeros where there is padding and where tiles
//!                         end outside: what a second-level cache holds
//!     y[line][p] += w[ky][kx] · input[place(c, ky, kx) + line · pitch + p]         strip by strip
//! ```
//!
//! Taps move by whole cells, so that no load of eight numbers straddles two cache lines, one copy of
//! the input serves them all, and a row of a strip is one loop, whatever the map's size. What that costs
//! is the border of each tile, which is read for every channel: 4 × 4 places bring 6 × 6 cells for a
//! kernel of 3 × 3.
//! Turning numbers of images in and out of cells takes as much time as is won, so this pays where
//! numbers stay interleaved between layers.
//!
//! What two tiles, or rows of tiles, read is laid out twice, and by each of the threads that share the
//! rows of a group.
//!
//! Price: that input, and the outputs of a row of tiles, of one group of images a thread.

use super::Geometry;
use super::maps::Maps;
use super::scratch::TileMemory;
use super::tile::Tile;
use crate::error::Result;
use crate::interruption;
use crate::simd::{Cells, GRID_LINE, Grid, IMAGES, Kernels};

/// Which of a convolution's numbers are interleaved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    /// Its input.
    pub input: bool,
    /// Its output.
    pub output: bool,
    /// Whether its interleaved output is the greatest of each two by two of its maps' numbers, if
    /// [`super::Plan::may_interleave`] says that it may be.
    pub halves: bool,
}

impl Sides {
    /// Images whose outputs lie together.
    pub(super) fn output_images(self) -> usize {
        if self.output { IMAGES } else { 1 }
    }
}

/// Where everything is, for one shape of input.
#[derive(Debug)]
pub(super) struct Interleaved {
    pub(super) sides: Sides,
    /// `[images, channels, height, width]`.
    input: [usize; 4],
    /// Height and width of the output.
    output: [usize; 2],
    /// Zeros above and to the left of an input.
    before: [usize; 2],
    /// Images of a group, the numbers of a cell.
    pub(super) group: usize,
    /// Lines of a tile.
    lines: usize,
    /// Rows and columns of tiles.
    tiles: [usize; 2],
    /// Tiles of a row that are laid out together.
    together: usize,
    /// Rows and columns of their cells.
    padded: [usize; 2],
    /// The place of each tap in its channel, row of taps by row.
    pub(super) taps: Vec<u32>,
}

/// Places of a map up to which each tile is laid out by itself, so that the strips of it fill the
/// first-level cache evenly; rows of larger ones are read whole, since parts of them are far apart.
const SMALL_MAP: usize = 16 * 16;
/// Places of a map from which on lines of its own are faster where a register holds two cells: then every
/// third tap's loads straddle two cache lines, while sums of whole lines are moved (`unfolding.rs`).
const LARGE_MAP: usize = 16 * 16;
/// So much of what is computed must be outputs.
const MIN_USED: f64 = 0.7;
/// What tiles of half the registers are worth.
const SMALL_TILE_WORTH: f64 = 0.8;
/// What cells of twice the size are worth, of which a border has as many.
const LARGE_CELL_WORTH: f64 = 0.9;

impl Interleaved {
    /// How an input is laid out, where that is possible and pays between such layers.
    pub(super) fn new(
        kernels: &dyn Kernels,
        input: [usize; 4],
        geometry: &Geometry,
        output: [usize; 2],
        sides: Sides,
    ) -> Option<Self> {
        let ones = [geometry.stride, geometry.spread];
        let is_plain = ones == [[1, 1]; 2] && geometry.groups == 1 && kernels.shares_inputs();
        let is_map = output.iter().all(|&len| len > 1) && input.iter().all(|&len| len > 0);
        let is_large = output[0].saturating_mul(output[1]) >= LARGE_MAP;
        if !is_plain || !is_map || is_large && kernels.lanes() > IMAGES {
            return None;
        }
        let shapes = [2, 4]
            .into_iter()
            .filter(|lines| lines * GRID_LINE <= kernels.tile())
            .flat_map(|lines| [1, 2].map(|parts| (lines, parts * IMAGES)))
            .filter(|(_, group)| input[0].is_multiple_of(*group));
        let used = |&(lines, group): &(usize, usize)| {
            let filled = |n: usize, unit: usize| n as f64 / n.next_multiple_of(unit) as f64;
            filled(output[0], lines) * filled(output[1], GRID_LINE / group)
        };
        let worth = |shape: &(usize, usize)| {
            let is_small = shape.0 * GRID_LINE < kernels.tile();
            let of_tile = if is_small { SMALL_TILE_WORTH } else { 1.0 };
            let of_cell = if shape.1 > IMAGES { LARGE_CELL_WORTH } else { 1.0 };
            used(shape) * of_tile * of_cell
        };
        let (lines, group) = shapes.max_by(|a, b| worth(a).total_cmp(&worth(b)))?;
        if used(&(lines, group)) < MIN_USED {
            return None;
        }
        let cols = GRID_LINE / group;
        let tiles = [output[0].div_ceil(lines), output[1].div_ceil(cols)];
        let span = |dim: usize| (geometry.kernel[dim] - 1) * geometry.dilation[dim];
        let is_small = input[2].saturating_mul(input[3]) <= SMALL_MAP;
        let together = if is_small { 1 } else { tiles[1] };
        let padded = [lines + span(0), together * cols + span(1)];
        let numbers = padded[0].checked_mul(padded[1])?.checked_mul(group)?;
        numbers.checked_mul(input[1]).filter(|&numbers| u32::try_from(numbers).is_ok())?;
        let place = |ky: usize, kx: usize| {
            let (row, col) = (ky * geometry.dilation[0], kx * geometry.dilation[1]);
            ((row * padded[1] + col) * group) as u32
        };
        let taps = (0..geometry.kernel[0])
            .flat_map(|ky| (0..geometry.kernel[1]).map(move |kx| (ky, kx)))
            .map(|(ky, kx)| place(ky, kx))
            .collect();
        let before = geometry.padding.map(|[before, _]| before);
        Some(Self { sides, input, output, before, group, lines, tiles, together, padded, taps })
    }

    /// Numbers of a channel of what is laid out.
    pub(super) fn channel(&self) -> usize {
        self.padded[0] * self.pitch()
    }

    /// Numbers of what is laid out.
    pub(super) fn len(&self) -> usize {
        self.input[1] * self.channel()
    }

    /// Numbers that a tile reads of one channel.
    pub(super) fn footprint(&self) -> usize {
        self.padded[0] * (self.pitch() - (self.together - 1) * GRID_LINE)
    }

    /// Numbers from one row of cells to the next.
    fn pitch(&self) -> usize {
        self.padded[1] * self.group
    }

    /// Whether a band's outputs are in the order of interleaved ones.
    fn is_whole(&self) -> bool {
        self.group == IMAGES && self.tiles[1] * GRID_LINE == self.output[1] * IMAGES
    }

    /// Whether outputs may be halved.
    pub(super) fn may_halve(&self) -> bool {
        self.is_whole() && self.output.iter().all(|len| len.is_multiple_of(2))
    }

    /// Lays out what some tiles, from `tile` on, read of a group of images, which follow one another
    /// in `x`.
    fn fill(&self, kernels: &dyn Kernels, x: &[f32], tile: [usize; 2], out: &mut [f32]) {
        let [_, count, height, width] = self.input;
        let area = height * width;
        let [nrows, ncols] = self.padded;
        let (pitch, group) = (self.pitch(), self.group);
        // The rows and columns of cells that are inside, and the first ones of the input.
        let inside = |start: usize, before: usize, input: usize, cells: usize| {
            let first = before.saturating_sub(start).min(cells);
            let end = (input + before).saturating_sub(start).clamp(first, cells);
            (first, end, (start + first).saturating_sub(before))
        };
        let (first, end, from) = inside(tile[0] * self.lines, self.before[0], height, nrows);
        let start = tile[1] * (GRID_LINE / group);
        let (left, right, from_col) = inside(start, self.before[1], width, ncols);
        let cols = right - left;
        let cells = Cells { width: cols.max(1), pitch, cell: group };
        for (channel, out) in out.chunks_exact_mut(self.channel()).enumerate() {
            out[..first * pitch].fill(0.0);
            out[end * pitch..].fill(0.0);
            let inside = &mut out[first * pitch..end * pitch];
            for row in inside.chunks_exact_mut(pitch) {
                row[..left * group].fill(0.0);
                row[(left + cols) * group..].fill(0.0);
            }
            let rows = if cols == 0 { 0 } else { end - first };
            for number in (0..group).step_by(IMAGES) {
                if self.sides.input {
                    let map = &x[(number * count + channel * IMAGES) * area..][..IMAGES * area];
                    if rows > 0 {
                        let x = &map[(from * width + from_col) * IMAGES..];
                        let row = Cells { width: cols, pitch: width * IMAGES, cell: IMAGES };
                        let to = &mut inside[left * group + number..];
                        kernels.copy_cells(rows, (x, row), (to, cells));
                    }
                    continue;
                }
                let at = from * width + from_col;
                let map = |image: usize| &x[((number + image) * count + channel) * area + at..];
                // Rows of the input follow one another, unless some of their columns are left out.
                let runs = if cols == width { rows.min(1) } else { rows };
                let len = rows / runs.max(1) * cols;
                for run in 0..runs {
                    let maps = std::array::from_fn(|image| &map(image)[run * width..][..len]);
                    let to = &mut inside[run * pitch + left * group + number..];
                    kernels.interleave(maps, cells, to);
                }
            }
        }
    }

    /// Computes all outputs of one group of images, which follow one another in the input of `tile`, for
    /// the rows of its segments, which do so too; `maps` are the outputs of each image, or of each
    /// eight, from the first row on.
    pub(super) fn multiply(
        &self,
        tile: &Tile<'_>,
        memory: &mut TileMemory,
        maps: &mut Maps<'_>,
    ) -> Result<()> {
        let Tile { kernels, epilogue, segments, input: x, .. } = *tile;
        let nrows: usize = segments.iter().map(|segment| segment.rows.len()).sum();
        let height = self.output[0];
        let size = self.lines * GRID_LINE;
        let line = self.tiles[1] * GRID_LINE;
        let TileMemory { sums, cells, outputs, .. } = memory;
        let sums = sums.at_least(nrows * size)?;
        let input = cells.at_least(self.len())?;
        let outputs = outputs.at_least::<f32>(nrows * self.lines * line)?;
        let is_direct = self.sides.output && !self.sides.halves && self.is_whole();
        for band in 0..self.tiles[0] {
            interruption::check()?;
            let is_direct = is_direct && (band + 1) * self.lines <= height;
            let (to, stride) = match is_direct {
                true => {
                    let [map] = maps.some(0, band * self.lines * line..nrows * height * line);
                    (map, height * line)
                }
                false => (&mut *outputs, self.lines * line),
            };
            for first in (0..self.tiles[1]).step_by(self.together) {
                self.fill(kernels, x, [band, first], input);
                for number in first..self.tiles[1].min(first + self.together) {
                    let product = Tile {
                        input: &input[(number - first) * GRID_LINE..],
                        size,
                        grid: Grid { lines: self.lines, pitch: self.pitch(), output_pitch: line },
                        ..*tile
                    };
                    product.multiply(sums, Some((&mut to[number * GRID_LINE..], stride)));
                }
            }
            if let Some(activation) = epilogue.activation {
                let len = self.lines * line;
                for row in to.chunks_mut(stride).filter(|row| row.len() >= len) {
                    activation(&mut row[..len]);
                }
            }
            if !is_direct {
                self.store(kernels, band, outputs, maps);
            }
        }
        Ok(())
    }

    /// Stores the outputs of a band in their images' maps.
    fn store(&self, kernels: &dyn Kernels, band: usize, outputs: &[f32], maps: &mut Maps<'_>) {
        let [height, width] = self.output;
        let (group, line) = (self.group, self.tiles[1] * GRID_LINE);
        let cells = Cells { width, pitch: line, cell: group };
        let rows = band * self.lines..height.min((band + 1) * self.lines);
        let count = rows.len() * width;
        for (row, outputs) in outputs.chunks_exact(self.lines * line).enumerate() {
            let at = (row * height + rows.start) * width;
            if self.sides.halves {
                // At the start of a pair of rows there are whole rows of outputs before.
                let (at, count) = (at * IMAGES / 4, count * IMAGES);
                let [map] = maps.some(0, at..at + count / 4);
                kernels.greatest_of_four_cells(width, &outputs[..count], map);
                continue;
            }
            for number in (0..group).step_by(IMAGES) {
                let outputs = &outputs[number..];
                if !self.sides.output {
                    kernels.separate(outputs, cells, maps.some(number, at..at + count));
                    continue;
                }
                let [map] = maps.some(number / IMAGES, at * IMAGES..(at + count) * IMAGES);
                let to = Cells { width, pitch: width * IMAGES, cell: IMAGES };
                kernels.copy_cells(rows.len(), (outputs, cells), (map, to));
            }
        }
    }
}
