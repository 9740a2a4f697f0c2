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
        ("equal rows", filled(130, 40, |i| ((i % 40 * 7 + i / 40 % 3) % 5) as f32)),
        (
            "alike rows",
            filled(150, 70, |i| {
                let (row, col) = (i / 70, i % 70);
                let is_own = (row * 31 + col * 17) % 13 == 0;
                let pattern = if row % 11 == 0 { row } else { row % 4 };
                (if is_own { row * 5 + col * 3 } else { pattern * 29 + col * col } % 6) as f32
            }),
        ),
        ("odd values", filled(9, 11, move |i| odd.get(i % 13).copied().unwrap_or(0.0))),
    ]
}

/// More than 65,536 distinct values.
pub fn unquantized() -> Dense {
    filled(300, 301, |i| if i % 4 == 3 { 0.0 } else { 1.0 + i as f32 / 1e5 })
}

/// Random matrices of up to 80 × 150 at any density, with few or many symbols; rows of some are alike.
pub fn matrix() -> impl Strategy<Value = Dense> {
    (0usize..80, 0usize..150, 0.0f64..=1.0, 1u32..600, any::<u64>(), 0u32..100).prop_map(
        |(nrows, ncols, density, k, seed, alike)| {
            let mut state = seed | 1;
            let mut next = move || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state >> 11
            };
            let mut weights = vec![0.0; nrows * ncols];
            for i in 0..weights.len() {
                // Of some matrices, rows mostly as one of those before.
                if alike > 50 && i / ncols > 2 && next() % 100 < u64::from(alike) {
                    weights[i] = weights[i / ncols % 3 * ncols + i % ncols];
                    continue;
                }
                let kept = (next() as f64) < density * 2f64.powi(53);
                // Small symbols are common, as in a trained layer.
                let rank = (next() % u64::from(k)).min(next() % u64::from(k));
                if kept {
                    weights[i] = (rank as f32 + 1.0) * if rank % 2 == 0 { 0.01 } else { -0.01 };
                }
            }
            (weights, Shape::new(nrows, ncols).unwrap())
        },
    )
}

/// The bits of every number.
pub fn to_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
