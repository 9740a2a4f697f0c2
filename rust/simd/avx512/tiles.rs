//! Tiles of outputs in registers of sixteen; tables of up to 32 entries in two registers.

use super::super::scalar::Scalar;
use super::super::tiles::TapRows;
use super::super::{Kernels, Start, TileProduct};
use std::arch::x86_64::*;

/// Registers of sums stay in place while the weights go by: `VECTORS` for the tile, times
/// `WEIGHTS` in turn, so that additions of small tiles overlap too.
///
/// # Safety
/// [`TileProduct::check`] was called for this output, and the tile is 16 · `VECTORS`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_strip<const VECTORS: usize, const WEIGHTS: usize>(
    product: &TileProduct<'_>,
    rows: impl TapRows,
    output: &mut [f32],
) {
    let TileProduct { strip, input, start, finish, stride, .. } = *product;
    for (row, output) in output.chunks_mut(stride).take(strip.nrows()).enumerate() {
        let range = rows.range(row);
        let output = &mut output[..16 * VECTORS];
        let mut acc = [[_mm512_setzero_ps(); VECTORS]; WEIGHTS];
        let from = match start {
            Start::Zero => None,
            Start::Output if range.is_empty() && finish.is_none() => continue,
            Start::Output => Some(&*output),
            Start::Sums(sums) => Some(&sums[row * 16 * VECTORS..][..16 * VECTORS]),
        };
        for (acc, part) in acc[0].iter_mut().zip(from.unwrap_or(&[]).as_chunks::<16>().0) {
            // SAFETY: the reference covers 64 bytes; loadu needs no alignment.
            *acc = unsafe { _mm512_loadu_ps(part.as_ptr()) };
        }
        let add = |acc: &mut [__m512; VECTORS], weight: usize| {
            // SAFETY: it is in the row's range.
            let (offset, value) = unsafe { rows.get(weight) };
            let value = _mm512_set1_ps(value);
            for (vector, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller checked that 16 · VECTORS numbers from every offset are there.
                let x = unsafe { _mm512_loadu_ps(input.as_ptr().add(offset + 16 * vector)) };
                *acc = _mm512_fmadd_ps(value, x, *acc);
            }
        };
        let whole = range.start + range.len() / WEIGHTS * WEIGHTS;
        for first in (range.start..whole).step_by(WEIGHTS) {
            for (i, acc) in acc.iter_mut().enumerate() {
                add(acc, first + i);
            }
        }
        for (i, weight) in (whole..range.end).enumerate() {
            add(&mut acc[i % WEIGHTS], weight);
        }
        let (parts, _) = output.as_chunks_mut::<16>();
        for (vector, part) in parts.iter_mut().enumerate() {
            let mut sum = acc[0][vector];
            for acc in &acc[1..] {
                sum = _mm512_add_ps(sum, acc[vector]);
            }
            if let Some(finish) = finish {
                let (scale, shift) = finish.row(row);
                sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(scale), _mm512_set1_ps(shift));
                // In this order, NaN stays NaN.
                sum = _mm512_max_ps(_mm512_set1_ps(finish.floor), sum);
                sum = _mm512_min_ps(_mm512_set1_ps(finish.ceiling), sum);
            }
            // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
            unsafe { _mm512_storeu_ps(part.as_mut_ptr(), sum) };
        }
    }
}

/// `table` and zeros, in two registers.
#[target_feature(enable = "avx512f")]
fn two_registers(table: &[u32]) -> (__m512i, __m512i) {
    let mut entries = [0; 32];
    entries[..table.len()].copy_from_slice(table);
    // SAFETY: 128 bytes are there; loadu needs no alignment.
    unsafe {
        (
            _mm512_loadu_si512(entries.as_ptr().cast()),
            _mm512_loadu_si512(entries.as_ptr().add(16).cast()),
        )
    }
}

/// [`Kernels::place`] for up to 32 taps.
///
/// The channel of a column is (col + ½) / n in single precision. Its error, at most
/// col / n · 2⁻²³, is less than the distance to a whole number, 1 / 2n, for columns under 2²²;
/// larger ones go the plain way.
#[target_feature(enable = "avx512f")]
pub(super) fn place(cols: &mut [u32], taps: &[u32], channel: u32, base: u32) -> u32 {
    let (low, high) = two_registers(taps);
    let count = _mm512_set1_epi32(taps.len() as i32);
    let reciprocal = _mm512_set1_ps(1.0 / taps.len() as f32);
    let half = _mm512_set1_ps(0.5 / taps.len() as f32);
    let (channels, bases) = (_mm512_set1_epi32(channel as i32), _mm512_set1_epi32(base as i32));
    let mut reaches = _mm512_setzero_si512();
    let mut reach = 0;
    let (chunks, rest) = cols.as_chunks_mut::<16>();
    for chunk in chunks {
        if chunk.iter().any(|&col| col >= 1 << 22) {
            reach = reach.max(Scalar.place(chunk, taps, channel, base));
            continue;
        }
        // SAFETY: the reference covers 64 bytes; loadu needs no alignment.
        let col = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        let quotient = _mm512_fmadd_ps(_mm512_cvtepu32_ps(col), reciprocal, half);
        let number = _mm512_cvttps_epu32(quotient);
        let tap = _mm512_sub_epi32(col, _mm512_mullo_epi32(number, count));
        let place = _mm512_add_epi32(
            _mm512_add_epi32(bases, _mm512_mullo_epi32(number, channels)),
            _mm512_permutex2var_epi32(low, tap, high),
        );
        reaches = _mm512_max_epu32(reaches, place);
        // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
        unsafe { _mm512_storeu_si512(chunk.as_mut_ptr().cast(), place) };
    }
    reach.max(_mm512_reduce_max_epu32(reaches)).max(Scalar.place(rest, taps, channel, base))
}

/// [`Kernels::look_up`] for up to 32 values.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn look_up(symbols: &[u16], codebook: &[f32], values: &mut Vec<f32>) {
    let (low, high) = two_registers(bytemuck::cast_slice(codebook));
    let k = _mm512_set1_epi32(codebook.len() as i32);
    let start = values.len();
    values.resize(start + symbols.len(), 0.0);
    let (chunks, rest) = symbols.as_chunks::<16>();
    let (out, out_rest) = values[start..].as_chunks_mut::<16>();
    let mut is_outside = 0;
    for (symbols, out) in chunks.iter().zip(out) {
        // SAFETY: the references cover 32 bytes, and 64 writable bytes; no alignment is needed.
        unsafe {
            let symbols = _mm512_cvtepu16_epi32(_mm256_loadu_si256(symbols.as_ptr().cast()));
            is_outside |= _mm512_cmpge_epu32_mask(symbols, k);
            let value = _mm512_permutex2var_epi32(low, symbols, high);
            _mm512_storeu_si512(out.as_mut_ptr().cast(), value);
        }
    }
    assert!(is_outside == 0, "look_up: a symbol outside the codebook of {}", codebook.len());
    for (symbol, out) in rest.iter().zip(out_rest) {
        *out = codebook[usize::from(*symbol)];
    }
}

/// [`Kernels::narrow`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn narrow(
    places: &[u32],
    symbols: &[u16],
    shift: u32,
    offsets: &mut Vec<u16>,
    bytes: &mut Vec<u8>,
) {
    offsets.resize(places.len(), 0);
    let (chunks, rest) = places.as_chunks::<16>();
    let (out, out_rest) = offsets.as_chunks_mut::<16>();
    let count = _mm_cvtsi32_si128(shift as i32);
    for (places, out) in chunks.iter().zip(out) {
        // SAFETY: the references cover 64 bytes and 32 writable ones; no alignment is needed.
        unsafe {
            let places = _mm512_loadu_si512(places.as_ptr().cast());
            let offsets = _mm512_cvtepi32_epi16(_mm512_srl_epi32(places, count));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), offsets);
        }
    }
    out_rest.iter_mut().zip(rest).for_each(|(out, place)| *out = (place >> shift) as u16);
    bytes.resize(symbols.len(), 0);
    let (chunks, rest) = symbols.as_chunks::<32>();
    let (out, out_rest) = bytes.as_chunks_mut::<32>();
    for (symbols, out) in chunks.iter().zip(out) {
        // SAFETY: the references cover 64 bytes and 32 writable ones; no alignment is needed.
        unsafe {
            let symbols = _mm512_loadu_si512(symbols.as_ptr().cast());
            _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(symbols));
        }
    }
    out_rest.iter_mut().zip(rest).for_each(|(out, &symbol)| *out = symbol as u8);
}
