//! Coders: how the fields of a layout become bits.
//!
//! To add one: write `entropy/<name>.rs`, put it into [`Coder`] and into the table rows of the
//! layouts it goes with. `planes` is no layout's: it codes the container's plain tensors.

pub mod huffman;
pub mod mixing;
pub mod planes;
pub mod tans;

use crate::error::{Error, Result};

/// How symbols are turned into bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coder {
    /// Fields of a fixed width.
    Fixed,
    /// Canonical, length-limited Huffman codes.
    Huffman,
    /// Asymmetric numeral systems of 128 states in 64 lanes.
    Tans,
    /// Bits by context mixing and arithmetic coding.
    Mixing,
}

impl Coder {
    /// Every coder there is.
    pub const ALL: &'static [Self] = &[Self::Fixed, Self::Huffman, Self::Tans, Self::Mixing];

    /// The name in code, listings and commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Huffman => "huffman",
            Self::Tans => "tans",
            Self::Mixing => "mixing",
        }
    }

    /// The number in files; never given to another coder.
    pub fn id(self) -> u8 {
        match self {
            Self::Fixed => 0,
            Self::Huffman => 1,
            Self::Tans => 2,
            Self::Mixing => 3,
        }
    }

    /// Finds a coder by its name.
    ///
    /// # Errors
    /// `InvalidArgument` that lists the names there are.
    pub fn by_name(name: &str) -> Result<Self> {
        Self::ALL.iter().find(|coder| coder.name() == name).copied().ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|coder| coder.name()).collect();
            Error::invalid(format!("coder: {name:?}, expected auto or one of {}", names.join(", ")))
        })
    }
}
