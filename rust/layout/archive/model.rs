//! What the archive expects of a matrix, entry by entry.

use super::Form;
use super::kernels::{Densities, Kernels};
use super::learnt::{KEPT_SLOTS, Learnt};
use super::levels::Levels;
use super::network::{MAX_COLS, MIN_LINES, Network};
use super::references::{PIECE, References};
use super::repeats::Repeats;
use super::values::ValueContexts;
use crate::entropy::mixing::{BinaryCoder, LOGIT_ONE, log2_quarters};
use crate::error::Result;
use crate::interruption;
use crate::rows::filled;
use std::ops::Range;

/// The least logit that is not pruned for certain, where no reference keeps anything.
const CERTAIN_LOGIT: i32 = -4 * LOGIT_ONE;
/// The least density that is not, where there is no network.
const CERTAIN_DENSITY: usize = 6;

/// A density or magnitude beside what is expected, in quarters of an octave: 16 is as expected.
#[inline(always)]
pub(super) fn bucket(found: i32, expected: i32) -> usize {
    (found - expected + 16).clamp(0, 31) as usize
}

/// The state of a model, the same in an encoder and a decoder.
pub(super) struct Model<'a> {
    levels: &'a Levels,
    learnt: Learnt,
    kernels: Kernels,
    was_empty: bool,
    references: References,
    /// At the fast level.
    repeats: Option<Repeats>,
    /// Over the columns of a line, or over the positions of a kernel.
    network: Option<Network>,
    nlines: u64,
    /// Levels so far: of each column, and all; entries so far.
    columns: Vec<u64>,
    total: u64,
    entries: u64,
    /// The density of each column.
    densities: Vec<u8>,
    /// About 4·log2 of 16·j + 64, for column j.
    log_places: Vec<u8>,
    /// What the network's line, or kernel, keeps so far.
    kept: Vec<(u32, i16)>,
    last_values: Vec<u32>,
}

impl<'a> Model<'a> {
    /// A model of `nlines` lines of `ncols` entries, of a form, that starts from `learnt`.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn new(
        levels: &'a Levels,
        nlines: usize,
        ncols: usize,
        Form { taps, is_fast, .. }: Form,
        mut learnt: Learnt,
    ) -> Result<Self> {
        let mut log_places = filled(0, ncols, 1)?;
        for (j, log) in (0..).zip(&mut log_places) {
            *log = log2_quarters(16 * j + 64) as u8;
        }
        let network = if taps == 1 {
            (!is_fast && ncols <= MAX_COLS && nlines >= MIN_LINES).then(|| Network::new(ncols))
        } else {
            let known = learnt.kernels.take().filter(|network| network.ncols() == taps);
            (taps <= MAX_COLS).then(|| known.map_or_else(|| Network::new(taps), Ok))
        };
        Ok(Self {
            levels,
            learnt,
            kernels: Kernels::new(ncols, taps)?,
            was_empty: false,
            references: References::new(nlines, ncols)?,
            repeats: is_fast.then(Repeats::new),
            network: network.transpose()?,
            nlines: 0,
            columns: filled(0, ncols, 1)?,
            total: 0,
            entries: 0,
            densities: filled(16, ncols, 1)?,
            log_places,
            kept: Vec::new(),
            last_values: filled(0, ncols, 1)?,
        })
    }

    /// What it learnt, as a start for another matrix.
    pub(super) fn into_learnt(mut self) -> Learnt {
        self.learnt.calm();
        if self.kernels.taps > 1 {
            self.learnt.kernels = self.network;
        }
        self.learnt
    }

    /// Codes a line of entries, as [`Levels`] numbers them.
    ///
    /// # Errors
    /// `Truncated` when a decoder's bytes end long before; `LimitExceeded` for memory.
    pub(super) fn code_line<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        line: &mut [u32],
    ) -> Result<()> {
        interruption::check()?;
        let is_empty = !C::DECODES && line.iter().all(|&entry| entry == 0);
        let slot = &mut self.learnt.empty[usize::from(self.was_empty)];
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
        if let Some(repeats) = &mut self.repeats {
            repeats.start_line();
        }
        self.start_network();
        let mut state = LineState::new(self.mean());
        for start in (0..line.len()).step_by(PIECE) {
            let piece = start..line.len().min(start + PIECE);
            if !self.code_repeat(coder, line, piece.clone(), &mut state) {
                self.references.start_piece(start / PIECE);
                self.code_piece(coder, line, piece.clone(), &mut state);
            }
            if piece.end < line.len() {
                self.references.end_piece(start / PIECE, &line[piece]);
            }
        }
        coder.check()?;
        self.end_network();
        self.references.end_line(line)?;
        self.end_line(state.level, line);
        Ok(())
    }

    fn start_network(&mut self) {
        self.kept.clear();
        if let Some(network) = &mut self.network {
            network.start_line();
        }
    }

    fn end_network(&mut self) {
        if let Some(network) = &mut self.network {
            network.end_line(&self.kept);
        }
    }

    /// About 4·log2 of 64 times the mean level of an entry so far.
    fn mean(&self) -> i32 {
        log2_quarters((self.total * 64 + 10_240) / (self.entries + 16) + 1)
    }

    /// Codes whether a piece is the best reference's; if so, that is all of it.
    fn code_repeat<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        line: &mut [u32],
        piece: Range<usize>,
        state: &mut LineState,
    ) -> bool {
        let Some(repeats) = &mut self.repeats else { return false };
        let entries = &mut line[piece.clone()];
        let Some(best) = self.references.best(piece.start / PIECE, entries.len()) else {
            return false;
        };
        if !repeats.code(coder, &best, entries) {
            return false;
        }
        for (col, entry) in piece.zip(entries) {
            if *entry != 0 {
                let level = self.levels.level(*entry);
                self.columns[col] += level;
                self.last_values[col] = *entry;
                state.last = *entry;
                state.add(level);
            }
            state.flags = state.flags << 1 | usize::from(*entry != 0);
        }
        true
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
            let place = self.kernels.place(col);
            let (has_kernels, position) = (self.kernels.taps > 1, place.position);
            if position == 0 && has_kernels {
                state.kernel = 0;
                if col > 0 {
                    self.end_network();
                    self.start_network();
                }
            }
            let line_density =
                bucket(state.log_level, i32::from(self.log_places[col]) + state.mean - 40);
            let column_density = usize::from(self.densities[col]);
            let Densities { channel: density, kernel, neighbours } = if has_kernels {
                self.kernels.densities(line, place, self.nlines - 1, state.kernel, state.mean)
            } else {
                Densities { channel: column_density, kernel: 0, neighbours: 0 }
            };
            let unit = if has_kernels { position } else { col };
            let (logit, level) = match &self.network {
                Some(network) => (network.logit(unit), network.level(unit)),
                None => (0, 0),
            };
            let logit_bucket = ((logit + 2048) >> 7) as usize;
            let is_certain = !self.references.is_kept(at)
                && if !has_kernels && self.network.is_some() {
                    logit < CERTAIN_LOGIT
                } else {
                    density < CERTAIN_DENSITY
                };
            let given = u32::from(line[col] != 0);
            if is_certain {
                let slot = &mut self.learnt.certain[logit_bucket * 32 + density];
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
                let by_place = if has_kernels {
                    KEPT_SLOTS[4] + (kernel * 64 + position.min(63)) * 8 + neighbours
                } else {
                    KEPT_SLOTS[3] + ((2 * col + usize::from(a != 0)) & 0x7fff)
                };
                let slots = [
                    KEPT_SLOTS[0] + logit_bucket * 8 + held,
                    KEPT_SLOTS[1] + (density * 32 + line_density) * 2 + usize::from(a != 0),
                    KEPT_SLOTS[2] + (state.flags & 15) * 8 + held,
                    by_place,
                    0,
                ];
                let sets = [held * 9 + position.min(8), line_density];
                let map = logit_bucket * 8 + held;
                bit = self.learnt.kept.code(coder, &slots, logit, sets, map, given);
            }
            state.flags = state.flags << 1 | bit as usize;
            if bit == 0 {
                line[col] = 0;
            } else {
                let levels = self.levels;
                let contexts = ValueContexts {
                    hints: [a, b, c].map(u32::from),
                    expected: (((level + 64) >> 6).clamp(-120, 120) + 128) as u32,
                    densities: [density, line_density, column_density],
                    kernel,
                    position: position.min(8),
                    around: has_kernels.then(|| self.kernels.around(levels, line, place)),
                    last: state.last,
                    last_in_column: self.last_values[col],
                };
                let entry = self.learnt.values.code(coder, levels, &contexts, line[col]);
                line[col] = entry;
                self.last_values[col] = entry;
                state.last = entry;
                let (level, signed) = (levels.level(entry), levels.signed(entry));
                if let Some(network) = &mut self.network {
                    network.keep(unit, signed);
                }
                self.kept.push((unit as u32, signed));
                self.columns[col] += level;
                self.kernels.add(place, level);
                state.add(level);
            }
            self.references.learn(at, line[col]);
        }
    }

    fn end_line(&mut self, level: u64, line: &[u32]) {
        self.total += level;
        let expected = log2_quarters(16 * self.nlines + 8) + self.mean() - 40;
        for (density, &column) in self.densities[..line.len()].iter_mut().zip(&self.columns) {
            *density = bucket(log2_quarters(column + 5), expected) as u8;
        }
    }
}

/// What is known of a line as it is coded.
struct LineState {
    level: u64,
    log_level: i32,
    /// Levels of this kernel.
    kernel: u64,
    /// The value kept last.
    last: u32,
    /// A bit for each entry so far, the last one lowest.
    flags: usize,
    mean: i32,
}

impl LineState {
    fn new(mean: i32) -> Self {
        Self { level: 0, log_level: log2_quarters(32), kernel: 0, last: 0, flags: 0, mean }
    }

    fn add(&mut self, level: u64) {
        self.level += level;
        self.kernel += level;
        self.log_level = log2_quarters(self.level + 32);
    }
}
