//! Arithmetic over slices that the compiler turns into vector instructions, and the run-time choice among them.
//!
//! Every function here is inlined into its caller, so that a loop inside [`vectorised`] is compiled once for each
//! instruction set (AVX-512, AVX2 with FMA, the target's baseline).

/// Independent partial results of a reduction: enough for two AVX-512 registers, which hides the latency of an addition.
const LANES: usize = 32;

/// Runs `f` compiled for the best instruction set of this machine. `f` must be `#[inline(always)]`.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Σ f(a, b) over two slices of one length.
#[inline(always)]
pub(crate) fn sum_of(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in a.by_ref().zip(b.by_ref()) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let mut total = 0.0;
    for (&a, &b) in a.remainder().iter().zip(b.remainder()) {
        total += f(a, b);
    }
    total + lanes.iter().sum::<f32>()
}

/// The largest value; −∞ for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let mut result = f32::NEG_INFINITY;
    for &v in chunks.remainder() {
        result = larger(v, result);
    }
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(chunk[i], lanes[i]);
        }
    }
    lanes.iter().fold(result, |a, &b| larger(b, a))
}

/// Replaces each value by f(value) and returns the sum of the new ones.
#[inline(always)]
pub(crate) fn map_sum(x: &mut [f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for chunk in chunks.by_ref() {
        for i in 0..LANES {
            let y = f(chunk[i]);
            chunk[i] = y;
            lanes[i] += y;
        }
    }
    let mut total = 0.0;
    for v in chunks.into_remainder() {
        *v = f(*v);
        total += *v;
    }
    total + lanes.iter().sum::<f32>()
}

/// eˣ to about 1 unit in the last place, for arguments in [−87, 88]; smaller ones give at most e⁻⁸⁷, larger ones e⁸⁸.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, which then sits in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -87.0 { x } else { -87.0 };
    let x = if x < 88.0 { x } else { 88.0 };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    // x − n ln 2 with ln 2 in two parts, then a polynomial on [−ln 2 / 2, ln 2 / 2] (Cephes' expf).
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 5e-1);
    let e = p.mul_add(r * r, r + 1.0);
    // 2ⁿ through the exponent bits; n lies in [−126, 127].
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    e * power
}

/// The error function to about 1e-7: an odd rational function (the coefficients of Eigen and XLA), ±1 beyond ±3.83.
#[inline(always)]
#[allow(clippy::approx_constant, reason = "a fitted coefficient that happens to lie near 2/√π")]
pub(crate) fn erf(x: f32) -> f32 {
    const EDGE: f32 = 3.832_507;
    let x = if x > -EDGE { x } else { -EDGE };
    let x = if x < EDGE { x } else { EDGE };
    let s = x * x;
    let p = 2.290_506_6e-4_f32.mul_add(s, 3.408_291e-3);
    let p = p.mul_add(s, 5.095_569_5e-2);
    let p = p.mul_add(s, 1.852_083_2e-1);
    let p = p.mul_add(s, 1.128_379_1);
    let q = (-1.179_160_3e-7_f32).mul_add(s, 2.354_796_6e-5);
    let q = q.mul_add(s, 1.017_962_5e-3);
    let q = q.mul_add(s, 1.407_047e-2);
    let q = q.mul_add(s, 1.109_850_5e-1);
    let q = q.mul_add(s, 4.974_692_5e-1);
    let q = q.mul_add(s, 1.0);
    x * p / q
}

/// Φ(x), the normal distribution's cumulated density.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5f32.mul_add(erf(x * std::f32::consts::FRAC_1_SQRT_2), 0.5)
}

/// GELU(x) = x Φ(x).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    x * normal_cdf(x)
}

/// GELU′(x) = Φ(x) + x φ(x).
#[inline(always)]
pub(crate) fn gelu_derivative(x: f32) -> f32 {
    const INV_SQRT_TAU: f32 = 0.398_942_3;
    (x * INV_SQRT_TAU).mul_add(exp(-0.5 * x * x), normal_cdf(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let worst = (-86_000..88_000).map(|i| i as f32 * 1e-3).fold(0f64, |worst, x| {
            let exact = f64::from(x).exp();
            worst.max((f64::from(exp(x)) - exact).abs() / exact)
        });
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn erf_has_its_known_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, known) in
            [(0.0, 0.0), (0.1, 0.112_462_916), (0.5, 0.520_499_878), (1.0, 0.842_700_793)]
        {
            assert!((f64::from(erf(x)) - known).abs() < 1.5e-7, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!((f64::from(erf(2.0)) - 0.995_322_265).abs() < 1.5e-7);
        assert!((erf(6.0) - 1.0).abs() < 1e-7 && (erf(-6.0) + 1.0).abs() < 1e-7);
    }

    #[test]
    fn reductions_cover_the_remainder() {
        let x: Vec<f32> = (0..77).map(|v| v as f32).collect();
        assert_eq!(sum_of(&x, &x, |a, _| a), 2926.0);
        assert_eq!(max(&x), 76.0);
        assert_eq!(max(&x[..5]), 4.0);
        let mut y = x.clone();
        assert_eq!(map_sum(&mut y, |v| v + 1.0), 3003.0);
        assert_eq!(y[76], 77.0);
    }
}
