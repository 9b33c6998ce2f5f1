//! The attention half of a block: γ · proj(attention(qkv(LN x))).

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::attention::keys;
use super::attention_tiles::{Heads, Keys, backward, forward};
use super::branch::{add_bias, gradient_product, normalise, normalise_gradient, product};
use super::host::{slice, values};
use super::rows::{for_row_blocks, scratch};
use super::{count, fusible, layer_norm, linear, self_attention};

/// The parameters of an attention half block, each pair (weight, bias); cheap clones of the layers' tensors.
#[derive(Debug, Clone)]
pub struct AttentionBranch {
    /// Of the layer norm, `[C]` each.
    pub norm: (Tensor, Tensor),
    /// Of the layer norm.
    pub eps: f64,
    /// `[3C, C]` and `[3C]`.
    pub qkv: (Tensor, Tensor),
    /// `[C, C]` and `[C]`.
    pub proj: (Tensor, Tensor),
    /// LayerScale, `[C]`.
    pub gamma: Option<Tensor>,
    /// How many heads.
    pub heads: usize,
}

impl AttentionBranch {
    /// γ · proj(attention(qkv(LN x))), without the residual; `x`: `[B, N, C]`; `keep` as in [`self_attention`].
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn forward(&self, x: &Tensor, keep: Option<&Tensor>) -> Result<Tensor> {
        let (batch, tokens, channels) = x.dims3()?;
        let widths = [&self.norm.0, &self.norm.1, &self.proj.1].map(|t| t.elem_count());
        if widths != [channels; 3] || self.qkv.0.dims() != [3 * channels, channels] {
            bail!("attention_branch: {channels} channels do not fit qkv {:?}", self.qkv.0.dims());
        }
        if self.heads == 0 || channels % self.heads != 0 {
            bail!("attention_branch: {channels} channels do not split into {} heads", self.heads);
        }
        let weights = self.weights();
        if fusible(&[x])
            && fusible(&weights)
            && weights.iter().all(|w| !w.track_op() && w.is_contiguous())
        {
            let heads = Heads { batch, tokens, heads: self.heads, width: channels / self.heads };
            let op = Fused {
                branch: self.clone(),
                heads,
                keys: keys(keep, heads)?,
                save: x.track_op(),
                saved: OnceLock::new(),
            };
            return x.contiguous()?.apply_op1(op);
        }
        let normed = layer_norm(x, &self.norm.0, &self.norm.1, self.eps)?;
        let attended =
            self_attention(&linear(&normed, &self.qkv.0, Some(&self.qkv.1))?, self.heads, keep)?;
        let y = linear(&attended, &self.proj.0, Some(&self.proj.1))?;
        match &self.gamma {
            Some(gamma) => y.broadcast_mul(gamma),
            None => Ok(y),
        }
    }

    fn weights(&self) -> Vec<&Tensor> {
        let pairs = [&self.norm, &self.qkv, &self.proj];
        pairs.into_iter().flat_map(|(weight, bias)| [weight, bias]).chain(&self.gamma).collect()
    }
}

/// What the backward pass needs besides the input.
struct Saved {
    qkv: Vec<f32>,
    lse: Vec<f32>,
}

struct Fused {
    branch: AttentionBranch,
    heads: Heads,
    keys: Keys,
    save: bool,
    saved: OnceLock<Saved>,
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "attention_branch"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("attention_branch");
        let (branch, channels) = (&self.branch, self.heads.channels());
        let x = slice(x, layout)?;
        let mut rows = scratch(x.len());
        normalise(|i: usize| &x[i * channels..][..channels], &branch.norm, branch.eps, &mut rows)?;
        let mut qkv = vec![0.0; 3 * x.len()];
        product(&rows, &branch.qkv.0, &mut qkv)?;
        add_bias(&mut qkv, &branch.qkv.1, None)?;
        // The normalised rows are no longer needed: their buffer takes the attention's output.
        let lse = forward(&qkv, self.heads, &self.keys, &mut rows);
        let mut y = vec![0.0; x.len()];
        product(&rows, &branch.proj.0, &mut y)?;
        add_bias(&mut y, &branch.proj.1, branch.gamma.as_ref())?;
        if self.save {
            self.saved.get_or_init(|| Saved { qkv, lse });
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("attention_branch.backward");
        let Some(saved) = self.saved.get() else {
            bail!("attention_branch: the forward pass kept nothing for the gradient")
        };
        let (branch, channels) = (&self.branch, self.heads.channels());
        let grad = grad.contiguous()?;
        let (grad, x_values) = (values(&grad)?, values(x)?);
        let (mut rows, mut dqkv) = (scratch(grad.len()), scratch(3 * grad.len()));
        self.projection_gradient(&grad, &mut rows)?;
        if matches!(self.keys, Keys::Some(_)) {
            dqkv.fill(0.0);
        }
        backward((&saved.qkv, &saved.lse), &rows, self.heads, &self.keys, &mut dqkv);
        gradient_product(&dqkv, &branch.qkv.0, &mut rows)?;
        let mut dx = vec![0.0; grad.len()];
        let row = |i: usize| Some(&rows[i * channels..][..channels]);
        normalise_gradient(&x_values, row, &branch.norm, branch.eps, &mut dx)?;
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

impl Fused {
    /// The gradient of the attention's output for that of the branch.
    fn projection_gradient(&self, grad: &[f32], rows: &mut [f32]) -> Result<()> {
        let Some(gamma) = &self.branch.gamma else {
            return gradient_product(grad, &self.branch.proj.0, rows);
        };
        let (gamma, mut scaled) = (values(gamma)?, scratch(grad.len()));
        let gamma = &*gamma;
        for_row_blocks(&mut scaled, gamma.len(), |first, block| {
            let grad = grad[first * gamma.len()..].chunks_exact(gamma.len());
            for (to, grad) in block.chunks_exact_mut(gamma.len()).zip(grad) {
                to.iter_mut().zip(grad).zip(gamma).for_each(|((to, g), scale)| *to = g * scale);
            }
        });
        gradient_product(&scaled, &self.branch.proj.0, rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    /// A branch with weights of about the size that trained ones have.
    fn branch(
        channels: usize,
        heads: usize,
        make: impl Fn(&[usize], u64) -> Result<Tensor>,
    ) -> Result<AttentionBranch> {
        let small = |shape: &[usize], seed| make(shape, seed)? * (channels as f64).powf(-0.5);
        Ok(AttentionBranch {
            norm: (make(&[channels], 11)?, make(&[channels], 12)?),
            eps: 1e-6,
            qkv: (small(&[3 * channels, channels], 13)?, make(&[3 * channels], 14)?),
            proj: (small(&[channels, channels], 15)?, make(&[channels], 16)?),
            gamma: Some(make(&[channels], 17)?),
            heads,
        })
    }

    #[test]
    fn the_composed_gradients_are_right() -> Result<()> {
        let branch = branch(6, 2, normal)?;
        check(|t| branch.forward(&t[0], None), &[normal(&[2, 4, 6], 1)?])
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        for (batch, tokens, channels, heads) in [(2, 197, 384, 6), (1, 325, 768, 12), (3, 5, 12, 3)]
        {
            let mut branch = branch(channels, heads, random)?;
            let x = random(&[batch, tokens, channels], 1)?;
            // Rounding of three products and a softmax in a row, relative to the largest value.
            assert_twins("attention_branch", 3e-5, std::slice::from_ref(&x), |t| {
                branch.forward(&t[0], None)
            })?;
            branch.gamma = None;
            let keep: Vec<f32> = (0..batch * tokens)
                .map(|i| f32::from(u8::from(i % tokens == 0 || i % 3 == 1)))
                .collect();
            let keep = Tensor::from_vec(keep, (batch, tokens), &Device::Cpu)?;
            assert_twins("attention_branch", 3e-5, &[x], |t| branch.forward(&t[0], Some(&keep)))?;
        }
        Ok(())
    }

    #[test]
    fn frozen_weights_get_no_gradient_and_tracked_ones_do() -> Result<()> {
        let mut branch = branch(6, 2, random)?;
        let x = candle_core::Var::from_tensor(&random(&[1, 4, 6], 1)?)?;
        let grads = branch.forward(&x, None)?.sum_all()?.backward()?;
        assert!(grads.get(&branch.qkv.0).is_none() && grads.get(&x).is_some());
        let weight = candle_core::Var::from_tensor(&branch.qkv.0)?;
        branch.qkv.0 = weight.as_tensor().clone();
        let tracked = branch.forward(&x, None)?.sum_all()?.backward()?;
        assert!(tracked.get(&weight).is_some() && tracked.get(&branch.proj.0).is_none());
        Ok(())
    }
}
