//! Optimal code lengths under a limit, by package-merge.
//!
//! ```text
//!   list(1) = leaves, lightest first
//!   list(i + 1) = leaves merged with (pairs of neighbours in list(i))
//!   take the 2·(n − 1) lightest of list(limit); a pair taken takes its two halves of the list
//!   before; a symbol's length is the number of its leaves taken
//! ```
//!
//! A list is kept as one flag an item, leaf or pair, which is all that the way back needs. Between
//! a leaf and a pair of one weight the leaf goes first: that makes the longest codeword shortest.
//! Of two symbols that occur equally often the smaller never has the longer codeword, so a code
//! does not change when its symbols are renumbered by rank.
//!
//! Price: O(n log n + limit · n) time, 2 · limit · n bytes.
//!
//! Source: Larmore and Hirschberg 1990.

/// The code lengths, at most `limit`, that minimise Σ histogram · length; 0 for a symbol that never
/// occurs, 1 for a symbol alone.
///
/// # Panics
/// When 2^limit is less than the number of symbols that occur, or the counts sum to 2⁵⁶ or more.
pub fn lengths(histogram: &[u64], limit: u32) -> Vec<u8> {
    let mut lengths = vec![0; histogram.len()];
    let mut leaves: Vec<usize> = (0..histogram.len()).filter(|&s| histogram[s] > 0).collect();
    if leaves.len() <= 2 {
        leaves.iter().for_each(|&s| lengths[s] = 1);
        return lengths;
    }
    assert!(
        leaves.len() as u64 <= 1 << limit,
        "huffman: limit {limit} for {} symbols",
        leaves.len()
    );
    let total = histogram.iter().try_fold(0u64, |sum, &count| sum.checked_add(count));
    assert!(total.is_some_and(|total| total < 1 << 56), "huffman: counts sum to {total:?}");
    leaves.sort_by_key(|&s| (histogram[s], std::cmp::Reverse(s)));
    let weights: Vec<u64> = leaves.iter().map(|&s| histogram[s]).collect();
    let levels = limit.min(leaves.len() as u32 - 1);

    let mut is_leaf_by_level: Vec<Vec<bool>> = Vec::with_capacity(levels as usize);
    let mut items: Vec<u64> = Vec::new();
    for _ in 0..levels {
        let pairs: Vec<u64> = items.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
        let (mut leaf, mut pair) = (0, 0);
        let mut is_leaf = Vec::with_capacity(weights.len() + pairs.len());
        items.clear();
        while leaf < weights.len() || pair < pairs.len() {
            let takes_leaf =
                pair == pairs.len() || (leaf < weights.len() && weights[leaf] <= pairs[pair]);
            is_leaf.push(takes_leaf);
            if takes_leaf {
                items.push(weights[leaf]);
                leaf += 1;
            } else {
                items.push(pairs[pair]);
                pair += 1;
            }
        }
        is_leaf_by_level.push(is_leaf);
    }
    let mut taken = 2 * (leaves.len() - 1);
    for is_leaf in is_leaf_by_level.iter().rev() {
        let nleaves = is_leaf[..taken].iter().filter(|&&is_leaf| is_leaf).count();
        leaves[..nleaves].iter().for_each(|&symbol| lengths[symbol] += 1);
        taken = 2 * (taken - nleaves);
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cost(histogram: &[u64], lengths: &[u8]) -> u64 {
        histogram.iter().zip(lengths).map(|(&count, &length)| count * u64::from(length)).sum()
    }

    /// The least cost over every vector of lengths in [1, limit] that satisfies Kraft's inequality.
    fn brute_force(histogram: &[u64], limit: u32, space: f64) -> Option<u64> {
        let Some((&count, rest)) = histogram.split_first() else { return Some(0) };
        (1..=limit)
            .filter(|&length| 0.5f64.powi(length as i32) <= space)
            .filter_map(|length| {
                let rest = brute_force(rest, limit, space - 0.5f64.powi(length as i32))?;
                Some(rest + count * u64::from(length))
            })
            .min()
    }

    proptest! {
        #[test]
        fn no_code_within_the_limit_is_cheaper(
            histogram in prop::collection::vec(1u64..200, 2..6), skew in 0u32..4, limit in 3u32..6
        ) {
            let histogram: Vec<u64> = histogram.iter().map(|h| h.pow(skew)).collect();
            let lengths = lengths(&histogram, limit);
            prop_assert!(lengths.iter().all(|&l| (1..=limit).contains(&l.into())));
            prop_assert_eq!(cost(&histogram, &lengths), brute_force(&histogram, limit, 1.0).unwrap());
        }

        #[test]
        fn lengths_fill_the_code_space_and_fall_with_the_count(
            histogram in prop::collection::vec(0u64..1000, 0..500), limit in 9u32..24
        ) {
            let lengths = lengths(&histogram, limit);
            let used = histogram.iter().filter(|&&h| h > 0).count();
            if used >= 2 {
                let kraft: f64 = lengths.iter().filter(|&&l| l > 0).map(|&l| 0.5f64.powi(l.into())).sum();
                prop_assert_eq!(kraft, 1.0);
            }
            for (a, &count) in histogram.iter().enumerate() {
                prop_assert_eq!(lengths[a] > 0, count > 0);
                for b in 0..a {
                    prop_assert!(count == 0 || count > histogram[b] || lengths[a] >= lengths[b]);
                }
            }
        }
    }

    #[test]
    fn a_hand_worked_example_comes_out() {
        // 1 + 1 = 2; 2 + 2 = 4; 4 + 3 = 7; 7 + 8 = 15: the lengths are the depths.
        assert_eq!(lengths(&[1, 1, 2, 3, 8], 24), [4, 4, 3, 2, 1]);
        // Limited to 3: Σ = 3·(1 + 1 + 2 + 3) + 8.
        assert_eq!(lengths(&[1, 1, 2, 3, 8], 3), [3, 3, 3, 3, 1]);
    }

    #[test]
    fn counts_that_double_are_cut_at_the_limit() {
        let histogram: Vec<u64> = (0..50).map(|i| 1 << i).collect();
        let limited = lengths(&histogram, 24);
        assert_eq!(limited.iter().max(), Some(&24));
        let kraft: f64 = limited.iter().map(|&l| 0.5f64.powi(l.into())).sum();
        assert_eq!(kraft, 1.0);
        let even = lengths(&vec![3; 1 << 16], 16);
        assert!(even.iter().all(|&l| l == 16));
    }
}
