//! Batch normalisation of maps: statistics per channel over images and pixels.

mod fused;
mod relu;

use candle_core::{Device, Result, Tensor, Var, bail};

use self::fused::{Fused, Stats, inverse_deviation};
pub use self::relu::NormRelu;
use super::activation::Activation;
use super::epilogue::Epilogue;
use super::host::values;
use super::{fusible, gpu, resize_bilinear};
use crate::head::StepContext;
use crate::params::{Init, Scope};
use crate::world::World;

/// Where mean and variance come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormMode {
    /// From the batch itself.
    Batch {
        /// Whether the running statistics follow it.
        update: bool,
        /// The processes whose batches together are the batch.
        world: World,
    },
    /// From the running statistics.
    Running,
}

impl NormMode {
    /// Batch statistics while training, running ones otherwise (`None`: prediction).
    pub fn of(ctx: Option<&StepContext>) -> Self {
        match ctx {
            Some(ctx) if ctx.training => {
                Self::Batch { update: ctx.update_stats, world: *ctx.world }
            }
            _ => Self::Running,
        }
    }
}

/// `y = (x − mean) / sqrt(var + eps) · weight + bias`, each per channel.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    /// `[C]`.
    pub weight: Tensor,
    /// `[C]`.
    pub bias: Tensor,
    /// `[C]`, follows the mean of the batches.
    pub running_mean: Var,
    /// `[C]`, follows their unbiased variance.
    pub running_var: Var,
    /// Added to the variance.
    pub eps: f64,
    /// Share of the newest batch in the running statistics.
    pub momentum: f64,
}

/// A [`BatchNorm`] on its running statistics: y = scale · x + shift, each `[C]`.
#[derive(Debug)]
pub(super) struct Folded {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

impl Folded {
    /// The norm and a ReLU.
    pub(super) fn with_relu(&self) -> Epilogue<'_> {
        let (scale, shift) = (Some(self.scale.as_slice()), Some(self.shift.as_slice()));
        Epilogue { scale, shift, activation: Activation::Relu }
    }

    /// The same norm of values without their `bias` `[C]`.
    pub(super) fn after_bias(mut self, bias: &[f32]) -> Self {
        let channels = self.shift.iter_mut().zip(&self.scale).zip(bias);
        channels.for_each(|((shift, scale), bias)| *shift = scale.mul_add(*bias, *shift));
        self
    }
}

impl BatchNorm {
    /// With torch's defaults (eps 1e-5, momentum 0.1) and names (`weight`, `bias`, `running_mean`, `running_var`).
    ///
    /// # Errors
    /// If the store holds a parameter of that name with another shape.
    pub fn new(channels: usize, scope: &Scope) -> Result<Self> {
        Ok(Self {
            weight: scope.param("weight", channels, Init::Const(1.0))?,
            bias: scope.param("bias", channels, Init::Const(0.0))?,
            running_mean: scope.buffer("running_mean", channels, 0.0)?,
            running_var: scope.buffer("running_var", channels, 1.0)?,
            eps: 1e-5,
            momentum: 0.1,
        })
    }

    /// `x` `[B, C, H, W]` → the same shape.
    ///
    /// # Errors
    /// If the channels differ, or batch statistics are asked of a single value per channel.
    pub fn forward(&self, x: &Tensor, mode: NormMode) -> Result<Tensor> {
        self.apply(x, mode, Activation::None, None)
    }

    /// The norm as a factor and a summand for every channel, where `mode` makes it one and neither it nor `others`, what it is
    /// to be folded into, want gradients.
    fn folded(&self, mode: NormMode, others: &[&Tensor]) -> Result<Option<Folded>> {
        let own = [&self.weight, &self.bias];
        let tracked = own.iter().chain(others).any(|t| t.track_op());
        let statistics = [self.running_mean.as_tensor(), self.running_var.as_tensor()];
        let all = [&own[..], &statistics, others].concat();
        if mode != NormMode::Running || tracked || !fusible(&all) {
            return Ok(None);
        }
        let (weight, bias) = (self.weight.contiguous()?, self.bias.contiguous()?);
        let (weight, bias) = (values(&weight)?, values(&bias)?);
        let (mean, var) = (values(&self.running_mean)?, values(&self.running_var)?);
        let factor = |(w, v): (&f32, &f32)| w * inverse_deviation(*v, self.eps);
        let scale: Vec<f32> = weight.iter().zip(&*var).map(factor).collect();
        let shift = bias.iter().zip(&*mean).zip(&scale);
        let shift = shift.map(|((b, m), s)| (-m).mul_add(*s, *b)).collect();
        Ok(Some(Folded { scale, shift }))
    }

    /// Norm, activation, and the sum with the resized `plus`.
    fn apply(
        &self,
        x: &Tensor,
        mode: NormMode,
        activation: Activation,
        plus: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        if channels != self.weight.elem_count() {
            bail!(
                "batch_norm: {} channels are normalised, got a map of {channels}",
                self.weight.elem_count()
            );
        }
        let count = match mode {
            // Images of all processes have one size.
            NormMode::Batch { world, .. } => batch * height * width * world.size,
            NormMode::Running => batch * height * width,
        };
        if matches!(mode, NormMode::Batch { .. }) && count < 2 {
            bail!(
                "batch_norm: statistics of a batch need more than one value per channel, got {:?}",
                x.dims()
            );
        }
        let all = [x, &self.weight, &self.bias, &self.running_mean, &self.running_var];
        let with_sum: Vec<&Tensor> = all.into_iter().chain(plus).collect();
        if fusible(&with_sum) && count > 0 {
            return self.fused(x, mode, activation, plus);
        }
        let y = if gpu::runs(&all) && count > 0 {
            self.on_gpu(x, count, mode, activation)?
        } else {
            activation.composed(match mode {
                NormMode::Running => self.running(x)?,
                NormMode::Batch { .. } => self.batch(x, count, mode)?,
            })?
        };
        match plus {
            Some(map) => y + resize_bilinear(map, (height, width))?,
            None => Ok(y),
        }
    }

    fn fused(
        &self,
        x: &Tensor,
        mode: NormMode,
        activation: Activation,
        plus: Option<&Tensor>,
    ) -> Result<Tensor> {
        let x = x.contiguous()?;
        let (stats, world) = match mode {
            NormMode::Batch { world, .. } => (Stats::of(&x, world)?, Some(world)),
            NormMode::Running => {
                let (mean, var) = (values(&self.running_mean)?, values(&self.running_var)?);
                (Stats { mean: mean.to_vec(), var: var.to_vec(), count: 0.0 }, None)
            }
        };
        if let NormMode::Batch { update: true, .. } = mode {
            let unbiased = stats.count / (stats.count - 1.0);
            let var = Tensor::new(stats.var.as_slice(), &Device::Cpu)?;
            self.follow(&Tensor::new(stats.mean.as_slice(), &Device::Cpu)?, &(var * unbiased)?)?;
        }
        let (weight, bias) = (self.weight.contiguous()?, self.bias.contiguous()?);
        Fused { stats, world, eps: self.eps, activation, weight, bias }.tensor(&x, plus)
    }

    fn on_gpu(
        &self,
        x: &Tensor,
        count: usize,
        mode: NormMode,
        activation: Activation,
    ) -> Result<Tensor> {
        let floor = activation.floor();
        let norm = gpu::Norm { weight: &self.weight, bias: &self.bias, eps: self.eps, floor };
        let NormMode::Batch { update, world } = mode else {
            let running = [&self.running_mean, &self.running_var].map(|v| v.as_detached_tensor());
            return gpu::batch_norm(x, running.into(), gpu::Statistics::Given, &norm);
        };
        let (mean, var) = gpu::channel_statistics(x, world)?;
        if update {
            self.follow(&mean, &(&var * (count as f64 / (count as f64 - 1.0)))?)?;
        }
        gpu::batch_norm(x, (mean, var), gpu::Statistics::Batch(world), &norm)
    }

    fn running(&self, x: &Tensor) -> Result<Tensor> {
        let shape = (1, x.dim(1)?, 1, 1);
        let mean = self.running_mean.as_detached_tensor().reshape(shape)?;
        let var = self.running_var.as_detached_tensor().reshape(shape)?;
        self.normalise(&x.broadcast_sub(&mean)?, &var)
    }

    fn batch(&self, x: &Tensor, count: usize, mode: NormMode) -> Result<Tensor> {
        if let NormMode::Batch { world: World { size: 2.., .. }, .. } = mode {
            bail!("batch_norm: several processes share a batch in f32 only");
        }
        let mean = x.mean_keepdim((0, 2, 3))?;
        let centred = x.broadcast_sub(&mean)?;
        let var = centred.sqr()?.mean_keepdim((0, 2, 3))?;
        if let NormMode::Batch { update: true, .. } = mode {
            let unbiased = (var.detach() * (count as f64 / (count as f64 - 1.0)))?;
            self.follow(&mean.detach().flatten_all()?, &unbiased.flatten_all()?)?;
        }
        self.normalise(&centred, &var)
    }

    fn follow(&self, mean: &Tensor, unbiased_var: &Tensor) -> Result<()> {
        for (running, new) in [(&self.running_mean, mean), (&self.running_var, unbiased_var)] {
            let old = running.as_detached_tensor();
            running.set(&((old * (1.0 - self.momentum))? + (new * self.momentum)?)?)?;
        }
        Ok(())
    }

    fn normalise(&self, centred: &Tensor, var: &Tensor) -> Result<Tensor> {
        let shape = (1, self.weight.elem_count(), 1, 1);
        let scale =
            (var + self.eps)?.sqrt()?.recip()?.broadcast_mul(&self.weight.reshape(shape)?)?;
        centred.broadcast_mul(&scale)?.broadcast_add(&self.bias.reshape(shape)?)
    }
}
