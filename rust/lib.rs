//! tersenet: prunes and quantizes networks' weights, stores them losslessly by entropy coding, and
//! multiplies straight from the compressed form.
//!
//! ```text
//!   error ◀─ array, bits ◀─ entropy ◀─ layout ◀─ matrix ◀─ container ◀─ network ◀─ python
//!              words, offsets, lines,    │          ▲                    (binding, a feature)
//!              codebook, rows, cursor ───┘          │
//!              simd (slices only), interruption ◀─ threads ◀─ products, convolution
//! ```
//!
//! | word | means |
//! | --- | --- |
//! | mask | bool, true = kept |
//! | sparsity, density | fraction of zeros, of kept weights, in [0, 1] |
//! | codebook | the k distinct kept values, the shared weights |
//! | symbol | index into the codebook: what entropy coders code |
//! | layout | arrangement of one matrix in memory |
//! | container | the bytes on disk (`.terse`) |
//! | archive | the layout of the fewest bytes, for files |
//! | graph | a network's operators in the order they run |
//! | section | a named part of a tensor's bytes |
//! | pack, encode, compress, save | fixed width, entropy, matrix or model, file |
//!
//! Weights are `[nrows, ncols]` = torch's `[out, in]`; a convolution kernel is
//! `[out, in · kh · kw]`. Only +0.0 counts as pruned; everything else comes back bit by bit.

pub mod array;
pub mod bits;
pub mod bounds;
pub mod codebook;
pub mod container;
pub mod convolution;
pub mod cursor;
pub mod entropy;
pub mod error;
pub mod interruption;
pub mod layout;
pub mod lines;
pub mod mapping;
pub mod matrix;
pub mod network;
pub mod offsets;
mod pool;
mod products;
#[cfg(feature = "python")]
mod python;
pub mod rows;
pub mod simd;
pub mod threads;
pub mod words;

pub use codebook::Codebook;
pub use error::{Error, ErrorKind, Result};
pub use matrix::{CompressedMatrix, Request};
