//! The arithmetic of the fused attention half block, on rows of f32 values on the CPU; and the half block among the active
//! tokens alone.

use candle_core::{Device, Result, Tensor, bail};

use super::attention_tiles::{Heads, Layer, forward};
use super::branch::{add_bias, add_rows, check_rows, normalise, product};
use super::host::values;
use super::relative_position::PlaceTable;
use super::rows::{scratch, zeros};
use super::sequences::Sequences;
use super::{AttentionBranch, count, layer_norm, linear};

/// What the forward pass gives.
pub(super) struct Rows {
    /// The branch's output, `[tokens, C]`.
    pub(super) y: Vec<f32>,
    /// `[tokens, 3C]`, for the backward pass.
    pub(super) qkv: Vec<f32>,
    /// As [`forward`] returns it.
    pub(super) lse: Vec<f32>,
}

impl AttentionBranch {
    /// The branch on the rows `x(0)`, `x(1)`, … of the tokens in `sequences`, plus `beside`; `padding` is the bias of qkv:
    /// all that a place of zeros has.
    pub(super) fn rows<'a>(
        &self,
        x: impl Fn(usize) -> &'a [f32] + Sync,
        sequences: &Sequences,
        places: Option<&PlaceTable>,
        padding: &[f32],
        beside: Option<&[f32]>,
    ) -> Result<Rows> {
        let channels = self.proj.1.elem_count();
        let (tokens, heads) = (sequences.tokens(), self.heads);
        let heads = Heads { count: heads, width: channels / heads };
        let mut rows = scratch(tokens * channels);
        normalise(x, &self.norm, self.eps, &mut rows)?;
        let qkv = {
            let (weight, bias) = (values(&self.qkv.0)?, values(&self.qkv.1)?);
            linear::product(&rows, &weight, Some(&bias), channels)
        };
        // The normalised rows are no longer needed: their buffer takes the attention's output.
        let lse = forward(Layer { qkv: &qkv, heads, sequences, padding, places }, &mut rows);
        let mut y = zeros(rows.len());
        product(&rows, &self.proj.0, &mut y)?;
        add_bias(&mut y, &self.proj.1, self.gamma.as_ref(), beside)?;
        Ok(Rows { y, qkv, lse })
    }

    /// The keys of the tokens `x` `[B, N, C]`, averaged over the heads: `[B, N, C/heads]`, without gradients.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn mean_keys(&self, x: &Tensor) -> Result<Tensor> {
        let (channels, width) = (self.proj.1.elem_count(), self.proj.1.elem_count() / self.heads);
        // The mean of linear maps is linear.
        let mean = |t: &Tensor, shape: &[usize]| {
            t.detach().narrow(0, channels, channels)?.reshape(shape)?.mean(0)
        };
        let weight = mean(&self.qkv.0, &[self.heads, width, channels])?;
        let bias = mean(&self.qkv.1, &[self.heads, width])?;
        let norm = (self.norm.0.detach(), self.norm.1.detach());
        linear(&layer_norm(&x.detach(), &norm.0, &norm.1, self.eps)?, &weight, Some(&bias))
    }

    /// For inference: x + branch on the `active` rows (numbers in 0 .. B·N, none twice), which attend to one another and to
    /// padding alone; the others unchanged. Work is done on the active rows only. `x` and `grid` as in
    /// [`AttentionBranch::forward`], without relative positions.
    ///
    /// # Errors
    /// If the shapes do not agree, or a row number is out of range or occurs twice.
    pub fn gathered(&self, x: &Tensor, grid: (usize, usize), active: &[u32]) -> Result<Tensor> {
        let (batch, tokens, channels) = x.dims3()?;
        self.check(x, grid, None)?;
        check_rows("attention_branch", active, batch * tokens)?;
        if self.rel_pos.is_some() {
            bail!("attention_branch: relative positions tie every token to all places");
        }
        if active.is_empty() {
            return Ok(x.clone());
        }
        if !self.fusible(x) || x.track_op() {
            return match self.window {
                Some(_) => self.masked(x, grid, active),
                None => self.packed(x, active),
            };
        }
        count("attention_branch.gathered");
        let x = x.contiguous()?;
        let (from, padding) = (values(&x)?, values(&self.qkv.1)?);
        let sequences = self.sequences((batch, tokens), grid).among(active);
        let row = |i: usize| &from[active[i] as usize * channels..][..channels];
        let branch = self.rows(row, &sequences, None, &padding, None)?;
        let y = add_rows(&from, active, &branch.y, channels);
        Tensor::from_vec(y, x.shape(), &Device::Cpu)
    }

    /// [`AttentionBranch::gathered`] in windows: everything is computed, and what is not active is dropped.
    fn masked(&self, x: &Tensor, grid: (usize, usize), active: &[u32]) -> Result<Tensor> {
        let (batch, tokens, _) = x.dims3()?;
        let mut keep = vec![0f32; batch * tokens];
        active.iter().for_each(|&row| keep[row as usize] = 1.0);
        let keep = Tensor::from_vec(keep, (batch, tokens), x.device())?.to_dtype(x.dtype())?;
        x + self.forward(x, grid, Some(&keep))?.broadcast_mul(&keep.unsqueeze(2)?)?
    }

    /// [`AttentionBranch::gathered`] of whole images: each image's active tokens beside one another, filled up to the
    /// longest of them with tokens that are no keys and whose results are dropped.
    fn packed(&self, x: &Tensor, active: &[u32]) -> Result<Tensor> {
        let (batch, tokens, channels) = x.dims3()?;
        let mut images = vec![Vec::new(); batch];
        active.iter().for_each(|&row| images[row as usize / tokens].push(row));
        let longest = images.iter().map(Vec::len).max().unwrap_or(0);
        let (mut keep, mut slots, mut order) = (vec![0f32; batch * longest], vec![], vec![]);
        let mut filled = vec![0u32; batch * longest];
        for (i, &row) in images.iter().enumerate().flat_map(|(image, rows)| {
            rows.iter().enumerate().map(move |(at, row)| (image * longest + at, row))
        }) {
            (keep[i], filled[i]) = (1.0, row);
            slots.push(i as u32);
            order.push(row);
        }
        let tensor = |ids: Vec<u32>| Tensor::new(ids, x.device());
        let (flat, order) = (x.reshape(((), channels))?, tensor(order)?);
        let packed = flat.index_select(&tensor(filled)?, 0)?.reshape((batch, longest, channels))?;
        let keep = Tensor::from_vec(keep, (batch, longest), x.device())?.to_dtype(x.dtype())?;
        let branch = self.forward(&packed, (0, 0), Some(&keep))?.reshape(((), channels))?;
        let branch = branch.index_select(&tensor(slots)?, 0)?;
        flat.index_add(&order, &branch, 0)?.reshape(x.shape())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::relative_difference;
    use crate::ops::twin::random;
    use crate::ops::{composed, kernel_calls};

    fn branch(window: Option<usize>) -> Result<AttentionBranch> {
        let small = |shape: &[usize], seed| random(shape, seed)? * 0.2;
        Ok(AttentionBranch {
            norm: (random(&[24], 11)?, random(&[24], 12)?),
            eps: 1e-6,
            qkv: (small(&[72, 24], 13)?, random(&[72], 14)?),
            proj: (small(&[24, 24], 15)?, random(&[24], 16)?),
            gamma: Some(random(&[24], 17)?),
            heads: 3,
            window,
            rel_pos: None,
        })
    }

    /// Three images of 9 × 7 tokens: a third, one in seven and none of them active.
    fn active() -> Vec<u32> {
        (0..63).filter(|i| i % 3 == 1).chain((63..126).filter(|i| i % 7 == 0)).collect()
    }

    #[test]
    fn gathered_equals_masked() -> Result<()> {
        let (x, grid) = (random(&[3, 63, 24], 1)?, (9, 7));
        for window in [None, Some(4)] {
            let branch = branch(window)?;
            let before = kernel_calls("attention_branch.gathered");
            for rows in [active(), (0..189).collect(), vec![5], vec![]] {
                let gathered = branch.gathered(&x, grid, &rows)?;
                for other in [
                    branch.masked(&x, grid, &rows)?,
                    composed(|| branch.masked(&x, grid, &rows))?,
                    composed(|| branch.gathered(&x, grid, &rows))?,
                ] {
                    let difference = relative_difference(&gathered, &other)?;
                    assert!(difference < 1e-5, "{window:?}, {}: {difference:e}", rows.len());
                }
            }
            assert!(kernel_calls("attention_branch.gathered") >= before + 3);
        }
        Ok(())
    }

    #[test]
    fn keys_are_those_of_the_branch() -> Result<()> {
        let (x, branch) = (random(&[2, 5, 24], 1)?, branch(None)?);
        let normed = layer_norm(&x, &branch.norm.0, &branch.norm.1, branch.eps)?;
        let qkv = linear(&normed, &branch.qkv.0, Some(&branch.qkv.1))?;
        let keys = qkv.narrow(2, 24, 24)?.reshape((2, 5, 3, 8))?.mean(2)?;
        assert!(relative_difference(&branch.mean_keys(&x)?, &keys)? < 1e-5);
        Ok(())
    }

    #[test]
    fn the_order_of_the_rows_changes_nothing() -> Result<()> {
        let (x, branch) = (random(&[3, 63, 24], 1)?, branch(None)?);
        let mut rows = active();
        let rising = branch.gathered(&x, (9, 7), &rows)?;
        rows.reverse();
        for falling in
            [branch.gathered(&x, (9, 7), &rows)?, composed(|| branch.gathered(&x, (9, 7), &rows))?]
        {
            assert!(relative_difference(&falling, &rising)? < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn wrong_row_lists_are_refused() -> Result<()> {
        let (branch, x) = (branch(None)?, random(&[1, 3, 24], 1)?);
        let reason = |rows: &[u32]| branch.gathered(&x, (1, 3), rows).unwrap_err().to_string();
        assert!(reason(&[3]).contains("row 3 of 3"));
        assert!(reason(&[1, 1]).contains("listed twice"));
        Ok(())
    }
}
