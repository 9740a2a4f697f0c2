//! Every layout, fed with damaged sections, parameters and codebooks: an error, or a matrix that
//! can be used, and never a panic.

use crate::matrices::edge_set;
use crate::stored::Stored;
use std::sync::Arc;
use tersenet::codebook::Codebook;
use tersenet::layout::{Columns, Goal, LAYOUTS};
use tersenet::rows::Shape;
use tersenet::{CompressedMatrix, ErrorKind, Request, Result};

impl Stored {
    /// Reads it with some damage: an error of the kind that says so, or a matrix to use.
    fn damage(&self, damage: impl FnOnce(&mut Self)) -> Result<CompressedMatrix> {
        let mut stored = self.clone();
        damage(&mut stored);
        let matrix = stored.read();
        match &matrix {
            Ok(matrix) => use_up(matrix),
            Err(e) => assert!(
                matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Truncated),
                "{:?}: {e}",
                e.kind()
            ),
        }
        matrix
    }
}

/// Decompresses, takes rows and multiplies; what was accepted has rising columns and nnz weights.
fn use_up(matrix: &CompressedMatrix) {
    let Shape { nrows, ncols } = matrix.shape();
    let dense = matrix.decompress(1).unwrap();
    assert_eq!(dense.iter().filter(|w| w.to_bits() != 0).count(), matrix.nnz());
    let exchange = matrix.to_rows().unwrap();
    assert!((0..nrows).all(|row| exchange.row_cols(row).is_sorted_by(|a, b| a < b)));
    let rows: Vec<usize> = (0..nrows).rev().step_by(7).collect();
    assert_eq!(matrix.rows(&rows).unwrap().len(), rows.len() * ncols);
    assert_eq!(matrix.matvec(&vec![1.0; ncols], 2).unwrap().len(), nrows);
    assert_eq!(matrix.matmul(&vec![1.0; ncols * 2], 2, 1).unwrap().len(), nrows * 2);
}

/// Every layout with each of its coders and arrangements, on the small matrices of the edge set.
fn stored() -> Vec<(String, Stored)> {
    let mut all = Vec::new();
    for (name, (weights, shape)) in edge_set() {
        if weights.len() > 20_000 {
            continue;
        }
        for &layout in LAYOUTS {
            for &coder in layout.coders {
                for goal in [Goal::Size, Goal::Speed] {
                    for columns in [Columns::Coded, Columns::Raw] {
                        let request = Request {
                            layout: Some(layout),
                            coder: Some(coder),
                            goal,
                            columns,
                            taps: None,
                        };
                        let matrix = CompressedMatrix::compress(&weights, shape, &request).unwrap();
                        let what = format!("{name} as {layout:?} {coder:?} {goal:?} {columns:?}");
                        all.push((what, Stored::of(&matrix)));
                    }
                }
            }
        }
    }
    all
}

#[test]
fn what_was_stored_reads_back_with_the_same_bytes() {
    for (what, stored) in stored() {
        let matrix = stored.damage(|_| ()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(matrix.section_bytes(), stored.sections, "{what}");
    }
}

#[test]
fn a_flipped_bit_in_a_section_is_an_error_or_a_usable_matrix() {
    for (_, stored) in stored() {
        for section in 0..stored.sections.len() {
            let nbits = stored.sections[section].len() * 8;
            // Every bit of a short section; both ends and a sample of a long one.
            let step = (nbits / 64).next_multiple_of(2) | 1;
            let ends = (0..nbits.min(16)).chain(nbits.saturating_sub(16)..nbits);
            for bit in ends.chain((0..nbits).step_by(step)) {
                _ = stored.damage(|s| s.sections[section][bit / 8] ^= 1 << (bit % 8));
            }
        }
    }
}

#[test]
fn bytes_set_to_their_extremes_are_an_error_or_a_usable_matrix() {
    for (_, stored) in stored() {
        for section in 0..stored.sections.len() {
            for byte in [0, 0x7f, 0x80, 0xff] {
                _ = stored.damage(|s| s.sections[section].fill(byte));
                let nbytes = stored.sections[section].len();
                for at in (0..nbytes).step_by((nbytes / 16).max(1)) {
                    _ = stored.damage(|s| s.sections[section][at] = byte);
                }
            }
        }
    }
}

#[test]
fn a_section_cut_or_extended_is_an_error() {
    for (what, stored) in stored() {
        // An arithmetic coder reads any bytes: fewer or more may stand for another matrix with as
        // many kept weights.
        let is_free = stored.coder == tersenet::entropy::Coder::Mixing;
        for section in 0..stored.sections.len() {
            let name = stored.spec.sections[section];
            let nbytes = stored.sections[section].len();
            for cut in [1, 2, 3, 4, 8, nbytes / 2, nbytes] {
                if (1..=nbytes).contains(&cut) {
                    let read = stored.damage(|s| s.sections[section].truncate(nbytes - cut));
                    assert!(is_free || read.is_err(), "{what}: {name} cut by {cut} of {nbytes}");
                }
            }
            for more in [1, 2, 3, 4, 8, 64] {
                for byte in [0, 0xff] {
                    let read = stored.damage(|s| s.sections[section].resize(nbytes + more, byte));
                    let is_right = is_free || read.is_err();
                    assert!(is_right, "{what}: {name} of {nbytes} longer by {more}");
                }
            }
        }
    }
}

#[test]
fn changed_parameters_are_an_error_or_a_usable_matrix_and_their_number_is_checked() {
    for (what, stored) in stored() {
        for param in 0..stored.params.len() {
            let value = stored.params[param];
            let near = [value.wrapping_sub(1), value.wrapping_add(1), value.wrapping_mul(2)];
            let far = [0, 1, 8, 57, 63, 64, 255, 1 << 31, 1 << 32, 1 << 62, u64::MAX];
            for other in near.into_iter().chain(far) {
                _ = stored.damage(|s| s.params[param] = other);
            }
        }
        assert!(stored.damage(|s| s.params.push(0)).is_err(), "{what}");
        if !stored.params.is_empty() {
            assert!(stored.damage(|s| s.params.truncate(s.params.len() - 1)).is_err(), "{what}");
        }
    }
}

#[test]
fn another_number_of_kept_weights_is_an_error() {
    for (what, stored) in stored() {
        for nnz in [0, 1, stored.nnz.wrapping_sub(1), stored.nnz + 1, usize::MAX] {
            if nnz != stored.nnz {
                assert!(stored.damage(|s| s.nnz = nnz).is_err(), "{what}: nnz = {nnz}");
            }
        }
    }
}

#[test]
fn another_shape_is_an_error_or_a_usable_matrix() {
    for (what, stored) in stored() {
        let Shape { nrows, ncols } = stored.shape;
        for (nrows, ncols) in [
            (nrows + 1, ncols),
            (nrows.saturating_sub(1), ncols),
            (nrows, ncols + 1),
            (nrows, ncols.saturating_sub(1)),
            (ncols, nrows),
            (0, 0),
        ] {
            _ = stored.damage(|s| s.shape = Shape { nrows, ncols });
        }
        if stored.nnz > 0 {
            // Far too large to use: must fail, and without memory of that size.
            let most = u32::MAX as usize;
            let far = stored.damage(|s| s.shape = Shape::new(most, ncols).unwrap());
            assert!(far.is_err(), "{what}: {most} rows");
        }
    }
}

#[test]
fn another_codebook_is_an_error_or_a_usable_matrix() {
    for (what, stored) in stored() {
        let Some(codebook) = stored.codebook.clone() else { continue };
        for k in [0, codebook.k().saturating_sub(1), codebook.k() / 2] {
            let values = codebook.values()[..k].to_vec();
            _ = stored.damage(|s| s.codebook = Some(Arc::new(Codebook::new(values).unwrap())));
        }
        let longer: Vec<f32> = codebook.values().iter().copied().chain([-1e9, -2e9]).collect();
        _ = stored.damage(|s| s.codebook = Some(Arc::new(Codebook::new(longer).unwrap())));
        assert!(stored.damage(|s| s.codebook = None).is_err(), "{what}");
    }
}

#[test]
fn what_is_wrong_with_the_structure_of_a_sparse_matrix_is_named() {
    let csr = Request::parse("csr", "auto", Goal::Size, Columns::Coded).unwrap();
    let weights = [0.0, 1.0, -2.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0];
    let shape = Shape::new(3, 3).unwrap();
    let stored = Stored::of(&CompressedMatrix::compress(&weights, shape, &csr).unwrap());
    assert_eq!(stored.sections[..2], [vec![0, 2, 2, 3], vec![1, 2, 0]]);
    // Row starts that fall, start or end elsewhere, or run past the end; columns that repeat, fall, or
    // are none of the matrix's.
    let cases: [(usize, [u8; 4], &str); 8] = [
        (0, [0, 2, 1, 3], "indptr"),
        (0, [1, 2, 2, 3], "indptr"),
        (0, [0, 2, 2, 2], "indptr"),
        (0, [0, 2, 2, 4], "indptr"),
        (0, [0, 255, 2, 3], "indptr"),
        (1, [1, 1, 0, 0], "row 0: column 1 after column 1"),
        (1, [2, 1, 0, 0], "row 0: column 1 after column 2"),
        (1, [1, 2, 3, 0], "row 2: column 3, expected under ncols = 3"),
    ];
    for (section, bytes, expected) in cases {
        let nbytes = stored.sections[section].len();
        let error = stored.damage(|s| s.sections[section] = bytes[..nbytes].to_vec()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
