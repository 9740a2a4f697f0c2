//! Owned memory that starts at a cache line: vectors loaded from it do not straddle two, and
//! aligned sections of a file can be used where they lie.

use crate::error::Result;
use crate::rows::filled;
use bytemuck::{Pod, Zeroable};

/// Bytes of a cache line.
const LINE_NBYTES: usize = 64;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE_NBYTES]);

/// Elements of any plain type, from the start of a cache line on.
#[derive(Debug, Default)]
pub struct Lines {
    lines: Vec<Line>,
    nbytes: usize,
}

impl Lines {
    /// `len` elements, all zero bytes.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub fn zeroed<T: Pod>(len: usize) -> Result<Self> {
        let nbytes = len.saturating_mul(size_of::<T>());
        let lines = filled(Line([0; LINE_NBYTES]), nbytes.div_ceil(LINE_NBYTES), 1)?;
        Ok(Self { lines, nbytes })
    }

    /// The first `len` elements, whatever they are; the memory grows where there are fewer.
    ///
    /// # Errors
    /// As [`Lines::zeroed`].
    pub fn at_least<T: Pod>(&mut self, len: usize) -> Result<&mut [T]> {
        if self.nbytes / size_of::<T>() < len {
            *self = Self::zeroed::<T>(len)?;
        }
        Ok(&mut self.as_mut_slice()[..len])
    }

    /// The elements.
    ///
    /// # Panics
    /// When the bytes are no whole number of them.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&bytemuck::cast_slice::<_, u8>(&self.lines)[..self.nbytes])
    }

    /// The elements, to be written.
    ///
    /// # Panics
    /// As [`Lines::as_slice`].
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        let bytes = &mut bytemuck::cast_slice_mut::<_, u8>(&mut self.lines)[..self.nbytes];
        bytemuck::cast_slice_mut(bytes)
    }
}

impl AsRef<[u8]> for Lines {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_start_at_a_line_and_grow_when_asked_for() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let mut lines = Lines::zeroed::<f32>(len).unwrap();
            assert_eq!(lines.as_slice::<f32>(), vec![0.0; len]);
            assert_eq!(lines.as_ref().as_ptr() as usize % LINE_NBYTES * len.min(1), 0);
            lines.as_mut_slice::<f32>().fill(1.0);
            assert_eq!(lines.at_least::<f32>(len / 2).unwrap(), vec![1.0; len / 2]);
            assert_eq!(lines.at_least::<f32>(2 * len).unwrap().len(), 2 * len);
        }
        assert!(Lines::zeroed::<f32>(usize::MAX).is_err());
    }
}
