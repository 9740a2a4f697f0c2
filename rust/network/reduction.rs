//! Mean, sum, maximum and minimum over some of the dimensions.
//!
//! ```text
//!   [4, 5, 6, 7] over 2, 3   ─▶  20 runs of 42         over 1  ─▶  4 × (5 rows of 42, added up)
//!   over 1, 3                ─▶  one dimension after the other, the last first
//! ```
//!
//! Neighbouring dimensions go together. Sums are in double precision.

use super::operator::{Context, Dims, Operands, Operator, dimension, flag};
use super::pooling::sum;
use crate::error::{Error, Result};
use crate::simd::maximum;
use crate::threads;

/// Builds the operator `name` where it is one of these.
pub(super) fn build(
    name: &str,
    ints: &[i64],
    _floats: &[f32],
) -> Option<Result<Box<dyn Operator>>> {
    (name == "reduce").then(|| build_reduce(ints))
}

fn build_reduce(ints: &[i64]) -> Result<Box<dyn Operator>> {
    let kind = match ints[0] {
        0 => Kind::Mean,
        1 => Kind::Maximum,
        2 => Kind::Sum,
        3 => Kind::Minimum,
        kind => return Err(Error::invalid(format!("kind {kind}, expected 0 to 3"))),
    };
    let keeps_dims = flag(ints[1], "keepdim")?;
    Ok(Box::new(Reduce { kind, keeps_dims, dims: ints[2..].to_vec() }))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mean,
    Maximum,
    Sum,
    Minimum,
}

struct Reduce {
    kind: Kind,
    keeps_dims: bool,
    dims: Vec<i64>,
}

impl Reduce {
    /// Which dimensions of `rank` go.
    fn goes(&self, rank: usize) -> Result<[bool; super::MAX_RANK]> {
        let mut goes = [false; super::MAX_RANK];
        for &dim in &self.dims {
            let dim = dimension(dim, rank)?;
            if std::mem::replace(&mut goes[dim], true) {
                return Err(Error::invalid(format!("dimension {dim} twice, expected once")));
            }
        }
        Ok(goes)
    }
}

impl Operator for Reduce {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let x = operands[0];
        let goes = self.goes(x.len())?;
        let is_empty = x.iter().zip(goes).any(|(&dim, goes)| goes && dim == 0);
        if is_empty && matches!(self.kind, Kind::Maximum | Kind::Minimum) {
            return Err(Error::invalid(format!(
                "input of shape {x:?}, expected something to take the extreme of"
            )));
        }
        let dims = x.iter().zip(goes).filter_map(|(&dim, goes)| match (goes, self.keeps_dims) {
            (false, _) => Some(dim),
            (true, true) => Some(1),
            (true, false) => None,
        });
        Ok(dims.collect())
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (x, dims) = (operands.numbers(0), operands.dims(0));
        let goes = self.goes(dims.len())?;
        // Runs of dimensions: kept or not, and how many numbers.
        let mut runs = [(false, 1usize); super::MAX_RANK];
        let mut len = 0;
        for (&dim, goes) in dims.iter().zip(goes).filter(|&(&dim, _)| dim != 1) {
            match runs[..len].last_mut() {
                Some(run) if run.0 == goes => run.1 *= dim,
                _ => {
                    runs[len] = (goes, dim);
                    len += 1;
                }
            }
        }
        let runs = &runs[..len];
        let divisor = match self.kind {
            Kind::Mean => x.len() as f64 / out.len() as f64,
            _ => 1.0,
        };
        let threads = context.useful(x.len());
        threads::for_each_chunk(threads, out, 1, |first, out| {
            for (number, y) in (first..).zip(out) {
                *y = self.one(x, runs, number, divisor);
            }
            Ok(())
        })
    }
}

impl Reduce {
    /// The result's number `number`.
    fn one(&self, x: &[f32], runs: &[(bool, usize)], number: usize, divisor: f64) -> f32 {
        // Where its first number is, and the steps over the dimensions that go.
        let (mut at, mut rest, mut step) = (0, number, 1);
        let mut inner = (1, 1);
        let mut outer = [(0usize, 0usize); super::MAX_RANK];
        let mut len = 0;
        for &(goes, size) in runs.iter().rev() {
            if !goes {
                at += rest % size * step;
                rest /= size;
            } else if inner == (1, 1) {
                inner = (size, step);
            } else {
                outer[len] = (size, step);
                len += 1;
            }
            step *= size;
        }
        let outer = &outer[..len];
        let starts = outer.iter().map(|(size, _)| size).product::<usize>();
        let runs = (0..starts).map(|start| {
            let (mut at, mut rest) = (at, start);
            for &(size, step) in outer {
                at += rest % size * step;
                rest /= size;
            }
            at
        });
        let (size, step) = inner;
        let strided = |at: usize| x[at..].iter().step_by(step).take(size);
        match self.kind {
            Kind::Maximum => {
                runs.flat_map(strided).fold(f32::NEG_INFINITY, |most, &x| maximum(x, most))
            }
            Kind::Minimum => {
                -runs.flat_map(strided).fold(f32::NEG_INFINITY, |most, &x| maximum(-x, most))
            }
            Kind::Sum | Kind::Mean => {
                if x.is_empty() {
                    return (0.0 / divisor) as f32;
                }
                let sums = runs.map(|at| match step {
                    1 => sum(&x[at..at + size]),
                    _ => strided(at).map(|&x| f64::from(x)).sum(),
                });
                (sums.sum::<f64>() / divisor) as f32
            }
        }
    }
}
