//! Column gaps as codewords of buckets and a few plain bits.
//!
//! The gap of a kept weight is the number of pruned ones since the last kept one of its row. Gaps
//! are put into buckets that get wider in proportion, 2^p of them to an octave (p the precision):
//!
//! ```text
//!   p = 2:  gap     0 1 2 3 │ 4 5 6 7 │ 8,9 10,11 12,13 14,15 │ 16..19 …
//!           bucket  0 1 2 3 │ 4 5 6 7 │  8    9     10    11  │   12   …
//!           plain bits    0 │    0    │           1           │    2
//!
//!   with e = max(⌊log2 gap⌋ − p, 0):  bucket = e·2^p + (gap >> e),  e plain bits hold the rest
//! ```
//!
//! Any gap has a bucket, so nothing escapes. Inside a bucket gaps are taken to be equally likely;
//! at p = 3 that is within 0.1 % of the entropy of a geometric distribution. Layers whose rows
//! repeat have favourite gaps, and there a higher precision, up to a codeword for each gap, pays
//! for its longer table of lengths: the encoder counts the bits of each precision and takes the
//! fewest.
//!
//! Source: the buckets are those of DEFLATE's distances (RFC 1951, 3.2.5), with a free precision.

use super::{Goal, Parts};
use crate::bits::bit_width;
use crate::entropy::huffman::{Code, Decoder, Writer, window};
use crate::error::{Error, Result};
use crate::rows::Rows;

/// The finest precision: the buckets of any gap under 2³² are then under 65,536.
const FINEST: u32 = 11;
/// The most buckets that decode several a look-up; at precision 3 any gap has fewer.
const FAST_BUCKETS: usize = 256;

/// A code for gaps.
#[derive(Debug)]
pub(super) struct Gaps {
    precision: u32,
    /// 0 when every bucket is one gap, and is that gap.
    most_plain_bits: u32,
    /// The smallest gap of each bucket, and its number of plain bits.
    contents: Vec<(u32, u32)>,
    code: Code,
    /// None when there are no gaps.
    decoder: Option<Decoder>,
}

impl Gaps {
    /// The precision that needs the fewest bits for the gaps of `rows`; or for speed the finest one
    /// that still decodes several gaps a look-up, so that there are few plain bits or none.
    pub(super) fn new(rows: &Rows, goal: Goal) -> Self {
        let mut finest: Vec<u64> = Vec::new();
        for row in 0..rows.shape().nrows {
            for gap in gaps(rows.row_cols(row)) {
                let bucket = bucket(gap, FINEST).0;
                if bucket >= finest.len() {
                    finest.resize(bucket + 1, 0);
                }
                finest[bucket] += 1;
            }
        }
        let mut best: Option<(u64, Self)> = None;
        let mut nbuckets = 0;
        for precision in 0..=FINEST {
            let mut histogram: Vec<u64> = Vec::new();
            let mut plain = 0;
            for (fine, &count) in finest.iter().enumerate() {
                let (base, _) = contents(fine, FINEST);
                let (bucket, nbits) = bucket(base as u32, precision);
                histogram.resize(bucket + 1, 0);
                histogram[bucket] += count;
                plain += count * u64::from(nbits);
            }
            let is_slow = goal == Goal::Speed && histogram.len() > FAST_BUCKETS;
            if precision > 0 && (histogram.len() == nbuckets || is_slow) {
                break;
            }
            nbuckets = histogram.len();
            let code = Code::from_histogram(&histogram);
            let nbits = code.cost(&histogram) + plain + code.pack().0.len() as u64 * 8;
            if goal == Goal::Speed || best.as_ref().is_none_or(|&(fewest, _)| nbits < fewest) {
                best = Some((nbits, Self::with(precision, code)));
            }
        }
        best.map_or_else(|| Self::with(0, Code::from_histogram(&[])), |(_, gaps)| gaps)
    }

    /// Takes section `gap_lengths`.
    ///
    /// # Errors
    /// `Corrupt` unless it is a code of buckets.
    pub(super) fn read(parts: &Parts, [precision, nbuckets, width]: [u64; 3]) -> Result<Self> {
        if precision > u64::from(FINEST) || nbuckets > 1 << 16 {
            return Err(Error::corrupt(format!(
                "params: gap precision {precision} and {nbuckets} buckets, expected at most \
                 {FINEST} and 65536"
            )));
        }
        let code = Code::unpack(&parts.section("gap_lengths")?, nbuckets as usize, width)
            .map_err(|e| e.within("section gap_lengths"))?;
        let (precision, last) = (precision as u32, (nbuckets as usize).saturating_sub(1));
        if contents(last, precision).0 > u64::from(u32::MAX) {
            return Err(Error::corrupt(format!(
                "params: {nbuckets} gap buckets of precision {precision}, expected gaps under 2^32"
            )));
        }
        Ok(Self::with(precision, code))
    }

    fn with(precision: u32, code: Code) -> Self {
        let decoder = (!code.order().is_empty()).then(|| Decoder::new(&code));
        let contents: Vec<(u32, u32)> = (0..code.nsymbols())
            .map(|bucket| contents(bucket, precision))
            .map(|(base, nbits)| (base as u32, nbits))
            .collect();
        let most_plain_bits = contents.last().map_or(0, |last| last.1);
        Self { precision, most_plain_bits, contents, code, decoder }
    }

    /// What [`Gaps::read`] needs beside the bytes, and the bytes.
    pub(super) fn stored(&self) -> ([u64; 3], Vec<u8>) {
        let (bytes, width) = self.code.pack();
        ([u64::from(self.precision), self.code.nsymbols() as u64, width], bytes)
    }

    /// The gap of every kept weight, when there is only one and it costs no bits.
    pub(super) fn only(&self) -> Option<u64> {
        match self.code.order() {
            &[bucket] => match contents(bucket as usize, self.precision) {
                (gap, 0) => Some(gap),
                _ => None,
            },
            _ => None,
        }
    }

    /// Writes the buckets of a row, then their plain bits.
    pub(super) fn put(&self, codewords: &[(u32, u32)], cols: &[u32], writer: &mut Writer) {
        for gap in gaps(cols) {
            let (codeword, length) = codewords[bucket(gap, self.precision).0];
            writer.put(codeword, length);
        }
        for gap in gaps(cols) {
            let nbits = bucket(gap, self.precision).1;
            writer.put(gap & ((1 << nbits) - 1), nbits);
        }
    }

    /// The codewords that [`Gaps::put`] takes.
    pub(super) fn codewords(&self) -> Vec<(u32, u32)> {
        self.code.codewords()
    }

    /// The decoder of buckets; none when there are no gaps.
    pub(super) fn decoder(&self) -> Option<&Decoder> {
        self.decoder.as_ref()
    }

    /// Appends to `cols` the columns of a row from its buckets and the plain bits at `at`, and
    /// gives the column after the last and the position after the last bit.
    #[inline]
    pub(super) fn finish_row(
        &self,
        buckets: &[u16],
        words: &[u32],
        at: u64,
        cols: &mut Vec<u32>,
    ) -> (u64, u64) {
        match self.most_plain_bits {
            0 => {
                let mut next = 0;
                cols.extend(buckets.iter().map(|&bucket| {
                    next += u64::from(bucket) + 1;
                    (next - 1) as u32
                }));
                (next, at)
            }
            // What one 33-bit window holds.
            1..=8 => self.add_plain_bits::<4>(buckets, words, at, cols),
            9..=16 => self.add_plain_bits::<2>(buckets, words, at, cols),
            _ => self.add_plain_bits::<1>(buckets, words, at, cols),
        }
    }

    fn add_plain_bits<const N: usize>(
        &self,
        buckets: &[u16],
        words: &[u32],
        mut at: u64,
        cols: &mut Vec<u32>,
    ) -> (u64, u64) {
        let first = cols.len();
        cols.resize(first + buckets.len(), 0);
        let mut next = 0;
        for (buckets, cols) in buckets.chunks(N).zip(cols[first..].chunks_mut(N)) {
            let mut top = window(words, at);
            for (&bucket, out) in buckets.iter().zip(cols) {
                let (base, nbits) = self.contents[usize::from(bucket)];
                let col = next + u64::from(base) + (top >> 1 >> (63 - nbits));
                *out = col as u32;
                next = col + 1;
                top <<= nbits;
                at += u64::from(nbits);
            }
        }
        (next, at)
    }
}

/// The gaps before each of a row's columns.
fn gaps(cols: &[u32]) -> impl Iterator<Item = u32> {
    cols.iter().scan(0, |next, &col| {
        let gap = col - *next;
        *next = col.wrapping_add(1);
        Some(gap)
    })
}

/// The bucket of `gap`, and how many of its low bits are plain.
#[inline]
fn bucket(gap: u32, precision: u32) -> (usize, u32) {
    let nbits = bit_width(gap.into()).saturating_sub(precision + 1);
    (((nbits << precision) + (gap >> nbits)) as usize, nbits)
}

/// The smallest gap of `bucket`, and its number of plain bits.
#[inline]
fn contents(bucket: usize, precision: u32) -> (u64, u32) {
    let nbits = (bucket as u32 >> precision).saturating_sub(1);
    ((bucket as u64 - (u64::from(nbits) << precision)) << nbits.min(40), nbits.min(40))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buckets_of_the_module_page_come_out() {
        let expected = [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12, 12, 13];
        for (gap, &expected) in expected.iter().enumerate() {
            assert_eq!(bucket(gap as u32, 2).0, expected);
        }
        assert_eq!((bucket(8, 2).1, bucket(17, 2).1), (1, 2));
    }

    #[test]
    fn every_gap_is_in_the_bucket_that_it_is_put_into() {
        for precision in 0..=FINEST {
            let near = (0..32).flat_map(|i| [(1u32 << i) - 1, 1 << i, (1 << i) + 1]);
            for gap in (0..5000).chain(near).chain([u32::MAX - 1, u32::MAX]) {
                let (found, nbits) = bucket(gap, precision);
                let (base, expected) = contents(found, precision);
                assert_eq!(nbits, expected);
                assert!(base <= gap.into() && u64::from(gap) < base + (1 << nbits));
                assert!(found < 1 << 16);
                let before = bucket(gap.saturating_sub(1), precision).0;
                assert!(found == before || found == before + 1, "{gap}");
            }
            assert!(precision > 3 || bucket(u32::MAX, precision).0 < FAST_BUCKETS);
        }
    }
}
