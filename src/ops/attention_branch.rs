//! The attention half of a block: γ · proj(attention(qkv(LN x))), of whole images or of windows.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::attention_rows::Rows;
use super::attention_tiles::{Heads, Layer, TableGradient, backward};
use super::branch::{Output, gradient_product, normalise_gradient};
use super::host::{slice, values};
use super::relative_position::{PlaceTable, RelativePosition};
use super::rows::{for_row_blocks, scratch};
use super::sequences::Sequences;
use super::{
    count, fusible, layer_norm, linear, relative_self_attention, self_attention, window_partition,
    window_unpartition,
};

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
    /// Side of the windows in which tokens attend to one another (ViTDet, arXiv 2203.16527); `None`: the whole image.
    pub window: Option<usize>,
    /// Relative positions in the window or the image, interpolated where its grid is not that of the tables.
    pub rel_pos: Option<RelativePosition>,
}

impl AttentionBranch {
    /// γ · proj(attention(qkv(LN x))), without the residual; `x`: `[B, N, C]`, with windows or relative positions the
    /// tokens of `grid` (rows, columns) alone, row by row; `keep` as in [`self_attention`], where there are no relative
    /// positions; in windows 0 or 1.
    ///
    /// A window that reaches over the edge is filled with zeros after the norm, so its padding is a key and a value (of the
    /// biases alone) like every token, as in ViTDet.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn forward(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        keep: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.check(x, grid, keep)?;
        if self.fusible(x) {
            return x.contiguous()?.apply_op1(self.fused(x, grid, keep, Output::Branch)?);
        }
        self.composed(x, grid, keep)
    }

    /// x + [`AttentionBranch::forward`], in one step.
    ///
    /// # Errors
    /// As [`AttentionBranch::forward`].
    pub fn sum(&self, x: &Tensor, grid: (usize, usize), keep: Option<&Tensor>) -> Result<Tensor> {
        self.check(x, grid, keep)?;
        if self.fusible(x) {
            return x.contiguous()?.apply_op1(self.fused(x, grid, keep, Output::Sum)?);
        }
        x + self.composed(x, grid, keep)?
    }

    fn composed(&self, x: &Tensor, grid: (usize, usize), keep: Option<&Tensor>) -> Result<Tensor> {
        let normed = layer_norm(x, &self.norm.0, &self.norm.1, self.eps)?;
        let qkv = |x: &Tensor| linear(x, &self.qkv.0, Some(&self.qkv.1));
        let attended = match self.window {
            Some(size) => {
                let qkv = qkv(&window_partition(&normed, grid, size)?)?;
                let keep = keep.map(|keep| keep_in_windows(keep, grid, size)).transpose()?;
                let attended = self.attend(&qkv, (size, size), keep.as_ref())?;
                window_unpartition(&attended, grid, size)?
            }
            None => self.attend(&qkv(&normed)?, grid, keep)?,
        };
        let y = linear(&attended, &self.proj.0, Some(&self.proj.1))?;
        match &self.gamma {
            Some(gamma) => y.broadcast_mul(gamma),
            None => Ok(y),
        }
    }

    /// Attention in whole sequences, which have places in `grid` where there are relative positions.
    fn attend(&self, qkv: &Tensor, grid: (usize, usize), keep: Option<&Tensor>) -> Result<Tensor> {
        match &self.rel_pos {
            Some(positions) => relative_self_attention(qkv, self.heads, &positions.fitted(grid)?),
            None => self_attention(qkv, self.heads, keep),
        }
    }

    pub(super) fn check(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        keep: Option<&Tensor>,
    ) -> Result<()> {
        let (_, tokens, channels) = x.dims3()?;
        let widths = [&self.norm.0, &self.norm.1, &self.proj.1].map(|t| t.elem_count());
        if widths != [channels; 3] || self.qkv.0.dims() != [3 * channels, channels] {
            bail!("attention_branch: {channels} channels do not fit qkv {:?}", self.qkv.0.dims());
        }
        if self.heads == 0 || channels % self.heads != 0 {
            bail!("attention_branch: {channels} channels do not split into {} heads", self.heads);
        }
        if self.window.is_none() && self.rel_pos.is_none() {
            return Ok(());
        }
        if tokens != grid.0 * grid.1 {
            bail!(
                "attention_branch: {tokens} tokens are not a grid of {grid:?}: class and register tokens have no place in \
                 windows or relative positions"
            );
        }
        if self.window == Some(0) || (keep.is_some() && self.rel_pos.is_some()) {
            bail!(
                "attention_branch: windows need a size, and no key can be left out where positions tie all of them"
            );
        }
        Ok(())
    }

    fn fused(
        &self,
        x: &Tensor,
        grid: (usize, usize),
        keep: Option<&Tensor>,
        output: Output,
    ) -> Result<Fused> {
        let (batch, tokens, channels) = x.dims3()?;
        let size = self.window.map_or(grid, |size| (size, size));
        let places = match &self.rel_pos {
            Some(positions) => Some(PlaceTable::new(&positions.fitted(size)?)?),
            None => None,
        };
        let sequences = self.sequences((batch, tokens), grid);
        let sequences = match keep {
            Some(keep) => sequences.keeping(keep)?,
            None => sequences,
        };
        Ok(Fused {
            branch: self.clone(),
            heads: Heads { count: self.heads, width: channels / self.heads },
            sequences,
            places,
            output,
            save: x.track_op(),
            saved: OnceLock::new(),
        })
    }

    /// Who attends to whom in `batch` images of `tokens` tokens.
    pub(super) fn sequences(
        &self,
        (batch, tokens): (usize, usize),
        grid: (usize, usize),
    ) -> Sequences {
        match (self.window, &self.rel_pos) {
            (None, None) => Sequences::images(batch, tokens),
            (None, Some(_)) => Sequences::windows(batch, grid, grid),
            (Some(size), _) => Sequences::windows(batch, grid, (size, size)),
        }
    }

    pub(super) fn fusible(&self, x: &Tensor) -> bool {
        let weights = self.weights();
        fusible(&[x])
            && fusible(&weights)
            && weights.iter().all(|w| !w.track_op() && w.is_contiguous())
    }

    fn weights(&self) -> Vec<&Tensor> {
        let pairs = [&self.norm, &self.qkv, &self.proj];
        let tables = self.rel_pos.iter().flat_map(|tables| [&tables.height, &tables.width]);
        let pairs = pairs.into_iter().flat_map(|(weight, bias)| [weight, bias]);
        pairs.chain(tables).chain(&self.gamma).collect()
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
    sequences: Sequences,
    places: Option<PlaceTable>,
    output: Output,
    save: bool,
    saved: OnceLock<Saved>,
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "attention_branch"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("attention_branch");
        let (x, channels) = (slice(x, layout)?, self.heads.channels());
        let row = |i: usize| &x[i * channels..][..channels];
        let padding = values(&self.branch.qkv.1)?;
        let beside = self.output.beside(x);
        let Rows { y, qkv, lse } =
            self.branch.rows(row, &self.sequences, self.places.as_ref(), &padding, beside)?;
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
        if !self.sequences.every_token_is_key() {
            dqkv.fill(0.0);
        }
        let padding = values(&branch.qkv.1)?;
        let layer = self.layer(&saved.qkv, &padding);
        backward(layer, &saved.lse, &rows, &mut dqkv, TableGradient::Dropped);
        gradient_product(&dqkv, &branch.qkv.0, &mut rows)?;
        let mut dx = vec![0.0; grad.len()];
        let row = |i: usize| Some(&rows[i * channels..][..channels]);
        let beside = self.output.beside(&grad);
        normalise_gradient(&x_values, row, (&branch.norm, branch.eps), beside, &mut dx)?;
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

impl Fused {
    /// `padding` is the bias of qkv: all that a place of zeros has.
    fn layer<'a>(&'a self, qkv: &'a [f32], padding: &'a [f32]) -> Layer<'a> {
        let places = self.places.as_ref();
        Layer { qkv, heads: self.heads, sequences: &self.sequences, padding, places }
    }

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

/// What tokens may be keys, `[B, N]` → the same in windows, `[B · n, size²]`; padding always may.
fn keep_in_windows(keep: &Tensor, grid: (usize, usize), size: usize) -> Result<Tensor> {
    let left_out = keep.detach().affine(-1.0, 1.0)?.unsqueeze(2)?;
    window_partition(&left_out, grid, size)?.squeeze(2)?.affine(-1.0, 1.0)
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
            window: None,
            rel_pos: None,
        })
    }

    /// The grid where places do not matter.
    const ANY: (usize, usize) = (0, 0);

    /// With the tables in `t[1]` and `t[2]`.
    fn related(branch: &AttentionBranch, t: &[Tensor]) -> AttentionBranch {
        let rel_pos = Some(RelativePosition { height: t[1].clone(), width: t[2].clone() });
        AttentionBranch { rel_pos, ..branch.clone() }
    }

    #[test]
    fn the_composed_gradients_are_right() -> Result<()> {
        let branch = branch(6, 2, normal)?;
        check(|t| branch.forward(&t[0], ANY, None), &[normal(&[2, 4, 6], 1)?])?;
        let x = normal(&[2, 15, 6], 1)?;
        for window in [None, Some(2)] {
            let branch = AttentionBranch { window, ..branch.clone() };
            check(|t| branch.forward(&t[0], (3, 5), None), std::slice::from_ref(&x))?;
            // Tables for two and for four places a side: those of the image are interpolated.
            let inputs = [x.clone(), normal(&[3, 3], 2)?, normal(&[7, 3], 3)?];
            check(|t| related(&branch, t).forward(&t[0], (3, 5), None), &inputs)?;
        }
        Ok(())
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        for (batch, tokens, channels, heads) in [(2, 197, 384, 6), (1, 325, 768, 12), (3, 5, 12, 3)]
        {
            let mut branch = branch(channels, heads, random)?;
            let x = random(&[batch, tokens, channels], 1)?;
            // Rounding of three products and a softmax in a row, relative to the largest value.
            assert_twins("attention_branch", 3e-5, std::slice::from_ref(&x), |t| {
                branch.forward(&t[0], ANY, None)
            })?;
            branch.gamma = None;
            let keep: Vec<f32> = (0..batch * tokens)
                .map(|i| f32::from(u8::from(i % tokens == 0 || i % 3 == 1)))
                .collect();
            let keep = Tensor::from_vec(keep, (batch, tokens), &Device::Cpu)?;
            assert_twins("attention_branch", 3e-5, &[x], |t| {
                branch.forward(&t[0], ANY, Some(&keep))?.tanh()?
                    + branch.sum(&t[0], ANY, Some(&keep))?
            })?;
        }
        Ok(())
    }

    #[test]
    fn fused_equals_composed_in_windows() -> Result<()> {
        // Grids of whole windows, with padding below, right and in both, and smaller than a window.
        for (grid, size) in [((28, 28), 14), ((10, 8), 4), ((9, 8), 4), ((9, 7), 4), ((3, 2), 4)] {
            let tokens = grid.0 * grid.1;
            let x = random(&[2, tokens, 96], 1)?;
            let tables = [random(&[2 * size - 1, 32], 2)?, random(&[2 * size - 1, 32], 3)?];
            let tables = [&x, &tables[0], &tables[1]].map(Clone::clone);
            for window in [None, Some(size)] {
                let branch = AttentionBranch { window, ..branch(96, 3, random)? };
                // Every fifth token, and none in the upper left windows.
                let kept = |i: usize| f32::from(u8::from(i % 5 == 3 && i % tokens >= tokens / 2));
                let keep: Vec<f32> = (0..2 * tokens).map(kept).collect();
                let keep = Tensor::from_vec(keep, (2, tokens), &Device::Cpu)?;
                for keep in [None, Some(&keep)] {
                    assert_twins("attention_branch", 3e-5, &tables[..1], |t| {
                        branch.forward(&t[0], grid, keep)
                    })?;
                }
                let branch = related(&branch, &tables);
                assert_twins("attention_branch", 3e-5, &tables[..1], |t| {
                    branch.forward(&t[0], grid, None)
                })?;
            }
        }
        Ok(())
    }

    #[test]
    fn trained_tables_get_their_gradient_from_the_fused_kernel() -> Result<()> {
        let branch = AttentionBranch { window: Some(4), ..branch(96, 3, random)? };
        let inputs = [random(&[1, 63, 96], 1)?, random(&[7, 32], 2)?, random(&[7, 32], 3)?];
        assert_twins("relative_self_attention", 3e-5, &inputs, |t| {
            related(&branch, t).forward(&t[0], (9, 7), None)
        })
    }

    #[test]
    fn a_window_is_an_image_of_its_own() -> Result<()> {
        let mut branch = branch(12, 2, random)?;
        let x = random(&[1, 8, 12], 1)?; // 2 × 4 tokens
        branch.window = Some(2);
        let y = branch.forward(&x, (2, 4), None)?;
        branch.window = None;
        let ids = Tensor::new(&[2u32, 3, 6, 7], &Device::Cpu)?;
        let alone = branch.forward(&x.index_select(&ids, 1)?, (2, 2), None)?;
        let difference = (y.index_select(&ids, 1)? - alone)?.abs()?.max_all()?;
        assert!(difference.to_scalar::<f32>()? < 1e-6);
        let error = AttentionBranch { window: Some(2), ..branch }.forward(&x, (2, 3), None);
        assert!(error.unwrap_err().to_string().contains("8 tokens are not a grid of (2, 3)"));
        Ok(())
    }

    #[test]
    fn frozen_weights_get_no_gradient_and_tracked_ones_do() -> Result<()> {
        let mut branch = branch(6, 2, random)?;
        let x = candle_core::Var::from_tensor(&random(&[1, 4, 6], 1)?)?;
        let grads = branch.forward(&x, ANY, None)?.sum_all()?.backward()?;
        assert!(grads.get(&branch.qkv.0).is_none() && grads.get(&x).is_some());
        let weight = candle_core::Var::from_tensor(&branch.qkv.0)?;
        branch.qkv.0 = weight.as_tensor().clone();
        let tracked = branch.forward(&x, ANY, None)?.sum_all()?.backward()?;
        assert!(tracked.get(&weight).is_some() && tracked.get(&branch.proj.0).is_none());
        Ok(())
    }
}
