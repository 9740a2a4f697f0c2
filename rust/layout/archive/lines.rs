//! Rows or columns as lists of places and symbols, and one turned into the other.

use crate::codebook::Codebook;
use crate::rows::{Rows, Shape};
use std::sync::Arc;

/// The kept weights of lines, one line after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lines {
    /// Where each line starts; one more than there are lines.
    starts: Vec<usize>,
    /// The place in its line of each kept weight, rising.
    places: Vec<u32>,
    symbols: Vec<u16>,
}

impl Default for Lines {
    fn default() -> Self {
        Self { starts: vec![0], places: Vec::new(), symbols: Vec::new() }
    }
}

impl Lines {
    /// The rows of a matrix.
    pub(super) fn of_rows(rows: &Rows, symbols: &[u16]) -> Self {
        Self {
            starts: rows.indptr().to_vec(),
            places: rows.cols().to_vec(),
            symbols: symbols.to_vec(),
        }
    }

    pub(super) fn push(&mut self, place: u32, symbol: u16) {
        self.places.push(place);
        self.symbols.push(symbol);
    }

    pub(super) fn end_line(&mut self) {
        self.starts.push(self.places.len());
    }

    /// Adds lines of as many places after these.
    pub(super) fn append(&mut self, more: &Self) {
        let before = self.nnz();
        self.starts.extend(more.starts[1..].iter().map(|start| before + start));
        self.places.extend_from_slice(&more.places);
        self.symbols.extend_from_slice(&more.symbols);
    }

    /// The number of lines.
    pub(super) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub(super) fn nnz(&self) -> usize {
        self.places.len()
    }

    /// The places and symbols of a line.
    pub(super) fn line(&self, line: usize) -> (&[u32], &[u16]) {
        let range = self.starts[line]..self.starts[line + 1];
        (&self.places[range.clone()], &self.symbols[range])
    }

    /// The lines across these: `width / taps` of them, each with `taps` neighbours of every line.
    ///
    /// Turned again, with as many taps, they are these; with one, rows become columns.
    pub(super) fn turned(&self, width: usize, taps: usize) -> Self {
        let count = width / taps;
        let across = |place: u32| (place as usize / taps, place as usize % taps);
        let mut starts = vec![0; count + 1];
        self.places.iter().for_each(|&place| starts[across(place).0 + 1] += 1);
        for i in 0..count {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let (mut places, mut symbols) = (vec![0; self.nnz()], vec![0; self.nnz()]);
        for line in 0..self.len() {
            let (places_here, symbols_here) = self.line(line);
            for (&place, &symbol) in places_here.iter().zip(symbols_here) {
                let (to, tap) = across(place);
                let at = &mut next[to];
                (places[*at], symbols[*at]) = ((line * taps + tap) as u32, symbol);
                *at += 1;
            }
        }
        Self { starts, places, symbols }
    }

    /// The matrix of which these are the rows.
    pub(super) fn into_rows(self, shape: Shape, codebook: Arc<Codebook>) -> Rows {
        let mut rows = Rows::with_codebook(shape, codebook);
        for line in 0..self.len() {
            let (places, symbols) = self.line(line);
            places.iter().zip(symbols).for_each(|(&col, &symbol)| rows.push(col, symbol));
            rows.end_row();
        }
        rows.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_turned_has_the_same_weights_across_and_turns_back(
            lines in prop::collection::vec(prop::collection::btree_map(0u32..40, 0u16..9, 0..12), 0..30)
        ) {
            let mut straight = Lines::default();
            for line in &lines {
                line.iter().for_each(|(&place, &symbol)| straight.push(place, symbol));
                straight.end_line();
            }
            let turned = straight.turned(40, 1);
            prop_assert_eq!(turned.len(), 40);
            for (place, line) in (0..40).map(|place| (place, turned.line(place))) {
                let here = (0u32..).zip(&lines);
                let expected: Vec<(u32, u16)> =
                    here.filter_map(|(i, line)| Some((i, *line.get(&(place as u32))?))).collect();
                let found: Vec<(u32, u16)> =
                    line.0.iter().copied().zip(line.1.iter().copied()).collect();
                prop_assert_eq!(found, expected);
            }
            let back = turned.turned(lines.len(), 1);
            prop_assert_eq!(&back, &straight);
            let mut twice = straight.clone();
            twice.append(&straight);
            prop_assert_eq!(twice.len(), 2 * lines.len());
            for (i, line) in (0..lines.len()).map(|i| (i, straight.line(i))) {
                prop_assert_eq!((twice.line(i), twice.line(i + lines.len())), (line, line));
            }
            for taps in [4, 40] {
                let turned = straight.turned(40, taps);
                prop_assert_eq!(turned.len(), 40 / taps);
                for (i, line) in lines.iter().enumerate() {
                    for (&place, &symbol) in line {
                        let (to, tap) = (place as usize / taps, place as usize % taps);
                        let (places, symbols) = turned.line(to);
                        let at = places.binary_search(&((i * taps + tap) as u32)).unwrap();
                        prop_assert_eq!(symbols[at], symbol);
                    }
                }
                prop_assert_eq!(&turned.turned(lines.len() * taps, taps), &straight);
            }
        }
    }
}
