//! Activations: functions of one number, after a layer or by themselves.
//!
//! NaN stays NaN in each of them, as in torch: comparisons are written so that it falls through.

use crate::error::{Error, Result};

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Activation {
    /// x
    Identity,
    /// max(x, 0)
    Relu,
    /// min(max(x, 0), 6)
    Relu6,
    /// x, or slope · x under 0
    LeakyRelu(f32),
    /// 1 / (1 + e^−x)
    Sigmoid,
    /// tanh x
    Tanh,
    /// x · Φ(x)
    Gelu,
    /// x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))
    GeluTanh,
    /// x · sigmoid(x)
    Silu,
    /// x · relu6(x + 3) / 6
    Hardswish,
    /// relu6(x + 3) / 6
    Hardsigmoid,
    /// min(max(x, low), high)
    Clamp(f32, f32),
    /// x, or alpha · (e^x − 1) up to 0
    Elu(f32),
    /// e^x
    Exp,
    /// √x
    Sqrt,
    /// 1 / √x
    Rsqrt,
    /// −x
    Neg,
    /// |x|
    Abs,
    /// ln x
    Log,
    /// x²
    Square,
    /// ln(1 + e^(beta · x)) / beta, or x where beta · x is over the threshold
    Softplus(f32, f32),
    /// x · tanh(ln(1 + e^x))
    Mish,
}

impl Activation {
    /// The activation with number `code`, of parameters `params`.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that none has.
    pub fn new(code: i64, params: &[f32]) -> Result<Self> {
        let param = |i: usize| params.get(i).copied().unwrap_or(0.0);
        Ok(match code {
            0 => Self::Identity,
            1 => Self::Relu,
            2 => Self::Relu6,
            3 => Self::LeakyRelu(param(0)),
            4 => Self::Sigmoid,
            5 => Self::Tanh,
            6 => Self::Gelu,
            7 => Self::GeluTanh,
            8 => Self::Silu,
            9 => Self::Hardswish,
            10 => Self::Hardsigmoid,
            11 => Self::Clamp(param(0), param(1)),
            12 => Self::Elu(param(0)),
            13 => Self::Exp,
            14 => Self::Sqrt,
            15 => Self::Rsqrt,
            16 => Self::Neg,
            17 => Self::Abs,
            18 => Self::Log,
            19 => Self::Square,
            20 => Self::Softplus(param(0), param(1)),
            21 => Self::Mish,
            _ => return Err(Error::invalid(format!("activation {code}, expected 0 to 21"))),
        })
    }

    /// About how many multiply–adds it takes as long as.
    pub fn cost(self) -> usize {
        match self {
            Self::Identity => 0,
            Self::Sigmoid
            | Self::Tanh
            | Self::Gelu
            | Self::GeluTanh
            | Self::Silu
            | Self::Elu(_)
            | Self::Exp
            | Self::Log
            | Self::Softplus(..)
            | Self::Mish => 32,
            _ => 1,
        }
    }

    /// Replaces each number by its image.
    pub fn apply(self, y: &mut [f32]) {
        match self {
            Self::Identity => {}
            Self::Relu => each(y, |x| if x < 0.0 { 0.0 } else { x }),
            Self::Relu6 => each(y, |x| clamp(x, 0.0, 6.0)),
            Self::LeakyRelu(slope) => each(y, |x| if x > 0.0 { x } else { x * slope }),
            Self::Sigmoid => each(y, sigmoid),
            Self::Tanh => each(y, f32::tanh),
            Self::Gelu => {
                each(y, |x| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)))
            }
            Self::GeluTanh => each(y, |x| {
                let inner = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + inner.tanh())
            }),
            Self::Silu => each(y, |x| x / (1.0 + (-x).exp())),
            Self::Hardswish => each(y, |x| x * clamp(x + 3.0, 0.0, 6.0) / 6.0),
            Self::Hardsigmoid => each(y, |x| clamp(x + 3.0, 0.0, 6.0) / 6.0),
            Self::Clamp(low, high) => each(y, |x| clamp(x, low, high)),
            Self::Elu(alpha) => each(y, |x| if x > 0.0 { x } else { alpha * x.exp_m1() }),
            Self::Exp => each(y, f32::exp),
            Self::Sqrt => each(y, f32::sqrt),
            Self::Rsqrt => each(y, |x| 1.0 / x.sqrt()),
            Self::Neg => each(y, |x| -x),
            Self::Abs => each(y, f32::abs),
            Self::Log => each(y, f32::ln),
            Self::Square => each(y, |x| x * x),
            Self::Softplus(beta, threshold) => each(y, |x| {
                let scaled = x * beta;
                if scaled > threshold { x } else { scaled.exp().ln_1p() / beta }
            }),
            Self::Mish => each(y, |x| x * x.exp().ln_1p().tanh()),
        }
    }
}

/// √(2/π)
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

fn each(y: &mut [f32], function: impl Fn(f32) -> f32) {
    y.iter_mut().for_each(|y| *y = function(*y));
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// min(max(x, low), high), NaN where x is.
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let raised = if x < low { low } else { x };
    if raised > high { high } else { raised }
}
