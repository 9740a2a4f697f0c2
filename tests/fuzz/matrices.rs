//! Matrices below the container, whose parts are the bytes; and matrices that the bytes stand for.
//!
//! ```text
//!   layout │ coder │ nrows, ncols, nnz │ k, values │ p, parameters │ sizes of sections │ sections
//!   u8       u8      varints             varint, f32  varint, varints  varints
//! ```

use crate::bound::check_product;
use crate::stored::Stored;
use crate::targets::{LIMITS, Outcome, golden, outcome, refused};
use std::sync::Arc;
use tersenet::bits::{put_varint, take_varint};
use tersenet::container::{Limits, Reader, Tensor, matrix_from_bytes, matrix_to_bytes};
use tersenet::entropy::Coder;
use tersenet::layout::{Columns, Goal, LAYOUTS};
use tersenet::rows::Shape;
use tersenet::{Codebook, CompressedMatrix, Request, simd};

/// Matrices with this coder among the golden files, as the bytes that stand for them.
fn with_coder(wanted: impl Fn(Coder) -> bool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for file in golden() {
        let reader = Reader::from_owner(Arc::new(file), &Limits::default());
        let reader = reader.expect("a golden file");
        for name in reader.keys() {
            if let Tensor::Matrix(matrix) = reader.get(name).expect("a tensor")
                && wanted(matrix.coder())
                && matrix.section_bytes().iter().map(|s| s.len()).sum::<usize>() < 2048
            {
                all.push(to_bytes(&Stored::of(&matrix)));
            }
        }
    }
    all
}

pub fn fixed() -> Vec<Vec<u8>> {
    with_coder(|coder| coder == Coder::Fixed)
}

pub fn huffman() -> Vec<Vec<u8>> {
    with_coder(|coder| coder == Coder::Huffman)
}

pub fn tans() -> Vec<Vec<u8>> {
    with_coder(|coder| coder == Coder::Tans)
}

pub fn mixing() -> Vec<Vec<u8>> {
    with_coder(|coder| coder == Coder::Mixing)
}

pub fn all() -> Vec<Vec<u8>> {
    with_coder(|_| true)
}

fn to_bytes(stored: &Stored) -> Vec<u8> {
    let at = LAYOUTS.iter().position(|&spec| spec == stored.spec).expect("a layout");
    let mut out = vec![at as u8, stored.coder.id()];
    let values = stored.codebook.as_ref().map_or(&[][..], |codebook| codebook.values());
    for number in [stored.shape.nrows, stored.shape.ncols, stored.nnz, values.len()] {
        put_varint(&mut out, number as u64);
    }
    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    put_varint(&mut out, stored.params.len() as u64);
    stored.params.iter().for_each(|&param| put_varint(&mut out, param));
    stored.sections.iter().for_each(|section| put_varint(&mut out, section.len() as u64));
    out.extend(stored.sections.concat());
    out
}

/// The parts that bytes stand for, if a file's header could say so within the limits.
fn from_bytes(bytes: &[u8]) -> Option<Stored> {
    let [layout, coder, rest @ ..] = bytes else { return None };
    let mut rest = rest;
    let spec = *LAYOUTS.get(usize::from(*layout))?;
    let coder = spec.coders.iter().copied().find(|c| c.id() == *coder)?;
    let mut number = || take_varint(&mut rest).ok();
    let (nrows, ncols, nnz) = (number()?, number()?, number()?);
    let longest = nrows.checked_mul(ncols)?.max(nrows).max(ncols);
    if longest.checked_mul(4)? > LIMITS.tensor_nbytes || nnz > longest {
        return None;
    }
    let k = usize::try_from(number()?).ok().filter(|k| k.saturating_mul(4) <= rest.len())?;
    let (values, after) = rest.split_at(4 * k);
    rest = after;
    let values: Vec<f32> =
        values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let codebook = match spec.holds_values {
        true => None,
        false => Some(Arc::new(Codebook::new(values).ok()?)),
    };
    let mut number = || take_varint(&mut rest).ok();
    let nparams = number()?.min(64);
    let params = (0..nparams).map(|_| number()).collect::<Option<Vec<u64>>>()?;
    let sizes = spec.sections.iter().map(|_| number()).collect::<Option<Vec<u64>>>()?;
    let mut sections = Vec::new();
    for size in sizes {
        let (section, after) = rest.split_at(usize::try_from(size).ok()?.min(rest.len()));
        sections.push(section.to_vec());
        rest = after;
    }
    let shape = Shape::new(nrows as usize, ncols as usize).ok()?;
    Some(Stored { spec, shape, nnz: nnz as usize, codebook, coder, params, sections })
}

fn kind_of(matrix: &CompressedMatrix) -> Outcome {
    let nonempty: Vec<bool> = matrix.section_bytes().iter().map(|s| !s.is_empty()).collect();
    let few = |n: usize| n.checked_ilog2();
    let shape = matrix.shape();
    let sizes = (few(shape.nrows), few(shape.ncols), few(matrix.nnz()));
    outcome("matrix", (matrix.layout().id, nonempty, sizes))
}

/// Reads a matrix, and decodes every row of what was accepted in two ways.
pub fn decode(bytes: &[u8]) -> Outcome {
    let Some(stored) = from_bytes(bytes) else { return 0 };
    let matrix = match stored.read() {
        Ok(matrix) => matrix,
        Err(error) => return refused(&error),
    };
    let Shape { nrows, ncols } = matrix.shape();
    let dense = matrix.decompress(1).expect("what was checked");
    assert_eq!(dense.iter().filter(|w| w.to_bits() != 0).count(), matrix.nnz());
    let rows = matrix.to_rows().expect("what was checked");
    assert!((0..nrows).all(|row| rows.row_cols(row).is_sorted_by(|a, b| a < b)));
    let last: Vec<usize> = (0..nrows).rev().take(2).collect();
    let found = matrix.rows(&last).expect("what was checked");
    for (&row, found) in last.iter().zip(found.chunks(ncols.max(1))) {
        assert!(found.iter().zip(&dense[row * ncols..]).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
    kind_of(&matrix)
}

/// Numbers of any size and sign, no two alike.
fn inputs(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 16.0).collect()
}

/// Whether a sum of finite terms may overflow on the way, in some order, and then be anything.
fn may_overflow(row: &[f32], x: &[f32]) -> bool {
    let terms = row.iter().zip(x).map(|(&w, &x)| (f64::from(w) * f64::from(x)).abs());
    terms.filter(|term| term.is_finite()).sum::<f64>() > f64::from(f32::MAX)
}

/// Reads a matrix, and multiplies with what was accepted on every instruction set.
pub fn multiply(bytes: &[u8]) -> Outcome {
    let Some(stored) = from_bytes(bytes) else { return 0 };
    let matrix = match stored.read() {
        Ok(matrix) => matrix,
        Err(error) => return refused(&error),
    };
    let Shape { nrows, ncols } = matrix.shape();
    let dense = matrix.decompress(1).expect("what was checked");
    // One, a few, and more than a group of lanes.
    let batch = [1, 3, 17][bytes.len() % 3];
    let x = inputs(batch * ncols);
    for kernels in simd::available() {
        let y = match batch {
            1 => matrix.matvec_on(kernels, &x, 1),
            _ => matrix.matmul_on(kernels, &x, batch, 1),
        };
        let y = y.expect("what was checked");
        assert_eq!(y.len(), batch * nrows);
        for (i, &y) in y.iter().enumerate() {
            let (member, row) = (i / nrows, i % nrows);
            let (row, x) = (&dense[row * ncols..][..ncols], &x[member * ncols..][..ncols]);
            if !may_overflow(row, x) {
                check_product(y, row, x, matrix.layout().name);
            }
        }
    }
    kind_of(&matrix)
}

pub fn numbers() -> Vec<Vec<u8>> {
    LAYOUTS
        .iter()
        .enumerate()
        .flat_map(|(at, spec)| (0..spec.coders.len()).map(move |coder| (at, coder)))
        .flat_map(|(at, coder)| {
            let shapes = [(3, 5), (1, 70), (66, 2), (12, 12)];
            shapes.map(|(nrows, ncols)| {
                let first = [at as u8, coder as u8, nrows, ncols, nrows ^ ncols, at as u8];
                first.into_iter().chain((0..40u8).map(|i| i.wrapping_mul(i + 3))).collect()
            })
        })
        .collect()
}

/// Compresses the matrix that the bytes stand for, and takes it through a file and back.
pub fn roundtrip(bytes: &[u8]) -> Outcome {
    let [layout, coder, nrows, ncols, form, density, values @ ..] = bytes else { return 0 };
    let layout = usize::from(*layout) % (LAYOUTS.len() + 1);
    let spec = LAYOUTS.get(layout).copied();
    let coders = spec.map_or(&[][..], |spec| spec.coders);
    let goal = if form & 1 == 0 { Goal::Size } else { Goal::Speed };
    let columns = if form & 2 == 0 { Columns::Coded } else { Columns::Raw };
    let coder = coders.get(usize::from(*coder) % coders.len().max(1)).copied();
    let (nrows, ncols) = (usize::from(nrows % 70), usize::from(ncols % 70));
    let taps = (form & 4 != 0 && ncols.is_multiple_of(9)).then_some(9);
    let request = Request { layout: spec, coder, goal, columns, taps };
    // Values are any bits; rows are alike where the form says so.
    let value = |i: usize| match values.len() / 4 {
        0 => 1.5,
        k => {
            let at = (i * usize::from(form / 16 + 1) + i / 7) % k * 4;
            f32::from_le_bytes([values[at], values[at + 1], values[at + 2], values[at + 3]])
        }
    };
    let weights: Vec<f32> = (0..nrows * ncols)
        .map(|i| {
            let i = if form & 8 != 0 && ncols > 0 { i % (3 * ncols) } else { i };
            let noise = (i as u32).wrapping_mul(2_654_435_761) >> 24;
            if noise <= u32::from(*density) { value(i) } else { 0.0 }
        })
        .collect();
    let shape = Shape::new(nrows, ncols).expect("small sides");
    let matrix = CompressedMatrix::compress(&weights, shape, &request).expect("few values");
    let file = matrix_to_bytes(&matrix).expect("memory");
    let again = matrix_from_bytes(Arc::new(file.clone()), &LIMITS).expect("what was written");
    let found = again.decompress(1).expect("what was checked");
    assert!(found.iter().zip(&weights).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert_eq!(matrix_to_bytes(&again).expect("memory"), file);
    kind_of(&again)
}
