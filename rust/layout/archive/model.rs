//! What the archive expects of a matrix, entry by entry.

use super::levels::Levels;
use super::network::{MAX_COLS, MIN_LINES, Network};
use super::references::{PIECE, References};
use super::values::{ValueContexts, ValueModel};
use crate::entropy::mixing::{
    BinaryCoder, LOGIT_ONE, Predictor, PredictorSize, Slot, log2_quarters,
};
use crate::error::Result;
use crate::rows::filled;
use std::ops::Range;

/// Inputs of the mixer of kept or pruned: four slots and the network's logit.
const KEPT_INPUTS: usize = 5;
/// First slots of the contexts of kept or pruned.
const KEPT_SLOTS: [usize; 5] = [0, 256, 2304, 2432, 2432 + 32_768];
/// The least logit that is not pruned for certain, where no reference keeps anything.
const CERTAIN_LOGIT: i32 = -4 * LOGIT_ONE;
/// The least density that is not, where there is no network.
const CERTAIN_DENSITY: usize = 6;

/// A density or magnitude beside what is expected, in quarters of an octave: 16 is as expected.
#[inline(always)]
fn bucket(found: i32, expected: i32) -> usize {
    (found - expected + 16).clamp(0, 31) as usize
}

/// The state of a model, the same in an encoder and a decoder.
#[derive(Debug)]
pub(super) struct Model<'a> {
    levels: &'a Levels,
    /// Positions of a convolution's kernel, next to each other in a line; 1 without.
    taps: usize,
    /// The length of a side of the kernel.
    side: usize,
    kept: Predictor<KEPT_INPUTS>,
    values: ValueModel,
    /// Pruned for certain, by logit and density.
    certain: Vec<Slot>,
    /// Lines that keep nothing, by whether the one before does.
    empty: [Slot; 2],
    was_empty: bool,
    references: References,
    network: Option<Network>,
    nlines: u64,
    /// Magnitudes so far: of each column, each channel, and all; entries so far.
    columns: Vec<u64>,
    channels: Vec<u64>,
    total: u64,
    entries: u64,
    /// The density of each column.
    densities: Vec<u8>,
    /// About 4·log2 of 16·j + 64, for column j.
    log_places: Vec<u8>,
    kept_cols: Vec<(u32, i16)>,
    last_values: Vec<u32>,
}

impl<'a> Model<'a> {
    /// A model of `nlines` lines of `ncols` entries.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn new(
        levels: &'a Levels,
        nlines: usize,
        ncols: usize,
        taps: usize,
    ) -> Result<Self> {
        let mut log_places = filled(0, ncols, 1)?;
        for (j, log) in (0..).zip(&mut log_places) {
            *log = log2_quarters(16 * j + 64) as u8;
        }
        Ok(Self {
            levels,
            taps,
            side: if taps.isqrt().pow(2) == taps { taps.isqrt() } else { taps },
            kept: Predictor::new(PredictorSize {
                slots: KEPT_SLOTS[4],
                sets: [32 * 9, 32],
                maps: 256,
            }),
            values: ValueModel::new(levels.symbols.len()),
            certain: vec![Slot::new(1 << 11); 32 * 32],
            empty: [Slot::new(1 << 10), Slot::new(1 << 15)],
            was_empty: false,
            references: References::new(nlines, ncols)?,
            network: (ncols <= MAX_COLS && nlines >= MIN_LINES)
                .then(|| Network::new(ncols))
                .transpose()?,
            nlines: 0,
            columns: filled(0, ncols, 1)?,
            channels: filled(0, ncols / taps, 1)?,
            total: 0,
            entries: 0,
            densities: filled(16, ncols, 1)?,
            log_places,
            kept_cols: Vec::new(),
            last_values: filled(0, ncols, 1)?,
        })
    }

    /// Codes a line of entries: 0 where pruned, else the value's rank plus 1.
    ///
    /// # Errors
    /// `Truncated` when a decoder's bytes end long before; `LimitExceeded` for memory.
    pub(super) fn code_line<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        line: &mut [u32],
    ) -> Result<()> {
        let is_empty = !C::DECODES && line.iter().all(|&entry| entry == 0);
        let slot = &mut self.empty[usize::from(self.was_empty)];
        self.was_empty = slot.code(coder, is_empty.into()) == 1;
        self.nlines += 1;
        self.entries += line.len() as u64;
        if self.was_empty {
            line.fill(0);
            coder.check()?;
            self.end_line(0, line);
            return Ok(());
        }
        self.references.start_line();
        if let Some(network) = &mut self.network {
            network.start_line();
        }
        self.kept_cols.clear();
        let mut state = LineState::new(self.mean());
        for start in (0..line.len()).step_by(PIECE) {
            let piece = start..line.len().min(start + PIECE);
            self.references.start_piece(start / PIECE);
            self.code_piece(coder, line, piece.clone(), &mut state);
            if piece.end < line.len() {
                self.references.end_piece(start / PIECE, &line[piece]);
            }
        }
        coder.check()?;
        if let Some(network) = &mut self.network {
            network.end_line(&self.kept_cols);
        }
        self.references.end_line(line)?;
        self.end_line(state.magnitude, line);
        Ok(())
    }

    /// About 4·log2 of 64 times the mean magnitude of an entry so far.
    fn mean(&self) -> i32 {
        log2_quarters((self.total * 64 + 10_240) / (self.entries + 16) + 1)
    }

    fn code_piece<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        line: &mut [u32],
        piece: Range<usize>,
        state: &mut LineState,
    ) {
        for col in piece.clone() {
            let at = col - piece.start;
            let (channel, position) =
                if self.taps == 1 { (col, 0) } else { (col / self.taps, col % self.taps) };
            if position == 0 {
                state.kernel = 0;
            }
            let line_density =
                bucket(state.log_magnitude, i32::from(self.log_places[col]) + state.mean - 40);
            let column_density = usize::from(self.densities[col]);
            let (density, kernel, neighbours) = if self.taps == 1 {
                (column_density, 0, 0)
            } else {
                self.kernel_contexts(line, col, channel, position, state)
            };
            let (logit, level) = match &self.network {
                Some(network) => (network.logit(col), network.level(col)),
                None => (0, 0),
            };
            let logit_bucket = ((logit + 2048) >> 7) as usize;
            let is_certain = !self.references.is_kept(at)
                && if self.network.is_some() {
                    logit < CERTAIN_LOGIT
                } else {
                    density < CERTAIN_DENSITY
                };
            let given = u32::from(line[col] != 0);
            if is_certain {
                let slot = &mut self.certain[logit_bucket * 32 + density];
                if slot.code(coder, given) == 0 {
                    line[col] = 0;
                    state.flags <<= 1;
                    continue;
                }
            }
            let [a, b, c] = self.references.hints(at);
            let held = usize::from(a != 0) * 4 + usize::from(b != 0) * 2 + usize::from(c != 0);
            let mut bit = 1;
            if !is_certain {
                let by_place = if self.taps == 1 {
                    (2 * col + usize::from(a != 0)) & 0x7fff
                } else {
                    (kernel * 64 + position.min(63)) * 8 + neighbours
                };
                let slots = [
                    KEPT_SLOTS[0] + logit_bucket * 8 + held,
                    KEPT_SLOTS[1] + (density * 32 + line_density) * 2 + usize::from(a != 0),
                    KEPT_SLOTS[2] + (state.flags & 15) * 8 + held,
                    KEPT_SLOTS[3] + by_place,
                    0,
                ];
                let sets = [held * 9 + position.min(8), line_density];
                let map = logit_bucket * 8 + held;
                bit = self.kept.code(coder, &slots, logit, sets, map, given);
            }
            state.flags = state.flags << 1 | bit as usize;
            if bit == 0 {
                line[col] = 0;
            } else {
                let contexts = ValueContexts {
                    hints: [a, b, c].map(u32::from),
                    expected: (((level + 64) >> 6).clamp(-120, 120) + 128) as u32,
                    densities: [density, line_density, column_density],
                    kernel,
                    position: position.min(8),
                    last: state.last,
                    last_in_column: self.last_values[col],
                };
                let levels = self.levels;
                let entry = self.values.code(coder, levels, &contexts, line[col]);
                line[col] = entry;
                self.last_values[col] = entry;
                state.last = entry;
                let (magnitude, signed) =
                    (u64::from(levels.magnitudes[entry as usize]), levels.signed(entry));
                if let Some(network) = &mut self.network {
                    network.keep(col, signed);
                }
                self.kept_cols.push((col as u32, signed));
                self.columns[col] += magnitude;
                self.channels[channel] += magnitude;
                state.add(magnitude);
            }
            self.references.learn(at, line[col]);
        }
    }

    /// The density of the channel, of this kernel so far, and which neighbours are kept.
    #[inline(always)]
    fn kernel_contexts(
        &self,
        line: &[u32],
        col: usize,
        channel: usize,
        position: usize,
        state: &LineState,
    ) -> (usize, usize, usize) {
        let seen = (self.nlines - 1) * self.taps as u64 + position as u64;
        let density = bucket(
            log2_quarters(self.channels[channel] + 10),
            log2_quarters(16 * seen + 16) + state.mean - 40,
        );
        let kernel = if position == 0 {
            0
        } else {
            let found = log2_quarters(state.kernel + 2);
            (found - log2_quarters(16 * position as u64 + 64) - state.mean + 56).clamp(0, 30)
                as usize
                + 1
        };
        let is_kept =
            |apart: usize, is_there: bool| usize::from(is_there && line[col - apart] != 0);
        let neighbours = is_kept(self.side, position >= self.side) * 4
            + is_kept(1, !position.is_multiple_of(self.side)) * 2
            + is_kept(self.taps, col >= self.taps);
        (density, kernel, neighbours)
    }

    fn end_line(&mut self, magnitude: u64, line: &[u32]) {
        self.total += magnitude;
        let expected = log2_quarters(16 * self.nlines + 8) + self.mean() - 40;
        for (density, &column) in self.densities[..line.len()].iter_mut().zip(&self.columns) {
            *density = bucket(log2_quarters(column + 5), expected) as u8;
        }
    }
}

/// What is known of a line as it is coded.
struct LineState {
    magnitude: u64,
    log_magnitude: i32,
    /// Magnitudes of this kernel.
    kernel: u64,
    /// The value kept last.
    last: u32,
    /// A bit for each entry so far, the last one lowest.
    flags: usize,
    mean: i32,
}

impl LineState {
    fn new(mean: i32) -> Self {
        Self { magnitude: 0, log_magnitude: log2_quarters(32), kernel: 0, last: 0, flags: 0, mean }
    }

    fn add(&mut self, magnitude: u64) {
        self.magnitude += magnitude;
        self.kernel += magnitude;
        self.log_magnitude = log2_quarters(self.magnitude + 32);
    }
}
