//! Four numbers of eight maps to four cells and back: rows of four turned in both halves of registers.

use super::super::interleaving::{Cells, IMAGES, check_copy};
use std::arch::x86_64::*;

/// Numbers of a map that are turned together.
const RUN: usize = 4;

/// The transposed four by four numbers of both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn turned([a, b, c, d]: [__m256; RUN]) -> [__m256; RUN] {
    let low = [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)].map(|v| _mm256_castps_pd(v));
    let high = [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)].map(|v| _mm256_castps_pd(v));
    [
        _mm256_unpacklo_pd(low[0], low[1]),
        _mm256_unpackhi_pd(low[0], low[1]),
        _mm256_unpacklo_pd(high[0], high[1]),
        _mm256_unpackhi_pd(high[0], high[1]),
    ]
    .map(|v| _mm256_castpd_ps(v))
}

/// Where the cells of places are, one after the other.
struct Next {
    cells: Cells,
    at: usize,
    col: usize,
}

impl Next {
    #[inline(always)]
    fn next(&mut self) -> usize {
        let at = self.at;
        self.col += 1;
        self.at += self.cells.cell;
        if self.col == self.cells.width {
            self.at += self.cells.pitch - self.cells.width * self.cells.cell;
            self.col = 0;
        }
        at
    }
}

/// [`super::super::Kernels::interleave`].
#[target_feature(enable = "avx2")]
pub(super) fn interleave(maps: [&[f32]; IMAGES], cells: Cells, out: &mut [f32]) {
    let len = maps[0].len();
    cells.check(maps.map(<[f32]>::len), out.len());
    let mut next = Next { cells, at: 0, col: 0 };
    for place in (0..len / RUN * RUN).step_by(RUN) {
        // SAFETY: all maps are as long as the first one, which has four numbers from `place` on.
        let rows = unsafe {
            let load = |map: usize| _mm_loadu_ps(maps[map].as_ptr().add(place));
            [0, 1, 2, 3].map(|map| _mm256_set_m128(load(map + RUN), load(map)))
        };
        for cell in turned(rows) {
            // SAFETY: the check found room for the cell of each place.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(next.next()), cell) };
        }
    }
    for place in len / RUN * RUN..len {
        let cell = &mut out[next.next()..][..IMAGES];
        cell.iter_mut().zip(maps).for_each(|(out, map)| *out = map[place]);
    }
}

/// [`super::super::Kernels::separate`].
#[target_feature(enable = "avx2")]
pub(super) fn separate(x: &[f32], cells: Cells, mut maps: [&mut [f32]; IMAGES]) {
    let len = maps[0].len();
    cells.check(maps.each_ref().map(|map| map.len()), x.len());
    let mut next = Next { cells, at: 0, col: 0 };
    for place in (0..len / RUN * RUN).step_by(RUN) {
        // SAFETY: the check found the cell of each place inside.
        let rows = [(); RUN].map(|()| unsafe { _mm256_loadu_ps(x.as_ptr().add(next.next())) });
        for (map, row) in turned(rows).into_iter().enumerate() {
            // SAFETY: all maps are as long as the first one, which has four numbers from `place` on.
            unsafe {
                let low = maps[map].as_mut_ptr().add(place);
                let high = maps[map + RUN].as_mut_ptr().add(place);
                _mm_storeu_ps(low, _mm256_castps256_ps128(row));
                _mm_storeu_ps(high, _mm256_extractf128_ps::<1>(row));
            }
        }
    }
    for place in len / RUN * RUN..len {
        let cell = &x[next.next()..][..IMAGES];
        maps.iter_mut().zip(cell).for_each(|(map, x)| map[place] = *x);
    }
}

/// [`super::super::Kernels::copy_cells`]: rows are too short for a call each.
#[target_feature(enable = "avx2")]
pub(super) fn copy_cells(rows: usize, (x, from): (&[f32], Cells), (out, to): (&mut [f32], Cells)) {
    check_copy(rows, (x, from), (out, to));
    for row in 0..rows {
        for col in 0..from.width {
            let at = |cells: Cells| row * cells.pitch + col * cells.cell;
            // SAFETY: the check found as many rows of as many cells; no alignment is needed.
            unsafe {
                let cell = _mm256_loadu_ps(x.as_ptr().add(at(from)));
                _mm256_storeu_ps(out.as_mut_ptr().add(at(to)), cell);
            }
        }
    }
}
