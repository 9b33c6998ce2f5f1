//! The kinds `dyt_vit`, `tome_vit`, `dyt_vit_train` and `dense_features`.

use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use rescatter::backbone::pyramid::DytPyramid;
use rescatter::backbone::{Pass, Reads, Vit};
use rescatter::config::{
    AdapterConfig, BackboneConfig, DispatchConfig, Placement, TomeConfig, TuningConfig, Variant,
};
use rescatter::dispatch::{KeptStats, distill_term, rate_term};
use rescatter::head::{Losses, StepContext, Term};
use rescatter::ops::{self, CrossEntropy};
use rescatter::params::{Init, ParamStore};
use rescatter::rng::Rng;

use super::{Fixture, Outputs};

/// The backbone of the file with its linear head, names at the root.
struct Net {
    vit: Vit,
    head: (Tensor, Tensor),
    store: ParamStore,
}

impl Net {
    fn new(fixture: &Fixture, taps: &[usize]) -> Result<Self> {
        let variant: Variant = fixture.hyper("dispatch")?;
        let backbone = backbone(fixture)?;
        let dim: usize = fixture.hyper("dim")?;
        let adapter = AdapterConfig {
            bottleneck: fixture.hyper("adapter_dim")?,
            scale: fixture.hyper("adapter_scale")?,
            dropout: 0.0,
            experts: fixture.hyper("experts")?,
            placement: Placement::Parallel,
        };
        let tome = match fixture.kind.as_str() {
            "tome_vit" => Some(TomeConfig { r: fixture.hyper("merged")? }),
            _ => None,
        };
        let dispatch = DispatchConfig { variant, tome, ..DispatchConfig::default() };
        let tuning = TuningConfig { adapter: Some(adapter), ..TuningConfig::default() };
        let store = fixture.store();
        let vit = Vit::new(&backbone, &dispatch, &tuning, &Reads::all(taps), &store.root())?;
        let (classes, scope) = (fixture.hyper::<usize>("num_classes")?, store.root().pp("head"));
        let head = (
            scope.param("weight", (classes, dim), Init::Const(0.0))?,
            scope.param("bias", classes, Init::Const(0.0))?,
        );
        Ok(Self { vit, head, store })
    }

    /// Tokens after the final norm `[B, N, C]`, class logits `[B, K]` and who worked where.
    fn logits(&self, image: &Tensor, pass: &Pass) -> Result<(Tensor, Tensor, KeptStats)> {
        let features = self.vit.forward(image, pass)?;
        let class_token = features.tokens.narrow(1, 0, 1)?.squeeze(1)?;
        let logits = ops::linear(&class_token, &self.head.0, Some(&self.head.1))?;
        Ok((features.tokens, logits, features.kept))
    }

    /// What the files call the dispatchers: `0`, or `attn.0`.
    fn dispatchers(&self) -> Vec<String> {
        self.vit.dispatch().variant.dispatcher_names(self.vit.dims().depth)
    }

    fn insert_masks(&self, kept: &KeptStats, outputs: &mut Outputs) {
        for (name, layer) in self.dispatchers().iter().zip(&kept.layers) {
            outputs.insert(format!("output.mask.{name}"), layer.mask.clone());
        }
    }
}

/// The sizes of the file's vision transformer.
pub(super) fn backbone(fixture: &Fixture) -> Result<BackboneConfig> {
    let [height, width]: [usize; 2] = fixture.hyper("img_size")?;
    let patch_size: usize = fixture.hyper("patch_size")?;
    Ok(BackboneConfig {
        arch: None,
        embed_dim: Some(fixture.hyper("dim")?),
        depth: Some(fixture.hyper("depth")?),
        num_heads: Some(fixture.hyper("heads")?),
        mlp_ratio: Some(fixture.hyper("mlp_ratio")?),
        patch_size,
        layer_scale: fixture.hyper("layer_scale")?,
        cls_token: true,
        reg_tokens: fixture.hyper("reg_tokens")?,
        no_embed_class: fixture.hyper("no_embed_class")?,
        pos_embed_grid: [height / patch_size, width / patch_size],
        window: None,
        rel_pos: None,
        weights: None,
        drop_path: 0.0,
    })
}

/// `dyt_vit`, and `tome_vit` with merging in every block: inference, skipped tokens gathered away.
pub(super) fn evaluation(fixture: &Fixture) -> Result<Option<Outputs>> {
    let net = Net::new(fixture, &[])?;
    fixture.load_into(&net.store)?;
    let image = fixture.input("image")?;
    let mut outputs = Outputs::new();
    net.vit.visit(&image, &Pass::Infer, |i, tokens| {
        outputs.insert(format!("output.tokens.{i}"), tokens.clone());
        Ok(())
    })?;
    let (norm, logits, kept) = net.logits(&image, &Pass::Infer)?;
    net.insert_masks(&kept, &mut outputs);
    for (name, layer) in net.dispatchers().iter().zip(&kept.layers) {
        outputs.insert(format!("output.dispatch_logit.{name}"), layer.logit.clone());
    }
    outputs.insert("output.norm".into(), norm);
    outputs.insert("output.logits".into(), logits);
    Ok(Some(outputs))
}

/// `dyt_vit_train`: one step with given noise, the complete model and all four losses.
pub(super) fn training(fixture: &Fixture) -> Result<Option<Outputs>> {
    let net = Net::new(fixture, &[])?;
    fixture.load_into(&net.store)?;
    let (image, labels) = (fixture.input("image")?, fixture.input("labels")?.to_dtype(DType::U32)?);
    let names = net.dispatchers();
    let noise = names.iter().map(|name| fixture.input(&format!("noise.{name}")));
    let noise = noise.collect::<Result<Vec<_>>>()?;
    let tau: f64 = fixture.hyper("tau")?;
    let (_, student, kept) = net.logits(&image, &Pass::GivenNoise { noise: &noise, tau })?;
    let rng = Rng::new(0);
    let ctx = StepContext::still(&rng, &[]);
    let (_, complete, _) = net.logits(&image, &Pass::Complete(&ctx))?;
    let task = |name: &'static str, logits: &Tensor| -> Result<Term> {
        let (sum, count) = ops::cross_entropy(logits, &labels, &CrossEntropy::default())?;
        Ok(Term { name, weight: 1.0, sum, count })
    };
    let rate = rate_term(&kept, fixture.hyper("ratio")?, 2.0, None)?
        .context("a model without dispatchers")?;
    let terms = vec![
        task("loss_ce", &student)?,
        Term { name: "loss_ratio", ..rate },
        task("loss_complete", &complete)?,
        Term { name: "loss_kl", ..distill_term(&complete, &student, 1.0)? },
    ];
    let mut outputs = Outputs::new();
    for term in &terms {
        outputs.insert(format!("output.{}", term.name), (&term.sum / term.count)?);
    }
    let losses = Losses { terms, logits: None };
    let loss = losses.total(&losses.counts())?;
    fixture.collect_grads(&net.store, &loss.backward()?, &mut outputs)?;
    net.insert_masks(&kept, &mut outputs);
    for ((name, layer), noise) in names.iter().zip(&kept.layers).zip(&noise) {
        let soft = ((&layer.logit + noise)? / tau)?;
        let soft = (soft.neg()?.exp()? + 1.0)?.recip()?;
        outputs.insert(format!("output.soft.{name}"), soft);
    }
    outputs.insert("output.loss".into(), loss);
    outputs.insert("output.student_logits".into(), student);
    outputs.insert("output.complete_logits".into(), complete);
    Ok(Some(outputs))
}

/// `dense_features`: the tapped maps and the pyramid over them.
pub(super) fn dense_features(fixture: &Fixture) -> Result<Option<Outputs>> {
    let taps: [usize; 4] = fixture.hyper("out_indices")?;
    let net = Net::new(fixture, &taps)?;
    let pyramid = DytPyramid::new(fixture.hyper("dim")?, &net.store.root())?;
    fixture.load_into(&net.store)?;
    let features = net.vit.forward(&fixture.input("image")?, &Pass::Infer)?;
    let maps: [Tensor; 4] = features.maps.try_into().ok().context("four taps give four maps")?;
    let levels = pyramid.forward(&maps)?;
    let mut outputs = Outputs::new();
    net.insert_masks(&features.kept, &mut outputs);
    for (k, (map, level)) in maps.into_iter().zip(levels).enumerate() {
        outputs.insert(format!("output.feature.{k}"), map);
        outputs.insert(format!("output.pyramid.{k}"), level);
    }
    Ok(Some(outputs))
}
