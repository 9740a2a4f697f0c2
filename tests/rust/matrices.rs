//! The matrices every layout must get right: the edge set, and random ones.

use proptest::prelude::*;
use tersenet::rows::Shape;

/// A dense matrix and its shape.
pub type Dense = (Vec<f32>, Shape);

fn filled(nrows: usize, ncols: usize, weight: impl FnMut(usize) -> f32) -> Dense {
    ((0..nrows * ncols).map(weight).collect(), Shape::new(nrows, ncols).unwrap())
}

/// The edge set: empty sides, nothing kept, all kept, one symbol, k at powers of two and one more,
/// a row of one, prime sizes, block sizes ± 1, odd values.
pub fn edge_set() -> Vec<(&'static str, Dense)> {
    let odd = [
        -0.0,
        f32::NAN,
        f32::from_bits(0xffc0_1234),
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-45,
        -1e-39,
    ];
    let with_k = |k: usize, nrows, ncols, step: usize| {
        filled(
            nrows,
            ncols,
            move |i| if i % step == 0 { ((i / step) % k) as f32 + 1.0 } else { 0.0 },
        )
    };
    vec![
        ("no rows", filled(0, 7, |_| 1.0)),
        ("no columns", filled(7, 0, |_| 1.0)),
        ("nothing at all", filled(0, 0, |_| 1.0)),
        ("one kept entry", filled(1, 1, |_| 2.5)),
        ("one pruned entry", filled(1, 1, |_| 0.0)),
        ("nothing kept", filled(5, 9, |_| 0.0)),
        ("all kept, one symbol", filled(70, 33, |_| -1.5)),
        ("a row of one", filled(100, 1, |i| (i % 3) as f32)),
        ("one row", filled(1, 1000, |i| ((i * 7) % 5) as f32)),
        ("one kept far right", filled(3, 70_001, |i| f32::from(u8::from(i % 70_001 == 70_000)))),
        ("k = 2", with_k(2, 13, 31, 3)),
        ("k = 256", with_k(256, 37, 41, 2)),
        ("k = 257", with_k(257, 37, 41, 1)),
        ("k = 65536", with_k(65_536, 263, 251, 1)),
        ("sparse, prime sides", with_k(5, 67, 127, 17)),
        ("63 rows", with_k(3, 63, 64, 5)),
        ("64 rows", with_k(3, 64, 65, 5)),
        ("65 rows", with_k(3, 65, 63, 5)),
        ("diagonal", filled(130, 130, |i| f32::from(u8::from(i % 131 == 0)))),
        (
            "a full and an empty row in turn",
            filled(20, 30, |i| f32::from(u8::from(i / 30 % 2 == 0))),
        ),
        ("odd values", filled(9, 11, move |i| odd.get(i % 13).copied().unwrap_or(0.0))),
    ]
}

/// More than 65,536 distinct values.
pub fn unquantized() -> Dense {
    filled(300, 301, |i| if i % 4 == 3 { 0.0 } else { 1.0 + i as f32 / 1e5 })
}

/// Random matrices of up to 80 × 150 at any density, with few or many symbols.
pub fn matrix() -> impl Strategy<Value = Dense> {
    (0usize..80, 0usize..150, 0.0f64..=1.0, 1u32..600, any::<u64>()).prop_map(
        |(nrows, ncols, density, k, seed)| {
            let mut state = seed | 1;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state >> 11
            };
            filled(nrows, ncols, |_| {
                let kept = (next() as f64) < density * 2f64.powi(53);
                // Small symbols are common, as in a trained layer.
                let rank = (next() % u64::from(k)).min(next() % u64::from(k));
                if kept {
                    (rank as f32 + 1.0) * if rank % 2 == 0 { 0.01 } else { -0.01 }
                } else {
                    0.0
                }
            })
        },
    )
}

/// The bits of every number.
pub fn to_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
