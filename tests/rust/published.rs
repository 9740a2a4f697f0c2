//! The paper's formats: their published arrangement has the published size, stays under the
//! published bounds, and damaged bytes are refused.

use crate::matrices::{Dense, edge_set, matrix, to_bits};
use proptest::prelude::*;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use tersenet::array::Owner;
use tersenet::bounds;
use tersenet::codebook::Codebook;
use tersenet::layout::{Columns, Goal, LayoutSpec, Parts};
use tersenet::rows::Shape;
use tersenet::{CompressedMatrix, ErrorKind, Request, bits};

fn request(layout: &str, columns: Columns) -> Request {
    Request::parse(layout, "huffman", Goal::Size, columns).unwrap()
}

/// Lengths of an optimal prefix code by merging the two lightest, and the bits it takes: slow, and
/// without a limit.
fn naive_huffman(histogram: &[u64]) -> (u64, u32) {
    // (weight, depth of the deepest leaf), the lightest first and of equal ones the shallowest.
    let kept = histogram.iter().filter(|&&count| count > 0);
    let mut trees: BinaryHeap<Reverse<(u64, u32)>> =
        kept.map(|&count| Reverse((count, 0))).collect();
    let mut total = 0;
    while let (Some(Reverse(a)), Some(Reverse(b))) = (trees.pop(), trees.pop()) {
        total += a.0 + b.0;
        if trees.is_empty() {
            return (total, a.1.max(b.1) + 1);
        }
        trees.push(Reverse((a.0 + b.0, a.1.max(b.1) + 1)));
    }
    (total, 0)
}

/// How often each value occurs, zeros apart, and the number of zeros.
fn histogram(weights: &[f32]) -> (Vec<u64>, u64) {
    let mut counts: HashMap<u32, u64> = HashMap::new();
    weights.iter().for_each(|w| *counts.entry(w.to_bits()).or_default() += 1);
    let zeros = counts.remove(&0).unwrap_or(0);
    (counts.into_values().collect(), zeros)
}

fn check_published(name: &str, (weights, shape): &Dense) {
    let (kept, zeros) = histogram(weights);
    let nnz = weights.len() - zeros as usize;
    let mut all = kept.clone();
    all.extend((zeros > 0).then_some(zeros));
    for (layout, histogram) in [("hac", &all), ("shac", &kept)] {
        let matrix =
            CompressedMatrix::compress(weights, *shape, &request(layout, Columns::Raw)).unwrap();
        let counted: usize = matrix
            .sections()
            .iter()
            .filter(|(section, _)| !matches!(*section, "header" | "row_ends"))
            .map(|(_, nbytes)| nbytes)
            .sum();
        let (stream_bits, longest) = naive_huffman(histogram);
        let k = histogram.len() as u64;
        let (formula, bound) = match layout {
            "hac" => (bounds::hac_bits(stream_bits, k, longest), bounds::hac(*shape, k, 32)),
            _ => (
                bounds::shac_bits(*shape, nnz, stream_bits, k, longest),
                bounds::shac(*shape, nnz as f64 / weights.len() as f64, k, 32),
            ),
        };
        assert_eq!(counted as u64 * 8, formula, "{name} as {layout}: k {k}, longest {longest}");
        if !weights.is_empty() {
            let occupancy = counted as f64 / (weights.len() * 4) as f64;
            assert!(occupancy <= bound, "{name} as {layout}: {occupancy}, bound {bound}");
        }
        let (_, ends) = matrix.sections().into_iter().find(|s| s.0 == "row_ends").unwrap();
        assert_eq!(ends, 4 * shape.nrows);
    }
}

#[test]
fn the_published_arrangement_has_the_published_size_over_the_edge_set() {
    for (name, dense) in edge_set() {
        check_published(name, &dense);
    }
}

proptest! {
    #[test]
    fn the_published_arrangement_has_the_published_size(dense in matrix()) {
        check_published("random", &dense);
    }
}

/// A matrix taken apart as a file would store it.
#[derive(Clone)]
struct Stored {
    spec: &'static LayoutSpec,
    shape: Shape,
    nnz: usize,
    codebook: Vec<f32>,
    params: Vec<u64>,
    sections: Vec<Vec<u8>>,
}

impl Stored {
    fn new(matrix: &CompressedMatrix) -> Self {
        let mut header = Vec::new();
        matrix.write_header(&mut header);
        let mut rest = &header[2..];
        let mut next = || bits::take_varint(&mut rest).unwrap();
        let (_, _, _, nparams) = (next(), next(), next(), next());
        Self {
            spec: matrix.layout(),
            shape: matrix.shape(),
            nnz: matrix.nnz(),
            codebook: matrix.codebook().map_or(Vec::new(), |c| c.values().to_vec()),
            params: (0..nparams).map(|_| next()).collect(),
            sections: matrix.section_bytes().iter().map(|s| s.to_vec()).collect(),
        }
    }

    fn read(&self) -> tersenet::Result<CompressedMatrix> {
        let names = self.spec.sections.iter();
        let sections = names.zip(&self.sections).map(|(&name, bytes)| {
            let owner: Owner = Arc::new(bytes.clone());
            (name, owner, 0, bytes.len())
        });
        let parts = Parts {
            shape: self.shape,
            nnz: self.nnz,
            codebook: Some(Arc::new(Codebook::new(self.codebook.clone())?)),
            coder: self.spec.coders[0],
            params: self.params.clone(),
            sections: sections.collect(),
        };
        CompressedMatrix::read(self.spec, parts)
    }

    /// Reads, and uses whatever was accepted.
    fn try_everything(&self, what: &str) -> bool {
        match self.read() {
            Ok(matrix) => {
                let weights = matrix.decompress(1).unwrap();
                let nnz = weights.iter().filter(|w| w.to_bits() != 0).count();
                assert_eq!(nnz, self.nnz, "{what}");
                assert_eq!(Self::new(&matrix).sections, self.sections, "{what}");
                true
            }
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Truncated),
                    "{what}: {error}"
                );
                false
            }
        }
    }
}

const BOTH: [(&str, Columns); 4] = [
    ("hac", Columns::Raw),
    ("hac", Columns::Coded),
    ("shac", Columns::Raw),
    ("shac", Columns::Coded),
];

#[test]
fn what_was_stored_is_read_back_over_the_edge_set() {
    for (name, (weights, shape)) in edge_set() {
        for (layout, columns) in BOTH {
            let matrix =
                CompressedMatrix::compress(&weights, shape, &request(layout, columns)).unwrap();
            let again = Stored::new(&matrix).read().unwrap();
            assert_eq!(again.section_bytes(), matrix.section_bytes(), "{name}");
            assert_eq!(again.sections(), matrix.sections(), "{name}");
            assert_eq!(to_bits(&again.decompress(1).unwrap()), to_bits(&weights), "{name}");
        }
    }
}

#[test]
fn flipped_bits_cut_sections_and_changed_numbers_are_refused_or_harmless() {
    for (name, (weights, shape)) in edge_set() {
        if weights.len() > 5000 {
            continue;
        }
        for (layout, columns) in BOTH {
            let matrix =
                CompressedMatrix::compress(&weights, shape, &request(layout, columns)).unwrap();
            let stored = Stored::new(&matrix);
            for section in 0..stored.sections.len() {
                let what = format!("{name} as {layout} {columns:?}, section {section}");
                let nbytes = stored.sections[section].len();
                for bit in (0..nbytes * 8).step_by((nbytes / 40).max(1)) {
                    let mut damaged = stored.clone();
                    damaged.sections[section][bit / 8] ^= 1 << (bit % 8);
                    damaged.try_everything(&what);
                }
                for cut in 0..nbytes.min(40) {
                    let mut damaged = stored.clone();
                    damaged.sections[section].truncate(nbytes - 1 - cut);
                    assert!(!damaged.try_everything(&what), "{what} without {} bytes", cut + 1);
                }
                let mut damaged = stored.clone();
                damaged.sections[section].extend([0; 4]);
                assert!(!damaged.try_everything(&what), "{what} and four bytes");
            }
            for param in 0..stored.params.len() {
                let was = stored.params[param];
                let hostile =
                    [0, 1, 2, 63, 64, 65, 1 << 16, 1 << 32, 1 << 57, u64::MAX, was ^ 1, was + 32];
                for number in hostile {
                    let mut damaged = stored.clone();
                    damaged.params[param] = number;
                    damaged.try_everything(&format!(
                        "{name} as {layout} {columns:?}, params[{param}] = {number}"
                    ));
                }
            }
            let sides = [0, 1, shape.nrows + 1, shape.ncols + 1, 1 << 31, 1 << 61];
            for (nrows, ncols) in sides.iter().flat_map(|&a| sides.map(|b| (a, b))) {
                let Ok(hostile) = Shape::new(nrows, ncols) else { continue };
                for nnz in [0, stored.nnz, stored.nnz + 1, hostile.entries()] {
                    let mut damaged = stored.clone();
                    (damaged.shape, damaged.nnz) = (hostile, nnz);
                    let _ = damaged.read();
                    damaged.codebook.truncate(1);
                    let _ = damaged.read();
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn overwritten_bytes_are_refused_or_harmless(
        (weights, shape) in matrix(), damage in prop::collection::vec((any::<usize>(), any::<usize>(), any::<u8>()), 1..4)
    ) {
        for (layout, columns) in BOTH {
            let matrix =
                CompressedMatrix::compress(&weights, shape, &request(layout, columns)).unwrap();
            let mut damaged = Stored::new(&matrix);
            for &(section, at, byte) in &damage {
                let filled: Vec<&mut Vec<u8>> =
                    damaged.sections.iter_mut().filter(|section| !section.is_empty()).collect();
                let count = filled.len().max(1);
                if let Some(section) = filled.into_iter().nth(section % count) {
                    let at = at % section.len();
                    section[at] = byte;
                }
            }
            damaged.try_everything(&format!("{layout} {columns:?}"));
        }
    }
}

/// What makes a row whole is that its codewords end where the row does.
#[test]
fn a_stream_whose_rows_do_not_end_at_their_ends_is_refused() {
    let weights: Vec<f32> = (0..40).map(|i| [0.0, 1.0, 0.0, 2.0, 3.0][i % 5]).collect();
    let shape = Shape::new(4, 10).unwrap();
    for layout in ["hac", "shac"] {
        let raw = request(layout, Columns::Raw);
        let matrix = CompressedMatrix::compress(&weights, shape, &raw).unwrap();
        let mut stored = Stored::new(&matrix);
        let ends = stored.spec.sections.iter().position(|&s| s == "row_ends").unwrap();
        stored.sections[ends][0] += 1;
        let error = stored.read().unwrap_err().to_string();
        assert!(error.contains("row 0: codewords end at bit"), "{error}");
    }
}
