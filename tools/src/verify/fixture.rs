//! A reference file: tensors by name, and what to compute with them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use rescatter::params::ParamStore;
use serde_json::Value;

use super::Outputs;

/// A reference file.
pub(super) struct Fixture {
    /// What is computed.
    pub(super) kind: String,
    hyper: Value,
    /// Largest allowed |difference| per expected tensor.
    pub(super) tolerances: BTreeMap<String, f64>,
    tensors: HashMap<String, Tensor>,
    device: Device,
}

impl Fixture {
    /// Reads a file to a device.
    pub(super) fn read(path: &Path, device: &Device) -> Result<Self> {
        let bytes =
            std::fs::read(path).map_err(|error| rescatter::Error::io("read", path, error))?;
        let (_, header) =
            safetensors::SafeTensors::read_metadata(&bytes).context("not a safetensors file")?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |key: &str| {
            metadata
                .get(key)
                .with_context(|| format!("not a reference file: no `{key}` in its metadata"))
        };
        Ok(Self {
            kind: entry("kind")?.clone(),
            hyper: serde_json::from_str(entry("hyper")?)?,
            tolerances: serde_json::from_str(entry("tolerances")?)?,
            tensors: candle_core::safetensors::load_buffer(&bytes, device)?,
            device: device.clone(),
        })
    }

    /// Where the tensors are.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The tensor `name` of the file.
    pub(super) fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("the file has no tensor `{name}`"))
    }

    /// The input `name`.
    pub(super) fn input(&self, name: &str) -> Result<Tensor> {
        Ok(self.get(&format!("input.{name}"))?.clone())
    }

    /// The input `name` as host values, row after row.
    pub(super) fn values<T: candle_core::WithDType>(&self, name: &str) -> Result<Vec<T>> {
        Ok(self.input(name)?.flatten_all()?.to_vec1()?)
    }

    /// The boxes `[N, 4]` of the input `name`.
    pub(super) fn boxes(&self, name: &str) -> Result<Vec<[f32; 4]>> {
        Ok(self.values::<f32>(name)?.as_chunks::<4>().0.to_vec())
    }

    /// The inputs `prefix.0`, `prefix.1`, … as far as there are any.
    pub(super) fn numbered(&self, prefix: &str) -> Vec<Tensor> {
        let input = |i: usize| self.tensors.get(&format!("input.{prefix}.{i}")).cloned();
        (0..).map_while(input).collect()
    }

    /// The constant `key`, of the type that is asked for.
    pub(super) fn hyper<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T> {
        let value = self.hyper.get(key).with_context(|| format!("no `{key}` in `hyper`"))?;
        serde_json::from_value(value.clone()).with_context(|| format!("`{key}` in `hyper`"))
    }

    /// The tensors below `weights.`, without that prefix, in the order of their names.
    pub(super) fn weights(&self) -> BTreeMap<&str, &Tensor> {
        self.tensors
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix("weights.")?, tensor)))
            .collect()
    }

    /// Copies the weights into a model: no name may be left over or missing.
    pub(super) fn load_into(&self, store: &ParamStore) -> Result<()> {
        let weights = self.weights();
        let missing: Vec<_> = store
            .all()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| !weights.contains_key(name.as_str()))
            .collect();
        ensure!(missing.is_empty(), "the file lacks weights of the model: {}", missing.join(", "));
        for (name, tensor) in weights {
            store.set(name, tensor)?;
        }
        Ok(())
    }

    /// Adds the gradients that the file expects as `grad.<parameter>`; zero where the loss does not depend on one.
    pub(super) fn collect_grads(
        &self,
        store: &ParamStore,
        grads: &GradStore,
        outputs: &mut Outputs,
    ) -> Result<()> {
        for name in self.tolerances.keys() {
            let Some(parameter) =
                name.strip_prefix("grad.").filter(|name| !name.starts_with("input."))
            else {
                continue;
            };
            let Some(param) = store.get(parameter) else {
                bail!("the model has no parameter `{parameter}`")
            };
            let grad = match grads.get(param.var.as_tensor()) {
                Some(grad) => grad.clone(),
                None => param.var.zeros_like()?,
            };
            outputs.insert(name.clone(), grad);
        }
        Ok(())
    }

    /// An empty store for a model that gets the file's weights.
    pub(super) fn store(&self) -> ParamStore {
        ParamStore::new(&self.device, DType::F32, 0)
    }
}
