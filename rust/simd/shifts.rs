//! Tap columns that share one copy of the input: what is moved sideways are their sums.
//!
//! ```text
//!   sums[kx][p] = Σ value · input[offset + p]        over the taps of column kx
//!   y[p]        = Σ sums[kx][p + by(kx)]             where p + by(kx) is in p's row of its image
//! ```
//!
//! One move a row, strip and tap column costs far less than a copy of the input for each tap
//! column: of a third of the numbers three times as many channels stay in the first-level cache,
//! and a kernel of 3 × 3 is bound by loads from there. For this the weights of a strip of a row are
//! sorted by their tap column ([`sort`]), the column that moves nothing last, so that its taps add
//! to the sums in place.
//!
//! Rows of outputs are whole cache lines and tiles whole rows, so that no sum comes from another
//! tile.

use super::LARGEST_TILE;

/// Numbers of a cache line.
const LINE: usize = 16;

/// Most tap columns that share an input.
pub const MAX_SHIFTS: usize = 8;

/// The furthest that sums are moved: the lanes of the narrowest registers.
pub const MAX_MOVE: usize = 8;

/// A tap column of those that share an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    column: u32,
    by: isize,
    row: usize,
    /// As many as the largest tile has, so that a tile takes the first ones.
    reach: Vec<u32>,
}

impl Shift {
    /// Tap column `column`, whose sum at `p + by` belongs to output `p` wherever `reaches[p]`, for
    /// the outputs of one row.
    ///
    /// # Panics
    /// When the row is no power of two of whole cache lines, a sum is moved by more than
    /// [`MAX_MOVE`] or comes from outside the row.
    pub fn new(column: u32, by: isize, reaches: &[bool]) -> Self {
        let row = reaches.len();
        let is_row = row.is_power_of_two() && (LINE..=LARGEST_TILE).contains(&row);
        assert!(is_row, "shift: a row of {row}");
        assert!(by.unsigned_abs() <= MAX_MOVE, "shift: by {by}");
        let is_inside = |p: usize| p.checked_add_signed(by).is_some_and(|from| from < row);
        let all_inside = reaches.iter().enumerate().all(|(p, &reaches)| !reaches || is_inside(p));
        assert!(all_inside, "shift: from outside a row of {row}, by {by}");
        let bits = reaches.iter().map(|&reaches| if reaches { u32::MAX } else { 0 });
        Self { column, by, row, reach: bits.cycle().take(LARGEST_TILE).collect() }
    }

    /// The number of the tap column.
    #[inline]
    pub(super) fn column(&self) -> u32 {
        self.column
    }

    /// How far after an output its sum is; at most [`MAX_MOVE`] either way.
    #[inline]
    pub(super) fn by(&self) -> isize {
        self.by
    }

    /// Outputs of a row.
    #[inline]
    pub(super) fn row(&self) -> usize {
        self.row
    }

    /// All bits for each output of a tile that gets a sum, none for the others.
    #[inline]
    pub(super) fn reach(&self) -> &[u32; LARGEST_TILE] {
        self.reach.first_chunk().expect("as long as the largest tile")
    }
}

/// Weights of one row: where they are, and their symbols or values.
pub type Weights<'a, T> = (&'a [u32], &'a [T]);

/// The most that a sort may write beyond the weights, for registers that are stored whole.
pub const SORT_ROOM: usize = 16;

/// Weights in another order, and room for [`SORT_ROOM`] more.
pub type Sorted<'a, T> = (&'a mut [u32], &'a mut [T]);

/// The specification of [`super::Kernels::sort_by_tap`], for symbols and for values.
pub(super) fn sort<T: Copy>(
    width: u32,
    shifts: &[Shift],
    (cols, others): Weights<'_, T>,
    (sorted_cols, sorted_others): Sorted<'_, T>,
) -> [u32; MAX_SHIFTS] {
    check_lengths((cols, others), (sorted_cols, sorted_others));
    let mut part_of = [MAX_SHIFTS; MAX_SHIFTS];
    for (part, shift) in shifts.iter().enumerate() {
        part_of[shift.column as usize] = part;
    }
    let part = |col: u32| {
        // A width that is known needs no division.
        let column = if width == 3 { col % 3 } else { col % width };
        part_of[column as usize]
    };
    let mut counts = [0; MAX_SHIFTS];
    for &col in cols {
        counts[part(col)] += 1;
    }
    let (mut next, mut at) = ([0; MAX_SHIFTS], 0);
    for (next, &count) in next.iter_mut().zip(&counts) {
        (*next, at) = (at, at + count as usize);
    }
    for (&col, &other) in cols.iter().zip(others) {
        let next = &mut next[part(col)];
        (sorted_cols[*next], sorted_others[*next]) = (col, other);
        *next += 1;
    }
    counts
}

/// # Panics
/// When lengths differ, or there is no room.
#[inline]
pub(super) fn check_lengths<T>(weights: Weights<'_, T>, sorted: Sorted<'_, T>) {
    let room = sorted.0.len().min(sorted.1.len());
    let is_fit = weights.0.len() == weights.1.len() && room >= weights.0.len() + SORT_ROOM;
    assert!(is_fit, "sort_by_tap: {} columns, {} symbols", weights.0.len(), weights.1.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernels, available};
    use proptest::prelude::*;

    /// Tap columns in an order of which the first moves most.
    fn shifts(width: u32, is_reversed: bool) -> Vec<Shift> {
        let shift = |column: u32| Shift::new(column, -(column as isize), &[false; LINE]);
        let columns = (0..width).map(|i| if is_reversed { width - 1 - i } else { i });
        columns.map(shift).collect()
    }

    proptest! {
        #[test]
        fn weights_are_sorted_by_tap_column_and_keep_their_order(
            width in 1u32..=MAX_SHIFTS as u32,
            gaps in prop::collection::vec(1u32..40, 0..200),
            start in prop_oneof![Just(0u32), Just((1 << 22) - 500), Just(1 << 30)],
            is_reversed in any::<bool>(),
        ) {
            let cols: Vec<u32> = gaps
                .iter()
                .scan(start, |col, gap| { *col += gap; Some(*col) })
                .collect();
            let symbols: Vec<u16> = (0..cols.len() as u16).map(|i| i.wrapping_mul(977)).collect();
            let shifts = shifts(width, is_reversed);
            let mut expected: Vec<(u32, u16)> = cols.iter().copied().zip(symbols.iter().copied()).collect();
            expected.sort_by_key(|&(col, _)| {
                if is_reversed { width - 1 - col % width } else { col % width }
            });
            for set in available() {
                let mut sorted = (vec![7; cols.len() + SORT_ROOM], vec![7; cols.len() + SORT_ROOM]);
                let counts = set.sort_by_tap(
                    width, &shifts, (&cols, &symbols), (&mut sorted.0, &mut sorted.1),
                );
                let found: Vec<_> = sorted.0.into_iter().zip(sorted.1).take(cols.len()).collect();
                prop_assert_eq!(&found, &expected, "{}", set.name());
                for (count, shift) in counts.iter().zip(&shifts) {
                    let of = cols.iter().filter(|&&col| col % width == shift.column()).count();
                    prop_assert_eq!(*count as usize, of, "{}", set.name());
                }
                prop_assert!(counts[shifts.len()..].iter().all(|&count| count == 0));
            }
        }
    }

    #[test]
    fn what_does_not_fit_panics() {
        let fails = |set: &dyn Kernels, shifts: &[Shift], nsymbols: usize, room: usize| {
            std::panic::catch_unwind(|| {
                let (cols, symbols) = ([0, 1, 2, 3], vec![0; nsymbols]);
                let (mut to_cols, mut to_symbols) = (vec![0; room], vec![0; room]);
                set.sort_by_tap(3, shifts, (&cols, &symbols), (&mut to_cols, &mut to_symbols));
            })
            .is_err()
        };
        for set in available() {
            let (all, some) = (shifts(3, false), shifts(2, false));
            assert!(!fails(set, &all, 4, 4 + SORT_ROOM), "{}", set.name());
            assert!(fails(set, &all, 3, 4 + SORT_ROOM), "{}", set.name());
            assert!(fails(set, &all, 4, 3 + SORT_ROOM), "{}", set.name());
            assert!(fails(set, &some, 4, 4 + SORT_ROOM), "{}", set.name());
        }
        let is_bad = |by: isize, row: usize, reaches: bool| {
            std::panic::catch_unwind(|| Shift::new(0, by, &vec![reaches; row])).is_err()
        };
        assert!(is_bad(9, 16, false) && is_bad(0, 24, false) && is_bad(0, 8, false));
        assert!(is_bad(1, 16, true) && is_bad(-1, 16, true) && !is_bad(0, 16, true));
    }
}
