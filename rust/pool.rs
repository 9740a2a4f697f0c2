//! Memory that goes round from call to call, so that a call that has been made before allocates none.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Kept between calls, at most.
const MOST: usize = 64;

/// Values that no call uses just now.
pub struct Pool<T>(Mutex<Vec<T>>);

impl<T: Default> Pool<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// A value from an earlier call, as that left it, or a new one.
    ///
    /// The lock is only ever tried: a process that forked while another thread held it goes without.
    pub fn lend(&'static self) -> Lent<T> {
        let idle = self.0.try_lock().ok().and_then(|mut idle| idle.pop());
        Lent { value: Some(idle.unwrap_or_default()), pool: self }
    }
}

/// A value that goes back when dropped.
pub struct Lent<T: 'static> {
    value: Option<T>,
    pool: &'static Pool<T>,
}

impl<T> Deref for Lent<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("lent: in use until dropped")
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("lent: in use until dropped")
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if let (Some(value), Ok(mut idle)) = (self.value.take(), self.pool.0.try_lock())
            && idle.len() < MOST
        {
            idle.push(value);
        }
    }
}
