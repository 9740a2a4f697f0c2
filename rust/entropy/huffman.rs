//! Canonical, length-limited Huffman codes.
//!
//! ```text
//!   encode: histogram ─lengths─▶ code lengths ─Code─▶ codewords ─Writer─▶ 32-bit words
//!   decode: code lengths ─Code─▶ Decoder: 11 bits ──table──▶ up to three symbols
//!                                              └─long─▶ search by length ─▶ one symbol
//! ```
//!
//! Canonical means that the lengths alone give the code: symbols are put in order of (length,
//! symbol), and codewords count upwards, so the shortest are numerically the smallest.
//!
//! ```text
//!   symbol  a  b  c  d      rank     0   1   2    3       first rank of length   0: 0  1: 0  2: 1  3: 2
//!   length  2  1  3  3      symbol   b   a   c    d       left-justified first   0: 0  1: 0  2: 4  3: 6
//!                           codeword 0   10  110  111     codeword (3 bits)      end: 8
//! ```
//!
//! An alphabet with one symbol costs no bits: its length is written as 1, with no other length
//! beside it, and its codeword is empty. No symbols at all is a code too, of nothing.
//!
//! Why this one: whole bits a symbol cost up to a few percent over the entropy, but a code is a few
//! dozen bytes, rows can start at any bit, and a look-up of 8 KiB of table decodes several symbols.
//! Lengths stop at [`MAX_BITS`] = 24, so that one 33-bit read holds any codeword; the limit changes
//! a code only where a symbol is rarer than about 1 in 100,000.
//!
//! Price: lengths O(k log k + 24·k), a decoder about 0.04 ms and 8 KiB + 4 k bytes.
//!
//! Source: Huffman 1952; Schwartz and Kallick 1964 (canonical order); Larmore and Hirschberg 1990
//! (package-merge); Moffat and Turpin 1997 (decoding by left-justified first codewords).

mod decoder;
mod lengths;
mod stream;

pub use decoder::{Decoder, LANES, Lane, PRIMARY_BITS, Search};
pub use lengths::lengths;
pub use stream::{Writer, check_padding, window};

use crate::array::Array;
use crate::bits;
use crate::error::{Error, Result};

/// The longest codeword: what fits in one [`window`], and ⌈log2 k⌉ + 4 for any k.
pub const MAX_BITS: u32 = 24;

/// A complete canonical code, the one-symbol code, or the code of nothing.
#[derive(Clone, Debug)]
pub struct Code {
    /// The length of each symbol's codeword, 0 where it has none; 1 for a symbol alone.
    lengths: Vec<u8>,
    /// The symbols that have a codeword, in the codewords' order.
    order: Vec<u32>,
    /// The longest codeword's length, 0 for a symbol alone.
    longest: u32,
    /// For each length in [0, longest + 1] the number of shorter codewords.
    first_ranks: Vec<u32>,
    /// For each length in [0, longest + 1] the first codeword, left-justified in `longest` bits;
    /// the last is 2^longest. Never falls.
    first_codewords: Vec<u32>,
}

impl Code {
    /// The optimal code for symbols that occur `histogram[symbol]` times.
    pub fn from_histogram(histogram: &[u64]) -> Self {
        Self::build(lengths(histogram, MAX_BITS))
    }

    /// The code with these `lengths`, 0 for a symbol that has no codeword.
    ///
    /// # Errors
    /// `Corrupt` unless the codewords fill the code space exactly, or there is one symbol, with
    /// length 1, or none.
    pub fn from_lengths(lengths: Vec<u8>) -> Result<Self> {
        let mut used = 0u64;
        let mut space = 0u64;
        for (symbol, &length) in lengths.iter().enumerate() {
            if u32::from(length) > MAX_BITS {
                return Err(Error::corrupt(format!(
                    "huffman: symbol {symbol} has code length {length}, expected at most {MAX_BITS}"
                )));
            }
            if length > 0 {
                used += 1;
                space += 1 << (MAX_BITS - u32::from(length));
            }
        }
        let expected = match used {
            0 => 0,
            1 => 1 << (MAX_BITS - 1),
            _ => 1 << MAX_BITS,
        };
        if space != expected {
            return Err(Error::corrupt(format!(
                "huffman: {used} code lengths take {space} / 2^{MAX_BITS} of the code space, \
                 expected {expected} / 2^{MAX_BITS}"
            )));
        }
        Ok(Self::build(lengths))
    }

    /// Takes `nsymbols` code lengths stored in fields of `width` bits.
    ///
    /// # Errors
    /// `Corrupt` for another size or another width than needed, set padding, or no valid code.
    pub fn unpack(stored: &Array<u8>, nsymbols: usize, width: u64) -> Result<Self> {
        let width = u32::try_from(width).ok().filter(|&w| w <= bits::bit_width(MAX_BITS.into()));
        let nbytes = width.and_then(|w| bits::packed_nbytes(nsymbols, w));
        let (Some(width), true) = (width, nbytes == Some(stored.len())) else {
            return Err(Error::corrupt(format!(
                "huffman: {} bytes of code lengths, expected {nbytes:?} for {nsymbols} symbols",
                stored.len()
            )));
        };
        if width == 0 && nsymbols > 0 {
            return Err(Error::corrupt(
                "huffman: code lengths of 0 bits, expected 1 to 5".to_string(),
            ));
        }
        let stored = stored.as_slice();
        let field = |symbol: usize| bits::field(stored, symbol * width as usize, width) as u8;
        let code = Self::from_lengths((0..nsymbols).map(field).collect())?;
        if code.pack() != (stored.to_vec(), width.into()) {
            return Err(Error::corrupt(format!(
                "huffman: code lengths in {width} bits, expected the fewest bits and zero padding"
            )));
        }
        Ok(code)
    }

    /// The code lengths in fields of the fewest bits (at least one where there are symbols), and
    /// that width.
    pub fn pack(&self) -> (Vec<u8>, u64) {
        let longest = self.lengths.iter().copied().max().map_or(0, |length| length.max(1));
        let width = bits::bit_width(longest.into());
        (bits::pack(self.lengths.iter().map(|&l| l.into()), width), width.into())
    }

    fn build(lengths: Vec<u8>) -> Self {
        let mut order: Vec<u32> =
            (0..lengths.len() as u32).filter(|&s| lengths[s as usize] > 0).collect();
        order.sort_by_key(|&symbol| lengths[symbol as usize]);
        let longest = match order[..] {
            [] | [_] => 0,
            [.., last] => u32::from(lengths[last as usize]),
        };
        let mut counts = vec![0u32; longest as usize + 1];
        for &symbol in &order {
            counts[u32::from(lengths[symbol as usize]).min(longest) as usize] += 1;
        }
        let (mut first_ranks, mut first_codewords) = (vec![0], vec![0]);
        let (mut rank, mut codeword) = (0, 0);
        for (length, count) in counts.into_iter().enumerate() {
            rank += count;
            codeword += count << (longest - length as u32);
            first_ranks.push(rank);
            first_codewords.push(codeword);
        }
        Self { lengths, order, longest, first_ranks, first_codewords }
    }

    /// The number of symbols, with a codeword or without.
    pub fn nsymbols(&self) -> usize {
        self.lengths.len()
    }

    /// The symbols that have a codeword, in the codewords' order: shortest first.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The length of the longest codeword in bits: 0 for a symbol alone.
    pub fn longest(&self) -> u32 {
        self.longest
    }

    /// For each length in [0, longest + 1] the number of shorter codewords.
    pub fn first_ranks(&self) -> &[u32] {
        &self.first_ranks
    }

    /// For each length in [0, longest + 1] the first codeword, left-justified in `longest` bits;
    /// the last is 2^longest.
    pub fn first_codewords(&self) -> &[u32] {
        &self.first_codewords
    }

    /// The code of the codewords' ranks: the same codewords for symbols 0, 1, 2, … in their order.
    pub fn by_rank(&self) -> Self {
        Self::build(self.order.iter().map(|&symbol| self.lengths[symbol as usize]).collect())
    }

    /// The bits of `symbol`'s codeword; 0 for a symbol alone or one without a codeword.
    pub fn length(&self, symbol: usize) -> u32 {
        u32::from(self.lengths[symbol]).min(self.longest)
    }

    /// Each symbol's codeword and its length, for an encoder.
    pub fn codewords(&self) -> Vec<(u32, u32)> {
        let mut codewords = vec![(0, 0); self.lengths.len()];
        for (rank, &symbol) in self.order.iter().enumerate() {
            let length = self.length(symbol as usize);
            let first = self.first_codewords[length as usize] >> (self.longest - length);
            let codeword = first + rank as u32 - self.first_ranks[length as usize];
            codewords[symbol as usize] = (codeword, length);
        }
        codewords
    }

    /// The bits that symbols with this `histogram` take.
    pub fn cost(&self, histogram: &[u64]) -> u64 {
        histogram.iter().enumerate().map(|(s, &count)| count * u64::from(self.length(s))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_the_module_page_comes_out() {
        let code = Code::from_lengths(vec![2, 1, 3, 3]).unwrap();
        assert_eq!(code.order(), [1, 0, 2, 3]);
        assert_eq!(code.codewords(), [(0b10, 2), (0b0, 1), (0b110, 3), (0b111, 3)]);
        assert_eq!(code.first_ranks(), [0, 0, 1, 2, 4]);
        assert_eq!(code.first_codewords(), [0, 0, 4, 6, 8]);
        assert_eq!(code.by_rank().codewords(), [(0, 1), (0b10, 2), (0b110, 3), (0b111, 3)]);
    }

    #[test]
    fn rfc_1951s_example_comes_out() {
        // RFC 1951, 3.2.2: the alphabet A to H with lengths 3, 3, 3, 3, 3, 2, 4, 4.
        let code = Code::from_lengths(vec![3, 3, 3, 3, 3, 2, 4, 4]).unwrap();
        let expected = [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111];
        assert_eq!(code.codewords().iter().map(|c| c.0).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn lengths_of_up_to_six_symbols_are_accepted_exactly_when_they_are_a_code() {
        for nsymbols in 0..=6u32 {
            for number in 0..9usize.pow(nsymbols) {
                let lengths: Vec<u8> =
                    (0..nsymbols).map(|i| (number / 9usize.pow(i) % 9) as u8).collect();
                let kraft: f64 =
                    lengths.iter().filter(|&&l| l > 0).map(|&l| 0.5f64.powi(l.into())).sum();
                let used = lengths.iter().filter(|&&l| l > 0).count();
                let is_code = kraft == 1.0 || used == 0 || (used == 1 && kraft == 0.5);
                assert_eq!(Code::from_lengths(lengths.clone()).is_ok(), is_code, "{lengths:?}");
            }
        }
    }

    #[test]
    fn one_symbol_costs_nothing_and_none_is_a_code() {
        let alone = Code::from_histogram(&[0, 0, 7]);
        assert_eq!((alone.longest(), alone.cost(&[0, 0, 7])), (0, 0));
        assert_eq!((alone.order(), alone.codewords()), (&[2u32][..], vec![(0, 0); 3]));
        assert_eq!((alone.first_ranks(), alone.first_codewords()), (&[0, 1][..], &[0, 1][..]));
        let none = Code::from_histogram(&[0, 0]);
        assert_eq!((none.longest(), none.order().len()), (0, 0));
        for code in [alone, none, Code::from_histogram(&[]), Code::from_histogram(&[5, 1, 1])] {
            let (packed, width) = code.pack();
            let again = Code::unpack(&packed.into(), code.nsymbols(), width).unwrap();
            assert_eq!(again.lengths, code.lengths);
        }
    }

    #[test]
    fn stored_lengths_of_another_size_width_or_padding_are_errors() {
        let code = Code::from_lengths(vec![1, 2, 2]).unwrap();
        assert_eq!(code.pack(), (vec![0b10_10_01], 2));
        let unpack = |byte: u8, nsymbols, width| Code::unpack(&vec![byte].into(), nsymbols, width);
        assert!(unpack(0b10_10_01, 3, 2).is_ok());
        assert!(unpack(0b01_10_10_01, 3, 2).is_err(), "padding");
        assert!(unpack(0b10_10_01, 5, 2).is_err(), "size");
        assert!(unpack(0b10_10_01, 2, 2).is_err(), "incomplete");
        assert!(unpack(0b010_001, 2, 3).is_err(), "incomplete");
        assert!(unpack(0b001_001, 2, 3).is_err(), "width");
        assert!(unpack(0, 3, 65).is_err());
        assert!(Code::unpack(&vec![].into(), usize::MAX, 0).is_err());
        assert!(Code::unpack(&vec![0; 8].into(), usize::MAX, 5).is_err());
    }
}
