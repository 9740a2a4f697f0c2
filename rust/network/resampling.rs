//! Resampling of images: nearest and bilinear.
//!
//! The step in the input for a step in the output is the one stored (1 / the factor that torch was
//! given, divided in double precision as torch does), else input / output, or between the centres
//! of the corners (in − 1) / (out − 1). Nearest takes place ⌊i · step⌋; bilinear the two places
//! around (i + ½) · step − ½, cut at 0, or i · step between corners. All in single precision, as
//! torch does.

use super::operator::{Context, Dims, Operands, Operator, flag, image, image_dims, size};
use crate::error::{Error, Result};
use crate::threads;

/// Builds the operator `name` where it is one of these.
pub(super) fn build(name: &str, ints: &[i64], floats: &[f32]) -> Option<Result<Box<dyn Operator>>> {
    (name == "upsample").then(|| build_upsample(ints, floats))
}

fn build_upsample(ints: &[i64], floats: &[f32]) -> Result<Box<dyn Operator>> {
    let is_bilinear = match ints[0] {
        0 => false,
        1 => true,
        mode => return Err(Error::invalid(format!("mode {mode}, expected 0 or 1"))),
    };
    let aligns_corners = flag(ints[1], "align_corners")?;
    let out = [size(ints[2], "output height")?, size(ints[3], "output width")?];
    Ok(Box::new(Upsample { is_bilinear, aligns_corners, out, steps: [floats[0], floats[1]] }))
}

struct Upsample {
    is_bilinear: bool,
    aligns_corners: bool,
    out: [usize; 2],
    /// 0 where the sizes decide.
    steps: [f32; 2],
}

/// Sizes beyond which single precision would lose places.
const MAX_SIZE: usize = 1 << 24;

/// Where an output's numbers come from: two places, and the weight of the second.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    weight: f32,
}

impl Upsample {
    /// The taps of output `i` of `output` on `input`.
    fn tap(&self, i: usize, input: usize, output: usize, step: f32) -> Tap {
        if !self.is_bilinear {
            let at = (i as f32 * step_of(input, output, step)).floor() as usize;
            let first = at.min(input - 1);
            return Tap { first, second: first, weight: 0.0 };
        }
        let at = if input == output {
            i as f32
        } else if self.aligns_corners {
            let scale = if output > 1 { (input - 1) as f32 / (output - 1) as f32 } else { 0.0 };
            scale * i as f32
        } else {
            (step_of(input, output, step) * (i as f32 + 0.5) - 0.5).max(0.0)
        };
        let first = (at as usize).min(input - 1);
        let second = (first + 1).min(input - 1);
        Tap { first, second, weight: (at - first as f32).clamp(0.0, 1.0) }
    }
}

fn step_of(input: usize, output: usize, step: f32) -> f32 {
    if step > 0.0 { step } else { input as f32 / output as f32 }
}

impl Operator for Upsample {
    fn shape(&self, operands: &[&[usize]], _batch: usize) -> Result<Dims> {
        let [images, channels, height, width] = image(operands[0])?;
        let largest = height.max(width).max(self.out[0]).max(self.out[1]);
        if height.min(width) == 0 || largest > MAX_SIZE {
            return Err(Error::invalid(format!(
                "from {height} x {width} to {:?}, expected sizes of 1 to {MAX_SIZE}",
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
        _dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()> {
        let (x, [_, _, height, width]) = (operands.numbers(0), image(operands.dims(0))?);
        let [out_height, out_width] = self.out;
        let threads = context.useful(out.len().saturating_mul(8));
        threads::for_each_chunk(threads, out, out_height * out_width, |first, out| {
            let planes = x[first * height * width..].chunks_exact(height * width);
            for (x, out) in planes.zip(out.chunks_exact_mut(out_height * out_width)) {
                for (i, out) in out.chunks_exact_mut(out_width).enumerate() {
                    let row = self.tap(i, height, out_height, self.steps[0]);
                    let upper = &x[row.first * width..][..width];
                    let lower = &x[row.second * width..][..width];
                    for (j, y) in out.iter_mut().enumerate() {
                        let col = self.tap(j, width, out_width, self.steps[1]);
                        *y = match self.is_bilinear {
                            false => upper[col.first],
                            true => {
                                let upper = mix(upper[col.first], upper[col.second], col.weight);
                                let lower = mix(lower[col.first], lower[col.second], col.weight);
                                mix(upper, lower, row.weight)
                            }
                        };
                    }
                }
            }
            Ok(())
        })
    }
}

fn mix(a: f32, b: f32, weight: f32) -> f32 {
    (1.0 - weight) * a + weight * b
}
