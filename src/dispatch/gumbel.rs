//! Gumbel-sigmoid with a straight-through gradient (\[DyT\] Eq. 4 and 5).

use candle_core::{Result, Tensor};

use super::select::per_patch;
use crate::config::{NoiseConfig, Select};
use crate::head::StepContext;
use crate::rng::Purpose;

/// Logits and noise `[B, P]` → the mask: its value is `1[z > 0]` with z = logit + noise, its gradient that of σ(z / τ).
///
/// # Errors
/// If the shapes differ.
pub fn straight_through(logit: &Tensor, noise: &Tensor, tau: f64) -> Result<Tensor> {
    let z = (logit + noise)?;
    let soft = candle_nn::ops::sigmoid(&(&z / tau)?)?;
    let hard = z.detach().gt(0.0)?.to_dtype(logit.dtype())?;
    // The difference first: it is exactly 0, so the value stays exactly 0 or 1.
    let gradient = (&soft - soft.detach())?;
    hard + gradient
}

/// The factor on the noise after the share `progress` of the training: linear from 1 to `anneal_to` at `until`.
pub fn noise_factor(cfg: Option<NoiseConfig>, progress: f64) -> f64 {
    match cfg {
        None => 1.0,
        Some(NoiseConfig { anneal_to, until }) if progress >= until => anneal_to,
        Some(NoiseConfig { anneal_to, until }) => 1.0 + (anneal_to - 1.0) * progress / until,
    }
}

/// `factor` · (G₁ − G₂) for every patch of every image, or one for all patches of an image, `[B, P]`, from the stream of
/// (sample, layer).
pub(super) fn gumbel_noise(
    logit: &Tensor,
    ctx: &StepContext,
    layer: u16,
    (select, factor): (Select, f64),
) -> Result<Tensor> {
    let (_, patches) = logit.dims2()?;
    let mut noise = Vec::with_capacity(logit.elem_count());
    for &sample in ctx.samples {
        let mut stream = ctx.rng.stream(Purpose::Gumbel, sample, layer);
        let draw = || (factor * stream.gumbel_difference()) as f32;
        noise.extend(per_patch(select, patches, draw));
    }
    Tensor::from_vec(noise, logit.shape(), logit.device())?.to_dtype(logit.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DispatchConfig, TauSchedule};
    use candle_core::{Device, Var};

    #[test]
    fn the_value_is_hard_and_the_gradient_soft() -> Result<()> {
        let logit = Var::new(&[[1.0f32, -2.0, 0.5]], &Device::Cpu)?;
        let noise = Tensor::new(&[[-3.0f32, 1.0, 1.0]], &Device::Cpu)?;
        let mask = straight_through(&logit, &noise, 2.0)?;
        assert_eq!(mask.to_vec2::<f32>()?, [[0.0, 0.0, 1.0]]);
        let grads = mask.sum_all()?.backward()?;
        let got = grads.get(&logit).unwrap().to_vec2::<f32>()?;
        for (got, z) in got[0].iter().zip([-2.0f32, -1.0, 1.5]) {
            let s = 1.0 / (1.0 + (-z / 2.0).exp());
            assert!((got - s * (1.0 - s) / 2.0).abs() < 1e-6, "σ'(z/τ)/τ at z = {z}");
        }
        Ok(())
    }

    #[test]
    fn the_temperature_falls_linearly() {
        let fixed = DispatchConfig { tau: 5.0, ..DispatchConfig::default() };
        assert_eq!((fixed.tau_at(0.0), fixed.tau_at(1.0)), (5.0, 5.0));
        let tau_schedule = Some(TauSchedule { to: 1.0, until: 0.8 });
        let falling = DispatchConfig { tau_schedule, ..fixed };
        for (progress, tau) in [(0.0, 5.0), (0.4, 3.0), (0.8, 1.0), (1.0, 1.0)] {
            assert!((falling.tau_at(progress) - tau).abs() < 1e-12, "τ at {progress}");
        }
    }

    #[test]
    fn noise_fades_linearly() {
        let cfg = Some(NoiseConfig { anneal_to: 0.2, until: 0.5 });
        assert_eq!(noise_factor(None, 0.9), 1.0);
        assert_eq!(noise_factor(cfg, 0.0), 1.0);
        assert!((noise_factor(cfg, 0.25) - 0.6).abs() < 1e-12);
        assert_eq!(noise_factor(cfg, 0.5), 0.2);
        assert_eq!(noise_factor(cfg, 1.0), 0.2);
    }
}
