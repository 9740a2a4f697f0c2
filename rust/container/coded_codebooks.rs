//! Codebooks coded together: ascending values as steps from one to the next.
//!
//! ```text
//!   codebook:  zeros at the end of all │ how many are negative │ the negative ones │ the others
//!              each kind from the least magnitude up
//!   values:    first: how far from the first one before (of the other sign, of another codebook)
//!              next:  the step of the bit pattern, beside the last step
//!   a number:  4·log2 beside what is expected, by adaptive probabilities; the bits below, as they are
//! ```
//!
//! The centers of clusters lie closest where most weights do, and ever wider apart outwards, so a
//! step tells the next one to about a quarter of an octave; what remains of a value is noise, but
//! for zeros at the end of all of them, as values of half precision have. A layer of a few hundred
//! weights spends a third of its bytes on 32 plain values. Of ResNets with 16 or 32 values a layer
//! 21 to 22 bits a value are left of 32.

use crate::codebook::{Codebook, total_order};
use crate::entropy::mixing::{BinaryCoder, Decoder, Encoder, Slot, log2_quarters};
use crate::error::{Error, Result};

/// Values of codebooks that are coded together, at most.
pub(super) const MAX_VALUES: usize = 1 << 16;
/// Values for a byte, at most.
pub(super) const MAX_VALUES_A_BYTE: u64 = 16;
/// The magnitude's bit pattern.
const MAGNITUDE: u32 = 0x7fff_ffff;
/// Where the first value of all is expected, 2⁻⁷, and the first step.
const FIRST: u32 = 0x3c00_0000;
const FIRST_STEP: u32 = 1 << 20;

/// True for values that can be coded: ascending ones.
pub(super) fn is_codable(codebook: &Codebook) -> bool {
    codebook.values().is_sorted_by(|&a, &b| total_order(a) < total_order(b))
}

/// Codes codebooks, each of which [`is_codable`].
pub(super) fn encode(codebooks: &[&Codebook]) -> Vec<u8> {
    let (mut model, mut encoder) = (Model::new(), Encoder::new());
    for codebook in codebooks {
        let mut values: Vec<u32> = codebook.values().iter().map(|value| value.to_bits()).collect();
        model.code(&mut encoder, &mut values).expect("an encoder takes any values");
    }
    encoder.finish()
}

/// Decodes codebooks of `sizes` values.
///
/// # Errors
/// `Corrupt` or `Truncated`.
pub(super) fn decode(bytes: &[u8], sizes: &[usize]) -> Result<Vec<Codebook>> {
    let (mut model, mut decoder) = (Model::new(), Decoder::new(bytes));
    let codebooks = sizes.iter().map(|&k| {
        let mut values = vec![0; k];
        model.code(&mut decoder, &mut values)?;
        decoder.check()?;
        Codebook::new(values.into_iter().map(f32::from_bits).collect::<Vec<f32>>())
            .map_err(|e| Error::corrupt(e.to_string()))
    });
    let codebooks: Result<Vec<Codebook>> = codebooks.collect();
    decoder.finish()?;
    codebooks
}

/// What numbers are expected, after those before.
struct Model {
    /// The first value coded last, its distance from the one before, and the first step after it.
    first: u32,
    distance: u32,
    step: u32,
    /// Bits at the end of all values that are zero.
    zeros: u32,
    has_as_many: Slot,
    is_less: Slot,
    /// How a number differs from what is expected: of first values, of first steps, of the others.
    differences: [Difference; 3],
}

/// The slots of a signed difference.
#[derive(Clone, Copy)]
struct Difference {
    is_none: Slot,
    is_less: Slot,
    /// Whether it goes on, by sign and how far it is.
    goes_on: [[Slot; 16]; 2],
}

impl Difference {
    const NEW: Self = Self {
        is_none: Slot::new(1 << 14),
        is_less: Slot::new(1 << 15),
        goes_on: [[Slot::new(1 << 15); 16]; 2],
    };

    fn code<C: BinaryCoder>(&mut self, coder: &mut C, given: i32, most: i32) -> Result<i32> {
        if self.is_none.code(coder, (given == 0).into()) == 1 {
            return Ok(0);
        }
        let is_less = self.is_less.code(coder, (given < 0).into());
        let slots = &mut self.goes_on[is_less as usize];
        let mut size = 1;
        while slots[(size as usize).min(16) - 1].code(coder, (given.abs() > size).into()) == 1 {
            size += 1;
            if size > most {
                return Err(Error::corrupt(format!("codebook: a step {size} quarters off")));
            }
        }
        Ok(if is_less == 1 { -size } else { size })
    }
}

impl Model {
    fn new() -> Self {
        Self {
            first: FIRST,
            distance: FIRST_STEP,
            step: FIRST_STEP,
            zeros: 0,
            has_as_many: Slot::new(1 << 15),
            is_less: Slot::new(1 << 15),
            differences: [Difference::NEW; 3],
        }
    }

    /// Codes the values of one codebook, ascending bit patterns.
    fn code<C: BinaryCoder>(&mut self, coder: &mut C, values: &mut [u32]) -> Result<()> {
        let k = values.len() as u32;
        let given = values.iter().fold(0, |all, value| all | value).trailing_zeros().min(31);
        if self.has_as_many.code(coder, (given == self.zeros).into()) == 0 {
            self.zeros = plain(coder, given, 5);
        }
        let given = values.iter().filter(|&&value| value > MAGNITUDE).count() as u32;
        let negatives = plain(coder, given, u32::BITS - k.leading_zeros());
        let Some(rest) = k.checked_sub(negatives) else {
            return Err(Error::corrupt(format!(
                "codebook: {negatives} negative values, expected at most {k}"
            )));
        };
        let (below, above) = values.split_at_mut((k - rest) as usize);
        below.reverse();
        self.code_sign(coder, below)?;
        below.iter_mut().for_each(|value| *value |= !MAGNITUDE);
        below.reverse();
        self.code_sign(coder, above)
    }

    /// Codes the values of one sign, from the least magnitude up.
    fn code_sign<C: BinaryCoder>(&mut self, coder: &mut C, values: &mut [u32]) -> Result<()> {
        let Some((first, rest)) = values.split_first_mut() else { return Ok(()) };
        let zeros = self.zeros;
        let (given, before) = ((*first & MAGNITUDE) >> zeros, self.first >> zeros);
        let is_less = self.is_less.code(coder, (given < before).into()) == 1;
        let expected = (self.distance >> zeros) + 1;
        let distance = self.number(coder, 0, given.abs_diff(before) + 1, expected)? - 1;
        let found =
            if is_less { before.checked_sub(distance) } else { before.checked_add(distance) };
        *first = self.magnitude(found)?;
        (self.first, self.distance) = (*first, distance << zeros);
        let (mut before, mut expected) = (*first, self.step);
        for (i, value) in rest.iter_mut().enumerate() {
            let given = (*value & MAGNITUDE).wrapping_sub(before) >> zeros;
            let kind = if i == 0 { 1 } else { 2 };
            let step = self.number(coder, kind, given, (expected >> zeros).max(1))?;
            *value = self.magnitude((before >> zeros).checked_add(step))?;
            if i == 0 {
                self.step = step << zeros;
            }
            // A step of the value is half as many of the bit pattern with the next exponent.
            let octaves = (*value >> 23) - (before >> 23);
            expected = (step << zeros).checked_shr(octaves).unwrap_or(0);
            before = *value;
        }
        Ok(())
    }

    /// A magnitude without its zeros, with them.
    fn magnitude(&self, found: Option<u32>) -> Result<u32> {
        let found = found.filter(|&found| found <= MAGNITUDE >> self.zeros);
        found.map(|found| found << self.zeros).ok_or_else(|| {
            Error::corrupt("codebook: a value of more than 31 bits, expected up to NaN")
        })
    }

    /// Codes a number over 0 that is expected to be about `expected`.
    fn number<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        kind: usize,
        given: u32,
        expected: u32,
    ) -> Result<u32> {
        let expected = log2_quarters(expected.into());
        let log = if C::DECODES { 0 } else { log2_quarters(given.into()) };
        let log = expected + self.differences[kind].code(coder, log - expected, 127)?;
        let corrupt = || Error::corrupt(format!("codebook: a step of 2^({log} / 4)"));
        let (place, top) = (log >> 2, 4 | log as u32 & 3);
        let nbits = match place {
            0..=31 => (place - 2).max(0) as u32,
            _ => return Err(corrupt()),
        };
        let found = (top << nbits) >> (2 - place).max(0) | plain(coder, given, nbits);
        if log2_quarters(found.into()) == log { Ok(found) } else { Err(corrupt()) }
    }
}

/// Codes the low `nbits` bits of a number as they are, from the top one down.
fn plain<C: BinaryCoder>(coder: &mut C, given: u32, nbits: u32) -> u32 {
    (0..nbits).rev().fold(0, |found, bit| found << 1 | coder.code(given >> bit & 1, 1 << 15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn codebook(mut patterns: Vec<u32>) -> Codebook {
        patterns.retain(|&pattern| pattern != 0);
        let mut values: Vec<f32> = patterns.into_iter().map(f32::from_bits).collect();
        values.sort_unstable_by_key(|&value| total_order(value));
        values.dedup_by_key(|value| value.to_bits());
        Codebook::new(values).unwrap()
    }

    proptest! {
        #[test]
        fn any_ascending_values_come_back_and_damage_is_an_error_or_a_codebook(
            patterns in prop::collection::vec(
                prop::collection::vec(prop_oneof![any::<u32>(), 0u32..50, 0x7fff_fff0..=0x7fff_ffffu32], 1..40),
                1..6
            ),
            at in any::<prop::sample::Index>(), flip in 1u8..,
        ) {
            let codebooks: Vec<Codebook> = patterns.into_iter().map(codebook).collect();
            let codebooks: Vec<&Codebook> = codebooks.iter().filter(|c| c.k() > 0).collect();
            prop_assert!(codebooks.iter().all(|c| is_codable(c)));
            let sizes: Vec<usize> = codebooks.iter().map(|c| c.k()).collect();
            let mut bytes = encode(&codebooks);
            let found = decode(&bytes, &sizes).unwrap();
            for (found, expected) in found.iter().zip(&codebooks) {
                prop_assert_eq!(found.as_bytes(), expected.as_bytes());
            }
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                if let Ok(found) = decode(&bytes, &sizes) {
                    prop_assert!(found.iter().zip(&sizes).all(|(codebook, &k)| codebook.k() == k));
                }
            }
        }
    }

    #[test]
    fn values_ever_wider_apart_take_less_than_their_fractions_alone() {
        let outwards = |i: i32| 0.02 * (f64::from(i) + 0.5) * (1.0 + 0.02 * f64::from(i * i));
        let layer = |scale: f64| {
            let values = (-16..16).map(|i| {
                (scale * if i < 0 { -outwards(-1 - i) } else { outwards(i) * 1.0371 }) as f32
            });
            Codebook::new(values.collect::<Vec<f32>>()).unwrap()
        };
        let layers: Vec<Codebook> = (1..20).map(|i| layer(0.37 + 0.0717 * f64::from(i))).collect();
        let bytes = encode(&layers.iter().collect::<Vec<_>>());
        // Of 32 bits 23 are the fraction.
        assert!(bytes.len() < 19 * 32 * 23 / 8, "{}", bytes.len());
    }

    #[test]
    fn values_of_half_precision_take_no_bits_for_their_zeros() {
        let values: Vec<f32> = (1..=64).map(|i| (i * i) as f32 / 64.0).collect();
        let bytes = encode(&[&Codebook::new(values).unwrap()]);
        assert!(bytes.len() < 64 * 3 / 2, "{}", bytes.len());
    }

    #[test]
    fn a_section_that_is_cut_or_goes_on_is_no_other_form_of_the_same_codebooks() {
        let codebook = Codebook::new(vec![-0.5, -0.1, 0.007_812_5, 0.2, 0.7]).unwrap();
        let bytes = encode(&[&codebook]);
        let reads = |bytes: &[u8]| {
            decode(bytes, &[5]).is_ok_and(|found| found[0].as_bytes() == codebook.as_bytes())
        };
        assert!(reads(&bytes));
        assert!((0..bytes.len()).all(|end| !reads(&bytes[..end])));
        assert!((0..=255).all(|more| !reads(&[&bytes[..], &[more]].concat())));
    }

    #[test]
    fn only_ascending_values_are_coded() {
        assert!(is_codable(&Codebook::new(vec![-1.0, -0.0, 1.0]).unwrap()));
        assert!(!is_codable(&Codebook::new(vec![1.0, -1.0]).unwrap()));
    }
}
