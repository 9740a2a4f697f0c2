//! Scratch memory of convolutions, which goes round from call to call.

use crate::layout::Buffers;
use crate::lines::Lines;
use crate::pool::{Lent, Pool};
use crate::simd::Taps;

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

static POOL: Pool<Scratch> = Pool::new();

/// Scratch memory from an earlier call, or new.
pub(super) fn lend() -> Lent<Scratch> {
    POOL.lend()
}
