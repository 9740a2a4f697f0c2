//! Whole-word integers of the smallest sufficient size: the paper's `bit_req`.
//!
//! The published formats store indices in words of 8, 16, 32 or 64 bits, the smallest whose range
//! holds the largest value. [`Words`] is such an array with its word size chosen at run time.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::layout::Parts;
use std::ops::Range;

/// The smallest of 8, 16, 32 and 64 bits that holds `max` (Marinò et al. 2021, `bit_req`).
pub fn word_bits(max: u64) -> u32 {
    match max {
        0..=0xff => 8,
        0x100..=0xffff => 16,
        0x1_0000..=0xffff_ffff => 32,
        _ => 64,
    }
}

/// An array of unsigned words of one size.
#[derive(Clone, Debug)]
pub enum Words {
    /// Bytes.
    U8(Array<u8>),
    /// 16-bit words.
    U16(Array<u16>),
    /// 32-bit words.
    U32(Array<u32>),
    /// 64-bit words.
    U64(Array<u64>),
}

impl Words {
    /// Stores `values`, none above `max`, in the smallest words that hold `max`.
    pub fn pack(values: impl Iterator<Item = u64>, max: u64) -> Self {
        let values = values.inspect(|&v| debug_assert!(v <= max));
        match word_bits(max) {
            8 => Self::U8(values.map(|v| v as u8).collect::<Vec<_>>().into()),
            16 => Self::U16(values.map(|v| v as u16).collect::<Vec<_>>().into()),
            32 => Self::U32(values.map(|v| v as u32).collect::<Vec<_>>().into()),
            _ => Self::U64(values.collect::<Vec<_>>().into()),
        }
    }

    /// Takes section `name` as `len` words of the size that holds `max`; values are not checked.
    ///
    /// # Errors
    /// `Corrupt` when the section has another length.
    pub fn read(parts: &Parts, name: &str, max: u64, len: usize) -> Result<Self> {
        Ok(match word_bits(max) {
            8 => Self::U8(parts.section_of(name, len)?),
            16 => Self::U16(parts.section_of(name, len)?),
            32 => Self::U32(parts.section_of(name, len)?),
            _ => Self::U64(parts.section_of(name, len)?),
        })
    }

    /// As [`Words::read`], for a section that holds whole words, however many.
    ///
    /// # Errors
    /// `Corrupt` when its bytes are no whole number of words.
    pub fn read_all(parts: &Parts, name: &str, max: u64) -> Result<Self> {
        let nbytes = parts.section::<u8>(name)?.len();
        let word = word_bits(max) as usize / 8;
        if !nbytes.is_multiple_of(word) {
            return Err(Error::corrupt(format!(
                "section {name}: {nbytes} bytes, expected a multiple of {word}"
            )));
        }
        Self::read(parts, name, max, nbytes / word)
    }

    /// The number of words.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(words) => words.len(),
            Self::U16(words) => words.len(),
            Self::U32(words) => words.len(),
            Self::U64(words) => words.len(),
        }
    }

    /// True when there are no words.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Word `i`.
    #[inline]
    pub fn get(&self, i: usize) -> u64 {
        match self {
            Self::U8(words) => u64::from(words.as_slice()[i]),
            Self::U16(words) => u64::from(words.as_slice()[i]),
            Self::U32(words) => u64::from(words.as_slice()[i]),
            Self::U64(words) => words.as_slice()[i],
        }
    }

    /// Appends the words of `range`, each under 2³², to `out`.
    #[inline]
    pub fn append_to(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::U8(words) => out.extend(words.as_slice()[range].iter().map(|&w| u32::from(w))),
            Self::U16(words) => out.extend(words.as_slice()[range].iter().map(|&w| u32::from(w))),
            Self::U32(words) => out.extend_from_slice(&words.as_slice()[range]),
            Self::U64(words) => out.extend(words.as_slice()[range].iter().map(|&w| w as u32)),
        }
    }

    /// The stored bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::U8(words) => words.as_bytes(),
            Self::U16(words) => words.as_bytes(),
            Self::U32(words) => words.as_bytes(),
            Self::U64(words) => words.as_bytes(),
        }
    }
}
