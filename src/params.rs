//! The parameters of a model: named, shared between the layers that use them and whatever loads, saves or trains them.
//!
//! A layer asks a [`Scope`] for its tensors by checkpoint name. Frozen parameters come back untracked, so no gradient is
//! ever computed for them; buffers (running statistics) come back as [`Var`]s that the layer may write.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};

use crate::rng::{Purpose, Rng, Stream};

/// What may happen to a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Changed by the optimizer; saved in every checkpoint.
    Trainable,
    /// Never changed after loading; not copied into checkpoints.
    Frozen,
    /// Trained before and left as it is now (the tasks that a new one is added to): saved in every checkpoint, because no
    /// pretrained file holds it.
    Kept,
    /// Changed by the forward pass (running statistics); saved in every checkpoint.
    Buffer,
}

/// What a scope leaves as it is, whatever else its layers ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Everything that would be trained.
    Trained,
    /// Everything: the frozen parameters are in no pretrained file either.
    All,
}

/// How a parameter starts when no checkpoint provides it.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// Every value the same.
    Const(f64),
    /// 1 in the middle of each filter of a depthwise convolution and 0 elsewhere: the identity.
    Centre,
    /// Normal(0, std).
    Normal(f64),
    /// Normal(0, std) cut at two standard deviations.
    TruncatedNormal(f64),
    /// Normal(mean, std).
    NormalAround(f64, f64),
    /// Uniform in ±bound.
    Uniform(f64),
    /// Uniform in ±sqrt(1 / fan_in): torch's default for linear and convolution weights (Kaiming-uniform with a = √5).
    KaimingUniform,
    /// Normal with std = sqrt(2 / fan_out), fan_out = out · kernel area: detectron2's `c2_msra_fill`.
    KaimingNormalFanOut,
}

/// One named parameter.
#[derive(Debug, Clone)]
pub struct Param {
    /// The storage, shared with the layers.
    pub var: Var,
    /// Who may change it.
    pub role: Role,
}

/// All parameters of a model by their checkpoint names.
#[derive(Debug)]
pub struct ParamStore {
    device: Device,
    dtype: DType,
    rng: Rng,
    params: Mutex<BTreeMap<String, Param>>,
}

impl ParamStore {
    /// An empty store; `seed` decides the initial values, each by its name alone.
    pub fn new(device: &Device, dtype: DType, seed: u64) -> Self {
        Self { device: device.clone(), dtype, rng: Rng::new(seed), params: Mutex::default() }
    }

    /// The outermost scope, in which parameters are trainable.
    pub fn root(&self) -> Scope<'_> {
        Scope {
            store: self,
            prefix: String::new(),
            role: Role::Trainable,
            bias_role: Role::Trainable,
            keep: None,
        }
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Element type of every parameter.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Option<Param> {
        self.lock().get(name).cloned()
    }

    /// All parameters in the order of their names.
    pub fn all(&self) -> Vec<(String, Param)> {
        self.lock().iter().map(|(name, param)| (name.clone(), param.clone())).collect()
    }

    /// The parameters of one role in the order of their names.
    pub fn with_role(&self, role: Role) -> Vec<(String, Var)> {
        self.lock()
            .iter()
            .filter(|(_, p)| p.role == role)
            .map(|(n, p)| (n.clone(), p.var.clone()))
            .collect()
    }

    /// How many numbers the optimizer may change.
    pub fn trainable_count(&self) -> usize {
        self.with_role(Role::Trainable).iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Overwrite `name` with `value` (cast to the store's type and device).
    ///
    /// # Errors
    /// If there is no such parameter or the shape differs.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let Some(param) = self.get(name) else { bail!("the model has no parameter `{name}`") };
        if param.var.shape() != value.shape() {
            bail!(
                "`{name}` has shape {:?} in the model and {:?} in the file",
                param.var.dims(),
                value.dims()
            );
        }
        param.var.set(&value.to_dtype(self.dtype)?.to_device(&self.device)?.contiguous()?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Param>> {
        self.params.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A place in the tree of parameter names, with the role that new parameters get.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    store: &'a ParamStore,
    prefix: String,
    role: Role,
    bias_role: Role,
    keep: Option<Keep>,
}

impl<'a> Scope<'a> {
    /// The scope `name` below this one.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let prefix = if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        };
        Self { prefix, ..self.clone() }
    }

    /// The same place; new parameters are frozen.
    pub fn frozen(&self) -> Self {
        Self { role: Role::Frozen, bias_role: Role::Frozen, ..self.clone() }
    }

    /// The same place; new parameters are trainable.
    pub fn trainable(&self) -> Self {
        Self { role: Role::Trainable, bias_role: Role::Trainable, ..self.clone() }
    }

    /// The same place; new parameters called `bias` are trainable.
    pub fn with_trainable_biases(&self) -> Self {
        Self { bias_role: Role::Trainable, ..self.clone() }
    }

    /// The same place; new parameters are kept as they are as far as `keep` says.
    pub fn keeping(&self, keep: Keep) -> Self {
        Self { keep: Some(keep), ..self.clone() }
    }

    fn role_of(&self, name: &str) -> Role {
        let role = if name == "bias" { self.bias_role } else { self.role };
        match (self.keep, role) {
            (Some(_), Role::Trainable) | (Some(Keep::All), Role::Frozen) => Role::Kept,
            _ => role,
        }
    }

    /// The store that this scope belongs to.
    pub fn store(&self) -> &'a ParamStore {
        self.store
    }

    /// The parameter `name`, created with `init` if the store does not hold it yet. Tracked only if it is trainable.
    ///
    /// # Errors
    /// If it exists with another shape.
    pub fn param(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let role = self.role_of(name);
        let var = self.create(name, shape.into(), init, role)?;
        Ok(match role {
            Role::Trainable => var.as_tensor().clone(),
            Role::Frozen | Role::Kept | Role::Buffer => var.as_detached_tensor(),
        })
    }

    /// The buffer `name`, filled with `value` if the store does not hold it yet.
    ///
    /// # Errors
    /// If it exists with another shape.
    pub fn buffer(&self, name: &str, shape: impl Into<Shape>, value: f64) -> Result<Var> {
        self.create(name, shape.into(), Init::Const(value), Role::Buffer)
    }

    fn create(&self, name: &str, shape: Shape, init: Init, role: Role) -> Result<Var> {
        let full = self.pp(name).prefix;
        if let Some(known) = self.store.get(&full) {
            if known.var.shape() != &shape {
                bail!(
                    "`{full}` is wanted as {:?} but exists as {:?}",
                    shape.dims(),
                    known.var.dims()
                );
            }
            return Ok(known.var);
        }
        let mut stream = self.store.rng.stream(Purpose::Init, name_hash(&full), 0);
        let values = initial_values(init, &shape, &mut stream);
        let tensor =
            Tensor::from_vec(values, shape, &self.store.device)?.to_dtype(self.store.dtype)?;
        let var = Var::from_tensor(&tensor)?;
        self.store.lock().insert(full, Param { var: var.clone(), role });
        Ok(var)
    }
}

fn initial_values(init: Init, shape: &Shape, stream: &mut Stream) -> Vec<f32> {
    let dims = shape.dims();
    let area: usize = dims.iter().skip(2).product();
    let fan_in = dims.get(1).map_or(1, |&d| d * area).max(1) as f64;
    let fan_out = dims.first().map_or(1, |&d| d * area).max(1) as f64;
    let mut draw = |f: &mut dyn FnMut(&mut Stream) -> f64| -> Vec<f32> {
        (0..shape.elem_count()).map(|_| f(stream) as f32).collect()
    };
    match init {
        Init::Const(value) => vec![value as f32; shape.elem_count()],
        Init::Centre => {
            let inside = |place: usize| f32::from(u8::from(place % area == area / 2));
            (0..shape.elem_count()).map(inside).collect()
        }
        Init::Normal(std) => draw(&mut |s| s.normal() * std),
        Init::TruncatedNormal(std) => draw(&mut |s| s.truncated_normal(std)),
        Init::NormalAround(mean, std) => draw(&mut |s| mean + s.normal() * std),
        Init::Uniform(bound) => draw(&mut |s| s.range(-bound, bound)),
        Init::KaimingUniform => draw(&mut |s| s.range(-1.0, 1.0) / fan_in.sqrt()),
        Init::KaimingNormalFanOut => draw(&mut |s| s.normal() * (2.0 / fan_out).sqrt()),
    }
}

/// FNV-1a: the initial values of a parameter depend on its name, not on the order of construction.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> ParamStore {
        ParamStore::new(&Device::Cpu, DType::F32, 0)
    }

    #[test]
    fn frozen_parameters_are_untracked_but_share_storage() -> Result<()> {
        let store = store();
        let frozen = store.root().frozen().param("a", (2, 3), Init::Normal(1.0))?;
        let trained = store.root().param("b", 2, Init::Const(1.0))?;
        assert!(!frozen.track_op() && trained.track_op());
        store.set("a", &Tensor::full(7f32, (2, 3), &Device::Cpu)?)?;
        assert_eq!(frozen.flatten_all()?.to_vec1::<f32>()?, [7.0; 6]);
        Ok(())
    }

    #[test]
    fn roles_follow_the_scope_and_the_name() -> Result<()> {
        let store = store();
        let (frozen, kept) = (store.root().frozen(), store.root().keeping(Keep::Trained));
        for (scope, place) in [
            (frozen.with_trainable_biases(), "bitfit"),
            (kept.clone(), "old"),
            (kept.frozen(), "old_backbone"),
            (frozen.keeping(Keep::All), "unfiled"),
        ] {
            scope.pp(place).param("weight", 1, Init::Const(0.0))?;
            scope.pp(place).param("bias", 1, Init::Const(0.0))?;
        }
        let roles: Vec<_> = store.all().into_iter().map(|(name, p)| (name, p.role)).collect();
        let expected = [
            ("bitfit.bias", Role::Trainable),
            ("bitfit.weight", Role::Frozen),
            ("old.bias", Role::Kept),
            ("old.weight", Role::Kept),
            ("old_backbone.bias", Role::Frozen),
            ("old_backbone.weight", Role::Frozen),
            ("unfiled.bias", Role::Kept),
            ("unfiled.weight", Role::Kept),
        ];
        assert_eq!(roles, expected.map(|(name, role)| (name.to_owned(), role)));
        Ok(())
    }

    #[test]
    fn initial_values_depend_on_the_name_alone() -> Result<()> {
        let (one, two) = (store(), store());
        two.root().param("other", 5, Init::Normal(1.0))?;
        let a = one
            .root()
            .pp("x")
            .param("w", (4, 4), Init::Normal(1.0))?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let b = two
            .root()
            .pp("x")
            .param("w", (4, 4), Init::Normal(1.0))?
            .flatten_all()?
            .to_vec1::<f32>()?;
        assert_eq!(a, b);
        Ok(())
    }

    #[test]
    fn a_shape_mismatch_names_the_parameter() {
        let store = store();
        store.root().param("w", (2, 3), Init::Const(0.0)).unwrap();
        let wrong = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(store.set("w", &wrong).unwrap_err().to_string().contains("`w` has shape [2, 3]"));
    }
}
