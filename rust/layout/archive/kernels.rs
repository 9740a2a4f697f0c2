//! What the kernels of a convolution tell: their positions lie next to each other in a line.
//!
//! ```text
//!   kernel of 3 × 3 in a line: │ 0 1 2 3 4 5 6 7 8 │     5 has 1 above (a side apart), 4 beside
//! ```

use super::levels::Levels;
use super::model::bucket;
use crate::entropy::mixing::log2_quarters;
use crate::error::Result;
use crate::rows::filled;

/// The kernels of the lines of one matrix.
#[derive(Debug)]
pub(super) struct Kernels {
    /// Positions of a kernel; 1 without kernels.
    pub(super) taps: usize,
    /// The length of a side.
    side: usize,
    /// Levels so far of each channel.
    channels: Vec<u64>,
}

/// A place in a line of kernels.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) col: usize,
    pub(super) channel: usize,
    pub(super) position: usize,
}

/// The densities of a place: of its channel, of its kernel so far, and which neighbours are kept.
pub(super) struct Densities {
    pub(super) channel: usize,
    pub(super) kernel: usize,
    pub(super) neighbours: usize,
}

impl Kernels {
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn new(ncols: usize, taps: usize) -> Result<Self> {
        let side = if taps.isqrt().pow(2) == taps { taps.isqrt() } else { taps };
        Ok(Self { taps, side, channels: filled(0, ncols / taps, 1)? })
    }

    #[inline(always)]
    pub(super) fn place(&self, col: usize) -> Place {
        if self.taps == 1 {
            return Place { col, channel: col, position: 0 };
        }
        Place { col, channel: col / self.taps, position: col % self.taps }
    }

    /// Takes in the level of a kept entry.
    #[inline(always)]
    pub(super) fn add(&mut self, place: Place, level: u64) {
        self.channels[place.channel] += level;
    }

    /// The entry `apart` columns before a place, if that is in the kernel.
    #[inline(always)]
    fn before(line: &[u32], place: Place, apart: usize, is_there: bool) -> u32 {
        if is_there { line[place.col - apart] } else { 0 }
    }

    /// `before` lines, in which the kernel at hand holds `kernel` so far; `mean` is that of the model.
    #[inline(always)]
    pub(super) fn densities(
        &self,
        line: &[u32],
        place: Place,
        before: u64,
        kernel: u64,
        mean: i32,
    ) -> Densities {
        let Place { col, channel, position } = place;
        let seen = before * self.taps as u64 + position as u64;
        let channel = bucket(
            log2_quarters(self.channels[channel] + 10),
            log2_quarters(16 * seen + 16) + mean - 40,
        );
        let kernel = if position == 0 {
            0
        } else {
            let found = log2_quarters(kernel + 2);
            (found - log2_quarters(16 * position as u64 + 64) - mean + 56).clamp(0, 30) as usize + 1
        };
        let is_kept =
            |apart, is_there| usize::from(Self::before(line, place, apart, is_there) != 0);
        let neighbours = is_kept(self.side, position >= self.side) * 4
            + is_kept(1, !position.is_multiple_of(self.side)) * 2
            + is_kept(self.taps, col >= self.taps);
        Densities { channel, kernel, neighbours }
    }

    /// What is around a place in its kernel, for its value: all of it, and what touches its sides.
    #[inline(always)]
    pub(super) fn around(&self, levels: &Levels, line: &[u32], place: Place) -> [u32; 2] {
        let (side, position) = (self.side, place.position);
        let (has_above, across) = (position >= side, position % side);
        let level =
            |apart, is_there| i32::from(levels.signed(Self::before(line, place, apart, is_there)));
        let above = level(side, has_above);
        let beside = level(1, across > 0);
        let corners = level(side + 1, has_above && across > 0)
            + level(side - 1, has_above && across + 1 < side);
        [
            step(2 * (above + beside) + corners) * 16 + position.min(8) as u32,
            step(above) * 32 + step(beside),
        ]
    }
}

/// A signed level in steps of half an octave, up to 15 in either direction, above 16.
#[inline(always)]
fn step(level: i32) -> u32 {
    let size = (log2_quarters(u64::from(level.unsigned_abs() / 8 + 1)) + 1) / 2;
    (16 + level.signum() * size.min(15)) as u32
}
