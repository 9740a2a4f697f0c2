//! Tiles of several lines, as in `grids.rs`, of weights of up to 32 values.
//!
//! A value is taken out of registers instead of the cache: the inputs of a weight are two loads a cycle
//! already.

use super::super::add_strip::define_add_strip;
use super::super::tiles::{COLUMN, COLUMN_PITCH, CutRows, Joined};
use super::super::{Finish, Start, TileProduct};
use super::few::{Few, offset};
use std::arch::x86_64::*;

define_add_strip!(
    "avx512f,avx512vl,avx2,fma,bmi2", __m256, 8, zero _mm256_setzero_ps, set _mm256_set1_ps,
    load _mm256_loadu_ps, store _mm256_storeu_ps, multiply_add _mm256_fmadd_ps, add _mm256_add_ps,
    max _mm256_max_ps, min _mm256_min_ps, rows CutRows<'_, Joined>,
    weight |rows: &CutRows<'_, _>, weight| {
        let weight = rows.entries(weight);
        let value = Few::new(rows.first_values()).one(weight);
        (offset(weight), _mm512_castps512_ps256(value))
    }
);
