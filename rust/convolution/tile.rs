//! One tile of outputs, strip by strip.

use super::Epilogue;
use super::running::Segment;
use crate::simd::{Grid, Kernels, Places, Start, TileProduct};

/// What a tile is computed from.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) kernels: &'a dyn Kernels,
    pub(super) places: &'a Places,
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) segments: &'a [Segment<'a>],
    /// As it is laid out, from the tile's first place on.
    pub(super) input: &'a [f32],
    /// Outputs.
    pub(super) size: usize,
    /// How they lie in the input, and in their place.
    pub(super) grid: Grid,
}

impl Tile<'_> {
    /// Sums the tile of every row in `sums`, `[rows, size]`. They are finished there, or go to their
    /// place in other outputs, a row at each multiple of a stride.
    pub(super) fn multiply(&self, sums: &mut [f32], mut outputs: Option<(&mut [f32], usize)>) {
        let Self { kernels, places, epilogue, segments, input, size, grid } = *self;
        let together = Grid { output_pitch: size / grid.lines, ..grid };
        for strip in 0..places.count {
            let is_last = strip + 1 == places.count;
            let start = if strip == 0 { Start::Zero } else { Start::Output };
            let mut done = 0;
            for segment in segments {
                let rows = &segment.rows;
                let (first, len) = (segment.first + rows.start, rows.len());
                let mine = &mut sums[done * size..(done + len) * size];
                let product = TileProduct {
                    strip: segment.taps.strip(strip, rows.start, rows.end),
                    size,
                    input,
                    start,
                    finish: is_last.then(|| epilogue.finish.rows(first..first + len)),
                    stride: size,
                    grid: together,
                };
                match outputs.as_mut().filter(|_| is_last) {
                    Some((outputs, stride)) => {
                        let start = if strip == 0 { start } else { Start::Sums(mine) };
                        let product = TileProduct { start, stride: *stride, grid, ..product };
                        kernels.add_strip(&product, &mut outputs[done * *stride..]);
                    }
                    None => kernels.add_strip(&product, mine),
                }
                done += len;
            }
        }
    }
}
