//! Numbers that are picked out of a channel, some of them zeros, the same ones of every channel.
//!
//! ```text
//!   out[8 i + l] = x[from[i] + lanes[i][l]], or 0        lanes under 16, so two loads of eight do
//! ```

/// Numbers of the output that share a window.
pub(super) const OUTPUTS: usize = 8;
/// Numbers of a window.
const WIDTH: usize = 16;
/// The lane of a zero.
const ZERO: u8 = 0x80;

/// Where each number of an output is from.
#[derive(Clone, Debug)]
pub struct Windows {
    windows: Vec<Window>,
    /// Numbers of an output.
    len: usize,
    /// Where the furthest window ends.
    reach: usize,
}

/// Eight numbers of an output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// The first number that a lane may take.
    pub(super) from: u32,
    /// Under [`WIDTH`], or [`ZERO`].
    pub(super) lanes: [u8; OUTPUTS],
}

impl Windows {
    /// Those of an output from `sources`, none for a zero; nothing where the sources of eight
    /// numbers are too far apart.
    pub fn new(sources: &[Option<u32>]) -> Option<Self> {
        let window = |sources: &[Option<u32>]| {
            let from = sources.iter().flatten().copied().min().unwrap_or(0);
            let mut lanes = [ZERO; OUTPUTS];
            for (lane, source) in lanes.iter_mut().zip(sources) {
                if let Some(source) = source {
                    *lane = u8::try_from(source - from).ok().filter(|&at| at < WIDTH as u8)?;
                }
            }
            Some(Window { from, lanes })
        };
        let windows: Vec<Window> = sources.chunks(OUTPUTS).map(window).collect::<Option<_>>()?;
        let most = windows.iter().map(|window| window.from as usize).max().unwrap_or(0);
        Some(Self { windows, len: sources.len(), reach: most + WIDTH })
    }

    /// Numbers of an output.
    pub fn numbers(&self) -> usize {
        self.len
    }

    /// The windows of an output, if all of them lie within `len` numbers.
    pub(super) fn inside(&self, len: usize) -> Option<&[Window]> {
        (self.reach <= len).then_some(&self.windows)
    }

    /// One output, of `x`.
    pub(super) fn fill(&self, x: &[f32], out: &mut [f32]) {
        for (window, out) in self.windows.iter().zip(out.chunks_mut(OUTPUTS)) {
            for (out, &lane) in out.iter_mut().zip(&window.lanes) {
                let is_zero = lane == ZERO;
                *out = if is_zero { 0.0 } else { x[window.from as usize + usize::from(lane)] };
            }
        }
    }
}

/// The specification of [`super::Kernels::fill_windows`].
pub(super) fn fill(windows: &Windows, x: &[f32], step: usize, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(windows.numbers().max(1)).enumerate() {
        windows.fill(&x[i * step..], out);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kernels, available};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_number_comes_from_its_source(
            places in prop::collection::vec((0u32..9, any::<bool>()), 0..60), step in 1usize..70,
            channels in 0usize..12, seed in 0u32..40,
        ) {
            let sources: Vec<Option<u32>> = places
                .iter()
                .enumerate()
                .map(|(i, &(place, is_there))| is_there.then_some(seed + i as u32 / 8 * 3 + place))
                .collect();
            let windows = Windows::new(&sources).unwrap();
            let reach = sources.iter().flatten().max().map_or(0, |&most| most as usize + 1);
            let x: Vec<f32> =
                (0..channels.saturating_sub(1) * step + reach).map(|i| i as f32 + 1.0).collect();
            for set in available() {
                let mut out = vec![f32::NAN; channels * sources.len() + 3];
                set.fill_windows(&windows, &x, step, &mut out[..channels * sources.len()]);
                for channel in 0..channels {
                    for (i, source) in sources.iter().enumerate() {
                        let expected = source.map_or(0.0, |at| x[channel * step + at as usize]);
                        let found = out[channel * sources.len() + i];
                        prop_assert_eq!(found, expected, "{} {} {}", set.name(), channel, i);
                    }
                }
                prop_assert!(out[channels * sources.len()..].iter().all(|y| y.is_nan()));
            }
        }
    }

    #[test]
    fn sources_too_far_apart_have_no_windows() {
        assert!(Windows::new(&[Some(3), None, Some(18)]).is_some());
        assert!(Windows::new(&[Some(3), None, Some(19)]).is_none());
        assert!(Windows::new(&[Some(3), Some(u32::MAX)]).is_none());
    }

    #[test]
    fn an_input_that_ends_before_a_source_panics() {
        let windows =
            Windows::new(&[Some(2), None, Some(17), None, None, None, None, None, Some(0)]);
        let windows = windows.unwrap();
        for set in available() {
            let fill = |set: &dyn Kernels, len: usize| {
                std::panic::catch_unwind(|| {
                    let mut out = vec![f32::NAN; 18];
                    set.fill_windows(&windows, &vec![1.0; len], 5, &mut out);
                    out
                })
            };
            let row = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0];
            assert_eq!(fill(set, 23).unwrap(), [row, row].concat(), "{}", set.name());
            assert!(fill(set, 22).is_err(), "{}", set.name());
        }
    }
}
