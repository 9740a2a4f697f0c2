//! Taps filled run by run, as rows are decoded: no columns and symbols in between.

use super::{Form, JOINED_PLACES, OFFSET, Places, Taps};
use crate::simd::{Cutting, Kernels, Spacing};

/// Rows that are handed over to [`Taps`], which have none until [`Filling::finish`].
pub struct Filling<'a> {
    taps: &'a mut Taps,
    kernels: &'a dyn Kernels,
    places: &'a Places,
    spacing: Spacing<'a>,
    /// The row of the matrix that is the first one.
    first: usize,
    /// The largest rank.
    largest: u16,
    /// Entries; what is behind them is of earlier rows.
    len: usize,
}

impl<'a> Filling<'a> {
    /// Rows from row `first` of a matrix of up to 256 values on; none where the places ask for
    /// sums to be moved, or are too many to be joined with symbols.
    pub fn new(
        taps: &'a mut Taps,
        kernels: &'a dyn Kernels,
        places: &'a Places,
        first: usize,
    ) -> Option<Self> {
        // Strips are cut by places, which rise from channel to channel.
        let are_whole = places.strip.is_multiple_of(places.taps.len())
            && places.taps.iter().all(|&tap| tap < places.channel);
        let has_shifts = !places.shifts.is_empty();
        if has_shifts || places.end > JOINED_PLACES || places.count > 1 && !are_whole {
            return None;
        }
        taps.nrows = 0;
        taps.shifts = None;
        (taps.is_sorted, taps.form, taps.reach) = (places.is_sorted, Form::Joined, 0);
        taps.starts.clear();
        let spacing = Spacing::new(&places.taps, places.channel);
        Some(Self { taps, kernels, places, spacing, first, largest: 0, len: 0 })
    }

    /// Adds kept weights of row `row` of the matrix, at columns `positions` less `start`; what their
    /// values are [`Filling::finish`] says of ranks.
    ///
    /// # Panics
    /// When the row is before the last one, or there are not as many ranks as positions.
    pub fn push(&mut self, row: usize, start: u32, positions: &[u32], ranks: &[u16]) {
        let started = self.first + self.taps.starts.len();
        assert!(row >= self.first && row + 1 >= started, "taps: row {row} is over");
        let row = row - self.first;
        if self.taps.starts.len() <= row {
            self.taps.starts.resize(row + 1, self.len);
        }
        let entries = &mut self.taps.joined.entries;
        let end = self.len + positions.len();
        if entries.len() < end {
            entries.resize(end, 0);
        }
        let entries = &mut entries[self.len..end];
        self.len = end;
        let base = self.places.base((self.first + row) / self.places.group_rows);
        let spacing = self.spacing.at(base);
        let (reach, symbol) = self.kernels.join(positions, start, ranks, &spacing, entries);
        self.taps.reach = self.taps.reach.max(reach);
        self.largest = self.largest.max(symbol);
    }

    /// Ends the last of `nrows` rows; `values` are those of ranks.
    ///
    /// # Panics
    /// When there are more rows, a rank has no value, or there are 2³² weights or more places than
    /// were said.
    pub fn finish(self, nrows: usize, values: &[f32]) {
        let Self { taps, kernels, places, first, largest, len, .. } = self;
        assert!(u32::try_from(len).is_ok(), "taps: {len} weights");
        assert!(taps.starts.len() <= nrows, "taps: more rows than {nrows}");
        taps.starts.resize(nrows + 1, len);
        let is_one_group = places.count == 1 || first + nrows <= places.group_rows;
        assert!(is_one_group, "taps: strips of several groups of rows");
        taps.check_joined(len, largest, values);
        // As entries have it: four times the place of the strip's first channel.
        let step = places.strip / places.taps.len() * places.channel as usize * 4;
        let (weights, indptr, count) = (&taps.joined.entries[..len], &taps.starts, places.count);
        kernels.cut(&Cutting { weights, mask: OFFSET, indptr, count, step }, &mut taps.cuts);
        if taps.is_sorted {
            taps.sort_joined(nrows, len);
        }
        taps.nrows = nrows;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decoded, Joined};
    use super::*;
    use crate::simd::tests::places;
    use crate::simd::{Shift, available};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_handed_over_run_by_run_are_those_that_are_filled_at_once(
            (ntaps, channels, strip) in (1usize..12, 1usize..9, 1usize..5),
            rows in prop::collection::vec(prop::collection::vec(any::<bool>(), 99), 0..6),
            (first, groups, is_even) in (0usize..4, 1usize..3, any::<bool>()),
            (run, k, start) in (1usize..40, 1usize..=256, any::<u32>()),
            is_sorted in any::<bool>(),
        ) {
            let ncols = ntaps * channels;
            let (count, group_rows) = match groups {
                1 => (channels.div_ceil(strip), first + rows.len().max(1)),
                _ => (1, 2),
            };
            let tap = |t: usize| if is_even { 5 * t as u32 } else { (t * t % 97) as u32 };
            let channel = if is_even { 5 * ntaps as u32 } else { 100 };
            let group_step = if groups == 1 { 0 } else { 1000 };
            let places = Places {
                taps: (0..ntaps).map(tap).collect(),
                channel,
                strip: if groups == 1 { strip * ntaps } else { ncols },
                count,
                group_rows,
                group_step,
                end: 20_000,
                is_sorted: is_sorted && groups == 1,
                ..places(ncols, 1)
            };
            let (mut indptr, mut cols) = (vec![0], Vec::new());
            for row in &rows {
                cols.extend((0..ncols as u32).filter(|&col| row[col as usize]));
                indptr.push(cols.len());
            }
            let symbols: Vec<u16> = (0..cols.len()).map(|i| (i * 7 % k) as u16).collect();
            let codebook: Vec<f32> = (0..k).map(|i| i as f32).collect();
            for set in available() {
                let (mut filled, mut expected) = (Taps::default(), Taps::default());
                // Something from before.
                filled.joined.entries = vec![3; 50];
                let mut filling = Filling::new(&mut filled, set, &places, first).unwrap();
                for (row, ends) in indptr.windows(2).enumerate() {
                    let part = ends[0]..ends[1];
                    let runs = cols[part.clone()].chunks(run).zip(symbols[part].chunks(run));
                    for (cols, symbols) in runs {
                        let positions: Vec<u32> =
                            cols.iter().map(|col| col.wrapping_add(start)).collect();
                        filling.push(first + row, start, &positions, symbols);
                    }
                }
                filling.finish(rows.len(), &codebook);
                let decoded = Decoded {
                    indptr: &indptr,
                    cols: &mut cols.clone(),
                    symbols: &symbols,
                    codebook: &codebook,
                    values: &mut if cols.is_empty() { vec![1.0] } else { Vec::new() },
                };
                expected.fill(set, decoded, first, &places);
                filled.shrink();
                prop_assert_eq!(&filled.cuts, &expected.cuts, "{}", set.name());
                let Joined { entries, codebook, largest } = &filled.joined;
                prop_assert_eq!(*largest, expected.joined.largest);
                prop_assert_eq!(entries, &expected.joined.entries, "{}", set.name());
                prop_assert_eq!(&codebook.0[..], &expected.joined.codebook.0[..]);
                prop_assert_eq!((filled.reach, filled.nrows), (expected.reach, rows.len()));
            }
        }
    }

    #[test]
    fn what_does_not_fit_panics_and_leaves_no_rows() {
        let places = Places { taps: vec![0, 1], group_rows: 3, ..places(4, 2) };
        for set in available() {
            let mut taps = Taps::default();
            let mut fails = |rows: [usize; 2], nrows: usize, ranks: [u16; 1]| {
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let mut filling = Filling::new(&mut taps, set, &places, 5).unwrap();
                    rows.iter().for_each(|&row| filling.push(row, 8, &[9], &ranks));
                    filling.finish(nrows, &[1.0, 2.0]);
                }));
                assert_eq!(taps.nrows, if outcome.is_ok() { nrows } else { 0 }, "{}", set.name());
                outcome.is_err()
            };
            assert!(!fails([5, 7], 3, [1]));
            assert!(!fails([5, 5], 4, [1]));
            assert!(fails([5, 7], 2, [1]));
            assert!(fails([6, 5], 3, [1]));
            assert!(fails([4, 5], 3, [1]));
            assert!(fails([5, 7], 3, [2]));
        }
        let shift = Shift::new(0, 0, &[true; 16]);
        let moved = Places { shifts: [shift].into(), ..places.clone() };
        let far = Places { end: JOINED_PLACES + 1, ..places.clone() };
        let cut = Places { strip: 3, count: 2, ..places };
        for places in [moved, far, cut] {
            assert!(Filling::new(&mut Taps::default(), available()[0], &places, 0).is_none());
        }
    }
}
