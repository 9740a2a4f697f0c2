//! A network's operators in the order they run, and their bytes; every field as FORMAT.md says.
//!
//! ```text
//!   values:  inputs 0 … n−1, then what each node makes, in order
//!   bytes:   version │ inputs: name, dtype, shape │ nodes: operator, name, values, weights, ints,
//!            floats │ outputs, is_tuple
//! ```
//!
//! A node names a value by how many values back it is, mostly 1, and a weight by what follows the
//! node's own name, so that a small network takes some 200 bytes. Trailing absent weights and
//! zero floats are not stored. What a weight means, and whether shapes fit, is checked when a
//! network is loaded and when it is first run on a shape; here it is what [`OPERATORS`] says.
//!
//! Parsing is one pass: counts are checked against the bytes that are left, and no string is longer
//! than twice the bytes.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation
)]

use crate::bits;
use crate::cursor::Cursor;
use crate::error::{Error, ErrorKind, Result};

/// The version of a graph's bytes that is written, and the newest that is read.
pub const VERSION: u8 = 1;
/// Dimensions of a value, at most.
pub const MAX_RANK: usize = 64;
/// Values that one node takes, at most.
const MAX_INPUTS: usize = 1 << 16;

/// What an operator takes.
#[derive(Debug, PartialEq, Eq)]
pub struct OperatorSpec {
    /// The name.
    pub name: &'static str,
    /// The number in files.
    pub id: u8,
    /// Values it takes: at least, at most.
    pub inputs: (usize, usize),
    /// Weights that it must have, that it may have.
    pub weights: (usize, usize),
    /// Ints: at least, at most.
    pub ints: (usize, usize),
    /// Floats.
    pub floats: usize,
}

const fn operator(
    id: u8,
    name: &'static str,
    inputs: (usize, usize),
    weights: (usize, usize),
    ints: (usize, usize),
    floats: usize,
) -> OperatorSpec {
    OperatorSpec { name, id, inputs, weights, ints, floats }
}

/// Every operator.
pub const OPERATORS: &[OperatorSpec] = &[
    operator(0, "conv", (1, 1), (1, 4), (12, 12), 2),
    operator(1, "conv_transpose", (1, 1), (1, 4), (12, 12), 2),
    operator(2, "linear", (1, 1), (1, 4), (1, 1), 2),
    operator(3, "embedding", (1, 1), (1, 1), (0, 0), 0),
    operator(4, "affine", (1, 1), (0, 2), (1, 1), 2),
    operator(5, "unary", (1, 1), (0, 0), (1, 1), 2),
    operator(6, "binary", (2, 2), (0, 0), (2, 2), 2),
    operator(7, "binary_scalar", (1, 1), (0, 0), (3, 3), 3),
    operator(8, "constant", (0, 0), (1, 1), (0, 0), 0),
    operator(9, "max_pool", (1, 1), (0, 0), (9, 9), 0),
    operator(10, "avg_pool", (1, 1), (0, 0), (9, 9), 0),
    operator(11, "adaptive_avg_pool", (1, 1), (0, 0), (2, 2), 0),
    operator(12, "adaptive_max_pool", (1, 1), (0, 0), (2, 2), 0),
    operator(13, "concat", (1, MAX_INPUTS), (0, 0), (1, 1), 0),
    operator(14, "slice", (1, 1), (0, 0), (4, 4), 0),
    operator(15, "reshape", (1, 1), (0, 0), (0, MAX_RANK), 0),
    operator(16, "permute", (1, 1), (0, 0), (0, MAX_RANK), 0),
    operator(17, "expand", (1, 1), (0, 0), (0, MAX_RANK), 0),
    operator(18, "reduce", (1, 1), (0, 0), (2, 2 + MAX_RANK), 0),
    operator(19, "pad", (1, 1), (0, 0), (1, 1 + 2 * MAX_RANK), 1),
    operator(20, "upsample", (1, 1), (0, 0), (4, 4), 2),
    operator(21, "layer_norm", (1, 1), (0, 2), (1, 1), 1),
    operator(22, "group_norm", (1, 1), (0, 2), (1, 1), 1),
    operator(23, "softmax", (1, 1), (0, 0), (1, 1), 0),
    operator(24, "log_softmax", (1, 1), (0, 0), (1, 1), 0),
    operator(25, "matmul", (2, 2), (0, 0), (1, 1), 2),
    operator(26, "attention", (3, 4), (0, 0), (2, 2), 1),
];

/// Finds an operator by its name.
///
/// # Errors
/// `InvalidArgument` that lists the names there are.
pub fn operator_by_name(name: &str) -> Result<&'static OperatorSpec> {
    OPERATORS.iter().find(|spec| spec.name == name).ok_or_else(|| {
        let names: Vec<&str> = OPERATORS.iter().map(|spec| spec.name).collect();
        Error::invalid(format!("operator: {name:?}, expected one of {}", names.join(", ")))
    })
}

/// The type of an input's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    /// Numbers.
    Float32,
    /// Rows of an embedding.
    Int64,
}

impl InputType {
    /// NumPy's and torch's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Int64 => "int64",
        }
    }

    /// Finds a type by its name.
    ///
    /// # Errors
    /// `InvalidArgument` for another name.
    pub fn by_name(name: &str) -> Result<Self> {
        match name {
            "float32" => Ok(Self::Float32),
            "int64" => Ok(Self::Int64),
            _ => Err(Error::invalid(format!(
                "input: dtype {name:?}, expected \"float32\" or \"int64\""
            ))),
        }
    }
}

/// What a network takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The name.
    pub name: String,
    /// The type of its elements.
    pub dtype: InputType,
    /// The dimensions; −m stands for m times the batch.
    pub shape: Vec<i64>,
}

/// One operator with what it works on.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The operator.
    pub operator: &'static OperatorSpec,
    /// The values it takes.
    pub inputs: Vec<usize>,
    /// Names of tensors beside the graph, as many as the operator may have; empty where absent.
    pub weights: Vec<String>,
    /// The operator's integers.
    pub ints: Vec<i64>,
    /// The operator's numbers, as many as it has.
    pub floats: Vec<f32>,
    /// The place in the model, for errors.
    pub name: String,
}

impl Node {
    /// How errors call the node.
    pub fn title(&self) -> String {
        format!("{} ({})", self.name, self.operator.name)
    }
}

/// A network: what it takes, its operators in the order they run, what it gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    inputs: Vec<Input>,
    nodes: Vec<Node>,
    outputs: Vec<usize>,
    is_tuple: bool,
}

impl Graph {
    /// A graph whose nodes have what their operators take, and take only earlier values.
    ///
    /// Absent weights and zero floats at the end of a node's may be left out.
    ///
    /// # Errors
    /// `InvalidArgument` that names the node and what is wrong with it.
    pub fn new(
        inputs: Vec<Input>,
        mut nodes: Vec<Node>,
        outputs: Vec<usize>,
        is_tuple: bool,
    ) -> Result<Self> {
        for input in &inputs {
            check_text(&input.name)?;
            if input.shape.len() > MAX_RANK {
                return Err(Error::invalid(format!(
                    "input {}: {} dimensions, expected at most {MAX_RANK}",
                    input.name,
                    input.shape.len()
                )));
            }
        }
        for (number, node) in nodes.iter_mut().enumerate() {
            check_node(node, inputs.len().saturating_add(number))
                .map_err(|e| e.within(&format!("node {number}, {}", node.title())))?;
        }
        let count = inputs.len().saturating_add(nodes.len());
        if let Some(value) = outputs.iter().find(|&&value| value >= count) {
            return Err(Error::invalid(format!(
                "outputs: value {value}, expected under {count}, the number of values"
            )));
        }
        if outputs.is_empty() || (!is_tuple && outputs.len() > 1) {
            return Err(Error::invalid(format!(
                "outputs: {} of them, expected {}",
                outputs.len(),
                if is_tuple { "at least one" } else { "exactly one without a tuple" }
            )));
        }
        Ok(Self { inputs, nodes, outputs, is_tuple })
    }

    /// What the network takes.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The operators, in the order they run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Lets node `to` take what node `from`, which is before it, takes.
    pub(super) fn redirect(&mut self, to: usize, from: usize) {
        let inputs = self.nodes.get(from).map(|node| node.inputs.clone());
        if let (Some(inputs), Some(node)) = (inputs, self.nodes.get_mut(to)) {
            node.inputs = inputs;
        }
    }

    /// The values that the network gives.
    pub fn outputs(&self) -> &[usize] {
        &self.outputs
    }

    /// True when the model gives a tuple, false when it gives its only output by itself.
    pub fn is_tuple(&self) -> bool {
        self.is_tuple
    }

    /// The bytes that [`Graph::from_bytes`] reads.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_count(&mut out, self.inputs.len());
        for input in &self.inputs {
            put_text(&mut out, &input.name);
            out.push(u8::from(input.dtype == InputType::Int64));
            put_ints(&mut out, &input.shape);
        }
        put_count(&mut out, self.nodes.len());
        for (number, node) in self.nodes.iter().enumerate() {
            out.push(node.operator.id);
            put_text(&mut out, &node.name);
            put_count(&mut out, node.inputs.len());
            let values = self.inputs.len().saturating_add(number);
            for &input in &node.inputs {
                put_count(&mut out, values.saturating_sub(input));
            }
            let is_there = |weight: &String| !weight.is_empty();
            let weights = up_to_last(&node.weights, is_there);
            put_count(&mut out, weights.len());
            for weight in weights {
                let suffix = weight.strip_prefix(&node.name).filter(|_| !node.name.is_empty());
                let text = suffix.unwrap_or(weight);
                let is_suffix = u64::from(suffix.is_some());
                bits::put_varint(&mut out, (text.len() as u64) << 1 | is_suffix);
                out.extend_from_slice(text.as_bytes());
            }
            put_ints(&mut out, &node.ints);
            let floats = up_to_last(&node.floats, |float| float.to_bits() != 0);
            put_count(&mut out, floats.len());
            floats.iter().for_each(|float| out.extend_from_slice(&float.to_le_bytes()));
        }
        put_count(&mut out, self.outputs.len());
        self.outputs.iter().for_each(|&value| put_count(&mut out, value));
        out.push(u8::from(self.is_tuple));
        out
    }

    /// Reads and checks the bytes that [`Graph::to_bytes`] made.
    ///
    /// # Errors
    /// `Corrupt` or `UnsupportedVersion`, naming the field and the byte.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut cursor = Cursor::new("graph", bytes);
        let version = cursor.byte("version")?;
        if version != VERSION {
            return Err(newer(format!("version {version}, expected {VERSION}")));
        }
        let mut inputs = Vec::new();
        for _ in 0..cursor.count("inputs")? {
            let name = cursor.string("input name")?;
            let dtype = match cursor.byte("dtype")? {
                0 => InputType::Float32,
                1 => InputType::Int64,
                dtype => return Err(newer(format!("input of dtype {dtype}, expected 0 or 1"))),
            };
            let shape = take_ints(&mut cursor, "dimensions", MAX_RANK)?;
            inputs.push(Input { name, dtype, shape });
        }
        let mut nodes: Vec<Node> = Vec::new();
        for _ in 0..cursor.count("nodes")? {
            let values = inputs.len().saturating_add(nodes.len());
            nodes.push(take_node(&mut cursor, values)?);
        }
        let mut outputs = Vec::new();
        for _ in 0..cursor.count("outputs")? {
            outputs.push(cursor.size("output")?);
        }
        let is_tuple = match cursor.byte("is_tuple")? {
            0 => false,
            1 => true,
            other => return Err(cursor.corrupt(format_args!("is_tuple {other}, expected 0 or 1"))),
        };
        if !cursor.is_empty() {
            return Err(cursor.corrupt(format_args!("{} bytes after its end", cursor.left())));
        }
        Self::new(inputs, nodes, outputs, is_tuple)
            .map_err(|e| Error::corrupt(e.to_string()).within("graph"))
    }
}

fn check_text(text: &str) -> Result<()> {
    match text.contains('\0') {
        true => Err(Error::invalid(format!("name {text:?} holds a NUL, expected none"))),
        false => Ok(()),
    }
}

/// Checks `node`, before which there are `values` values, and fills up its weights and floats.
fn check_node(node: &mut Node, values: usize) -> Result<()> {
    let spec = node.operator;
    check_text(&node.name)?;
    node.weights.iter().try_for_each(|weight| check_text(weight))?;
    let counts = [
        ("inputs", node.inputs.len(), spec.inputs),
        ("weights", node.weights.len(), spec.weights),
        ("ints", node.ints.len(), spec.ints),
        ("floats", node.floats.len(), (0, spec.floats)),
    ];
    for (what, found, (least, most)) in counts {
        if !(least..=most).contains(&found) {
            return Err(Error::invalid(format!("{found} {what}, expected {least} to {most}")));
        }
    }
    if let Some(input) = node.inputs.iter().find(|&&input| input >= values) {
        return Err(Error::invalid(format!(
            "takes value {input}, expected one of the {values} before it"
        )));
    }
    if node.weights.iter().take(spec.weights.0).any(String::is_empty) {
        return Err(Error::invalid(format!(
            "an absent weight, expected the first {} to be there",
            spec.weights.0
        )));
    }
    node.weights.resize(spec.weights.1, String::new());
    node.floats.resize(spec.floats, 0.0);
    Ok(())
}

/// The items up to the last one that counts.
fn up_to_last<T>(items: &[T], counts: impl Fn(&T) -> bool) -> &[T] {
    let len = items.iter().rposition(counts).map_or(0, |last| last.saturating_add(1));
    items.get(..len).unwrap_or(items)
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    bits::put_varint(out, count as u64);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_ints(out: &mut Vec<u8>, ints: &[i64]) {
    put_count(out, ints.len());
    // Zigzag: 0, −1, 1, −2, … so that small ones of either sign take one byte.
    ints.iter().for_each(|&int| bits::put_varint(out, (int << 1 ^ int >> 63).cast_unsigned()));
}

fn newer(what: String) -> Error {
    Error::new(ErrorKind::UnsupportedVersion, format!("graph: {what}: a newer tersenet reads it"))
}

fn take_ints(cursor: &mut Cursor<'_>, what: &str, most: usize) -> Result<Vec<i64>> {
    let count = cursor.count(what)?;
    if count > most {
        return Err(cursor.corrupt(format_args!("{count} {what}, expected at most {most}")));
    }
    let mut ints = Vec::with_capacity(count);
    for _ in 0..count {
        let zigzag = cursor.varint(what)?;
        ints.push((zigzag >> 1).cast_signed() ^ (zigzag & 1).cast_signed().wrapping_neg());
    }
    Ok(ints)
}

fn take_node(cursor: &mut Cursor<'_>, values: usize) -> Result<Node> {
    let id = cursor.byte("operator")?;
    let Some(operator) = OPERATORS.iter().find(|spec| spec.id == id) else {
        return Err(newer(format!("operator {id}, which version {VERSION} does not have")));
    };
    let name = cursor.string("node name")?;
    let mut inputs = Vec::new();
    for _ in 0..cursor.count("inputs")?.min(MAX_INPUTS.saturating_add(1)) {
        let back = cursor.size("input")?;
        let input = values.checked_sub(back).ok_or_else(|| {
            cursor.corrupt(format_args!("an input {back} values back, but there are {values}"))
        })?;
        inputs.push(input);
    }
    let count = cursor.count("weights")?;
    if count > operator.weights.1 {
        return Err(cursor.corrupt(format_args!(
            "{name}: {count} weights, expected at most {}",
            operator.weights.1
        )));
    }
    let mut weights = Vec::with_capacity(count);
    for _ in 0..count {
        let field = cursor.varint("weight")?;
        let text = cursor.text(field >> 1, "weight")?;
        let prefix = if field & 1 == 1 { name.as_str() } else { "" };
        weights.push([prefix, text].concat());
    }
    let ints = take_ints(cursor, "ints", operator.ints.1)?;
    let mut floats = Vec::new();
    for _ in 0..cursor.count("floats")?.min(operator.floats.saturating_add(1)) {
        let bytes = cursor.take(4, "float")?;
        floats.push(f32::from_le_bytes(bytes.try_into().unwrap_or_default()));
    }
    Ok(Node { operator, inputs, weights, ints, floats, name })
}
