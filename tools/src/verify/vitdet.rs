//! The kind `vitdet`: a backbone with windows and relative positions, forward and backward.

use anyhow::Result;
use candle_core::Var;
use rescatter::backbone::{Pass, Reads, Vit};
use rescatter::config::{
    BackboneConfig, BackboneTuning, DispatchConfig, RelPosConfig, TuningConfig, WindowConfig,
    WindowPadding,
};

use super::{Fixture, Outputs};

fn config(fixture: &Fixture) -> Result<BackboneConfig> {
    Ok(BackboneConfig {
        arch: None,
        embed_dim: Some(fixture.hyper("dim")?),
        depth: Some(fixture.hyper("depth")?),
        num_heads: Some(fixture.hyper("heads")?),
        mlp_ratio: Some(fixture.hyper("mlp_ratio")?),
        patch_size: fixture.hyper("patch_size")?,
        layer_scale: false,
        cls_token: false,
        reg_tokens: 0,
        no_embed_class: false,
        pos_embed_grid: fixture.hyper("grid")?,
        window: Some(WindowConfig {
            size: fixture.hyper("window")?,
            global_blocks: fixture.hyper("global_blocks")?,
            padding: WindowPadding::Tokens,
        }),
        rel_pos: fixture.hyper::<Option<_>>("rel_pos")?.map(|grid| RelPosConfig { grid }),
        weights: None,
        drop_path: 0.0,
    })
}

/// `vitdet`: with all parameters trained for the gradients, which goes through the operations one by one, and frozen for
/// the tokens, which goes through the fused half blocks.
pub(super) fn vitdet(fixture: &Fixture) -> Result<Option<Outputs>> {
    let (cfg, dispatch) = (config(fixture)?, DispatchConfig::default());
    let image = Var::from_tensor(&fixture.input("image")?)?;
    let mut outputs = Outputs::new();
    let store = fixture.store();
    let tuning = TuningConfig { backbone: BackboneTuning::Full, ..TuningConfig::default() };
    let trained = Vit::new(&cfg, &dispatch, &tuning, &Reads::all(&[]), &store.root())?;
    fixture.load_into(&store)?;
    let norm = trained.forward(&image, &Pass::InferMasked)?.tokens;
    let grads = (&norm * fixture.input("grad_out.norm")?)?.sum_all()?.backward()?;
    fixture.collect_grads(&store, &grads, &mut outputs)?;
    if let Some(grad) = grads.get(&image) {
        outputs.insert("grad.input.image".into(), grad.clone());
    }
    outputs.insert("output.norm".into(), norm);
    let frozen =
        Vit::new(&cfg, &dispatch, &TuningConfig::default(), &Reads::all(&[]), &store.root())?;
    frozen.visit(&image, &Pass::Infer, |i, tokens| {
        outputs.insert(format!("output.tokens.{i}"), tokens.clone());
        Ok(())
    })?;
    Ok(Some(outputs))
}
