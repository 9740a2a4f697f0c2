//! Bits in bytes: fixed-width fields, least significant bit first, and variable-length integers.
//!
//! Field `i` of width `w` occupies bits `i·w .. (i + 1)·w`; bit `b` of the array is bit `b mod 8`
//! of byte `b / 8`. A packed array of `n` fields takes ⌈n·w / 8⌉ bytes; unused high bits of the
//! last byte are zero. Width 0 stores nothing and reads as zero.
//!
//! A varint is LEB128: seven bits a byte, low bits first, the top bit set on all but the last.

use crate::error::{Error, Result};

/// The number of bits that hold `value`: 0 for 0, 1 for 1, 64 at most.
pub fn bit_width(value: u64) -> u32 {
    64 - value.leading_zeros()
}

/// The number of bytes that `count` fields of `width` bits take; none when that overflows.
pub fn packed_nbytes(count: usize, width: u32) -> Option<usize> {
    Some(count.checked_mul(width as usize)?.div_ceil(8))
}

/// Appends fields of any width up to 64 bits to a byte vector.
#[derive(Debug, Default)]
pub struct BitWriter {
    bytes: Vec<u8>,
    pending: u64,
    pending_bits: u32,
}

impl BitWriter {
    /// A writer with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends the low `width` bits of `value`; higher bits of `value` must be zero.
    pub fn put(&mut self, value: u64, width: u32) {
        debug_assert!(width == 64 || value >> width == 0);
        if width > 32 {
            self.put(value & 0xffff_ffff, 32);
            return self.put(value >> 32, width - 32);
        }
        self.pending |= value << self.pending_bits;
        self.pending_bits += width;
        if self.pending_bits >= 32 {
            self.bytes.extend_from_slice(&(self.pending as u32).to_le_bytes());
            self.pending >>= 32;
            self.pending_bits -= 32;
        }
    }

    /// The bytes, the last one filled with zero bits.
    pub fn finish(mut self) -> Vec<u8> {
        let rest = self.pending_bits.div_ceil(8) as usize;
        self.bytes.extend_from_slice(&self.pending.to_le_bytes()[..rest]);
        self.bytes
    }
}

/// The 64 bits of `bytes` from bit `at`, zeros past the end; at least 57 of them are valid.
#[inline]
pub fn peek(bytes: &[u8], at: usize) -> u64 {
    let byte = at / 8;
    let word = match bytes.get(byte..byte + 8) {
        Some(eight) => u64::from_le_bytes([
            eight[0], eight[1], eight[2], eight[3], eight[4], eight[5], eight[6], eight[7],
        ]),
        None => {
            let mut tail = [0; 8];
            let rest = bytes.get(byte..).unwrap_or(&[]);
            tail[..rest.len()].copy_from_slice(rest);
            u64::from_le_bytes(tail)
        }
    };
    word >> (at % 8)
}

/// The field of `width` ≤ 57 bits at bit `at`.
#[inline]
pub fn field(bytes: &[u8], at: usize, width: u32) -> u64 {
    peek(bytes, at) & ((1u64 << width) - 1)
}

/// Reads fields one after the other: a 64-bit window that is refilled from memory.
///
/// Past the end it reads zeros; [`BitReader::position`] tells how far it went.
#[derive(Debug)]
pub struct BitReader<'a> {
    bytes: &'a [u8],
    at: usize,
    window: u64,
    valid: u32,
}

impl<'a> BitReader<'a> {
    /// A reader that starts at bit `at` of `bytes`.
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, window: 0, valid: 0 }
    }

    /// The next field of `width` ≤ 56 bits.
    #[inline]
    pub fn take(&mut self, width: u32) -> u64 {
        if self.valid < width {
            self.window = peek(self.bytes, self.at);
            self.valid = 64 - (self.at % 8) as u32;
        }
        let value = self.window & ((1u64 << width) - 1);
        self.window >>= width;
        self.valid -= width;
        self.at += width as usize;
        value
    }

    /// The bit that the next field starts at.
    pub fn position(&self) -> usize {
        self.at
    }
}

/// Unpacks fields of `width` ≤ 16 bits from bit `at` on: several a load.
pub fn unpack(bytes: &[u8], mut at: usize, width: u32, out: &mut [u16]) {
    if width == 0 {
        return out.fill(0);
    }
    let mask = (1u64 << width) - 1;
    let per_load = (56 / width) as usize;
    for fields in out.chunks_mut(per_load) {
        let mut word = peek(bytes, at);
        for field in fields {
            *field = (word & mask) as u16;
            word >>= width;
        }
        at += per_load * width as usize;
    }
}

/// Packs `values` into fields of `width` bits.
pub fn pack(values: impl IntoIterator<Item = u64>, width: u32) -> Vec<u8> {
    let mut writer = BitWriter::new();
    for value in values {
        writer.put(value, width);
    }
    writer.finish()
}

/// Appends `value` as a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a varint from the front of `bytes` and moves `bytes` past it.
///
/// # Errors
/// `Truncated` at the end of `bytes`; `Corrupt` for more than 64 bits or a needless last zero.
pub fn take_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for (i, &byte) in bytes.iter().enumerate() {
        if i == 9 && byte > 1 || i > 0 && byte == 0 {
            return Err(Error::corrupt(format!(
                "varint: byte {i} is {byte:#04x}, expected the shortest form of at most 64 bits"
            )));
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            *bytes = &bytes[i + 1..];
            return Ok(value);
        }
    }
    Err(Error::truncated("varint", bytes.len() as u64 + 1, bytes.len() as u64))
}

/// Row m: the places of the set bits of m, then zeros.
pub(crate) static SET_BITS: [[u32; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut found) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte][found] = bit as u32;
                found += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    table
};

/// Appends the places of the set bits of `bytes`, from the lowest bit of the first on.
///
/// # Panics
/// When there are 2³² bits or more.
pub fn push_set_bits(bytes: &[u8], out: &mut Vec<u32>) {
    assert!(bytes.len() < 1 << 29, "push_set_bits: {} bytes", bytes.len());
    let mut at = out.len();
    let count: usize = bytes.iter().map(|byte| byte.count_ones() as usize).sum();
    let end = at + count;
    // Every byte writes eight places, of which the next overwrites those that are none.
    out.resize(end + 7, 0);
    for (base, &byte) in (0u32..).step_by(8).zip(bytes) {
        let places = SET_BITS[usize::from(byte)].map(|place| base + place);
        let count = byte.count_ones() as usize;
        if let Some(room) = out[at..].first_chunk_mut() {
            *room = places;
        } else {
            out[at..at + count].copy_from_slice(&places[..count]);
        }
        at += count;
    }
    out.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn set_bits_are_where_a_shift_finds_them(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let is_set = |i: &u32| bytes[*i as usize / 8] >> (i % 8) & 1 == 1;
            let mut found = vec![7];
            push_set_bits(&bytes, &mut found);
            prop_assert_eq!(found[0], 7);
            let expected: Vec<u32> = (0..8 * bytes.len() as u32).filter(is_set).collect();
            prop_assert_eq!(&found[1..], &expected);
        }

        #[test]
        fn packed_fields_come_back(width in 0u32..=57, seeds in prop::collection::vec(any::<u64>(), 0..200)) {
            let values: Vec<u64> = seeds.iter().map(|s| s & ((1u64 << width) - 1)).collect();
            let bytes = pack(values.iter().copied(), width);
            prop_assert_eq!(bytes.len(), packed_nbytes(values.len(), width).unwrap());
            for (i, &value) in values.iter().enumerate() {
                prop_assert_eq!(field(&bytes, i * width as usize, width), value);
            }
            if width <= 16 {
                let from = values.len() / 3;
                let mut fields = vec![1; values.len() - from];
                unpack(&bytes, from * width as usize, width, &mut fields);
                let expected: Vec<u16> = values[from..].iter().map(|&v| v as u16).collect();
                prop_assert_eq!(fields, expected);
            }
            let mut reader = BitReader::new(&bytes, 0);
            for &value in values.iter().filter(|_| width <= 56) {
                prop_assert_eq!(reader.take(width), value);
            }
        }

        #[test]
        fn varints_come_back_and_take_one_byte_for_seven_bits(value in any::<u64>(), more in any::<u8>()) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(bytes.len() as u32, bit_width(value).div_ceil(7).max(1));
            bytes.push(more);
            let mut rest = &bytes[..];
            prop_assert_eq!(take_varint(&mut rest).unwrap(), value);
            prop_assert_eq!(rest, &[more][..]);
        }
    }

    #[test]
    fn an_endless_a_padded_and_a_cut_varint_are_errors() {
        assert!(take_varint(&mut &[0xff; 12][..]).is_err());
        assert!(take_varint(&mut &[0x80, 0x00][..]).is_err());
        assert!(take_varint(&mut &[0x80][..]).is_err());
        assert!(take_varint(&mut &[][..]).is_err());
    }
}
