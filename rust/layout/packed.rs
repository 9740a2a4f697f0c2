//! `packed`: per block of 64 rows the cheaper of a bitmap and column fields; packed symbols.
//!
//! ```text
//!   row_nnz:   kept weights of each row, as differences ([`Offsets`])
//!   forms:     u8 [blocks]   how a block stores its columns:
//!                0        a bitmap: bit row · ncols + col is set where a weight is kept
//!                64       a bitmap in words: bit col of the row's ⌈ncols / 64⌉ words of 64 bits
//!                1 … 31   gaps: for each kept weight the columns skipped since the last one, in
//!                         fields of that many bits; a field of all ones skips 2^width − 1
//!                         columns and is followed by another field
//!                144, 160 columns as they are, in 16 or 32 bits
//!   ends:      where each block's columns end, in bytes, as differences ([`Offsets`])
//!   positions: the columns, block after block, each from a whole byte
//!   symbols:   one field of `symbol_width` bits for each kept weight
//! ```
//!
//! For size, gap fields take the width with the fewest bits for the block, and symbols ⌈log2 k⌉
//! bits. For speed, symbols take 8 or 16 bits (none for k = 1), and columns are whole, so that a
//! product reads them as they lie; or words of a bitmap where k ≤ 256 and so many of a block's bits
//! are set that the instruction set of this machine multiplies faster from them
//! ([`crate::simd::Kernels::words_percent`]). A product with a vector, 4096 × 4096, k = 32, one Zen
//! 4 core with AVX-512, ms:
//!
//! ```text
//!   sparse             0 %   60 %   75 %   78 %   80 %   84 %   88 %   90 %   95 %   99 %
//!   words             1.00   0.87   0.86          0.90
//!   columns                               0.83   0.73   0.58   0.45   0.36   0.19   0.06
//! ```
//!
//! On AVX2 columns are faster up to about half of the bits. A batch is multiplied from columns,
//! which a block's words are turned into.
//!
//! Where most weights are kept, a batch is multiplied by dense rows, into which words are spread. Kernels
//! of convolutions are not multiplied from words otherwise, so theirs are stored from 45 % of the bits
//! on. One image of 512 → 512 maps of 4 × 4, one Xeon core, AVX-512, ns an entry:
//!
//! ```text
//!   sparse                       0 %   30 %   50 %   70 %
//!   words, in dense rows        0.57   0.54   0.54   0.52
//!   words, kept weights         1.57   1.12   0.86   0.61
//!   columns, kept weights              0.99   0.64   0.37
//! ```
//!
//! Space: ⌈log2 k⌉ bits of symbol a kept weight, and a gap of about a bit more than its entropy or
//! one bit an entry. Time: one pass; a row in the middle of a block of gaps costs the rows
//! before it.

use super::{
    Buffers, DenseSource, Encoded, Encoding, Goal, Layout, LayoutSpec, PanelProduct, Parts,
    Product, Spread, check_rows, decode_and_add_panels, lend_buffers, small_codebook,
};
use crate::array::Array;
use crate::bits::{self, BitReader, BitWriter};
use crate::codebook::MAX_K;
use crate::entropy::Coder;
use crate::error::{Error, Result};
use crate::interruption;
use crate::offsets::{Offsets, STRIDE};
use crate::rows::{RowBlock, Rows, Shape};
use crate::simd::{self, Lanes, SymbolRows};
use std::ops::Range;

pub(super) const SPEC: LayoutSpec = LayoutSpec {
    name: "packed",
    id: 7,
    coders: &[Coder::Fixed],
    sections: &["row_nnz", "forms", "ends", "positions", "symbols"],
    holds_values: false,
    encode,
    read,
};

const BITMAP: u8 = 0;
const MAX_GAP_WIDTH: u8 = 31;
const WORDS: u8 = 64;
/// Added to the width of columns that are stored as they are.
const ABSOLUTE: u8 = 128;
const ABSOLUTE_16: u8 = ABSOLUTE | 16;
/// Bits in a hundred that have to be set in kernels of convolutions for words, not columns.
const KERNEL_WORDS_PERCENT: u64 = 45;

#[derive(Debug)]
struct Packed {
    shape: Shape,
    row_nnz: Offsets,
    forms: Array<u8>,
    ends: Offsets,
    positions: Array<u8>,
    symbol_width: u32,
    symbols: Array<u8>,
}

fn encode(rows: &Rows, encoding: &Encoding) -> Result<Encoded> {
    let (codebook, symbols) = rows.shared("packed")?;
    let shape = rows.shape();
    let (mut forms, mut lengths, mut positions) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..shape.nrows).step_by(STRIDE) {
        interruption::check()?;
        let block = start..shape.nrows.min(start + STRIDE);
        let form = choose_form(rows, block.clone(), encoding)?;
        let bytes = encode_columns(rows, block, form);
        forms.push(form);
        lengths.push(bytes.len() as u64);
        positions.extend(bytes);
    }
    let symbol_width = match (encoding.goal, bits::bit_width(codebook.k().saturating_sub(1) as u64))
    {
        (_, 0) => 0,
        (Goal::Size, width) => width,
        (Goal::Speed, width) => width.next_multiple_of(8),
    };
    let row_nnz: Vec<u64> = (0..shape.nrows).map(|row| rows.row_cols(row).len() as u64).collect();
    let packed = Packed {
        shape,
        row_nnz: Offsets::from_lengths(&row_nnz),
        forms: forms.into(),
        ends: Offsets::from_lengths(&lengths),
        positions: positions.into(),
        symbol_width,
        symbols: bits::pack(symbols.iter().map(|&s| u64::from(s)), symbol_width).into(),
    };
    Ok((Box::new(packed), Some(codebook.clone())))
}

/// The gaps of one row: columns skipped before each kept one.
fn gaps(cols: &[u32]) -> impl Iterator<Item = u32> {
    let mut next = 0;
    cols.iter().map(move |&col| {
        let gap = col - next;
        next = col + 1;
        gap
    })
}

/// The form with the fewest bits for the block; the bitmap where they are equal.
fn choose_form(rows: &Rows, block: Range<usize>, encoding: &Encoding) -> Result<u8> {
    let ncols = rows.shape().ncols;
    let bitmap_bits = (block.len() as u64) * ncols as u64;
    let nnz = (rows.indptr()[block.end] - rows.indptr()[block.start]) as u64;
    if encoding.goal == Goal::Speed {
        let width = if ncols <= 1 << 16 { 16 } else { 32 };
        let words_bits = block.len() as u64 * (ncols as u64).next_multiple_of(64);
        // Kernels take symbols of a byte; others are decoded, and columns decode faster.
        let percent = match encoding.taps {
            1 => simd::active()?.words_percent(),
            _ => KERNEL_WORDS_PERCENT,
        };
        let is_dense = nnz * 100 >= words_bits * percent && nnz > 0;
        let has_bytes = rows.k().is_some_and(|k| k <= 256);
        return Ok(if is_dense && has_bytes { WORDS } else { ABSOLUTE | width });
    }
    if nnz >= bitmap_bits {
        return Ok(BITMAP);
    }
    let mut counts: Vec<u64> = Vec::new();
    for gap in block.flat_map(|row| gaps(rows.row_cols(row))) {
        if gap as usize >= counts.len() {
            counts.resize(gap as usize + 1, 0);
        }
        counts[gap as usize] += 1;
    }
    let gap_bits = |width: u8| -> u64 {
        let most = (1u64 << width) - 1;
        let fields = counts.iter().zip(0u64..).map(|(&count, gap)| count * (1 + gap / most));
        fields.sum::<u64>() * u64::from(width)
    };
    let widest = bits::bit_width(counts.len() as u64).clamp(1, u32::from(MAX_GAP_WIDTH)) as u8;
    let widths = (1..=widest).map(|width| (gap_bits(width), width));
    Ok(widths.chain([(bitmap_bits, BITMAP)]).min().map_or(BITMAP, |(_, form)| form))
}

fn encode_columns(rows: &Rows, block: Range<usize>, form: u8) -> Vec<u8> {
    let mut writer = BitWriter::new();
    for row in block {
        let cols = rows.row_cols(row);
        if form == BITMAP || form == WORDS {
            let ncols = rows.shape().ncols as u64;
            let mut at = 0;
            for &col in cols {
                put_zeros(&mut writer, u64::from(col) - at);
                writer.put(1, 1);
                at = u64::from(col) + 1;
            }
            let end = if form == WORDS { ncols.next_multiple_of(64) } else { ncols };
            put_zeros(&mut writer, end - at);
        } else if form & ABSOLUTE != 0 {
            cols.iter().for_each(|&col| writer.put(u64::from(col), u32::from(form & !ABSOLUTE)));
        } else {
            let most = (1u32 << form) - 1;
            for gap in gaps(cols) {
                (0..gap / most).for_each(|_| writer.put(u64::from(most), u32::from(form)));
                writer.put(u64::from(gap % most), u32::from(form));
            }
        }
    }
    writer.finish()
}

fn put_zeros(writer: &mut BitWriter, count: u64) {
    (0..count / 32).for_each(|_| writer.put(0, 32));
    writer.put(0, (count % 32) as u32);
}

fn read(parts: Parts) -> Result<Box<dyn Layout>> {
    let [m0, w0, b0, m1, w1, b1, symbol_width] = parts.params()?;
    let shape = parts.shape;
    let blocks = shape.nrows.div_ceil(STRIDE);
    // A byte of form for 64 rows, so rows are bounded by bytes.
    let forms = parts.section_of("forms", blocks)?;
    let positions = parts.section::<u8>("positions")?;
    let needed = bits::bit_width(parts.k().saturating_sub(1) as u64);
    if symbol_width > 16 || (symbol_width as u32) < needed {
        return Err(Error::corrupt(format!(
            "symbols of {symbol_width} bits, expected {needed} to 16 for k = {}",
            parts.k()
        )));
    }
    debug_assert!(parts.k() <= MAX_K);
    let symbol_width = symbol_width as u32;
    let symbol_bytes = bits::packed_nbytes(parts.nnz, symbol_width).ok_or_else(|| {
        Error::corrupt(format!("nnz = {}, expected symbols under 2^64 bits", parts.nnz))
    })?;
    let packed = Packed {
        shape,
        row_nnz: Offsets::read(
            shape.nrows,
            parts.nnz as u64,
            [m0, w0, b0],
            parts.section("row_nnz")?,
        )
        .map_err(|e| e.within("section row_nnz"))?,
        forms,
        ends: Offsets::read(blocks, positions.len() as u64, [m1, w1, b1], parts.section("ends")?)
            .map_err(|e| e.within("section ends"))?,
        positions,
        symbol_width,
        symbols: parts.section_of("symbols", symbol_bytes)?,
    };
    check_rows(&packed, &parts)?;
    let used = parts.nnz * symbol_width as usize;
    if bits::peek(packed.symbols.as_slice(), used) != 0 && used < symbol_bytes * 8 {
        return Err(Error::corrupt("section symbols: bits after the last symbol, expected zeros"));
    }
    Ok(Box::new(packed))
}

/// Adds a row of `len` columns to be filled.
fn new_row(out: &mut RowBlock, len: usize) -> &mut [u32] {
    let before = out.cols.len();
    out.cols.resize(before + len, 0);
    &mut out.cols[before..]
}

impl Packed {
    /// Whether blocks of a form are spread to dense rows from their bits.
    fn is_spread(&self, form: u8) -> bool {
        let is_words = form == WORDS || form == BITMAP && self.shape.ncols.is_multiple_of(64);
        is_words && self.symbol_width <= 8
    }

    /// Decodes the columns of `rows`, which lie in one block, and their kept counts.
    fn decode_columns(&self, block: usize, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        let start = self.ends.start(block) as usize;
        let bytes = &self.positions.as_slice()[start..][..self.ends.length(block) as usize];
        let first = block * STRIDE;
        let form = self.forms.as_slice()[block];
        let ncols = self.shape.ncols;
        let damaged = |row: usize, what: &str| {
            Err(Error::corrupt(format!("row {row}: {what} (section positions, byte {start})")))
        };
        let skipped: u64 = (first..rows.start).map(|row| self.row_nnz.length(row)).sum();
        if let Some(row) = rows.clone().find(|&row| self.row_nnz.length(row) > ncols as u64) {
            return damaged(row, "more kept weights than columns");
        }
        let is_whole = rows.end == self.shape.nrows.min(first + STRIDE);
        if form == BITMAP || form == WORDS {
            // From one row to the next.
            let pitch = if form == WORDS { ncols.next_multiple_of(64) } else { ncols };
            let expected = (self.shape.nrows - first).min(STRIDE).checked_mul(pitch);
            if expected.map(|bits| bits.div_ceil(8)) != Some(bytes.len()) {
                return damaged(first, "a bitmap of another size");
            }
            for row in rows {
                let (len, bits_at) = (self.row_nnz.length(row) as usize, (row - first) * pitch);
                if form == WORDS {
                    let before = out.cols.len();
                    bits::push_set_bits(&bytes[bits_at / 8..][..pitch / 8], &mut out.cols);
                    if out.cols.len() - before != len {
                        return damaged(row, "a bitmap with another number of kept weights");
                    }
                    out.end_row();
                    continue;
                }
                let cols = new_row(out, len);
                let mut kept = 0;
                for base in (0..pitch).step_by(56) {
                    let mut word =
                        bits::field(bytes, bits_at + base, (pitch - base).min(56) as u32);
                    while word != 0 {
                        if let Some(col) = cols.get_mut(kept) {
                            *col = base as u32 + word.trailing_zeros();
                        }
                        kept += 1;
                        word &= word - 1;
                    }
                }
                if kept != len {
                    return damaged(row, "a bitmap with another number of kept weights");
                }
                out.end_row();
            }
            return Ok(());
        }
        if form & ABSOLUTE != 0 {
            let width = form & !ABSOLUTE;
            let nbytes = usize::from(width / 8);
            let mut at = skipped as usize * nbytes;
            for row in rows {
                let len = self.row_nnz.length(row) as usize;
                let Some(words) = bytes.get(at..at + len * nbytes) else {
                    return damaged(row, "columns that end too early");
                };
                match width {
                    16 => out.cols.extend(
                        words.as_chunks::<2>().0.iter().map(|&b| u32::from(u16::from_le_bytes(b))),
                    ),
                    32 => out
                        .cols
                        .extend(words.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b))),
                    _ => return damaged(row, "an unknown form"),
                }
                out.end_row();
                at += words.len();
            }
            if is_whole && at != bytes.len() {
                return damaged(first, "columns that end too late");
            }
            return Ok(());
        }
        if form > MAX_GAP_WIDTH {
            return damaged(first, "an unknown form");
        }
        let (width, most) = (u32::from(form), (1u64 << form) - 1);
        let kept: u64 = skipped + rows.clone().map(|row| self.row_nnz.length(row)).sum::<u64>();
        if kept.saturating_mul(u64::from(width)) > bytes.len() as u64 * 8 {
            return damaged(first, "fewer gaps than kept weights");
        }
        let mut reader = BitReader::new(bytes, 0);
        for _ in 0..skipped {
            while reader.take(width) == most {
                if reader.position() > bytes.len() * 8 {
                    return damaged(first, "gaps that end too early");
                }
            }
        }
        for row in rows {
            let cols = new_row(out, self.row_nnz.length(row) as usize);
            let (mut next, mut kept) = (0u64, 0);
            // Every field moves on; one that is not all ones also keeps a column. The last column
            // is the highest, so it alone is checked.
            while let Some(col) = cols.get_mut(kept) {
                let field = reader.take(width);
                next += field;
                *col = next as u32;
                let is_kept = field != most;
                kept += usize::from(is_kept);
                next += u64::from(is_kept);
            }
            if next > ncols as u64 {
                return damaged(row, "a column past the last one");
            }
            out.end_row();
        }
        let end = reader.position();
        if end > bytes.len() * 8 {
            return damaged(first, "gaps that end too early");
        }
        if is_whole && (end.div_ceil(8) != bytes.len() || bits::peek(bytes, end) != 0) {
            return damaged(first, "gaps that end too late");
        }
        Ok(())
    }

    fn decode_symbols(&self, range: Range<usize>, out: &mut Vec<u16>) {
        let bytes = self.symbols.as_slice();
        match self.symbol_width {
            0 => out.resize(out.len() + range.len(), 0),
            8 => out.extend(bytes[range].iter().map(|&b| u16::from(b))),
            16 => out.extend(
                bytes[range.start * 2..range.end * 2]
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&b| u16::from_le_bytes(b)),
            ),
            width => {
                let before = out.len();
                out.resize(before + range.len(), 0);
                bits::unpack(bytes, range.start * width as usize, width, &mut out[before..]);
            }
        }
    }

    /// How many weights each of `rows` keeps, which lie in one block, and the number of kept
    /// weights before them.
    fn counts<'c>(&self, rows: &Range<usize>, room: &'c mut [u32; STRIDE]) -> (&'c [u32], usize) {
        let first = rows.start / STRIDE * STRIDE;
        let counts = &mut room[..rows.end - first];
        self.row_nnz.lengths(first, counts);
        let (before, counts) = counts.split_at(rows.start - first);
        let skipped: usize = before.iter().map(|&n| n as usize).sum();
        (counts, self.row_nnz.start(first) as usize + skipped)
    }

    /// The symbols from kept weight `at` on, where they are bytes; symbols 0 where they are not
    /// stored.
    fn stored_symbols<'a>(&'a self, at: usize, counts: &[u32], zeros: &'a mut Vec<u8>) -> &'a [u8] {
        if self.symbol_width == 8 {
            return &self.symbols.as_slice()[at..];
        }
        zeros.clear();
        zeros.resize(counts.iter().map(|&count| count as usize).sum(), 0);
        zeros
    }

    /// The words of `rows`, which lie in one block of whole words.
    fn words(&self, rows: &Range<usize>) -> &[[u8; 8]] {
        let (block, row_words) = (rows.start / STRIDE, self.shape.ncols.div_ceil(64));
        let bytes = &self.positions.as_slice()[self.ends.start(block) as usize..];
        &bytes.as_chunks().0[rows.start % STRIDE * row_words..][..rows.len() * row_words]
    }

    /// The 16-bit columns from kept weight `at` on, to the end of its block and beyond.
    fn columns(&self, block: usize, at: usize) -> &[[u8; 2]] {
        let bytes = &self.positions.as_slice()[self.ends.start(block) as usize..];
        &bytes.as_chunks().0[at - self.row_nnz.start(block * STRIDE) as usize..]
    }
}

impl Layout for Packed {
    fn spec(&self) -> &'static LayoutSpec {
        &SPEC
    }

    fn params(&self) -> Vec<u64> {
        let mut params = self.row_nnz.params().to_vec();
        params.extend(self.ends.params());
        params.push(u64::from(self.symbol_width));
        params
    }

    fn sections(&self) -> Vec<&[u8]> {
        vec![
            self.row_nnz.as_bytes(),
            self.forms.as_slice(),
            self.ends.as_bytes(),
            self.positions.as_slice(),
            self.symbols.as_slice(),
        ]
    }

    fn decode(&self, rows: Range<usize>, out: &mut RowBlock) -> Result<()> {
        out.clear();
        let mut row = rows.start;
        while row < rows.end {
            let block = row / STRIDE;
            let end = rows.end.min((block + 1) * STRIDE);
            self.decode_columns(block, row..end, out)?;
            row = end;
        }
        let start = self.row_nnz.start(rows.start) as usize;
        self.decode_symbols(start..start + out.cols.len(), &mut out.symbols);
        Ok(())
    }

    /// Blocks of words or whole 16-bit columns with symbols of 8 bits or none are multiplied as
    /// they lie.
    fn matvec(&self, product: &Product<'_>, rows: Range<usize>, y: &mut [f32]) -> Result<()> {
        let codebook = small_codebook(product.codebook);
        let mut lent = lend_buffers();
        let buffers = &mut *lent;
        let mut room = [0; STRIDE];
        let mut row = rows.start;
        while row < rows.end {
            let block = row / STRIDE;
            let part = row..rows.end.min((block + 1) * STRIDE);
            let y = &mut y[row - rows.start..part.end - rows.start];
            row = part.end;
            let form = self.forms.as_slice()[block];
            if matches!(self.symbol_width, 0 | 8) && matches!(form, WORDS | ABSOLUTE_16) {
                let (counts, at) = self.counts(&part, &mut room);
                let symbols = self.stored_symbols(at, counts, &mut buffers.symbols);
                let k = product.codebook.len();
                let rows = SymbolRows { counts, symbols, codebook: &codebook, k };
                if form == WORDS {
                    product.kernels.bitmap_dots(&rows, self.words(&part), product.x, y);
                } else {
                    product.kernels.column_dots(&rows, self.columns(block, at), product.x, y);
                }
                continue;
            }
            let buffer = &mut buffers.block;
            buffer.reserve(part.len(), part.len().saturating_mul(product.x.len()))?;
            self.decode(part, buffer)?;
            buffer.look_up(product.codebook);
            for (row, y) in y.iter_mut().enumerate() {
                let (cols, values) = buffer.row(row);
                *y = product.kernels.sparse_dot(cols, values, product.x);
            }
        }
        Ok(())
    }

    /// Bitmaps whose rows are whole words are spread as they lie, where symbols have up to 8 bits.
    fn decode_dense(
        &self,
        spread: &Spread<'_>,
        rows: Range<usize>,
        buffers: &mut Buffers,
        out: &mut [f32],
    ) -> Result<()> {
        let codebook = small_codebook(spread.codebook);
        let mut room = [0; STRIDE];
        let mut row = rows.start;
        while row < rows.end {
            let part = row..rows.end.min((row / STRIDE + 1) * STRIDE);
            let out = &mut out[(row - rows.start) * spread.pitch..][..part.len() * spread.pitch];
            row = part.end;
            let form = self.forms.as_slice()[part.start / STRIDE];
            let Buffers { block, symbols, .. } = buffers;
            if !self.is_spread(form) {
                block.reserve(part.len(), out.len())?;
                self.decode(part, block)?;
                spread.put(block, out);
                continue;
            }
            let (counts, at) = self.counts(&part, &mut room);
            let symbols = match self.symbol_width {
                0 | 8 => self.stored_symbols(at, counts, symbols),
                _ => {
                    let kept: usize = counts.iter().map(|&count| count as usize).sum();
                    block.clear();
                    self.decode_symbols(at..at + kept, &mut block.symbols);
                    symbols.clear();
                    symbols.extend(block.symbols.iter().map(|&symbol| symbol as u8));
                    symbols
                }
            };
            let k = spread.codebook.len();
            let kept = SymbolRows { counts, symbols, codebook: &codebook, k };
            let row_words = self.shape.ncols.div_ceil(64);
            let words = self.words(&part);
            spread.kernels.spread_bitmap(&kept, words, row_words, spread.pitch, out);
        }
        Ok(())
    }

    fn dense_source(&self) -> DenseSource {
        let forms = self.forms.as_slice();
        let spread = forms.iter().filter(|&&form| self.is_spread(form)).count();
        if 2 * spread >= forms.len() { DenseSource::Bits } else { DenseSource::Kept }
    }

    fn panel_width(&self) -> usize {
        if self.shape.ncols <= 1 << 16 && self.symbol_width <= 8 { 2 } else { 1 }
    }

    /// As [`Layout::matvec`]; other blocks are decoded into 16-bit columns and 8-bit symbols first.
    fn add_panels(
        &self,
        product: &PanelProduct<'_>,
        rows: Range<usize>,
        buffers: &mut Buffers,
        sums: &mut [Lanes],
    ) -> Result<()> {
        if self.panel_width() == 1 {
            decode_and_add_panels(self, product, rows, buffers, sums)?;
            return Ok(());
        }
        let Buffers { block: buffer, cols, symbols } = buffers;
        let block = rows.start / STRIDE;
        let form = self.forms.as_slice()[block];
        let mut room = [0; STRIDE];
        let (counts, at) = self.counts(&rows, &mut room);
        let has_bytes = matches!(self.symbol_width, 0 | 8);
        if !(has_bytes && matches!(form, WORDS | ABSOLUTE_16)) {
            buffer.reserve(rows.len(), rows.len().saturating_mul(product.ncols))?;
            self.decode(rows.clone(), buffer)?;
            cols.clear();
            cols.extend(buffer.cols.iter().map(|&col| (col as u16).to_le_bytes()));
        } else if form == WORDS {
            product.kernels.set_bits(self.words(&rows), self.shape.ncols.div_ceil(64), cols);
        }
        let symbols = if has_bytes {
            self.stored_symbols(at, counts, symbols)
        } else {
            symbols.clear();
            symbols.extend(buffer.symbols.iter().map(|&symbol| symbol as u8));
            symbols
        };
        let cols = match form {
            ABSOLUTE_16 if has_bytes => self.columns(block, at),
            _ => cols,
        };
        let (codebook, k) = (small_codebook(product.codebook), product.codebook.len());
        let kept = SymbolRows { counts, symbols, codebook: &codebook, k };
        for (width, panel, sums) in product.parts(sums, rows.len()) {
            product.kernels.column_panel(&kept, cols, width, panel, sums);
        }
        Ok(())
    }
}
