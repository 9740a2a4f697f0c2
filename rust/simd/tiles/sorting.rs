//! Weights sorted by strip, so that those of a strip follow one another in memory.

use super::{ROOM, Taps};
use crate::simd::Kernels;
use crate::simd::shifts::{self, SORT_ROOM, Shift};

/// Room for weights that are sorted by strip, row and tap column.
#[derive(Clone, Debug, Default)]
pub(super) struct Sorting {
    pub(super) cuts: Vec<u32>,
    pub(super) cols: Vec<u32>,
    pub(super) symbols: Vec<u16>,
    pub(super) values: Vec<f32>,
}

impl Sorting {
    /// Takes weights that are cut as [`Taps::cuts`] says of decoded ones; their values, or else their
    /// symbols.
    pub(super) fn sort(
        &mut self,
        kernels: &dyn Kernels,
        shifts: &[Shift],
        cuts: &[u32],
        nrows: usize,
        (cols, symbols, values): (&[u32], &[u16], Option<&[f32]>),
    ) {
        self.cols.resize(cols.len() + SORT_ROOM, 0);
        match values {
            Some(values) => self.values.resize(values.len() + SORT_ROOM, 0.0),
            None => self.symbols.resize(symbols.len() + SORT_ROOM, 0),
        }
        self.cuts.clear();
        let (width, mut at) = (shifts.len() as u32, 0);
        for (&start, &end) in cuts.iter().zip(cuts.get(nrows..).unwrap_or(&[])) {
            let from = start as usize..end as usize;
            let sorted = &mut self.cols[at..];
            let mine = &cols[from.clone()];
            if shifts.is_empty() {
                sorted[..mine.len()].copy_from_slice(mine);
                match values {
                    Some(values) => {
                        self.values[at..at + mine.len()].copy_from_slice(&values[from]);
                    }
                    None => self.symbols[at..at + mine.len()].copy_from_slice(&symbols[from]),
                }
                self.cuts.push(at as u32);
                at += mine.len();
                continue;
            }
            let counts = match values {
                Some(values) => {
                    let sorted = (sorted, &mut self.values[at..]);
                    shifts::sort(width, shifts, (mine, &values[from]), sorted)
                }
                None => {
                    let sorted = (sorted, &mut self.symbols[at..]);
                    kernels.sort_by_tap(width, shifts, (mine, &symbols[from]), sorted)
                }
            };
            for &count in &counts[..shifts.len()] {
                self.cuts.push(at as u32);
                at += count as usize;
            }
        }
        self.cuts.push(at as u32);
        self.cols.truncate(at);
        self.symbols.truncate(at);
        self.values.truncate(at);
    }
}

impl Taps {
    /// Sorts `len` joined weights of `nrows` rows by strip.
    pub(super) fn sort_joined(&mut self, nrows: usize, len: usize) {
        let (entries, cuts) = (&self.joined.entries, &self.cuts);
        let Sorting { cols: sorted, cuts: sorted_cuts, .. } = &mut self.sorting;
        sorted.resize(sorted.len().max(len + 2 * ROOM), 0);
        sorted_cuts.clear();
        let mut to = 0;
        for (&start, &end) in cuts.iter().zip(&cuts[nrows.min(cuts.len())..]) {
            sorted_cuts.push(to as u32);
            let mut at = to;
            to += (end - start) as usize;
            let mut from = start as usize;
            // Whole ones: what is behind the row's part, the next one overwrites.
            while at < to {
                sorted[at..at + ROOM].copy_from_slice(&entries[from..from + ROOM]);
                (at, from) = (at + ROOM, from + ROOM);
            }
        }
        sorted_cuts.push(to as u32);
        sorted[len..len + ROOM].fill(0);
        std::mem::swap(&mut self.joined.entries, sorted);
        std::mem::swap(&mut self.cuts, sorted_cuts);
    }
}
