//! Scaled dot-product attention.

use candle_core::{Result, Tensor, bail};

use super::softmax;

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
    let parts =
        qkv.reshape((batch, tokens, 3, heads, triple / 3 / heads))?.permute((2, 0, 3, 1, 4))?;
    let bias = match keep {
        // Far below every score, yet finite: 0 · ∞ would be NaN.
        Some(keep) => Some(((keep.detach() - 1.0)? * 1e30)?.reshape((batch, 1, 1, tokens))?),
        None => None,
    };
    let y = attention(&parts.get(0)?, &parts.get(1)?, &parts.get(2)?, bias.as_ref())?;
    y.transpose(1, 2)?.reshape((batch, tokens, triple / 3))
}
