//! Convolutions, and linear layers as convolutions of one place, straight from compressed kernels.
//!
//! The input is unfolded (`unfolding.rs`) so that a kept weight is one broadcast and a run of
//! multiply–adds at an offset:
//!
//! ```text
//!   for each block of rows (output channels):    decode once, columns become offsets, cut into
//!     for each group of images:                  strips of input channels ([`Taps`])
//!       unfold
//!       for each tile of outputs:                64 to 128 of them, in registers
//!         for each strip:                        its part of the unfolded input stays in L1
//!           for each row: sums[row][..] += Σ value · unfolded[offset + tile]
//!         finish (scale, shift, activation) and store
//! ```
//!
//! Where most weights are kept, blocks are decoded into dense rows instead, a MiB or 64 rows at a
//! time, and several rows share the loads of their inputs (`density.rs`, `simd/dense_rows.rs`). A
//! pruned weight is multiplied there, so inputs that are not all finite go the other way.
//!
//! Every output is summed in the order of its row's weights, whoever computes it, so any number of
//! threads gives the same bits. Threads share the groups of images, or the rows where there are
//! fewer groups than threads.
//!
//! Price: the unfolded input of one group a thread; the decoded rows of one block, or of the whole
//! layer where a schedule is kept.

mod density;
mod unfolding;

use crate::error::{Error, Result};
use crate::layout::Buffers;
use crate::lines::Lines;
use crate::matrix::CompressedMatrix;
use crate::rows::{RowBlock, filled};
use crate::simd::{
    self, Decoded, Finish, Kernels, LARGEST_TILE, Places, SMALLEST_TILE, Start, Taps, TileProduct,
};
use crate::threads;
use density::Decoding;
pub(crate) use density::batch_is_faster_dense;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Mutex;
use unfolding::Unfolding;

/// How a kernel moves over its input: rows, then columns, as torch's convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The kernel's height and width.
    pub kernel: [usize; 2],
    /// Steps between outputs.
    pub stride: [usize; 2],
    /// Zeros before and after the input.
    pub padding: [[usize; 2]; 2],
    /// Steps between taps.
    pub dilation: [usize; 2],
    /// Steps between inputs, with zeros in between: 1, or the stride of a transposed convolution.
    pub spread: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Geometry {
    /// That of a linear layer: one place.
    pub const POINT: Self = Self {
        kernel: [1, 1],
        stride: [1, 1],
        padding: [[0, 0]; 2],
        dilation: [1, 1],
        spread: [1, 1],
        groups: 1,
    };
}

/// Where the weights of a layer come from.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// Decoded block by block, each time.
    Stored(&'a CompressedMatrix),
    /// Decoded before, for the same plan.
    Scheduled(&'a Taps),
}

/// What is done to the outputs after their finish: a slice of any part of a row.
pub type Activation<'a> = &'a (dyn Fn(&mut [f32]) + Sync);

/// What becomes of the sums of a convolution.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// One number for each row of the matrix.
    pub finish: Finish<'a>,
    /// What `finish` cannot say.
    pub activation: Option<Activation<'a>>,
}

impl<'a> From<Finish<'a>> for Epilogue<'a> {
    fn from(finish: Finish<'a>) -> Self {
        Self { finish, activation: None }
    }
}

/// Everything about a layer that one shape of input decides; made once, used for every call.
#[derive(Debug)]
pub struct Plan {
    unfolding: Unfolding,
    places: Places,
    /// Where dense rows are faster: their places, and how many of them are decoded at a time.
    dense: Option<(Places, usize)>,
    /// `[images, channels, height, width]`.
    input: [usize; 4],
    nrows: usize,
    nnz: usize,
    tile: usize,
    /// Rows that are decoded at a time.
    block_rows: usize,
}

/// Numbers of the input that a strip may take: what a first-level cache holds.
const STRIP_NUMBERS: usize = 8192;
/// Kept weights of a row that a strip should hold, so that starting one pays.
const STRIP_WEIGHTS: usize = 32;
/// So much longer are strips of a half of the best tile, which does half as much for each weight
/// and gains less from the first-level cache; those of a quarter twice as long, and so on.
const SMALL_TILE_STRIPS: usize = 4;
/// Kept weights that are decoded at a time: 2 MiB with their offsets.
const BLOCK_WEIGHTS: usize = 1 << 18;
/// Weights of dense rows that are decoded at a time: 1 MiB.
const DENSE_WEIGHTS: usize = 1 << 18;
/// Columns that a strip of dense rows has at least: 16 outputs of each are half a first-level cache.
const DENSE_STRIP_COLS: usize = 256;
/// So much smaller are blocks where they need not serve several groups of images.
const SMALLER_BLOCKS: usize = 4;
/// Multiply–adds that a thread is worth.
const THREAD_PRODUCTS: usize = 1 << 17;

impl Plan {
    /// The plan of `matrix` as kernels `[nrows, channels / groups · kernel height · kernel width]`
    /// for an input `[images, channels, height, width]`.
    ///
    /// # Errors
    /// `InvalidArgument` when shapes do not fit.
    pub fn new(
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        input: [usize; 4],
        geometry: &Geometry,
    ) -> Result<Self> {
        Self::for_decoding(kernels, matrix, input, geometry, Decoding::EachRun)
    }

    /// As [`Plan::new`], where all calls will get scheduled weights, unless they are multiplied as
    /// dense rows ([`Plan::is_dense`]).
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn for_schedule(
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        input: [usize; 4],
        geometry: &Geometry,
    ) -> Result<Self> {
        Self::for_decoding(kernels, matrix, input, geometry, Decoding::Once)
    }

    fn for_decoding(
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        input: [usize; 4],
        geometry: &Geometry,
        decoding: Decoding,
    ) -> Result<Self> {
        let (nrows, ncols) = (matrix.shape().nrows, matrix.shape().ncols);
        let (groups, channels) = (geometry.groups, input[1]);
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
        let mut unfolding = Unfolding::new(input, geometry, kernels.tile())?;
        let [height, width] = unfolding.outputs();
        let outputs = input[0].saturating_mul(height * width);
        let is_point = outputs == input[0];
        let is_dense =
            groups == 1 && density::dense_is_faster(kernels, matrix, outputs, is_point, decoding);
        if is_dense && is_point {
            // A batch of vectors is unfolded as a whole, unless it is large: else it would be for
            // every block of rows.
            unfolding = Unfolding::new(input, geometry, LARGEST_TILE).unwrap_or(unfolding);
        }
        let tile = tile_size(unfolding.positions(), kernels.tile());
        let narrowest = STRIP_NUMBERS / unfolding.footprint(tile).max(1);
        let weights = STRIP_WEIGHTS
            * match kernels.tile() / tile {
                0 | 1 => 1,
                parts => SMALL_TILE_STRIPS * parts,
            };
        let wanted = (weights * nrows).saturating_mul(ncols) / matrix.nnz().max(1);
        let width = (narrowest.max(1) * taps.unwrap_or(1)).max(wanted);
        let count = if groups > 1 { 1 } else { ncols.div_ceil(width).max(1) };
        let places = Places {
            strip: ncols.div_ceil(count).max(1),
            count,
            taps: unfolding.taps().to_vec(),
            channel: unfolding.channel as u32,
            group_rows: (nrows / groups).max(1),
            group_step: channels / groups * unfolding.channel,
            end: unfolding.len(),
        };
        let unit = matrix.block_rows();
        let block_rows =
            (BLOCK_WEIGHTS * nrows.max(1) / matrix.nnz().max(1)).max(unit) / unit * unit;
        let dense = is_dense.then(|| {
            let strip = (narrowest * taps.unwrap_or(1)).max(DENSE_STRIP_COLS);
            let count = ncols.div_ceil(strip).max(1);
            let strip = ncols.div_ceil(count).max(1);
            let rows = (DENSE_WEIGHTS / ncols.max(1)).max(unit) / unit * unit;
            (Places { strip, count, ..places.clone() }, rows)
        });
        Ok(Self { unfolding, places, dense, input, nrows, nnz: matrix.nnz(), tile, block_rows })
    }

    /// The shape of the output: `[images, nrows, height, width]`.
    pub fn output(&self) -> [usize; 4] {
        let [height, width] = self.unfolding.outputs();
        [self.input[0], self.nrows, height, width]
    }

    /// The whole matrix decoded, for this plan.
    ///
    /// # Errors
    /// As [`CompressedMatrix::to_rows`].
    pub fn schedule(&self, kernels: &dyn Kernels, matrix: &CompressedMatrix) -> Result<Taps> {
        let (mut taps, mut block) = (Taps::default(), RowBlock::default());
        self.decode_taps(kernels, matrix, 0..self.nrows, &mut block, &mut taps)?;
        Ok(taps)
    }

    /// Whether stored weights are multiplied as dense rows, so that decoding them before does not
    /// pay. Inputs that are not finite are multiplied with kept weights all the same.
    pub fn is_dense(&self) -> bool {
        self.dense.is_some()
    }

    /// Computes the output `y` `[images, nrows, height, width]` from the input `x`.
    ///
    /// # Panics
    /// When `x`, `y`, scale or shift has another length than the plan's.
    ///
    /// # Errors
    /// `LimitExceeded` when memory cannot be had; `Io` when no thread can be made.
    pub fn run(
        &self,
        kernels: &'static dyn Kernels,
        weights: Weights<'_>,
        x: &[f32],
        y: &mut [f32],
        epilogue: &Epilogue<'_>,
        threads: usize,
    ) -> Result<()> {
        for vector in [epilogue.finish.scale, epilogue.finish.shift].into_iter().flatten() {
            assert_eq!(vector.len(), self.nrows, "conv: scale and shift");
        }
        assert_eq!(x.len(), self.input.iter().product::<usize>(), "conv: input");
        assert_eq!(y.len(), self.output().iter().product::<usize>(), "conv: output");
        if y.is_empty() {
            return Ok(());
        }
        let [height, width] = self.unfolding.outputs();
        let outputs = self.input[0] * height * width;
        let work = self.nnz.saturating_mul(outputs) / THREAD_PRODUCTS;
        let dense = self.dense.as_ref().filter(|_| {
            // A pruned weight contributes nothing, so it must not meet what is not finite.
            matches!(weights, Weights::Stored(_)) && density::all_finite(x)
        });
        let places = dense.map_or(&self.places, |(places, _)| places);
        let (is_dense, threads) = (dense.is_some(), threads.min(work).max(1));
        let call = Call { kernels, weights, places, is_dense, epilogue, threads };
        let decoded_rows = dense.map_or(self.block_rows, |&(_, rows)| rows);
        let groups = self.input[0].div_ceil(self.unfolding.group);
        if groups == 1 {
            return self.run_rows(&call, x, y);
        }
        let mut multiply = |segments: &[Segment<'_>]| match groups >= call.threads {
            true => self.run_groups(&call, segments, x, y),
            false => self.run_groups_by_rows(&call, segments, x, y),
        };
        let matrix = match weights {
            Weights::Stored(matrix) => matrix,
            Weights::Scheduled(taps) => {
                return multiply(&[Segment { taps, first: 0, rows: 0..self.nrows }]);
            }
        };
        for start in (0..self.nrows).step_by(decoded_rows) {
            let rows = start..self.nrows.min(start + decoded_rows);
            if call.threads == 1 {
                let mut scratch = lend();
                self.decode(&call, matrix, rows.clone(), &mut scratch)?;
                let (taps, first) = (&scratch.taps, rows.start);
                multiply(&[Segment { taps, first, rows: 0..rows.len() }])?;
                continue;
            }
            let decoded = self.decode_parts(&call, matrix, rows)?;
            let segments = decoded.iter().map(|(rows, scratch)| Segment {
                taps: &scratch.taps,
                first: rows.start,
                rows: 0..rows.len(),
            });
            multiply(&segments.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Decodes `rows` into the taps of the scratch memory, in the form that the call takes.
    fn decode(
        &self,
        call: &Call<'_>,
        matrix: &CompressedMatrix,
        rows: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Scratch { buffers, weights, taps, .. } = scratch;
        if !call.is_dense {
            return self.decode_taps(call.kernels, matrix, rows, &mut buffers.block, taps);
        }
        let sizes = [rows.len(), matrix.shape().ncols];
        matrix.decode_dense(call.kernels, rows, buffers, weights)?;
        taps.fill_dense(call.kernels, weights, sizes, call.places);
        Ok(())
    }

    /// Decodes the kept weights of `rows` into `taps`.
    fn decode_taps(
        &self,
        kernels: &dyn Kernels,
        matrix: &CompressedMatrix,
        rows: Range<usize>,
        block: &mut RowBlock,
        taps: &mut Taps,
    ) -> Result<()> {
        let first = rows.start;
        matrix.decode_symbols(rows, block)?;
        let RowBlock { indptr, cols, symbols, values } = block;
        let codebook = matrix.codebook_values();
        let decoded = Decoded { indptr, cols, symbols, codebook, values };
        taps.fill(kernels, decoded, first, &self.places);
        Ok(())
    }

    /// Decodes `rows`, in as many parts as threads.
    fn decode_parts(
        &self,
        call: &Call<'_>,
        matrix: &CompressedMatrix,
        rows: Range<usize>,
    ) -> Result<Vec<(Range<usize>, Lent)>> {
        let ranges = threads::split(rows.len(), call.threads, matrix.block_rows()).into_iter();
        let mut parts: Vec<_> =
            ranges.map(|r| (rows.start + r.start..rows.start + r.end, lend())).collect();
        threads::for_each(call.threads, parts.iter_mut().collect(), |(rows, scratch)| {
            self.decode(call, matrix, rows.clone(), scratch)
        })?;
        Ok(parts)
    }

    /// One group of images: threads share the rows, each decodes its own, a small block at a time.
    fn run_rows(&self, call: &Call<'_>, x: &[f32], y: &mut [f32]) -> Result<()> {
        let mut scratch = lend();
        let unfolded = self.unfold(call, x, &mut scratch.unfolded)?;
        let area = y.len() / self.input[0] / self.nrows;
        let unit = match call.weights {
            Weights::Stored(matrix) => matrix.block_rows(),
            Weights::Scheduled(_) => 8,
        };
        let step = match &self.dense {
            Some((_, rows)) if call.is_dense => *rows,
            _ => (self.block_rows / SMALLER_BLOCKS).next_multiple_of(unit),
        };
        let work = |rows: Range<usize>, mut maps: Maps<'_>| {
            let mut scratch = lend();
            let matrix = match call.weights {
                Weights::Stored(matrix) => matrix,
                Weights::Scheduled(taps) => {
                    let Scratch { sums, runs, .. } = &mut *scratch;
                    let segment = Segment { taps, first: 0, rows };
                    return self.tiles(call, &[segment], unfolded, (sums, runs), &mut maps);
                }
            };
            for start in rows.clone().step_by(step) {
                let mine = start..rows.end.min(start + step);
                self.decode(call, matrix, mine.clone(), &mut scratch)?;
                let Scratch { taps, sums, runs, .. } = &mut *scratch;
                let segment = Segment { taps, first: start, rows: 0..mine.len() };
                maps.first = start - rows.start;
                self.tiles(call, &[segment], unfolded, (sums, runs), &mut maps)?;
            }
            Ok(())
        };
        if call.threads == 1 {
            return work(0..self.nrows, Maps::whole(y, self.nrows * area, area));
        }
        let items = self.share_rows(&threads::split(self.nrows, call.threads, unit), y);
        threads::for_each(call.threads, items, |(rows, maps)| work(rows, maps))
    }

    /// The outputs of each range of rows, one slice an image.
    fn share_rows<'y>(
        &self,
        ranges: &[Range<usize>],
        y: &'y mut [f32],
    ) -> Vec<(Range<usize>, Maps<'y>)> {
        let mut items: Vec<_> = ranges.iter().map(|rows| (rows.clone(), Vec::new())).collect();
        let [_, nrows, height, width] = self.output();
        let area = height * width;
        for mut y in y.chunks_exact_mut(nrows * area) {
            let mut at = 0;
            for (rows, maps) in &mut items {
                let (mine, rest) = y[(rows.start - at) * area..].split_at_mut(rows.len() * area);
                (y, at) = (rest, rows.end);
                maps.push(mine);
            }
        }
        items.into_iter().map(|(rows, maps)| (rows, Maps::parts(maps, area))).collect()
    }

    /// Unfolds one group of images; threads share the channels.
    fn unfold<'s>(&self, call: &Call<'_>, x: &[f32], lines: &'s mut Lines) -> Result<&'s [f32]> {
        let unfolded = lines.at_least(self.unfolding.len())?;
        let len = unfolded.len() - simd::LARGEST_TILE;
        if call.threads == 1 {
            self.unfolding.fill(x, 0..self.input[1], &mut unfolded[..len]);
            return Ok(unfolded);
        }
        let parts = threads::split(self.input[1], call.threads, 1);
        let items = crate::matrix::zip_chunks(parts, &mut unfolded[..len], self.unfolding.channel);
        threads::for_each(call.threads, items, |(channels, out)| {
            self.unfolding.fill(x, channels, out);
            Ok(())
        })?;
        Ok(unfolded)
    }

    /// Threads share the groups of images.
    fn run_groups(
        &self,
        call: &Call<'_>,
        segments: &[Segment<'_>],
        x: &[f32],
        y: &mut [f32],
    ) -> Result<()> {
        let (images, group) = (self.input[0], self.unfolding.group);
        let (x_image, y_image) = (x.len() / images, y.len() / images);
        let area = y_image / self.nrows;
        let first = segments[0].first + segments[0].rows.start;
        let alone = Call { threads: 1, ..*call };
        let work = |(number, y): (usize, &mut [f32])| {
            let mut scratch = lend();
            let Scratch { unfolded, sums, runs, .. } = &mut *scratch;
            let x = &x[number * group * x_image..][..y.len() / y_image * x_image];
            let unfolded = self.unfold(&alone, x, unfolded)?;
            let mut maps = Maps::whole(y, y_image, area);
            maps.first = first;
            self.tiles(call, segments, unfolded, (sums, runs), &mut maps)
        };
        let mut items = y.chunks_mut(group * y_image).enumerate();
        match call.threads {
            1 => items.try_for_each(work),
            threads => threads::for_each(threads, items.collect(), work),
        }
    }

    /// Threads share the rows of one group of images after the other.
    fn run_groups_by_rows(
        &self,
        call: &Call<'_>,
        segments: &[Segment<'_>],
        x: &[f32],
        y: &mut [f32],
    ) -> Result<()> {
        let (images, group) = (self.input[0], self.unfolding.group);
        let (x_image, y_image) = (x.len() / images, y.len() / images);
        let mut scratch = lend();
        let ranges: Vec<Range<usize>> = segments
            .iter()
            .flat_map(|segment| {
                let parts = threads::split(segment.rows.len(), call.threads, 8).into_iter();
                let start = segment.first + segment.rows.start;
                parts.map(move |r| start + r.start..start + r.end)
            })
            .collect();
        for (number, y) in y.chunks_mut(group * y_image).enumerate() {
            let x = &x[number * group * x_image..][..y.len() / y_image * x_image];
            let unfolded = self.unfold(call, x, &mut scratch.unfolded)?;
            let items = self.share_rows(&ranges, y);
            threads::for_each(call.threads, items, |(rows, mut maps)| {
                let mut scratch = lend();
                let Scratch { sums, runs, .. } = &mut *scratch;
                let holds = |s: &&Segment<'_>| s.first + s.rows.start <= rows.start;
                let segment = segments.iter().rev().find(holds).unwrap_or(&segments[0]);
                let within = rows.start - segment.first..rows.end - segment.first;
                let segment = Segment { rows: within, ..*segment };
                self.tiles(call, &[segment], unfolded, (sums, runs), &mut maps)
            })?;
        }
        Ok(())
    }

    /// Computes all tiles of one group of images for the rows of `segments`, which follow one
    /// another; `maps` are the outputs of each image from the first row on.
    fn tiles(
        &self,
        call: &Call<'_>,
        segments: &[Segment<'_>],
        unfolded: &[f32],
        (sums, runs): (&mut Lines, &mut Vec<[usize; 4]>),
        maps: &mut Maps<'_>,
    ) -> Result<()> {
        let [height, width] = self.unfolding.outputs();
        let area = height * width;
        let nrows: usize = segments.iter().map(|segment| segment.rows.len()).sum();
        let sums = sums.at_least(nrows * self.tile)?;
        let positions = self.unfolding.positions();
        let mut start = 0;
        while start < positions {
            let size = tile_size(positions - start, self.tile);
            // The last strip stores outputs in their place, where a whole tile of them is one run.
            let is_direct = self.unfolding.is_one_run() && start + size <= positions;
            let sums = &mut sums[..nrows * size];
            for strip in 0..call.places.count {
                let is_last = strip + 1 == call.places.count;
                let mut done = 0;
                for segment in segments {
                    let rows = &segment.rows;
                    let (first, len) = (segment.first + rows.start, rows.len());
                    let mine = &mut sums[done * size..(done + len) * size];
                    let finish = call.epilogue.finish;
                    let finish = Finish {
                        scale: finish.scale.map(|scale| &scale[first..first + len]),
                        shift: finish.shift.map(|shift| &shift[first..first + len]),
                        ..finish
                    };
                    let product = TileProduct {
                        strip: segment.taps.strip(strip, rows.start, rows.end),
                        size,
                        input: &unfolded[start..],
                        start: if strip == 0 { Start::Zero } else { Start::Output },
                        finish: is_last.then_some(finish),
                        stride: size,
                    };
                    if is_last && is_direct {
                        let from = if strip == 0 { Start::Zero } else { Start::Sums(mine) };
                        let product = TileProduct { start: from, stride: area, ..product };
                        let Some(map) = maps.get(0) else { continue };
                        call.kernels.add_strip(&product, &mut map[done * area + start..]);
                    } else {
                        call.kernels.add_strip(&product, mine);
                    }
                    done += len;
                }
            }
            if !is_direct {
                self.store(start, size, sums, runs, maps);
            }
            if let Some(activation) = call.epilogue.activation {
                self.unfolding.runs(start, size, runs);
                for &[_, image, to, len] in &*runs {
                    let Some(map) = maps.get(image) else { continue };
                    for row in 0..nrows {
                        activation(&mut map[row * area + to..][..len]);
                    }
                }
            }
            start += size;
        }
        Ok(())
    }
}

impl Plan {
    /// Stores the outputs of a tile in their images' maps.
    fn store(
        &self,
        start: usize,
        size: usize,
        sums: &[f32],
        runs: &mut Vec<[usize; 4]>,
        maps: &mut Maps<'_>,
    ) {
        let [height, width] = self.unfolding.outputs();
        let area = height * width;
        self.unfolding.runs(start, size, runs);
        for &[from, image, to, len] in &*runs {
            let Some(map) = maps.get(image) else { continue };
            for (row, sums) in sums.chunks_exact(size).enumerate() {
                let (sums, to) = (&sums[from..from + len], row * area + to);
                let map = &mut map[to..to + len];
                // Short runs are not worth a call.
                if len < 8 {
                    map.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum);
                } else {
                    map.copy_from_slice(sums);
                }
            }
        }
    }
}

/// The tile for `left` outputs: the largest that they fill, or nearly.
fn tile_size(left: usize, largest: usize) -> usize {
    let above = left.next_power_of_two();
    let size = if left * 4 > above * 3 { above } else { above / 2 };
    size.clamp(SMALLEST_TILE, largest)
}

/// What one call of [`Plan::run`] is given.
#[derive(Clone, Copy)]
struct Call<'a> {
    kernels: &'static dyn Kernels,
    weights: Weights<'a>,
    places: &'a Places,
    /// Whether stored weights are decoded into dense rows.
    is_dense: bool,
    epilogue: &'a Epilogue<'a>,
    threads: usize,
}

/// The outputs of the images of a group, some rows of each.
struct Maps<'y> {
    images: Images<'y>,
    /// Numbers of a row.
    area: usize,
    /// The row from which on they are asked for.
    first: usize,
}

enum Images<'y> {
    /// Next to each other, so many numbers each.
    Whole(&'y mut [f32], usize),
    /// Apart.
    Parts(Vec<&'y mut [f32]>),
}

impl<'y> Maps<'y> {
    /// All rows of all images, `image` numbers each.
    fn whole(y: &'y mut [f32], image: usize, area: usize) -> Self {
        Self { images: Images::Whole(y, image), area, first: 0 }
    }

    /// Some rows of each image.
    fn parts(parts: Vec<&'y mut [f32]>, area: usize) -> Self {
        Self { images: Images::Parts(parts), area, first: 0 }
    }

    /// Image `number` from row `first` on; none where the last group has fewer images.
    fn get(&mut self, number: usize) -> Option<&mut [f32]> {
        let image = match &mut self.images {
            Images::Whole(y, image) => y.get_mut(number * *image..(number + 1) * *image)?,
            Images::Parts(parts) => parts.get_mut(number)?,
        };
        image.get_mut(self.first * self.area..)
    }
}

/// Rows that follow one another.
struct Segment<'a> {
    taps: &'a Taps,
    /// The matrix' row that is the first one of `taps`.
    first: usize,
    /// Of `taps`.
    rows: Range<usize>,
}

/// Memory that calls use in turns.
#[derive(Debug, Default)]
struct Scratch {
    buffers: Buffers,
    /// Dense rows.
    weights: Vec<f32>,
    taps: Taps,
    unfolded: Lines,
    sums: Lines,
    runs: Vec<[usize; 4]>,
}

static IDLE: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());
/// Scratch memory that is kept between calls, at most.
const IDLE_COUNT: usize = 64;

/// Scratch memory that goes back when dropped.
struct Lent(Option<Scratch>);

/// Scratch memory from an earlier call, or new.
///
/// The lock is only ever tried: a process that forked while another thread held it goes without.
fn lend() -> Lent {
    let idle = IDLE.try_lock().ok().and_then(|mut idle| idle.pop());
    Lent(Some(idle.unwrap_or_default()))
}

impl Deref for Lent {
    type Target = Scratch;
    fn deref(&self) -> &Scratch {
        self.0.as_ref().expect("scratch: in use until dropped")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Scratch {
        self.0.as_mut().expect("scratch: in use until dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(scratch), Ok(mut idle)) = (self.0.take(), IDLE.try_lock())
            && idle.len() < IDLE_COUNT
        {
            idle.push(scratch);
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
        let plan = Plan::new(kernels, self, shape, geometry)?;
        let nrows = self.shape().nrows;
        if shape.iter().product::<usize>() != x.len() {
            return Err(Error::invalid(format!(
                "conv: x has {} numbers, expected shape {shape:?}",
                x.len()
            )));
        }
        if let Some(bias) = bias.filter(|bias| bias.len() != nrows) {
            return Err(Error::invalid(format!(
                "conv: bias has {} numbers, expected nrows = {nrows}",
                bias.len()
            )));
        }
        let output = plan.output();
        let mut y = filled(0.0, output[0] * nrows, output[2] * output[3])?;
        let finish = Finish { shift: bias, ..Finish::NOTHING };
        plan.run(kernels, Weights::Stored(self), x, &mut y, &finish.into(), threads)?;
        Ok((y, output))
    }
}
