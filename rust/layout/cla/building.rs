//! The writing half of `cla`: groups become sections, one after another.
//!
//! The layout's page draws the sections; numbers are collected wide and packed at the end, when
//! the length of all lists, and so the width of their starts, is known.

use super::cocoding::TupleRows;
use super::{Cla, Kind, MAX_TUPLES_8, SEGMENT_ROWS, segment_of};
use crate::rows::Shape;
use crate::words::Words;

/// The sections of a matrix while its groups are added.
#[derive(Default)]
pub(super) struct Builder {
    kinds: Vec<u8>,
    sizes: Vec<u64>,
    cols: Vec<u64>,
    tuples: Vec<u64>,
    starts: Vec<u64>,
    lists: Vec<u16>,
    codes8: Vec<u8>,
    codes16: Vec<u16>,
    symbols: Vec<u64>,
}

impl Builder {
    /// Adds a group as `kind`, after those that are there.
    pub(super) fn add(&mut self, group: &TupleRows, kind: Kind, nrows: usize) {
        self.kinds.push(kind as u8);
        self.cols.extend(group.cols.iter().map(|&col| u64::from(col)));
        let width = group.cols.len();
        let tuples = || group.tuples.iter().map(|&word| u64::from(word));
        let mut ntuples = group.ntuples();
        match kind {
            Kind::Offsets | Kind::Runs => {
                self.tuples.extend(tuples());
                for tuple in 0..ntuples {
                    self.starts.push(self.lists.len() as u64);
                    push_list(kind, group.rows(tuple), &mut self.lists);
                }
            }
            Kind::Codes => {
                // Sorted, the all-zero tuple comes first.
                let zero = usize::from(group.nrows() < nrows);
                self.tuples.extend(std::iter::repeat_n(0, zero * width).chain(tuples()));
                let mut codes = vec![0; nrows];
                for tuple in 0..ntuples {
                    group.rows(tuple).iter().for_each(|&r| codes[r as usize] = tuple + zero);
                }
                ntuples += zero;
                if ntuples <= MAX_TUPLES_8 {
                    self.codes8.extend(codes.iter().map(|&code| code as u8));
                } else {
                    self.codes16.extend(codes.iter().map(|&code| code as u16));
                }
            }
            Kind::Plain => {
                let at = self.symbols.len();
                self.symbols.resize(at + width * nrows, 0);
                for (tuple, words) in group.tuples.chunks_exact(width).enumerate() {
                    for (j, &word) in words.iter().enumerate() {
                        for &row in group.rows(tuple) {
                            self.symbols[at + j * nrows + row as usize] = u64::from(word);
                        }
                    }
                }
                ntuples = 0;
            }
        }
        self.sizes.extend([width as u64, ntuples as u64]);
    }

    /// Packs the sections of a matrix of `shape` with `k` distinct values.
    pub(super) fn finish(mut self, shape: Shape, k: usize) -> Cla {
        self.starts.push(self.lists.len() as u64);
        let pack = |words: Vec<u64>, max: usize| Words::pack(words.into_iter(), max as u64);
        Cla {
            nrows: shape.nrows,
            kinds: self.kinds.into(),
            sizes: pack(self.sizes, shape.nrows.max(shape.ncols)),
            cols: pack(self.cols, shape.ncols.saturating_sub(1)),
            tuples: pack(self.tuples, k),
            starts: pack(self.starts, self.lists.len()),
            lists: self.lists.into(),
            codes8: self.codes8.into(),
            codes16: self.codes16.into(),
            symbols: pack(self.symbols, k),
        }
    }
}

/// Appends the list of rising `rows` as offsets or as runs.
fn push_list(kind: Kind, rows: &[u32], lists: &mut Vec<u16>) {
    let mut segment = 0;
    for in_segment in rows.chunk_by(|&a, &b| segment_of(a) == segment_of(b)) {
        lists.resize(lists.len() + segment_of(in_segment[0]) - segment, 0);
        segment = segment_of(in_segment[0]) + 1;
        let offset = |row: u32| (row as usize % SEGMENT_ROWS) as u16;
        if kind == Kind::Offsets {
            lists.push(in_segment.len() as u16);
            lists.extend(in_segment.iter().map(|&row| offset(row)));
        } else {
            let count_at = lists.len();
            lists.push(0);
            for run in in_segment.chunk_by(|&a, &b| a + 1 == b) {
                lists.extend([offset(run[0]), run.len() as u16]);
                lists[count_at] += 1;
            }
        }
    }
}
