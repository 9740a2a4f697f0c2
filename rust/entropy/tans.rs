//! tANS of 128 states: from counts of classes to the tables of a decoder, and back to bits.
//!
//! A code is given by a count for each class, 0 to 64, that sum to 128: a class with count f takes
//! 7 − log2 f bits on average, and no class under one bit. The states are dealt to the classes so
//! that those of a class lie evenly among the others:
//!
//! ```text
//!   part j of class s, 0 ≤ j < count, stands at (2j + 1) / count
//!   the 128 parts in order of that, then of s, are states 0 … 127
//!   part j is x = count + j;  nbits = 7 − ⌊log2 x⌋;  base = x·2^nbits − 128
//!   decode   class = the state's;  state = base + the next nbits bits
//!   encode   from the last element to the first, with y = state + 128:
//!            nbits = the one with count ≤ ⌊y / 2^nbits⌋ < 2·count;  put y's low nbits bits
//!            state = that of part ⌊y / 2^nbits⌋ − count
//! ```
//!
//! Each lane ends in state 0. A lane costs its first state, 7 bits, of which the end gives back
//! some. Why 128 states: their tables stay in registers. What that costs is 0.3 to 1 % of the bits.
//!
//! Source: Duda 2013, arXiv:1311.2540; the even spread is Collet's idea, made exact.

use crate::bits::{self, BitWriter};
use crate::error::{Error, Result};
use crate::simd::tans::{ESCAPE, STATES, TANS_LANES, Table, lane, lanes_in_use};

/// The most classes of a code: each that occurs has a state.
pub const MAX_CLASSES: usize = STATES;
/// The most states of a class: more would leave states without bits.
const MAX_COUNT: u32 = 64;
/// Bits of a stored count.
const COUNT_BITS: u32 = 7;
/// Bits of a stored state.
pub const STATE_BITS: u32 = 7;

/// The counts of a code's classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts(Vec<u32>);

impl Counts {
    /// Counts for classes that occur as often as `histogram` says: 2 to 128 of them, one at least
    /// occurring.
    ///
    /// # Panics
    /// For another number of classes.
    pub fn from_histogram(histogram: &[u64]) -> Self {
        assert!((2..=MAX_CLASSES).contains(&histogram.len()), "tans: {} classes", histogram.len());
        let total = histogram.iter().sum::<u64>().max(1) as f64;
        let share = |&n: &u64| (n as f64 * STATES as f64 / total) as u32;
        let mut counts: Vec<u32> =
            histogram.iter().map(|n| share(n).clamp(u32::from(*n > 0), MAX_COUNT)).collect();
        let mut sum: u32 = counts.iter().sum();
        // One state at a time to the class that saves the most bits, or from the one that loses the
        // fewest.
        let gain = |n: u64, count: u32| n as f64 * (f64::from(count + 1) / f64::from(count)).log2();
        while sum < STATES as u32 {
            let open = (0..counts.len()).filter(|&s| counts[s] < MAX_COUNT);
            let gains = open.map(|s| match histogram[s] {
                0 => (-1.0, s),
                n => (gain(n, counts[s]), s),
            });
            let best = gains.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            counts[best.map_or(0, |(_, s)| s)] += 1;
            sum += 1;
        }
        while sum > STATES as u32 {
            let wide = (0..counts.len()).filter(|&s| counts[s] > 1);
            let losses = wide.map(|s| (gain(histogram[s], counts[s] - 1), s));
            let least = losses.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            counts[least.map_or(0, |(_, s)| s)] -= 1;
            sum -= 1;
        }
        Self(counts)
    }

    /// Takes `nclasses` counts from the bits of `bytes` from `at` on.
    ///
    /// # Errors
    /// `Corrupt` unless each is at most 64 and they sum to 128.
    pub fn read(bytes: &[u8], at: usize, nclasses: usize) -> Result<Self> {
        let fields = (0..nclasses).map(|i| at + i * COUNT_BITS as usize);
        let counts: Vec<u32> = fields.map(|at| bits::field(bytes, at, COUNT_BITS) as u32).collect();
        let sum: u32 = counts.iter().sum();
        if counts.iter().any(|&count| count > MAX_COUNT) || sum != STATES as u32 {
            return Err(Error::corrupt(format!(
                "counts: {nclasses} that sum to {sum}, expected at most 64 each and 128 in all"
            )));
        }
        Ok(Self(counts))
    }

    /// Appends the counts.
    pub fn write(&self, writer: &mut BitWriter) {
        self.0.iter().for_each(|&count| writer.put(count.into(), COUNT_BITS));
    }

    /// The bits that the counts of `nclasses` take.
    pub fn stored_bits(nclasses: usize) -> usize {
        nclasses * COUNT_BITS as usize
    }

    /// About the bits of classes that occur as often as `histogram` says.
    pub fn cost(&self, histogram: &[u64]) -> f64 {
        let classes = self.0.iter().zip(histogram).filter(|(_, n)| **n > 0);
        classes.map(|(&count, &n)| n as f64 * (7.0 - f64::from(count).log2())).sum()
    }

    /// The class with the most states, and how many they are.
    pub fn largest(&self) -> (usize, f64) {
        let largest = self.0.iter().enumerate().max_by_key(|&(s, count)| (count, usize::MAX - s));
        largest.map_or((0, 1.0), |(class, &count)| (class, f64::from(count)))
    }

    /// The class and part of each state.
    fn states(&self) -> Vec<(usize, u32)> {
        let counts = self.0.iter().enumerate();
        let mut states: Vec<(usize, u32)> =
            counts.flat_map(|(s, &count)| (0..count).map(move |j| (s, j))).collect();
        states.sort_by_key(|&(s, j)| {
            // 2^20 times a fraction of two numbers under 2^8 tells any two of them apart.
            (((2 * u64::from(j) + 1) << 20) / u64::from(self.0[s]), s)
        });
        states
    }

    /// The tables of a decoder; `escape` marks the last class.
    pub fn table(&self, escape: bool) -> Table {
        let (mut classes, mut steps) = ([0; STATES], [0; STATES]);
        for (state, (class, part)) in self.states().into_iter().enumerate() {
            let x = self.0[class] + part;
            let nbits = COUNT_BITS - x.ilog2();
            let base = (x << nbits) - STATES as u32;
            let is_escape = escape && class + 1 == self.0.len();
            classes[state] = class as u8 | if is_escape { ESCAPE } else { 0 };
            steps[state] = (base + (1 << (nbits - 1))) as u8;
        }
        Table::new(classes, steps)
    }

    /// The encoder.
    pub fn encoder(&self) -> Encoder {
        let mut states: Vec<Vec<u8>> = self.0.iter().map(|&c| vec![0; c as usize]).collect();
        for (state, (class, part)) in self.states().into_iter().enumerate() {
            states[class][part as usize] = state as u8;
        }
        Encoder { states }
    }
}

/// The state of each part of each class.
#[derive(Debug)]
pub struct Encoder {
    states: Vec<Vec<u8>>,
}

impl Encoder {
    /// Encodes `classes` in turns over the lanes: appends the bits, and gives the first state of
    /// each lane.
    pub fn encode(&self, classes: &[u8], writer: &mut BitWriter) -> [u8; TANS_LANES] {
        let mut states = [0u8; TANS_LANES];
        let mut taken: Vec<(u8, u8)> = vec![(0, 0); classes.len()];
        for (at, &class) in classes.iter().enumerate().rev() {
            let parts = &self.states[usize::from(class)];
            let state = &mut states[lane(at % TANS_LANES)];
            let y = usize::from(*state) + STATES;
            let nbits = (y / parts.len()).ilog2();
            taken[at] = ((y & ((1 << nbits) - 1)) as u8, nbits as u8);
            *state = parts[(y >> nbits) - parts.len()];
        }
        for step in taken.chunks(TANS_LANES) {
            let mut lanes = lanes_in_use(step.len());
            while lanes != 0 {
                let lane = lanes.trailing_zeros() as usize;
                let (bits, nbits) = step[lane / 4 + lane % 4 * 16];
                writer.put(bits.into(), nbits.into());
                lanes &= lanes - 1;
            }
        }
        states
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::entropy;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_sum_to_128_and_every_class_that_occurs_has_one(
            histogram in prop::collection::vec(prop_oneof![Just(0u64), 1u64..5, 1u64..1_000_000], 2..=128)
        ) {
            let counts = Counts::from_histogram(&histogram);
            prop_assert_eq!(counts.0.iter().sum::<u32>(), 128);
            for (&count, &n) in counts.0.iter().zip(&histogram) {
                prop_assert!(count <= 64 && (count > 0 || n == 0));
            }
            let mut writer = BitWriter::new();
            writer.put(1, 3);
            counts.write(&mut writer);
            let again = Counts::read(&writer.finish(), 3, histogram.len()).unwrap();
            prop_assert_eq!(&again, &counts);
            let total = histogram.iter().sum::<u64>() as f64;
            prop_assert!(counts.cost(&histogram) >= entropy(&histogram) * total - 1e-6);
        }

        #[test]
        fn each_state_of_a_class_covers_a_part_of_all_states(
            histogram in prop::collection::vec(0u64..1000, 2..=128)
        ) {
            let counts = Counts::from_histogram(&histogram);
            let table = counts.table(false);
            // The states that a class may lead to are all of them, each once.
            for class in 0..histogram.len() {
                let mut seen = [0; STATES];
                for state in (0..STATES).filter(|&s| usize::from(table.classes()[s]) == class) {
                    let step = table.steps()[state];
                    let (base, mask) = (step & (step - 1), step ^ (step - 1));
                    (base..=base + mask).for_each(|next| seen[usize::from(next)] += 1);
                }
                let expected = u32::from(counts.0[class] > 0);
                prop_assert!(seen.iter().all(|&n| n == expected), "class {class}");
            }
        }
    }

    #[test]
    fn a_code_worked_out_by_hand_comes_out() {
        // Counts 64, 63, 1: parts at 1/64, 1/63, 3/64, 3/63, …; the only part of class 2 at 1.
        let counts = Counts(vec![64, 63, 1]);
        let states = counts.states();
        assert_eq!(states[..4], [(0, 0), (1, 0), (0, 1), (1, 1)]);
        // 63/64 < 1 and 61/63, so 32 parts of class 0 and 31 of class 1 stand before it; part 31 of
        // class 1 stands at 63/63 too, and class 1 goes first.
        assert_eq!((states[62], states[63], states[64]), ((0, 31), (1, 31), (2, 0)));
        let table = counts.table(true);
        // x = 64 takes one bit to states 0 and 1; x = 63 takes two, 63·4 − 128 = 124; x = 1 takes 7.
        assert_eq!((table.steps()[0], table.steps()[1], table.steps()[64]), (1, 126, 64));
        assert_eq!((table.classes()[0], table.classes()[64]), (0, 0x82));
    }

    #[test]
    fn counts_over_64_or_of_another_sum_are_errors() {
        let stored = |counts: &[u32]| {
            let mut writer = BitWriter::new();
            Counts(counts.to_vec()).write(&mut writer);
            Counts::read(&writer.finish(), 0, counts.len())
        };
        assert!(stored(&[64, 64]).is_ok());
        assert!(stored(&[65, 63]).is_err());
        assert!(stored(&[64, 63]).is_err());
        assert!(stored(&[64, 64, 1]).is_err());
        assert_eq!(Counts::from_histogram(&[0, 9, 0]).0, [64, 64, 0]);
    }
}
