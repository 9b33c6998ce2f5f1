//! One transformer block with its adapters and dispatchers (\[DyT\] Eq. 2 and Fig. 3).

use candle_core::{Result, Tensor};

use super::attention::{attention_branch, detached_attention};
use super::mlp::{detached_mlp, mlp_branch};
use super::{Dims, Pass, TokenGrid};
use crate::config::DispatchConfig;
use crate::dispatch::{Active, Dispatcher, Gate, Selector, Site};
use crate::ops::{self, AttentionBranch, Bottleneck, MlpBranch};
use crate::params::Scope;
use crate::rng::{Purpose, Stream};
use crate::tuning::{AddedTasks, BlockTuning, Layer, Pair};

/// One transformer block.
pub(crate) struct Block {
    index: u16,
    /// `None` where it was pruned.
    attn: Option<AttentionBranch>,
    /// `None` where it was pruned.
    mlp: Option<MlpBranch>,
    tuning: BlockTuning,
    stages: Vec<Stage>,
    drop_path: f64,
    /// How many tokens, the first, go on to the MLP; `None`: all.
    fed: Option<usize>,
}

/// A part of the block that tokens pass, and which of them.
#[derive(Clone)]
pub(crate) struct Stage {
    site: Site,
    /// Who passes it.
    pub(crate) gate: Gate,
}

impl Block {
    /// Block `index` at `scope` (`blocks.i`), whose role decides whether the pretrained weights are trained, with what
    /// `tuning` adds to it; of its tokens the first `fed` go on to the MLP, where it says so.
    pub(super) fn new(
        index: usize,
        dims: &Dims,
        dispatch: &DispatchConfig,
        tuning: BlockTuning,
        fed: Option<usize>,
        scope: &Scope,
    ) -> Result<Self> {
        let added = scope.trainable();
        let stage =
            |&site: &Site| Ok(Stage { site, gate: gate(index, site, dims.dim, dispatch, &added)? });
        let stages = dispatch.variant.sites().iter().map(stage).collect::<Result<Vec<_>>>()?;
        let works = |half: Site| {
            let pruned = stages.iter().filter(|stage| matches!(stage.gate, Gate::Shut));
            !pruned.map(|stage| stage.site).any(|site| site == half || site == Site::Layer)
        };
        let attn = works(Site::Attention).then(|| attention_branch(dims, index, scope));
        let mlp = works(Site::Mlp).then(|| mlp_branch(dims, scope));
        Ok(Self {
            index: index as u16,
            attn: attn.transpose()?,
            mlp: mlp.transpose()?,
            tuning,
            stages,
            drop_path: dims.drop_path * index as f64 / (dims.depth - 1).max(1) as f64,
            fed,
        })
    }

    /// The same block without gradients for its weights, sharing their storage.
    pub(super) fn detached(&self) -> Self {
        let detached = |stage: &Stage| Stage { site: stage.site, gate: stage.gate.detached() };
        Self {
            attn: self.attn.as_ref().map(detached_attention),
            mlp: self.mlp.as_ref().map(detached_mlp),
            tuning: self.tuning.detached(),
            stages: self.stages.iter().map(detached).collect(),
            ..*self
        }
    }

    /// The same block on the weights that its tuning makes of its own.
    pub(super) fn tuned(&self) -> Result<Self> {
        let effective = |layer: Layer, pair: &Pair| self.tuning.effective(layer, pair);
        let attn = |attn: &AttentionBranch| -> Result<AttentionBranch> {
            Ok(AttentionBranch {
                norm: effective(Layer::Norm1, &attn.norm)?,
                qkv: effective(Layer::Qkv, &attn.qkv)?,
                proj: effective(Layer::Proj, &attn.proj)?,
                ..attn.clone()
            })
        };
        let mlp = |mlp: &MlpBranch| -> Result<MlpBranch> {
            Ok(MlpBranch {
                norm: effective(Layer::Norm2, &mlp.norm)?,
                fc1: effective(Layer::Fc1, &mlp.fc1)?,
                fc2: effective(Layer::Fc2, &mlp.fc2)?,
                ..mlp.clone()
            })
        };
        Ok(Self {
            attn: self.attn.as_ref().map(attn).transpose()?,
            mlp: self.mlp.as_ref().map(mlp).transpose()?,
            tuning: self.tuning.clone(),
            stages: self.stages.clone(),
            ..*self
        })
    }

    /// The weights that tuning may change, by their names in the block.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'static str, &Pair)> {
        let attn = self.attn.iter().flat_map(|attn| {
            [("norm1", &attn.norm), ("attn.qkv", &attn.qkv), ("attn.proj", &attn.proj)]
        });
        let mlp = self
            .mlp
            .iter()
            .flat_map(|mlp| [("norm2", &mlp.norm), ("mlp.fc1", &mlp.fc1), ("mlp.fc2", &mlp.fc2)]);
        attn.chain(mlp)
    }

    /// What the block adds to its tokens.
    pub(super) fn tuning(&self) -> &BlockTuning {
        &self.tuning
    }

    /// The class tokens of added tasks before the block → after it; `x` `[B, N, C]` are the block's own tokens as they
    /// entered it. There are added tasks only where all tokens attend.
    pub(super) fn read(
        &self,
        tasks: &AddedTasks,
        x: &Tensor,
        own: &[Tensor],
    ) -> Result<Vec<Tensor>> {
        let answers = match &self.attn {
            Some(attn) => tasks.attend(attn, usize::from(self.index), x, own)?,
            None => own.iter().map(Tensor::zeros_like).collect::<Result<_>>()?,
        };
        let after = |(token, answer): (&Tensor, Tensor)| {
            let x = (token + answer)?;
            let run = |adapter: Option<&_>| self.feed(&x, &Active::All, &Pass::Infer, adapter);
            self.tuning.adapt(Site::Mlp, &x, |_| Vec::new(), run)
        };
        own.iter().zip(answers).map(after).collect()
    }

    /// Tokens `[B, N, C]` as the block takes them: with its own prompts, and what its adapter over time adds.
    pub(crate) fn enter(&self, x: &Tensor, places: TokenGrid) -> Result<Tensor> {
        self.tuning.enter(x, places)
    }

    /// Tokens `[B, N, C]` that entered the block → after it; the patches among them lie on `grid` (rows, columns).
    pub(super) fn forward(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        selector: &mut Selector,
    ) -> Result<Tensor> {
        self.stages().try_fold(x.clone(), |x, stage| self.pass(stage, &x, grid, selector))
    }

    /// What tokens pass, one after the other.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.stages.iter()
    }

    /// \[DyT\] Eq. 2: the active tokens pass the stage's part of the block, all of them its adapter.
    pub(crate) fn pass(
        &self,
        stage: &Stage,
        x: &Tensor,
        grid: (usize, usize),
        selector: &mut Selector,
    ) -> Result<Tensor> {
        let (active, pass) = (selector.choose(&stage.gate, x)?, selector.pass());
        let site = stage.site;
        let (x, active) = match self.fed.filter(|_| site == Site::Mlp) {
            Some(first) => (&x.narrow(1, 0, first)?, active.first(first, x)?),
            None => (x, active),
        };
        let run = |adapter: Option<&Bottleneck>| {
            let y = match site {
                Site::Mlp => return self.feed(x, &active, pass, adapter),
                Site::Attention if selector.merger().is_some() => self.merge(x, grid, selector)?,
                Site::Attention => self.attend(x, grid, &active, pass)?,
                Site::Layer => self.whole(x, grid, &active, pass)?,
            };
            Bottleneck::add_any(adapter, y, x)
        };
        self.tuning.adapt(site, x, |number| self.streams(Purpose::Dropout, number, pass), run)
    }

    /// x + m·Attn(x), with the active tokens alone as keys.
    fn attend(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        active: &Active,
        pass: &Pass,
    ) -> Result<Tensor> {
        let Some(attn) = &self.attn else { return Ok(x.clone()) };
        match active {
            Active::All if self.drops(pass) => {
                ops::add(x, &self.dropped(self.tuning.attend(attn, x, grid)?, 0, pass)?)
            }
            Active::All => self.tuning.attend_and_add(attn, x, grid),
            Active::Masked(mask) => {
                let attended = attn.forward(x, grid, Some(&mask.detach()))?;
                ops::add(x, &self.dropped(masked(&attended, mask)?, 0, pass)?)
            }
            Active::Rows(rows) => attn.gathered(x, grid, rows),
        }
    }

    /// x + Attn(x) of tokens that count as many keys as they stand for, and then fewer of them (\[ToMe\]).
    fn merge(&self, x: &Tensor, grid: (usize, usize), selector: &mut Selector) -> Result<Tensor> {
        let pass = selector.pass();
        let (Some(attn), Some(merger)) = (&self.attn, selector.merger()) else {
            return Ok(x.clone());
        };
        let attended = self.dropped(attn.forward(x, grid, merger.sizes())?, 0, pass)?;
        merger.merge(&ops::add(x, &attended)?, &attn.mean_keys(x)?)
    }

    /// x + m·MLP(x), and what the `adapter` makes of x.
    fn feed(
        &self,
        x: &Tensor,
        active: &Active,
        pass: &Pass,
        adapter: Option<&Bottleneck>,
    ) -> Result<Tensor> {
        let Some(mlp) = &self.mlp else { return Bottleneck::add_any(adapter, x.clone(), x) };
        let mask = match active {
            Active::All => None,
            Active::Masked(mask) => Some(mask),
            Active::Rows(rows) => return mlp.gathered(x, rows, adapter),
        };
        if self.drops(pass) {
            let y = ops::add(x, &self.dropped(mlp.forward(x, mask)?, 1, pass)?)?;
            return Bottleneck::add_any(adapter, y, x);
        }
        mlp.sum(x, mask, adapter)
    }

    /// x + m·(z − x), z the plain block among the active tokens.
    fn whole(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        active: &Active,
        pass: &Pass,
    ) -> Result<Tensor> {
        let (Active::Masked(mask), Some(attn), Some(mlp)) = (active, &self.attn, &self.mlp) else {
            return self.feed(&self.attend(x, grid, active, pass)?, active, pass, None);
        };
        // The inactive tokens ask too: the gradient of their mask needs their z.
        let attended = self.dropped(attn.forward(x, grid, Some(&mask.detach()))?, 0, pass)?;
        let passed = ops::add(x, &attended)?;
        let fed = self.dropped(mlp.forward(&passed, Some(mask))?, 1, pass)?;
        ops::add(&ops::add(x, &masked(&attended, mask)?)?, &fed)
    }

    /// Whether [`Self::dropped`] drops anything.
    fn drops(&self, pass: &Pass) -> bool {
        self.drop_path > 0.0
            && matches!(pass, Pass::Train(ctx) | Pass::Complete(ctx) if ctx.training)
    }

    /// Stochastic depth on the branch `half` (0 attention, 1 MLP).
    fn dropped(&self, branch: Tensor, half: u16, pass: &Pass) -> Result<Tensor> {
        if !self.drops(pass) {
            return Ok(branch);
        }
        let mut streams = self.streams(Purpose::DropPath, half, pass);
        ops::drop_path(&branch, self.drop_path, &mut streams)
    }

    /// One stream per image while training, none otherwise; of two `number`s, 0 and 1.
    fn streams(&self, purpose: Purpose, number: u16, pass: &Pass) -> Vec<Stream> {
        match pass {
            Pass::Train(ctx) | Pass::Complete(ctx) if ctx.training => ctx
                .samples
                .iter()
                .map(|&sample| ctx.rng.stream(purpose, sample, 2 * self.index + number))
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// Who passes `site` of block `index`, whose additions are at `scope`.
fn gate(
    index: usize,
    site: Site,
    dim: usize,
    dispatch: &DispatchConfig,
    scope: &Scope,
) -> Result<Gate> {
    let dispatched = dispatch.variant.dispatched();
    let Some(position) = dispatched.iter().position(|&at| at == site) else {
        return Ok(Gate::Open);
    };
    if dispatch.pruned.contains(&(index * dispatched.len() + position)) {
        return Ok(Gate::Shut);
    }
    // A random dispatcher keeps the learned one's parameters, unused, so that a learned run can be evaluated at random.
    let scope = if dispatch.select.learns() { scope.clone() } else { scope.frozen() };
    let scope = scope.pp(format!("{}_token_select", site.name()));
    Dispatcher::new(dim, dispatch.initial_rate(), &scope).map(Gate::Scored)
}

/// The rows of `[B, N, C]` times their mask `[B, N]`.
fn masked(branch: &Tensor, mask: &Tensor) -> Result<Tensor> {
    branch.broadcast_mul(&mask.unsqueeze(2)?)
}
