//! Tiles of several lines in registers of eight, of which AVX-512 has twice as many.
//!
//! The numbers of eight images fill one, so that no load straddles two cache lines.

use super::super::add_strip::define_add_strip;
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Weights};
use super::super::{Finish, Start, TileProduct};
use std::arch::x86_64::*;

define_add_strip!(
    "avx512f,avx512vl,avx2,fma", __m256, 8, zero _mm256_setzero_ps, set _mm256_set1_ps,
    load _mm256_loadu_ps, store _mm256_storeu_ps, multiply_add _mm256_fmadd_ps, add _mm256_add_ps,
    max _mm256_max_ps, min _mm256_min_ps, rows CutRows<'_, impl Weights>,
    weight |rows: &CutRows<'_, _>, weight| {
        let (offset, value) = rows.get(weight);
        (offset, _mm256_set1_ps(value))
    }
);
