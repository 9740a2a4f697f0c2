//! A convolution of what an embedding gives, from products made when the network was loaded.
//!
//! ```text
//!   products[t][v][o] = Σ W[o][c][t] · E[v][c] over channels c                          once
//!   y[o][p]           = finish(Σ products[t][ids[p · stride + t · dilation − before]][o] over taps t)
//! ```
//!
//! A text of few letters, read by kernels some letters wide: an output is as many additions as its
//! kernel has letters, where it was a product for each of their numbers, and what the embedding gives
//! is never written. Only where there are no more products than weights, and in networks that keep
//! decoded weights; one that is resident as "compressed" multiplies both matrices as they are.
//!
//! Products are summed in float64 and rounded once. Pruned weights are left out, whatever they meet.

use super::graph::{Graph, InputType, Node};
use super::operator::{Context, Dims, Operands, Operator, at_least};
use super::weighted::Layer;
use crate::error::{Error, Result};
use crate::interruption;
use crate::matrix::CompressedMatrix;
use crate::rows::{RowBlock, filled};
use crate::threads;

/// A convolution, and an embedding before it.
pub(super) struct Letters {
    layer: Layer,
    /// Rows of the embedding.
    letters: usize,
    /// `[taps][letters][nrows]`.
    products: Vec<f32>,
}

/// Positions that are written together: a cache line of each row of outputs.
const POSITIONS: usize = 16;

/// How often each value of `graph` is taken, by nodes or as an output.
pub(super) fn readers(graph: &Graph) -> Vec<usize> {
    let mut readers = vec![0; graph.inputs().len() + graph.nodes().len()];
    let taken = graph.nodes().iter().flat_map(|node| &node.inputs).chain(graph.outputs());
    taken.for_each(|&value| readers[value] += 1);
    readers
}

/// The embedding and the permutation whose only reader is node `number`, a convolution of rows of
/// letters; none where something else is there.
pub(super) fn before(graph: &Graph, readers: &[usize], number: usize) -> Option<[usize; 2]> {
    let (nodes, ninputs) = (graph.nodes(), graph.inputs().len());
    let maker = |node: &Node| node.inputs.first()?.checked_sub(ninputs);
    let is = |node: usize, name: &str| nodes[node].operator.name == name;
    let permute = maker(&nodes[number])?;
    let embedding = maker(&nodes[permute])?;
    let fits = is(number, "conv")
        && is(permute, "permute")
        && nodes[permute].ints == [0, 2, 1]
        && is(embedding, "embedding")
        && [permute, embedding].iter().all(|&node| readers[ninputs + node] == 1);
    fits.then_some([embedding, permute])
}

impl Letters {
    /// Multiplies the kernels of `layer` by the rows of `embedding`; none where that does not pay, or
    /// sizes do not fit.
    ///
    /// # Errors
    /// As [`CompressedMatrix::decode`]; `LimitExceeded`.
    pub fn new(layer: Layer, embedding: &CompressedMatrix) -> Result<Option<Self>> {
        let geometry = &layer.geometry;
        let (letters, channels) = (embedding.shape().nrows, embedding.shape().ncols);
        let (nrows, ncols) = (layer.matrix.shape().nrows, layer.matrix.shape().ncols);
        let taps = geometry.kernel[1];
        let is_line = geometry.kernel[0] == 1 && geometry.padding[0] == [0, 0];
        let fits = is_line && geometry.groups == 1 && channels.checked_mul(taps) == Some(ncols);
        let count = taps.checked_mul(letters).and_then(|n| n.checked_mul(nrows));
        let most = ncols.saturating_mul(nrows).saturating_add(letters.saturating_mul(channels));
        let Some(count) = count.filter(|&count| fits && count > 0 && count <= most) else {
            return Ok(None);
        };
        let (mut rows, mut kernels) = (RowBlock::default(), RowBlock::default());
        embedding.decode(0..letters, &mut rows)?;
        layer.matrix.decode(0..nrows, &mut kernels)?;
        // Channel by channel what each letter has there, zeros too: a kept weight meets them all.
        let mut by_channel = filled(0.0f32, channels, letters)?;
        for letter in 0..letters {
            let (cols, values) = rows.row(letter);
            for (&col, &value) in cols.iter().zip(values) {
                by_channel[col as usize * letters + letter] = value;
            }
        }
        let mut products = filled(0.0f32, count, 1)?;
        let mut sums = vec![0.0f64; taps * letters];
        for row in 0..nrows {
            interruption::check()?;
            sums.fill(0.0);
            let (cols, values) = kernels.row(row);
            for (&col, &weight) in cols.iter().zip(values) {
                let (channel, tap) = (col as usize / taps, col as usize % taps);
                let found = &by_channel[channel * letters..][..letters];
                let sums = &mut sums[tap * letters..][..letters];
                for (sum, &number) in sums.iter_mut().zip(found) {
                    *sum += f64::from(weight) * f64::from(number);
                }
            }
            let products = products.iter_mut().skip(row).step_by(nrows);
            products.zip(&sums).for_each(|(product, &sum)| *product = sum as f32);
        }
        Ok(Some(Self { layer, letters, products }))
    }

    /// Sums the outputs from position `first` on, all rows of a position after the other.
    fn sum(&self, ids: &[i64], first: usize, sums: &mut [f32]) {
        let geometry = &self.layer.geometry;
        let nrows = self.layer.matrix.shape().nrows;
        let [stride, dilation, before] =
            [geometry.stride[1], geometry.dilation[1], geometry.padding[1][0]];
        for (position, sums) in (first..).zip(sums.chunks_exact_mut(nrows)) {
            sums.fill(0.0);
            for tap in 0..geometry.kernel[1] {
                let place = (position * stride + tap * dilation).checked_sub(before);
                let Some(&id) = place.and_then(|place| ids.get(place)) else { continue };
                let products =
                    &self.products[(tap * self.letters + id as usize) * nrows..][..nrows];
                sums.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
            }
            self.layer.finish().apply(sums);
        }
    }
}

impl Operator for Letters {
    fn shape(&self, operands: &[&[usize]], batch: usize) -> Result<Dims> {
        let &[texts, len] = operands[0] else {
            return Err(Error::invalid(format!(
                "letters of shape {:?}, expected [texts, letters]",
                operands[0]
            )));
        };
        let channels = self.layer.matrix.shape().ncols / self.layer.geometry.kernel[1];
        self.layer.shape(&[&[texts, channels, len]], batch)
    }

    fn operand_type(&self) -> InputType {
        InputType::Int64
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (ids, len) = (operands.ids(0), operands.dims(0)[1]);
        let is_there = |&id: &i64| usize::try_from(id).is_ok_and(|id| id < self.letters);
        if let Some(id) = ids.iter().find(|id| !is_there(id)) {
            return Err(Error::invalid(format!("id {id}, expected in [0, {})", self.letters)));
        }
        let (nrows, positions) = (dims[1], dims[2]);
        let threads = context.useful(out.len().saturating_mul(self.layer.geometry.kernel[1]));
        let (unit, each) = (nrows * positions, POSITIONS * nrows);
        let scratch = at_least(context.scratch, each.saturating_mul(threads))?;
        threads::for_each_chunk_with(threads, out, unit, scratch, each, |first, out, sums| {
            for (text, out) in (first..).zip(out.chunks_exact_mut(unit)) {
                let ids = &ids[text * len..][..len];
                for start in (0..positions).step_by(POSITIONS) {
                    let count = POSITIONS.min(positions - start);
                    let sums = &mut sums[..count * nrows];
                    self.sum(ids, start, sums);
                    for (row, out) in out.chunks_exact_mut(positions).enumerate() {
                        let sums = sums.iter().skip(row).step_by(nrows);
                        out[start..start + count].iter_mut().zip(sums).for_each(|(y, &s)| *y = s);
                    }
                }
            }
            self.layer.activation.iter().for_each(|activation| activation.apply(out));
            Ok(())
        })
    }

    fn matrix(&self) -> Option<&CompressedMatrix> {
        Some(&self.layer.matrix)
    }

    fn kept_nbytes(&self) -> usize {
        4 * self.products.len()
    }

    fn vector_nbytes(&self) -> usize {
        self.layer.vector_nbytes()
    }
}
