//! The logistic function and its inverse between probabilities and logits, and a logarithm, in
//! integers.

/// The logit 1: logits have 8 fractional bits.
pub const LOGIT_ONE: i32 = 256;

/// 65,536 / (1 + e^(i / 4)) for i = 0 … 48, rounded, at least 1: the falling side of the
/// logistic function.
const FALL: [u16; 49] = [
    32768, 28693, 24743, 21025, 17625, 14595, 11955, 9702, 7812, 6249, 4971, 3938, 3108, 2446,
    1921, 1506, 1179, 922, 720, 562, 439, 342, 267, 208, 162, 126, 98, 77, 60, 47, 36, 28, 22, 17,
    13, 10, 8, 6, 5, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1,
];

/// Logits from −12 up to under 12.
const SQUASH: [u16; 6144] = {
    let mut table = [0; 6144];
    let mut i = 0;
    while i < 6144 {
        let logit = i as i32 - 3072;
        let distance = if logit < 0 { -logit } else { logit };
        let (at, part) = ((distance >> 6) as usize, distance & 63);
        let low = if at == 48 {
            FALL[48] as i32
        } else {
            (FALL[at] as i32 * (64 - part) + FALL[at + 1] as i32 * part + 32) >> 6
        };
        let low = if low < 1 { 1 } else { low };
        table[i] = (if logit < 0 { low } else { 65_536 - low }) as u16;
        i += 1;
    }
    table
};

/// For each ⌊p / 16⌋ the least logit of at least its middle, at most ±2047.
const STRETCH: [i16; 4096] = {
    let mut table = [0; 4096];
    let (mut i, mut at) = (0, 0);
    while i < 4096 {
        while at < 6143 && (SQUASH[at] as usize) < 16 * i + 8 {
            at += 1;
        }
        let logit = at as i32 - 3072;
        table[i] = (if logit < -2047 {
            -2047
        } else if logit > 2047 {
            2047
        } else {
            logit
        }) as i16;
        i += 1;
    }
    table
};

/// The probability, of 65,536, of a logit; 1 to 65,535.
#[inline(always)]
pub fn squash(logit: i32) -> u32 {
    SQUASH[(logit.clamp(-3072, 3071) + 3072) as usize].into()
}

/// The logit of a probability of 12 bits.
#[inline(always)]
pub fn stretch(probability: u32) -> i32 {
    STRETCH[(probability & 4095) as usize].into()
}

/// About 4·log2 of a number over 0: four times the place of its top bit, and the two bits below.
#[inline(always)]
pub fn log2_quarters(x: u64) -> i32 {
    debug_assert!(x > 0);
    let place = 63 - x.leading_zeros();
    let below = if place < 2 { x << (2 - place) } else { x >> (place - 2) };
    4 * place as i32 + (below & 3) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squash_is_the_logistic_function_and_stretch_its_inverse() {
        for logit in -3072..=3071 {
            let exact = 65_536.0 / (1.0 + (f64::from(-logit) / 256.0).exp());
            let found = f64::from(squash(logit));
            let least = exact.min(65_536.0 - exact);
            assert!((found - exact).abs() <= 1.5 + least * 0.01, "{logit}: {found} {exact}");
            assert!(logit == -3072 || squash(logit) >= squash(logit - 1));
        }
        assert_eq!((squash(i32::MIN), squash(0), squash(i32::MAX)), (1, 32_768, 65_535));
        for p in 8..4088 {
            let exact = (f64::from(p) + 0.5) / (4095.5 - f64::from(p));
            assert!((f64::from(stretch(p)) - exact.ln() * 256.0).abs() <= 8.0, "{p}");
        }
        assert_eq!((stretch(0), stretch(4095)), (-2047, 2047));
    }

    #[test]
    fn the_logarithm_is_under_by_less_than_three_eighths_of_an_octave() {
        for x in (1..5000).chain([u64::MAX, 1 << 63]) {
            let exact = 4.0 * (x as f64).log2();
            let found = f64::from(log2_quarters(x));
            assert!(found <= exact && found > exact - 1.5, "{x}: {found} {exact}");
        }
        assert_eq!([1, 2, 3, 5, 7].map(log2_quarters), [0, 4, 6, 9, 11]);
    }
}
