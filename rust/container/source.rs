//! Where a container's bytes are read from: a file, or memory.

use crate::array::Owner;
use crate::error::{Error, ErrorKind, Result};
use crate::lines::Lines;
use std::fs::File;
use std::ops::Range;
use std::path::Path;

/// Bytes that are read in ranges.
pub enum Source {
    File(File),
    Memory(Owner),
}

impl Source {
    /// How many there are.
    pub fn len(&self) -> Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata().map_err(|e| Error::io("size", e))?.len()),
            Self::Memory(bytes) => Ok((**bytes).as_ref().len() as u64),
        }
    }

    /// A copy of the bytes of `range`.
    pub fn read(&self, range: Range<u64>) -> Result<Lines> {
        let nbytes = (range.end - range.start) as usize;
        match self {
            Self::Memory(bytes) => {
                copy_of(&(**bytes).as_ref()[range.start as usize..range.end as usize])
            }
            Self::File(file) => {
                let mut lines = Lines::zeroed::<u8>(nbytes)?;
                read_at(file, lines.as_mut_slice(), range.start).map_err(|e| match e.kind() {
                    std::io::ErrorKind::UnexpectedEof => Error::new(
                        ErrorKind::Truncated,
                        format!("container: ends before byte {}; it was cut while open", range.end),
                    ),
                    _ => Error::io("reading", e),
                })?;
                Ok(lines)
            }
        }
    }
}

/// A copy of bytes, aligned.
pub fn copy_of(bytes: &[u8]) -> Result<Lines> {
    let mut lines = Lines::zeroed::<u8>(bytes.len())?;
    lines.as_mut_slice().copy_from_slice(bytes);
    Ok(lines)
}

/// Opens what is no folder.
pub fn open_file(path: &Path) -> Result<File> {
    let failed = |e| Error::io(path.display(), e);
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    Ok(file)
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], at: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(windows)]
fn read_at(file: &File, mut out: &mut [u8], mut at: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, at)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                out = &mut out[n..];
                at += n as u64;
            }
        }
    }
    Ok(())
}
