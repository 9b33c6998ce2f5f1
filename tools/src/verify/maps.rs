//! The kinds `resize` (interpolation, pooling and the transposed convolution) and `simple_fpn`.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candle_core::{Tensor, Var};
use rescatter::backbone::pyramid::SimplePyramid;
use rescatter::ops::{self, Interpolation};

use super::{Fixture, Outputs};

/// `resize`: the output and the gradients for the given upstream gradient.
pub(super) fn resize(fixture: &Fixture) -> Result<Option<Outputs>> {
    let x = Var::from_tensor(&fixture.input("x")?)?;
    let weights =
        fixture.weights().into_iter().map(|(name, tensor)| Ok((name, Var::from_tensor(tensor)?)));
    let weights: BTreeMap<&str, Var> = weights.collect::<Result<_>>()?;
    let y = match fixture.hyper::<String>("op")?.as_str() {
        "nearest" => ops::resize(&x, fixture.hyper("size")?, Interpolation::Nearest)?,
        "bilinear" => {
            let mode = Interpolation::Bilinear { align_corners: fixture.hyper("align_corners")? };
            ops::resize(&x, fixture.hyper("size")?, mode)?
        }
        "bicubic" => {
            let mode = Interpolation::Bicubic { align_corners: fixture.hyper("align_corners")? };
            ops::resize(&x, fixture.hyper("size")?, mode)?
        }
        "adaptive_avg_pool2d" => ops::adaptive_avg_pool2d(&x, fixture.hyper("size")?)?,
        "max_pool2d" => ops::max_pool2d(
            &x,
            fixture.hyper("kernel")?,
            fixture.hyper("stride")?,
            fixture.hyper("padding")?,
        )?,
        "conv_transpose2d" => match (weights.get("weight"), weights.get("bias")) {
            (Some(weight), bias) => ops::conv_transpose2x2(&x, weight, bias.map(Var::as_tensor))?,
            (None, _) => bail!("the file has no `weights.weight`"),
        },
        op => bail!("unknown op `{op}`"),
    };
    let grads = (&y * fixture.input("grad_out")?)?.sum_all()?.backward()?;
    let grad = |var: &Var| -> Result<Tensor> {
        Ok(grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?)
    };
    let mut outputs = Outputs::from([("output.y".into(), y), ("grad.input.x".into(), grad(&x)?)]);
    for (name, weight) in &weights {
        outputs.insert(format!("grad.{name}"), grad(weight)?);
    }
    Ok(Some(outputs))
}

/// `simple_fpn`: p2 … p6 and all gradients for the given upstream ones.
pub(super) fn simple_fpn(fixture: &Fixture) -> Result<Option<Outputs>> {
    let store = fixture.store();
    let (dim, channels) = (fixture.hyper("dim")?, fixture.hyper("channels")?);
    let pyramid = SimplePyramid::new(dim, channels, &store.root())?;
    fixture.load_into(&store)?;
    let x = Var::from_tensor(&fixture.input("feature")?)?;
    let levels = pyramid.forward(&x)?;
    let mut outputs = Outputs::new();
    let mut loss = Tensor::zeros((), x.dtype(), x.device())?;
    for (i, level) in levels.into_iter().enumerate() {
        let name = format!("p{}", i + 2);
        let upstream = fixture.input(&format!("grad_out.{name}"))?;
        loss = (loss + (&level * upstream)?.sum_all()?)?;
        outputs.insert(format!("output.{name}"), level);
    }
    let grads = loss.backward()?;
    let grad = grads.get(&x).cloned().map_or_else(|| x.zeros_like(), Ok)?;
    outputs.insert("grad.input.feature".into(), grad);
    fixture.collect_grads(&store, &grads, &mut outputs)?;
    Ok(Some(outputs))
}
