//! Words: elements as the numbers whose bytes are the planes, and back.

/// How the bytes of elements are words: of 1, 2, 4 or 8 bytes, floats rotated left by a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    nbytes: usize,
    turn: u32,
}

/// Bits, the first one lowest in the first byte.
#[derive(Default)]
pub struct Bits {
    pub bytes: Vec<u8>,
    pub nbits: usize,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.nbits.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (self.nbits % 8);
        }
        self.nbits += 1;
    }
}

/// Words apart: which are kept, that is over 1, what the others are, and the planes of the kept.
pub struct Parts {
    pub kept: Bits,
    pub ones: Bits,
    pub planes: Vec<Vec<u8>>,
}

impl Words {
    /// Words of `nbytes` bytes.
    ///
    /// # Panics
    /// When that is not 1, 2, 4 or 8.
    pub fn new(nbytes: usize, is_float: bool) -> Self {
        assert!(matches!(nbytes, 1 | 2 | 4 | 8), "planes: words of {nbytes} bytes");
        Self { nbytes, turn: u32::from(is_float) }
    }

    /// Bytes of a word, and so the number of planes.
    pub fn nbytes(self) -> usize {
        self.nbytes
    }

    /// The planes of `bytes`, from the lowest.
    pub fn split(self, bytes: &[u8]) -> Vec<Vec<u8>> {
        macro_rules! planes {
            ($t:ty) => {{
                let word = |bytes: &[u8; size_of::<$t>()]| {
                    <$t>::from_le_bytes(*bytes).rotate_left(self.turn)
                };
                let all = bytes.as_chunks().0;
                let plane = |p| all.iter().map(|bytes| (word(bytes) >> (8 * p)) as u8).collect();
                (0..size_of::<$t>()).map(plane).collect()
            }};
        }
        match self.nbytes {
            1 => planes!(u8),
            2 => planes!(u16),
            4 => planes!(u32),
            _ => planes!(u64),
        }
    }

    /// Fills `out` with the words of which these are the planes, one for each byte of a word.
    pub fn join(self, planes: &[&[u8]], out: &mut [u8]) {
        macro_rules! join {
            ($t:ty) => {{
                let (words, _) = out.as_chunks_mut::<{ size_of::<$t>() }>();
                let planes: [&[u8]; size_of::<$t>()] =
                    std::array::from_fn(|p| &planes[p][..words.len()]);
                for (i, word) in words.iter_mut().enumerate() {
                    let bytes = std::array::from_fn(|p| planes[p][i]);
                    *word = <$t>::from_le_bytes(bytes).rotate_right(self.turn).to_le_bytes();
                }
            }};
        }
        match self.nbytes {
            1 => join!(u8),
            2 => join!(u16),
            4 => join!(u32),
            _ => join!(u64),
        }
    }

    /// How many of the words of which these are the planes are 0 or 1.
    pub fn count_small(self, planes: &[Vec<u8>]) -> usize {
        let Some((low, high)) = planes.split_first() else { return 0 };
        let is_small = |i: &usize| high.iter().rev().all(|plane| plane[*i] == 0) && low[*i] <= 1;
        (0..low.len()).filter(is_small).count()
    }

    /// Takes the words apart of which these are the planes.
    pub fn part(self, planes: &[Vec<u8>]) -> Parts {
        let (mut kept, mut ones) = (Bits::default(), Bits::default());
        let mut own = vec![Vec::new(); planes.len()];
        let Some((low, high)) = planes.split_first() else {
            return Parts { kept, ones, planes: own };
        };
        for (i, &byte) in low.iter().enumerate() {
            let is_kept = byte > 1 || high.iter().any(|plane| plane[i] != 0);
            kept.push(is_kept);
            if is_kept {
                own.iter_mut().zip(planes).for_each(|(own, plane)| own.push(plane[i]));
            } else {
                ones.push(byte == 1);
            }
        }
        Parts { kept, ones, planes: own }
    }

    /// Fills `out` with the next of the `words` where a bit of `kept` is set, and elsewhere with
    /// 0 or 1, the next bit of `ones`.
    ///
    /// # Panics
    /// When there are fewer words or bits.
    pub fn place(self, kept: &[u8], ones: &[u8], words: &[u8], out: &mut [u8]) {
        match self.nbytes {
            1 => self.place_in::<1>(kept, ones, words, out),
            2 => self.place_in::<2>(kept, ones, words, out),
            4 => self.place_in::<4>(kept, ones, words, out),
            _ => self.place_in::<8>(kept, ones, words, out),
        }
    }

    /// By 64 words: zeros, then the kept ones where a bit is set, and of the others those that are 1,
    /// which are looked for only where there are any.
    fn place_in<const N: usize>(self, kept: &[u8], ones: &[u8], words: &[u8], out: &mut [u8]) {
        let one = (1u64 << (8 * N as u32 - 1).wrapping_mul(self.turn)).to_le_bytes();
        let one: [u8; N] = std::array::from_fn(|i| one[i]);
        let mut words = words.as_chunks::<N>().0;
        let mut bit = 0;
        for (group, out) in out.as_chunks_mut::<N>().0.chunks_mut(64).enumerate() {
            out.fill([0; N]);
            let all = u64::MAX >> (64 - out.len());
            let is_kept = bits_from(kept, 64 * group) & all;
            let (these, rest) = words.split_at(is_kept.count_ones() as usize);
            for (place, word) in set_bits(is_kept).zip(these) {
                out[place] = *word;
            }
            words = rest;
            let others = !is_kept & all;
            let count = others.count_ones();
            if count > 0 {
                let is_one = bits_from(ones, bit) & (u64::MAX >> (64 - count));
                bit += count as usize;
                if is_one != 0 {
                    for (number, place) in set_bits(others).enumerate() {
                        if is_one >> number & 1 == 1 {
                            out[place] = one;
                        }
                    }
                }
            }
        }
    }
}

/// 64 bits from bit `start` on; past the last byte they are zeros.
fn bits_from(bytes: &[u8], start: usize) -> u64 {
    let bytes = &bytes[(start / 8).min(bytes.len())..];
    let mut window = [0; 16];
    let count = bytes.len().min(9);
    window[..count].copy_from_slice(&bytes[..count]);
    (u128::from_le_bytes(window) >> (start % 8)) as u64
}

/// The places of the bits that are set, from the lowest.
fn set_bits(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (place < 64).then_some(place as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_split_and_joined_as_worked_out_by_hand() {
        // -1.5 is BFC00000: rotated left by a bit, 7F800001.
        let bytes = [1.0f32, -1.5].map(f32::to_le_bytes).concat();
        let words = Words::new(4, true);
        let planes = words.split(&bytes);
        assert_eq!(planes, [[0, 1], [0, 0], [0, 0x80], [0x7f, 0x7f]]);
        let mut out = vec![0; 8];
        words.join(&planes.iter().map(|p| &p[..]).collect::<Vec<_>>(), &mut out);
        assert_eq!(out, bytes);
        assert_eq!(Words::new(2, false).split(&[1, 2, 3, 4]), [[1, 3], [2, 4]]);
    }

    #[test]
    fn zeros_of_either_sign_are_not_kept() {
        let values = [0.0f32, 2.0, -0.0, -0.0, f32::from_bits(1)];
        let bytes = values.map(f32::to_le_bytes).concat();
        let words = Words::new(4, true);
        let parts = words.part(&words.split(&bytes));
        assert_eq!((parts.kept.bytes, parts.kept.nbits), (vec![0b10010], 5));
        assert_eq!((parts.ones.bytes, parts.ones.nbits), (vec![0b110], 3));
        assert_eq!(words.count_small(&words.split(&bytes)), 3);
        // 2.0 is 40000000, the smallest float 00000001: rotated 80000000 and 00000002.
        assert_eq!(parts.planes, [[0, 2], [0, 0], [0, 0], [0x80, 0]]);
        let mut out = vec![9; 20];
        words.place(&[0b10010], &[0b110], &[&bytes[4..8], &bytes[16..]].concat(), &mut out);
        assert_eq!(out, bytes);
    }

    #[test]
    fn words_are_placed_over_groups_as_one_by_one() {
        for (nbytes, turn, count) in [(1, true, 130), (2, true, 64), (4, false, 200), (8, true, 65)]
        {
            let words = Words::new(nbytes, turn);
            let is_kept = |i: usize| i.is_multiple_of(3) || i > 150;
            let is_one = |i: usize| i % 7 == 1 && i > 70;
            let (mut kept, mut ones, mut given) = (Bits::default(), Bits::default(), Vec::new());
            let mut expected = Vec::new();
            let one = (1u64 << if turn { 8 * nbytes - 1 } else { 0 }).to_le_bytes();
            for i in 0..count {
                kept.push(is_kept(i));
                if is_kept(i) {
                    given.extend(vec![i as u8 | 2; nbytes]);
                    expected.extend(vec![i as u8 | 2; nbytes]);
                } else {
                    ones.push(is_one(i));
                    let other = if is_one(i) { one } else { [0; 8] };
                    expected.extend(&other[..nbytes]);
                }
            }
            let mut out = vec![9; count * nbytes];
            words.place(&kept.bytes, &ones.bytes, &given, &mut out);
            assert_eq!(out, expected, "{nbytes} bytes");
        }
    }
}
