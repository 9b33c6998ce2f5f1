//! The kind `temporal_head`.

use anyhow::Result;
use candle_core::{DType, Var};
use rescatter::ops::{self, CrossEntropy};
use rescatter::params::Init;
use rescatter_heads::temporal::QueryPool;

use super::{Fixture, Outputs};

/// The query over all frames and the classifier, behind the norm that in a whole model is the backbone's last.
pub(super) fn head(fixture: &Fixture) -> Result<Option<Outputs>> {
    let (dim, classes): (usize, usize) = (fixture.hyper("dim")?, fixture.hyper("num_classes")?);
    let store = fixture.store();
    let (norm, head) = (store.root().pp("norm"), store.root().pp("head"));
    let norm =
        [norm.param("weight", dim, Init::Const(1.0))?, norm.param("bias", dim, Init::Const(0.0))?];
    let pool = QueryPool::new(dim, fixture.hyper("heads")?, &store.root())?;
    let head = [
        head.param("weight", (classes, dim), Init::Const(0.0))?,
        head.param("bias", classes, Init::Const(0.0))?,
    ];
    fixture.load_into(&store)?;
    let tokens = Var::from_tensor(&fixture.input("tokens")?)?;
    let normed = ops::layer_norm(&tokens, &norm[0], &norm[1], 1e-6)?;
    let pooled = pool.forward(&normed, fixture.hyper("frames")?)?;
    let logits = ops::linear(&pooled, &head[0], Some(&head[1]))?;
    let labels = fixture.input("labels")?.to_dtype(DType::U32)?;
    let (sum, count) = ops::cross_entropy(&logits, &labels, &CrossEntropy::default())?;
    let loss = (sum / count)?;
    let grads = loss.backward()?;
    let mut outputs = Outputs::from([
        ("output.pooled".into(), pooled),
        ("output.logits".into(), logits),
        ("output.loss".into(), loss),
    ]);
    let grad = grads.get(&tokens).cloned().map_or_else(|| tokens.zeros_like(), Ok)?;
    outputs.insert("grad.input.tokens".into(), grad);
    fixture.collect_grads(&store, &grads, &mut outputs)?;
    Ok(Some(outputs))
}
