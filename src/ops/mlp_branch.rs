//! The MLP half of a block: mask ⊙ γ · fc2(GELU(fc1(LN x))).

use candle_core::{Device, Result, Tensor, bail};

use super::branch::{Output, check_rows};
use super::fresh::Fresh;
use super::host::values;
use super::mlp_rows::Save;
use super::{Bottleneck, count, fusible, gelu, layer_norm, linear};

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
        self.run(x, mask, Output::Branch, None)
    }

    /// x + [`MlpBranch::forward`] + what the `adapter` makes of x, in one step.
    ///
    /// # Errors
    /// As [`MlpBranch::forward`].
    pub fn sum(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        adapter: Option<&Bottleneck>,
    ) -> Result<Tensor> {
        self.run(x, mask, Output::Sum, adapter)
    }

    fn run(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        output: Output,
        adapter: Option<&Bottleneck>,
    ) -> Result<Tensor> {
        let (batch, tokens, _) = self.check(x, adapter)?;
        if mask.is_some_and(|mask| mask.dims() != [batch, tokens]) {
            bail!(
                "mlp_branch: a mask {:?} for {batch} images of {tokens} tokens",
                mask.map(Tensor::dims)
            );
        }
        if self.fusible(x, adapter) && mask.is_none_or(|mask| fusible(&[mask])) {
            return self.fused(x, mask, output, adapter);
        }
        let y = self.composed(x)?;
        let y = match mask {
            Some(mask) => y.broadcast_mul(&mask.unsqueeze(2)?)?,
            None => y,
        };
        let y = match output {
            Output::Branch => y,
            Output::Sum => (x + y)?,
        };
        Bottleneck::add_any(adapter, y, x)
    }

    fn fused(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        output: Output,
        adapter: Option<&Bottleneck>,
    ) -> Result<Tensor> {
        count("mlp_branch");
        let x = x.contiguous()?;
        let mask = mask.map(Tensor::contiguous).transpose()?;
        let save = Save { rows: x.track_op(), mask: mask.as_ref().is_some_and(Tensor::track_op) };
        let (y, saved, hidden) = {
            let (x, mask) = (values(&x)?, mask.as_ref().map(values).transpose()?);
            let (mut y, saved) = self.masked_rows(&x, mask.as_deref(), output, save)?;
            let hidden = adapter.map(|adapter| adapter.add_to(&x, &mut y)).transpose()?;
            (y, saved, hidden)
        };
        let beside = adapter.cloned().zip(hidden);
        let parameters = adapter.map(Bottleneck::trained).transpose()?.flatten();
        let (masked, trained) = (mask.is_some(), parameters.is_some());
        let inputs: Vec<&Tensor> = [&x].into_iter().chain(&mask).chain(&parameters).collect();
        let branch = self.clone();
        Fresh::on_cpu(y, x.shape()).with_gradient(&inputs, move |inputs, _, grad| {
            count("mlp_branch.backward");
            let (x, grad) = (values(inputs[0])?, values(grad)?);
            let mask = if masked { Some(values(inputs[1])?) } else { None };
            let [mut dx, dmask] =
                branch.rows_gradient(&x, mask.as_deref(), &grad, (&saved, save), output)?;
            let mut all = vec![None];
            all.extend(masked.then_some(dmask));
            if let Some((adapter, hidden)) = &beside {
                let parameters = adapter.gradient((&x, hidden), &grad, dx.as_deref_mut())?;
                all.extend(trained.then_some(Some(parameters)));
            }
            all[0] = dx;
            let tensor = |(values, input): (Option<Vec<f32>>, &&Tensor)| {
                values.map(|v| Tensor::from_vec(v, input.shape(), &Device::Cpu)).transpose()
            };
            all.into_iter().zip(inputs).map(tensor).collect()
        })
    }

    /// For inference: x + branch on the `active` rows (numbers in 0 .. B·N, none twice), the others unchanged; work is
    /// done on the active rows only. `x`: `[B, N, C]`. Every row gets what the `adapter` makes of it.
    ///
    /// # Errors
    /// If the shapes do not agree, or a row number is out of range or occurs twice.
    pub fn gathered(
        &self,
        x: &Tensor,
        active: &[u32],
        adapter: Option<&Bottleneck>,
    ) -> Result<Tensor> {
        let (batch, tokens, channels) = self.check(x, adapter)?;
        check_rows("mlp_branch", active, batch * tokens)?;
        if self.fusible(x, adapter) && !x.track_op() {
            count("mlp_branch.gathered");
            let x = x.contiguous()?;
            let values = values(&x)?;
            let mut y = self.gathered_rows(&values, active)?;
            if let Some(adapter) = adapter {
                adapter.add_to(&values, &mut y)?;
            }
            return Ok(Fresh::on_cpu(y, x.shape()).tensor());
        }
        let y = if active.is_empty() {
            x.clone()
        } else {
            let rows = x.reshape(((), channels))?;
            let ids = Tensor::new(active, x.device())?;
            let branch = self.composed(&rows.index_select(&ids, 0)?)?;
            rows.index_add(&ids, &branch, 0)?.reshape(x.shape())?
        };
        Bottleneck::add_any(adapter, y, x)
    }

    /// Images, tokens and channels of `x`.
    fn check(&self, x: &Tensor, adapter: Option<&Bottleneck>) -> Result<(usize, usize, usize)> {
        let (batch, tokens, channels) = x.dims3()?;
        let hidden = self.fc1.1.elem_count();
        let fits = self.fc1.0.dims() == [hidden, channels]
            && self.fc2.0.dims() == [channels, hidden]
            && [&self.norm.0, &self.norm.1, &self.fc2.1].iter().all(|t| t.dims() == [channels])
            && self.gamma.as_ref().is_none_or(|gamma| gamma.dims() == [channels]);
        if !fits {
            let (fc1, fc2) = (self.fc1.0.dims(), self.fc2.0.dims());
            bail!("mlp_branch: {channels} channels do not fit fc1 {fc1:?} and fc2 {fc2:?}");
        }
        if adapter.is_some_and(|adapter| !adapter.fits(x.shape())) {
            bail!("mlp_branch: the adapter does not fit {:?}", x.dims());
        }
        Ok((batch, tokens, channels))
    }

    fn fusible(&self, x: &Tensor, adapter: Option<&Bottleneck>) -> bool {
        let pairs = [&self.norm, &self.fc1, &self.fc2];
        let mut weights =
            pairs.into_iter().flat_map(|(weight, bias)| [weight, bias]).chain(&self.gamma);
        fusible(&[x])
            && weights.all(|w| fusible(&[w]) && !w.track_op() && w.is_contiguous())
            && adapter.is_none_or(Bottleneck::fusible)
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
