//! Inner loops of every instruction set against their definitions.

use proptest::prelude::*;
use tersenet::simd::sell::{
    BLOCK_COLS, Block, COLUMN_BITS, EMPTY, MAX_VECTORS, SLICE_ROWS, Slices,
};
use tersenet::simd::{self, Finish, LANES, POINTS, TAPS};

proptest! {
    #[test]
    fn the_greatest_of_two_by_two_is_nan_where_one_is(
        width in prop_oneof![Just(2usize), Just(4), Just(8), Just(16), Just(32), Just(64), Just(6), Just(14)],
        npairs in 0usize..40,
        numbers in prop::collection::vec(
            prop_oneof![8 => -1e3f32..1e3, 1 => Just(f32::NAN), 1 => Just(f32::NEG_INFINITY), 1 => Just(-0.0f32)],
            1..50,
        ),
    ) {
        let x: Vec<f32> = numbers.iter().copied().cycle().take(2 * width * npairs).collect();
        let expected = (0..npairs * width / 2).map(|at| {
            let first = at / (width / 2) * 2 * width + at % (width / 2) * 2;
            let four = [x[first], x[first + 1], x[first + width], x[first + width + 1]];
            let has_nan = four.iter().any(|x| x.is_nan());
            if has_nan { f32::NAN } else { four.into_iter().fold(f32::NEG_INFINITY, f32::max) }
        });
        let expected: Vec<f32> = expected.collect();
        for kernels in simd::available() {
            let mut y = vec![7.0; expected.len()];
            kernels.greatest_of_four(width, &x, &mut y);
            for (y, expected) in y.iter().zip(&expected) {
                prop_assert!(y == expected || y.is_nan() && expected.is_nan(), "{}", kernels.name());
            }
        }
    }
}

#[test]
fn rows_that_are_no_pairs_panic() {
    for kernels in simd::available() {
        for (width, len, nout) in [(3, 12, 3), (2, 6, 1), (4, 64, 15), (8, 64, 17), (0, 64, 16)] {
            let run = std::panic::catch_unwind(|| {
                kernels.greatest_of_four(width, &vec![0.0; len], &mut vec![0.0; nout]);
            });
            assert!(run.is_err(), "{}: {len} numbers in rows of {width}", kernels.name());
        }
    }
}

/// Small whole numbers, so that every sum is exact.
fn whole(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| ((i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60) as f32 - 7.0)
        .collect()
}

proptest! {
    #[test]
    fn transformed_tiles_multiplied_are_a_convolution(
        tiles in 1usize..70, nkernels in 1usize..20, is_odd in any::<bool>(), has_bottom in any::<bool>(),
        seed in any::<u32>(),
    ) {
        let (width, outputs) = (2 * tiles + 2, 2 * tiles - usize::from(is_odd));
        let x = whole(4 * width, u64::from(seed));
        let kernels = whole(TAPS * nkernels, u64::from(seed) + 4321);
        let finish = Finish { scale: Some(&[1.0, 2.0]), shift: Some(&[0.0, 3.0]), floor: -300.0, ceiling: 500.0 };
        for set in simd::available() {
            let mut planes = vec![f32::NAN; POINTS * nkernels];
            let mut chunks = planes.chunks_exact_mut(nkernels);
            let mut out = std::array::from_fn(|_| chunks.next().unwrap());
            set.transform_kernels(&kernels, &mut out, 0);
            let plane = tiles + 3;
            let mut inputs = vec![f32::NAN; POINTS * plane];
            let rows = std::array::from_fn(|row| &x[row * width..(row + 1) * width]);
            set.transform_inputs(rows, &mut inputs, plane);
            for (number, kernel) in kernels.chunks_exact(TAPS).enumerate() {
                let mut products = inputs.clone();
                for (point, products) in products.chunks_exact_mut(plane).enumerate() {
                    let by = planes[point * nkernels + number];
                    products.iter_mut().for_each(|x| *x *= by);
                }
                let (mut top, mut bottom) = (vec![f32::NAN; outputs], vec![f32::NAN; outputs]);
                bottom.truncate(if has_bottom { outputs } else { 0 });
                set.transform_products(&products, plane, (&finish, 1), [&mut top, &mut bottom]);
                for (row, y) in [top, bottom].into_iter().enumerate() {
                    for (at, y) in y.into_iter().enumerate() {
                        let terms = (0..TAPS).map(|tap| kernel[tap] * x[(row + tap / 3) * width + at + tap % 3]);
                        let expected = (2.0 * terms.sum::<f32>() + 3.0).clamp(-300.0, 500.0);
                        prop_assert_eq!(y, expected, "{} at {} of row {}", set.name(), at, row);
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn slices_are_multiplied_exactly_and_touch_only_what_they_keep(
        nslices in 0usize..5, nblocks in 0usize..6, density in 0.0f64..1.0, k in prop_oneof![1usize..=32, 33usize..=256],
        vectors in 1..=MAX_VECTORS, seed in any::<u32>(),
    ) {
        let mut state = u64::from(seed) | 1;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 20) as usize % below
        };
        let ncols = nblocks * BLOCK_COLS;
        let codebook: [f32; 256] = std::array::from_fn(|i| if i < k { (i % 9) as f32 - 4.0 } else { f32::NAN });
        let mut x = whole(ncols * vectors, u64::from(seed));
        let (mut counts, mut blocks, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        let mut kept = Vec::new(); // (row, column, symbol)
        for slice in 0..nslices {
            let before = blocks.len();
            for number in 0..nblocks {
                let at = steps.len();
                for lane in 0..SLICE_ROWS {
                    let mut step = at;
                    for col in 0..BLOCK_COLS {
                        if (random(1000) as f64) < 1000.0 * density {
                            let symbol = random(k);
                            if step == steps.len() {
                                steps.push([EMPTY; SLICE_ROWS]);
                            }
                            steps[step][lane] = (col | symbol << COLUMN_BITS) as u16;
                            kept.push((slice * SLICE_ROWS + lane, number * BLOCK_COLS + col, symbol));
                            step += 1;
                        }
                    }
                }
                if steps.len() > at {
                    let block = Block { steps: steps.len() - at, number };
                    prop_assert_eq!(Block::unpack(block.pack()), block);
                    blocks.push(block.pack());
                }
            }
            counts.push((blocks.len() - before) as u32);
        }
        // Nothing may meet what no row keeps, nor a value past the last one.
        let is_kept = |col: usize| kept.iter().any(|&(_, kept, _)| kept == col);
        for col in (0..ncols).filter(|&col| !is_kept(col)) {
            (0..vectors).for_each(|v| x[v * ncols + col] = f32::NAN);
        }
        let inputs: Vec<[f32; BLOCK_COLS]> = (0..nblocks * vectors)
            .map(|i| std::array::from_fn(|col| x[i % vectors * ncols + i / vectors * BLOCK_COLS + col]))
            .collect();
        let mut expected = vec![vec![0.0; vectors]; nslices * SLICE_ROWS];
        for &(row, col, symbol) in &kept {
            for (v, sum) in expected[row].iter_mut().enumerate() {
                *sum += codebook[symbol] * x[v * ncols + col];
            }
        }
        let slices = Slices { counts: &counts, blocks: &blocks, steps: &steps, codebook: &codebook, k };
        for set in simd::available() {
            let mut sums = vec![[f32::NAN; LANES]; nslices * vectors];
            set.slice_products(&slices, vectors, &inputs, &mut sums);
            for (row, expected) in expected.iter().enumerate() {
                let slice = &sums[row / SLICE_ROWS * vectors..][..vectors];
                let found: Vec<f32> = slice.iter().map(|sums| sums[row % SLICE_ROWS]).collect();
                prop_assert_eq!(&found, expected, "{} row {}", set.name(), row);
            }
        }
    }
}

#[test]
fn slices_that_do_not_fit_panic() {
    let codebook = [1.0; 256];
    let full = [Block { steps: 1, number: 1 }.pack()];
    let steps = [[0; SLICE_ROWS]; 1];
    let slices = Slices { counts: &[1], blocks: &full, steps: &steps, codebook: &codebook, k: 1 };
    for set in simd::available() {
        let run = |slices: &Slices<'_>, vectors: usize, nblocks: usize, nsums: usize| {
            let x = vec![[0.0; BLOCK_COLS]; nblocks];
            std::panic::catch_unwind(|| {
                set.slice_products(slices, vectors, &x, &mut vec![[0.0; LANES]; nsums]);
            })
        };
        assert!(run(&slices, 1, 2, 1).is_ok(), "{}", set.name());
        let none = Slices { blocks: &[], ..slices };
        let short = Slices { steps: &[], ..slices };
        for (what, slices, vectors, nblocks, nsums) in [
            ("no inputs", &slices, 1, 1, 1),
            ("another number of sums", &slices, 1, 2, 2),
            ("no vectors", &slices, 0, 2, 0),
            ("more vectors than there is room for", &slices, 9, 18, 9),
            ("fewer blocks than are counted", &none, 1, 2, 1),
            ("fewer steps than blocks have", &short, 1, 2, 1),
        ] {
            assert!(run(slices, vectors, nblocks, nsums).is_err(), "{}: {what}", set.name());
        }
    }
}
