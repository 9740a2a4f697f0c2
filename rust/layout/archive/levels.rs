//! What the model knows of a codebook: the order of its values, their signs, and how large they are
//! beside each other, in integers.

use crate::codebook::{Codebook, total_order};

/// The level of a magnitude that is the mean of the codebook's.
const MEAN_LEVEL: u64 = 32;
/// The most that a level is.
const MAX_LEVEL: u64 = 255;

/// A codebook's values by their ranks: negative ones first, each kind from the least up.
#[derive(Debug)]
pub(super) struct Levels {
    /// The symbol of each rank.
    pub(super) symbols: Vec<u16>,
    /// The rank of each symbol.
    pub(super) ranks: Vec<u16>,
    /// How many values are negative.
    pub(super) negatives: usize,
    /// The magnitude of each entry, 0 for a pruned one, then that of each rank.
    pub(super) magnitudes: Vec<u8>,
}

impl Levels {
    pub(super) fn new(codebook: &Codebook) -> Self {
        let values = codebook.values();
        let mut symbols: Vec<u16> = (0..values.len()).map(|symbol| symbol as u16).collect();
        symbols.sort_unstable_by_key(|&symbol| total_order(values[usize::from(symbol)]));
        let mut ranks = vec![0; symbols.len()];
        for (rank, &symbol) in symbols.iter().enumerate() {
            ranks[usize::from(symbol)] = rank as u16;
        }
        // Subnormal numbers have the least normal exponent, without the leading bit.
        let exponent = |value: f32| (value.to_bits() >> 23 & 255).max(1);
        let finite = values.iter().map(|&value| exponent(value)).filter(|&e| e < 255);
        let largest = finite.max().unwrap_or(1);
        // In units of the largest exponent's last bit; infinities and NaNs as more than the rest.
        let magnitude = |symbol: &u16| {
            let value = values[usize::from(*symbol)];
            let leading = u64::from(value.to_bits() & 0x7f80_0000 != 0) << 23;
            match exponent(value) {
                255 => 1 << 24,
                e => (u64::from(value.to_bits() & 0x7f_ffff) | leading)
                    .checked_shr(largest - e)
                    .unwrap_or(0),
            }
        };
        let sum: u64 = symbols.iter().map(magnitude).sum();
        let mean = (sum / symbols.len().max(1) as u64).max(1);
        let level = |symbol| (magnitude(symbol) * MEAN_LEVEL / mean).clamp(1, MAX_LEVEL) as u8;
        Self {
            negatives: values.iter().filter(|value| value.is_sign_negative()).count(),
            magnitudes: std::iter::once(0).chain(symbols.iter().map(level)).collect(),
            symbols,
            ranks,
        }
    }

    /// The level of an entry (0 or a rank plus 1), with its sign.
    #[inline(always)]
    pub(super) fn signed(&self, entry: u32) -> i16 {
        let magnitude = i16::from(self.magnitudes[entry as usize]);
        if entry as usize <= self.negatives { -magnitude } else { magnitude }
    }

    /// 0 for a pruned entry, 1 for a negative value, 2 for another.
    #[inline(always)]
    pub(super) fn sign(&self, entry: u32) -> usize {
        usize::from(entry > 0) + usize::from(entry as usize > self.negatives)
    }
}
