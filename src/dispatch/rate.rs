//! The loss that holds the share of active tokens at the target (\[DyT\] §3.5).

use candle_core::Result;

use super::KeptStats;
use crate::head::Term;

/// The term `rate`: (mean mask − r)², or `None` for the dense model.
///
/// The square does not add up over micro-batches and ranks, the mean mask M does. With `global_mean` = M over all of them
/// the term's sum is n·((M − r)² + 2(M − r)(m − sg(m))), n decisions with the mean m: divided by the total count, the sums
/// of all micro-batches have the value (M − r)² and exactly its gradient. Without it, M = m: exact for one micro-batch on
/// one rank.
///
/// # Errors
/// If the masks do not fit together.
pub fn rate_term(
    kept: &KeptStats,
    target: f64,
    weight: f64,
    global_mean: Option<f64>,
) -> Result<Option<Term>> {
    let Some(mean) = kept.mean_mask()? else { return Ok(None) };
    let count = kept.decisions() as f64;
    let sum = match global_mean {
        None => ((mean - target)?.sqr()? * count)?,
        Some(global) => {
            let slope = 2.0 * (global - target);
            let change = (&mean - mean.detach())?;
            (((change * slope)? + (global - target).powi(2))? * count)?
        }
    };
    Ok(Some(Term { name: "rate", weight, sum, count }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DispatchConfig, RateSchedule};
    use crate::dispatch::LayerKept;
    use crate::head::Losses;
    use candle_core::{Device, Tensor, Var};

    #[test]
    fn a_scheduled_rate_falls_linearly_from_what_untrained_dispatchers_keep() {
        let fixed = DispatchConfig { target_rate: 0.7, ..DispatchConfig::default() };
        assert_eq!((fixed.initial_rate(), fixed.rate_at(0.0), fixed.rate_at(1.0)), (0.5, 0.7, 0.7));
        let rate_schedule = Some(RateSchedule { from: 0.9, until: 0.4 });
        let tightening = DispatchConfig { target_rate: 0.5, rate_schedule, ..fixed };
        assert_eq!(tightening.initial_rate(), 0.9);
        for (progress, rate) in [(0.0, 0.9), (0.1, 0.8), (0.2, 0.7), (0.4, 0.5), (1.0, 0.5)] {
            assert!((tightening.rate_at(progress) - rate).abs() < 1e-12, "r at {progress}");
        }
    }

    fn kept(mask: &Tensor) -> KeptStats {
        KeptStats { layers: vec![LayerKept { mask: mask.clone(), logit: mask.clone() }] }
    }

    #[test]
    fn two_micro_batches_with_the_global_mean_equal_one_batch() -> Result<()> {
        let mask = Var::new(&[[1.0f32, 0.0, 1.0], [1.0, 1.0, 1.0]], &Device::Cpu)?;
        let whole = rate_term(&kept(&mask), 0.5, 2.0, None)?.unwrap();
        let want_count = whole.count;
        let whole = Losses { terms: vec![whole], logits: None };
        let total = whole.total(&whole.counts())?;
        let want = total.backward()?.get(&mask).unwrap().to_vec2::<f32>()?;
        // Mean 5/6: 2 · (1/3)² and 2 · 2 · (1/3) / 6 for each of the six decisions.
        assert!((total.to_scalar::<f32>()? - 2.0 / 9.0).abs() < 1e-6);
        assert!((want[0][0] - 2.0 / 9.0).abs() < 1e-6);
        let mut value = 0.0;
        let mut got = Vec::new();
        for row in 0..2 {
            let part =
                rate_term(&kept(&mask.narrow(0, row, 1)?), 0.5, 2.0, Some(5.0 / 6.0))?.unwrap();
            let total = Losses { terms: vec![part], logits: None }.total(&[want_count])?;
            value += total.to_scalar::<f32>()?;
            got.push(total.backward()?.get(&mask).unwrap().to_vec2::<f32>()?[row].clone());
        }
        assert!((value - 2.0 / 9.0).abs() < 1e-6);
        for (got, want) in got.concat().iter().zip(want.concat()) {
            assert!((got - want).abs() < 1e-6);
        }
        Ok(())
    }
}
