//! The exchange form between layouts: kept weights row by row, as columns and symbols.
//!
//! Every layout encodes from [`Rows`] and decodes into [`RowBlock`], so that any layout converts
//! to any other without a dense copy. Rows hold 6 bytes a kept weight (4 of column, 2 of symbol),
//! or 8 when there are more than 65,536 distinct values and the values themselves are kept.

use crate::codebook::{Codebook, Numbering};
use crate::error::{Error, ErrorKind, Result};
use crate::interruption;
use std::sync::Arc;

/// The number of rows and columns of a matrix: each fits in 32 bits, their product in 62.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Outputs.
    pub nrows: usize,
    /// Inputs.
    pub ncols: usize,
}

impl Shape {
    /// The shape `[nrows, ncols]`.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 2³² − 1 rows or columns, or 2⁶² entries.
    pub fn new(nrows: usize, ncols: usize) -> Result<Self> {
        let entries = (nrows as u64).checked_mul(ncols as u64);
        if nrows.max(ncols) > u32::MAX as usize || entries.is_none_or(|n| n > 1 << 62) {
            return Err(Error::invalid(format!(
                "matrix: shape [{nrows}, {ncols}], expected under 2^32 of each and 2^62 entries"
            )));
        }
        Ok(Self { nrows, ncols })
    }

    /// The number of entries, kept or not.
    pub fn entries(self) -> usize {
        self.nrows * self.ncols
    }
}

/// The values of kept weights, in row order.
#[derive(Clone, Debug)]
pub enum Values {
    /// Symbols into a codebook.
    Shared {
        /// The distinct values.
        codebook: Arc<Codebook>,
        /// One symbol for each kept weight.
        symbols: Vec<u16>,
    },
    /// The values themselves: more than 65,536 are distinct.
    Raw(Vec<f32>),
}

/// A matrix as rows of columns and values: compressed sparse rows, the canonical form.
#[derive(Clone, Debug)]
pub struct Rows {
    shape: Shape,
    indptr: Vec<usize>,
    cols: Vec<u32>,
    values: Values,
}

impl Rows {
    /// Takes the kept weights of a dense row-major matrix.
    ///
    /// # Errors
    /// `InvalidArgument` when `weights` does not hold `shape.entries()` numbers.
    pub fn from_dense(weights: &[f32], shape: Shape) -> Result<Self> {
        if weights.len() != shape.entries() {
            return Err(Error::invalid(format!(
                "weights: {} numbers, expected {} for shape [{}, {}]",
                weights.len(),
                shape.entries(),
                shape.nrows,
                shape.ncols
            )));
        }
        let mut indptr = Vec::with_capacity(shape.nrows + 1);
        indptr.push(0);
        let nnz = weights.iter().filter(|w| w.to_bits() != 0).count();
        let mut cols = Vec::with_capacity(nnz);
        let mut symbols = Vec::with_capacity(nnz);
        let mut numbering = Numbering::new();
        let mut has_symbols = true;
        for row in weights.chunks_exact(shape.ncols.max(1)) {
            interruption::check()?;
            for (col, &weight) in row.iter().enumerate() {
                if weight.to_bits() == 0 {
                    continue;
                }
                cols.push(col as u32);
                if has_symbols {
                    match numbering.number(weight) {
                        Some(symbol) => symbols.push(symbol),
                        None => has_symbols = false,
                    }
                }
            }
            indptr.push(cols.len());
        }
        indptr.resize(shape.nrows + 1, 0);
        let values = if has_symbols {
            let (codebook, order) = numbering.finish();
            for symbol in &mut symbols {
                *symbol = order[usize::from(*symbol)];
            }
            Values::Shared { codebook: Arc::new(codebook), symbols }
        } else {
            Values::Raw(weights.iter().copied().filter(|w| w.to_bits() != 0).collect())
        };
        Ok(Self { shape, indptr, cols, values })
    }

    /// Takes symbols of every entry, the kept ones marked by `mask`, and their codebook.
    ///
    /// A matrix with nothing kept has an empty codebook, whatever was given.
    ///
    /// # Errors
    /// `InvalidArgument` for a wrong length or a kept symbol outside the codebook.
    pub fn from_symbols(
        symbols: &[u16],
        mask: &[bool],
        codebook: Arc<Codebook>,
        shape: Shape,
    ) -> Result<Self> {
        if symbols.len() != shape.entries() || mask.len() != shape.entries() {
            return Err(Error::invalid(format!(
                "symbols: {} symbols and a mask of {}, expected {} for shape [{}, {}]",
                symbols.len(),
                mask.len(),
                shape.entries(),
                shape.nrows,
                shape.ncols
            )));
        }
        let mut rows = Self::with_codebook(shape, codebook);
        let k = rows.k().unwrap_or(0);
        for row in 0..shape.nrows {
            interruption::check()?;
            let at = row * shape.ncols;
            for col in (0..shape.ncols).filter(|col| mask[at + col]) {
                let symbol = symbols[at + col];
                if usize::from(symbol) >= k {
                    return Err(Error::invalid(format!(
                        "symbols: {symbol} at row {row}, column {col}, expected under k = {k}"
                    )));
                }
                rows.push(col as u32, symbol);
            }
            rows.end_row();
        }
        Ok(rows.finish())
    }

    /// Rows to be filled by [`Rows::push`] and [`Rows::end_row`].
    pub fn with_codebook(shape: Shape, codebook: Arc<Codebook>) -> Self {
        let mut indptr = Vec::with_capacity(shape.nrows + 1);
        indptr.push(0);
        Self {
            shape,
            indptr,
            cols: Vec::new(),
            values: Values::Shared { codebook, symbols: Vec::new() },
        }
    }

    /// Adds a kept weight to the row that is being filled, right of the last one.
    pub fn push(&mut self, col: u32, symbol: u16) {
        self.cols.push(col);
        match &mut self.values {
            Values::Shared { symbols, .. } => symbols.push(symbol),
            Values::Raw(_) => unreachable!("rows: a symbol pushed to raw values"),
        }
    }

    /// Ends the row that is being filled.
    pub fn end_row(&mut self) {
        self.indptr.push(self.cols.len());
    }

    /// Checks that every row was ended, and empties the codebook when nothing is kept.
    pub fn finish(mut self) -> Self {
        assert_eq!(self.indptr.len(), self.shape.nrows + 1, "rows: not every row was ended");
        if self.cols.is_empty() {
            self.values =
                Values::Shared { codebook: Arc::new(Codebook::empty()), symbols: Vec::new() };
        }
        self
    }

    /// Gathers decoded blocks, in row order, into rows of `shape`.
    ///
    /// `codebook` is none when the blocks hold raw values; then a codebook is made if there are
    /// few enough distinct ones.
    pub fn from_block(shape: Shape, block: RowBlock, codebook: Option<Arc<Codebook>>) -> Self {
        let RowBlock { indptr, cols, symbols, values } = block;
        let values = match codebook {
            Some(codebook) => Values::Shared { codebook, symbols },
            None => {
                let mut numbering = Numbering::new();
                let symbols: Option<Vec<u16>> =
                    values.iter().map(|&value| numbering.number(value)).collect();
                match symbols {
                    Some(mut symbols) => {
                        let (codebook, order) = numbering.finish();
                        symbols.iter_mut().for_each(|s| *s = order[usize::from(*s)]);
                        Values::Shared { codebook: Arc::new(codebook), symbols }
                    }
                    None => Values::Raw(values),
                }
            }
        };
        Self { shape, indptr, cols, values }.finish()
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The number of kept weights.
    pub fn nnz(&self) -> usize {
        self.cols.len()
    }

    /// Where each row starts in [`Rows::cols`], `nrows + 1` numbers.
    pub fn indptr(&self) -> &[usize] {
        &self.indptr
    }

    /// The columns, rising within a row.
    pub fn cols(&self) -> &[u32] {
        &self.cols
    }

    /// The columns of one row.
    pub fn row_cols(&self, row: usize) -> &[u32] {
        &self.cols[self.indptr[row]..self.indptr[row + 1]]
    }

    /// The values of kept weights.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The number of distinct values where there is a codebook.
    pub fn k(&self) -> Option<usize> {
        match &self.values {
            Values::Shared { codebook, .. } => Some(codebook.k()),
            Values::Raw(_) => None,
        }
    }

    /// The codebook and the symbols, for a layout that needs them.
    ///
    /// # Errors
    /// `InvalidArgument` when there are more than 65,536 distinct values; `layout` is named in it.
    pub fn shared(&self, layout: &str) -> Result<(&Arc<Codebook>, &[u16])> {
        match &self.values {
            Values::Shared { codebook, symbols } => Ok((codebook, symbols)),
            Values::Raw(_) => Err(Error::invalid(format!(
                "{layout}: the matrix has more than 65536 distinct values, expected a quantized one \
                 (dense and csr hold any)"
            ))),
        }
    }

    /// The values of kept weights as numbers, in row order.
    pub fn to_values(&self) -> Vec<f32> {
        match &self.values {
            Values::Shared { codebook, symbols } => {
                symbols.iter().map(|&s| codebook.values()[usize::from(s)]).collect()
            }
            Values::Raw(values) => values.clone(),
        }
    }
}

/// `nrows · ncols` times `value`, or an error where the memory cannot be had.
///
/// # Errors
/// `LimitExceeded`.
pub fn filled<T: Copy>(value: T, nrows: usize, ncols: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    let len = nrows.checked_mul(ncols);
    if len.is_none_or(|len| out.try_reserve_exact(len).is_err()) {
        return Err(Error::new(
            ErrorKind::LimitExceeded,
            format!("memory: {nrows} times {ncols} numbers cannot be had"),
        ));
    }
    out.resize(len.unwrap_or(0), value);
    Ok(out)
}

/// A few decoded rows: the buffer between a layout and a product, reused from block to block.
#[derive(Clone, Debug, Default)]
pub struct RowBlock {
    /// Where each decoded row starts in `cols`; one more than there are rows, starting at 0.
    pub indptr: Vec<usize>,
    /// The columns, rising within a row.
    pub cols: Vec<u32>,
    /// The symbols of kept weights; empty where the layout holds values.
    pub symbols: Vec<u16>,
    /// The values; empty until [`RowBlock::look_up`] where the layout holds symbols.
    pub values: Vec<f32>,
}

impl RowBlock {
    /// Empties the block: no rows.
    pub fn clear(&mut self) {
        self.indptr.clear();
        self.indptr.push(0);
        self.cols.clear();
        self.symbols.clear();
        self.values.clear();
    }

    /// Makes room for `nrows` rows that keep up to `entries` weights in all.
    ///
    /// A few bytes of a file may stand for billions of equal entries; what growing would abort the
    /// process for is an error here. Small blocks are left to grow by themselves.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub fn reserve(&mut self, nrows: usize, entries: usize) -> Result<()> {
        if nrows.max(entries) < 1 << 20 {
            return Ok(());
        }
        self.clear();
        let rows = self.indptr.try_reserve_exact(nrows);
        let cols = rows.and_then(|()| self.cols.try_reserve_exact(entries));
        let symbols = cols.and_then(|()| self.symbols.try_reserve_exact(entries));
        symbols.and_then(|()| self.values.try_reserve_exact(entries)).map_err(|_| {
            Error::new(
                ErrorKind::LimitExceeded,
                format!("memory: {nrows} decoded rows of {entries} kept weights cannot be had"),
            )
        })
    }

    /// Ends the row whose columns were pushed last.
    #[inline]
    pub fn end_row(&mut self) {
        self.indptr.push(self.cols.len());
    }

    /// The number of decoded rows.
    pub fn nrows(&self) -> usize {
        self.indptr.len().saturating_sub(1)
    }

    /// Fills `values` from `symbols`, where the layout holds symbols.
    pub fn look_up(&mut self, codebook: &[f32]) {
        if self.values.len() != self.cols.len() {
            self.values.clear();
            self.values.extend(self.symbols.iter().map(|&s| codebook[usize::from(s)]));
        }
    }

    /// The columns and values of decoded row `row`.
    pub fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.indptr[row]..self.indptr[row + 1];
        (&self.cols[range.clone()], &self.values[range])
    }
}
