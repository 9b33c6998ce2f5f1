//! Scaled dot-product attention.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::attention_tiles::{Heads, Keys, backward, forward};
use super::host::{slice, values};
use super::{count, fusible, softmax};

/// softmax(q kᵀ / √D + bias) v; `q`: `[B, H, Nq, D]`, `k` and `v`: `[B, H, Nk, D]`, `bias` broadcastable to
/// `[B, H, Nq, Nk]` → `[B, H, Nq, D]`.
///
/// # Errors
/// If the shapes do not agree.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let width = q.dims4()?.3;
    let scores =
        (q.contiguous()? * (width as f64).powf(-0.5))?.matmul(&k.transpose(2, 3)?.contiguous()?)?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores,
    };
    softmax(&scores)?.matmul(&v.contiguous()?)
}

/// Attention among the tokens of each image; `qkv`: `[B, N, 3C]`, a row holding q, k and v, each `heads × C/heads`;
/// `keep`: `[B, N]`, 0 or 1, says which tokens may be keys (no gradient passes through it; every image must keep one)
/// → `[B, N, C]`.
///
/// # Errors
/// If the shapes do not agree.
pub fn self_attention(qkv: &Tensor, heads: usize, keep: Option<&Tensor>) -> Result<Tensor> {
    let (batch, tokens, triple) = qkv.dims3()?;
    if heads == 0 || triple % (3 * heads) != 0 {
        bail!("self_attention: {triple} channels do not split into q, k and v of {heads} heads");
    }
    let width = triple / 3 / heads;
    if fusible(&[qkv]) {
        let heads = Heads { batch, tokens, heads, width };
        let op = SelfAttention {
            heads,
            keys: keys(keep, heads)?,
            save: qkv.track_op(),
            lse: OnceLock::new(),
        };
        return qkv.contiguous()?.apply_op1(op);
    }
    let parts = qkv.reshape((batch, tokens, 3, heads, width))?.permute((2, 0, 3, 1, 4))?;
    let bias = match keep {
        // Far below every score, yet finite: 0 · ∞ would be NaN.
        Some(keep) => Some(((keep.detach() - 1.0)? * 1e30)?.reshape((batch, 1, 1, tokens))?),
        None => None,
    };
    let y = attention(&parts.get(0)?, &parts.get(1)?, &parts.get(2)?, bias.as_ref())?;
    y.transpose(1, 2)?.reshape((batch, tokens, triple / 3))
}

/// The tokens of each image that `keep` lets be keys.
pub(crate) fn keys(keep: Option<&Tensor>, heads: Heads) -> Result<Keys> {
    let Some(keep) = keep else { return Ok(Keys::All) };
    if keep.dims() != [heads.batch, heads.tokens] {
        bail!(
            "self_attention: a key mask {:?} for {} images of {} tokens",
            keep.dims(),
            heads.batch,
            heads.tokens
        );
    }
    let keep = keep.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let kept =
        |row: &Vec<f32>| -> Vec<usize> { (0..row.len()).filter(|&i| row[i] != 0.0).collect() };
    let lists: Vec<Vec<usize>> = keep.iter().map(kept).collect();
    match lists.iter().position(Vec::is_empty) {
        Some(image) => bail!("self_attention: image {image} of the batch keeps no key"),
        None => Ok(Keys::Some(lists)),
    }
}

struct SelfAttention {
    heads: Heads,
    keys: Keys,
    save: bool,
    lse: OnceLock<Vec<f32>>,
}

impl CustomOp1 for SelfAttention {
    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("self_attention");
        let mut y = vec![0.0; self.heads.rows() * self.heads.channels()];
        let lse = forward(slice(qkv, layout)?, self.heads, &self.keys, &mut y);
        if self.save {
            self.lse.get_or_init(|| lse);
        }
        Ok((
            CpuStorage::F32(y),
            (self.heads.batch, self.heads.tokens, self.heads.channels()).into(),
        ))
    }

    fn bwd(&self, qkv: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("self_attention.backward");
        let Some(lse) = self.lse.get() else {
            bail!("self_attention: the forward pass kept nothing for the gradient")
        };
        let grad = grad.contiguous()?;
        let mut dqkv = vec![0.0; qkv.elem_count()];
        backward((&values(qkv)?, lse), &values(&grad)?, self.heads, &self.keys, &mut dqkv);
        Tensor::from_vec(dqkv, qkv.shape(), &Device::Cpu).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    /// Keeps token 0 and about half of the others.
    fn half(batch: usize, tokens: usize, dtype: DType) -> Result<Tensor> {
        let keep: Vec<f32> = (0..batch * tokens)
            .map(|i| f32::from(u8::from(i % tokens == 0 || i * 7 % 5 < 2)))
            .collect();
        Tensor::from_vec(keep, (batch, tokens), &Device::Cpu)?.to_dtype(dtype)
    }

    #[test]
    fn the_composed_gradients_are_right() -> Result<()> {
        let keep = half(2, 5, DType::F64)?;
        check(|t| self_attention(&t[0], 2, None), &[normal(&[2, 5, 18], 1)?])?;
        check(|t| self_attention(&t[0], 2, Some(&keep)), &[normal(&[2, 5, 18], 1)?])?;
        let qkvb =
            [normal(&[1, 2, 3, 4], 1)?, normal(&[1, 2, 5, 4], 2)?, normal(&[1, 2, 5, 4], 3)?];
        let bias = normal(&[1, 1, 3, 5], 4)?;
        check(|t| attention(&t[0], &t[1], &t[2], Some(&t[3])), &[&qkvb[..], &[bias]].concat())
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        // Scores are sums of 64 products and the weights sums of up to 700 exponentials, in another order.
        for (batch, tokens, heads, width) in
            [(2, 197, 12, 64), (1, 325, 6, 64), (1, 700, 2, 64), (3, 1, 2, 5)]
        {
            let qkv = random(&[batch, tokens, 3 * heads * width], 1)?;
            assert_twins("self_attention", 1e-5, &[qkv], |t| self_attention(&t[0], heads, None))?;
        }
        Ok(())
    }

    #[test]
    fn fused_equals_composed_with_a_key_mask() -> Result<()> {
        for (batch, tokens, heads, width) in [(2, 197, 12, 64), (2, 30, 3, 8)] {
            let qkv = random(&[batch, tokens, 3 * heads * width], 1)?;
            let keep = half(batch, tokens, DType::F32)?;
            assert_twins("self_attention", 1e-5, &[qkv], |t| {
                self_attention(&t[0], heads, Some(&keep))
            })?;
        }
        Ok(())
    }

    #[test]
    fn a_token_that_is_no_key_changes_nothing_for_the_others() -> Result<()> {
        let (qkv, keep) = (
            random(&[1, 6, 12], 1)?,
            Tensor::new(&[[1f32, 1.0, 0.0, 1.0, 0.0, 1.0]], &Device::Cpu)?,
        );
        let y = self_attention(&qkv, 2, Some(&keep))?;
        let ids = Tensor::new(&[0u32, 1, 3, 5], &Device::Cpu)?;
        let alone = self_attention(&qkv.index_select(&ids, 1)?, 2, None)?;
        let difference =
            (y.index_select(&ids, 1)? - alone)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(difference < 1e-6, "{difference}");
        Ok(())
    }

    #[test]
    fn an_image_without_keys_is_refused() -> Result<()> {
        let keep = Tensor::new(&[[1f32, 0.0], [0.0, 0.0]], &Device::Cpu)?;
        let error =
            self_attention(&random(&[2, 2, 12], 1)?, 2, Some(&keep)).unwrap_err().to_string();
        assert!(error.contains("image 1 of the batch keeps no key"), "{error}");
        Ok(())
    }
}
