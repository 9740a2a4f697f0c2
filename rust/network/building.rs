//! From a graph and a container to operators with their weights.
//!
//! What an operator's ints and floats mean is said where the operator is; here are the weights. A
//! matrix that several nodes share is read once; all matrices are read side by side, before the first
//! node is built, since what takes long is decoding an archive and laying out what was in it.

use super::graph::{Graph, InputType, Node};
use super::letters::{self, Letters};
use super::operator::{Constant, Operator, Stored};
use super::{Resident, within};
use super::{dense, elementwise, normalization, pooling, reduction, resampling, shaping, weighted};
use crate::array::Array;
use crate::container::{Reader, Tensor};
use crate::error::{Error, Result};
use crate::layout::{self, Goal};
use crate::matrix::{CompressedMatrix, Request};
use crate::rows::Shape;
use std::collections::{HashMap, HashSet};

/// A node, ready to run.
pub(super) enum Part {
    /// A tensor that is a value.
    Constant(usize),
    /// Something to run.
    Operator(Box<dyn Operator>),
    /// Something that its only reader computes, which takes its operand: never run.
    Within(Box<dyn Operator>),
}

impl Part {
    /// The operator.
    pub fn operator(&self) -> Option<&dyn Operator> {
        match self {
            Self::Constant(_) => None,
            Self::Operator(operator) | Self::Within(operator) => Some(&**operator),
        }
    }

    /// Whether its value is its operand's under other dimensions, or as a later operator takes it.
    pub fn is_view(&self) -> bool {
        match self {
            Self::Constant(_) => false,
            Self::Operator(operator) => operator.is_view(),
            Self::Within(_) => true,
        }
    }
}

/// All nodes of a network.
pub(super) struct Built {
    pub parts: Vec<Part>,
    pub constants: Vec<Constant>,
    /// The type of each value; those of the inputs come first.
    pub types: Vec<InputType>,
    /// The bytes of all weights.
    pub nbytes: usize,
}

/// Builds every node of `graph` with the weights that `reader` has; matrices are read on up to
/// `threads` threads. A node that computes what others before it say takes their operand.
///
/// # Errors
/// `Corrupt` when a node does not fit its weights, naming it; as [`Reader::get`].
pub(super) fn build(
    graph: &mut Graph,
    reader: &Reader,
    resident: Resident,
    threads: usize,
) -> Result<Built> {
    let mut weights = Weights {
        reader,
        resident,
        read: HashMap::new(),
        matrices: HashMap::new(),
        vectors: HashMap::new(),
        nbytes: 0,
    };
    weights.read_matrices(graph, threads)?;
    let mut types: Vec<InputType> = graph.inputs().iter().map(|input| input.dtype).collect();
    let (mut parts, mut constants) = (Vec::new(), Vec::new());
    let readers = letters::readers(graph);
    for number in 0..graph.nodes().len() {
        if let Some((letters, [embedding, permute])) = weights.letters(graph, &readers, number)? {
            for before in [embedding, permute] {
                let part = std::mem::replace(&mut parts[before], Part::Constant(0));
                parts[before] = match part {
                    Part::Operator(operator) => Part::Within(operator),
                    other => other,
                };
            }
            graph.redirect(number, embedding);
            parts.push(Part::Operator(Box::new(letters)));
            types.push(InputType::Float32);
            continue;
        }
        let node = &graph.nodes()[number];
        let part = if node.operator.name == "constant" {
            let constant = weights.constant(&node.weights[0]).map_err(|e| within(node, e))?;
            types.push(match constant.elements {
                Stored::Float32(_) => InputType::Float32,
                Stored::Int64(_) => InputType::Int64,
            });
            constants.push(constant);
            Part::Constant(constants.len() - 1)
        } else {
            let operator = build_operator(node, &mut weights).map_err(|e| within(node, e))?;
            let (expected, result) = match node.inputs.first() {
                Some(&first) if operator.moves_any_type() => (types[first], types[first]),
                _ => (operator.operand_type(), InputType::Float32),
            };
            for &input in &node.inputs {
                if types[input] != expected {
                    return Err(within(
                        node,
                        Error::corrupt(format!(
                            "operand of {}, expected {}",
                            types[input].name(),
                            expected.name()
                        )),
                    ));
                }
            }
            types.push(result);
            Part::Operator(operator)
        };
        parts.push(part);
    }
    if let Some(output) = graph.outputs().iter().find(|&&value| types[value] != InputType::Float32)
    {
        return Err(Error::corrupt(format!("graph: output {output} is int64, expected float32")));
    }
    Ok(Built { parts, constants, types, nbytes: weights.nbytes })
}

/// An error in a node's own numbers is one of the file.
fn corrupt<T>(made: Result<T>) -> Result<T> {
    made.map_err(|e| match e.kind() {
        crate::ErrorKind::InvalidArgument => Error::corrupt(e.to_string()),
        _ => e,
    })
}

fn build_operator(node: &Node, weights: &mut Weights<'_>) -> Result<Box<dyn Operator>> {
    let (ints, floats) = (node.ints.as_slice(), node.floats.as_slice());
    let name = |i| weight(node, i);
    match node.operator.name {
        which if has_matrix(which) => {
            let parts = weights.parts(node)?;
            corrupt(weighted::build(which, parts, weights.resident, ints, floats))
        }
        "affine" | "layer_norm" | "group_norm" => {
            let (first, second) = (weights.vector(name(0))?, weights.vector(name(1))?);
            corrupt(match node.operator.name {
                "affine" => elementwise::build_affine(first, second, ints, floats),
                which => normalization::build_norm(which, first, second, ints, floats),
            })
        }
        which => {
            let builders = [
                elementwise::build,
                pooling::build,
                shaping::build,
                reduction::build,
                resampling::build,
                normalization::build,
                dense::build,
            ];
            let built = builders.iter().find_map(|build| build(which, ints, floats));
            corrupt(
                built.unwrap_or_else(|| {
                    Err(Error::invalid(format!("no operator is called {which:?}")))
                }),
            )
        }
    }
}

/// The name of weight `i` of a node, empty where it has none.
fn weight(node: &Node, i: usize) -> &str {
    node.weights.get(i).map_or("", String::as_str)
}

/// Whether the first weight of operator `name` is a matrix.
fn has_matrix(name: &str) -> bool {
    matches!(name, "conv" | "conv_transpose" | "linear" | "embedding")
}

/// The weights of a container, each read once.
struct Weights<'a> {
    reader: &'a Reader,
    resident: Resident,
    /// Matrices that no node has taken yet; what is wrong with one is said with the first that does.
    read: HashMap<&'a str, Result<CompressedMatrix>>,
    matrices: HashMap<&'a str, CompressedMatrix>,
    vectors: HashMap<&'a str, (Vec<usize>, Array<f32>)>,
    nbytes: usize,
}

impl<'a> Weights<'a> {
    /// The tensor that `name` stands for, by its first name.
    fn first_name(&self, name: &str) -> Result<&'a str> {
        let entry = self.reader.entry(name).map_err(|e| Error::corrupt(e.to_string()))?;
        Ok(entry.alias_of.unwrap_or_else(|| self.reader.name(name)))
    }

    /// Reads all matrices of `graph`, those that do not go on from each other side by side.
    fn read_matrices(&mut self, graph: &Graph, threads: usize) -> Result<()> {
        let nodes = graph.nodes().iter().filter(|node| has_matrix(node.operator.name));
        let names = nodes.filter_map(|node| self.first_name(weight(node, 0)).ok());
        let mut names: Vec<&'a str> = names.collect();
        names.sort_unstable();
        names.dedup();
        let products = graph
            .nodes()
            .iter()
            .filter(|node| has_matrix(node.operator.name) && node.operator.name != "embedding");
        let multiplied: HashSet<&str> =
            products.filter_map(|node| self.first_name(weight(node, 0)).ok()).collect();
        let (reader, resident) = (self.reader, self.resident);
        let make = |place: usize, tensor| {
            held(reader, names[place], tensor, resident, multiplied.contains(names[place]))
        };
        let matrices = reader.get_each(&names, threads, make)?;
        self.read = names.into_iter().zip(matrices).collect();
        Ok(())
    }

    /// The matrix of a node, and its bias, scale and shift.
    fn parts(&mut self, node: &Node) -> Result<weighted::Parts> {
        let matrix = self.matrix(weight(node, 0))?;
        let mut vector = |i: usize| self.vector(weight(node, i));
        Ok((matrix, [vector(1)?, vector(2)?, vector(3)?]))
    }

    /// Node `number` with the embedding before it, and where that and what is between them are; none
    /// where it is something else, or that does not pay.
    fn letters(
        &mut self,
        graph: &Graph,
        readers: &[usize],
        number: usize,
    ) -> Result<Option<(Letters, [usize; 2])>> {
        let node = &graph.nodes()[number];
        let before = match self.resident {
            Resident::Compressed => None,
            _ => letters::before(graph, readers, number),
        };
        let Some(before) = before else { return Ok(None) };
        let mut made = || {
            let parts = self.parts(node)?;
            let name = node.operator.name;
            let layer =
                corrupt(weighted::layer(name, parts, self.resident, &node.ints, &node.floats))?;
            let embedding = self.matrix(weight(&graph.nodes()[before[0]], 0))?;
            Letters::new(layer, &embedding)
        };
        let made = made().map_err(|e| within(node, e))?;
        Ok(made.map(|letters| (letters, before)))
    }

    /// The matrix `name`, held as asked for.
    fn matrix(&mut self, name: &str) -> Result<CompressedMatrix> {
        let name = self.first_name(name)?;
        if let Some(matrix) = self.matrices.get(name) {
            return Ok(matrix.clone());
        }
        let matrix = self.read.remove(name).expect("each matrix of the graph was read")?;
        self.nbytes += matrix.nbytes();
        self.matrices.insert(name, matrix.clone());
        Ok(matrix)
    }

    /// The plain numbers `name`, none for an empty name.
    fn vector(&mut self, name: &str) -> Result<Option<Array<f32>>> {
        if name.is_empty() {
            return Ok(None);
        }
        let name = self.first_name(name)?;
        if !self.vectors.contains_key(name) {
            let vector = numbers(self.reader, name, self.reader.get(name)?)?;
            self.nbytes += vector.1.as_bytes().len();
            self.vectors.insert(name, vector);
        }
        Ok(self.vectors.get(name).map(|(_, numbers)| numbers.clone()))
    }

    /// The tensor `name` as a value: numbers, or ids; a compressed one as dense numbers.
    fn constant(&mut self, name: &str) -> Result<Constant> {
        let name = self.first_name(name)?;
        let dims = dims(self.reader, name)?;
        let elements = match (self.reader.get(name)?, self.reader.entry(name)?.dtype) {
            (Tensor::Matrix(matrix), _) => {
                let numbers = matrix.decompress(1)?;
                self.nbytes += numbers.len() * 4;
                Stored::Float32(numbers.into())
            }
            (Tensor::Array(_), "float32") => {
                Stored::Float32(self.vector(name)?.unwrap_or_else(|| Vec::new().into()))
            }
            (Tensor::Array(bytes), "int64") => {
                self.nbytes += bytes.len();
                let ids = bytes.as_slice().chunks_exact(8);
                Stored::Int64(
                    ids.map(|b| {
                        i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
                    })
                    .collect(),
                )
            }
            (_, dtype) => {
                return Err(Error::corrupt(format!(
                    "{name}: {dtype}, expected float32 or int64 elements"
                )));
            }
        };
        Ok(Constant { dims, elements })
    }
}

/// The tensor `name` as a matrix, held as asked for; rows alone are taken of one that is not
/// multiplied.
fn held(
    reader: &Reader,
    name: &str,
    tensor: Tensor,
    resident: Resident,
    is_multiplied: bool,
) -> Result<CompressedMatrix> {
    let taps = if is_multiplied { reader.entry(name)?.taps() } else { Some(1) };
    let dense = Request { layout: Some(layout::by_name("dense")?), ..Request::default() };
    let fast = Request { goal: Goal::Speed, taps, ..Request::default() };
    match tensor {
        Tensor::Matrix(matrix) => match resident {
            Resident::Compressed => matrix.for_products(taps),
            Resident::Cached => matrix.to(&fast),
            Resident::Dense => matrix.to(&dense),
        },
        Tensor::Array(_) => {
            let (dims, numbers) = numbers(reader, name, tensor)?;
            let nrows = dims.first().copied().unwrap_or(1);
            let ncols = dims.iter().skip(1).product();
            let shape = Shape::new(nrows, ncols)?;
            let request = if resident == Resident::Cached { fast } else { dense };
            CompressedMatrix::compress(numbers.as_slice(), shape, &request)
        }
    }
}

/// The dimensions of the tensor `name`.
fn dims(reader: &Reader, name: &str) -> Result<Vec<usize>> {
    let dims = reader.entry(name)?.dims.iter().map(|&dim| usize::try_from(dim));
    dims.collect::<std::result::Result<_, _>>().map_err(|_| {
        Error::corrupt(format!("{name}: a dimension over {}, expected less", usize::MAX))
    })
}

/// The plain numbers that the tensor `name` is, and their dimensions.
fn numbers(reader: &Reader, name: &str, tensor: Tensor) -> Result<(Vec<usize>, Array<f32>)> {
    let dtype = reader.entry(name)?.dtype;
    let (Tensor::Array(bytes), "float32") = (tensor, dtype) else {
        return Err(Error::corrupt(format!("{name}: {dtype}, expected plain float32 numbers")));
    };
    Ok((dims(reader, name)?, floats(&bytes)))
}

/// Little-endian bytes as numbers.
fn floats(bytes: &Array<u8>) -> Array<f32> {
    let numbers: Vec<f32> = bytes
        .as_slice()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    numbers.into()
}
