//! Sizes that the literature states: formulas of the published formats, and upper bounds.
//!
//! For a matrix of n inputs and m outputs (our ncols and nrows), nnz kept weights (density
//! s = nnz / nm), k distinct values, words of b = 32 bits, and `bit_req(x)` the smallest of 8, 16,
//! 32 and 64 bits that holds x:
//!
//! ```text
//!   csr (CSC of the transpose)   nnz·(b + bit_req(n)) + m·bit_req(n)
//!   index map                    nm·bit_req(k) + b·k
//!   CSER                         b·|O| + |colI|·bit_req(n) + |OI|·bit_req(|O|)
//!                                  + |OPtr|·bit_req(|colI|) + |rowPtr|·bit_req(|OPtr|)
//!   C(k, L)                      b·k + (L + 1)·bit_req(k) + (L + 2)·bit_req(2^L) + T·bit_req(L)
//!   HAC                          b·⌈Σ f·len / b⌉ + C         k counts zero
//!   sHAC                         b·⌈Σ f·len / b⌉ + C + (nnz + m)·bit_req(n)
//!
//!   HAC / dense   ≤  (1 + log2 k)/b + 6k/(nm)
//!   sHAC / dense  ≤  s·(1 + log2 k)/b + 6k/(nm) + (s·nm + m + 1)/(nm)
//!   mean codeword <  H + 1 for unlimited lengths
//! ```
//!
//! with L the longest codeword and T = 2^⌈log2 L⌉, or 0 for L < 2. The published bound for sHAC has
//! n instead of s·nm row indices in its last term; s·nm are stored, so that is what stands here.
//! The row ends that a parallel product needs are in none of them.
//!
//! Sources: Marinò et al. 2021; Wiedemann et al. 2018 (CSER); Han et al. 2016 (index map).

use crate::rows::Shape;
use crate::words::word_bits;

/// The bits of a word, b.
pub const WORD_BITS: u64 = 32;

/// `bit_req` as a 64-bit number.
fn bit_req(max: u64) -> u64 {
    word_bits(max).into()
}

/// The formula for compressed sparse rows in bits (the paper's CSC of the transposed matrix).
pub fn csr_bits(shape: Shape, nnz: usize) -> u64 {
    let index = bit_req(shape.ncols as u64);
    nnz as u64 * (WORD_BITS + index) + shape.nrows as u64 * index
}

/// The formula for the index map of `k` values, zero included, in bits.
pub fn index_map_bits(shape: Shape, k: u64) -> u64 {
    shape.entries() as u64 * bit_req(k) + WORD_BITS * k
}

/// The lengths of CSER's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CserCounts {
    /// The distinct values, |O|.
    pub values: u64,
    /// The stored columns, |colI|.
    pub cols: u64,
    /// The groups, |OI|: pairs of a row and a value in it.
    pub groups: u64,
    /// The group starts, |OPtr|.
    pub group_starts: u64,
    /// The row starts, |rowPtr|.
    pub row_starts: u64,
}

/// The formula for CSER in bits.
pub fn cser_bits(shape: Shape, counts: CserCounts) -> u64 {
    WORD_BITS * counts.values
        + counts.cols * bit_req(shape.ncols as u64)
        + counts.groups * bit_req(counts.values)
        + counts.group_starts * bit_req(counts.cols)
        + counts.row_starts * bit_req(counts.group_starts)
}

/// The formula for the arrays of a canonical code of `k` values, C, in bits.
///
/// `longest` is the longest codeword, at most 63; a value alone has an empty one.
pub fn code_bits(k: u64, longest: u32) -> u64 {
    let starts = if longest < 2 { 0 } else { u64::from(longest.next_power_of_two()) };
    let length = u64::from(longest);
    WORD_BITS * k
        + (length + 1) * bit_req(k)
        + (length + 2) * bit_req(1 << longest)
        + starts * bit_req(length)
}

/// The formula for HAC in bits: `stream_bits` of codewords, `k` values with zero if there is one.
pub fn hac_bits(stream_bits: u64, k: u64, longest: u32) -> u64 {
    WORD_BITS * stream_bits.div_ceil(WORD_BITS) + code_bits(k, longest)
}

/// The formula for sHAC in bits: `stream_bits` of codewords, `k` kept values.
pub fn shac_bits(shape: Shape, nnz: usize, stream_bits: u64, k: u64, longest: u32) -> u64 {
    let indices = nnz as u64 + shape.nrows as u64;
    hac_bits(stream_bits, k, longest) + indices * bit_req(shape.ncols as u64)
}

/// The upper bound of HAC relative to dense, for `k` values with zero if there is one and words of
/// `word_bits`; for a matrix with entries.
pub fn hac(shape: Shape, k: u64, word_bits: u32) -> f64 {
    codeword_bound(k) / f64::from(word_bits) + 6.0 * k as f64 / shape.entries() as f64
}

/// The upper bound of sHAC relative to dense, for `k` kept values at `density`, word-sized indices
/// and words of `word_bits`; for a matrix with entries.
pub fn shac(shape: Shape, density: f64, k: u64, word_bits: u32) -> f64 {
    let entries = shape.entries() as f64;
    density * codeword_bound(k) / f64::from(word_bits)
        + 6.0 * k as f64 / entries
        + (density * entries + shape.nrows as f64 + 1.0) / entries
}

/// 1 + log2 k: what a codeword of an optimal code for k values takes on average at most.
fn codeword_bound(k: u64) -> f64 {
    1.0 + (k.max(1) as f64).log2()
}

/// The order-0 entropy of symbols with this `histogram`, in bits a symbol; 0 for none.
pub fn entropy(histogram: &[u64]) -> f64 {
    let total = histogram.iter().map(|&count| count as f64).sum::<f64>();
    let counts = histogram.iter().filter(|&&count| count > 0).map(|&count| count as f64);
    counts.map(|count| count / total * (total / count).log2()).sum()
}

/// H + 1: the upper bound of an optimal code's mean codeword in bits, for unlimited lengths.
pub fn entropy_bound(histogram: &[u64]) -> f64 {
    entropy(histogram) + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::huffman::Code;
    use proptest::prelude::*;

    #[test]
    fn formulas_give_what_was_worked_out_by_hand() {
        let shape = Shape::new(10, 300).unwrap();
        assert_eq!(csr_bits(shape, 7), 7 * (32 + 16) + 10 * 16);
        assert_eq!(index_map_bits(shape, 256), 3000 * 16 + 32 * 256);
        // k = 5, L = 3: T = 2^2.
        assert_eq!(code_bits(5, 3), 160 + 4 * 8 + 5 * 8 + 4 * 8);
        // k = 300, L = 9: 2^9 takes 16 bits, T = 2^4.
        assert_eq!(code_bits(300, 9), 9600 + 10 * 16 + 11 * 16 + 16 * 8);
        assert_eq!((code_bits(0, 0), code_bits(1, 0)), (8 + 16, 32 + 8 + 16));
        assert_eq!(code_bits(2, 1), 64 + 2 * 8 + 3 * 8);
        assert_eq!(hac_bits(33, 2, 1), 64 + 104);
        assert_eq!(shac_bits(shape, 7, 0, 1, 0), 56 + 17 * 16);
        let counts =
            CserCounts { values: 3, cols: 256, groups: 6, group_starts: 7, row_starts: 11 };
        assert_eq!(cser_bits(shape, counts), 96 + 256 * 16 + 6 * 8 + 7 * 16 + 11 * 8);
        assert_eq!(hac(shape, 4, 32), 3.0 / 32.0 + 24.0 / 3000.0);
        assert_eq!(shac(shape, 0.5, 4, 32), 1.5 / 32.0 + 24.0 / 3000.0 + 1511.0 / 3000.0);
        assert_eq!((entropy(&[2, 1, 1, 0]), entropy_bound(&[])), (1.5, 1.0));
    }

    proptest! {
        #[test]
        fn a_code_stays_between_the_entropy_and_its_bounds(
            histogram in prop::collection::vec(0u64..100_000, 0..400)
        ) {
            // Under 2^24 in sum a codeword over 24 bits does not pay, so lengths are unlimited here.
            let (total, k) = (histogram.iter().sum::<u64>() as f64, histogram.iter().filter(|&&h| h > 0).count());
            let mean = Code::from_histogram(&histogram).cost(&histogram) as f64 / total.max(1.0);
            prop_assert!(mean >= entropy(&histogram) - 1e-9);
            prop_assert!(mean < entropy_bound(&histogram));
            prop_assert!(mean <= codeword_bound(k as u64));
        }
    }
}
