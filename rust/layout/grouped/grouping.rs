//! Which rows share a common part: candidates by min-hash, merged greedily.
//!
//! ```text
//!   clusters = rows, equal ones together
//!   until a pass saves hardly anything:
//!     signature = for each of 32 bins of hashes, the least hash of an entry of the common part
//!     for each bin:    clusters sorted by the signature from this bin on
//!                      candidates: neighbours with the same least hash
//!     of each cluster the 8 candidates of which most bins agree:
//!       saved = entries saved by the two together − by each alone
//!     merge pairs, those that save most first, each cluster once a pass
//! ```
//!
//! Two bins agree with the probability that an entry of one row or the other is in both (Broder
//! 1997; all bins from one hash as in Li, Owen, Zhang 2012), and sorted signatures put together
//! those that agree in several (the forest of Bawa, Condie, Ganesan 2005). So rows at random places
//! have few candidates, and all of them cost a pass over the entries and a few sorts of the rows.
//! The common part of a group is what all its rows hold, since nothing is ever taken off a sum.

use crate::error::Result;
use crate::interruption;
use crate::layout::Goal;
use crate::rows::Rows;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Bins of a signature.
const BINS: usize = 32;
/// The least hash of a bin without an entry.
const EMPTY: u32 = u32::MAX;
/// The bins that signatures are sorted by, from each one on.
const SORTED_BY: [usize; 3] = [0, 1, 2];
/// Neighbours in sorted signatures that are candidates.
const NEIGHBOURS: usize = 3;
/// Candidates of a cluster that are compared entry by entry.
const MAX_CANDIDATES: usize = 8;
/// One bin in so many has to agree: less in common saves less than a tenth of two rows.
const BINS_AN_AGREEMENT: usize = 8;
/// Entries that a group has to save: a row more, and a bit more in each row's number at times.
const MIN_SAVED: usize = 8;
/// A pass that saves one entry in so many is the last one.
const LAST_PASS: usize = 256;
const MAX_PASSES: usize = 24;
/// Of more clusters than this, candidates have to hold one entry in so many after so many bins.
const MANY: usize = 1024;
const FIRST_BINS: usize = 4;
const ENTRIES_A_CANDIDATE: usize = 20;

/// The least hash of each bin.
type Signature = [u32; BINS];

/// Columns, rising, and symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Entries<'a> {
    pub cols: &'a [u32],
    pub symbols: &'a [u16],
}

impl Entries<'_> {
    pub const NONE: Self = Self { cols: &[], symbols: &[] };

    pub fn len(self) -> usize {
        self.cols.len()
    }

    fn iter(self) -> impl Iterator<Item = (u32, u16)> {
        self.cols.iter().copied().zip(self.symbols.iter().copied())
    }

    /// Hands out the entries that both hold.
    fn for_each_common(self, other: Self, mut take: impl FnMut(u32, u16)) {
        let (mut i, mut j) = (0, 0);
        while i < self.len() && j < other.len() {
            let (a, b) = (self.cols[i], other.cols[j]);
            if a == b && self.symbols[i] == other.symbols[j] {
                take(a, self.symbols[i]);
            }
            i += usize::from(a <= b);
            j += usize::from(b <= a);
        }
    }

    /// Hands out the entries that `other`, of which all are among these, does not hold.
    pub fn for_each_besides(self, other: Self, mut take: impl FnMut(u32, u16)) {
        let mut others = other.cols.iter().peekable();
        for (col, symbol) in self.iter() {
            if others.next_if_eq(&&col).is_none() {
                take(col, symbol);
            }
        }
    }

    fn signature(self) -> Signature {
        let mut signature = [EMPTY; BINS];
        for (col, symbol) in self.iter() {
            let hash = mixed(u64::from(col) << 16 | u64::from(symbol));
            let least = &mut signature[(hash >> 59) as usize];
            *least = (*least).min(hash as u32);
        }
        signature
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mixed(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Rows that share what all of them hold.
struct Cluster {
    rows: Vec<u32>,
    /// What they share; none where they are all equal.
    common: Option<(Vec<u32>, Vec<u16>)>,
    saved: usize,
    /// Made or merged in the last pass: two others were compared before.
    is_new: bool,
}

/// The groups of a matrix, numbered from 1 in the order of their first rows.
pub(crate) struct Grouping<'a> {
    rows: &'a Rows,
    symbols: &'a [u16],
    clusters: Vec<Cluster>,
    /// The number of each row's group; 0 for none.
    pub(super) numbers: Vec<u16>,
    /// Entries that need not be stored or multiplied.
    saved: usize,
}

impl<'a> Grouping<'a> {
    /// The groups of `rows`.
    ///
    /// # Errors
    /// `InvalidArgument` when they hold values in place of symbols; `Interrupted`.
    pub fn of(rows: &'a Rows) -> Result<Self> {
        let (_, symbols) = rows.shared(super::SPEC.name)?;
        let mut grouping =
            Self { rows, symbols, clusters: Vec::new(), numbers: Vec::new(), saved: 0 };
        grouping.clusters = grouping.equal_rows();
        for _ in 0..MAX_PASSES {
            if grouping.merge()? < (rows.nnz() / LAST_PASS).max(1) {
                break;
            }
        }
        let clusters = &mut grouping.clusters;
        clusters.retain(|cluster| cluster.saved >= MIN_SAVED);
        clusters.sort_by_key(|cluster| std::cmp::Reverse(cluster.saved));
        clusters.truncate(usize::from(u16::MAX));
        clusters.sort_by_key(|cluster| cluster.rows[0]);
        grouping.numbers = vec![0; rows.shape().nrows];
        for (number, cluster) in (1..).zip(&grouping.clusters) {
            cluster.rows.iter().for_each(|&row| grouping.numbers[row as usize] = number);
            grouping.saved += cluster.saved;
        }
        Ok(grouping)
    }

    /// Whether groups save so much that nobody has to ask for them.
    pub fn is_worth_it(&self, goal: Goal) -> bool {
        let entries_a_saved = match goal {
            Goal::Size => 10,
            Goal::Speed => 4,
        };
        self.saved > 0 && self.saved >= self.rows.nnz() / entries_a_saved
    }

    /// Whether groups save so much that products take less time than from slices of rows (`sell`),
    /// which save nothing and take about half of the time for each weight.
    pub fn beats_slices(&self) -> bool {
        5 * self.saved >= 3 * self.rows.nnz()
    }

    /// The number of groups.
    pub(super) fn len(&self) -> usize {
        self.clusters.len()
    }

    /// What group `group`, from 0 on, shares.
    pub(super) fn common(&self, group: usize) -> Entries<'_> {
        self.entries(&self.clusters[group])
    }

    pub(super) fn row(&self, row: usize) -> Entries<'a> {
        let range = self.rows.indptr()[row]..self.rows.indptr()[row + 1];
        Entries { cols: &self.rows.cols()[range.clone()], symbols: &self.symbols[range] }
    }

    fn entries<'b>(&'b self, cluster: &'b Cluster) -> Entries<'b> {
        match &cluster.common {
            Some((cols, symbols)) => Entries { cols, symbols },
            None => self.row(cluster.rows[0] as usize),
        }
    }

    /// A cluster for each distinct row that keeps anything, in the order of first rows.
    fn equal_rows(&self) -> Vec<Cluster> {
        let mut clusters: Vec<Cluster> = Vec::new();
        let mut by_hash: HashMap<u64, Vec<usize>> = HashMap::new();
        for row in 0..self.rows.shape().nrows {
            let entries = self.row(row);
            if entries.len() == 0 {
                continue;
            }
            let mut hasher = DefaultHasher::new();
            entries.hash(&mut hasher);
            let alike = by_hash.entry(hasher.finish()).or_default();
            let equal = alike.iter().find(|&&at| self.entries(&clusters[at]) == entries);
            if let Some(&at) = equal {
                clusters[at].rows.push(row as u32);
                clusters[at].saved += entries.len();
            } else {
                alike.push(clusters.len());
                clusters.push(Cluster {
                    rows: vec![row as u32],
                    common: None,
                    saved: 0,
                    is_new: true,
                });
            }
        }
        clusters
    }

    /// Merges pairs of clusters, each once; returns how many entries that saves.
    fn merge(&mut self) -> Result<usize> {
        let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
        for (a, b) in self.candidates()? {
            interruption::check()?;
            pairs.extend(self.saved_by_merging(a, b).map(|saved| (saved, a, b)));
        }
        pairs.sort_unstable_by_key(|&(saved, a, b)| (std::cmp::Reverse(saved), a, b));
        self.clusters.iter_mut().for_each(|cluster| cluster.is_new = false);
        let mut is_merged = vec![false; self.clusters.len()];
        let mut total = 0;
        for (saved, a, b) in pairs {
            if is_merged[a] || is_merged[b] {
                continue;
            }
            let (mut cols, mut symbols) = (Vec::new(), Vec::new());
            let entries = [a, b].map(|at| self.entries(&self.clusters[at]));
            entries[0].for_each_common(entries[1], |col, symbol| {
                cols.push(col);
                symbols.push(symbol);
            });
            let mut rows = std::mem::take(&mut self.clusters[b].rows);
            rows.append(&mut self.clusters[a].rows);
            rows.sort_unstable();
            let alone = self.clusters[a].saved + self.clusters[b].saved;
            let merged =
                Cluster { rows, common: Some((cols, symbols)), saved: alone + saved, is_new: true };
            self.clusters[a] = merged;
            (is_merged[a], is_merged[b]) = (true, true);
            total += saved;
        }
        self.clusters.retain(|cluster| !cluster.rows.is_empty());
        Ok(total)
    }

    /// How many entries more two clusters save together than alone; none where there are no more.
    fn saved_by_merging(&self, a: usize, b: usize) -> Option<usize> {
        let clusters = [&self.clusters[a], &self.clusters[b]];
        let entries = clusters.map(|cluster| self.entries(cluster));
        let mut common = 0;
        entries[0].for_each_common(entries[1], |_, _| common += 1);
        let nrows = clusters[0].rows.len() + clusters[1].rows.len();
        let saved = common * (nrows - 1);
        saved.checked_sub(clusters[0].saved + clusters[1].saved).filter(|&saved| saved > 0)
    }

    /// Pairs of clusters that may be alike, the lower one first.
    fn candidates(&self) -> Result<Vec<(usize, usize)>> {
        let signatures: Vec<Signature> =
            self.clusters.iter().map(|cluster| self.entries(cluster).signature()).collect();
        let mut of_each: Vec<Vec<(usize, usize)>> = vec![Vec::new(); signatures.len()];
        for bin in 0..BINS {
            interruption::check()?;
            if bin == FIRST_BINS && of_each.len() > MANY && !self.are_many(&of_each) {
                return Ok(Vec::new());
            }
            let from_bin = |&at: &usize| {
                let signature = &signatures[at];
                SORTED_BY.map(|next| signature[(bin + next) % BINS])
            };
            let mut order: Vec<usize> =
                (0..signatures.len()).filter(|&at| signatures[at][bin] != EMPTY).collect();
            order.sort_by_cached_key(from_bin);
            for (place, &a) in order.iter().enumerate() {
                let neighbours = order[place + 1..].iter().take(NEIGHBOURS);
                for &b in neighbours {
                    if signatures[a][bin] != signatures[b][bin] {
                        break;
                    }
                    let is_new = self.clusters[a].is_new || self.clusters[b].is_new;
                    let agreeing = is_new.then(|| agreeing(&signatures[a], &signatures[b], bin));
                    if let Some(agreeing) = agreeing.flatten() {
                        of_each[a].push((agreeing, b));
                        of_each[b].push((agreeing, a));
                    }
                }
            }
        }
        let mut pairs = Vec::new();
        for (at, candidates) in of_each.iter_mut().enumerate() {
            candidates.sort_unstable_by_key(|&(agreeing, b)| (std::cmp::Reverse(agreeing), b));
            candidates.dedup();
            let best = candidates.iter().take(MAX_CANDIDATES);
            pairs.extend(best.map(|&(_, other)| (at.min(other), at.max(other))));
        }
        pairs.sort_unstable();
        pairs.dedup();
        Ok(pairs)
    }

    /// Whether those that have candidates hold so many of the entries that going on may pay.
    fn are_many(&self, of_each: &[Vec<(usize, usize)>]) -> bool {
        let with_some = self.clusters.iter().zip(of_each).filter(|(_, some)| !some.is_empty());
        let entries: usize = with_some.map(|(cluster, _)| self.entries(cluster).len()).sum();
        entries * ENTRIES_A_CANDIDATE >= self.rows.nnz()
    }
}

/// How many bins of two signatures agree; none if they are too few of those that they were not sorted
/// by, from `bin` on.
fn agreeing(a: &Signature, b: &Signature, bin: usize) -> Option<usize> {
    let (mut all, mut others, mut filled) = (0, 0, [0, 0]);
    for (at, (&a, &b)) in a.iter().zip(b).enumerate() {
        let agrees = usize::from(a == b && a != EMPTY);
        all += agrees;
        if (at + BINS - bin) % BINS >= SORTED_BY.len() {
            others += agrees;
            filled[0] += usize::from(a != EMPTY);
            filled[1] += usize::from(b != EMPTY);
        }
    }
    (others * BINS_AN_AGREEMENT >= filled[0].min(filled[1])).then_some(all)
}
