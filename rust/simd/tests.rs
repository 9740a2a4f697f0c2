//! Every kernel of every instruction set against the exact result, or against each other.

use super::*;
use proptest::prelude::*;

/// The bound of a sum of n products in any order, fused or not, against the exact sum.
fn bound(terms: impl Iterator<Item = (f32, f32)>) -> f64 {
    let (n, sum) = terms
        .fold((0.0, 0.0), |(n, sum), (a, b)| (n + 1.0, sum + (f64::from(a) * f64::from(b)).abs()));
    (n + 2.0) * 2f64.powi(-24) * sum + n * 2f64.powi(-149)
}

/// Places of one tap in one group of rows, one strip of all `ncols` columns, `channel` apart.
pub(super) fn places(ncols: usize, channel: u32) -> Places {
    Places {
        taps: vec![0],
        channel,
        strip: ncols,
        count: 1,
        group_rows: usize::MAX,
        group_step: 0,
        end: ncols * channel as usize,
        shifts: Default::default(),
        is_sorted: false,
    }
}

/// Random numbers from 0 to under 1.
pub(super) fn random(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![4 => -2.0f32..2.0, 1 => Just(0.0f32), 1 => Just(-0.0f32), 1 => -1e-38f32..1e-38]
}

proptest! {
    #[test]
    fn every_kernel_of_every_instruction_set_is_within_the_bound_at_every_length(
        pairs in prop::collection::vec((weight(), weight()), 0..=4 * LANES + 1),
        lane in 0..LANES,
    ) {
        let (w, x): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
        let cols: Vec<u32> = (0..w.len() as u32).rev().collect();
        let reversed: Vec<f32> = w.iter().rev().copied().collect();
        let mut panel = vec![[f32::NAN; LANES]; w.len()];
        for (row, &x) in panel.iter_mut().zip(&x) {
            row[lane] = x;
        }
        let exact: f64 = pairs.iter().map(|&(w, x)| f64::from(w) * f64::from(x)).sum();
        let bound = bound(pairs.iter().copied());
        for set in available() {
            let name = set.name();
            let mut input = vec![0.0; w.len() + LARGEST_TILE];
            for (i, &x) in x.iter().enumerate() {
                input[i + lane] = x;
            }
            let places = Places { strip: w.len() / 2, count: 2, ..places(w.len(), 1) };
            let indptr = [0, 0, w.len(), w.len()];
            let (mut all, mut values) = ((0..w.len() as u32).collect(), w.clone());
            let mut taps = Taps::default();
            let decoded = Decoded {
                indptr: &indptr,
                cols: &mut all,
                symbols: &[],
                codebook: &[],
                values: &mut values,
            };
            taps.fill(set, decoded, 0, &places);
            for size in [4, 8, 16, 32, 64, 128, LARGEST_TILE] {
                let mut sums = vec![f32::NAN; 3 * size];
                let first = TileProduct {
                    strip: taps.strip(0, 0, 3),
                    size,
                    input: &input,
                    start: Start::Zero,
                    finish: None,
                    stride: size,
                    grid: Grid::LINE,
                };
                set.add_strip(&first, &mut sums);
                let before = sums.clone();
                let second = TileProduct {
                    strip: taps.strip(1, 0, 3),
                    start: Start::Output,
                    ..first
                };
                set.add_strip(&second, &mut sums);
                // The same, finished, into rows further apart.
                let vectors = [[2.0, -0.5, 1.0], [0.0, 1.5, 0.25]];
                let (floor, ceiling) = (-0.5, 4.0);
                let finish = Finish {
                    scale: Some(&vectors[0]), shift: Some(&vectors[1]), floor, ceiling,
                };
                let last = TileProduct {
                    start: Start::Sums(&before), finish: Some(finish), stride: size + 3, ..second
                };
                let mut finished = vec![f32::NAN; 3 * size + 6];
                set.add_strip(&last, &mut finished);
                for (row, sums) in sums.chunks_exact(size).enumerate() {
                    for (at, &sum) in sums.iter().enumerate() {
                        let found = finished[row * (size + 3) + at];
                        let exact = f64::from(sum) * f64::from(vectors[0][row]);
                        let exact = (exact + f64::from(vectors[1][row])).clamp(-0.5, 4.0);
                        let far = 2f64.powi(-22) * (exact.abs() + f64::from(sum).abs() + 2.0);
                        prop_assert!((f64::from(found) - exact).abs() <= far, "{found} {exact}");
                    }
                    prop_assert!(row == 2 || finished[row * (size + 3) + size].is_nan());
                }
                prop_assert!(sums[..size].iter().chain(&sums[2 * size..]).all(|&y| y == 0.0));
                let Some(&shifted) = sums[size..2 * size].get(lane) else { continue };
                let shifted = f64::from(shifted);
                prop_assert!((shifted - exact).abs() <= bound, "{name} strip {shifted} {exact}");
            }
            let dense = f64::from(set.dense_dot(&w, &x));
            prop_assert!((dense - exact).abs() <= bound, "{name} dense {dense} {exact}");
            let sparse = f64::from(set.sparse_dot(&cols, &reversed, &x));
            prop_assert!((sparse - exact).abs() <= bound, "{name} sparse {sparse} {exact}");
            let mut values = [f32::NAN; 256];
            values[..reversed.len()].copy_from_slice(&reversed);
            let symbols: Vec<u8> = (0..reversed.len() as u8).collect();
            let stored: Vec<[u8; 2]> = cols.iter().map(|&col| (col as u16).to_le_bytes()).collect();
            let counts = [symbols.len() as u32];
            for k in [32, 128, 256].into_iter().filter(|&k| k >= symbols.len()) {
                let rows =
                    SymbolRows { counts: &counts, symbols: &symbols, codebook: &values, k };
                let mut y = [f32::NAN];
                set.column_dots(&rows, &stored, &x, &mut y);
                let symbol = f64::from(y[0]);
                prop_assert!((symbol - exact).abs() <= bound, "{name} symbol {symbol} {exact}");
            }
            // As ranks of up to 32 values and of more, and positions from somewhere on.
            for start in [0, 7, u32::MAX - 100] {
                let positions: Vec<u32> = cols.iter().map(|&col| col + start).collect();
                let ranks: Vec<u16> = (0..reversed.len() as u16).collect();
                let all = f64::from(set.rank_dot(&positions, start, &ranks, &values, &x));
                prop_assert!((all - exact).abs() <= bound, "{name} rank {all} {exact}");
                let (n, some) = (ranks.len(), ranks.len().min(32));
                let few = set.rank_dot(&positions[..some], start, &ranks[..some], &values[..some], &x)
                    + set.rank_dot(&positions[some..], start, &ranks[..n - some], &values[some..], &x);
                prop_assert!((f64::from(few) - exact).abs() <= bound, "{name} rank {few} {exact}");
            }
            // In two parts, the second added to the first.
            let mut sums = [0.0; LANES];
            let cut = cols.len() / 3;
            set.add_panel_product(&cols[..cut], &reversed[..cut], &panel, &mut sums);
            set.add_panel_product(&cols[cut..], &reversed[cut..], &panel, &mut sums);
            let sum = f64::from(sums[lane]);
            prop_assert!((sum - exact).abs() <= bound, "{name} panel {sum} {exact}");
        }
    }
}

proptest! {
    #[test]
    fn every_instruction_set_places_and_looks_up_the_same(
        cols in prop::collection::vec(prop_oneof![0u32..70_000, (1u32 << 22) - 2000..(1 << 22) + 2000], 0..100), taps in 1usize..40, k in 1usize..300,
        channel in 0u32..900, base in 0u32..1000,
    ) {
        let ntaps = taps as u32;
        let is_even = channel % 3 == 0;
        let channel = if is_even { channel % 20 * ntaps } else { channel };
        let tap = |t: u32| if is_even { t * (channel / ntaps) } else { t * t % 97 };
        let taps: Vec<u32> = (0..ntaps).map(tap).collect();
        let place = |&col: &u32| {
            base + col / taps.len() as u32 * channel + taps[col as usize % taps.len()]
        };
        let expected: Vec<u32> = cols.iter().map(place).collect();
        let codebook: Vec<f32> = (0..k).map(|i| i as f32 - 7.5).collect();
        let symbols: Vec<u16> = cols.iter().map(|&col| (col as usize % k) as u16).collect();
        let values: Vec<f32> = symbols.iter().map(|&s| codebook[usize::from(s)]).collect();
        for set in available() {
            let mut found = cols.clone();
            let reach = set.place(&mut found, &taps, channel, base);
            prop_assert_eq!(&found, &expected, "{}", set.name());
            prop_assert_eq!(reach, expected.iter().copied().max().unwrap_or(0));
            let start = base.wrapping_mul(4_000_000);
            let positions: Vec<u32> = cols.iter().map(|col| col.wrapping_add(start)).collect();
            let mut found = vec![7; cols.len()];
            let spacing = Spacing::new(&taps, channel).at(base);
            let (reach, symbol) = set.join(&positions, start, &symbols, &spacing, &mut found);
            prop_assert_eq!(reach, expected.iter().copied().max().unwrap_or(0));
            prop_assert_eq!(symbol, symbols.iter().copied().max().unwrap_or(0));
            for ((&joined, &place), &symbol) in found.iter().zip(&expected).zip(&symbols) {
                let fits = place < 1 << 22 && symbol < 256;
                prop_assert!(!fits || joined == place * 4 + (u32::from(symbol) << 24));
            }
            let mut found = vec![1.0];
            set.look_up(&symbols, &codebook, &mut found);
            prop_assert_eq!(&found[1..], &values, "{}", set.name());
        }
    }
}

#[test]
fn a_pruned_weight_contributes_nothing_where_x_is_not_finite() {
    for set in available() {
        for len in [1, 7, 8, 9, 16, 33, 64, 65] {
            let mut w = vec![0.0; len];
            let mut x = vec![f32::NAN; len];
            w[len - 1] = 2.0;
            x[len - 1] = 3.0;
            assert_eq!(set.dense_dot(&w, &x), 6.0, "{} {len}", set.name());
            w[len - 1] = -0.0;
            x[len - 1] = f32::INFINITY;
            assert!(set.dense_dot(&w, &x).is_nan(), "{} {len}", set.name());
        }
    }
}

#[test]
fn a_column_outside_x_panics_on_every_instruction_set() {
    for set in available() {
        for len in [1, 8, 17] {
            let mut cols = vec![0; len];
            cols[len - 1] = 5;
            let values = vec![1.0; len];
            let dot = std::panic::catch_unwind(|| set.sparse_dot(&cols, &values, &[1.0; 5]));
            let panel = std::panic::catch_unwind(|| {
                set.add_panel_product(&cols, &values, &[[1.0; LANES]; 5], &mut [0.0; LANES])
            });
            let stored: Vec<[u8; 2]> = cols.iter().map(|&col| (col as u16).to_le_bytes()).collect();
            let symbol = std::panic::catch_unwind(|| {
                let (counts, symbols) = ([len as u32], vec![0; len]);
                let codebook = &[1.0; 256];
                let rows = SymbolRows { counts: &counts, symbols: &symbols, codebook, k: 2 };
                set.column_dots(&rows, &stored, &[1.0; 5], &mut [0.0])
            });
            let symbol_panel = std::panic::catch_unwind(|| {
                let (counts, symbols) = ([len as u32], vec![0; len]);
                let codebook = &[1.0; 256];
                let rows = SymbolRows { counts: &counts, symbols: &symbols, codebook, k: 2 };
                let panel = [[1.0; LANES]; 10];
                set.column_panel(&rows, &stored, 2, &panel, &mut [[0.0; LANES]; 2])
            });
            assert!(symbol_panel.is_err(), "{} {len}", set.name());
            let mut taps = Taps::default();
            let decoded = Decoded {
                indptr: &[0, len],
                cols: &mut cols.clone(),
                symbols: &[],
                codebook: &[],
                values: &mut values.clone(),
            };
            taps.fill(set, decoded, 0, &places(6, 1));
            let tile = |size: usize, inputs: usize| {
                std::panic::catch_unwind(|| {
                    let (input, mut sums) = (vec![1.0; inputs], vec![0.0; size]);
                    let product = TileProduct {
                        strip: taps.strip(0, 0, 1),
                        size,
                        input: &input,
                        start: Start::Zero,
                        finish: None,
                        stride: size,
                        grid: Grid::LINE,
                    };
                    set.add_strip(&product, &mut sums)
                })
            };
            let (shifted, odd_tile) = (tile(64, 68), tile(24, 64));
            let ranks = vec![0; len];
            let rank = |values: &[f32], start: u32| {
                std::panic::catch_unwind(|| set.rank_dot(&cols, start, &ranks, values, &[1.0; 5]))
            };
            let is_outside = rank(&[1.0; 2], 0).is_err() && rank(&[1.0; 64], 0).is_err();
            assert!(is_outside && rank(&[1.0; 2], 6).is_err(), "{} {len}", set.name());
            assert!(rank(&[], 0).is_err(), "{} {len}", set.name());
            assert!(dot.is_err() && panel.is_err() && symbol.is_err(), "{} {len}", set.name());
            let symbol = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
            let look_up = std::panic::catch_unwind(|| {
                set.look_up(&symbol[..=len - 1], &[1.0; 3], &mut Vec::new())
            });
            assert!(look_up.is_err() == (len == 17), "{} {len}", set.name());
            assert!(shifted.is_err() && odd_tile.is_err(), "{} {len}", set.name());
        }
    }
}

proptest! {
    #[test]
    fn joined_weights_are_within_the_bound_and_touch_only_what_they_keep(
        (nrows, ncols, density) in (1usize..5, 1usize..70, 0.0f64..1.2),
        (k, count, is_sorted) in (prop_oneof![1usize..33, 33usize..=256], 1usize..4, any::<bool>()),
        seed in any::<u64>(),
    ) {
        let mut random = random(seed);
        let kept: Vec<Vec<u32>> = (0..nrows)
            .map(|_| (0..ncols as u32).filter(|_| random() < density).collect())
            .collect();
        let codebook: Vec<f32> = (0..k).map(|_| random() as f32 - 0.5).collect();
        let cols = kept.concat();
        let symbols: Vec<u16> = cols.iter().map(|_| (random() * k as f64) as u16).collect();
        let mut indptr = vec![0];
        indptr.extend(kept.iter().scan(0, |end, row| {
            *end += row.len();
            Some(*end)
        }));
        let line = [(4, 1), (8, 1), (16, 1), (32, 1), (64, 1), (128, 1), (256, 1), (64, 2), (128, 4)];
        for (size, lines) in line {
            // Each column has its own tile, of lines that lie apart.
            let pitch = size / lines + 8 * (lines - 1);
            let channel = pitch * lines;
            let mut input = vec![f32::INFINITY; ncols * channel];
            for &col in &cols {
                let tile = &mut input[col as usize * channel..][..channel];
                tile.fill_with(|| random() as f32 - 0.5);
            }
            let strip = ncols.div_ceil(count);
            let places = Places { strip, count, is_sorted, ..places(ncols, channel as u32) };
            for set in available().into_iter().filter(|set| lines == 1 || size <= set.tile()) {
                let mut taps = Taps::default();
                let decoded = Decoded {
                    indptr: &indptr,
                    cols: &mut cols.clone(),
                    symbols: &symbols,
                    codebook: &codebook,
                    values: &mut if cols.is_empty() { vec![1.0] } else { Vec::new() },
                };
                taps.fill(set, decoded, 0, &places);
                let mut sums = vec![f32::NAN; nrows * size];
                for number in 0..count {
                    let product = TileProduct {
                        strip: taps.strip(number, 0, nrows),
                        size,
                        input: &input,
                        start: if number == 0 { Start::Zero } else { Start::Output },
                        finish: None,
                        stride: size,
                        grid: Grid { lines, pitch, output_pitch: size / lines },
                    };
                    set.add_strip(&product, &mut sums);
                }
                for (row, sums) in sums.chunks_exact(size).enumerate() {
                    for (at, &y) in sums.iter().enumerate() {
                        let place = at / (size / lines) * pitch + at % (size / lines);
                        let terms = (indptr[row]..indptr[row + 1]).map(|weight| {
                            let x = input[cols[weight] as usize * channel + place];
                            (codebook[usize::from(symbols[weight])], x)
                        });
                        let exact: f64 = terms.clone().map(|(w, x)| f64::from(w) * f64::from(x)).sum();
                        let far = (f64::from(y) - exact).abs();
                        let what = (set.name(), size, lines);
                        prop_assert!(far <= bound(terms), "{what:?} {y} {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_symbols_are_within_the_bound_and_touch_only_what_they_keep(
        nrows in 0usize..5, ncols in 0usize..300, k in 1usize..=256, density in 0.0f64..1.2,
        seed in any::<u64>(),
    ) {
        let mut random = random(seed);
        let kept: Vec<Vec<usize>> = (0..nrows)
            .map(|_| (0..ncols).filter(|_| random() < density).collect())
            .collect();
        let mut codebook = [f32::NAN; 256];
        codebook[..k].fill_with(|| random() as f32 - 0.5);
        // Nothing is kept in some columns; there x is not finite.
        let x: Vec<f32> = (0..ncols)
            .map(|col| match kept.iter().any(|row| row.contains(&col)) {
                true => random() as f32 - 0.5,
                false => f32::INFINITY,
            })
            .collect();
        let (mut counts, mut symbols, mut cols) = (Vec::new(), Vec::new(), Vec::new());
        let row_words = ncols.div_ceil(64);
        let mut words = vec![[0u8; 8]; nrows * row_words];
        let mut expected = Vec::new();
        for (r, row) in kept.iter().enumerate() {
            let mut terms = Vec::new();
            for &col in row {
                let symbol = (random() * k as f64) as usize;
                symbols.push(symbol as u8);
                cols.push((col as u16).to_le_bytes());
                words[r * row_words + col / 64][col % 64 / 8] |= 1 << (col % 8);
                terms.push((codebook[symbol], x[col]));
            }
            counts.push(row.len() as u32);
            let exact: f64 = terms.iter().map(|&(w, x)| f64::from(w) * f64::from(x)).sum();
            expected.push((exact, bound(terms.into_iter())));
        }
        let rows = SymbolRows { counts: &counts, symbols: &symbols, codebook: &codebook, k };
        for set in available() {
            let mut found = vec![[1, 1]];
            set.set_bits(&words, row_words, &mut found);
            prop_assert_eq!(&found, &cols);
            for width in [1, 2] {
                // x in one lane, among others that are not finite.
                let lane = seed as usize % (width * LANES);
                let mut panel = vec![[f32::NAN; LANES]; ncols * width];
                for (col, &x) in x.iter().enumerate() {
                    panel[col * width + lane / LANES][lane % LANES] = x;
                }
                let mut sums = vec![[0.0; LANES]; nrows * width];
                set.column_panel(&rows, &cols, width, &panel, &mut sums);
                for (r, &(exact, bound)) in expected.iter().enumerate() {
                    let y = f64::from(sums[r * width + lane / LANES][lane % LANES]);
                    prop_assert!((y - exact).abs() <= bound, "{} {y} {exact}", set.name());
                }
            }
            let (mut by_cols, mut by_bits) = (vec![f32::NAN; nrows], vec![f32::NAN; nrows]);
            set.column_dots(&rows, &cols, &x, &mut by_cols);
            set.bitmap_dots(&rows, &words, &x, &mut by_bits);
            for (r, &(exact, bound)) in expected.iter().enumerate() {
                for y in [by_cols[r], by_bits[r]] {
                    let what = set.name();
                    prop_assert!((f64::from(y) - exact).abs() <= bound, "{what} {y} {exact}");
                }
            }
        }
    }
}

#[test]
fn an_unknown_instruction_set_is_an_error_that_lists_those_there_are() {
    let error = choose(&available(), Some("mmx")).err().unwrap().to_string();
    assert!(error.contains("mmx") && error.contains("scalar"), "{error}");
    assert_eq!(choose(&available(), Some("scalar")).unwrap().name(), "scalar");
}
