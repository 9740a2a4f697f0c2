//! The container: a `.terse` file, or the same bytes in memory, specified in FORMAT.md.
//!
//! ```text
//!   │ magic, header size, header CRC │ header: version, block CRCs, metadata, codebooks, entries │
//!   │ data: codebooks, then each entry's sections, large ones at multiples of 64 bytes           │
//! ```
//!
//! `header.rs` turns the header into bytes and back, and is the only parser; `writer.rs` lays
//! tensors out and writes them beside their target, synced, then renamed; `reader.rs` reads one
//! tensor at a time, from where `source.rs` has it, and checks every byte it uses against the
//! header's checksums; `side_by_side.rs` reads several on threads. The header holds
//! no offsets: sections follow one another in its order (`header/placement.rs`), so nothing can overlap or
//! leave a hole. `coded_array.rs` codes plain tensors; whether one is coded is for whoever writes
//! to choose, as bytes as they are can be mapped. Where a file is written for size,
//! `coded_codebooks.rs` codes its codebooks, and in `chains.rs` archives go on from each other.

mod chains;
mod coded_array;
mod coded_codebooks;
mod header;
mod reader;
mod side_by_side;
mod source;
mod writer;

pub use coded_array::CodedArray;
pub use header::{Dtype, MAGIC, VERSION};
pub use reader::{Entry, MatrixEntry, Reader, Tensor};
pub use writer::{Stored, Writer};

use crate::array::Owner;
use crate::error::{Error, Result};
use crate::matrix::CompressedMatrix;

/// What a file may claim; more is `LimitExceeded`, refused before memory is asked for it.
///
/// What a caller then does with a matrix may take several times its dense bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the header.
    pub header_nbytes: u64,
    /// Bytes of one tensor, as stored and as dense numbers.
    pub tensor_nbytes: u64,
    /// Bytes of all tensors together, each as dense numbers.
    pub total_nbytes: u64,
    /// The same, for each byte of the file.
    pub ratio: u64,
    /// Tensors and aliases.
    pub tensors: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_nbytes: 64 << 20,
            tensor_nbytes: 1 << 36,
            total_nbytes: 1 << 40,
            ratio: u64::MAX,
            tensors: 1 << 20,
        }
    }
}

/// One matrix as a container of its own, under an empty name.
///
/// # Errors
/// As [`Writer::to_bytes`].
pub fn matrix_to_bytes(matrix: &CompressedMatrix) -> Result<Vec<u8>> {
    let mut writer = Writer::default();
    let dims = [matrix.shape().nrows as u64, matrix.shape().ncols as u64];
    let added = writer.add("", Dtype::FLOAT32, &dims, Stored::Matrix(matrix));
    added.expect("an empty name and the matrix's own shape are fine");
    writer.to_bytes()
}

/// The matrix in a container that holds nothing else, as a view of its bytes.
///
/// # Errors
/// As [`Reader::open`] and [`Reader::get`]; `Corrupt` when it is not one matrix.
pub fn matrix_from_bytes(bytes: Owner, limits: &Limits) -> Result<CompressedMatrix> {
    let reader = Reader::from_owner(bytes, limits)?;
    let names: Vec<&str> = reader.keys().collect();
    let [name] = names[..] else {
        return Err(Error::corrupt(format!(
            "container: {} tensors, expected one matrix",
            names.len()
        )));
    };
    match reader.get(name)? {
        Tensor::Matrix(matrix) => Ok(matrix),
        Tensor::Array(_) => Err(Error::corrupt("container: a plain tensor, expected one matrix")),
    }
}
