//! Products of two dense matrices, by the crate `gemm-f32`, which chooses its own instructions.
//!
//! It is called on one thread: its own threads are a pool that a fork would leave waiting.
#![allow(unsafe_code)]

use gemm_common::Parallelism;

/// A matrix anywhere in a slice: number (i, j) is `numbers[i · row_step + j · col_step]`.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    numbers: &'a [f32],
    nrows: usize,
    ncols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> Strided<'a> {
    /// A row-major matrix of `ncols` columns at the start of `numbers`.
    ///
    /// # Panics
    /// When the numbers do not suffice.
    pub fn new(numbers: &'a [f32], nrows: usize, ncols: usize) -> Self {
        let len = nrows.checked_mul(ncols);
        assert!(len.is_some_and(|len| len <= numbers.len()), "matrix: too few numbers");
        Self { numbers, nrows, ncols, row_step: ncols, col_step: 1 }
    }

    /// The same numbers, rows for columns.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            nrows: self.ncols,
            ncols: self.nrows,
            row_step: self.col_step,
            col_step: self.row_step,
            ..self
        }
    }
}

/// Puts factor · a · b into `out`, row-major.
///
/// # Panics
/// When sizes do not fit.
pub fn multiply(a: Strided<'_>, b: Strided<'_>, factor: f32, out: &mut [f32]) {
    let (m, n, k) = (a.nrows, b.ncols, a.ncols);
    assert_eq!(k, b.nrows, "product: columns of a, rows of b");
    assert_eq!(Some(out.len()), m.checked_mul(n), "product: numbers of the result");
    if out.is_empty() || k == 0 {
        out.fill(0.0);
        return;
    }
    let product = gemm_f32::gemm::f32::get_gemm_fn();
    let step = |step: usize| step as isize;
    // SAFETY: `Strided` holds matrices whose every number lies in its slice, which its constructor
    // checks and transposing keeps; `out` holds m · n numbers, asserted above, is borrowed alone,
    // and is written without being read. Steps and sizes are those of slices, so they fit isize.
    // The function is the one that the crate found the CPU's instructions for.
    unsafe {
        product(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            step(n),
            false,
            a.numbers.as_ptr(),
            step(a.col_step),
            step(a.row_step),
            b.numbers.as_ptr(),
            step(b.col_step),
            step(b.row_step),
            0.0,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        for [m, n, k] in [[1, 1, 1], [3, 5, 7], [1, 40, 33], [40, 1, 33], [65, 33, 130], [2, 2, 0]]
        {
            let a: Vec<f32> = (0..m * k).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            let b: Vec<f32> = (0..k * n).map(|i| ((i * 5) % 13) as f32 - 6.0).collect();
            let transposed: Vec<f32> =
                (0..n * k).map(|i| b[i % k.max(1) * n + i / k.max(1)]).collect();
            let expected: Vec<f32> = (0..m * n)
                .map(|i| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum::<f32>() * 2.0)
                .collect();
            let mut out = vec![f32::NAN; m * n];
            multiply(Strided::new(&a, m, k), Strided::new(&b, k, n), 2.0, &mut out);
            assert_eq!(out, expected);
            out.fill(f32::NAN);
            let b = Strided::new(&transposed, n, k).transposed();
            multiply(Strided::new(&a, m, k), b, 2.0, &mut out);
            assert_eq!(out, expected);
        }
    }
}
