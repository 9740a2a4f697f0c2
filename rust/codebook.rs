//! The codebook: the k distinct kept values of a matrix, its shared weights.
//!
//! Values are told apart by their bits, so −0.0, subnormals and every NaN payload are values of
//! their own. Only +0.0 means pruned, and it is never in a codebook. A codebook made from weights
//! is ascending in the total order of IEEE 754 (−NaN < −∞ < … < −0.0 < … < ∞ < NaN); one that is
//! given keeps its order, since several matrices may share it.

use crate::array::Array;
use crate::error::{Error, Result};
use std::collections::HashMap;

/// The largest number of values a codebook holds: symbols are 16 bits wide.
pub const MAX_K: usize = 1 << 16;

/// Distinct values by bit pattern, at most [`MAX_K`] of them, without +0.0.
#[derive(Clone, Debug)]
pub struct Codebook {
    values: Array<f32>,
}

impl Codebook {
    /// A codebook of `values` in the order given.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 65,536 values, a repeated value, or +0.0.
    pub fn new(values: impl Into<Array<f32>>) -> Result<Self> {
        let values = values.into();
        let slice = values.as_slice();
        if slice.len() > MAX_K {
            return Err(Error::invalid(format!(
                "codebook: {} values, expected at most {MAX_K}",
                slice.len()
            )));
        }
        let mut seen = HashMap::with_capacity(slice.len());
        for (symbol, value) in slice.iter().enumerate() {
            if value.to_bits() == 0 {
                return Err(Error::invalid(format!(
                    "codebook: value {symbol} is +0.0, which means pruned, expected a kept value"
                )));
            }
            if let Some(first) = seen.insert(value.to_bits(), symbol) {
                return Err(Error::invalid(format!(
                    "codebook: values {first} and {symbol} are both {value:?}, expected distinct values"
                )));
            }
        }
        Ok(Self { values })
    }

    /// The codebook with no values, of a matrix with nothing kept.
    pub fn empty() -> Self {
        Self { values: Vec::new().into() }
    }

    /// The number of values.
    pub fn k(&self) -> usize {
        self.values.len()
    }

    /// The values; a symbol is an index into them.
    pub fn values(&self) -> &[f32] {
        self.values.as_slice()
    }

    /// The little-endian bytes of the values.
    pub fn as_bytes(&self) -> &[u8] {
        self.values.as_bytes()
    }
}

/// The place of `value` in the total order of IEEE 754, as an unsigned number.
pub fn total_order(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Numbers distinct values as they come, in one pass: an open-addressing table from bits to a
/// provisional symbol.
///
/// Weights repeat, so the common case is one probe of a table that fits in the second-level cache.
pub struct Numbering {
    /// (bits, provisional symbol); bits 0 marks a free slot, since +0.0 is never numbered.
    slots: Vec<(u32, u16)>,
    values: Vec<f32>,
}

impl Numbering {
    /// A numbering of nothing yet.
    pub fn new() -> Self {
        Self { slots: vec![(0, 0); 1 << 10], values: Vec::new() }
    }

    /// The provisional symbol of `value` (not +0.0); none once more than [`MAX_K`] were seen.
    #[inline]
    pub fn number(&mut self, value: f32) -> Option<u16> {
        let bits = value.to_bits();
        debug_assert!(bits != 0);
        let mask = self.slots.len() - 1;
        let mut at = (bits.wrapping_mul(0x9e37_79b1) >> 7) as usize & mask;
        loop {
            match self.slots[at] {
                (found, symbol) if found == bits => return Some(symbol),
                (0, _) => return self.insert(value, at),
                _ => at = (at + 1) & mask,
            }
        }
    }

    #[cold]
    fn insert(&mut self, value: f32, at: usize) -> Option<u16> {
        let symbol = u16::try_from(self.values.len()).ok()?;
        self.slots[at] = (value.to_bits(), symbol);
        self.values.push(value);
        if self.values.len() * 2 > self.slots.len() {
            let mask = self.slots.len() * 4 - 1;
            let mut slots = vec![(0, 0); mask + 1];
            for (symbol, value) in self.values.iter().enumerate() {
                let bits = value.to_bits();
                let mut at = (bits.wrapping_mul(0x9e37_79b1) >> 7) as usize & mask;
                while slots[at].0 != 0 {
                    at = (at + 1) & mask;
                }
                slots[at] = (bits, symbol as u16);
            }
            self.slots = slots;
        }
        Some(symbol)
    }

    /// The codebook in ascending total order, and the symbol of each provisional one.
    pub fn finish(self) -> (Codebook, Vec<u16>) {
        let mut order: Vec<u16> = (0..self.values.len()).map(|i| i as u16).collect();
        order.sort_unstable_by_key(|&i| total_order(self.values[usize::from(i)]));
        let mut symbols = vec![0; order.len()];
        for (symbol, &provisional) in order.iter().enumerate() {
            symbols[usize::from(provisional)] = symbol as u16;
        }
        let values: Vec<f32> = order.iter().map(|&i| self.values[usize::from(i)]).collect();
        (Codebook { values: values.into() }, symbols)
    }
}

impl Default for Numbering {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbering_finds_the_distinct_bit_patterns_in_order(bits in prop::collection::vec(1u32.., 0..3000)) {
            let weights: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
            let mut numbering = Numbering::new();
            let provisional: Vec<u16> = weights.iter().map(|&w| numbering.number(w).unwrap()).collect();
            let (codebook, symbols) = numbering.finish();
            let mut expected = weights.clone();
            expected.sort_by(f32::total_cmp);
            expected.dedup_by_key(|v| v.to_bits());
            let found: Vec<u32> = codebook.values().iter().map(|v| v.to_bits()).collect();
            prop_assert_eq!(found, expected.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            for (w, p) in weights.iter().zip(provisional) {
                let value = codebook.values()[usize::from(symbols[usize::from(p)])];
                prop_assert_eq!(value.to_bits(), w.to_bits());
            }
        }
    }

    #[test]
    fn the_65_537th_value_has_no_number() {
        let mut numbering = Numbering::new();
        for i in 1..=65_536u32 {
            assert!(numbering.number(f32::from_bits(i)).is_some());
        }
        assert!(numbering.number(f32::from_bits(7)).is_some());
        assert!(numbering.number(f32::from_bits(65_537)).is_none());
    }

    #[test]
    fn a_repeated_value_and_plus_zero_are_errors_and_minus_zero_and_nans_are_fine() {
        assert!(Codebook::new(vec![1.0, 2.0, 1.0]).is_err());
        assert!(Codebook::new(vec![0.0]).is_err());
        let odd = vec![-0.0, f32::NAN, f32::from_bits(0x7fc0_0001), f32::INFINITY, 1e-45];
        assert_eq!(Codebook::new(odd).unwrap().k(), 5);
    }
}
