use super::*;
use crate::array::Owner;
use crate::layout::{Goal, compress_as};
use std::sync::Arc;

/// Two rows of eight values in common and one of their own, and a row of nothing.
fn small() -> CompressedMatrix {
    let mut weights = [0.0; 36];
    weights[..8].fill(1.5);
    weights[12..20].fill(1.5);
    (weights[10], weights[23]) = (2.5, 2.5);
    compress_as(&SPEC, &weights, 3, 12)
}

/// Reads the small matrix with changed parameters and sections.
fn read_changed(change: impl FnOnce(&mut Vec<u64>, &mut Vec<Vec<u8>>)) -> Result<CompressedMatrix> {
    let matrix = small();
    let mut params = matrix.layout.params();
    let mut sections: Vec<_> = matrix.section_bytes().iter().map(|bytes| bytes.to_vec()).collect();
    change(&mut params, &mut sections);
    let sections = SPEC.sections.iter().zip(sections).map(|(&name, bytes)| {
        let nbytes = bytes.len();
        let owner: Owner = Arc::new(bytes);
        (name, owner, 0, nbytes)
    });
    let parts = Parts {
        shape: matrix.shape(),
        nnz: matrix.nnz(),
        codebook: matrix.codebook().cloned(),
        coder: matrix.coder(),
        params,
        sections: sections.collect(),
    };
    CompressedMatrix::read(&SPEC, parts)
}

#[test]
fn a_small_matrix_is_stored_byte_by_byte_as_worked_by_hand() {
    let matrix = small();
    // Rows 0 and 1 are in group 1. The inner rows: columns 0 to 7; 10; 11; none.
    // Lengths 8, 1, 1, 0 after the bases 0 and 10; one block of 4 bytes.
    // Gaps in one bit: 8 zeros; ten ones and a zero; eleven ones and a zero. Symbols 0 × 8, 1, 1.
    let expected: [&[u8]; 11] = [
        &[0b011],
        &[0xa0, 0x18, 0x01],
        &[1],
        &[0x20],
        &[0x00, 0xff, 0xfb, 0x3f],
        &[0x00, 0x03],
        &[],
        &[],
        &[],
        &[],
        &[],
    ];
    assert_eq!(matrix.section_bytes(), expected);
    assert_eq!(matrix.layout.params(), [1, 1, 10, 0, 4, 4, 4, 0, 3, 1]);
    let mut x = [2.0; 12];
    (x[10], x[11]) = (f32::INFINITY, 4.0);
    // 8 · 1.5 · 2 and ∞; 8 · 1.5 · 2 and 2.5 · 4; nothing.
    assert_eq!(matrix.matvec(&x, 1).unwrap(), [f32::INFINITY, 34.0, 0.0]);
    assert_eq!(
        matrix.matmul(&[x, [1.0; 12]].concat(), 2, 2).unwrap(),
        [f32::INFINITY, 34.0, 0.0, 14.5, 14.5, 0.0]
    );
}

#[test]
fn what_does_not_agree_is_an_error_that_says_what() {
    assert!(read_changed(|_, _| ()).is_ok());
    let message = |change: fn(&mut Vec<u64>, &mut Vec<Vec<u8>>)| {
        read_changed(change).unwrap_err().to_string()
    };
    // Row 0 keeps column 7 in place of 10: three ones less.
    let twice = message(|_, sections| sections[4] = vec![0x00, 0x7f, 0xff, 0x07]);
    assert_eq!(
        twice,
        "grouped: row 0: column 7 in its own part and in that of its group, expected it in one"
    );
    let over = message(|params, sections| {
        params[1] = 2;
        sections[0] = vec![0b00_0110];
    });
    assert_eq!(over, "grouped: row 0: group 2, expected one of 1 (section groups)");
    let padded = message(|_, sections| sections[0] = vec![0b1011]);
    assert_eq!(padded, "grouped: section groups: bits after the last row, expected zeros");
    let groups = message(|params, _| params[0] = 4);
    assert_eq!(
        groups,
        "grouped: params: 4 groups in 1 bits, expected at most 3 groups, in 3 to 16 bits"
    );
    let none = message(|params, _| params[0] = 0);
    assert_eq!(
        none,
        "grouped: params: 0 groups in 1 bits, expected at most 3 groups, in 0 to 0 bits"
    );
    let of_coded = message(|_, sections| sections[10] = vec![0]);
    assert_eq!(of_coded, "grouped: section blocks: 1 elements of 1 bytes, expected 0");
    let alone = message(|_, sections| sections[0] = vec![0b001]);
    assert_eq!(alone, "grouped: rows: 10 kept weights, expected 18");
    let inner = message(|params, _| params[2] = 9);
    assert!(inner.starts_with("grouped: packed: "), "{inner}");
    let few = message(|params, _| params.truncate(2));
    assert_eq!(few, "grouped: params: 2 numbers, expected 3 and those of the inner matrix");
}

/// Rows of 60 entries, of which the first `common` are those of one of 5 patterns.
fn alike(nrows: usize, common: usize) -> Vec<f32> {
    let value = |seed: usize, col: usize| {
        let hash = ((seed * 1000 + col + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((hash ^ hash >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) % 13 + 1
    };
    let rows = (0..nrows).map(|row| {
        (0..60).map(move |col| {
            let seed = if col < common { row % 5 } else { 1000 + row * row };
            value(seed, col) as f32
        })
    });
    rows.flatten().collect()
}

#[test]
fn groups_save_what_their_rows_have_in_common() {
    // 5 groups of 20 rows each: 19 of 20 times 40 entries, and what their own happen to share.
    let shape = Shape::new(100, 60).unwrap();
    let rows = Rows::from_dense(&alike(100, 40), shape).unwrap();
    let grouping = Grouping::of(&rows).unwrap();
    assert_eq!(grouping.numbers.iter().max(), Some(&5));
    for (row, &number) in grouping.numbers.iter().enumerate() {
        assert_eq!(usize::from(number), row % 5 + 1, "row {row}");
    }
    let matrix = compress_as(&SPEC, &alike(100, 40), 100, 60);
    assert!(matrix.layout.grouped().unwrap().inner().nnz() <= 6000 - 5 * 19 * 40);
}

#[test]
fn auto_groups_alike_rows_of_matrices_and_no_others() {
    let layout = |common: usize, goal: Goal, taps: Option<usize>| {
        let request = Request { goal, taps, ..Request::default() };
        let shape = Shape::new(400, 60).unwrap();
        CompressedMatrix::compress(&alike(400, common), shape, &request).unwrap().layout().name
    };
    for goal in [Goal::Size, Goal::Speed] {
        assert_eq!(layout(50, goal, None), "grouped");
        assert_ne!(layout(50, goal, Some(3)), "grouped");
        assert_ne!(layout(2, goal, None), "grouped");
    }
}
