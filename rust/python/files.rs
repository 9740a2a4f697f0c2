//! Writing and reading containers.

use super::arguments::{request, threads};
use super::matrix::PyMatrix;
use super::network::{GraphTuple, to_graph, to_tuple};
use super::{interruptible, released, to_python};
use crate::container::{CodedArray, Dtype, Limits, Reader as Container, Stored, Tensor, Writer};
use crate::error::Result;
use crate::matrix::Request;
use crate::network::Graph;
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

/// The elements of a plain tensor, coded losslessly; immutable.
#[pyclass(frozen, name = "CodedArray", module = "tersenet._core")]
pub(super) struct PyCodedArray(CodedArray);

#[pymethods]
impl PyCodedArray {
    #[staticmethod]
    fn encode(py: Python<'_>, data: PyBackedBytes, dtype: &str) -> PyResult<Option<Self>> {
        let coded = interruptible(py, || CodedArray::encode(&data, Dtype::by_name(dtype)?))?;
        Ok(coded.map(Self))
    }

    fn decode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        PyBytes::new_with(py, self.0.dense_nbytes() as usize, |out| {
            interruptible(py, || self.0.decode_into(out))
        })
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.as_bytes().len()
    }
}

#[derive(FromPyObject)]
pub(super) enum Value<'py> {
    Matrix(Bound<'py, PyMatrix>),
    Coded(Bound<'py, PyCodedArray>),
    Array(PyBackedBytes),
}

/// A tensor to be written: name, dtype, shape, value.
pub(super) type Named<'py> = (String, String, Vec<u64>, Value<'py>);

/// Writes a container beside `path`, syncs it, renames it; returns its size in bytes.
#[pyfunction]
#[pyo3(signature = (path, tensors, aliases, metadata, graph=None, *, for_size=false))]
pub(super) fn write(
    py: Python<'_>,
    path: PathBuf,
    tensors: Vec<Named<'_>>,
    aliases: Vec<(String, String)>,
    metadata: BTreeMap<String, String>,
    graph: Option<GraphTuple>,
    for_size: bool,
) -> PyResult<u64> {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, value)| {
            let stored = match value {
                Value::Matrix(matrix) => Stored::Matrix(&matrix.get().0),
                Value::Coded(array) => Stored::Coded(&array.get().0),
                Value::Array(bytes) => Stored::Array(bytes),
            };
            (name, dtype, shape, stored)
        })
        .collect();
    interruptible(py, || {
        let mut writer = Writer::new(metadata)?;
        for (name, dtype, shape, stored) in tensors {
            writer.add(name, Dtype::by_name(dtype)?, shape, stored)?;
        }
        for (name, target) in &aliases {
            writer.add_alias(name, target)?;
        }
        if for_size {
            writer.for_size();
        }
        if let Some(graph) = graph {
            writer.set_graph(to_graph(graph)?.to_bytes());
        }
        writer.save(&path)
    })
}

/// A tensor as Python takes it.
fn given(py: Python<'_>, tensor: Tensor) -> PyResult<Bound<'_, PyAny>> {
    match tensor {
        Tensor::Matrix(matrix) => Ok(Bound::new(py, PyMatrix(matrix))?.into_any()),
        Tensor::Array(array) => Ok(PyBytes::new(py, array.as_slice()).into_any()),
    }
}

/// An open `.terse` file: a checked header, and tensors read when asked for.
#[pyclass(frozen, module = "tersenet._core")]
pub(super) struct Reader(Container);

#[pymethods]
impl Reader {
    #[new]
    #[pyo3(signature = (path, mmap=false, *, max_header_nbytes, max_tensor_nbytes, max_total_nbytes, max_ratio, max_tensors))]
    #[allow(clippy::too_many_arguments)] // As Python names them.
    fn new(
        py: Python<'_>,
        path: PathBuf,
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
        let open = if mmap { Container::map } else { Container::open };
        released(py, || open(&path, &limits)).map(Self)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().collect()
    }

    fn entry<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let entry = self.0.entry(name).map_err(|e| to_python(py, &e))?;
        let dict = PyDict::new(py);
        dict.set_item("kind", if entry.matrix.is_some() { "matrix" } else { "array" })?;
        dict.set_item("dtype", entry.dtype)?;
        dict.set_item("shape", PyTuple::new(py, entry.dims)?)?;
        dict.set_item("nbytes", entry.nbytes)?;
        if let Some(target) = entry.alias_of {
            dict.set_item("alias_of", target)?;
        }
        if let Some(matrix) = entry.matrix {
            dict.set_item("layout", matrix.layout.name)?;
            dict.set_item("coder", matrix.coder.name())?;
            dict.set_item("nnz", matrix.nnz)?;
            if let Some(k) = matrix.k {
                dict.set_item("k", k)?;
            }
        }
        if let Some(coder) = entry.array_coder {
            dict.set_item("coder", coder)?;
        }
        Ok(dict)
    }

    fn get<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        given(py, interruptible(py, || self.0.get(name))?)
    }

    /// What each of `names` stands for, read side by side: matrices in the layout that is best for
    /// `goal`, if there is one, and then those among `resident` in one that is multiplied.
    fn get_each<'py>(
        &self,
        py: Python<'py>,
        names: Vec<PyBackedStr>,
        goal: Option<&str>,
        resident: HashSet<PyBackedStr>,
    ) -> PyResult<Bound<'py, PyList>> {
        let goal = goal.map(|goal| request("auto", "auto", goal, "coded", None)).transpose()?;
        let threads = threads(py, None)?;
        let tensors = interruptible(py, || {
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            let make = |place: usize, tensor| {
                let Tensor::Matrix(mut matrix) = tensor else { return Ok(tensor) };
                let taps = self.0.entry(names[place])?.taps();
                if let Some(goal) = goal {
                    matrix = matrix.to(&Request { taps, ..goal })?;
                }
                if resident.contains(names[place]) {
                    matrix = matrix.for_products(taps)?;
                }
                Ok(Tensor::Matrix(matrix))
            };
            self.0.get_each(&names, threads, make)?.into_iter().collect::<Result<Vec<_>>>()
        })?;
        let list = PyList::empty(py);
        for tensor in tensors {
            list.append(given(py, tensor)?)?;
        }
        Ok(list)
    }

    fn metadata(&self) -> HashMap<&str, &str> {
        self.0.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    fn graph(&self, py: Python<'_>) -> PyResult<Option<GraphTuple>> {
        let graph = self.0.graph().map(Graph::from_bytes).transpose();
        Ok(graph.map_err(|e| to_python(py, &e))?.map(|graph| to_tuple(&graph)))
    }

    #[getter]
    fn has_graph(&self) -> bool {
        self.0.graph().is_some()
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        let threads = threads(py, None)?;
        interruptible(py, || self.0.verify(threads))
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes()
    }
}
