//! Bytes made from bytes: flips, numbers at their edges, cuts, copies and splices.

/// Numbers of 64 bits, one after the other: xorshift64* (Vigna 2016).
pub struct Random(u64);

impl Random {
    /// Numbers that `seed` stands for.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next one.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// One of 0 … `n` − 1; 0 where n is 0.
    pub fn under(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// Where fields, sizes and products of them overflow.
const EDGES: [u64; 24] = [
    0,
    1,
    2,
    7,
    8,
    16,
    57,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    257,
    65_535,
    65_536,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    1 << 62,
    1 << 63,
    u64::MAX,
];
/// Bytes of an input, at most.
const MAX_NBYTES: usize = 1 << 14;

/// `bytes` with one to six changes, some of them parts of `other`.
pub fn mutated(bytes: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.under(4) * random.under(3) / 2 {
        change(&mut bytes, other, random);
    }
    bytes.truncate(MAX_NBYTES);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.under(bytes.len());
    let some = |random: &mut Random, left: usize| {
        let most = 1 << random.under(9);
        random.under(left.min(most) + 1)
    };
    let kind = random.under(12);
    match bytes.get_mut(at) {
        None => bytes.push(random.next() as u8),
        Some(byte) if kind < 3 => *byte ^= 1 << random.under(8),
        Some(byte) if kind == 3 => *byte = random.next() as u8,
        Some(byte) if kind == 4 => {
            let step = 1 + random.under(4) as u8;
            *byte = if random.under(2) == 0 {
                byte.wrapping_add(step)
            } else {
                byte.wrapping_sub(step)
            };
        }
        Some(_) if kind == 5 => {
            // A number as a varint, in the place of one.
            let mut number = Vec::new();
            let edge = EDGES[random.under(EDGES.len())].wrapping_add(random.under(3) as u64);
            tersenet::bits::put_varint(&mut number, edge.wrapping_sub(1));
            let end =
                bytes[at..].iter().position(|&b| b < 0x80).map_or(bytes.len(), |n| at + n + 1);
            bytes.splice(at..end, number);
        }
        Some(_) if kind == 6 => {
            // A number as words have it.
            let edge = EDGES[random.under(EDGES.len())].to_le_bytes();
            let width = 1 << random.under(4);
            bytes[at..].iter_mut().zip(&edge[..width]).for_each(|(byte, &new)| *byte = new);
        }
        Some(_) if kind == 7 => {
            let end = at + some(random, bytes.len() - at);
            bytes.drain(at..end);
        }
        Some(_) if kind == 8 => {
            let fill = [0, 0xff, 0x80, random.next() as u8][random.under(4)];
            let end = at + some(random, bytes.len() - at);
            bytes[at..end].fill(fill);
        }
        Some(_) if kind == 9 => {
            // A part of itself, somewhere else.
            let end = at + some(random, bytes.len() - at);
            let part = bytes[at..end].to_vec();
            let to = random.under(bytes.len() + 1);
            bytes.splice(to..to, part);
        }
        Some(_) => {
            // A part of another one, in the place of as much or in between.
            let from = random.under(other.len());
            let part = &other[from..from + some(random, other.len() - from)];
            let end = if kind == 10 { (at + part.len()).min(bytes.len()) } else { at };
            bytes.splice(at..end, part.iter().copied());
        }
    }
}
