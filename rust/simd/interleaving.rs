//! Maps of eight images, number by number side by side, and back.
//!
//! ```text
//!   maps   [8][…]                      one slice an image, rows of `width` next to each other
//!   cells  row · pitch + col · cell    the eight numbers of a place, from there on
//! ```

use super::scalar::maximum;

/// Images whose numbers lie side by side.
pub const IMAGES: usize = 8;

/// Where the cells of maps are.
#[derive(Clone, Copy, Debug)]
pub struct Cells {
    /// Places of a row.
    pub width: usize,
    /// Numbers from one row of cells to the next.
    pub pitch: usize,
    /// Numbers from one cell to the next, at least [`IMAGES`].
    pub cell: usize,
}

impl Cells {
    /// Where the first number of place `place` of each map is.
    #[inline]
    pub(super) fn at(&self, place: usize) -> usize {
        place / self.width * self.pitch + place % self.width * self.cell
    }

    /// # Panics
    /// When rows or cells overlap, or `numbers` are too few for `rows` rows.
    pub(super) fn check_rows(&self, rows: usize, numbers: usize) {
        let Self { width, pitch, cell } = *self;
        let row = width.checked_mul(cell).filter(|&row| row <= pitch && width > 0);
        let is_apart = cell >= IMAGES && row.is_some();
        let last = rows.checked_sub(1).map(|last| last.checked_mul(pitch));
        let fits = last.is_none_or(|last| {
            let end = last.and_then(|last| last.checked_add((width - 1) * cell + IMAGES));
            end.is_some_and(|end| end <= numbers)
        });
        assert!(is_apart && fits, "copy_cells: {self:?}, {rows} rows, {numbers} numbers");
    }

    /// # Panics
    /// When rows or cells overlap, maps differ in length, or `cells` numbers are too few for them.
    pub(super) fn check(&self, lens: [usize; IMAGES], cells: usize) {
        let Self { width, pitch, cell } = *self;
        let is_apart = width > 0 && cell >= IMAGES && pitch >= width * cell;
        let is_even = lens.iter().all(|&len| len == lens[0]);
        let fits = lens[0].checked_sub(1).is_none_or(|last| self.at(last) + IMAGES <= cells);
        assert!(is_apart && is_even && fits, "interleave: {self:?}, {lens:?}, {cells} numbers");
    }
}

/// The specification of [`Kernels::interleave`].
pub(super) fn interleave(maps: [&[f32]; IMAGES], cells: Cells, out: &mut [f32]) {
    cells.check(maps.map(<[f32]>::len), out.len());
    for place in 0..maps[0].len() {
        let cell = &mut out[cells.at(place)..][..IMAGES];
        cell.iter_mut().zip(maps).for_each(|(out, map)| *out = map[place]);
    }
}

/// The specification of [`Kernels::separate`].
pub(super) fn separate(x: &[f32], cells: Cells, mut maps: [&mut [f32]; IMAGES]) {
    cells.check(maps.each_ref().map(|map| map.len()), x.len());
    for place in 0..maps[0].len() {
        let cell = &x[cells.at(place)..][..IMAGES];
        maps.iter_mut().zip(cell).for_each(|(map, x)| map[place] = *x);
    }
}

/// The specification of [`Kernels::copy_cells`].
pub(super) fn copy_cells(rows: usize, (x, from): (&[f32], Cells), (out, to): (&mut [f32], Cells)) {
    check_copy(rows, (x, from), (out, to));
    for place in 0..rows * from.width {
        out[to.at(place)..][..IMAGES].copy_from_slice(&x[from.at(place)..][..IMAGES]);
    }
}

/// # Panics
/// As [`Kernels::copy_cells`].
pub(super) fn check_copy(rows: usize, (x, from): (&[f32], Cells), (out, to): (&[f32], Cells)) {
    assert_eq!(from.width, to.width, "copy_cells: cells of a row");
    from.check_rows(rows, x.len());
    to.check_rows(rows, out.len());
}

/// The specification of [`Kernels::greatest_of_four_cells`].
pub(super) fn greatest_of_four(width: usize, x: &[f32], out: &mut [f32]) {
    for (rows, out) in checked_rows(width, x, out) {
        let (upper, lower) = rows.split_at(rows.len() / 2);
        for (i, cell) in out.chunks_exact_mut(IMAGES).enumerate() {
            for (number, y) in cell.iter_mut().enumerate() {
                let at = 2 * i * IMAGES + number;
                let pair = |row: &[f32]| maximum(row[at], row[at + IMAGES]);
                *y = maximum(pair(upper), pair(lower));
            }
        }
    }
}

/// Pairs of rows of `width` cells, and the row that becomes of them.
///
/// # Panics
/// When the width is odd, x is not whole pairs of rows, or `out` not a quarter as long.
pub(super) fn checked_rows<'a>(
    width: usize,
    x: &'a [f32],
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [f32], &'a mut [f32])> {
    let row = width * IMAGES;
    let is_fit = width > 0 && width.is_multiple_of(2) && x.len() == 4 * out.len();
    assert!(is_fit && x.len().is_multiple_of(2 * row), "greatest_of_four_cells: rows of {width}");
    x.chunks_exact(2 * row).zip(out.chunks_exact_mut(row / 2))
}

#[cfg(test)]
mod tests {
    use super::super::tests::places;
    use super::super::{
        Decoded, Finish, GRID_LINE, Grid, Kernels, Places, Start, Taps, TileProduct, available,
    };
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cells_are_copied_and_what_is_between_stays(
            (rows, width) in (0usize..5, 1usize..6),
            (wider, more) in (prop::array::uniform2(0usize..9), prop::array::uniform2(0usize..20)),
        ) {
            let [from, to] = [0, 1].map(|side| {
                let cell = IMAGES + wider[side];
                Cells { width, pitch: width * cell + more[side], cell }
            });
            let x: Vec<f32> = (0..rows * from.pitch).map(|i| i as f32).collect();
            for set in available() {
                let mut out = vec![-1.0; rows * to.pitch];
                set.copy_cells(rows, (&x, from), (&mut out, to));
                let mut expected = vec![-1.0; out.len()];
                for (row, col) in (0..rows).flat_map(|row| (0..width).map(move |col| (row, col))) {
                    let at = |cells: Cells| row * cells.pitch + col * cells.cell;
                    for number in 0..IMAGES {
                        expected[at(to) + number] = x[at(from) + number];
                    }
                }
                prop_assert_eq!(out, expected, "{}", set.name());
                let fails = |rows: usize, from: Cells, to: Cells, len: usize| {
                    let copy = || set.copy_cells(rows, (&x, from), (&mut vec![0.0; len], to));
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(copy)).is_err()
                };
                let room = (rows + 1) * to.pitch;
                prop_assert!(fails(rows + 1, from, to, room) && fails(rows + 1, from, to, 7));
                let (wide, narrow) = (Cells { width: width + 1, ..to }, Cells { cell: 7, ..from });
                prop_assert!(fails(rows, from, wide, 2 * room));
                prop_assert!(fails(rows, narrow, to, room));
                prop_assert!(fails(usize::MAX, from, to, room));
            }
        }

        #[test]
        fn maps_go_into_cells_and_back(
            width in 1usize..20, rows in 0usize..6, more in 0usize..12, cell in IMAGES..20, gap in 0usize..9,
        ) {
            let pitch = width * cell + gap;
            let len = rows * width + more.min(width - 1);
            let cells = Cells { width, pitch, cell };
            let maps: Vec<Vec<f32>> = (0..IMAGES)
                .map(|map| (0..len).map(|place| (map * 1000 + place) as f32).collect())
                .collect();
            for set in available() {
                let mut out = vec![-1.0; (rows + 1) * pitch];
                set.interleave(std::array::from_fn(|map| maps[map].as_slice()), cells, &mut out);
                let mut expected = vec![-1.0; out.len()];
                for (map, numbers) in maps.iter().enumerate() {
                    for (place, &x) in numbers.iter().enumerate() {
                        expected[place / width * pitch + place % width * cell + map] = x;
                    }
                }
                prop_assert_eq!(&out, &expected, "{}", set.name());
                let mut found = vec![vec![-2.0; len]; IMAGES];
                let mut parts = found.iter_mut();
                let to = std::array::from_fn(|_| parts.next().unwrap().as_mut_slice());
                set.separate(&out, cells, to);
                prop_assert_eq!(&found, &maps, "{}", set.name());
            }
        }

        #[test]
        fn the_greatest_of_cells_is_that_of_each_image(
            width in 1usize..6, rows in 1usize..4, holes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![Just(f32::NAN), Just(f32::NEG_INFINITY)]), 0..4), seed in any::<u32>(),
        ) {
            let (width, rows) = (2 * width, 2 * rows);
            let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) ^ seed) as i32 as f32;
            let mut x: Vec<f32> = (0..rows * width * IMAGES).map(number).collect();
            for (at, hole) in holes {
                let at = at.index(x.len());
                x[at] = hole;
            }
            for set in available() {
                let mut out = vec![0.0; x.len() / 4];
                set.greatest_of_four_cells(width, &x, &mut out);
                for (at, y) in out.iter().enumerate() {
                    let (place, image) = (at / IMAGES, at % IMAGES);
                    let (i, j) = (place / (width / 2), place % (width / 2));
                    let at = |di, dj| x[((2 * i + di) * width + 2 * j + dj) * IMAGES + image];
                    let four = [at(0, 0), at(0, 1), at(1, 0), at(1, 1)];
                    let most = four.into_iter().fold(f32::NEG_INFINITY, f32::max);
                    let expected = if four.iter().any(|x| x.is_nan()) { f32::NAN } else { most };
                    prop_assert!(
                        *y == expected || y.is_nan() && expected.is_nan(),
                        "{} {y}, expected {expected}", set.name()
                    );
                }
            }
        }

        #[test]
        fn tiles_of_several_lines_are_their_definition(
            counts in prop::collection::vec(0usize..40, 1..5), lines in prop_oneof![Just(2usize), Just(4)],
            pitch in 0usize..60, more in 0usize..9, strips in 1usize..4, is_sorted in any::<bool>(),
            is_wide in any::<bool>(), has_finish in any::<bool>(), seed in any::<u32>(),
        ) {
            let number = |i: usize| {
                let bits = (i as u32 ^ seed).wrapping_mul(2_654_435_761) >> 8;
                bits as f32 / (1 << 23) as f32 - 1.0
            };
            let nrows = counts.len();
            let size = lines * GRID_LINE;
            let input: Vec<f32> = (0..40 + 3 * pitch + GRID_LINE).map(number).collect();
            let codebook: Vec<f32> = (0..7).map(|i| number(i + 900)).collect();
            let indptr: Vec<usize> =
                (0..=nrows).map(|row| counts[..row].iter().sum()).collect();
            // Rising columns of each row.
            let cols: Vec<u32> = counts
                .iter()
                .flat_map(|&count| (0..count as u32).map(move |i| i + (40 - count as u32) / 2))
                .collect();
            let symbols: Vec<u16> = (0..cols.len()).map(|i| (i * 5 % 7) as u16).collect();
            let weights: Vec<f32> = symbols.iter().map(|&s| codebook[usize::from(s)]).collect();
            let strip = 40usize.div_ceil(strips);
            let places = Places { strip, count: strips, is_sorted, ..places(40, 1) };
            let vectors: [Vec<f32>; 2] = [70, 80].map(|at| (at..at + nrows).map(number).collect());
            let finish = has_finish.then_some(Finish {
                scale: Some(&vectors[0]), shift: Some(&vectors[1]), floor: -0.5, ceiling: 0.75,
            });
            let output_pitch = GRID_LINE + more;
            let stride = lines * output_pitch + more;
            for set in available() {
                let mut taps = Taps::default();
                let decoded = Decoded {
                    indptr: &indptr,
                    cols: &mut cols.clone(),
                    symbols: if is_wide { &[] } else { &symbols },
                    codebook: if is_wide { &[] } else { &codebook },
                    values: &mut if is_wide { weights.clone() } else { Vec::new() },
                };
                taps.fill(set, decoded, 0, &places);
                let mut sums = vec![f32::NAN; nrows * size];
                let mut output = vec![f32::NAN; nrows * stride];
                for strip in 0..strips {
                    let grid = Grid { lines, pitch, output_pitch: GRID_LINE };
                    let product = TileProduct {
                        strip: taps.strip(strip, 0, nrows),
                        size,
                        input: &input,
                        start: if strip == 0 { Start::Zero } else { Start::Output },
                        finish: None,
                        stride: size,
                        grid,
                    };
                    if strip + 1 < strips {
                        set.add_strip(&product, &mut sums);
                        continue;
                    }
                    let start = if strip == 0 { Start::Zero } else { Start::Sums(&sums) };
                    let grid = Grid { output_pitch, ..grid };
                    let product = TileProduct { start, finish, stride, grid, ..product };
                    set.add_strip(&product, &mut output);
                }
                for row in 0..nrows {
                    for (line, at) in (0..lines).flat_map(|line| (0..GRID_LINE).map(move |at| (line, at))) {
                        let terms = (indptr[row]..indptr[row + 1]).map(|i| {
                            let x = input[cols[i] as usize + line * pitch + at];
                            f64::from(weights[i]) * f64::from(x)
                        });
                        let (sum, total) =
                            terms.fold((0.0, 0.0), |(sum, total), term| (sum + term, total + term.abs()));
                        let mut expected = sum;
                        if has_finish {
                            let of = |i: usize| f64::from(vectors[i][row]);
                            expected = (sum * of(0) + of(1)).clamp(-0.5, 0.75);
                        }
                        let found = output[row * stride + line * output_pitch + at];
                        let bound = 48.0 * 2f64.powi(-24) * (total + 1.0);
                        prop_assert!((f64::from(found) - expected).abs() <= bound, "{} {found} {expected}", set.name());
                    }
                }
                // Nothing else is written.
                let written = output.iter().filter(|y| !y.is_nan()).count();
                prop_assert_eq!(written, nrows * size, "{}", set.name());
            }
        }
    }

    #[test]
    fn what_does_not_fit_panics() {
        let fails = |set: &dyn Kernels, lens: [usize; 2], cells: Cells, room: usize| {
            let is_err = |f: &mut dyn FnMut()| {
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
            };
            let mut maps = vec![vec![0.0; lens[0]]; IMAGES];
            maps[IMAGES - 1] = vec![0.0; lens[1]];
            let mut cells_of = vec![0.0; room];
            let first = is_err(&mut || {
                let maps = std::array::from_fn(|map| maps[map].as_slice());
                set.interleave(maps, cells, &mut cells_of);
            });
            let second = is_err(&mut || {
                let mut parts = maps.iter_mut();
                let to = std::array::from_fn(|_| parts.next().unwrap().as_mut_slice());
                set.separate(&cells_of, cells, to);
            });
            assert_eq!(first, second, "{}", set.name());
            first
        };
        let cells = Cells { width: 4, pitch: 32, cell: 8 };
        for set in available() {
            assert!(!fails(set, [12, 12], cells, 96));
            assert!(!fails(set, [0, 0], cells, 0));
            assert!(fails(set, [12, 12], cells, 95));
            assert!(fails(set, [12, 11], cells, 96));
            assert!(fails(set, [12, 13], cells, 96));
            assert!(fails(set, [12, 12], Cells { pitch: 31, ..cells }, 96));
            assert!(fails(set, [12, 12], Cells { cell: 7, pitch: 32, ..cells }, 96));
            let is_odd = std::panic::catch_unwind(|| {
                set.greatest_of_four_cells(3, &[0.0; 96], &mut [0.0; 24]);
            });
            assert!(is_odd.is_err());
        }
    }
}
