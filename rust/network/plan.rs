//! A plan: every shape, and where every value lies, for one set of input shapes.
//!
//! ```text
//!   value        0 (input)  1 conv  2 relu  3 pool  4 reshape  5 linear
//!   lies in      argument   slot 0  slot 0  slot 1  slot 1     slot 0
//!                                   in place        a view     free again: 2 was read last by 3
//! ```
//!
//! A slot is a buffer that values share one after the other. A node's result takes the place of an
//! operand that nothing reads later, if it may; else the smallest free slot that holds it, else the
//! largest free one, grown; else a new one. Ids that were moved lie in slots of their own kind. All
//! this is done once; a run allocates nothing for values.
//!
//! Between convolutions of a batch numbers are interleaved ([`Interleaving`]) where all that give and read
//! a value take it so; and a convolution whose numbers are halved by the node after it alone gives what
//! becomes of them.

use super::graph::{Graph, InputType, Node};
use super::operator::{Argument, Dims, Interleaving, count};
use super::{Part, within};
use crate::error::{Error, ErrorKind, Result};

/// Where the numbers of a value are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// In an input of the run.
    Argument(usize),
    /// In a constant of the network.
    Constant(usize),
    /// In a slot of the workspace.
    Slot(usize),
    /// In a slot of the workspace that holds ids.
    IdSlot(usize),
}

/// A node to run, in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Which.
    pub node: usize,
    /// The slot that its result goes to.
    pub into: Source,
    /// The operand that is there already.
    pub in_place: Option<usize>,
    /// The node after it that takes the greatest of its numbers, whose result this step gives.
    pub halved: Option<usize>,
}

/// Shapes and places of all values, for one set of input shapes.
#[derive(Debug)]
pub(super) struct Plan {
    /// The dimensions of each value; those of the inputs come first.
    pub dims: Vec<Dims>,
    /// Whether the numbers of each value are interleaved.
    pub interleaved: Vec<bool>,
    /// Where each value is.
    pub sources: Vec<Source>,
    /// The nodes to run.
    pub steps: Vec<Step>,
    /// The numbers that each slot holds.
    pub slots: Vec<usize>,
    /// The ids that each slot of ids holds.
    pub id_slots: Vec<usize>,
}

/// Slots of one type: what each holds, and which are free.
#[derive(Default)]
struct Slots {
    lens: Vec<usize>,
    free: Vec<usize>,
}

impl Slots {
    /// A free slot for `len` elements.
    fn take(&mut self, len: usize) -> usize {
        let fits = |slot: &usize| self.lens[*slot] >= len;
        let free = || self.free.iter().copied();
        let best = match free().filter(fits).min_by_key(|&slot| self.lens[slot]) {
            Some(slot) => Some(slot),
            None => free().max_by_key(|&slot| self.lens[slot]),
        };
        let Some(slot) = best else {
            self.lens.push(len);
            return self.lens.len() - 1;
        };
        self.free.retain(|&other| other != slot);
        self.lens[slot] = self.lens[slot].max(len);
        slot
    }
}

impl Plan {
    /// Plans a run on `arguments`; no value takes more than `limit` bytes.
    ///
    /// # Errors
    /// `InvalidArgument` for inputs or operands of another shape, naming the input or node;
    /// `LimitExceeded`.
    pub fn new(
        graph: &Graph,
        parts: &[Part],
        types: &[InputType],
        constants: &[Dims],
        arguments: &[Argument<'_>],
        limit: u64,
    ) -> Result<Self> {
        let batch = batch_of(graph, arguments)?;
        let mut dims: Vec<Dims> = arguments.iter().map(|input| input.dims.to_vec()).collect();
        for (node, part) in graph.nodes().iter().zip(parts) {
            let result = match part {
                Part::Constant(number) => constants[*number].clone(),
                Part::Operator(operator) | Part::Within(operator) => {
                    let operands: Vec<&[usize]> =
                        node.inputs.iter().map(|&value| dims[value].as_slice()).collect();
                    operator.shape(&operands, batch).map_err(|e| within(node, e))?
                }
            };
            let each = if types[dims.len()] == InputType::Int64 { 8 } else { 4 };
            let nbytes = count(&result).and_then(|n| n.checked_mul(each));
            if nbytes.is_none_or(|nbytes| nbytes as u64 > limit) {
                let message = format!("result of shape {result:?}, expected at most {limit} bytes");
                return Err(within(node, Error::new(ErrorKind::LimitExceeded, message)));
            }
            dims.push(result);
        }
        let kinds = kinds(graph, parts, &dims);
        let interleaved = interleaved(graph, &kinds, dims.len());
        let halved = halved(graph, &kinds, &interleaved);
        let (sources, steps, slots, id_slots) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut plan = Self { dims, interleaved, sources, steps, slots, id_slots };
        plan.place(graph, parts, types, &halved);
        Ok(plan)
    }

    /// Finds a place for every value.
    fn place(
        &mut self,
        graph: &Graph,
        parts: &[Part],
        types: &[InputType],
        halved: &[Option<usize>],
    ) {
        let ninputs = graph.inputs().len();
        let last_uses = last_uses(graph, parts);
        // The value whose numbers a value's are.
        let mut roots: Vec<usize> = (0..ninputs).collect();
        self.sources = (0..ninputs).map(Source::Argument).collect();
        let (mut slots, mut id_slots) = (Slots::default(), Slots::default());
        for (number, (node, part)) in graph.nodes().iter().zip(parts).enumerate() {
            let value = ninputs + number;
            let operator = match part {
                Part::Constant(constant) => {
                    roots.push(value);
                    self.sources.push(Source::Constant(*constant));
                    continue;
                }
                Part::Operator(operator) if !part.is_view() => operator,
                Part::Operator(_) | Part::Within(_) => {
                    roots.push(roots[node.inputs[0]]);
                    self.sources.push(self.sources[node.inputs[0]]);
                    continue;
                }
            };
            roots.push(value);
            if halved.contains(&Some(number)) {
                // It is there only as what becomes of it.
                self.sources.push(Source::Slot(usize::MAX));
                continue;
            }
            let (node, giver) = match halved[number] {
                Some(giver) => (&graph.nodes()[giver], giver),
                None => (node, number),
            };
            let len = self.dims[value].iter().product();
            let in_place = (0..operator.may_overwrite().min(node.inputs.len())).find(|&i| {
                let root = roots[node.inputs[i]];
                matches!(self.sources[root], Source::Slot(_))
                    && last_uses[root] == number
                    && self.dims[node.inputs[i]] == self.dims[value]
                    && node.inputs.iter().filter(|&&other| roots[other] == root).count() == 1
            });
            let into = match (in_place.map(|i| self.sources[node.inputs[i]]), types[value]) {
                (Some(source), _) => source,
                (None, InputType::Float32) => Source::Slot(slots.take(len)),
                (None, InputType::Int64) => Source::IdSlot(id_slots.take(len)),
            };
            self.sources.push(into);
            let halved = halved[number].map(|_| number);
            self.steps.push(Step { node: giver, into, in_place, halved });
            // What was read here for the last time is free, the result too if nothing reads it.
            let mut done: Vec<usize> = node.inputs.iter().map(|&input| roots[input]).collect();
            done.push(value);
            done.sort_unstable();
            done.dedup();
            for root in done {
                let source = self.sources[root];
                if last_uses[root] > number || (source == into && root != value) {
                    continue;
                }
                match source {
                    Source::Slot(old) => slots.free.push(old),
                    Source::IdSlot(old) => id_slots.free.push(old),
                    Source::Argument(_) | Source::Constant(_) => {}
                }
            }
        }
        (self.slots, self.id_slots) = (slots.lens, id_slots.lens);
    }
}

/// How each node takes and gives numbers.
fn kinds(graph: &Graph, parts: &[Part], dims: &[Dims]) -> Vec<Interleaving> {
    let ninputs = graph.inputs().len();
    let kind = |(number, (node, part)): (usize, (&Node, &Part))| match part {
        Part::Operator(operator) if !part.is_view() => {
            let operands: Vec<&[usize]> =
                node.inputs.iter().map(|&value| dims[value].as_slice()).collect();
            operator.interleaving(&operands, &dims[ninputs + number])
        }
        _ => Interleaving::Plain,
    };
    graph.nodes().iter().zip(parts).enumerate().map(kind).collect()
}

/// For each node that halves what the one before gives to it alone, that one.
fn halved(graph: &Graph, kinds: &[Interleaving], interleaved: &[bool]) -> Vec<Option<usize>> {
    let ninputs = graph.inputs().len();
    let mut readers = vec![0; interleaved.len()];
    let read = graph.nodes().iter().flat_map(|node| &node.inputs).chain(graph.outputs());
    read.for_each(|&value| readers[value] += 1);
    let of = |(number, node): (usize, &Node)| {
        let giver = number.checked_sub(1)?;
        let (value, kinds) = (ninputs + giver, (kinds[giver], kinds[number]));
        let is_pair = kinds == (Interleaving::Any(true), Interleaving::Halves);
        let is_alone = node.inputs == [value] && interleaved[value] && readers[value] == 1;
        (is_pair && is_alone).then_some(giver)
    };
    graph.nodes().iter().enumerate().map(of).collect()
}

/// Which of `count` values are interleaved: those between operators that take them so, all of which
/// agree.
fn interleaved(graph: &Graph, kinds: &[Interleaving], count: usize) -> Vec<bool> {
    let ninputs = graph.inputs().len();
    let mut is = vec![false; count];
    for (number, kind) in kinds.iter().enumerate() {
        is[ninputs + number] = *kind != Interleaving::Plain;
    }
    for &output in graph.outputs() {
        is[output] = false;
    }
    // What one operator takes in another order is not interleaved, until all agree.
    loop {
        let before = is.clone();
        for (number, (node, kind)) in graph.nodes().iter().zip(kinds).enumerate() {
            let takes = match kind {
                Interleaving::Plain => false,
                Interleaving::Any(_) => continue,
                Interleaving::Alike | Interleaving::Halves => {
                    is[ninputs + number] && node.inputs.iter().all(|&value| is[value])
                }
            };
            is[ninputs + number] &= takes;
            node.inputs.iter().for_each(|&value| is[value] &= takes);
        }
        if is == before {
            return is;
        }
    }
}

/// The last node that reads each value or a view of it; its own where none does, `usize::MAX` for
/// what the network gives.
fn last_uses(graph: &Graph, parts: &[Part]) -> Vec<usize> {
    let ninputs = graph.inputs().len();
    let mut roots: Vec<usize> = (0..ninputs).collect();
    let mut last_uses = vec![0; ninputs];
    for (number, (node, part)) in graph.nodes().iter().zip(parts).enumerate() {
        for &input in &node.inputs {
            last_uses[roots[input]] = number;
        }
        roots.push(if part.is_view() { roots[node.inputs[0]] } else { ninputs + number });
        last_uses.push(number);
    }
    for &output in graph.outputs() {
        last_uses[roots[output]] = usize::MAX;
    }
    last_uses
}

/// The batch that the arguments have, 1 where no input depends on it.
fn batch_of(graph: &Graph, arguments: &[Argument<'_>]) -> Result<usize> {
    if arguments.len() != graph.inputs().len() {
        return Err(Error::invalid(format!(
            "inputs: {} of them, expected {}",
            arguments.len(),
            graph.inputs().len()
        )));
    }
    let mut batch = None;
    for (input, argument) in graph.inputs().iter().zip(arguments) {
        let is_right = |(&expected, &found): (&i64, &usize)| {
            let Ok(factor) = usize::try_from(expected.unsigned_abs()) else { return false };
            if expected >= 0 {
                return found == factor;
            }
            let members = found / factor;
            found % factor == 0 && *batch.get_or_insert(members) == members
        };
        let is_whole = input.shape.len() == argument.dims.len();
        if !is_whole || !input.shape.iter().zip(argument.dims).all(is_right) {
            return Err(Error::invalid(format!(
                "input {}: shape {:?}, expected {}",
                input.name,
                argument.dims,
                shape_text(&input.shape, batch)
            )));
        }
    }
    Ok(batch.unwrap_or(1))
}

/// A shape as people write it: `[batch, 3, 32, 32]`.
fn shape_text(shape: &[i64], batch: Option<usize>) -> String {
    let dims: Vec<String> = shape
        .iter()
        .map(|&dim| match (dim, batch) {
            (0.., _) => dim.to_string(),
            (-1, _) => "batch".to_owned(),
            _ => format!("{} * batch", dim.unsigned_abs()),
        })
        .collect();
    let of = batch.map_or(String::new(), |batch| format!(" for a batch of {batch}"));
    format!("[{}]{of}", dims.join(", "))
}
