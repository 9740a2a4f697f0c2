//! Pooling over windows of images: the largest number, the mean, and both into a given size.
//!
//! A window is cut to the image; so the zeros around it never count in a maximum, and in a mean
//! only as `count_include_pad` says. With `ceil_mode` a last window that starts in the image or in
//! the padding before it is kept though it ends outside. Bins of an adaptive pool go from
//! ⌊i · in / out⌋ to ⌈(i + 1) · in / out⌉.

use super::operator::{
    Context, Dims, Interleaving, Operands, Operator, flag, image, image_dims, size,
};
use crate::error::{Error, Result};
use crate::simd::{self, IMAGES, Kernels, maximum};
use crate::threads;

/// Builds the operator `name` where it is one of these.
pub(super) fn build(
    name: &str,
    ints: &[i64],
    _floats: &[f32],
) -> Option<Result<Box<dyn Operator>>> {
    let built = match name {
        "max_pool" => build_max(ints),
        "avg_pool" => build_mean(ints),
        "adaptive_avg_pool" => build_adaptive(ints, false),
        "adaptive_max_pool" => build_adaptive(ints, true),
        _ => return None,
    };
    Some(built)
}

fn build_max(ints: &[i64]) -> Result<Box<dyn Operator>> {
    let is_ceil = flag(ints[8], "ceil_mode")?;
    let rows = Windows::new(ints[0], ints[2], ints[4], ints[6], is_ceil)?;
    let cols = Windows::new(ints[1], ints[3], ints[5], ints[7], is_ceil)?;
    Ok(Box::new(MaxPool { rows, cols, kernels: simd::active()? }))
}

fn build_mean(ints: &[i64]) -> Result<Box<dyn Operator>> {
    let is_ceil = flag(ints[6], "ceil_mode")?;
    let rows = Windows::new(ints[0], ints[2], ints[4], 1, is_ceil)?;
    let cols = Windows::new(ints[1], ints[3], ints[5], 1, is_ceil)?;
    let counts_padding = flag(ints[7], "count_include_pad")?;
    Ok(Box::new(MeanPool { rows, cols, counts_padding, divisor: ints[8] }))
}

fn build_adaptive(ints: &[i64], is_max: bool) -> Result<Box<dyn Operator>> {
    let out = [size(ints[0], "output height")?, size(ints[1], "output width")?];
    Ok(Box::new(AdaptivePool { out, is_max }))
}

/// The windows along one dimension.
#[derive(Clone, Copy, Debug)]
struct Windows {
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
    is_ceil: bool,
}

/// Sizes that no window may pass; sums of a few fit any word.
const MAX_EXTENT: usize = 1 << 30;

impl Windows {
    fn new(kernel: i64, stride: i64, padding: i64, dilation: i64, is_ceil: bool) -> Result<Self> {
        let windows = Self {
            kernel: size(kernel, "kernel")?,
            stride: size(stride, "stride")?,
            padding: size(padding, "padding")?,
            dilation: size(dilation, "dilation")?,
            is_ceil,
        };
        let span = windows.kernel.checked_mul(windows.dilation);
        let is_small = span.is_some_and(|span| span.max(windows.stride) <= MAX_EXTENT);
        let least = windows.kernel.min(windows.stride).min(windows.dilation);
        if least == 0 || !is_small || windows.padding * 2 > windows.span() {
            return Err(Error::invalid(format!(
                "kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation}, expected \
                 1 to {MAX_EXTENT} each, and padding up to half of the kernel"
            )));
        }
        Ok(windows)
    }

    /// Whether windows are two that follow each other, and are not shared.
    fn are_pairs(&self) -> bool {
        (self.kernel, self.stride, self.padding, self.dilation) == (2, 2, 0, 1)
    }

    /// From the first tap to the one after the last.
    fn span(&self) -> usize {
        (self.kernel - 1) * self.dilation + 1
    }

    /// The number of windows on `input`.
    fn count(&self, input: usize) -> Result<usize> {
        let room = (input.min(MAX_EXTENT) + 2 * self.padding).checked_sub(self.span());
        let Some(room) = room.filter(|_| input > 0 && input <= MAX_EXTENT) else {
            return Err(Error::invalid(format!(
                "{input} padded by {} on either side, expected room for a kernel that spans {}",
                self.padding,
                self.span()
            )));
        };
        if !self.is_ceil {
            return Ok(room / self.stride + 1);
        }
        let count = room.div_ceil(self.stride) + 1;
        let starts_inside = (count - 1) * self.stride < input + self.padding;
        Ok(if starts_inside { count } else { count - 1 })
    }

    /// The first and the end of the taps of window `i` that are in `input`, in steps of the dilation.
    fn taps(&self, i: usize, input: usize) -> (usize, usize) {
        let start = i * self.stride;
        let skipped = self.padding.saturating_sub(start).div_ceil(self.dilation);
        let first = (start + skipped * self.dilation).saturating_sub(self.padding);
        (first, (start + self.span()).saturating_sub(self.padding).min(input))
    }

    /// How many places window `i` has with the padding in it.
    fn padded(&self, i: usize, input: usize) -> usize {
        let start = i * self.stride;
        (start + self.kernel).min(input + 2 * self.padding) - start
    }
}

fn planes(
    operands: &Operands<'_>,
    out: &mut [f32],
    out_dims: &[usize],
    context: &Context<'_>,
    work: usize,
    pool: impl Fn(&[f32], [usize; 2], &mut [f32], [usize; 2]) + Sync,
) -> Result<()> {
    let (x, [_, _, height, width]) = (operands.numbers(0), image(operands.dims(0))?);
    let [_, _, out_height, out_width] = image(out_dims)?;
    let (area, out_area) = (height * width, out_height * out_width);
    let threads = context.useful(work.saturating_mul(out.len() / out_area));
    threads::for_each_chunk(threads, out, out_area, |first, out| {
        let x = x[first * area..].chunks_exact(area.max(1));
        for (x, out) in x.zip(out.chunks_exact_mut(out_area)) {
            pool(x, [height, width], out, [out_height, out_width]);
        }
        Ok(())
    })
}

struct MaxPool {
    rows: Windows,
    cols: Windows,
    kernels: &'static dyn Kernels,
}

impl MaxPool {
    /// Whether each output is the greatest of two by two numbers.
    fn halves(&self, [height, width]: [usize; 2], [out_height, out_width]: [usize; 2]) -> bool {
        let is_halved = [height, width] == [2 * out_height, 2 * out_width];
        is_halved && self.rows.are_pairs() && self.cols.are_pairs()
    }
}

impl Operator for MaxPool {
    fn interleaving(&self, operands: &[&[usize]], dims: &[usize]) -> Interleaving {
        match (operands[0], dims) {
            (&[_, _, height, width], &[images, _, out_height, out_width])
                if images.is_multiple_of(IMAGES)
                    && self.halves([height, width], [out_height, out_width]) =>
            {
                Interleaving::Halves
            }
            _ => Interleaving::Plain,
        }
    }

    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let [images, channels, height, width] = image(operands[0])?;
        let out = [images, channels, self.rows.count(height)?, self.cols.count(width)?];
        Ok(image_dims(operands[0].len(), out))
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let [_, _, out_height, out_width] = image(dims)?;
        let window = self.rows.kernel * self.cols.kernel;
        let work = window.saturating_mul(out_height * out_width);
        let [_, _, height, width] = image(operands.dims(0))?;
        if self.halves([height, width], [out_height, out_width]) {
            // The windows of all planes follow each other.
            let is_interleaved = operands.is_interleaved(0);
            let images = if is_interleaved { IMAGES } else { 1 };
            let (x, area) = (operands.numbers(0), images * out_height * out_width);
            let threads = context.useful(work.saturating_mul(out.len() / area.max(1)));
            return threads::for_each_chunk(threads, out, area, |first, out| {
                let x = &x[4 * first * area..][..4 * out.len()];
                match is_interleaved {
                    true => self.kernels.greatest_of_four_cells(width, x, out),
                    false => self.kernels.greatest_of_four(width, x, out),
                }
                Ok(())
            });
        }
        planes(operands, out, dims, context, work, |x, [height, width], out, [_, out_width]| {
            // The windows that are whole need no look at the edges.
            let cols = &self.cols;
            let (mut from, mut to) = (cols.padding.div_ceil(cols.stride), 0);
            if let Some(room) = (width + cols.padding).checked_sub(cols.span()) {
                to = (room / cols.stride + 1).min(out_width);
            }
            (from, to) = (from.min(out_width), to.max(from.min(out_width)));
            for (i, out) in out.chunks_exact_mut(out_width).enumerate() {
                out.fill(f32::NEG_INFINITY);
                let (first, end) = self.rows.taps(i, height);
                for row in (first..end).step_by(self.rows.dilation) {
                    let x = &x[row * width..][..width];
                    for j in (0..from).chain(to..out_width) {
                        let (first, end) = cols.taps(j, width);
                        let taps = (first..end).step_by(cols.dilation);
                        out[j] = taps.fold(out[j], |most, col| maximum(x[col], most));
                    }
                    if from == to {
                        continue;
                    }
                    if (cols.kernel, cols.stride, cols.dilation) == (2, 2, 1) {
                        let (pairs, _) = x[from * 2 - cols.padding..].as_chunks::<2>();
                        for (y, &[left, right]) in out[from..to].iter_mut().zip(pairs) {
                            *y = maximum(right, maximum(left, *y));
                        }
                        continue;
                    }
                    for tap in 0..cols.kernel {
                        let start = from * cols.stride + tap * cols.dilation - cols.padding;
                        let x = x[start..].iter().step_by(cols.stride);
                        for (y, &x) in out[from..to].iter_mut().zip(x) {
                            *y = maximum(x, *y);
                        }
                    }
                }
            }
        })
    }
}

struct MeanPool {
    rows: Windows,
    cols: Windows,
    counts_padding: bool,
    divisor: i64,
}

impl Operator for MeanPool {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let [images, channels, height, width] = image(operands[0])?;
        let out = [images, channels, self.rows.count(height)?, self.cols.count(width)?];
        Ok(image_dims(operands[0].len(), out))
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let [_, _, out_height, out_width] = image(dims)?;
        let window = self.rows.kernel * self.cols.kernel;
        let work = window.saturating_mul(out_height * out_width);
        planes(operands, out, dims, context, work, |x, [height, width], out, [_, out_width]| {
            for (i, out) in out.chunks_exact_mut(out_width).enumerate() {
                let (top, bottom) = self.rows.taps(i, height);
                for (j, y) in out.iter_mut().enumerate() {
                    let (left, right) = self.cols.taps(j, width);
                    if top >= bottom || left >= right {
                        *y = 0.0;
                        continue;
                    }
                    let lines = x[top * width..bottom * width].chunks_exact(width);
                    let sum: f64 = lines.map(|x| sum(&x[left..right])).sum();
                    let places = match (self.divisor, self.counts_padding) {
                        (0, true) => self.rows.padded(i, height) * self.cols.padded(j, width),
                        (0, false) => (bottom - top) * (right - left),
                        (divisor, _) => {
                            *y = (sum / divisor as f64) as f32;
                            continue;
                        }
                    };
                    *y = (sum / places as f64) as f32;
                }
            }
        })
    }
}

/// The sum of `x`, exact enough for any length.
pub(super) fn sum(x: &[f32]) -> f64 {
    // Four sums at once; their order does not depend on threads.
    let mut sums = [0.0f64; 4];
    let chunks = x.chunks_exact(4);
    let rest: f64 = chunks.remainder().iter().map(|&x| f64::from(x)).sum();
    for x in chunks {
        sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    sums.iter().sum::<f64>() + rest
}

struct AdaptivePool {
    out: [usize; 2],
    is_max: bool,
}

/// Where bin `i` of `count` on `input` starts and ends.
fn bin(i: usize, count: usize, input: usize) -> (usize, usize) {
    (i * input / count, ((i + 1) * input).div_ceil(count))
}

impl Operator for AdaptivePool {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let [images, channels, height, width] = image(operands[0])?;
        let longest = height.max(width).max(self.out[0]).max(self.out[1]);
        if height.min(width) == 0 || longest > MAX_EXTENT {
            return Err(Error::invalid(format!(
                "from {height} x {width} to {:?}, expected sizes of 1 to {MAX_EXTENT}",
                self.out
            )));
        }
        if operands[0].len() == 3 && self.out[0] != 1 {
            return Err(Error::invalid(format!(
                "input of shape {:?} to a height of {}, expected 1",
                operands[0], self.out[0]
            )));
        }
        Ok(image_dims(operands[0].len(), [images, channels, self.out[0], self.out[1]]))
    }

    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let [_, _, height, width] = image(operands.dims(0))?;
        let work = height * width;
        planes(operands, out, dims, context, work, |x, [height, width], out, [rows, cols]| {
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                let (top, bottom) = bin(i, rows, height);
                for (j, y) in out.iter_mut().enumerate() {
                    let (left, right) = bin(j, cols, width);
                    let lines = x[top * width..bottom * width].chunks_exact(width);
                    let bins = lines.map(|x| &x[left..right]);
                    *y = match self.is_max {
                        true => bins.flatten().fold(f32::NEG_INFINITY, |y, &x| maximum(x, y)),
                        false => {
                            let places = (bottom - top) * (right - left);
                            (bins.map(sum).sum::<f64>() / places as f64) as f32
                        }
                    };
                }
            }
        })
    }
}
