//! Co-coding: which columns share a group, planned from a sample of rows.
//!
//! ```text
//!   sample:  16 blocks of 64 rows at equal distances (every row up to 1,024 rows)
//!   order:   columns by two min-hashes of the sampled rows they keep, so that columns that keep
//!            the same rows are likely neighbours
//!   bins:    32 neighbours each; in a bin, while some pair of groups gains:
//!                merge the pair with the largest gain
//!                    gain(a, b) = nbytes(a) + nbytes(b) − nbytes(a ∪ b), each of the cheapest kind
//! ```
//!
//! The size of a group is estimated from its number of listed rows and runs, scaled up, and of
//! distinct tuples: those seen, and f₁·(f₁ − 1) / (2·f₂ + 2) unseen ones, where f₁ tuples were seen
//! once and f₂ twice. (One that scales f₁ alone finds 270 of 256 equally frequent tuples when four
//! of each are seen: it never filled a byte of codes, and dense columns of four symbols took half
//! as much again.) Bins bound the work: under 1,000 unions of sampled lists for 32 columns,
//! whatever the shape. Bins of 64 take twice the time and save 0 to 4 % on trained layers.
//! Everything is in a fixed order, so equal matrices get equal groups.
//!
//! Sources: Elgohary et al. 2016, section 4 (sampling, bins, greedy grouping; bins there are by
//! cardinality); the bias-corrected estimator of unseen species of Chao 1984 and 2005; min-hashing
//! of Broder 1997.

use super::{Kind, MAX_TUPLES_8, MAX_TUPLES_16, segment_of};
use crate::error::Result;
use crate::interruption;
use crate::rows::{Rows, Shape};
use crate::words::word_bits;

/// Rows of a sampled block: long enough to see runs.
const SAMPLE_BLOCK_ROWS: usize = 64;

/// Sampled blocks.
const SAMPLE_BLOCKS: usize = 16;

/// Neighbouring columns among which groups are sought.
const BIN_COLS: usize = 32;

/// A matrix by columns: rising rows, and symbols plus one.
pub(super) struct Columns {
    starts: Vec<usize>,
    rows: Vec<u32>,
    words: Vec<u32>,
}

impl Columns {
    pub(super) fn new(rows: &Rows, symbols: &[u16]) -> Self {
        let shape = rows.shape();
        let mut starts = vec![0; shape.ncols + 1];
        rows.cols().iter().for_each(|&col| starts[col as usize + 1] += 1);
        for col in 0..shape.ncols {
            starts[col + 1] += starts[col];
        }
        let mut next = starts.clone();
        let (mut by_col, mut words) = (vec![0; rows.nnz()], vec![0; rows.nnz()]);
        for row in 0..shape.nrows {
            for at in rows.indptr()[row]..rows.indptr()[row + 1] {
                let to = &mut next[rows.cols()[at] as usize];
                by_col[*to] = row as u32;
                words[*to] = u32::from(symbols[at]) + 1;
                *to += 1;
            }
        }
        Self { starts, rows: by_col, words }
    }

    fn ncols(&self) -> usize {
        self.starts.len() - 1
    }

    fn col(&self, col: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let at = self.starts[col as usize]..self.starts[col as usize + 1];
        self.rows[at.clone()].iter().copied().zip(self.words[at].iter().copied())
    }
}

/// A group's distinct tuples that are not all zero, in rising order, each with its rows.
pub(super) struct TupleRows {
    pub(super) cols: Vec<u32>,
    /// `[ntuples][cols]` symbols plus one, 0 where pruned.
    pub(super) tuples: Vec<u32>,
    starts: Vec<usize>,
    rows: Vec<u32>,
}

impl TupleRows {
    /// The group of rising `cols`.
    pub(super) fn new(columns: &Columns, cols: &[u32]) -> Self {
        let width = cols.len();
        let mut entries: Vec<(u32, usize, u32)> = Vec::new();
        for (j, &col) in cols.iter().enumerate() {
            entries.extend(columns.col(col).map(|(row, word)| (row, j, word)));
        }
        // Stable, which is fast for the few rising runs there are.
        entries.sort_by_key(|entry| entry.0);
        let mut rows: Vec<u32> = Vec::new();
        let mut words: Vec<u32> = Vec::new();
        for entries in entries.chunk_by(|a, b| a.0 == b.0) {
            rows.push(entries[0].0);
            let at = words.len();
            words.resize(at + width, 0);
            entries.iter().for_each(|&(_, j, word)| words[at + j] = word);
        }
        let tuple = |i: usize| &words[i * width..(i + 1) * width];
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by(|&a, &b| tuple(a).cmp(tuple(b)));
        let mut group = Self { cols: cols.to_vec(), tuples: vec![], starts: vec![0], rows: vec![] };
        for same in order.chunk_by(|&a, &b| tuple(a) == tuple(b)) {
            group.tuples.extend_from_slice(tuple(same[0]));
            group.rows.extend(same.iter().map(|&i| rows[i]));
            group.starts.push(group.rows.len());
        }
        group
    }

    pub(super) fn ntuples(&self) -> usize {
        self.starts.len() - 1
    }

    /// The number of rows that keep anything.
    pub(super) fn nrows(&self) -> usize {
        self.rows.len()
    }

    /// The rows of one tuple, rising.
    pub(super) fn rows(&self, tuple: usize) -> &[u32] {
        &self.rows[self.starts[tuple]..self.starts[tuple + 1]]
    }
}

/// What the size of a group depends on, counted or estimated.
pub(super) struct Counts {
    width: usize,
    ntuples: usize,
    /// Rows that keep anything.
    nrows: usize,
    runs: usize,
    /// Segments in all lists.
    segments: usize,
}

impl Counts {
    pub(super) fn of(group: &TupleRows) -> Self {
        let lists = || (0..group.ntuples()).map(|tuple| group.rows(tuple));
        let starts_run =
            |pair: &&[u32]| pair[0] + 1 != pair[1] || segment_of(pair[0]) != segment_of(pair[1]);
        Self {
            width: group.cols.len(),
            ntuples: group.ntuples(),
            nrows: group.nrows(),
            runs: lists().map(|rows| 1 + rows.windows(2).filter(starts_run).count()).sum(),
            segments: lists().map(|rows| segment_of(rows[rows.len() - 1]) + 1).sum(),
        }
    }
}

/// What parts of a group take, in bytes.
pub(super) struct Prices {
    nrows: usize,
    group: usize,
    col: usize,
    word: usize,
}

impl Prices {
    pub(super) fn new(shape: Shape, k: usize) -> Self {
        let word = |max: usize| word_bits(max as u64) as usize / 8;
        Self {
            nrows: shape.nrows,
            group: 1 + 2 * word(shape.nrows.max(shape.ncols)),
            col: word(shape.ncols.saturating_sub(1)),
            word: word(k),
        }
    }

    /// The cheapest kind for a group, and its bytes (where a list starts counted as 4).
    pub(super) fn cheapest(&self, counts: &Counts) -> (Kind, usize) {
        let dictionary = |ntuples: usize| ntuples * counts.width * self.word;
        let lists = dictionary(counts.ntuples) + 4 * counts.ntuples + 2 * counts.segments;
        let mut best = (Kind::Offsets, lists + 2 * counts.nrows);
        let coded = counts.ntuples + usize::from(counts.nrows < self.nrows);
        let code = if coded <= MAX_TUPLES_8 { 1 } else { 2 };
        let others = [
            (Kind::Runs, Some(lists + 4 * counts.runs)),
            (Kind::Codes, (coded <= MAX_TUPLES_16).then(|| dictionary(coded) + self.nrows * code)),
            (Kind::Plain, Some(self.nrows * counts.width * self.word)),
        ];
        for (kind, nbytes) in others {
            if let Some(nbytes) = nbytes.filter(|&nbytes| nbytes < best.1) {
                best = (kind, nbytes);
            }
        }
        (best.0, best.1 + self.group + counts.width * self.col)
    }
}

/// The rows that are looked at.
struct Sample {
    nrows: usize,
    /// Rows from one block's start to the next one's; 0 when every row is in the sample.
    step: usize,
}

impl Sample {
    fn new(nrows: usize) -> Self {
        let sampled = SAMPLE_BLOCKS * SAMPLE_BLOCK_ROWS;
        Self { nrows, step: if nrows <= sampled { 0 } else { nrows / SAMPLE_BLOCKS } }
    }

    /// The place of `row` in the sample, with a gap between blocks; none when it is not in it.
    fn place(&self, row: u32) -> Option<u32> {
        if self.step == 0 {
            return Some(row);
        }
        let (block, offset) = (row as usize / self.step, row as usize % self.step);
        (block < SAMPLE_BLOCKS && offset < SAMPLE_BLOCK_ROWS)
            .then_some((block * (SAMPLE_BLOCK_ROWS + 1) + offset) as u32)
    }

    /// All rows ÷ sampled rows.
    fn scale(&self) -> f64 {
        match self.step {
            0 => 1.0,
            _ => self.nrows as f64 / (SAMPLE_BLOCKS * SAMPLE_BLOCK_ROWS) as f64,
        }
    }
}

/// A group as the sample shows it: (place, tuple) of the rows that keep anything.
struct Sampled {
    cols: Vec<u32>,
    entries: Vec<(u32, u32)>,
    ntuples: usize,
    nbytes: usize,
}

/// Plans the groups: every column that keeps something is in one, rising in it, and groups follow
/// their first column.
///
/// # Errors
/// `Interrupted`.
pub(super) fn plan(columns: &Columns, prices: &Prices) -> Result<Vec<Vec<u32>>> {
    let mut planner = Planner { sample: Sample::new(prices.nrows), prices, numbers: Vec::new() };
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut sampled: Vec<((u32, u32), Sampled)> = Vec::new();
    for col in 0..columns.ncols() as u32 {
        if columns.col(col).next().is_none() {
            continue;
        }
        let places =
            columns.col(col).filter_map(|(r, word)| Some((planner.sample.place(r)?, word)));
        let column = planner.number(vec![col], places.collect());
        if column.entries.is_empty() {
            // Nothing is known of it.
            groups.push(column.cols);
        } else {
            sampled.push((min_hashes(&column.entries), column));
        }
    }
    sampled.sort_by_key(|(hashes, column)| (*hashes, column.cols[0]));
    let mut sampled = sampled.into_iter().map(|(_, column)| column);
    loop {
        interruption::check()?;
        let bin: Vec<Sampled> = sampled.by_ref().take(BIN_COLS).collect();
        if bin.is_empty() {
            break;
        }
        groups.extend(planner.merge_bin(bin).into_iter().map(|group| group.cols));
    }
    groups.iter_mut().for_each(|cols| cols.sort_unstable());
    groups.sort_unstable();
    Ok(groups)
}

/// The smallest of two hashes over the places.
fn min_hashes(entries: &[(u32, u32)]) -> (u32, u32) {
    let smallest = |factor: u32| {
        let mix = |place: u32| {
            let hash = (place + 1).wrapping_mul(factor);
            (hash ^ hash >> 15).wrapping_mul(0x2c1b_3c6d)
        };
        entries.iter().map(|&(place, _)| mix(place)).min().unwrap_or(u32::MAX)
    };
    (smallest(0x9e37_79b1), smallest(0x85eb_ca77))
}

struct Planner<'a> {
    sample: Sample,
    prices: &'a Prices,
    /// The number of each key in [`Planner::number`]; all `u32::MAX` between calls.
    numbers: Vec<u32>,
}

impl Planner<'_> {
    /// Numbers the keys of `entries` as they come, and estimates the group's bytes.
    fn number(&mut self, cols: Vec<u32>, mut entries: Vec<(u32, u32)>) -> Sampled {
        let mut keys: Vec<u32> = Vec::new();
        let mut counts: Vec<u32> = Vec::new();
        let (mut runs, mut last) = (0, (u32::MAX - 1, 0));
        for (place, key) in &mut entries {
            if self.numbers.len() <= *key as usize {
                self.numbers.resize(*key as usize + 1, u32::MAX);
            }
            let number = &mut self.numbers[*key as usize];
            if *number == u32::MAX {
                *number = keys.len() as u32;
                keys.push(*key);
                counts.push(0);
            }
            counts[*number as usize] += 1;
            *key = *number;
            runs += usize::from((last.0 + 1, last.1) != (*place, *key));
            last = (*place, *key);
        }
        keys.iter().for_each(|&key| self.numbers[key as usize] = u32::MAX);
        let scale = self.sample.scale();
        let up = |count: usize| (count as f64 * scale) as usize;
        let seen = |times: u32| counts.iter().filter(|&&count| count == times).count();
        let (once, twice) = (seen(1), seen(2));
        let unseen = once * once.saturating_sub(1) / (2 * twice + 2);
        let ntuples = counts.len() + unseen.min(up(once) - once);
        let (_, nbytes) = self.prices.cheapest(&Counts {
            width: cols.len(),
            ntuples,
            nrows: up(entries.len()),
            runs: up(runs),
            segments: ntuples * (segment_of(self.sample.nrows.saturating_sub(1) as u32) + 1),
        });
        Sampled { cols, entries, ntuples: counts.len(), nbytes }
    }

    /// The union of two groups; its columns are not in order.
    fn merge(&mut self, a: &Sampled, b: &Sampled) -> Sampled {
        let mut entries = Vec::with_capacity(a.entries.len() + b.entries.len());
        // At most 1,024 tuples are in the sample, so keys stay under 2²¹.
        let key = |a: u32, b_tuple: u32| a * (b.ntuples as u32 + 1) + b_tuple;
        let (mut left, mut right) = (a.entries.iter().peekable(), b.entries.iter().peekable());
        loop {
            let take_left = left.peek().map_or(u32::MAX, |entry| entry.0);
            let take_right = right.peek().map_or(u32::MAX, |entry| entry.0);
            let place = take_left.min(take_right);
            if place == u32::MAX {
                break;
            }
            let from_a = left.next_if(|entry| entry.0 == place).map_or(0, |entry| entry.1 + 1);
            let from_b = right.next_if(|entry| entry.0 == place).map_or(0, |entry| entry.1 + 1);
            entries.push((place, key(from_a, from_b)));
        }
        self.number([&a.cols[..], &b.cols].concat(), entries)
    }

    /// Merges the pair of groups with the largest gain until none gains.
    fn merge_bin(&mut self, mut groups: Vec<Sampled>) -> Vec<Sampled> {
        // gains[a][b] for a > b.
        let mut gains: Vec<Vec<usize>> = Vec::new();
        for a in 0..groups.len() {
            let row = (0..a).map(|b| self.gain(&groups[a], &groups[b])).collect();
            gains.push(row);
        }
        loop {
            let pairs = gains.iter().enumerate();
            let pairs =
                pairs.flat_map(|(a, row)| row.iter().enumerate().map(move |(b, &g)| (g, a, b)));
            let Some((_, a, b)) = pairs.filter(|pair| pair.0 > 0).max_by_key(|pair| pair.0) else {
                return groups;
            };
            groups[b] = self.merge(&groups[a], &groups[b]);
            groups.remove(a);
            gains.remove(a);
            gains[a..].iter_mut().for_each(|row| {
                row.remove(a);
            });
            for other in (0..groups.len()).filter(|&other| other != b) {
                gains[b.max(other)][b.min(other)] = self.gain(&groups[b], &groups[other]);
            }
        }
    }

    /// Bytes that merging saves, 0 when none.
    fn gain(&mut self, a: &Sampled, b: &Sampled) -> usize {
        (a.nbytes + b.nbytes).saturating_sub(self.merge(a, b).nbytes)
    }
}
