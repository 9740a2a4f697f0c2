//! Where the columns of a matrix are in an input.

/// Column `c · taps.len() + t` is at `base + c · channel + taps[t]`.
#[derive(Clone, Copy, Debug)]
pub struct Spacing<'a> {
    taps: &'a [u32],
    channel: u32,
    /// From one column to the next, where all are as far apart.
    step: Option<u32>,
    /// The first place.
    base: u32,
}

impl<'a> Spacing<'a> {
    /// That of these taps, from place 0 on.
    ///
    /// # Panics
    /// When there are no taps.
    pub fn new(taps: &'a [u32], channel: u32) -> Self {
        assert!(!taps.is_empty(), "spacing: no taps");
        let step = channel / taps.len() as u32;
        let is_even = taps.iter().chain([&channel]).zip(0u32..).all(|(&at, t)| at == t * step);
        Self { taps, channel, step: is_even.then_some(step), base: 0 }
    }

    /// The same from place `base` on.
    #[must_use]
    pub fn at(self, base: u32) -> Self {
        Self { base, ..self }
    }

    pub(super) fn base(&self) -> u32 {
        self.base
    }

    pub(super) fn ntaps(&self) -> usize {
        self.taps.len()
    }

    pub(super) fn taps(&self) -> &'a [u32] {
        self.taps
    }

    pub(super) fn channel(&self) -> u32 {
        self.channel
    }

    pub(super) fn step(&self) -> Option<u32> {
        self.step
    }

    /// The place of a column, modulo 2³².
    pub(super) fn place(&self, col: u32) -> u32 {
        let ntaps = self.taps.len() as u32;
        let channel = (col / ntaps).wrapping_mul(self.channel);
        self.base.wrapping_add(channel).wrapping_add(self.taps[(col % ntaps) as usize])
    }
}

/// Hands out chunks of positions, symbols and outputs. The last one begins where it ends with them,
/// so that some are handed out twice; where there are fewer than a chunk it is filled up with copies
/// of the first one, and what they become is dropped.
///
/// # Panics
/// When lengths differ.
#[inline(always)]
pub(super) fn for_chunks<const N: usize>(
    positions: &[u32],
    symbols: &[u16],
    out: &mut [u32],
    mut take: impl FnMut(&[u32; N], &[u16; N], &mut [u32; N]),
) {
    let is_even = positions.len() == symbols.len() && positions.len() == out.len();
    assert!(is_even, "join: positions, symbols and entries");
    if let (Some(last_positions), Some(last_symbols)) =
        (positions.last_chunk(), symbols.last_chunk())
    {
        let chunks = positions.as_chunks::<N>().0.iter().zip(symbols.as_chunks::<N>().0);
        for ((positions, symbols), out) in chunks.zip(out.as_chunks_mut::<N>().0) {
            take(positions, symbols, out);
        }
        if !positions.len().is_multiple_of(N)
            && let Some(last) = out.last_chunk_mut()
        {
            take(last_positions, last_symbols, last);
        }
    } else if let (Some(&position), Some(&symbol)) = (positions.first(), symbols.first()) {
        let (mut last_positions, mut last_symbols, mut last) = ([position; N], [symbol; N], [0; N]);
        last_positions[..positions.len()].copy_from_slice(positions);
        last_symbols[..symbols.len()].copy_from_slice(symbols);
        take(&last_positions, &last_symbols, &mut last);
        out.copy_from_slice(&last[..out.len()]);
    }
}
