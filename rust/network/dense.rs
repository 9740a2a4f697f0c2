//! Products of values with each other: matrix products by NumPy's rules, and attention.
//!
//! ```text
//!   attention, for each head and each 64 rows of q:
//!     scores = scale · q · kᵀ + mask      columns after the row are left out where it is causal
//!     out    = softmax(scores) · v        zero where every score of a row is −∞
//! ```
//!
//! Work is cut into whole heads or blocks of a fixed number of rows, so that any number of threads
//! gives the same bits.

use super::activation::Activation;
use super::elementwise::{broadcast, broadcast_steps};
use super::normalization::softmax;
use super::operator::{Context, Dims, Operands, Operator, at_least, flag};
use crate::error::{Error, Result};
use crate::simd::dense::{Strided, multiply};
use crate::threads;

/// Builds the operator `name` where it is one of these.
pub(super) fn build(name: &str, ints: &[i64], floats: &[f32]) -> Option<Result<Box<dyn Operator>>> {
    let built = match name {
        "matmul" => Activation::new(ints[0], floats).map(|act| Box::new(Matmul(act)) as _),
        "attention" => build_attention(ints, floats[0]),
        _ => return None,
    };
    Some(built)
}

fn build_attention(ints: &[i64], scale: f32) -> Result<Box<dyn Operator>> {
    let is_causal = flag(ints[0], "is_causal")?;
    let groups_heads = flag(ints[1], "enable_gqa")?;
    Ok(Box::new(Attention { is_causal, groups_heads, scale }))
}

/// y = act(a · b).
struct Matmul(Activation);

/// Rows of a product that one thread computes at a time.
const BLOCK_ROWS: usize = 128;

/// The sizes of a product.
struct Sizes {
    rows: usize,
    inner: usize,
    cols: usize,
}

/// The sizes of a · b, and the dimensions before the last two of each.
fn sizes<'a>(a: &'a [usize], b: &'a [usize]) -> Result<(Sizes, &'a [usize], &'a [usize])> {
    let (a_outer, rows, inner) = match *a {
        [inner] => (&a[..0], 1, inner),
        [ref outer @ .., rows, inner] => (outer, rows, inner),
        [] => return Err(mismatch(a, b)),
    };
    let (b_outer, b_inner, cols) = match *b {
        [inner] => (&b[..0], inner, 1),
        [ref outer @ .., inner, cols] => (outer, inner, cols),
        [] => return Err(mismatch(a, b)),
    };
    if inner != b_inner {
        return Err(mismatch(a, b));
    }
    Ok((Sizes { rows, inner, cols }, a_outer, b_outer))
}

fn mismatch(a: &[usize], b: &[usize]) -> Error {
    Error::invalid(format!(
        "operands of shapes {a:?} and {b:?}, expected [..., m, k] and [..., k, n]"
    ))
}

impl Operator for Matmul {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let (a, b) = (operands[0], operands[1]);
        let (sizes, a_outer, b_outer) = sizes(a, b)?;
        let mut dims = broadcast(a_outer, b_outer)?;
        if a.len() > 1 {
            dims.push(sizes.rows);
        }
        if b.len() > 1 {
            dims.push(sizes.cols);
        }
        Ok(dims)
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (a, b) = (operands.numbers(0), operands.numbers(1));
        let (a_dims, b_dims) = (operands.dims(0), operands.dims(1));
        let (Sizes { rows, inner, cols }, a_outer, b_outer) = sizes(a_dims, b_dims)?;
        let work = out.len().saturating_mul(inner + self.0.cost());
        let threads = context.useful(work);
        if b_outer.iter().all(|&dim| dim == 1) {
            // All rows of a meet the same b.
            return threads::for_each_chunk(threads, out, BLOCK_ROWS * cols, |first, out| {
                let first = first * BLOCK_ROWS;
                for (block, out) in out.chunks_mut(BLOCK_ROWS * cols).enumerate() {
                    let nrows = out.len() / cols;
                    let a = &a[(first + block * BLOCK_ROWS) * inner..][..nrows * inner];
                    let (a, b) = (Strided::new(a, nrows, inner), Strided::new(b, inner, cols));
                    multiply(a, b, 1.0, out);
                }
                self.0.apply(out);
                Ok(())
            });
        }
        let own = usize::from(a_dims.len() > 1) + usize::from(b_dims.len() > 1);
        let outer = &dims[..dims.len() - own];
        let a_steps = broadcast_steps(a_outer, outer);
        let b_steps = broadcast_steps(b_outer, outer);
        threads::for_each_chunk(threads, out, rows * cols, |first, out| {
            for (number, out) in (first..).zip(out.chunks_exact_mut(rows * cols)) {
                let (mut at, mut rest) = ([0, 0], number);
                for (i, &dim) in outer.iter().enumerate().rev() {
                    at[0] += rest % dim * a_steps[i];
                    at[1] += rest % dim * b_steps[i];
                    rest /= dim;
                }
                let a = Strided::new(&a[at[0] * rows * inner..], rows, inner);
                let b = Strided::new(&b[at[1] * inner * cols..], inner, cols);
                multiply(a, b, 1.0, out);
            }
            self.0.apply(out);
            Ok(())
        })
    }
}

struct Attention {
    is_causal: bool,
    /// Several heads of q may share one of k and v.
    groups_heads: bool,
    scale: f32,
}

/// Rows of q whose scores are held at a time.
const SCORE_ROWS: usize = 64;

impl Attention {
    /// `dims` without the last two, its heads as many as q's where they are shared.
    fn outer(&self, dims: &[usize], q: &[usize]) -> Result<Dims> {
        let Some(rank) = dims.len().checked_sub(2) else {
            return Err(Error::invalid(format!("operand of shape {dims:?}, expected [..., L, E]")));
        };
        let mut outer = dims[..rank].to_vec();
        let heads = q.len().checked_sub(3).map(|at| q[at]);
        if let (true, Some(mine), Some(heads)) = (self.groups_heads, outer.last_mut(), heads) {
            if *mine == 0 || !heads.is_multiple_of(*mine) {
                return Err(Error::invalid(format!("{mine} heads, expected a divisor of {heads}")));
            }
            *mine = heads;
        }
        Ok(outer)
    }
}

/// The number of the matrix, among those of an operand of dimensions `dims`, that goes with number
/// `number` among those of `outer`.
fn matrix_number(number: usize, outer: &[usize], dims: &[usize]) -> usize {
    let own = &dims[..dims.len() - 2];
    let (mut at, mut rest, mut step) = (0, number, 1);
    for (i, &dim) in outer.iter().enumerate().rev() {
        let index = rest % dim;
        rest /= dim;
        if let Some(i) = (i + own.len()).checked_sub(outer.len()) {
            // All of them, the only one, or one for several heads.
            at += index * own[i] / dim * step;
            step *= own[i];
        }
    }
    at
}

impl Operator for Attention {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let (q, k, v) = (operands[0], operands[1], operands[2]);
        let outer = broadcast(&self.outer(k, q)?, &self.outer(v, q)?)?;
        let q_outer = self.outer(q, q)?;
        let mut dims = broadcast(&q_outer, &outer)?;
        let last = |dims: &[usize]| (dims[dims.len() - 2], dims[dims.len() - 1]);
        let ((rows, width), (keys, k_width), (values, v_width)) = (last(q), last(k), last(v));
        if width != k_width || keys != values {
            return Err(Error::invalid(format!(
                "operands of shapes {q:?}, {k:?} and {v:?}, expected [..., L, E], [..., S, E] and \
                 [..., S, F]"
            )));
        }
        if let Some(mask) = operands.get(3) {
            let mut scores = dims.clone();
            scores.extend([rows, keys]);
            if broadcast(mask, &scores).ok().as_ref() != Some(&scores) {
                return Err(Error::invalid(format!(
                    "mask of shape {mask:?}, expected one that broadcasts to {scores:?}"
                )));
            }
        }
        dims.extend([rows, v_width]);
        Ok(dims)
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (q, k, v) = (operands.numbers(0), operands.numbers(1), operands.numbers(2));
        let (q_dims, k_dims, v_dims) = (operands.dims(0), operands.dims(1), operands.dims(2));
        let (outer, [rows, out_width]) = match dims {
            [outer @ .., rows, width] => (outer, [*rows, *width]),
            _ => (dims, [0, 0]),
        };
        let (width, keys) = (q_dims[q_dims.len() - 1], k_dims[k_dims.len() - 2]);
        let scale = match self.scale {
            0.0 => (1.0 / (width as f64).sqrt()) as f32,
            scale => scale,
        };
        let mask = (operands.len() > 3).then(|| (operands.numbers(3), operands.dims(3)));
        let mask = mask.map(|(mask, from)| {
            let mut scores = outer.to_vec();
            scores.extend([rows, keys]);
            (mask, broadcast_steps(from, &scores))
        });
        let work = out.len().saturating_mul(2 * keys);
        let threads = context.useful(work);
        let each = SCORE_ROWS.min(rows) * keys;
        let scratch = at_least(context.scratch, each.saturating_mul(threads))?;
        let unit = rows * out_width;
        threads::for_each_chunk_with(threads, out, unit, scratch, each, |first, out, scratch| {
            for (number, out) in (first..).zip(out.chunks_exact_mut(unit)) {
                let part = |x: &'_ [f32], dims: &[usize], len: usize| {
                    let start = matrix_number(number, outer, dims) * len;
                    start..(start + len).min(x.len())
                };
                let q = &q[part(q, q_dims, rows * width)];
                let k = &k[part(k, k_dims, keys * width)];
                let v = &v[part(v, v_dims, keys * out_width)];
                for (block, out) in out.chunks_mut(SCORE_ROWS * out_width).enumerate() {
                    let (start, nrows) = (block * SCORE_ROWS, out.len() / out_width);
                    let seen = if self.is_causal { keys.min(start + nrows) } else { keys };
                    let scores = &mut scratch[..nrows * seen];
                    let q = Strided::new(&q[start * width..], nrows, width);
                    multiply(q, Strided::new(k, seen, width).transposed(), scale, scores);
                    for (row, scores) in (start..).zip(scores.chunks_exact_mut(seen.max(1))) {
                        if self.is_causal && row + 1 < seen {
                            scores[row + 1..].fill(f32::NEG_INFINITY);
                        }
                        if let Some((mask, steps)) = &mask {
                            add_mask(mask, steps, outer, [number, row], scores);
                        }
                        match scores.iter().all(|&score| score == f32::NEG_INFINITY) {
                            true => scores.fill(0.0),
                            false => softmax(scores),
                        }
                    }
                    let scores = Strided::new(scores, nrows, seen);
                    multiply(scores, Strided::new(v, seen, out_width), 1.0, out);
                }
            }
            Ok(())
        })
    }
}

/// Adds row `row` of the mask for head `number` to `scores`.
fn add_mask(
    mask: &[f32],
    steps: &[usize],
    outer: &[usize],
    [number, row]: [usize; 2],
    scores: &mut [f32],
) {
    let (mut at, mut rest) = (row * steps[outer.len()], number);
    for (&dim, &step) in outer.iter().zip(steps).rev() {
        at += rest % dim * step;
        rest /= dim;
    }
    match steps[outer.len() + 1] {
        0 => scores.iter_mut().for_each(|score| *score += mask[at]),
        _ => scores.iter_mut().zip(&mask[at..]).for_each(|(score, mask)| *score += mask),
    }
}
