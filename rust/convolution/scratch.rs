//! Scratch memory of convolutions, which goes round from call to call.

use crate::layout::Buffers;
use crate::lines::Lines;
use crate::simd::Taps;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Memory that calls use in turns.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) buffers: Buffers,
    /// Dense rows.
    pub(super) weights: Vec<f32>,
    pub(super) taps: Taps,
    pub(super) unfolded: Lines,
    pub(super) tiles: TileMemory,
    /// Of [`super::winograd`].
    pub(super) kernels: Taps,
    pub(super) products: Lines,
}

/// What tiles are computed in.
#[derive(Debug, Default)]
pub(super) struct TileMemory {
    pub(super) sums: Lines,
    pub(super) runs: Vec<[usize; 4]>,
    /// Of [`super::interleaved`]: a band's input and outputs.
    pub(super) cells: Lines,
    pub(super) outputs: Lines,
}

static IDLE: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());
/// Scratch memory that is kept between calls, at most.
const IDLE_COUNT: usize = 64;

/// Scratch memory that goes back when dropped.
pub(super) struct Lent(Option<Scratch>);

/// Scratch memory from an earlier call, or new.
///
/// The lock is only ever tried: a process that forked while another thread held it goes without.
pub(super) fn lend() -> Lent {
    let idle = IDLE.try_lock().ok().and_then(|mut idle| idle.pop());
    Lent(Some(idle.unwrap_or_default()))
}

impl Deref for Lent {
    type Target = Scratch;
    fn deref(&self) -> &Scratch {
        self.0.as_ref().expect("scratch: in use until dropped")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Scratch {
        self.0.as_mut().expect("scratch: in use until dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(scratch), Ok(mut idle)) = (self.0.take(), IDLE.try_lock())
            && idle.len() < IDLE_COUNT
        {
            idle.push(scratch);
        }
    }
}
