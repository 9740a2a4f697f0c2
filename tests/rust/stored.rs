//! Matrices below the container: the parts that a file's header and data give, to be damaged.

use std::sync::Arc;
use tersenet::array::Owner;
use tersenet::codebook::Codebook;
use tersenet::layout::{LayoutSpec, Parts};
use tersenet::rows::Shape;
use tersenet::{CompressedMatrix, Result, bits};

/// What a file would hold of a matrix, to be damaged.
#[derive(Clone)]
pub struct Stored {
    pub spec: &'static LayoutSpec,
    pub shape: Shape,
    pub nnz: usize,
    pub codebook: Option<Arc<Codebook>>,
    pub coder: tersenet::entropy::Coder,
    pub params: Vec<u64>,
    pub sections: Vec<Vec<u8>>,
}

impl Stored {
    /// The parts of a matrix.
    pub fn of(matrix: &CompressedMatrix) -> Self {
        let mut header = Vec::new();
        matrix.write_header(&mut header);
        let mut rest = &header[2..];
        let mut number = || bits::take_varint(&mut rest).unwrap();
        // nrows, ncols, nnz and the number of parameters.
        let [_, _, _, nparams] = [number(), number(), number(), number()];
        Self {
            spec: matrix.layout(),
            shape: matrix.shape(),
            nnz: matrix.nnz(),
            codebook: matrix.codebook().cloned(),
            coder: matrix.coder(),
            params: (0..nparams).map(|_| number()).collect(),
            sections: matrix.section_bytes().iter().map(|section| section.to_vec()).collect(),
        }
    }

    /// The matrix again, if it is one.
    pub fn read(self) -> Result<CompressedMatrix> {
        let named = self.spec.sections.iter().zip(self.sections);
        let parts = Parts {
            shape: self.shape,
            nnz: self.nnz,
            codebook: self.codebook,
            coder: self.coder,
            params: self.params,
            sections: named
                .map(|(&name, bytes)| {
                    let nbytes = bytes.len();
                    let owner: Owner = Arc::new(bytes);
                    (name, owner, 0, nbytes)
                })
                .collect(),
        };
        CompressedMatrix::read(self.spec, parts)
    }
}
