//! The transforms of convolutions by 16 products of matrices, four by four, for 3 × 3 kernels: Winograd's
//! F(2 × 2, 3 × 3).
//!
//! ```text
//!   four outputs, two by two:   y = Aᵀ [ (G g Gᵀ) · (Bᵀ d B) ] A        · number by number
//!     Bᵀ d   d0 − d2,  d1 + d2,  d2 − d1,  d1 − d3           d: 4 × 4 inputs
//!     G g    g0,  (g0 + g1 + g2) / 2,  (g0 − g1 + g2) / 2,  g2
//!     Aᵀ m   m0 + m1 + m2,  m1 − m2 − m3
//! ```
//!
//! The 16 numbers of each kernel, input or product lie in 16 planes, tile next to tile. Sums have one
//! order, without fused multiply–adds: all instruction sets give the same bits.
//!
//! Source: Lavin and Gray 2016, "Fast algorithms for convolutional neural networks".

use super::Finish;

/// Planes of numbers that are multiplied.
pub const POINTS: usize = 16;
/// Numbers of a kernel.
pub const TAPS: usize = 9;

/// What is done at a time, as the compiler fills registers.
const LANES: usize = 8;

/// [`super::Kernels::transform_kernels`].
#[inline(always)]
pub(super) fn transform_kernels(kernels: &[f32], out: &mut [&mut [f32]; POINTS], at: usize) {
    for (number, chunk) in kernels.chunks(TAPS * LANES).enumerate() {
        let mut taps = [[0.0; LANES]; TAPS];
        for (lane, kernel) in chunk.chunks_exact(TAPS).enumerate() {
            for (tap, &value) in taps.iter_mut().zip(kernel) {
                tap[lane] = value;
            }
        }
        let (at, len) = (at + number * LANES, chunk.len() / TAPS);
        let [a, b, c, d, e, f, g, h, i] = taps;
        // Gᵀ for each column, then G for each row of what that gives.
        let columns = [outer([a, d, g]), outer([b, e, h]), outer([c, f, i])];
        for row in 0..4 {
            let points = outer([columns[0][row], columns[1][row], columns[2][row]]);
            for (col, values) in points.iter().enumerate() {
                let out = &mut out[4 * row + col][at..at + len];
                // A number of bytes that is known is not worth a call.
                match <&mut [f32; LANES]>::try_from(&mut *out) {
                    Ok(out) => *out = *values,
                    Err(_) => out.copy_from_slice(&values[..len]),
                }
            }
        }
    }
}

/// `G g`, lane by lane.
#[inline(always)]
fn outer([first, middle, last]: [[f32; LANES]; 3]) -> [[f32; LANES]; 4] {
    let (mut plus, mut minus) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let ends = first[lane] + last[lane];
        plus[lane] = (ends + middle[lane]) * 0.5;
        minus[lane] = (ends - middle[lane]) * 0.5;
    }
    [first, plus, minus, last]
}

/// [`super::Kernels::transform_inputs`].
#[inline(always)]
pub(super) fn transform_inputs(rows: [&[f32]; 4], out: &mut [f32], plane: usize) {
    let tiles = (rows[0].len() - 2) / 2;
    let mut at = 0;
    while at + 16 <= tiles {
        input_tiles::<16>(rows, at, out, plane);
        at += 16;
    }
    if at + 8 <= tiles {
        input_tiles::<8>(rows, at, out, plane);
        at += 8;
    }
    if at + 4 <= tiles {
        input_tiles::<4>(rows, at, out, plane);
        at += 4;
    }
    while at < tiles {
        input_tiles::<1>(rows, at, out, plane);
        at += 1;
    }
}

#[inline(always)]
fn input_tiles<const N: usize>(rows: [&[f32]; 4], at: usize, out: &mut [f32], plane: usize) {
    // Columns 0 to 3 of each tile, of each row.
    let mut columns = [[[0.0; N]; 4]; 4];
    for (columns, row) in columns.iter_mut().zip(rows) {
        let row = &row[2 * at..2 * at + 2 * N + 2];
        for tile in 0..N {
            for (col, column) in columns.iter_mut().enumerate() {
                column[tile] = row[2 * tile + col];
            }
        }
    }
    let mut combined = [[[0.0; N]; 4]; 4];
    for col in 0..4 {
        let [a, b, c, d] =
            inner([columns[0][col], columns[1][col], columns[2][col], columns[3][col]]);
        (combined[0][col], combined[1][col], combined[2][col], combined[3][col]) = (a, b, c, d);
    }
    for (row, &columns) in combined.iter().enumerate() {
        for (col, values) in inner(columns).iter().enumerate() {
            out[(4 * row + col) * plane + at..][..N].copy_from_slice(values);
        }
    }
}

/// `Bᵀ d`, lane by lane.
#[inline(always)]
fn inner<const N: usize>([a, b, c, d]: [[f32; N]; 4]) -> [[f32; N]; 4] {
    let mut found = [[0.0; N]; 4];
    for lane in 0..N {
        found[0][lane] = a[lane] - c[lane];
        found[1][lane] = b[lane] + c[lane];
        found[2][lane] = c[lane] - b[lane];
        found[3][lane] = b[lane] - d[lane];
    }
    found
}

/// [`super::Kernels::transform_products`].
#[inline(always)]
pub(super) fn transform_products(
    products: &[f32],
    plane: usize,
    (finish, row): (&Finish<'_>, usize),
    [top, bottom]: [&mut [f32]; 2],
) {
    let of_row = finish.row(row);
    let done = |sum| finish.of(sum, of_row);
    let whole = top.len() / 2;
    let mut at = 0;
    while at + 16 <= whole {
        output_tiles::<16>(products, plane, at, done, [&mut *top, &mut *bottom]);
        at += 16;
    }
    if at + 8 <= whole {
        output_tiles::<8>(products, plane, at, done, [&mut *top, &mut *bottom]);
        at += 8;
    }
    if at + 4 <= whole {
        output_tiles::<4>(products, plane, at, done, [&mut *top, &mut *bottom]);
        at += 4;
    }
    while 2 * at < top.len() {
        output_tiles::<1>(products, plane, at, done, [&mut *top, &mut *bottom]);
        at += 1;
    }
}

#[inline(always)]
fn output_tiles<const N: usize>(
    products: &[f32],
    plane: usize,
    at: usize,
    done: impl Fn(f32) -> f32,
    outputs: [&mut [f32]; 2],
) {
    let mut sums = [[[0.0; N]; 4]; 2];
    for col in 0..4 {
        let mut points = [[0.0; N]; 4];
        for (row, points) in points.iter_mut().enumerate() {
            points.copy_from_slice(&products[(4 * row + col) * plane + at..][..N]);
        }
        let [top, bottom] = summed(points);
        (sums[0][col], sums[1][col]) = (top, bottom);
    }
    for (columns, output) in sums.into_iter().zip(outputs) {
        let [left, right] = summed(columns);
        let mut pairs = [[0.0; 2]; N];
        for (tile, pair) in pairs.iter_mut().enumerate() {
            *pair = [done(left[tile]), done(right[tile])];
        }
        // None below the last row of an odd number, one in the last column of an odd number.
        let end = output.len().min(2 * (at + N));
        let Some(output) = output.get_mut(2 * at..end) else { continue };
        match output.as_chunks_mut::<2>() {
            (whole, []) if whole.len() == N => whole.copy_from_slice(&pairs),
            _ => output.copy_from_slice(&pairs.as_flattened()[..output.len()]),
        }
    }
}

/// `Aᵀ m`, lane by lane.
#[inline(always)]
fn summed<const N: usize>([a, b, c, d]: [[f32; N]; 4]) -> [[f32; N]; 2] {
    let mut found = [[0.0; N]; 2];
    for lane in 0..N {
        found[0][lane] = a[lane] + b[lane] + c[lane];
        found[1][lane] = b[lane] - c[lane] - d[lane];
    }
    found
}
