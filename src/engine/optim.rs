//! The optimizers: which parameter moves how fast, and their state as named tensors for checkpoints.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, bail};

use crate::config::{GroupConfig, OptimizerConfig};
use crate::ops::optimizer::{AdamWParameter, AdamWStep, SgdStep, adamw, sgd, squared_norm};
use crate::params::{ParamStore, Role};

/// Prefix of the state's names in a checkpoint; then the kind (`m`, `v`, `momentum`) and the parameter's name.
pub const PREFIX: &str = "optimizer.";

/// The arithmetic of a step; formulas in [`crate::ops::optimizer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// AdamW.
    AdamW {
        /// β₁, β₂.
        betas: [f64; 2],
        /// ε.
        eps: f64,
    },
    /// SGD.
    Sgd {
        /// μ; 0 is plain SGD.
        momentum: f64,
    },
}

/// One trained parameter.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its checkpoint name.
    pub name: String,
    /// Its storage.
    pub var: Var,
    /// Factor on the learning rate.
    pub lr_scale: f64,
    /// Its decay.
    pub weight_decay: f64,
}

/// An optimizer and its state.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    parameters: Vec<Parameter>,
    state: Vec<Vec<Var>>,
    steps: u64,
}

impl Optimizer {
    /// An optimizer of all trainable parameters of `params`, grouped as the config says.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(config: &OptimizerConfig, params: &ParamStore) -> Result<Self> {
        let (rule, weight_decay, groups) = match config {
            OptimizerConfig::Adamw(c) => {
                (Rule::AdamW { betas: c.betas, eps: c.eps }, c.weight_decay, c.groups)
            }
            OptimizerConfig::Sgd(c) => {
                (Rule::Sgd { momentum: c.momentum }, c.weight_decay, c.groups)
            }
        };
        let depth = params
            .all()
            .iter()
            .filter_map(|(name, _)| block_of(name))
            .max()
            .map_or(0, |last| last + 1);
        let parameter = |(name, var): (String, Var)| Parameter {
            lr_scale: lr_scale(&name, depth, &groups),
            weight_decay: if decays(&name, var.rank()) { weight_decay } else { 0.0 },
            name,
            var,
        };
        Self::with_parameters(
            rule,
            params.with_role(Role::Trainable).into_iter().map(parameter).collect(),
        )
    }

    /// An optimizer of the given parameters.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn with_parameters(rule: Rule, parameters: Vec<Parameter>) -> Result<Self> {
        let zeros = |var: &Var| Var::zeros(var.shape(), var.dtype(), var.device());
        let state =
            |p: &Parameter| kinds(rule).iter().map(|_| zeros(&p.var)).collect::<Result<Vec<_>>>();
        let state = parameters.iter().map(state).collect::<Result<Vec<_>>>()?;
        Ok(Self { rule, parameters, state, steps: 0 })
    }

    /// What is trained, in the order in which [`Self::step`] expects gradients.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Moves every parameter that has a gradient. `lr` is the schedule's rate, `gradient_scale` a factor on all gradients
    /// (see [`clip_scale`]).
    ///
    /// # Errors
    /// If a gradient does not fit its parameter.
    pub fn step(
        &mut self,
        gradients: &[Option<Tensor>],
        lr: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        if gradients.len() != self.parameters.len() {
            bail!("{} gradients for {} parameters", gradients.len(), self.parameters.len());
        }
        self.steps += 1;
        let mut moved = Vec::with_capacity(gradients.len());
        for ((parameter, state), gradient) in self.parameters.iter().zip(&self.state).zip(gradients)
        {
            let Some(gradient) = gradient else { continue };
            let (value, lr) = (&parameter.var, lr * parameter.lr_scale);
            let weight_decay = parameter.weight_decay;
            match (self.rule, state.as_slice()) {
                (Rule::AdamW { .. }, [m, v]) => moved.push(AdamWParameter {
                    value,
                    moments: [m, v],
                    gradient,
                    lr,
                    weight_decay,
                }),
                (Rule::Sgd { momentum }, [buffer]) => {
                    let step = SgdStep { lr, momentum, weight_decay, gradient_scale };
                    sgd(value, buffer, gradient, &step)?;
                }
                _ => bail!("the optimizer's state does not fit its rule"),
            }
        }
        if let Rule::AdamW { betas, eps } = self.rule {
            adamw(&moved, &AdamWStep { betas, eps, step: self.steps, gradient_scale })?;
        }
        Ok(())
    }

    /// The state by its names in a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        self.entries().map(|(name, var)| (name, var.as_detached_tensor())).collect()
    }

    /// Overwrites the state with that of a checkpoint written after `steps` steps.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>, steps: u64) -> Result<()> {
        self.steps = steps;
        self.entries().try_for_each(|(name, var)| restore(var, state, &name))
    }

    fn entries(&self) -> impl Iterator<Item = (String, &Var)> {
        self.parameters.iter().zip(&self.state).flat_map(|(parameter, state)| {
            let name = |kind: &str| format!("{PREFIX}{kind}.{}", parameter.name);
            kinds(self.rule).iter().zip(state).map(move |(kind, var)| (name(kind), var))
        })
    }
}

fn kinds(rule: Rule) -> &'static [&'static str] {
    match rule {
        Rule::AdamW { .. } => &["m", "v"],
        Rule::Sgd { .. } => &["momentum"],
    }
}

/// Overwrites `var` with the tensor `name` of a checkpoint.
pub(super) fn restore(var: &Var, state: &BTreeMap<String, Tensor>, name: &str) -> Result<()> {
    match state.get(name) {
        Some(value) if value.shape() == var.shape() => {
            var.set(&value.to_dtype(var.dtype())?.to_device(var.device())?)
        }
        Some(value) => bail!(
            "`{name}` has shape {:?} in the checkpoint, expected {:?}",
            value.dims(),
            var.dims()
        ),
        None => bail!("the checkpoint has no `{name}`"),
    }
}

/// The norm of all gradients together.
///
/// # Errors
/// If a gradient is not of a floating-point type.
pub fn gradient_norm(gradients: &[Option<Tensor>]) -> Result<f64> {
    Ok(squared_norm(&gradients.iter().flatten().collect::<Vec<_>>())?.sqrt())
}

/// The factor that limits gradients of the given norm to `max_norm`, as in torch: min(1, max / (norm + 1e-6)).
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// Norms, biases, LayerScale, embeddings and learned tokens are not pulled towards zero.
fn decays(name: &str, rank: usize) -> bool {
    const EXEMPT: [&str; 9] = [
        "bias",
        "shift_bias",
        "pos_embed",
        "frame_embed",
        "cell_embed",
        "cls_token",
        "reg_token",
        "dist_token",
        "query_token",
    ];
    let last = name.rsplit('.').next().unwrap_or(name);
    let tokens = ["prompts.", "memory.", "task_cls."].iter().any(|part| name.contains(part));
    rank > 1 && !tokens && !EXEMPT.contains(&last)
}

/// The learning rate's factor: the head's, or inside the backbone decay^(depth − i) for block i, one power more for the
/// embeddings before it and none for what follows the blocks (BEiT, arXiv 2106.08254).
fn lr_scale(name: &str, depth: usize, groups: &GroupConfig) -> f64 {
    let Some(inner) = name.strip_prefix("backbone.") else { return groups.head_lr_multiplier };
    let embedding = ["pos_embed", "cls_token", "reg_token", "patch_embed."]
        .iter()
        .any(|start| inner.starts_with(start));
    let power = match block_of(name) {
        Some(block) => depth - block,
        None if embedding => depth + 1,
        None => 0,
    };
    groups.layer_decay.powi(i32::try_from(power).unwrap_or(i32::MAX))
}

fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("backbone.blocks.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::config::AdamWConfig;
    use crate::params::Init;

    fn model() -> Result<ParamStore> {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
        let root = store.root();
        let backbone = root.pp("backbone");
        backbone.param("pos_embed", (1, 5, 4), Init::Normal(0.1))?;
        backbone.pp("blocks.0.adaptmlp.down_proj").param("weight", (2, 4), Init::Normal(0.1))?;
        backbone.pp("blocks.1.norm1").param("weight", 4, Init::Const(1.0))?;
        backbone.pp("fpn1.0").param("weight", (4, 4, 2, 2), Init::Normal(0.1))?;
        backbone.frozen().pp("blocks.2.norm1").param("weight", 4, Init::Const(1.0))?;
        root.pp("decode_head.conv_seg").param("weight", (3, 4), Init::Normal(0.1))?;
        root.pp("decode_head.conv_seg").param("bias", 3, Init::Const(0.0))?;
        let clips = root.pp("temporal_head");
        clips.param("query_token", (1, 1, 4), Init::Normal(0.1))?;
        clips.param("frame_embed", (1, 2, 1, 4), Init::Normal(0.1))?;
        clips.param("cell_embed", (1, 1, 2, 4), Init::Normal(0.1))?;
        Ok(store)
    }

    #[test]
    fn groups_follow_the_names() -> Result<()> {
        let groups = GroupConfig { head_lr_multiplier: 10.0, layer_decay: 0.5 };
        let config = OptimizerConfig::Adamw(AdamWConfig {
            groups,
            weight_decay: 0.1,
            ..AdamWConfig::default()
        });
        let optimizer = Optimizer::new(&config, &model()?)?;
        let found: BTreeMap<&str, (f64, f64)> = optimizer
            .parameters()
            .iter()
            .map(|p| (p.name.as_str(), (p.lr_scale, p.weight_decay)))
            .collect();
        // Three blocks, the last of them frozen.
        let expected = [
            ("backbone.pos_embed", (0.0625, 0.0)),
            ("backbone.blocks.0.adaptmlp.down_proj.weight", (0.125, 0.1)),
            ("backbone.blocks.1.norm1.weight", (0.25, 0.0)),
            ("backbone.fpn1.0.weight", (1.0, 0.1)),
            ("decode_head.conv_seg.weight", (10.0, 0.1)),
            ("decode_head.conv_seg.bias", (10.0, 0.0)),
            ("temporal_head.query_token", (10.0, 0.0)),
            ("temporal_head.frame_embed", (10.0, 0.0)),
            ("temporal_head.cell_embed", (10.0, 0.0)),
        ];
        assert_eq!(found, expected.into());
        Ok(())
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_for_bit() -> Result<()> {
        let gradients = |o: &Optimizer, step: u64| -> Result<Vec<Option<Tensor>>> {
            let scaled =
                |p: &Parameter| Ok(Some(((p.var.as_detached_tensor() + 0.1)? * (step as f64))?));
            o.parameters().iter().map(scaled).collect()
        };
        let config = OptimizerConfig::default();
        let (one, two) = (model()?, model()?);
        let mut straight = Optimizer::new(&config, &one)?;
        let mut first = Optimizer::new(&config, &two)?;
        for step in 1..=4 {
            straight.step(&gradients(&straight, step)?, 0.01, 1.0)?;
        }
        for step in 1..=2 {
            first.step(&gradients(&first, step)?, 0.01, 1.0)?;
        }
        let mut second = Optimizer::new(&config, &two)?;
        second.load_state(&first.state(), 2)?;
        for step in 3..=4 {
            second.step(&gradients(&second, step)?, 0.01, 1.0)?;
        }
        for ((name, a), (_, b)) in
            one.with_role(Role::Trainable).iter().zip(two.with_role(Role::Trainable))
        {
            let bits = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(a), bits(&b), "{name}");
        }
        let text = second.load_state(&BTreeMap::new(), 2).unwrap_err().to_string();
        assert!(text.contains("the checkpoint has no `optimizer.m.backbone"), "{text}");
        Ok(())
    }
}
