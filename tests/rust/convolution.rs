//! Convolutions against the definition, summed in f64, over every geometry.

use proptest::prelude::*;
use tersenet::convolution::{Decoding, Epilogue, Geometry, Plan, Sides, Weights};
use tersenet::layout::{Goal, LAYOUTS};
use tersenet::rows::Shape;
use tersenet::simd::{self, Finish};
use tersenet::{CompressedMatrix, Request};

#[derive(Clone, Debug)]
struct Case {
    x: Vec<f32>,
    shape: [usize; 4],
    w: Vec<f32>,
    nrows: usize,
    bias: Option<Vec<f32>>,
    geometry: Geometry,
    layout: usize,
}

/// Numbers in [−1, 1), a part of them 0, from a seed.
fn numbers(len: usize, seed: u64, density: f64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / 2f64.powi(53)
    };
    let mut number = || (next() < density, (next() * 16.0).floor() as f32 / 8.0 - 1.0);
    (0..len)
        .map(|_| match number() {
            (true, 0.0) => 0.5,
            (true, value) => value,
            _ => 0.0,
        })
        .collect()
}

prop_compose! {
    fn case()(
        images in prop_oneof![4 => 0usize..4, 1 => 40usize..140], group_channels in 1usize..5, group_rows in 1usize..5, groups in 1usize..4,
        kernel in [1usize..5, 1usize..5], stride in [1usize..4, 1usize..4], dilation in [1usize..4, 1usize..4],
        spread in [1usize..4, 1usize..4],
        padding in [[0usize..4, 0usize..4], [0usize..4, 0usize..4]], more in prop_oneof![[0usize..20, 0usize..20], [0usize..2, 0usize..2]],
        density in 0.05f64..1.0, has_bias in any::<bool>(), layout in 0..LAYOUTS.len(), seed in any::<u64>(),
        line in prop_oneof![3 => Just(None), 1 => (0usize..200).prop_map(Some)],
    ) -> Case {
        // A text or a sound: one long row, step by step.
        let (kernel, stride, spread, padding, more) = match line {
            Some(len) => ([1, kernel[1]], [1, 1], [1, 1], [[0, 0], padding[1]], [0, len]),
            None => (kernel, stride, spread, padding, more),
        };
        // Large enough for one output, and then `more`.
        let size = |dim: usize| {
            let span = (kernel[dim] - 1) * dilation[dim] + 1;
            span.saturating_sub(padding[dim][0] + padding[dim][1]).max(1) + more[dim]
        };
        // With zeros between them, fewer inputs are as long.
        let inputs = |dim: usize| (size(dim) - 1).div_ceil(spread[dim]) + 1;
        let shape = [images, group_channels * groups, inputs(0), inputs(1)];
        let nrows = group_rows * groups;
        Case {
            x: numbers(shape.iter().product(), seed, 0.9),
            shape,
            w: numbers(nrows * group_channels * kernel[0] * kernel[1], seed ^ 7, density),
            nrows,
            bias: has_bias.then(|| numbers(nrows, seed ^ 9, 1.0)),
            geometry: Geometry { kernel, stride, padding, dilation, spread, groups },
            layout,
        }
    }
}

/// The sum that torch documents, and the sum of its terms' absolute values.
fn exact(case: &Case, image: usize, row: usize, i: usize, j: usize) -> (f64, f64) {
    let Geometry { kernel, stride, padding, dilation, spread, groups } = case.geometry;
    let [_, channels, height, width] = case.shape;
    let group_channels = channels / groups;
    let group = row / (case.nrows / groups);
    let bias = case.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
    let (mut sum, mut total) = (bias, bias.abs());
    for channel in 0..group_channels {
        for (ki, kj) in (0..kernel[0]).flat_map(|ki| (0..kernel[1]).map(move |kj| (ki, kj))) {
            let w = case.w[((row * group_channels + channel) * kernel[0] + ki) * kernel[1] + kj];
            let y = (i * stride[0] + ki * dilation[0])
                .checked_sub(padding[0][0])
                .filter(|&y| y % spread[0] == 0 && y / spread[0] < height);
            let x = (j * stride[1] + kj * dilation[1])
                .checked_sub(padding[1][0])
                .filter(|&x| x % spread[1] == 0 && x / spread[1] < width);
            if let (Some(y), Some(x)) = (y, x) {
                let (y, x) = (y / spread[0], x / spread[1]);
                let at = ((image * channels + group * group_channels + channel) * height + y)
                    * width
                    + x;
                let term = f64::from(w) * f64::from(case.x[at]);
                sum += term;
                total += term.abs();
            }
        }
    }
    (sum, total)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_geometry_agrees_with_the_definition(case in case()) {
        let [images, channels, height, width] = case.shape;
        let Geometry { kernel, stride, padding, dilation, spread, groups } = case.geometry;
        let shape = Shape::new(case.nrows, channels / groups * kernel[0] * kernel[1]).unwrap();
        let request = Request { layout: Some(LAYOUTS[case.layout]), ..Request::default() };
        let matrix = CompressedMatrix::compress(&case.w, shape, &request).unwrap();
        let size = |dim: usize, input: usize| {
            let inputs = (input - 1) * spread[dim] + 1;
            (inputs + padding[dim][0] + padding[dim][1] - (kernel[dim] - 1) * dilation[dim] - 1) / stride[dim] + 1
        };
        let expected = [images, case.nrows, size(0, height), size(1, width)];
        for kernels in simd::available() {
            let run = |threads| {
                matrix.conv_on(kernels, &case.x, case.shape, &case.geometry, case.bias.as_deref(), threads).unwrap()
            };
            let (y, found) = run(1);
            prop_assert_eq!(found, expected);
            for (at, &y) in y.iter().enumerate() {
                let (j, i) = (at % expected[3], at / expected[3] % expected[2]);
                let (row, image) = (at / expected[3] / expected[2] % case.nrows, at / expected[3] / expected[2] / case.nrows);
                let (sum, total) = exact(&case, image, row, i, j);
                let bound = (shape.ncols as f64 + 3.0) * 2f64.powi(-24) * total;
                prop_assert!((f64::from(y) - sum).abs() <= bound, "{} at {at}: {y}, expected {sum}", kernels.name());
            }
            let plan = Plan::new(kernels, &matrix, case.shape, &case.geometry).unwrap();
            let taps = plan.schedule(kernels, &matrix).unwrap();
            let mut again = vec![f32::NAN; y.len()];
            let finish = Finish { shift: case.bias.as_deref(), ..Finish::NOTHING };
            plan.run(kernels, Weights::Scheduled(&taps), &case.x, &mut again, &finish.into(), 2).unwrap();
            prop_assert_eq!(&again, &y);
            for threads in [2, 3, 8] {
                let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(&run(threads).0), bits(&y));
            }
        }
    }
}

/// Numbers `[images, channels, area]` as `[images / 8, channels, area, 8]`, and back.
fn interleaved(x: &[f32], [channels, area]: [usize; 2], is_back: bool) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len()];
    for plain in 0..x.len() {
        let (image, channel, place) =
            (plain / area / channels, plain / area % channels, plain % area);
        let there = ((image / 8 * channels + channel) * area + place) * 8 + image % 8;
        let (from, to) = if is_back { (there, plain) } else { (plain, there) };
        out[to] = x[from];
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn interleaved_numbers_agree_with_the_definition(
        eights in 1usize..5, channels in 1usize..24, nrows in 1usize..12,
        kernel in [1usize..4, 1usize..4], dilation in [1usize..3, 1usize..3],
        padding in [[0usize..3, 0usize..3], [0usize..3, 0usize..3]],
        size in prop_oneof![3 => [2usize..18, 2usize..18], 1 => Just([2, 2]), 1 => Just([8, 8]), 1 => Just([16, 32])],
        density in 0.05f64..0.5, has_many_values in any::<bool>(), seed in any::<u64>(),
    ) {
        let span = |dim: usize| (kernel[dim] - 1) * dilation[dim] + 1;
        let shape = [8 * eights, channels, size[0].max(span(0)), size[1].max(span(1))];
        let ncols = channels * kernel[0] * kernel[1];
        let scale = |i: usize| if has_many_values { 1.0 + i as f32 / 65536.0 } else { 1.0 };
        let case = Case {
            x: numbers(shape.iter().product(), seed, 0.9),
            shape,
            w: numbers(nrows * ncols, seed ^ 7, density).into_iter().enumerate().map(|(i, w)| w * scale(i)).collect(),
            nrows,
            bias: Some(numbers(nrows, seed ^ 9, 1.0)),
            geometry: Geometry { kernel, padding, dilation, ..Geometry::POINT },
            layout: 0,
        };
        let matrix = CompressedMatrix::compress(&case.w, Shape::new(nrows, ncols).unwrap(), &Request::default()).unwrap();
        let finish = Finish { shift: case.bias.as_deref(), floor: -1.5, ..Finish::NOTHING };
        let square = |y: &mut [f32]| y.iter_mut().for_each(|y| *y *= *y);
        let epilogue = Epilogue { finish, activation: Some(&square) };
        for kernels in simd::available() {
            let plan = Plan::new(kernels, &matrix, shape, &case.geometry).unwrap();
            let [images, _, height, width] = plan.output();
            let may = plan.may_interleave(kernels, &case.geometry);
            let all = [(true, false, false), (false, true, false), (true, true, false), (true, true, true), (false, true, true)];
            for (input, output, halves) in all {
                let sides = Sides { input, output, halves };
                let new = |decoding| Plan::for_sides(kernels, &matrix, shape, &case.geometry, decoding, sides);
                let (Ok(stored), Ok(kept)) = (new(Decoding::EachRun), new(Decoding::Once)) else {
                    prop_assert!(!may.input || halves && !may.halves);
                    continue;
                };
                let taps = kept.schedule(kernels, &matrix).unwrap();
                let x = match input {
                    true => interleaved(&case.x, [channels, shape[2] * shape[3]], false),
                    false => case.x.clone(),
                };
                let run = |threads, is_kept: bool| {
                    let mut y = vec![f32::NAN; images * nrows * height * width / if halves { 4 } else { 1 }];
                    let (plan, weights) = match is_kept {
                        true => (&kept, Weights::Scheduled(&taps)),
                        false => (&stored, Weights::Stored(&matrix)),
                    };
                    plan.run(kernels, weights, &x, &mut y, &epilogue, threads).unwrap();
                    y
                };
                let y = run(1, false);
                for (threads, is_kept) in [(1, true), (2, false), (3, true), (8, false), (8, true)] {
                    prop_assert_eq!(&run(threads, is_kept), &y, "{} {:?}", kernels.name(), sides);
                }
                let [h, w] = if halves { [height / 2, width / 2] } else { [height, width] };
                let y = if output { interleaved(&y, [nrows, h * w], true) } else { y };
                for (at, &y) in y.iter().enumerate() {
                    let (image, row, i, j) = (at / w / h / nrows, at / w / h % nrows, at / w % h, at % w);
                    let bound = |total: f64| (ncols as f64 + 3.0) * 2f64.powi(-24) * total;
                    let one = |i, j| {
                        let (sum, total) = exact(&case, image, row, i, j);
                        let y = sum.max(-1.5);
                        (y * y, (2.0 * y.abs() + 1.0) * bound(total) + 2f64.powi(-23) * y * y)
                    };
                    let (expected, bound) = match halves {
                        false => one(i, j),
                        true => [(0, 0), (0, 1), (1, 0), (1, 1)]
                            .map(|(di, dj)| one(2 * i + di, 2 * j + dj))
                            .into_iter()
                            .fold((f64::NEG_INFINITY, 0.0), |(a, b), (y, bound)| (y.max(a), bound.max(b))),
                    };
                    prop_assert!((f64::from(y) - expected).abs() <= bound, "{} {:?} at {at}: {y}, expected {expected}", kernels.name(), sides);
                }
            }
        }
    }
}

/// Rows of outputs that fill cache lines and tiles, or maps that are cut into columns, so that one copy
/// of the input serves all tap columns; inputs that are not finite, of which none may get to another
/// row or image.
#[test]
fn tap_columns_that_share_an_input_agree_with_the_definition() {
    let same = |kernel: [usize; 2], dilation: [usize; 2], before: [usize; 2]| {
        let after = |dim: usize| (kernel[dim] - 1) * dilation[dim] - before[dim];
        let padding = [[before[0], after(0)], [before[1], after(1)]];
        Geometry { kernel, dilation, padding, ..Geometry::POINT }
    };
    let three = same([3, 3], [1, 1], [1, 1]);
    let cases = [
        ([1, 20, 32, 32], three),
        ([2, 20, 40, 16], three),
        ([9, 20, 8, 8], three),
        ([33, 20, 4, 4], three),
        ([130, 20, 2, 2], three),
        ([3, 20, 24, 12], three),
        ([2, 20, 16, 32], same([3, 3], [2, 2], [2, 2])),
        ([2, 20, 16, 16], same([2, 5], [1, 2], [0, 3])),
        ([1, 20, 9, 64], same([1, 8], [1, 1], [0, 0])),
        ([2, 20, 15, 16], Geometry { stride: [2, 1], ..three }),
        ([4, 40, 16, 16], Geometry { groups: 2, ..three }),
        ([1, 20, 8, 8], three),
        ([3, 20, 16, 8], three),
        ([2, 20, 32, 24], three),
        ([1, 20, 24, 40], same([3, 3], [2, 2], [2, 2])),
        ([2, 20, 10, 10], Geometry { padding: [[0, 0]; 2], ..three }),
        ([1, 20, 16, 24], same([4, 5], [1, 2], [3, 1])),
        ([1, 20, 8, 8], same([1, 9], [1, 1], [0, 8])),
        ([1, 20, 8, 8], same([3, 10], [1, 1], [1, 4])),
        ([1, 20, 5, 8], Geometry { padding: [[3, 2], [1, 1]], ..three }),
    ];
    for (shape, geometry) in cases {
        let (nrows, group_channels) = (10, shape[1] / geometry.groups);
        let ncols = group_channels * geometry.kernel[0] * geometry.kernel[1];
        let case = Case {
            x: numbers(shape.iter().product(), 29, 1.0),
            shape,
            w: numbers(nrows * ncols, 31, 0.35),
            nrows,
            bias: None,
            geometry,
            layout: 0,
        };
        // As symbols and, where there are more values than symbols may say, as they are.
        let plain: Vec<f32> =
            case.w.iter().enumerate().map(|(i, w)| w * (1.0 + i as f32 / 65536.0)).collect();
        for w in [&case.w, &plain] {
            let case = Case { w: w.clone(), ..case.clone() };
            let shape_of = Shape::new(nrows, ncols).unwrap();
            let matrix = CompressedMatrix::compress(w, shape_of, &Request::default()).unwrap();
            for kernels in simd::available() {
                let plan = Plan::for_sides(
                    kernels,
                    &matrix,
                    shape,
                    &geometry,
                    Decoding::Once,
                    Sides::default(),
                )
                .unwrap();
                let taps = plan.schedule(kernels, &matrix).unwrap();
                let [images, _, height, width] = plan.output();
                let run = |x: &[f32], threads| {
                    let mut y = vec![f32::NAN; images * nrows * height * width];
                    let finish = Finish::NOTHING.into();
                    let weights = Weights::Scheduled(&taps);
                    plan.run(kernels, weights, x, &mut y, &finish, threads).unwrap();
                    y
                };
                let y = run(&case.x, 1);
                for threads in [2, 3] {
                    assert_eq!(run(&case.x, threads), y);
                }
                let negate = |y: &mut [f32]| y.iter_mut().for_each(|y| *y = -*y);
                let epilogue = Epilogue { finish: Finish::NOTHING, activation: Some(&negate) };
                let mut negative = vec![f32::NAN; y.len()];
                let weights = Weights::Scheduled(&taps);
                plan.run(kernels, weights, &case.x, &mut negative, &epilogue, 2).unwrap();
                assert!(y.iter().zip(&negative).all(|(y, negative)| -y == *negative));
                let (stored, _) =
                    matrix.conv_on(kernels, &case.x, shape, &geometry, None, 1).unwrap();
                let place = |at: usize| {
                    let (row, image) = (at / width / height % nrows, at / width / height / nrows);
                    (image, row, at / width % height, at % width)
                };
                for (at, (&y, &stored)) in y.iter().zip(&stored).enumerate() {
                    let (image, row, i, j) = place(at);
                    let (sum, total) = exact(&case, image, row, i, j);
                    let bound = (ncols as f64 + 2.0) * 2f64.powi(-24) * total;
                    let name = kernels.name();
                    assert!(
                        (f64::from(y) - sum).abs() <= bound,
                        "{name} {shape:?} at {at}: {y} {sum}"
                    );
                    assert!((f64::from(stored) - sum).abs() <= bound, "{name} {shape:?} at {at}");
                }
                // At the right end of the first row of the last image.
                let mut x = case.x.clone();
                let place_in_x = (shape[0] - 1) * shape[1] * shape[2] * shape[3] + shape[3] - 1;
                x[place_in_x] = f32::INFINITY;
                for (at, (spoilt, y)) in run(&x, 1).iter().zip(&y).enumerate() {
                    let (image, _, i, j) = place(at);
                    let [top, left] = geometry.padding.map(|[before, _]| before);
                    let reach = (geometry.kernel[1] - 1) * geometry.dilation[1];
                    let is_near =
                        image + 1 == shape[0] && i <= top && j + reach >= left + shape[3] - 1;
                    assert!(is_near || spoilt == y, "{} {shape:?} at {at}", kernels.name());
                }
            }
        }
    }
}

/// A linear layer: many images of one place, of which a row of the unfolded input is filled up.
#[test]
fn any_number_of_images_of_one_place_is_a_product() {
    let (nrows, ncols) = (7, 19);
    let w = numbers(nrows * ncols, 11, 0.4);
    let shape = Shape::new(nrows, ncols).unwrap();
    let matrix = CompressedMatrix::compress(&w, shape, &Request::default()).unwrap();
    for images in (1..140).chain([255, 256, 257, 300]) {
        let x = numbers(images * ncols, 13, 1.0);
        for kernels in simd::available() {
            let input = [images, ncols, 1, 1];
            let (y, found) = matrix.conv_on(kernels, &x, input, &Geometry::POINT, None, 1).unwrap();
            assert_eq!(found, [images, nrows, 1, 1]);
            for (at, &y) in y.iter().enumerate() {
                let (image, row) = (at / nrows, at % nrows);
                let terms = x[image * ncols..].iter().zip(&w[row * ncols..(row + 1) * ncols]);
                // Eighths, so that every sum is exact.
                assert_eq!(y, terms.map(|(x, w)| x * w).sum::<f32>(), "{images} images, {at}");
            }
        }
    }
}

/// Most weights kept, so that dense rows are multiplied, or transformed kernels; and what must not come
/// of it.
#[test]
fn a_hardly_pruned_convolution_is_the_definition_and_keeps_pruned_weights_out() {
    let three = Geometry { kernel: [3, 3], padding: [[1, 1]; 2], ..Geometry::POINT };
    let cases = [
        ([5, 7, 9, 11], three, 70),
        ([3, 6, 4, 4], three, 130),
        ([2, 5, 12, 17], Geometry { stride: [2, 2], ..three }, 65),
        ([70, 90, 1, 1], Geometry::POINT, 67),
        ([300, 33, 1, 1], Geometry::POINT, 9),
        // Enough for transformed kernels: whole images, rows of tiles, and cut tiles of each.
        ([9, 65, 9, 11], three, 70),
        ([1, 64, 33, 35], Geometry { padding: [[2, 0], [0, 1]], ..three }, 66),
        ([2, 67, 24, 32], Geometry { padding: [[0, 3], [4, 0]], ..three }, 64),
        ([130, 64, 3, 1], three, 68),
    ];
    let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
    for (shape, geometry, nrows) in cases {
        let ncols = shape[1] * geometry.kernel[0] * geometry.kernel[1];
        let mut w = numbers(nrows * ncols, 17, 0.9);
        // Nothing reads channel 2 in row 1.
        let taps = ncols / shape[1];
        w[ncols + 2 * taps..][..taps].fill(0.0);
        let mut case = Case {
            x: numbers(shape.iter().product(), 23, 1.0),
            shape,
            w,
            nrows,
            bias: None,
            geometry,
            layout: 0,
        };
        for layout in LAYOUTS {
            let request = Request { layout: Some(layout), goal: Goal::Speed, ..Request::default() };
            let matrix =
                CompressedMatrix::compress(&case.w, Shape::new(nrows, ncols).unwrap(), &request)
                    .unwrap();
            for kernels in simd::available() {
                let plan = Plan::new(kernels, &matrix, shape, &geometry).unwrap();
                // Layouts that put kept weights to their places do so for many outputs, and for vectors.
                let is_cheap = ["packed", "dense"].contains(&layout.name);
                if is_cheap || shape[1] >= 64 || shape[2..] == [1, 1] {
                    assert_eq!(plan.is_dense(), kernels.name() != "scalar", "{}", layout.name);
                }
                let run = |x: &[f32], threads| {
                    matrix.conv_on(kernels, x, shape, &geometry, None, threads).unwrap().0
                };
                case.x[0] = 0.5;
                let y = run(&case.x, 1);
                for threads in [2, 3, 8] {
                    assert_eq!(bits(&run(&case.x, threads)), bits(&y));
                }
                let [images, _, height, width] = plan.output();
                let area = height * width;
                assert_eq!(y.len(), images * nrows * area);
                for (at, &y) in y.iter().enumerate().step_by(7) {
                    let (image, row) = (at / area / nrows, at / area % nrows);
                    let (sum, _) = exact(&case, image, row, at % area / width, at % width);
                    assert_eq!(f64::from(y), sum, "eighths, so that every sum is exact");
                }
                // Numbers that are finite, and so are all products and sums of the definition.
                if shape[3] > 2 {
                    let before = case.x.clone();
                    (case.x[0], case.x[2]) = (f32::MAX / 2.0, f32::MIN / 2.0);
                    assert!(run(&case.x, 1).iter().all(|y| y.is_finite()), "{}", layout.name);
                    case.x = before;
                }
                // An infinity where row 1 is pruned, in the first image.
                case.x[2 * shape[2] * shape[3]] = f32::INFINITY;
                let z = run(&case.x, 1);
                assert_eq!(bits(&run(&case.x, 3)), bits(&z));
                assert!(z[..nrows * area].iter().any(|z| !z.is_finite()));
                assert_eq!(z[area..2 * area], y[area..2 * area], "{}", layout.name);
                assert_eq!(z[nrows * area..], y[nrows * area..]);
                case.x[2 * shape[2] * shape[3]] = 0.25;
            }
        }
    }
}

/// More kernels than are transformed at a time, in whole images, and in rows of tiles.
#[test]
fn many_kernels_that_are_hardly_pruned_agree_with_the_definition() {
    let geometry = Geometry { kernel: [3, 3], padding: [[1, 1]; 2], ..Geometry::POINT };
    for (shape, nrows) in [([5, 512, 16, 15], 150), ([1, 384, 33, 34], 190)] {
        let ncols = shape[1] * 9;
        let w = numbers(nrows * ncols, 17, 0.9);
        let x = numbers(shape.iter().product(), 23, 1.0);
        let case = Case { x, shape, w, nrows, bias: None, geometry, layout: 0 };
        let request = Request { goal: Goal::Speed, ..Request::default() };
        let shape_of_w = Shape::new(nrows, ncols).unwrap();
        let matrix = CompressedMatrix::compress(&case.w, shape_of_w, &request).unwrap();
        let (expected, _) = matrix.conv(&case.x, shape, &geometry, None, 1).unwrap();
        for threads in [2, 3, 8] {
            let (y, _) = matrix.conv(&case.x, shape, &geometry, None, threads).unwrap();
            assert_eq!(y, expected);
        }
        let [height, width] = [shape[2], shape[3]];
        for (at, &y) in expected.iter().enumerate().step_by(11) {
            let (image, at) = (at / height / width / nrows, at % (height * width * nrows));
            let (row, at) = (at / height / width, at % (height * width));
            let (sum, _) = exact(&case, image, row, at / width, at % width);
            assert_eq!(f64::from(y), sum, "eighths, so that every sum is exact");
        }
    }
}

#[test]
fn a_large_convolution_has_the_same_bits_on_any_number_of_threads() {
    let (shape, geometry) = (
        [3, 40, 17, 19],
        Geometry {
            kernel: [3, 3],
            stride: [1, 1],
            padding: [[1, 1]; 2],
            dilation: [1, 1],
            spread: [1, 1],
            groups: 1,
        },
    );
    let w = numbers(130 * 360, 3, 0.2);
    let x = numbers(shape.iter().product(), 5, 1.0);
    let matrix =
        CompressedMatrix::compress(&w, Shape::new(130, 360).unwrap(), &Request::default()).unwrap();
    let (expected, _) = matrix.conv(&x, shape, &geometry, None, 1).unwrap();
    for threads in [2, 3, 8] {
        assert_eq!(matrix.conv(&x, shape, &geometry, None, threads).unwrap().0, expected);
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let matrix =
        CompressedMatrix::compress(&[1.0; 36], Shape::new(2, 18).unwrap(), &Request::default())
            .unwrap();
    let good = Geometry {
        kernel: [3, 3],
        stride: [1, 1],
        padding: [[0, 0]; 2],
        dilation: [1, 1],
        spread: [1, 1],
        groups: 1,
    };
    assert!(matrix.conv(&[0.0; 50], [1, 2, 5, 5], &good, None, 1).is_ok());
    let cases = [
        (Geometry { kernel: [3, 2], ..good }, [1, 2, 5, 5]),
        (Geometry { groups: 2, ..good }, [1, 2, 5, 5]),
        (Geometry { groups: 0, ..good }, [1, 2, 5, 5]),
        (Geometry { stride: [0, 1], ..good }, [1, 2, 5, 5]),
        (Geometry { dilation: [1, 0], ..good }, [1, 2, 5, 5]),
        (Geometry { dilation: [1, usize::MAX], ..good }, [1, 2, 5, 5]),
        (Geometry { padding: [[usize::MAX, 1]; 2], ..good }, [1, 2, 5, 5]),
        (Geometry { kernel: [2, 9], dilation: [usize::MAX, 1], ..good }, [1, 2, 5, 5]),
        (
            Geometry { padding: [[1 << 31, 1 << 31], [1 << 31, (1 << 31) - 1]], ..good },
            [1, 2, 5, 5],
        ),
        (Geometry { padding: [[40_000; 2], [100_000; 2]], ..good }, [1, 2, 5, 5]),
        (good, [1, 2, 2, 5]),
        (good, [1, 2, 5, 6]),
        (good, [1, 3, 5, 5]),
    ];
    for (geometry, shape) in cases {
        let error = matrix.conv(&[0.0; 50], shape, &geometry, None, 1).unwrap_err().to_string();
        assert!(error.starts_with("conv: "), "{error}");
    }
    assert!(matrix.conv(&[0.0; 50], [1, 2, 5, 5], &good, Some(&[0.0; 3]), 1).is_err());
    // A step beyond the input leaves one output.
    let vast = Geometry { stride: [1 << 62, 1 << 32], ..good };
    let (y, shape) = matrix.conv(&[1.0; 50], [1, 2, 5, 5], &vast, None, 1).unwrap();
    assert_eq!((y, shape), (vec![18.0; 2], [1, 2, 1, 1]));
}
