//! Reading: one pass over the header, then one tensor at a time, each byte checked when used.

use super::Limits;
use super::coded_codebooks;
use super::header::{
    Body, CodebookSection, Dtype, EntryHeader, Header, Link, MAGIC, MatrixBody, PLANES,
    PREAMBLE_NBYTES, block_count, data_start,
};
use super::source::{Source, copy_of, open_file};
use crate::array::{Array, Owner};
use crate::codebook::Codebook;
use crate::entropy::{Coder, planes};
use crate::error::{Error, ErrorKind, Result};
use crate::interruption;
use crate::layout::archive::{self, Learnt};
use crate::layout::{LayoutSpec, Parts};
use crate::mapping;
use crate::matrix::CompressedMatrix;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

/// An open container.
pub struct Reader {
    /// The path, for errors; empty for bytes in memory.
    place: String,
    source: Source,
    header: Header,
    /// Where the data starts in the source.
    start: u64,
    nbytes: u64,
    /// Codebooks read so far, so that matrices that share one share it in memory.
    codebooks: RwLock<Vec<Option<Arc<Codebook>>>>,
    /// For one that goes on from the entry read last.
    learnt: Mutex<Learning>,
}

/// What was learnt up to the end of an entry, and its number.
pub(super) type Learning = Option<(usize, Arc<Learnt>)>;

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Tensor {
    /// A compressed matrix.
    Matrix(CompressedMatrix),
    /// Little-endian elements.
    Array(Array<u8>),
}

/// What the header says of a name.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// The type of the elements, before compression.
    pub dtype: &'static str,
    /// The logical shape.
    pub dims: &'a [u64],
    /// Stored bytes of the sections, without the codebook.
    pub nbytes: u64,
    /// The tensor of which this is another name.
    pub alias_of: Option<&'a str>,
    /// Of a matrix.
    pub matrix: Option<MatrixEntry>,
    /// The coder of a plain tensor that is coded.
    pub array_coder: Option<&'static str>,
}

/// What the header says of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct MatrixEntry {
    /// The layout.
    pub layout: &'static LayoutSpec,
    /// Its coder.
    pub coder: Coder,
    /// The number of kept weights.
    pub nnz: usize,
    /// The number of values of its codebook, where it has one.
    pub k: Option<usize>,
}

impl Entry<'_> {
    /// Positions of a convolution's kernel: the product of the dimensions after the first two, none
    /// where there are no others.
    pub fn taps(&self) -> Option<usize> {
        let taps = self.dims.iter().skip(2).try_fold(1u64, |taps, &dim| taps.checked_mul(dim));
        let taps = taps.and_then(|taps| usize::try_from(taps).ok()).unwrap_or(usize::MAX).max(1);
        (self.dims.len() > 2).then_some(taps)
    }
}

impl Reader {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// `Io`, `Truncated`, `Corrupt`, `UnsupportedVersion` or `LimitExceeded`; when the file is
    /// something else, the message says what.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        let place = path.display().to_string();
        let file = open_file(path)?;
        Self::new(place, Source::File(file), limits)
    }

    /// Opens a file by mapping it; tensors are then views of the mapping.
    ///
    /// The file must not be changed while the reader or any of its tensors lives: what was checked
    /// once is trusted afterwards.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn map(path: &Path, limits: &Limits) -> Result<Self> {
        let place = path.display().to_string();
        let file = open_file(path)?;
        let bytes = mapping::map(&file).map_err(|e| Error::io(&place, e))?;
        Self::new(place, Source::Memory(bytes), limits)
    }

    /// Reads a container that is in memory; tensors are views of it.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn from_owner(bytes: Owner, limits: &Limits) -> Result<Self> {
        Self::new(String::new(), Source::Memory(bytes), limits)
    }

    fn new(place: String, source: Source, limits: &Limits) -> Result<Self> {
        Self::checked(source, limits)
            .map(|reader| Self { place: place.clone(), ..reader })
            .map_err(|e| within(&place, e))
    }

    fn checked(source: Source, limits: &Limits) -> Result<Self> {
        let nbytes = source.len()?;
        let head = source.read(0..nbytes.min(512))?;
        let preamble: [u8; 16] = match head.as_slice().get(..16) {
            Some(first) if first.starts_with(&MAGIC) => first.try_into().unwrap_or([0; 16]),
            _ => return Err(not_a_container(head.as_slice(), nbytes)),
        };
        let word = |at: usize| {
            preamble[at..at + 4].iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
        };
        let (header_nbytes, checksum) = (u64::from(word(8)), word(12));
        if header_nbytes > limits.header_nbytes {
            return Err(Error::new(
                ErrorKind::LimitExceeded,
                format!(
                    "header: {header_nbytes} bytes, expected at most {}: raise the limit to read it",
                    limits.header_nbytes
                ),
            ));
        }
        let end = PREAMBLE_NBYTES + header_nbytes;
        if end > nbytes {
            return Err(Error::truncated("container", end, nbytes));
        }
        let bytes = source.read(PREAMBLE_NBYTES..end)?;
        if crc32fast::hash(bytes.as_slice()) != checksum {
            return Err(Error::corrupt(format!(
                "header: checksum {:#010x}, expected {checksum:#010x} (bytes 16 to {end})",
                crc32fast::hash(bytes.as_slice())
            )));
        }
        let header = Header::parse(bytes.as_slice(), limits)?;
        let start = data_start(header_nbytes, header.data_nbytes);
        let whole = start.and_then(|start| start.checked_add(header.data_nbytes));
        let (Some(start), Some(whole)) = (start, whole) else {
            return Err(Error::corrupt("header: data past 2^64"));
        };
        if nbytes < whole {
            return Err(Error::truncated("container", whole, nbytes));
        }
        if nbytes > whole {
            return Err(Error::corrupt(format!(
                "container: {nbytes} bytes, expected {whole}: something follows the data"
            )));
        }
        let padding = source.read(end..start)?;
        if padding.as_slice::<u8>().iter().any(|&byte| byte != 0) {
            return Err(Error::corrupt(format!("container: padding at byte {end} is not zero")));
        }
        let codebooks = RwLock::new(vec![None; header.codebooks.len()]);
        let (place, learnt) = (String::new(), Mutex::new(None));
        Ok(Self { place, source, header, start, nbytes, codebooks, learnt })
    }

    /// The names, in file order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.header.entries.iter().map(|entry| entry.name.as_str())
    }

    /// `name`, which must be there, for as long as the reader lives.
    pub(crate) fn name<'a>(&'a self, name: &str) -> &'a str {
        self.header.by_name.get_key_value(name).map_or("", |(name, _)| name)
    }

    /// The user's strings.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The bytes of the network's graph, where there is one, as
    /// [`Graph::from_bytes`](crate::network::Graph::from_bytes) takes them.
    pub fn graph(&self) -> Option<&[u8]> {
        self.header.graph.as_deref()
    }

    /// The size of the whole container.
    pub fn nbytes(&self) -> u64 {
        self.nbytes
    }

    /// What the header says of `name`.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such name.
    pub fn entry(&self, name: &str) -> Result<Entry<'_>> {
        let entry = self.find(name)?;
        let (alias_of, target) = match entry.body {
            Body::Alias(target) => {
                let target = &self.header.entries[target];
                (Some(target.name.as_str()), target)
            }
            _ => (None, entry),
        };
        let matrix = match &target.body {
            Body::Matrix(matrix) => Some(MatrixEntry {
                layout: matrix.layout,
                coder: matrix.coder,
                nnz: matrix.nnz,
                k: matrix.codebook.and_then(|number| self.header.k(number)),
            }),
            _ => None,
        };
        let array_coder = matches!(target.body, Body::Planes).then_some(PLANES.1);
        let nbytes = target.sections.iter().map(|section| section.1).sum();
        let (dtype, dims) = (entry.dtype.name(), &entry.dims[..]);
        Ok(Entry { dtype, dims, nbytes, alias_of, matrix, array_coder })
    }

    /// Reads and checks one tensor.
    ///
    /// # Errors
    /// `InvalidArgument` for an unknown name; `Corrupt`, `Truncated` or `Io` that names the tensor.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let number = self.target(name)?;
        // Tried, never waited for, as codebooks are.
        let mut learning = self.learnt.try_lock().ok().and_then(|known| known.clone());
        let tensor = self.tensor(number, &mut learning)?;
        if let Ok(mut known) = self.learnt.try_lock() {
            *known = learning;
        }
        Ok(tensor)
    }

    /// Reads and checks everything, on up to `threads` threads: every tensor, every block, every byte of
    /// padding.
    ///
    /// # Errors
    /// What is wrong first in the file, and where.
    pub fn verify(&self, threads: usize) -> Result<()> {
        let entries = self.header.entries.iter();
        let own = entries.filter(|entry| !matches!(entry.body, Body::Alias(_)));
        let names: Vec<&str> = own.map(|entry| entry.name.as_str()).collect();
        self.get_each(&names, threads, |_, _| Ok(()))?.into_iter().collect::<Result<()>>()?;
        self.verify_rest().map_err(|e| within(&self.place, e))
    }

    /// What no tensor's own check covers: unused codebooks, and padding.
    fn verify_rest(&self) -> Result<()> {
        for number in 0..self.header.codebooks.len() {
            self.codebook(number)?;
        }
        let mut end = 0;
        let sections = self.header.entries.iter().flat_map(|entry| &entry.sections);
        let codebooks = self.header.codebook_sections.iter().map(|codebooks| &codebooks.section);
        for &(start, nbytes) in codebooks.chain(sections) {
            let (owner, at) = self.data(end..start)?;
            let padding = &(*owner).as_ref()[at..at + (start - end) as usize];
            if padding.iter().any(|&byte| byte != 0) {
                return Err(Error::corrupt(format!("data: padding at byte {end} is not zero")));
            }
            end = start + nbytes;
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<&EntryHeader> {
        Ok(&self.header.entries[self.number(name)?])
    }

    fn number(&self, name: &str) -> Result<usize> {
        let number = self.header.by_name.get(name).ok_or_else(|| {
            Error::invalid(format!(
                "{name:?}: no tensor of that name among {}",
                self.header.entries.len()
            ))
        })?;
        Ok(*number)
    }

    /// The number of the entry that holds what `name` stands for.
    pub(super) fn target(&self, name: &str) -> Result<usize> {
        let number = self.number(name)?;
        Ok(match self.header.entries[number].body {
            Body::Alias(target) => target,
            _ => number,
        })
    }

    /// The number of the entry that entry `number` goes on from.
    fn before(&self, number: usize) -> Option<usize> {
        match &self.header.entries[number].body {
            Body::Matrix(MatrixBody { link: Link { before: Some((before, _)), .. }, .. }) => {
                Some(*before)
            }
            _ => None,
        }
    }

    /// The number of the first entry that has to be decoded for entry `number`.
    pub(super) fn first_of_chain(&self, number: usize) -> usize {
        std::iter::successors(Some(number), |&number| self.before(number)).last().unwrap_or(number)
    }

    /// The entries of the tensor that entry `number` holds.
    pub(super) fn count(&self, number: usize) -> u64 {
        self.header.entries[number].dims.iter().fold(1, |count, &dim| count.saturating_mul(dim))
    }

    /// Reads the codebook of entry `number`, so that those who want it together share one. What is wrong
    /// with it is said with the entry.
    pub(super) fn prepare_codebook(&self, number: usize) {
        if let Body::Matrix(MatrixBody { codebook: Some(codebook), .. }) =
            self.header.entries[number].body
        {
            let _ = self.codebook(codebook);
        }
    }

    /// Reads entry `number`, which is no alias, from what is known of another one on, or from the first
    /// one of its chain; `learning` is then up to its end, where it keeps anything.
    pub(super) fn tensor(&self, number: usize, learning: &mut Learning) -> Result<Tensor> {
        let mut numbers = vec![number];
        let mut learnt = None;
        while let Some(before) = self.before(numbers[numbers.len() - 1]) {
            learnt = learning.clone().filter(|known| known.0 == before).map(|known| known.1);
            if learnt.is_some() {
                break;
            }
            numbers.push(before);
        }
        let mut tensor = None;
        for &number in numbers.iter().rev() {
            let entry = &self.header.entries[number];
            let (found, end) = self
                .read_entry(entry, learnt.as_deref())
                .map_err(|e| within(&self.place, e.within(&format!("tensor {}", entry.name))))?;
            (tensor, learnt) = (Some(found), end.map(Arc::new));
        }
        if let Some(learnt) = learnt {
            *learning = Some((number, learnt));
        }
        Ok(tensor.expect("one entry or more"))
    }

    /// Reads one entry; a matrix that goes on from another one does so from what is `learnt` of that.
    fn read_entry(
        &self,
        entry: &EntryHeader,
        learnt: Option<&Learnt>,
    ) -> Result<(Tensor, Option<Learnt>)> {
        let first = entry.sections.first().map_or(0, |section| section.0);
        let end = entry.sections.last().map_or(first, |section| section.0 + section.1);
        let (owner, at) = self.data(first..end)?;
        let place = |section: (u64, u64)| (at + (section.0 - first) as usize, section.1 as usize);
        let Body::Matrix(matrix) = &entry.body else {
            let (at, nbytes) = entry.sections.first().map_or((at, 0), |&section| place(section));
            let array = match entry.body {
                Body::Planes => {
                    let coded = &(*owner).as_ref()[at..at + nbytes];
                    let count = entry.dims.iter().product::<u64>();
                    decoded(coded, (count * entry.dtype.nbytes()) as usize, entry.dtype)?
                }
                _ => Array::view(&owner, at, nbytes)?,
            };
            if !entry.dtype.holds(array.as_slice()) {
                return Err(Error::corrupt(
                    "bool: a byte over 1, expected 0 or 1 (section values)",
                ));
            }
            return Ok((Tensor::Array(array), None));
        };
        let codebook = match matrix.codebook {
            Some(number) => Some(self.codebook(number)?),
            None if matrix.layout.holds_values => None,
            None => Some(Arc::new(Codebook::empty())),
        };
        let sections =
            matrix.layout.sections.iter().zip(&entry.sections).map(|(&name, &section)| {
                let (at, nbytes) = place(section);
                (name, owner.clone(), at, nbytes)
            });
        let parts = Parts {
            shape: matrix.shape,
            nnz: matrix.nnz,
            codebook,
            coder: matrix.coder,
            params: matrix.params.clone(),
            sections: sections.collect(),
        };
        if matrix.layout.id != archive::SPEC.id {
            let matrix = CompressedMatrix::read(matrix.layout, parts)?;
            return Ok((Tensor::Matrix(matrix), None));
        }
        let before = match (matrix.link.before, learnt) {
            (None, _) => None,
            (Some((_, apart)), Some(learnt)) => Some((learnt, apart)),
            (Some((number, _)), None) => {
                return Err(Error::corrupt(format!(
                    "goes on from entry {number}, which has too many values for that"
                )));
            }
        };
        let (matrix, learnt) = CompressedMatrix::read_after(parts, before)?;
        Ok((Tensor::Matrix(matrix), learnt))
    }

    /// Codebook `number`, shared with whoever read it before.
    ///
    /// The lock is held for a look only and tried, never waited for: a process that forks while
    /// another thread is in here leaves it locked in the child, which then reads for itself.
    fn codebook(&self, number: usize) -> Result<Arc<Codebook>> {
        let known = self.codebooks.try_read().ok().and_then(|known| known[number].clone());
        if let Some(codebook) = known {
            return Ok(codebook);
        }
        let CodebookSection { first, sizes, is_coded, section: (start, nbytes) } =
            &self.header.codebook_sections[self.header.codebooks[number]];
        let (owner, at) = self.data(*start..start + nbytes)?;
        let nbytes = *nbytes as usize;
        let codebooks = if *is_coded {
            coded_codebooks::decode(&(*owner).as_ref()[at..at + nbytes], sizes)
        } else {
            Array::view(&owner, at, nbytes).and_then(Codebook::new).map(|codebook| vec![codebook])
        };
        let codebooks = codebooks
            .map_err(|e| Error::corrupt(e.to_string()).within(&format!("codebook {number}")))?;
        let mut codebooks: Vec<_> = codebooks.into_iter().map(Arc::new).collect();
        if let Ok(mut known) = self.codebooks.try_write() {
            for (known, codebook) in known[*first..].iter_mut().zip(&mut codebooks) {
                *codebook = known.get_or_insert_with(|| codebook.clone()).clone();
            }
        }
        Ok(codebooks.swap_remove(number - first))
    }

    /// The bytes of `range` of the data, their blocks checked: an owner, and where they start in it.
    fn data(&self, range: Range<u64>) -> Result<(Owner, usize)> {
        let block = 1u64 << self.header.block_log2;
        let first = range.start / block;
        let blocks = first..range.end.div_ceil(block).max(first);
        let from = first * block;
        let to = (blocks.end * block).min(self.header.data_nbytes).max(from);
        debug_assert!(blocks.end <= block_count(self.header.data_nbytes, self.header.block_log2));
        if range.is_empty() {
            return Ok((Arc::new([0u8; 0]), 0));
        }
        let (owner, base) = match &self.source {
            Source::Memory(bytes) => (bytes.clone(), (self.start + from) as usize),
            Source::File(_) => {
                let lines = self.source.read(self.start + from..self.start + to)?;
                let owner: Owner = Arc::new(lines);
                (owner, 0)
            }
        };
        let bytes = &(*owner).as_ref()[base..base + (to - from) as usize];
        for (number, bytes) in (first..).zip(bytes.chunks(block as usize)) {
            interruption::check()?;
            let expected = self.header.checksums[number as usize];
            let found = crc32fast::hash(bytes);
            if found != expected {
                let at = self.start + number * block;
                return Err(Error::corrupt(format!(
                    "data: block {number} has checksum {found:#010x}, expected {expected:#010x} \
                     (file bytes {at} to {})",
                    at + bytes.len() as u64
                )));
            }
        }
        let at = (range.start - from) as usize;
        let nbytes = (range.end - range.start) as usize;
        let is_wasteful = bytes.len() - nbytes > nbytes / 8 + 64;
        if is_wasteful && matches!(self.source, Source::File(_)) {
            let from = at / 64 * 64;
            let lines = copy_of(&bytes[from..at + nbytes])?;
            return Ok((Arc::new(lines), at - from));
        }
        Ok((owner, base + at))
    }
}

/// Puts the path, if there is one, before an error.
fn within(place: &str, error: Error) -> Error {
    if place.is_empty() { error } else { error.within(place) }
}

/// The `nbytes` bytes of elements that are coded by planes.
fn decoded(coded: &[u8], nbytes: usize, dtype: Dtype) -> Result<Array<u8>> {
    let owner: Owner = Arc::new(planes::decode(coded, nbytes, dtype.words())?);
    Array::view(&owner, 0, nbytes)
}

/// What a file that does not start as a container really is.
fn not_a_container(head: &[u8], nbytes: u64) -> Error {
    let text = String::from_utf8_lossy(head);
    let start = text.trim_start().to_ascii_lowercase();
    let header_size =
        head.get(..8).map(|b| b.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b)));
    let is = if head.is_empty() {
        "it is empty"
    } else if MAGIC.starts_with(head) || head.starts_with(&MAGIC) {
        return Error::truncated("container", 16, nbytes);
    } else if head.starts_with(b"version https://git-lfs") {
        "it is a git-LFS pointer: run `git lfs pull` to fetch the file itself"
    } else if start.starts_with("<!doctype")
        || start.starts_with("<html")
        || start.starts_with("<?xml")
    {
        "it is an HTML or XML page: the download gave an error page instead of the file"
    } else if head.starts_with(b"PK\x03\x04") {
        "it is a zip archive (a torch.save file or an .npz, perhaps): unpack it, or compress the model in it"
    } else if head.starts_with(b"\x1f\x8b") {
        "it is gzip-compressed: decompress it first"
    } else if head.starts_with(b"\x93NUMPY") {
        "it is a NumPy array file"
    } else if head.get(8) == Some(&b'{') && header_size.is_some_and(|n| n < nbytes) {
        "it is a safetensors file: use `tersenet compress`"
    } else if head.starts_with(b"\x89TRS") || head.starts_with(b"\tTRS") {
        "its line ends were changed: it was copied in text mode, copy it in binary mode"
    } else if head.iter().all(|&byte| byte == 0) {
        "it is all zeros: an unfinished download or a damaged disk"
    } else if head.iter().all(|&byte| byte == 0xff) {
        "it is all 0xff: a damaged disk"
    } else if head.first() == Some(&0x80) && head.get(1).is_some_and(|&b| (2..=5).contains(&b)) {
        "it is a Python pickle, which is never loaded"
    } else if std::str::from_utf8(&head[..head.len().min(64)]).is_ok() && !head.contains(&0) {
        "it is a text file"
    } else {
        "its first bytes are something else"
    };
    Error::corrupt(format!("not a tersenet container: {is}"))
}
