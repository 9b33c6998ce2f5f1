//! Blocks that run once more in the backward pass instead of keeping their activations.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::trunk::{Form, Trunk};
use super::{Pass, TokenGrid};
use crate::config::DispatchConfig;
use crate::dispatch::{LayerKept, Selector};
use crate::head::StepContext;
use crate::ops;
use crate::rng::Rng;
use crate::world::World;

/// The `depth` blocks cut into runs of at most `most`, none of which goes on after a block of `taps`.
pub(super) fn segments(depth: usize, most: usize, taps: &[usize]) -> Vec<Range<usize>> {
    let mut segments: Vec<Range<usize>> = Vec::new();
    for index in 0..depth {
        match segments.last_mut() {
            Some(last) if last.len() < most && !taps.contains(&(index - 1)) => last.end = index + 1,
            _ => segments.push(index..index + 1),
        }
    }
    segments
}

/// All that the blocks of a training pass must know to run twice alike.
pub(super) struct Replay {
    trunk: Arc<Trunk>,
    pass: for<'a> fn(&'a StepContext<'a>) -> Pass<'a>,
    context: Context,
    /// How tokens are dispatched, and how many precede the patches.
    dispatch: (DispatchConfig, usize),
    places: TokenGrid,
    /// The upper left part of the patches, which counts.
    grid: (usize, usize),
}

/// A [`StepContext`] that owns what it consists of.
struct Context {
    training: bool,
    rng: Rng,
    step: u64,
    progress: f64,
    samples: Vec<u64>,
    world: World,
}

impl Replay {
    /// Of the pass `form` over patches at `places`, `grid` of which count; `None` if it is no training pass, or one in which
    /// the blocks are not trained.
    pub(super) fn new(
        form: &Form,
        (dispatch, prefix): (&DispatchConfig, usize),
        places: TokenGrid,
        grid: (usize, usize),
    ) -> Option<Self> {
        let (ctx, pass): (_, for<'a> fn(&'a StepContext<'a>) -> Pass<'a>) = match form.pass {
            _ if form.added.is_some() => return None,
            Pass::Train(ctx) => (ctx, |ctx| Pass::Train(ctx)),
            Pass::Complete(ctx) => (ctx, |ctx| Pass::Complete(ctx)),
            _ => return None,
        };
        let context = Context {
            training: ctx.training,
            rng: *ctx.rng,
            step: ctx.step,
            progress: ctx.progress,
            samples: ctx.samples.to_vec(),
            world: *ctx.world,
        };
        let dispatch = (dispatch.clone(), prefix);
        Some(Self { trunk: form.trunk.clone(), pass, context, dispatch, places, grid })
    }

    /// The tokens `x` `[B, N, C]` after `blocks`; `selector` records what they decided.
    pub(super) fn pass(
        self: &Arc<Self>,
        blocks: &Range<usize>,
        x: &Tensor,
        selector: &mut Selector,
    ) -> Result<Tensor> {
        let (replay, blocks, before) = (self.clone(), blocks.clone(), selector.reached());
        let found = ops::recomputed(x, move |x| replay.run(blocks.clone(), x, before))?;
        let [x, decisions @ ..] = &found[..] else { bail!("blocks gave no tokens") };
        let layer = |pair: &[Tensor]| LayerKept { mask: pair[0].clone(), logit: pair[1].clone() };
        selector.record(decisions.chunks_exact(2).map(layer));
        Ok(x.clone())
    }

    /// The tokens after `blocks`, then mask and logit of each dispatcher, `before` of which precede.
    fn run(&self, blocks: Range<usize>, x: &Tensor, before: usize) -> Result<Vec<Tensor>> {
        let Context { training, rng, step, progress, samples, world } = &self.context;
        let ctx = StepContext {
            training: *training,
            update_stats: false,
            rng,
            step: *step,
            progress: *progress,
            samples,
            world,
        };
        let (pass, (dispatch, prefix)) = ((self.pass)(&ctx), &self.dispatch);
        let mut selector = Selector::new(&pass, dispatch, None, *prefix)
            .cropping(self.places.grid, self.grid)
            .after(before);
        let mut x = x.clone();
        for block in &self.trunk.blocks[blocks] {
            x = block.enter(&x, self.places)?;
            x = block.forward(&x, self.places.grid, &mut selector)?;
        }
        let mut found = vec![x];
        found.extend(selector.finish().layers.into_iter().flat_map(|l| [l.mask, l.logit]));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_end_after_taps_and_as_long_as_allowed() {
        assert_eq!(segments(7, 3, &[]), [0..3, 3..6, 6..7]);
        assert_eq!(segments(7, 3, &[1, 4, 6]), [0..2, 2..5, 5..7]);
        assert_eq!(segments(7, 4, &[]), [0..4, 4..7]);
    }
}
