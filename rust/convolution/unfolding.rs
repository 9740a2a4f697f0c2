//! The input of a convolution, laid out so that every tap of every output lies side by side.
//!
//! ```text
//!   channel c, tap column kx:  rows of outputs' width, all images of a group next to each other
//!     row 0:  x[img 0][c][0 − top][kx − left …]  x[img 1] …     zeros where there is padding
//!     row 1:  …
//!   y[p] += w[ky][kx] · unfolded[place(c, ky, kx) + p]          p = (row, image, column)
//! ```
//!
//! One copy for each tap column makes rows exactly as wide as the outputs: outputs of all rows,
//! and of all images of a group, are one run of numbers without gaps, whatever the width, stride
//! or dilation, and where the row's width is a multiple of 16 every load is aligned. A tap row is
//! an offset of whole rows; with a stride between rows, the rows of each phase lie together.
//! Groups of images fill the registers where maps are small, as far as a linear layer, which is a
//! map of one.
//!
//! Where outputs are as wide as the input and their rows fill cache lines and tiles, one copy without
//! a shift can serve all tap columns: their sums are moved instead, row by row of weights
//! ([`crate::simd::Shift`]). The first-level cache then holds the input of three times as many
//! channels, and a third is copied.
//!
//! Rows are filled up to a multiple of 16 where that wastes little. Where a row is much shorter and
//! there are few outputs, every tap row is copied too (im2col), so that all outputs are one load.
//!
//! Why not always im2col: that is three times as much for 3 × 3 kernels. Why not one padded copy:
//! loads that straddle cache lines cost as much as loads from the second level. One long row alone, a
//! convolution of text or sound, is taken as a column: its kernels are wide, so that copies of them
//! all would leave the first-level cache, and one copy wins by a tenth to a half.
//!
//! Price: kernel width × the padded input, once a group; a column, or where sums are moved, the input
//! alone.

use super::Geometry;
use crate::error::{Error, Result};
use crate::simd::{Kernels, LARGEST_TILE, MAX_MOVE, MAX_SHIFTS, Shift, Windows};
use std::ops::Range;
use std::sync::Arc;

/// One dimension: how outputs and taps meet the input.
#[derive(Clone, Copy, Debug)]
struct Axis {
    input: usize,
    /// Outputs.
    len: usize,
    kernel: usize,
    stride: usize,
    before: usize,
    dilation: usize,
    /// Steps between inputs, zeros in between: over 1 for transposed convolutions.
    spread: usize,
}

impl Axis {
    fn new(what: &str, input: usize, geometry: &Geometry, dim: usize) -> Result<Self> {
        let [before, after] = geometry.padding[dim];
        let (stride, kernel) = (geometry.stride[dim], geometry.kernel[dim]);
        let (dilation, spread) = (geometry.dilation[dim], geometry.spread[dim]);
        let is_small = |n: &usize| *n as u64 <= MAX_NUMBERS;
        let sizes = || {
            let span = kernel.checked_sub(1)?.checked_mul(dilation).filter(is_small)?;
            let inputs = match input {
                0 => 0,
                _ => (input - 1).checked_mul(spread)?.checked_add(1)?,
            };
            let padded = inputs.checked_add(before)?.checked_add(after).filter(is_small)?;
            (padded > span && stride.min(dilation).min(spread) > 0).then_some((padded, span))
        };
        let (padded, span) = sizes().ok_or_else(|| {
            Error::invalid(format!(
                "conv: {what} {input} padded by {before} and {after}, kernel {kernel}, stride {stride}, \
                 dilation {dilation}, expected room for the kernel"
            ))
        })?;
        // A step beyond the input is as good as one to its end.
        let stride = stride.min(padded);
        let len = (padded - span - 1) / stride + 1;
        Ok(Self { input, len, kernel, stride, before, dilation, spread })
    }

    /// Whether its one output reads its one input, without padding.
    fn is_one_place(&self) -> bool {
        self.input == 1 && self.kernel == 1 && self.len == 1 && self.before == 0
    }

    /// Whether outputs that follow each other read inputs that do, and fill tiles by themselves.
    fn needs_no_copies(&self, tile: usize) -> bool {
        self.stride == 1 && self.spread == 1 && self.kernel > 1 && self.len > FEW.max(tile / 2)
    }

    /// The taps, that which moves nothing last, where one copy of the input serves all of them: rows of
    /// `group` images fill cache lines and tiles, and outputs are as wide as the input. Else none.
    fn shifts(&self, group: usize, row: usize, tile: usize) -> Vec<Shift> {
        let by = |tap: usize| (tap * self.dilation) as isize - self.before as isize;
        let is_plain = self.stride == 1 && self.spread == 1 && self.len == self.input;
        let is_near = (0..self.kernel).all(|tap| by(tap).unsigned_abs() <= MAX_MOVE);
        let are_lines = row.is_power_of_two() && (LINE..=tile).contains(&row);
        if !is_plain || !(2..=MAX_SHIFTS).contains(&self.kernel) || !is_near || !are_lines {
            return Vec::new();
        }
        let reaches = |by: isize, p: usize| {
            let col = (p % self.len).checked_add_signed(by);
            p < group * self.len && col.is_some_and(|col| col < self.input)
        };
        let shift = |tap: usize| {
            let reaches: Vec<bool> = (0..row).map(|p| reaches(by(tap), p)).collect();
            Shift::new(tap as u32, by(tap), &reaches)
        };
        let (last, first): (Vec<usize>, _) = (0..self.kernel).partition(|&tap| by(tap) == 0);
        first.into_iter().chain(last).map(shift).collect()
    }

    /// The phase of a tap, and how many outputs on it reads.
    fn tap(&self, tap: usize) -> (usize, usize) {
        (tap * self.dilation % self.stride, tap * self.dilation / self.stride)
    }

    /// The input at padded place `at`, unless there is a zero.
    fn source(&self, at: usize) -> Option<usize> {
        let at = at.checked_sub(self.before)?;
        (at % self.spread == 0 && at / self.spread < self.input).then_some(at / self.spread)
    }
}

/// A part of one channel of one image that is copied: `len` numbers.
#[derive(Clone, Copy, Debug)]
struct Piece {
    to: u32,
    from: u32,
    len: u32,
}

/// A part of a row of outputs, as many numbers as all of them have.
#[derive(Clone, Copy, Debug)]
struct Run {
    to: u32,
    /// From the channel's first number on: what is outside is masked.
    from: isize,
    /// All bits where there is a number, none where there is a zero.
    mask: [u32; LONGEST_RUN],
}

/// Numbers of the longest run.
const LONGEST_RUN: usize = 8;

/// How a channel's numbers get to their places.
#[derive(Debug)]
enum Copies {
    /// One number an image: a matrix transposed.
    Transposed,
    /// Whole planes, shifted by some columns: (first number, shift of each tap column).
    Planes(Vec<isize>),
    /// Eight numbers at a time, of one image.
    Windows(Windows),
    /// Runs of 2, 4 or 8 numbers, which leave nothing out.
    Runs(usize, Vec<Run>),
    /// Pieces of rows.
    Pieces(Vec<Piece>),
    /// Single numbers.
    Numbers(Vec<(u32, u32)>),
}

/// Where everything is, for one shape of input.
#[derive(Debug)]
pub(super) struct Unfolding {
    rows: Axis,
    cols: Axis,
    /// Whether rows are the input's columns, and columns its one row.
    is_line: bool,
    /// Images of a group.
    pub(super) group: usize,
    channels: usize,
    /// Rows of one phase.
    phase_rows: usize,
    /// Numbers of a row: outputs of all images of a group, filled up.
    row: usize,
    /// Whether tap rows are copied too.
    is_im2col: bool,
    /// Numbers of a channel: tap columns · phases · rows, or taps · outputs.
    pub(super) channel: usize,
    /// The place of each tap in its channel, row of taps by row.
    taps: Vec<u32>,
    /// The tap columns, where one copy serves them all; else none.
    shifts: Arc<[Shift]>,
    copies: Copies,
}

/// Numbers that an unfolded input, or outputs, may have: offsets are 32 bits wide.
const MAX_NUMBERS: u64 = u32::MAX as u64;
/// Narrower outputs are copied number by number.
const NARROW: usize = 8;
/// Numbers of a cache line, to which rows are filled up.
const LINE: usize = 16;
/// Numbers of a channel, at most, whose places are in the first-level cache beside them.
const MAX_PICKED: usize = 1024;
/// So many outputs may be copied for every tap.
const FEW: usize = 4 * LINE;

impl Unfolding {
    /// How to unfold `images` of `channels` × `height` × `width` for tiles of `tile` outputs; with one
    /// copy for all tap columns where `may_shift` and the shape allows it.
    ///
    /// # Errors
    /// `InvalidArgument` when the kernel does not fit, or there are 2³² numbers or more.
    pub(super) fn new(
        [images, channels, height, width]: [usize; 4],
        geometry: &Geometry,
        tile: usize,
        may_shift: bool,
    ) -> Result<Self> {
        let height = Axis::new("height", height, geometry, 0)?;
        let width = Axis::new("width", width, geometry, 1)?;
        let is_line = height.is_one_place() && width.needs_no_copies(tile);
        let (rows, mut cols) = if is_line { (width, height) } else { (height, width) };
        let mut phases: Vec<usize> = (0..rows.kernel).map(|tap| rows.tap(tap).0).collect();
        phases.sort_unstable();
        phases.dedup();
        let phase_rows = rows.len + rows.tap(rows.kernel - 1).1;
        let ntaps = rows.kernel.saturating_mul(cols.kernel);
        let sizes = |cols: &Axis| {
            let area = rows.len.checked_mul(cols.len)?;
            let most = (tile / area.max(1)).max(1);
            let group = images.div_ceil(images.div_ceil(most).max(1)).max(1);
            let exact = group.checked_mul(cols.len)?;
            let filled = exact.checked_next_multiple_of(LINE)?;
            let row = if filled / 5 * 4 <= exact { filled } else { exact };
            let positions = rows.len.checked_mul(row)?;
            let is_im2col = row % LINE != 0 && positions <= FEW && ntaps > 1;
            let channel = if is_im2col {
                ntaps.checked_mul(
                    positions.next_multiple_of(positions.next_power_of_two().min(LINE)),
                )?
            } else {
                let plane = phase_rows.checked_mul(row)?;
                plane.checked_mul(cols.kernel)?.checked_mul(phases.len())?
            };
            let numbers = channel.checked_mul(channels)?.checked_add(LARGEST_TILE)?;
            let outputs = images.checked_mul(area)?;
            let inputs = rows.input.checked_mul(cols.input)?;
            let inputs = inputs.checked_mul(images.checked_mul(channels)?)?;
            let is_small = numbers.max(outputs).max(inputs) as u64 <= MAX_NUMBERS;
            is_small.then_some((group, row, is_im2col, channel))
        };
        let too_many = || {
            Error::invalid(format!(
                "conv: input {:?} with {geometry:?}, expected under 2^32 unfolded numbers: split the batch",
                [images, channels, height.input, width.input]
            ))
        };
        let (mut group, mut row, mut is_im2col, mut channel) = sizes(&cols).ok_or_else(too_many)?;
        let kernel = cols.kernel;
        let mut shifts = Vec::new();
        if may_shift && !is_im2col && rows.len * row * 2 >= tile {
            shifts = cols.shifts(group, row, tile);
        }
        if !shifts.is_empty() {
            (cols.kernel, cols.before) = (1, 0);
            (group, row, is_im2col, channel) = sizes(&cols).ok_or_else(too_many)?;
        }
        let place = |ky: usize, kx: usize| {
            if is_im2col {
                return (ky * cols.kernel + kx) * (channel / ntaps);
            }
            let (phase, step) = rows.tap(ky);
            let phase = phases.partition_point(|&p| p < phase);
            // With shifts there is one copy.
            let copy = kx.min(cols.kernel - 1);
            (copy * phases.len() + phase) * phase_rows * row + step * row
        };
        let taps = (0..rows.kernel)
            .flat_map(|ky| (0..kernel).map(move |kx| (ky, kx)))
            .map(|(ky, kx)| place(ky, kx) as u32)
            .collect();
        let copies = Copies::Transposed;
        let mut unfolding = Self {
            rows,
            cols,
            is_line,
            group,
            channels,
            phase_rows,
            row,
            is_im2col,
            channel,
            taps,
            shifts: shifts.into(),
            copies,
        };
        unfolding.copies = unfolding.plan_copies(&phases);
        Ok(unfolding)
    }

    fn plan_copies(&self, phases: &[usize]) -> Copies {
        let (rows, cols) = (&self.rows, &self.cols);
        if rows.is_one_place() && cols.is_one_place() {
            return Copies::Transposed;
        }
        let is_plain = |axis: &Axis| axis.stride == 1 && axis.spread == 1;
        let shift = |kx: usize| (kx * cols.dilation) as isize - cols.before as isize;
        let are_planes = is_plain(rows) && is_plain(cols) && self.row == cols.len;
        let are_planes = are_planes && !self.is_im2col && cols.len == cols.input;
        if self.group == 1
            && self.channel <= MAX_PICKED
            && !(are_planes && cols.len > LONGEST_RUN)
            && let Some(windows) = self.plan_windows(phases)
        {
            return Copies::Windows(windows);
        }
        if is_plain(cols) && cols.len.is_multiple_of(2) && cols.len <= LONGEST_RUN {
            return self.plan_runs(phases);
        }
        if are_planes {
            return Copies::Planes((0..cols.kernel).map(shift).collect());
        }
        if self.is_im2col || !is_plain(cols) || cols.len < NARROW {
            return Copies::Numbers(self.plan_numbers(phases));
        }
        let plane = self.phase_rows * self.row;
        let mut pieces = Vec::new();
        for kx in 0..cols.kernel {
            for (number, phase) in phases.iter().enumerate() {
                for row in 0..self.phase_rows {
                    let Some(y) = rows.source(row * rows.stride + phase) else { continue };
                    let to = (kx * phases.len() + number) * plane + row * self.row;
                    let from = y * cols.input;
                    let first = (-shift(kx)).max(0) as usize;
                    let end = (cols.input as isize - shift(kx)).clamp(0, cols.len as isize);
                    if first < end as usize {
                        let from = (from as isize + first as isize + shift(kx)) as u32;
                        let (to, len) = ((to + first) as u32, (end as usize - first) as u32);
                        pieces.push(Piece { to, from, len });
                    }
                }
            }
        }
        Copies::Pieces(pieces)
    }

    /// The runs of every row of outputs of every tap column, or of every tap.
    fn plan_runs(&self, phases: &[usize]) -> Copies {
        let (rows, cols) = (&self.rows, &self.cols);
        let len = 1 << cols.len.trailing_zeros().min(LONGEST_RUN.ilog2());
        let mut runs = Vec::new();
        let mut add = |to: usize, padded_row: usize, kx: usize| {
            let row = rows.source(padded_row);
            for first in (0..cols.len).step_by(len) {
                let source = |i: usize| row.and(cols.source(first + i + kx * cols.dilation));
                let mask = std::array::from_fn(|i| match i < len && source(i).is_some() {
                    true => u32::MAX,
                    false => 0,
                });
                let shift = (first + kx * cols.dilation) as isize - cols.before as isize;
                let from = row.map_or(0, |row| (row * cols.input) as isize + shift);
                runs.push(Run { to: (to + first) as u32, from, mask });
            }
        };
        self.for_each_row(phases, &mut add);
        Copies::Runs(len, runs)
    }

    /// Every number of every tap: its place, and the input's.
    fn plan_numbers(&self, phases: &[usize]) -> Vec<(u32, u32)> {
        let (rows, cols) = (&self.rows, &self.cols);
        let mut numbers = Vec::new();
        let mut add = |to: usize, padded_row: usize, kx: usize| {
            let Some(y) = rows.source(padded_row) else { return };
            for col in 0..cols.len {
                if let Some(x) = cols.source(col * cols.stride + kx * cols.dilation) {
                    numbers.push(((to + col) as u32, (y * cols.input + x) as u32));
                }
            }
        };
        self.for_each_row(phases, &mut add);
        numbers
    }

    /// The windows of what [`Unfolding::plan_numbers`] lists, where there are any.
    fn plan_windows(&self, phases: &[usize]) -> Option<Windows> {
        let mut sources = vec![None; self.channel];
        for (to, from) in self.plan_numbers(phases) {
            sources[to as usize] = Some(from);
        }
        Windows::new(&sources)
    }

    /// Hands out every row of every tap column, or of every tap: its place, the padded input's row,
    /// and the column of taps.
    fn for_each_row(&self, phases: &[usize], add: &mut dyn FnMut(usize, usize, usize)) {
        let (rows, cols) = (&self.rows, &self.cols);
        if self.is_im2col {
            let plane = self.channel / self.taps.len();
            for tap in 0..self.taps.len() {
                let (ky, kx) = (tap / cols.kernel, tap % cols.kernel);
                for row in 0..rows.len {
                    let padded_row = row * rows.stride + ky * rows.dilation;
                    add(tap * plane + row * self.row, padded_row, kx);
                }
            }
            return;
        }
        for kx in 0..cols.kernel {
            for (number, phase) in phases.iter().enumerate() {
                for row in 0..self.phase_rows {
                    let line = (kx * phases.len() + number) * self.phase_rows + row;
                    add(line * self.row, row * rows.stride + phase, kx);
                }
            }
        }
    }

    /// Rows and columns of the output.
    pub(super) fn outputs(&self) -> [usize; 2] {
        match self.is_line {
            true => [self.cols.len, self.rows.len],
            false => [self.rows.len, self.cols.len],
        }
    }

    /// Outputs of a group, of one output channel, and what fills rows up.
    pub(super) fn positions(&self) -> usize {
        self.rows.len * self.row
    }

    /// Numbers of the unfolded input, with room for a tile that starts at the last output.
    pub(super) fn len(&self) -> usize {
        self.channels * self.channel + LARGEST_TILE
    }

    /// The place of each tap in its channel.
    pub(super) fn taps(&self) -> &[u32] {
        &self.taps
    }

    /// The tap columns, where one copy serves them all; else none.
    pub(super) fn shifts(&self) -> &Arc<[Shift]> {
        &self.shifts
    }

    /// Numbers that a tile reads of one channel.
    pub(super) fn footprint(&self, tile: usize) -> usize {
        if self.is_im2col {
            return self.channel;
        }
        let planes = self.channel / (self.phase_rows * self.row).max(1);
        (tile + (self.phase_rows - self.rows.len) * self.row) * planes
    }

    /// Whether the outputs of a group are one run: those of one image, without gaps.
    pub(super) fn is_one_run(&self) -> bool {
        self.row == self.cols.len
    }

    /// Unfolds `channels` of up to a group of images, which follow one another in `x`, to `out`.
    pub(super) fn fill(
        &self,
        kernels: &dyn Kernels,
        x: &[f32],
        channels: Range<usize>,
        out: &mut [f32],
    ) {
        let (area, image) =
            (self.rows.input * self.cols.input, self.channels * self.rows.input * self.cols.input);
        if image == 0 {
            return out.fill(0.0);
        }
        let images = x.len() / image;
        match &self.copies {
            Copies::Transposed => {
                // A line of each image at a time, to lines that stay in the cache.
                let starts = channels.clone().step_by(LINE);
                for (start, out) in starts.zip(out.chunks_mut(LINE * self.channel)) {
                    let line = start..channels.end.min(start + LINE);
                    for (number, x) in x.chunks_exact(image).enumerate() {
                        let out = out.iter_mut().skip(number).step_by(self.channel);
                        out.zip(&x[line.clone()]).for_each(|(out, x)| *out = *x);
                    }
                }
            }
            Copies::Planes(shifts) => {
                let parts = out.chunks_exact_mut(self.channel);
                for (x, out) in x.chunks_exact(area).skip(channels.start).zip(parts) {
                    let planes = out.chunks_exact_mut(self.channel / shifts.len());
                    for (&shift, plane) in shifts.iter().zip(planes) {
                        self.fill_plane(x, shift, plane);
                    }
                }
            }
            Copies::Windows(windows) => {
                kernels.fill_windows(windows, &x[channels.start * area..], area, out);
            }
            Copies::Runs(len, runs) => {
                let fill = match len {
                    2 => fill_runs::<2>,
                    4 => fill_runs::<4>,
                    _ => fill_runs::<LONGEST_RUN>,
                };
                for (channel, out) in channels.zip(out.chunks_exact_mut(self.channel)) {
                    for number in 0..images {
                        let out = &mut out[number * self.cols.len..];
                        fill(runs, x, number * image + channel * area, out);
                    }
                }
            }
            Copies::Pieces(pieces) => {
                for (channel, out) in channels.zip(out.chunks_exact_mut(self.channel)) {
                    out.fill(0.0);
                    for number in 0..images {
                        let x = &x[number * image + channel * area..][..area];
                        for piece in pieces {
                            let (from, len) = (piece.from as usize, piece.len as usize);
                            let to = piece.to as usize + number * self.cols.len;
                            out[to..to + len].copy_from_slice(&x[from..from + len]);
                        }
                    }
                }
            }
            Copies::Numbers(numbers) => {
                for (channel, out) in channels.zip(out.chunks_exact_mut(self.channel)) {
                    out.fill(0.0);
                    for number in 0..images {
                        let x = &x[number * image + channel * area..][..area];
                        let out = &mut out[number * self.cols.len..];
                        for &(to, from) in numbers {
                            out[to as usize] = x[from as usize];
                        }
                    }
                }
            }
        }
    }

    /// Copies a plane moved left by `shift` columns, zeros where nothing comes.
    fn fill_plane(&self, x: &[f32], shift: isize, plane: &mut [f32]) {
        let (width, top) = (self.cols.len, self.rows.before.min(self.phase_rows));
        let height = self.rows.input.min(self.phase_rows - top);
        let (before, rest) = plane.split_at_mut(top * width);
        let (body, after) = rest.split_at_mut(height * width);
        before.fill(0.0);
        after.fill(0.0);
        let columns = shift.unsigned_abs().min(width);
        if columns == width {
            return body.fill(0.0);
        }
        let x = &x[..body.len()];
        if body.is_empty() {
            return;
        }
        if shift < 0 {
            body[columns..].copy_from_slice(&x[..x.len() - columns]);
            body.chunks_exact_mut(width).for_each(|row| row[..columns].fill(0.0));
        } else {
            body[..x.len() - columns].copy_from_slice(&x[columns..]);
            body.chunks_exact_mut(width).for_each(|row| row[width - columns..].fill(0.0));
        }
    }

    /// The runs of outputs of a tile that starts at `start`: where in the tile, which image, where
    /// in the image's map, how many.
    pub(super) fn runs(&self, start: usize, size: usize, runs: &mut Vec<[usize; 4]>) {
        runs.clear();
        let (mut at, end) = (start, self.positions().min(start + size));
        if self.is_one_run() {
            return runs.push([0, 0, start, end - start]);
        }
        while at < end {
            let (row, within) = (at / self.row, at % self.row);
            let (image, col) = (within / self.cols.len, within % self.cols.len);
            if image >= self.group {
                at += self.row - within; // What fills the row up.
                continue;
            }
            let len = (self.cols.len - col).min(end - at);
            runs.push([at - start, image, row * self.cols.len + col, len]);
            at += len;
        }
    }
}

/// Copies runs of one channel of one image, which starts at `at`.
fn fill_runs<const LEN: usize>(runs: &[Run], x: &[f32], at: usize, out: &mut [f32]) {
    let (x, out) = (bytemuck::cast_slice::<_, u32>(x), bytemuck::cast_slice_mut::<_, u32>(out));
    for run in runs {
        let start = at.wrapping_add_signed(run.from);
        let mask: &[u32; LEN] = run.mask.first_chunk().expect("no longer than the longest");
        let out: &mut [u32; LEN] = out[run.to as usize..].first_chunk_mut().expect("in a channel");
        // Plain loops over arrays, of which a run is one load, one mask, one store.
        match x.get(start..).and_then(|x| x.first_chunk::<LEN>()) {
            Some(x) => (0..LEN).for_each(|i| out[i] = x[i] & mask[i]),
            None => fill_edge(mask, x, start, out),
        }
    }
}

/// A run that begins or ends outside of `x`, where its mask is 0.
#[cold]
fn fill_edge(mask: &[u32], x: &[u32], start: usize, out: &mut [u32]) {
    for (i, (out, &mask)) in out.iter_mut().zip(mask).enumerate() {
        *out = if mask == 0 { 0 } else { x[start.wrapping_add(i)] };
    }
}
