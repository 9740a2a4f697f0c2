//! Long work that ends early when it is told to: it looks at a flag now and then.
//!
//! ```text
//!   whoever starts it:  with(flag, work)            sets the flag from another thread
//!   the work:           check()? in every loop that may run for long; threads::for_each passes the
//!                       flag on to its threads
//! ```
//!
//! The flag is the thread's own, so that no function takes it as an argument; without one, `check` is
//! a look at a thread-local. What is stopped is dropped as after any other error.

use crate::error::{Error, ErrorKind, Result};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// True once the work is to end.
pub type Flag = Arc<AtomicBool>;

thread_local! {
    static FLAG: RefCell<Option<Flag>> = const { RefCell::new(None) };
}

/// Puts a thread's own flag back, also after a panic.
struct Before(Option<Flag>);

impl Drop for Before {
    fn drop(&mut self) {
        FLAG.set(self.0.take());
    }
}

/// Runs `work` on this thread, to be ended by `flag`.
pub fn with<T>(flag: Option<Flag>, work: impl FnOnce() -> T) -> T {
    let _before = Before(FLAG.replace(flag));
    work()
}

/// The flag that this thread's work is ended by.
pub fn flag() -> Option<Flag> {
    FLAG.with_borrow(Clone::clone)
}

/// Ends the work, as an error, where the flag says so.
///
/// # Errors
/// `Interrupted`.
pub fn check() -> Result<()> {
    let is_set = |flag: &Flag| flag.load(Ordering::Relaxed);
    match FLAG.with_borrow(|flag| flag.as_ref().is_some_and(is_set)) {
        true => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;

    #[test]
    fn work_on_every_thread_ends_and_what_follows_runs() {
        for threads in [1, 3] {
            let flag = Flag::default();
            let outcome = with(Some(flag.clone()), || {
                threads::for_each(threads, (0..100).collect(), |i: usize| {
                    if i == 2 {
                        flag.store(true, Ordering::Relaxed);
                    }
                    check()
                })
            });
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
            threads::for_each(threads, (0..100).collect(), |_: usize| check()).unwrap();
        }
        let flag = Flag::new(true.into());
        let panic = std::panic::catch_unwind(|| with(Some(flag), || panic!("here")));
        assert!(panic.is_err() && check().is_ok());
    }
}
