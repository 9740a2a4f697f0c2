//! `CompressedMatrix`: a shape, a codebook and a layout, valid by construction.
//!
//! ```text
//!   dense f32 ──┐                                   ┌─▶ decompress, rows
//!   symbols  ───┼─▶ Rows ──encode──▶ Layout ──decode┼─▶ to (another layout)
//!   a file  ────┼──────────read────▶                └─▶ matvec, matmul
//! ```
//!
//! The products are in `products.rs`.

use crate::bits;
use crate::codebook::Codebook;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::interruption;
use crate::layout::archive::{self, Archive, Before, Learnt};
use crate::layout::grouped::{self, Grouping};
use crate::layout::{
    self, Buffers, Columns, DenseSource, Encoded, Encoding, Goal, Layout, LayoutSpec, Parts, Runs,
    Spread,
};
use crate::rows::{RowBlock, Rows, Shape, Values, filled};
use crate::simd::{self, Kernels, dense_rows};
use crate::threads;
use std::sync::Arc;

/// A matrix stored losslessly in one of the layouts, and multiplied from there.
#[derive(Clone, Debug)]
pub struct CompressedMatrix {
    shape: Shape,
    nnz: usize,
    codebook: Option<Arc<Codebook>>,
    pub(crate) layout: Arc<dyn Layout>,
}

/// One part in so many bytes is not worth a slower layout.
const TRIFLE: usize = 200;

/// Which layout and coder to take; none of either leaves the choice to [`Request::goal`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    /// The layout, or none for the best one.
    pub layout: Option<&'static LayoutSpec>,
    /// The coder, or none for the layout's first one.
    pub coder: Option<Coder>,
    /// Small or fast.
    pub goal: Goal,
    /// The arrangement of hac and shac.
    pub columns: Columns,
    /// Positions of a convolution's kernel, next to each other in a row, which archive makes use of,
    /// and which keep rows out of groups; none where the matrix is of a linear layer, and products
    /// with vectors count. An embedding has 1.
    pub taps: Option<usize>,
}

impl Request {
    /// A request in words: `auto` or a name for layout and coder.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name.
    pub fn parse(layout: &str, coder: &str, goal: Goal, columns: Columns) -> Result<Self> {
        Ok(Self {
            layout: (layout != "auto").then(|| layout::by_name(layout)).transpose()?,
            coder: (coder != "auto").then(|| Coder::by_name(coder)).transpose()?,
            goal,
            columns,
            taps: None,
        })
    }

    /// Positions of a kernel, 1 without one.
    fn ntaps(&self) -> usize {
        self.taps.unwrap_or(1)
    }
}

impl CompressedMatrix {
    /// Compresses a dense row-major matrix.
    ///
    /// # Errors
    /// `InvalidArgument` for a wrong length, a pair of layout and coder that does not exist, or
    /// more than 65,536 distinct values in a layout that needs symbols.
    pub fn compress(weights: &[f32], shape: Shape, request: &Request) -> Result<Self> {
        Self::from_rows(&Rows::from_dense(weights, shape)?, request)
    }

    /// Compresses rows.
    ///
    /// # Errors
    /// As [`CompressedMatrix::compress`].
    pub fn from_rows(rows: &Rows, request: &Request) -> Result<Self> {
        match request.layout {
            Some(spec) => Self::encode(rows, spec, request),
            None => Self::choose(rows, request),
        }
    }

    fn encode(rows: &Rows, spec: &'static LayoutSpec, request: &Request) -> Result<Self> {
        Self::encode_by(rows, spec, request, spec.encode)
    }

    fn encode_by(
        rows: &Rows,
        spec: &'static LayoutSpec,
        request: &Request,
        encode: impl FnOnce(&Rows, &Encoding) -> Result<Encoded>,
    ) -> Result<Self> {
        interruption::check()?;
        let coder = request.coder.unwrap_or(spec.coders[0]);
        if !spec.coders.contains(&coder) {
            let names: Vec<&str> = spec.coders.iter().map(|coder| coder.name()).collect();
            return Err(Error::invalid(format!(
                "coder: {} for layout {}, expected {}",
                coder.name(),
                spec.name,
                names.join(" or ")
            )));
        }
        let encoding =
            Encoding { coder, goal: request.goal, columns: request.columns, taps: request.ntaps() };
        let (layout, codebook) = encode(rows, &encoding)?;
        Ok(Self { shape: rows.shape(), nnz: rows.nnz(), codebook, layout: layout.into() })
    }

    /// The best of the layouts that suit the goal and go with the coder asked for.
    ///
    /// For size, the fewest bytes of those that multiply well; the reference layouts stay out (cla
    /// can be smaller where rows repeat, and multiplies a batch ten times slower). For speed, slices of
    /// a linear layer where products with a few vectors are fastest from those, else the packed form,
    /// or dense where most weights are kept and there are more than 256 values, or it is small and
    /// kernels of this machine take longer to multiply from the packed form. Rows in groups where that
    /// is smaller and saves multiply–adds, but not of convolutions' kernels, whose rows are decoded
    /// whole.
    fn choose(rows: &Rows, request: &Request) -> Result<Self> {
        let density = rows.nnz() as f64 / rows.shape().entries().max(1) as f64;
        // Layouts that spend memory on every entry cannot win there, and may not fit.
        let is_vast = density < 1.0 / 64.0 && rows.shape().entries() > 1 << 20;
        let names: &[&str] = match (rows.values(), request.goal) {
            (Values::Raw(_), _) => &["csr", "dense"],
            (_, Goal::Size) if is_vast => &["packed", "coded", "shac"],
            (_, Goal::Size) => &["packed", "coded", "shac", "hac", "dense"],
            (_, Goal::Speed) if is_fastest_dense(rows, density, request)? => &["dense"],
            (_, Goal::Speed) => &["packed"],
        };
        let slices = match request.goal {
            Goal::Speed if names == ["packed"] => in_fast_slices(rows, density, request)?,
            _ => None,
        };
        // The first multiply fastest; so later ones have to be smaller by more than a trifle, but for
        // dense ones, which only many values make the smallest, and then they multiply fast.
        let is_smaller = |a: &Self, b: &Self| match a.layout().name {
            "dense" => a.nbytes() < b.nbytes(),
            _ => a.nbytes() < b.nbytes() - b.nbytes() / TRIFLE,
        };
        let has_slices = slices.is_some();
        let names = if has_slices { &[] } else { names };
        let mut best = slices;
        let mut consider = |candidate: Self| {
            if best.as_ref().is_none_or(|best| is_smaller(&candidate, best)) {
                best = Some(candidate);
            }
        };
        let suits = |coder: Coder| request.coder.is_none_or(|wanted| wanted == coder);
        for spec in names.iter().map(|name| layout::by_name(name)) {
            let spec = spec?;
            if request.coder.is_none_or(|coder| spec.coders.contains(&coder)) {
                consider(Self::encode(rows, spec, request)?);
            }
        }
        let has_bytes = rows.k().is_some_and(|k| k <= 256);
        if request.ntaps() == 1
            && (has_bytes || names.contains(&"packed"))
            && grouped::SPEC.coders.iter().any(|&coder| suits(coder))
        {
            let grouping = Grouping::of(rows)?;
            let coders = match request.goal {
                Goal::Speed if has_slices && !grouping.beats_slices() => &[],
                _ if !grouping.is_worth_it(request.goal) => &[],
                Goal::Size => grouped::SPEC.coders,
                Goal::Speed => &[Coder::Fixed],
            };
            for &coder in coders.iter().filter(|&&coder| suits(coder)) {
                let request = Request { coder: Some(coder), ..*request };
                let encode = |rows: &Rows, encoding: &Encoding| {
                    grouped::encode_with(rows, &grouping, encoding)
                };
                consider(Self::encode_by(rows, &grouped::SPEC, &request, encode)?);
            }
        }
        best.ok_or_else(|| {
            Error::invalid(format!(
                "coder: {} has no layout for this goal, expected auto",
                request.coder.map_or("auto", Coder::name)
            ))
        })
    }

    /// The same matrix in another layout.
    ///
    /// # Errors
    /// As [`CompressedMatrix::compress`].
    pub fn to(&self, request: &Request) -> Result<Self> {
        Self::from_rows(&self.to_rows()?, request)
    }

    /// The same values, fit for products: what is for files alone becomes coded or grouped, and slices
    /// what this CPU multiplies fastest, where that is something else. For kernels of so many taps.
    ///
    /// # Errors
    /// As [`CompressedMatrix::compress`].
    pub(crate) fn for_products(self, taps: Option<usize>) -> Result<Self> {
        if self.layout.spec().name == "archive" {
            return self.to(&Request { coder: Some(Coder::Tans), taps, ..Request::default() });
        }
        if self.is_in_slow_slices(simd::active()?) {
            return self.to(&Request { goal: Goal::Speed, taps, ..Request::default() });
        }
        Ok(self)
    }

    /// Whether this matrix is in slices, and others are multiplied faster.
    pub(crate) fn is_in_slow_slices(&self, kernels: &dyn Kernels) -> bool {
        self.layout.sell().is_some() && kernels.sell_percent(self.codebook_values().len()).is_none()
    }

    /// The kept weights in the exchange form, the codebook as it was given, or ascending where the
    /// layout put it into an order of its own.
    ///
    /// # Errors
    /// As [`Layout::decode`].
    pub fn to_rows(&self) -> Result<Rows> {
        let mut block = RowBlock::default();
        block.reserve(self.shape.nrows, self.nnz)?;
        self.layout.decode(0..self.shape.nrows, &mut block)?;
        if self.layout.orders_codebook() {
            // From the values, so that the codebook is ascending again: others count on neighbours.
            block.look_up(self.codebook_values());
            return Ok(Rows::from_block(self.shape, block, None));
        }
        Ok(Rows::from_block(self.shape, block, self.codebook.clone()))
    }

    /// The number of rows and columns.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The number of kept weights.
    pub fn nnz(&self) -> usize {
        self.nnz
    }

    /// The codebook; none where the layout stores the values themselves.
    pub fn codebook(&self) -> Option<&Arc<Codebook>> {
        self.codebook.as_ref()
    }

    /// The layout's row in the table of layouts.
    pub fn layout(&self) -> &'static LayoutSpec {
        self.layout.spec()
    }

    /// The coder.
    pub fn coder(&self) -> Coder {
        self.layout.coder()
    }

    /// The bytes of every part that is needed to multiply, by name: the header with shape and
    /// parameters, the codebook, and the layout's sections.
    pub fn sections(&self) -> Vec<(&'static str, usize)> {
        let mut header = Vec::new();
        self.write_header(&mut header);
        let mut sections = vec![("header", header.len())];
        if let Some(codebook) = &self.codebook {
            sections.push(("codebook", codebook.as_bytes().len()));
        }
        let names = self.layout().sections.iter();
        sections.extend(names.copied().zip(self.layout.sections().iter().map(|s| s.len())));
        sections
    }

    /// The sum of [`CompressedMatrix::sections`].
    pub fn nbytes(&self) -> usize {
        self.sections().iter().map(|(_, nbytes)| nbytes).sum()
    }

    /// Stored bits ÷ (nrows · ncols); 0 for a matrix without entries.
    pub fn bits_per_weight(&self) -> f64 {
        match self.shape.entries() {
            0 => 0.0,
            entries => self.nbytes() as f64 * 8.0 / entries as f64,
        }
    }

    /// The bytes of the layout's sections, in file order.
    pub fn section_bytes(&self) -> Vec<&[u8]> {
        self.layout.sections()
    }

    /// The dense matrix, row-major.
    ///
    /// # Errors
    /// As [`Layout::decode`]; `Io` when no thread can be made.
    pub fn decompress(&self, threads: usize) -> Result<Vec<f32>> {
        let mut out = filled(0.0, self.shape.nrows, self.shape.ncols)?;
        if out.is_empty() {
            return Ok(out);
        }
        let ncols = self.shape.ncols;
        let block_rows = self.layout.block_rows();
        let ranges = threads::split(self.shape.nrows, threads, block_rows);
        let items = zip_chunks(ranges, &mut out, ncols);
        threads::for_each(threads, items, |(range, out)| {
            let mut block = RowBlock::default();
            for (start, out) in
                range.clone().step_by(block_rows).zip(out.chunks_mut(block_rows * ncols))
            {
                interruption::check()?;
                self.decode(start..start + out.len() / ncols, &mut block)?;
                for (row, out) in out.chunks_exact_mut(ncols).enumerate() {
                    let (cols, values) = block.row(row);
                    for (&col, &value) in cols.iter().zip(values) {
                        out[col as usize] = value;
                    }
                }
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// Rows `ids` as a dense matrix `[ids.len(), ncols]`, in the order asked for.
    ///
    /// # Errors
    /// `InvalidArgument` for a row that does not exist.
    pub fn rows(&self, ids: &[usize]) -> Result<Vec<f32>> {
        let Shape { nrows, ncols } = self.shape;
        if let Some(id) = ids.iter().find(|&&id| id >= nrows) {
            return Err(Error::invalid(format!("rows: row {id}, expected under nrows = {nrows}")));
        }
        let mut out = filled(0.0, ids.len(), ncols)?;
        let mut block = RowBlock::default();
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(ncols.max(1))) {
            self.decode(id..id + 1, &mut block)?;
            let (cols, values) = block.row(0);
            for (&col, &value) in cols.iter().zip(values) {
                out[col as usize] = value;
            }
        }
        Ok(out)
    }

    /// The distinct kept values: the codebook, or, where the layout stores values, those of them
    /// that differ, in ascending total order.
    ///
    /// # Errors
    /// As [`Layout::decode`].
    pub fn distinct_values(&self) -> Result<Vec<f32>> {
        if let Some(codebook) = &self.codebook {
            return Ok(codebook.values().to_vec());
        }
        Ok(match self.to_rows()?.values() {
            Values::Shared { codebook, .. } => codebook.values().to_vec(),
            Values::Raw(values) => {
                let mut values = values.clone();
                values.sort_unstable_by(f32::total_cmp);
                values.dedup_by_key(|value| value.to_bits());
                values
            }
        })
    }

    /// Appends what a file's header says of the matrix: layout, coder, shape, nnz, parameters and
    /// section sizes, each a varint.
    pub fn write_header(&self, out: &mut Vec<u8>) {
        out.push(self.layout().id);
        out.push(self.coder().id());
        let (params, sections) = (self.layout.params(), self.layout.sections());
        let Shape { nrows, ncols } = self.shape;
        for number in [nrows, ncols, self.nnz, params.len()] {
            bits::put_varint(out, number as u64);
        }
        params.iter().for_each(|&param| bits::put_varint(out, param));
        sections.iter().for_each(|section| bits::put_varint(out, section.len() as u64));
    }

    /// Takes a matrix from checked header fields and the bytes of its sections.
    ///
    /// # Errors
    /// `Corrupt` when anything does not agree.
    pub fn read(spec: &'static LayoutSpec, parts: Parts) -> Result<Self> {
        Self::read_by(spec, parts, spec.read)
    }

    /// [`CompressedMatrix::read`] of an archive that may go on from another one, and what is learnt up to
    /// its end, for others to go on from.
    pub(crate) fn read_after(
        parts: Parts,
        before: Option<Before<'_>>,
    ) -> Result<(Self, Option<Learnt>)> {
        let mut learnt = None;
        let matrix = Self::read_by(&archive::SPEC, parts, |parts| {
            let (archive, end) = Archive::read(parts, before)?;
            learnt = end;
            Ok(Box::new(archive))
        })?;
        Ok((matrix, learnt))
    }

    fn read_by(
        spec: &'static LayoutSpec,
        parts: Parts,
        read: impl FnOnce(Parts) -> Result<Box<dyn Layout>>,
    ) -> Result<Self> {
        if spec.holds_values != parts.codebook.is_none() {
            return Err(Error::corrupt(format!(
                "{}: {} codebook, expected {}",
                spec.name,
                if parts.codebook.is_some() { "a" } else { "no" },
                if spec.holds_values { "none" } else { "one" }
            )));
        }
        if parts.codebook.is_some() && (parts.k() == 0) != (parts.nnz == 0) {
            return Err(Error::corrupt(format!(
                "{}: k = {} with nnz = {}, expected k = 0 exactly when nnz = 0",
                spec.name,
                parts.k(),
                parts.nnz
            )));
        }
        let (shape, nnz, codebook) = (parts.shape, parts.nnz, parts.codebook.clone());
        if nnz > shape.entries() {
            return Err(Error::corrupt(format!(
                "{}: nnz = {nnz}, expected at most {} entries",
                spec.name,
                shape.entries()
            )));
        }
        let layout = read(parts).map_err(|e| e.within(spec.name))?;
        Ok(Self { shape, nnz, codebook, layout: layout.into() })
    }

    /// An archive coded on from another one, or alone; and what is learnt up to its end.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(crate) fn archived_after(
        &self,
        before: Option<Before<'_>>,
    ) -> Result<(Self, Option<Learnt>)> {
        let archive = self.layout.archive().expect("an archive");
        let (archive, learnt) = archive.after(&self.to_rows()?, before)?;
        Ok((Self { layout: Arc::new(archive), ..self.clone() }, learnt))
    }

    /// [`CompressedMatrix::decode`] without the look-up of values.
    pub(crate) fn decode_symbols(
        &self,
        rows: std::ops::Range<usize>,
        block: &mut RowBlock,
    ) -> Result<()> {
        block.reserve(rows.len(), self.nnz.min(rows.len().saturating_mul(self.shape.ncols)))?;
        self.layout.decode(rows, block)
    }

    pub(crate) fn decode(&self, rows: std::ops::Range<usize>, block: &mut RowBlock) -> Result<()> {
        self.decode_symbols(rows, block)?;
        block.look_up(self.codebook_values());
        Ok(())
    }

    /// Decodes `rows` into dense ones: [`Layout::decode_dense`] into the start of `out`, which grows.
    pub(crate) fn decode_dense(
        &self,
        kernels: &'static dyn Kernels,
        rows: std::ops::Range<usize>,
        buffers: &mut Buffers,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let pitch = dense_rows::pitch(self.shape.ncols);
        let len = rows.len().saturating_mul(pitch);
        if out.len() < len {
            *out = filled(0.0, rows.len(), pitch)?;
        }
        let spread = Spread { codebook: self.codebook_values(), pitch, kernels };
        self.layout.decode_dense(&spread, rows, buffers, &mut out[..len])
    }

    /// Where most dense rows of [`Self::decode_dense`] come from.
    pub(crate) fn dense_source(&self) -> DenseSource {
        self.layout.dense_source()
    }

    /// Rows that are best decoded together; ranges of rows should start at a multiple of it.
    pub(crate) fn block_rows(&self) -> usize {
        self.layout.block_rows().max(1)
    }

    /// The matrix as runs, and the values of ranks, where it decodes so, has up to 256 of them, and
    /// `rows` have few enough weights for memory that grows by itself ([`RowBlock::reserve`]).
    pub(crate) fn runs(&self, rows: &std::ops::Range<usize>) -> Option<(&dyn Runs, RankValues)> {
        const FEW: usize = 1 << 20;
        let runs = self.layout.runs()?;
        let (symbols, codebook) = (runs.rank_symbols(), self.codebook_values());
        let len = if symbols.is_empty() { codebook.len() } else { symbols.len() };
        let most = self.nnz.min(rows.len().saturating_mul(self.shape.ncols));
        let mut values = RankValues { values: [0.0; 256], len };
        let to = values.values.get_mut(..len).filter(|_| most < FEW)?;
        match symbols {
            [] => to.copy_from_slice(codebook),
            _ => to.iter_mut().zip(symbols).for_each(|(y, &s)| *y = codebook[usize::from(s)]),
        }
        Some((runs, values))
    }

    pub(crate) fn codebook_values(&self) -> &[f32] {
        self.codebook.as_ref().map_or(&[], |codebook| codebook.values())
    }
}

/// The values of up to 256 ranks.
pub(crate) struct RankValues {
    values: [f32; 256],
    len: usize,
}

impl RankValues {
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

/// Above this density a dense product with a vector is faster than decoding symbols of 16 bits.
const DENSE_IS_FASTER: f64 = 0.5;
/// The same of symbols of 8 bits, where kernels are slow at bitmaps: packed ÷ dense, one Xeon core, AVX2,
/// vector · batch of 8 · 32, for 50 % kept: 512 × 512 2.4 · 1.3 · 1.2, 1024 × 1024 1.3 · 1.5 · 1.1.
const SMALL_DENSE_IS_FASTER: f64 = 0.45;
/// Entries up to which it is: 4 MiB, within a cache.
const SMALL: usize = 1 << 20;

/// Whether a matrix is multiplied fastest as it is, and may be.
fn is_fastest_dense(rows: &Rows, density: f64, request: &Request) -> Result<bool> {
    if request.coder.is_some() {
        return Ok(false);
    }
    // Symbols of a byte are multiplied as they lie, others decoded first.
    if rows.k().is_some_and(|k| k > 256) {
        return Ok(density > DENSE_IS_FASTER);
    }
    let is_small = request.ntaps() == 1 && rows.shape().entries() <= SMALL;
    let has_slow_words = simd::active()?.words_percent() >= 50;
    Ok(is_small && has_slow_words && density > SMALL_DENSE_IS_FASTER)
}

/// Above this density words of bitmaps are multiplied as fast as slices with a vector.
const WORDS_ARE_FASTER: f64 = 0.5;
/// The same of more than [`SMALL`] entries, which come from memory: slots are more bytes than columns and
/// symbols, or words.
const LARGE_WORDS_ARE_FASTER: f64 = 0.33;
/// Slots in a hundred that have to be taken there; both as `layout/sell.rs` has it.
const LARGE_PERCENT: u64 = 55;

/// The matrix in slices, where products with a few vectors are fastest from those.
fn in_fast_slices(
    rows: &Rows,
    density: f64,
    request: &Request,
) -> Result<Option<CompressedMatrix>> {
    let kernels = simd::active()?;
    let Some(percent) = rows.k().and_then(|k| kernels.sell_percent(k)) else { return Ok(None) };
    let (most, percent) = match rows.shape().entries() > SMALL {
        true => (LARGE_WORDS_ARE_FASTER, percent.max(LARGE_PERCENT)),
        false => (WORDS_ARE_FASTER, percent),
    };
    let may = request.taps.is_none()
        && request.coder.is_none_or(|coder| coder == Coder::Fixed)
        && rows.nnz() > 0
        && density <= most;
    if !may {
        return Ok(None);
    }
    let matrix = CompressedMatrix::encode(rows, layout::by_name("sell")?, request)?;
    let taken = matrix.layout.sell().map(|sell| sell.percent_taken(rows.nnz()));
    Ok((taken >= Some(percent)).then_some(matrix))
}

/// Pairs each range of rows with its part of `out`, `width` elements a row.
pub(crate) fn zip_chunks<T>(
    ranges: Vec<std::ops::Range<usize>>,
    mut out: &mut [T],
    width: usize,
) -> Vec<(std::ops::Range<usize>, &mut [T])> {
    let mut items = Vec::with_capacity(ranges.len());
    for range in ranges {
        let (mine, rest) = out.split_at_mut(range.len() * width);
        items.push((range, mine));
        out = rest;
    }
    items
}
