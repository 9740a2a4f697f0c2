//! Layers with weights: convolutions, transposed ones, linear layers, embeddings.
//!
//! ```text
//!   conv            act(scale · (W ∗ x + bias) + shift)       convolution.rs, planned once a shape
//!   conv_transpose  the same, with zeros between inputs
//!   linear          the same: every row of x is an image of one place; a single one is a vector
//!   embedding       rows of W
//! ```
//!
//! Scale, shift and bias become one scale and one shift, rounded once, which the product applies in
//! registers; so do activations that are bounds. Others follow on what was just stored.
//!
//! Weights are decoded block by block in each run; a network that is resident as "cached" or
//! "dense" decodes them once for each of the last few shapes that it ran, except where most weights
//! are kept and dense rows are faster: those are decoded block by block in each run.

use super::Resident;
use super::activation::Activation;
use super::graph::InputType;
use super::operator::{Context, Dims, Interleaving, Operands, Operator, image, size};
use crate::array::Array;
use crate::convolution::{self, Decoding, Epilogue, Geometry, Sides, Weights};
use crate::error::{Error, Result};
use crate::layout::lend_buffers;
use crate::matrix::CompressedMatrix;
use crate::pool::Pool;
use crate::simd::sell::MAX_VECTORS;
use crate::simd::{self, Finish, Kernels, LANES, Taps};
use std::sync::{Arc, Mutex, OnceLock};

/// The weights of a node: its matrix, and bias, scale and shift where it has them.
pub(super) type Parts = (CompressedMatrix, [Option<Array<f32>>; 3]);

/// Builds the weighted node called `name`.
///
/// # Errors
/// `InvalidArgument` when the numbers do not fit the matrix or each other.
pub(super) fn build(
    name: &str,
    parts: Parts,
    resident: Resident,
    ints: &[i64],
    floats: &[f32],
) -> Result<Box<dyn Operator>> {
    if name == "embedding" {
        return Ok(Box::new(Embedding { matrix: parts.0 }));
    }
    Ok(Box::new(layer(name, parts, resident, ints, floats)?))
}

/// Builds the convolution or linear layer called `name`.
///
/// # Errors
/// As [`build`].
pub(super) fn layer(
    name: &str,
    (matrix, vectors): Parts,
    resident: Resident,
    ints: &[i64],
    floats: &[f32],
) -> Result<Layer> {
    let geometry = match name {
        "conv" => conv_geometry(ints)?,
        "conv_transpose" => transposed_geometry(ints)?,
        _ => Geometry::POINT,
    };
    let form = if name == "linear" { Form::Linear } else { Form::Conv };
    let activation = Activation::new(ints[ints.len() - 1], floats)?;
    let (floor, ceiling, rest) = match activation {
        Activation::Identity => (f32::NEG_INFINITY, f32::INFINITY, None),
        Activation::Relu => (0.0, f32::INFINITY, None),
        Activation::Relu6 => (0.0, 6.0, None),
        Activation::Clamp(low, high) => (low, high, None),
        other => (f32::NEG_INFINITY, f32::INFINITY, Some(other)),
    };
    let (scale, shift) = merged(matrix.shape().nrows, vectors)?;
    Ok(Layer {
        matrix,
        geometry,
        form,
        is_kept: resident != Resident::Compressed,
        scale,
        shift,
        bounds: [floor, ceiling],
        activation: rest,
        plans: Mutex::new(Vec::new()),
    })
}

/// A number a row, or none.
type PerRow = Option<Vec<f32>>;

/// Scale and shift that do what `[bias, scale, shift]` do one after the other.
fn merged(nrows: usize, vectors: [Option<Array<f32>>; 3]) -> Result<(PerRow, PerRow)> {
    for (vector, what) in vectors.iter().zip(["bias", "scale", "shift"]) {
        if let Some(vector) = vector.as_ref().filter(|vector| vector.len() != nrows) {
            return Err(Error::invalid(format!(
                "{what} has {} numbers, expected nrows = {nrows}",
                vector.len()
            )));
        }
    }
    let [bias, scale, shift] = vectors;
    let shift = match (&bias, &shift) {
        (None, None) => None,
        _ => {
            let at = |vector: &Option<Array<f32>>, i: usize, absent: f64| {
                vector.as_ref().map_or(absent, |vector| f64::from(vector.as_slice()[i]))
            };
            let sum = |i| at(&bias, i, 0.0) * at(&scale, i, 1.0) + at(&shift, i, 0.0);
            Some((0..nrows).map(|i| sum(i) as f32).collect())
        }
    };
    Ok((scale.map(|scale| scale.as_slice().to_vec()), shift))
}

fn conv_geometry(ints: &[i64]) -> Result<Geometry> {
    let at = |i: usize| size(ints[i], "convolution");
    Ok(Geometry {
        kernel: [at(0)?, at(1)?],
        stride: [at(2)?, at(3)?],
        padding: [[at(4)?, at(5)?], [at(6)?, at(7)?]],
        dilation: [at(8)?, at(9)?],
        spread: [1, 1],
        groups: at(10)?,
    })
}

/// A transposed convolution as one with zeros between its inputs: stride 1, and as much padding as
/// the kernel reaches, less the padding that the transposed one takes off.
fn transposed_geometry(ints: &[i64]) -> Result<Geometry> {
    let at = |i: usize| size(ints[i], "transposed convolution");
    let pads = |dim: usize| {
        let (kernel, padding, more, dilation) =
            (at(dim)?, at(4 + dim)?, at(6 + dim)?, at(8 + dim)?);
        let reach = kernel.checked_sub(1).and_then(|steps| steps.checked_mul(dilation));
        let before = reach.and_then(|reach| reach.checked_sub(padding));
        let after = before.and_then(|before| before.checked_add(more));
        before.zip(after).map(|(before, after)| [before, after]).ok_or_else(|| {
            Error::invalid(format!(
                "transposed convolution: padding {padding} for kernel {kernel} with dilation \
                 {dilation}, expected at most dilation · (kernel − 1)"
            ))
        })
    };
    Ok(Geometry {
        kernel: [at(0)?, at(1)?],
        stride: [1, 1],
        padding: [pads(0)?, pads(1)?],
        dilation: [at(8)?, at(9)?],
        spread: [at(2)?, at(3)?],
        groups: at(10)?,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Conv,
    Linear,
}

/// A convolution or a linear layer, with what follows it.
pub(super) struct Layer {
    pub(super) matrix: CompressedMatrix,
    pub(super) geometry: Geometry,
    form: Form,
    /// Whether decoded weights are kept from run to run.
    is_kept: bool,
    scale: PerRow,
    shift: PerRow,
    bounds: [f32; 2],
    /// What `finish` cannot say.
    pub(super) activation: Option<Activation>,
    /// For the inputs run last, newest last.
    plans: Mutex<Vec<Arc<Prepared>>>,
}

/// What one shape of input decides.
struct Prepared {
    input: [usize; 4],
    sides: Sides,
    plan: convolution::Plan,
    /// The decoded weights, where they are kept.
    taps: OnceLock<Taps>,
}

/// Shapes that are kept.
const MAX_PLANS: usize = 4;

impl Layer {
    /// The input as images.
    fn input(&self, dims: &[usize]) -> Result<[usize; 4]> {
        match (self.form, dims) {
            (Form::Conv, _) => image(dims),
            (Form::Linear, [rows @ .., width]) if *width == self.matrix.shape().ncols => {
                Ok([rows.iter().product(), *width, 1, 1])
            }
            (Form::Linear, _) => Err(Error::invalid(format!(
                "input of shape {dims:?}, expected [..., {}]",
                self.matrix.shape().ncols
            ))),
        }
    }

    fn plan(
        &self,
        kernels: &'static dyn Kernels,
        input: [usize; 4],
        sides: Sides,
    ) -> Result<convolution::Plan> {
        let decoding = if self.is_kept { Decoding::Once } else { Decoding::EachRun };
        let (matrix, geometry) = (&self.matrix, &self.geometry);
        convolution::Plan::for_sides(kernels, matrix, input, geometry, decoding, sides)
    }

    fn prepared(
        &self,
        kernels: &'static dyn Kernels,
        input: [usize; 4],
        sides: Sides,
    ) -> Result<Arc<Prepared>> {
        let is_for = |known: &&Arc<Prepared>| known.input == input && known.sides == sides;
        if let Ok(plans) = self.plans.try_lock()
            && let Some(known) = plans.iter().rfind(is_for)
        {
            return Ok(known.clone());
        }
        let plan = self.plan(kernels, input, sides)?;
        let prepared = Arc::new(Prepared { input, sides, plan, taps: OnceLock::new() });
        if let Ok(mut plans) = self.plans.try_lock() {
            if plans.len() == MAX_PLANS {
                plans.remove(0);
            }
            plans.push(prepared.clone());
        }
        Ok(prepared)
    }

    pub(super) fn finish(&self) -> Finish<'_> {
        let [floor, ceiling] = self.bounds;
        Finish { scale: self.scale.as_deref(), shift: self.shift.as_deref(), floor, ceiling }
    }
}

impl Operator for Layer {
    fn interleaving(&self, operands: &[&[usize]], _dims: &[usize]) -> Interleaving {
        let may = || {
            let (kernels, input) = (simd::active().ok()?, self.input(operands[0]).ok()?);
            let plan = self.plan(kernels, input, Sides::default()).ok()?;
            Some(plan.may_interleave(kernels, &self.geometry))
        };
        let is_map = self.form == Form::Conv && operands[0].len() == 4;
        match is_map.then(may).flatten() {
            Some(sides) if sides.input => Interleaving::Any(sides.halves),
            _ => Interleaving::Plain,
        }
    }

    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let dims = operands[0];
        let input = self.input(dims)?;
        let plan = self.plan(simd::active()?, input, Sides::default())?;
        let [images, nrows, height, width] = plan.output();
        Ok(match (self.form, dims.len()) {
            (Form::Linear, rank) => {
                let mut dims = dims.to_vec();
                dims[rank - 1] = nrows;
                dims
            }
            (Form::Conv, 3) if height == 1 => vec![images, nrows, width],
            (Form::Conv, 3) => {
                return Err(Error::invalid(format!(
                    "result of {height} rows, expected 1 for an input of three dimensions"
                )));
            }
            (Form::Conv, _) => vec![images, nrows, height, width],
        })
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let kernels = simd::active()?;
        let (x, input) = (operands.numbers(0), self.input(operands.dims(0))?);
        // What rows have in common is multiplied once in these products alone; where decoded weights
        // are kept, a few vectors take less time from those.
        let by_groups =
            self.matrix.layout.grouped().is_some() && !(self.is_kept && input[0] <= LANES);
        let by_slices =
            self.matrix.is_multiplied_in_slices() && !(self.is_kept && input[0] > MAX_VECTORS);
        if self.form == Form::Linear && (input[0] == 1 || by_groups || by_slices) {
            match input[0] {
                1 => self.matrix.matvec_into(kernels, x, context.threads, out)?,
                batch if by_slices => {
                    self.matrix.matmul_into(kernels, x, batch, context.threads, out)?;
                }
                batch => {
                    let y = self.matrix.matmul_on(kernels, x, batch, context.threads)?;
                    out.copy_from_slice(&y);
                }
            }
            let finish = self.finish();
            out.chunks_exact_mut(self.matrix.shape().nrows.max(1)).for_each(|y| finish.apply(y));
            self.activation.iter().for_each(|activation| activation.apply(out));
            return Ok(());
        }
        let sides = Sides {
            input: operands.is_interleaved(0),
            output: operands.gives_interleaved(),
            halves: operands.halves(),
        };
        let prepared = self.prepared(kernels, input, sides)?;
        let weights = if self.is_kept && !prepared.plan.is_dense() {
            if prepared.taps.get().is_none() {
                let taps = prepared.plan.schedule(kernels, &self.matrix)?;
                let _ = prepared.taps.set(taps);
            }
            prepared.taps.get().map_or(Weights::Stored(&self.matrix), Weights::Scheduled)
        } else {
            Weights::Stored(&self.matrix)
        };
        let apply = |y: &mut [f32]| self.activation.iter().for_each(|a| a.apply(y));
        let epilogue = Epilogue {
            finish: self.finish(),
            activation: self.activation.is_some().then_some(&apply as convolution::Activation<'_>),
        };
        prepared.plan.run(kernels, weights, x, out, &epilogue, context.threads)
    }

    fn matrix(&self) -> Option<&CompressedMatrix> {
        Some(&self.matrix)
    }

    fn kept_nbytes(&self) -> usize {
        let Ok(plans) = self.plans.try_lock() else { return 0 };
        plans.iter().filter_map(|prepared| prepared.taps.get()).map(Taps::nbytes).sum()
    }

    fn vector_nbytes(&self) -> usize {
        4 * [&self.scale, &self.shift].into_iter().flatten().map(Vec::len).sum::<usize>()
    }
}

/// Which row stands where in the output of an [`Embedding`].
static WANTED: Pool<Vec<(usize, usize)>> = Pool::new();

/// Rows of a matrix.
struct Embedding {
    matrix: CompressedMatrix,
}

impl Operator for Embedding {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let mut dims = operands[0].to_vec();
        dims.push(self.matrix.shape().ncols);
        Ok(dims)
    }

    fn operand_type(&self) -> InputType {
        InputType::Int64
    }

    /// Rows that are decoded together are decoded once, whatever the order of the ids.
    fn run(
        &self,
        operands: &Operands<'_>,
        _dims: &[usize],
        out: &mut [f32],
        _context: &mut Context<'_>,
    ) -> Result<()> {
        let (nrows, ncols) = (self.matrix.shape().nrows, self.matrix.shape().ncols);
        let ids = operands.ids(0);
        let mut wanted = WANTED.lend();
        wanted.clear();
        let mut buffers = lend_buffers();
        for (place, &id) in ids.iter().enumerate() {
            let row = usize::try_from(id)
                .ok()
                .filter(|&row| row < nrows)
                .ok_or_else(|| Error::invalid(format!("id {id}, expected in [0, {nrows})")))?;
            wanted.push((row, place));
        }
        wanted.sort_unstable();
        out.fill(0.0);
        let (unit, block) = (self.matrix.block_rows(), &mut buffers.block);
        for wanted in wanted.chunk_by(|a, b| a.0 / unit == b.0 / unit) {
            let start = wanted[0].0;
            self.matrix.decode(start..wanted[wanted.len() - 1].0 + 1, block)?;
            for &(row, place) in wanted {
                let (cols, values) = block.row(row - start);
                let out = &mut out[place * ncols..][..ncols];
                for (&col, &value) in cols.iter().zip(values) {
                    out[col as usize] = value;
                }
            }
        }
        Ok(())
    }

    fn matrix(&self) -> Option<&CompressedMatrix> {
        Some(&self.matrix)
    }
}
