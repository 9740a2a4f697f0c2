//! The stream of codewords: 32-bit words, most significant bit first.
//!
//! ```text
//!   word:  │ 0                               │ 1                    …
//!   bit:   │ 31 30 29 28 27 26 …           0 │ 31 30 …
//!   holds: │ ─first─▶│─second─▶│ …    ─the n─th──▶│ …        the rest of the last word is zero
//! ```
//!
//! It is the published stream, and the coded arrangements use it too: a codeword that starts at the
//! top of the window compares as a number, and a left shift drops it. Any position is read by one
//! [`window`] of at least 33 bits.

use crate::error::{Error, Result};

/// Writes fields of up to 32 bits.
#[derive(Debug, Default)]
pub struct Writer {
    words: Vec<u32>,
    /// The last `pending_bits` < 32 bits written, in the low bits; what is above is stale.
    pending: u64,
    pending_bits: u32,
}

impl Writer {
    /// A writer with room for `nbits`.
    pub fn with_capacity(nbits: u64) -> Self {
        Self { words: Vec::with_capacity(nbits.div_ceil(32) as usize), ..Self::default() }
    }

    /// The number of bits written.
    pub fn position(&self) -> u64 {
        self.words.len() as u64 * 32 + u64::from(self.pending_bits)
    }

    /// Appends the low `width` ≤ 32 bits of `value`; higher bits of `value` must be zero.
    #[inline]
    pub fn put(&mut self, value: u32, width: u32) {
        debug_assert!(width == 32 || value >> width == 0);
        self.pending = self.pending << width | u64::from(value);
        self.pending_bits += width;
        if self.pending_bits >= 32 {
            self.pending_bits -= 32;
            self.words.push((self.pending >> self.pending_bits) as u32);
        }
    }

    /// The words, the last one filled with zero bits.
    pub fn finish(mut self) -> Vec<u32> {
        if self.pending_bits > 0 {
            self.words.push((self.pending << (32 - self.pending_bits)) as u32);
        }
        self.words
    }
}

/// The bits from position `at` on, the first one on top: at least 33, zeros past the end.
#[inline]
pub fn window(words: &[u32], at: u64) -> u64 {
    let word = (at / 32) as usize;
    let pair = match words.get(word..word.saturating_add(2)) {
        Some(pair) => u64::from(pair[0]) << 32 | u64::from(pair[1]),
        None => u64::from(words.get(word).copied().unwrap_or(0)) << 32,
    };
    pair << (at % 32)
}

/// Checks that `words` are exactly those of `nbits` bits, the rest of the last one zero.
///
/// # Errors
/// `Corrupt` for another number of words, or bits after the end.
pub fn check_padding(words: &[u32], nbits: u64) -> Result<()> {
    if words.len() as u64 != nbits.div_ceil(32) {
        return Err(Error::corrupt(format!(
            "stream: {} words, expected {} for {nbits} bits",
            words.len(),
            nbits.div_ceil(32)
        )));
    }
    match words.last() {
        Some(&last) if !nbits.is_multiple_of(32) && last << (nbits % 32) != 0 => {
            Err(Error::corrupt(format!(
                "stream: last word is {last:#010x}, expected zeros after bit {}",
                nbits % 32
            )))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_come_back_from_any_position(fields in prop::collection::vec((any::<u32>(), 0u32..=32), 0..200)) {
            let mut writer = Writer::default();
            let mut starts = Vec::new();
            for &(value, width) in &fields {
                starts.push(writer.position());
                writer.put((u64::from(value) & ((1 << width) - 1)) as u32, width);
            }
            let nbits = writer.position();
            let words = writer.finish();
            prop_assert!(check_padding(&words, nbits).is_ok());
            prop_assert!(check_padding(&words, nbits + 32).is_err());
            for (&(value, width), &at) in fields.iter().zip(&starts) {
                let found = window(&words, at) >> 1 >> (63 - width);
                prop_assert_eq!(found, u64::from(value) & ((1 << width) - 1));
            }
        }
    }

    #[test]
    fn the_first_bit_is_the_top_one_and_bits_after_the_end_are_found() {
        let mut writer = Writer::default();
        writer.put(1, 1);
        writer.put(0b011, 3);
        assert_eq!(writer.finish(), [0b1011 << 28]);
        assert!(check_padding(&[0b1011 << 28], 4).is_ok());
        assert!(check_padding(&[0b1011 << 28], 3).is_err());
        assert_eq!(window(&[1, 2], u64::MAX), 0);
    }
}
