//! Dense 3 × 3 kernels by 16 products of matrices, which take 16 multiply–adds where 36 are usual.
//!
//! ```text
//!   for each pass over some rows:
//!     kernels of these rows, transformed           [16][rows][channels]      threads share the rows
//!     for each block of tiles, two by two outputs each:                      threads share the blocks
//!       inputs, transformed                        [16][channels][tiles]
//!       products, one of matrices for each of 16   [16][rows][tiles]
//!       outputs, transformed, finished, stored
//! ```
//!
//! A layer is one pass, unless its kernels are large: then inputs are transformed in every pass, so that
//! no more than a part of the kernels is there at a time.
//!
//! A block is some rows of tiles of an image, or some whole images. Which tiles it has depends on shapes
//! alone, so that any number of threads gives the same bits. Its numbers stay in the last-level
//! cache, while the kernels are read once for each block.
//!
//! The numbers are those of the definition but for rounding: inputs and kernels are added to each other
//! before they are multiplied, so errors are somewhat larger than those of the definition's sums, and
//! inputs so large that their sums may overflow go the other way.
//!
//! Time over that of dense rows or taps; one Zen 4 core, AVX-512, with the limits below lowered:
//!
//! ```text
//!   kept                                100 %   80 %   60 %
//!   32 → 32, 16 × 16,   batch 32         0.99   1.14   1.05
//!   64 → 64, 32 × 32,   batch 1          0.65   0.97   0.99
//!                       batch 32         0.75   0.79   1.03
//!   128 → 128, 16 × 16, batch 32         0.61   0.64   1.20
//!   256 → 256, 8 × 8,   batch 32         0.57   0.67   0.90
//!   512 → 512, 4 × 4,   batch 32         0.97   0.94   1.37      128 tiles
//! ```
//!
//! Price: 16 numbers for each kernel of a pass, which are not kept from call to call; for each thread's
//! block four times its input and its output.

use super::scratch::{Scratch, lend};
use super::{Epilogue, Geometry};
use crate::error::Result;
use crate::interruption;
use crate::lines::Lines;
use crate::matrix::CompressedMatrix;
use crate::rows::filled;
use crate::simd::{
    Finish, Grid, Kernels, POINTS, Places, SMALLEST_DENSE_TILE, Start, TAPS, Taps, TileProduct,
    dense_rows,
};
use crate::threads;
use std::ops::Range;
use std::sync::Arc;

/// Tiles of a block, about, and where there are few in all.
const BLOCK_TILES: [usize; 2] = [128, 64];
/// Tiles from which on blocks are large.
const MANY_TILES: usize = 1024;
/// Tiles in all from which on kernels are worth transforming.
const MIN_TILES: usize = 256;
/// Channels of input and output from which on transforms are worth their products.
const MIN_CHANNELS: usize = 64;
/// Numbers of the transformed kernels of a pass, about: 4 MiB.
const PASS_KERNELS: usize = 1 << 20;
/// Rows that are decoded at a time, at least.
const DECODED_ROWS: usize = 32;
/// Channels of a strip: 32 tiles of each are a first-level cache.
const STRIP: usize = 256;
/// The longest row of tiles.
const MAX_ROW: usize = 512;
/// Between planes, so that they do not start at the same place of a cache.
const GAP: usize = 16;

/// How an input is cut into tiles.
#[derive(Debug)]
pub(super) struct Winograd {
    /// `[images, channels, height, width]`.
    input: [usize; 4],
    nrows: usize,
    /// Rows of a pass.
    step: usize,
    /// Height and width of an output.
    output: [usize; 2],
    /// Rows and columns of tiles of an image.
    tiles: [usize; 2],
    /// Zeros above and to the left of an input.
    before: [usize; 2],
    /// Images of a block, or 1.
    images: usize,
    /// Rows of tiles of a block, all of an image unless there is one image.
    rows: usize,
    /// Numbers of a map of a block: its tiles, filled up to whole tiles of products.
    width: usize,
    /// Of the transformed kernels, in a block's inputs.
    places: Places,
}

/// Some tiles: images, and rows of tiles of each.
struct Block {
    images: Range<usize>,
    rows: Range<usize>,
}

/// Where the outputs of a block go.
enum Outputs<'y> {
    /// All outputs of the block's images.
    Whole(&'y mut [f32]),
    /// The rows of the block, of each map of its one image.
    Parts(Vec<&'y mut [f32]>),
}

impl Winograd {
    /// How an input is cut, where that is possible and takes less time than other ways.
    pub(super) fn new(
        input: [usize; 4],
        geometry: &Geometry,
        matrix: &CompressedMatrix,
        output: [usize; 2],
    ) -> Option<Self> {
        let nrows = matrix.shape().nrows;
        let ones = [geometry.stride, geometry.dilation, geometry.spread];
        let fits = geometry.kernel == [3, 3] && ones == [[1, 1]; 3] && geometry.groups == 1;
        let [images, channels, ..] = input;
        let tiles = output.map(|len| len.div_ceil(2));
        let area = tiles[0].checked_mul(tiles[1])?;
        let total = area.checked_mul(images)?;
        let passes = nrows.div_ceil((PASS_KERNELS / POINTS / channels.max(1)).max(1)).max(1);
        let step = nrows.div_ceil(passes).next_multiple_of(decoded_rows(matrix));
        let is_worth = total >= MIN_TILES
            && step.checked_mul(channels * POINTS)? <= 2 * PASS_KERNELS
            && channels.min(nrows) >= MIN_CHANNELS
            && (1..=MAX_ROW).contains(&tiles[1]);
        if !fits || !is_worth {
            return None;
        }
        let wanted = BLOCK_TILES[usize::from(total < MANY_TILES)];
        let (images, rows) = match area < wanted {
            true => (wanted.div_ceil(area), tiles[0]),
            false => (1, wanted.div_ceil(tiles[1])),
        };
        let before = geometry.padding.map(|[before, _]| before);
        let width = (images * rows * tiles[1]).next_multiple_of(SMALLEST_DENSE_TILE);
        let strips = channels.div_ceil(STRIP);
        let places = Places {
            strip: channels.div_ceil(strips),
            count: strips,
            taps: vec![0],
            channel: width as u32,
            group_rows: POINTS * step,
            group_step: 0,
            end: channels * width,
            shifts: Arc::default(),
            is_sorted: false,
        };
        Some(Self { input, nrows, step, output, tiles, before, images, rows, width, places })
    }

    /// Computes the output `y` from the input `x`, whose numbers are all moderate.
    ///
    /// # Errors
    /// `LimitExceeded` when memory cannot be had; `Io` when no thread can be made.
    pub(super) fn run(
        &self,
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        x: &[f32],
        y: &mut [f32],
        epilogue: &Epilogue<'_>,
        threads: usize,
    ) -> Result<()> {
        let mut scratch = lend();
        let taps = &mut scratch.kernels;
        for start in (0..self.nrows).step_by(self.step) {
            let rows = start..self.nrows.min(start + self.step);
            self.transform_kernels(kernels, matrix, rows.clone(), taps, threads)?;
            self.run_pass(kernels, (rows, taps), x, y, epilogue, threads)?;
        }
        Ok(())
    }

    /// Computes the outputs of some rows, whose kernels are transformed.
    fn run_pass(
        &self,
        kernels: &'static dyn Kernels,
        (rows, taps): (Range<usize>, &Taps),
        x: &[f32],
        y: &mut [f32],
        epilogue: &Epilogue<'_>,
        threads: usize,
    ) -> Result<()> {
        let work = |(block, mut outputs): (Block, Outputs<'_>)| {
            let mut scratch = lend();
            self.multiply(kernels, taps, rows.len(), x, &block, &mut scratch)?;
            self.finish(kernels, &block, &rows, &scratch.products, epilogue, &mut outputs);
            Ok(())
        };
        let [height, width] = self.output;
        let map = height * width;
        let image = self.nrows * map;
        if self.rows < self.tiles[0] {
            // Rows of tiles of one image after the other.
            let bands = self.tiles[0].div_ceil(self.rows);
            if threads == 1 {
                for (number, y) in y.chunks_exact_mut(image).enumerate() {
                    for band in 0..bands {
                        interruption::check()?;
                        let block = self.band(number, band);
                        let outputs = Outputs::Whole(&mut *y);
                        work((block, outputs))?;
                    }
                }
                return Ok(());
            }
            let mut items = Vec::new();
            for (number, y) in y.chunks_exact_mut(image).enumerate() {
                let mut parts: Vec<_> =
                    (0..bands).map(|_| Vec::with_capacity(rows.len())).collect();
                for map in y[rows.start * map..rows.end * map].chunks_exact_mut(map) {
                    let cut = map.chunks_mut(2 * self.rows * width);
                    parts.iter_mut().zip(cut).for_each(|(parts, part)| parts.push(part));
                }
                let of = |(band, parts)| (self.band(number, band), Outputs::Parts(parts));
                items.extend(parts.into_iter().enumerate().map(of));
            }
            return threads::for_each(threads, items, work);
        }
        let mut items = y.chunks_mut(self.images * image).enumerate().map(|(number, y)| {
            let first = number * self.images;
            let images = first..first + y.len() / image;
            (Block { images, rows: 0..self.tiles[0] }, Outputs::Whole(y))
        });
        match threads {
            1 => items.try_for_each(|item| interruption::check().and_then(|()| work(item))),
            _ => threads::for_each(threads, items.collect(), work),
        }
    }

    fn band(&self, image: usize, band: usize) -> Block {
        let start = band * self.rows;
        Block { images: image..image + 1, rows: start..self.tiles[0].min(start + self.rows) }
    }

    /// Transforms the kernels of some rows: dense rows, those of each point after those of the one before.
    fn transform_kernels(
        &self,
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        rows: Range<usize>,
        taps: &mut Taps,
        threads: usize,
    ) -> Result<()> {
        let channels = self.input[1];
        let pitch = dense_rows::pitch(channels);
        let plane = rows.len() * pitch;
        let mut transformed = taps.take_dense();
        if transformed.len() < POINTS * plane {
            transformed = filled(0.0, POINTS * rows.len(), pitch)?;
        }
        let mut planes = transformed.chunks_exact_mut(plane);
        let step = decoded_rows(matrix);
        let mut next = || planes.next().expect("a plane for each point").chunks_mut(step * pitch);
        let mut parts: [_; POINTS] = std::array::from_fn(|_| next());
        let mut next = |start| {
            (start, parts.each_mut().map(|parts| parts.next().expect("planes of one length")))
        };
        let mut items = rows.clone().step_by(step).map(&mut next);
        let work = |(start, mut out): (usize, [&mut [f32]; POINTS])| {
            let mut scratch = lend();
            let Scratch { buffers, weights, .. } = &mut *scratch;
            let rows = start..start + out[0].len() / pitch;
            let len = rows.len();
            matrix.decode_dense(kernels, rows, buffers, weights)?;
            let dense = weights.chunks_exact(dense_rows::pitch(channels * TAPS));
            for (number, row) in dense.take(len).enumerate() {
                kernels.transform_kernels(&row[..channels * TAPS], &mut out, number * pitch);
            }
            Ok(())
        };
        match threads {
            1 => items.try_for_each(work)?,
            _ => threads::for_each(threads, items.collect(), work)?,
        }
        let sizes = [POINTS * rows.len(), channels];
        taps.fill_dense(kernels, &mut transformed, sizes, &self.places);
        Ok(())
    }

    /// Tiles of a block.
    fn count(&self, block: &Block) -> usize {
        block.images.len() * block.rows.len() * self.tiles[1]
    }

    /// Transforms the inputs of a block, and puts 16 products of matrices into the scratch memory.
    fn multiply(
        &self,
        kernels: &'static dyn Kernels,
        taps: &Taps,
        nrows: usize,
        x: &[f32],
        block: &Block,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let channels = self.input[1];
        let Scratch { unfolded: inputs, products, tiles, .. } = scratch;
        let padded = &mut tiles.sums;
        let (plane, out) = (self.plane(channels), self.plane(nrows));
        let inputs = inputs.at_least::<f32>(POINTS * plane)?;
        self.transform_inputs(kernels, x, block, padded, inputs)?;
        let products = products.at_least::<f32>(POINTS * out)?;
        let count = self.count(block);
        for point in 0..POINTS {
            let (inputs, products) = (&inputs[point * plane..], &mut products[point * out..]);
            let mut at = 0;
            while at < count {
                // A map's numbers are whole tiles of the smallest size of dense rows.
                let size = (1 << (self.width - at).ilog2()).min(kernels.tile());
                for strip in 0..channels.div_ceil(STRIP) {
                    let product = TileProduct {
                        strip: taps.strip(strip, point * nrows, (point + 1) * nrows),
                        size,
                        input: &inputs[at..],
                        start: if strip == 0 { Start::Zero } else { Start::Output },
                        finish: None,
                        stride: self.width,
                        grid: Grid::LINE,
                    };
                    kernels.add_strip(&product, &mut products[at..]);
                }
                at += size;
            }
        }
        Ok(())
    }

    /// Numbers from one plane of so many maps to the next: of inputs their channels, of products rows.
    fn plane(&self, maps: usize) -> usize {
        maps * self.width + GAP
    }

    /// Transforms the inputs of a block, `[16][channels][tiles]`.
    fn transform_inputs(
        &self,
        kernels: &'static dyn Kernels,
        x: &[f32],
        block: &Block,
        padded: &mut Lines,
        out: &mut [f32],
    ) -> Result<()> {
        let [_, channels, height, width] = self.input;
        let (plane, cols) = (self.plane(channels), self.tiles[1]);
        // The rows that the block's tiles read of a map, with zeros where there is padding.
        let (nrows, pitch) = (2 * block.rows.len() + 2, 2 * cols + 2);
        let padded = padded.at_least::<f32>(nrows * pitch)?;
        padded.fill(0.0);
        let top = 2 * block.rows.start;
        let from = self.before[0].saturating_sub(top).min(nrows);
        let to = (height + self.before[0]).saturating_sub(top).min(nrows).max(from);
        let left = self.before[1].min(pitch);
        let len = width.min(pitch - left);
        for (number, image) in block.images.clone().enumerate() {
            for channel in 0..channels {
                let map = &x[(image * channels + channel) * height * width..][..height * width];
                for row in from..to {
                    let start = (top + row - self.before[0]) * width;
                    padded[row * pitch + left..][..len].copy_from_slice(&map[start..start + len]);
                }
                for row in 0..block.rows.len() {
                    let four = &padded[2 * row * pitch..][..4 * pitch];
                    let rows = std::array::from_fn(|i| &four[i * pitch..(i + 1) * pitch]);
                    let tile = (number * block.rows.len() + row) * cols;
                    kernels.transform_inputs(rows, &mut out[channel * self.width + tile..], plane);
                }
            }
        }
        Ok(())
    }

    /// Transforms the products of a block to outputs, finishes and stores them.
    fn finish(
        &self,
        kernels: &'static dyn Kernels,
        block: &Block,
        rows: &Range<usize>,
        products: &Lines,
        epilogue: &Epilogue<'_>,
        outputs: &mut Outputs<'_>,
    ) {
        let [height, width] = self.output;
        let (map, cols, plane) = (height * width, self.tiles[1], self.plane(rows.len()));
        let products = &products.as_slice::<f32>()[..POINTS * plane];
        let (first, end) = (2 * block.rows.start, height.min(2 * block.rows.end));
        let finish: &Finish<'_> = &epilogue.finish;
        for image in 0..block.images.len() {
            for (index, row) in rows.clone().enumerate() {
                let rows = match outputs {
                    Outputs::Whole(y) => {
                        let at = (image * self.nrows + row) * map;
                        &mut y[at + first * width..at + end * width]
                    }
                    Outputs::Parts(parts) => &mut *parts[index],
                };
                for (number, pair) in rows.chunks_mut(2 * width).enumerate() {
                    let tile = (image * block.rows.len() + number) * cols;
                    let outputs = pair.split_at_mut(width).into();
                    let products = &products[index * self.width + tile..];
                    kernels.transform_products(products, plane, (finish, row), outputs);
                }
                if let Some(activation) = epilogue.activation {
                    activation(rows);
                }
            }
        }
    }
}

/// Rows that are decoded at a time.
fn decoded_rows(matrix: &CompressedMatrix) -> usize {
    DECODED_ROWS.next_multiple_of(matrix.block_rows())
}
