//! Sums of 16-bit numbers that stay at the ends of their range where they would go beyond.

/// [`super::Kernels::add_saturating`].
#[inline(always)]
pub(super) fn add(to: &mut [i16], from: &[i16]) {
    assert_eq!(to.len(), from.len(), "add_saturating: lengths");
    to.iter_mut().zip(from).for_each(|(to, &from)| *to = to.saturating_add(from));
}

/// [`super::Kernels::add_scaled_saturating`].
#[inline(always)]
pub(super) fn add_scaled(to: &mut [i16], from: &[i16], scale: i16) {
    assert_eq!(to.len(), from.len(), "add_scaled_saturating: lengths");
    for (to, &from) in to.iter_mut().zip(from) {
        *to = to.saturating_add(((i32::from(from) * i32::from(scale)) >> 16) as i16);
    }
}

#[cfg(test)]
mod tests {
    use super::super::available;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = i16> {
        prop_oneof![3 => any::<i16>(), 1 => prop::sample::select(vec![i16::MIN, -1, 0, 1, i16::MAX])]
    }

    proptest! {
        #[test]
        fn every_instruction_set_adds_and_stays_in_range(
            pairs in prop::collection::vec((number(), number()), 0..130), scale in number(),
        ) {
            let (to, from): (Vec<i16>, Vec<i16>) = pairs.iter().copied().unzip();
            let sums = |scaled: &dyn Fn(i64) -> i64| -> Vec<i16> {
                let sum = |&(a, b): &(i16, i16)| i64::from(a) + scaled(b.into());
                pairs.iter().map(|pair| sum(pair).clamp(-32_768, 32_767) as i16).collect()
            };
            for set in available() {
                let mut found = to.clone();
                set.add_saturating(&mut found, &from);
                prop_assert_eq!(&found, &sums(&|b| b), "{}", set.name());
                let mut found = to.clone();
                set.add_scaled_saturating(&mut found, &from, scale);
                let scaled = |b: i64| (b * i64::from(scale)).div_euclid(65_536);
                prop_assert_eq!(&found, &sums(&scaled), "{}", set.name());
            }
        }
    }
}
