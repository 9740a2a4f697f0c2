//! Inference without torch: a graph of operators, stored in the container beside its weights.
//!
//! ```text
//!   .terse ──graph.rs──▶ Graph ──building.rs──▶ operators with their weights
//!                                                    │ plan.rs: shapes and places, once a shape
//!   inputs ─────────────────────────────────────────▶ run ──▶ outputs
//!                 weighted.rs, letters.rs  elementwise.rs, activation.rs  pooling.rs  shaping.rs
//!                 resampling.rs  normalization.rs  reduction.rs  dense.rs
//! ```
//!
//! Loading checks the whole graph against its weights; the first run on a set of input shapes
//! plans every shape and buffer, and later runs on it allocate nothing but the result (and what
//! products of matrices in attention take, and linear layers whose rows are grouped). A [`Network`] may run in many threads at once: each
//! run takes a workspace from a pool, or makes one. Locks are only ever tried, so that a forked
//! child whose parent held one goes on without it.
//!
//! Operators are torch's in every rule: windows, bins, indices, special numbers. One batch size
//! gives the same bits for any number of threads.

mod activation;
mod building;
mod dense;
mod elementwise;
mod graph;
mod letters;
mod normalization;
mod operator;
mod plan;
mod pooling;
mod reduction;
mod resampling;
mod shaping;
mod weighted;

pub use graph::{
    Graph, Input, InputType, MAX_RANK, Node, OPERATORS, OperatorSpec, VERSION, operator_by_name,
};
pub use operator::{Argument, Elements};

use crate::container::{Limits, Reader};
use crate::error::{Error, Result};
use crate::interruption;
use crate::rows::filled;
use building::Part;
use operator::{Constant, Context, Dims, Operands, at_least};
use plan::{Plan, Source};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// How weights are held while a network is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resident {
    /// In the layouts of the file.
    Compressed,
    /// In the layout that multiplies fastest, and decoded for the shapes that were run last.
    Cached,
    /// As dense numbers, and decoded likewise.
    Dense,
}

impl Resident {
    /// Finds a way by its name.
    ///
    /// # Errors
    /// `InvalidArgument` that lists the names there are.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "compressed" => Ok(Self::Compressed),
            "cached" => Ok(Self::Cached),
            "dense" => Ok(Self::Dense),
            _ => Err(Error::invalid(format!(
                "resident: {name:?}, expected \"compressed\", \"cached\" or \"dense\""
            ))),
        }
    }
}

/// A weighted layer, as [`Network::layers`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSummary<'a> {
    /// The place in the model.
    pub place: &'a str,
    /// The layout's name.
    pub layout: &'static str,
    /// Bytes of the matrix, of the vectors that go with it, and of what runs keep decoded.
    pub nbytes: usize,
}

/// An output: its dimensions and numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The dimensions.
    pub dims: Vec<usize>,
    /// The numbers, row-major.
    pub numbers: Vec<f32>,
}

/// A network, loaded and ready to run.
pub struct Network {
    graph: Graph,
    parts: Vec<Part>,
    constants: Vec<Constant>,
    /// The type of each value.
    types: Vec<InputType>,
    nbytes: usize,
    limits: Limits,
    /// The shapes that were run last, newest last.
    plans: Mutex<Vec<Arc<Prepared>>>,
}

/// A plan and the workspaces made for it that no run is using.
struct Prepared {
    plan: Plan,
    workspaces: Mutex<Vec<Workspace>>,
    /// Runs that are under way, and the most that ever were.
    running: AtomicUsize,
    most: AtomicUsize,
}

/// The memory of one run.
#[derive(Default)]
struct Workspace {
    slots: Vec<Vec<f32>>,
    id_slots: Vec<Vec<i64>>,
    scratch: Vec<f32>,
}

/// Plans that are kept for the shapes run last.
const MAX_PLANS: usize = 4;
/// Workspaces that are kept for a shape; of more runs at once some make their own.
const MAX_WORKSPACES: usize = 16;

impl Prepared {
    fn new(plan: Plan) -> Self {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { plan, workspaces: Mutex::new(Vec::new()), running, most }
    }

    /// A workspace that no run is using, or a new one.
    fn take(&self) -> Workspace {
        let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(running, Ordering::Relaxed);
        let kept = self.workspaces.try_lock().ok().and_then(|mut kept| kept.pop());
        kept.unwrap_or_default()
    }

    /// Keeps a workspace for the next run, if there are not as many as ever ran at once. Whoever found
    /// the lock held when taking one made another, so there would be ever more without a bound.
    fn give_back(&self, workspace: Workspace) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        let most = self.most.load(Ordering::Relaxed).min(MAX_WORKSPACES);
        if let Ok(mut kept) = self.workspaces.try_lock()
            && kept.len() < most
        {
            kept.push(workspace);
        }
    }
}

impl Network {
    /// Loads the network that `reader`'s container holds, on up to `threads` threads.
    ///
    /// # Errors
    /// `InvalidArgument` when it holds none; `Corrupt` when graph and weights do not agree; as
    /// [`Reader::get`].
    pub fn load(
        reader: &Reader,
        resident: Resident,
        limits: &Limits,
        threads: usize,
    ) -> Result<Self> {
        let bytes = reader.graph().ok_or_else(|| {
            Error::invalid(
                "container: tensors without a network's graph, expected a file of tersenet.export",
            )
        })?;
        let mut graph = Graph::from_bytes(bytes)?;
        let built = building::build(&mut graph, reader, resident, threads)?;
        Ok(Self {
            graph,
            parts: built.parts,
            constants: built.constants,
            types: built.types,
            nbytes: built.nbytes,
            limits: *limits,
            plans: Mutex::new(Vec::new()),
        })
    }

    /// The operators, inputs and outputs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The bytes of all weights as they are held now; a weight that nodes share counts once.
    ///
    /// A network that is resident as [`Resident::Cached`] or [`Resident::Dense`] also keeps them
    /// decoded for the shapes that it ran last, and products of kernels with an embedding's rows.
    pub fn nbytes(&self) -> usize {
        let operators = self.parts.iter().filter_map(Part::operator);
        self.nbytes + operators.map(|operator| operator.kept_nbytes()).sum::<usize>()
    }

    /// Every weighted layer, in the order they run.
    pub fn layers(&self) -> impl Iterator<Item = LayerSummary<'_>> {
        self.graph.nodes().iter().zip(&self.parts).filter_map(|(node, part)| {
            let operator = part.operator()?;
            operator.matrix().map(|matrix| LayerSummary {
                place: &node.name,
                layout: matrix.layout().name,
                nbytes: matrix.nbytes() + operator.vector_nbytes() + operator.kept_nbytes(),
            })
        })
    }

    /// The numbers and ids that a run on `arguments` holds at once beside its inputs and outputs.
    ///
    /// # Errors
    /// As [`Network::run`].
    pub fn workspace_numbers(&self, arguments: &[Argument<'_>]) -> Result<usize> {
        let prepared = self.prepared(arguments)?;
        Ok(prepared.plan.slots.iter().chain(&prepared.plan.id_slots).sum())
    }

    /// The dimensions of each output for `arguments`.
    ///
    /// # Errors
    /// As [`Network::run`].
    pub fn output_dims(&self, arguments: &[Argument<'_>]) -> Result<Vec<Vec<usize>>> {
        let prepared = self.prepared(arguments)?;
        Ok(self.graph.outputs().iter().map(|&value| prepared.plan.dims[value].clone()).collect())
    }

    /// Runs the network on `arguments`, one for each input.
    ///
    /// # Errors
    /// `InvalidArgument` for inputs of another type or shape, or ids that an embedding does not
    /// have; the message names the input, or the node, with what was found and expected.
    pub fn run(&self, arguments: &[Argument<'_>], threads: usize) -> Result<Vec<Output>> {
        let prepared = self.prepared(arguments)?;
        let mut outputs = Vec::with_capacity(self.graph.outputs().len());
        for &value in self.graph.outputs() {
            let dims = prepared.plan.dims[value].clone();
            outputs.push(Output { numbers: filled(0.0, dims.iter().product(), 1)?, dims });
        }
        let mut into: Vec<&mut [f32]> =
            outputs.iter_mut().map(|output| output.numbers.as_mut_slice()).collect();
        self.execute(&prepared, arguments, &mut into, threads)?;
        Ok(outputs)
    }

    /// Runs the network on `arguments` and puts each output into the buffer of `into` at its place.
    ///
    /// # Errors
    /// As [`Network::run`]; `InvalidArgument` for buffers of another number or length.
    pub fn run_into(
        &self,
        arguments: &[Argument<'_>],
        into: &mut [&mut [f32]],
        threads: usize,
    ) -> Result<()> {
        let prepared = self.prepared(arguments)?;
        let expected = self.graph.outputs().len();
        if into.len() != expected {
            let found = into.len();
            return Err(Error::invalid(format!("out: {found} buffers, expected {expected}")));
        }
        for (number, (&value, into)) in self.graph.outputs().iter().zip(into.iter()).enumerate() {
            let dims = &prepared.plan.dims[value];
            if into.len() != dims.iter().product::<usize>() {
                return Err(Error::invalid(format!(
                    "out: {} numbers for output {number}, expected shape {dims:?}",
                    into.len()
                )));
            }
        }
        self.execute(&prepared, arguments, into, threads)
    }

    /// The plan for the shapes of `arguments`, made where they are new.
    fn prepared(&self, arguments: &[Argument<'_>]) -> Result<Arc<Prepared>> {
        self.check_elements(arguments)?;
        let is_for = |prepared: &Arc<Prepared>| {
            prepared.plan.dims.iter().zip(arguments).all(|(dims, input)| dims == input.dims)
        };
        if let Ok(plans) = self.plans.try_lock()
            && arguments.len() == self.graph.inputs().len()
            && let Some(known) = plans.iter().rfind(|prepared| is_for(prepared))
        {
            return Ok(known.clone());
        }
        let constants: Vec<Dims> = self.constants.iter().map(|c| c.dims.clone()).collect();
        let limit = self.limits.tensor_nbytes;
        let plan = Plan::new(&self.graph, &self.parts, &self.types, &constants, arguments, limit)?;
        let prepared = Arc::new(Prepared::new(plan));
        if let Ok(mut plans) = self.plans.try_lock()
            && !plans.iter().any(is_for)
        {
            if plans.len() == MAX_PLANS {
                plans.remove(0);
            }
            plans.push(prepared.clone());
        }
        Ok(prepared)
    }

    /// Checks the type of each input, and that it has as many elements as its dimensions say.
    fn check_elements(&self, arguments: &[Argument<'_>]) -> Result<()> {
        for (input, argument) in self.graph.inputs().iter().zip(arguments) {
            let (dtype, len) = match argument.elements {
                Elements::Float32(numbers) => (InputType::Float32, numbers.len()),
                Elements::Int64(ids) => (InputType::Int64, ids.len()),
            };
            if dtype != input.dtype || operator::count(argument.dims) != Some(len) {
                return Err(Error::invalid(format!(
                    "input {}: {len} elements of {}, expected {} in shape {:?}",
                    input.name,
                    dtype.name(),
                    input.dtype.name(),
                    argument.dims
                )));
            }
        }
        Ok(())
    }

    fn execute(
        &self,
        prepared: &Prepared,
        arguments: &[Argument<'_>],
        into: &mut [&mut [f32]],
        threads: usize,
    ) -> Result<()> {
        let mut workspace = prepared.take();
        let outcome = self.execute_in(&mut workspace, &prepared.plan, arguments, into, threads);
        prepared.give_back(workspace);
        outcome
    }

    fn execute_in(
        &self,
        workspace: &mut Workspace,
        plan: &Plan,
        arguments: &[Argument<'_>],
        into: &mut [&mut [f32]],
        threads: usize,
    ) -> Result<()> {
        let Workspace { slots, id_slots, scratch } = workspace;
        slots.resize_with(plan.slots.len(), Vec::new);
        id_slots.resize_with(plan.id_slots.len(), Vec::new);
        for (slot, &len) in slots.iter_mut().zip(&plan.slots) {
            at_least(slot, len)?;
        }
        for (slot, &len) in id_slots.iter_mut().zip(&plan.id_slots) {
            at_least(slot, len)?;
        }
        let ninputs = self.graph.inputs().len();
        for step in &plan.steps {
            interruption::check()?;
            let node = &self.graph.nodes()[step.node];
            let Part::Operator(operator) = &self.parts[step.node] else { continue };
            let dims = plan.dims[ninputs + step.halved.unwrap_or(step.node)].as_slice();
            let len = dims.iter().product::<usize>();
            // Out of the way while the operands are read.
            let (mut numbers, mut ids) = (Vec::new(), Vec::new());
            match step.into {
                Source::Slot(slot) => numbers = std::mem::take(&mut slots[slot]),
                Source::IdSlot(slot) => ids = std::mem::take(&mut id_slots[slot]),
                Source::Argument(_) | Source::Constant(_) => continue,
            }
            let operands = Operands {
                plan,
                values: &node.inputs,
                result: ninputs + step.node,
                arguments,
                constants: &self.constants,
                slots,
                id_slots,
                in_place: step.in_place,
                halves: step.halved.is_some(),
            };
            let mut context = Context { threads, scratch };
            let outcome = match step.into {
                _ if len == 0 => Ok(()),
                Source::IdSlot(_) => {
                    operator.run_ids(&operands, dims, &mut ids[..len], &mut context)
                }
                _ => operator.run(&operands, dims, &mut numbers[..len], &mut context),
            };
            match step.into {
                Source::IdSlot(slot) => id_slots[slot] = ids,
                Source::Slot(slot) => slots[slot] = numbers,
                Source::Argument(_) | Source::Constant(_) => {}
            }
            outcome.map_err(|e| within(node, e))?;
        }
        for (&value, into) in self.graph.outputs().iter().zip(into) {
            let numbers = match plan.sources[value] {
                Source::Argument(number) => arguments[number].elements.numbers(),
                Source::Constant(number) => self.constants[number].elements().numbers(),
                Source::Slot(slot) => slots[slot].get(..into.len()),
                Source::IdSlot(_) => None,
            };
            let numbers = numbers.ok_or_else(|| {
                Error::invalid(format!("output {value}: ids, expected float32 numbers"))
            })?;
            into.copy_from_slice(numbers);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("nodes", &self.graph.nodes().len())
            .field("nbytes", &self.nbytes)
            .finish_non_exhaustive()
    }
}

/// Puts a node's place and operator before an error.
fn within(node: &Node, error: Error) -> Error {
    error.within(&node.title())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspaces_that_are_given_back_stay_bounded() {
        let plan = Plan {
            dims: Vec::new(),
            interleaved: Vec::new(),
            sources: Vec::new(),
            steps: Vec::new(),
            slots: Vec::new(),
            id_slots: Vec::new(),
        };
        let prepared = Prepared::new(plan);
        // Each time some find nothing to take, as those do that meet at the lock, and give all back.
        let run = |at_once: usize| {
            let held = prepared.workspaces.lock().unwrap();
            let made: Vec<Workspace> = (0..at_once).map(|_| prepared.take()).collect();
            drop(held);
            made.into_iter().for_each(|workspace| prepared.give_back(workspace));
            prepared.workspaces.lock().unwrap().len()
        };
        assert!((0..100).all(|_| run(2) == 2));
        assert!((0..100).all(|_| run(MAX_WORKSPACES + 3) == MAX_WORKSPACES));
    }
}
