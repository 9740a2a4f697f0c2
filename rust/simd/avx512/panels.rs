//! Products of rows of 8-bit symbols with panels: a broadcast a weight, one or two registers of
//! inputs.
//!
//! ```text
//!   for each strip of columns, whose part of the panel stays in the second-level cache:
//!     for each row of the block: sums[row] += Σ codebook[symbol] · panel[col]
//! ```
//!
//! Strips for the first-level cache were slower: each starts every row anew.
//!
//! Two weights go side by side, so that their additions overlap.

use super::super::{Lanes, SymbolRows, counted, strip_cols};
use super::symbols::{check_columns, load};
use std::arch::x86_64::*;

/// [`super::super::Kernels::column_panel`] with `W` groups of lanes to a column.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1,bmi2")]
pub(super) fn column_panel<const W: usize>(
    rows: &SymbolRows<'_>,
    cols: &[[u8; 2]],
    panel: &[Lanes],
    sums: &mut [Lanes],
) {
    let (panel, _) = panel.as_chunks::<W>();
    let (sums, _) = sums.as_chunks_mut::<W>();
    let cols = counted(rows, cols, sums.len());
    check_columns(cols, panel.len());
    let col = |i: usize| u16::from_le_bytes(cols[i]);
    let add = |acc: &mut [__m512; W], i: usize, col: u16| {
        let value = _mm512_set1_ps(rows.codebook[usize::from(rows.symbols[i])]);
        // SAFETY: `check_columns` found every column inside the panel.
        let inputs = unsafe { panel.get_unchecked(usize::from(col)) };
        for (acc, inputs) in acc.iter_mut().zip(inputs) {
            *acc = _mm512_fmadd_ps(value, load(inputs), *acc);
        }
    };
    let strip = strip_cols(rows, panel.len(), size_of::<[Lanes; W]>());
    let mut next: Vec<usize> = Vec::with_capacity(sums.len());
    let mut at = 0;
    for &count in rows.counts {
        next.push(at);
        at += count as usize;
    }
    for end in (0..panel.len()).step_by(strip).map(|start| start + strip) {
        let mut row_end = 0;
        for ((next, &count), sums) in next.iter_mut().zip(rows.counts).zip(sums.iter_mut()) {
            row_end += count as usize;
            let mut acc = [[_mm512_setzero_ps(); W]; 2];
            let mut i = *next;
            while i + 1 < row_end {
                let (first, second) = (col(i), col(i + 1));
                if usize::from(second) >= end {
                    break;
                }
                add(&mut acc[0], i, first);
                add(&mut acc[1], i + 1, second);
                i += 2;
            }
            if i < row_end && usize::from(col(i)) < end {
                add(&mut acc[0], i, col(i));
                i += 1;
            }
            *next = i;
            for (w, sums) in sums.iter_mut().enumerate() {
                let sum = _mm512_add_ps(load(sums), _mm512_add_ps(acc[0][w], acc[1][w]));
                // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum) };
            }
        }
    }
}
