//! Losses and gradients of one optimizer step over all its micro-batches.

use candle_core::{Device, Result, Tensor, bail};

use super::optim::Parameter;
use crate::data::Batch;
use crate::dispatch::KeptStats;
use crate::head::{Head, Losses, StepContext};
use crate::model::Model;
use crate::ops::spending;
use crate::rng::Rng;
use crate::world::World;

/// What the micro-batches of a step share.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// The run's generator.
    pub rng: &'a Rng,
    /// Steps done before this one.
    pub step: u64,
    /// Share of the training that is done.
    pub progress: f64,
    /// Factor of all gradients (see [`LossScale`](super::LossScale)); 1 leaves them as they are.
    pub loss_scale: f64,
    /// The processes that train together.
    pub world: &'a World,
}

impl<'a> Moment<'a> {
    fn context(&self, samples: &'a [u64]) -> StepContext<'a> {
        let Self { rng, step, progress, world, .. } = *self;
        StepContext { training: true, update_stats: true, rng, step, progress, samples, world }
    }
}

/// The losses of a step and what they ask of the parameters.
#[derive(Debug)]
pub struct StepGradients {
    /// One per parameter, times the loss scale; `None` where the losses do not depend on it.
    pub gradients: Vec<Option<Tensor>>,
    /// Every term's mean over the whole step.
    pub terms: Vec<(&'static str, f64)>,
    /// What is minimised.
    pub total: f64,
    /// Share of the tokens that were worked on; `None` for the dense model.
    pub kept: Option<f64>,
}

/// The gradients of the mean losses over all `batches` of all ranks together, as if they were one batch (except that batch
/// norm sees the micro-batches one after the other, each over all ranks).
///
/// A term is divided by its count over all micro-batches, which is only known after all of them: with more than one, a
/// first pass without backward finds counts and the mean mask, and the second pass repeats it with the same random
/// numbers. One micro-batch needs one pass: the ranks exchange its counts between forward and backward.
///
/// # Errors
/// If a forward or backward pass fails.
pub fn step_gradients<H: Head>(
    model: &Model<H>,
    parameters: &[Parameter],
    batches: &[Batch<H::Target>],
    moment: &Moment,
) -> Result<StepGradients> {
    let device = model.params.device();
    let totals = match batches {
        [_] => None,
        _ => Some(count(model, batches, moment)?.over_ranks(moment.world)?),
    };
    let mut sum = StepGradients {
        gradients: vec![None; parameters.len()],
        terms: Vec::new(),
        total: 0.0,
        kept: None,
    };
    for batch in batches {
        let ctx = moment.context(&batch.samples);
        let mean_mask = totals.as_ref().and_then(|t| t.mean_mask());
        let (losses, kept) =
            model.losses_at(&on(device, batch)?, &batch.targets, &ctx, mean_mask)?;
        let counts = match &totals {
            Some(totals) => totals.counts_for(&losses)?,
            None => {
                let mut counts = losses.counts();
                moment.world.sum(&mut counts)?;
                counts
            }
        };
        sum.kept = match &totals {
            Some(_) => mean_mask,
            None if kept.layers.is_empty() => None,
            None => Some(kept.over_ranks(moment.world)?),
        };
        drop(kept);
        add_terms(&mut sum.terms, &losses, &counts)?;
        let total = losses.total(&counts)?;
        drop(losses);
        sum.total += f64::from(total.to_scalar::<f32>()?);
        let scaled = (total * moment.loss_scale)?;
        let mut store = spending(|| scaled.backward())?;
        for (slot, parameter) in sum.gradients.iter_mut().zip(parameters) {
            *slot = match (slot.take(), store.remove(&parameter.var)) {
                (Some(before), Some(new)) => Some((before + new)?),
                (before, new) => before.or(new),
            };
        }
    }
    sum.over_ranks(parameters, moment.world)?;
    Ok(sum)
}

/// Numbers of gradients that are exchanged at once, up to the end of the last one.
const BUCKET: usize = 1 << 22;

impl StepGradients {
    /// Whether every loss is a finite number.
    pub(super) fn losses_are_finite(&self) -> bool {
        self.total.is_finite() && self.terms.iter().all(|(_, value)| value.is_finite())
    }

    /// The sums over all ranks. A parameter that no rank's losses depend on stays without gradient.
    fn over_ranks(&mut self, parameters: &[Parameter], world: &World) -> Result<()> {
        if world.size == 1 {
            return Ok(());
        }
        let mut sums = vec![self.total];
        sums.extend(self.terms.iter().map(|(_, mean)| mean));
        let scalars = sums.len();
        sums.extend(self.gradients.iter().map(|g| f64::from(u8::from(g.is_some()))));
        world.sum(&mut sums)?;
        self.total = sums[0];
        self.terms.iter_mut().zip(&sums[1..]).for_each(|((_, mean), sum)| *mean = *sum);
        let wanted: Vec<usize> =
            (0..parameters.len()).filter(|i| sums[scalars + i] > 0.0).collect();
        let mut rest = &wanted[..];
        while !rest.is_empty() {
            let mut numbers = 0;
            let fits = |&&i: &&usize| {
                let before = numbers;
                numbers += parameters[i].var.elem_count();
                before < BUCKET
            };
            let (bucket, later) = rest.split_at(rest.iter().take_while(fits).count());
            let own = bucket.iter().map(|&i| match &self.gradients[i] {
                Some(gradient) => Ok(gradient.clone()),
                None => parameters[i].var.zeros_like(),
            });
            let own = own.collect::<Result<Vec<_>>>()?;
            for (&i, sum) in bucket.iter().zip(world.sum_tensors(&own)?) {
                self.gradients[i] = Some(sum);
            }
            rest = later;
        }
        Ok(())
    }
}

/// Counts of a step.
#[derive(Debug, Default)]
struct Totals {
    counts: Vec<(&'static str, f64)>,
    active: f64,
    decisions: f64,
}

impl Totals {
    fn add(&mut self, losses: &Losses, kept: &KeptStats) -> Result<()> {
        if self.counts.is_empty() {
            self.counts = losses.terms.iter().map(|term| (term.name, 0.0)).collect();
        }
        if self.counts.len() != losses.terms.len() {
            bail!(
                "the head returned {} terms for one micro-batch and {} for another",
                self.counts.len(),
                losses.terms.len()
            );
        }
        for ((_, count), term) in self.counts.iter_mut().zip(&losses.terms) {
            *count += term.count;
        }
        let decisions = kept.decisions() as f64;
        self.active += kept.overall()? * decisions;
        self.decisions += decisions;
        Ok(())
    }

    /// The counts of all ranks together.
    fn over_ranks(mut self, world: &World) -> Result<Self> {
        let mut sums: Vec<f64> = self.counts.iter().map(|(_, count)| *count).collect();
        sums.extend([self.active, self.decisions]);
        world.sum(&mut sums)?;
        self.counts.iter_mut().zip(&sums).for_each(|((_, count), sum)| *count = *sum);
        if let [.., active, decisions] = sums[..] {
            (self.active, self.decisions) = (active, decisions);
        }
        Ok(self)
    }

    fn mean_mask(&self) -> Option<f64> {
        (self.decisions > 0.0).then(|| self.active / self.decisions)
    }

    fn counts_for(&self, losses: &Losses) -> Result<Vec<f64>> {
        if !self.counts.iter().map(|(name, _)| *name).eq(losses.terms.iter().map(|term| term.name))
        {
            bail!("the terms of a loss changed between two passes over the same images");
        }
        Ok(self.counts.iter().map(|(_, count)| *count).collect())
    }
}

fn count<H: Head>(
    model: &Model<H>,
    batches: &[Batch<H::Target>],
    moment: &Moment,
) -> Result<Totals> {
    let mut totals = Totals::default();
    for batch in batches {
        let ctx = StepContext { update_stats: false, ..moment.context(&batch.samples) };
        let (losses, kept) =
            model.losses(&on(model.params.device(), batch)?, &batch.targets, &ctx)?;
        totals.add(&losses, &kept)?;
    }
    Ok(totals)
}

fn on<T>(device: &Device, batch: &Batch<T>) -> Result<Tensor> {
    batch.images.to_device(device)
}

fn add_terms(terms: &mut Vec<(&'static str, f64)>, losses: &Losses, counts: &[f64]) -> Result<()> {
    if terms.is_empty() {
        terms.extend(losses.terms.iter().map(|term| (term.name, 0.0)));
    }
    for (((_, mean), term), count) in terms.iter_mut().zip(&losses.terms).zip(counts) {
        *mean += f64::from(term.sum.to_scalar::<f32>()?) / count.max(1.0);
    }
    Ok(())
}
