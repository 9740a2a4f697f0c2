//! A rising sequence of offsets, one a row, stored as differences with random access.
//!
//! `n + 1` offsets 0 = o₀ ≤ o₁ ≤ … ≤ oₙ (where each row's bits end, say) are stored as the `n`
//! lengths less the shortest one, in fields of one width, and one absolute offset for every
//! [`STRIDE`] rows:
//!
//! ```text
//!   bits: │ o₀ │ o₆₄ │ o₁₂₈ │ … │ oₙ │ l₀−min │ l₁−min │ … │ lₙ₋₁−min │
//!          ⌈n/64⌉ + 1 fields of       n fields of `length_width` bits
//!          `base_width` bits
//! ```
//!
//! Reading offset `i` costs at most 63 additions. Four numbers (`n`, `min`, the two widths) are
//! parameters; the reader checks that lengths and absolute offsets agree.

use crate::array::Array;
use crate::bits;
use crate::error::{Error, Result};

/// Rows between two absolute offsets.
pub const STRIDE: usize = 64;

/// A compact rising sequence that starts at 0.
#[derive(Clone, Debug)]
pub struct Offsets {
    len: usize,
    min: u64,
    length_width: u32,
    base_width: u32,
    bits: Array<u8>,
}

impl Offsets {
    /// The offsets at which rows of these `lengths` end, the sum below 2⁵⁶.
    pub fn from_lengths(lengths: &[u64]) -> Self {
        let min = lengths.iter().copied().min().unwrap_or(0);
        let max = lengths.iter().copied().max().unwrap_or(0);
        let total: u64 = lengths.iter().sum();
        assert!(total < 1 << 56, "offsets: sum {total} is too large");
        let (length_width, base_width) = (bits::bit_width(max - min), bits::bit_width(total));
        let mut writer = bits::BitWriter::new();
        let mut offset = 0;
        for group in lengths.chunks(STRIDE) {
            writer.put(offset, base_width);
            offset += group.iter().sum::<u64>();
        }
        writer.put(offset, base_width);
        for length in lengths {
            writer.put(length - min, length_width);
        }
        Self { len: lengths.len(), min, length_width, base_width, bits: writer.finish().into() }
    }

    /// The parameters that [`Offsets::read`] needs beside the bytes: min and the two widths.
    pub fn params(&self) -> [u64; 3] {
        [self.min, u64::from(self.length_width), u64::from(self.base_width)]
    }

    /// The stored bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bits.as_slice()
    }

    /// Takes `len` rows' offsets that end at `total` from stored `params` and `bits`.
    ///
    /// # Errors
    /// `Corrupt` when the size, the widths, an absolute offset or the end do not agree.
    pub fn read(len: usize, total: u64, params: [u64; 3], bits: Array<u8>) -> Result<Self> {
        let [min, length_width, base_width] = params;
        if length_width > 56 || base_width > 56 || min >= 1 << 56 {
            return Err(Error::corrupt(format!(
                "offsets: min {min} and widths {length_width} and {base_width}, expected under 57 bits"
            )));
        }
        let offsets = Self {
            len,
            min,
            length_width: length_width as u32,
            base_width: base_width as u32,
            bits,
        };
        let expected = offsets
            .lengths_at()
            .and_then(|at| len.checked_mul(length_width as usize)?.checked_add(at))
            .map(|bits| bits.div_ceil(8));
        if expected != Some(offsets.bits.len()) {
            return Err(Error::corrupt(format!(
                "offsets: {} bytes, expected {expected:?} for {len} rows",
                offsets.bits.len()
            )));
        }
        if length_width == 0 && base_width == 0 {
            // No bytes tell the number of rows, so they are not counted one by one.
            return match (min.checked_mul(len as u64), total) {
                (Some(0), 0) => Ok(offsets),
                _ => Err(Error::corrupt(format!("offsets: {len} rows of {min}, expected {total}"))),
            };
        }
        let mut offset = 0u64;
        for row in 0..len {
            if row % STRIDE == 0 && offsets.base(row / STRIDE) != offset {
                return Err(Error::corrupt(format!(
                    "offsets: row {row} starts at {}, expected {offset}",
                    offsets.base(row / STRIDE)
                )));
            }
            offset = offset
                .checked_add(offsets.length(row))
                .filter(|&o| o <= total)
                .ok_or_else(|| Error::corrupt(format!("offsets: row {row} ends past {total}")))?;
        }
        if offset != total || offsets.base(len.div_ceil(STRIDE)) != total {
            return Err(Error::corrupt(format!("offsets: end at {offset}, expected {total}")));
        }
        Ok(offsets)
    }

    /// True when [`Offsets::from_lengths`] makes the same bytes of the same lengths.
    pub fn is_shortest(&self) -> bool {
        let (mut min, mut max) = (u64::MAX, 0);
        for row in 0..self.len {
            let length = self.length(row);
            (min, max) = (min.min(length), max.max(length));
        }
        let min = min.min(max);
        let used = self.lengths_at().unwrap_or(0) + self.len * self.length_width as usize;
        (self.min, self.length_width) == (min, bits::bit_width(max - min))
            && self.base_width == bits::bit_width(self.start(self.len))
            && bits::peek(self.bits.as_slice(), used) == 0
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where row `row` starts, for `row` in [0, len]; at `len`, the end of all.
    pub fn start(&self, row: usize) -> u64 {
        assert!(row <= self.len, "offsets: row {row} of {}", self.len);
        if row == self.len {
            return self.base(self.len.div_ceil(STRIDE));
        }
        let first = row / STRIDE * STRIDE;
        self.base(row / STRIDE) + (first..row).map(|r| self.length(r)).sum::<u64>()
    }

    /// The length of row `row`, in [0, len).
    #[inline]
    pub fn length(&self, row: usize) -> u64 {
        let lengths_at = (self.len.div_ceil(STRIDE) + 1) * self.base_width as usize;
        let at = lengths_at + row * self.length_width as usize;
        self.min + bits::field(self.bits.as_slice(), at, self.length_width)
    }

    /// The lengths of as many rows as `out` holds, from `row` on, each under 2³².
    pub fn lengths(&self, row: usize, out: &mut [u32]) {
        assert!(row + out.len() <= self.len, "offsets: rows {row} + {} of {}", out.len(), self.len);
        let lengths_at = (self.len.div_ceil(STRIDE) + 1) * self.base_width as usize;
        let mut at = lengths_at + row * self.length_width as usize;
        for out in out {
            *out = (self.min + bits::field(self.bits.as_slice(), at, self.length_width)) as u32;
            at += self.length_width as usize;
        }
    }

    fn base(&self, group: usize) -> u64 {
        bits::field(self.bits.as_slice(), group * self.base_width as usize, self.base_width)
    }

    /// The bit at which the lengths start; none when it overflows.
    fn lengths_at(&self) -> Option<usize> {
        (self.len.div_ceil(STRIDE) + 1).checked_mul(self.base_width as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn starts_are_the_sums_of_lengths(lengths in prop::collection::vec(0u64..5000, 0..300)) {
            let offsets = Offsets::from_lengths(&lengths);
            let total = lengths.iter().sum();
            let again = Offsets::read(lengths.len(), total, offsets.params(), offsets.as_bytes().to_vec().into()).unwrap();
            prop_assert!(again.is_shortest());
            let mut sum = 0;
            for (row, &length) in lengths.iter().enumerate() {
                prop_assert_eq!(again.start(row), sum);
                prop_assert_eq!(again.length(row), length);
                sum += length;
            }
            prop_assert_eq!(again.start(lengths.len()), sum);
        }

        #[test]
        fn a_flipped_bit_is_an_error_or_changes_nothing_that_is_read(
            lengths in prop::collection::vec(0u64..50, 1..200), seed in any::<usize>()
        ) {
            let offsets = Offsets::from_lengths(&lengths);
            let mut bytes = offsets.as_bytes().to_vec();
            prop_assume!(!bytes.is_empty());
            let bit = seed % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(again) = Offsets::read(lengths.len(), lengths.iter().sum(), offsets.params(), bytes.into()) {
                // Only padding bits can flip without notice.
                for (row, &length) in lengths.iter().enumerate() {
                    prop_assert_eq!(again.length(row), length);
                }
            }
        }
    }
}
