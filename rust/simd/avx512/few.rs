//! Weights of up to 32 values, which stay in two registers.

use super::super::tiles::OFFSET_BITS;
use std::arch::x86_64::*;

/// The values of all symbols.
#[derive(Clone, Copy)]
pub(super) struct Few {
    low: __m512,
    high: __m512,
}

impl Few {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new(values: &[f32; 32]) -> Self {
        // SAFETY: 128 bytes are there; loadu needs no alignment.
        let part = |i: usize| unsafe { _mm512_loadu_ps(values.as_ptr().add(16 * i)) };
        Self { low: part(0), high: part(1) }
    }

    /// The values of sixteen joined weights.
    ///
    /// # Safety
    /// They may be read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sixteen(self, weights: *const u32) -> __m512 {
        // SAFETY: the caller says so; no alignment is needed.
        let weights = unsafe { _mm512_loadu_si512(weights.cast()) };
        let symbols = _mm512_srli_epi32::<OFFSET_BITS>(weights);
        _mm512_permutex2var_ps(self.low, symbols, self.high)
    }

    /// The value of a joined weight in all lanes.
    ///
    /// # Safety
    /// It may be read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn one(self, weight: *const u32) -> __m512 {
        // SAFETY: the caller says so.
        let weight = _mm512_set1_epi32(unsafe { *weight }.cast_signed());
        let symbols = _mm512_srli_epi32::<OFFSET_BITS>(weight);
        _mm512_permutex2var_ps(self.low, symbols, self.high)
    }

    /// Numbers of lanes, which the compiler does not know: it would take values out of known lanes by
    /// two instructions instead of one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn lanes(lanes: [i32; 16]) -> __m512i {
        let lanes = std::hint::black_box(lanes);
        // SAFETY: 64 bytes are there; loadu needs no alignment.
        unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
    }
}

/// The offset of a joined weight in bytes.
///
/// # Safety
/// It may be read.
#[inline]
#[target_feature(enable = "bmi2")]
pub(super) unsafe fn offset(weight: *const u32) -> usize {
    // SAFETY: the caller says so. In this form a load and the mask are one operation.
    _bzhi_u32(unsafe { *weight }, OFFSET_BITS) as usize
}

/// The place of a joined weight in the input.
///
/// # Safety
/// It may be read.
#[inline]
#[target_feature(enable = "bmi2")]
pub(super) unsafe fn at(input: *const f32, weight: *const u32) -> *const f32 {
    // SAFETY: the caller says so.
    input.wrapping_byte_add(unsafe { offset(weight) })
}

/// Defines `add_few`, the product of a strip with a small tile: the features, how many registers a tile
/// is, how many weights are taken together, the lanes that their values are dealt to, sums of nothing,
/// what adds such weights, or as many as are left, to sums, what makes a tile of these, and the addition
/// of two registers of it.
macro_rules! define_add_few {
    (
        $features:literal, vectors $vectors:literal, together $together:ident, lanes $lanes:expr,
        zero $zero:expr, weights $add_weights:ident, total $total:ident, add $add:ident
    ) => {
        /// # Safety
        /// [`TileProduct::check`] was called for this output, the tile is of this size, there are no
        /// shifts, and all symbols are under 32.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn add_few(
            product: &TileProduct<'_>,
            rows: CutRows<'_, Joined>,
            output: &mut [f32],
        ) {
            let TileProduct { input, strip, finish, stride, .. } = *product;
            let lanes = std::array::from_fn($lanes);
            let (few, input) = ((Few::new(rows.first_values()), &lanes), input.as_ptr());
            let mut to = output.as_mut_ptr();
            let starts = starts(product, to);
            let (mut from, [from_stride, _]) = starts.unwrap_or((to, [0, 0]));
            for row in 0..strip.nrows() {
                let range = rows.range(row, 0);
                let mut sums = $zero;
                let mut weight = range.start;
                while weight + $together <= range.end {
                    // SAFETY: they are in the row's range, behind which there is room; the input was
                    // checked.
                    unsafe { $add_weights(few, input, rows.entries(weight), None, &mut sums) };
                    weight += $together;
                }
                if weight < range.end {
                    let left = Some(range.end - weight);
                    // SAFETY: as above; what is read behind the row is a place of the input too.
                    unsafe { $add_weights(few, input, rows.entries(weight), left, &mut sums) };
                }
                let mut sums = $total(sums);
                if starts.is_some() {
                    // SAFETY: the output, or the sums, were checked for this row.
                    let start = unsafe { load_sums::<$vectors, 1>(from, 0) };
                    sums = std::array::from_fn(|i| $add(start[i], sums[i]));
                }
                if let Some(finish) = finish {
                    finish_sums(&mut sums, finish, row);
                }
                // SAFETY: the output was checked for this row.
                unsafe { store_sums::<$vectors, 1>(sums, to, 0) };
                // Past the last row these point anywhere, and nothing reads them.
                (from, to) = (from.wrapping_add(from_stride), to.wrapping_add(stride));
            }
        }
    };
}
pub(super) use define_add_few;
