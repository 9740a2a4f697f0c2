//! `archive`: the fewest bytes, for files: each entry's bits by context mixing.
//!
//! ```text
//!   lines: the rows or the channels (without kernels, columns), whichever take fewer bytes (coding.rs)
//!   stream: │ line 0 │ line 1 │ … │            bits in one arithmetic coder (`entropy/mixing`)
//!   line  = empty?  (kept?  (negative or not  rank among those of the sign, from the top bit))*
//!
//!   references.rs  earlier lines like this one, found without side information ─┐
//!   network.rs     a linear network over the columns, or a kernel's positions ──┼─▶ model.rs: kept?
//!   kernels.rs     channels, kernels and neighbours in them ────────────────────┤   values.rs: which
//!   levels.rs      a codebook's order, signs and magnitudes, in integers ───────┘
//!   repeats.rs     the fast level: a piece that is the best reference's is one bit
//!   blocks.rs      large matrices: independent blocks of lines
//!   learnt.rs      what of all this goes on in the next matrix of a file (`container/chains.rs`)
//! ```
//!
//! It is for files: it decodes only as a whole, one entry after the other, so `read` does that once
//! and keeps the result as `packed`, which products and other layouts take; `nbytes` counts the
//! stored form alone. A network that is resident as "compressed" turns it into `coded`.
//!
//! Why mixing: trained rows are alike in ways that no fixed code sees. Rows of a pruned dense layer
//! repeat nearly (references), are sums of few directions (network), and differ in density
//! (columns, lines, channels, kernels). Kernels are smooth: a weight's neighbours tell its sign and
//! size. % of dense f32 with everything counted, trained layers of VGG19 (4096 × 512) and DeepDTA
//! (1024 × 192):
//!
//! ```text
//!                       VGG19 p80 k256   p90 k32   p97 k32    DeepDTA p60 k256   p80 k16
//!   order-0 entropy              5.11      2.20     0.724                 9.43      3.88
//!   coded                        5.15      2.12     0.669                 9.55      3.92
//!   xz -9e                       2.24      0.57     0.217                 9.69      4.55
//!   archive                      1.20      0.28     0.097                 9.13      3.57
//! ```
//!
//! What carried it, on VGG19 at 90 %: without the network 31 % more, without references 38 %, with
//! a rate that does not fall 1.5 %; columns as lines take 9 % off at 80 % with k = 256, 18 % where
//! 70 % is kept, and lose at 90 % and above. DeepDTA gains from the densities alone. What did not
//! help: starting slots at the density; a slot for the pair of the best references, a map by
//! column, sets of weights by the lead of the first reference (each under 0.2 %, and small layers
//! lost by them); other limits of slots; more weight for the maps; densities of the layers before
//! as a start (under 0.1 %, though they correlate by 0.9); what the widths between values say of
//! their counts. A third fewer contexts than at first made small convolutions 1.5 % smaller, and so
//! did weights that start lower.
//!
//! Of ResNets of CIFAR-10 (20 and 56 layers, 80 and 90 % pruned, 16 and 32 values a layer), chains
//! and their codebooks are 8 to 11 % under the order-0 entropy with plain ones. In the mean of them
//! neighbours in kernels take 1.8 % off, chains 1.4, the network over positions 0.3, channels as
//! lines in place of columns 0.15; the rest are the codebooks.
//!
//! Time: a core of an AMD EPYC decodes 7.4 M entries a second at 90 % sparsity, 27 M at 99 %, 1 M
//! where most is kept with many values, and encodes in one direction at about the same pace. Of large
//! matrices the encoder leaves a direction after a sixteenth to a quarter of the lines where it is
//! clear which is smaller (VGG19's at 90 % and above), else it codes both, on two threads; what goes on
//! from another matrix it codes once more. For speed it codes rows alone, at the fast level: 11 M entries a
//! second at 90 %, 4.5 M at 70 %. Memory: 2.4 bytes for each entry of up to 4,096 lines of a block, and 4
//! bytes for each pair of columns where there are at most 1,024.
//!
//! At the fast level VGG19's layers take 0.40 % at 90 % sparsity (xz −9e: 0.57), 0.28 at 95 % (0.45), 1.59 at
//! 70 % with 32 values (2.07) and 1.57 at 80 % with 256 (2.24).

mod blocks;
mod coding;
mod kernels;
mod learnt;
mod levels;
mod lines;
mod model;
mod network;
mod references;
mod repeats;
mod values;

use super::{
    Buffers, Columns, Encoded, Encoding, Goal, Layout, LayoutSpec, PanelProduct, Parts, Product,
    packed,
};
use crate::array::Array;
use crate::codebook::Codebook;
use crate::entropy::Coder;
use crate::entropy::mixing::Decoder;
use crate::error::{Error, Result};
use crate::rows::{RowBlock, Rows, Shape, filled};
use crate::simd::Lanes;
use crate::threads;
use coding::Coding;
pub use learnt::Learnt;
use levels::Levels;
use lines::Lines;
use model::Model;
use std::ops::Range;
use std::sync::Arc;
pub(crate) use values::MAX_MIXED;

pub(crate) const SPEC: LayoutSpec = LayoutSpec {
    name: "archive",
    id: 9,
    coders: &[Coder::Mixing],
    sections: &["stream"],
    holds_values: false,
    encode,
    read,
};

/// Bits that a byte of a stream may stand for, at most: one of probability 65,533 / 65,536 costs
/// 1 / 15,140 bits.
const MAX_BITS_A_BYTE: u64 = 1 << 17;

/// What is coded one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Rows,
    /// The columns, or the kernels of one channel in all rows.
    Channels,
}

/// How the lines of a matrix lie, and are coded.
#[derive(Clone, Copy, Debug)]
struct Form {
    direction: Direction,
    /// Positions of a convolution's kernel, next to each other in a line; 1 without.
    taps: usize,
    /// With pieces that repeat in place of the network, where there are no kernels.
    is_fast: bool,
}

impl Form {
    /// The number of lines and the entries of one; none where those are too many to count.
    fn sides(self, shape: Shape) -> Option<[usize; 2]> {
        match self.direction {
            Direction::Rows => Some([shape.nrows, shape.ncols]),
            Direction::Channels => {
                let width = u32::try_from(shape.nrows.checked_mul(self.taps)?).ok()?;
                Some([shape.ncols / self.taps, width as usize])
            }
        }
    }

    /// The lines of each block of a matrix for which this was checked.
    fn blocks(self, shape: Shape) -> Vec<Range<usize>> {
        let [nlines, width] = self.sides(shape).expect("a form that was checked");
        blocks::blocks(nlines, width)
    }
}

/// What a matrix goes on from: what was learnt up to another one, which stands so many entries before
/// it in its file.
pub type Before<'a> = (&'a Learnt, u64);

/// A matrix in this layout: its bytes, and the form they were decoded to.
#[derive(Debug)]
pub struct Archive {
    /// None where nothing is kept.
    form: Option<Form>,
    /// How many entries of the file before this one stands the matrix that it goes on from; 0 where it
    /// stands alone.
    apart: u64,
    stream: Array<u8>,
    decoded: Arc<dyn Layout>,
}

fn encode(rows: &Rows, encoding: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared("archive")?;
    let (shape, taps) = (rows.shape(), encoding.taps);
    if taps == 0 || !shape.ncols.is_multiple_of(taps) {
        return Err(Error::invalid(format!(
            "taps: {taps} for rows of {} entries, expected a divisor",
            shape.ncols
        )));
    }
    let decoded = decoded(rows)?;
    if rows.nnz() == 0 {
        let archive = Archive { form: None, apart: 0, stream: Vec::new().into(), decoded };
        return Ok((Box::new(archive), Some(codebook.clone())));
    }
    let levels = Levels::new(codebook);
    let lines = Lines::of_rows(rows, symbols);
    let is_fast = encoding.goal == Goal::Speed && taps == 1;
    let mut forms = vec![Form { direction: Direction::Rows, taps, is_fast }];
    let turned = Form { direction: Direction::Channels, taps, is_fast };
    if encoding.goal == Goal::Size
        && turned.sides(shape).is_some_and(|[nlines, _]| nlines > 1 && shape.nrows > 1)
    {
        forms.push(turned);
    }
    let (form, stream) = coding::smallest(&lines, shape, &forms, &levels)?;
    let archive = Archive { form: Some(form), apart: 0, stream: stream.into(), decoded };
    Ok((Box::new(archive), Some(codebook.clone())))
}

/// The form that rows, once decoded, are held in.
fn decoded(rows: &Rows) -> Result<Arc<dyn Layout>> {
    let encoding =
        Encoding { coder: Coder::Fixed, goal: Goal::Size, columns: Columns::Coded, taps: 1 };
    Ok((packed::SPEC.encode)(rows, &encoding)?.0.into())
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    Ok(Box::new(Archive::read(parts, None)?.0))
}

impl Archive {
    /// Takes a matrix that goes on from `before`, or stands alone; and what is learnt up to its end, for
    /// others to go on from, where it keeps anything.
    ///
    /// # Errors
    /// `Corrupt` or `Truncated`.
    pub(crate) fn read(parts: Parts, before: Option<Before<'_>>) -> Result<(Self, Option<Learnt>)> {
        let [how, taps, apart] = parts.params::<3>()?;
        let stream: Array<u8> = parts.section("stream")?;
        let codebook = parts.codebook.clone().unwrap_or_else(|| Arc::new(Codebook::empty()));
        if apart != before.map_or(0, |(_, apart)| apart) {
            return Err(Error::corrupt(format!(
                "params: a matrix that goes on from another one {apart} entries before, expected one \
                 that stands alone"
            )));
        }
        if parts.nnz == 0 {
            if !stream.is_empty() || (how, taps, apart) != (0, 0, 0) {
                return Err(Error::corrupt(
                    "a stream or a parameter over 0 with nnz = 0, expected none",
                ));
            }
            let mut rows = Rows::with_codebook(parts.shape, codebook);
            (0..parts.shape.nrows).for_each(|_| rows.end_row());
            let decoded = decoded(&rows.finish())?;
            return Ok((Self { form: None, apart, stream, decoded }, None));
        }
        let is_divisor = |taps: &usize| *taps > 0 && parts.shape.ncols.is_multiple_of(*taps);
        let form = match (how, usize::try_from(taps).ok().filter(is_divisor)) {
            (0 | 1, Some(taps)) | (2 | 3, Some(taps @ 1)) => {
                let direction = if how & 1 == 0 { Direction::Rows } else { Direction::Channels };
                Some(Form { direction, taps, is_fast: how >= 2 })
            }
            _ => None,
        };
        let Some((form, [nlines, width])) = form.and_then(|f| Some((f, f.sides(parts.shape)?)))
        else {
            return Err(Error::corrupt(format!(
                "params: form {how} and {taps} taps, expected 0 or 1, or up to 3 with 1 tap, and a \
                 divisor of ncols = {} for lines of under 2^32 entries",
                parts.shape.ncols
            )));
        };
        let most = (stream.len() as u64 + 8).saturating_mul(MAX_BITS_A_BYTE);
        if nlines.max(width) as u64 > most {
            return Err(Error::corrupt(format!(
                "section stream: {} bytes for {nlines} lines of {width} entries, expected more",
                stream.len()
            )));
        }
        if before.is_some() && codebook.k() > MAX_MIXED {
            return Err(Error::corrupt(format!(
                "codebook: {} values in a matrix that goes on from another one, expected at most \
                 {MAX_MIXED}",
                codebook.k()
            )));
        }
        let start = before.map_or_else(|| Learnt::new(codebook.k()), |(learnt, _)| learnt.clone());
        let (lines, learnt) =
            decode(stream.as_slice(), [nlines, width], parts.nnz, form, &codebook, &start)?;
        let lines = match form.direction {
            Direction::Rows => lines,
            Direction::Channels => lines.turned(width, form.taps),
        };
        let goes_on = codebook.k() <= MAX_MIXED;
        let decoded = decoded(&lines.into_rows(parts.shape, codebook))?;
        Ok((Self { form: Some(form), apart, stream, decoded }, goes_on.then_some(learnt)))
    }

    /// The same matrix, whose rows are given, coded on from `before`, or alone; and what is learnt up to
    /// its end, where others can go on from it.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(crate) fn after(
        &self,
        rows: &Rows,
        before: Option<Before<'_>>,
    ) -> Result<(Self, Option<Learnt>)> {
        let (codebook, symbols) = rows.shared("archive")?;
        let apart = before.map_or(0, |(_, apart)| apart);
        let (decoded, form) = (self.decoded.clone(), self.form);
        let Some(form) = form else {
            return Ok((Self { form, apart: 0, stream: Vec::new().into(), decoded }, None));
        };
        let levels = Levels::new(codebook);
        let start = before.map_or_else(|| Learnt::new(levels.k()), |(learnt, _)| learnt.clone());
        let lines = Lines::of_rows(rows, symbols);
        let lines = coding::lines(&lines, rows.shape(), form);
        let [nlines, _] = form.sides(rows.shape()).expect("a form that was checked");
        let coding = Coding::new(&lines, 0..nlines, rows.shape(), form, &levels, start)?;
        let (stream, learnt) = coding.finish()?;
        let goes_on = levels.k() <= MAX_MIXED;
        let archive = Self { form: Some(form), apart, stream: stream.into(), decoded };
        Ok((archive, goes_on.then_some(learnt)))
    }

    /// True for a matrix that cannot be decoded without the one that it goes on from.
    pub(crate) fn goes_on(&self) -> bool {
        self.apart > 0
    }
}

/// The lines of a stream, and what is learnt up to the end of its last block.
fn decode(
    stream: &[u8],
    [nlines, width]: [usize; 2],
    nnz: usize,
    form: Form,
    codebook: &Codebook,
    start: &Learnt,
) -> Result<(Lines, Learnt)> {
    let blocks = blocks::blocks(nlines, width);
    let mut decoded: Vec<Option<(Lines, Learnt)>> = blocks.iter().map(|_| None).collect();
    let streams = blocks::cut(stream, blocks.len())?;
    let items: Vec<_> = blocks.into_iter().zip(streams).zip(&mut decoded).collect();
    threads::for_each(threads::available(), items, |((lines, stream), decoded)| {
        *decoded = Some(decode_block(stream, lines, width, nnz, form, codebook, start.clone())?);
        Ok(())
    })?;
    let decoded = decoded.into_iter().flatten();
    let (lines, learnt) = decoded
        .reduce(|(mut lines, _), (more, learnt)| {
            lines.append(&more);
            (lines, learnt)
        })
        .expect("a block at least");
    if lines.nnz() != nnz {
        return Err(Error::corrupt(format!("lines: {} kept weights, expected {nnz}", lines.nnz())));
    }
    Ok((lines, learnt))
}

/// The lines of one block, of at most `nnz` kept weights.
fn decode_block(
    stream: &[u8],
    numbers: Range<usize>,
    width: usize,
    nnz: usize,
    form: Form,
    codebook: &Codebook,
    learnt: Learnt,
) -> Result<(Lines, Learnt)> {
    let levels = Levels::new(codebook);
    let mut model = Model::new(&levels, numbers.len(), width, form, learnt)?;
    let mut decoder = Decoder::new(stream);
    let mut line = filled(0u32, width, 1)?;
    let mut lines = Lines::default();
    for i in numbers {
        model.code_line(&mut decoder, &mut line)?;
        for (place, &entry) in (0..).zip(&line) {
            if entry != 0 {
                lines.push(place, levels.symbols[entry as usize]);
            }
        }
        lines.end_line();
        if lines.nnz() > nnz {
            return Err(Error::corrupt(format!(
                "line {i}: {} kept weights up to here, expected {nnz} in all",
                lines.nnz()
            )));
        }
    }
    decoder.finish()?;
    Ok((lines, model.into_learnt()))
}

impl Layout for Archive {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn archive(&self) -> Option<&Archive> {
        Some(self)
    }

    fn params(&self) -> Vec<u64> {
        match self.form {
            None => vec![0, 0, 0],
            Some(form) => {
                let how = u64::from(form.direction == Direction::Channels);
                vec![how | u64::from(form.is_fast) << 1, form.taps as u64, self.apart]
            }
        }
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![self.stream.as_slice()]
    }

    fn block_rows(&self) -> usize {
        self.decoded.block_rows()
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        self.decoded.decode(rows, out)
    }

    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        self.decoded.matvec(product, rows, y)
    }

    fn panel_width(&self) -> usize {
        self.decoded.panel_width()
    }

    fn add_panels(
        &self,
        product: &PanelProduct<'_>,
        rows: Range<usize>,
        buffers: &mut Buffers,
        sums: &mut [Lanes],
    ) -> Result<()> {
        self.decoded.add_panels(product, rows, buffers, sums)
    }
}
