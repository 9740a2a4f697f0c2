//! What is done with the bytes, by name, and what each begins with.

use crate::{matrices, networks};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use tersenet::array::Owner;
use tersenet::bits::{put_varint, take_varint};
use tersenet::container::{CodedArray, Dtype, Limits, MAGIC, Reader, Tensor};
use tersenet::entropy::{huffman, planes, tans};
use tersenet::network::Graph;
use tersenet::{Error, Result};

/// One thing that takes bytes from outside.
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Bytes that are right, or nearly.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Takes any bytes.
    pub run: fn(&[u8]) -> Outcome,
}

/// What came of an execution, so that others can be told from it.
pub type Outcome = u64;

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "header", seeds: headers, run: header },
    Target { name: "tables", seeds: tables, run: table },
    Target { name: "planes", seeds: coded_arrays, run: coded_array },
    Target { name: "fixed", seeds: matrices::fixed, run: matrices::decode },
    Target { name: "huffman", seeds: matrices::huffman, run: matrices::decode },
    Target { name: "tans", seeds: matrices::tans, run: matrices::decode },
    Target { name: "mixing", seeds: matrices::mixing, run: matrices::decode },
    Target { name: "products", seeds: matrices::all, run: matrices::multiply },
    Target { name: "roundtrip", seeds: matrices::numbers, run: matrices::roundtrip },
    Target { name: "container", seeds: golden, run: container },
    Target { name: "network", seeds: Vec::new, run: networks::run },
];

/// What every target allows a file to ask for.
pub const LIMITS: Limits = Limits {
    header_nbytes: 1 << 20,
    tensor_nbytes: 1 << 18,
    total_nbytes: 1 << 24,
    ratio: u64::MAX,
    tensors: 1000,
};

/// The outcome that `kind` and `what` stand for.
pub fn outcome(kind: &str, what: impl Hash) -> Outcome {
    let mut hasher = DefaultHasher::new();
    (kind, what).hash(&mut hasher);
    hasher.finish()
}

/// The outcome of an error: how deep it lies, and what it says after the names of where, without
/// numbers and what is quoted.
pub fn refused(error: &Error) -> Outcome {
    let message = error.to_string();
    let depth = message.matches(": ").count();
    let said = message.rsplit(": ").next().unwrap_or_default();
    let plain: Vec<&str> = said.split('"').step_by(2).collect();
    let words = plain.iter().flat_map(|part| part.split(' '));
    let words: Vec<&str> =
        words.filter(|word| !word.contains(|c: char| c.is_ascii_digit())).collect();
    outcome("refused", (depth, words))
}

/// The golden files.
pub fn golden() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).expect("golden files").map(|e| e.expect("one").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "terse"));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a golden file")).collect()
}

/// A reader of bytes in memory.
pub fn open(bytes: Vec<u8>) -> Result<Reader> {
    let owner: Owner = Arc::new(bytes);
    Reader::from_owner(owner, &LIMITS)
}

/// Where the header of a container ends, if there is one.
pub fn header_end(bytes: &[u8]) -> Option<usize> {
    let size = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    16usize.checked_add(size as usize).filter(|&end| end <= bytes.len())
}

/// Puts the checksums that its bytes should have into a container, as far as its header tells.
pub fn reseal(bytes: &mut [u8]) -> Option<()> {
    let end = header_end(bytes)?;
    let mut rest = bytes.get(16..end)?;
    let before = rest.len();
    rest = rest.get(1..)?;
    take_varint(&mut rest).ok()?;
    let block = 1usize.checked_shl((*rest.first()?).into())?;
    rest = &rest[1..];
    let nbytes = usize::try_from(take_varint(&mut rest).ok()?).ok()?;
    let at = 16 + before - rest.len();
    let start = if nbytes < 1024 { end } else { end.next_multiple_of(64) };
    if block >= 1024 && nbytes <= 1 << 20 && at + 4 * nbytes.div_ceil(block) <= end {
        let data = bytes.get(start..start.checked_add(nbytes)?).unwrap_or(&[]).to_vec();
        for (number, block) in data.chunks(block).enumerate() {
            let checksum = crc32fast::hash(block).to_le_bytes();
            bytes[at + 4 * number..][..4].copy_from_slice(&checksum);
        }
    }
    let checksum = crc32fast::hash(bytes.get(16..end)?);
    bytes.get_mut(12..16)?.copy_from_slice(&checksum.to_le_bytes());
    bytes[..8].copy_from_slice(&MAGIC);
    Some(())
}

fn headers() -> Vec<Vec<u8>> {
    let mut all = golden();
    all.extend(crate::read_corpus("network"));
    all.iter().map(|bytes| bytes[16..header_end(bytes).expect("a header")].to_vec()).collect()
}

/// A header alone, before as many zeros as it says; and the graph in it.
fn header(body: &[u8]) -> Outcome {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(body).to_le_bytes());
    bytes.extend(body);
    let mut rest = body.get(1..).unwrap_or(&[]);
    let _ = take_varint(&mut rest);
    rest = rest.get(1..).unwrap_or(&[]);
    if let Ok(nbytes @ 0..=65_536) = take_varint(&mut rest) {
        let start = if nbytes < 1024 { bytes.len() } else { bytes.len().next_multiple_of(64) };
        bytes.resize(start + nbytes as usize, 0);
    }
    let reader = match open(bytes) {
        Ok(reader) => reader,
        Err(error) => return refused(&error),
    };
    let mut seen = 0u32;
    for name in reader.keys() {
        let entry = reader.entry(name).expect("a name of the file");
        let kind = entry.matrix.map_or(16, |matrix| u32::from(matrix.layout.id));
        seen |= 1 << kind | u32::from(entry.alias_of.is_some()) << 17;
    }
    match reader.graph().map(Graph::from_bytes) {
        Some(Err(error)) => refused(&error),
        graph => outcome("header", (seen.count_ones(), seen.checked_ilog2(), graph.is_some())),
    }
}

fn tables() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for histogram in [&[5, 1, 1][..], &[7], &[], &[1; 40], &[1, 1, 2, 3, 5, 8, 13, 21, 34, 55]] {
        let (packed, width) = huffman::Code::from_histogram(histogram).pack();
        all.push([&[0, histogram.len() as u8, width as u8][..], &packed].concat());
    }
    for histogram in [&[5, 1, 1][..], &[1; 40], &[1, 1, 2, 3, 5, 8, 13, 21, 34, 55], &[0, 9]] {
        let mut writer = tersenet::bits::BitWriter::new();
        tans::Counts::from_histogram(histogram).write(&mut writer);
        all.push([&[1, histogram.len() as u8, 0][..], &writer.finish()].concat());
    }
    all
}

/// Code lengths or counts, and a few words decoded by the tables that they make.
fn table(bytes: &[u8]) -> Outcome {
    let [kind, nsymbols, third, stored @ ..] = bytes else { return 0 };
    let nsymbols = usize::from(*nsymbols);
    if kind % 2 == 1 {
        return match tans::Counts::read(stored, usize::from(third % 8), nsymbols) {
            Err(error) => refused(&error),
            Ok(counts) => {
                let _ = (counts.table(false), counts.table(true), counts.largest());
                let mut writer = tersenet::bits::BitWriter::new();
                counts.write(&mut writer);
                let again = tans::Counts::read(&writer.finish(), 0, nsymbols);
                assert_eq!(again.expect("counts"), counts);
                outcome("counts", nsymbols)
            }
        };
    }
    let code = match huffman::Code::unpack(&stored.to_vec().into(), nsymbols, (*third).into()) {
        Ok(code) => code,
        Err(error) => return refused(&error),
    };
    assert_eq!(code.pack(), (stored.to_vec(), u64::from(*third)));
    let words: Vec<u32> =
        (0..8u32).map(|i| crc32fast::hash(&[bytes, &[i as u8]].concat())).collect();
    let mut symbols = [u16::MAX; 20];
    if code.longest() > 0 {
        let (first, second) = symbols.split_at_mut(10);
        let mut lanes = [huffman::Lane::new(0, first), huffman::Lane::new(5, second)];
        huffman::Decoder::new(&code).decode(&words, &mut lanes);
        assert!(symbols.iter().all(|&symbol| usize::from(symbol) < nsymbols));
    }
    outcome("code", code.longest())
}

fn coded_arrays() -> Vec<Vec<u8>> {
    let weights = |i: u32| ((i * 37 % 101) as f32 - 50.0) / 50.0;
    let floats: Vec<u8> = (0..150).flat_map(|i| weights(i).to_le_bytes()).collect();
    let zeros = |i: u32| if i.is_multiple_of(5) { weights(i) } else { weights(i) * 0.0 };
    let zeros: Vec<u8> = (0..150).flat_map(|i| zeros(i).to_le_bytes()).collect();
    let counts: Vec<u8> = (0..40).flat_map(|i| (i % 3 * 2 + 5i64).to_le_bytes()).collect();
    let bools: Vec<u8> = (0..200).map(|i| u8::from(i % 7 == 0)).collect();
    let halves: Vec<u8> = (0..300u32).flat_map(|i| [i as u8, 60 + (i % 3) as u8]).collect();
    let all = [
        ("float32", floats.clone()),
        ("float32", zeros),
        ("complex64", floats),
        ("int64", counts),
        ("bool", bools),
        ("bfloat16", halves),
    ];
    all.into_iter()
        .map(|(name, bytes)| {
            let dtype = Dtype::by_name(name).expect("a type");
            let coded = CodedArray::encode(&bytes, dtype).expect("elements").expect("fewer bytes");
            let mut seed = vec![dtype.id()];
            put_varint(&mut seed, bytes.len() as u64 / dtype.words().nbytes() as u64);
            [&seed, coded.as_bytes()].concat()
        })
        .collect()
}

/// Elements that are coded by planes.
fn coded_array(bytes: &[u8]) -> Outcome {
    let Some((&id, mut coded)) = bytes.split_first() else { return 0 };
    let (Some(dtype), Ok(count)) = (Dtype::of_id(id), take_varint(&mut coded)) else { return 1 };
    let words = dtype.words();
    // As a file says it: no more than its limit.
    let Some(nbytes) = count.checked_mul(words.nbytes() as u64).filter(|&n| n <= 4 << 20) else {
        return 2;
    };
    match planes::decode(coded, nbytes as usize, words) {
        Err(error) => refused(&error),
        Ok(elements) => {
            let elements = elements.as_slice::<u8>();
            let again = planes::encode(elements, words).expect("nobody ends it");
            let again = planes::decode(&again, elements.len(), words).expect("coded elements");
            assert_eq!(again.as_slice::<u8>(), elements);
            outcome("planes", (words.nbytes(), elements.len().checked_ilog2()))
        }
    }
}

/// A whole file: whatever opens is verified, read and decompressed.
fn container(bytes: &[u8]) -> Outcome {
    let mut bytes = bytes.to_vec();
    reseal(&mut bytes);
    let reader = match open(bytes) {
        Ok(reader) => reader,
        Err(error) => return refused(&error),
    };
    let verified = reader.verify(1);
    let (mut seen, mut first) = (0u32, None);
    for name in reader.keys() {
        match reader.get(name) {
            Ok(Tensor::Matrix(matrix)) => {
                matrix.decompress(1).expect("what was checked");
                seen |= 1 << matrix.layout().id;
            }
            Ok(Tensor::Array(_)) => seen |= 1 << 16,
            Err(error) => first = first.or(Some(error)),
        }
    }
    // What is verified can be read, and what cannot be read is not verified.
    match (verified, first) {
        (Ok(()), None) => outcome("container", (seen.count_ones(), seen.checked_ilog2())),
        (Ok(()), Some(error)) => panic!("verified, and yet: {error}"),
        (Err(error), _) => refused(&error),
    }
}
