//! Decoding: a table for short codewords, several at a time, and a search for long ones.
//!
//! The next 11 bits index a table of packed entries:
//!
//! ```text
//!   all symbols under 256        31    28 27 26 25   24 23   16 15    8 7     0
//!                               │ nbits  │  0  │ count │ third │ second│ first │   count in [1, 3]
//!   otherwise                   │ nbits  │  0  │   1   │        symbol         │
//!   first codeword over 11 bits │                      0                       │
//! ```
//!
//! `nbits` is what the codewords take together. The bytes are written whatever `count` says, all four,
//! and the output advances by `count`, so there is no branch on it. A 33-bit window serves three
//! look-ups. A long codeword is found as published: the length is the first one whose next length's
//! first codeword is above the window.
//!
//! One look-up waits for the one before it, a dozen cycles; rows start at known bits, so four of
//! them are decoded in turns and the waits overlap.
//!
//! Price, on one core of an AMD EPYC with AVX2: 1.1 ns a symbol for 32 symbols of 4 bits in long
//! rows, 2.6 ns in rows of 15, where starting and ending a row is felt. Where symbols go past 255 a
//! look-up yields one of them, in 2.6 to 3 ns.

use super::stream::window;
use super::{Code, MAX_BITS};

/// The bits that index the table.
pub const PRIMARY_BITS: u32 = 11;
/// Rows that are decoded in turns.
pub const LANES: usize = 4;
/// Look-ups that one window serves.
const LOOKUPS: usize = 3;
/// The most symbols in an entry.
const MOST: usize = 3;
/// Symbols that are written of an entry, the last one without a meaning: its four bytes at once.
const WRITTEN: usize = MOST + 1;
/// Room for what a window's look-ups may write. The last one starts at 6 at most; 7 is what a mask
/// of three bits lets the compiler see.
const ROOM: usize = 7 + WRITTEN;

const _: () = assert!(LOOKUPS as u32 * PRIMARY_BITS <= 33 && MAX_BITS <= 33);

/// Finds one symbol by its codeword's length: small, and right for every code.
#[derive(Clone, Debug)]
pub struct Search {
    /// The symbol of each rank; never empty.
    symbols: Vec<u32>,
    longest: u32,
    /// As in [`Code`], with the same invariants: `longest + 2` entries each, the last first
    /// codeword 2^longest and the last first rank the number of symbols.
    first_ranks: Vec<u32>,
    first_codewords: Vec<u32>,
}

impl Search {
    /// A search for `name(symbol)` of each symbol of `code`, which has at least one.
    pub fn new(code: &Code, name: impl Fn(u32) -> u32) -> Self {
        assert!(!code.order().is_empty(), "huffman: nothing can be decoded with no symbols");
        Self {
            symbols: code.order().iter().map(|&symbol| name(symbol)).collect(),
            longest: code.longest(),
            first_ranks: code.first_ranks().to_vec(),
            first_codewords: code.first_codewords().to_vec(),
        }
    }

    /// The symbol whose codeword is on top of `window`, and its length.
    #[inline]
    pub fn find(&self, window: u64) -> (u32, u32) {
        let value = (window >> 1 >> (63 - self.longest)) as u32;
        let mut length = 0;
        // Ends at `longest` at the latest: value < 2^longest = first_codewords[longest + 1].
        while self.first_codewords[length + 1] <= value {
            length += 1;
        }
        let above = value - self.first_codewords[length];
        let rank = self.first_ranks[length] + (above >> (self.longest - length as u32));
        (self.symbols[rank as usize], length as u32)
    }

    /// The codewords that lie wholly in the first [`PRIMARY_BITS`] of a window, one by one: the
    /// symbol and the bits up to its end.
    pub fn prefix(&self, index: usize) -> impl Iterator<Item = (u32, u32)> {
        let window = (index as u64) << (64 - PRIMARY_BITS);
        let mut nbits = 0;
        std::iter::from_fn(move || {
            let (symbol, length) = self.find(window << nbits);
            nbits += length;
            (nbits <= PRIMARY_BITS && length > 0).then_some((symbol, nbits))
        })
    }
}

/// What decoded symbols are stored as: `u16`, or `u8` where all are under 256.
pub trait Stored: Copy {
    /// The most symbols that it holds.
    const NSYMBOLS: usize;

    /// A symbol, of one that it holds.
    fn of(symbol: u32) -> Self;

    /// Writes the three symbols of an entry, and what comes out of its top byte.
    fn store(entry: u32, room: &mut [Self; WRITTEN]);
}

impl Stored for u16 {
    const NSYMBOLS: usize = 1 << 16;

    #[inline]
    fn of(symbol: u32) -> Self {
        symbol as u16
    }

    #[inline]
    fn store(entry: u32, room: &mut [Self; WRITTEN]) {
        *room = entry.to_le_bytes().map(u16::from);
    }
}

impl Stored for u8 {
    const NSYMBOLS: usize = 1 << 8;

    #[inline]
    fn of(symbol: u32) -> Self {
        symbol as u8
    }

    #[inline]
    fn store(entry: u32, room: &mut [Self; WRITTEN]) {
        *room = entry.to_le_bytes();
    }
}

/// A stretch of the stream and where its symbols go.
#[derive(Debug)]
pub struct Lane<'a, S> {
    /// The position of the next codeword in bits.
    pub at: u64,
    /// Room for exactly the symbols that are to be decoded.
    pub out: &'a mut [S],
    done: usize,
}

impl<'a, S> Lane<'a, S> {
    /// `out.len()` symbols from position `at`.
    pub fn new(at: u64, out: &'a mut [S]) -> Self {
        Self { at, out, done: 0 }
    }
}

/// A decoder of symbols under 65,536.
#[derive(Clone, Debug)]
pub struct Decoder {
    search: Search,
    /// True when every symbol is under 256, and entries hold several.
    is_narrow: bool,
    /// Over the largest symbol.
    nsymbols: usize,
    /// The codeword lengths of symbols under 256, for the first of several in an entry.
    narrow_lengths: [u8; 256],
    primary: Box<[u32; 1 << PRIMARY_BITS]>,
}

impl Decoder {
    /// A decoder for `code`, which has at least one symbol and none of 65,536 or more.
    pub fn new(code: &Code) -> Self {
        assert!(code.nsymbols() <= 1 << 16, "huffman: {} symbols, at most 65536", code.nsymbols());
        let search = Search::new(code, |symbol| symbol);
        let is_narrow = search.symbols.iter().all(|&symbol| symbol < 256);
        let mut primary = Box::new([0; 1 << PRIMARY_BITS]);
        for (index, entry) in primary.iter_mut().enumerate() {
            let most = if is_narrow { MOST } else { 1 };
            for (count, (symbol, nbits)) in search.prefix(index).take(most).enumerate() {
                let symbols = (*entry & 0xff_ffff) | symbol << (8 * count);
                *entry = nbits << 28 | (count as u32 + 1) << 24 | symbols;
            }
        }
        let length = |symbol| if symbol < code.nsymbols() { code.length(symbol) as u8 } else { 0 };
        let narrow_lengths = std::array::from_fn(length);
        let nsymbols = search.symbols.iter().max().map_or(0, |&symbol| symbol as usize + 1);
        Self { search, is_narrow, nsymbols, narrow_lengths, primary }
    }

    /// Fills every lane's `out` and moves its `at` past the last codeword.
    ///
    /// Any bits decode to something; past the end of `words` they are zeros.
    ///
    /// # Panics
    /// Where symbols do not fit in what they are stored as.
    pub fn decode<S: Stored>(&self, words: &[u32], lanes: &mut [Lane<'_, S>]) {
        assert!(
            self.nsymbols <= S::NSYMBOLS,
            "huffman: symbols of more bits than they are stored in"
        );
        if self.search.longest == 0 {
            let symbol = S::of(self.search.symbols[0]);
            return lanes.iter_mut().for_each(|lane| lane.out.fill(symbol));
        }
        for group in lanes.chunks_mut(LANES) {
            if let Some(four) = group.first_chunk_mut::<LANES>() {
                self.decode_in_turns(words, four);
            }
            for lane in group {
                self.decode_in_turns(words, std::array::from_mut(lane));
                self.finish(words, lane);
            }
        }
    }

    #[inline]
    fn decode_in_turns<S: Stored, const N: usize>(
        &self,
        words: &[u32],
        lanes: &mut [Lane<'_, S>; N],
    ) {
        if self.is_narrow {
            self.turns::<S, N, true>(words, lanes);
        } else {
            self.turns::<S, N, false>(words, lanes);
        }
    }

    /// Decodes while every lane has room for whatever a window can hold.
    ///
    /// Lanes do not depend on each other, so the processor overlaps them; within a lane, bits and
    /// symbols are summed up in one number, 16 · bits + symbols, taken from the entries as they are.
    fn turns<S: Stored, const N: usize, const NARROW: bool>(
        &self,
        words: &[u32],
        lanes: &mut [Lane<'_, S>; N],
    ) {
        while lanes.iter().all(|lane| lane.done + ROOM <= lane.out.len()) {
            let at: [u64; N] = std::array::from_fn(|i| lanes[i].at);
            let mut tops: [u64; N] = std::array::from_fn(|i| window(words, at[i]));
            let mut taken = [0u32; N];
            let mut rooms =
                lanes.each_mut().map(|lane| lane.out[lane.done..].first_chunk_mut::<ROOM>());
            for _ in 0..LOOKUPS {
                for i in 0..N {
                    let Some(room) = &mut rooms[i] else { return };
                    let entry = self.primary[(tops[i] >> (64 - PRIMARY_BITS)) as usize];
                    if entry == 0 {
                        let (symbol, length) = self.long(words, at[i] + u64::from(taken[i] >> 4));
                        room[(taken[i] & 7) as usize] = S::of(symbol);
                        taken[i] += length << 4 | 1;
                        tops[i] = window(words, at[i] + u64::from(taken[i] >> 4));
                        continue;
                    }
                    let out = &mut room[(taken[i] & 7) as usize..];
                    match out.first_chunk_mut::<WRITTEN>() {
                        Some(out) if NARROW => S::store(entry, out),
                        _ => out[0] = S::of(entry & 0xffff),
                    }
                    taken[i] += entry >> 24;
                    tops[i] <<= entry >> 28;
                }
            }
            for (lane, taken) in lanes.iter_mut().zip(taken) {
                lane.at += u64::from(taken >> 4);
                lane.done += (taken & 15) as usize;
            }
        }
    }

    /// The symbol and the length of a codeword that is too long for the table.
    #[cold]
    #[inline(never)]
    fn long(&self, words: &[u32], at: u64) -> (u32, u32) {
        self.search.find(window(words, at))
    }

    /// Decodes the rest of a lane: several symbols at a time while they fit, then one by one.
    fn finish<S: Stored>(&self, words: &[u32], lane: &mut Lane<'_, S>) {
        while let Some(room) = lane.out[lane.done..].first_chunk_mut::<WRITTEN>() {
            let top = window(words, lane.at);
            let entry = self.primary[(top >> (64 - PRIMARY_BITS)) as usize];
            if entry == 0 || !self.is_narrow {
                let (symbol, length) = self.search.find(top);
                room[0] = S::of(symbol);
                lane.at += u64::from(length);
                lane.done += 1;
                continue;
            }
            S::store(entry, room);
            lane.at += u64::from(entry >> 28);
            lane.done += (entry >> 24 & 3) as usize;
        }
        for out in &mut lane.out[lane.done..] {
            let top = window(words, lane.at);
            let entry = self.primary[(top >> (64 - PRIMARY_BITS)) as usize];
            if entry == 0 || !self.is_narrow {
                let (symbol, length) = self.search.find(top);
                *out = S::of(symbol);
                lane.at += u64::from(length);
            } else {
                *out = S::of(entry & 0xff);
                lane.at += u64::from(self.narrow_lengths[(entry & 0xff) as usize]);
            }
        }
        lane.done = lane.out.len();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Writer, check_padding};
    use super::*;
    use proptest::prelude::*;

    fn round_trip(rows: &[Vec<u16>], nsymbols: usize) {
        let mut histogram = vec![0; nsymbols];
        rows.iter().flatten().for_each(|&s| histogram[usize::from(s)] += 1);
        let code = Code::from_histogram(&histogram);
        if code.order().is_empty() {
            return;
        }
        let codewords = code.codewords();
        let mut writer = Writer::default();
        let mut ends = vec![0];
        for row in rows {
            for &symbol in row {
                let (codeword, length) = codewords[usize::from(symbol)];
                writer.put(codeword, length);
            }
            ends.push(writer.position());
        }
        assert_eq!(writer.position(), code.cost(&histogram));
        let words = writer.finish();
        check_padding(&words, code.cost(&histogram)).unwrap();
        let mut found: Vec<Vec<u16>> = rows.iter().map(|row| vec![9; row.len()]).collect();
        let mut lanes: Vec<Lane<'_, u16>> =
            found.iter_mut().zip(&ends).map(|(row, &at)| Lane::new(at, row)).collect();
        Decoder::new(&code).decode(&words, &mut lanes);
        for (lane, &end) in lanes.iter().zip(&ends[1..]) {
            assert_eq!(lane.at, end);
        }
        assert_eq!(found, rows);
        if nsymbols <= 256 {
            let mut bytes: Vec<Vec<u8>> = rows.iter().map(|row| vec![9; row.len()]).collect();
            let mut lanes: Vec<Lane<'_, u8>> =
                bytes.iter_mut().zip(&ends).map(|(row, &at)| Lane::new(at, row)).collect();
            Decoder::new(&code).decode(&words, &mut lanes);
            assert!(lanes.iter().zip(&ends[1..]).all(|(lane, &end)| lane.at == end));
            let wide = |row: &Vec<u8>| row.iter().map(|&s| u16::from(s)).collect();
            assert_eq!(bytes.iter().map(wide).collect::<Vec<Vec<u16>>>(), rows);
        }
    }

    proptest! {
        #[test]
        fn rows_come_back_and_end_where_they_end(
            rows in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..120), 0..11),
            nsymbols in prop::sample::select(vec![1usize, 2, 3, 32, 256, 257, 3000, 65_536]),
            skew in 0u32..12,
        ) {
            // Skewed towards symbol 0, so that codewords of all lengths occur.
            let rows: Vec<Vec<u16>> = rows
                .iter()
                .map(|row| {
                    let skewed = |&s: &u16| (usize::from(s) >> (u32::from(s) % (skew + 1))) % nsymbols;
                    row.iter().map(|s| skewed(s) as u16).collect()
                })
                .collect();
            round_trip(&rows, nsymbols);
        }

        #[test]
        fn any_bits_decode_to_symbols_of_the_code(
            words in prop::collection::vec(any::<u32>(), 0..50), histogram in prop::collection::vec(0u64..9, 1..300),
        ) {
            let code = Code::from_histogram(&histogram);
            if !code.order().is_empty() {
                let mut out = vec![0u16; 400];
                Decoder::new(&code).decode(&words, &mut [Lane::new(7, &mut out)]);
                prop_assert!(out.iter().all(|&s| histogram[usize::from(s)] > 0));
            }
        }
    }

    #[test]
    fn codewords_of_every_length_to_the_limit_come_back() {
        let histogram: Vec<u64> = (0..30u32).map(|i| 1 << i.min(29)).collect();
        let code = Code::from_histogram(&histogram);
        assert_eq!(code.longest(), MAX_BITS);
        let codewords = code.codewords();
        let row: Vec<u16> = (0..30).chain((0..30).rev()).cycle().take(500).collect();
        let mut writer = Writer::default();
        for &symbol in &row {
            writer.put(codewords[usize::from(symbol)].0, codewords[usize::from(symbol)].1);
        }
        let words = writer.finish();
        let mut out = vec![0u16; row.len()];
        Decoder::new(&code).decode(&words, &mut [Lane::new(0, &mut out)]);
        assert_eq!(out, row);
    }
}
