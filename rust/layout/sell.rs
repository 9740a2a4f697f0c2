//! `sell`: sliced ELLPACK, whose products with one vector, or a few, gather nothing.
//!
//! ```text
//!   row_order: u8 [nrows]   of each window of 128 rows, which of them is in its first lane, second, …
//!   counts:    blocks of each slice of 16 lanes, as differences ([`Offsets`])
//!   blocks:    u32 [blocks]   number of the block << 5 | its steps − 1: rising by steps, then number
//!   heights:   steps of each slice, as differences
//!   slots:     u16 [16 · steps]   a slot of each lane for each step of each block (`simd/sell.rs`)
//!   symbols:   u16 [16 · steps]   of each slot, where there are more than 256 values; else nothing
//! ```
//!
//! A block is 32 columns of a slice; it takes as many steps as its fullest lane keeps weights, so slots
//! stay empty: half of them at 90 % pruned, 40 % at 80 %. Rows of a window are in lanes by falling
//! numbers of weights, so that those of a slice are alike. Blocks without weights are left out.
//!
//! Space: 16 bits a slot. Convolutions, and products of more than 256 values, decode windows first. Time of
//! a vector · of batches of 8 · 32, ÷ that of `packed` for speed, k = 32, one Xeon core with AVX-512; the
//! larger matrix comes from memory, where slots are more bytes than columns and symbols:
//!
//! ```text
//!   kept                     50 %               30 %               20 %               10 %
//!   512 × 512         0.8 · 0.5 · 1.2    0.6 · 0.4 · 1.2    0.5 · 0.5 · 1.4    0.5 · 0.6 · 1.3
//!   4096 × 4096       1.3 · 0.5 · 1.4    1.0 · 0.5 · 0.9    0.8 · 0.6 · 1.4    1.0 · 0.8 · 1.6
//!
//!   kept                      5 %                1 %
//!   512 × 512         0.6 · 0.6 · 1.1    0.5 · 0.6 · 0.8
//!   4096 × 4096       1.2 · 0.9 · 1.9    1.7 · 1.6 · 3.0
//! ```
//!
//! So `auto` takes slices for speed of matrices of up to a million entries with up to half of them kept,
//! and of larger ones where a tenth to a third is kept.
//!
//! Source: SELL-C-σ of Kreutzer, Hager, Wellein, Fehske and Bishop 2014, with C = 16 and σ = 128; here
//! lanes share blocks of columns, so that inputs are looked up in registers.

use super::{
    Encoded, Encoding, Layout, LayoutSpec, Parts, Product, decode_and_multiply, small_codebook,
};
use crate::array::Array;
use crate::codebook::MAX_K;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::interruption;
use crate::lines::Lines;
use crate::offsets::Offsets;
use crate::pool::Pool;
use crate::rows::{RowBlock, Rows, Shape};
use crate::simd::Lanes;
use crate::simd::sell::{
    BLOCK_COLS, Block, COLUMN_BITS, EMPTY, Inputs, MAX_SYMBOLS, MAX_VECTORS, SLICE_ROWS, Slices,
    Step,
};
use std::ops::Range;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "sell",
    id: 11,
    coders: &[Coder::Fixed],
    sections: &["row_order", "counts", "blocks", "heights", "slots", "symbols"],
    holds_values: false,
    encode,
    read,
};

/// Rows of a window, and its slices.
const WINDOW: usize = 128;
const WINDOW_SLICES: usize = WINDOW / SLICE_ROWS;

/// A matrix in slices.
#[derive(Debug)]
pub struct Sell {
    shape: Shape,
    row_order: Array<u8>,
    counts: Offsets,
    blocks: Array<u32>,
    heights: Offsets,
    slots: Array<u16>,
    symbols: Array<u16>,
}

/// Which rows are in the lanes of the window that starts at row `start`.
fn order(rows: &Rows, start: usize) -> Vec<u8> {
    let len = WINDOW.min(rows.shape().nrows - start);
    let mut order: Vec<u8> = (0..len as u8).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(rows.row_cols(start + usize::from(row)).len()));
    order
}

/// The blocks of a slice of rows, in their order, to their steps.
fn blocks<'a>(rows: impl Iterator<Item = &'a [u32]>) -> Vec<Block> {
    // A row's columns rise, so its blocks come one after the other.
    let mut found: Vec<Block> = Vec::new();
    for cols in rows {
        let mine = cols.chunk_by(|a, b| a >> COLUMN_BITS == b >> COLUMN_BITS);
        found.extend(
            mine.map(|cols| Block { number: cols[0] as usize >> COLUMN_BITS, steps: cols.len() }),
        );
    }
    found.sort_unstable_by_key(|block| (block.number, std::cmp::Reverse(block.steps)));
    found.dedup_by_key(|block| block.number);
    found.sort_unstable();
    found
}

fn encode(rows: &Rows, _: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared("sell")?;
    let shape = rows.shape();
    let is_wide = codebook.k() > MAX_SYMBOLS;
    let (mut row_order, mut counts, mut heights) = (Vec::new(), Vec::new(), Vec::new());
    let (mut stored, mut slots, mut wide) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..shape.nrows).step_by(WINDOW) {
        interruption::check()?;
        let order = order(rows, start);
        for lanes in order.chunks(SLICE_ROWS) {
            let lanes = lanes.iter().map(|&row| start + usize::from(row));
            let blocks = blocks(lanes.clone().map(|row| rows.row_cols(row)));
            let mut places: Vec<(usize, usize)> = Vec::with_capacity(blocks.len());
            let mut nsteps = 0;
            for block in &blocks {
                places.push((block.number, nsteps));
                nsteps += block.steps;
                stored.push(block.pack());
            }
            places.sort_unstable();
            counts.push(blocks.len() as u64);
            heights.push(nsteps as u64);
            let at = slots.len();
            slots.resize(at + nsteps * SLICE_ROWS, EMPTY);
            wide.resize(if is_wide { slots.len() } else { 0 }, 0);
            for (lane, row) in lanes.enumerate() {
                let range = rows.indptr()[row]..rows.indptr()[row + 1];
                let (mut places, mut step) = (places.iter(), (usize::MAX, 0));
                for (&col, &symbol) in rows.row_cols(row).iter().zip(&symbols[range]) {
                    let number = col as usize >> COLUMN_BITS;
                    while step.0 != number {
                        step = *places.next().expect("a block of every weight");
                    }
                    let place = at + step.1 * SLICE_ROWS + lane;
                    slots[place] = col as u16 % BLOCK_COLS as u16;
                    match is_wide {
                        true => wide[place] = symbol,
                        false => slots[place] |= symbol << COLUMN_BITS,
                    }
                    step.1 += 1;
                }
            }
        }
        row_order.extend(order);
    }
    let sell = Sell {
        shape,
        row_order: row_order.into(),
        counts: Offsets::from_lengths(&counts),
        blocks: stored.into(),
        heights: Offsets::from_lengths(&heights),
        slots: slots.into(),
        symbols: wide.into(),
    };
    Ok((Box::new(sell), Some(codebook.clone())))
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [m0, w0, b0, m1, w1, b1] = parts.params()?;
    let shape = parts.shape;
    // A byte of order for each row, so rows are bounded by bytes.
    let row_order = parts.section_of("row_order", shape.nrows)?;
    let nslices = shape.nrows.div_ceil(SLICE_ROWS);
    let (blocks, slots) = (parts.section::<u32>("blocks")?, parts.section::<u16>("slots")?);
    let nsteps = slots.len() / SLICE_ROWS;
    let offsets = |name: &str, total: usize, params| {
        Offsets::read(nslices, total as u64, params, parts.section(name)?)
            .map_err(|e| e.within(&format!("section {name}")))
    };
    debug_assert!(parts.k() <= MAX_K);
    let nwide = if parts.k() > MAX_SYMBOLS { slots.len() } else { 0 };
    let sell = Sell {
        shape,
        row_order,
        counts: offsets("counts", blocks.len(), [m0, w0, b0])?,
        blocks,
        heights: offsets("heights", nsteps, [m1, w1, b1])?,
        slots,
        symbols: parts.section_of("symbols", nwide)?,
    };
    if !sell.slots.len().is_multiple_of(SLICE_ROWS) {
        let len = sell.slots.len();
        return Err(Error::corrupt(format!("section slots: {len} slots, expected whole steps")));
    }
    for window in 0..shape.nrows.div_ceil(WINDOW) {
        interruption::check()?;
        sell.check_order(window)?;
    }
    let mut nnz = 0;
    for slice in 0..nslices {
        interruption::check()?;
        nnz += sell.check_slice(slice, parts.k())?;
    }
    if nnz != parts.nnz {
        return Err(Error::corrupt(format!(
            "section slots: {nnz} kept weights, expected {}",
            parts.nnz
        )));
    }
    Ok(Box::new(sell))
}

impl Sell {
    /// The rows of a window.
    fn window(&self, window: usize) -> Range<usize> {
        window * WINDOW..self.shape.nrows.min((window + 1) * WINDOW)
    }

    /// Columns of a row, in blocks.
    fn nblocks(&self) -> usize {
        self.shape.ncols.div_ceil(BLOCK_COLS)
    }

    fn check_order(&self, window: usize) -> Result<()> {
        let rows = self.window(window);
        let mut is_there = [false; WINDOW];
        for &row in &self.row_order.as_slice()[rows.clone()] {
            match is_there[..rows.len()].get_mut(usize::from(row)) {
                Some(there) if !*there => *there = true,
                _ => {
                    return Err(Error::corrupt(format!(
                        "rows {rows:?}: row {row} of them in two lanes or not there (section row_order)"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Checks the blocks and slots of a slice; returns how many weights it keeps.
    fn check_slice(&self, slice: usize, k: usize) -> Result<usize> {
        let damaged = |section: &str, what: &str| {
            Err(Error::corrupt(format!("slice {slice}: {what} (section {section})")))
        };
        let (blocks, steps) = self.slice(slice);
        if !blocks.is_sorted_by_key(|&block| Block::unpack(block)) {
            return damaged("blocks", "blocks in another order than by steps and number");
        }
        let mut numbers: Vec<usize> = blocks.iter().map(|&b| Block::unpack(b).number).collect();
        numbers.sort_unstable();
        if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
            return damaged("blocks", "a block twice");
        }
        if numbers.last().is_some_and(|&last| last >= self.nblocks()) {
            return damaged("blocks", "a block past the last column");
        }
        let total: usize = blocks.iter().map(|&block| Block::unpack(block).steps).sum();
        if total != steps.len() {
            return damaged("heights", "another number of steps than its blocks have");
        }
        let first = slice * SLICE_ROWS;
        let nlanes = SLICE_ROWS.min(self.shape.nrows - first);
        let symbols = self.wide_symbols(slice);
        let (mut at, mut nnz) = (0, 0);
        for &block in blocks {
            let Block { steps: count, number } = Block::unpack(block);
            let ncols = BLOCK_COLS.min(self.shape.ncols - number * BLOCK_COLS);
            let mine = &steps[at..at + count];
            if mine[count - 1] == [EMPTY; SLICE_ROWS] {
                return damaged("slots", "a step without weights");
            }
            for lane in 0..SLICE_ROWS {
                let kept = mine.iter().take_while(|step| step[lane] != EMPTY).count();
                if mine[kept..].iter().any(|step| step[lane] != EMPTY) || kept > 0 && lane >= nlanes
                {
                    return damaged("slots", "a weight after an empty slot, or in no row");
                }
                let mut next = 0;
                for (place, step) in mine[..kept].iter().enumerate() {
                    let col = usize::from(step[lane]) % BLOCK_COLS;
                    let in_slot = usize::from(step[lane] >> COLUMN_BITS);
                    let wide = symbols.map(|symbols| usize::from(symbols[at + place][lane]));
                    if col < next || col >= ncols {
                        return damaged("slots", "columns that do not rise, or past the last one");
                    }
                    if wide.unwrap_or(in_slot) >= k || wide.is_some() && in_slot > 0 {
                        return damaged("slots", "a symbol that is not under k");
                    }
                    next = col + 1;
                }
                if symbols.is_some_and(|s| s[at + kept..at + count].iter().any(|s| s[lane] > 0)) {
                    return damaged("symbols", "a symbol of an empty slot");
                }
                nnz += kept;
            }
            at += count;
        }
        Ok(nnz)
    }

    /// The blocks of a slice, and its steps.
    fn slice(&self, slice: usize) -> (&[u32], &[Step]) {
        let (block, step) = (self.counts.start(slice) as usize, self.heights.start(slice) as usize);
        (
            &self.blocks.as_slice()[block..][..self.counts.length(slice) as usize],
            &self.slots.as_slice().as_chunks().0[step..][..self.heights.length(slice) as usize],
        )
    }

    /// The symbols of a slice, where slots have none.
    fn wide_symbols(&self, slice: usize) -> Option<&[Step]> {
        let step = self.heights.start(slice) as usize;
        let all = self.symbols.as_slice().as_chunks().0;
        (!all.is_empty()).then(|| &all[step..][..self.heights.length(slice) as usize])
    }

    /// How many slots in a hundred hold a weight.
    pub fn percent_taken(&self, nnz: usize) -> u64 {
        nnz as u64 * 100 / (self.slots.len() as u64).max(1)
    }

    /// Whether products are with slots as they lie.
    pub fn has_small_symbols(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Puts up to [`MAX_VECTORS`] vectors, one after the other in `x`, side by side for
    /// [`crate::simd::Kernels::slice_products`].
    fn arrange<'a>(&self, x: &[f32], vectors: usize, room: &'a mut Lines) -> Result<&'a [Inputs]> {
        let inputs: &mut [Inputs] = room.at_least(self.nblocks() * vectors)?;
        for (vector, x) in x.chunks_exact(self.shape.ncols.max(1)).enumerate() {
            let (whole, rest) = x.as_chunks::<BLOCK_COLS>();
            let mut inputs = inputs[vector..].iter_mut().step_by(vectors);
            whole.iter().zip(inputs.by_ref()).for_each(|(x, inputs)| *inputs = *x);
            if let Some(inputs) = inputs.next() {
                *inputs = [0.0; BLOCK_COLS];
                inputs[..rest.len()].copy_from_slice(rest);
            }
        }
        Ok(inputs)
    }

    /// Multiplies `rows`, whole windows, with `vectors` vectors of `x`, and hands out each row with the
    /// sums of its slice, a [`Lanes`] for each vector, and its lane there.
    ///
    /// # Errors
    /// `LimitExceeded` when the memory cannot be had.
    pub fn multiply(
        &self,
        product: &Product<'_>,
        vectors: usize,
        rows: Range<usize>,
        mut take: impl FnMut(usize, &[Lanes], usize),
    ) -> Result<()> {
        debug_assert!(vectors <= MAX_VECTORS && self.has_small_symbols());
        let mut room = INPUTS.lend();
        let inputs = match product.x.as_chunks::<BLOCK_COLS>() {
            (inputs, []) if vectors == 1 => inputs,
            _ => self.arrange(product.x, vectors, &mut room)?,
        };
        let codebook = small_codebook(product.codebook);
        let (mut counts, mut heights) = ([0; WINDOW_SLICES], [0; WINDOW_SLICES]);
        let mut sums = [Lanes::default(); WINDOW_SLICES * MAX_VECTORS];
        let first = rows.start / WINDOW * WINDOW_SLICES;
        let mut blocks = &self.blocks.as_slice()[self.counts.start(first) as usize..];
        let mut steps = &self.slots.as_slice().as_chunks().0[self.heights.start(first) as usize..];
        for window in rows.start / WINDOW..rows.end.div_ceil(WINDOW) {
            let order = &self.row_order.as_slice()[self.window(window)];
            let nslices = order.len().div_ceil(SLICE_ROWS);
            let first = window * WINDOW_SLICES;
            let (counts, heights) = (&mut counts[..nslices], &mut heights[..nslices]);
            self.counts.lengths(first, counts);
            self.heights.lengths(first, heights);
            let k = product.codebook.len();
            let slices = Slices { counts, blocks, steps, codebook: &codebook, k };
            let total = |lengths: &[u32]| lengths.iter().map(|&len| len as usize).sum::<usize>();
            (blocks, steps) = (&blocks[total(counts)..], &steps[total(heights)..]);
            let sums = &mut sums[..nslices * vectors];
            product.kernels.slice_products(&slices, vectors, inputs, sums);
            let slices = order.chunks(SLICE_ROWS).zip(sums.chunks_exact(vectors));
            for (rows, sums) in slices {
                for (lane, &row) in rows.iter().enumerate() {
                    take(window * WINDOW + usize::from(row), sums, lane);
                }
            }
        }
        Ok(())
    }
}

/// A number for each lane of a window.
type OfLanes<T> = [[T; SLICE_ROWS]; WINDOW_SLICES];

impl Sell {
    /// Appends the rows `asked` of a window, and one weight more, which is none.
    ///
    /// Without a branch for each slot: the weights of a lane go where its row goes on, and what is in
    /// empty slots, or of other rows, goes behind all of them.
    fn decode_window(
        &self,
        window: Range<usize>,
        asked: Range<usize>,
        places: &mut Vec<(usize, Range<usize>)>,
        out: &mut RowBlock,
    ) {
        const NOT_ASKED: usize = usize::MAX;
        let order = &self.row_order.as_slice()[window.clone()];
        let first = window.start / SLICE_ROWS;
        let slices = first..first + order.len().div_ceil(SLICE_ROWS);
        let mut lanes = [0; WINDOW];
        order.iter().zip(0..).for_each(|(&row, lane)| lanes[usize::from(row)] = lane);
        let mut is_asked = [false; WINDOW_SLICES];
        asked.clone().for_each(|row| is_asked[lanes[row - window.start] / SLICE_ROWS] = true);
        let slices = slices.zip(is_asked).enumerate().filter(|(_, (_, is_asked))| *is_asked);
        let slices = slices.map(|(place, (slice, _))| (place, slice));
        let mut kept: OfLanes<usize> = Default::default();
        for (place, slice) in slices.clone() {
            for step in self.slice(slice).1 {
                let kept = kept[place].iter_mut().zip(step);
                kept.for_each(|(n, &slot)| *n += usize::from(slot != EMPTY));
            }
        }
        let mut nexts: OfLanes<usize> = [[NOT_ASKED; SLICE_ROWS]; WINDOW_SLICES];
        let mut end = out.indptr[out.nrows()];
        for row in asked {
            let lane = lanes[row - window.start];
            nexts.as_flattened_mut()[lane] = end;
            end += kept.as_flattened()[lane];
            out.indptr.push(end);
        }
        out.cols.resize(end + 1, 0);
        out.symbols.resize(end + 1, 0);
        let (out_cols, out_symbols) = (&mut out.cols[..=end], &mut out.symbols[..=end]);
        let shift = if self.has_small_symbols() { COLUMN_BITS } else { 0 };
        for (place, slice) in slices {
            let nexts = &mut nexts[place];
            let (blocks, steps) = self.slice(slice);
            let symbols = self.wide_symbols(slice).unwrap_or(steps);
            places.clear();
            let mut at = 0;
            for block in blocks.iter().map(|&block| Block::unpack(block)) {
                places.push((block.number, at..at + block.steps));
                at += block.steps;
            }
            places.sort_unstable_by_key(|&(number, _)| number);
            for (number, range) in places.drain(..) {
                let base = (number * BLOCK_COLS) as u32;
                for (slots, symbols) in steps[range.clone()].iter().zip(&symbols[range]) {
                    for (lane, next) in nexts.iter_mut().enumerate() {
                        let slot = slots[lane];
                        let is_taken = slot != EMPTY && *next != NOT_ASKED;
                        let at = if is_taken { *next } else { end };
                        out_cols[at] = base + u32::from(slot) % BLOCK_COLS as u32;
                        out_symbols[at] = symbols[lane] >> shift;
                        *next += usize::from(is_taken);
                    }
                }
            }
        }
    }
}

/// Inputs as kernels take them.
static INPUTS: Pool<Lines> = Pool::new();
/// The blocks of a slice by their numbers, with their steps.
static PLACES: Pool<Vec<(usize, Range<usize>)>> = Pool::new();

impl Layout for Sell {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        self.counts.params().into_iter().chain(self.heights.params()).collect()
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![
            self.row_order.as_bytes(),
            self.counts.as_bytes(),
            self.blocks.as_bytes(),
            self.heights.as_bytes(),
            self.slots.as_bytes(),
            self.symbols.as_bytes(),
        ]
    }

    fn sell(&self) -> Option<&Sell> {
        Some(self)
    }

    fn block_rows(&self) -> usize {
        WINDOW
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        let mut places = PLACES.lend();
        let mut row = rows.start;
        while row < rows.end {
            let window = self.window(row / WINDOW);
            let asked = row..rows.end.min(window.end);
            row = asked.end;
            self.decode_window(window, asked, &mut places, out);
        }
        let nnz = out.indptr[out.nrows()];
        out.cols.truncate(nnz);
        out.symbols.truncate(nnz);
        Ok(())
    }

    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        if !self.has_small_symbols() {
            return decode_and_multiply(self, product, rows, y);
        }
        self.multiply(product, 1, rows.clone(), |row, sums, lane| {
            if rows.contains(&row) {
                y[row - rows.start] = sums[0][lane];
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Goal;
    use crate::{CompressedMatrix, Request};

    /// The slot of a column of a block, and symbol.
    fn slot(col: u16, symbol: u16) -> u16 {
        col | symbol << 5
    }

    fn bytes(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_small_matrix_is_stored_byte_by_byte_as_worked_by_hand() {
        // Two rows of 70 columns, three blocks: the second row keeps more, so it is in the first lane.
        let mut weights = [0.0; 140];
        weights[33] = 2.0;
        for (col, value) in [(0, -1.0), (31, 2.0), (34, -1.0), (69, 0.5)] {
            weights[70 + col] = value;
        }
        let matrix = crate::layout::compress_as(&SPEC, &weights, 2, 70);
        // Symbols of −1, 0.5 and 2 are 0, 1 and 2. Block 0 has two steps, so it comes last.
        let steps: [&[u16]; 4] =
            [&[slot(2, 0), slot(1, 2)], &[slot(5, 1)], &[slot(0, 0)], &[slot(31, 2)]];
        let mut slots = Vec::new();
        for step in steps {
            slots.extend(step);
            slots.resize(slots.len().next_multiple_of(16), EMPTY);
        }
        let blocks: Vec<u8> = [1u32 << 5, 2 << 5, 1].iter().flat_map(|b| b.to_le_bytes()).collect();
        let slots = bytes(&slots);
        // Offsets of one length: base 0, then 3 blocks in 2 bits, or 4 steps in 3.
        let expected: [&[u8]; 6] = [&[1, 0], &[0b1100], &blocks, &[0b10_0000], &slots, &[]];
        assert_eq!(matrix.section_bytes(), expected);
        assert_eq!(matrix.layout.params(), [3, 0, 2, 4, 0, 3]);
        let x: Vec<f32> = (0..70).map(|col| col as f32).collect();
        assert_eq!(matrix.matvec(&x, 1).unwrap(), [66.0, 62.0 - 34.0 + 34.5]);
    }

    #[test]
    fn symbols_that_no_slot_has_room_for_are_stored_beside() {
        let weights: Vec<f32> = (0..600).map(|i| i as f32).collect();
        let matrix = crate::layout::compress_as(&SPEC, &weights, 6, 100);
        let sections = matrix.section_bytes();
        assert_eq!(sections[5].len(), sections[4].len());
        assert_eq!(matrix.decompress(1).unwrap(), weights);
        assert_eq!(matrix.matvec(&[1.0; 100], 1).unwrap()[0], 4950.0);
    }

    #[test]
    fn linear_layers_are_in_slices_for_speed_where_that_is_faster_and_no_others_are() {
        let Some(percent) = crate::simd::active().unwrap().sell_percent(32) else { return };
        let layout = |every: usize, taps: Option<usize>, goal: Goal| {
            let weights: Vec<f32> =
                (0..256 * 256)
                    .map(|i: u32| i.wrapping_mul(2_654_435_761) >> 8)
                    .map(|i| {
                        if (i as usize).is_multiple_of(every) { (i % 31) as f32 + 1.0 } else { 0.0 }
                    })
                    .collect();
            let request = Request { goal, taps, ..Request::default() };
            let shape = Shape::new(256, 256).unwrap();
            let matrix = CompressedMatrix::compress(&weights, shape, &request).unwrap();
            let taken = matrix.layout.sell().map(|sell| sell.percent_taken(matrix.nnz()));
            assert!(taken.is_none_or(|taken| taken >= percent));
            matrix.layout().name
        };
        use Goal::{Size, Speed};
        assert_eq!(layout(4, None, Speed), "sell");
        assert_ne!(layout(4, None, Size), "sell");
        // Kernels, even of one position, hardly pruned matrices, and those that keep next to nothing.
        assert_ne!(layout(4, Some(1), Speed), "sell");
        assert_ne!(layout(1, None, Speed), "sell");
        assert_ne!(layout(5000, None, Speed), "sell");
    }
}
