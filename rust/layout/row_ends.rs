//! Where the rows of a stream of codewords end: what makes rows decodable each on its own.
//!
//! ```text
//!   raw:   u32 [nrows]        the bit after each row's last codeword (u64 from 2³² bits on)
//!   coded: Offsets            the same as differences; nothing when the stream has no bits
//! ```

use super::{Columns, Parts};
use crate::bits;
use crate::error::{Error, Result};
use crate::offsets::Offsets;
use crate::words::Words;
use std::ops::Range;

#[derive(Debug)]
pub(super) enum RowEnds {
    Raw(Words),
    Coded(Offsets),
    /// Every row is empty.
    NoBits,
}

impl RowEnds {
    /// The ends of rows of these `lengths` in bits.
    pub(super) fn new(lengths: &[u64], columns: Columns) -> Self {
        let total: u64 = lengths.iter().sum();
        match columns {
            Columns::Raw => {
                let ends = lengths.iter().scan(0, |end, length| {
                    *end += length;
                    Some(*end)
                });
                Self::Raw(Words::pack(ends, at_least_u32(total)))
            }
            Columns::Coded if total == 0 => Self::NoBits,
            Columns::Coded => Self::Coded(Offsets::from_lengths(lengths)),
        }
    }

    /// What [`RowEnds::read`] needs beside the bytes.
    pub(super) fn params(&self) -> [u64; 3] {
        match self {
            Self::Coded(offsets) => offsets.params(),
            Self::Raw(_) | Self::NoBits => [0; 3],
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Raw(words) => words.as_bytes(),
            Self::Coded(offsets) => offsets.as_bytes(),
            Self::NoBits => &[],
        }
    }

    /// Takes section `row_ends` of a stream of `total` bits.
    ///
    /// # Errors
    /// `Corrupt` unless ends rise to `total`.
    pub(super) fn read(
        parts: &Parts,
        columns: Columns,
        total: u64,
        params: [u64; 3],
    ) -> Result<Self> {
        if columns == Columns::Coded {
            return Ok(
                read_offsets(parts, "row_ends", total, params)?.map_or(Self::NoBits, Self::Coded)
            );
        }
        let nrows = parts.shape.nrows;
        let words = Words::read(parts, "row_ends", at_least_u32(total), nrows)?;
        let mut last = 0;
        for row in 0..nrows {
            let end = words.get(row);
            if end < last || end > total {
                return Err(Error::corrupt(format!(
                    "section row_ends: row {row} ends at {end}, expected {last} to {total}"
                )));
            }
            last = end;
        }
        if last != total {
            return Err(Error::corrupt(format!(
                "section row_ends: last row ends at {last}, expected {total}"
            )));
        }
        Ok(Self::Raw(words))
    }

    /// Where each of `rows` starts, and where the last one ends.
    pub(super) fn bounds(&self, rows: Range<usize>) -> Vec<u64> {
        match self {
            Self::Raw(words) => {
                let end = |row: usize| row.checked_sub(1).map_or(0, |row| words.get(row));
                (rows.start..=rows.end).map(end).collect()
            }
            Self::Coded(offsets) => offset_bounds(offsets, rows),
            Self::NoBits => vec![0; rows.len() + 1],
        }
    }
}

/// The start of each of `rows`, and the end of the last one.
pub(super) fn offset_bounds(offsets: &Offsets, rows: Range<usize>) -> Vec<u64> {
    let mut at = offsets.start(rows.start);
    let mut bounds = Vec::with_capacity(rows.len() + 1);
    bounds.push(at);
    for row in rows {
        at += offsets.length(row);
        bounds.push(at);
    }
    bounds
}

/// Takes section `name` as a row's lengths that sum to `total`; none, and no bytes, when that is 0.
///
/// # Errors
/// `Corrupt` when it is not what [`Offsets::from_lengths`] makes of its lengths.
pub(super) fn read_offsets(
    parts: &Parts,
    name: &str,
    total: u64,
    params: [u64; 3],
) -> Result<Option<Offsets>> {
    let stored = parts.section::<u8>(name)?;
    let nrows = parts.shape.nrows;
    let corrupt = |what: &str| {
        Error::corrupt(format!(
            "section {name}: {what} in {} bytes with parameters {params:?} for {nrows} rows and {total} in all",
            stored.len()
        ))
    };
    if total == 0 {
        let is_empty = stored.is_empty() && params == [0; 3];
        return if is_empty { Ok(None) } else { Err(corrupt("something")) };
    }
    // At least one bit of every 64th row's start is stored then, so rows are bounded by bytes.
    if params[2] != u64::from(bits::bit_width(total)) {
        return Err(corrupt("starts of another width"));
    }
    let offsets = Offsets::read(nrows, total, params, stored.clone())
        .map_err(|e| e.within(&format!("section {name}")))?;
    if !offsets.is_shortest() {
        return Err(corrupt("not the shortest form"));
    }
    Ok(Some(offsets))
}

/// The largest number that a raw row end must hold, so that its words are 32 bits or more.
fn at_least_u32(total: u64) -> u64 {
    total.max(u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_ends_take_32_bits_and_64_from_2_to_the_32_bits_on() {
        let nbytes = |lengths: &[u64]| RowEnds::new(lengths, Columns::Raw).as_bytes().len();
        assert_eq!(nbytes(&[1, 2, 3]), 12);
        assert_eq!(nbytes(&[(1 << 32) - 3, 2]), 8);
        assert_eq!(nbytes(&[(1 << 32) - 2, 2]), 16);
    }

    #[test]
    fn both_arrangements_give_the_same_bounds() {
        let lengths: Vec<u64> = (0..200).map(|row| row * 7 % 31).collect();
        let [raw, coded] = [Columns::Raw, Columns::Coded].map(|c| RowEnds::new(&lengths, c));
        for rows in [0..0, 0..200, 63..130, 199..200, 200..200] {
            let expected: Vec<u64> =
                (rows.start..=rows.end).map(|row| lengths[..row].iter().sum()).collect();
            assert_eq!(raw.bounds(rows.clone()), expected);
            assert_eq!(coded.bounds(rows), expected);
        }
    }
}
