//! The archive beside the order-0 entropy, and its decoder on noise.

use crate::matrices::to_bits;
use proptest::prelude::*;
use std::sync::Arc;
use tersenet::array::Owner;
use tersenet::bounds::entropy;
use tersenet::layout::{Columns, Goal, Parts, by_name};
use tersenet::rows::{Rows, Shape};
use tersenet::{Codebook, CompressedMatrix, ErrorKind, Request};

fn request(goal: Goal) -> Request {
    Request::parse("archive", "mixing", goal, Columns::Coded).unwrap()
}

/// Numbers that look random, the same in each run.
fn numbers() -> impl FnMut() -> u64 {
    let mut state = 88_172_645_463_325_252u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 11
    }
}

/// Bytes of positions and symbols at their order-0 entropy.
fn entropy_nbytes(weights: &[f32], k: usize) -> f64 {
    let mut histogram = vec![0u64; k];
    let kept = weights.iter().filter(|&&w| w != 0.0);
    kept.for_each(|&w| histogram[w as usize - 1] += 1);
    let nnz: u64 = histogram.iter().sum();
    let entries = weights.len() as u64;
    let positions = entropy(&[nnz, entries - nnz]) * entries as f64;
    (positions + entropy(&histogram) * nnz as f64) / 8.0
}

/// A matrix of small positive integers, of which one in `keep_one_of` is kept, with its shape.
fn noise(nrows: usize, ncols: usize, keep_one_of: u64, k: u64) -> (Vec<f32>, Shape) {
    let mut next = numbers();
    let shape = Shape::new(nrows, ncols).unwrap();
    let weight = |_| {
        let symbol = (next() % k).min(next() % k);
        if next().is_multiple_of(keep_one_of) { symbol as f32 + 1.0 } else { 0.0 }
    };
    ((0..shape.entries()).map(weight).collect(), shape)
}

#[test]
fn noise_takes_its_entropy_and_little_more() {
    for (keep_one_of, k) in [(1, 16), (2, 32), (5, 200), (10, 5), (100, 32)] {
        let (weights, shape) = noise(400, 500, keep_one_of, k);
        for goal in [Goal::Size, Goal::Speed] {
            let matrix = CompressedMatrix::compress(&weights, shape, &request(goal)).unwrap();
            let expected = entropy_nbytes(&weights, k as usize);
            let found = (matrix.nbytes() - 4 * k as usize) as f64;
            assert!(
                found <= expected * 1.02 + 256.0,
                "1 of {keep_one_of}, k = {k}: {found} bytes, entropy {expected}"
            );
        }
    }
}

/// A matrix of 300 columns whose rows are six patterns with a few other entries, and it transposed, with
/// their shapes; and the bytes of their entropy.
fn repeated_rows(nrows: usize) -> ([(Vec<f32>, Shape); 2], f64) {
    let (patterns, _) = noise(6, 300, 8, 9);
    let mut next = numbers();
    let mut weights = Vec::new();
    for _ in 0..nrows {
        let pattern = (next() % 6) as usize * 300;
        weights.extend_from_slice(&patterns[pattern..][..300]);
    }
    for weight in &mut weights {
        if next().is_multiple_of(500) {
            *weight = (next() % 9) as f32;
        }
    }
    let turned = (0..weights.len()).map(|i| weights[i % nrows * 300 + i / nrows]).collect();
    let expected = entropy_nbytes(&weights, 9);
    let shapes = [[nrows, 300], [300, nrows]].map(|[m, n]| Shape::new(m, n).unwrap());
    ([(weights, shapes[0]), (turned, shapes[1])], expected)
}

#[test]
fn lines_that_are_alike_take_a_small_part_of_the_entropy_in_either_direction() {
    // Small, where both directions are coded to their ends, and large, where one may be left.
    for nrows in [500, 3600] {
        let (matrices, expected) = repeated_rows(nrows);
        for (weights, shape) in matrices {
            let matrix = CompressedMatrix::compress(&weights, shape, &request(Goal::Size)).unwrap();
            assert!((matrix.nbytes() as f64) < expected / 5.0, "{} of {expected}", matrix.nbytes());
            assert_eq!(to_bits(&matrix.decompress(1).unwrap()), to_bits(&weights));
        }
    }
}

#[test]
fn the_fast_level_takes_more_bytes_than_the_other_and_few_where_pieces_repeat() {
    let ([(weights, shape), _], expected) = repeated_rows(3600);
    let [best, fast] = [Goal::Size, Goal::Speed].map(|goal| {
        let matrix = CompressedMatrix::compress(&weights, shape, &request(goal)).unwrap();
        assert_eq!(to_bits(&matrix.decompress(1).unwrap()), to_bits(&weights));
        matrix.nbytes() as f64
    });
    assert!(best < fast && fast < expected / 4.0, "{best} {fast} {expected}");
}

#[test]
fn a_large_matrix_in_blocks_comes_back_whole_and_damaged_sizes_are_errors() {
    // 2²⁵ entries in two blocks, of which few lines keep anything.
    let (nrows, ncols) = (4096, 8192);
    let mut rows = vec![Vec::new(); nrows];
    for row in [0, 1, 2047, 2048, 2049, 4095] {
        rows[row] = (0..200u32).map(|i| (i * 40 + row as u32 % 3, (i % 5) as u16)).collect();
    }
    let shape = Shape::new(nrows, ncols).unwrap();
    let codebook = Arc::new(Codebook::new(vec![1.0, -2.0, 3.0, 0.5, -0.25]).unwrap());
    let mut given = Rows::with_codebook(shape, codebook.clone());
    for row in &rows {
        row.iter().for_each(|&(col, symbol)| given.push(col, symbol));
        given.end_row();
    }
    let given = given.finish();
    for goal in [Goal::Size, Goal::Speed] {
        let matrix = CompressedMatrix::from_rows(&given, &request(goal)).unwrap();
        let found = matrix.to_rows().unwrap();
        assert_eq!((found.indptr(), found.cols()), (given.indptr(), given.cols()));
    }
    let matrix = CompressedMatrix::from_rows(&given, &request(Goal::Speed)).unwrap();
    let stream = matrix.section_bytes().last().unwrap().to_vec();
    let read = |stream: &[u8]| {
        let owner: Owner = Arc::new(stream.to_vec());
        let parts = Parts {
            shape,
            nnz: given.nnz(),
            codebook: Some(codebook.clone()),
            coder: tersenet::entropy::Coder::Mixing,
            params: vec![2, 1, 0],
            sections: vec![("stream", owner, 0, stream.len())],
        };
        CompressedMatrix::read(by_name("archive").unwrap(), parts)
    };
    let found = read(&stream).unwrap().to_rows().unwrap();
    assert_eq!((found.indptr(), found.cols()), (given.indptr(), given.cols()));
    let size = u64::from_le_bytes(stream[..8].try_into().unwrap());
    assert!(size > 20 && size < stream.len() as u64);
    for wrong in [0, size - 1, size + 1, stream.len() as u64, u64::MAX] {
        let mut damaged = stream.clone();
        damaged[..8].copy_from_slice(&wrong.to_le_bytes());
        let kind = read(&damaged).unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Truncated), "{wrong}");
    }
    assert!(read(&stream[..7]).is_err());
}

#[test]
fn taps_help_where_positions_of_a_kernel_differ_and_must_divide_the_columns() {
    let mut next = numbers();
    let shape = Shape::new(64, 9 * 32).unwrap();
    let odds = [1, 9, 1, 9, 99, 9, 1, 9, 1];
    let weights: Vec<f32> = (0..shape.entries())
        .map(|i| if next() % 100 < odds[i % 9] { (next() % 4) as f32 + 1.0 } else { 0.0 })
        .collect();
    let with = |taps| {
        let request = Request { taps: Some(taps), ..request(Goal::Speed) };
        CompressedMatrix::compress(&weights, shape, &request)
    };
    let (plain, kernels) = (with(1).unwrap(), with(9).unwrap());
    assert!(kernels.nbytes() < plain.nbytes(), "{} {}", kernels.nbytes(), plain.nbytes());
    assert_eq!(to_bits(&kernels.decompress(1).unwrap()), to_bits(&weights));
    for taps in [0, 7, 1000] {
        let message = with(taps).unwrap_err().to_string();
        let expected = format!("taps: {taps} for rows of 288 entries, expected a divisor");
        assert_eq!(message, expected);
    }
}

proptest! {
    #[test]
    fn noise_as_a_stream_is_an_error_or_a_matrix_and_ends(
        stream in prop::collection::vec(any::<u8>(), 0..300),
        nrows in 1usize..300,
        ncols in 1usize..300,
        nnz in 1usize..5000,
        k in 1u32..700,
        how in 0u64..4,
        taps in prop_oneof![Just(1u64), 2u64..30],
    ) {
        let ncols = ncols.next_multiple_of(taps as usize);
        let values: Vec<f32> = (1..=k).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 } * i as f32).collect();
        let owner: Owner = Arc::new(stream.clone());
        let parts = Parts {
            shape: Shape::new(nrows, ncols).unwrap(),
            nnz: nnz.min(nrows * ncols),
            codebook: Some(Arc::new(Codebook::new(values).unwrap())),
            coder: tersenet::entropy::Coder::Mixing,
            params: vec![how, taps, 0],
            sections: vec![("stream", owner, 0, stream.len())],
        };
        match CompressedMatrix::read(by_name("archive").unwrap(), parts) {
            Ok(matrix) => prop_assert_eq!(matrix.to_rows().unwrap().nnz(), matrix.nnz()),
            Err(e) => prop_assert!(
                matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Truncated), "{e}"
            ),
        }
    }
}
