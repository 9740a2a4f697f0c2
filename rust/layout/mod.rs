//! Layouts: arrangements of one matrix in memory, behind one trait and one table.
//!
//! | layout | coder | what is stored | source |
//! | --- | --- | --- | --- |
//! | dense | fixed | every entry as f32 | |
//! | csr | fixed | row starts, columns, f32 values (the transposed matrix's CSC) | |
//! | index_map | fixed | every entry as a symbol | Han et al. 2016 |
//! | cser | fixed | per row and value, the columns | Wiedemann et al. 2018 |
//! | cla | fixed | co-coded column groups as dictionary and lists | Elgohary et al. 2016 |
//! | hac | huffman | every entry, zeros included, as a codeword | Marinò et al. 2021 |
//! | shac | huffman | columns, and codewords of the kept symbols | Marinò et al. 2021 |
//! | packed | fixed | per block of rows a bitmap or column gaps; packed symbols | |
//! | coded | tans | per block of rows gaps and symbols in 64 lanes of tANS | Duda 2013 |
//! | archive | mixing | every entry by context mixing, for files | Mahoney 2005 |
//! | grouped | fixed, tans | as packed or coded; alike rows share a common part | |
//! | sell | fixed | columns and symbols of sixteen rows side by side | Kreutzer et al. 2014 |
//!
//! To add one: write `layout/<name>.rs` with a type that implements [`Layout`] and a
//! [`LayoutSpec`], and put that into [`LAYOUTS`]. Compression, conversion, products, files, the
//! Python face and the tests find it there.
//!
//! A layout is made in two ways only: `encode`, from [`Rows`], and `read`, from the [`Parts`] of a
//! file; `read` checks everything, so a layout that exists is valid.

pub(crate) mod archive;
mod cla;
mod coded;
mod cser;
mod csr;
mod dense;
mod gaps;
pub(crate) mod grouped;
mod hac;
mod index_map;
mod packed;
mod published;
mod row_ends;
mod runs;
pub(crate) mod sell;
mod shac;

use crate::array::{Array, Element, Owner};
use crate::codebook::Codebook;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::interruption;
use crate::pool::{Lent, Pool};
use crate::rows::{RowBlock, Rows, Shape};
use crate::simd::{Kernels, Lanes};
pub use runs::{Run, Runs};
use std::ops::Range;
use std::sync::Arc;

/// Every layout there is, in the order in which they are listed to users.
pub const LAYOUTS: &[&LayoutSpec] = &[
    &dense::SPEC,
    &csr::SPEC,
    &index_map::SPEC,
    &cser::SPEC,
    &cla::SPEC,
    &hac::SPEC,
    &shac::SPEC,
    &packed::SPEC,
    &coded::SPEC,
    &archive::SPEC,
    &grouped::SPEC,
    &sell::SPEC,
];

/// One row of the table of layouts.
pub struct LayoutSpec {
    /// The name in code, files' listings and commands.
    pub name: &'static str,
    /// The number in files; never given to another layout.
    pub id: u8,
    /// The coders it goes with; the first is the one `auto` takes.
    pub coders: &'static [Coder],
    /// The names of its sections, in file order.
    pub sections: &'static [&'static str],
    /// True when it stores the values themselves, not symbols into a codebook.
    pub holds_values: bool,
    /// Encodes rows.
    pub encode: fn(&Rows, &Encoding) -> Result<Encoded>,
    /// Takes and checks what a file stores.
    pub read: fn(Parts) -> Result<Box<dyn Layout>>,
}

impl std::fmt::Debug for LayoutSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for LayoutSpec {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// Finds a layout by its name.
///
/// # Errors
/// `InvalidArgument` that lists the names there are.
pub fn by_name(name: &str) -> Result<&'static LayoutSpec> {
    LAYOUTS.iter().find(|spec| spec.name == name).copied().ok_or_else(|| {
        let names: Vec<&str> = LAYOUTS.iter().map(|spec| spec.name).collect();
        Error::invalid(format!("layout: {name:?}, expected auto or one of {}", names.join(", ")))
    })
}

/// What is wanted: small or fast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// The fewest bytes.
    #[default]
    Size,
    /// The fastest product.
    Speed,
}

/// How the paper's formats store their columns and row ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Columns {
    /// As differences, coded.
    #[default]
    Coded,
    /// As published: words of the smallest sufficient size.
    Raw,
}

/// How to encode.
#[derive(Clone, Copy, Debug)]
pub struct Encoding {
    /// The coder, one of the layout's.
    pub coder: Coder,
    /// Small or fast.
    pub goal: Goal,
    /// The arrangement of hac and shac.
    pub columns: Columns,
    /// Positions of a convolution's kernel, next to each other in a row.
    pub taps: usize,
}

/// What `encode` makes: the layout, and the codebook its symbols refer to.
///
/// Most layouts keep the rows' codebook; the published arrangements put it into the order of their
/// code. Layouts that hold values have none.
pub type Encoded = (Box<dyn Layout>, Option<Arc<Codebook>>);

/// What a file stores of one matrix, to be checked and taken by `read`.
pub struct Parts {
    /// The shape.
    pub shape: Shape,
    /// The number of kept weights.
    pub nnz: usize,
    /// The codebook, unless the layout holds values.
    pub codebook: Option<Arc<Codebook>>,
    /// The coder, one of the layout's.
    pub coder: Coder,
    /// The layout's own numbers, as [`Layout::params`] gave them.
    pub params: Vec<u64>,
    /// The layout's sections as (name, owner, first byte, bytes), in the order of its table row.
    pub sections: Vec<(&'static str, Owner, usize, usize)>,
}

impl Parts {
    /// The number of distinct values; 0 where there is no codebook.
    pub fn k(&self) -> usize {
        self.codebook.as_ref().map_or(0, |codebook| codebook.k())
    }

    /// The parameters, when there are exactly `N`.
    ///
    /// # Errors
    /// `Corrupt` for another number of them.
    pub fn params<const N: usize>(&self) -> Result<[u64; N]> {
        self.params.as_slice().try_into().map_err(|_| {
            Error::corrupt(format!("params: {} numbers, expected {N}", self.params.len()))
        })
    }

    /// Section `name` as an array of any length.
    ///
    /// # Errors
    /// `Corrupt` when its bytes are no whole number of elements.
    pub fn section<T: Element>(&self, name: &str) -> Result<Array<T>> {
        let (_, owner, at, nbytes) = self
            .sections
            .iter()
            .find(|section| section.0 == name)
            .unwrap_or_else(|| panic!("layout: no section {name} in its table row"));
        Array::view(owner, *at, *nbytes).map_err(|e| e.within(&format!("section {name}")))
    }

    /// Section `name` as an array of `len` elements.
    ///
    /// # Errors
    /// `Corrupt` when it has another length.
    pub fn section_of<T: Element>(&self, name: &str, len: usize) -> Result<Array<T>> {
        let array = self.section::<T>(name)?;
        if array.len() == len {
            return Ok(array);
        }
        Err(Error::corrupt(format!(
            "section {name}: {} elements of {} bytes, expected {len}",
            array.len(),
            size_of::<T>()
        )))
    }
}

/// What a product multiplies with.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// The values of symbols; empty where the layout holds values.
    pub codebook: &'a [f32],
    /// The vector, `ncols` numbers.
    pub x: &'a [f32],
    /// The instruction set.
    pub kernels: &'static dyn Kernels,
}

/// What a product of a batch multiplies with.
#[derive(Clone, Copy)]
pub struct PanelProduct<'a> {
    /// The values of symbols; empty where the layout holds values.
    pub codebook: &'a [f32],
    /// The panels one after the other: `width` groups of lanes for each of `ncols` columns, the
    /// last panel with as many groups as are left.
    pub panels: &'a [Lanes],
    /// The matrix's.
    pub ncols: usize,
    /// Groups of lanes to a column.
    pub width: usize,
    /// The instruction set.
    pub kernels: &'static dyn Kernels,
}

impl PanelProduct<'_> {
    /// Each panel with its width and its part of `sums`, which are arranged alike for `nrows` rows.
    pub fn parts<'a>(
        &'a self,
        sums: &'a mut [Lanes],
        nrows: usize,
    ) -> impl Iterator<Item = (usize, &'a [Lanes], &'a mut [Lanes])> {
        let panels = self.panels.chunks((self.width * self.ncols).max(1));
        panels
            .zip(sums.chunks_mut((self.width * nrows).max(1)))
            .map(move |(panel, sums)| (sums.len() / nrows.max(1), panel, sums))
    }
}

/// How rows are decoded into dense ones.
#[derive(Clone, Copy)]
pub struct Spread<'a> {
    /// The values of symbols; empty where the layout holds values.
    pub codebook: &'a [f32],
    /// Numbers from one row to the next: [`dense_rows::pitch`] of the columns.
    pub pitch: usize,
    /// The instruction set.
    pub kernels: &'static dyn Kernels,
}

impl Spread<'_> {
    /// Puts decoded rows into `out`, +0.0 where no weight is kept.
    fn put(&self, block: &RowBlock, out: &mut [f32]) {
        for (row, out) in out.chunks_exact_mut(self.pitch).enumerate() {
            let kept = block.indptr[row]..block.indptr[row + 1];
            let cols = &block.cols[kept.clone()];
            out.fill(0.0);
            match block.values.get(kept.clone()) {
                Some(values) if block.values.len() == block.cols.len() => {
                    cols.iter().zip(values).for_each(|(&col, &value)| out[col as usize] = value);
                }
                _ => {
                    for (&col, &symbol) in cols.iter().zip(&block.symbols[kept]) {
                        out[col as usize] = self.codebook[usize::from(symbol)];
                    }
                }
            }
        }
    }
}

/// Buffers that a product reuses from block to block.
#[derive(Debug, Default)]
pub struct Buffers {
    /// Decoded rows.
    pub block: RowBlock,
    /// Columns as kernels take them.
    pub cols: Vec<[u8; 2]>,
    /// Symbols as kernels take them.
    pub symbols: Vec<u8>,
}

static BUFFERS: Pool<Buffers> = Pool::new();

/// Buffers from an earlier product, or new.
pub fn lend_buffers() -> Lent<Buffers> {
    BUFFERS.lend()
}

/// Where [`Layout::decode_dense`] takes dense rows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseSource {
    /// They lie so.
    Stored,
    /// Values are spread by the bits of a bitmap, many at a time.
    Bits,
    /// Rows are decoded to kept weights, which are put to their places.
    Kept,
}

/// One matrix in one arrangement: valid, immutable, shared between threads.
pub trait Layout: Send + Sync + std::fmt::Debug {
    /// The layout's row in [`LAYOUTS`].
    fn spec(&self) -> &'static LayoutSpec;

    /// The coder in use.
    fn coder(&self) -> Coder {
        self.spec().coders[0]
    }

    /// The matrix as an archive, where it is one.
    fn archive(&self) -> Option<&archive::Archive> {
        None
    }

    /// The matrix with its groups of rows, where it has them.
    fn grouped(&self) -> Option<&grouped::Grouped> {
        None
    }

    /// The matrix in slices, where it is.
    fn sell(&self) -> Option<&sell::Sell> {
        None
    }

    /// The matrix as runs of kept weights, where it decodes so.
    fn runs(&self) -> Option<&dyn Runs> {
        None
    }

    /// The numbers beside shape, k and nnz that [`LayoutSpec::read`] needs; few and small.
    fn params(&self) -> Vec<u64>;

    /// The bytes of each section, in the order of the table row's names.
    fn sections(&self) -> Vec<&[u8]>;

    /// Whether the codebook stands in an order of the layout's own, not in the one it was given.
    fn orders_codebook(&self) -> bool {
        false
    }

    /// Rows that decode together: what products cut rows into.
    fn block_rows(&self) -> usize {
        BLOCK_ROWS
    }

    /// Decodes `rows` into `out`, which is cleared first.
    ///
    /// # Errors
    /// `Corrupt`, which a layout that was read and checked never gives.
    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()>;

    /// Computes `y[i] = Σ W[rows.start + i][j] · x[j]` over the kept weights of `rows`.
    ///
    /// The default decodes blocks of rows into a small buffer and multiplies from there.
    ///
    /// # Errors
    /// As [`Layout::decode`].
    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        decode_and_multiply(self, product, rows, y)
    }

    /// Decodes `rows` into dense ones: the first `ncols` of each `spread.pitch` numbers of `out`,
    /// which has so many for every row; those after them may be anything.
    ///
    /// The default decodes the rows into a small buffer and puts every weight to its place.
    ///
    /// # Errors
    /// As [`Layout::decode`].
    fn decode_dense(
        &self,
        spread: &Spread<'_>,
        rows: Range<usize>,
        buffers: &mut Buffers,
        out: &mut [f32],
    ) -> Result<()> {
        buffers.block.reserve(rows.len(), rows.len().saturating_mul(spread.pitch))?;
        self.decode(rows, &mut buffers.block)?;
        spread.put(&buffers.block, out);
        Ok(())
    }

    /// Where most dense rows come from.
    fn dense_source(&self) -> DenseSource {
        DenseSource::Kept
    }

    /// The most groups of lanes to a column, 1 or 2, that [`Layout::add_panels`] takes.
    fn panel_width(&self) -> usize {
        1
    }

    /// Adds the products of `rows`, which lie in one block, with each panel to `sums`, arranged as
    /// the panels are: `width` groups of lanes for each row.
    ///
    /// The default decodes the rows into a small buffer and multiplies from there.
    ///
    /// # Errors
    /// As [`Layout::decode`].
    fn add_panels(
        &self,
        product: &PanelProduct<'_>,
        rows: Range<usize>,
        buffers: &mut Buffers,
        sums: &mut [Lanes],
    ) -> Result<()> {
        decode_and_add_panels(self, product, rows, buffers, sums)
    }
}

/// What kernels take; of a larger codebook, which they are not given, the start.
fn small_codebook(codebook: &[f32]) -> [f32; 256] {
    let mut values = [0.0; 256];
    let len = codebook.len().min(256);
    values[..len].copy_from_slice(&codebook[..len]);
    values
}

/// [`Layout::matvec`] of any layout.
fn decode_and_multiply<L: Layout + ?Sized>(
    layout: &L,
    product: &Product<'_>,
    rows: Range<usize>,
    y: &mut [f32],
) -> Result<()> {
    let mut buffers = lend_buffers();
    let block = &mut buffers.block;
    for (start, y) in rows.step_by(BLOCK_ROWS).zip(y.chunks_mut(BLOCK_ROWS)) {
        interruption::check()?;
        block.reserve(y.len(), y.len().saturating_mul(product.x.len()))?;
        layout.decode(start..start + y.len(), block)?;
        block.look_up(product.codebook);
        for (row, y) in y.iter_mut().enumerate() {
            let (cols, values) = block.row(row);
            *y = product.kernels.sparse_dot(cols, values, product.x);
        }
    }
    Ok(())
}

/// [`Layout::add_panels`] of any layout, for panels of one group of lanes.
fn decode_and_add_panels<L: Layout + ?Sized>(
    layout: &L,
    product: &PanelProduct<'_>,
    rows: Range<usize>,
    buffers: &mut Buffers,
    sums: &mut [Lanes],
) -> Result<()> {
    assert!(product.width == 1, "add_panels: panels of {} groups", product.width);
    let (nrows, block) = (rows.len(), &mut buffers.block);
    block.reserve(nrows, nrows.saturating_mul(product.ncols))?;
    layout.decode(rows, block)?;
    block.look_up(product.codebook);
    for (_, panel, sums) in product.parts(sums, nrows) {
        for (row, sums) in sums.iter_mut().enumerate() {
            let (cols, values) = block.row(row);
            product.kernels.add_panel_product(cols, values, panel, sums);
        }
    }
    Ok(())
}

/// Rows that are decoded at a time unless a layout has blocks of its own: large enough to amortise, small enough for the cache.
pub const BLOCK_ROWS: usize = 64;

/// Checks decoded blocks of all rows: columns rise and stay under `ncols`, symbols stay under k,
/// `nnz` are kept. What `read` of an entropy-coded layout calls.
///
/// # Errors
/// `Corrupt` that names the row.
pub fn check_rows(layout: &dyn Layout, parts: &Parts) -> Result<()> {
    let (shape, k) = (parts.shape, parts.k());
    let mut block = RowBlock::default();
    let mut nnz = 0;
    let block_rows = layout.block_rows().max(1);
    for start in (0..shape.nrows).step_by(block_rows) {
        interruption::check()?;
        layout.decode(start..shape.nrows.min(start + block_rows), &mut block)?;
        nnz += block.cols.len();
        for row in 0..block.nrows() {
            let range = block.indptr[row]..block.indptr[row + 1];
            check_cols(&block.cols[range.clone()], start + row, shape.ncols)?;
            if let Some(symbol) =
                block.symbols.get(range).unwrap_or(&[]).iter().find(|&&s| usize::from(s) >= k)
            {
                return Err(Error::corrupt(format!(
                    "row {}: symbol {symbol}, expected under k = {k}",
                    start + row
                )));
            }
        }
    }
    if nnz != parts.nnz {
        return Err(Error::corrupt(format!("rows: {nnz} kept weights, expected {}", parts.nnz)));
    }
    Ok(())
}

/// Checks that the columns of one row rise and stay under `ncols`.
///
/// # Errors
/// `Corrupt` that names the row.
pub fn check_cols(cols: &[u32], row: usize, ncols: usize) -> Result<()> {
    if let Some(pair) = cols.windows(2).find(|pair| pair[0] >= pair[1]) {
        return Err(Error::corrupt(format!(
            "row {row}: column {} after column {}, expected rising columns",
            pair[1], pair[0]
        )));
    }
    match cols.last() {
        Some(&last) if last as usize >= ncols => {
            Err(Error::corrupt(format!("row {row}: column {last}, expected under ncols = {ncols}")))
        }
        _ => Ok(()),
    }
}

/// A small matrix in one layout, for the layouts' own tests.
#[cfg(test)]
fn compress_as(
    spec: &'static LayoutSpec,
    weights: &[f32],
    nrows: usize,
    ncols: usize,
) -> crate::CompressedMatrix {
    let request = crate::Request { layout: Some(spec), ..crate::Request::default() };
    let shape = Shape::new(nrows, ncols).unwrap();
    crate::CompressedMatrix::compress(weights, shape, &request).unwrap()
}
