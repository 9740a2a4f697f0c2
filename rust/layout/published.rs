//! The published arrays of a canonical Huffman code, and which arrangement a matrix is in.
//!
//! For k symbols in the order of their codewords, the longest of L bits:
//!
//! ```text
//!   first_symbols:   bit_req(k)  [L + 1]   for each length in [0, L] the first symbol of it
//!   first_codewords: bit_req(2^L)[L + 2]   the first codeword, left-justified in L bits; then 2^L
//!   length_starts:   bit_req(L)  [2^t]     from the t = ⌈log2 L⌉ leading bits of a window the
//!                                          length to start the search at; nothing for L < 2
//! ```
//!
//! ```text
//!   decode: v = next L bits;  l = length_starts[v >> (L − t)]
//!           while v ≥ first_codewords[l + 1]: l += 1
//!           symbol = first_symbols[l] + ((v − first_codewords[l]) >> (L − l))
//! ```
//!
//! The reader takes the lengths from `first_symbols`, and the other arrays must be the ones that
//! follow, so a file whose arrays disagree is refused.
//!
//! Source: Marinò et al. 2021; Moffat and Turpin 1997.

use super::{Columns, Parts};
use crate::entropy::huffman::{Code, MAX_BITS};
use crate::error::{Error, Result};
use crate::words::Words;

/// The first parameter of hac and shac in the coded arrangement.
pub(super) const CODED: u64 = 0;
/// The first parameter of hac and shac in the published arrangement.
pub(super) const RAW: u64 = 1;

/// The three arrays of a code.
#[derive(Debug)]
pub(super) struct CodeTable {
    first_symbols: Words,
    first_codewords: Words,
    length_starts: Words,
}

impl CodeTable {
    /// The arrays of `code`.
    pub(super) fn new(code: &Code) -> Self {
        let longest = code.longest();
        let (ranks, codewords) = (code.first_ranks(), code.first_codewords());
        let lengths = (0..1u64 << leading_bits(longest)).map(|leading| {
            let window = leading << (longest - leading_bits(longest));
            let length = codewords[1..].iter().position(|&next| window < u64::from(next));
            length.unwrap_or(0) as u64
        });
        let starts = if longest < 2 { 0 } else { 1 << leading_bits(longest) };
        Self {
            first_symbols: Words::pack(
                ranks[..=longest as usize].iter().map(|&r| r.into()),
                code.order().len() as u64,
            ),
            first_codewords: Words::pack(codewords.iter().map(|&c| c.into()), 1 << longest),
            length_starts: Words::pack(lengths.take(starts), longest.into()),
        }
    }

    /// The bytes of the three arrays.
    pub(super) fn sections(&self) -> [&[u8]; 3] {
        [
            self.first_symbols.as_bytes(),
            self.first_codewords.as_bytes(),
            self.length_starts.as_bytes(),
        ]
    }

    /// Takes the arrays of a code of `k` symbols with codewords of up to `longest` bits.
    ///
    /// # Errors
    /// `Corrupt` unless they are exactly those of a code.
    pub(super) fn read(parts: &Parts, k: usize, longest: u64) -> Result<(Self, Code)> {
        let longest = u32::try_from(longest).ok().filter(|&l| l <= MAX_BITS).ok_or_else(|| {
            Error::corrupt(format!(
                "params: longest codeword {longest}, expected at most {MAX_BITS}"
            ))
        })?;
        let entries = longest as usize + 1;
        let first_symbols = Words::read(parts, "first_symbols", k as u64, entries)?;
        let mut lengths = Vec::with_capacity(k);
        for length in 1..=longest {
            let end =
                if length == longest { k as u64 } else { first_symbols.get(length as usize + 1) };
            if end < lengths.len() as u64 || end > k as u64 {
                return Err(Error::corrupt(format!(
                    "section first_symbols: length {length} ends at {end}, expected {} to {k}",
                    lengths.len()
                )));
            }
            lengths.resize(end as usize, length as u8);
        }
        if longest == 0 {
            lengths.resize(k, 1);
        }
        let code = Code::from_lengths(lengths)?;
        let table = Self::new(&code);
        for (name, expected) in
            ["first_symbols", "first_codewords", "length_starts"].iter().zip(table.sections())
        {
            if parts.section::<u8>(name)?.as_slice() != expected {
                return Err(Error::corrupt(format!(
                    "section {name}: not the array of the code that first_symbols gives"
                )));
            }
        }
        Ok((table, code))
    }
}

/// ⌈log2 longest⌉, 0 for 0.
fn leading_bits(longest: u32) -> u32 {
    longest.max(1).next_power_of_two().trailing_zeros()
}

/// Checks that sections of the other arrangement are empty.
///
/// # Errors
/// `Corrupt` that names the section.
pub(super) fn check_empty(parts: &Parts, names: &[&str], columns: Columns) -> Result<()> {
    for name in names {
        let nbytes = parts.section::<u8>(name)?.len();
        if nbytes > 0 {
            return Err(Error::corrupt(format!(
                "section {name}: {nbytes} bytes, expected none for {columns:?} columns"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::huffman::Search;
    use proptest::prelude::*;

    #[test]
    fn the_arrays_of_a_hand_worked_code_come_out() {
        // Codewords 0, 10, 110, 111: L = 3, t = 2.
        let table = CodeTable::new(&Code::from_lengths(vec![1, 2, 3, 3]).unwrap());
        assert_eq!(table.sections(), [&[0, 0, 1, 2][..], &[0, 0, 4, 6, 8], &[1, 1, 2, 3]]);
        let alone = CodeTable::new(&Code::from_lengths(vec![1]).unwrap());
        assert_eq!(alone.sections(), [&[0][..], &[0, 1], &[]]);
    }

    proptest! {
        #[test]
        fn the_published_way_to_decode_finds_every_codeword(
            histogram in prop::collection::vec(1u64..1000, 2..600), windows in prop::collection::vec(any::<u64>(), 50)
        ) {
            let code = Code::from_histogram(&histogram).by_rank();
            let (table, longest) = (CodeTable::new(&code), code.longest());
            let search = Search::new(&code, |symbol| symbol);
            for window in windows {
                let value = window >> (64 - longest);
                let mut length = match table.length_starts.len() {
                    0 => 0,
                    n => table.length_starts.get((value >> (longest - n.ilog2())) as usize),
                } as usize;
                while value >= table.first_codewords.get(length + 1) {
                    length += 1;
                }
                let above = value - table.first_codewords.get(length);
                let symbol = table.first_symbols.get(length) + (above >> (longest - length as u32));
                prop_assert_eq!((symbol as u32, length as u32), search.find(window));
            }
        }
    }
}
