//! Tiles of four outputs: a map of 2 × 2 of one image.
//!
//! A load of four numbers of their own never straddles two cache lines.

use super::super::add_strip::define_add_strip;
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Weights};
use super::super::{Finish, Start, TileProduct};
use std::arch::x86_64::*;

define_add_strip!(
    "avx2,fma", __m128, 4, zero _mm_setzero_ps, set _mm_set1_ps, load _mm_loadu_ps,
    store _mm_storeu_ps, multiply_add _mm_fmadd_ps, add _mm_add_ps, max _mm_max_ps,
    min _mm_min_ps, rows CutRows<'_, impl Weights>,
    weight |rows: &CutRows<'_, _>, weight| {
        let (offset, value) = rows.get(weight);
        (offset, _mm_set1_ps(value))
    }
);
