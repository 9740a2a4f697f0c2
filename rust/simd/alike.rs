//! How unlike earlier lines are to one, by bit planes of a piece of 32 columns.

/// References that are scored entry by entry.
pub const ACTIVE: usize = 16;

/// The bits of the entries of a piece: kept, and two bits that tell unlike ones.
pub type Planes = [u32; 3];

/// 7 for each entry kept in one of two pieces alone, 4 for each kept in both and unlike.
#[inline(always)]
fn penalty(line: Planes, other: Planes) -> u64 {
    let unlike = (line[1] ^ other[1]) | (line[2] ^ other[2]);
    let alone = (line[0] ^ other[0]).count_ones();
    u64::from(7 * alone + 4 * (line[0] & other[0] & unlike).count_ones())
}

/// [`super::Kernels::add_penalties`].
#[inline(always)]
pub(super) fn add_penalties(line: Planes, lines: &[Planes], keys: &mut [u64]) {
    for key in keys {
        *key += penalty(line, lines[(*key & 0xffff) as usize]) << 16;
    }
}

/// [`super::Kernels::first_penalties`].
#[inline(always)]
pub(super) fn first_penalties(line: Planes, lines: &[Planes], keys: &mut Vec<u64>) {
    keys.clear();
    keys.extend((0..).zip(lines).map(|(place, &other)| penalty(line, other) << 16 | place));
}

/// Keys that are looked at together.
const CHUNK: usize = 8;

/// [`super::Kernels::exchange_least`].
#[inline(always)]
pub(super) fn exchange_least(least: &mut [u64; ACTIVE], keys: &mut [u64]) {
    for chunk in keys.chunks_mut(CHUNK) {
        let greatest = least[ACTIVE - 1];
        if !chunk.iter().fold(false, |any, &key| any | (key < greatest)) {
            continue;
        }
        for key in chunk {
            if *key < least[ACTIVE - 1] {
                let less = std::mem::replace(key, least[ACTIVE - 1]);
                let mut at = ACTIVE - 1;
                while at > 0 && less < least[at - 1] {
                    least[at] = least[at - 1];
                    at -= 1;
                }
                least[at] = less;
            }
        }
    }
}

/// [`super::Kernels::retain_up_to`].
#[inline(always)]
pub(super) fn retain_up_to(limit: u64, keys: &mut Vec<u64>) {
    let mut len = 0;
    for i in 0..keys.len() {
        let key = keys[i];
        keys[len] = key;
        len += usize::from(key <= limit);
    }
    keys.truncate(len);
}

#[cfg(test)]
mod tests {
    use super::super::available;
    use super::*;
    use proptest::prelude::*;

    /// The penalty of the page, entry by entry.
    fn expected(line: Planes, other: Planes) -> u64 {
        let bit = |planes: Planes, which: usize, at: usize| planes[which] >> at & 1;
        let of = |at: usize| match (bit(line, 0, at), bit(other, 0, at)) {
            (0, 0) => 0,
            (1, 1) => {
                let is_same = (1..3).all(|which| bit(line, which, at) == bit(other, which, at));
                if is_same { 0 } else { 4 }
            }
            _ => 7,
        };
        (0..32).map(of).sum()
    }

    proptest! {
        #[test]
        fn every_instruction_set_adds_what_each_entry_costs(
            line in any::<Planes>(), lines in prop::collection::vec(any::<Planes>(), 1..70),
            picked in prop::collection::vec((any::<prop::sample::Index>(), 0u64..1 << 30), 0..70),
        ) {
            let picked: Vec<(usize, u64)> =
                picked.iter().map(|(at, penalty)| (at.index(lines.len()), *penalty)).collect();
            for set in available() {
                let mut keys: Vec<u64> =
                    picked.iter().map(|&(at, penalty)| penalty << 16 | at as u64).collect();
                set.add_penalties(line, &lines, &mut keys);
                for (key, &(at, penalty)) in keys.iter().zip(&picked) {
                    let sum = penalty + expected(line, lines[at]);
                    prop_assert_eq!(*key, sum << 16 | at as u64, "{}", set.name());
                }
                set.first_penalties(line, &lines, &mut keys);
                let places = (0..).zip(&lines);
                let first: Vec<u64> =
                    places.map(|(at, &other)| expected(line, other) << 16 | at).collect();
                prop_assert_eq!(&keys, &first, "{}", set.name());
            }
        }

        #[test]
        fn every_instruction_set_finds_the_least_keys_and_those_up_to_a_limit(
            least in prop::collection::vec(0u64..300, ACTIVE),
            keys in prop::collection::vec(0u64..300, 0..70), limit in 0u64..300,
        ) {
            let mut first: [u64; ACTIVE] = least.try_into().unwrap();
            first.sort_unstable();
            let mut all = [&first[..], &keys].concat();
            all.sort_unstable();
            for set in available() {
                let (mut least, mut others) = (first, keys.clone());
                set.exchange_least(&mut least, &mut others);
                prop_assert_eq!(&least[..], &all[..ACTIVE], "{}", set.name());
                let before = others.clone();
                others.sort_unstable();
                prop_assert_eq!(&others, &all[ACTIVE..], "{}", set.name());
                let mut retained = before.clone();
                set.retain_up_to(limit, &mut retained);
                let expected: Vec<u64> = before.into_iter().filter(|&key| key <= limit).collect();
                prop_assert_eq!(&retained, &expected, "{}", set.name());
            }
        }
    }
}
