//! Where rows of weights are cut into strips.

/// Weights whose bits of `mask` rise within each row, and how rows are cut: strip `s` has those from
/// `s · step` on to under `(s + 1) · step`, the last one all that are left.
#[derive(Clone, Copy, Debug)]
pub struct Cutting<'a> {
    /// The weights, row by row.
    pub weights: &'a [u32],
    /// See there.
    pub mask: u32,
    /// Where each row starts, and the end.
    pub indptr: &'a [usize],
    /// Strips.
    pub count: usize,
    /// See there.
    pub step: usize,
}

/// Weights that are looked at together.
pub(super) const NEAR: usize = 16;

/// The specification of [`super::Kernels::cut`]; `count_under` gives how many of some weights are
/// under a limit.
#[inline(always)]
pub(super) fn cut(
    cutting: &Cutting<'_>,
    cuts: &mut Vec<u32>,
    count_under: impl Fn(&[u32; NEAR], u32) -> usize,
) {
    let Cutting { weights, indptr, count, step, .. } = *cutting;
    let nrows = indptr.len().saturating_sub(1);
    cuts.clear();
    cuts.resize(nrows * (count + 1), 0);
    let (Some(first), Some(last)) = (cuts.get_mut(..nrows), indptr.last()) else { return };
    assert!(*last <= weights.len(), "cut: {last} weights of {}", weights.len());
    first.iter_mut().zip(indptr).for_each(|(cut, &start)| *cut = start as u32);
    // Strip by strip: a row's cut starts from the one before, other rows' do not wait for it.
    for strip in 1..count {
        let limit = u32::try_from(strip * step).unwrap_or(u32::MAX);
        let part = 1.0 / (count + 1 - strip) as f32;
        let (before, cuts) = cuts[(strip - 1) * nrows..].split_at_mut(nrows);
        for ((cut, &start), ends) in cuts.iter_mut().zip(&*before).zip(indptr.windows(2)) {
            let left = &weights[start as usize..ends[1]];
            let likely = (left.len() as f32 * part) as usize;
            *cut = start + find(left, cutting.mask, limit, likely, &count_under) as u32;
        }
    }
    let ends = cuts[count * nrows..].iter_mut().zip(&indptr[1..]);
    ends.for_each(|(cut, &end)| *cut = end as u32);
}

/// The first of `weights` that is not under `limit`, looked for from number `at` on.
#[inline(always)]
fn find(
    weights: &[u32],
    mask: u32,
    limit: u32,
    mut at: usize,
    count_under: impl Fn(&[u32; NEAR], u32) -> usize,
) -> usize {
    let near = at.saturating_sub(NEAR / 2);
    if let Some(weights) = weights.get(near..).and_then(<[u32]>::first_chunk) {
        let under = count_under(weights, limit);
        at = near + under;
        if under < NEAR && (under > 0 || near == 0) {
            return at;
        }
    }
    at = at.min(weights.len());
    let is_under = |weight: u32| weight & mask < limit;
    while at < weights.len() && is_under(weights[at]) {
        at += 1;
    }
    while at > 0 && !is_under(weights[at - 1]) {
        at -= 1;
    }
    at
}

/// How many of some weights are under `limit`, counted without a branch.
pub(super) fn count_under(weights: &[u32; NEAR], mask: u32, limit: u32) -> usize {
    weights.iter().map(|&weight| u32::from(weight & mask < limit)).sum::<u32>() as usize
}

#[cfg(test)]
mod tests {
    use super::super::available;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_strip_has_the_weights_of_its_columns(
            rows in prop::collection::vec(prop::collection::vec(0u32..900, 0..120), 0..6),
            (count, step) in (1usize..30, 1usize..200), above in any::<bool>(), seed in any::<u32>(),
        ) {
            let shift = if above { u32::MAX - 900 } else { 0 };
            let mut indptr = vec![0];
            let (mut cols, mut weights) = (Vec::new(), Vec::new());
            for row in &rows {
                let mut row = row.clone();
                row.sort_unstable();
                row.dedup();
                cols.extend(row.iter().map(|col| col + shift));
                indptr.push(cols.len());
            }
            let mask = if above { u32::MAX } else { 0xff_ffff };
            for (i, col) in cols.iter().enumerate() {
                weights.push(col & mask | (seed.wrapping_mul(i as u32 + 1) & !mask));
            }
            let step = if above { step * 300_000_000 } else { step };
            let cutting = Cutting { weights: &weights, mask, indptr: &indptr, count, step };
            for set in available() {
                let mut cuts = vec![7; 3];
                set.cut(&cutting, &mut cuts);
                prop_assert_eq!(cuts.len(), rows.len() * (count + 1));
                for (row, ends) in indptr.windows(2).enumerate() {
                    for strip in 0..count {
                        let found = cuts[strip * rows.len() + row]..cuts[(strip + 1) * rows.len() + row];
                        let is_last = strip + 1 == count;
                        let inside = |&i: &usize| {
                            let at = u64::from(cols[i]) / step as u64;
                            at == strip as u64 || is_last && at > strip as u64
                        };
                        let expected: Vec<usize> = (ends[0]..ends[1]).filter(inside).collect();
                        let found: Vec<usize> = found.map(|i| i as usize).collect();
                        prop_assert_eq!(found, expected, "{} {} {}", set.name(), row, strip);
                    }
                }
            }
        }
    }
}
