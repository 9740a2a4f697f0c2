//! Golden files, damaged in every way that a disk or a network damages files: all of it is an error.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tersenet::ErrorKind;
use tersenet::array::Owner;
use tersenet::bits::put_varint;
use tersenet::container::{Dtype, Limits, MAGIC, Reader, Stored, Tensor, Writer};

const SPLICES: usize = 100_000;

fn golden() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "terse"))
        .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() > 50);
    files
}

fn open(bytes: Vec<u8>) -> tersenet::Result<Reader> {
    let owner: Owner = Arc::new(bytes);
    Reader::from_owner(owner, &Limits::default())
}

fn verified(bytes: Vec<u8>) -> tersenet::Result<()> {
    open(bytes)?.verify(1)
}

#[test]
fn every_flipped_bit_of_every_golden_file_is_an_error() {
    let (mut flips, mut longest) = (0, Duration::ZERO);
    for (name, bytes) in golden() {
        verified(bytes.clone()).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let start = Instant::now();
            let result = verified(flipped);
            longest = longest.max(start.elapsed());
            assert!(result.is_err(), "{name}: bit {bit} flipped in silence");
            flips += 1;
        }
    }
    assert!(flips > 500_000, "{flips}");
    println!("{flips} flips, each an error, the longest after {longest:?}");
}

#[test]
fn every_prefix_says_what_is_needed_and_whatever_follows_is_an_error() {
    for (name, bytes) in golden() {
        for end in 1..bytes.len() {
            let error = open(bytes[..end].to_vec()).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{name}: {end}: {error}");
            let message = error.to_string();
            assert!(message.contains(&format!("ends after {end} bytes, expected")), "{message}");
        }
        for (fill, more) in
            [0, 1, 0x89, 0xff].into_iter().flat_map(|f| (1..=64).map(move |n| (f, n)))
        {
            let mut longer = bytes.clone();
            longer.resize(bytes.len() + more, fill);
            assert_eq!(open(longer).err().unwrap().kind(), ErrorKind::Corrupt, "{name}");
        }
    }
}

#[test]
fn no_splice_of_two_files_is_silent() {
    let files = golden();
    let mut state = 1u64;
    let mut under = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % n.max(1)
    };
    let mut whole = 0;
    for _ in 0..SPLICES {
        let (a, b) = (&files[under(files.len())].1, &files[under(files.len())].1);
        let spliced = match under(3) {
            // The start of one and the end of another.
            0 => [&a[..under(a.len() + 1)], &b[under(b.len() + 1)..]].concat(),
            // A part of one in the place of as much of another.
            1 => {
                let nbytes = under(a.len().min(b.len()) + 1);
                let (from, to) = (under(b.len() - nbytes + 1), under(a.len() - nbytes + 1));
                let mut spliced = a.clone();
                spliced[to..to + nbytes].copy_from_slice(&b[from..from + nbytes]);
                spliced
            }
            // Two parts of one swapped, or one of them twice.
            _ => {
                let half = a.len() / 2;
                let nbytes = under(half + 1);
                let (first, second) = (under(half - nbytes + 1), half + under(half - nbytes + 1));
                let mut spliced = a.clone();
                spliced[second..second + nbytes].copy_from_slice(&a[first..first + nbytes]);
                if nbytes % 2 == 0 {
                    spliced[first..first + nbytes].copy_from_slice(&a[second..second + nbytes]);
                }
                spliced
            }
        };
        // It may happen to be a whole file again.
        if files.iter().any(|(_, bytes)| *bytes == spliced) {
            whole += 1;
            continue;
        }
        assert!(verified(spliced).is_err());
    }
    assert!(whole < SPLICES / 5, "{whole}");
}

#[test]
fn blocks_that_change_places_are_an_error() {
    // Four blocks of 64 KiB, each a valid one of this file.
    let values: Vec<u8> = (0..4u32 << 16).map(|i| (i >> 16) as u8 + 1).collect();
    let mut writer = Writer::default();
    writer.add("x", Dtype::by_name("uint8").unwrap(), &[4 << 16], Stored::Array(&values)).unwrap();
    let bytes = writer.to_bytes().unwrap();
    let start = bytes.len() - values.len();
    verified(bytes.clone()).unwrap();
    for (from, to) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).filter(|(a, b)| a != b) {
        let block = |number: usize| start + (number << 16)..start + ((number + 1) << 16);
        let mut moved = bytes.clone();
        moved.copy_within(block(from), block(to).start);
        let error = verified(moved).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("block {to}")), "{error}");
    }
}

#[test]
fn copies_made_in_text_mode_say_so() {
    for (name, bytes) in golden() {
        let mut unix = Vec::new();
        let mut windows = Vec::new();
        for (i, &byte) in bytes.iter().enumerate() {
            if byte != b'\r' || bytes.get(i + 1) != Some(&b'\n') {
                unix.push(byte);
            }
            if byte == b'\n' && (i == 0 || bytes[i - 1] != b'\r') {
                windows.push(b'\r');
            }
            windows.push(byte);
        }
        let seven_bits: Vec<u8> = bytes.iter().map(|byte| byte & 0x7f).collect();
        for mangled in [unix, windows, seven_bits] {
            let message = open(mangled).err().unwrap().to_string();
            assert!(message.contains("text mode"), "{name}: {message}");
        }
    }
}

/// A container whose header is `body`, rightly checksummed.
fn with_header(body: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(body).to_le_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn claims_of_many_entries_and_of_long_headers_are_refused_at_once() {
    let mut body = vec![1, 0, 16, 0, 0, 0];
    put_varint(&mut body, 10_000_000);
    body.resize(34, 1);
    let message = open(with_header(&body)).err().unwrap().to_string();
    assert!(message.contains("10000000 entries, but 24 bytes are left"), "{message}");
    for claimed in [0, 7, 8, 1 << 31, u32::MAX] {
        let mut bytes = with_header(&body);
        bytes[8..12].copy_from_slice(&u32::to_le_bytes(claimed));
        let kind = open(bytes).err().unwrap().kind();
        let expected =
            if claimed > 64 << 20 { ErrorKind::LimitExceeded } else { ErrorKind::Corrupt };
        assert_eq!(kind, expected, "{claimed}");
    }
}

#[test]
fn odd_names_are_names_and_no_paths() {
    let long = "n".repeat(1 << 20);
    let names = ["", "../../etc/passwd", "/", "C:\\x", ".", "\u{202e}", "\n", long.as_str()];
    let mut writer = Writer::default();
    for name in names {
        writer.add(name, Dtype::by_name("uint8").unwrap(), &[1], Stored::Array(&[7])).unwrap();
    }
    let reader = open(writer.to_bytes().unwrap()).unwrap();
    assert!(reader.keys().eq(names));
    for name in names {
        let Tensor::Array(array) = reader.get(name).unwrap() else { panic!() };
        assert_eq!(array.as_slice(), [7]);
    }
}
