//! Kept weights as they decode, run by run: what spares a copy of them.

use crate::error::Result;
use crate::simd::Kernels;
use std::ops::Range;

/// Some kept weights of one row, which follow one another.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// The row of the matrix.
    pub row: usize,
    /// The position of the row's first entry.
    pub start: u32,
    /// The position of each weight: its column and `start`.
    pub positions: &'a [u32],
    /// What stands for the value of each weight.
    pub ranks: &'a [u16],
}

/// A layout that decodes in runs.
pub trait Runs {
    /// Hands out the kept weights of `rows` in order; a row may have several runs, or none.
    ///
    /// # Errors
    /// As [`super::Layout::decode`].
    fn for_each_run(
        &self,
        kernels: &'static dyn Kernels,
        rows: Range<usize>,
        take: &mut dyn FnMut(Run<'_>),
    ) -> Result<()>;

    /// The symbol of each rank; empty where they are the same.
    fn rank_symbols(&self) -> &[u16];
}
