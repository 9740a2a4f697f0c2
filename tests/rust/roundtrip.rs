//! Every pair of layout and coder: lossless, convertible, and right in every product.

use crate::bound::check_product;
use crate::matrices::{Dense, edge_set, matrix, to_bits, unquantized};
use proptest::prelude::*;
use tersenet::bounds::entropy;
use tersenet::layout::{Columns, Goal, LAYOUTS};
use tersenet::rows::Shape;
use tersenet::simd;
use tersenet::{CompressedMatrix, Request};

/// Every layout with each of its coders, for either goal and either arrangement.
fn requests() -> Vec<Request> {
    let mut requests = vec![Request::default()];
    for spec in LAYOUTS {
        for &coder in spec.coders {
            for goal in [Goal::Size, Goal::Speed] {
                for columns in [Columns::Coded, Columns::Raw] {
                    requests.push(Request {
                        layout: Some(spec),
                        coder: Some(coder),
                        goal,
                        columns,
                        taps: None,
                    });
                }
            }
        }
    }
    requests
}

/// x with an infinity in each column that keeps nothing.
fn inputs(weights: &[f32], ncols: usize, batch: usize) -> Vec<f32> {
    (0..batch * ncols)
        .map(|i| {
            let used = weights
                .iter()
                .skip(i % ncols.max(1))
                .step_by(ncols.max(1))
                .any(|w| w.to_bits() != 0);
            if used { ((i * 37) % 101) as f32 / 50.0 - 1.0 } else { f32::INFINITY }
        })
        .collect()
}

fn check(name: &str, (weights, shape): &Dense, products: bool) {
    let mut smallest = usize::MAX;
    let mut auto = 0;
    for request in requests() {
        let what = format!(
            "{name} as {:?} {:?} {:?} {:?}",
            request.layout, request.coder, request.goal, request.columns
        );
        let matrix = CompressedMatrix::compress(weights, *shape, &request).unwrap();
        let nnz = weights.iter().filter(|w| w.to_bits() != 0).count();
        assert_eq!((matrix.shape(), matrix.nnz()), (*shape, nnz), "{what}");
        for threads in [1, 3] {
            assert_eq!(to_bits(&matrix.decompress(threads).unwrap()), to_bits(weights), "{what}");
        }
        let ids: Vec<usize> =
            (0..shape.nrows).rev().step_by(3).chain(0..shape.nrows.min(2)).collect();
        let rows: Vec<u32> = ids
            .iter()
            .flat_map(|id| to_bits(&weights[id * shape.ncols..(id + 1) * shape.ncols]))
            .collect();
        assert_eq!(to_bits(&matrix.rows(&ids).unwrap()), rows, "{what}");
        let again = matrix.to(&Request::default()).unwrap().to(&request).unwrap();
        assert_eq!(again.section_bytes(), matrix.section_bytes(), "{what}");
        for first in ["cser", "hac", "shac"] {
            let first = Request::parse(first, "auto", Goal::Size, Columns::Raw).unwrap();
            let via = CompressedMatrix::compress(weights, *shape, &first).unwrap();
            let via = via.to(&request).unwrap();
            assert_eq!(via.section_bytes(), matrix.section_bytes(), "{what} by {first:?}");
        }
        assert_eq!(
            matrix.nbytes(),
            matrix.sections().iter().map(|(_, nbytes)| nbytes).sum::<usize>()
        );
        if request.layout.is_none() {
            auto = matrix.nbytes();
        }
        smallest = smallest.min(matrix.nbytes());
        if !products {
            continue;
        }
        for kernels in simd::available() {
            for batch in [0, 1, 2, 17, 33] {
                let x = inputs(weights, shape.ncols, batch);
                let y = matrix.matmul_on(kernels, &x, batch, 1).unwrap();
                assert_eq!(y.len(), batch * shape.nrows);
                for (i, &y) in y.iter().enumerate() {
                    let (member, row) = (i / shape.nrows, i % shape.nrows);
                    check_product(
                        y,
                        &weights[row * shape.ncols..][..shape.ncols],
                        &x[member * shape.ncols..][..shape.ncols],
                        &format!("{what} on {} row {row} of {batch}", kernels.name()),
                    );
                }
                for threads in [2, 3, 8] {
                    let again = matrix.matmul_on(kernels, &x, batch, threads).unwrap();
                    assert_eq!(to_bits(&again), to_bits(&y), "{what} on {threads} threads");
                }
            }
        }
    }
    assert!(
        auto <= smallest || auto <= weights.len() * 4 + 64,
        "{name}: auto {auto}, smallest {smallest}"
    );
}

#[test]
fn the_edge_set_survives_every_layout_and_multiplies_within_the_bound() {
    for (name, dense) in edge_set() {
        check(name, &dense, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_matrix_survives_every_layout_and_multiplies_within_the_bound(dense in matrix()) {
        check("random", &dense, true);
    }
}

#[test]
fn coded_stays_within_2_percent_of_the_order_0_entropy() {
    for (keep_one_of, k) in [(2, 32), (5, 256), (10, 5), (100, 32)] {
        let shape = Shape::new(1024, 1500).unwrap();
        let mut state = 88_172_645_463_325_252u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 11
        };
        let mut histogram = vec![0u64; k];
        let weights: Vec<f32> = (0..shape.entries())
            .map(|_| {
                let symbol = (next() % k as u64 + next() % k as u64) as usize / 2;
                if next() % keep_one_of > 0 {
                    return 0.0;
                }
                histogram[symbol] += 1;
                symbol as f32 + 1.0
            })
            .collect();
        let nnz: u64 = histogram.iter().sum();
        let positions = entropy(&[nnz, shape.entries() as u64 - nnz]) * shape.entries() as f64;
        let expected = (positions + entropy(&histogram) * nnz as f64) / 8.0;
        let request = Request::parse("coded", "tans", Goal::Size, Columns::Coded).unwrap();
        let matrix = CompressedMatrix::compress(&weights, shape, &request).unwrap();
        let nbytes = matrix.nbytes() - 4 * k;
        assert!(
            nbytes as f64 <= expected * 1.02 + 1024.0,
            "1 of {keep_one_of}, k = {k}: {nbytes} bytes, entropy {expected}"
        );
    }
}

#[test]
fn unquantized_weights_go_into_dense_and_csr_and_nothing_else() {
    let (weights, shape) = unquantized();
    for request in requests() {
        let matrix = CompressedMatrix::compress(&weights, shape, &request);
        match request.layout {
            Some(spec) if !spec.holds_values => {
                let message = matrix.unwrap_err().to_string();
                assert!(message.contains("65536 distinct values"), "{message}");
            }
            _ => {
                let matrix = matrix.unwrap();
                assert_eq!(to_bits(&matrix.decompress(2).unwrap()), to_bits(&weights));
                assert!(matches!(matrix.layout().name, "dense" | "csr"));
            }
        }
    }
}

#[test]
fn wrong_lengths_and_pairs_that_do_not_exist_are_errors_that_name_them() {
    let shape = tersenet::rows::Shape::new(2, 3).unwrap();
    let error = CompressedMatrix::compress(&[0.0; 5], shape, &Request::default()).unwrap_err();
    assert_eq!(error.to_string(), "weights: 5 numbers, expected 6 for shape [2, 3]");
    let matrix = CompressedMatrix::compress(&[1.0; 6], shape, &Request::default()).unwrap();
    assert!(matrix.matvec(&[0.0; 2], 1).is_err());
    assert!(matrix.matmul(&[0.0; 7], 2, 1).is_err());
    assert_eq!(matrix.rows(&[2]).unwrap_err().to_string(), "rows: row 2, expected under nrows = 2");
    let pair = Request::parse("dense", "huffman", Goal::Size, Columns::Coded).unwrap();
    let error = CompressedMatrix::compress(&[1.0; 6], shape, &pair).unwrap_err();
    assert_eq!(error.to_string(), "coder: huffman for layout dense, expected fixed");
    assert!(Request::parse("dens", "auto", Goal::Size, Columns::Coded).is_err());
    assert!(Request::parse("auto", "fixd", Goal::Size, Columns::Coded).is_err());
}
