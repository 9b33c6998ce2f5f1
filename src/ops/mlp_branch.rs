//! The MLP half of a block: mask ⊙ γ · fc2(GELU(fc1(LN x))).

use candle_core::{Result, Tensor};

use super::{gelu, layer_norm, linear};

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
        let y = self.rows(x)?;
        match mask {
            Some(mask) => y.broadcast_mul(&mask.unsqueeze(2)?),
            None => Ok(y),
        }
    }

    /// For inference: x + branch on the `active` rows (numbers in 0 .. B·N, none twice), the others unchanged; work is
    /// done on the active rows only. `x`: `[B, N, C]`.
    ///
    /// # Errors
    /// If the shapes do not agree or a row number is out of range.
    pub fn gathered(&self, x: &Tensor, active: &[u32]) -> Result<Tensor> {
        if active.is_empty() {
            return Ok(x.clone());
        }
        let rows = x.reshape(((), x.dim(2)?))?;
        let ids = Tensor::new(active, x.device())?;
        rows.index_add(&ids, &self.rows(&rows.index_select(&ids, 0)?)?, 0)?.reshape(x.shape())
    }

    fn rows(&self, x: &Tensor) -> Result<Tensor> {
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
