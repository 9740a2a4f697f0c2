//! Where the sections of the data lie.
//!
//! There are no offsets in a file: sections follow one another, a large one that is used where it
//! lies from the next multiple of 64 on, so that what is mapped can be read a cache line at a time.

/// Bytes before the header: magic, header size, header checksum.
pub const PREAMBLE_NBYTES: u64 = 16;
/// Sections at least this large that are read where they lie start at a multiple of [`ALIGNMENT`].
pub const LARGE_NBYTES: u64 = 1024;
/// What large sections are aligned to, in the data and in the file.
pub const ALIGNMENT: u64 = 64;

/// How a section is read, which decides where it may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Where it lies: a large one is aligned.
    InPlace,
    /// From its first byte to the last, into other memory: it starts anywhere.
    Decoded,
}

/// Lays sections one after the other and remembers where the last one ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placement {
    /// Where the last section ends.
    pub end: u64,
    /// Bytes of sections that are read in place.
    in_place: u64,
}

impl Placement {
    /// The first byte and the size of the next section; None past 2^64.
    pub fn place(&mut self, nbytes: u64, used: Use) -> Option<(u64, u64)> {
        let mut start = self.end;
        if used == Use::InPlace {
            self.in_place = self.in_place.checked_add(nbytes)?;
            start = aligned(start, nbytes)?;
        }
        self.end = start.checked_add(nbytes)?;
        Some((start, nbytes))
    }

    /// Where the data starts in the file.
    pub fn data_start(self, header_nbytes: u64) -> Option<u64> {
        aligned(PREAMBLE_NBYTES.checked_add(header_nbytes)?, self.in_place)
    }
}

/// Where `nbytes` start that are read in place, after what ends at `end`.
fn aligned(end: u64, nbytes: u64) -> Option<u64> {
    if nbytes >= LARGE_NBYTES { end.checked_next_multiple_of(ALIGNMENT) } else { Some(end) }
}
