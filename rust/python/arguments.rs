//! What Python gives, as what the core takes.

use super::invalid;
use crate::layout::{Columns, Goal};
use crate::matrix::Request;
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::OnceLock;

/// The number of threads asked for, or the lesser of torch's and what this process may use.
pub(super) fn threads(py: Python<'_>, asked: Option<i64>) -> PyResult<usize> {
    match asked {
        Some(threads) => usize::try_from(threads)
            .ok()
            .filter(|&threads| threads > 0)
            .ok_or_else(|| invalid(format!("threads: {threads}, expected at least 1"))),
        None => {
            static AVAILABLE: OnceLock<usize> = OnceLock::new();
            // Asked once: it reads several files, which takes longer than a small product.
            let available = *AVAILABLE.get_or_init(crate::threads::available);
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
/// When `is_exact`, an array of a type that `T` cannot represent exactly is refused, and so is a
/// list with a value that `T` cannot.
pub(super) fn array<'py, T: Element>(
    value: &Bound<'py, PyAny>,
    name: &str,
    dtype: &str,
    ndims: &[usize],
    is_exact: bool,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    if let Ok(given) = value.cast::<PyArrayDyn<T>>()
        && given.is_c_contiguous()
        && given.try_readonly().is_ok_and(|given| given.as_slice().is_ok())
        && ndims.contains(&given.ndim())
    {
        return Ok(given.readonly());
    }
    let numpy = value.py().import("numpy")?;
    let given = numpy.call_method1("asarray", (value,))?;
    let is_safe = || {
        if numpy.call_method1("can_cast", (given.getattr("dtype")?, dtype, "safe"))?.is_truthy()? {
            return Ok::<bool, PyErr>(true);
        }
        // A list has no type of its own: what counts is whether its values come through.
        if value.hasattr("dtype")? {
            return Ok(false);
        }
        let converted = given.call_method1("astype", (dtype,))?;
        numpy.call_method1("array_equal", (&given, converted))?.is_truthy()
    };
    if is_exact && !is_safe()? {
        return Err(invalid(format!(
            "{name}: dtype {}, expected {dtype} (converting may change values: do it first)",
            given.getattr("dtype")?
        )));
    }
    let requirements = ["C_CONTIGUOUS", "ALIGNED"];
    let converted = numpy.call_method1("require", (given, dtype, requirements))?;
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

pub(super) fn slice<'a, T: Element>(array: &'a PyReadonlyArrayDyn<'_, T>) -> PyResult<&'a [T]> {
    Ok(array.as_slice()?)
}

pub(super) fn request(
    layout: &str,
    coder: &str,
    goal: &str,
    columns: &str,
    taps: Option<i64>,
) -> PyResult<Request> {
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
    let at_least_one = |taps: i64| {
        usize::try_from(taps)
            .ok()
            .filter(|&taps| taps > 0)
            .ok_or_else(|| invalid(format!("taps: {taps}, expected at least 1")))
    };
    let taps = taps.map(at_least_one).transpose()?;
    let request = Request::parse(layout, coder, goal, columns);
    request.map(|request| Request { taps, ..request }).map_err(|e| invalid(e.to_string()))
}

/// A batch of `width` numbers a member.
pub(super) fn batch<'py>(
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
