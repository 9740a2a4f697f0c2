//! The formulas and bounds of `crate::bounds`.

use super::{invalid, to_python};
use crate::bounds::{self, CserCounts};
use crate::rows::Shape;
use pyo3::prelude::*;

fn shape(py: Python<'_>, shape: (usize, usize)) -> PyResult<Shape> {
    Shape::new(shape.0, shape.1).map_err(|e| to_python(py, &e))
}

/// A shape with entries, which a relative bound needs.
fn with_entries(py: Python<'_>, given: (usize, usize)) -> PyResult<Shape> {
    match shape(py, given)? {
        empty if empty.entries() == 0 => {
            Err(invalid(format!("bounds: shape {given:?}, expected a matrix with entries")))
        }
        shape => Ok(shape),
    }
}

#[pyfunction]
pub(super) fn hac_bound(
    py: Python<'_>,
    shape: (usize, usize),
    k: u64,
    word_bits: u32,
) -> PyResult<f64> {
    Ok(bounds::hac(with_entries(py, shape)?, k, word_bits))
}

#[pyfunction]
pub(super) fn shac_bound(
    py: Python<'_>,
    shape: (usize, usize),
    density: f64,
    k: u64,
    word_bits: u32,
) -> PyResult<f64> {
    if !(0.0..=1.0).contains(&density) {
        return Err(invalid(format!("bounds: density {density}, expected in [0, 1]")));
    }
    Ok(bounds::shac(with_entries(py, shape)?, density, k, word_bits))
}

#[pyfunction]
pub(super) fn csr_bits(py: Python<'_>, shape: (usize, usize), nnz: usize) -> PyResult<u64> {
    Ok(bounds::csr_bits(self::shape(py, shape)?, nnz))
}

#[pyfunction]
pub(super) fn index_map_bits(py: Python<'_>, shape: (usize, usize), k: u64) -> PyResult<u64> {
    Ok(bounds::index_map_bits(self::shape(py, shape)?, k))
}

#[pyfunction]
pub(super) fn cser_bits(py: Python<'_>, shape: (usize, usize), counts: [u64; 5]) -> PyResult<u64> {
    let [values, cols, groups, group_starts, row_starts] = counts;
    let counts = CserCounts { values, cols, groups, group_starts, row_starts };
    Ok(bounds::cser_bits(self::shape(py, shape)?, counts))
}

/// A codeword's length, of which the formulas take at most 63 bits.
fn length(longest: u32) -> PyResult<u32> {
    if longest > 63 {
        return Err(invalid(format!("bounds: codewords of {longest} bits, expected at most 63")));
    }
    Ok(longest)
}

#[pyfunction]
pub(super) fn hac_bits(stream_bits: u64, k: u64, longest: u32) -> PyResult<u64> {
    Ok(bounds::hac_bits(stream_bits, k, length(longest)?))
}

#[pyfunction]
pub(super) fn shac_bits(
    py: Python<'_>,
    shape: (usize, usize),
    nnz: usize,
    stream_bits: u64,
    k: u64,
    longest: u32,
) -> PyResult<u64> {
    Ok(bounds::shac_bits(self::shape(py, shape)?, nnz, stream_bits, k, length(longest)?))
}

#[pyfunction]
pub(super) fn entropy(histogram: Vec<u64>) -> f64 {
    bounds::entropy(&histogram)
}
