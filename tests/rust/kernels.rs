//! Inner loops of every instruction set against their definitions.

use proptest::prelude::*;
use tersenet::simd;

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
