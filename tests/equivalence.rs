//! Different ways to the same result: masking and gathering, a row alone and in a batch, the dense model and the one that
//! skips nothing. Differences are printed relative to the largest value.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

use candle_core::{DType, Device, Result, Tensor, Var};
use rescatter::backbone::{Features, Pass, Reads, Vit};
use rescatter::config::{
    AdapterConfig, BackboneConfig, BackboneTuning, DispatchConfig, Inference, Placement,
    RelPosConfig, Select, StAdapterConfig, TomeConfig, TuningConfig, Variant, WindowConfig,
    WindowPadding,
};
use rescatter::dispatch::{calibrate, calibrate_clips};
use rescatter::head::StepContext;
use rescatter::params::ParamStore;
use rescatter::rng::{Purpose, Rng};

const DEPTH: usize = 4;
/// DESIGN's bound on |difference| over the largest value.
const TOLERANCE: f64 = 1e-5;

/// A model whose adapters, dispatchers and class token are not at their (partly trivial) initial values. Values depend on
/// names alone, so models with other dispatch share all that they have in common.
fn vit(dispatch: DispatchConfig) -> Result<Vit> {
    build(&plain(), dispatch, BackboneTuning::Frozen)
}

fn plain() -> BackboneConfig {
    BackboneConfig {
        arch: None,
        embed_dim: Some(48),
        depth: Some(DEPTH),
        num_heads: Some(4),
        mlp_ratio: Some(4.0),
        patch_size: 4,
        layer_scale: false,
        cls_token: true,
        reg_tokens: 2,
        no_embed_class: false,
        pos_embed_grid: [6, 6],
        window: None,
        rel_pos: None,
        weights: None,
        drop_path: 0.0,
    }
}

/// Blocks 0 and 2 in windows of `size` patches; images have grids of 6 × 8.
fn windows(size: usize, padding: WindowPadding, rel_pos: Option<[usize; 2]>) -> BackboneConfig {
    let window = Some(WindowConfig { size, global_blocks: vec![1, 3], padding });
    let rel_pos = rel_pos.map(|grid| RelPosConfig { grid });
    BackboneConfig { cls_token: false, reg_tokens: 0, window, rel_pos, ..plain() }
}

fn build(cfg: &BackboneConfig, dispatch: DispatchConfig, tuned: BackboneTuning) -> Result<Vit> {
    let adapter = AdapterConfig {
        bottleneck: 8,
        scale: 0.5,
        dropout: 0.0,
        experts: 1,
        placement: Placement::Parallel,
    };
    let tuning =
        TuningConfig { backbone: tuned, adapter: Some(adapter), ..TuningConfig::default() };
    tuned_as(cfg, dispatch, tuning)
}

/// Without adapters, which stand elsewhere in every variant.
fn bare(cfg: &BackboneConfig, dispatch: DispatchConfig) -> Result<Vit> {
    tuned_as(cfg, dispatch, TuningConfig::default())
}

fn tuned_as(cfg: &BackboneConfig, dispatch: DispatchConfig, tuning: TuningConfig) -> Result<Vit> {
    Ok(read(&Reads::all(&[1, DEPTH - 1]), cfg, dispatch, tuning)?.0)
}

/// For a head that reads so much, with its parameters.
fn read(
    reads: &Reads,
    cfg: &BackboneConfig,
    dispatch: DispatchConfig,
    tuning: TuningConfig,
) -> Result<(Vit, ParamStore)> {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
    let vit = Vit::new(cfg, &dispatch, &tuning, reads, &store.root())?;
    for (name, param) in store.all() {
        if param.var.rank() >= 2 {
            let values = normal(param.var.dims(), name.bytes().map(u64::from).sum())?;
            let fan_in = param.var.dims()[1..].iter().product::<usize>() as f64;
            store.set(&name, &(values * fan_in.powf(-0.5))?)?;
        }
    }
    Ok((vit, store))
}

const VARIANTS: [Variant; 4] =
    [Variant::Mlp, Variant::Attention, Variant::AttentionMlp, Variant::Layer];

fn dispatched(variant: Variant, inference: Inference) -> DispatchConfig {
    DispatchConfig { variant, inference, ..DispatchConfig::default() }
}

fn mlp(inference: Inference) -> DispatchConfig {
    dispatched(Variant::Mlp, inference)
}

fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut stream = Rng::new(seed).stream(Purpose::Synthetic, 0, 0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn images(count: usize) -> Result<Tensor> {
    normal(&[count, 3, 22, 31], 5)
}

fn assert_close(what: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    let scalar = |t: Tensor| t.abs()?.max_all()?.to_scalar::<f32>().map(f64::from);
    let difference = scalar((a - b)?)? / scalar(b.clone())?;
    let mean = f64::from((a - b)?.abs()?.mean_all()?.to_scalar::<f32>()?);
    println!("{what}: {difference:.1e} of the largest value, mean {mean:.1e}");
    assert!(difference <= TOLERANCE, "{what}: {difference:.1e}");
    Ok(())
}

fn assert_same(what: &str, a: &Features, b: &Features) -> Result<()> {
    for (tap, (a, b)) in a.maps.iter().zip(&b.maps).enumerate() {
        assert_close(&format!("{what}, map {tap}"), a, b)?;
    }
    assert_close(what, &a.tokens, &b.tokens)
}

#[test]
fn masking_and_gathering_agree() -> Result<()> {
    for variant in VARIANTS {
        for inference in [Inference::Threshold, Inference::TopK(0.3)] {
            let vit = vit(dispatched(variant, inference))?;
            let gathered = vit.forward(&images(3)?, &Pass::Infer)?;
            let masked = vit.forward(&images(3)?, &Pass::InferMasked)?;
            let kept = gathered.kept.overall()?;
            assert!((0.2..0.8).contains(&kept), "{variant:?}: keeping {kept} shows little");
            assert_same(&format!("{variant:?}, gathered against masked"), &gathered, &masked)?;
        }
    }
    Ok(())
}

/// Values, decisions and gradients of what a head that reads the class token is given do not depend on whether the last MLP
/// leaves out the patches.
#[test]
fn patches_that_nobody_reads_end_early() -> Result<()> {
    let tuned = |experts| {
        let placement = Placement::Parallel;
        let adapter = AdapterConfig { bottleneck: 8, scale: 0.5, dropout: 0.3, experts, placement };
        TuningConfig { adapter: Some(adapter), ..TuningConfig::default() }
    };
    let rng = Rng::new(0);
    let ctx = StepContext { training: true, ..StepContext::still(&rng, &[0, 1]) };
    let cfg = BackboneConfig { drop_path: 0.2, ..plain() };
    let merging = DispatchConfig { tome: Some(TomeConfig { r: 8 }), ..mlp(Inference::Threshold) };
    let variants = VARIANTS.into_iter().chain([Variant::None]);
    let mut cases: Vec<_> =
        variants.map(|v| (dispatched(v, Inference::TopK(0.5)), tuned(1))).collect();
    cases.extend([(mlp(Inference::Threshold), tuned(3)), (merging, tuned(1))]);
    for (dispatch, tuning) in cases {
        let what = format!("{:?}, {:?}", dispatch.variant, dispatch.tome);
        let build = |reads| read(reads, &cfg, dispatch.clone(), tuning.clone());
        let ((all, every), (prefix, some)) = (build(&Reads::all(&[]))?, build(&Reads::prefix())?);
        let passes = [Pass::Infer, Pass::InferMasked, Pass::Train(&ctx), Pass::Complete(&ctx)];
        // Merging is for inference.
        for pass in &passes[..if dispatch.tome.is_some() { 1 } else { 4 }] {
            let run = |vit: &Vit| vit.forward(&images(2)?, pass);
            let (whole, short) = (run(&all)?, run(&prefix)?);
            let ends = Reads::prefix().leave_out_patches(&dispatch, &tuning);
            assert_eq!(short.tokens.dim(1)? == 3, ends, "{what}");
            let first = |features: &Features| features.tokens.narrow(1, 0, 3);
            assert_close(&what, &first(&short)?, &first(&whole)?)?;
            for (a, b) in short.kept.layers.iter().zip(&whole.kept.layers) {
                assert_eq!(a.mask.to_vec2::<f32>()?, b.mask.to_vec2::<f32>()?);
            }
            if !matches!(pass, Pass::Train(_)) {
                continue;
            }
            let gradients = |features: &Features, store: &ParamStore| -> Result<Vec<Tensor>> {
                let tokens = first(features)?;
                let mut loss = (&tokens * normal(tokens.dims(), 7)?)?.sum_all()?;
                for layer in &features.kept.layers {
                    loss = (loss + layer.mask.sum_all()?)?;
                }
                let grads = loss.backward()?;
                let parameters = store.all().into_iter();
                Ok(parameters.filter_map(|(_, p)| grads.get(p.var.as_tensor()).cloned()).collect())
            };
            let pair = (gradients(&short, &some)?, gradients(&whole, &every)?);
            assert!(!pair.0.is_empty() && pair.0.len() == pair.1.len(), "{what}");
            pair.0.iter().zip(&pair.1).try_for_each(|(a, b)| assert_close(&what, a, b))?;
        }
    }
    Ok(())
}

#[test]
fn noise_of_zero_is_inference() -> Result<()> {
    for variant in VARIANTS {
        let vit = vit(dispatched(variant, Inference::Threshold))?;
        let inferred = vit.forward(&images(2)?, &Pass::Infer)?;
        assert_eq!(inferred.kept.layers.len(), vit.dispatchers());
        let zeros = inferred.kept.layers.iter().map(|layer| layer.logit.zeros_like());
        let noise: Vec<Tensor> = zeros.collect::<Result<_>>()?;
        let trained = vit.forward(&images(2)?, &Pass::GivenNoise { noise: &noise, tau: 5.0 })?;
        assert_same(&format!("{variant:?}, training without noise"), &trained, &inferred)?;
    }
    Ok(())
}

#[test]
fn skipping_nothing_is_the_dense_model() -> Result<()> {
    let dense = vit(DispatchConfig::default())?.forward(&images(2)?, &Pass::Infer)?;
    assert_eq!((dense.kept.layers.len(), dense.kept.overall()?), (0, 1.0));
    let same = vit(mlp(Inference::Calibrated(1.0)))?;
    same.set_thresholds(vec![f32::NEG_INFINITY; DEPTH]);
    let all = same.forward(&images(2)?, &Pass::Infer)?;
    assert_same("threshold −∞ against dense", &all, &dense)?;
    let dense = bare(&plain(), DispatchConfig::default())?.forward(&images(2)?, &Pass::Infer)?;
    for variant in VARIANTS {
        let vit = bare(&plain(), dispatched(variant, Inference::Calibrated(1.0)))?;
        vit.set_thresholds(vec![f32::NEG_INFINITY; vit.dispatchers()]);
        for pass in [Pass::Infer, Pass::InferMasked] {
            let all = vit.forward(&images(2)?, &pass)?;
            assert_eq!(all.kept.overall()?, 1.0);
            assert_same(&format!("{variant:?}, threshold −∞ against dense"), &all, &dense)?;
        }
        let rng = Rng::new(0);
        let ctx = StepContext { training: true, ..StepContext::still(&rng, &[0, 1]) };
        let complete = vit.forward(&images(2)?, &Pass::Complete(&ctx))?;
        assert_same(&format!("{variant:?}, complete model against dense"), &complete, &dense)?;
    }
    Ok(())
}

#[test]
fn skipping_every_patch_still_works_on_the_prefix() -> Result<()> {
    for variant in VARIANTS {
        let vit = vit(dispatched(variant, Inference::Calibrated(0.0)))?;
        let nobody = vec![f32::INFINITY; vit.dispatchers()];
        vit.set_thresholds(nobody);
        let gathered = vit.forward(&images(2)?, &Pass::Infer)?;
        assert_eq!(gathered.kept.overall()?, 0.0);
        assert_same("nothing kept", &gathered, &vit.forward(&images(2)?, &Pass::InferMasked)?)?;
        let again = vit.forward(&images(2)?, &Pass::Infer)?;
        assert_eq!(
            again.tokens.to_vec3::<f32>()?,
            gathered.tokens.to_vec3::<f32>()?,
            "inference is deterministic"
        );
    }
    Ok(())
}

#[test]
fn layers_without_a_token_are_the_identity() -> Result<()> {
    let patches = BackboneConfig { cls_token: false, reg_tokens: 0, ..plain() };
    for pass in [Pass::Infer, Pass::InferMasked] {
        let vit = bare(&patches, dispatched(Variant::Layer, Inference::Calibrated(0.0)))?;
        vit.set_thresholds(vec![f32::INFINITY; DEPTH]);
        let mut seen = Vec::new();
        vit.visit(&images(2)?, &pass, |_, tokens| {
            seen.push(tokens.to_vec3::<f32>()?);
            Ok(())
        })?;
        assert!(seen.len() == DEPTH && seen.iter().all(|tokens| *tokens == seen[0]));
    }
    Ok(())
}

#[test]
fn a_row_alone_is_the_row_in_a_batch_in_any_order() -> Result<()> {
    let by =
        |variant, select| DispatchConfig { select, ..dispatched(variant, Inference::Threshold) };
    let mut cases = vec![mlp(Inference::TopK(0.5)), by(Variant::Mlp, Select::Random)];
    cases.extend(VARIANTS.map(|variant| by(variant, Select::Learned)));
    cases.extend([Select::Sample, Select::RandomSample].map(|select| by(Variant::Layer, select)));
    for dispatch in cases {
        let what =
            format!("{:?}, {:?}, {:?}", dispatch.variant, dispatch.select, dispatch.inference);
        let vit = vit(dispatch)?;
        let images = images(3)?;
        let batch = vit.forward(&images, &Pass::Infer)?;
        let alone = vit.forward(&images.narrow(0, 1, 1)?, &Pass::Infer)?;
        assert_close(&format!("{what}, alone"), &alone.tokens, &batch.tokens.narrow(0, 1, 1)?)?;
        let order = Tensor::new(&[2u32, 0, 1], &Device::Cpu)?;
        let moved = vit.forward(&images.index_select(&order, 0)?, &Pass::Infer)?;
        assert_close(
            &format!("{what}, moved"),
            &moved.tokens,
            &batch.tokens.index_select(&order, 0)?,
        )?;
    }
    Ok(())
}

#[test]
fn dispatch_of_samples_decides_once_for_all_patches_of_an_image() -> Result<()> {
    for select in [Select::Sample, Select::RandomSample] {
        for variant in VARIANTS {
            let vit = vit(DispatchConfig { select, ..dispatched(variant, Inference::Threshold) })?;
            let gathered = vit.forward(&images(8)?, &Pass::Infer)?;
            assert_same("samples", &gathered, &vit.forward(&images(8)?, &Pass::InferMasked)?)?;
            let mut shares = Vec::new();
            for layer in &gathered.kept.layers {
                for image in layer.mask.to_vec2::<f32>()? {
                    assert!(image.iter().all(|&m| m == image[0]));
                    shares.push(image[0]);
                }
            }
            assert!(shares.contains(&0.0) && shares.contains(&1.0), "{variant:?}, {select:?}");
        }
    }
    Ok(())
}

#[test]
fn a_sample_is_judged_by_the_mean_of_its_patches() -> Result<()> {
    let tokens = vit(mlp(Inference::Threshold))?.forward(&images(3)?, &Pass::Infer)?;
    let config = DispatchConfig { select: Select::Sample, ..mlp(Inference::Threshold) };
    let sample = vit(config)?.forward(&images(3)?, &Pass::Infer)?;
    let mean = tokens.kept.layers[0].logit.mean_keepdim(1)?;
    let logit = &sample.kept.layers[0].logit;
    assert_close("logit of the sample", logit, &mean.broadcast_as(logit.shape())?)
}

#[test]
fn a_random_dispatcher_keeps_its_share_and_other_tokens_in_every_layer() -> Result<()> {
    let random = DispatchConfig { select: Select::Random, ..mlp(Inference::Calibrated(0.3)) };
    let vit = vit(random)?;
    let kept = vit.forward(&images(8)?, &Pass::Infer)?.kept;
    // 8 images × 48 patches × 4 layers: a standard deviation of 0.012.
    assert!((kept.overall()? - 0.3).abs() < 0.05, "{}", kept.overall()?);
    assert_ne!(kept.layers[0].mask.to_vec2::<f32>()?, kept.layers[1].mask.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn calibration_meets_its_budget_and_keeps_the_preference_between_layers() -> Result<()> {
    let unset = vit(mlp(Inference::Calibrated(0.5)))?;
    assert!(unset.needs_thresholds());
    let refusal = unset.forward(&images(1)?, &Pass::Infer).err().map(|error| error.to_string());
    assert!(refusal.is_some_and(|reason| reason.contains("calibrate on training images")));
    let batches = [images(4)?, normal(&[2, 3, 40, 24], 9)?];
    for variant in VARIANTS {
        let vit = vit(dispatched(variant, Inference::Calibrated(0.5)))?;
        for q in [0.3, 0.5, 0.7] {
            let thresholds = calibrate(&vit, &batches, q)?;
            let (mut active, mut all) = (0.0, 0.0);
            for images in &batches {
                let kept = vit.forward(images, &Pass::Infer)?.kept;
                active += kept.overall()? * kept.decisions() as f64;
                all += kept.decisions() as f64;
            }
            println!("{variant:?}, {q}: kept {:.4}, thresholds {thresholds:?}", active / all);
            assert!((active / all - q).abs() <= 0.02, "{variant:?}, {q}: kept {}", active / all);
            let spread = |values: &[f32]| {
                values.iter().fold(f32::MIN, |a, &b| a.max(b))
                    - values.iter().fold(f32::MAX, |a, &b| a.min(b))
            };
            let logits = vit.forward(&batches[0], &Pass::Infer)?.kept.layers[0]
                .logit
                .flatten_all()?
                .to_vec1::<f32>()?;
            assert!(
                spread(&thresholds) < 0.2 * spread(&logits),
                "{variant:?}, {q}: the thresholds settle near a common one"
            );
            assert_eq!(calibrate(&vit, &batches, q)?, thresholds, "calibration is deterministic");
        }
    }
    Ok(())
}

/// Clips of three frames behind adapters that look at the frames before and after.
fn clip_vit(inference: Inference) -> Result<Vit> {
    let st_adapter = Some(StAdapterConfig { bottleneck: 8, kernel: [3, 3, 3] });
    tuned_as(&plain(), mlp(inference), TuningConfig { st_adapter, ..TuningConfig::default() })
}

#[test]
fn masking_and_gathering_agree_on_clips() -> Result<()> {
    for inference in [Inference::Threshold, Inference::TopK(0.3)] {
        let vit = clip_vit(inference)?;
        let gathered = vit.forward_clips(&images(6)?, 3, &Pass::Infer)?;
        let masked = vit.forward_clips(&images(6)?, 3, &Pass::InferMasked)?;
        let kept = gathered.kept.overall()?;
        assert!((0.1..0.9).contains(&kept), "a case in which {kept} is kept shows little");
        assert_same("gathered against masked", &gathered, &masked)?;
        let alone = vit.forward_clips(&images(6)?.narrow(0, 3, 3)?, 3, &Pass::Infer)?;
        assert_close("a clip alone", &alone.tokens, &gathered.tokens.narrow(0, 3, 3)?)?;
        let still = vit.forward(&images(6)?, &Pass::Infer)?;
        let moved = (&still.tokens - &gathered.tokens)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(moved > 1e-2, "the frames do not see each other: {moved}");
    }
    let refusal = clip_vit(Inference::Threshold)?.forward_clips(&images(4)?, 3, &Pass::Infer);
    assert!(refusal.err().unwrap().to_string().contains("no whole clips of 3 frames"));
    Ok(())
}

#[test]
fn calibration_meets_its_budget_on_clips() -> Result<()> {
    let vit = clip_vit(Inference::Calibrated(0.5))?;
    calibrate_clips(&vit, &[images(6)?], 3, 0.5)?;
    let kept = vit.forward_clips(&images(6)?, 3, &Pass::Infer)?.kept.overall()?;
    assert!((kept - 0.5).abs() <= 0.02, "budget 0.5 on clips: kept {kept}");
    Ok(())
}

#[test]
fn merged_tokens_are_dispatched_and_calibrated_like_others() -> Result<()> {
    let config = |inference| DispatchConfig { tome: Some(TomeConfig { r: 7 }), ..mlp(inference) };
    let build = |inference| -> Result<Vit> {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
        Vit::new(
            &plain(),
            &config(inference),
            &TuningConfig::default(),
            &Reads::all(&[]),
            &store.root(),
        )
    };
    let vit = build(Inference::Threshold)?;
    let (gathered, masked) =
        (vit.forward(&images(3)?, &Pass::Infer)?, vit.forward(&images(3)?, &Pass::InferMasked)?);
    // 3 + 48 tokens, 7 less in every block.
    assert_eq!(gathered.tokens.dims(), [3, 51 - 7 * DEPTH, 48]);
    assert_close("merged, gathered against masked", &gathered.tokens, &masked.tokens)?;
    let alone = vit.forward(&images(3)?.narrow(0, 1, 1)?, &Pass::Infer)?;
    assert_close("merged, alone", &alone.tokens, &gathered.tokens.narrow(0, 1, 1)?)?;
    let vit = build(Inference::Calibrated(0.4))?;
    calibrate(&vit, &[images(4)?], 0.4)?;
    let kept = vit.forward(&images(4)?, &Pass::Infer)?.kept.overall()?;
    assert!((kept - 0.4).abs() < 0.02, "{kept}");
    Ok(())
}

/// With and without padding of the grid, of either kind, and with relative positions.
fn windowed_kinds() -> [BackboneConfig; 4] {
    use WindowPadding::{Images, Tokens};
    [
        windows(2, Tokens, None),
        windows(5, Tokens, None),
        windows(5, Tokens, Some([6, 5])),
        windows(5, Images, Some([10, 10])),
    ]
}

#[test]
fn masking_and_gathering_agree_in_windows() -> Result<()> {
    for cfg in windowed_kinds() {
        // Relative positions tie the attention to all places.
        let variants = if cfg.rel_pos.is_some() { &VARIANTS[..1] } else { &VARIANTS };
        for (&variant, inference) in variants.iter().flat_map(|v| {
            [Inference::Threshold, Inference::TopK(0.3)].map(|inference| (v, inference))
        }) {
            let vit = build(&cfg, dispatched(variant, inference), BackboneTuning::Frozen)?;
            let gathered = vit.forward(&images(3)?, &Pass::Infer)?;
            let masked = vit.forward(&images(3)?, &Pass::InferMasked)?;
            let kept = gathered.kept.overall()?;
            assert!((0.1..0.9).contains(&kept), "a case in which {kept} is kept shows little");
            assert_same(&format!("{variant:?}, gathered against masked"), &gathered, &masked)?;
            let alone = vit.forward(&images(3)?.narrow(0, 1, 1)?, &Pass::Infer)?;
            assert_close("alone", &alone.tokens, &gathered.tokens.narrow(0, 1, 1)?)?;
            assert_eq!((alone.grid, alone.prefix), ((6, 8), 0));
            assert_eq!(alone.maps[0].dims(), [1, 48, 6, 8]);
            assert_eq!(alone.kept.token_map(alone.grid)?[0].dim(), (6, 8));
        }
    }
    Ok(())
}

#[test]
fn skipping_nothing_in_windows_is_the_dense_model() -> Result<()> {
    for cfg in windowed_kinds() {
        let frozen = BackboneTuning::Frozen;
        let dense = build(&cfg, DispatchConfig::default(), frozen)?;
        let dense = dense.forward(&images(2)?, &Pass::Infer)?;
        let dispatched = build(&cfg, mlp(Inference::Calibrated(1.0)), frozen)?;
        dispatched.set_thresholds(vec![f32::NEG_INFINITY; DEPTH]);
        let all = dispatched.forward(&images(2)?, &Pass::Infer)?;
        assert_same("threshold −∞ against dense", &all, &dense)?;
        calibrate(&dispatched, &[images(2)?], 0.5)?;
        let kept = dispatched.forward(&images(2)?, &Pass::Infer)?.kept.overall()?;
        assert!((kept - 0.5).abs() <= 0.02, "budget 0.5 in windows: kept {kept}");
    }
    Ok(())
}

#[test]
fn a_window_as_large_as_the_image_is_no_window() -> Result<()> {
    let square = normal(&[2, 3, 24, 24], 5)?;
    let frozen = BackboneTuning::Frozen;
    let cfg = windows(6, WindowPadding::Tokens, Some([6, 6]));
    let windowed = build(&cfg, mlp(Inference::Threshold), frozen)?;
    let cfg = BackboneConfig { window: None, ..cfg };
    let global = build(&cfg, mlp(Inference::Threshold), frozen)?;
    let features = windowed.forward(&square, &Pass::Infer)?;
    assert_same("one window", &features, &global.forward(&square, &Pass::Infer)?)
}

#[test]
fn frozen_half_blocks_in_windows_have_the_gradient_of_trained_ones() -> Result<()> {
    for cfg in windowed_kinds() {
        let image = Var::from_tensor(&images(2)?)?;
        let gradient = |tuned| -> Result<(Tensor, Tensor)> {
            let vit = build(&cfg, mlp(Inference::Threshold), tuned)?;
            let tokens = vit.forward(&image, &Pass::InferMasked)?.tokens;
            let grads = (&tokens * normal(tokens.dims(), 8)?)?.sum_all()?.backward()?;
            Ok((tokens, grads.get(&image).unwrap().clone()))
        };
        let frozen = gradient(BackboneTuning::Frozen)?;
        let trained = gradient(BackboneTuning::Full)?;
        assert_close("tokens", &frozen.0, &trained.0)?;
        assert_close("gradient of the image", &frozen.1, &trained.1)?;
    }
    Ok(())
}
