//! A bit's probability from N slots and one more logit: mixed, mapped, and learnt from.

use super::binary::BinaryCoder;
use super::logistic::{LOGIT_ONE, squash, stretch};

/// An adaptive probability: 22 bits of it above 10 bits that count how often it was told a bit.
#[derive(Clone, Copy, Debug)]
pub struct Slot(u32);

/// 2¹⁷ / (2n + 3): the step to the n-th bit, of 65,536.
const STEPS: [u32; 1024] = {
    let mut steps = [0; 1024];
    let mut n = 0;
    while n < 1024 {
        steps[n] = (1 << 17) / (2 * n as u32 + 3);
        n += 1;
    }
    steps
};

impl Slot {
    /// A slot of probability `p` / 65,536 that was told nothing yet.
    pub const fn new(p: u32) -> Self {
        Self(p << 16)
    }

    /// The probability, of 65,536.
    #[inline(always)]
    pub fn probability(self) -> u32 {
        self.0 >> 16
    }

    /// The logit.
    #[inline(always)]
    fn logit(self) -> i32 {
        stretch(self.0 >> 20)
    }

    /// Moves towards `bit`, by a step that shrinks until `limit` bits were told.
    #[inline(always)]
    pub fn learn(&mut self, bit: u32, limit: u32) {
        let (told, p) = (self.0 & 1023, (self.0 >> 10) as i64);
        let distance = (i64::from(bit) << 22) - i64::from(bit) - p;
        let p = p + ((distance * i64::from(STEPS[told as usize])) >> 16);
        self.0 = (p as u32) << 10 | (told + u32::from(told < limit));
    }

    /// Takes the bits told so far for at most `told`, so that the next ones move it more.
    pub fn calm(&mut self, told: u32) {
        self.0 = self.0 & !1023 | (self.0 & 1023).min(told);
    }

    /// Codes a bit with this probability alone.
    #[inline(always)]
    pub fn code<C: BinaryCoder>(&mut self, coder: &mut C, bit: u32) -> u32 {
        let bit = coder.code(bit, self.probability().clamp(LEAST_ALONE, 65_536 - LEAST_ALONE));
        self.learn(bit, 1023);
        bit
    }
}

/// The least probability of a bit that a slot codes alone, and of one that is mixed, of 65,536.
const LEAST_ALONE: u32 = 3;
const LEAST_MIXED: u32 = 8;
/// Bins of a map, half a logit apart: logits −10 to 10.
const BINS: usize = 41;
/// The sum of the weights that a predictor starts with, of 65,536.
const FIRST_WEIGHTS: i32 = 72_000;
/// A set of weights learns 1 + 6.7 · 32 / (32 + n) times as fast at its n-th bit, up to this one.
const EARLY_BITS: i32 = 4096;
const EARLY_RATE: i32 = 160 * 32;
const RATE: i32 = 24;

/// How much of each thing a predictor has.
#[derive(Clone, Copy, Debug)]
pub struct PredictorSize {
    /// All slots.
    pub slots: usize,
    /// Sets of weights, of either kind.
    pub sets: [usize; 2],
    /// Contexts of the map.
    pub maps: usize,
}

/// Predicts bits from `N` slots and one more logit, `INPUTS` = N + 1 in all.
#[derive(Clone, Debug)]
pub struct Predictor<const INPUTS: usize> {
    slots: Vec<Slot>,
    weights: [Vec<[i32; INPUTS]>; 2],
    told: Vec<u16>,
    map: Vec<u16>,
}

impl<const INPUTS: usize> Predictor<INPUTS> {
    /// A predictor that has learnt nothing.
    pub fn new(size: PredictorSize) -> Self {
        let bins = (0..BINS as i32).map(|bin| squash((bin - 20) * LOGIT_ONE / 2) as u16);
        let bins: Vec<u16> = bins.collect();
        Self {
            slots: vec![Slot::new(1 << 15); size.slots],
            weights: [
                vec![[FIRST_WEIGHTS / INPUTS as i32; INPUTS]; size.sets[0]],
                vec![[0; INPUTS]; size.sets[1]],
            ],
            told: vec![0; size.sets[0]],
            map: bins.repeat(size.maps),
        }
    }

    /// Keeps what it has learnt as a start for bits that may differ: slots as if told at most `told`,
    /// weights as new.
    pub fn calm(&mut self, told: u32) {
        self.slots.iter_mut().for_each(|slot| slot.calm(told));
        self.told.fill(0);
    }

    /// Codes a bit: `slots` are the numbers of `INPUTS − 1` slots, `logit` is the last input, `sets`
    /// and `maps` choose weights and maps.
    #[inline(always)]
    pub fn code<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        slots: &[usize; INPUTS],
        logit: i32,
        sets: [usize; 2],
        map: usize,
        bit: u32,
    ) -> u32 {
        let mut inputs = [logit; INPUTS];
        for (input, &slot) in inputs.iter_mut().zip(&slots[..INPUTS - 1]) {
            *input = self.slots[slot].logit();
        }
        let [first, second] = &mut self.weights;
        let (first, second) = (&mut first[sets[0]], &mut second[sets[1]]);
        let mut sum = 0;
        for i in 0..INPUTS {
            sum += i64::from(inputs[i]) * i64::from(first[i].wrapping_add(second[i]));
        }
        let mixed = (sum >> 16).clamp(-2559, 2559) as i32;
        let p_mixed = squash(mixed) as i32;
        let (bin, part) = (((mixed + 2560) >> 7) as usize, (mixed + 2560) & 127);
        let at = map * BINS + bin;
        let [low, high] = [self.map[at], self.map[at + 1]].map(i32::from);
        let p_mapped = (low * (128 - part) + high * part) >> 7;
        let p = ((p_mixed + p_mapped) >> 1).clamp(LEAST_MIXED as i32, (65_536 - LEAST_MIXED) as i32)
            as u32;
        let bit = coder.code(bit, p);
        let bin = &mut self.map[at + (part >> 6) as usize];
        *bin = (i32::from(*bin) + ((bit as i32 * 65_535 - i32::from(*bin)) >> 6)) as u16;
        let told = i32::from(self.told[sets[0]]);
        self.told[sets[0]] += u16::from(told < EARLY_BITS);
        let early = if told < EARLY_BITS { EARLY_RATE / (32 + told) } else { 0 };
        let error = ((((bit as i32) << 16) - p_mixed) * (RATE + early)) >> 8;
        for i in 0..INPUTS {
            let step = (inputs[i] * error + (1 << 13)) >> 14;
            first[i] = first[i].wrapping_add(step);
            second[i] = second[i].wrapping_add(step);
        }
        for &slot in &slots[..INPUTS - 1] {
            self.slots[slot].learn(bit, 1023);
        }
        bit
    }
}
