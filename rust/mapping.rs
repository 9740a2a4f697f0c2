//! Mapping a file into memory: the one `unsafe` outside `simd/`.
//!
//! A mapped file is shared between processes and read on demand. Whoever maps it promises that
//! nobody truncates or rewrites it meanwhile; that is why reading, not mapping, is the default.
#![allow(unsafe_code)]

use crate::array::Owner;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// The bytes of `file`, mapped.
///
/// # Errors
/// What the operating system says.
pub fn map(file: &File) -> io::Result<Owner> {
    // SAFETY: the mapping is read-only, and its bytes are only ever read as plain numbers, with
    // bounds checked at each use; that the file is neither cut nor rewritten while it is mapped is
    // what callers of `Reader::map` promise.
    let map = unsafe { memmap2::Mmap::map(file)? };
    Ok(Arc::new(map))
}
