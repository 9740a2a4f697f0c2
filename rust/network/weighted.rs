//! Weighted layers: convolutions, their transposes, linear layers and embeddings, run from the
//! compressed matrix, with what follows each sum in one place.
//!
//! ```text
//!   y = act(scale · (W ∗ x + bias) + shift)  =  act(factor · (W ∗ x) + term)
//! ```
//!
//! A transposed convolution is the convolution of a map with zeros in it: input i is put at
//! i · stride + dilation · (kernel − 1) − padding, and a forward kernel runs over that by ones.

use super::activation::Activation;
use super::graph::InputType;
use super::operator::{Context, Dims, Operands, Operator, at_least, image, image_dims, size};
use crate::array::Array;
use crate::convolution::Geometry;
use crate::error::{Error, Result};
use crate::matrix::CompressedMatrix;
use crate::threads;

/// Builds a weighted node; `vectors` are its bias, scale and shift.
pub(super) fn build(
    name: &str,
    matrix: CompressedMatrix,
    vectors: [Option<Array<f32>>; 3],
    ints: &[i64],
    floats: &[f32],
) -> Result<Box<dyn Operator>> {
    if name == "embedding" {
        return Ok(Box::new(Embedding(matrix)));
    }
    let epilogue = Epilogue::new(matrix.shape().nrows, vectors, ints[ints.len() - 1], floats)?;
    let kind = match name {
        "conv" => Kind::Conv(geometry(ints, [[4, 5], [6, 7]], [8, 9, 10])?),
        "conv_transpose" => {
            let geometry = geometry(ints, [[4, 4], [5, 5]], [8, 9, 10])?;
            let extra = [size(ints[6], "output padding")?, size(ints[7], "output padding")?];
            Kind::ConvTranspose(geometry, extra)
        }
        _ => Kind::Linear,
    };
    Ok(Box::new(Layer { matrix, kind, epilogue }))
}

/// Sizes of a kernel, its steps and padding, at most.
const MAX_SIZE: usize = 1 << 30;

fn geometry(ints: &[i64], padding: [[usize; 2]; 2], rest: [usize; 3]) -> Result<Geometry> {
    let at = |i: usize| {
        let int = size(ints[i], "kernel, stride, padding, dilation or groups")?;
        match int <= MAX_SIZE {
            true => Ok(int),
            false => Err(Error::invalid(format!("a size of {int}, expected at most {MAX_SIZE}"))),
        }
    };
    let pair = |[i, j]: [usize; 2]| Ok::<_, Error>([at(i)?, at(j)?]);
    let geometry = Geometry {
        kernel: pair([0, 1])?,
        stride: pair([2, 3])?,
        padding: [pair(padding[0])?, pair(padding[1])?],
        dilation: pair([rest[0], rest[1]])?,
        groups: at(rest[2])?,
    };
    let steps = [geometry.kernel, geometry.stride, geometry.dilation];
    if steps.as_flattened().contains(&0) || geometry.groups == 0 {
        return Err(Error::invalid(format!("{geometry:?}, expected sizes of at least 1")));
    }
    Ok(geometry)
}

/// What follows the sums: a factor and a term for each row of the matrix, and an activation.
struct Epilogue {
    factor: Option<Vec<f32>>,
    term: Option<Vec<f32>>,
    activation: Activation,
}

impl Epilogue {
    fn new(
        nrows: usize,
        [bias, scale, shift]: [Option<Array<f32>>; 3],
        act: i64,
        floats: &[f32],
    ) -> Result<Self> {
        for vector in [&bias, &scale, &shift].into_iter().flatten() {
            if vector.len() != nrows {
                return Err(Error::invalid(format!(
                    "a bias, scale or shift of {} numbers, expected nrows = {nrows}",
                    vector.len()
                )));
            }
        }
        let at = |vector: &Option<Array<f32>>, i: usize| {
            vector.as_ref().map(|vector| f64::from(vector.as_slice()[i]))
        };
        let term = |i: usize| {
            let bias = at(&bias, i).unwrap_or(0.0) * at(&scale, i).unwrap_or(1.0);
            (bias + at(&shift, i).unwrap_or(0.0)) as f32
        };
        let has_term = bias.is_some() || shift.is_some();
        Ok(Self {
            term: has_term.then(|| (0..nrows).map(term).collect()),
            factor: scale.map(|scale| scale.as_slice().to_vec()),
            activation: Activation::new(act, floats)?,
        })
    }

    fn nbytes(&self) -> usize {
        [&self.factor, &self.term].into_iter().flatten().map(|vector| vector.len() * 4).sum()
    }

    /// Finishes sums `[..., rows of the matrix, area]`.
    fn finish(&self, nrows: usize, area: usize, y: &mut [f32], threads: usize) -> Result<()> {
        let threads = threads.min((y.len() * (1 + self.activation.cost())) >> 16).max(1);
        let (factor, term) = (self.factor.as_deref(), self.term.as_deref());
        threads::for_each_chunk(threads, y, nrows * area, |_, y| {
            if factor.is_none() && term.is_none() {
                self.activation.apply(y);
                return Ok(());
            }
            for y in y.chunks_exact_mut(nrows * area) {
                if area == 1 {
                    if let Some(factor) = factor {
                        y.iter_mut().zip(factor).for_each(|(y, factor)| *y *= factor);
                    }
                    if let Some(term) = term {
                        y.iter_mut().zip(term).for_each(|(y, term)| *y += term);
                    }
                } else {
                    for (row, y) in y.chunks_exact_mut(area).enumerate() {
                        let factor = factor.map_or(1.0, |factor| factor[row]);
                        let term = term.map_or(0.0, |term| term[row]);
                        y.iter_mut().for_each(|y| *y = *y * factor + term);
                    }
                }
                self.activation.apply(y);
            }
            Ok(())
        })
    }
}

/// How a layer's matrix meets its input.
enum Kind {
    Linear,
    Conv(Geometry),
    /// With what is added to the output's height and width.
    ConvTranspose(Geometry, [usize; 2]),
}

/// A matrix, how it meets its input, and what follows.
struct Layer {
    matrix: CompressedMatrix,
    kind: Kind,
    epilogue: Epilogue,
}

/// The outputs along one dimension of a convolution.
fn outputs(geometry: &Geometry, dim: usize, input: usize) -> Option<usize> {
    let [before, after] = geometry.padding[dim];
    let span = (geometry.kernel[dim] - 1).checked_mul(geometry.dilation[dim])? + 1;
    let room = input.checked_add(before)?.checked_add(after)?.checked_sub(span)?;
    Some(room / geometry.stride[dim] + 1)
}

/// Along one dimension of a transposed convolution: the outputs, and the places before them that a
/// kernel reaches back.
fn transposed(geometry: &Geometry, extra: usize, dim: usize, input: usize) -> Option<[usize; 2]> {
    let reach = (geometry.kernel[dim] - 1).checked_mul(geometry.dilation[dim])?;
    let whole = input.checked_sub(1)?.checked_mul(geometry.stride[dim])?;
    let whole = whole.checked_add(reach)?.checked_add(extra)?.checked_add(1)?;
    let outputs = whole.checked_sub(geometry.padding[dim].iter().sum())?;
    (outputs > 0).then_some([outputs, reach])
}

impl Layer {
    /// The dimensions of the result for an input of `dims`.
    fn shape(&self, dims: &[usize]) -> Result<Dims> {
        let (nrows, ncols) = (self.matrix.shape().nrows, self.matrix.shape().ncols);
        let geometry = match &self.kind {
            Kind::Linear => {
                let Some((&width, outer)) = dims.split_last() else {
                    return Err(Error::invalid("input of no dimensions, expected [..., in]"));
                };
                if width != ncols {
                    return Err(Error::invalid(format!(
                        "input of shape {dims:?}, expected [..., {ncols}]"
                    )));
                }
                return Ok([outer, &[nrows]].concat());
            }
            Kind::Conv(geometry) | Kind::ConvTranspose(geometry, _) => geometry,
        };
        let [images, channels, height, width] = image(dims)?;
        let groups = geometry.groups;
        let taps = geometry.kernel[0].checked_mul(geometry.kernel[1]);
        let is_grouped = channels.is_multiple_of(groups) && nrows.is_multiple_of(groups);
        if !is_grouped || taps.and_then(|t| t.checked_mul(channels / groups)) != Some(ncols) {
            return Err(Error::invalid(format!(
                "input of shape {dims:?} in {groups} groups under a kernel of {:?}, expected the \
                 channels of a matrix [{nrows}, {ncols}]",
                geometry.kernel
            )));
        }
        let along = |dim: usize, input: usize| match &self.kind {
            Kind::ConvTranspose(geometry, extra) => {
                transposed(geometry, extra[dim], dim, input).map(|[outputs, _]| outputs)
            }
            _ => outputs(geometry, dim, input),
        };
        let (Some(rows), Some(cols)) = (along(0, height), along(1, width)) else {
            return Err(Error::invalid(format!(
                "input of shape {dims:?} under {geometry:?}, expected room for the kernel"
            )));
        };
        if dims.len() == 3 && rows != 1 {
            return Err(Error::invalid(format!(
                "input of shape {dims:?} under {geometry:?}, expected a result of height 1"
            )));
        }
        Ok(image_dims(dims.len(), [images, nrows, rows, cols]))
    }

    /// Runs on `x` of dimensions `dims` into `out`, whose length is that of the result.
    fn run(
        &self,
        x: &[f32],
        dims: &[usize],
        out: &mut [f32],
        threads: usize,
        scratch: &mut Vec<f32>,
    ) -> Result<()> {
        let nrows = self.matrix.shape().nrows;
        let area = match &self.kind {
            Kind::Linear => {
                let batch = dims[..dims.len() - 1].iter().product();
                out.copy_from_slice(&self.matrix.matmul(x, batch, threads)?);
                1
            }
            Kind::Conv(geometry) => {
                let (y, shape) = self.matrix.conv(x, image(dims)?, geometry, None, threads)?;
                out.copy_from_slice(&y);
                shape[2] * shape[3]
            }
            Kind::ConvTranspose(geometry, extra) => {
                let (stretched, shape) = stretch(x, image(dims)?, geometry, *extra, scratch)?;
                let forward = Geometry { stride: [1, 1], padding: [[0, 0]; 2], ..*geometry };
                let (y, shape) = self.matrix.conv(stretched, shape, &forward, None, threads)?;
                out.copy_from_slice(&y);
                shape[2] * shape[3]
            }
        };
        self.epilogue.finish(nrows, area, out, threads)
    }
}

/// `x` with zeros between, before and after its numbers, as a transposed convolution reads it.
fn stretch<'a>(
    x: &[f32],
    [images, channels, height, width]: [usize; 4],
    geometry: &Geometry,
    extra: [usize; 2],
    scratch: &'a mut Vec<f32>,
) -> Result<(&'a [f32], [usize; 4])> {
    let axis = |dim: usize, input: usize| {
        let [outputs, reach] = transposed(geometry, extra[dim], dim, input)?;
        outputs.checked_add(reach).map(|stretched| (stretched, reach))
    };
    let len = |a: usize, b: usize| {
        let len = a.checked_mul(b)?.checked_mul(images.checked_mul(channels)?)?;
        (len <= u32::MAX as usize).then_some(len)
    };
    let axes = axis(0, height).zip(axis(1, width));
    let sized = axes.and_then(|(rows, cols)| Some((rows, cols, len(rows.0, cols.0)?)));
    let Some(((rows, row_reach), (cols, col_reach), len)) = sized else {
        return Err(Error::invalid(format!(
            "input {height} x {width} under {geometry:?}, expected under 2^32 numbers with zeros"
        )));
    };
    let stretched = at_least(scratch, len)?;
    stretched.fill(0.0);
    let place = |i: usize, dim: usize, reach: usize, size: usize| {
        let at = (i * geometry.stride[dim] + reach).checked_sub(geometry.padding[dim][0])?;
        (at < size).then_some(at)
    };
    let planes = x.chunks_exact((height * width).max(1));
    for (x, y) in planes.zip(stretched.chunks_exact_mut((rows * cols).max(1))) {
        for (i, x) in x.chunks_exact(width).enumerate() {
            let Some(row) = place(i, 0, row_reach, rows) else { continue };
            let y = &mut y[row * cols..][..cols];
            for (j, &x) in x.iter().enumerate() {
                if let Some(col) = place(j, 1, col_reach, cols) {
                    y[col] = x;
                }
            }
        }
    }
    Ok((stretched, [images, channels, rows, cols]))
}

impl Operator for Layer {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        self.shape(operands[0])
    }

    fn matrix(&self) -> Option<&CompressedMatrix> {
        Some(&self.matrix)
    }

    fn vector_nbytes(&self) -> usize {
        self.epilogue.nbytes()
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (x, dims) = (operands.numbers(0), operands.dims(0));
        self.run(x, dims, out, context.threads, context.scratch)
    }
}

/// Rows of a matrix, by number.
struct Embedding(CompressedMatrix);

impl Operator for Embedding {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        Ok([operands[0], &[self.0.shape().ncols]].concat())
    }

    fn operand_type(&self) -> InputType {
        InputType::Int64
    }

    fn matrix(&self) -> Option<&CompressedMatrix> {
        Some(&self.0)
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (ids, shape) = (operands.ids(0), self.0.shape());
        let threads = context.useful(out.len());
        threads::for_each_chunk(threads, out, shape.ncols, |first, out| {
            for (id, out) in ids[first..].iter().zip(out.chunks_exact_mut(shape.ncols)) {
                let row = usize::try_from(*id).ok().filter(|&row| row < shape.nrows);
                let row = row.ok_or_else(|| {
                    Error::invalid(format!("id {id}, expected in [0, {})", shape.nrows))
                })?;
                out.copy_from_slice(&self.0.rows(&[row])?);
            }
            Ok(())
        })
    }
}
