//! Normalization: layer and group norm, softmax and its logarithm.
//!
//! ```text
//!   norm:     y = (x − mean) / √(variance + eps) · weight + bias      sums in double precision
//!   softmax:  y = e^(x − max) / Σ e^(x − max)                         over runs, or over columns
//! ```

use super::operator::{Context, Dims, Operands, Operator, dimension, size};
use super::pooling::sum;
use crate::array::Array;
use crate::error::{Error, Result};
use crate::pool::Pool;
use crate::simd::maximum;
use crate::threads;

/// Builds the operator `name` where it is one of these.
pub(super) fn build(
    name: &str,
    ints: &[i64],
    _floats: &[f32],
) -> Option<Result<Box<dyn Operator>>> {
    let is_log = match name {
        "softmax" => false,
        "log_softmax" => true,
        _ => return None,
    };
    Some(Ok(Box::new(Softmax { dim: ints[0], is_log })))
}

/// Builds a layer norm or a group norm.
pub(super) fn build_norm(
    name: &str,
    weight: Option<Array<f32>>,
    bias: Option<Array<f32>>,
    ints: &[i64],
    floats: &[f32],
) -> Result<Box<dyn Operator>> {
    let span = match name {
        "layer_norm" => Span::Trailing(size(ints[0], "trailing dimensions")?),
        _ => Span::Groups(size(ints[0], "groups")?),
    };
    Ok(Box::new(Norm { span, weight, bias, eps: floats[0] }))
}

/// What is normalized together.
#[derive(Clone, Copy, Debug)]
enum Span {
    /// So many dimensions at the end; a weight for each of their numbers.
    Trailing(usize),
    /// The channels of a group; a weight for each channel.
    Groups(usize),
}

struct Norm {
    span: Span,
    weight: Option<Array<f32>>,
    bias: Option<Array<f32>>,
    eps: f32,
}

impl Operator for Norm {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let x = operands[0];
        let expected = match self.span {
            Span::Trailing(dims) => x.len().checked_sub(dims).map(|at| x[at..].iter().product()),
            Span::Groups(groups) => {
                x.get(1).copied().filter(|&channels| channels.is_multiple_of(groups))
            }
        };
        let vectors = [&self.weight, &self.bias].into_iter().flatten();
        let lens: Vec<usize> = vectors.map(Array::len).collect();
        match expected {
            Some(len) if lens.iter().all(|&found| found == len) => Ok(x.to_vec()),
            _ => Err(Error::invalid(format!(
                "input of shape {x:?} over {:?}, expected weights of {lens:?} numbers",
                self.span
            ))),
        }
    }

    fn may_overwrite(&self) -> usize {
        1
    }

    fn vector_nbytes(&self) -> usize {
        [&self.weight, &self.bias].into_iter().flatten().map(|v| v.as_bytes().len()).sum()
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        // Numbers that go together, and how many follow one another under one weight.
        let (len, area, channels) = match self.span {
            Span::Trailing(trailing) => {
                let len = dims[dims.len() - trailing..].iter().product();
                (len, 1, len)
            }
            Span::Groups(groups) => {
                let area = dims[2..].iter().product::<usize>();
                (dims[1] / groups * area, area, dims[1])
            }
        };
        let x = (operands.in_place() != Some(0)).then(|| operands.numbers(0));
        let weight = self.weight.as_ref().map(Array::as_slice);
        let bias = self.bias.as_ref().map(Array::as_slice);
        threads::for_each_chunk(context.useful(out.len() * 4), out, len, |first, out| {
            if let Some(x) = x {
                out.copy_from_slice(&x[first * len..][..out.len()]);
            }
            for (number, y) in (first..).zip(out.chunks_exact_mut(len)) {
                let mean = sum(y) / len as f64;
                let variance = sum_of_squares(y, mean) / len as f64;
                let factor = (1.0 / (variance + f64::from(self.eps)).sqrt()) as f32;
                let mean = mean as f32;
                if area == 1 {
                    let channel = number * len % channels;
                    normalize(y, mean, factor);
                    if let Some(weight) = weight {
                        y.iter_mut().zip(&weight[channel..]).for_each(|(y, w)| *y *= w);
                    }
                    if let Some(bias) = bias {
                        y.iter_mut().zip(&bias[channel..]).for_each(|(y, b)| *y += b);
                    }
                    continue;
                }
                for (i, y) in y.chunks_exact_mut(area).enumerate() {
                    let channel = (number * (len / area) + i) % channels;
                    let weight = weight.map_or(1.0, |weight| weight[channel]);
                    let bias = bias.map_or(0.0, |bias| bias[channel]);
                    normalize(y, mean, factor);
                    y.iter_mut().for_each(|y| *y = *y * weight + bias);
                }
            }
            Ok(())
        })
    }
}

fn normalize(y: &mut [f32], mean: f32, factor: f32) {
    y.iter_mut().for_each(|y| *y = (*y - mean) * factor);
}

/// Σ (x − mean)².
fn sum_of_squares(x: &[f32], mean: f64) -> f64 {
    let square = |x: f32| (f64::from(x) - mean) * (f64::from(x) - mean);
    let mut sums = [0.0f64; 4];
    let chunks = x.chunks_exact(4);
    let rest: f64 = chunks.remainder().iter().map(|&x| square(x)).sum();
    for x in chunks {
        sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += square(x));
    }
    sums.iter().sum::<f64>() + rest
}

struct Softmax {
    dim: i64,
    is_log: bool,
}

impl Operator for Softmax {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        dimension(self.dim, operands[0].len().max(1))?;
        Ok(operands[0].to_vec())
    }

    fn may_overwrite(&self) -> usize {
        1
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let dim = dimension(self.dim, dims.len().max(1))?;
        let len = dims.get(dim).copied().unwrap_or(1);
        let inner = dims.iter().skip(dim + 1).product::<usize>();
        operands.copy_first(out);
        let threads = context.useful(out.len() * 32);
        threads::for_each_chunk(threads, out, len * inner, |_, out| {
            for y in out.chunks_exact_mut(len * inner) {
                match (inner, self.is_log) {
                    (1, false) => softmax(y),
                    (1, true) => log_softmax(y),
                    _ => self.columns(y, inner),
                }
            }
            Ok(())
        })
    }
}

/// One run of numbers, taken out of a tensor.
static COLUMN: Pool<Vec<f32>> = Pool::new();

impl Softmax {
    /// Over the first dimension of `y` `[len, inner]`.
    fn columns(&self, y: &mut [f32], inner: usize) {
        let mut run = COLUMN.lend();
        for col in 0..inner {
            run.clear();
            run.extend(y.iter().skip(col).step_by(inner));
            match self.is_log {
                false => softmax(&mut run),
                true => log_softmax(&mut run),
            }
            for (y, &value) in y.iter_mut().skip(col).step_by(inner).zip(run.iter()) {
                *y = value;
            }
        }
    }
}

/// Replaces `y` by its softmax; NaN where all are −∞ or one is NaN or +∞.
pub(super) fn softmax(y: &mut [f32]) {
    let most = y.iter().fold(f32::NEG_INFINITY, |most, &x| maximum(x, most));
    y.iter_mut().for_each(|y| *y = (*y - most).exp());
    let factor = (1.0 / sum(y)) as f32;
    y.iter_mut().for_each(|y| *y *= factor);
}

fn log_softmax(y: &mut [f32]) {
    let most = y.iter().fold(f32::NEG_INFINITY, |most, &x| maximum(x, most));
    let total: f64 = y.iter().map(|&x| f64::from((x - most).exp())).sum();
    let log = total.ln() as f32;
    y.iter_mut().for_each(|y| *y = *y - most - log);
}
