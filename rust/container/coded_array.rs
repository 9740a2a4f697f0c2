//! A plain tensor's elements, coded by planes where that takes fewer bytes.

use super::header::Dtype;
use crate::entropy::planes;
use crate::error::{Error, Result};

/// What the header says more of a coded tensor than of one as it is, at most.
const HEADER_NBYTES: usize = 10;

/// The elements of a plain tensor, coded: always fewer bytes than they are.
#[derive(Clone, Debug)]
pub struct CodedArray {
    dtype: Dtype,
    dense_nbytes: u64,
    coded: Vec<u8>,
}

impl CodedArray {
    /// The coded form of little-endian elements; none where they take no fewer bytes so.
    ///
    /// # Errors
    /// `InvalidArgument` for no whole number of elements, or a bool over 1; `Interrupted`.
    pub fn encode(bytes: &[u8], dtype: Dtype) -> Result<Option<Self>> {
        let words = dtype.words();
        if !(bytes.len() as u64).is_multiple_of(dtype.nbytes()) || !dtype.holds(bytes) {
            return Err(Error::invalid(format!(
                "array: {} bytes, expected elements of {}",
                bytes.len(),
                dtype.name()
            )));
        }
        let coded = planes::encode(bytes, words)?;
        let is_smaller = coded.len() + HEADER_NBYTES < bytes.len();
        Ok(is_smaller.then_some(Self { dtype, dense_nbytes: bytes.len() as u64, coded }))
    }

    /// Fills `out` with the elements.
    ///
    /// # Errors
    /// `Interrupted`.
    ///
    /// # Panics
    /// Where `out` has not as many bytes as the elements.
    pub fn decode_into(&self, out: &mut [u8]) -> Result<()> {
        assert_eq!(out.len() as u64, self.dense_nbytes, "array: bytes to decode into");
        planes::decode_into(&self.coded, self.dtype.words(), out)
    }

    /// The type of the elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Bytes of the elements.
    pub fn dense_nbytes(&self) -> u64 {
        self.dense_nbytes
    }

    /// The coded bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.coded
    }
}
