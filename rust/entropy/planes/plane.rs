//! One plane: its bytes as they are, one byte for all, or Huffman codewords in four lanes.
//!
//! ```text
//!   0 │ the bytes
//!   1 │ the byte that all are
//!   2 │ first, count − 1 │ count code lengths, 4 bits each │ bits of each lane: 4 varints │ words
//! ```
//!
//! The code lengths are those of `count` bytes from `first` on; 0 follows 255, as of small integers
//! of either sign.
//!
//! The lanes are the quarters of the plane, their codewords one after the other in 32-bit words,
//! most significant bit first, so that a decoder reads four places in turns.

use crate::bits;
use crate::cursor::Cursor;
use crate::entropy::huffman::{Code, Decoder, LANES, Lane, Writer, check_padding, lengths};
use crate::error::Result;

const RAW: u8 = 0;
const CONSTANT: u8 = 1;
const HUFFMAN: u8 = 2;
/// The longest codeword: what one look-up of the decoder takes.
const LONGEST: u32 = 11;
/// Codewords must save one byte in this many: what saves less is read faster as it is.
const LEAST_SAVING: usize = 128;

/// Memory that planes use in turns.
#[derive(Default)]
pub struct Room {
    words: Vec<u32>,
}

/// Appends a plane in the form that is smallest.
pub fn write(out: &mut Vec<u8>, plane: &[u8]) {
    let histogram = histogram(plane);
    let used = histogram.iter().filter(|&&count| count > 0).count();
    let start = out.len();
    match (used, plane.first()) {
        (1, Some(&byte)) => return out.extend([CONSTANT, byte]),
        (2.., _) => write_codewords(out, plane, &histogram),
        _ => {}
    }
    let nbytes = out.len() - start;
    if used < 2 || nbytes + plane.len() / LEAST_SAVING > plane.len() {
        out.truncate(start);
        out.push(RAW);
        out.extend_from_slice(plane);
    }
}

fn write_codewords(out: &mut Vec<u8>, plane: &[u8], histogram: &[u64; 256]) {
    let lengths = lengths(histogram, LONGEST);
    let (first, count) = span(&lengths);
    let cost: u64 = lengths.iter().zip(histogram).map(|(&l, &n)| u64::from(l) * n).sum();
    out.extend([HUFFMAN, first as u8, (count - 1) as u8]);
    out.extend(bits::pack((first..first + count).map(|s| lengths[s % 256].into()), 4));
    if cost / 8 >= plane.len() as u64 {
        return out.extend_from_slice(plane); // As large as the plane itself: it will be raw.
    }
    let codewords = Code::from_lengths(lengths).expect("lengths of a histogram").codewords();
    let mut writer = Writer::with_capacity(cost);
    let mut end = 0;
    for lane in lanes(plane) {
        for &byte in lane {
            let (codeword, length) = codewords[usize::from(byte)];
            writer.put(codeword, length);
        }
        bits::put_varint(out, writer.position() - end);
        end = writer.position();
    }
    writer.finish().iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

/// How often each byte occurs. Bytes in turns have counts of their own: one count that is raised
/// again and again waits for itself.
fn histogram(plane: &[u8]) -> [u64; 256] {
    let mut counts = [[0u64; 256]; 4];
    let (fours, rest) = plane.as_chunks::<4>();
    for four in fours {
        for (counts, &byte) in counts.iter_mut().zip(four) {
            counts[usize::from(byte)] += 1;
        }
    }
    rest.iter().for_each(|&byte| counts[0][usize::from(byte)] += 1);
    std::array::from_fn(|byte| counts.iter().map(|counts| counts[byte]).sum())
}

/// The shortest run of symbols, 0 after 255, that holds all with a codeword: its first and its size.
fn span(lengths: &[u8]) -> (usize, usize) {
    let used: Vec<usize> = (0..256).filter(|&symbol| lengths[symbol] > 0).collect();
    let after = used.iter().cycle().skip(1);
    let gaps = used.iter().zip(after).map(|(&symbol, &next)| ((next + 256 - symbol) % 256, next));
    let (gap, first) = gaps.max().unwrap_or((1, 0));
    (first, 257 - gap)
}

/// The quarters of a plane, the last ones shorter or empty.
fn lanes(plane: &[u8]) -> [&[u8]; LANES] {
    let size = plane.len().div_ceil(LANES);
    std::array::from_fn(|i| &plane[(i * size).min(plane.len())..((i + 1) * size).min(plane.len())])
}

/// Reads a plane of `count` bytes, which lie where they were or in `own`.
///
/// # Errors
/// `Corrupt` for a form that does not exist, a code that is none, lanes of another size, padding.
pub fn read<'c: 'r, 'r>(
    cursor: &mut Cursor<'c>,
    count: usize,
    own: &'r mut Vec<u8>,
    room: &mut Room,
) -> Result<&'r [u8]> {
    match cursor.byte("form of a plane")? {
        RAW => return cursor.take(count as u64, "plane"),
        CONSTANT => {
            let byte = cursor.byte("byte of a plane")?;
            own.clear();
            own.resize(count, byte);
        }
        HUFFMAN => {
            let code = read_code(cursor)?;
            let mut ends = [0u64; LANES];
            let mut nbits = 0u64;
            for end in &mut ends {
                nbits = nbits.saturating_add(cursor.varint("bits of a lane")?);
                *end = nbits;
            }
            let words = cursor.take(nbits.div_ceil(32).saturating_mul(4), "words")?;
            room.words.clear();
            room.words.extend(words.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)));
            check_padding(&room.words, nbits)?;
            own.resize(count, 0);
            decode(cursor, &code, ends, &room.words, own)?;
        }
        form => {
            return Err(cursor.corrupt(format_args!("plane of form {form}, expected 0 to 2")));
        }
    }
    Ok(own)
}

fn read_code(cursor: &mut Cursor<'_>) -> Result<Code> {
    let first = usize::from(cursor.byte("first symbol")?);
    let count = usize::from(cursor.byte("symbols")?) + 1;
    let packed = cursor.take(count.div_ceil(2) as u64, "code lengths")?;
    let mut lengths = vec![0u8; 256];
    let stored = packed.iter().flat_map(|&byte| [byte & 15, byte >> 4]);
    for (at, length) in stored.enumerate() {
        if u32::from(length) > LONGEST || at >= count && length > 0 {
            return Err(cursor.corrupt(format_args!(
                "code length {at} of {count} is {length}, expected at most {LONGEST}, and 0 after \
                 the last"
            )));
        }
        if at < count {
            lengths[(first + at) % 256] = length;
        }
    }
    let code = Code::from_lengths(lengths)?;
    if code.order().len() < 2 {
        return Err(cursor.corrupt(format_args!(
            "code of {} symbols, expected at least two",
            code.order().len()
        )));
    }
    Ok(code)
}

/// Decodes the lanes, which must end at `ends`.
fn decode(
    cursor: &Cursor<'_>,
    code: &Code,
    ends: [u64; LANES],
    words: &[u32],
    symbols: &mut [u8],
) -> Result<()> {
    let size = symbols.len().div_ceil(LANES);
    let mut rest = symbols;
    let mut start = 0;
    let mut lanes = ends.map(|end| {
        let size = size.min(rest.len());
        let (lane, after) = std::mem::take(&mut rest).split_at_mut(size);
        rest = after;
        Lane::new(std::mem::replace(&mut start, end), lane)
    });
    Decoder::new(code).decode(words, &mut lanes);
    for (number, (lane, end)) in lanes.iter().zip(ends).enumerate() {
        if lane.at != end {
            return Err(cursor.corrupt(format_args!(
                "lane {number} of a plane ends at bit {}, expected {end}",
                lane.at
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8], count: usize) -> Result<Vec<u8>> {
        let (mut own, mut room) = (Vec::new(), Room::default());
        let mut cursor = Cursor::new("test", bytes);
        Ok(read(&mut cursor, count, &mut own, &mut room)?.to_vec())
    }

    #[test]
    fn a_plane_worked_out_by_hand_is_written_and_read() {
        // 5 has codeword 0, 6 has 10, 7 has 11; quarters of 16 bytes: 16, 16, 24 and 24 bits.
        let plane = [vec![5u8; 32], [6, 5].repeat(8), [7, 5].repeat(8)].concat();
        let words = [0u32, 0b100100100100100100100100 << 8 | 0b11011011, 0b0110110110110110 << 16];
        let mut expected = vec![2, 5, 2, 0x21, 0x02, 16, 16, 24, 24];
        words.iter().for_each(|word| expected.extend(word.to_le_bytes()));
        let mut out = Vec::new();
        write(&mut out, &plane);
        assert_eq!(out, expected);
        assert_eq!(read_all(&expected, 64).unwrap(), plane);
        for (at, byte) in [(0, 3), (3, 0x22), (4, 0x12), (5, 15), (8, 25), (17, 1)] {
            let mut damaged = expected.clone();
            damaged[at] = byte;
            assert!(read_all(&damaged, 64).is_err(), "byte {at} is {byte}");
        }
        assert!(read_all(&expected, 60).is_err());
    }

    #[test]
    fn code_lengths_go_around_from_255_to_0() {
        let plane = [254u8, 255, 255, 0, 0, 0, 0, 1].repeat(8);
        let mut out = Vec::new();
        write(&mut out, &plane);
        // Four symbols from 254 on; lengths 3, 2, 1, 3 in the order of their counts.
        assert_eq!(out[..5], [2, 254, 3, 0x23, 0x31]);
        assert_eq!(read_all(&out, plane.len()).unwrap(), plane);
        assert_eq!(
            span(&{
                let mut l = [0; 256];
                (l[5], l[9]) = (1, 1);
                l
            }),
            (5, 5)
        );
        assert_eq!(span(&[8; 256]).1, 256);
    }

    #[test]
    fn equal_bytes_cost_two_and_noise_one_more_than_it_has() {
        let written = |plane: &[u8]| {
            let mut out = Vec::new();
            write(&mut out, plane);
            assert_eq!(read_all(&out, plane.len()).unwrap(), plane);
            out
        };
        assert_eq!(written(&[9; 1000]), [1, 9]);
        assert_eq!(written(&[]), [0]);
        let noise: Vec<u8> = (0..=255).map(|i: u8| i.wrapping_mul(37)).cycle().take(4096).collect();
        assert_eq!(written(&noise).len(), 4097);
        assert_eq!(written(&[1, 2, 3]), [0, 1, 2, 3]);
    }
}
