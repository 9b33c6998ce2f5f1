//! The MLP half of a block: mask ⊙ γ · fc2(GELU(fc1(LN x))).

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use super::branch::{Output, check_rows};
use super::host::{slice, values};
use super::mlp_rows::{Save, Saved};
use super::{count, fusible, gelu, layer_norm, linear};

/// The parameters of an MLP half block, each pair (weight, bias); cheap clones of the layers' tensors.
#[derive(Debug, Clone)]
pub struct MlpBranch {
    /// Of the layer norm, `[C]` each.
    pub norm: (Tensor, Tensor),
    /// Of the layer norm.
    pub eps: f64,
    /// `[hidden, C]` and `[hidden]`.
    pub fc1: (Tensor, Tensor),
    /// `[C, hidden]` and `[C]`.
    pub fc2: (Tensor, Tensor),
    /// LayerScale, `[C]`.
    pub gamma: Option<Tensor>,
}

impl MlpBranch {
    /// mask ⊙ γ · fc2(GELU(fc1(LN x))), without the residual; `x`: `[B, N, C]`, `mask`: `[B, N]` with values 0 and 1.
    /// The branch receives g ⊙ mask, the mask ⟨g, branch⟩ for every row, active or not.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.run(x, mask, Output::Branch)
    }

    /// x + [`MlpBranch::forward`], in one step.
    ///
    /// # Errors
    /// As [`MlpBranch::forward`].
    pub fn sum(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        self.run(x, mask, Output::Sum)
    }

    fn run(&self, x: &Tensor, mask: Option<&Tensor>, output: Output) -> Result<Tensor> {
        let (batch, tokens, channels) = x.dims3()?;
        self.check(channels)?;
        if mask.is_some_and(|mask| mask.dims() != [batch, tokens]) {
            bail!(
                "mlp_branch: a mask {:?} for {batch} images of {tokens} tokens",
                mask.map(Tensor::dims)
            );
        }
        if self.fusible(x) && mask.is_none_or(|mask| fusible(&[mask])) {
            let x = x.contiguous()?;
            return match mask {
                None => {
                    let save = Save { rows: x.track_op(), mask: false };
                    x.apply_op1(Fused::new(self, output, save))
                }
                Some(mask) => {
                    let save = Save { rows: x.track_op(), mask: mask.track_op() };
                    x.apply_op2(&mask.contiguous()?, Fused::new(self, output, save))
                }
            };
        }
        let y = self.composed(x)?;
        let y = match mask {
            Some(mask) => y.broadcast_mul(&mask.unsqueeze(2)?)?,
            None => y,
        };
        match output {
            Output::Branch => Ok(y),
            Output::Sum => x + y,
        }
    }

    /// For inference: x + branch on the `active` rows (numbers in 0 .. B·N, none twice), the others unchanged; work is
    /// done on the active rows only. `x`: `[B, N, C]`.
    ///
    /// # Errors
    /// If the shapes do not agree, or a row number is out of range or occurs twice.
    pub fn gathered(&self, x: &Tensor, active: &[u32]) -> Result<Tensor> {
        let (batch, tokens, channels) = x.dims3()?;
        self.check(channels)?;
        check_rows("mlp_branch", active, batch * tokens)?;
        if active.is_empty() {
            return Ok(x.clone());
        }
        if self.fusible(x) && !x.track_op() {
            count("mlp_branch.gathered");
            let x = x.contiguous()?;
            let y = self.gathered_rows(&values(&x)?, active)?;
            return Tensor::from_vec(y, x.shape(), &Device::Cpu);
        }
        let rows = x.reshape(((), channels))?;
        let ids = Tensor::new(active, x.device())?;
        rows.index_add(&ids, &self.composed(&rows.index_select(&ids, 0)?)?, 0)?.reshape(x.shape())
    }

    fn check(&self, channels: usize) -> Result<()> {
        let hidden = self.fc1.1.elem_count();
        let fits = self.fc1.0.dims() == [hidden, channels]
            && self.fc2.0.dims() == [channels, hidden]
            && [&self.norm.0, &self.norm.1, &self.fc2.1].iter().all(|t| t.dims() == [channels])
            && self.gamma.as_ref().is_none_or(|gamma| gamma.dims() == [channels]);
        if !fits {
            let (fc1, fc2) = (self.fc1.0.dims(), self.fc2.0.dims());
            bail!("mlp_branch: {channels} channels do not fit fc1 {fc1:?} and fc2 {fc2:?}");
        }
        Ok(())
    }

    fn fusible(&self, x: &Tensor) -> bool {
        let pairs = [&self.norm, &self.fc1, &self.fc2];
        let mut weights =
            pairs.into_iter().flat_map(|(weight, bias)| [weight, bias]).chain(&self.gamma);
        fusible(&[x]) && weights.all(|w| fusible(&[w]) && !w.track_op() && w.is_contiguous())
    }

    /// γ · fc2(GELU(fc1(LN x))) of `[…, C]`.
    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let normed = layer_norm(x, &self.norm.0, &self.norm.1, self.eps)?;
        let y = linear(
            &gelu(&linear(&normed, &self.fc1.0, Some(&self.fc1.1))?)?,
            &self.fc2.0,
            Some(&self.fc2.1),
        )?;
        match &self.gamma {
            Some(gamma) => y.broadcast_mul(gamma),
            None => Ok(y),
        }
    }
}

struct Fused {
    branch: MlpBranch,
    output: Output,
    save: Save,
    saved: OnceLock<Saved>,
}

impl Fused {
    fn new(branch: &MlpBranch, output: Output, save: Save) -> Self {
        Self { branch: branch.clone(), output, save, saved: OnceLock::new() }
    }

    fn forward(
        &self,
        x: (&CpuStorage, &Layout),
        mask: Option<&[f32]>,
    ) -> Result<(CpuStorage, Shape)> {
        count("mlp_branch");
        let (y, saved) = self.branch.masked_rows(slice(x.0, x.1)?, mask, self.output, self.save)?;
        self.saved.get_or_init(|| saved);
        Ok((CpuStorage::F32(y), x.1.shape().clone()))
    }

    fn input_gradient(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<Option<Tensor>> {
        let Some(saved) = self.saved.get().filter(|_| self.save.rows) else { return Ok(None) };
        count("mlp_branch.backward");
        let mask = mask.map(values).transpose()?;
        let (x_values, grad) = (values(x)?, values(grad)?);
        let beside = self.output.beside(&grad);
        let dx = self.branch.rows_gradient(&x_values, mask.as_deref(), &grad, saved, beside)?;
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

impl CustomOp1 for Fused {
    fn name(&self) -> &'static str {
        "mlp_branch"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, layout), None)
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.input_gradient(x, None, &grad.contiguous()?)
    }
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "mlp_branch"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        mask: &CpuStorage,
        lm: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, lx), Some(slice(mask, lm)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        mask: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let dx = self.input_gradient(x, Some(mask), &grad)?;
        let Some(saved) = self.saved.get().filter(|_| self.save.mask) else {
            return Ok((dx, None));
        };
        let x = values(x)?;
        let beside = self.output.beside(&x);
        let dmask = saved.mask_gradient(&values(mask)?, (&values(y)?, beside), &values(&grad)?);
        Ok((dx, Some(Tensor::from_vec(dmask, mask.shape(), &Device::Cpu)?)))
    }
}
