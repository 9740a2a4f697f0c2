//! Planes: a tensor's elements split into bytes by significance, each kind of byte coded by itself.
//!
//! ```text
//!   elements ─▶ words of 1, 2, 4 or 8 bytes, in chunks of 2^18 words that stand alone
//!   float:      │ sign │ exponent … │ mantissa … │  ─rotated left by 1─▶  │ exponent │ mantissa │ sign │
//!   planes:     byte 0 of every word │ byte 1 of every word │ … │ the top byte of every word
//!   a plane:    as it is, one byte for all, or Huffman codewords in four lanes
//! ```
//!
//! The exponents of trained weights take two to three bits; their mantissas are noise and stay as
//! they are. Rotated, the exponent of float32 and bfloat16 is a byte of its own and the sign joins
//! the noise. A chunk with many zeros has another form: the bits that tell which words are over 1
//! (after the rotation ±0.0 are 1 and 0), the bits of the others, and the planes of those over 1:
//!
//! ```text
//!   0  the planes of all words, from the lowest
//!   1  kept: bit per word │ ones: bit per word that is not kept │ the planes of the kept words
//! ```
//!
//! Bits are bytes too, and are coded as a plane is: whole runs of zeros cost a bit a byte.
//!
//! Price, on one core of an AMD EPYC with AVX2, for tensors of 4 MiB of trained weights, in bytes
//! of elements: decoding 1.5 GB/s of float32, 1.1 of bfloat16 and of float16, and 2.1 of float32 with
//! 90 % zeros, of which fresh memory is a part; encoding 0.1 to 0.3. Beside the tensor a decoder holds
//! one chunk.
//!
//! Why Huffman over bytes: one look-up yields up to three exponents, and the coder was there. What
//! is lost against the entropy is about 1 % of one byte in two or four.
//!
//! Source: Hershcovitch et al. 2024, "ZipNN", arXiv:2411.05239 (exponents apart, Huffman).

mod plane;
mod words;

pub use words::Words;

use crate::bits;
use crate::cursor::Cursor;
use crate::error::Result;
use crate::interruption;
use crate::lines::Lines;

/// Words of a chunk; the last chunk has the rest.
pub const CHUNK_WORDS: usize = 1 << 18;
/// The chunk's form with planes of all words.
const ALL: u8 = 0;
/// The chunk's form with planes of the kept words.
const KEPT: u8 = 1;
/// The form [`KEPT`] is tried where at least one word in this many is not kept.
const MOST_KEPT: usize = 32;

/// The coded form of `bytes`, which are a whole number of words.
///
/// # Errors
/// `Interrupted`.
pub fn encode(bytes: &[u8], words: Words) -> Result<Vec<u8>> {
    let chunks = bytes.chunks(CHUNK_WORDS * words.nbytes()).map(|chunk| {
        interruption::check()?;
        Ok(encode_chunk(chunk, words))
    });
    let chunks = chunks.collect::<Result<Vec<Vec<u8>>>>()?;
    let mut out = Vec::with_capacity(chunks.iter().map(|chunk| chunk.len() + 4).sum());
    for chunk in chunks.iter().rev().skip(1).rev() {
        bits::put_varint(&mut out, chunk.len() as u64);
    }
    chunks.iter().for_each(|chunk| out.extend_from_slice(chunk));
    Ok(out)
}

fn encode_chunk(chunk: &[u8], words: Words) -> Vec<u8> {
    let mut all = vec![ALL];
    let planes = words.split(chunk);
    planes.iter().for_each(|plane| plane::write(&mut all, plane));
    if words.count_small(&planes) * MOST_KEPT < chunk.len() / words.nbytes() {
        return all;
    }
    let parts = words.part(&planes);
    let mut kept = vec![KEPT];
    plane::write(&mut kept, &parts.kept.bytes);
    plane::write(&mut kept, &parts.ones.bytes);
    parts.planes.iter().for_each(|plane| plane::write(&mut kept, plane));
    if kept.len() < all.len() { kept } else { all }
}

/// The `nbytes` bytes, a whole number of words, of which `coded` is the coded form.
///
/// Sizes are checked against `coded` before anything is allocated.
///
/// # Errors
/// `Corrupt` for anything that FORMAT.md refuses; `LimitExceeded` where the memory is not there;
/// `Interrupted`.
pub fn decode(coded: &[u8], nbytes: usize, words: Words) -> Result<Lines> {
    chunks(&mut Cursor::new("planes", coded), nbytes, words)?;
    let mut out = Lines::zeroed::<u8>(nbytes)?;
    decode_into(coded, words, out.as_mut_slice())?;
    Ok(out)
}

/// Fills `out`, a whole number of words, with what `coded` is the coded form of.
///
/// # Errors
/// As [`decode`]; then what is in `out` has no meaning.
pub fn decode_into(coded: &[u8], words: Words, out: &mut [u8]) -> Result<()> {
    let mut cursor = Cursor::new("planes", coded);
    let sizes = chunks(&mut cursor, out.len(), words)?;
    let mut room = Room::default();
    for (chunk, &size) in out.chunks_mut(CHUNK_WORDS * words.nbytes()).zip(&sizes) {
        interruption::check()?;
        let mut cursor = Cursor::new("chunk of planes", cursor.take(size, "chunk")?);
        decode_chunk(&mut cursor, words, chunk, &mut room)?;
        if !cursor.is_empty() {
            return Err(cursor.corrupt(format_args!("{} bytes follow its planes", cursor.left())));
        }
    }
    if !cursor.is_empty() {
        return Err(cursor.corrupt(format_args!("{} bytes of no chunk", cursor.left())));
    }
    Ok(())
}

/// The size of each chunk of `nbytes` bytes of words; the chunks follow.
fn chunks(cursor: &mut Cursor<'_>, nbytes: usize, words: Words) -> Result<Vec<u64>> {
    let nchunks = (nbytes / words.nbytes()).div_ceil(CHUNK_WORDS);
    let mut sizes = Vec::new();
    let mut end = 0u64;
    for _ in 1..nchunks {
        let size = cursor.varint("size of a chunk")?;
        end = end.saturating_add(size);
        if end > cursor.left() as u64 {
            return Err(cursor.corrupt(format_args!(
                "chunks of {end} bytes and more, but {} bytes are left",
                cursor.left()
            )));
        }
        sizes.push(size);
    }
    sizes.extend((nchunks > 0).then_some(cursor.left() as u64 - end));
    let least = 1 + words.nbytes() as u64; // The form, and that of each plane.
    if let Some(size) = sizes.iter().find(|&&size| size < least) {
        return Err(cursor.corrupt(format_args!("chunk of {size} bytes, expected {least} or more")));
    }
    Ok(sizes)
}

/// Memory that the chunks of a tensor use in turns.
#[derive(Default)]
struct Room {
    planes: [Vec<u8>; 8],
    bits: [Vec<u8>; 2],
    kept: Vec<u8>,
    plane: plane::Room,
}

fn decode_chunk(
    cursor: &mut Cursor<'_>,
    words: Words,
    chunk: &mut [u8],
    room: &mut Room,
) -> Result<()> {
    let count = chunk.len() / words.nbytes();
    let form = cursor.byte("form")?;
    if form == ALL {
        let planes = read_planes(cursor, words, count, &mut room.planes, &mut room.plane)?;
        words.join(&planes[..words.nbytes()], chunk);
        return Ok(());
    }
    if form != KEPT {
        return Err(cursor.corrupt(format_args!("form {form}, expected {ALL} or {KEPT}")));
    }
    let [kept_room, ones_room] = &mut room.bits;
    let kept = plane::read(cursor, count.div_ceil(8), kept_room, &mut room.plane)?;
    let nkept = count_ones(cursor, "kept", kept, count)?;
    let ones = plane::read(cursor, (count - nkept).div_ceil(8), ones_room, &mut room.plane)?;
    count_ones(cursor, "ones", ones, count - nkept)?;
    let planes = read_planes(cursor, words, nkept, &mut room.planes, &mut room.plane)?;
    room.kept.resize(nkept * words.nbytes(), 0);
    words.join(&planes[..words.nbytes()], &mut room.kept);
    words.place(kept, ones, &room.kept, chunk);
    Ok(())
}

fn read_planes<'c: 'r, 'r>(
    cursor: &mut Cursor<'c>,
    words: Words,
    count: usize,
    rooms: &'r mut [Vec<u8>; 8],
    room: &mut plane::Room,
) -> Result<[&'r [u8]; 8]> {
    let mut planes: [&[u8]; 8] = [&[]; 8];
    for (plane, own) in planes.iter_mut().zip(rooms).take(words.nbytes()) {
        *plane = plane::read(cursor, count, own, room)?;
    }
    Ok(planes)
}

/// The number of set bits among `nbits`; what follows in the last byte must be zero.
fn count_ones(cursor: &Cursor<'_>, what: &str, bytes: &[u8], nbits: usize) -> Result<usize> {
    let rest = nbits % 8;
    match bytes.last() {
        Some(&last) if rest > 0 && last >> rest != 0 => {
            Err(cursor.corrupt(format_args!("bits of {what} after the last of {nbits}")))
        }
        _ => Ok(bytes.iter().map(|byte| byte.count_ones() as usize).sum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words() -> impl Strategy<Value = Words> {
        (prop::sample::select(vec![1, 2, 4, 8]), any::<bool>())
            .prop_map(|(nbytes, is_float)| Words::new(nbytes, is_float))
    }

    /// Words of which some are 0 or 1 and the others have few top bytes, as weights do.
    fn content(words: Words, count: usize, seed: u64, zeros: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut bytes = Vec::new();
        for _ in 0..count {
            let mut word = next().to_le_bytes()[..words.nbytes()].to_vec();
            word[words.nbytes() - 1] = (next() & next() & 7) as u8 + 60;
            if next() % 100 < zeros {
                word.fill(0);
                word[words.nbytes() - 1] = if next() % 4 == 0 { 0x80 } else { 0 };
            }
            bytes.extend(word);
        }
        bytes
    }

    proptest! {
        #[test]
        fn words_come_back(
            words in words(),
            count in prop_oneof![0usize..200, Just(5000), CHUNK_WORDS - 1..=CHUNK_WORDS + 1],
            seed in any::<u64>(),
            zeros in prop::sample::select(vec![0u64, 1, 50, 99, 100]),
        ) {
            let bytes = content(words, count, seed, zeros);
            let coded = encode(&bytes, words).unwrap();
            let again = decode(&coded, bytes.len(), words).unwrap();
            prop_assert_eq!(again.as_slice::<u8>(), &bytes[..]);
            // What planes cost at most: a byte each and one for the form.
            prop_assert!(coded.len() <= bytes.len() + (count / CHUNK_WORDS + 1) * (words.nbytes() + 5));
            prop_assert!(decode(&[&coded[..], &[0]].concat(), bytes.len(), words).is_err());
            prop_assert!(count == 0 || decode(&coded[..coded.len() - 1], bytes.len(), words).is_err());
        }

        #[test]
        fn any_bytes_decode_or_are_refused(
            words in words(), count in 0usize..500, seed in any::<u64>(), zeros in 0u64..100,
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            noise in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let bytes = content(words, count, seed, zeros);
            let mut coded = encode(&bytes, words).unwrap();
            for (at, byte) in damage.iter().filter(|_| count > 0) {
                let at = at.index(coded.len());
                coded[at] = *byte;
            }
            for coded in [coded, noise] {
                if let Ok(found) = decode(&coded, bytes.len(), words) {
                    prop_assert_eq!(found.as_slice::<u8>().len(), bytes.len());
                }
            }
        }
    }

    #[test]
    fn bytes_that_cannot_be_all_the_chunks_are_refused_before_memory_is_asked_for() {
        let words = Words::new(4, true);
        let error = decode(&[1; 1000], 1 << 50, words).err().unwrap();
        assert_eq!(error.kind(), crate::ErrorKind::Corrupt, "{error}");
    }

    #[test]
    fn a_pruned_tensor_costs_its_kept_words_and_the_entropy_of_its_zeros() {
        let words = Words::new(4, true);
        let (count, zeros) = (100_000, 90);
        let coded = encode(&content(words, count, 1, zeros), words).unwrap();
        // A kept word: 24 bits of noise and at most 2.5 of the rest. A zero or not: 0.469 bits, and
        // of the zeros a quarter is -0.0: 0.811 bits each.
        let bits = count as f64 * (0.1 * 26.5 + 0.469 + 0.9 * 0.811);
        assert!((coded.len() as f64) < 1.03 * bits / 8.0, "{} bytes, {bits} bits", coded.len());
    }
}
