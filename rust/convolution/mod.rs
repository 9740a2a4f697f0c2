//! Convolutions, and linear layers as convolutions of one place, straight from compressed kernels.
//!
//! The input is unfolded (`unfolding.rs`) so that a kept weight is one broadcast and a run of
//! multiply–adds at an offset:
//!
//! ```text
//!   for each block of rows (output channels):    decode once, columns become offsets, cut into
//!     for each group of images:                  strips of input channels ([`Taps`])
//!       unfold
//!       for each tile of outputs:                64 to 128 of them, in registers
//!         for each strip:                        its part of the unfolded input stays in L1
//!           for each row: sums[row][..] += Σ value · unfolded[offset + tile]
//!         finish (scale, shift, activation) and store
//! ```
//!
//! Between layers of a network numbers of a batch may lie interleaved, eight images side by side, which
//! spares copies and every load that straddles cache lines (`interleaved.rs`). Other maps whose rows do
//! not fill cache lines are cut into columns that do (`columns.rs`).
//!
//! Where most weights are kept, blocks are decoded into dense rows instead, a MiB or 64 rows at a
//! time, and several rows share the loads of their inputs (`density.rs`, `simd/dense_rows.rs`). A
//! pruned weight is multiplied there, so inputs that are not all finite go the other way. Where 3 × 3
//! kernels meet enough outputs they are transformed first, which saves more than half of the
//! multiply–adds (`winograd.rs`).
//!
//! Where one copy of the input serves all tap columns, a strip of a row has a part for each of them,
//! whose sums are moved sideways before they are added (`simd/shifts.rs`). That pays where enough
//! weights share a move and enough tiles share the sorting of weights by tap column: VGG19 at 90 and
//! 95 %, 32 images, weights decoded before, took 50.5 and 33.7 ms without, 43.7 and 28.5 ms with it,
//! one Zen 4 core.
//!
//! Every output is summed in the order of its row's parts, whoever computes it, so any number of
//! threads gives the same bits. Threads share the groups of images, or the rows where there are
//! fewer groups than threads.
//!
//! What one shape decides is here, a call in `running.rs`.
//!
//! Price: the unfolded input of one group a thread; the decoded rows of one block, or of the whole
//! layer where a schedule is kept.

mod columns;
mod density;
mod interleaved;
mod maps;
mod running;
mod scratch;
mod tile;
mod unfolding;
mod winograd;

use crate::error::{Error, Result};
use crate::matrix::CompressedMatrix;
use crate::rows::{RowBlock, filled};
use crate::simd::{
    self, Finish, Kernels, LARGEST_TILE, Places, SMALLEST_DENSE_TILE, SMALLEST_TILE, Taps,
};
use columns::Columns;
pub use density::Decoding;
pub(crate) use density::batch_is_faster_dense;
use interleaved::Interleaved;
pub use interleaved::Sides;
use unfolding::Unfolding;
use winograd::Winograd;

/// How a kernel moves over its input: rows, then columns, as torch's convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The kernel's height and width.
    pub kernel: [usize; 2],
    /// Steps between outputs.
    pub stride: [usize; 2],
    /// Zeros before and after the input.
    pub padding: [[usize; 2]; 2],
    /// Steps between taps.
    pub dilation: [usize; 2],
    /// Steps between inputs, with zeros in between: 1, or the stride of a transposed convolution.
    pub spread: [usize; 2],
    /// Groups of channels that do not see each other.
    pub groups: usize,
}

impl Geometry {
    /// That of a linear layer: one place.
    pub const POINT: Self = Self {
        kernel: [1, 1],
        stride: [1, 1],
        padding: [[0, 0]; 2],
        dilation: [1, 1],
        spread: [1, 1],
        groups: 1,
    };
}

/// Where the weights of a layer come from.
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// Decoded block by block, each time.
    Stored(&'a CompressedMatrix),
    /// Decoded before, for the same plan.
    Scheduled(&'a Taps),
}

/// What is done to the outputs after their finish: a slice of any part of a row.
pub type Activation<'a> = &'a (dyn Fn(&mut [f32]) + Sync);

/// What becomes of the sums of a convolution.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// One number for each row of the matrix.
    pub finish: Finish<'a>,
    /// What `finish` cannot say.
    pub activation: Option<Activation<'a>>,
}

impl<'a> From<Finish<'a>> for Epilogue<'a> {
    fn from(finish: Finish<'a>) -> Self {
        Self { finish, activation: None }
    }
}

/// Everything about a layer that one shape of input decides; made once, used for every call.
#[derive(Debug)]
pub struct Plan {
    unfolding: Unfolding,
    places: Places,
    /// Where dense rows are faster: their places, and how many of them are decoded at a time.
    dense: Option<(Places, usize)>,
    /// Where that is faster still.
    winograd: Option<Winograd>,
    /// How the input is laid out for kept weights, where images are innermost.
    interleaved: Option<Interleaved>,
    /// The same, where maps are cut into columns.
    columns: Option<Columns>,
    /// `[images, channels, height, width]`.
    input: [usize; 4],
    nrows: usize,
    nnz: usize,
    tile: usize,
    /// Rows that are decoded at a time.
    block_rows: usize,
}

/// Kept weights of a row that a strip should hold, so that starting one pays.
const STRIP_WEIGHTS: usize = 32;
/// So many times as many where tiles have up to so many outputs, and weights are sorted by strip or not:
/// a weight then does less, and starting a strip takes as long.
const SMALL_TILE_STRIPS: [(usize, [usize; 2]); 3] = [(8, [4, 8]), (16, [2, 8]), (32, [4, 4])];
/// Kept weights of a row from which on its sums are moved instead of the input.
const SHIFT_WEIGHTS: usize = 40;
/// Outputs of a row from which on that pays for sorting the weights, where that is done each time.
const SORT_OUTPUTS: usize = 512;
/// Kept weights of a row from which on interleaved numbers pay.
const INTERLEAVED_WEIGHTS: usize = 48;
/// Kept weights of a row that a strip of it should hold.
const GRID_WEIGHTS: usize = 14;
/// Kept weights that are decoded at a time: 1 MiB where offset and symbol are joined, else 2.
const BLOCK_WEIGHTS: usize = 1 << 18;
/// Weights of dense rows that are decoded at a time: 1 MiB.
const DENSE_WEIGHTS: usize = 1 << 18;
/// Columns that a strip of dense rows has at least: 16 outputs of each are half a first-level cache.
const DENSE_STRIP_COLS: usize = 256;

/// Numbers of an interleaved input that a strip may take: beside weights and sums, what a first-level
/// cache holds.
fn grid_numbers() -> usize {
    simd::cached_numbers() / 4 * 3
}

impl Plan {
    /// The plan of `matrix` as kernels `[nrows, channels / groups · kernel height · kernel width]`
    /// for an input `[images, channels, height, width]`.
    ///
    /// # Errors
    /// `InvalidArgument` when shapes do not fit.
    pub fn new(
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        input: [usize; 4],
        geometry: &Geometry,
    ) -> Result<Self> {
        Self::for_sides(kernels, matrix, input, geometry, Decoding::EachRun, Sides::default())
    }

    /// As [`Plan::new`], where weights may be scheduled for all calls, unless they are multiplied as
    /// dense rows ([`Plan::is_dense`]), and numbers may be interleaved, if [`Plan::may_interleave`]
    /// says so.
    ///
    /// # Errors
    /// As [`Plan::new`]; `InvalidArgument` where numbers cannot be interleaved.
    pub fn for_sides(
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
        input: [usize; 4],
        geometry: &Geometry,
        decoding: Decoding,
        sides: Sides,
    ) -> Result<Self> {
        let (nrows, ncols) = (matrix.shape().nrows, matrix.shape().ncols);
        let (groups, channels) = (geometry.groups, input[1]);
        let taps = geometry.kernel[0].checked_mul(geometry.kernel[1]);
        let is_grouped =
            groups > 0 && channels.is_multiple_of(groups) && nrows.is_multiple_of(groups);
        if !is_grouped || taps.and_then(|t| t.checked_mul(channels / groups)) != Some(ncols) {
            return Err(Error::invalid(format!(
                "conv: {channels} channels in {groups} groups, kernel {:?}, expected those of a \
                 matrix [{nrows}, {ncols}]",
                geometry.kernel
            )));
        }
        let mut unfolding = Unfolding::new(input, geometry, kernels.tile(), false)?;
        let [height, width] = unfolding.outputs();
        let outputs = input[0].saturating_mul(height * width);
        let is_point = outputs == input[0];
        let is_dense =
            groups == 1 && density::dense_is_faster(kernels, matrix, outputs, is_point, decoding);
        if is_dense && is_point {
            // A batch of vectors is unfolded as a whole, unless it is large: else it would be for
            // every block of rows.
            unfolding = Unfolding::new(input, geometry, LARGEST_TILE, false).unwrap_or(unfolding);
        }
        let winograd = density::winograd_is_faster(kernels, matrix)
            .then(|| Winograd::new(input, geometry, matrix, unfolding.outputs()))
            .flatten();
        let interleaved = (sides != Sides::default() && !is_dense && winograd.is_none())
            .then(|| Interleaved::new(kernels, input, geometry, unfolding.outputs(), sides))
            .flatten()
            .filter(|found| !sides.halves || sides.output && found.may_halve());
        if sides != Sides::default() && interleaved.is_none() {
            return Err(Error::invalid(format!(
                "conv: input {input:?} with {sides:?}, expected plain numbers"
            )));
        }
        let is_plain = !is_dense && interleaved.is_none();
        let row_weights = matrix.nnz() / nrows.max(1);
        let columns = is_plain
            .then(|| Columns::new(kernels, input, geometry, unfolding.outputs(), row_weights))
            .flatten();
        let pays_for_sorting = decoding == Decoding::Once || outputs >= SORT_OUTPUTS;
        let is_unfolded = is_plain && columns.is_none();
        if is_unfolded && pays_for_sorting && row_weights >= SHIFT_WEIGHTS {
            unfolding = Unfolding::new(input, geometry, kernels.tile(), true)?;
        }
        let tile = tile_size(unfolding.positions(), kernels.tile(), is_dense);
        // What a first-level cache holds.
        let narrowest = simd::cached_numbers() / unfolding.footprint(tile).max(1);
        let times = SMALL_TILE_STRIPS.iter().find(|&&(most, _)| tile <= most);
        let are_sorted = decoding == Decoding::Once;
        let weights = STRIP_WEIGHTS * times.map_or(1, |(_, times)| times[usize::from(!are_sorted)]);
        let wanted = (weights * nrows).saturating_mul(ncols) / matrix.nnz().max(1);
        let width = (narrowest.max(1) * taps.unwrap_or(1)).max(wanted);
        let of_row = [channels / groups, taps.unwrap_or(1)];
        let (strip, count) = strips(of_row, if groups > 1 { ncols } else { width });
        let places = Places {
            strip,
            count,
            taps: unfolding.taps().to_vec(),
            channel: unfolding.channel as u32,
            group_rows: (nrows / groups).max(1),
            group_step: channels / groups * unfolding.channel,
            end: unfolding.len(),
            shifts: unfolding.shifts().clone(),
            is_sorted: are_sorted && count > 1,
        };
        let unit = matrix.block_rows();
        let block_rows =
            (BLOCK_WEIGHTS * nrows.max(1) / matrix.nnz().max(1)).max(unit) / unit * unit;
        let dense = is_dense.then(|| {
            let strip = (narrowest * taps.unwrap_or(1)).max(DENSE_STRIP_COLS);
            let count = ncols.div_ceil(strip).max(1);
            let strip = ncols.div_ceil(count).max(1);
            let rows = (DENSE_WEIGHTS / ncols.max(1)).max(unit) / unit * unit;
            (Places { strip, count, ..places.clone() }, rows)
        });
        let grid = match (&interleaved, &columns) {
            (Some(found), _) => {
                Some((found.footprint(), &found.taps, found.channel(), found.len()))
            }
            (_, Some(found)) => {
                Some((found.footprint(), &found.taps, found.channel(), found.len()))
            }
            _ => None,
        };
        let places = match grid {
            Some((footprint, places_of_taps, channel, end)) => {
                let narrowest = (grid_numbers() / footprint).max(1) * taps.unwrap_or(1);
                let wanted = (GRID_WEIGHTS * nrows).saturating_mul(ncols) / matrix.nnz().max(1);
                let (strip, count) = strips(of_row, narrowest.max(wanted));
                Places {
                    strip,
                    count,
                    taps: places_of_taps.clone(),
                    channel: channel as u32,
                    end,
                    // Images of a batch share the sorting.
                    is_sorted: are_sorted || interleaved.is_some(),
                    ..places
                }
            }
            None => places,
        };
        let nnz = matrix.nnz();
        Ok(Self {
            unfolding,
            places,
            dense,
            winograd,
            interleaved,
            columns,
            input,
            nrows,
            nnz,
            tile,
            block_rows,
        })
    }

    /// Which sides of this plan's layer may be interleaved, where that pays.
    pub fn may_interleave(&self, kernels: &dyn Kernels, geometry: &Geometry) -> Sides {
        let outputs = self.unfolding.outputs();
        let new = || Interleaved::new(kernels, self.input, geometry, outputs, Sides::default());
        let is_worth = !self.is_dense() && self.nnz / self.nrows.max(1) >= INTERLEAVED_WEIGHTS;
        match is_worth.then(new).flatten() {
            Some(found) => Sides { input: true, output: true, halves: found.may_halve() },
            None => Sides::default(),
        }
    }

    /// The shape of the output: `[images, nrows, height, width]`.
    pub fn output(&self) -> [usize; 4] {
        let [height, width] = self.unfolding.outputs();
        [self.input[0], self.nrows, height, width]
    }

    /// The whole matrix decoded, for this plan.
    ///
    /// # Errors
    /// As [`CompressedMatrix::to_rows`].
    pub fn schedule(
        &self,
        kernels: &'static dyn Kernels,
        matrix: &CompressedMatrix,
    ) -> Result<Taps> {
        let (mut taps, mut block) = (Taps::default(), RowBlock::default());
        self.decode_taps(kernels, matrix, 0..self.nrows, &mut block, &mut taps)?;
        taps.shrink();
        Ok(taps)
    }

    /// Whether stored weights are multiplied as dense rows, so that decoding them before does not
    /// pay. Inputs that are not finite are multiplied with kept weights all the same.
    pub fn is_dense(&self) -> bool {
        self.dense.is_some() || self.winograd.is_some()
    }
}

/// The columns of a strip of about `width`, and how many strips a row of channels and taps has: each
/// of whole channels.
fn strips([channels, taps]: [usize; 2], width: usize) -> (usize, usize) {
    let count = (channels * taps).div_ceil(width.max(1)).max(1);
    let of_strip = channels.div_ceil(count).max(1);
    (of_strip * taps, channels.div_ceil(of_strip).max(1))
}

/// The tile for `left` outputs: the largest that they fill, or nearly.
fn tile_size(left: usize, largest: usize, is_dense: bool) -> usize {
    let above = left.next_power_of_two();
    let size = if left * 4 > above * 3 { above } else { above / 2 };
    size.clamp(if is_dense { SMALLEST_DENSE_TILE } else { SMALLEST_TILE }, largest)
}

impl CompressedMatrix {
    /// The convolution of `x` `[images, channels, height, width]` with this matrix as the kernels
    /// `[nrows, channels / groups · kernel height · kernel width]`, and the shape of the result.
    ///
    /// # Errors
    /// `InvalidArgument` when shapes do not fit.
    pub fn conv(
        &self,
        x: &[f32],
        shape: [usize; 4],
        geometry: &Geometry,
        bias: Option<&[f32]>,
        threads: usize,
    ) -> Result<(Vec<f32>, [usize; 4])> {
        self.conv_on(simd::active()?, x, shape, geometry, bias, threads)
    }

    /// [`CompressedMatrix::conv`] on a chosen instruction set.
    ///
    /// # Errors
    /// As [`CompressedMatrix::conv`].
    pub fn conv_on(
        &self,
        kernels: &'static dyn Kernels,
        x: &[f32],
        shape: [usize; 4],
        geometry: &Geometry,
        bias: Option<&[f32]>,
        threads: usize,
    ) -> Result<(Vec<f32>, [usize; 4])> {
        let plan = Plan::new(kernels, self, shape, geometry)?;
        let nrows = self.shape().nrows;
        if shape.iter().product::<usize>() != x.len() {
            return Err(Error::invalid(format!(
                "conv: x has {} numbers, expected shape {shape:?}",
                x.len()
            )));
        }
        if let Some(bias) = bias.filter(|bias| bias.len() != nrows) {
            return Err(Error::invalid(format!(
                "conv: bias has {} numbers, expected nrows = {nrows}",
                bias.len()
            )));
        }
        let output = plan.output();
        let mut y = filled(0.0, output[0] * nrows, output[2] * output[3])?;
        let finish = Finish { shift: bias, ..Finish::NOTHING };
        plan.run(kernels, Weights::Stored(self), x, &mut y, &finish.into(), threads)?;
        Ok((y, output))
    }
}
