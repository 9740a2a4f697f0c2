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
use crate::interruption::{self, Flag};
use pyo3::exceptions::{PyIsADirectoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How long a signal waits until it is looked for.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);
/// Numbers of an input whose product may take long.
const LONG_NUMBERS: usize = 1 << 18;

/// Runs `work` without the GIL; an error or a panic of ours becomes a Python exception.
fn released<T: Send>(py: Python<'_>, work: impl Send + FnOnce() -> Result<T>) -> PyResult<T> {
    let outcome = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    returned(py, outcome)
}

/// [`released`] for what may take long: on a thread of its own, ended when a signal's handler raises
/// (as Ctrl-C's does), which is then what is raised.
fn interruptible<T: Send>(py: Python<'_>, work: impl Send + FnOnce() -> Result<T>) -> PyResult<T> {
    let (flag, mut raised) = (Flag::default(), None);
    let work = || catch_unwind(AssertUnwindSafe(|| interruption::with(Some(flag.clone()), work)));
    let outcome = py.detach(|| {
        std::thread::scope(|scope| {
            let (done, wait) = channel::<()>();
            let worker = std::thread::Builder::new().spawn_scoped(scope, || {
                let outcome = work();
                drop(done);
                outcome
            });
            let worker = match worker {
                Ok(worker) => worker,
                Err(error) => return Ok(Err(Error::io("a thread to work on", error))),
            };
            while wait.recv_timeout(SIGNALS_EVERY) == Err(RecvTimeoutError::Timeout) {
                if raised.is_none() {
                    raised = Python::attach(|py| py.check_signals()).err();
                    flag.store(raised.is_some(), Ordering::Relaxed);
                }
            }
            worker.join().and_then(|outcome| outcome)
        })
    });
    raised.map_or_else(|| returned(py, outcome), Err)
}

/// [`interruptible`] for an input of so many numbers that a thread of its own is no price, else
/// [`released`].
fn by_size<T: Send>(
    py: Python<'_>,
    len: usize,
    work: impl Send + FnOnce() -> Result<T>,
) -> PyResult<T> {
    if len < LONG_NUMBERS { released(py, work) } else { interruptible(py, work) }
}

fn returned<T>(py: Python<'_>, outcome: std::thread::Result<Result<T>>) -> PyResult<T> {
    match outcome {
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
    use super::{released, to_python};
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

    /// Panics with `message`, so that a test sees what becomes of a defect.
    #[pyfunction]
    fn _panic(py: Python<'_>, message: &str) -> PyResult<()> {
        released(py, || panic!("{message}"))
    }

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
