//! Typed, read-only arrays that either own their elements or look into bytes owned elsewhere.
//!
//! A compressed matrix is a handful of [`Array`]s. Freshly compressed, they own their memory; read
//! from a file or a buffer, they are views of it, so that nothing is held twice:
//!
//! ```text
//!   Array<u32> ──Owned──▶ [u32]            Array<u32> ──View──▶ Arc<Owner> ─ a file's bytes, a
//!                                                               at, nbytes     mapping, a Python
//!                                                                              bytes object
//! ```
//!
//! A view whose bytes are not aligned for `T`, or a big-endian machine, gets a copy instead; both
//! ends of the invariant (aligned, a whole number of elements, in range) live in [`Array::view`].

use crate::error::{Error, Result};
use bytemuck::Pod;
use std::sync::Arc;

/// Bytes that stay put and unchanged for as long as they are held.
pub type Owner = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// An element of an [`Array`]: a plain number with a little-endian form on disk.
pub trait Element: Pod + Send + Sync + std::fmt::Debug {
    /// The element whose little-endian bytes are `bytes` (exactly `size_of::<Self>()` of them).
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! element {
    ($($t:ty),*) => {$(
        impl Element for $t {
            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                <$t>::from_le_bytes(raw)
            }
        }
    )*};
}
element!(u8, u16, u32, u64, f32);

#[derive(Clone)]
enum Storage<T> {
    Owned(Arc<[T]>),
    /// `at .. at + nbytes` lies in the owner, is aligned for `T` and holds whole elements.
    View {
        owner: Owner,
        at: usize,
        nbytes: usize,
    },
}

/// A read-only array of numbers: cheap to clone, never copied by a clone.
#[derive(Clone)]
pub struct Array<T>(Storage<T>);

impl<T: Element> Array<T> {
    /// The array of `nbytes` bytes of `owner` from byte `at`, in place where alignment allows.
    ///
    /// # Errors
    /// `Truncated` when the owner is shorter; `Corrupt` when `nbytes` is no multiple of the
    /// element's size.
    pub fn view(owner: &Owner, at: usize, nbytes: usize) -> Result<Self> {
        let all = (**owner).as_ref();
        let bytes = at.checked_add(nbytes).and_then(|end| all.get(at..end)).ok_or_else(|| {
            Error::truncated("array", at.saturating_add(nbytes) as u64, all.len() as u64)
        })?;
        if !nbytes.is_multiple_of(size_of::<T>()) {
            return Err(Error::corrupt(format!(
                "array: {nbytes} bytes, expected a multiple of {}",
                size_of::<T>()
            )));
        }
        if cfg!(target_endian = "little") && bytemuck::try_cast_slice::<u8, T>(bytes).is_ok() {
            return Ok(Self(Storage::View { owner: owner.clone(), at, nbytes }));
        }
        Ok(bytes.chunks_exact(size_of::<T>()).map(T::from_le).collect::<Vec<T>>().into())
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        match &self.0 {
            Storage::Owned(elements) => elements,
            Storage::View { owner, at, nbytes } => {
                bytemuck::cast_slice(&(**owner).as_ref()[*at..*at + *nbytes])
            }
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of the elements in memory order (little-endian on every machine we run on).
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self.as_slice())
    }
}

impl<T> From<Vec<T>> for Array<T> {
    fn from(elements: Vec<T>) -> Self {
        Self(Storage::Owned(elements.into()))
    }
}

impl<T: Element> std::fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Array<{}>[{}]", std::any::type_name::<T>(), self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_reads_the_same_elements_at_every_alignment() {
        let bytes: Vec<u8> = (0..64).collect();
        let owner: Owner = Arc::new(bytes.clone());
        for at in 0..8 {
            let array = Array::<u32>::view(&owner, at, 16).unwrap();
            let expected: Vec<u32> = bytes[at..at + 16]
                .chunks(4)
                .map(|b| {
                    u32::from(b[0])
                        | u32::from(b[1]) << 8
                        | u32::from(b[2]) << 16
                        | u32::from(b[3]) << 24
                })
                .collect();
            assert_eq!(array.as_slice(), expected);
        }
    }

    #[test]
    fn a_view_past_the_end_or_of_half_an_element_is_an_error() {
        let owner: Owner = Arc::new(vec![0u8; 8]);
        assert!(Array::<u32>::view(&owner, 4, 8).is_err());
        assert!(Array::<u32>::view(&owner, usize::MAX, 8).is_err());
        assert!(Array::<u32>::view(&owner, 0, 6).is_err());
    }
}
