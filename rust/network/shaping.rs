//! Operators that move numbers without changing them: reshape, slice, permute, expand, concat, pad.
//!
//! All but the last also move ids, on their way to an embedding. A reshape is a view. Slice, permute and
//! expand are one gather: a start, and a step in x for each dimension of the result (a larger one, in
//! another order, none). Dimensions that go together are merged, so that what is contiguous is copied as
//! a whole.

use super::elementwise::broadcast_steps;
use super::operator::{Context, Dims, Element, Operands, Operator, count, dimension};
use crate::error::{Error, Result};
use crate::threads;

/// Builds the operator `name` where it is one of these.
pub(super) fn build(name: &str, ints: &[i64], floats: &[f32]) -> Option<Result<Box<dyn Operator>>> {
    let ints = ints.to_vec();
    let built: Result<Box<dyn Operator>> = match name {
        "reshape" => Ok(Box::new(Reshape { dims: ints })),
        "permute" => Ok(Box::new(Moving(Permute { order: ints }))),
        "expand" => Ok(Box::new(Moving(Expand { dims: ints }))),
        "concat" => Ok(Box::new(Moving(Concat { dim: ints[0] }))),
        "slice" => build_slice(&ints),
        "pad" => build_pad(&ints, floats[0]),
        _ => return None,
    };
    Some(built)
}

fn build_slice(ints: &[i64]) -> Result<Box<dyn Operator>> {
    let step = usize::try_from(ints[3]).ok().filter(|&step| step > 0);
    let step =
        step.ok_or_else(|| Error::invalid(format!("step {}, expected at least 1", ints[3])))?;
    Ok(Box::new(Moving(Slice { dim: ints[0], start: ints[1], end: ints[2], step })))
}

fn build_pad(ints: &[i64], value: f32) -> Result<Box<dyn Operator>> {
    let mode = match ints[0] {
        0 => Mode::Constant,
        1 => Mode::Reflect,
        2 => Mode::Replicate,
        3 => Mode::Circular,
        mode => return Err(Error::invalid(format!("mode {mode}, expected 0 to 3"))),
    };
    let (pairs, []) = ints[1..].as_chunks::<2>() else {
        return Err(Error::invalid(format!(
            "{} sizes, expected two for each dimension",
            ints.len() - 1
        )));
    };
    let least = if mode == Mode::Constant { -MAX_PADDING } else { 0 };
    if pairs.iter().flatten().any(|size| !(least..=MAX_PADDING).contains(size)) {
        return Err(Error::invalid(format!(
            "padding by {pairs:?}, expected sizes of {least} to {MAX_PADDING}"
        )));
    }
    Ok(Box::new(Pad { mode, pairs: pairs.to_vec(), value }))
}

/// Numbers before or after a dimension, at most.
const MAX_PADDING: i64 = 1 << 40;

/// Dimensions that may depend on the batch: −m is m · batch.
fn resolve(dims: &[i64], batch: usize) -> Result<Dims> {
    let resolve = |&dim: &i64| {
        let size = usize::try_from(dim.unsigned_abs()).ok();
        let size = size.and_then(|size| if dim < 0 { size.checked_mul(batch) } else { Some(size) });
        size.ok_or_else(|| {
            Error::invalid(format!("dimension {dim} for a batch of {batch}, expected less"))
        })
    };
    dims.iter().map(resolve).collect()
}

struct Reshape {
    dims: Vec<i64>,
}

impl Operator for Reshape {
    fn shape(&self, operands: &[&[usize]], batch: usize) -> Result<Dims> {
        let dims = resolve(&self.dims, batch)?;
        if count(&dims) != count(operands[0]) {
            return Err(Error::invalid(format!(
                "input of shape {:?}, expected as many numbers as {dims:?}",
                operands[0]
            )));
        }
        Ok(dims)
    }

    fn is_view(&self) -> bool {
        true
    }

    fn moves_any_type(&self) -> bool {
        true
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        _context: &mut Context<'_>,
    ) -> Result<()> {
        operands.copy_first(out);
        Ok(())
    }
}

/// What moves elements of either type.
trait Mover: Send + Sync {
    /// As [`Operator::shape`].
    fn shape(&self, operands: &[&[usize]], batch: usize) -> Result<Dims>;

    /// As [`Operator::run`].
    fn place<T: Element>(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [T],
        context: &Context<'_>,
    ) -> Result<()>;
}

/// A mover as an operator.
struct Moving<M>(M);

impl<M: Mover> Operator for Moving<M> {
    fn shape(&self, operands: &[&[usize]], batch: usize) -> Result<Dims> {
        self.0.shape(operands, batch)
    }

    fn moves_any_type(&self) -> bool {
        true
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        self.0.place(operands, dims, out, context)
    }

    fn run_ids(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [i64],
        context: &mut Context<'_>,
    ) -> Result<()> {
        self.0.place(operands, dims, out, context)
    }
}

/// A dimension of a gather: its size, and the step in x.
type Axis = (usize, usize);

/// Puts `x[start + Σ i · step]` into `out`, for every index i over `axes` in order.
fn gather<T: Element>(
    x: &[T],
    start: usize,
    axes: impl Iterator<Item = Axis>,
    out: &mut [T],
    context: &Context<'_>,
) -> Result<()> {
    let mut merged = [(1, 0); super::MAX_RANK];
    let mut len = 0;
    for (size, step) in axes.filter(|axis| axis.0 != 1) {
        match merged[..len].last_mut() {
            Some(outer) if outer.1 == size * step => *outer = (outer.0 * size, step),
            _ => {
                merged[len] = (size, step);
                len += 1;
            }
        }
    }
    let axes = &merged[..len.max(1)];
    let (outer, (size, step)) = (&axes[..axes.len() - 1], axes[axes.len() - 1]);
    threads::for_each_chunk(context.useful(out.len()), out, size, |first, out| {
        for (number, out) in (first..).zip(out.chunks_exact_mut(size)) {
            let (mut at, mut rest) = (start, number);
            for &(size, step) in outer.iter().rev() {
                at += rest % size * step;
                rest /= size;
            }
            match step {
                0 => out.fill(x[at]),
                1 => out.copy_from_slice(&x[at..at + size]),
                _ => {
                    let x = x[at..].iter().step_by(step);
                    out.iter_mut().zip(x).for_each(|(y, &x)| *y = x);
                }
            }
        }
        Ok(())
    })
}

/// The step over dimension `i` of a contiguous array of dimensions `dims`.
fn step(dims: &[usize], i: usize) -> usize {
    dims[i + 1..].iter().product()
}

struct Permute {
    order: Vec<i64>,
}

impl Mover for Permute {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let x = operands[0];
        let mut is_there = vec![false; x.len()];
        let mut dims = Vec::with_capacity(x.len());
        for &dim in &self.order {
            let dim = dimension(dim, x.len())?;
            is_there[dim] = true;
            dims.push(x[dim]);
        }
        if dims.len() != x.len() || is_there.contains(&false) {
            return Err(Error::invalid(format!(
                "input of shape {x:?}, expected the dimensions {:?}",
                self.order
            )));
        }
        Ok(dims)
    }

    fn place<T: Element>(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [T],
        context: &Context<'_>,
    ) -> Result<()> {
        let dims = operands.dims(0);
        let axes = self.order.iter().map(|&dim| {
            let dim = dimension(dim, dims.len()).unwrap_or(0);
            (dims[dim], step(dims, dim))
        });
        gather(T::of(operands, 0), 0, axes, out, context)
    }
}

struct Expand {
    dims: Vec<i64>,
}

impl Mover for Expand {
    fn shape(&self, operands: &[&[usize]], batch: usize) -> Result<Dims> {
        let (x, dims) = (operands[0], resolve(&self.dims, batch)?);
        let fits = |(&from, &to): (&usize, &usize)| from == to || from == 1;
        if x.len() > dims.len() || !x.iter().rev().zip(dims.iter().rev()).all(fits) {
            return Err(Error::invalid(format!(
                "input of shape {x:?}, expected dimensions of {dims:?}, or 1"
            )));
        }
        Ok(dims)
    }

    fn place<T: Element>(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [T],
        context: &Context<'_>,
    ) -> Result<()> {
        let steps = broadcast_steps(operands.dims(0), dims);
        gather(T::of(operands, 0), 0, dims.iter().copied().zip(steps), out, context)
    }
}

struct Slice {
    dim: i64,
    start: i64,
    end: i64,
    step: usize,
}

impl Slice {
    /// The dimension, where the slice of `x` starts, and its length.
    fn range(&self, x: &[usize]) -> Result<(usize, usize, usize)> {
        let dim = dimension(self.dim, x.len())?;
        let size = x[dim] as i64;
        let place = |at: i64| {
            let at = if at < 0 { at.saturating_add(size) } else { at };
            at.clamp(0, size) as usize
        };
        let (start, end) = (place(self.start), place(self.end));
        Ok((dim, start, end.saturating_sub(start).div_ceil(self.step)))
    }
}

impl Mover for Slice {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let (dim, _, len) = self.range(operands[0])?;
        let mut dims = operands[0].to_vec();
        dims[dim] = len;
        Ok(dims)
    }

    fn place<T: Element>(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [T],
        context: &Context<'_>,
    ) -> Result<()> {
        let x = operands.dims(0);
        let (sliced, start, _) = self.range(x)?;
        let axes = dims.iter().enumerate().map(|(dim, &size)| {
            let stride = if dim == sliced { self.step } else { 1 };
            // One number needs no step, and a long one might not fit.
            (size, if size == 1 { 0 } else { step(x, dim) * stride })
        });
        gather(T::of(operands, 0), start * step(x, sliced), axes, out, context)
    }
}

struct Concat {
    dim: i64,
}

impl Mover for Concat {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let mut dims = operands[0].to_vec();
        let joined = dimension(self.dim, dims.len())?;
        for x in &operands[1..] {
            let fits = |(i, (a, b)): (usize, (&usize, &usize))| a == b || i == joined;
            if x.len() != dims.len() || !dims.iter().zip(x.iter()).enumerate().all(fits) {
                return Err(Error::invalid(format!(
                    "operands of shapes {:?} and {x:?}, expected equal dimensions but {joined}",
                    operands[0]
                )));
            }
            dims[joined] = dims[joined].checked_add(x[joined]).ok_or_else(|| {
                Error::invalid(format!("operands of shape {x:?} and before, expected fewer"))
            })?;
        }
        Ok(dims)
    }

    fn place<T: Element>(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [T],
        _context: &Context<'_>,
    ) -> Result<()> {
        let joined = dimension(self.dim, dims.len())?;
        let (unit, inner) = (dims[joined..].iter().product::<usize>(), step(dims, joined));
        let mut start = 0;
        for i in 0..operands.len() {
            let len = operands.dims(i)[joined] * inner;
            if len == 0 {
                continue;
            }
            let x = T::of(operands, i).chunks_exact(len);
            for (out, x) in out.chunks_exact_mut(unit).zip(x) {
                out[start..start + len].copy_from_slice(x);
            }
            start += len;
        }
        Ok(())
    }
}

/// What stands outside of x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Constant,
    Reflect,
    Replicate,
    Circular,
}

struct Pad {
    mode: Mode,
    /// Before and after, for each dimension; under 0 cuts.
    pairs: Vec<[i64; 2]>,
    value: f32,
}

impl Pad {
    /// The place in `size` numbers, `before` of which come before them, of place `i`; none is the
    /// value.
    fn place(&self, i: usize, before: i64, size: usize) -> Option<usize> {
        let (at, last) = (i as i64 - before, size as i64 - 1);
        let at = match self.mode {
            _ if (0..=last).contains(&at) => at,
            Mode::Constant => return None,
            Mode::Reflect if at < 0 => -at,
            Mode::Reflect => 2 * last - at,
            Mode::Replicate => at.clamp(0, last),
            Mode::Circular => at.rem_euclid(last + 1),
        };
        Some(at as usize)
    }
}

impl Operator for Pad {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let x = operands[0];
        if x.len() != self.pairs.len() {
            return Err(Error::invalid(format!(
                "input of shape {x:?}, expected {} dimensions",
                self.pairs.len()
            )));
        }
        let dims = x.iter().zip(&self.pairs).map(|(&size, &[before, after])| {
            let signed = i64::try_from(size).ok();
            let padded = signed.and_then(|n| n.checked_add(before)?.checked_add(after));
            let most = match self.mode {
                Mode::Constant => i64::MAX,
                Mode::Replicate if size > 0 => i64::MAX,
                Mode::Circular => size as i64,
                Mode::Reflect | Mode::Replicate => size as i64 - 1,
            };
            let is_fine = before == 0 && after == 0 || before.max(after) <= most;
            padded.filter(|_| is_fine).and_then(|n| usize::try_from(n).ok()).ok_or_else(|| {
                Error::invalid(format!(
                    "input of shape {x:?} padded by {before} and {after}, expected room for it"
                ))
            })
        });
        dims.collect()
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (x, from) = (operands.numbers(0), operands.dims(0));
        let Some((&width, outer)) = dims.split_last() else {
            operands.copy_first(out);
            return Ok(());
        };
        let size = from[outer.len()];
        let [before, _] = self.pairs[outer.len()];
        // The part of a row that is copied as it is.
        let start = before.clamp(0, width as i64) as usize;
        let end = (before + size as i64).clamp(start as i64, width as i64) as usize;
        let skipped = (start as i64 - before) as usize;
        threads::for_each_chunk(context.useful(out.len()), out, width, |first, out| {
            for (number, out) in (first..).zip(out.chunks_exact_mut(width)) {
                let (mut at, mut rest, mut step) = (Some(0), number, size);
                for dim in (0..outer.len()).rev() {
                    let place = self.place(rest % outer[dim], self.pairs[dim][0], from[dim]);
                    at = at.zip(place).map(|(at, place)| at + place * step);
                    rest /= outer[dim];
                    step *= from[dim];
                }
                let Some(at) = at else {
                    out.fill(self.value);
                    continue;
                };
                let x = &x[at..at + size];
                for j in (0..start).chain(end..width) {
                    out[j] = self.place(j, before, size).map_or(self.value, |place| x[place]);
                }
                if start < end {
                    out[start..end].copy_from_slice(&x[skipped..skipped + end - start]);
                }
            }
            Ok(())
        })
    }
}
