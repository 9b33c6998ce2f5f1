//! Kinds of the tuning methods: a plain vision transformer with one of them, a linear layer on its class token, and the
//! cross entropy. Tokens and logits are those of inference, where trained weights are folded into the pretrained ones;
//! loss and gradients are those of training.

use anyhow::{Result, bail};
use candle_core::{DType, Tensor};
use rescatter::backbone::{Pass, Reads, Vit};
use rescatter::config::{
    BackboneTuning, DispatchConfig, Ia3Config, LoraConfig, MemoryConfig, RlrrConfig, SsfConfig,
    TuningConfig, VptConfig,
};
use rescatter::ops::{self, CrossEntropy};
use rescatter::params::{Init, ParamStore, Scope};

use super::vit::backbone;
use super::{Fixture, Outputs};

fn method(fixture: &Fixture) -> Result<TuningConfig> {
    let plain = TuningConfig::default();
    Ok(match fixture.kind.as_str() {
        "rlrr_vit" => TuningConfig { rlrr: Some(RlrrConfig::default()), ..plain },
        "ssf_vit" => TuningConfig { ssf: Some(SsfConfig {}), ..plain },
        "ia3_vit" => TuningConfig { ia3: Some(Ia3Config {}), ..plain },
        "bitfit_vit" => TuningConfig { backbone: BackboneTuning::Bitfit, ..plain },
        "lora_vit" => {
            let lora = LoraConfig {
                rank: fixture.hyper("rank")?,
                alpha: Some(fixture.hyper("alpha")?),
                targets: fixture.hyper("targets")?,
            };
            TuningConfig { lora: Some(lora), ..plain }
        }
        "vpt_vit" => {
            let vpt = VptConfig { tokens: fixture.hyper("prompts")?, deep: fixture.hyper("deep")? };
            TuningConfig { vpt: Some(vpt), ..plain }
        }
        kind => bail!("no tuning method has the kind `{kind}`"),
    })
}

/// Weight `[K, C]` and bias of a linear layer on a class token.
struct Classifier(Tensor, Tensor);

impl Classifier {
    fn new(classes: usize, dim: usize, scope: &Scope) -> Result<Self> {
        let weight = scope.param("weight", (classes, dim), Init::Const(0.0))?;
        Ok(Self(weight, scope.param("bias", classes, Init::Const(0.0))?))
    }

    /// `[B, C]` → `[B, K]`.
    fn logits(&self, token: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(token, &self.0, Some(&self.1))?)
    }
}

/// The mean over the batch of the cross entropy with the file's labels.
fn loss(fixture: &Fixture, logits: &Tensor) -> Result<Tensor> {
    let labels = fixture.input("labels")?.to_dtype(DType::U32)?;
    let (sum, count) = ops::cross_entropy(logits, &labels, &CrossEntropy::default())?;
    Ok((sum / count)?)
}

fn class_token(tokens: &Tensor) -> Result<Tensor> {
    Ok(tokens.narrow(1, 0, 1)?.squeeze(1)?)
}

/// Every method but memory.
pub(super) fn classifier(fixture: &Fixture) -> Result<Option<Outputs>> {
    let (store, dispatch) = (fixture.store(), DispatchConfig::default());
    let root = store.root();
    let vit = Vit::new(&backbone(fixture)?, &dispatch, &method(fixture)?, &Reads::all(&[]), &root)?;
    let head = Classifier::new(fixture.hyper("num_classes")?, vit.dims().dim, &root.pp("head"))?;
    fixture.load_into(&store)?;
    let image = fixture.input("image")?;
    let mut outputs = Outputs::new();
    vit.visit(&image, &Pass::Infer, |i, tokens| {
        outputs.insert(format!("output.tokens.{i}"), tokens.clone());
        Ok(())
    })?;
    let norm = vit.forward(&image, &Pass::Infer)?.tokens;
    outputs.insert("output.logits".into(), head.logits(&class_token(&norm)?)?);
    outputs.insert("output.norm".into(), norm);
    merged(&vit, &store, &mut outputs)?;
    let trained = vit.forward(&image, &Pass::InferMasked)?.tokens;
    let loss = loss(fixture, &head.logits(&class_token(&trained)?)?)?;
    fixture.collect_grads(&store, &loss.backward()?, &mut outputs)?;
    outputs.insert("output.loss".into(), loss);
    Ok(Some(outputs))
}

/// The state of a plain model with the same outputs, as `output.merged.<name>`.
fn merged(vit: &Vit, store: &ParamStore, outputs: &mut Outputs) -> Result<()> {
    for (name, param) in store.all() {
        outputs.insert(format!("output.merged.{name}"), param.var.as_detached_tensor());
    }
    for (name, tensor) in vit.merged_weights()? {
        outputs.insert(format!("output.merged.{name}"), tensor);
    }
    Ok(())
}

/// `memory_vit`: one task, or tasks that were added to the first.
pub(super) fn memory(fixture: &Fixture) -> Result<Option<Outputs>> {
    let (rows, classes): (Vec<usize>, Vec<usize>) =
        (fixture.hyper("memory")?, fixture.hyper("num_classes")?);
    let (store, dispatch, cfg) = (fixture.store(), DispatchConfig::default(), backbone(fixture)?);
    let root = store.root();
    let (before_norm, patches_read) =
        (fixture.hyper("before_norm")?, fixture.hyper("patch_reads_memory")?);
    let with_tasks = |tasks: usize| -> Result<Vit> {
        let earlier = rows[..tasks - 1].to_vec();
        let memory = MemoryConfig { tokens: rows[tasks - 1], before_norm, patches_read, earlier };
        let tuning = TuningConfig { memory: Some(memory), ..TuningConfig::default() };
        Ok(Vit::new(&cfg, &dispatch, &tuning, &Reads::all(&[]), &root)?)
    };
    let vit = with_tasks(rows.len())?;
    let heads = classes
        .iter()
        .enumerate()
        .map(|(t, &classes)| Classifier::new(classes, vit.dims().dim, &root.pp("heads").pp(t)));
    let heads = heads.collect::<Result<Vec<_>>>()?;
    fixture.load_into(&store)?;
    let image = fixture.input("image")?;
    let logits = |vit: &Vit, pass: &Pass| -> Result<Vec<Tensor>> {
        let features = vit.forward(&image, pass)?;
        let tokens = std::iter::once(class_token(&features.tokens)?).chain(features.added);
        heads.iter().zip(tokens).map(|(head, token)| head.logits(&token)).collect()
    };
    let mut outputs = Outputs::new();
    vit.visit_with_added(&image, &Pass::Infer, |i, tokens, added| {
        let all: Vec<&Tensor> = std::iter::once(tokens).chain(added).collect();
        outputs.insert(format!("output.tokens.{i}"), Tensor::cat(&all, 1)?);
        Ok(())
    })?;
    for (t, logits) in logits(&vit, &Pass::Infer)?.into_iter().enumerate() {
        outputs.insert(format!("output.logits.{t}"), logits);
    }
    let alone = logits(&with_tasks(1)?, &Pass::Infer)?.swap_remove(0);
    outputs.insert("output.logits_alone.0".into(), alone);
    let last = logits(&vit, &Pass::InferMasked)?.swap_remove(rows.len() - 1);
    let loss = loss(fixture, &last)?;
    fixture.collect_grads(&store, &loss.backward()?, &mut outputs)?;
    outputs.insert("output.loss".into(), loss);
    Ok(Some(outputs))
}
