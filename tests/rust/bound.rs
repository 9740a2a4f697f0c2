//! The bound that every product keeps.

/// |y − ŷ| ≤ (n + 2)·2⁻²⁴·Σ|w||x| + n·2⁻¹⁴⁹ against a sum in f64; equal class where not finite.
pub fn check_product(y: f32, row: &[f32], x: &[f32], what: &str) {
    let terms = || {
        row.iter()
            .zip(x)
            .filter(|(w, _)| w.to_bits() != 0)
            .map(|(&w, &x)| f64::from(w) * f64::from(x))
    };
    let (n, exact, total) =
        (row.len() as f64, terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
    let bound = (n + 2.0) * 2f64.powi(-24) * total + n * 2f64.powi(-149);
    if exact.is_nan() {
        assert!(y.is_nan(), "{what}: {y}, expected NaN");
    } else if exact.is_infinite() {
        assert_eq!(f64::from(y), exact, "{what}");
    } else {
        assert!((f64::from(y) - exact).abs() <= bound, "{what}: {y}, expected {exact} ± {bound}");
    }
}
