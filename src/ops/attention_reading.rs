//! Tokens that read others without being read: γ · proj(attention of their queries to given keys).

use candle_core::{Result, Tensor, bail};

use super::{AttentionBranch, attention, layer_norm, linear, self_attention};

impl AttentionBranch {
    /// The layer norm of `[B, N, C]`.
    ///
    /// # Errors
    /// If the widths do not agree.
    pub fn normed(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.norm.0, &self.norm.1, self.eps)
    }

    /// Keys and values of normed rows, `[B, N, C]` → `[B, N, 2C]`.
    ///
    /// # Errors
    /// If the widths do not agree.
    pub fn keys(&self, normed: &Tensor) -> Result<Tensor> {
        let width = self.proj.1.elem_count();
        let (weight, bias) = &self.qkv;
        let bias = bias.narrow(0, width, 2 * width)?;
        linear(normed, &weight.narrow(0, width, 2 * width)?, Some(&bias))
    }

    /// γ · proj(attention) of the normed `queries` `[B, Q, C]` to `keys` `[B, N, 2C]` (of [`AttentionBranch::keys`]),
    /// without the residual → `[B, Q, C]`.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn ask(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        let (width, (weight, bias)) = (self.proj.1.elem_count(), &self.qkv);
        let q = linear(queries, &weight.narrow(0, 0, width)?, Some(&bias.narrow(0, 0, width)?))?;
        let (k, v) = (keys.narrow(2, 0, width)?, keys.narrow(2, width, width)?);
        let attended = attention(&self.divided(&q)?, &self.divided(&k)?, &self.divided(&v)?, None)?;
        self.projected(&attended.transpose(1, 2)?.reshape(queries.shape())?)
    }

    /// The branch for the tokens `x` `[B, N, C]`, which attend to one another and to `rows` `[B, M, C]`, whose keys and
    /// values are taken without the norm; the rows ask nothing.
    ///
    /// # Errors
    /// If the shapes do not agree, or there are windows or relative positions.
    pub fn forward_with(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        if self.window.is_some() || self.rel_pos.is_some() {
            bail!(
                "attention_branch: rows beside the image have no place in windows or relative positions"
            );
        }
        let tokens = x.dim(1)?;
        let all = Tensor::cat(&[&self.normed(x)?, rows], 1)?;
        let qkv = linear(&all, &self.qkv.0, Some(&self.qkv.1))?;
        let attended = self_attention(&qkv, self.heads, None)?;
        self.projected(&attended.narrow(1, 0, tokens)?)
    }

    /// `[B, N, C]` → `[B, heads, N, C / heads]`.
    fn divided(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, width) = x.dims3()?;
        x.reshape((batch, tokens, self.heads, width / self.heads.max(1)))?.transpose(1, 2)
    }

    fn projected(&self, attended: &Tensor) -> Result<Tensor> {
        let y = linear(attended, &self.proj.0, Some(&self.proj.1))?;
        match &self.gamma {
            Some(gamma) => y.broadcast_mul(gamma),
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal, relative_difference};

    fn branch() -> Result<AttentionBranch> {
        Ok(AttentionBranch {
            norm: (normal(&[6], 11)?, normal(&[6], 12)?),
            eps: 1e-6,
            qkv: ((normal(&[18, 6], 13)? * 0.4)?, normal(&[18], 14)?),
            proj: ((normal(&[6, 6], 15)? * 0.4)?, normal(&[6], 16)?),
            gamma: Some(normal(&[6], 17)?),
            heads: 2,
            window: None,
            rel_pos: None,
        })
    }

    #[test]
    fn a_token_that_reads_all_gets_what_the_branch_gives() -> Result<()> {
        let (branch, x) = (branch()?, normal(&[2, 5, 6], 1)?);
        let normed = branch.normed(&x)?;
        let whole = branch.forward(&x, (0, 0), None)?;
        let read = branch.ask(&normed.narrow(1, 3, 1)?, &branch.keys(&normed)?)?;
        assert!(relative_difference(&read, &whole.narrow(1, 3, 1)?)? < 1e-12);
        // Rows that are normed already are the same as tokens that ask nothing.
        let with = branch.forward_with(&x.narrow(1, 0, 4)?, &normed.narrow(1, 4, 1)?)?;
        assert!(relative_difference(&with, &whole.narrow(1, 0, 4)?)? < 1e-12);
        Ok(())
    }

    #[test]
    fn the_gradients_are_right() -> Result<()> {
        let branch = branch()?;
        let inputs = [normal(&[2, 2, 6], 1)?, normal(&[2, 3, 6], 2)?];
        check(|t| branch.forward_with(&t[0], &t[1]), &inputs)?;
        check(|t| branch.ask(&t[0], &branch.keys(&t[1])?), &inputs)
    }
}
