//! The arithmetic of the fused MLP half block, on rows of f32 values on the CPU.
//!
//! The forward pass covers every row, because the gradient of an inactive row's mask needs that row's output; the
//! backward pass covers the active rows alone, a third of the training's arithmetic less for each row that is skipped.

use candle_core::Result;
use rayon::prelude::*;

use super::MlpBranch;
use super::branch::{
    Output, add_bias, add_rows, gradient_product, normalise, normalise_gradient, positions, product,
};
use super::host::values;
use super::rows::{Scratch, for_row_blocks, scratch, zeros};
use super::vector::{gelu, gelu_derivative, sum_of, vectorised};

/// Rows whose hidden values exist at one time, at most: enough that packing the weights is a small part of a product, few enough
/// that the hidden values (24 MiB at 3072) do not grow with the batch.
const ROWS: usize = 2048;

/// Blocks of about the same size.
fn block_of(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(ROWS).max(1)).max(1)
}

/// What the backward pass will need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Save {
    /// The gradient of the input.
    pub(crate) rows: bool,
    /// The gradient of the mask.
    pub(crate) mask: bool,
}

/// What the forward pass kept.
pub(crate) struct Saved {
    /// The rows with a mask other than 0, in rising order.
    active: Vec<usize>,
    /// Their values before the activation, `[active, hidden]`.
    hidden: Vec<f32>,
    /// Rows whose mask gets its gradient from the branch's output, in rising order.
    shown: Vec<usize>,
    /// The branch's output on them.
    outputs: Vec<f32>,
}

impl MlpBranch {
    /// The branch times the mask on every row of `x`, plus `x` for the sum.
    pub(crate) fn masked_rows(
        &self,
        x: &[f32],
        mask: Option<&[f32]>,
        output: Output,
        save: Save,
    ) -> Result<(Vec<f32>, Saved)> {
        let (channels, width) = (self.fc2.1.elem_count(), self.fc1.1.elem_count());
        let rows = x.len() / channels;
        let is_active = |row: usize| mask.is_none_or(|mask| mask[row] != 0.0);
        let active: Vec<usize> = (0..rows).filter(|&row| is_active(row)).collect();
        let mut hidden = zeros(if save.rows { active.len() * width } else { 0 });
        let mut kept = hidden.chunks_exact_mut(width);
        let mut y = zeros(x.len());
        let size = block_of(rows);
        for (i, y) in y.chunks_mut(size * channels).enumerate() {
            let (first, count) = (i * size, y.len() / channels);
            let input = |row: usize| &x[(first + row) * channels..][..channels];
            let keep = (first..first + count)
                .map(|row| if is_active(row) { kept.next() } else { None })
                .collect();
            // With a mask the sum has to wait for it.
            let beside = output.beside(x).filter(|_| mask.is_none());
            self.block(input, count, keep, beside.map(|x| &x[first * channels..]), y)?;
        }
        let (mut shown, mut outputs) = (Vec::new(), Vec::new());
        if let Some(mask) = mask {
            if save.mask {
                // The gradient of an active row's mask falls out of that of its hidden values.
                shown = (0..rows).filter(|&row| !(save.rows && is_active(row))).collect();
                outputs = zeros(shown.len() * channels);
                let row = |i: usize| &y[shown[i] * channels..][..channels];
                let parts = outputs.par_chunks_exact_mut(channels).enumerate();
                parts.for_each(|(i, output)| output.copy_from_slice(row(i)));
            }
            apply_mask(&mut y, mask, output.beside(x));
        }
        Ok((y, Saved { active, hidden, shown, outputs }))
    }

    /// `x` + branch on the active rows.
    pub(crate) fn gathered_rows(&self, x: &[f32], active: &[u32]) -> Result<Vec<f32>> {
        let channels = self.fc2.1.elem_count();
        let mut branch = scratch(active.len() * channels);
        let size = block_of(active.len());
        for (active, y) in active.chunks(size).zip(branch.chunks_mut(size * channels)) {
            let input = |i: usize| &x[active[i] as usize * channels..][..channels];
            self.block(input, active.len(), Vec::new(), None, y)?;
        }
        Ok(add_rows(x, active, &branch, channels))
    }

    /// The branch on `count` rows, plus `beside`; where `keep` has a place for a row, its values before the activation go
    /// there.
    fn block<'a>(
        &self,
        x: impl Fn(usize) -> &'a [f32] + Sync,
        count: usize,
        mut keep: Vec<Option<&mut [f32]>>,
        beside: Option<&[f32]>,
        y: &mut [f32],
    ) -> Result<()> {
        let (channels, width) = (self.fc2.1.elem_count(), self.fc1.1.elem_count());
        let (mut normed, mut hidden) = (scratch(count * channels), scratch(count * width));
        normalise(x, &self.norm, self.eps, &mut normed)?;
        product(&normed, &self.fc1.0, &mut hidden)?;
        keep.resize_with(count, || None);
        let bias = values(&self.fc1.1)?;
        let bias = &*bias;
        hidden.par_chunks_mut(8 * width).zip(keep.par_chunks_mut(8)).for_each(|(rows, keep)| {
            for (row, keep) in rows.chunks_exact_mut(width).zip(keep) {
                activate(row, bias, keep.as_deref_mut());
            }
        });
        product(&hidden, &self.fc2.0, y)?;
        add_bias(y, &self.fc2.1, self.gamma.as_ref(), beside)
    }

    /// The gradients of `x` and of the mask, each if it was to be saved for, for that of what [`MlpBranch::masked_rows`] gave.
    pub(crate) fn rows_gradient(
        &self,
        x: &[f32],
        mask: Option<&[f32]>,
        grad: &[f32],
        (saved, save): (&Saved, Save),
        output: Output,
    ) -> Result<[Option<Vec<f32>>; 2]> {
        let channels = self.fc2.1.elem_count();
        let rows = x.len() / channels;
        let mut dmask = vec![0.0; if save.mask { rows } else { 0 }];
        if save.mask {
            let outputs = saved.outputs.par_chunks_exact(channels).zip(&saved.shown);
            let gradient = |(branch, &row): (&[f32], &usize)| {
                let grad = &grad[row * channels..][..channels];
                (
                    row,
                    vectorised(
                        #[inline(always)]
                        || sum_of(grad, branch, |g, b| g * b),
                    ),
                )
            };
            let found: Vec<(usize, f32)> = outputs.map(gradient).collect();
            found.into_iter().for_each(|(row, d)| dmask[row] = d);
        }
        let mut dx = None;
        if save.rows {
            let dnormed = self.normed_gradient(mask, grad, saved, &mut dmask)?;
            let position = positions(saved.active.iter().copied(), rows);
            let dnormed = &*dnormed;
            let row = |i: usize| position[i].map(|at| &dnormed[at * channels..][..channels]);
            let to = dx.insert(zeros(x.len()));
            normalise_gradient(x, row, (&self.norm, self.eps), output.beside(grad), to)?;
        }
        Ok([dx, save.mask.then_some(dmask)])
    }

    /// The gradient of the active rows after the norm, `[active, C]`; writes that of their masks, unless `dmask` is empty.
    fn normed_gradient(
        &self,
        mask: Option<&[f32]>,
        grad: &[f32],
        saved: &Saved,
        dmask: &mut [f32],
    ) -> Result<Scratch> {
        let (channels, width) = (self.fc2.1.elem_count(), self.fc1.1.elem_count());
        let gamma = self.gamma.as_ref().map(values).transpose()?;
        let (gamma, bias) = (gamma.as_deref(), values(&self.fc2.1)?);
        let mut dnormed = scratch(saved.active.len() * channels);
        let size = block_of(saved.active.len());
        let blocks = saved.active.chunks(size).zip(saved.hidden.chunks(size * width));
        for ((active, hidden), dnormed) in blocks.zip(dnormed.chunks_mut(size * channels)) {
            let (mut g, mut dhidden) =
                (scratch(active.len() * channels), scratch(active.len() * width));
            for_row_blocks(&mut g, channels, |first, block| {
                for (i, g) in block.chunks_exact_mut(channels).enumerate() {
                    let row = active[first + i];
                    let scale = mask.map_or(1.0, |mask| mask[row]);
                    scale_row(&grad[row * channels..][..channels], scale, gamma, g);
                }
            });
            gradient_product(&g, &self.fc2.0, &mut dhidden)?;
            // ⟨g, branch⟩ = ⟨g · fc2, GELU(h)⟩ + ⟨g, bias⟩.
            let mut along = scratch(active.len());
            let rows = dhidden.par_chunks_mut(8 * width).zip(along.par_chunks_mut(8)).enumerate();
            rows.for_each(|(i, (dhidden, along))| {
                let hidden = &hidden[8 * i * width..];
                let rows = dhidden.chunks_exact_mut(width).zip(hidden.chunks_exact(width));
                rows.zip(along).for_each(|((d, h), along)| *along = through_activation(d, h));
            });
            if !dmask.is_empty() {
                for ((&row, along), g) in active.iter().zip(&*along).zip(g.chunks_exact(channels)) {
                    let of_bias: f32 = g.iter().zip(&*bias).map(|(g, b)| g * b).sum();
                    dmask[row] = (along + of_bias) / mask.map_or(1.0, |mask| mask[row]);
                }
            }
            gradient_product(&dhidden, &self.fc1.0, dnormed)?;
        }
        Ok(dnormed)
    }
}

/// d ← d ⊙ GELU′(h), the values before the activation; returns ⟨d, GELU(h)⟩ of the old d.
fn through_activation(d: &mut [f32], h: &[f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let along = sum_of(d, h, |d, h| d * gelu(h));
            d.iter_mut().zip(h).for_each(|(d, &h)| *d *= gelu_derivative(h));
            along
        },
    )
}

/// row ← GELU(row + bias), with row + bias written to `keep` if it is there.
fn activate(row: &mut [f32], bias: &[f32], keep: Option<&mut [f32]>) {
    vectorised(
        #[inline(always)]
        || match keep {
            Some(keep) => {
                for ((h, b), k) in row.iter_mut().zip(bias).zip(keep) {
                    *k = *h + b;
                    *h = gelu(*k);
                }
            }
            None => row.iter_mut().zip(bias).for_each(|(h, b)| *h = gelu(*h + b)),
        },
    );
}

/// Multiplies every row by its mask and adds `beside`.
fn apply_mask(y: &mut [f32], mask: &[f32], beside: Option<&[f32]>) {
    let channels = y.len() / mask.len().max(1);
    for_row_blocks(y, channels, |first, block| {
        for (i, row) in block.chunks_exact_mut(channels).enumerate() {
            match mask[first + i] {
                0.0 => row.fill(0.0),
                1.0 => {}
                m => row.iter_mut().for_each(|v| *v *= m),
            }
            if let Some(beside) = beside {
                let beside = &beside[(first + i) * channels..][..channels];
                row.iter_mut().zip(beside).for_each(|(v, b)| *v += b);
            }
        }
    });
}

fn scale_row(from: &[f32], scale: f32, gamma: Option<&[f32]>, to: &mut [f32]) {
    match gamma {
        Some(gamma) => {
            to.iter_mut().zip(from).zip(gamma).for_each(|((to, v), g)| *to = v * g * scale)
        }
        None => to.iter_mut().zip(from).for_each(|(to, v)| *to = v * scale),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;
    use crate::ops::composed;
    use crate::ops::gradcheck::{check, normal, relative_difference};
    use crate::ops::kernel_calls;
    use crate::ops::twin::{assert_twins, random};

    /// A branch with weights of about the size that trained ones have.
    fn branch(
        channels: usize,
        make: impl Fn(&[usize], u64) -> Result<Tensor>,
    ) -> Result<MlpBranch> {
        let hidden = 4 * channels;
        let small = |shape: &[usize], seed| make(shape, seed)? * (shape[1] as f64).powf(-0.5);
        Ok(MlpBranch {
            norm: (make(&[channels], 11)?, make(&[channels], 12)?),
            eps: 1e-6,
            fc1: (small(&[hidden, channels], 13)?, make(&[hidden], 14)?),
            fc2: (small(&[channels, hidden], 15)?, make(&[channels], 16)?),
            gamma: Some(make(&[channels], 17)?),
        })
    }

    fn mask(batch: usize, tokens: usize, active: impl Fn(usize) -> bool) -> Result<Tensor> {
        let values: Vec<f32> =
            (0..batch * tokens).map(|i| f32::from(u8::from(active(i)))).collect();
        Tensor::from_vec(values, (batch, tokens), &Device::Cpu)
    }

    #[test]
    fn the_composed_gradients_are_right() -> Result<()> {
        let branch = branch(6, normal)?;
        check(
            |t| branch.forward(&t[0], Some(&t[1])),
            &[normal(&[2, 4, 6], 1)?, normal(&[2, 4], 2)?],
        )
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        // Rounding of two products in a row, relative to the largest value. 2200 rows need a second block.
        for (batch, tokens, channels) in [(1, 197, 768), (1, 325, 384), (8, 275, 24), (3, 5, 12)] {
            let mut branch = branch(channels, random)?;
            let x = random(&[batch, tokens, channels], 1)?;
            let all = std::slice::from_ref(&x);
            assert_twins("mlp_branch", 2e-5, all, |t| branch.forward(&t[0], None))?;
            branch.gamma = None;
            let half = mask(batch, tokens, |i| i % 5 < 2)?;
            assert_twins("mlp_branch", 2e-5, all, |t| branch.forward(&t[0], Some(&half)))?;
            assert_twins("mlp_branch", 2e-5, all, |t| branch.sum(&t[0], None, None))?;
            for mask in [half, mask(batch, tokens, |_| true)?, mask(batch, tokens, |_| false)?] {
                let inputs = [x.clone(), mask];
                assert_twins("mlp_branch", 2e-5, &inputs, |t| branch.forward(&t[0], Some(&t[1])))?;
                assert_twins("mlp_branch", 2e-5, &inputs, |t| {
                    branch.sum(&t[0], Some(&t[1]), None)
                })?;
                // Of an input that wants no gradient the mask still gets its own.
                let alone = &inputs[1..];
                assert_twins("mlp_branch", 2e-5, alone, |t| branch.forward(&x, Some(&t[0])))?;
            }
        }
        Ok(())
    }

    #[test]
    fn an_inactive_row_gets_a_mask_gradient_but_no_input_gradient() -> Result<()> {
        let branch = branch(8, random)?;
        let (x, mask) = (
            Var::from_tensor(&random(&[1, 3, 8], 1)?)?,
            Var::from_tensor(&mask(1, 3, |i| i != 1)?)?,
        );
        let grads = branch.forward(&x, Some(&mask))?.sum_all()?.backward()?;
        let dx = grads.get(&x).unwrap().get(0)?.to_vec2::<f32>()?;
        assert!(dx[1] == [0.0; 8] && dx[0] != [0.0; 8]);
        // The gradient of the sum by the mask is the sum of the unmasked branch.
        let whole = composed(|| branch.forward(x.as_tensor(), None))?.sum(2)?;
        let difference = relative_difference(grads.get(&mask).unwrap(), &whole)?;
        assert!(difference < 1e-5, "{difference}");
        assert!(grads.get(&branch.fc1.0).is_none());
        Ok(())
    }

    #[test]
    fn gathered_equals_masked() -> Result<()> {
        let branch = branch(24, random)?;
        let x = random(&[3, 197, 24], 1)?;
        let before = kernel_calls("mlp_branch.gathered");
        let some = |i: usize| i % 3 == 1;
        for (mask, active) in [
            (mask(3, 197, some)?, (0..591).filter(|&i| some(i as usize)).collect::<Vec<u32>>()),
            (mask(3, 197, |_| true)?, (0..591).collect()),
            (mask(3, 197, |_| false)?, vec![]),
        ] {
            let masked = (&x + branch.forward(&x, Some(&mask))?)?;
            let gathered = branch.gathered(&x, &active, None)?;
            assert!(relative_difference(&gathered, &masked)? < 1e-5);
            let plain = composed(|| branch.gathered(&x, &active, None))?;
            assert!(relative_difference(&gathered, &plain)? < 1e-5);
        }
        assert!(kernel_calls("mlp_branch.gathered") >= before + 2);
        Ok(())
    }

    #[test]
    fn wrong_row_lists_are_refused() -> Result<()> {
        let (branch, x) = (branch(8, random)?, random(&[1, 3, 8], 1)?);
        assert!(branch.gathered(&x, &[3], None).unwrap_err().to_string().contains("row 3 of 3"));
        assert!(
            branch.gathered(&x, &[1, 1], None).unwrap_err().to_string().contains("listed twice")
        );
        Ok(())
    }
}
