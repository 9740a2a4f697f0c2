//! `Codebook` and `CompressedMatrix`.

use super::arguments::{array, batch, request, slice};
use super::{by_size, interruptible, invalid, released, to_python};
use crate::array::Owner;
use crate::codebook::Codebook;
use crate::container::{self, Limits};
use crate::convolution::Geometry;
use crate::matrix::CompressedMatrix as Matrix;
use crate::rows::{Rows, Shape};
use numpy::{PyArray1, PyArray2, PyArray4, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::sync::Arc;

/// Distinct float32 values, in the order given, that several matrices may share.
#[pyclass(frozen, module = "tersenet._core", name = "Codebook")]
pub(super) struct PyCodebook(Arc<Codebook>);

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

/// A matrix stored losslessly in one layout, and multiplied from there; immutable.
#[pyclass(frozen, module = "tersenet._core", name = "CompressedMatrix")]
pub(super) struct PyMatrix(pub(super) Matrix);

#[pymethods]
impl PyMatrix {
    /// Compresses `weights`, float32 [nrows, ncols], losslessly; equal weights give equal bytes.
    #[staticmethod]
    #[pyo3(signature = (weights, layout="auto", coder="auto", goal="size", *, columns="coded", taps=None))]
    fn compress(
        weights: &Bound<'_, PyAny>,
        layout: &str,
        coder: &str,
        goal: &str,
        columns: &str,
        taps: Option<i64>,
    ) -> PyResult<Self> {
        let py = weights.py();
        let request = request(layout, coder, goal, columns, taps)?;
        let weights = array::<f32>(weights, "weights", "float32", &[2], true)?;
        let (rows, dense) = (weights.shape().to_vec(), slice(&weights)?);
        interruptible(py, || Matrix::compress(dense, Shape::new(rows[0], rows[1])?, &request))
            .map(Self)
    }

    /// Compresses symbols, uint16 [nrows, ncols], where `mask` is true; others are pruned.
    #[staticmethod]
    #[pyo3(signature = (symbols, codebook, mask, layout="auto", coder="auto", goal="size", *, columns="coded", taps=None))]
    #[allow(clippy::too_many_arguments)] // As Python names them.
    fn from_symbols(
        symbols: &Bound<'_, PyAny>,
        codebook: &PyCodebook,
        mask: &Bound<'_, PyAny>,
        layout: &str,
        coder: &str,
        goal: &str,
        columns: &str,
        taps: Option<i64>,
    ) -> PyResult<Self> {
        let py = symbols.py();
        let request = request(layout, coder, goal, columns, taps)?;
        let symbols = array::<u16>(symbols, "symbols", "uint16", &[2], true)?;
        // As bytes: a view of other bytes as booleans would not be booleans to us.
        let mask = array::<bool>(mask, "mask", "bool", &[2], true)?;
        let mask = mask.call_method1("view", ("uint8",))?;
        let mask = array::<u8>(&mask, "mask", "uint8", &[2], true)?;
        if symbols.shape() != mask.shape() {
            return Err(invalid(format!(
                "mask: shape {:?}, expected the symbols' {:?}",
                mask.shape(),
                symbols.shape()
            )));
        }
        let shape = symbols.shape().to_vec();
        let mask: Vec<bool> = slice(&mask)?.iter().map(|&byte| byte != 0).collect();
        let symbols = slice(&symbols)?;
        interruptible(py, || {
            let shape = Shape::new(shape[0], shape[1])?;
            let rows = Rows::from_symbols(symbols, &mask, codebook.0.clone(), shape)?;
            Matrix::from_rows(&rows, &request)
        })
        .map(Self)
    }

    /// Takes the bytes that `to_bytes` gave, checks them, and views them in place.
    #[staticmethod]
    fn from_bytes(data: &Bound<'_, PyBytes>) -> PyResult<Self> {
        let owner: Owner = Arc::new(PyBackedBytes::from(data.clone()));
        interruptible(data.py(), || container::matrix_from_bytes(owner, &Limits::default()))
            .map(Self)
    }

    /// The matrix as a container of its own.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = interruptible(py, || container::matrix_to_bytes(&self.0))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The dense matrix, float32 [nrows, ncols], bit by bit.
    #[pyo3(signature = (threads=None))]
    fn decompress<'py>(
        &self,
        py: Python<'py>,
        threads: Option<i64>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let threads = super::arguments::threads(py, threads)?;
        let dense = interruptible(py, || self.0.decompress(threads))?;
        matrix_array(py, dense, self.0.shape().nrows, self.0.shape().ncols)
    }

    /// The rows `ids` as float32 [len(ids), ncols].
    fn rows<'py>(&self, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let py = ids.py();
        let nrows = self.0.shape().nrows;
        if ids.len().is_ok_and(|len| len == 0) {
            return matrix_array(py, Vec::new(), 0, self.0.shape().ncols);
        }
        let ids = array::<i64>(ids, "rows", "int64", &[1], true)?;
        let ids = slice(&ids)?.iter().map(|&id| {
            usize::try_from(id)
                .map_err(|_| invalid(format!("rows: row {id}, expected in [0, {nrows})")))
        });
        let ids = ids.collect::<PyResult<Vec<usize>>>()?;
        let dense = released(py, || self.0.rows(&ids))?;
        matrix_array(py, dense, ids.len(), self.0.shape().ncols)
    }

    /// W x: float32 [ncols] to [nrows].
    #[pyo3(signature = (x, threads=None))]
    fn matvec<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        threads: Option<i64>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let py = x.py();
        let threads = super::arguments::threads(py, threads)?;
        let x = array::<f32>(x, "matvec: x", "float32", &[1], false)?;
        let x = slice(&x)?;
        Ok(PyArray1::from_vec(py, released(py, || self.0.matvec(x, threads))?))
    }

    /// X W^T: float32 [batch, ncols] to [batch, nrows].
    #[pyo3(signature = (x, threads=None))]
    fn matmul<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        threads: Option<i64>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let py = x.py();
        let threads = super::arguments::threads(py, threads)?;
        let x = batch(x, "matmul: x", self.0.shape().ncols)?;
        let (members, x) = (x.shape()[0], slice(&x)?);
        let y = by_size(py, x.len(), || self.0.matmul(x, members, threads))?;
        matrix_array(py, y, members, self.0.shape().nrows)
    }

    /// X W: float32 [batch, nrows] to [batch, groups * ncols], the gradient of `matmul`.
    #[pyo3(signature = (x, threads=None, *, groups=1))]
    fn matmul_transposed<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        threads: Option<i64>,
        groups: usize,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let py = x.py();
        let threads = super::arguments::threads(py, threads)?;
        let x = batch(x, "matmul_transposed: x", self.0.shape().nrows)?;
        let (members, x) = (x.shape()[0], slice(&x)?);
        let product = || self.0.matmul_transposed(x, members, groups, threads);
        let y = by_size(py, x.len(), product)?;
        matrix_array(py, y, members, groups * self.0.shape().ncols)
    }

    /// The convolution of float32 `x` [images, channels, height, width] with these kernels.
    #[pyo3(signature = (x, kernel, stride, padding, dilation, groups, bias=None, threads=None))]
    #[allow(clippy::too_many_arguments)] // As many as torch's.
    fn conv<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        kernel: [usize; 2],
        stride: [usize; 2],
        padding: [[usize; 2]; 2],
        dilation: [usize; 2],
        groups: usize,
        bias: Option<&Bound<'py, PyAny>>,
        threads: Option<i64>,
    ) -> PyResult<Bound<'py, PyArray4<f32>>> {
        let py = x.py();
        let threads = super::arguments::threads(py, threads)?;
        let x = array::<f32>(x, "conv: x", "float32", &[4], false)?;
        let bias =
            bias.map(|b| array::<f32>(b, "conv: bias", "float32", &[1], false)).transpose()?;
        let bias = bias.as_ref().map(slice).transpose()?;
        let geometry = Geometry { kernel, stride, padding, dilation, spread: [1, 1], groups };
        let shape = [x.shape()[0], x.shape()[1], x.shape()[2], x.shape()[3]];
        let x = slice(&x)?;
        let product = || self.0.conv(x, shape, &geometry, bias, threads);
        let (y, shape) = by_size(py, x.len(), product)?;
        PyArray1::from_vec(py, y).reshape(shape)
    }

    /// The same matrix in another layout.
    #[pyo3(signature = (layout="auto", coder="auto", goal="size", *, columns="coded", taps=None))]
    fn to(
        &self,
        py: Python<'_>,
        layout: &str,
        coder: &str,
        goal: &str,
        columns: &str,
        taps: Option<i64>,
    ) -> PyResult<Self> {
        let request = request(layout, coder, goal, columns, taps)?;
        interruptible(py, || self.0.to(&request)).map(Self)
    }

    /// (nrows, ncols).
    #[getter]
    fn shape(&self) -> (usize, usize) {
        (self.0.shape().nrows, self.0.shape().ncols)
    }

    /// The number of kept weights.
    #[getter]
    fn nnz(&self) -> usize {
        self.0.nnz()
    }

    /// The distinct kept values; computed where the layout stores values.
    #[getter]
    fn codebook<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<f32>>> {
        Ok(PyArray1::from_vec(py, released(py, || self.0.distinct_values())?))
    }

    /// The layout's name.
    #[getter]
    fn layout(&self) -> &'static str {
        self.0.layout().name
    }

    /// The coder's name.
    #[getter]
    fn coder(&self) -> &'static str {
        self.0.coder().name()
    }

    /// The sum of `sections`.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    /// Stored bits / (nrows * ncols).
    #[getter]
    fn bits_per_weight(&self) -> f64 {
        self.0.bits_per_weight()
    }

    /// Stored bytes / bytes of dense float32.
    #[getter]
    fn occupancy(&self) -> f64 {
        self.0.bits_per_weight() / 32.0
    }

    /// The bytes of every part that is needed to multiply, by name.
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
pub(super) struct Sections(Vec<(&'static str, usize)>);

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

pub(super) fn matrix_array(
    py: Python<'_>,
    values: Vec<f32>,
    nrows: usize,
    ncols: usize,
) -> PyResult<Bound<'_, PyArray2<f32>>> {
    PyArray1::from_vec(py, values).reshape([nrows, ncols])
}
