//! Reading numbers and texts from the front of bytes that may be anything.
//!
//! Each is checked where it is read, a count against the bytes that are left, before anything is
//! allocated for it. Errors name the thing that is read and the byte where it failed.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use crate::bits;
use crate::error::{Error, Result};

/// What is left of the bytes of `thing`.
#[derive(Debug)]
pub struct Cursor<'a> {
    thing: &'static str,
    bytes: &'a [u8],
    nbytes: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at the first of `bytes`; errors call them `thing`.
    pub fn new(thing: &'static str, bytes: &'a [u8]) -> Self {
        Self { thing, bytes, nbytes: bytes.len() }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.bytes.len()
    }

    /// True when none are left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// An error that says where it was found.
    pub fn corrupt(&self, what: impl std::fmt::Display) -> Error {
        let (thing, at) = (self.thing, self.nbytes.saturating_sub(self.bytes.len()));
        Error::corrupt(format!("{thing}: {what} (byte {at} of the {thing})"))
    }

    /// The next `nbytes` bytes.
    ///
    /// # Errors
    /// `Corrupt` for fewer, as of every function here.
    pub fn take(&mut self, nbytes: u64, what: &str) -> Result<&'a [u8]> {
        let split = usize::try_from(nbytes).ok().and_then(|n| self.bytes.split_at_checked(n));
        let (taken, rest) = split.ok_or_else(|| {
            let left = self.left();
            self.corrupt(format_args!("{what} of {nbytes} bytes, but {left} are left"))
        })?;
        self.bytes = rest;
        Ok(taken)
    }

    /// The next byte.
    ///
    /// # Errors
    /// As [`Cursor::take`].
    pub fn byte(&mut self, what: &str) -> Result<u8> {
        Ok(self.take(1, what)?.first().copied().unwrap_or(0))
    }

    /// The next varint.
    ///
    /// # Errors
    /// As [`Cursor::take`]; for one that is not the shortest, or over 64 bits.
    pub fn varint(&mut self, what: &str) -> Result<u64> {
        let mut rest = self.bytes;
        let value =
            bits::take_varint(&mut rest).map_err(|e| self.corrupt(format_args!("{what}: {e}")))?;
        self.bytes = rest;
        Ok(value)
    }

    /// The next varint, as a size.
    ///
    /// # Errors
    /// As [`Cursor::varint`].
    pub fn size(&mut self, what: &str) -> Result<usize> {
        let value = self.varint(what)?;
        usize::try_from(value).map_err(|_| self.corrupt(format_args!("{what} is {value}")))
    }

    /// A count of things that take at least one byte each.
    ///
    /// # Errors
    /// As [`Cursor::varint`]; when there are not as many bytes left.
    pub fn count(&mut self, what: &str) -> Result<usize> {
        let count = self.size(what)?;
        if count > self.left() {
            let left = self.left();
            return Err(self.corrupt(format_args!("{count} {what}, but {left} bytes are left")));
        }
        Ok(count)
    }

    /// The next `nbytes` bytes as text.
    ///
    /// # Errors
    /// As [`Cursor::take`]; for what is not UTF-8, or holds a NUL.
    pub fn text(&mut self, nbytes: u64, what: &str) -> Result<&'a str> {
        let bytes = self.take(nbytes, what)?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| self.corrupt(format_args!("{what} is not UTF-8")))?;
        if text.contains('\0') {
            return Err(self.corrupt(format_args!("{what} {text:?} holds a NUL")));
        }
        Ok(text)
    }

    /// The next varint, and as many bytes as text.
    ///
    /// # Errors
    /// As [`Cursor::text`].
    pub fn string(&mut self, what: &str) -> Result<String> {
        let nbytes = self.varint(what)?;
        self.text(nbytes, what).map(str::to_owned)
    }
}
