//! Which value a kept weight has: its sign, then its rank among those of that sign, bit by bit.
//!
//! ```text
//!   sign ──▶ number among the values of that sign, from the least magnitude up, from the top bit of
//!            those that k values need down; a bit that no value of that sign has set is skipped
//! ```
//!
//! The top nine bits are mixed from seven contexts, the ones below have a slot for each place in
//! the tree, so that any k goes. In a kernel the values around tell more than references do.

use super::levels::{Levels, sign};
use crate::entropy::mixing::{BinaryCoder, LOGIT_ONE, Predictor, PredictorSize, Slot};

/// Inputs of the mixer: seven slots and a constant.
const INPUTS: usize = 8;
/// Bits of a number that are mixed.
const MIXED_BITS: u32 = 9;
/// The most values of which all bits are mixed: more do not go on from another matrix.
pub(crate) const MAX_MIXED: usize = 1 << MIXED_BITS;
/// Sets of weights and maps of a sign's contexts; a number's come after them.
const SIGN_SETS: usize = 96;

/// What is known when a value is coded.
pub(super) struct ValueContexts {
    /// The entries of the three best references.
    pub(super) hints: [u32; 3],
    /// The signed level that the network expects, in halves, above 128.
    pub(super) expected: u32,
    /// Of the channel or column, of the line, of the column.
    pub(super) densities: [usize; 3],
    /// That of the kernel so far, up to 31; 0 without one.
    pub(super) kernel: usize,
    /// The position in the kernel, up to 8.
    pub(super) position: usize,
    /// What is around it in a kernel: two numbers, none without one.
    pub(super) around: Option<[u32; 2]>,
    /// The value kept last in the line, and in the column.
    pub(super) last: u32,
    pub(super) last_in_column: u32,
}

/// What differs between the bits of a value.
struct Bit {
    node: u32,
    sets: [usize; 2],
    map: usize,
    given: u32,
}

/// The state of what predicts values.
#[derive(Clone, Debug)]
pub(super) struct ValueModel {
    mixed: Predictor<INPUTS>,
    /// Bits of a slot's number among those of one context.
    slot_bits: u32,
    /// The low bits of numbers, by place in the tree and sign.
    low: Vec<Slot>,
}

impl ValueModel {
    /// A model of `k` values.
    pub(super) fn new(k: usize) -> Self {
        let bits = usize::BITS - k.leading_zeros();
        let slot_bits = (bits + 6).clamp(13, 18);
        Self {
            mixed: Predictor::new(PredictorSize {
                slots: (INPUTS - 1) << slot_bits,
                sets: [512, 64],
                maps: 512,
            }),
            slot_bits,
            low: vec![Slot::new(1 << 15); if k > MAX_MIXED { 2 << bits } else { 0 }],
        }
    }

    /// Makes what it has learnt a start for another matrix of at most [`MAX_MIXED`] values.
    pub(super) fn calm(&mut self, told: u32) {
        self.mixed.calm(told);
    }

    /// Codes an entry that is kept.
    pub(super) fn code<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        levels: &Levels,
        contexts: &ValueContexts,
        entry: u32,
    ) -> u32 {
        let [negatives, positives] = levels.counts;
        let hashes = hashes(contexts);
        let [a, b, _] = contexts.hints.map(sign);
        let mut is_positive = positives > 0;
        if negatives > 0 && positives > 0 {
            let signs = 3 * a + b;
            let last = 3 * sign(contexts.last_in_column) + sign(contexts.last);
            let bit = Bit {
                node: 1,
                sets: [signs * 9 + contexts.position, contexts.kernel],
                map: signs * 9 + last,
                given: u32::from(sign(entry) == 2),
            };
            is_positive = self.code_bit(coder, &hashes, &bit) == 1;
        }
        let number = (entry as usize).wrapping_sub(1) >> 1;
        let count = levels.counts[usize::from(is_positive)];
        let negative = usize::from(!is_positive);
        let agrees = usize::from(a == 1 + usize::from(is_positive));
        let nbits = usize::BITS - (levels.k() - 1).leading_zeros();
        let (mut node, mut base) = (1, 0);
        for place in (0..nbits).rev() {
            if base + (1 << place) >= count {
                node *= 2;
                continue;
            }
            let given = (number >> place) as u32 & 1;
            let found = if nbits - place > MIXED_BITS {
                self.low[2 * node + negative].code(coder, given)
            } else {
                let line = 32 + contexts.densities[1];
                let bit = Bit {
                    node: (2 + 2 * node + negative) as u32,
                    sets: [SIGN_SETS + (2 * node.min(63) + negative) * 2 + agrees, line],
                    map: SIGN_SETS + 2 * node.min(127) + negative,
                    given,
                };
                self.code_bit(coder, &hashes, &bit)
            };
            node = 2 * node + found as usize;
            base += (found as usize) << place;
        }
        (1 + 2 * base + usize::from(is_positive)) as u32
    }

    fn code_bit<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        hashes: &[u32; INPUTS - 1],
        bit: &Bit,
    ) -> u32 {
        let mut slots = [0; INPUTS];
        for (i, (slot, &hash)) in slots.iter_mut().zip(hashes).enumerate() {
            let mixed = (hash ^ bit.node.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b);
            let mixed = (mixed ^ mixed >> 15).wrapping_mul(0xc2b2_ae35);
            *slot = (i << self.slot_bits) + (mixed >> (32 - self.slot_bits)) as usize;
        }
        self.mixed.code(coder, &slots, LOGIT_ONE, bit.sets, bit.map, bit.given)
    }
}

/// The contexts as numbers; each is mixed with the place in the tree.
fn hashes(contexts: &ValueContexts) -> [u32; INPUTS - 1] {
    let [a, b, c] = contexts.hints;
    let [density, line, column] = contexts.densities.map(|density| density as u32);
    let half = contexts.expected >> 1;
    let near = (density * 32 + line) * 8 + contexts.kernel as u32 / 4;
    let in_column = half * 64 + column;
    if let Some([around, beside]) = contexts.around {
        return [0, around, contexts.last, near, contexts.expected, in_column, beside];
    }
    let first = [a, b, c].into_iter().find(|&hint| hint != 0).unwrap_or(0);
    let hints = a << 20 ^ b << 10 ^ c;
    [0, hints, contexts.last, near, contexts.expected, in_column, half * 1024 + first]
}
