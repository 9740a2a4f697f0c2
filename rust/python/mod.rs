//! The binding: converts arguments, releases the GIL, maps errors; no arithmetic, no policy.
//!
//! `arguments.rs` takes what Python gives; `matrix.rs`, `files.rs`, `network.rs` and `sizes.rs` are
//! the faces of `crate::matrix`, `crate::container`, `crate::network` and `crate::bounds`. What
//! they take and raise is in `_core.pyi`.
#![allow(missing_docs)]

mod arguments;
mod files;
mod matrix;
mod network;
mod sizes;

use crate::error::{Error, ErrorKind, Result};
use pyo3::exceptions::{PyIsADirectoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

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
            None if error.io_kind() == Some(std::io::ErrorKind::IsADirectory) => {
                PyIsADirectoryError::new_err(error.to_string())
            }
            None => PyOSError::new_err(error.to_string()),
        },
        _ => exception(py, "FormatError", error.to_string()),
    }
}

fn invalid(message: String) -> PyErr {
    PyValueError::new_err(message)
}

#[pymodule(gil_used = false)]
mod _core {
    use super::to_python;
    use crate::entropy::Coder;
    use crate::layout::LAYOUTS;
    use crate::simd;
    use pyo3::prelude::*;
    use pyo3::types::PyTuple;

    #[pymodule_export]
    use super::files::{PyCodedArray, Reader, write};
    #[pymodule_export]
    use super::matrix::{PyCodebook, PyMatrix};
    #[pymodule_export]
    use super::network::PyNetwork;
    #[pymodule_export]
    use super::sizes::{
        cser_bits, csr_bits, entropy, hac_bits, hac_bound, index_map_bits, shac_bits, shac_bound,
    };

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
