//! One error type: a kind that says what the caller can do, and a message that names the thing.
//!
//! A message reads `thing: what was found, what was expected (place)`, in lower case and without
//! a full stop, for example `csr: indptr[17] is 940, expected at most nnz = 912 (section indptr)`.
//! Data from outside gives an [`Error`]; a broken contract between our own functions is an assert.

use std::io;

/// What the caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is outside what the function takes: call again with another one.
    InvalidArgument,
    /// Stored bytes contradict themselves or their checksum: fetch them again.
    Corrupt,
    /// Stored bytes end too early: fetch the rest.
    Truncated,
    /// The bytes are fine, but a newer version wrote them: upgrade.
    UnsupportedVersion,
    /// Reading would take more than the caller allowed: raise the limit, or refuse.
    LimitExceeded,
    /// The operating system refused.
    Io,
    /// Whoever started the work ended it.
    Interrupted,
}

/// An error of this crate: see [`ErrorKind`] for what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    #[source]
    source: Option<io::Error>,
}

/// The result of every function here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error of `kind` with `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// An argument outside what a function takes.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// Stored bytes that contradict themselves.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Stored bytes of `thing` that end after `have` bytes where `need` are needed.
    pub fn truncated(thing: &str, need: u64, have: u64) -> Self {
        Self::new(
            ErrorKind::Truncated,
            format!("{thing}: ends after {have} bytes, expected {need} bytes"),
        )
    }

    /// A failure of the operating system while doing `what`.
    pub fn io(what: impl std::fmt::Display, source: io::Error) -> Self {
        let reason = source.to_string();
        // The number is in the source, and whoever shows the error may show it in its own way.
        let reason = reason.split(" (os error").next().unwrap_or_default();
        Self { kind: ErrorKind::Io, message: format!("{what}: {reason}"), source: Some(source) }
    }

    /// What the caller can do.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operating system's error number, for [`ErrorKind::Io`].
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.as_ref().and_then(io::Error::raw_os_error)
    }

    /// What kind of failure the operating system reported, for [`ErrorKind::Io`].
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.source.as_ref().map(io::Error::kind)
    }

    /// Puts `place` and a colon before the message, the kind unchanged.
    #[must_use]
    pub fn within(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}
