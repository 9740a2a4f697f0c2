//! The elements of `coded` on AVX2, and their product with a vector.

/// True when no position is under `start` or `len` or more over it.
#[inline]
#[target_feature(enable = "avx2")]
pub(in crate::simd) fn are_inside(positions: &[u32], start: u32, len: usize) -> bool {
    let (least, most) = positions
        .iter()
        .fold((u32::MAX, 0), |(least, most), &position| (position.min(least), position.max(most)));
    positions.is_empty() || least >= start && ((most - start) as usize) < len
}

/// Scalar multiply–adds, whose operand comes straight from x: two look-ups a weight leave nothing
/// for wide registers to do. Whole words are loaded and cut up: loads are what binds here.
#[target_feature(enable = "avx2,fma")]
pub(in crate::simd) fn rank_dot(
    positions: &[u32],
    start: u32,
    ranks: &[u16],
    values: &[f32],
    x: &[f32],
) -> f32 {
    let highest = ranks.iter().fold(0, |most, &rank| rank.max(most));
    if positions.is_empty() {
        return 0.0;
    }
    assert!(usize::from(highest) < values.len(), "rank_dot: a rank outside the values");
    assert!(are_inside(positions, start, x.len()), "rank_dot: a position outside x");
    let first = x.as_ptr().wrapping_sub(start as usize);
    let term = |position: u32, rank: u16, sum: f32| {
        // SAFETY: no rank is outside the values, and start ≤ position < start + x.len(): both were
        // just checked. From `first`, position elements on is x at position − start.
        let (value, x) = unsafe {
            (*values.get_unchecked(usize::from(rank)), *first.wrapping_add(position as usize))
        };
        value.mul_add(x, sum)
    };
    let (position_chunks, position_rest) = positions.as_chunks::<8>();
    let (rank_chunks, rank_rest) = ranks.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (positions, ranks) in position_chunks.iter().zip(rank_chunks) {
        let pairs: [u64; 4] = bytemuck::cast(*positions);
        let fours: [u64; 2] = bytemuck::cast(*ranks);
        for i in 0..8 {
            let position = (pairs[i / 2] >> (32 * (i % 2))) as u32;
            sums[i] = term(position, (fours[i / 4] >> (16 * (i % 4))) as u16, sums[i]);
        }
    }
    for (i, (&position, &rank)) in position_rest.iter().zip(rank_rest).enumerate() {
        sums[i] = term(position, rank, sums[i]);
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}
