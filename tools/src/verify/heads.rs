//! The kinds `uper_head` and `uper_head_train`.

use anyhow::Result;
use candle_core::{DType, Tensor, Var};
use rescatter::backbone::pyramid::Level;
use rescatter::head::StepContext;
use rescatter::ops::{self, CrossEntropy};
use rescatter::params::{ParamStore, Role};
use rescatter::rng::Rng;
use rescatter::world::World;
use rescatter_heads::upernet::{DecodeHead, DecodeShape, FcnHead};

use super::{Fixture, Outputs};

/// Factor on the auxiliary loss; mmsegmentation's, and that of every file of the kind.
const AUX_WEIGHT: f64 = 0.4;

/// Decode head and auxiliary head with the file's weights.
struct Heads {
    decode: DecodeHead,
    auxiliary: FcnHead,
    store: ParamStore,
}

impl Heads {
    fn new(fixture: &Fixture) -> Result<Self> {
        let input: Vec<usize> = fixture.hyper("in_channels")?;
        let pool_scales: Vec<usize> = fixture.hyper("pool_scales")?;
        let classes = fixture.hyper("num_classes")?;
        let channels = fixture.hyper("channels")?;
        let shape = DecodeShape {
            input: &input,
            channels,
            pool_scales: &pool_scales,
            dropout: 0.0,
            classes,
        };
        let store = fixture.store();
        let aux = (input[2], fixture.hyper("aux_channels")?, classes);
        let decode = DecodeHead::new(&shape, &store.root().pp("decode_head"))?;
        let auxiliary = FcnHead::new(aux, 0.0, &store.root().pp("auxiliary_head"))?;
        fixture.load_into(&store)?;
        Ok(Self { decode, auxiliary, store })
    }

    fn forward(&self, levels: &[Tensor], ctx: Option<&StepContext>) -> Result<(Tensor, Tensor)> {
        let maps: Vec<Level> = levels.iter().cloned().map(Level::Map).collect();
        Ok((self.decode.forward(&maps, ctx)?, self.auxiliary.forward(&levels[2], ctx)?))
    }
}

/// `uper_head`: the logits of both heads.
pub(super) fn evaluation(fixture: &Fixture) -> Result<Option<Outputs>> {
    let levels =
        (0..4).map(|i| fixture.input(&format!("feature.{i}"))).collect::<Result<Vec<_>>>()?;
    let (logits, aux) = Heads::new(fixture)?.forward(&levels, None)?;
    Ok(Some(Outputs::from([("output.logits".into(), logits), ("output.aux_logits".into(), aux)])))
}

/// `uper_head_train`: losses, gradients, and the running statistics after the step.
pub(super) fn training(fixture: &Fixture) -> Result<Option<Outputs>> {
    let heads = Heads::new(fixture)?;
    let input = |i: usize| Ok(Var::from_tensor(&fixture.input(&format!("feature.{i}"))?)?);
    let vars = (0..4).map(input).collect::<Result<Vec<_>>>()?;
    let levels: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ctx = StepContext {
        training: true,
        update_stats: true,
        rng: &Rng::new(0),
        step: 0,
        progress: 0.0,
        samples: &[],
        world: &World::SINGLE,
    };
    let (logits, aux) = heads.forward(&levels, Some(&ctx))?;
    let labels = fixture.input("labels")?.to_dtype(DType::U32)?;
    let mean_ce = |logits: &Tensor| -> Result<Tensor> {
        let (_, h, w) = labels.dims3()?;
        let resized = ops::resize_bilinear(logits, (h, w))?;
        let (sum, count) = ops::cross_entropy(&resized, &labels, &CrossEntropy::default())?;
        Ok((sum / count)?)
    };
    let (decode_loss, aux_loss) = (mean_ce(&logits)?, mean_ce(&aux)?);
    let loss = (&decode_loss + (&aux_loss * AUX_WEIGHT)?)?;
    let grads = loss.backward()?;
    let mut outputs = Outputs::from([
        ("output.logits".into(), logits),
        ("output.aux_logits".into(), aux),
        ("output.loss_decode".into(), decode_loss),
        ("output.loss_aux".into(), aux_loss),
        ("output.loss".into(), loss),
    ]);
    for (name, var) in heads.store.with_role(Role::Buffer) {
        outputs.insert(format!("output.after.{name}"), var.as_detached_tensor());
    }
    for (i, var) in vars.iter().enumerate() {
        let grad = grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?;
        outputs.insert(format!("grad.input.feature.{i}"), grad);
    }
    fixture.collect_grads(&heads.store, &grads, &mut outputs)?;
    Ok(Some(outputs))
}
