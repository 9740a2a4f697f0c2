//! Context mixing: bits one by one, each by a mix of what adaptive contexts predict, in an
//! arithmetic coder.
//!
//! ```text
//!   contexts ──▶ slots: adaptive probabilities ──stretch──▶ mixer: Σ weight · input ──squash──▶ p₀
//!                                                              p₀ ──▶ two maps of (p₀, context) ──▶ p
//!   code the bit with p;  slots, weights and maps move towards the bit
//! ```
//!
//! All of it is integer arithmetic, so that every machine decodes the same bits: probabilities of
//! 16 or 22 bits, logits of 8 fractional bits between two tables made from 49 numbers. An encoder
//! and a decoder run the same model, generic over [`BinaryCoder`]; the model of matrices is in
//! `layout/archive`.
//!
//! Source: Mahoney 2005, "Adaptive weighing of context models for lossless data compression" (PAQ);
//! the coder is lpaq's carryless range coder.

mod binary;
mod logistic;
mod predictor;

pub use binary::{BinaryCoder, Decoder, Encoder};
pub use logistic::{LOGIT_ONE, log2_quarters, squash, stretch};
pub use predictor::{Predictor, PredictorSize, Slot};
