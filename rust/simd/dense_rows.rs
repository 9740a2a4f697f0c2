//! Dense rows: weights of every column, +0.0 where pruned, times the same inputs.
//!
//! ```text
//!   weights  [nrows][pitch]                  row after row
//!   offsets  [ncols]                         where each column's inputs start
//!   a piece  16 or 32 outputs · some rows    in registers, while all columns of a strip go by:
//!              load the column's outputs once; for each row: broadcast its weight, multiply–add
//! ```
//!
//! A kept weight in a row of taps loads its own inputs; here several rows share a load, so that a
//! column costs one broadcast a row beside its multiply–adds and they run at nearly full speed.
//! That pays where most weights are kept: the pruned ones are multiplied too, so inputs have to be
//! finite.
//!
//! Rows follow each other at an odd number of cache lines, so that those of one piece do not meet
//! in the same few places of a cache.
//!
//! Each sum is one chain of multiply–adds in the order of columns, whichever rows and outputs share
//! its registers.

use super::{LARGEST_TILE, Start, TileProduct};
use std::ops::Range;

/// Numbers from one dense row of `ncols` columns to the next: whole words of a bitmap fit, and rows
/// start at odd multiples of a cache line.
pub fn pitch(ncols: usize) -> usize {
    ncols.next_multiple_of(64) + 16
}

/// Dense rows as [`super::Taps`] keep them.
#[derive(Clone, Debug, Default)]
pub(super) struct Dense {
    /// Where each column's inputs start.
    pub(super) offsets: Vec<u32>,
    /// `nrows` · [`pitch`] of `offsets.len()` numbers at least.
    pub(super) weights: Vec<f32>,
}

/// Some columns of some rows, all of which are there.
#[derive(Clone, Copy, Debug)]
pub(super) struct DenseRows<'a> {
    offsets: &'a [u32],
    /// From the first of the columns of the first row on.
    weights: &'a [f32],
    pitch: usize,
    nrows: usize,
}

impl<'a> DenseRows<'a> {
    pub(super) fn new(dense: &'a Dense, cols: Range<usize>, rows: Range<usize>) -> Self {
        let pitch = pitch(dense.offsets.len());
        let weights = &dense.weights[rows.start * pitch..rows.end * pitch];
        let weights = weights.get(cols.start..).unwrap_or(&[]);
        Self { offsets: &dense.offsets[cols], weights, pitch, nrows: rows.len() }
    }

    /// The number of rows.
    #[inline]
    pub(super) fn nrows(self) -> usize {
        self.nrows
    }

    /// Where the inputs of each column start.
    #[inline]
    pub(super) fn offsets(self) -> &'a [u32] {
        self.offsets
    }

    /// The weights of row `row`, one for each of the offsets.
    #[inline]
    pub(super) fn row(self, row: usize) -> &'a [f32] {
        &self.weights[row * self.pitch..][..self.offsets.len()]
    }

    /// `N` rows from `row` on.
    #[inline]
    pub(super) fn rows<const N: usize>(self, row: usize) -> [&'a [f32]; N] {
        std::array::from_fn(|i| self.row(row + i))
    }
}

/// The sums that row `row` of a tile of `product.size` outputs starts with, from output `at` on;
/// none for zeros.
#[inline]
pub(super) fn start<'a>(
    product: &TileProduct<'a>,
    output: &'a [f32],
    row: usize,
    at: usize,
) -> Option<&'a [f32]> {
    match product.start {
        Start::Zero => None,
        Start::Output => Some(&output[row * product.stride + at..]),
        Start::Sums(sums) => Some(&sums[row * product.size + at..]),
    }
}

/// The specification.
pub(super) fn add_rows(product: &TileProduct<'_>, rows: DenseRows<'_>, output: &mut [f32]) {
    let TileProduct { size, input, finish, stride, .. } = *product;
    for row in 0..rows.nrows() {
        let mut sums = [0.0; LARGEST_TILE];
        let sums = &mut sums[..size];
        if let Some(from) = start(product, output, row, 0) {
            sums.copy_from_slice(&from[..size]);
        }
        for (weight, &offset) in rows.row(row).iter().zip(rows.offsets()) {
            let inputs = &input[offset as usize..][..size];
            sums.iter_mut().zip(inputs).for_each(|(sum, x)| *sum += weight * x);
        }
        if let Some(finish) = finish {
            let of_row = finish.row(row);
            sums.iter_mut().for_each(|sum| *sum = finish.of(*sum, of_row));
        }
        output[row * stride..][..size].copy_from_slice(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{places, random};
    use super::super::{
        Finish, Grid, Kernels, Places, SMALLEST_DENSE_TILE, SymbolRows, Taps, available,
    };
    use super::*;
    use proptest::prelude::*;

    /// Rows `rows` of dense weights times a tile that starts at `first`, strip by strip; the last
    /// one finishes.
    fn multiply(
        set: &dyn Kernels,
        taps: &Taps,
        places: &Places,
        rows: Range<usize>,
        input: &[f32],
        (size, stride): (usize, usize),
        finish: Finish<'_>,
    ) -> Vec<f32> {
        let mut y = vec![f32::NAN; rows.len() * stride];
        for number in 0..places.count {
            let is_last = number + 1 == places.count;
            let product = TileProduct {
                strip: taps.strip(number, rows.start, rows.end),
                size,
                input,
                start: if number == 0 { Start::Zero } else { Start::Output },
                finish: is_last.then_some(finish),
                stride,
                grid: Grid::LINE,
            };
            // As the engine does where outputs go to their place at the end.
            let before =
                y.chunks_exact(stride).flat_map(|y| y[..size].to_vec()).collect::<Vec<_>>();
            let start = if number == 0 { Start::Zero } else { Start::Sums(&before) };
            let product = if is_last { TileProduct { start, ..product } } else { product };
            set.add_strip(&product, &mut y);
        }
        y
    }

    proptest! {
        #[test]
        fn dense_rows_are_within_the_bound_on_every_instruction_set(
            nrows in 0usize..30, ncols in 0usize..150, log_size in 3u32..=8, strip in 1usize..160,
            gap in 0usize..9, seed in any::<u64>(),
        ) {
            let mut random = random(seed);
            let (size, pitch) = (1 << log_size, pitch(ncols));
            let mut number = || if random() < 0.3 { 0.0 } else { random() as f32 - 0.5 };
            // What follows a row may be anything.
            let mut weights = vec![f32::NAN; nrows * pitch];
            for row in weights.chunks_exact_mut(pitch) {
                row[..ncols].fill_with(&mut number);
            }
            let (taps, channel) = (vec![0, 5, 2], 11);
            let place = |col: usize| col / 3 * channel + taps[col % 3] as usize;
            let input: Vec<f32> = (0..ncols.div_ceil(3) * channel + size).map(|_| number()).collect();
            let vectors: [Vec<f32>; 2] = [(); 2].map(|()| (0..nrows).map(|_| number()).collect());
            let count = ncols.div_ceil(strip).max(1);
            let places = Places {
                taps: taps.clone(), strip, count, group_rows: nrows.max(1), group_step: input.len(),
                ..places(ncols, channel as u32)
            };
            for set in available() {
                let mut taps = Taps::default();
                taps.fill_dense(set, &mut weights.clone(), [nrows, ncols], &places);
                prop_assert_eq!(taps.nrows(), nrows);
                for rows in [0..nrows, nrows / 3..nrows, nrows / 2..nrows / 2] {
                    let finish = Finish {
                        scale: Some(&vectors[0][rows.clone()]), shift: Some(&vectors[1][rows.clone()]),
                        floor: -0.4, ceiling: 0.9,
                    };
                    let sizes = (size, size + gap);
                    let sums = multiply(set, &taps, &places, rows.clone(), &input, sizes, Finish::NOTHING);
                    let y = multiply(set, &taps, &places, rows.clone(), &input, sizes, finish);
                    for (row, p) in rows.clone().flat_map(|row| (0..size).map(move |p| (row, p))) {
                        let terms = (0..ncols).map(|col| {
                            f64::from(weights[row * pitch + col]) * f64::from(input[place(col) + p])
                        });
                        let (exact, total) =
                            terms.fold((0.0, 0.0), |(sum, total), t| (sum + t, total + t.abs()));
                        let bound = (ncols + 2) as f64 * (2f64.powi(-24) * total + 2f64.powi(-149));
                        let at = (row - rows.start) * (size + gap) + p;
                        let (name, sum) = (set.name(), f64::from(sums[at]));
                        prop_assert!((sum - exact).abs() <= bound, "{name} {sum}, expected {exact}");
                        let [scale, shift] = [0, 1].map(|i| f64::from(vectors[i][row]));
                        let finished = (sum * scale + shift).clamp(f64::from(-0.4f32), f64::from(0.9f32));
                        let far = 2f64.powi(-23) * ((sum * scale).abs() + shift.abs() + 1.0);
                        prop_assert!((f64::from(y[at]) - finished).abs() <= far, "{name} {}", y[at]);
                    }
                }
            }
        }

        #[test]
        fn every_instruction_set_spreads_a_bitmap_bit_by_bit(
            nrows in 0usize..5, ncols in 0usize..2300, k in 1usize..=256, density in 0.0f64..1.2,
            seed in any::<u64>(),
        ) {
            let mut random = random(seed);
            let codebook: [f32; 256] = std::array::from_fn(|i| if i < k { 0.5 - i as f32 } else { f32::NAN });
            let (pitch, row_words) = (pitch(ncols), ncols.div_ceil(64));
            let mut words = vec![[0u8; 8]; nrows * row_words];
            let (mut symbols, mut expected) = (Vec::new(), vec![0u32; nrows * ncols]);
            for (at, expected) in expected.iter_mut().enumerate() {
                if random() < density {
                    let symbol = (random() * k as f64) as u8;
                    symbols.push(symbol);
                    *expected = codebook[usize::from(symbol)].to_bits();
                    let (row, col) = (at / ncols, at % ncols);
                    words[row * row_words + col / 64][col % 64 / 8] |= 1 << (col % 8);
                }
            }
            for set in available() {
                let rows = SymbolRows { counts: &[], symbols: &symbols, codebook: &codebook, k };
                let mut out = vec![f32::NAN; nrows * pitch];
                set.spread_bitmap(&rows, &words, row_words, pitch, &mut out);
                let found: Vec<u32> = out
                    .chunks_exact(pitch)
                    .flat_map(|row| row[..ncols].iter().map(|x| x.to_bits()))
                    .collect();
                prop_assert_eq!(&found, &expected, "{}", set.name());
                if let Some(fewer) = symbols.len().checked_sub(1) {
                    let rows = SymbolRows { symbols: &symbols[..fewer], ..rows };
                    let spread = std::panic::catch_unwind(|| {
                        set.spread_bitmap(&rows, &words, row_words, pitch, &mut vec![0.0; nrows * pitch])
                    });
                    prop_assert!(spread.is_err(), "{}", set.name());
                }
            }
        }
    }

    #[test]
    fn dense_rows_read_nothing_outside_the_input() {
        let places = places(6, 1);
        for set in available() {
            let mut taps = Taps::default();
            taps.fill_dense(set, &mut vec![1.0; pitch(6)], [1, 6], &places);
            let tile = |inputs: usize| {
                std::panic::catch_unwind(|| {
                    let (input, size) =
                        (vec![1.0; inputs], (SMALLEST_DENSE_TILE, SMALLEST_DENSE_TILE));
                    multiply(set, &taps, &places, 0..1, &input, size, Finish::NOTHING)
                })
            };
            assert_eq!(tile(SMALLEST_DENSE_TILE + 5).unwrap(), [6.0; SMALLEST_DENSE_TILE]);
            assert!(tile(SMALLEST_DENSE_TILE + 4).is_err(), "{}", set.name());
            let fewer = std::panic::catch_unwind(|| {
                let mut weights = vec![1.0; pitch(6)];
                Taps::default().fill_dense(set, &mut weights, [2, 6], &places)
            });
            assert!(fewer.is_err());
        }
    }
}
