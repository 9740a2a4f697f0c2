//! One call of a plan: blocks of rows, groups of images, tiles, strips, and who computes which.

use super::columns::Columns;
use super::interleaved::Interleaved;
use super::maps::Maps;
use super::scratch::{Scratch, TileMemory, lend};
use super::tile::Tile;
use super::{Epilogue, Plan, Weights, density, tile_size};
use crate::error::Result;
use crate::interruption;
use crate::lines::Lines;
use crate::matrix::{CompressedMatrix, zip_chunks};
use crate::pool::Lent;
use crate::rows::RowBlock;
use crate::simd::{Decoded, Filling, Grid, Kernels, Places, Taps};
use crate::threads;
use std::ops::Range;

/// So much smaller are blocks where they need not serve several groups of images.
const SMALLER_BLOCKS: usize = 4;
/// Multiply–adds that a thread is worth.
const THREAD_PRODUCTS: usize = 1 << 19;
/// Multiply–adds that decoding a weight takes as long as.
const DECODING_PRODUCTS: usize = 24;

impl Plan {
    /// Computes the output `y` `[images, nrows, height, width]` from the input `x`, each interleaved
    /// where the plan says so.
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
        let halves = self.interleaved.as_ref().is_some_and(|interleaved| interleaved.sides.halves);
        let outputs = self.output().iter().product::<usize>() / if halves { 4 } else { 1 };
        assert_eq!(y.len(), outputs, "conv: output");
        if y.is_empty() {
            return Ok(());
        }
        let [height, width] = self.unfolding.outputs();
        let outputs = self.input[0] * height * width;
        let decoding = if let Weights::Stored(_) = weights { DECODING_PRODUCTS } else { 0 };
        let work = self.nnz.saturating_mul(outputs + decoding) / THREAD_PRODUCTS;
        if let (Some(winograd), Weights::Stored(matrix)) = (&self.winograd, weights)
            && density::all_moderate(x)
        {
            let threads = threads.min(work).max(1);
            return winograd.run(kernels, matrix, x, y, epilogue, threads);
        }
        let dense = self.dense.as_ref().filter(|_| {
            // A pruned weight contributes nothing, so it must not meet what is not finite.
            matches!(weights, Weights::Stored(_)) && density::all_finite(x)
        });
        let places = dense.map_or(&self.places, |(places, _)| places);
        let (is_dense, threads) = (dense.is_some(), threads.min(work).max(1));
        let interleaved = self.interleaved.as_ref().filter(|_| !is_dense);
        let columns = self.columns.as_ref().filter(|_| !is_dense);
        let call =
            Call { kernels, weights, places, is_dense, interleaved, columns, epilogue, threads };
        let decoded_rows = dense.map_or(self.block_rows, |&(_, rows)| rows);
        let groups = self.input[0].div_ceil(self.group(&call));
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
    pub(super) fn decode_taps(
        &self,
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        rows: Range<usize>,
        block: &mut RowBlock,
        taps: &mut Taps,
    ) -> Result<()> {
        let first = rows.start;
        if let Some((runs, values)) = matrix.runs(&rows)
            && let Some(mut filling) = Filling::new(taps, kernels, &self.places, first)
        {
            let nrows = rows.len();
            runs.for_each_run(kernels, rows, &mut |run| {
                filling.push(run.row, run.start, run.positions, run.ranks);
            })?;
            filling.finish(nrows, values.as_slice());
            return Ok(());
        }
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
    ) -> Result<Vec<(Range<usize>, Lent<Scratch>)>> {
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
        let images = self.output_images();
        let area = images * y.len() / self.input[0] / self.nrows;
        let unit = match call.weights {
            Weights::Stored(matrix) => matrix.block_rows(),
            Weights::Scheduled(_) => 8,
        };
        let step = match &self.dense {
            Some((_, rows)) if call.is_dense => *rows,
            _ if call.interleaved.is_some() => self.block_rows,
            _ => (self.block_rows / SMALLER_BLOCKS).next_multiple_of(unit),
        };
        let work = |rows: Range<usize>, mut maps: Maps<'_>| {
            let mut scratch = lend();
            let matrix = match call.weights {
                Weights::Stored(matrix) => matrix,
                Weights::Scheduled(taps) => {
                    let memory = &mut scratch.tiles;
                    let segment = Segment { taps, first: 0, rows };
                    return self.tiles(call, &[segment], unfolded, memory, &mut maps);
                }
            };
            for start in rows.clone().step_by(step) {
                let mine = start..rows.end.min(start + step);
                self.decode(call, matrix, mine.clone(), &mut scratch)?;
                let Scratch { taps, tiles: memory, .. } = &mut *scratch;
                let segment = Segment { taps, first: start, rows: 0..mine.len() };
                maps.first = start - rows.start;
                self.tiles(call, &[segment], unfolded, memory, &mut maps)?;
            }
            Ok(())
        };
        if call.threads == 1 {
            return work(0..self.nrows, Maps::whole(y, self.nrows * area, area));
        }
        let ranges = threads::split(self.nrows, call.threads, unit);
        let items = self.share_rows(&ranges, area, y);
        threads::for_each(call.threads, items, |(rows, maps)| work(rows, maps))
    }

    /// The outputs of each range of rows, `area` numbers a row, one slice for each image or for those
    /// whose outputs lie together.
    fn share_rows<'y>(
        &self,
        ranges: &[Range<usize>],
        area: usize,
        y: &'y mut [f32],
    ) -> Vec<(Range<usize>, Maps<'y>)> {
        let mut items: Vec<_> = ranges.iter().map(|rows| (rows.clone(), Vec::new())).collect();
        for mut y in y.chunks_exact_mut(self.nrows * area) {
            let mut at = 0;
            for (rows, maps) in &mut items {
                let (mine, rest) = y[(rows.start - at) * area..].split_at_mut(rows.len() * area);
                (y, at) = (rest, rows.end);
                maps.push(mine);
            }
        }
        items.into_iter().map(|(rows, maps)| (rows, Maps::parts(maps, area))).collect()
    }

    /// Images whose outputs lie together.
    fn output_images(&self) -> usize {
        self.interleaved.as_ref().map_or(1, |interleaved| interleaved.sides.output_images())
    }

    /// Images of a group.
    fn group(&self, call: &Call<'_>) -> usize {
        match (call.interleaved, call.columns) {
            (Some(interleaved), _) => interleaved.group,
            (_, Some(_)) => 1,
            _ => self.unfolding.group,
        }
    }

    /// Unfolds one group of images, unless bands are laid out later; threads share the channels.
    fn unfold<'s>(&self, call: &Call<'_>, x: &'s [f32], lines: &'s mut Lines) -> Result<&'s [f32]> {
        if call.interleaved.is_some() {
            return Ok(x);
        }
        let (channel, len) = match call.columns {
            Some(columns) => (columns.channel(), columns.len()),
            None => (self.unfolding.channel, self.unfolding.len()),
        };
        let unfolded = lines.at_least(len)?;
        let filled = &mut unfolded[..self.input[1] * channel];
        let fill = |(channels, out): (Range<usize>, &mut [f32])| {
            match call.columns {
                Some(columns) => columns.fill(call.kernels, x, channels.start, out),
                None => self.unfolding.fill(call.kernels, x, channels, out),
            }
            Ok(())
        };
        if call.threads == 1 {
            fill((0..self.input[1], filled))?;
            return Ok(unfolded);
        }
        let parts = threads::split(self.input[1], call.threads, 1);
        threads::for_each(call.threads, zip_chunks(parts, filled, channel), fill)?;
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
        let (images, group) = (self.input[0], self.group(call));
        let (x_image, y_image) = (x.len() / images, y.len() / images);
        let area = y_image / self.nrows;
        let first = segments[0].first + segments[0].rows.start;
        let alone = Call { threads: 1, ..*call };
        let work = |(number, y): (usize, &mut [f32])| {
            let mut scratch = lend();
            let Scratch { unfolded, tiles: memory, .. } = &mut *scratch;
            let x = &x[number * group * x_image..][..y.len() / y_image * x_image];
            let unfolded = self.unfold(&alone, x, unfolded)?;
            let together = self.output_images();
            let mut maps = Maps::whole(y, together * y_image, together * area);
            maps.first = first;
            self.tiles(call, segments, unfolded, memory, &mut maps)
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
        let (images, group) = (self.input[0], self.group(call));
        let (x_image, y_image) = (x.len() / images, y.len() / images);
        let area = self.output_images() * y_image / self.nrows;
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
            let items = self.share_rows(&ranges, area, y);
            threads::for_each(call.threads, items, |(rows, mut maps)| {
                let mut scratch = lend();
                let memory = &mut scratch.tiles;
                let holds = |s: &&Segment<'_>| s.first + s.rows.start <= rows.start;
                let segment = segments.iter().rev().find(holds).unwrap_or(&segments[0]);
                let within = rows.start - segment.first..rows.end - segment.first;
                let segment = Segment { rows: within, ..*segment };
                self.tiles(call, &[segment], unfolded, memory, &mut maps)
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
        memory: &mut TileMemory,
        maps: &mut Maps<'_>,
    ) -> Result<()> {
        let tile = Tile {
            kernels: call.kernels,
            places: call.places,
            epilogue: call.epilogue,
            segments,
            input: unfolded,
            size: self.tile,
            grid: Grid::LINE,
        };
        if let Some(interleaved) = call.interleaved {
            return interleaved.multiply(&tile, memory, maps);
        }
        if let Some(columns) = call.columns {
            return columns.multiply(&tile, memory, maps);
        }
        let TileMemory { sums, runs, .. } = memory;
        let [height, width] = self.unfolding.outputs();
        let area = height * width;
        let nrows: usize = segments.iter().map(|segment| segment.rows.len()).sum();
        let sums = sums.at_least(nrows * self.tile)?;
        let positions = self.unfolding.positions();
        let mut start = 0;
        while start < positions {
            interruption::check()?;
            let size = tile_size(positions - start, self.tile, call.is_dense);
            // The last strip stores outputs in their place, where a whole tile of them is one run.
            let is_direct = self.unfolding.is_one_run() && start + size <= positions;
            let sums = &mut sums[..nrows * size];
            let outputs = maps.get(0).filter(|_| is_direct).map(|map| (&mut map[start..], area));
            Tile { input: &unfolded[start..], size, ..tile }.multiply(sums, outputs);
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

/// What one call of [`Plan::run`] is given.
#[derive(Clone, Copy)]
struct Call<'a> {
    kernels: &'static dyn Kernels,
    weights: Weights<'a>,
    places: &'a Places,
    /// Whether stored weights are decoded into dense rows.
    is_dense: bool,
    /// How the input is laid out, where images are innermost.
    interleaved: Option<&'a Interleaved>,
    /// How it is laid out, where maps are cut into columns.
    columns: Option<&'a Columns>,
    epilogue: &'a Epilogue<'a>,
    threads: usize,
}

/// Rows that follow one another.
pub(super) struct Segment<'a> {
    pub(super) taps: &'a Taps,
    /// The matrix' row that is the first one of `taps`.
    pub(super) first: usize,
    /// Of `taps`.
    pub(super) rows: Range<usize>,
}
