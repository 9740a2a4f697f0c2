//! Containers: what goes in comes out; what is damaged, cut, foreign or too large is an error.

use crate::matrices::{edge_set, to_bits, unquantized};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use tersenet::array::Owner;
use tersenet::bits::put_varint;
use tersenet::container::{CodedArray, Dtype, Limits, MAGIC, Reader, Stored, Tensor, Writer};
use tersenet::layout::{Columns, Goal, LAYOUTS};
use tersenet::rows::{Rows, Shape};
use tersenet::{Codebook, CompressedMatrix, ErrorKind, Request};

fn open(bytes: &[u8]) -> tersenet::Result<Reader> {
    let owner: Owner = Arc::new(bytes.to_vec());
    Reader::from_owner(owner, &Limits::default())
}

fn kind_of<T>(result: tersenet::Result<T>) -> (ErrorKind, String) {
    let error = result.err().expect("an error");
    (error.kind(), error.to_string())
}

/// A container whose header is `body`, rightly checksummed, before `data`.
fn with_header(body: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(crc32fast::hash(body).to_le_bytes());
    bytes.extend(body);
    bytes.extend(data);
    bytes
}

/// Elements that are coded by codewords, by bits and planes, and by a byte for all.
fn coded_samples() -> Vec<(&'static str, CodedArray, Vec<u8>)> {
    let weights = |i: u32| ((i * 37 % 101) as f32 - 50.0) / 50.0;
    let floats: Vec<u8> = (0..150).flat_map(|i| weights(i).to_le_bytes()).collect();
    let pruned = |i| if i % 5 == 0 { weights(i) } else { weights(i) * 0.0 };
    let pruned: Vec<u8> = (0..150).flat_map(|i| pruned(i).to_le_bytes()).collect();
    let counts: Vec<u8> = (0..40).flat_map(|i| (i % 3 * 2 + 5i64).to_le_bytes()).collect();
    let bools: Vec<u8> = (0..200).map(|i| u8::from(i % 7 == 0)).collect();
    [("float32", floats), ("float32", pruned), ("int64", counts), ("bool", bools)]
        .map(|(dtype, bytes)| {
            let coded = CodedArray::encode(&bytes, Dtype::by_name(dtype).unwrap()).unwrap();
            (dtype, coded.expect("fewer bytes"), bytes)
        })
        .into()
}

/// One matrix in every layout and either arrangement, one with many values, plain tensors as they
/// are and coded, an alias, metadata.
fn sample() -> Vec<u8> {
    let shape = Shape::new(6, 20).unwrap();
    let weights: Vec<f32> =
        (0..120).map(|i| if i % 3 == 0 { ((i % 4) as f32 + 1.0) * 0.5 } else { 0.0 }).collect();
    let mut matrices = Vec::new();
    for &spec in LAYOUTS {
        for columns in [Columns::Coded, Columns::Raw] {
            let request = Request { layout: Some(spec), columns, ..Request::default() };
            matrices.push((
                format!("{}.{columns:?}", spec.name),
                CompressedMatrix::compress(&weights, shape, &request).unwrap(),
            ));
        }
    }
    let many: Vec<f32> = (1..=120).map(|i| (i % 60) as f32 * 0.25).collect();
    let many = CompressedMatrix::compress(&many, shape, &Request::default()).unwrap();
    matrices.push(("many".to_owned(), many));
    let coded = coded_samples();
    let metadata = BTreeMap::from([("made by".to_owned(), "a test".to_owned())]);
    let mut writer = Writer::new(metadata).unwrap();
    writer.for_size();
    for (number, (dtype, array, bytes)) in coded.iter().enumerate() {
        let dtype = Dtype::by_name(dtype).unwrap();
        let dims = [2, bytes.len() as u64 / dtype.nbytes() / 2];
        writer.add(&format!("coded.{number}"), dtype, &dims, Stored::Coded(array)).unwrap();
    }
    for (name, matrix) in &matrices {
        writer.add(name, Dtype::FLOAT32, &[6, 4, 5], Stored::Matrix(matrix)).unwrap();
    }
    writer
        .add("bias", Dtype::by_name("float16").unwrap(), &[3], Stored::Array(&[1, 2, 3, 4, 5, 6]))
        .unwrap();
    writer.add("empty", Dtype::by_name("int64").unwrap(), &[0, 9], Stored::Array(&[])).unwrap();
    writer.add("flag", Dtype::by_name("bool").unwrap(), &[], Stored::Array(&[1])).unwrap();
    writer.add_alias("tied", "bias").unwrap();
    writer.to_bytes().unwrap()
}

/// A name, its shape, the bits of its elements or its bytes.
type Content = (String, Vec<u64>, Vec<u32>);

/// Everything that can be read, as bits.
fn contents(reader: &Reader) -> tersenet::Result<Vec<Content>> {
    reader.verify(2)?;
    let mut all = Vec::new();
    for name in reader.keys() {
        let dims = reader.entry(name)?.dims.to_vec();
        let bits = match reader.get(name)? {
            Tensor::Matrix(matrix) => to_bits(&matrix.decompress(1)?),
            Tensor::Array(array) => array.as_slice().iter().map(|&b| u32::from(b)).collect(),
        };
        all.push((name.to_owned(), dims, bits));
    }
    Ok(all)
}

#[test]
fn everything_comes_back_from_memory_from_a_file_and_from_a_mapping() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.terse");
    let matrices: Vec<_> = edge_set()
        .into_iter()
        .chain([("unquantized", unquantized())])
        .map(|(name, (weights, shape))| {
            (
                name,
                CompressedMatrix::compress(&weights, shape, &Request::default()).unwrap(),
                weights,
            )
        })
        .collect();
    let long: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect();
    let mut writer = Writer::default();
    for (name, matrix, _) in &matrices {
        let dims = [matrix.shape().nrows as u64, matrix.shape().ncols as u64];
        writer.add(name, Dtype::FLOAT32, &dims, Stored::Matrix(matrix)).unwrap();
    }
    writer.add("long", Dtype::by_name("uint8").unwrap(), &[200_000], Stored::Array(&long)).unwrap();
    assert_eq!(writer.save(&path).unwrap(), std::fs::metadata(&path).unwrap().len());
    assert_eq!(std::fs::read(&path).unwrap(), writer.to_bytes().unwrap());
    let limits = Limits::default();
    let readers = [
        open(&writer.to_bytes().unwrap()).unwrap(),
        Reader::open(&path, &limits).unwrap(),
        Reader::map(&path, &limits).unwrap(),
    ];
    for reader in readers {
        reader.verify(2).unwrap();
        for (name, matrix, weights) in &matrices {
            let Tensor::Matrix(again) = reader.get(name).unwrap() else { panic!("{name}") };
            assert_eq!(to_bits(&again.decompress(1).unwrap()), to_bits(weights), "{name}");
            assert_eq!(
                (again.shape(), again.nbytes()),
                (matrix.shape(), matrix.nbytes()),
                "{name}"
            );
        }
        let Tensor::Array(array) = reader.get("long").unwrap() else { panic!() };
        assert_eq!(array.as_slice(), long);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a stray file");
}

#[test]
fn a_codebook_that_several_matrices_share_is_stored_once_and_shared_again() {
    let codebook =
        Arc::new(Codebook::new((1..=200).map(|i| i as f32).collect::<Vec<_>>()).unwrap());
    let shape = Shape::new(10, 10).unwrap();
    let matrix = |seed: u16| {
        let symbols: Vec<u16> = (0..100).map(|i| (i * seed) % 200).collect();
        let rows = Rows::from_symbols(&symbols, &[true; 100], codebook.clone(), shape).unwrap();
        let packed = Request::parse("packed", "auto", Goal::Size, Columns::Coded).unwrap();
        CompressedMatrix::from_rows(&rows, &packed).unwrap()
    };
    let (a, b) = (matrix(3), matrix(7));
    let size = |names: &[(&str, &CompressedMatrix)]| {
        let mut writer = Writer::default();
        for (name, matrix) in names {
            writer.add(name, Dtype::FLOAT32, &[10, 10], Stored::Matrix(matrix)).unwrap();
        }
        writer.to_bytes().unwrap()
    };
    let both = size(&[("a", &a), ("b", &b)]);
    assert!(both.len() < size(&[("a", &a)]).len() + size(&[("b", &b)]).len() - 700);
    let reader = open(&both).unwrap();
    let (Tensor::Matrix(a), Tensor::Matrix(b)) =
        (reader.get("a").unwrap(), reader.get("b").unwrap())
    else {
        panic!()
    };
    assert!(Arc::ptr_eq(a.codebook().unwrap(), b.codebook().unwrap()));
    assert_eq!(a.codebook().unwrap().values(), codebook.values(), "the given order is kept");
}

#[test]
fn coded_tensors_and_codebooks_come_back_and_take_fewer_bytes() {
    let reader = open(&sample()).unwrap();
    for (number, (dtype, array, bytes)) in coded_samples().iter().enumerate() {
        let name = format!("coded.{number}");
        let entry = reader.entry(&name).unwrap();
        assert_eq!((entry.dtype, entry.array_coder), (*dtype, Some("planes")));
        assert!(entry.nbytes == array.as_bytes().len() as u64 && entry.nbytes < bytes.len() as u64);
        let Tensor::Array(found) = reader.get(&name).unwrap() else { panic!() };
        assert_eq!(found.as_slice(), &bytes[..], "{name}");
        let mut found = vec![9; bytes.len()];
        array.decode_into(&mut found).unwrap();
        assert_eq!(&found, bytes, "{name}");
    }
    assert_eq!(reader.entry("bias").unwrap().array_coder, None);
    let Tensor::Matrix(many) = reader.get("many").unwrap() else { panic!() };
    let expected: Vec<f32> = (1..=120).map(|i| (i % 60) as f32 * 0.25).collect();
    assert_eq!(to_bits(&many.decompress(1).unwrap()), to_bits(&expected));
    let size = |codes: bool| {
        let mut writer = Writer::default();
        writer.add("many", Dtype::FLOAT32, &[6, 20], Stored::Matrix(&many)).unwrap();
        if codes {
            writer.for_size();
        }
        writer.to_bytes().unwrap().len()
    };
    // Of 59 multiples of a quarter the two low bytes are 0.
    assert!(size(true) + 80 < size(false), "{} and {}", size(true), size(false));
}

#[test]
fn what_does_not_get_smaller_is_not_coded() {
    let float32 = Dtype::FLOAT32;
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let noise: Vec<u8> = (0..4000).map(|_| next()).collect();
    assert!(CodedArray::encode(&noise, float32).unwrap().is_none());
    assert!(CodedArray::encode(&[0; 8], float32).unwrap().is_none());
    assert!(CodedArray::encode(&[], float32).unwrap().is_none());
    assert!(CodedArray::encode(&[0; 7], float32).is_err());
    assert!(CodedArray::encode(&[2], Dtype::by_name("bool").unwrap()).is_err());
}

#[test]
fn coded_tensors_that_claim_too_much_are_refused() {
    // One coded tensor "x" of `dims` float32 in `data`.
    let made = |dims: u64, coder: u8, data: &[u8]| {
        let mut body = start_of_header(data.len() as u64, &[]);
        // The one block's checksum, before no metadata and no codebooks.
        let end = body.len() - 2;
        if !data.is_empty() {
            body[end - 4..end].copy_from_slice(&crc32fast::hash(data).to_le_bytes());
        }
        body.extend([1, 1, b'x', 3, 0, 1]);
        put_varint(&mut body, dims);
        body.push(coder);
        put_varint(&mut body, data.len() as u64);
        with_header(&body, data)
    };
    let get = |bytes: Vec<u8>| open(&bytes).and_then(|reader| reader.get("x"));
    assert!(get(made(100, 1, &[0, 1, 0, 1, 0, 1, 0, 1, 63])).is_ok());
    assert_eq!(kind_of(get(made(100, 2, &[0; 9]))).0, ErrorKind::UnsupportedVersion);
    assert_eq!(kind_of(get(made(1 << 40, 1, &[0; 9]))).0, ErrorKind::LimitExceeded);
    assert_eq!(kind_of(get(made(1 << 34, 1, &[0; 900]))).0, ErrorKind::Corrupt);
    assert_eq!(kind_of(get(made(0, 1, &[0]))).0, ErrorKind::Corrupt);
    assert!(get(made(0, 1, &[])).is_ok());
}

#[test]
fn an_alias_reads_as_its_tensor() {
    let reader = open(&sample()).unwrap();
    let entry = reader.entry("tied").unwrap();
    assert_eq!((entry.alias_of, entry.dtype, entry.dims), (Some("bias"), "float16", &[3][..]));
    let Tensor::Array(array) = reader.get("tied").unwrap() else { panic!() };
    assert_eq!(array.as_slice(), [1, 2, 3, 4, 5, 6]);
}

#[test]
fn every_flipped_bit_is_an_error() {
    let bytes = sample();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let result = open(&flipped).and_then(|reader| contents(&reader));
        assert!(result.is_err(), "bit {bit} of {} flipped in silence", bytes.len() * 8);
    }
}

#[test]
fn every_prefix_is_truncated_and_whatever_follows_is_an_error() {
    let bytes = sample();
    for end in 0..bytes.len() {
        let (kind, message) = kind_of(open(&bytes[..end]));
        let expected = if end == 0 { ErrorKind::Corrupt } else { ErrorKind::Truncated };
        assert_eq!(kind, expected, "{end}: {message}");
        assert!(end == 0 || message.contains(&format!("after {end} bytes")), "{message}");
    }
    for more in 1..=64 {
        let mut longer = bytes.clone();
        longer.resize(bytes.len() + more, 0);
        assert_eq!(kind_of(open(&longer)).0, ErrorKind::Corrupt);
    }
}

#[test]
fn a_block_from_another_file_is_an_error() {
    let make = |fill: u8| {
        let bytes = vec![fill; 300_000];
        let mut writer = Writer::default();
        writer
            .add("x", Dtype::by_name("uint8").unwrap(), &[300_000], Stored::Array(&bytes))
            .unwrap();
        writer.to_bytes().unwrap()
    };
    let (a, b) = (make(1), make(2));
    let mut spliced = a.clone();
    let at = a.len() - 100_000;
    spliced[at..].copy_from_slice(&b[at..]);
    assert_eq!(kind_of(open(&spliced).and_then(|r| r.get("x"))).0, ErrorKind::Corrupt);
}

#[test]
fn what_is_no_container_is_named() {
    let safetensors = [&8u64.to_le_bytes()[..], b"{\"a\":{}}", &[0; 40]].concat();
    let text_mode = [&b"\x89TRS\n\x1a\n"[..], &[0; 40]].concat();
    let cases: [(&[u8], &str); 12] = [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"PK\x03\x04........................", "zip"),
        (&safetensors, "safetensors"),
        (&text_mode, "text mode"),
        (&[0; 64], "all zeros"),
        (&[0xff; 64], "all 0xff"),
        (b"\x1f\x8b..............", "gzip"),
        (b"\x93NUMPY..........", "NumPy"),
        (b"\x80\x02}q\x00.............", "pickle"),
        (b"to whom it may concern", "text file"),
        (b"", "empty"),
    ];
    for (bytes, expected) in cases {
        let (kind, message) = kind_of(open(bytes));
        assert_eq!(kind, ErrorKind::Corrupt);
        assert!(message.contains(expected), "{message}");
    }
}

/// A header up to and without its entries: version 1, nothing required, no metadata.
fn start_of_header(data_nbytes: u64, codebooks: &[u64]) -> Vec<u8> {
    let mut body = vec![1, 0, 16];
    put_varint(&mut body, data_nbytes);
    body.extend(vec![0; 4 * data_nbytes.div_ceil(1 << 16).min(1 << 20) as usize]);
    body.push(0);
    put_varint(&mut body, codebooks.len() as u64);
    codebooks.iter().for_each(|&k| put_varint(&mut body, k));
    body
}

fn numbers(body: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|&number| put_varint(body, number));
}

#[test]
fn headers_that_claim_too_much_are_refused_before_anything_is_allocated() {
    let huge = [1 << 32, 1 << 40, 1 << 63, u64::MAX];
    for claim in huge {
        // Metadata, codebooks, entries, a name, a rank, a dimension, nrows, ncols, nnz, params.
        let mut bodies = vec![vec![1, 0, 16]];
        numbers(&mut bodies[0], &[claim]);
        for before in [&[0u64][..], &[0, 0], &[0, 0, 0], &[0, 0, 0, 1]] {
            let mut body = vec![1, 0, 16];
            numbers(&mut body, before);
            numbers(&mut body, &[claim]);
            bodies.push(body);
        }
        for at in 0..8 {
            let mut body = start_of_header(0, &[]);
            // One entry "w", a float32 matrix in csr: rank, codebook, ids, nrows, ncols, nnz, params.
            body.extend([1, 1, b'w', 1, 0]);
            let mut fields = [0u64, 0, 1, 0, 2, 2, 0, 0];
            fields[at] = claim;
            numbers(&mut body, &fields);
            bodies.push(body);
        }
        for body in bodies {
            let result = open(&with_header(&body, &[]));
            assert!(result.and_then(|r| contents(&r)).is_err(), "claim {claim}: {body:?}");
        }
    }
}

#[test]
fn names_twice_in_not_utf8_or_with_a_nul_and_aliases_of_aliases_are_errors() {
    let array = |name: &[u8]| [&[name.len() as u8][..], name, &[0, 8, 1, 0]].concat();
    let file = |entries: &[Vec<u8>]| {
        let mut body = start_of_header(0, &[]);
        body.push(entries.len() as u8);
        body.extend(entries.concat());
        with_header(&body, &[])
    };
    assert!(open(&file(&[array(b"a"), array(b"b")])).is_ok());
    let alias = |name: u8, target: u8| vec![1, name, 2, target];
    let cases: [(Vec<Vec<u8>>, &str); 7] = [
        (vec![array(b"a"), array(b"a")], "twice"),
        (vec![array(b"\xff\xfe")], "UTF-8"),
        (vec![array(b"a\0b")], "NUL"),
        (vec![alias(b'a', 0)], "earlier tensor"),
        (vec![array(b"x"), alias(b'a', 0), alias(b'b', 1)], "earlier tensor"),
        (vec![vec![1, b'a', 4, 0]], "newer tersenet"),
        (vec![vec![1, b'a', 0, 99, 0]], "newer tersenet"),
    ];
    for (entries, expected) in cases {
        let (_, message) = kind_of(open(&file(&entries)));
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn a_newer_version_or_feature_says_so_and_an_optional_extension_is_skipped() {
    let mut newer = start_of_header(0, &[]);
    newer.push(0);
    let plain = newer.clone();
    newer[0] = 2;
    let (kind, message) = kind_of(open(&with_header(&newer, &[])));
    assert_eq!(kind, ErrorKind::UnsupportedVersion, "{message}");
    let mut feature = plain.clone();
    feature[1] = 4;
    let (kind, message) = kind_of(open(&with_header(&feature, &[])));
    assert_eq!(kind, ErrorKind::UnsupportedVersion);
    assert!(message.contains("0x4"), "{message}");
    let extended = [&plain[..], &[9, 3, 1, 2, 3]].concat();
    assert!(open(&with_header(&extended, &[])).is_ok());
    let cut = [&plain[..], &[9, 3, 1, 2]].concat();
    assert_eq!(kind_of(open(&with_header(&cut, &[]))).0, ErrorKind::Corrupt);
}

#[test]
fn limits_are_kept_and_named() {
    let bytes = sample();
    let owner: Owner = Arc::new(bytes);
    for limits in [
        Limits { header_nbytes: 10, ..Limits::default() },
        Limits { tensor_nbytes: 100, ..Limits::default() },
        Limits { tensors: 3, ..Limits::default() },
    ] {
        let (kind, message) = kind_of(Reader::from_owner(owner.clone(), &limits));
        assert_eq!(kind, ErrorKind::LimitExceeded);
        assert!(message.contains("raise the limit"), "{message}");
    }
}

#[test]
fn a_failed_save_leaves_the_old_file_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.terse");
    std::fs::write(&path, b"the old file").unwrap();
    let nowhere = folder.path().join("missing").join("model.terse");
    assert_eq!(kind_of(Writer::default().save(&nowhere)).0, ErrorKind::Io);
    assert_eq!(kind_of(Writer::default().save(folder.path())).0, ErrorKind::Io);
    assert_eq!(std::fs::read(&path).unwrap(), b"the old file");
    Writer::default().save(&path).unwrap();
    assert_eq!(Reader::open(&path, &Limits::default()).unwrap().keys().count(), 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn names_shapes_and_types_that_do_not_fit_are_refused_when_written() {
    let matrix =
        CompressedMatrix::compress(&[1.0; 6], Shape::new(2, 3).unwrap(), &Request::default())
            .unwrap();
    let mut writer = Writer::default();
    let float32 = Dtype::FLOAT32;
    writer.add("a", float32, &[2, 3], Stored::Matrix(&matrix)).unwrap();
    assert!(writer.add("a", float32, &[2, 3], Stored::Matrix(&matrix)).is_err());
    assert!(writer.add("b", float32, &[3, 2], Stored::Matrix(&matrix)).is_err());
    assert!(
        writer.add("c", Dtype::by_name("int8").unwrap(), &[2, 3], Stored::Matrix(&matrix)).is_err()
    );
    assert!(writer.add("d", float32, &[2], Stored::Array(&[0; 7])).is_err());
    assert!(writer.add("e\0", float32, &[0], Stored::Array(&[])).is_err());
    let coded = CodedArray::encode(&[0; 400], float32).unwrap().unwrap();
    assert!(writer.add("g", float32, &[99], Stored::Coded(&coded)).is_err());
    assert!(
        writer.add("g", Dtype::by_name("int32").unwrap(), &[100], Stored::Coded(&coded)).is_err()
    );
    assert!(writer.add_alias("f", "nothing").is_err());
    assert!(Dtype::by_name("float31").is_err());
}

#[test]
fn a_file_cut_or_replaced_while_it_is_open_is_an_error_or_the_old_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.terse");
    let old = vec![7u8; 500_000];
    let uint8 = Dtype::by_name("uint8").unwrap();
    let mut writer = Writer::default();
    writer.add("x", uint8, &[500_000], Stored::Array(&old)).unwrap();
    writer.save(&path).unwrap();
    let reader = Reader::open(&path, &Limits::default()).unwrap();
    let new = vec![8u8; 500_000];
    let mut other = Writer::default();
    other.add("x", uint8, &[500_000], Stored::Array(&new)).unwrap();
    other.save(&path).unwrap();
    let Tensor::Array(array) = reader.get("x").unwrap() else { panic!() };
    assert_eq!(array.as_slice(), old, "a save over an open file does not reach its reader");
    let reader = Reader::open(&path, &Limits::default()).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    assert_eq!(kind_of(reader.get("x")).0, ErrorKind::Truncated);
}

proptest! {
    #[test]
    fn any_bytes_behind_a_right_checksum_are_read_or_refused_without_a_panic(
        body in prop::collection::vec(any::<u8>(), 0..200), data in prop::collection::vec(any::<u8>(), 0..100)
    ) {
        let _ = open(&with_header(&body, &data)).and_then(|reader| contents(&reader));
    }

    #[test]
    fn a_header_with_a_changed_byte_and_a_right_checksum_is_read_or_refused_without_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let bytes = sample();
        let header_nbytes = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        let mut body = bytes[16..16 + header_nbytes].to_vec();
        for (index, byte) in changes {
            let at = index.index(body.len());
            body[at] = byte;
        }
        let _ = open(&with_header(&body, &bytes[16 + header_nbytes..])).and_then(|reader| contents(&reader));
    }

    #[test]
    fn data_with_changed_bytes_and_right_checksums_is_read_or_refused_without_a_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let bytes = sample();
        let header_nbytes = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        let mut body = bytes[16..16 + header_nbytes].to_vec();
        let mut data = bytes[(16 + header_nbytes).next_multiple_of(64)..].to_vec();
        prop_assume!(data.len() >= 1024);
        for (index, byte) in changes {
            let at = index.index(data.len());
            data[at] = byte;
        }
        // The one block's checksum follows version, features, block size and a two-byte data size.
        body[5..9].copy_from_slice(&crc32fast::hash(&data).to_le_bytes());
        let mut changed = with_header(&body, &[]);
        changed.resize(changed.len().next_multiple_of(64), 0);
        changed.extend(&data);
        let _ = open(&changed).and_then(|reader| contents(&reader));
    }
}

#[test]
fn a_few_bytes_that_claim_billions_of_rows_are_refused_at_once() {
    let most = u64::from(u32::MAX);
    let mut body = start_of_header(0, &[]);
    // One float32 matrix "w" in layout packed: shape, nnz, seven parameters, five empty sections.
    body.extend([1, 1, b'w', 1, 0, 0, 0]);
    numbers(&mut body, &[7, 0, most, 1, 0, 7]);
    numbers(&mut body, &[0; 7 + 5]);
    let start = std::time::Instant::now();
    assert!(open(&with_header(&body, &[])).and_then(|r| r.get("w")).is_err());
    // A generous bound, which counting every row would miss by far.
    assert!(start.elapsed().as_secs() < 5);
}

#[test]
fn an_alias_of_an_alias_stands_for_its_tensor_and_a_refused_tensor_leaves_no_trace() {
    let uint8 = Dtype::by_name("uint8").unwrap();
    let mut writer = Writer::default();
    writer.add("a", uint8, &[2], Stored::Array(&[1, 2])).unwrap();
    assert!(writer.add("a", uint8, &[1], Stored::Array(&[9])).is_err());
    assert!(writer.add("b", uint8, &[3], Stored::Array(&[9])).is_err());
    assert!(writer.add("b", uint8, &[1; 65], Stored::Array(&[9])).is_err());
    let boolean = Dtype::by_name("bool").unwrap();
    assert!(writer.add("b", boolean, &[1], Stored::Array(&[2])).is_err());
    writer.add_alias("b", "a").unwrap();
    writer.add_alias("c", "b").unwrap();
    let reader = open(&writer.to_bytes().unwrap()).unwrap();
    assert_eq!(reader.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let Tensor::Array(array) = reader.get("c").unwrap() else { panic!() };
    assert_eq!(array.as_slice(), [1, 2]);
}

#[cfg(unix)]
#[test]
fn saving_keeps_a_link_and_the_mode_of_the_file() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file.terse"), folder.path().join("link.terse"));
    Writer::default().save(&file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&file, &link).unwrap();
    let mut writer = Writer::default();
    writer.add("x", Dtype::by_name("uint8").unwrap(), &[1], Stored::Array(&[7])).unwrap();
    writer.save(&link).unwrap();
    assert!(link.is_symlink());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Reader::open(&file, &Limits::default()).unwrap().keys().count(), 1);
}
