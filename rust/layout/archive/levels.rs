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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_in_order_with_their_signs_and_magnitudes() {
        let codebook = Codebook::new(vec![2.0, -0.5, 1.0, -1.5, 0.25]).unwrap();
        let levels = Levels::new(&codebook);
        assert_eq!(levels.symbols, [3, 1, 4, 2, 0]);
        assert_eq!(levels.ranks, [4, 1, 3, 0, 2]);
        assert_eq!(levels.negatives, 2);
        // The mean magnitude is 5.25 / 5 = 1.05: 1.5 is 45.7 of 32 to the mean, 0.25 is 7.6.
        assert_eq!(levels.magnitudes, [0, 45, 15, 7, 30, 60]);
        assert_eq!([0, 1, 2, 3, 5].map(|entry| levels.sign(entry)), [0, 1, 1, 2, 2]);
        assert_eq!([0, 1, 2, 3, 5].map(|entry| levels.signed(entry)), [0, -45, -15, 7, 60]);
    }

    #[test]
    fn values_that_arithmetic_would_not_keep_have_levels_too() {
        let bits = [0x8000_0000, 0x7f80_0000, 0xffc0_0001, 0x0000_0001, 0x3f80_0000, 0x0080_0000];
        let levels = Levels::new(&Codebook::new(bits.map(f32::from_bits).to_vec()).unwrap());
        assert_eq!(levels.symbols, [2, 0, 3, 5, 4, 1]);
        assert_eq!(levels.negatives, 2);
        // 2^24 for the NaN and the infinity, 2^23 for 1.0, nothing for the rest: a mean of 6,990,506.
        assert_eq!(levels.magnitudes, [0, 76, 1, 1, 1, 38, 76]);
        let subnormal = Levels::new(&Codebook::new(vec![f32::from_bits(3)]).unwrap());
        assert_eq!(subnormal.magnitudes, [0, 32]);
        assert!(Levels::new(&Codebook::empty()).symbols.is_empty());
    }
}
