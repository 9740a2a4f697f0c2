//! Products with a vector, eight sums in turn so that additions overlap, and with panels of lanes.
//!
//! Arrays of a length that is known stay in registers, and [`f32::mul_add`] is an instruction.

use super::super::{LANES, Lanes, SymbolRows, counted, strip_cols};

/// Sums that are added to in turn.
const SUMS: usize = 8;

/// Σ w · x of the pairs that elements of both slices make, which are as long.
#[inline(always)]
fn chunked<A: Copy, B: Copy>(a: &[A], b: &[B], pair: impl Fn(A, B) -> (f32, f32)) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<SUMS>(), b.as_chunks::<SUMS>());
    let mut sums = [0.0f32; SUMS];
    for (a, b) in a.iter().zip(b) {
        for i in 0..SUMS {
            let (w, x) = pair(a[i], b[i]);
            sums[i] = w.mul_add(x, sums[i]);
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        let (w, x) = pair(a, b);
        sums[i] = w.mul_add(x, sums[i]);
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// [`super::super::Kernels::sparse_dot`].
pub(super) fn sparse_dot(cols: &[u32], values: &[f32], x: &[f32]) -> f32 {
    assert_eq!(cols.len(), values.len(), "sparse_dot: columns and values");
    chunked(cols, values, |col, value| (value, x[col as usize]))
}

/// [`super::super::Kernels::rank_dot`].
pub(super) fn rank_dot(
    positions: &[u32],
    start: u32,
    ranks: &[u16],
    values: &[f32],
    x: &[f32],
) -> f32 {
    assert_eq!(positions.len(), ranks.len(), "rank_dot: positions and ranks");
    chunked(positions, ranks, |position, rank| {
        (values[usize::from(rank)], x[(position as usize).wrapping_sub(start as usize)])
    })
}

/// [`super::super::Kernels::dense_dot`].
pub(super) fn dense_dot(w: &[f32], x: &[f32]) -> f32 {
    assert_eq!(w.len(), x.len(), "dense_dot: weights and inputs");
    chunked(w, x, |w, x| (w, if w.to_bits() == 0 { 0.0 } else { x }))
}

/// [`super::super::Kernels::column_dots`].
pub(super) fn column_dots(rows: &SymbolRows<'_>, cols: &[[u8; 2]], x: &[f32], y: &mut [f32]) {
    let cols = counted(rows, cols, y.len());
    let mut at = 0;
    for (&count, y) in rows.counts.iter().zip(y) {
        let range = at..at + count as usize;
        *y = chunked(&cols[range.clone()], &rows.symbols[range.clone()], |col, symbol| {
            (rows.codebook[usize::from(symbol)], x[usize::from(u16::from_le_bytes(col))])
        });
        at = range.end;
    }
}

/// [`super::super::Kernels::bitmap_dots`]: the inputs of kept weights of each word, then their products.
pub(super) fn bitmap_dots(rows: &SymbolRows<'_>, words: &[[u8; 8]], x: &[f32], y: &mut [f32]) {
    assert_eq!(words.len(), x.len().div_ceil(64) * y.len(), "bitmap_dots: words");
    let (mut symbols, mut words) = (rows.symbols, words.iter());
    let mut inputs = [0.0; 64];
    for y in y {
        *y = 0.0;
        for (x, word) in x.chunks(64).zip(words.by_ref()) {
            let mut word = u64::from_le_bytes(*word) & (u64::MAX >> (64 - x.len()));
            let kept = word.count_ones() as usize;
            for input in &mut inputs[..kept] {
                *input = x[word.trailing_zeros() as usize];
                word &= word - 1;
            }
            // Where there are fewer symbols than bits any will do.
            let (mine, rest) = symbols.split_at(kept.min(symbols.len()));
            symbols = rest;
            *y += chunked(mine, &inputs[..mine.len()], |symbol, input| {
                (rows.codebook[usize::from(symbol)], input)
            });
        }
    }
}

/// Adds `value` times `W` groups of inputs.
#[inline(always)]
fn add<const W: usize>(sums: &mut [Lanes; W], value: f32, inputs: &[Lanes; W]) {
    for (sums, inputs) in sums.iter_mut().zip(inputs) {
        for lane in 0..LANES {
            sums[lane] = value.mul_add(inputs[lane], sums[lane]);
        }
    }
}

/// [`super::super::Kernels::add_panel_product`].
pub(super) fn add_panel_product(cols: &[u32], values: &[f32], panel: &[Lanes], sums: &mut Lanes) {
    assert_eq!(cols.len(), values.len(), "add_panel_product: columns and values");
    let panel = panel.as_chunks::<1>().0;
    let (mut even, mut odd) = ([*sums], [Lanes::default()]);
    let ((col_pairs, col), (pairs, value)) = (cols.as_chunks::<2>(), values.as_chunks::<2>());
    for (cols, values) in col_pairs.iter().zip(pairs) {
        add(&mut even, values[0], &panel[cols[0] as usize]);
        add(&mut odd, values[1], &panel[cols[1] as usize]);
    }
    for (&col, &value) in col.iter().zip(value) {
        add(&mut even, value, &panel[col as usize]);
    }
    *sums = std::array::from_fn(|lane| even[0][lane] + odd[0][lane]);
}

/// [`super::super::Kernels::column_panel`] with `W` groups of lanes to a column: strips of columns, whose
/// part of the panel stays in the second-level cache, for each row.
pub(super) fn column_panel<const W: usize>(
    rows: &SymbolRows<'_>,
    cols: &[[u8; 2]],
    panel: &[Lanes],
    sums: &mut [Lanes],
) {
    let (panel, sums) = (panel.as_chunks::<W>().0, sums.as_chunks_mut::<W>().0);
    let cols = counted(rows, cols, sums.len());
    let strip = strip_cols(rows, panel.len(), size_of::<[Lanes; W]>());
    // What is left of each row.
    let mut left: Vec<(&[[u8; 2]], &[u8])> = Vec::with_capacity(sums.len());
    let mut at = 0;
    for &count in rows.counts {
        let range = at..at + count as usize;
        left.push((&cols[range.clone()], &rows.symbols[range.clone()]));
        at = range.end;
    }
    for end in (0..panel.len()).step_by(strip).map(|start| start + strip) {
        for ((cols, symbols), sums) in left.iter_mut().zip(sums.iter_mut()) {
            let (mut acc, mut done) = (*sums, 0);
            for (&col, &symbol) in cols.iter().zip(*symbols) {
                let col = usize::from(u16::from_le_bytes(col));
                if col >= end {
                    break;
                }
                add(&mut acc, rows.codebook[usize::from(symbol)], &panel[col]);
                done += 1;
            }
            (*cols, *symbols, *sums) = (&cols[done..], &symbols[done..], acc);
        }
    }
}
