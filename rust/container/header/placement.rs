//! Where the sections of the data lie, one after the other: there are no offsets in a file.

use crate::layout::{LayoutSpec, archive};

/// Bytes before the header: magic, header size, header checksum.
pub const PREAMBLE_NBYTES: u64 = 16;
/// Sections at least this large start at a multiple of [`ALIGNMENT`].
pub const LARGE_NBYTES: u64 = 1024;
/// What large sections are aligned to, in the data and in the file.
pub const ALIGNMENT: u64 = 64;

/// How the bytes of a section are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// As they lie, aligned where there are many.
    InPlace,
    /// To decode them as a whole, wherever they are.
    Decoded,
}

impl Use {
    /// That of a layout's sections.
    pub fn of(layout: &LayoutSpec) -> Self {
        if layout.id == archive::SPEC.id { Self::Decoded } else { Self::InPlace }
    }
}

/// Where a section of `nbytes` starts when the one before ends at `end`.
pub fn section_start(end: u64, nbytes: u64, used: Use) -> Option<u64> {
    if nbytes >= LARGE_NBYTES && used == Use::InPlace {
        end.checked_next_multiple_of(ALIGNMENT)
    } else {
        Some(end)
    }
}

/// Where the data starts in the file.
pub fn data_start(header_nbytes: u64, data_nbytes: u64) -> Option<u64> {
    section_start(PREAMBLE_NBYTES.checked_add(header_nbytes)?, data_nbytes, Use::InPlace)
}

/// The number of blocks of `data_nbytes`.
pub fn block_count(data_nbytes: u64, block_log2: u8) -> u64 {
    data_nbytes.div_ceil(1u64.checked_shl(u32::from(block_log2)).unwrap_or(u64::MAX))
}

/// Lays sections one after the other and remembers where the last one ends.
#[derive(Default)]
pub struct Placement {
    /// Where the last one ends.
    pub end: u64,
}

impl Placement {
    /// The first byte and the size of the next section; None past 2^64.
    pub fn place(&mut self, nbytes: u64, used: Use) -> Option<(u64, u64)> {
        let start = section_start(self.end, nbytes, used)?;
        self.end = start.checked_add(nbytes)?;
        Some((start, nbytes))
    }
}
