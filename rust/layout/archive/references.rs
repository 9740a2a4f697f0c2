//! Earlier lines that are like the one being coded, found by what is known of it so far.
//!
//! ```text
//!   piece 0: the 16 lines stored last        piece 1 …: the 16 alive with the least penalties
//!   at each entry: what the three best of the 16 hold there
//!   after a piece:  penalty += 7 · (kept in one of the two) + 4 · (kept in both, unlike)
//!                   alive: those within 12 of the sixteenth least
//! ```
//!
//! Nothing of this is stored: a decoder finds the same lines. Unlike is told by two bits of an
//! entry, the low one of its number and the sign with the next one, from bit planes of 32 columns.
//! Inside a piece the 16 are scored entry by entry. A line equal to its best reference takes its
//! place, so that repeated lines are compared once.
//!
//! Pieces of 16 columns and a margin of 20 gave 1 to 2 % less on layers whose rows repeat, at half
//! the speed; lines that are nearly equal taking each other's place gave half again the speed, and
//! up to 3 % more.

use crate::error::{Error, ErrorKind, Result};
use crate::simd::{self, Kernels, alike::ACTIVE, alike::Planes};

/// Columns of a piece.
pub(super) const PIECE: usize = 32;
/// The most lines that are remembered, and the most entries of them.
const MAX_LINES: usize = 4096;
const MAX_ENTRIES: usize = 1 << 26;
/// A line lives on while its penalty is within this of the sixteenth least.
const MARGIN: u32 = 12;
/// Scores are told apart up to this one when a piece starts.
const MAX_SCORE: u32 = 200;

/// A piece of the best reference.
pub(super) struct Best<'a> {
    /// Its entries; 65,535 stands for what is more.
    pub(super) entries: &'a [u16],
    /// The penalty of its line so far.
    pub(super) penalty: u32,
}

fn planes(entries: &[u32]) -> Planes {
    let mut planes = [0; 3];
    for (i, &entry) in entries.iter().enumerate() {
        planes[0] |= u32::from(entry != 0) << i;
        planes[1] |= (entry >> 1 & 1) << i;
        planes[2] |= ((entry ^ entry >> 2) & 1) << i;
    }
    planes
}

/// The lines so far, and how the current one compares.
pub(super) struct References {
    kernels: &'static dyn Kernels,
    ncols: usize,
    window: usize,
    nlines: usize,
    /// The place of the line stored last, and of the one that went in a place of its own last.
    last: usize,
    newest: usize,
    entries: Vec<u16>,
    /// For each piece the planes of each line.
    planes: Vec<Vec<Planes>>,
    /// Penalties and places of the active lines, in order, and of the others alive.
    keys: [u64; ACTIVE],
    others: Vec<u64>,
    nactive: usize,
    active: [u16; ACTIVE],
    scores: [u16; ACTIVE],
    /// The entries of the active lines in this piece, by column; only where one is kept.
    columns: [[u16; ACTIVE]; PIECE],
    /// A bit for each column of the piece that an active line keeps.
    kept: u32,
    best: [usize; 3],
    is_scored: bool,
}

impl References {
    /// Room for what a matrix of `nlines` lines of `ncols` entries may refer to.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn new(nlines: usize, ncols: usize) -> Result<Self> {
        let (npieces, mut planes) = (ncols.div_ceil(PIECE), Vec::new());
        planes.try_reserve_exact(npieces).map_err(|_| no_memory(1, ncols))?;
        planes.resize(npieces, Vec::new());
        Ok(Self {
            kernels: simd::active()?,
            ncols,
            window: (MAX_ENTRIES / ncols.max(1)).clamp(ACTIVE, MAX_LINES).min(nlines.max(1)),
            nlines: 0,
            last: 0,
            newest: 0,
            entries: Vec::new(),
            planes,
            keys: [u64::MAX; ACTIVE],
            others: Vec::new(),
            nactive: 0,
            active: [0; ACTIVE],
            scores: [0; ACTIVE],
            columns: [[0; ACTIVE]; PIECE],
            kept: 0,
            best: [0, 1, 2],
            is_scored: false,
        })
    }

    /// Starts a line: its references are the lines at the last places, from that stored last back.
    pub(super) fn start_line(&mut self) {
        self.nactive = self.nlines.min(ACTIVE);
        for i in 0..self.nactive {
            self.active[i] = ((self.last + self.nlines - i) % self.nlines) as u16;
        }
        self.scores = std::array::from_fn(|i| if i < self.nactive { 0 } else { u16::MAX });
    }

    /// Takes up the columns of a piece.
    pub(super) fn start_piece(&mut self, piece: usize) {
        let (planes, active) = (&self.planes[piece], &self.active[..self.nactive]);
        self.kept = active.iter().fold(0, |kept, &line| kept | planes[usize::from(line)][0]);
        let mut lines = [[0; PIECE]; ACTIVE];
        for (line, &place) in lines.iter_mut().zip(active) {
            let entries = &self.entries[usize::from(place) * self.ncols + piece * PIECE..];
            match entries.first_chunk() {
                Some(entries) => *line = *entries,
                None => line[..entries.len()].copy_from_slice(entries),
            }
        }
        ones_of(self.kept)
            .for_each(|at| self.columns[at] = std::array::from_fn(|line| lines[line][at]));
        self.is_scored = false;
    }

    /// A piece, of `len` columns, of the best reference, if there is one.
    pub(super) fn best(&self, piece: usize, len: usize) -> Option<Best<'_>> {
        let &line = self.active[..self.nactive].first()?;
        let penalty = if piece == 0 { 0 } else { penalty(self.keys[0]) };
        let entries = &self.entries[usize::from(line) * self.ncols + piece * PIECE..][..len];
        Some(Best { entries, penalty })
    }

    /// Whether an active line keeps column `at` of the piece.
    #[inline(always)]
    pub(super) fn is_kept(&self, at: usize) -> bool {
        self.kept >> at & 1 != 0
    }

    /// What the three best lines hold in column `at` of the piece, the best one's first; 0 where
    /// there are fewer lines.
    #[inline(always)]
    pub(super) fn hints(&mut self, at: usize) -> [u16; 3] {
        if !self.is_kept(at) {
            return [0; 3];
        }
        if !self.is_scored {
            self.score();
        }
        self.best.map(|i| self.columns[at][i])
    }

    /// Finds the three best by score, then by place among the active ones.
    fn score(&mut self) {
        let mut best = [u32::MAX; 3];
        for (i, &score) in self.scores.iter().enumerate() {
            let key = u32::from(score) << 8 | i as u32;
            let [a, b, c] = best;
            best = [a.min(key), b.min(key.max(a)), c.min(key.max(b))];
        }
        self.best = best.map(|key| (key & 255) as usize);
        self.is_scored = true;
    }

    /// Scores the lines by the entry that column `at` of the piece turned out to be.
    #[inline(always)]
    pub(super) fn learn(&mut self, at: usize, entry: u32) {
        if !self.is_kept(at) {
            // All are as wrong as each other, or right.
            return;
        }
        let (entry, column) = (entry.min(0xffff) as u16, &self.columns[at]);
        for (score, &other) in self.scores.iter_mut().zip(column) {
            let worse = match (entry, other) {
                (0, 0) => 0,
                (0, _) => 6,
                (_, 0) => 8,
                _ if entry == other => 0,
                _ => 4,
            };
            *score = score.saturating_add(worse);
        }
        self.is_scored = false;
    }

    /// Compares the lines by a piece that is known now, and chooses the references of the next one.
    pub(super) fn end_piece(&mut self, piece: usize, entries: &[u32]) {
        let (line, planes) = (planes(entries), &self.planes[piece]);
        if piece == 0 {
            self.keys = [u64::MAX; ACTIVE];
            self.kernels.first_penalties(line, planes, &mut self.others);
        } else {
            self.kernels.add_penalties(line, planes, &mut self.keys[..self.nactive]);
            self.kernels.add_penalties(line, planes, &mut self.others);
            self.keys.sort_unstable();
        }
        if self.nactive == 0 {
            return;
        }
        self.kernels.exchange_least(&mut self.keys, &mut self.others);
        // They are far apart in memory, and soon read.
        for &key in &self.keys[..self.nactive] {
            simd::prefetch(&self.entries, place(key) * self.ncols + (piece + 1) * PIECE);
        }
        let worst = penalty(self.keys[self.nactive - 1]);
        self.kernels.retain_up_to(key(worst + MARGIN, u16::MAX), &mut self.others);
        let best = penalty(self.keys[0]);
        for (i, &key) in self.keys[..self.nactive].iter().enumerate() {
            self.active[i] = place(key) as u16;
            self.scores[i] = (penalty(key) - best).min(MAX_SCORE) as u16;
        }
    }

    /// Stores a line: in place of an equal one if the first reference is, else in a place of its own,
    /// for which the oldest one makes room.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn end_line(&mut self, line: &[u32]) -> Result<()> {
        if self.nlines > 0 && self.is_equal(usize::from(self.active[0]), line) {
            self.last = self.active[0].into();
            return Ok(());
        }
        let stored = line.iter().map(|&entry| entry.min(0xffff) as u16);
        let pieces = self.planes.iter_mut().zip(line.chunks(PIECE).map(planes));
        if self.nlines < self.window {
            let room = self.entries.try_reserve(self.ncols);
            room.map_err(|_| no_memory(self.nlines + 1, self.ncols))?;
            self.entries.extend(stored);
            pieces.for_each(|(planes, piece)| planes.push(piece));
            self.newest = self.nlines;
            self.nlines += 1;
        } else {
            self.newest = (self.newest + 1) % self.window;
            let entries = &mut self.entries[self.newest * self.ncols..];
            entries.iter_mut().zip(stored).for_each(|(to, from)| *to = from);
            pieces.for_each(|(planes, piece)| planes[self.newest] = piece);
        }
        self.last = self.newest;
        Ok(())
    }

    fn is_equal(&self, place: usize, line: &[u32]) -> bool {
        let entries = &self.entries[place * self.ncols..][..self.ncols];
        entries.iter().zip(line).all(|(&stored, &entry)| u32::from(stored) == entry.min(0xffff))
    }
}

fn no_memory(nlines: usize, ncols: usize) -> Error {
    let what = format!("memory: {nlines} lines of {ncols} entries cannot be had");
    Error::new(ErrorKind::LimitExceeded, what)
}

/// The places of the ones of a word.
#[inline(always)]
fn ones_of(mut word: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (word != 0).then(|| {
            let place = word.trailing_zeros() as usize;
            word &= word - 1;
            place
        })
    })
}

/// A penalty and a place as one number, in the order of one, then the other.
fn key(penalty: u32, place: u16) -> u64 {
    u64::from(penalty) << 16 | u64::from(place)
}

#[inline(always)]
fn penalty(key: u64) -> u32 {
    (key >> 16) as u32
}

#[inline(always)]
fn place(key: u64) -> usize {
    (key & 0xffff) as usize
}
