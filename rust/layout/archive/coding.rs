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
//! What is not clear by that, and what is small, is coded in both to the end.

use super::learnt::Learnt;
use super::levels::Levels;
use super::lines::Lines;
use super::model::Model;
use super::{Direction, Form};
use crate::entropy::mixing::Encoder;
use crate::error::Result;
use crate::rows::{Shape, filled};
use crate::threads;
use std::borrow::Cow;

/// After which part of the lines the direction of fewer lines is left if it takes so many percent of
/// the bytes of the other, or more.
const DECISIONS: [(usize, usize); 3] = [(16, 115), (8, 120), (4, 112)];
/// Entries of a matrix for which that is known.
const MIN_ENTRIES: usize = 1 << 20;

/// A matrix on its way into a stream.
pub(super) struct Coding<'a> {
    form: Form,
    lines: Cow<'a, Lines>,
    levels: &'a Levels,
    model: Model<'a>,
    encoder: Encoder,
    line: Vec<u32>,
    /// Lines that are coded.
    done: usize,
}

impl<'a> Coding<'a> {
    /// The rows of a matrix of `shape`, to be coded as lines of `form`, which was checked.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn new(
        rows: &'a Lines,
        shape: Shape,
        form: Form,
        levels: &'a Levels,
        learnt: Learnt,
    ) -> Result<Self> {
        let [nlines, width] = form.sides(shape).expect("a form that was checked");
        let lines = match form.direction {
            Direction::Rows => Cow::Borrowed(rows),
            Direction::Channels => Cow::Owned(rows.turned(shape.ncols, form.taps)),
        };
        Ok(Self {
            form,
            lines,
            levels,
            model: Model::new(levels, nlines, width, form.taps, learnt)?,
            encoder: Encoder::new(),
            line: filled(0, width, 1)?,
            done: 0,
        })
    }

    /// Codes on up to line `end`.
    fn code(&mut self, end: usize) -> Result<()> {
        for i in self.done..end {
            self.line.fill(0);
            let (places, symbols) = self.lines.line(i);
            for (&place, &symbol) in places.iter().zip(symbols) {
                self.line[place as usize] = self.levels.entries[usize::from(symbol)];
            }
            self.model.code_line(&mut self.encoder, &mut self.line)?;
        }
        self.done = end;
        Ok(())
    }

    /// Codes what is left: the stream, and what is learnt up to its end.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub(super) fn finish(mut self) -> Result<(Vec<u8>, Learnt)> {
        self.code(self.lines.len())?;
        Ok((self.encoder.finish(), self.model.into_learnt()))
    }
}

/// The form of `forms`, which were checked, of the smaller stream, and the stream; the first of
/// equal ones.
///
/// # Errors
/// `LimitExceeded` when the memory cannot be had; `Io` when no thread can be made.
pub(super) fn smallest(
    rows: &Lines,
    shape: Shape,
    forms: &[Form],
    levels: &Levels,
) -> Result<(Form, Vec<u8>)> {
    let new = |&form| Coding::new(rows, shape, form, levels, Learnt::new(levels.k()));
    let mut codings: Vec<Coding<'_>> = forms.iter().map(new).collect::<Result<_>>()?;
    let decisions = if shape.entries() < MIN_ENTRIES { &[][..] } else { &DECISIONS };
    for &(part, percent) in decisions.iter().filter(|_| forms.len() > 1) {
        threads::for_each(codings.len(), codings.iter_mut().collect(), |coding| {
            coding.code(coding.lines.len() / part)
        })?;
        let is_left = |coding: &Coding<'_>, other: &Coding<'_>| {
            let [found, least] = [coding, other].map(|coding| coding.encoder.nbytes());
            coding.lines.len() <= other.lines.len() && 100 * found > percent * least
        };
        if let [first, second] = &codings[..] {
            let left = [is_left(first, second), is_left(second, first)];
            if let Some(left) = left.iter().position(|&left| left) {
                codings.remove(left);
            }
        }
    }
    let mut streams: Vec<Option<(Form, Vec<u8>)>> = codings.iter().map(|_| None).collect();
    let items: Vec<_> = codings.into_iter().zip(&mut streams).collect();
    threads::for_each(items.len(), items, |(coding, stream)| {
        *stream = Some((coding.form, coding.finish()?.0));
        Ok(())
    })?;
    let streams = streams.into_iter().flatten();
    Ok(streams.min_by_key(|(_, stream)| stream.len()).expect("one form or two"))
}
