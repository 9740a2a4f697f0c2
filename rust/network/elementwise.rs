//! Operators on each number alone: unary, affine, and binary with NumPy's broadcasting.
//!
//! ```text
//!   a [4, 1, 3]   b [2, 1]   result [4, 2, 3]     dims of the result, steps in a and in b:
//!                                                 4: 3, 0    2: 0, 1    3: 1, 0
//! ```
//!
//! Neighbouring dimensions over which both operands step alike are one; the last one is a loop
//! over slices or one number, the others count.

use super::activation::Activation;
use super::operator::{Context, Dims, Interleaving, Operands, Operator, flag};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::simd::maximum;
use crate::threads;

/// Builds the operator `name` where it is one of these.
pub(super) fn build(name: &str, ints: &[i64], floats: &[f32]) -> Option<Result<Box<dyn Operator>>> {
    let built = match (name, ints) {
        ("unary", &[act]) => Activation::new(act, floats).map(|act| Box::new(Unary(act)) as _),
        ("binary", &[kind, act]) => build_binary(kind, act, floats),
        ("binary_scalar", &[kind, is_reversed, act]) => {
            build_scalar(kind, is_reversed, act, floats)
        }
        _ => return None,
    };
    Some(built)
}

fn build_binary(kind: i64, act: i64, floats: &[f32]) -> Result<Box<dyn Operator>> {
    let (kind, activation) = (Kind::new(kind)?, Activation::new(act, floats)?);
    Ok(Box::new(Binary { kind, activation }))
}

fn build_scalar(
    kind: i64,
    is_reversed: i64,
    act: i64,
    floats: &[f32],
) -> Result<Box<dyn Operator>> {
    Ok(Box::new(Scalar {
        kind: Kind::new(kind)?,
        is_reversed: flag(is_reversed, "is_reversed")?,
        scalar: floats[0],
        activation: Activation::new(act, &floats[1..])?,
    }))
}

/// Builds an affine operator.
pub(super) fn build_affine(
    scale: Option<Array<f32>>,
    shift: Option<Array<f32>>,
    ints: &[i64],
    floats: &[f32],
) -> Result<Box<dyn Operator>> {
    if let (Some(scale), Some(shift)) = (&scale, &shift)
        && scale.len() != shift.len()
    {
        return Err(Error::invalid(format!(
            "a scale of {} numbers with a shift of {}, expected as many",
            scale.len(),
            shift.len()
        )));
    }
    Ok(Box::new(Affine { scale, shift, activation: Activation::new(ints[0], floats)? }))
}

/// What two numbers give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Sub,
    Mul,
    Div,
    Maximum,
    Minimum,
    Pow,
}

impl Kind {
    fn new(kind: i64) -> Result<Self> {
        let kinds =
            [Self::Add, Self::Sub, Self::Mul, Self::Div, Self::Maximum, Self::Minimum, Self::Pow];
        usize::try_from(kind)
            .ok()
            .and_then(|kind| kinds.get(kind).copied())
            .ok_or_else(|| Error::invalid(format!("binary kind {kind}, expected 0 to 6")))
    }

    /// Puts what this gives of `a` and `b`, each as long as `out` or one number, into `out`; none
    /// stands for the numbers in `out`.
    fn apply(self, a: Option<&[f32]>, b: Option<&[f32]>, out: &mut [f32]) {
        match self {
            Self::Add => zip(a, b, out, |a, b| a + b),
            Self::Sub => zip(a, b, out, |a, b| a - b),
            Self::Mul => zip(a, b, out, |a, b| a * b),
            Self::Div => zip(a, b, out, |a, b| a / b),
            Self::Maximum => zip(a, b, out, maximum),
            Self::Minimum => zip(a, b, out, |a, b| -maximum(-a, -b)),
            Self::Pow => zip(a, b, out, f32::powf),
        }
    }

    fn cost(self) -> usize {
        if self == Self::Pow { 32 } else { 1 }
    }
}

fn zip(a: Option<&[f32]>, b: Option<&[f32]>, out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    match (a, b) {
        (Some(&[a]), Some(&[b])) => out.fill(f(a, b)),
        (Some(&[a]), Some(b)) => out.iter_mut().zip(b).for_each(|(y, &b)| *y = f(a, b)),
        (Some(a), Some(&[b])) => out.iter_mut().zip(a).for_each(|(y, &a)| *y = f(a, b)),
        (Some(a), Some(b)) => {
            out.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b));
        }
        (None, Some(&[b])) => out.iter_mut().for_each(|y| *y = f(*y, b)),
        (None, Some(b)) => out.iter_mut().zip(b).for_each(|(y, &b)| *y = f(*y, b)),
        (Some(&[a]), None) => out.iter_mut().for_each(|y| *y = f(a, *y)),
        (Some(a), None) => out.iter_mut().zip(a).for_each(|(y, &a)| *y = f(a, *y)),
        (None, None) => out.iter_mut().for_each(|y| *y = f(*y, *y)),
    }
}

/// Numbers to the power of one `exponent`, the common ones as the products that they are.
fn power(x: Option<&[f32]>, exponent: f32, out: &mut [f32]) {
    let exponents = [exponent];
    let b = Some(exponents.as_slice());
    match exponent {
        2.0 => zip(x, b, out, |a, _| a * a),
        3.0 => zip(x, b, out, |a, _| a * a * a),
        0.5 => zip(x, b, out, |a, _| a.sqrt()),
        -0.5 => zip(x, b, out, |a, _| 1.0 / a.sqrt()),
        -1.0 => zip(x, b, out, |a, _| 1.0 / a),
        -2.0 => zip(x, b, out, |a, _| 1.0 / (a * a)),
        _ => zip(x, b, out, f32::powf),
    }
}

struct Unary(Activation);

impl Operator for Unary {
    fn interleaving(&self, _operands: &[&[usize]], _dims: &[usize]) -> Interleaving {
        Interleaving::Alike
    }

    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        Ok(operands[0].to_vec())
    }

    fn may_overwrite(&self) -> usize {
        1
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let x = (operands.in_place() != Some(0)).then(|| operands.numbers(0));
        let threads = context.useful(out.len() * (1 + self.0.cost()));
        threads::for_each_chunk(threads, out, 1, |first, out| {
            if let Some(x) = x {
                out.copy_from_slice(&x[first..first + out.len()]);
            }
            self.0.apply(out);
            Ok(())
        })
    }
}

struct Scalar {
    kind: Kind,
    is_reversed: bool,
    scalar: f32,
    activation: Activation,
}

impl Operator for Scalar {
    fn interleaving(&self, _operands: &[&[usize]], _dims: &[usize]) -> Interleaving {
        Interleaving::Alike
    }

    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        Ok(operands[0].to_vec())
    }

    fn may_overwrite(&self) -> usize {
        1
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let x = (operands.in_place() != Some(0)).then(|| operands.numbers(0));
        let threads =
            context.useful(out.len().saturating_mul(self.kind.cost() + self.activation.cost()));
        let scalar = [self.scalar];
        threads::for_each_chunk(threads, out, 1, |first, out| {
            let x = x.map(|x| &x[first..first + out.len()]);
            match (self.kind, self.is_reversed) {
                (Kind::Pow, false) => power(x, self.scalar, out),
                (kind, false) => kind.apply(x, Some(&scalar), out),
                (kind, true) => kind.apply(Some(&scalar), x, out),
            }
            self.activation.apply(out);
            Ok(())
        })
    }
}

/// y = act(scale · x + shift), a scale and a shift for each channel.
struct Affine {
    scale: Option<Array<f32>>,
    shift: Option<Array<f32>>,
    activation: Activation,
}

impl Operator for Affine {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let dims = operands[0];
        let channels = dims.get(1).copied();
        for vector in [&self.scale, &self.shift].into_iter().flatten() {
            if channels != Some(vector.len()) {
                return Err(Error::invalid(format!(
                    "input of shape {dims:?}, expected [N, {}, ...]",
                    vector.len()
                )));
            }
        }
        match channels {
            Some(_) => Ok(dims.to_vec()),
            None => Err(Error::invalid(format!("input of shape {dims:?}, expected [N, C, ...]"))),
        }
    }

    fn may_overwrite(&self) -> usize {
        1
    }

    fn vector_nbytes(&self) -> usize {
        [&self.scale, &self.shift].into_iter().flatten().map(|v| v.as_bytes().len()).sum()
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let x = (operands.in_place() != Some(0)).then(|| operands.numbers(0));
        let (channels, area) = (dims[1], dims[2..].iter().product::<usize>());
        let threads = context.useful(out.len() * (1 + self.activation.cost()));
        let scale = self.scale.as_ref().map(Array::as_slice);
        let shift = self.shift.as_ref().map(Array::as_slice);
        threads::for_each_chunk(threads, out, area, |first, out| {
            if let Some(x) = x {
                out.copy_from_slice(&x[first * area..][..out.len()]);
            }
            for (plane, out) in (first..).zip(out.chunks_exact_mut(area)) {
                let channel = plane % channels;
                let scale = scale.map_or(1.0, |scale| scale[channel]);
                let shift = shift.map_or(0.0, |shift| shift[channel]);
                out.iter_mut().for_each(|y| *y = *y * scale + shift);
            }
            self.activation.apply(out);
            Ok(())
        })
    }
}

/// y = act(a ∘ b).
struct Binary {
    kind: Kind,
    activation: Activation,
}

/// The dimensions that `a` and `b` broadcast to.
///
/// # Errors
/// `InvalidArgument` when a dimension differs and neither is 1.
pub(super) fn broadcast(a: &[usize], b: &[usize]) -> Result<Dims> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], i: usize| match (i + dims.len()).checked_sub(rank) {
        Some(i) => dims[i],
        None => 1,
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (a, b) if a == b => Ok(a),
            (1, b) => Ok(b),
            (a, 1) => Ok(a),
            _ => Err(Error::invalid(format!(
                "operands of shapes {a:?} and {b:?}, expected equal dimensions, or 1"
            ))),
        })
        .collect()
}

/// The steps of an operand of dimensions `from` over those that it is broadcast to.
pub(super) fn broadcast_steps(from: &[usize], to: &[usize]) -> Vec<usize> {
    let mut steps = vec![0; to.len()];
    let mut step = 1;
    for (&dim, place) in from.iter().rev().zip(steps.iter_mut().rev()) {
        if dim > 1 {
            *place = step;
        }
        step *= dim;
    }
    steps
}

/// A dimension of the result, and the steps of both operands over it.
type Axis = (usize, [usize; 2]);

/// The fewest dimensions that `dims` can be seen as; `axes` has room for them all.
fn merge(axes: &mut [Axis; super::MAX_RANK], dims: &[usize], a: &[usize], b: &[usize]) -> usize {
    let step = |from: &[usize], i: usize| {
        let Some(at) = (i + from.len()).checked_sub(dims.len()) else { return 0 };
        if from[at] == 1 { 0 } else { from[at + 1..].iter().product() }
    };
    let mut len = 0;
    for (i, &dim) in dims.iter().enumerate().filter(|(_, dim)| **dim != 1) {
        let steps = [step(a, i), step(b, i)];
        match axes[..len].last_mut() {
            Some(outer) if outer.1 == [steps[0] * dim, steps[1] * dim] => {
                *outer = (outer.0 * dim, steps);
            }
            _ => {
                axes[len] = (dim, steps);
                len += 1;
            }
        }
    }
    if len == 0 {
        axes[0] = (1, [0, 0]);
        len = 1;
    }
    len
}

impl Operator for Binary {
    fn interleaving(&self, operands: &[&[usize]], dims: &[usize]) -> Interleaving {
        match operands.iter().all(|operand| *operand == dims) {
            true => Interleaving::Alike,
            false => Interleaving::Plain,
        }
    }

    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        broadcast(operands[0], operands[1])
    }

    fn may_overwrite(&self) -> usize {
        2
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let given = |i: usize| (operands.in_place() != Some(i)).then(|| operands.numbers(i));
        let (a, b) = (given(0), given(1));
        let mut axes = [(0, [0, 0]); super::MAX_RANK];
        let len = merge(&mut axes, dims, operands.dims(0), operands.dims(1));
        let (outer, inner) = (&axes[..len - 1], axes[len - 1]);
        let threads =
            context.useful(out.len().saturating_mul(self.kind.cost() + self.activation.cost()));
        // One long run is cut anywhere, several at their ends.
        let unit = if outer.is_empty() { 1 } else { inner.0 };
        threads::for_each_chunk(threads, out, unit, |first, out| {
            let runs = out.len().div_ceil(inner.0);
            let length = out.len() / runs;
            for (run, out) in out.chunks_exact_mut(length).enumerate() {
                let mut at = [0, 0];
                if outer.is_empty() {
                    at = inner.1.map(|step| step * first);
                }
                let mut rest = if outer.is_empty() { 0 } else { first + run };
                for (dim, steps) in outer.iter().rev() {
                    at[0] += rest % dim * steps[0];
                    at[1] += rest % dim * steps[1];
                    rest /= dim;
                }
                let part = |x: Option<&'_ [f32]>, i: usize| -> Option<Span> {
                    x.map(|_| (at[i], if inner.1[i] == 0 { 1 } else { length }))
                };
                let a = a.zip(part(a, 0)).map(|(a, (at, len))| &a[at..at + len]);
                let b = b.zip(part(b, 1)).map(|(b, (at, len))| &b[at..at + len]);
                self.kind.apply(a, b, out);
            }
            self.activation.apply(out);
            Ok(())
        })
    }
}

/// Where a run of an operand starts, and its length.
type Span = (usize, usize);
