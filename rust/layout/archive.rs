//! `archive`: the fewest bytes, for files: each entry's bits by context mixing.
//!
//! ```text
//!   lines: the rows or the columns, whichever take fewer bytes
//!   stream: │ line 0 │ line 1 │ … │            bits in one arithmetic coder (`entropy/mixing`)
//!   line  = empty?  (kept?  (negative or not  rank among those of the sign, from the top bit))*
//!
//!   references.rs  earlier lines like this one, found without side information ─┐
//!   network.rs     a linear network over the columns, learnt line by line ──────┼─▶ model.rs: kept?
//!   levels.rs      a codebook's order, signs and magnitudes, in integers ───────┘   values.rs: which
//! ```
//!
//! It is for files: it decodes only as a whole, one entry after the other, so `read` does that once
//! and keeps the result as `packed`, which products and other layouts take; `nbytes` counts the
//! stored form alone. A network that is resident as "compressed" turns it into `coded`.
//!
//! Why mixing: trained rows are alike in ways that no fixed code sees. Rows of a pruned dense layer
//! repeat nearly (references), are sums of few directions (network), and differ in density (columns,
//! lines, channels, kernels). % of dense f32 with everything counted, trained layers of VGG19 (4096 ×
//! 512) and DeepDTA (1024 × 192):
//!
//! ```text
//!                       VGG19 p80 k256   p90 k32   p97 k32    DeepDTA p60 k256   p80 k16
//!   order-0 entropy              5.11      2.20     0.724                 9.43      3.88
//!   coded                        5.15      2.12     0.669                 9.55      3.92
//!   xz -9e                       2.24      0.57     0.217                 9.69      4.55
//!   archive                      1.20      0.28     0.097                 9.13      3.57
//! ```
//!
//! What carried it, on VGG19 at 90 %: without the network 31 % more, without references 38 %, with a
//! rate that does not fall 1.5 %; columns as lines take 9 % off at 80 % with k = 256, 18 % where 70 % is
//! kept, and lose at 90 % and above. DeepDTA gains from the densities alone. What did not help: starting
//! slots at the density; a slot for the pair of the best references, a map by column, sets of weights
//! by the lead of the first reference (each under 0.2 %, and small layers lost by them); other limits of
//! slots; more weight for the maps. A third fewer contexts than at first made small convolutions 1.5 %
//! smaller, and so did weights that start lower.
//!
//! Time: a core codes 5 M entries a second at 90 % sparsity, 10 M at 97 %, 1.5 M where most is kept
//! with many values. The encoder codes both directions, on two threads; for speed it codes rows
//! alone. Memory: 2.4 bytes for each entry of up to 4,096 lines, and 4 bytes for each pair of columns
//! where there are at most 1,024.

mod levels;
mod lines;
mod model;
mod network;
mod references;
mod values;

use super::{
    Buffers, Columns, Encoded, Encoding, Goal, Layout, LayoutSpec, PanelProduct, Parts, Product,
    packed,
};
use crate::array::Array;
use crate::codebook::Codebook;
use crate::entropy::Coder;
use crate::entropy::mixing::{Decoder, Encoder};
use crate::error::{Error, Result};
use crate::rows::{RowBlock, Rows, Shape, filled};
use crate::simd::Lanes;
use crate::threads;
use levels::Levels;
use lines::Lines;
use model::Model;
use std::ops::Range;
use std::sync::Arc;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
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
    Columns,
}

impl Direction {
    /// The number of lines and the entries of one.
    fn sides(self, shape: Shape) -> [usize; 2] {
        match self {
            Self::Rows => [shape.nrows, shape.ncols],
            Self::Columns => [shape.ncols, shape.nrows],
        }
    }
}

/// How the lines of a matrix lie.
#[derive(Clone, Copy, Debug)]
struct Form {
    direction: Direction,
    /// Positions of a convolution's kernel, next to each other in a line.
    taps: usize,
}

/// A matrix in this layout: its bytes, and the form they were decoded to.
#[derive(Debug)]
struct Archive {
    /// None where nothing is kept.
    form: Option<Form>,
    stream: Array<u8>,
    decoded: Box<dyn Layout>,
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
        return Ok((
            Box::new(Archive { form: None, stream: Vec::new().into(), decoded }),
            Some(codebook.clone()),
        ));
    }
    let levels = Levels::new(codebook);
    let lines = Lines::of_rows(rows, symbols);
    let mut forms = vec![Form { direction: Direction::Rows, taps }];
    if encoding.goal == Goal::Size && shape.nrows > 1 && shape.ncols > 1 {
        forms.push(Form { direction: Direction::Columns, taps: 1 });
    }
    let mut streams: Vec<Vec<u8>> = vec![Vec::new(); forms.len()];
    let items: Vec<_> = forms.iter().zip(&mut streams).collect();
    threads::for_each(items.len(), items, |(form, stream)| {
        *stream = match form.direction {
            Direction::Rows => encode_lines(&lines, shape.ncols, form, &levels)?,
            Direction::Columns => {
                encode_lines(&lines.turned(shape.ncols), shape.nrows, form, &levels)?
            }
        };
        Ok(())
    })?;
    let best = (0..forms.len()).min_by_key(|&i| streams[i].len()).unwrap_or(0);
    let stream = streams.swap_remove(best).into();
    let archive = Archive { form: Some(forms[best]), stream, decoded };
    Ok((Box::new(archive), Some(codebook.clone())))
}

/// The form that rows, once decoded, are held in.
fn decoded(rows: &Rows) -> Result<Box<dyn Layout>> {
    let encoding =
        Encoding { coder: Coder::Fixed, goal: Goal::Size, columns: Columns::Coded, taps: 1 };
    Ok((packed::SPEC.encode)(rows, &encoding)?.0)
}

fn encode_lines(lines: &Lines, ncols: usize, form: &Form, levels: &Levels) -> Result<Vec<u8>> {
    let mut model = Model::new(levels, lines.len(), ncols, form.taps)?;
    let mut encoder = Encoder::new();
    let mut line = filled(0u32, ncols, 1)?;
    for i in 0..lines.len() {
        line.fill(0);
        let (places, symbols) = lines.line(i);
        for (&place, &symbol) in places.iter().zip(symbols) {
            line[place as usize] = u32::from(levels.ranks[usize::from(symbol)]) + 1;
        }
        model.code_line(&mut encoder, &mut line)?;
    }
    Ok(encoder.finish())
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [direction, taps] = parts.params::<2>()?;
    let stream: Array<u8> = parts.section("stream")?;
    let codebook = parts.codebook.clone().unwrap_or_else(|| Arc::new(Codebook::empty()));
    if parts.nnz == 0 {
        if !stream.is_empty() || (direction, taps) != (0, 0) {
            return Err(Error::corrupt(
                "a stream or a parameter over 0 with nnz = 0, expected none",
            ));
        }
        let mut rows = Rows::with_codebook(parts.shape, codebook);
        (0..parts.shape.nrows).for_each(|_| rows.end_row());
        return Ok(Box::new(Archive { form: None, stream, decoded: decoded(&rows.finish())? }));
    }
    let is_divisor = |taps: &usize| *taps > 0 && parts.shape.ncols.is_multiple_of(*taps);
    let form = match (direction, usize::try_from(taps).ok().filter(is_divisor)) {
        (0, Some(taps)) => Form { direction: Direction::Rows, taps },
        (1, Some(1)) => Form { direction: Direction::Columns, taps: 1 },
        _ => {
            return Err(Error::corrupt(format!(
                "params: direction {direction} and {taps} taps, expected 0 and a divisor of ncols = {}, \
                 or 1 and 1",
                parts.shape.ncols
            )));
        }
    };
    let most = (stream.len() as u64 + 8).saturating_mul(MAX_BITS_A_BYTE);
    let [nlines, ncols] = form.direction.sides(parts.shape);
    if nlines.max(ncols) as u64 > most {
        return Err(Error::corrupt(format!(
            "section stream: {} bytes for {nlines} lines of {ncols} entries, expected more",
            stream.len()
        )));
    }
    let lines = decode_lines(stream.as_slice(), [nlines, ncols], parts.nnz, form, &codebook)?;
    let lines = if form.direction == Direction::Columns { lines.turned(ncols) } else { lines };
    let decoded = decoded(&lines.into_rows(parts.shape, codebook))?;
    Ok(Box::new(Archive { form: Some(form), stream, decoded }))
}

fn decode_lines(
    stream: &[u8],
    [nlines, ncols]: [usize; 2],
    nnz: usize,
    form: Form,
    codebook: &Codebook,
) -> Result<Lines> {
    let levels = Levels::new(codebook);
    let mut model = Model::new(&levels, nlines, ncols, form.taps)?;
    let mut decoder = Decoder::new(stream);
    let mut line = filled(0u32, ncols, 1)?;
    let mut lines = Lines::default();
    for i in 0..nlines {
        model.code_line(&mut decoder, &mut line)?;
        for (place, &entry) in (0..).zip(&line) {
            if entry != 0 {
                lines.push(place, levels.symbols[entry as usize - 1]);
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
    if lines.nnz() < nnz {
        return Err(Error::corrupt(format!("lines: {} kept weights, expected {nnz}", lines.nnz())));
    }
    Ok(lines)
}

impl Layout for Archive {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        match self.form {
            None => vec![0, 0],
            Some(form) => vec![u64::from(form.direction == Direction::Columns), form.taps as u64],
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
