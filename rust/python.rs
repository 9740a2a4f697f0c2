//! The binding: converts arguments, releases the GIL, maps errors; no arithmetic, no policy.
#![allow(missing_docs)] // The documentation of the Python face is in _core.pyi.

use crate::array::Owner;
use crate::codebook::Codebook;
use crate::container::{self, Dtype, Limits, Reader as Container, Stored, Tensor, Writer};
use crate::entropy::Coder;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{Columns, Goal, LAYOUTS};
use crate::matrix::{CompressedMatrix as Matrix, Request};
use crate::rows::{Rows, Shape};
use crate::simd;
use numpy::{
    Element, PyArray1, PyArray2, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn,
    PyUntypedArrayMethods,
};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

/// Runs `work` without the GIL; an error or a panic of ours becomes a Python exception.
fn released<T: Send>(py: Python<'_>, work: impl Send + FnOnce() -> Result<T>) -> PyResult<T> {
    match py.detach(|| catch_unwind(AssertUnwindSafe(work))) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(to_python(py, &error)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
            Err(exception(py, "InternalError", format!("tersenet: {text}: please report this")))
        }
    }
}

fn exception(py: Python<'_>, class: &str, message: String) -> PyErr {
    let made = py.import("tersenet.errors").and_then(|m| m.getattr(class)?.call1((message,)));
    made.map_or_else(|error| error, PyErr::from_value)
}

fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    match error.kind() {
        ErrorKind::InvalidArgument => PyValueError::new_err(error.to_string()),
        ErrorKind::Io => match error.raw_os_error() {
            Some(number) => PyOSError::new_err((number, error.to_string())),
            None => PyOSError::new_err(error.to_string()),
        },
        _ => exception(py, "FormatError", error.to_string()),
    }
}

fn invalid(message: String) -> PyErr {
    PyValueError::new_err(message)
}

/// The number of threads asked for, or the lesser of torch's and what this process may use.
fn threads(py: Python<'_>, asked: Option<usize>) -> PyResult<usize> {
    match asked {
        Some(0) => Err(invalid("threads: 0, expected at least 1".into())),
        Some(threads) => Ok(threads),
        None => {
            let available = std::thread::available_parallelism().map_or(1, usize::from);
            let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
            match modules.get_item("torch")?.and_then(|t| t.getattr("get_num_threads").ok()) {
                Some(count) => Ok(available.min(count.call0()?.extract()?)),
                None => Ok(available),
            }
        }
    }
}

/// `value` as a C-contiguous array of `T` with `ndim` dimensions, copied only where it must be.
///
/// Types that `T` cannot represent exactly are refused when `is_exact`.
fn array<'py, T: Element>(
    value: &Bound<'py, PyAny>,
    name: &str,
    dtype: &str,
    ndims: &[usize],
    is_exact: bool,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    let numpy = value.py().import("numpy")?;
    let given = numpy.call_method1("asarray", (value,))?;
    if is_exact
        && !numpy.call_method1("can_cast", (given.getattr("dtype")?, dtype, "safe"))?.is_truthy()?
    {
        return Err(invalid(format!(
            "{name}: dtype {}, expected {dtype} (converting may change values: do it first)",
            given.getattr("dtype")?
        )));
    }
    let kwargs = PyDict::new(value.py());
    kwargs.set_item("dtype", dtype)?;
    kwargs.set_item("order", "C")?;
    let converted = numpy.call_method("asarray", (given,), Some(&kwargs))?;
    let converted = converted.cast_into::<PyArrayDyn<T>>()?;
    if !ndims.contains(&converted.ndim()) {
        return Err(invalid(format!(
            "{name}: shape {:?}, expected {} dimensions",
            converted.shape(),
            ndims.iter().map(usize::to_string).collect::<Vec<_>>().join(" or ")
        )));
    }
    Ok(converted.readonly())
}

fn slice<'a, T: Element>(array: &'a PyReadonlyArrayDyn<'_, T>) -> PyResult<&'a [T]> {
    Ok(array.as_slice()?)
}

fn matrix_array(
    py: Python<'_>,
    values: Vec<f32>,
    nrows: usize,
    ncols: usize,
) -> PyResult<Bound<'_, PyArray2<f32>>> {
    PyArray1::from_vec(py, values).reshape([nrows, ncols])
}

fn request(layout: &str, coder: &str, goal: &str, columns: &str) -> PyResult<Request> {
    let goal = match goal {
        "size" => Goal::Size,
        "speed" => Goal::Speed,
        _ => return Err(invalid(format!("goal: {goal:?}, expected \"size\" or \"speed\""))),
    };
    let columns = match columns {
        "coded" => Columns::Coded,
        "raw" => Columns::Raw,
        _ => return Err(invalid(format!("columns: {columns:?}, expected \"coded\" or \"raw\""))),
    };
    Request::parse(layout, coder, goal, columns).map_err(|e| invalid(e.to_string()))
}

#[pyclass(frozen, module = "tersenet._core", name = "Codebook")]
struct PyCodebook(Arc<Codebook>);

#[pymethods]
impl PyCodebook {
    #[new]
    fn new(values: &Bound<'_, PyAny>) -> PyResult<Self> {
        let values = array::<f32>(values, "codebook", "float32", &[1], true)?;
        let codebook =
            Codebook::new(slice(&values)?.to_vec()).map_err(|e| to_python(values.py(), &e))?;
        Ok(Self(Arc::new(codebook)))
    }

    #[getter]
    fn values<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f32>> {
        PyArray1::from_slice(py, self.0.values())
    }

    fn __len__(&self) -> usize {
        self.0.k()
    }

    fn __repr__(&self) -> String {
        format!("Codebook(k={})", self.0.k())
    }
}

#[pyclass(frozen, module = "tersenet._core", name = "CompressedMatrix")]
struct PyMatrix(Matrix);

#[pymethods]
impl PyMatrix {
    #[staticmethod]
    #[pyo3(signature = (weights, layout="auto", coder="auto", goal="size", *, columns="coded"))]
    fn compress(
        weights: &Bound<'_, PyAny>,
        layout: &str,
        coder: &str,
        goal: &str,
        columns: &str,
    ) -> PyResult<Self> {
        let py = weights.py();
        let request = request(layout, coder, goal, columns)?;
        let weights = array::<f32>(weights, "weights", "float32", &[2], true)?;
        let (rows, dense) = (weights.shape().to_vec(), slice(&weights)?);
        released(py, || Matrix::compress(dense, Shape::new(rows[0], rows[1])?, &request)).map(Self)
    }

    #[staticmethod]
    #[pyo3(signature = (symbols, codebook, mask, layout="auto", coder="auto", goal="size", *, columns="coded"))]
    fn from_symbols(
        symbols: &Bound<'_, PyAny>,
        codebook: &PyCodebook,
        mask: &Bound<'_, PyAny>,
        layout: &str,
        coder: &str,
        goal: &str,
        columns: &str,
    ) -> PyResult<Self> {
        let py = symbols.py();
        let request = request(layout, coder, goal, columns)?;
        let symbols = array::<u16>(symbols, "symbols", "uint16", &[2], true)?;
        let mask = array::<bool>(mask, "mask", "bool", &[2], true)?;
        if symbols.shape() != mask.shape() {
            return Err(invalid(format!(
                "mask: shape {:?}, expected the symbols' {:?}",
                mask.shape(),
                symbols.shape()
            )));
        }
        let shape = symbols.shape().to_vec();
        let (symbols, mask) = (slice(&symbols)?, slice(&mask)?);
        released(py, || {
            let shape = Shape::new(shape[0], shape[1])?;
            let rows = Rows::from_symbols(symbols, mask, codebook.0.clone(), shape)?;
            Matrix::from_rows(&rows, &request)
        })
        .map(Self)
    }

    #[staticmethod]
    fn from_bytes(data: &Bound<'_, PyBytes>) -> PyResult<Self> {
        let owner: Owner = Arc::new(PyBackedBytes::from(data.clone()));
        released(data.py(), || container::matrix_from_bytes(owner, &Limits::default())).map(Self)
    }

    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = released(py, || Ok(container::matrix_to_bytes(&self.0)))?;
        Ok(PyBytes::new(py, &bytes))
    }

    #[pyo3(signature = (threads=None))]
    fn decompress<'py>(
        &self,
        py: Python<'py>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let threads = self::threads(py, threads)?;
        let dense = released(py, || self.0.decompress(threads))?;
        matrix_array(py, dense, self.0.shape().nrows, self.0.shape().ncols)
    }

    fn rows<'py>(&self, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let py = ids.py();
        let nrows = self.0.shape().nrows;
        let ids = array::<i64>(ids, "rows", "int64", &[1], true)?;
        let ids = slice(&ids)?.iter().map(|&id| {
            usize::try_from(id)
                .map_err(|_| invalid(format!("rows: row {id}, expected in [0, {nrows})")))
        });
        let ids = ids.collect::<PyResult<Vec<usize>>>()?;
        let dense = released(py, || self.0.rows(&ids))?;
        matrix_array(py, dense, ids.len(), self.0.shape().ncols)
    }

    #[pyo3(signature = (x, threads=None))]
    fn matvec<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let py = x.py();
        let threads = self::threads(py, threads)?;
        let x = array::<f32>(x, "matvec: x", "float32", &[1], false)?;
        let x = slice(&x)?;
        Ok(PyArray1::from_vec(py, released(py, || self.0.matvec(x, threads))?))
    }

    #[pyo3(signature = (x, threads=None))]
    fn matmul<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let py = x.py();
        let threads = self::threads(py, threads)?;
        let x = batch(x, "matmul: x", self.0.shape().ncols)?;
        let (members, x) = (x.shape()[0], slice(&x)?);
        let y = released(py, || self.0.matmul(x, members, threads))?;
        matrix_array(py, y, members, self.0.shape().nrows)
    }

    #[pyo3(signature = (x, threads=None))]
    fn matmul_transposed<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let py = x.py();
        let threads = self::threads(py, threads)?;
        let x = batch(x, "matmul_transposed: x", self.0.shape().nrows)?;
        let (members, x) = (x.shape()[0], slice(&x)?);
        let y = released(py, || self.0.matmul_transposed(x, members, threads))?;
        matrix_array(py, y, members, self.0.shape().ncols)
    }

    #[pyo3(signature = (layout="auto", coder="auto", goal="size", *, columns="coded"))]
    fn to(
        &self,
        py: Python<'_>,
        layout: &str,
        coder: &str,
        goal: &str,
        columns: &str,
    ) -> PyResult<Self> {
        let request = request(layout, coder, goal, columns)?;
        released(py, || self.0.to(&request)).map(Self)
    }

    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.shape().nrows, self.0.shape().ncols)
    }

    #[getter]
    fn nnz(&self) -> usize {
        self.0.nnz()
    }

    #[getter]
    fn codebook<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        Ok(PyArray1::from_vec(py, released(py, || self.0.distinct_values())?))
    }

    #[getter]
    fn layout(&self) -> &'static str {
        self.0.layout().name
    }

    #[getter]
    fn coder(&self) -> &'static str {
        self.0.coder().name()
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    #[getter]
    fn bits_per_weight(&self) -> f64 {
        self.0.bits_per_weight()
    }

    #[getter]
    fn occupancy(&self) -> f64 {
        self.0.bits_per_weight() / 32.0
    }

    fn sections(&self) -> Sections {
        Sections(self.0.sections())
    }

    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<Self>().is_ok_and(|other| {
            let (a, b) = (&self.0, &other.get().0);
            let header = |matrix: &Matrix| {
                let mut header = Vec::new();
                matrix.write_header(&mut header);
                header
            };
            let codebook = |matrix: &Matrix| matrix.codebook().map(|c| c.as_bytes().to_vec());
            header(a) == header(b)
                && codebook(a) == codebook(b)
                && a.section_bytes() == b.section_bytes()
        })
    }

    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let bytes = slf.get().to_bytes(slf.py())?;
        Ok((slf.get_type().getattr("from_bytes")?, PyTuple::new(slf.py(), [bytes])?))
    }

    fn __repr__(&self) -> String {
        let Shape { nrows, ncols } = self.0.shape();
        format!(
            "CompressedMatrix({nrows}x{ncols}, nnz={}, layout={}, coder={}, nbytes={})",
            self.0.nnz(),
            self.layout(),
            self.coder(),
            self.0.nbytes()
        )
    }
}

/// Section sizes, as a dict in file order.
struct Sections(Vec<(&'static str, usize)>);

impl<'py> IntoPyObject<'py> for Sections {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, nbytes) in self.0 {
            dict.set_item(name, nbytes)?;
        }
        Ok(dict)
    }
}

/// A batch of `width` numbers a member.
fn batch<'py>(
    x: &Bound<'py, PyAny>,
    name: &str,
    width: usize,
) -> PyResult<PyReadonlyArrayDyn<'py, f32>> {
    let x = array::<f32>(x, name, "float32", &[2], false)?;
    if x.shape()[1] != width {
        return Err(invalid(format!("{name}: shape {:?}, expected [batch, {width}]", x.shape())));
    }
    Ok(x)
}

#[derive(FromPyObject)]
enum Value<'py> {
    Matrix(Bound<'py, PyMatrix>),
    Array(PyBackedBytes),
}

/// A tensor to be written: name, dtype, shape, value.
type Named<'py> = (String, String, Vec<u64>, Value<'py>);

#[pyfunction]
fn write(
    py: Python<'_>,
    path: PathBuf,
    tensors: Vec<Named<'_>>,
    aliases: Vec<(String, String)>,
    metadata: BTreeMap<String, String>,
) -> PyResult<u64> {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, value)| {
            let stored = match value {
                Value::Matrix(matrix) => Stored::Matrix(&matrix.get().0),
                Value::Array(bytes) => Stored::Array(bytes),
            };
            (name, dtype, shape, stored)
        })
        .collect();
    released(py, || {
        let mut writer = Writer::new(metadata)?;
        for (name, dtype, shape, stored) in tensors {
            writer.add(name, Dtype::by_name(dtype)?, shape, stored)?;
        }
        for (name, target) in &aliases {
            writer.add_alias(name, target)?;
        }
        writer.save(&path)
    })
}

#[pyclass(frozen, module = "tersenet._core")]
struct Reader(Container);

#[pymethods]
impl Reader {
    #[new]
    #[pyo3(signature = (path, mmap=false, *, max_header_nbytes, max_tensor_nbytes, max_tensors))]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        mmap: bool,
        max_header_nbytes: u64,
        max_tensor_nbytes: u64,
        max_tensors: u64,
    ) -> PyResult<Self> {
        let limits = Limits {
            header_nbytes: max_header_nbytes,
            tensor_nbytes: max_tensor_nbytes,
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
        if let Some((layout, coder, nnz)) = entry.matrix {
            dict.set_item("layout", layout.name)?;
            dict.set_item("coder", coder.name())?;
            dict.set_item("nnz", nnz)?;
        }
        Ok(dict)
    }

    fn get<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        match released(py, || self.0.get(name))? {
            Tensor::Matrix(matrix) => Ok(Bound::new(py, PyMatrix(matrix))?.into_any()),
            Tensor::Array(array) => Ok(PyBytes::new(py, array.as_slice()).into_any()),
        }
    }

    fn metadata(&self) -> HashMap<&str, &str> {
        self.0.metadata().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }

    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        released(py, || self.0.verify())
    }

    #[getter]
    fn nbytes(&self) -> u64 {
        self.0.nbytes()
    }
}

#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::{PyCodebook, PyMatrix, Reader, write};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        let active = simd::active().map_err(|e| to_python(py, &e))?;
        let layouts: Vec<&str> = LAYOUTS.iter().map(|spec| spec.name).collect();
        let coders: Vec<&str> = Coder::ALL.iter().map(|coder| coder.name()).collect();
        let pairs: Vec<(&str, &str)> = LAYOUTS
            .iter()
            .flat_map(|spec| spec.coders.iter().map(|coder| (spec.name, coder.name())))
            .collect();
        let sets: Vec<&str> = simd::available().iter().map(|set| set.name()).collect();
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("LAYOUTS", PyTuple::new(py, layouts)?)?;
        module.add("CODERS", PyTuple::new(py, coders)?)?;
        module.add("PAIRS", PyTuple::new(py, pairs)?)?;
        module.add("SIMD", active.name())?;
        module.add("SIMD_AVAILABLE", PyTuple::new(py, sets)?)?;
        Ok(())
    }
}
