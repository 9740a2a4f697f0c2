//! Bytes worked by hand, counted sizes, co-coding, and lists over several segments.

use super::*;
use crate::rows::Shape;
use crate::words::word_bits;
use crate::{CompressedMatrix, Request};

fn compress(weights: &[f32], nrows: usize, ncols: usize) -> CompressedMatrix {
    let request = Request { layout: Some(&SPEC), ..Request::default() };
    CompressedMatrix::compress(weights, Shape::new(nrows, ncols).unwrap(), &request).unwrap()
}

fn sections(matrix: &CompressedMatrix) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = matrix.section_bytes().into_iter().map(<[u8]>::to_vec);
    SPEC.sections.iter().copied().zip(bytes).filter(|section| !section.1.is_empty()).collect()
}

#[test]
fn a_small_matrix_is_stored_byte_by_byte_as_worked_by_hand_in_every_kind() {
    let shape = Shape::new(6, 6).unwrap();
    #[rustfmt::skip]
    let weights = [
        0.0,  0.0,  0.0, 0.0, 1.5, 0.0,
        1.5, -2.0, -2.0, 0.0, 0.0, 0.0,
        0.0, -2.0,  0.0, 0.0, 1.5, 0.0,
        1.5, -2.0, -2.0, 0.0, 1.5, 0.0,
        1.5,  0.0,  0.0, 0.0, 1.5, 1.5,
        0.0, -2.0,  0.0, 0.0, 0.0, 0.0,
    ];
    let rows = Rows::from_dense(&weights, shape).unwrap();
    let (codebook, symbols) = rows.shared("cla").unwrap();
    let columns = Columns::new(&rows, symbols);
    let mut builder = Builder::default();
    for (cols, kind) in
        [(&[0, 2][..], Kind::Offsets), (&[1], Kind::Runs), (&[4], Kind::Codes), (&[5], Kind::Plain)]
    {
        builder.add(&TupleRows::new(&columns, cols), kind, shape.nrows);
    }
    let cla = builder.finish(shape, codebook.k());
    let words = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    // Codebook −2, 1.5: words 1, 2. Column 3 keeps nothing.
    let expected = [
        vec![0, 1, 2, 3],             // kinds
        vec![2, 2, 1, 1, 1, 2, 1, 0], // sizes: columns and tuples
        vec![0, 2, 1, 4, 5],          // cols
        vec![2, 0, 2, 1, 1, 0, 2],    // tuples: (1.5, 0) (1.5, −2), −2, 0 1.5
        vec![0, 2, 5, 10],            // starts
        // Row 4; rows 1 and 3; rows 1 to 3 and row 5.
        words(&[1, 4, 2, 1, 3, 2, 1, 3, 5, 1]),
        vec![1, 0, 1, 1, 1, 0], // codes8
        vec![],                 // codes16
        vec![0, 0, 0, 0, 2, 0], // symbols
    ];
    assert_eq!(cla.sections(), expected.each_ref().map(Vec::as_slice));

    let sections = SPEC.sections.iter().zip(expected).map(|(&name, bytes)| {
        let nbytes = bytes.len();
        (name, std::sync::Arc::new(bytes) as crate::array::Owner, 0, nbytes)
    });
    let parts = Parts {
        shape,
        nnz: rows.nnz(),
        codebook: Some(codebook.clone()),
        coder: Coder::Fixed,
        params: Vec::new(),
        sections: sections.collect(),
    };
    let matrix = CompressedMatrix::read(&SPEC, parts).unwrap();
    assert_eq!(matrix.decompress(1).unwrap(), weights);
    let y = matrix.matvec(&[1.0, 10.0, 100.0, f32::NAN, 1000.0, 10000.0], 1).unwrap();
    assert_eq!(y, [1500.0, -218.5, 1480.0, 1281.5, 16501.5, -20.0]);
}

#[test]
fn four_dense_columns_of_two_symbols_share_one_byte_of_codes() {
    // Every combination of {0, 1, 2} in four columns: 81 tuples, all in turn.
    let digit = |i: usize| (i / 4 * 40 % 81 / 3usize.pow((i % 4) as u32) % 3) as f32;
    let weights: Vec<f32> = (0..810 * 4).map(digit).collect();
    let matrix = compress(&weights, 810, 4);
    let found = sections(&matrix);
    let tuples = (0..81u8).flat_map(|t| [t / 27, t / 9 % 3, t / 3 % 3, t % 3]).collect();
    assert_eq!(found[0], ("kinds", vec![2]));
    assert_eq!(found[2], ("cols", vec![0, 1, 2, 3]));
    assert_eq!(found[3], ("tuples", tuples));
    // Row 5 is 5 · 40 mod 81 = 38 = 2 + 0 · 3 + 1 · 9 + 1 · 27: in sorted order 2 · 27 + 3 + 1.
    assert_eq!((found[5].0, found[5].1.len(), found[5].1[5]), ("codes8", 810, 58));
    assert_eq!(matrix.decompress(1).unwrap(), weights);
}

#[test]
fn zeros_in_a_tuple_are_skipped_where_x_is_not_finite() {
    // Two columns that keep the same rows but for one, where column 1 is pruned.
    let mut weights = vec![0.0; 500 * 2];
    (0..500).step_by(3).for_each(|row| weights[row * 2..][..2].fill(3.0));
    weights[3 * 2 + 1] = 0.0;
    let matrix = compress(&weights, 500, 2);
    assert_eq!(sections(&matrix)[0].1.len(), 1, "one group");
    let y = matrix.matvec(&[2.0, f32::INFINITY], 2).unwrap();
    assert_eq!((y[0], y[1], y[3]), (f32::INFINITY, 0.0, 6.0));
}

#[test]
fn sizes_are_those_of_the_published_formulas_with_words_for_values() {
    let mut state = 1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 20
    };
    let (nrows, ncols) = (2000, 300);
    let mut weight = || if random() % 10 == 0 { (random() % 32) as f32 + 1.0 } else { 0.0 };
    let weights: Vec<f32> = (0..nrows * ncols).map(|_| weight()).collect();
    let matrix = compress(&weights, nrows, ncols);
    let lens: Vec<usize> = matrix.section_bytes().iter().map(|section| section.len()).collect();
    // Independent columns stay alone, each as offsets: d tuples, z rows, one segment a list.
    let mut lists = 0;
    for col in 0..ncols {
        let mut found: Vec<u32> = (0..nrows).map(|r| weights[r * ncols + col].to_bits()).collect();
        found.sort_unstable();
        found.dedup();
        lists += found.len() - 1;
    }
    let bytes = |max: usize| word_bits(max as u64) as usize / 8;
    let words = lists + matrix.nnz();
    let expected = [
        ncols,
        2 * ncols * bytes(nrows),
        ncols * bytes(ncols - 1),
        lists * bytes(32),
        (lists + 1) * bytes(words),
        2 * words,
    ];
    assert_eq!(lens, [&expected[..], &[0, 0, 0]].concat());
}

#[test]
fn lists_over_several_segments_come_back_whole_and_in_parts() {
    let nrows = 3 * SEGMENT_ROWS + 10;
    // Offsets in segments 0 and 2, and a run over a segment's end.
    let mut weights = vec![0.0; nrows * 2];
    for row in [0, SEGMENT_ROWS - 1, 2 * SEGMENT_ROWS, 2 * SEGMENT_ROWS + 5, nrows - 1] {
        weights[row * 2] = 1.0;
    }
    let run = SEGMENT_ROWS - 7..2 * SEGMENT_ROWS + 3;
    run.clone().for_each(|row| weights[row * 2 + 1] = 2.0);
    let matrix = compress(&weights, nrows, 2);
    assert_eq!(sections(&matrix)[0], ("kinds", vec![0, 1]));
    let words = |values: &[u16]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
    let offsets = [2, 0, 65_534, 0, 2, 0, 5, 1, 9];
    let runs = [1, 65_528, 7, 1, 0, 65_535, 1, 0, 3];
    assert_eq!(matrix.section_bytes()[5], words(&[offsets, runs].concat()));
    assert_eq!(matrix.decompress(3).unwrap(), weights);
    let y = matrix.matvec(&[1.0, 1.0], 4).unwrap();
    assert!(y.iter().zip(weights.chunks(2)).all(|(&y, row)| y == row[0] + row[1]));
}

#[test]
fn columns_that_keep_the_same_rows_are_found_and_grouped_wherever_they_are() {
    // 512 columns in 32 families of 16, far apart; each family keeps the same rows.
    let random = |a: usize, b: usize| ((a * 7919 + b) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (nrows, ncols) = (3000, 512);
    let weight = |i: usize| {
        let (row, col) = (i / ncols, i % ncols);
        f32::from(u8::from(random(row, col % 32) >> 59 == 3)) * (1 + col % 2) as f32
    };
    let weights: Vec<f32> = (0..nrows * ncols).map(weight).collect();
    let matrix = compress(&weights, nrows, ncols);
    let ngroups = matrix.section_bytes()[0].len();
    assert!(ngroups <= 64, "{ngroups} groups for 32 families of columns");
    let alone = 2 * matrix.nnz();
    assert!(matrix.nbytes() * 6 < alone, "{} bytes, {alone} of offsets alone", matrix.nbytes());
}
