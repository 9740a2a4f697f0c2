//! Tiles of outputs in registers of sixteen; tables of up to 32 entries in two registers.

use super::super::scalar::Scalar;
use super::super::tiles::{CutRows, Weights, define_add_strip};
use super::super::{Kernels, Start, TileProduct};
use std::arch::x86_64::*;

define_add_strip!(
    "avx512f", __m512, 16, zero _mm512_setzero_ps, set _mm512_set1_ps, load _mm512_loadu_ps,
    store _mm512_storeu_ps, multiply_add _mm512_fmadd_ps, add _mm512_add_ps, max _mm512_max_ps,
    min _mm512_min_ps
);

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

/// [`Kernels::place`], and where `JOIN`, [`Kernels::join`], for up to 32 taps.
///
/// The channel of a column is (col + ½) / n in single precision. Its error, at most
/// col / n · 2⁻²³, is less than the distance to a whole number, 1 / 2n, for columns under 2²²;
/// larger ones go the plain way.
#[target_feature(enable = "avx512f")]
pub(super) fn place<const JOIN: bool>(
    cols: &mut [u32],
    symbols: &[u16],
    taps: &[u32],
    channel: u32,
    base: u32,
) -> (u32, u16) {
    assert!(!JOIN || cols.len() == symbols.len(), "join: columns and symbols");
    let (low, high) = two_registers(taps);
    let count = _mm512_set1_epi32(taps.len() as i32);
    let reciprocal = _mm512_set1_ps(1.0 / taps.len() as f32);
    let half = _mm512_set1_ps(0.5 / taps.len() as f32);
    let (channels, bases) = (_mm512_set1_epi32(channel as i32), _mm512_set1_epi32(base as i32));
    let (mut reaches, mut largest) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    let mut plain = (0, 0);
    let mut plainly = |cols: &mut [u32], symbols: &[u16]| {
        let (reach, symbol) = match JOIN {
            true => Scalar.join(cols, symbols, taps, channel, base),
            false => (Scalar.place(cols, taps, channel, base), 0),
        };
        plain = (reach.max(plain.0), symbol.max(plain.1));
    };
    let (chunks, rest) = cols.as_chunks_mut::<16>();
    let (symbol_chunks, symbol_rest) = symbols.as_chunks::<16>();
    for (i, chunk) in chunks.iter_mut().enumerate() {
        if chunk.iter().any(|&col| col >= 1 << 22) {
            plainly(chunk, if JOIN { &symbol_chunks[i] } else { &[] });
            continue;
        }
        // SAFETY: the reference covers 64 bytes; loadu needs no alignment.
        let col = unsafe { _mm512_loadu_si512(chunk.as_ptr().cast()) };
        let quotient = _mm512_fmadd_ps(_mm512_cvtepu32_ps(col), reciprocal, half);
        let number = _mm512_cvttps_epu32(quotient);
        let tap = _mm512_sub_epi32(col, _mm512_mullo_epi32(number, count));
        let mut place = _mm512_add_epi32(
            _mm512_add_epi32(bases, _mm512_mullo_epi32(number, channels)),
            _mm512_permutex2var_epi32(low, tap, high),
        );
        reaches = _mm512_max_epu32(reaches, place);
        if JOIN {
            // SAFETY: the reference covers 32 bytes; loadu needs no alignment.
            let symbol = unsafe {
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(symbol_chunks[i].as_ptr().cast()))
            };
            largest = _mm512_max_epu32(largest, symbol);
            place = _mm512_or_si512(_mm512_slli_epi32::<2>(place), _mm512_slli_epi32::<24>(symbol));
        }
        // SAFETY: the reference covers 64 writable bytes; storeu needs no alignment.
        unsafe { _mm512_storeu_si512(chunk.as_mut_ptr().cast(), place) };
    }
    plainly(rest, symbol_rest);
    let (reach, symbol) = (_mm512_reduce_max_epu32(reaches), _mm512_reduce_max_epu32(largest));
    (reach.max(plain.0), plain.1.max(symbol as u16))
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
