//! What an operator is to the runtime: a shape computed once, and a run into a given buffer.

use crate::array::Array;
use crate::error::{Error, ErrorKind, Result};
use crate::matrix::CompressedMatrix;
use crate::network::graph::InputType;
use crate::network::plan::{Plan, Source};

/// The dimensions of a value.
pub(super) type Dims = Vec<usize>;

/// One node of a loaded network, with its weights and its checked numbers.
pub(super) trait Operator: Send + Sync {
    /// The dimensions of the result, for those of the operands and a batch.
    fn shape(&self, operands: &[&[usize]], batch: usize) -> Result<Dims>;

    /// Computes the result, of dimensions `dims`, into `out`, whose numbers are anything before,
    /// or those of the operand that [`Operands::in_place`] names.
    fn run(
        &self,
        operands: &Operands<'_>,
        dims: &[usize],
        out: &mut [f32],
        context: &mut Context<'_>,
    ) -> Result<()>;

    /// The type of the operands' elements, unless it moves those of any.
    fn operand_type(&self) -> InputType {
        InputType::Float32
    }

    /// True when it moves elements of either type, which all operands and the result have.
    fn moves_any_type(&self) -> bool {
        false
    }

    /// As `run`, of ids; only one that moves elements of either type has it.
    ///
    /// # Errors
    /// As `run`; `InvalidArgument` where it has none, which loading a network rules out.
    fn run_ids(
        &self,
        _operands: &Operands<'_>,
        _dims: &[usize],
        _out: &mut [i64],
        _context: &mut Context<'_>,
    ) -> Result<()> {
        Err(Error::invalid("operands of int64, expected float32"))
    }

    /// True when the result is the operand's numbers under other dimensions; it is never run.
    fn is_view(&self) -> bool {
        false
    }

    /// What interleaved operands are to it, and an interleaved result, for the dimensions of the
    /// operands and the result.
    fn interleaving(&self, _operands: &[&[usize]], _dims: &[usize]) -> Interleaving {
        Interleaving::Plain
    }

    /// Of how many of the first operands the result may take the place, if dimensions are equal.
    fn may_overwrite(&self) -> usize {
        0
    }

    /// The matrix of a weighted layer.
    fn matrix(&self) -> Option<&CompressedMatrix> {
        None
    }

    /// The bytes of decoded weights that runs have left for the next one.
    fn kept_nbytes(&self) -> usize {
        0
    }

    /// The bytes of plain weights beside the matrix.
    fn vector_nbytes(&self) -> usize {
        0
    }
}

/// In which order an operator takes and gives the numbers of a batch: row-major, or interleaved as
/// [`crate::convolution::Sides`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interleaving {
    /// Row-major alone.
    Plain,
    /// All operands and the result in one order.
    Alike,
    /// As `Alike`; it takes the greatest of each two by two numbers.
    Halves,
    /// Each in any order; whether it may give the greatest of each two by two numbers besides.
    Any(bool),
}

/// An input of a run: its dimensions and elements.
#[derive(Clone, Copy, Debug)]
pub struct Argument<'a> {
    /// The dimensions.
    pub dims: &'a [usize],
    /// The elements, row-major.
    pub elements: Elements<'a>,
}

/// The elements of an input.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Numbers.
    Float32(&'a [f32]),
    /// Rows of an embedding.
    Int64(&'a [i64]),
}

impl<'a> Elements<'a> {
    /// The numbers, where they are numbers.
    pub(super) fn numbers(self) -> Option<&'a [f32]> {
        match self {
            Self::Float32(numbers) => Some(numbers),
            Self::Int64(_) => None,
        }
    }
}

/// A tensor of the container that a network uses as a value.
pub(super) struct Constant {
    pub dims: Dims,
    pub elements: Stored,
}

/// The elements of a constant.
pub(super) enum Stored {
    Float32(Array<f32>),
    Int64(Vec<i64>),
}

impl Constant {
    /// The elements.
    pub fn elements(&self) -> Elements<'_> {
        match &self.elements {
            Stored::Float32(numbers) => Elements::Float32(numbers.as_slice()),
            Stored::Int64(ids) => Elements::Int64(ids),
        }
    }
}

/// The values that a node takes.
pub(super) struct Operands<'a> {
    pub plan: &'a Plan,
    pub values: &'a [usize],
    pub result: usize,
    pub arguments: &'a [Argument<'a>],
    pub constants: &'a [Constant],
    pub slots: &'a [Vec<f32>],
    pub id_slots: &'a [Vec<i64>],
    pub in_place: Option<usize>,
    pub halves: bool,
}

impl<'a> Operands<'a> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// The operand whose numbers are in the result's place already, and nowhere else.
    pub fn in_place(&self) -> Option<usize> {
        self.in_place
    }

    /// The dimensions of operand `i`.
    pub fn dims(&self, i: usize) -> &'a [usize] {
        &self.plan.dims[self.values[i]]
    }

    fn elements(&self, i: usize) -> Elements<'a> {
        match self.plan.sources[self.values[i]] {
            Source::Argument(number) => self.arguments[number].elements,
            Source::Constant(number) => self.constants[number].elements(),
            Source::Slot(slot) => {
                let len = self.dims(i).iter().product();
                Elements::Float32(&self.slots[slot][..len])
            }
            Source::IdSlot(slot) => {
                let len = self.dims(i).iter().product();
                Elements::Int64(&self.id_slots[slot][..len])
            }
        }
    }

    /// Whether the numbers of operand `i` are interleaved.
    pub fn is_interleaved(&self, i: usize) -> bool {
        self.plan.interleaved[self.values[i]]
    }

    /// Whether the result shall be the greatest of each two by two numbers.
    pub fn halves(&self) -> bool {
        self.halves
    }

    /// Whether those of the result shall be.
    pub fn gives_interleaved(&self) -> bool {
        self.plan.interleaved[self.result]
    }

    /// The numbers of operand `i`, which is not in the result's place.
    ///
    /// # Panics
    /// When it holds ids, which loading a network rules out.
    pub fn numbers(&self, i: usize) -> &'a [f32] {
        debug_assert!(self.in_place != Some(i));
        match self.elements(i) {
            Elements::Float32(numbers) => numbers,
            Elements::Int64(_) => panic!("operand {i}: ids where numbers were checked to be"),
        }
    }

    /// The ids of operand `i`.
    ///
    /// # Panics
    /// When it holds numbers, which loading a network rules out.
    pub fn ids(&self, i: usize) -> &'a [i64] {
        match self.elements(i) {
            Elements::Int64(ids) => ids,
            Elements::Float32(_) => panic!("operand {i}: numbers where ids were checked to be"),
        }
    }

    /// Puts operand 0 into `out`, unless it is there.
    pub fn copy_first(&self, out: &mut [f32]) {
        if self.in_place != Some(0) {
            out.copy_from_slice(self.numbers(0));
        }
    }
}

/// A number or an id, for what moves either.
pub(super) trait Element: Copy + Send + Sync {
    /// The elements of operand `i`.
    ///
    /// # Panics
    /// When it holds the others, which loading a network rules out.
    fn of<'a>(operands: &Operands<'a>, i: usize) -> &'a [Self];
}

impl Element for f32 {
    fn of<'a>(operands: &Operands<'a>, i: usize) -> &'a [Self] {
        operands.numbers(i)
    }
}

impl Element for i64 {
    fn of<'a>(operands: &Operands<'a>, i: usize) -> &'a [Self] {
        operands.ids(i)
    }
}

/// What a run lends to an operator.
pub(super) struct Context<'a> {
    /// Threads it may use.
    pub threads: usize,
    /// Memory it may use, kept from run to run.
    pub scratch: &'a mut Vec<f32>,
}

impl Context<'_> {
    /// As many threads as `work` multiply–adds, or steps as long, are worth.
    pub fn useful(&self, work: usize) -> usize {
        self.threads.min(work >> 16).max(1)
    }
}

/// The first `len` elements of `buffer`, grown where it is shorter; they may be anything.
///
/// # Errors
/// `LimitExceeded` when the memory cannot be had.
pub(super) fn at_least<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> Result<&mut [T]> {
    if buffer.len() < len {
        buffer.try_reserve_exact(len - buffer.len()).map_err(|_| {
            let message = format!("memory: {len} numbers cannot be had");
            Error::new(ErrorKind::LimitExceeded, message)
        })?;
        buffer.resize(len, T::default());
    }
    Ok(&mut buffer[..len])
}

/// The product of `dims`, where it fits.
pub(super) fn count(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))
}

/// A dimension's number, counted from the end where it is negative.
pub(super) fn dimension(dim: i64, rank: usize) -> Result<usize> {
    let from_end = if dim < 0 { dim.checked_add(rank as i64) } else { Some(dim) };
    from_end
        .and_then(|dim| usize::try_from(dim).ok())
        .filter(|&dim| dim < rank)
        .ok_or_else(|| Error::invalid(format!("dimension {dim}, expected one of {rank}")))
}

/// A non-negative size among a node's ints.
pub(super) fn size(int: i64, what: &str) -> Result<usize> {
    usize::try_from(int).map_err(|_| Error::invalid(format!("{what} {int}, expected zero or more")))
}

/// A flag among a node's ints.
pub(super) fn flag(int: i64, what: &str) -> Result<bool> {
    match int {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::invalid(format!("{what} {int}, expected 0 or 1"))),
    }
}

/// Images: the number, channels, height and width of `[N, C, H, W]` or `[N, C, L]`.
pub(super) fn image(dims: &[usize]) -> Result<[usize; 4]> {
    match *dims {
        [images, channels, height, width] => Ok([images, channels, height, width]),
        [images, channels, width] => Ok([images, channels, 1, width]),
        _ => Err(Error::invalid(format!("input of shape {dims:?}, expected 3 or 4 dimensions"))),
    }
}

/// The dimensions of a result that is `[images, channels, height, width]`, of the operand's rank.
pub(super) fn image_dims(rank: usize, [images, channels, height, width]: [usize; 4]) -> Dims {
    match rank {
        3 => vec![images, channels, width],
        _ => vec![images, channels, height, width],
    }
}
