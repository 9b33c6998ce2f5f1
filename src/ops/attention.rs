//! Scaled dot-product attention.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Tensor, bail};

use super::attention_tiles::{Heads, Layer, TableGradient, backward, forward};
use super::host::{slice, values};
use super::product::{is_exact, product};
use super::relative_position::{PlaceTable, RelativePosition};
use super::sequences::Sequences;
use super::{count, fusible, gpu, softmax};

/// softmax(q kᵀ / √D + bias) v; `q`: `[B, H, Nq, D]`, `k` and `v`: `[B, H, Nk, D]`, `bias` broadcastable to
/// `[B, H, Nq, Nk]` → `[B, H, Nq, D]`.
///
/// # Errors
/// If the shapes do not agree.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let width = q.dims4()?.3;
    let scores = product(
        &(q.contiguous()? * (width as f64).powf(-0.5))?,
        &k.transpose(2, 3)?.contiguous()?,
    )?;
    let scores = match bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores,
    };
    product(&softmax(&scores)?, &v.contiguous()?)
}

/// Attention among the tokens of each image; `qkv`: `[B, N, 3C]`, a row holding q, k and v, each `heads × C/heads`;
/// `keep`: `[B, N]` says how many keys a token counts as, 0 or at least 1 (no gradient passes through it) → `[B, N, C]`,
/// zeros in an image without keys.
///
/// # Errors
/// If the shapes do not agree.
pub fn self_attention(qkv: &Tensor, heads: usize, keep: Option<&Tensor>) -> Result<Tensor> {
    let (batch, tokens, triple) = qkv.dims3()?;
    let divided = divide(triple, heads)?;
    if fusible(&[qkv]) {
        let sequences = match keep {
            Some(keep) => Sequences::images(batch, tokens).keeping(keep)?,
            None => Sequences::images(batch, tokens),
        };
        let fused = Fused::new(divided, sequences, qkv);
        return qkv.contiguous()?.apply_op1(SelfAttention(fused));
    }
    let by_kernel = gpu::runs(&[qkv]) && gpu::attends(divided.width) && is_exact();
    let Some(keep) = keep.map(Tensor::detach) else {
        if by_kernel {
            let bias = Tensor::zeros((batch, tokens), qkv.dtype(), qkv.device())?;
            return gpu::self_attention(qkv, (heads, divided.width), &bias);
        }
        return unfused(qkv, divided, |_| Ok(None));
    };
    let may_be_key = keep.clamp(0.0, 1.0)?;
    // Far below every score, yet finite: 0 · ∞ would be NaN. To be n keys is to add ln n to the score of one.
    let bias = (((&may_be_key - 1.0)? * 1e30)? + keep.maximum(1.0)?.log()?)?;
    if by_kernel {
        return gpu::self_attention(qkv, (heads, divided.width), &bias);
    }
    let bias = bias.reshape((batch, 1, 1, tokens))?;
    let any = may_be_key.max(1)?.reshape((batch, 1, 1))?;
    unfused(qkv, divided, |_| Ok(Some(bias)))?.broadcast_mul(&any)
}

/// [`self_attention`] of whole grids of tokens, row by row, with relative positions; the tables must be for this grid.
///
/// # Errors
/// If the shapes do not agree.
pub fn relative_self_attention(
    qkv: &Tensor,
    heads: usize,
    positions: &RelativePosition,
) -> Result<Tensor> {
    let (batch, tokens, triple) = qkv.dims3()?;
    let divided = divide(triple, heads)?;
    let RelativePosition { height, width } = positions;
    let grid = positions.grid()?;
    if tokens != grid.0 * grid.1 || [height.dim(1)?, width.dim(1)?] != [divided.width; 2] {
        let dims = (height.dims(), width.dims());
        bail!(
            "relative_self_attention: tables {dims:?} do not fit {tokens} tokens and heads of {} channels",
            divided.width
        );
    }
    if fusible(&[qkv, height, width]) {
        let fused = Fused::new(divided, Sequences::windows(batch, grid, grid), qkv);
        let save = fused.save || height.track_op() || width.track_op();
        let op = RelativeSelfAttention { fused: Fused { save, ..fused }, grid };
        return qkv.contiguous()?.apply_op3(&height.contiguous()?, &width.contiguous()?, op);
    }
    unfused(qkv, divided, |q| positions.scores(q).map(Some))
}

fn divide(triple: usize, heads: usize) -> Result<Heads> {
    if heads == 0 || !triple.is_multiple_of(3 * heads) {
        bail!("self_attention: {triple} channels do not split into q, k and v of {heads} heads");
    }
    Ok(Heads { count: heads, width: triple / 3 / heads })
}

/// `bias` gets the queries `[B, H, N, D]`.
fn unfused(
    qkv: &Tensor,
    heads: Heads,
    bias: impl FnOnce(&Tensor) -> Result<Option<Tensor>>,
) -> Result<Tensor> {
    let (batch, tokens, _) = qkv.dims3()?;
    let parts =
        qkv.reshape((batch, tokens, 3, heads.count, heads.width))?.permute((2, 0, 3, 1, 4))?;
    let q = parts.get(0)?.contiguous()?;
    let y = attention(&q, &parts.get(1)?, &parts.get(2)?, bias(&q)?.as_ref())?;
    y.transpose(1, 2)?.reshape((batch, tokens, heads.channels()))
}

/// What the kernels of this file share.
struct Fused {
    heads: Heads,
    sequences: Sequences,
    save: bool,
    lse: OnceLock<Vec<f32>>,
}

impl Fused {
    fn new(heads: Heads, sequences: Sequences, qkv: &Tensor) -> Self {
        Self { heads, sequences, save: qkv.track_op(), lse: OnceLock::new() }
    }

    fn layer<'a>(&'a self, qkv: &'a [f32], places: Option<&'a PlaceTable>) -> Layer<'a> {
        Layer { qkv, heads: self.heads, sequences: &self.sequences, padding: &[], places }
    }

    fn forward(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        places: Option<&PlaceTable>,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, _) = layout.shape().dims3()?;
        let mut y = vec![0.0; batch * tokens * self.heads.channels()];
        let lse = forward(self.layer(slice(qkv, layout)?, places), &mut y);
        if self.save {
            self.lse.get_or_init(|| lse);
        }
        Ok((CpuStorage::F32(y), (batch, tokens, self.heads.channels()).into()))
    }

    fn backward(
        &self,
        qkv: &Tensor,
        grad: &Tensor,
        places: Option<&PlaceTable>,
        wanted: TableGradient,
    ) -> Result<(Tensor, Option<Vec<f32>>)> {
        let Some(lse) = self.lse.get() else {
            bail!("self_attention: the forward pass kept nothing for the gradient")
        };
        let grad = grad.contiguous()?;
        let mut dqkv = vec![0.0; qkv.elem_count()];
        let layer_values = values(qkv)?;
        let layer = self.layer(&layer_values, places);
        let dtable = backward(layer, lse, &values(&grad)?, &mut dqkv, wanted);
        Ok((Tensor::from_vec(dqkv, qkv.shape(), &Device::Cpu)?, dtable))
    }
}

struct SelfAttention(Fused);

impl CustomOp1 for SelfAttention {
    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("self_attention");
        self.0.forward(qkv, layout, None)
    }

    fn bwd(&self, qkv: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("self_attention.backward");
        Ok(Some(self.0.backward(qkv, grad, None, TableGradient::Dropped)?.0))
    }
}

struct RelativeSelfAttention {
    fused: Fused,
    grid: (usize, usize),
}

impl CustomOp3 for RelativeSelfAttention {
    fn name(&self) -> &'static str {
        "relative_self_attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        layout: &Layout,
        height: &CpuStorage,
        height_layout: &Layout,
        width: &CpuStorage,
        width_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        count("relative_self_attention");
        let tables = (slice(height, height_layout)?, slice(width, width_layout)?);
        self.fused.forward(qkv, layout, Some(&PlaceTable::from_values(tables, self.grid)?))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        height: &Tensor,
        width: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        count("relative_self_attention.backward");
        let tables = RelativePosition { height: height.clone(), width: width.clone() };
        let wanted = match height.track_op() || width.track_op() {
            true => TableGradient::Wanted,
            false => TableGradient::Dropped,
        };
        let places = PlaceTable::new(&tables)?;
        let (dqkv, dtable) = self.fused.backward(qkv, grad, Some(&places), wanted)?;
        let tables = dtable.map(|dtable| places.table_gradients(&dtable)).transpose()?;
        let (dheight, dwidth) = tables.unzip();
        Ok((Some(dqkv), dheight, dwidth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};
    use candle_core::DType;

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

    fn relative(t: &[Tensor]) -> RelativePosition {
        RelativePosition { height: t[1].clone(), width: t[2].clone() }
    }

    #[test]
    fn the_composed_gradients_with_relative_positions_are_right() -> Result<()> {
        let inputs = [normal(&[2, 6, 12], 1)?, normal(&[3, 2], 2)?, normal(&[5, 2], 3)?];
        check(|t| relative_self_attention(&t[0], 2, &relative(t)), &inputs)
    }

    #[test]
    fn fused_equals_composed_with_relative_positions() -> Result<()> {
        for (batch, (rows, columns), heads, width) in
            [(2, (14, 14), 3, 64), (1, (9, 37), 2, 32), (2, (2, 5), 2, 8)]
        {
            let qkv = random(&[batch, rows * columns, 3 * heads * width], 1)?;
            let table = |side: usize, seed| random(&[2 * side - 1, width], seed)? * 0.2;
            let inputs = [qkv, table(rows, 2)?, table(columns, 3)?];
            assert_twins("relative_self_attention", 1e-5, &inputs, |t| {
                relative_self_attention(&t[0], heads, &relative(t))
            })?;
        }
        Ok(())
    }

    #[test]
    fn tables_of_another_grid_are_refused() -> Result<()> {
        let (qkv, table) = (random(&[1, 6, 12], 1)?, random(&[5, 2], 2)?);
        let positions = RelativePosition { height: table.clone(), width: table };
        let error = relative_self_attention(&qkv, 2, &positions).unwrap_err().to_string();
        assert!(error.contains("do not fit 6 tokens"), "{error}");
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
    fn a_token_can_count_as_several_keys() -> Result<()> {
        let (qkv, keep) =
            (random(&[1, 4, 12], 1)?, Tensor::new(&[[1f32, 3.0, 0.0, 2.0]], &Device::Cpu)?);
        assert_twins("self_attention", 1e-5, std::slice::from_ref(&qkv), |t| {
            self_attention(&t[0], 2, Some(&keep))
        })?;
        // The same as with its key and value there so often.
        let y = self_attention(&qkv, 2, Some(&keep))?;
        let ids = Tensor::new(&[0u32, 1, 1, 1, 3, 3], &Device::Cpu)?;
        let copies = self_attention(&qkv.index_select(&ids, 1)?, 2, None)?;
        for (token, copy) in [(0, 0), (1, 1), (3, 4)] {
            let difference = (y.narrow(1, token, 1)? - copies.narrow(1, copy, 1)?)?.abs()?;
            assert!(difference.max_all()?.to_scalar::<f32>()? < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn an_image_without_keys_gets_zeros() -> Result<()> {
        let keep = Tensor::new(&[[1f32, 0.0], [0.0, 0.0]], &Device::Cpu)?;
        let qkv = random(&[2, 2, 12], 1)?;
        assert_twins("self_attention", 1e-5, std::slice::from_ref(&qkv), |t| {
            self_attention(&t[0], 2, Some(&keep))
        })?;
        let y = self_attention(&qkv, 2, Some(&keep))?.get(1)?;
        assert_eq!(y.to_vec2::<f32>()?, [[0.0; 4]; 2]);
        let wrong = self_attention(&qkv, 2, Some(&keep.narrow(1, 0, 1)?)).unwrap_err();
        assert!(wrong.to_string().contains("a key mask [2, 1] for 4 tokens"), "{wrong}");
        Ok(())
    }
}
