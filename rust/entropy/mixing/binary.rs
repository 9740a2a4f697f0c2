//! The arithmetic coder: bits with probabilities of 16 bits, as bytes.
//!
//! ```text
//!   low, high = 0, 2³² − 1                             what the bits so far leave of all numbers
//!   bit with p:  middle = low + ⌊(high − low)·p / 2¹⁶⌋;   1: high = middle;   0: low = middle + 1
//!   while low and high have the same top byte: it goes out, or a byte comes in; both move up by 8
//! ```
//!
//! A stream ends with the fewest bytes that name a number of the last interval, where zeros follow:
//! a decoder knows them, and takes no others.

use crate::error::{Error, Result};

/// Codes bits: an encoder takes them as they are given, a decoder finds them.
pub trait BinaryCoder {
    /// Whether bits are found, not taken.
    const DECODES: bool;

    /// Codes a bit that is 1 with probability `p` / 65,536, 0 < p < 65,536; gives the bit. What is
    /// given as `bit` means nothing to a decoder.
    fn code(&mut self, bit: u32, p: u32) -> u32;

    /// Fails once a decoder has read further than a stream that was written so could be.
    ///
    /// # Errors
    /// `Truncated`.
    fn check(&self) -> Result<()>;
}

/// What the bits so far leave of all numbers of 32 bits, both ends included.
#[derive(Clone, Copy, Debug)]
struct Interval {
    low: u32,
    high: u32,
}

impl Interval {
    const WHOLE: Self = Self { low: 0, high: u32::MAX };

    #[inline(always)]
    fn middle(self, p: u32) -> u32 {
        debug_assert!(0 < p && p < 1 << 16);
        self.low + ((u64::from(self.high - self.low) * u64::from(p)) >> 16) as u32
    }

    #[inline(always)]
    fn take(&mut self, bit: u32, middle: u32) {
        if bit == 1 {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
    }

    /// True when the top byte is decided.
    #[inline(always)]
    fn is_narrow(self) -> bool {
        (self.low ^ self.high) >> 24 == 0
    }

    #[inline(always)]
    fn widen(&mut self) {
        self.low <<= 8;
        self.high = self.high << 8 | 0xff;
    }

    /// The fewest bytes that, followed by zeros, are a number of the interval.
    fn last_bytes(self) -> ([u8; 4], usize) {
        for nbytes in 0..4 {
            let unit = 1u64 << (32 - 8 * nbytes);
            let number = u64::from(self.low).next_multiple_of(unit);
            if number <= u64::from(self.high) {
                return ((number as u32).to_be_bytes(), nbytes);
            }
        }
        (self.low.to_be_bytes(), 4)
    }
}

/// Turns bits into bytes.
#[derive(Debug)]
pub struct Encoder {
    interval: Interval,
    bytes: Vec<u8>,
}

impl Encoder {
    /// An encoder of nothing yet.
    pub fn new() -> Self {
        Self { interval: Interval::WHOLE, bytes: Vec::new() }
    }

    /// The number of bytes that are decided.
    pub fn nbytes(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of all bits.
    pub fn finish(mut self) -> Vec<u8> {
        let (bytes, nbytes) = self.interval.last_bytes();
        self.bytes.extend_from_slice(&bytes[..nbytes]);
        self.bytes
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl BinaryCoder for Encoder {
    const DECODES: bool = false;

    #[inline(always)]
    fn code(&mut self, bit: u32, p: u32) -> u32 {
        let middle = self.interval.middle(p);
        self.interval.take(bit, middle);
        while self.interval.is_narrow() {
            self.bytes.push((self.interval.high >> 24) as u8);
            self.interval.widen();
        }
        bit
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Finds bits in bytes.
#[derive(Debug)]
pub struct Decoder<'a> {
    interval: Interval,
    /// The number that the bytes name, as far as they were read.
    number: u32,
    bytes: &'a [u8],
    /// Bytes read, zeros after the end included.
    read: usize,
}

impl<'a> Decoder<'a> {
    /// A decoder at the first bit.
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { interval: Interval::WHOLE, number: 0, bytes, read: 0 };
        (0..4).for_each(|_| decoder.read_byte());
        decoder
    }

    #[inline(always)]
    fn read_byte(&mut self) {
        let byte = self.bytes.get(self.read).copied().unwrap_or(0);
        self.number = self.number << 8 | u32::from(byte);
        self.read += 1;
    }

    /// Checks that the bytes are those that an encoder of the same bits makes.
    ///
    /// # Errors
    /// `Truncated` or `Corrupt`.
    pub fn finish(self) -> Result<()> {
        self.check()?;
        // The last four bytes that were read are still open.
        let decided = self.read - 4;
        let (last, nbytes) = self.interval.last_bytes();
        let found = self.bytes.get(decided..).unwrap_or(&[]);
        if found == &last[..nbytes] {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "stream: ends with {} bytes after byte {decided}, expected the {nbytes} that end it",
            found.len()
        )))
    }
}

impl BinaryCoder for Decoder<'_> {
    const DECODES: bool = true;

    #[inline(always)]
    fn code(&mut self, _: u32, p: u32) -> u32 {
        let middle = self.interval.middle(p);
        let bit = u32::from(self.number <= middle);
        self.interval.take(bit, middle);
        while self.interval.is_narrow() {
            self.interval.widen();
            self.read_byte();
        }
        bit
    }

    fn check(&self) -> Result<()> {
        if self.read <= self.bytes.len() + 4 {
            return Ok(());
        }
        Err(Error::truncated("stream", self.read as u64 - 4, self.bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(bits: &[(u32, u32)]) -> Vec<u8> {
        let mut encoder = Encoder::new();
        bits.iter().for_each(|&(bit, p)| {
            encoder.code(bit, p);
        });
        encoder.finish()
    }

    proptest! {
        #[test]
        fn bits_come_back_and_take_what_their_probabilities_say(
            bits in prop::collection::vec((0u32..2, 1u32..65_536), 0..2000)
        ) {
            let bytes = encode(&bits);
            let mut decoder = Decoder::new(&bytes);
            for &(bit, p) in &bits {
                prop_assert_eq!(decoder.code(0, p), bit);
            }
            decoder.finish().unwrap();
            let cost = |&(bit, p): &(u32, u32)| {
                let p = f64::from(p) / 65_536.0;
                -(if bit == 1 { p } else { 1.0 - p }).log2()
            };
            let expected: f64 = bits.iter().map(cost).sum::<f64>() / 8.0;
            prop_assert!(bytes.len() as f64 <= expected * 1.01 + 8.0, "{} {expected}", bytes.len());
        }

        #[test]
        fn a_stream_that_is_cut_or_goes_on_is_an_error(
            bits in prop::collection::vec((0u32..2, 1u32..65_536), 1..200), cut in 1usize..9, more in 0u8..=255
        ) {
            let bytes = encode(&bits);
            let read = |bytes: &[u8]| {
                let mut decoder = Decoder::new(bytes);
                let same = bits.iter().all(|&(bit, p)| decoder.code(0, p) == bit);
                decoder.finish().is_ok() && same
            };
            prop_assert!(read(&bytes));
            prop_assert!(!read(&[bytes.as_slice(), &[more]].concat()));
            if let Some(cut) = bytes.len().checked_sub(cut) {
                prop_assert!(!read(&bytes[..cut]));
            }
        }
    }

    #[test]
    fn a_stream_worked_out_by_hand_comes_out() {
        // Halves: 1 leaves 0 … 7FFFFFFF, 0 leaves 40000000 … 7FFFFFFF: 40 is the shortest end.
        assert_eq!(encode(&[(1, 32_768), (0, 32_768)]), [0x40]);
        // All numbers, or the lower ones: no byte at all.
        assert!(encode(&[]).is_empty());
        assert!(encode(&[(1, 32_768)]).is_empty());
        // Eight ones of a half leave 0 … 00FFFFFF: the byte 00 is decided, and goes out.
        assert_eq!(encode(&[(1, 32_768); 8]), [0]);
    }
}
