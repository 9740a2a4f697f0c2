//! The types of tensors' elements.

use crate::entropy::planes::Words;
use crate::error::{Error, Result};

/// The type of a tensor's elements, stored little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dtype(u8);

impl Dtype {
    /// Names, bytes an element; the place in this table is the number in files.
    const TABLE: &'static [(&'static str, u64)] = &[
        ("float32", 4),
        ("float64", 8),
        ("float16", 2),
        ("bfloat16", 2),
        ("int8", 1),
        ("int16", 2),
        ("int32", 4),
        ("int64", 8),
        ("uint8", 1),
        ("uint16", 2),
        ("uint32", 4),
        ("uint64", 8),
        ("bool", 1),
        ("complex64", 8),
        ("complex128", 16),
        ("float8_e4m3fn", 1),
        ("float8_e5m2", 1),
    ];
    /// 32-bit floating point, what products compute in.
    pub const FLOAT32: Self = Self(0);

    /// Finds a type by NumPy's and torch's name.
    ///
    /// # Errors
    /// `InvalidArgument` that lists the names there are.
    pub fn by_name(name: &str) -> Result<Self> {
        (0u8..).zip(Self::TABLE).find(|(_, row)| row.0 == name).map(|(id, _)| Self(id)).ok_or_else(
            || {
                let names: Vec<&str> = Self::TABLE.iter().map(|row| row.0).collect();
                Error::invalid(format!("dtype: {name:?}, expected one of {}", names.join(", ")))
            },
        )
    }

    fn row(self) -> (&'static str, u64) {
        Self::TABLE.get(usize::from(self.0)).copied().unwrap_or(("unknown", 1))
    }

    /// The name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// The type with a number of files, where there is one.
    pub fn of_id(id: u8) -> Option<Self> {
        (usize::from(id) < Self::TABLE.len()).then_some(Self(id))
    }

    /// The number in files.
    pub fn id(self) -> u8 {
        self.0
    }

    /// How many types there are.
    pub fn count() -> usize {
        Self::TABLE.len()
    }

    /// Bytes an element.
    pub fn nbytes(self) -> u64 {
        self.row().1
    }

    /// The words that planes of the elements are made of: of a complex number, two.
    pub fn words(self) -> Words {
        let nbytes =
            if self.name().starts_with("complex") { self.nbytes() / 2 } else { self.nbytes() };
        let is_float = ["float", "bfloat", "complex"].iter().any(|t| self.name().starts_with(t));
        Words::new(usize::try_from(nbytes).unwrap_or(1), is_float)
    }

    /// True when `bytes` may be elements: of bool, 0 and 1.
    pub fn holds(self, bytes: &[u8]) -> bool {
        self.name() != "bool" || bytes.iter().all(|&byte| byte <= 1)
    }

    /// True for the types whose numbers a compressed matrix may stand for.
    pub fn is_matrix_type(self) -> bool {
        matches!(self.name(), "float32" | "float16" | "bfloat16")
    }
}
