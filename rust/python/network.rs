//! `Network`, and graphs as nested tuples.

use super::arguments::array;
use super::{by_size, interruptible, invalid, released};
use crate::container::{Limits, Reader};
use crate::network::{
    Argument, Elements, Graph, Input, InputType, Network, Node, Output, Resident, operator_by_name,
};
use crate::{Error, Result};
use numpy::{
    PyArray1, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::PyList;
use std::path::PathBuf;

/// (name, dtype, shape).
type InputTuple = (String, String, Vec<i64>);
/// (op, inputs, weights, ints, floats, name).
type NodeTuple = (String, Vec<usize>, Vec<String>, Vec<i64>, Vec<f32>, String);
/// (inputs, nodes, outputs, is_tuple).
pub(super) type GraphTuple = (Vec<InputTuple>, Vec<NodeTuple>, Vec<usize>, bool);

/// The graph that nested tuples stand for.
pub(super) fn to_graph((inputs, nodes, outputs, is_tuple): GraphTuple) -> Result<Graph> {
    let inputs = inputs
        .into_iter()
        .map(|(name, dtype, shape)| Ok(Input { name, dtype: InputType::by_name(&dtype)?, shape }))
        .collect::<Result<Vec<_>>>()?;
    let nodes = nodes
        .into_iter()
        .map(|(operator, inputs, weights, ints, floats, name)| {
            let operator = operator_by_name(&operator).map_err(|e| e.within(&name))?;
            Ok(Node { operator, inputs, weights, ints, floats, name })
        })
        .collect::<Result<Vec<_>>>()?;
    Graph::new(inputs, nodes, outputs, is_tuple)
}

/// `graph` as nested tuples.
pub(super) fn to_tuple(graph: &Graph) -> GraphTuple {
    let input = |i: &Input| (i.name.clone(), i.dtype.name().to_owned(), i.shape.clone());
    let node = |n: &Node| {
        let (inputs, weights) = (n.inputs.clone(), n.weights.clone());
        let operator = n.operator.name.to_owned();
        (operator, inputs, weights, n.ints.clone(), n.floats.clone(), n.name.clone())
    };
    (
        graph.inputs().iter().map(input).collect(),
        graph.nodes().iter().map(node).collect(),
        graph.outputs().to_vec(),
        graph.is_tuple(),
    )
}

/// An input of a run, held while the GIL is not.
enum Given<'py> {
    Float32(PyReadonlyArrayDyn<'py, f32>),
    Int64(PyReadonlyArrayDyn<'py, i64>),
}

impl Given<'_> {
    fn argument(&self) -> PyResult<Argument<'_>> {
        Ok(match self {
            Self::Float32(array) => {
                Argument { dims: array.shape(), elements: Elements::Float32(array.as_slice()?) }
            }
            Self::Int64(array) => {
                Argument { dims: array.shape(), elements: Elements::Int64(array.as_slice()?) }
            }
        })
    }
}

/// A network loaded from a file, run without torch; immutable, and fit for many threads at once.
#[pyclass(frozen, module = "tersenet._core", name = "Network")]
pub(super) struct PyNetwork(Network);

#[pymethods]
impl PyNetwork {
    /// Loads the network that the file at `path` holds.
    #[staticmethod]
    #[pyo3(signature = (path, resident="cached", *, mmap=false, max_header_nbytes, max_tensor_nbytes, max_total_nbytes, max_ratio, max_tensors))]
    #[allow(clippy::too_many_arguments)] // As Python names them.
    fn load(
        py: Python<'_>,
        path: PathBuf,
        resident: &str,
        mmap: bool,
        max_header_nbytes: u64,
        max_tensor_nbytes: u64,
        max_total_nbytes: u64,
        max_ratio: u64,
        max_tensors: u64,
    ) -> PyResult<Self> {
        let limits = Limits {
            header_nbytes: max_header_nbytes,
            tensor_nbytes: max_tensor_nbytes,
            total_nbytes: max_total_nbytes,
            ratio: max_ratio,
            tensors: max_tensors,
        };
        let open = if mmap { Reader::map } else { Reader::open };
        let threads = super::arguments::threads(py, None)?;
        interruptible(py, || {
            let resident = Resident::by_name(resident)?;
            let network = open(&path, &limits)
                .and_then(|reader| Network::load(&reader, resident, &limits, threads));
            network.map_err(|e| named(&path, e))
        })
        .map(Self)
    }

    /// Runs the network on one array for each input; a list with one array for each output.
    #[pyo3(signature = (inputs, threads=None, out=None))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        inputs: Vec<Bound<'py, PyAny>>,
        threads: Option<i64>,
        out: Option<Vec<Bound<'py, PyArrayDyn<f32>>>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let threads = super::arguments::threads(py, threads)?;
        let given = self.take(&inputs)?;
        let arguments = given.iter().map(Given::argument).collect::<PyResult<Vec<_>>>()?;
        let numbers = arguments.iter().map(|given| given.dims.iter().product::<usize>()).sum();
        let Some(out) = out else {
            let outputs = by_size(py, numbers, || self.0.run(&arguments, threads))?;
            let arrays = outputs
                .into_iter()
                .map(|Output { dims, numbers }| PyArray1::from_vec(py, numbers).reshape(dims));
            return PyList::new(py, arrays.collect::<PyResult<Vec<_>>>()?);
        };
        let dims = released(py, || self.0.output_dims(&arguments))?;
        let found: Vec<&[usize]> = out.iter().map(|array| array.shape()).collect();
        if found != dims.iter().map(Vec::as_slice).collect::<Vec<_>>() {
            return Err(invalid(format!("out: shapes {found:?}, expected {dims:?}")));
        }
        // Also of an array in Fortran's order there is a slice, which is in another order.
        if let Some(number) = out.iter().position(|array| !array.is_c_contiguous()) {
            let message = format!("out: array {number} is strided, expected C-contiguous ones");
            return Err(invalid(message));
        }
        let mut locked = out
            .iter()
            .map(|array| array.try_readwrite().map_err(|e| invalid(format!("out: {e}"))))
            .collect::<PyResult<Vec<PyReadwriteArrayDyn<'_, f32>>>>()?;
        let mut into = locked
            .iter_mut()
            .map(|array| array.as_slice_mut().map_err(|e| invalid(format!("out: {e}"))))
            .collect::<PyResult<Vec<&mut [f32]>>>()?;
        by_size(py, numbers, || self.0.run_into(&arguments, &mut into, threads))?;
        drop(locked);
        PyList::new(py, out)
    }

    /// (name, dtype, shape) of each input; −m stands for m times the batch.
    #[getter]
    fn inputs(&self) -> Vec<(&str, &str, Vec<i64>)> {
        let inputs = self.0.graph().inputs().iter();
        inputs.map(|i| (i.name.as_str(), i.dtype.name(), i.shape.clone())).collect()
    }

    /// (number of outputs, whether they are a tuple).
    #[getter]
    fn outputs(&self) -> (usize, bool) {
        (self.0.graph().outputs().len(), self.0.graph().is_tuple())
    }

    /// The bytes of all weights as they are held.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    /// (place, layout, nbytes) of each weighted layer.
    fn layers(&self) -> Vec<(&str, &str, usize)> {
        self.0.layers().map(|layer| (layer.place, layer.layout, layer.nbytes)).collect()
    }

    fn __repr__(&self) -> String {
        format!("Network({} nodes, nbytes={})", self.0.graph().nodes().len(), self.0.nbytes())
    }
}

impl PyNetwork {
    /// The arrays of `inputs`, in the types that the network takes.
    fn take<'py>(&self, inputs: &[Bound<'py, PyAny>]) -> PyResult<Vec<Given<'py>>> {
        let expected = self.0.graph().inputs();
        if inputs.len() != expected.len() {
            return Err(invalid(format!(
                "inputs: {} of them, expected {}",
                inputs.len(),
                expected.len()
            )));
        }
        let take = |(given, input): (&Bound<'py, PyAny>, &Input)| {
            let (name, rank) = (format!("input {}", input.name), [input.shape.len()]);
            Ok(match input.dtype {
                InputType::Float32 => {
                    Given::Float32(array::<f32>(given, &name, "float32", &rank, false)?)
                }
                InputType::Int64 => Given::Int64(array::<i64>(given, &name, "int64", &rank, true)?),
            })
        };
        inputs.iter().zip(expected).map(take).collect()
    }
}

/// Puts the path before an error that does not name it yet.
fn named(path: &std::path::Path, error: Error) -> Error {
    let place = path.display().to_string();
    if error.to_string().contains(&place) { error } else { error.within(&place) }
}
