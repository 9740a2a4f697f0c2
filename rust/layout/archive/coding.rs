//! Lines as a stream, in the direction that takes fewer bytes.
//!
//! ```text
//!   rows     ──▶ a sixteenth of the lines ──▶ an eighth ──▶ a quarter ──▶ all ─┐
//!   channels ──▶ a sixteenth of the lines ──▶ an eighth ──▶ a quarter ──▶ all ─┴▶ the smaller stream
//!                                          ▲             ▲            ▲
//!           the lines that are fewer are left where they take over 15, 20 or 12 % more than the others
//! ```
//!
//! Of the direction with more lines any part is more to learn from, so it is ahead early on even
//! where it loses in the end. Of VGG19's fc1, whose columns are an eighth of the rows, columns take so
//! many % more than rows (each way to prune and share it; less where there is a minus):
//!
//! ```text
//!   after                       a sixteenth    an eighth    a quarter       all
//!   columns are smaller           −8 …  10     −6 …  12     −9 …   3   −19 … −7
//!   rows are smaller             −53 …  18    −17 …  27     24 …  49     5 … 13
//! ```
//!
//! What is not clear by that, and what is small, is coded in both to the end. A matrix of several
//! blocks goes in the direction in which the first one takes fewer bytes.

use super::learnt::Learnt;
use super::levels::Levels;
use super::lines::Lines;
use super::model::Model;
use super::{Direction, Form, blocks};
use crate::entropy::mixing::Encoder;
use crate::error::Result;
use crate::rows::{Shape, filled};
use crate::threads;
use std::borrow::Cow;
use std::ops::Range;

/// After which part of the lines the direction of fewer lines is left if it takes so many percent of
/// the bytes of the other, or more.
const DECISIONS: [(usize, u128); 3] = [(16, 115), (8, 120), (4, 112)];
/// Entries of a block for which that is known.
const MIN_ENTRIES: usize = 1 << 20;

/// The rows of a matrix as the lines of a form, which was checked.
pub(super) fn lines(rows: &Lines, shape: Shape, form: Form) -> Cow<'_, Lines> {
    match form.direction {
        Direction::Rows => Cow::Borrowed(rows),
        Direction::Channels => Cow::Owned(rows.turned(shape.ncols, form.taps)),
    }
}

/// A block of lines on its way into a stream.
pub(super) struct Coding<'a> {
    lines: &'a Lines,
    nlines: usize,
    /// Those that are not coded yet.
    rest: Range<usize>,
    levels: &'a Levels,
    model: Model<'a>,
    encoder: Encoder,
    line: Vec<u32>,
}

impl<'a> Coding<'a> {
    /// Lines `numbers` of a form, which was checked, of a matrix of `shape`.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn new(
        lines: &'a Lines,
        numbers: Range<usize>,
        shape: Shape,
        form: Form,
        levels: &'a Levels,
        learnt: Learnt,
    ) -> Result<Self> {
        let [_, width] = form.sides(shape).expect("a form that was checked");
        Ok(Self {
            lines,
            model: Model::new(levels, numbers.len(), width, form, learnt)?,
            nlines: numbers.len(),
            rest: numbers,
            levels,
            encoder: Encoder::new(),
            line: filled(0, width, 1)?,
        })
    }

    fn entries(&self) -> usize {
        self.nlines * self.line.len()
    }

    /// Codes on until `count` lines are.
    fn code(&mut self, count: usize) -> Result<()> {
        let done = self.nlines - self.rest.len();
        for i in self.rest.by_ref().take(count - done) {
            self.line.fill(0);
            let (places, symbols) = self.lines.line(i);
            for (&place, &symbol) in places.iter().zip(symbols) {
                self.line[place as usize] = self.levels.entries[usize::from(symbol)];
            }
            self.model.code_line(&mut self.encoder, &mut self.line)?;
        }
        Ok(())
    }

    /// Codes what is left: the stream, and what is learnt up to its end.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, Learnt)> {
        self.code(self.nlines)?;
        Ok((self.encoder.finish(), self.model.into_learnt()))
    }
}

/// The form of `forms`, which were checked, in which the first block is smaller, and the stream of all
/// blocks; the first of equal ones.
///
/// # Errors
/// `LimitExceeded` when the memory cannot be had; `Io` when no thread can be made.
pub(super) fn smallest(
    rows: &Lines,
    shape: Shape,
    forms: &[Form],
    levels: &Levels,
) -> Result<(Form, Vec<u8>)> {
    let all: Vec<_> = forms.iter().map(|&form| lines(rows, shape, form)).collect();
    let new = |which: usize, numbers: Range<usize>| {
        let learnt = Learnt::new(levels.k());
        Coding::new(&all[which], numbers, shape, forms[which], levels, learnt)
    };
    let (which, first) = match forms.len() {
        1 => (0, None),
        _ => {
            let first = |which: usize| new(which, forms[which].blocks(shape).remove(0));
            let codings = (0..forms.len()).map(|which| Ok((which, first(which)?)));
            let (which, stream) = smallest_block(codings.collect::<Result<_>>()?)?;
            (which, Some(stream))
        }
    };
    let blocks = forms[which].blocks(shape);
    let mut streams: Vec<Vec<u8>> = vec![Vec::new(); blocks.len()];
    let others = usize::from(first.is_some());
    if let Some(first) = first {
        streams[0] = first;
    }
    let items: Vec<_> = blocks.into_iter().zip(&mut streams).skip(others).collect();
    threads::for_each(threads::available(), items, |(numbers, stream)| {
        *stream = new(which, numbers)?.finish()?.0;
        Ok(())
    })?;
    Ok((forms[which], blocks::join(streams)))
}

/// Which of numbered blocks takes the fewest bytes for its entries, and its stream.
fn smallest_block(mut codings: Vec<(usize, Coding<'_>)>) -> Result<(usize, Vec<u8>)> {
    // Bytes as if of as many entries.
    let scaled = |nbytes: usize, entries: usize| nbytes as u128 * entries as u128;
    let is_known = codings.iter().all(|(_, coding)| coding.entries() >= MIN_ENTRIES);
    let decisions = if is_known { &DECISIONS[..] } else { &[] };
    for &(part, percent) in decisions {
        threads::for_each(codings.len(), codings.iter_mut().collect(), |(_, coding)| {
            coding.code(coding.nlines / part)
        })?;
        let is_left = |coding: &Coding<'_>, other: &Coding<'_>| {
            let found = scaled(coding.encoder.nbytes(), other.entries());
            let least = scaled(other.encoder.nbytes(), coding.entries());
            coding.nlines <= other.nlines && 100 * found > percent * least
        };
        if let [(_, first), (_, second)] = &codings[..] {
            let left = [is_left(first, second), is_left(second, first)];
            if let Some(left) = left.iter().position(|&left| left) {
                codings.remove(left);
            }
        }
    }
    let mut streams: Vec<Option<(usize, usize, Vec<u8>)>> = codings.iter().map(|_| None).collect();
    let items: Vec<_> = codings.into_iter().zip(&mut streams).collect();
    threads::for_each(items.len(), items, |((which, coding), stream)| {
        *stream = Some((which, coding.entries(), coding.finish()?.0));
        Ok(())
    })?;
    let smaller = |a: &(usize, usize, Vec<u8>), b: &(usize, usize, Vec<u8>)| {
        scaled(a.2.len(), b.1).cmp(&scaled(b.2.len(), a.1))
    };
    let (which, _, stream) =
        streams.into_iter().flatten().min_by(smaller).expect("one block or two");
    Ok((which, stream))
}
