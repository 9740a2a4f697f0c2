//! What the header says of a matrix that goes on from another one, checked.

use super::{Body, EntryHeader, MatrixBody};
use crate::layout::archive;

/// Entries of the matrices that one goes on from, at most.
pub const MAX_CHAIN_ENTRIES: u64 = 1 << 22;

/// How a matrix goes on from another one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// The number of that entry, and how many entries before it is.
    pub before: Option<(usize, u64)>,
    /// Entries of the matrices of the chain up to this one, with it.
    entries: u64,
}

impl Link {
    /// The link of a matrix that comes after the `earlier` entries.
    ///
    /// # Errors
    /// What is wrong with its parameter.
    pub fn of(matrix: &MatrixBody, earlier: &[EntryHeader]) -> std::result::Result<Self, String> {
        let shape = matrix.shape;
        let mut link = Self { before: None, entries: shape.entries() as u64 };
        let is_archive = |matrix: &MatrixBody| matrix.layout.id == archive::SPEC.id;
        let apart = matrix.params.get(2).copied().filter(|_| is_archive(matrix)).unwrap_or(0);
        if apart == 0 {
            return Ok(link);
        }
        let number = usize::try_from(apart).ok().and_then(|n| earlier.len().checked_sub(n));
        let before = number.and_then(|number| Some((number, &earlier.get(number)?.body)));
        let Some((number, Body::Matrix(before))) = before else {
            return Err(format!(
                "goes on from what is {apart} entries before, expected an archive"
            ));
        };
        if !is_archive(before) || before.nnz == 0 {
            return Err(format!(
                "goes on from entry {number}, expected an archive that keeps something"
            ));
        }
        if before.link.entries > MAX_CHAIN_ENTRIES {
            return Err(format!(
                "goes on from {} entries of matrices, expected at most {MAX_CHAIN_ENTRIES}",
                before.link.entries
            ));
        }
        link.before = Some((number, apart));
        link.entries = link.entries.saturating_add(before.link.entries);
        Ok(link)
    }
}
