//! A linear network over the columns of a line, or over the positions of a kernel, learnt as they
//! come.
//!
//! ```text
//!   a line starts:         logit[j] = bias[j];  level[j] = level_bias[j]
//!   column c is kept:      logit[j] += W[c][j];  level[j] += V[c][j] · its level      for all j > c
//!   the line ends:         W[c][j] += rate · error[j]        for all kept c and j > c
//!                          V[c][j] += level error[j] · level of c · 0.3 / their energy
//! ```
//!
//! The logit says whether a column is kept, the level with which value. Hidden units of a trained
//! layer are few directions' worth: what a line keeps so far tells them, and they tell the rest.
//! Sixteen-bit numbers that saturate, so that vector registers take many; n² of them for each of
//! the two, so narrow lines only.

use crate::entropy::mixing::squash;
use crate::error::Result;
use crate::rows::filled;
use crate::simd::{self, Kernels};

/// The widest line that has a network.
pub(super) const MAX_COLS: usize = 1024;
/// The fewest lines that it learns enough from.
pub(super) const MIN_LINES: usize = 192;
/// Lines up to which the rate falls.
const MAX_NLINES: i32 = 200_000;
/// Fractional bits of a stored logit beside the 8 of one.
const LOGIT_BITS: i32 = 4;
/// Fractional bits of a stored level.
const LEVEL_BITS: i32 = 5;

/// Weights and state of the network of one matrix.
#[derive(Clone, Debug)]
pub(super) struct Network {
    kernels: &'static dyn Kernels,
    ncols: usize,
    nlines: i32,
    weights: Vec<i16>,
    level_weights: Vec<i16>,
    bias: Vec<i16>,
    level_bias: Vec<i16>,
    logits: Vec<i16>,
    levels: Vec<i16>,
    errors: Vec<i16>,
    level_errors: Vec<i16>,
}

impl Network {
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had; those of [`simd::active`].
    pub(super) fn new(ncols: usize) -> Result<Self> {
        let zeros = || vec![0; ncols];
        Ok(Self {
            kernels: simd::active()?,
            ncols,
            nlines: 0,
            weights: filled(0, ncols, ncols)?,
            level_weights: filled(0, ncols, ncols)?,
            bias: zeros(),
            level_bias: zeros(),
            logits: zeros(),
            levels: zeros(),
            errors: zeros(),
            level_errors: zeros(),
        })
    }

    /// The number of columns.
    pub(super) fn ncols(&self) -> usize {
        self.ncols
    }

    pub(super) fn start_line(&mut self) {
        self.logits.copy_from_slice(&self.bias);
        self.levels.copy_from_slice(&self.level_bias);
    }

    /// The logit that `col` is kept.
    #[inline(always)]
    pub(super) fn logit(&self, col: usize) -> i32 {
        i32::from(self.logits[col]) >> LOGIT_BITS
    }

    /// The level expected of `col`, with 5 fractional bits.
    #[inline(always)]
    pub(super) fn level(&self, col: usize) -> i32 {
        self.levels[col].into()
    }

    /// Takes in that `col` is kept, with a signed level.
    #[inline(always)]
    pub(super) fn keep(&mut self, col: usize, level: i16) {
        let later = col * self.ncols + col + 1..(col + 1) * self.ncols;
        self.kernels.add_saturating(&mut self.logits[col + 1..], &self.weights[later.clone()]);
        let (levels, weights) = (&mut self.levels[col + 1..], &self.level_weights[later]);
        self.kernels.add_scaled_saturating(levels, weights, level * 128);
    }

    /// Learns from a line: the columns that it keeps, and their signed levels.
    pub(super) fn end_line(&mut self, kept: &[(u32, i16)]) {
        let errors = self.errors.iter_mut().zip(&mut self.level_errors);
        let predicted = self.logits.iter().zip(&self.levels);
        for ((error, level_error), (&logit, &level)) in errors.zip(predicted) {
            *error = -(squash(i32::from(logit) >> LOGIT_BITS) as i32 / 2) as i16;
            *level_error = level.saturating_neg();
        }
        let mut energy = 1024;
        for &(col, level) in kept {
            let col = col as usize;
            self.errors[col] += 0x7fff;
            self.level_errors[col] = (level << LEVEL_BITS).saturating_sub(self.levels[col]);
            energy += i64::from(level) * i64::from(level);
        }
        // 4,096 is the logit 1, 32,768 the error 1: from a fifth at first down to a seventieth.
        self.nlines = (self.nlines + 1).min(MAX_NLINES);
        let rate = 60 + 200_000 / (256 + self.nlines);
        for error in &mut self.errors {
            *error = ((i32::from(*error) * rate + (1 << 14)) >> 15) as i16;
        }
        self.kernels.add_saturating(&mut self.bias, &self.errors);
        self.kernels.add_scaled_saturating(&mut self.level_bias, &self.level_errors, 655);
        for &(col, level) in kept {
            let col = col as usize;
            let later = col * self.ncols + col + 1..(col + 1) * self.ncols;
            let weights = &mut self.weights[later.clone()];
            self.kernels.add_saturating(weights, &self.errors[col + 1..]);
            // 16,384 is the weight 1.
            let step = (i64::from(level) * (16_384 * 65_536 / 32 * 3 / 10) / energy)
                .clamp(-32_767, 32_767) as i16;
            let weights = &mut self.level_weights[later];
            let errors = &self.level_errors[col + 1..];
            self.kernels.add_scaled_saturating(weights, errors, step);
        }
    }
}
