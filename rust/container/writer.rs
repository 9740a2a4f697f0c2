//! Writing: lays tensors out, checksums the data in blocks, writes beside the target, renames.
//!
//! Sections are never copied together: the checksums are taken in a first pass over the slices,
//! the header is written, then the slices. The file appears under its name only when it is whole
//! and on disk; whatever fails, the old file is untouched and no stray one is left.

use super::chains::{Numbered, alone, chained};
use super::coded_array::CodedArray;
use super::coded_codebooks::{self, MAX_VALUES, MAX_VALUES_A_BYTE, is_codable};
use super::header::{
    BLOCK_LOG2, Dtype, GRAPH_TAG, MAGIC, MAX_RANK, PLANES, Use, VERSION, block_count, data_start,
    put_string, section_start,
};
use crate::bits;
use crate::codebook::Codebook;
use crate::error::{Error, Result};
use crate::interruption;
use crate::matrix::CompressedMatrix;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Stored<'a> {
    /// A compressed matrix.
    Matrix(&'a CompressedMatrix),
    /// Little-endian elements.
    Array(&'a [u8]),
    /// The same, coded.
    Coded(&'a CodedArray),
}

/// Collects tensors for one container.
#[derive(Debug, Default)]
pub struct Writer<'a> {
    /// The entry of each name, and the tensor's entry of each entry.
    names: HashMap<String, usize>,
    targets: Vec<usize>,
    /// The bytes of the entries so far, but for the archives': each stands at an end of some bytes.
    entries: Vec<u8>,
    archives: Vec<(usize, Numbered<'a>)>,
    codebooks: Vec<Arc<Codebook>>,
    is_for_size: bool,
    codebook_numbers: HashMap<Vec<u8>, usize>,
    sections: Vec<Section<'a>>,
    metadata: BTreeMap<String, String>,
    graph: Option<Vec<u8>>,
}

/// A section's bytes, and how they are used.
type Placed<'a> = (&'a [u8], Use);

/// Where a section's bytes are.
#[derive(Clone, Copy, Debug)]
enum Section<'a> {
    Here(Placed<'a>),
    /// With an archive, by its place among them.
    OfArchive(usize),
}

/// What the header says more of coded codebooks than of others, at most, but for a byte each.
const CODED_HEADER_NBYTES: usize = 12;
const ZEROS: [u8; 64] = [0; 64];
/// Bytes that are written without a look at whether to go on.
const PART_NBYTES: usize = 1 << 22;

impl<'a> Writer<'a> {
    /// A container of nothing but `metadata`.
    ///
    /// # Errors
    /// `InvalidArgument` for a string with a NUL.
    pub fn new(metadata: BTreeMap<String, String>) -> Result<Self> {
        for text in metadata.iter().flat_map(|(key, value)| [key, value]) {
            check_text("metadata", text)?;
        }
        Ok(Self { metadata, ..Self::default() })
    }

    /// Adds a tensor of logical shape `dims`.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is taken or holds a NUL, or a shape or values that do not
    /// fit; then nothing is added.
    pub fn add(
        &mut self,
        name: &str,
        dtype: Dtype,
        dims: &[u64],
        stored: Stored<'a>,
    ) -> Result<()> {
        self.check_name(name)?;
        let entries = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim));
        let (kind, fits, found) = match &stored {
            Stored::Array(bytes) => {
                let nbytes = entries.and_then(|n| n.checked_mul(dtype.nbytes()));
                let fits = nbytes == Some(bytes.len() as u64) && dtype.holds(bytes);
                (0, fits, format!("{} bytes", bytes.len()))
            }
            Stored::Coded(array) => {
                let nbytes = entries.and_then(|n| n.checked_mul(dtype.nbytes()));
                let fits = nbytes == Some(array.dense_nbytes()) && dtype == array.dtype();
                (3, fits, format!("{} bytes of {}", array.dense_nbytes(), array.dtype().name()))
            }
            Stored::Matrix(matrix) => {
                let shape = [matrix.shape().nrows as u64, matrix.shape().ncols as u64];
                let is_whole = entries == shape[0].checked_mul(shape[1]);
                let fits = is_whole && dims.first() == Some(&shape[0]) && dtype.is_matrix_type();
                (1, fits, format!("a float32, float16 or bfloat16 matrix {shape:?}"))
            }
        };
        if !fits || dims.len() as u64 > MAX_RANK {
            return Err(Error::invalid(format!(
                "{name}: {found}, expected shape {dims:?} of {}, of up to {MAX_RANK} dimensions",
                dtype.name()
            )));
        }
        self.start(name, kind, self.targets.len());
        self.entries.push(dtype.id());
        match stored {
            Stored::Array(bytes) => {
                self.put_dims(dims);
                self.sections.push(Section::Here((bytes, Use::InPlace)));
            }
            Stored::Coded(array) => {
                self.put_dims(dims);
                self.entries.push(PLANES.0);
                bits::put_varint(&mut self.entries, array.as_bytes().len() as u64);
                self.sections.push(Section::Here((array.as_bytes(), Use::Decoded)));
            }
            Stored::Matrix(matrix) => {
                let shape = [matrix.shape().nrows as u64, matrix.shape().ncols as u64];
                self.put_dims(if dims == shape { &[] } else { dims });
                // An empty codebook has no number of its own: nnz = 0 says that it is empty.
                let number =
                    matrix.codebook().filter(|c| c.k() > 0).map(|c| self.codebook_number(c));
                bits::put_varint(&mut self.entries, number.map_or(0, |n| n as u64 + 1));
                if matrix.layout.archive().is_some() {
                    self.sections.push(Section::OfArchive(self.archives.len()));
                    let number = self.targets.len() - 1;
                    self.archives.push((self.entries.len(), (number, matrix)));
                } else {
                    matrix.write_header(&mut self.entries);
                    let sections = matrix.section_bytes().into_iter();
                    self.sections.extend(sections.map(|s| Section::Here((s, Use::InPlace))));
                }
            }
        }
        Ok(())
    }

    /// Adds another name of the tensor `target`, which may be another name itself.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that is taken, or a target that was not added.
    pub fn add_alias(&mut self, name: &str, target: &str) -> Result<()> {
        self.check_name(name)?;
        let number =
            self.names.get(target).map(|&number| self.targets[number]).ok_or_else(|| {
                Error::invalid(format!(
                    "{name}: another name of {target:?}, expected one that was added"
                ))
            })?;
        self.start(name, 2, number);
        bits::put_varint(&mut self.entries, number as u64);
        Ok(())
    }

    /// Takes the fewest bytes: codebooks are coded, and archives go on from each other. They are then
    /// decoded together when they are read.
    pub fn for_size(&mut self) {
        self.is_for_size = true;
    }

    /// Stores a network's graph, its bytes as
    /// [`Graph::to_bytes`](crate::network::Graph::to_bytes) gives them, beside the tensors that it
    /// names.
    pub fn set_graph(&mut self, bytes: Vec<u8>) {
        self.graph = Some(bytes);
    }

    fn check_name(&self, name: &str) -> Result<()> {
        check_text("name", name)?;
        if self.names.contains_key(name) {
            return Err(Error::invalid(format!("{name}: the name twice, expected distinct names")));
        }
        Ok(())
    }

    /// Starts an entry that stands for the tensor of entry `target`.
    fn start(&mut self, name: &str, kind: u8, target: usize) {
        self.names.insert(name.to_owned(), self.targets.len());
        self.targets.push(target);
        put_string(&mut self.entries, name);
        self.entries.push(kind);
    }

    fn put_dims(&mut self, dims: &[u64]) {
        bits::put_varint(&mut self.entries, dims.len() as u64);
        dims.iter().for_each(|&dim| bits::put_varint(&mut self.entries, dim));
    }

    fn codebook_number(&mut self, codebook: &Arc<Codebook>) -> usize {
        let next = self.codebooks.len();
        let number = *self.codebook_numbers.entry(codebook.as_bytes().to_vec()).or_insert(next);
        if number == next {
            self.codebooks.push(codebook.clone());
        }
        number
    }

    /// The codebooks as they are stored: what the header says of them, and their sections.
    fn stored_codebooks(&self) -> (Vec<u8>, Vec<Cow<'_, [u8]>>) {
        let (mut header, mut sections) = (Vec::new(), Vec::new());
        bits::put_varint(&mut header, self.codebooks.len() as u64);
        let mut rest = &self.codebooks[..];
        while !rest.is_empty() {
            let (mut together, mut values) = (Vec::new(), 0);
            if self.is_for_size {
                for codebook in rest.iter().take_while(|codebook| is_codable(codebook)) {
                    values += codebook.k();
                    if values > MAX_VALUES {
                        values -= codebook.k();
                        break;
                    }
                    together.push(&**codebook);
                }
            }
            let (coded, count) = (coded_codebooks::encode(&together), together.len().max(1));
            if !together.is_empty()
                && coded.len() + CODED_HEADER_NBYTES < 4 * values
                && values as u64 <= MAX_VALUES_A_BYTE * coded.len() as u64
            {
                bits::put_varint(&mut header, 0);
                bits::put_varint(&mut header, together.len() as u64);
                together.iter().for_each(|c| bits::put_varint(&mut header, c.k() as u64));
                bits::put_varint(&mut header, coded.len() as u64);
                sections.push(Cow::Owned(coded));
            } else {
                for codebook in &rest[..count] {
                    bits::put_varint(&mut header, codebook.k() as u64);
                    sections.push(Cow::Borrowed(codebook.as_bytes()));
                }
            }
            rest = &rest[count..];
        }
        (header, sections)
    }

    /// The archives as they are stored.
    fn stored_archives(&self) -> Result<Vec<Cow<'a, CompressedMatrix>>> {
        let archives: Vec<Numbered<'a>> = self.archives.iter().map(|archive| archive.1).collect();
        if self.is_for_size { chained(&archives) } else { alone(&archives) }
    }

    /// Writes the container to `out` and returns its size.
    fn write_to(
        &self,
        archives: &[Cow<'a, CompressedMatrix>],
        out: &mut impl Write,
    ) -> std::io::Result<u64> {
        let (codebook_header, codebooks) = self.stored_codebooks();
        let mut blocks = Blocks::default();
        let sections = self.sections.iter().flat_map(|section| match *section {
            Section::Here(placed) => vec![placed],
            Section::OfArchive(at) => {
                archives[at].section_bytes().into_iter().map(|s| (s, Use::Decoded)).collect()
            }
        });
        let codebooks = codebooks.iter().map(|c| match c {
            Cow::Borrowed(values) => (*values, Use::InPlace),
            Cow::Owned(coded) => (&coded[..], Use::Decoded),
        });
        let sections: Vec<Placed<'_>> = codebooks.chain(sections).collect();
        let all = || sections.iter().copied();
        for_each_slice(all(), |slice| {
            for part in slice.chunks(PART_NBYTES) {
                interruption::check().map_err(std::io::Error::other)?;
                blocks.update(part);
            }
            Ok(())
        })?;
        let (data_nbytes, checksums) = blocks.finish();
        let mut header = vec![VERSION];
        bits::put_varint(&mut header, 0);
        header.push(BLOCK_LOG2);
        bits::put_varint(&mut header, data_nbytes);
        checksums.iter().for_each(|crc| header.extend_from_slice(&crc.to_le_bytes()));
        bits::put_varint(&mut header, self.metadata.len() as u64);
        for (key, value) in &self.metadata {
            put_string(&mut header, key);
            put_string(&mut header, value);
        }
        header.extend_from_slice(&codebook_header);
        bits::put_varint(&mut header, self.names.len() as u64);
        let mut done = 0;
        for (&(end, _), matrix) in self.archives.iter().zip(archives) {
            header.extend_from_slice(&self.entries[done..end]);
            matrix.write_header(&mut header);
            done = end;
        }
        header.extend_from_slice(&self.entries[done..]);
        if let Some(graph) = &self.graph {
            bits::put_varint(&mut header, GRAPH_TAG);
            bits::put_varint(&mut header, graph.len() as u64);
            header.extend_from_slice(graph);
        }
        let header_nbytes = u32::try_from(header.len())
            .map_err(|_| std::io::Error::other("a header over 4 GiB"))?;
        out.write_all(&MAGIC)?;
        out.write_all(&header_nbytes.to_le_bytes())?;
        out.write_all(&crc32fast::hash(&header).to_le_bytes())?;
        out.write_all(&header)?;
        let start = data_start(header.len() as u64, data_nbytes).unwrap_or(u64::MAX);
        out.write_all(&ZEROS[..(start - 16 - header.len() as u64) as usize])?;
        for_each_slice(all(), |slice| {
            for part in slice.chunks(PART_NBYTES) {
                interruption::check().map_err(std::io::Error::other)?;
                out.write_all(part)?;
            }
            Ok(())
        })?;
        Ok(start + data_nbytes)
    }

    /// The container's bytes.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory for coding cannot be had; `Interrupted`.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let written = self.write_to(&self.stored_archives()?, &mut out);
        // Writing to memory fails only where it is ended.
        interruption::check()?;
        written.expect("writing to memory cannot fail");
        Ok(out)
    }

    /// Writes the container beside `path`, syncs it, renames it to `path`; returns its size.
    ///
    /// A symbolic link keeps pointing where it did, and a file that was there keeps its mode.
    ///
    /// # Errors
    /// `Io` that names the path, `LimitExceeded` when the memory for coding cannot be had,
    /// `Interrupted`; then whatever was at `path` is unchanged.
    pub fn save(&self, path: &Path) -> Result<u64> {
        let archives = self.stored_archives()?;
        let failed = |e| Error::io(format!("saving {}", path.display()), e);
        // A link to nothing, and a path that does not exist yet, stay as they are.
        let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let folder = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if target.is_dir() {
            return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
        }
        if target.exists() && !target.is_file() {
            let what = "not a regular file, which alone can be replaced";
            return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, what)));
        }
        std::fs::metadata(folder).map_err(failed)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tersenet-").suffix(".tmp");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder).map_err(failed)?;
        if let Ok(old) = std::fs::metadata(&target) {
            file.as_file().set_permissions(old.permissions()).map_err(failed)?;
        }
        let mut out = std::io::BufWriter::with_capacity(1 << 20, file.as_file_mut());
        let written = self.write_to(&archives, &mut out);
        interruption::check()?;
        let nbytes = written.and_then(|n| out.flush().map(|()| n)).map_err(failed)?;
        drop(out);
        interruption::check()?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&target).map_err(|e| failed(e.error))?;
        // The new file is in place. Not every system lets a folder be synced; the name is then as
        // durable as the system makes it.
        #[cfg(unix)]
        let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        Ok(nbytes)
    }
}

fn check_text(what: &str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(Error::invalid(format!("{what}: {text:?} holds a NUL, expected none")));
    }
    Ok(())
}

/// Gives `sections` and the zeros between them, in file order.
fn for_each_slice<'s>(
    sections: impl Iterator<Item = Placed<'s>>,
    mut give: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut end = 0u64;
    for (section, used) in sections {
        let start = section_start(end, section.len() as u64, used).unwrap_or(end);
        give(&ZEROS[..(start - end) as usize])?;
        give(section)?;
        end = start + section.len() as u64;
    }
    Ok(())
}

/// The CRC-32 of each block of a stream of slices.
#[derive(Default)]
struct Blocks {
    nbytes: u64,
    current: crc32fast::Hasher,
    done: Vec<u32>,
}

impl Blocks {
    fn update(&mut self, mut slice: &[u8]) {
        let block = 1u64 << BLOCK_LOG2;
        while !slice.is_empty() {
            let room = (block - self.nbytes % block).min(slice.len() as u64) as usize;
            let (now, later) = slice.split_at(room);
            self.current.update(now);
            self.nbytes += room as u64;
            if self.nbytes.is_multiple_of(block) {
                self.done.push(std::mem::take(&mut self.current).finalize());
            }
            slice = later;
        }
    }

    fn finish(mut self) -> (u64, Vec<u32>) {
        if !self.nbytes.is_multiple_of(1 << BLOCK_LOG2) {
            self.done.push(self.current.finalize());
        }
        debug_assert_eq!(self.done.len() as u64, block_count(self.nbytes, BLOCK_LOG2));
        (self.nbytes, self.done)
    }
}
