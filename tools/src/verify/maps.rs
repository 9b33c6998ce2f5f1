//! The kind `resize`: interpolation, pooling and the transposed convolution.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candle_core::{Tensor, Var};
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
