//! Inner loops for each instruction set, chosen once at run time.
//!
//! [`Kernels`] lists the loops; `scalar.rs` is their specification, written first, and an
//! instruction set's file overrides a loop only where that was measured to be faster. A value of
//! an instruction set's type proves that the CPU has it. This folder alone may say `unsafe`, and
//! it knows slices only.
//!
//! `TERSENET_SIMD=scalar|avx2|avx512` forces one, so that every path on a machine can be tested.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod dense;
mod scalar;

use crate::error::{Error, Result};
use std::sync::OnceLock;

/// Batch lanes of a panel: [`Kernels::add_panel_product`] multiplies for this many inputs at once.
pub const LANES: usize = 16;

/// One panel row: a column's inputs for [`LANES`] members of the batch.
pub type Lanes = [f32; LANES];

/// Positions of the largest tile: [`Kernels::add_shifted_product`] adds to so many outputs at once.
pub const TILE: usize = 64;

/// The smallest tile.
pub const SMALLEST_TILE: usize = 8;

/// The inner loops. Sums may differ in order between instruction sets, never between calls.
pub trait Kernels: Send + Sync + std::panic::RefUnwindSafe {
    /// The name that `TERSENET_SIMD` takes.
    fn name(&self) -> &'static str;

    /// `Σ values[i] · x[cols[i]]`.
    ///
    /// # Panics
    /// When the slices differ in length or a column is outside x.
    fn sparse_dot(&self, cols: &[u32], values: &[f32], x: &[f32]) -> f32;

    /// `Σ codebook[symbols[i]] · x[cols[i]]`, from columns and symbols as they are stored: 16-bit
    /// little-endian columns at any alignment, 8-bit symbols.
    ///
    /// # Panics
    /// When the slices differ in length or a column is outside x.
    fn symbol_dot(&self, cols: &[[u8; 2]], symbols: &[u8], codebook: &[f32; 256], x: &[f32])
    -> f32;

    /// `Σ w[i] · x[i]` over the entries of w that are not +0.0.
    ///
    /// # Panics
    /// When the slices differ in length.
    fn dense_dot(&self, w: &[f32], x: &[f32]) -> f32;

    /// Adds `Σ values[i] · panel[cols[i]]` to `sums`, for every lane.
    ///
    /// # Panics
    /// When the slices differ in length or a column is outside the panel.
    fn add_panel_product(&self, cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes);

    /// Adds `Σ values[i] · input[offsets[i] + p]` to `sums[p]`, for every position of a tile of 8,
    /// 16, 32 or 64.
    ///
    /// # Panics
    /// When the slices differ in length, the tile has another size, or a tile at an offset ends
    /// outside the input.
    fn add_shifted_product(&self, offsets: &[u32], values: &[f32], input: &[f32], sums: &mut [f32]);
}

/// Every instruction set that this CPU has, the plainest first.
pub fn available() -> Vec<&'static dyn Kernels> {
    let mut sets: Vec<&'static dyn Kernels> = vec![&scalar::Scalar];
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = avx2::Avx2::detect() {
        sets.push(avx2);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = avx512::Avx512::detect() {
        sets.push(avx512);
    }
    sets
}

/// The best of `sets`, or the one named `forced`.
///
/// # Errors
/// `InvalidArgument` when it is not among them.
fn choose(sets: &[&'static dyn Kernels], forced: Option<&str>) -> Result<&'static dyn Kernels> {
    let Some(name) = forced else { return Ok(sets[sets.len() - 1]) };
    sets.iter().find(|set| set.name() == name).copied().ok_or_else(|| {
        let names: Vec<&str> = sets.iter().map(|set| set.name()).collect();
        Error::invalid(format!(
            "TERSENET_SIMD: {name:?}, expected one of {} on this machine",
            names.join(", ")
        ))
    })
}

/// The instruction set in use: the best there is, unless `TERSENET_SIMD` names another.
///
/// # Errors
/// `InvalidArgument` when `TERSENET_SIMD` names one that is unknown or not on this machine.
pub fn active() -> Result<&'static dyn Kernels> {
    static ACTIVE: OnceLock<&'static dyn Kernels> = OnceLock::new();
    if let Some(set) = ACTIVE.get() {
        return Ok(*set);
    }
    let forced = std::env::var("TERSENET_SIMD").ok().filter(|name| !name.is_empty());
    let set = choose(&available(), forced.as_deref())?;
    Ok(*ACTIVE.get_or_init(|| set))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The bound of a sum of n products in any order, fused or not, against the exact sum.
    fn bound(terms: impl Iterator<Item = (f32, f32)>) -> f64 {
        let (n, sum) = terms.fold((0.0, 0.0), |(n, sum), (a, b)| {
            (n + 1.0, sum + (f64::from(a) * f64::from(b)).abs())
        });
        (n + 2.0) * 2f64.powi(-24) * sum + n * 2f64.powi(-149)
    }

    fn weight() -> impl Strategy<Value = f32> {
        prop_oneof![4 => -2.0f32..2.0, 1 => Just(0.0f32), 1 => Just(-0.0f32), 1 => -1e-38f32..1e-38]
    }

    proptest! {
        #[test]
        fn every_kernel_of_every_instruction_set_is_within_the_bound_at_every_length(
            pairs in prop::collection::vec((weight(), weight()), 0..=4 * LANES + 1),
            lane in 0..LANES,
        ) {
            let (w, x): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let cols: Vec<u32> = (0..w.len() as u32).rev().collect();
            let reversed: Vec<f32> = w.iter().rev().copied().collect();
            let mut panel = vec![[f32::NAN; LANES]; w.len()];
            for (row, &x) in panel.iter_mut().zip(&x) {
                row[lane] = x;
            }
            let exact: f64 = pairs.iter().map(|&(w, x)| f64::from(w) * f64::from(x)).sum();
            let bound = bound(pairs.iter().copied());
            for set in available() {
                let name = set.name();
                let mut input = vec![0.0; w.len() + TILE];
                for (i, &x) in x.iter().enumerate() {
                    input[i + lane] = x;
                }
                let half = cols.len() / 2;
                for size in [8, 16, 32, TILE] {
                    let mut tile = vec![0.0; size];
                    set.add_shifted_product(&cols[..half], &reversed[..half], &input, &mut tile);
                    set.add_shifted_product(&cols[half..], &reversed[half..], &input, &mut tile);
                    let Some(&shifted) = tile.get(lane) else { continue };
                    let shifted = f64::from(shifted);
                    prop_assert!((shifted - exact).abs() <= bound, "{name} shifted {shifted} {exact}");
                }
                let dense = f64::from(set.dense_dot(&w, &x));
                prop_assert!((dense - exact).abs() <= bound, "{name} dense {dense} {exact}");
                let sparse = f64::from(set.sparse_dot(&cols, &reversed, &x));
                prop_assert!((sparse - exact).abs() <= bound, "{name} sparse {sparse} {exact}");
                let mut values = [f32::NAN; 256];
                values[..reversed.len()].copy_from_slice(&reversed);
                let symbols: Vec<u8> = (0..reversed.len() as u8).collect();
                let stored: Vec<[u8; 2]> = cols.iter().map(|&col| (col as u16).to_le_bytes()).collect();
                let symbol = f64::from(set.symbol_dot(&stored, &symbols, &values, &x));
                prop_assert!((symbol - exact).abs() <= bound, "{name} symbol {symbol} {exact}");
                // In two parts, the second added to the first.
                let mut sums = [0.0; LANES];
                let cut = cols.len() / 3;
                set.add_panel_product(&cols[..cut], &reversed[..cut], &panel, &mut sums);
                set.add_panel_product(&cols[cut..], &reversed[cut..], &panel, &mut sums);
                let sum = f64::from(sums[lane]);
                prop_assert!((sum - exact).abs() <= bound, "{name} panel {sum} {exact}");
            }
        }
    }

    #[test]
    fn a_pruned_weight_contributes_nothing_where_x_is_not_finite() {
        for set in available() {
            for len in [1, 7, 8, 9, 16, 33, 64, 65] {
                let mut w = vec![0.0; len];
                let mut x = vec![f32::NAN; len];
                w[len - 1] = 2.0;
                x[len - 1] = 3.0;
                assert_eq!(set.dense_dot(&w, &x), 6.0, "{} {len}", set.name());
                w[len - 1] = -0.0;
                x[len - 1] = f32::INFINITY;
                assert!(set.dense_dot(&w, &x).is_nan(), "{} {len}", set.name());
            }
        }
    }

    #[test]
    fn a_column_outside_x_panics_on_every_instruction_set() {
        for set in available() {
            for len in [1, 8, 17] {
                let mut cols = vec![0; len];
                cols[len - 1] = 5;
                let values = vec![1.0; len];
                let dot = std::panic::catch_unwind(|| set.sparse_dot(&cols, &values, &[1.0; 5]));
                let panel = std::panic::catch_unwind(|| {
                    set.add_panel_product(&cols, &values, &[[1.0; LANES]; 5], &mut [0.0; LANES])
                });
                let stored: Vec<[u8; 2]> =
                    cols.iter().map(|&col| (col as u16).to_le_bytes()).collect();
                let symbol = std::panic::catch_unwind(|| {
                    set.symbol_dot(&stored, &vec![0; len], &[1.0; 256], &[1.0; 5])
                });
                let shifted = std::panic::catch_unwind(|| {
                    set.add_shifted_product(&cols, &values, &[1.0; TILE + 4], &mut [0.0; TILE])
                });
                let odd_tile = std::panic::catch_unwind(|| {
                    set.add_shifted_product(&[0], &[1.0], &[1.0; TILE], &mut [0.0; 24])
                });
                assert!(dot.is_err() && panel.is_err() && symbol.is_err(), "{} {len}", set.name());
                assert!(shifted.is_err() && odd_tile.is_err(), "{} {len}", set.name());
            }
        }
    }

    #[test]
    fn an_unknown_instruction_set_is_an_error_that_lists_those_there_are() {
        let error = choose(&available(), Some("mmx")).err().unwrap().to_string();
        assert!(error.contains("mmx") && error.contains("scalar"), "{error}");
        assert_eq!(choose(&available(), Some("scalar")).unwrap().name(), "scalar");
    }
}
