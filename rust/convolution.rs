//! Convolutions straight from a compressed kernel, without im2col.
//!
//! Every input channel is laid out once as a run of numbers with its padding in it, so that a kept
//! weight is one broadcast and a run of multiply–adds at an offset:
//!
//! ```text
//!   channel, pitch 5 (4 columns and one zero, which ends one row and starts the next):
//!     0 0 0 0 0 │ a b c d 0 │ e f g h 0 │ … next image
//!   y[p] += w[ky][kx] · run[p + ky · pitch + kx]      p runs over rows, images and the gaps between
//! ```
//!
//! Outputs at the gaps are computed and dropped: 1 in 9 for 8 × 8 maps with a border of one. With a
//! stride, a channel is split into its phases (even and odd columns, say), each a run of its own,
//! so that outputs next to each other always read inputs next to each other. Images of a batch
//! follow one another in the run, so small maps fill the registers too.
//!
//! ```text
//!   for each block of rows (output channels):   decode once, columns become offsets
//!     for each tile of 64 positions:
//!       for each strip of input channels:       the part of their runs that stays in L1
//!         for each row: sums[row][..] += Σ value · run[offset + position]
//! ```
//!
//! Strips take a fifth to a quarter off the time of whole rows (64 to 512 channels, AVX2).
//!
//! Price: one padded copy of the input. Threads share the rows; each output is summed in one order,
//! so any number of threads gives the same bits.

use crate::error::{Error, Result};
use crate::matrix::{CompressedMatrix, zip_chunks};
use crate::rows::{RowBlock, Shape, filled};
use crate::simd::{self, Kernels, SMALLEST_TILE, TILE};
use crate::threads;

/// How a kernel moves over its input: rows, then columns, as torch's convolutions.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// The kernel's height and width.
    pub kernel: [usize; 2],
    /// Steps between outputs.
    pub stride: [usize; 2],
    /// Zeros before and after the input.
    pub padding: [[usize; 2]; 2],
    /// Steps between taps.
    pub dilation: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

/// One dimension of the runs.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// Outputs.
    len: usize,
    stride: usize,
    before: usize,
    /// From one line (or image) of a run to the next: padding that two share is there once.
    pitch: usize,
    /// What the last one needs beyond its pitch.
    tail: usize,
    /// The last tap, in places.
    reach: usize,
}

impl Axis {
    fn new(what: &str, input: usize, geometry: &Geometry, dim: usize) -> Result<Self> {
        let [before, after] = geometry.padding[dim];
        let (stride, kernel) = (geometry.stride[dim], geometry.kernel[dim]);
        let too_small = || {
            Error::invalid(format!(
                "conv: {what} {input} padded by {before} and {after}, kernel {kernel}, stride {stride}, \
                 dilation {}, expected room for the kernel",
                geometry.dilation[dim]
            ))
        };
        let limit = MAX_NUMBERS as usize;
        let is_small = |n: usize| n <= limit;
        let span = kernel
            .checked_sub(1)
            .and_then(|steps| steps.checked_mul(geometry.dilation[dim]))
            .filter(|&span| stride > 0 && geometry.dilation[dim] > 0 && is_small(span))
            .ok_or_else(too_small)?;
        let padded = input.checked_add(before).and_then(|n| n.checked_add(after));
        let padded = padded.filter(|&n| is_small(n) && n > span).ok_or_else(too_small)?;
        // A step beyond the input is as good as one to its end.
        let stride = stride.min(padded);
        let len = (padded - span - 1) / stride + 1;
        let reach = span / stride;
        let extent = len + reach;
        // Zeros that every phase has at its start and at its end.
        let zeros_before = (0..stride).map(|phase| Self::first(before, stride, phase)).min();
        let last = |phase: usize| (before + input + stride - 1).saturating_sub(phase) / stride;
        let zeros_after = (0..stride).map(|phase| extent.saturating_sub(last(phase))).min();
        // Each output has a position of its own, so a line is no shorter than the outputs.
        let tail = zeros_before.unwrap_or(0).min(zeros_after.unwrap_or(0)).min(reach);
        Ok(Self { len, stride, before, pitch: extent - tail, tail, reach })
    }

    /// The first place of a phase that holds an input, after the zeros before it.
    fn first(before: usize, stride: usize, phase: usize) -> usize {
        (before + stride - 1).saturating_sub(phase) / stride
    }

    /// The phase and the place that input `i` has, if any output reads that place.
    fn place(&self, i: usize) -> (usize, usize) {
        ((i + self.before) % self.stride, (i + self.before) / self.stride)
    }
}

/// The runs of an input, and where outputs and taps are in them.
struct Runs {
    rows: Axis,
    cols: Axis,
    /// From one run to the next.
    run: usize,
    /// Positions to compute: all images, gaps included.
    positions: usize,
    values: Vec<f32>,
}

impl Runs {
    fn new(
        x: &[f32],
        [images, channels, height, width]: [usize; 4],
        geometry: &Geometry,
    ) -> Result<Self> {
        let rows = Axis::new("height", height, geometry, 0)?;
        let cols = Axis::new("width", width, geometry, 1)?;
        let sizes = || {
            let positions = images.checked_mul(rows.pitch)?.checked_mul(cols.pitch)?;
            // Positions after the last output read on, up to a tile and the last tap.
            let reach = rows.reach.checked_mul(cols.pitch)?.checked_add(cols.reach)?;
            let run = positions.checked_add(reach)?.checked_add(TILE)?;
            let numbers =
                channels.checked_mul(rows.stride)?.checked_mul(cols.stride)?.checked_mul(run)?;
            let outputs = images.checked_mul(rows.len)?.checked_mul(cols.len)?;
            (numbers as u64 <= MAX_NUMBERS && outputs as u64 <= MAX_NUMBERS)
                .then_some((positions, run))
        };
        let (positions, run) = sizes().ok_or_else(|| {
            Error::invalid(format!(
                "conv: input {:?} with {geometry:?}, expected under 2^32 padded numbers: split the batch",
                [images, channels, height, width]
            ))
        })?;
        let phases = rows.stride * cols.stride;
        let mut values = filled(0.0, channels * phases, run)?;
        for (channel, x) in x.chunks_exact((height * width).max(1)).enumerate() {
            let (image, channel) = (channel / channels, channel % channels);
            for (i, line) in x.chunks_exact(width.max(1)).enumerate() {
                let (phase, row) = rows.place(i);
                if row >= rows.pitch + rows.tail {
                    continue; // No output reads this far.
                }
                let first = (channel * phases + phase * cols.stride) * run;
                let start = first + (image * rows.pitch + row) * cols.pitch;
                if cols.stride == 1 {
                    let used = width.min(cols.pitch + cols.tail - cols.before);
                    values[start + cols.before..][..used].copy_from_slice(&line[..used]);
                    continue;
                }
                for (j, &value) in line.iter().enumerate() {
                    let (phase, col) = cols.place(j);
                    if col < cols.pitch + cols.tail {
                        values[phase * run + start + col] = value;
                    }
                }
            }
        }
        Ok(Self { rows, cols, run, positions, values })
    }

    /// The offset of each column of the matrix: channel of the group, row and column of the kernel.
    fn offsets(&self, ncols: usize, geometry: &Geometry) -> Vec<u32> {
        let [height, width] = geometry.kernel;
        let [down, right] = geometry.dilation;
        let tap = |col: usize| {
            let (channel, i, j) = (col / (height * width), col / width % height, col % width);
            let phase =
                i * down % self.rows.stride * self.cols.stride + j * right % self.cols.stride;
            let run = channel * self.rows.stride * self.cols.stride + phase;
            let place =
                i * down / self.rows.stride * self.cols.pitch + j * right / self.cols.stride;
            (run * self.run + place) as u32
        };
        (0..ncols).map(tap).collect()
    }

    /// Copies the outputs among `tile`, the positions from `start` on, to `y` `[images, rows, cols]`.
    fn keep(&self, start: usize, tile: &[f32], bias: f32, y: &mut [f32]) {
        let (mut at, end) = (start, self.positions.min(start + tile.len()));
        while at < end {
            let (line, col) = (at / self.cols.pitch, at % self.cols.pitch);
            let (image, row) = (line / self.rows.pitch, line % self.rows.pitch);
            let stop = end.min(at + self.cols.pitch - col);
            if row < self.rows.len && col < self.cols.len {
                let len = (stop - at).min(self.cols.len - col);
                let y = &mut y[(image * self.rows.len + row) * self.cols.len + col..][..len];
                for (y, sum) in y.iter_mut().zip(&tile[at - start..]) {
                    *y = sum + bias;
                }
            }
            at = stop;
        }
    }
}

impl CompressedMatrix {
    /// The convolution of `x` `[images, channels, height, width]` with this matrix as the kernels
    /// `[nrows, channels / groups · kernel height · kernel width]`, and the shape of the result.
    ///
    /// # Errors
    /// `InvalidArgument` when shapes do not fit.
    pub fn conv(
        &self,
        x: &[f32],
        shape: [usize; 4],
        geometry: &Geometry,
        bias: Option<&[f32]>,
        threads: usize,
    ) -> Result<(Vec<f32>, [usize; 4])> {
        self.conv_on(simd::active()?, x, shape, geometry, bias, threads)
    }

    /// [`CompressedMatrix::conv`] on a chosen instruction set.
    ///
    /// # Errors
    /// As [`CompressedMatrix::conv`].
    pub fn conv_on(
        &self,
        kernels: &'static dyn Kernels,
        x: &[f32],
        shape: [usize; 4],
        geometry: &Geometry,
        bias: Option<&[f32]>,
        threads: usize,
    ) -> Result<(Vec<f32>, [usize; 4])> {
        self.check_conv(x, shape, geometry, bias)?;
        let (nrows, [images, channels, ..]) = (self.shape().nrows, shape);
        let runs = Runs::new(x, shape, geometry)?;
        let offsets = runs.offsets(self.shape().ncols, geometry);
        let group_rows = (nrows / geometry.groups).max(1);
        let phases = runs.rows.stride * runs.cols.stride;
        let group_run = channels / geometry.groups * phases * runs.run;
        let area = runs.rows.len * runs.cols.len;
        // A strip holds the input channels whose tiles fit into the first-level cache together.
        let taps = geometry.kernel[0] * geometry.kernel[1];
        let reach = TILE + (geometry.kernel[0] - 1) * geometry.dilation[0] * runs.cols.pitch;
        let strip = (L1_NUMBERS / (reach * phases)).max(1) * taps;
        let mut by_row = filled(0.0, nrows, images * area)?;
        let useful = threads.min(self.nnz().saturating_mul(images * area) >> 16).max(1);
        let ranges = threads::split(nrows, useful, 8);
        let block_rows = self.layout.block_rows().min(MOST_ROWS);
        let items = zip_chunks(ranges, &mut by_row, images * area);
        threads::for_each(useful, items, |(rows, y)| {
            let mut block = RowBlock::default();
            let mut strips = Strips::new(self.shape(), self.nnz(), strip);
            let mut sums = vec![0.0; block_rows * TILE];
            let blocks = y.chunks_mut((block_rows * images * area).max(1));
            for (start, y) in rows.clone().step_by(block_rows).zip(blocks) {
                self.decode(start..rows.end.min(start + block_rows), &mut block)?;
                strips.cut(&block);
                block.cols.iter_mut().for_each(|col| *col = offsets[*col as usize]);
                let mut tile = 0;
                while tile < runs.positions {
                    // Small maps, and what is left at the end, take a tile of their own size.
                    let left = (runs.positions - tile).next_power_of_two();
                    let size = left.clamp(SMALLEST_TILE, TILE);
                    let sums = &mut sums[..block.nrows() * size];
                    sums.fill(0.0);
                    strips.for_each(|row, range| {
                        let group = (start + row) / group_rows;
                        let input = &runs.values[group * group_run + tile..];
                        let (offsets, values) = (&block.cols[range.clone()], &block.values[range]);
                        let sums = &mut sums[row * size..][..size];
                        kernels.add_shifted_product(offsets, values, input, sums);
                    });
                    for (row, sums) in sums.chunks_exact(size).enumerate() {
                        let bias = bias.map_or(0.0, |bias| bias[start + row]);
                        let y = &mut y[row * images * area..][..images * area];
                        runs.keep(tile, sums, bias, y);
                    }
                    tile += size;
                }
            }
            Ok(())
        })?;
        let shape = [images, nrows, runs.rows.len, runs.cols.len];
        if images == 1 || nrows == 1 {
            return Ok((by_row, shape));
        }
        let mut y = filled(0.0, images, nrows * area)?;
        for (row, by_image) in by_row.chunks_exact((images * area).max(1)).enumerate() {
            for (image, values) in by_image.chunks_exact(area).enumerate() {
                y[(image * nrows + row) * area..][..area].copy_from_slice(values);
            }
        }
        Ok((y, shape))
    }

    fn check_conv(
        &self,
        x: &[f32],
        shape: [usize; 4],
        geometry: &Geometry,
        bias: Option<&[f32]>,
    ) -> Result<()> {
        let (nrows, ncols) = (self.shape().nrows, self.shape().ncols);
        let (groups, channels) = (geometry.groups, shape[1]);
        let taps = geometry.kernel[0].checked_mul(geometry.kernel[1]);
        let is_grouped =
            groups > 0 && channels.is_multiple_of(groups) && nrows.is_multiple_of(groups);
        if !is_grouped || taps.and_then(|t| t.checked_mul(channels / groups)) != Some(ncols) {
            return Err(Error::invalid(format!(
                "conv: {channels} channels in {groups} groups, kernel {:?}, expected those of a \
                 matrix [{nrows}, {ncols}]",
                geometry.kernel
            )));
        }
        let numbers = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        if numbers != Some(x.len()) {
            return Err(Error::invalid(format!(
                "conv: x has {} numbers, expected shape {shape:?}",
                x.len()
            )));
        }
        match bias {
            Some(bias) if bias.len() != nrows => Err(Error::invalid(format!(
                "conv: bias has {} numbers, expected nrows = {nrows}",
                bias.len()
            ))),
            _ => Ok(()),
        }
    }
}

/// Numbers that a padded input, or the outputs of a row, may have: offsets are 32 bits wide.
const MAX_NUMBERS: u64 = u32::MAX as u64;
/// Numbers of the input that a strip may hold: half of a first-level cache of 32 KiB.
const L1_NUMBERS: usize = 4096;
/// Most rows that decode at a time: their tiles of sums then fit into the second-level cache.
const MOST_ROWS: usize = 512;

/// Where each row of a block is cut so that a strip of the input stays in the first-level cache.
struct Strips {
    /// Columns of a strip.
    width: usize,
    count: usize,
    /// `count + 1` places a row.
    cuts: Vec<usize>,
}

/// Kept weights of a row that a strip should hold, so that starting one pays.
const WEIGHTS_A_STRIP: usize = 16;

impl Strips {
    /// Strips of `narrowest` columns, or as many more as leave a row some 16 weights in each.
    fn new(shape: Shape, nnz: usize, narrowest: usize) -> Self {
        let wanted = (WEIGHTS_A_STRIP * shape.nrows).saturating_mul(shape.ncols) / nnz.max(1);
        let width = wanted.max(narrowest);
        Self { width, count: shape.ncols.div_ceil(width).max(1), cuts: Vec::new() }
    }

    /// Finds the cuts of all rows of `block`.
    fn cut(&mut self, block: &RowBlock) {
        self.cuts.clear();
        for row in 0..block.nrows() {
            let (start, end) = (block.indptr[row], block.indptr[row + 1]);
            let first = self.cuts.len();
            self.cuts.push(start);
            let mut at = start;
            for strip in 1..self.count {
                let limit = (strip * self.width) as u32;
                at += block.cols[at..end].partition_point(|&col| col < limit);
                self.cuts.push(at);
            }
            self.cuts.resize(first + self.count + 1, end);
        }
    }

    /// Gives each row's weights of a strip, strip after strip.
    fn for_each(&self, mut give: impl FnMut(usize, std::ops::Range<usize>)) {
        for strip in 0..self.count {
            for (row, cuts) in self.cuts.chunks_exact(self.count + 1).enumerate() {
                if cuts[strip] < cuts[strip + 1] {
                    give(row, cuts[strip]..cuts[strip + 1]);
                }
            }
        }
    }
}
