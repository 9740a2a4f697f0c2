//! What the model knows of a codebook: the order of its values, their signs, and how large they are
//! beside each other, in integers.

use crate::codebook::Codebook;

/// The level of a magnitude that is the mean of the codebook's.
const MEAN_LEVEL: u64 = 32;
/// The most that a level is.
const MAX_LEVEL: u64 = 255;

/// A codebook's values as **entries**: 0 stands for a pruned weight, 1 + 2n for the n-th negative value
/// from the least magnitude up, 2 + 2n for the n-th of the others.
///
/// So entries of one matrix mean about the same in another, whatever its numbers of negative values.
#[derive(Debug)]
pub(super) struct Levels {
    /// The entry of each symbol.
    pub(super) entries: Vec<u32>,
    /// The symbol of each entry; 0 where there is none.
    pub(super) symbols: Vec<u16>,
    /// How many values are negative, and how many are not.
    pub(super) counts: [usize; 2],
    /// The level of each entry, 0 where there is none.
    magnitudes: Vec<u8>,
}

/// 0 for a pruned entry, 1 for a negative value, 2 for another.
#[inline(always)]
pub(super) fn sign(entry: u32) -> usize {
    if entry == 0 { 0 } else { 2 - (entry & 1) as usize }
}

impl Levels {
    pub(super) fn new(codebook: &Codebook) -> Self {
        let values = codebook.values();
        let mut order: Vec<u16> = (0..values.len()).map(|symbol| symbol as u16).collect();
        order.sort_unstable_by_key(|&symbol| values[usize::from(symbol)].to_bits() & 0x7fff_ffff);
        // Subnormal numbers have the least normal exponent, without the leading bit.
        let exponent = |value: f32| (value.to_bits() >> 23 & 255).max(1);
        let finite = values.iter().map(|&value| exponent(value)).filter(|&e| e < 255);
        let largest = finite.max().unwrap_or(1);
        // In units of the largest exponent's last bit; infinities and NaNs as more than the rest.
        let magnitude = |value: f32| {
            let leading = u64::from(value.to_bits() & 0x7f80_0000 != 0) << 23;
            match exponent(value) {
                255 => 1 << 24,
                e => (u64::from(value.to_bits() & 0x7f_ffff) | leading)
                    .checked_shr(largest - e)
                    .unwrap_or(0),
            }
        };
        let sum: u64 = values.iter().map(|&value| magnitude(value)).sum();
        let mean = (sum / values.len().max(1) as u64).max(1);
        let negatives = values.iter().filter(|value| value.is_sign_negative()).count();
        let counts = [negatives, values.len() - negatives];
        let nentries = 1 + 2 * negatives.max(values.len() - negatives);
        let mut levels = Self {
            entries: vec![0; values.len()],
            symbols: vec![0; nentries],
            counts,
            magnitudes: vec![0; nentries],
        };
        let mut next = [1, 2];
        for symbol in order {
            let value = values[usize::from(symbol)];
            let next = &mut next[usize::from(value.is_sign_positive())];
            levels.entries[usize::from(symbol)] = *next as u32;
            levels.symbols[*next] = symbol;
            levels.magnitudes[*next] =
                (magnitude(value) * MEAN_LEVEL / mean).clamp(1, MAX_LEVEL) as u8;
            *next += 2;
        }
        levels
    }

    /// The number of values.
    pub(super) fn k(&self) -> usize {
        self.entries.len()
    }

    /// The level of an entry.
    #[inline(always)]
    pub(super) fn level(&self, entry: u32) -> u64 {
        self.magnitudes[entry as usize].into()
    }

    /// The level of an entry, with its sign.
    #[inline(always)]
    pub(super) fn signed(&self, entry: u32) -> i16 {
        let magnitude = i16::from(self.magnitudes[entry as usize]);
        if entry & 1 == 1 { -magnitude } else { magnitude }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_in_order_with_their_signs_and_magnitudes() {
        let codebook = Codebook::new(vec![2.0, -0.5, 1.0, -1.5, 0.25]).unwrap();
        let levels = Levels::new(&codebook);
        assert_eq!(levels.entries, [6, 1, 4, 3, 2]);
        assert_eq!(levels.symbols, [0, 1, 4, 3, 2, 0, 0]);
        assert_eq!(levels.counts, [2, 3]);
        // The mean magnitude is 5.25 / 5 = 1.05: 1.5 is 45.7 of 32 to the mean, 0.25 is 7.6.
        assert_eq!(levels.magnitudes, [0, 15, 7, 45, 30, 0, 60]);
        assert_eq!([0, 1, 2, 3, 6].map(sign), [0, 1, 2, 1, 2]);
        assert_eq!([0, 1, 2, 3, 6].map(|entry| levels.signed(entry)), [0, -15, 7, -45, 60]);
    }

    #[test]
    fn values_that_arithmetic_would_not_keep_have_levels_too() {
        let bits = [0x8000_0000, 0x7f80_0000, 0xffc0_0001, 0x0000_0001, 0x3f80_0000, 0x0080_0000];
        let levels = Levels::new(&Codebook::new(bits.map(f32::from_bits).to_vec()).unwrap());
        assert_eq!(levels.symbols, [0, 0, 3, 2, 5, 0, 4, 0, 1]);
        assert_eq!(levels.counts, [2, 4]);
        // 2^24 for the NaN and the infinity, 2^23 for 1.0, nothing for the rest: a mean of 6,990,506.
        assert_eq!(levels.magnitudes, [0, 1, 1, 76, 1, 0, 38, 0, 76]);
        let subnormal = Levels::new(&Codebook::new(vec![f32::from_bits(3)]).unwrap());
        assert_eq!(subnormal.magnitudes, [0, 0, 32]);
        assert_eq!(Levels::new(&Codebook::empty()).k(), 0);
    }
}
