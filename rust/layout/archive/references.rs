//! Earlier lines that are like the one being coded, found by what is known of it so far.
//!
//! ```text
//!   piece 0: the 16 lines stored last        piece 1 …: the 16 alive with the least penalties
//!   at each entry: what the three best of the 16 hold there
//!   after a piece:  penalty += 7 · (kept in one of the two) + 4 · (kept in both, unlike)
//!                   alive: those within 20 of the sixteenth least
//! ```
//!
//! Nothing of this is stored: a decoder finds the same lines. Unlike is told by the low two bits of
//! the entries, from bit planes of 16 columns. Inside a piece the 16 are scored entry by entry.

use crate::error::{Error, ErrorKind, Result};

/// Columns of a piece.
pub(super) const PIECE: usize = 16;
/// References that are scored entry by entry.
const ACTIVE: usize = 16;
/// The most lines that are remembered, and the most entries of them.
const MAX_LINES: usize = 4096;
const MAX_ENTRIES: usize = 1 << 26;
/// A line lives on while its penalty is within this of the sixteenth least.
const MARGIN: u32 = 20;
/// Scores are told apart up to this one.
const MAX_SCORE: u32 = 200;

/// The bits of 16 entries: kept, and the two low bits of each.
type Planes = [u16; 4];

fn planes(entries: &[u32]) -> Planes {
    let mut planes = [0; 4];
    for (i, &entry) in entries.iter().enumerate() {
        planes[0] |= u16::from(entry != 0) << i;
        planes[1] |= ((entry & 1) as u16) << i;
        planes[2] |= ((entry >> 1 & 1) as u16) << i;
    }
    planes
}

/// The ones of 16 bits, without an instruction for it: many at a time in vector registers.
#[inline(always)]
fn ones(x: u16) -> u16 {
    let x = x - (x >> 1 & 0x5555);
    let x = (x & 0x3333) + (x >> 2 & 0x3333);
    let x = (x + (x >> 4)) & 0x0f0f;
    (x + (x >> 8)) & 31
}

#[inline(always)]
fn penalty(line: [u16; 3], other: [u16; 3]) -> u16 {
    let unlike = (line[1] ^ other[1]) | (line[2] ^ other[2]);
    7 * ones(line[0] ^ other[0]) + 4 * ones(line[0] & other[0] & unlike)
}

/// What the three best references hold at an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hints {
    /// The entries, the best reference's first; 0 where there are fewer lines.
    pub(super) entries: [u16; 3],
    /// How much better the first is than the second, 0 to 3.
    pub(super) lead: usize,
}

/// The lines so far, and how the current one compares.
#[derive(Debug)]
pub(super) struct References {
    ncols: usize,
    npieces: usize,
    window: usize,
    /// The line that the next one goes after.
    last: usize,
    nlines: usize,
    entries: Vec<u16>,
    planes: Vec<Planes>,
    /// The planes of the first pieces, apart, since all lines are compared there.
    first_planes: [Vec<u16>; 3],
    first_penalties: Vec<u16>,
    penalties: Vec<u32>,
    alive: Vec<u16>,
    nactive: usize,
    active: [u16; ACTIVE],
    scores: [u16; ACTIVE],
    /// The entries of the active lines in this piece, by column.
    columns: [[u16; ACTIVE]; PIECE],
    /// A bit for each column of the piece that an active line keeps.
    kept: u32,
    best: [usize; 3],
    is_scored: bool,
}

impl References {
    pub(super) fn new(nlines: usize, ncols: usize) -> Self {
        let window = (MAX_ENTRIES / ncols.max(1)).clamp(ACTIVE, MAX_LINES).min(nlines.max(1));
        Self {
            ncols,
            npieces: ncols.div_ceil(PIECE),
            window,
            last: 0,
            nlines: 0,
            entries: Vec::new(),
            planes: Vec::new(),
            first_planes: [const { Vec::new() }; 3],
            first_penalties: Vec::new(),
            penalties: Vec::new(),
            alive: Vec::new(),
            nactive: 0,
            active: [0; ACTIVE],
            scores: [0; ACTIVE],
            columns: [[0; ACTIVE]; PIECE],
            kept: 0,
            best: [0, 1, 2],
            is_scored: false,
        }
    }

    /// Starts a line: its references are the lines stored last, the newest first.
    pub(super) fn start_line(&mut self) {
        self.nactive = self.nlines.min(ACTIVE);
        for i in 0..self.nactive {
            self.active[i] = ((self.last + self.nlines - i) % self.nlines) as u16;
        }
        self.scores = std::array::from_fn(|i| if i < self.nactive { 0 } else { u16::MAX });
    }

    /// Takes up the columns of a piece.
    pub(super) fn start_piece(&mut self, piece: usize) {
        self.columns = [[0; ACTIVE]; PIECE];
        self.kept = 0;
        self.is_scored = false;
        for i in 0..self.nactive {
            let line = usize::from(self.active[i]);
            let mut kept = self.planes[line * self.npieces + piece][0];
            self.kept |= u32::from(kept);
            let entries = &self.entries[line * self.ncols + piece * PIECE..];
            while kept != 0 {
                let at = kept.trailing_zeros() as usize;
                self.columns[at][i] = entries[at];
                kept &= kept - 1;
            }
        }
    }

    /// Whether an active line keeps column `at` of the piece.
    #[inline(always)]
    pub(super) fn is_kept(&self, at: usize) -> bool {
        self.kept >> at & 1 != 0
    }

    /// What the best lines hold in column `at` of the piece.
    #[inline(always)]
    pub(super) fn hints(&mut self, at: usize) -> Hints {
        if !self.is_scored {
            self.score();
        }
        let [a, b, c] = self.best;
        let column = &self.columns[at];
        let lead = (self.scores[b] - self.scores[a]) >> 2;
        Hints { entries: [column[a], column[b], column[c]], lead: lead.min(3).into() }
    }

    /// Finds the three best by score, then by place.
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
        if self.nactive == 0 || entry == 0 && !self.is_kept(at) {
            return;
        }
        let (entry, column) = (entry.min(0xffff) as u16, &self.columns[at]);
        if entry == 0 {
            for (score, &other) in self.scores.iter_mut().zip(column) {
                *score = score.saturating_add(if other != 0 { 6 } else { 0 });
            }
        } else {
            for (score, &other) in self.scores.iter_mut().zip(column) {
                let worse = if other == 0 { 8 } else { 4 };
                *score = score.saturating_add(if other == entry { 0 } else { worse });
            }
        }
        self.is_scored = false;
    }

    /// Compares all lines by a piece that is known now, and chooses the references of the next one.
    pub(super) fn end_piece(&mut self, piece: usize, entries: &[u32]) {
        if self.nlines == 0 {
            return;
        }
        let [x0, x1, x2, _] = planes(entries);
        let line = [x0, x1, x2];
        let mut best = Smallest::new();
        if piece == 0 {
            let [p0, p1, p2] = &self.first_planes;
            self.first_penalties.clear();
            let others = p0.iter().zip(p1).zip(p2);
            self.first_penalties.extend(others.map(|((&a, &b), &c)| penalty(line, [a, b, c])));
            for (chunk, start) in self.first_penalties.chunks(16).zip((0u16..).step_by(16)) {
                let least = chunk.iter().fold(u16::MAX, |least, &p| least.min(p));
                if best.admits(least.into()) {
                    chunk.iter().zip(start..).for_each(|(&p, i)| best.offer(p.into(), i));
                }
            }
            let limit = best.largest() + MARGIN;
            let within = self.first_penalties.iter().zip(0u16..);
            self.alive.clear();
            self.alive.extend(within.filter(|(p, _)| u32::from(**p) <= limit).map(|(_, i)| i));
            self.penalties.clear();
            self.penalties.extend(self.first_penalties.iter().map(|&p| u32::from(p)));
        } else {
            for &i in &self.alive {
                let [a, b, c, _] = self.planes[usize::from(i) * self.npieces + piece];
                let penalties = &mut self.penalties[usize::from(i)];
                *penalties += u32::from(penalty(line, [a, b, c]));
                best.offer(*penalties, i);
            }
            let (limit, penalties) = (best.largest() + MARGIN, &self.penalties);
            self.alive.retain(|&i| penalties[usize::from(i)] <= limit);
        }
        let chosen = best.sorted();
        let least = chosen[0].0;
        for (i, &(penalty, line)) in chosen.iter().enumerate() {
            self.active[i] = line;
            self.scores[i] = (penalty - least).min(MAX_SCORE) as u16;
        }
    }

    /// Stores a line; the oldest one makes room.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn end_line(&mut self, line: &[u32]) -> Result<()> {
        let stored = line.iter().map(|&entry| entry.min(0xffff) as u16);
        let pieces = line.chunks(PIECE).map(planes);
        let first = line.chunks(PIECE).next().map_or([0; 4], planes);
        if self.nlines < self.window {
            let room = self.entries.try_reserve(self.ncols);
            room.and_then(|()| self.planes.try_reserve(self.npieces)).map_err(|_| {
                let (n, ncols) = (self.nlines + 1, self.ncols);
                Error::new(
                    ErrorKind::LimitExceeded,
                    format!("memory: {n} lines of {ncols} entries cannot be had"),
                )
            })?;
            self.entries.extend(stored);
            self.planes.extend(pieces);
            self.first_planes.iter_mut().zip(first).for_each(|(planes, plane)| planes.push(plane));
            self.last = self.nlines;
            self.nlines += 1;
        } else {
            self.last = (self.last + 1) % self.window;
            let entries = &mut self.entries[self.last * self.ncols..];
            entries.iter_mut().zip(stored).for_each(|(to, from)| *to = from);
            let planes = &mut self.planes[self.last * self.npieces..];
            planes.iter_mut().zip(pieces).for_each(|(to, from)| *to = from);
            let firsts = self.first_planes.iter_mut().zip(first);
            firsts.for_each(|(planes, plane)| planes[self.last] = plane);
        }
        Ok(())
    }
}

/// The 16 least of pairs of a penalty and a line.
struct Smallest {
    keys: [u64; ACTIVE],
    len: usize,
    /// The place of the largest key, once there are 16.
    worst: usize,
}

impl Smallest {
    fn new() -> Self {
        Self { keys: [u64::MAX; ACTIVE], len: 0, worst: 0 }
    }

    /// Whether a pair of this penalty may be among them.
    #[inline(always)]
    fn admits(&self, penalty: u32) -> bool {
        u64::from(penalty) << 16 < self.keys[self.worst]
    }

    #[inline(always)]
    fn offer(&mut self, penalty: u32, line: u16) {
        let key = u64::from(penalty) << 16 | u64::from(line);
        if key < self.keys[self.worst] {
            self.replace(key);
        }
    }

    fn replace(&mut self, key: u64) {
        if self.len < ACTIVE {
            self.keys[self.len] = key;
            self.len += 1;
        } else {
            self.keys[self.worst] = key;
        }
        self.worst = if self.len < ACTIVE {
            self.len
        } else {
            (0..ACTIVE).max_by_key(|&i| self.keys[i]).unwrap_or(0)
        };
    }

    /// The largest penalty of them.
    fn largest(&self) -> u32 {
        let keys = self.keys[..self.len].iter();
        keys.max().map_or(0, |&key| (key >> 16) as u32)
    }

    fn sorted(mut self) -> Vec<(u32, u16)> {
        self.keys[..self.len].sort_unstable();
        self.keys[..self.len].iter().map(|&key| ((key >> 16) as u32, key as u16)).collect()
    }
}
