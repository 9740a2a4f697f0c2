//! The header of a container, to bytes and back; every field as FORMAT.md says.
//!
//! Parsing is one pass over a checksummed slice: every number is checked where it is read, nothing
//! is allocated from a count before that many bytes are known to be there, and the sum of all
//! sizes must be the data's size to the byte. `dtype.rs` has the types, `placement.rs` says where
//! sections lie, `link.rs` how matrices go on from each other.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

mod dtype;
mod link;
mod placement;

pub use dtype::Dtype;
pub use link::{Link, MAX_CHAIN_ENTRIES};
pub use placement::{PREAMBLE_NBYTES, Use, block_count, data_start, section_start};

use super::Limits;
use super::coded_codebooks::{MAX_VALUES, MAX_VALUES_A_BYTE};
use crate::bits;
use crate::codebook::MAX_K;
use crate::cursor::Cursor;
use crate::entropy::Coder;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{LAYOUTS, LayoutSpec};
use crate::rows::Shape;
use placement::Placement;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

/// The first bytes of every container: bit 7, the name, and line ends that a text-mode copy breaks.
pub const MAGIC: [u8; 8] = *b"\x89TRS\r\n\x1a\n";
/// The version this crate writes, and the newest it reads.
pub const VERSION: u8 = 1;
/// The size of a checksummed block of data, as a power of two, that is written.
pub const BLOCK_LOG2: u8 = 16;
/// The extension that holds a network's graph.
pub const GRAPH_TAG: u64 = 1;
/// Dimensions of a tensor, at most.
pub const MAX_RANK: u64 = 64;
const MAX_PARAMS: u64 = 64;
/// The coder of plain tensors, planes: its number, and its name in listings.
pub const PLANES: (u8, &str) = (1, "planes");

/// What the header says of one tensor's bytes.
#[derive(Clone, Debug)]
pub enum Body {
    /// Plain little-endian elements.
    Array,
    /// Plain elements, coded by planes.
    Planes,
    /// A compressed matrix.
    Matrix(MatrixBody),
    /// Another name of an earlier entry.
    Alias(usize),
}

/// The fields of a compressed matrix.
#[derive(Clone, Debug)]
pub struct MatrixBody {
    /// The codebook's number, where the layout has one.
    pub codebook: Option<usize>,
    /// The layout.
    pub layout: &'static LayoutSpec,
    /// The coder.
    pub coder: Coder,
    /// Rows and columns.
    pub shape: Shape,
    /// The number of kept weights.
    pub nnz: usize,
    /// The layout's own numbers.
    pub params: Vec<u64>,
    /// How it goes on from another matrix.
    pub link: Link,
}

/// One name and what it stands for.
#[derive(Clone, Debug)]
pub struct EntryHeader {
    /// The name, unique in the file.
    pub name: String,
    /// The type of the elements, as they were before compression.
    pub dtype: Dtype,
    /// The logical shape: of a convolution's weight, four numbers.
    pub dims: Vec<u64>,
    /// What follows.
    pub body: Body,
    /// First byte and size of each section, within the data.
    pub sections: Vec<(u64, u64)>,
    /// Bytes of the tensor as dense numbers; of another name none.
    pub dense_nbytes: u64,
}

/// One codebook as it is, or several that are coded together.
#[derive(Clone, Debug)]
pub struct CodebookSection {
    /// The number of the first one.
    pub first: usize,
    /// The number of values of each.
    pub sizes: Vec<usize>,
    /// True when they are coded.
    pub is_coded: bool,
    /// First byte and size, within the data.
    pub section: (u64, u64),
}

/// Everything the header says.
#[derive(Clone, Debug)]
pub struct Header {
    /// The size of a checksummed block, as a power of two.
    pub block_log2: u8,
    /// The size of the data.
    pub data_nbytes: u64,
    /// The CRC-32 of each block of data.
    pub checksums: Vec<u32>,
    /// The user's own strings.
    pub metadata: BTreeMap<String, String>,
    /// The codebooks' sections, and for each codebook the section that it is in.
    pub codebook_sections: Vec<CodebookSection>,
    pub codebooks: Vec<usize>,
    /// The tensors and aliases.
    pub entries: Vec<EntryHeader>,
    /// Where each name is in `entries`.
    pub by_name: HashMap<String, usize>,
    /// The bytes of the network's graph, where there is one.
    pub graph: Option<Vec<u8>>,
}

impl Header {
    /// The number of values of a codebook, where there is one of that number.
    pub fn k(&self, number: usize) -> Option<usize> {
        let section = self.codebook_sections.get(*self.codebooks.get(number)?)?;
        section.sizes.get(number.checked_sub(section.first)?).copied()
    }

    /// Parses the header's bytes, whose checksum was found right.
    ///
    /// # Errors
    /// `Corrupt`, `UnsupportedVersion` or `LimitExceeded`, naming the field.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let mut cursor = Cursor::new("header", bytes);
        let version = cursor.byte("version")?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::UnsupportedVersion,
                format!(
                    "container: version {version}, expected {VERSION}: \
                     a newer tersenet reads it"
                ),
            ));
        }
        let required = cursor.varint("required features")?;
        if required != 0 {
            return Err(Error::new(
                ErrorKind::UnsupportedVersion,
                format!(
                    "container: needs features {required:#x}, which version {VERSION} does not \
                     have: a newer tersenet reads it"
                ),
            ));
        }
        let block_log2 = cursor.byte("block size")?;
        if !(10..=20).contains(&block_log2) {
            return Err(
                cursor.corrupt(format_args!("blocks of 2^{block_log2} bytes, expected 10 to 20"))
            );
        }
        let data_nbytes = cursor.varint("data size")?;
        let count = block_count(data_nbytes, block_log2);
        let table = cursor.take(count.saturating_mul(4), "block checksums")?;
        let checksums = table
            .chunks_exact(4)
            .map(|b| b.iter().rev().fold(0, |sum, &b| sum << 8 | u32::from(b)))
            .collect();
        let mut metadata = BTreeMap::new();
        for _ in 0..cursor.count("metadata strings")? {
            let key = cursor.string("metadata key")?;
            let value = cursor.string("metadata value")?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(cursor.corrupt(format_args!("metadata key {key:?} twice")));
            }
        }
        let mut placement = Placement::default();
        let (mut codebook_sections, mut codebooks) = (Vec::new(), Vec::new());
        let count = cursor.count("codebooks")?;
        while codebooks.len() < count {
            let section = parse_codebooks(&mut cursor, codebooks.len()..count, &mut placement)?;
            codebooks.extend(section.sizes.iter().map(|_| codebook_sections.len()));
            codebook_sections.push(section);
        }
        let count = cursor.count("entries")?;
        if count as u64 > limits.tensors {
            return Err(limit("tensors", count as u64, limits.tensors, "header"));
        }
        // Every byte of the file but the first few and the padding.
        let file_nbytes = data_nbytes.saturating_add(bytes.len() as u64);
        let by_ratio = file_nbytes.saturating_mul(limits.ratio);
        let mut total_nbytes = 0u64;
        let mut entries: Vec<EntryHeader> = Vec::new();
        let (mut by_name, mut continued) = (HashMap::new(), HashSet::new());
        for i in 0..count {
            let entry =
                parse_entry(&mut cursor, &entries, codebooks.len(), &mut placement, limits)?;
            total_nbytes = total_nbytes.saturating_add(entry.dense_nbytes);
            if total_nbytes > limits.total_nbytes {
                let what = "dense bytes up to here";
                return Err(limit(what, total_nbytes, limits.total_nbytes, &entry.name));
            }
            if total_nbytes > by_ratio {
                let what = format!(
                    "dense bytes up to here in a file of {file_nbytes} bytes, over {} for each,",
                    limits.ratio
                );
                return Err(limit(&what, total_nbytes, by_ratio, &entry.name));
            }
            if by_name.insert(entry.name.clone(), i).is_some() {
                return Err(cursor.corrupt(format_args!("the name {:?} twice", entry.name)));
            }
            // One after the other they are decoded once; a file of many that go on from a large one
            // would have that one decoded for each.
            if let Body::Matrix(MatrixBody { link: Link { before: Some((before, _)), .. }, .. }) =
                entry.body
                && !continued.insert(before)
            {
                return Err(cursor.corrupt(format_args!(
                    "{:?} goes on from entry {before}, expected one that no other goes on from",
                    entry.name
                )));
            }
            entries.push(entry);
        }
        let mut graph = None;
        while !cursor.is_empty() {
            // Optional extensions: a reader that does not know one skips it.
            let tag = cursor.varint("extension")?;
            let nbytes = cursor.varint("extension size")?;
            let bytes = cursor.take(nbytes, "extension")?;
            if tag == GRAPH_TAG && graph.replace(bytes.to_vec()).is_some() {
                return Err(cursor.corrupt("a second graph"));
            }
        }
        if placement.end != data_nbytes {
            return Err(Error::corrupt(format!(
                "header: sections end at {}, expected the data's size {data_nbytes}",
                placement.end
            )));
        }
        Ok(Self {
            block_log2,
            data_nbytes,
            checksums,
            metadata,
            codebook_sections,
            codebooks,
            entries,
            by_name,
            graph,
        })
    }
}

/// Parses the codebooks of one section, the first of `numbers` and perhaps more of them.
fn parse_codebooks(
    cursor: &mut Cursor<'_>,
    numbers: Range<usize>,
    placement: &mut Placement,
) -> Result<CodebookSection> {
    let first = numbers.start;
    let size = |cursor: &Cursor<'_>, k: u64| {
        usize::try_from(k).ok().filter(|k| (1..=MAX_K).contains(k)).ok_or_else(|| {
            cursor.corrupt(format_args!("codebook of {k} values, expected 1 to {MAX_K}"))
        })
    };
    let past =
        |cursor: &Cursor<'_>| cursor.corrupt(format_args!("codebook {first} ends past 2^64"));
    let k = cursor.varint("codebook size")?;
    if k > 0 {
        let section =
            placement.place(k.saturating_mul(4), Use::InPlace).ok_or_else(|| past(cursor))?;
        let sizes = vec![size(cursor, k)?];
        return Ok(CodebookSection { first, sizes, is_coded: false, section });
    }
    let count = cursor.count("codebooks coded together")?;
    if !(1..=numbers.len()).contains(&count) {
        return Err(cursor.corrupt(format_args!(
            "{count} codebooks coded together, expected 1 to {}",
            numbers.len()
        )));
    }
    let mut sizes = Vec::new();
    let mut values = 0u64;
    for _ in 0..count {
        let k = cursor.varint("codebook size")?;
        sizes.push(size(cursor, k)?);
        values = values.saturating_add(k);
    }
    let nbytes = cursor.varint("codebook bytes")?;
    let most = nbytes.saturating_mul(MAX_VALUES_A_BYTE).min(MAX_VALUES as u64);
    if values > most {
        return Err(cursor.corrupt(format_args!(
            "{values} values of codebooks in {nbytes} bytes, expected at most {most}"
        )));
    }
    let section = placement.place(nbytes, Use::Decoded).ok_or_else(|| past(cursor))?;
    Ok(CodebookSection { first, sizes, is_coded: true, section })
}

fn limit(what: &str, found: u64, limit: u64, place: &str) -> Error {
    Error::new(
        ErrorKind::LimitExceeded,
        format!("{place}: {found} {what}, expected at most {limit}: raise the limit to read it"),
    )
}

fn parse_entry(
    cursor: &mut Cursor<'_>,
    earlier: &[EntryHeader],
    codebooks: usize,
    placement: &mut Placement,
    limits: &Limits,
) -> Result<EntryHeader> {
    let name = cursor.string("name")?;
    let kind = cursor.byte("kind")?;
    if kind == 2 {
        let target = cursor.size("alias")?;
        let entry = earlier.get(target).filter(|entry| !matches!(entry.body, Body::Alias(_)));
        let Some(entry) = entry else {
            return Err(cursor.corrupt(format_args!(
                "{name:?} is another name of entry {target}, expected an earlier tensor"
            )));
        };
        let (dtype, dims) = (entry.dtype, entry.dims.clone());
        return Ok(EntryHeader {
            name,
            dtype,
            dims,
            body: Body::Alias(target),
            sections: Vec::new(),
            dense_nbytes: 0,
        });
    }
    let id = cursor.byte("dtype")?;
    let Some(dtype) = Dtype::of_id(id).filter(|_| kind <= 3) else {
        return Err(Error::new(
            ErrorKind::UnsupportedVersion,
            format!(
                "{name}: kind {kind} and dtype {id}, expected kinds up to 3 and dtypes up to {}: \
                 a newer tersenet reads it",
                Dtype::count().saturating_sub(1)
            ),
        ));
    };
    let rank = cursor.varint("rank")?;
    if rank > MAX_RANK {
        return Err(
            cursor.corrupt(format_args!("{name:?} of rank {rank}, expected at most {MAX_RANK}"))
        );
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        dims.push(cursor.varint("dimension")?);
    }
    let entries = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    let dense_nbytes = entries.and_then(|n| n.checked_mul(dtype.nbytes()));
    let Some(dense_nbytes) = dense_nbytes else {
        return Err(
            cursor.corrupt(format_args!("{name:?} of shape {dims:?}, expected under 2^64 bytes"))
        );
    };
    let mut sections = Vec::new();
    let mut place = |cursor: &Cursor<'_>, nbytes: u64, used: Use| -> Result<()> {
        if nbytes > limits.tensor_nbytes {
            return Err(limit("bytes", nbytes, limits.tensor_nbytes, &name));
        }
        let place = placement.place(nbytes, used);
        sections
            .push(place.ok_or_else(|| cursor.corrupt(format_args!("{name:?} ends past 2^64")))?);
        Ok(())
    };
    if kind == 0 {
        place(cursor, dense_nbytes, Use::InPlace)?;
        return Ok(EntryHeader { name, dtype, dims, body: Body::Array, sections, dense_nbytes });
    }
    if kind == 3 {
        let coder = cursor.byte("coder")?;
        if coder != PLANES.0 {
            return Err(Error::new(
                ErrorKind::UnsupportedVersion,
                format!(
                    "{name}: a plain tensor with coder {coder}, which version {VERSION} does not \
                     have: a newer tersenet reads it"
                ),
            ));
        }
        if dense_nbytes > limits.tensor_nbytes {
            return Err(limit("bytes decoded", dense_nbytes, limits.tensor_nbytes, &name));
        }
        let nbytes = cursor.varint("coded bytes")?;
        place(cursor, nbytes, Use::Decoded)?;
        return Ok(EntryHeader { name, dtype, dims, body: Body::Planes, sections, dense_nbytes });
    }
    let codebook = cursor.size("codebook number")?.checked_sub(1);
    if codebook.is_some_and(|number| number >= codebooks) || !dtype.is_matrix_type() {
        return Err(cursor.corrupt(format_args!(
            "{name:?} of dtype {} with codebook {codebook:?}, expected a float32, float16 or \
             bfloat16 matrix with one of {codebooks} codebooks",
            dtype.name()
        )));
    }
    let (layout_id, coder_id) = (cursor.byte("layout")?, cursor.byte("coder")?);
    let layout = LAYOUTS.iter().find(|spec| spec.id == layout_id);
    let coder = Coder::ALL.iter().find(|coder| coder.id() == coder_id);
    let (Some(&layout), Some(&coder)) = (layout, coder) else {
        return Err(Error::new(
            ErrorKind::UnsupportedVersion,
            format!(
                "{name}: layout {layout_id} with coder {coder_id}, which version {VERSION} does \
                 not have: a newer tersenet reads it"
            ),
        ));
    };
    if !layout.coders.contains(&coder) {
        return Err(cursor.corrupt(format_args!(
            "{name:?} in layout {} with coder {}, a pair that does not exist",
            layout.name,
            coder.name()
        )));
    }
    let (nrows, ncols, nnz) = (cursor.size("nrows")?, cursor.size("ncols")?, cursor.size("nnz")?);
    let shape = Shape::new(nrows, ncols).map_err(|e| cursor.corrupt(e))?;
    if rank == 0 {
        dims = vec![nrows as u64, ncols as u64];
    }
    let matrix_entries = (nrows as u64).checked_mul(ncols as u64);
    let product = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
    if product != matrix_entries
        || dims.first() != Some(&(nrows as u64))
        || product < Some(nnz as u64)
    {
        return Err(cursor.corrupt(format_args!(
            "{name:?} of shape {dims:?} with nnz = {nnz} as a matrix of [{nrows}, {ncols}]"
        )));
    }
    let longest = product.map(|n| n.max(nrows as u64).max(ncols as u64));
    let dense_nbytes = longest.and_then(|n| n.checked_mul(4)).unwrap_or(u64::MAX);
    if dense_nbytes > limits.tensor_nbytes {
        return Err(limit("dense bytes", dense_nbytes, limits.tensor_nbytes, &name));
    }
    let nparams = cursor.varint("params")?;
    if nparams > MAX_PARAMS {
        return Err(cursor.corrupt(format_args!("{nparams} params, expected at most {MAX_PARAMS}")));
    }
    let mut params = Vec::new();
    for _ in 0..nparams {
        params.push(cursor.varint("param")?);
    }
    for section in layout.sections {
        let nbytes = cursor.varint(section)?;
        place(cursor, nbytes, Use::of(layout))?;
    }
    let mut body =
        MatrixBody { codebook, layout, coder, shape, nnz, params, link: Link::default() };
    body.link =
        Link::of(&body, earlier).map_err(|e| cursor.corrupt(format_args!("{name:?} {e}")))?;
    let body = Body::Matrix(body);
    Ok(EntryHeader { name, dtype, dims, body, sections, dense_nbytes })
}

/// Appends a string as its size and its bytes.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    bits::put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}
