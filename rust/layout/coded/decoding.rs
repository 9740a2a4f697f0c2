//! Reading the blocks of `coded`: checks, rows, and the product with a vector.
//!
//! ```text
//!   for each chunk of 1,024 elements of a block:     decode positions and ranks (simd/tans.rs)
//!     for each run of positions of one row:
//!       decode    cols += position − start of the row;   symbols += symbol of the rank
//!       multiply  y[row] += Σ value of the rank · x[position − start of the row]
//! ```
//!
//! Where rows are long enough a kernel multiplies whole steps while it decodes them
//! (`simd/avx512/elements.rs`); what it leaves of a block, near its end, is decoded first.
//!
//! Steps and chunks start at the same elements of their block whatever rows are asked for, so sums have
//! the same bits for any number of threads.

use super::{Coded, Form};
use crate::bits;
use crate::entropy::tans::STATE_BITS;
use crate::error::{Error, Result};
use crate::layout::{Product, Run, Runs};
use crate::rows::RowBlock;
use crate::simd::Kernels;
use crate::simd::tans::{
    self, CHUNK_STEPS, ElementCursor, Elements, RowProducts, TANS_LANES, TansStream, lane,
};
use std::ops::Range;

/// One block while it is decoded.
struct BlockReader<'a> {
    coded: &'a Coded,
    kernels: &'static dyn Kernels,
    cursor: ElementCursor<'a>,
    /// Elements that are left.
    left: usize,
    /// The next position, and how many the block has.
    position: u64,
    limit: u64,
    block: usize,
    /// Bits of the gap stream and of the rank stream, in whole bytes.
    stream_bits: [usize; 2],
}

impl<'a> BlockReader<'a> {
    fn new(coded: &'a Coded, kernels: &'static dyn Kernels, block: usize) -> Result<Self> {
        let parameters = &coded.parameters;
        let start = coded.ends.start(block) as usize;
        let nbytes = coded.ends.length(block) as usize;
        let length = coded.lengths.length(block) as usize;
        let gap_nbytes = coded.gap_ends.length(block) as usize;
        let streams = [&coded.code.gaps, &coded.code.ranks];
        let nstates =
            streams.iter().filter(|table| table.is_some()).count() * length.min(TANS_LANES);
        let plane_nbytes = |nbits: u32| bits::packed_nbytes(length, nbits);
        let sizes = plane_nbytes(parameters.gap_low_bits)
            .zip(plane_nbytes(parameters.rank_low_bits))
            .zip(bits::packed_nbytes(nstates, STATE_BITS));
        let rest = sizes.and_then(|((gap_planes, rank_planes), states)| {
            let rest = gap_nbytes.checked_add(gap_planes)?.checked_add(rank_planes)?;
            Some((gap_planes, rank_planes, nbytes.checked_sub(rest.checked_add(states)?)?))
        });
        let Some((gap_planes, rank_planes, rank_nbytes)) = rest else {
            return Err(Error::corrupt(format!(
                "section blocks: block {block} of {nbytes} bytes, expected room for {length} \
                 elements and {gap_nbytes} bytes of gaps"
            )));
        };
        let bytes = &coded.blocks.as_slice()[start..];
        let gap_planes_at = gap_nbytes + rank_nbytes;
        let rank_planes_at = gap_planes_at + gap_planes;
        let mut states_at = (rank_planes_at + rank_planes) * 8;
        let mut stream = |table: bool, at: usize| {
            let mut states = [0; TANS_LANES];
            for element in 0..if table { length.min(TANS_LANES) } else { 0 } {
                states[lane(element)] = bits::field(&bytes[..nbytes], states_at, STATE_BITS) as u8;
                states_at += STATE_BITS as usize;
            }
            TansStream { bytes: &bytes[at..], at: 0, states }
        };
        let gaps = stream(coded.code.gaps.is_some(), 0);
        let ranks = stream(coded.code.ranks.is_some(), gap_nbytes);
        let rows = parameters.rows(block, coded.shape.nrows);
        Ok(Self {
            coded,
            kernels,
            cursor: ElementCursor {
                gaps,
                ranks,
                gap_planes: &bytes[gap_planes_at..rank_planes_at],
                rank_planes: &bytes[rank_planes_at..rank_planes_at + rank_planes],
                position: 0,
            },
            left: length,
            position: 0,
            limit: (rows.len() * coded.shape.ncols) as u64,
            block,
            stream_bits: [gap_nbytes * 8, rank_nbytes * 8],
        })
    }

    /// Decodes the next chunk; false when there is none.
    fn next(&mut self, out: &mut Elements) -> Result<bool> {
        out.clear();
        if self.left == 0 {
            return Ok(false);
        }
        let nsteps = (self.left / TANS_LANES).min(CHUNK_STEPS);
        let before = self.cursor.position;
        if nsteps > 0 {
            self.kernels.decode_elements(&self.coded.code, &mut self.cursor, nsteps, out);
            self.left -= nsteps * TANS_LANES;
        } else {
            tans::decode_step(&self.coded.code, &mut self.cursor, self.left, out);
            self.left = 0;
        }
        self.moved_from(before)?;
        Ok(true)
    }

    /// Multiplies the elements that are left as long as the kernels do, and rows are not ended.
    fn multiply(&mut self, products: &mut RowProducts<'_>) -> Result<()> {
        let before = self.cursor.position;
        let nsteps = self.left / TANS_LANES;
        let (code, kernels) = (&self.coded.code, self.kernels);
        let done = kernels.multiply_elements(code, &mut self.cursor, nsteps, products);
        self.left -= done * TANS_LANES;
        self.moved_from(before)
    }

    /// Takes notice that the position moved on.
    fn moved_from(&mut self, before: u32) -> Result<()> {
        self.position += u64::from(self.cursor.position.wrapping_sub(before));
        if self.position > self.limit {
            return Err(self.damaged("a position past the last entry"));
        }
        Ok(())
    }

    /// Hands out the elements that are left of `wanted` rows, run by run; the block has `rows`.
    fn for_each_run(
        &mut self,
        rows: Range<usize>,
        wanted: &Range<usize>,
        take: &mut dyn FnMut(Run<'_>),
    ) -> Result<()> {
        let ncols = self.coded.shape.ncols as u32;
        let mut chunk = Elements::default();
        // The row that the last run was of, and where it starts and ends.
        let mut row = rows.start;
        let mut bounds = 0..ncols;
        // Kept weights of the row before, and so far of this one.
        let (mut in_row, mut taken) = (0_usize, 0);
        let end = (wanted.end - rows.start) as u64 * u64::from(ncols);
        while self.position < end && self.next(&mut chunk)? {
            let (mut positions, mut ranks) = (chunk.positions(), chunk.ranks());
            while let Some(&position) = positions.first() {
                if position >= bounds.end {
                    row = rows.start + (position / ncols) as usize;
                    (in_row, taken) = (taken, 0);
                    bounds.start = (row - rows.start) as u32 * ncols;
                    bounds.end = bounds.start + ncols;
                }
                if row >= wanted.end {
                    return Ok(());
                }
                let len = len_under(positions, bounds.end, in_row.saturating_sub(taken));
                taken += len;
                if row >= wanted.start {
                    let (positions, ranks) = (&positions[..len], &ranks[..len]);
                    take(Run { row, start: bounds.start, positions, ranks });
                }
                (positions, ranks) = (&positions[len..], &ranks[len..]);
            }
        }
        Ok(())
    }

    /// Checks that the block ends as it must: lanes in state 0, no bits left.
    fn finish(&self) -> Result<()> {
        let cursor = &self.cursor;
        for (stream, nbits) in [&cursor.gaps, &cursor.ranks].into_iter().zip(self.stream_bits) {
            if stream.states != [0; TANS_LANES] {
                return Err(self.damaged("a lane that does not end in state 0"));
            }
            let padding =
                bits::field(stream.bytes, stream.at, (nbits.wrapping_sub(stream.at) % 8) as u32);
            if stream.at.next_multiple_of(8) != nbits || padding != 0 {
                return Err(self.damaged("classes that end too early or too late"));
            }
        }
        let parameters = &self.coded.parameters;
        let length = self.coded.lengths.length(self.block) as usize;
        let start = self.coded.ends.start(self.block) as usize;
        let end = start + self.coded.ends.length(self.block) as usize;
        let bytes = &self.coded.blocks.as_slice()[..end];
        let planes = [parameters.gap_low_bits, parameters.rank_low_bits];
        let mut at = (start * 8) + self.stream_bits[0] + self.stream_bits[1];
        for nbits in planes.map(|nbits| nbits as usize * length) {
            if bits::field(bytes, at + nbits, (nbits.next_multiple_of(8) - nbits) as u32) != 0 {
                return Err(self.damaged("bits after the plain ones"));
            }
            at += nbits.next_multiple_of(8);
        }
        let tables = [&self.coded.code.gaps, &self.coded.code.ranks];
        let streams = tables.iter().filter(|table| table.is_some()).count();
        at += streams * length.min(TANS_LANES) * STATE_BITS as usize;
        if bits::peek(bytes, at) != 0 {
            return Err(self.damaged("bits after the states"));
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        Error::corrupt(format!("block {}: {what} (section blocks)", self.block))
    }
}

impl Coded {
    /// Decodes every block: what `read` checks.
    pub(super) fn check_blocks(
        &self,
        kernels: &'static dyn Kernels,
        nnz: usize,
        k: usize,
    ) -> Result<()> {
        let alphabet = self.parameters.alphabet(k);
        let mut chunk = Elements::default();
        let mut kept = 0;
        for block in 0..self.ends.len() {
            let mut reader = BlockReader::new(self, kernels, block)?;
            if self.parameters.form == Form::Every && reader.left as u64 != reader.limit {
                return Err(reader.damaged("another number of elements than of entries"));
            }
            while reader.next(&mut chunk)? {
                kept += chunk.positions().len();
                let most = chunk.ranks().iter().copied().max().unwrap_or(0);
                if usize::from(most) >= alphabet {
                    return Err(reader.damaged("a rank past the last one"));
                }
            }
            reader.finish()?;
        }
        if kept != nnz {
            return Err(Error::corrupt(format!("blocks: {kept} kept weights, expected {nnz}")));
        }
        Ok(())
    }

    /// Decodes `rows` into `out`, which is empty.
    pub(super) fn decode_rows(
        &self,
        kernels: &'static dyn Kernels,
        rows: Range<usize>,
        out: &mut RowBlock,
    ) -> Result<()> {
        self.for_each_run(kernels, rows.clone(), &mut |run| {
            (rows.start + out.nrows()..run.row).for_each(|_| out.end_row());
            out.cols.extend(run.positions.iter().map(|&position| position - run.start));
            match self.symbols.as_slice() {
                [] => out.symbols.extend_from_slice(run.ranks),
                symbols => {
                    let start = out.symbols.len();
                    out.symbols.resize(start + run.ranks.len(), 0);
                    for (symbol, &rank) in out.symbols[start..].iter_mut().zip(run.ranks) {
                        *symbol = symbols[usize::from(rank)];
                    }
                }
            }
        })?;
        (rows.start + out.nrows()..rows.end).for_each(|_| out.end_row());
        Ok(())
    }

    /// Multiplies `rows` with a vector.
    pub(super) fn multiply(
        &self,
        product: &Product<'_>,
        rows: Range<usize>,
        y: &mut [f32],
    ) -> Result<()> {
        let looked_up: Vec<f32> =
            self.symbols.iter().map(|&symbol| product.codebook[usize::from(symbol)]).collect();
        let values = if looked_up.is_empty() { product.codebook } else { &looked_up };
        y.fill(0.0);
        let ncols = self.shape.ncols;
        for (block, in_block, wanted) in self.parameters.blocks(&rows, self.shape.nrows) {
            let mut reader = BlockReader::new(self, product.kernels, block)?;
            let y = &mut y[wanted.start - rows.start..][..wanted.len()];
            if reader.left / in_block.len() >= product.kernels.multiplies_elements_from() {
                let start = (wanted.start - in_block.start) * ncols;
                reader.multiply(&mut RowProducts::new(values, product.x, start as u32, y))?;
            }
            reader.for_each_run(in_block, &wanted, &mut |run| {
                y[run.row - wanted.start] += product.kernels.rank_dot(
                    run.positions,
                    run.start,
                    run.ranks,
                    values,
                    product.x,
                );
            })?;
        }
        Ok(())
    }
}

/// Positions that are looked at together.
const NEAR: usize = 64;

/// How many of rising positions are under `end`: likely about `likely`.
fn len_under(positions: &[u32], end: u32, likely: usize) -> usize {
    let start = likely.saturating_sub(NEAR / 2);
    if let Some(near) = positions.get(start..).and_then(<[u32]>::first_chunk::<NEAR>)
        && near[0] < end
        && near[NEAR - 1] >= end
    {
        // Counted without a branch.
        return start
            + near.iter().map(|&position| u32::from(position < end)).sum::<u32>() as usize;
    }
    positions.partition_point(|&position| position < end)
}

impl Runs for Coded {
    fn for_each_run(
        &self,
        kernels: &'static dyn Kernels,
        rows: Range<usize>,
        take: &mut dyn FnMut(Run<'_>),
    ) -> Result<()> {
        for (block, in_block, wanted) in self.parameters.blocks(&rows, self.shape.nrows) {
            let mut reader = BlockReader::new(self, kernels, block)?;
            reader.for_each_run(in_block, &wanted, take)?;
        }
        Ok(())
    }

    fn rank_symbols(&self) -> &[u16] {
        &self.symbols
    }
}
