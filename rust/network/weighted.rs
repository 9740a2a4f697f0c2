//! Stub.

use super::operator::Operator;
use crate::array::Array;
use crate::error::{Error, Result};
use crate::matrix::CompressedMatrix;

/// Builds a weighted node.
pub(super) fn build(
    _name: &str,
    _matrix: CompressedMatrix,
    _vectors: [Option<Array<f32>>; 3],
    _ints: &[i64],
    _floats: &[f32],
) -> Result<Box<dyn Operator>> {
    Err(Error::invalid("not yet"))
}
