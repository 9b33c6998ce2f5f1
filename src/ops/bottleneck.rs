//! The bottleneck that stands beside a half block: s · Up(f ⊙ ReLU(Down x)).

use candle_core::{Result, Shape, Tensor};

use super::activation::at_least;
use super::flat::flat;
use super::fresh::Fresh;
use super::gemm::{Mat, MatMut, Threads, gemm};
use super::host::values;
use super::linear::{column_sums, product};
use super::rows::{for_row_blocks, scratch};
use super::{add, fusible, linear};

/// The parameters of a bottleneck, each pair (weight, bias); cheap clones of the layers' tensors.
#[derive(Debug, Clone)]
pub struct Bottleneck {
    /// `[d, C]` and `[d]`.
    pub down: (Tensor, Tensor),
    /// `[C, d]` and `[C]`.
    pub up: (Tensor, Tensor),
    /// s.
    pub scale: f64,
    /// Dropout: what the hidden values are multiplied by, `[B, N, d]`, 0 or more.
    pub factors: Option<Tensor>,
}

impl Bottleneck {
    /// `x`: `[B, N, C]` → `[B, N, C]`.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = linear(x, &self.down.0, Some(&self.down.1))?.relu()?; // [B, N, d]
        let hidden = match &self.factors {
            Some(factors) => (hidden * factors)?,
            None => hidden,
        };
        // The few weights are scaled instead of the many tokens.
        let (weight, bias) = ((&self.up.0 * self.scale)?, (&self.up.1 * self.scale)?);
        linear(&hidden, &weight, Some(&bias))
    }

    /// `y` + what it makes of `x`, both `[B, N, C]`.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn add(&self, y: &Tensor, x: &Tensor) -> Result<Tensor> {
        let tracked = |t: &&Tensor| t.track_op();
        let frozen = !self.parameters().iter().chain(&[x, y]).any(tracked);
        if frozen && self.fusible() && fusible(&[x, y]) && self.fits(x.shape()) {
            let (x, y) = (x.contiguous()?, y.contiguous()?);
            let mut sum = values(&y)?.to_vec();
            self.add_to(&values(&x)?, &mut sum)?;
            return Ok(Fresh::on_cpu(sum, y.shape()).tensor());
        }
        add(y, &self.forward(x)?)
    }

    /// [`Bottleneck::add`] where there is one, else `y`.
    ///
    /// # Errors
    /// As [`Bottleneck::add`].
    pub fn add_any(adapter: Option<&Self>, y: Tensor, x: &Tensor) -> Result<Tensor> {
        match adapter {
            Some(adapter) => adapter.add(&y, x),
            None => Ok(y),
        }
    }

    fn parameters(&self) -> [&Tensor; 4] {
        [&self.down.0, &self.down.1, &self.up.0, &self.up.1]
    }

    pub(super) fn fusible(&self) -> bool {
        let factors: Vec<_> = self.factors.iter().collect();
        fusible(&self.parameters()) && fusible(&factors)
    }

    /// All parameters in one tensor, in the order of [`Bottleneck::gradient`]'s, if any of them is trained.
    pub(super) fn trained(&self) -> Result<Option<Tensor>> {
        let parameters = self.parameters();
        if !parameters.iter().any(|parameter| parameter.track_op()) {
            return Ok(None);
        }
        flat(&parameters.map(Tensor::clone)).map(Some)
    }

    /// Adds the output for the rows `x` to the rows `y`; returns the hidden values, `[rows, d]`.
    pub(super) fn add_to(&self, x: &[f32], y: &mut [f32]) -> Result<Vec<f32>> {
        let (channels, width) = self.up.0.dims2()?;
        let down = (values(&self.down.0)?, values(&self.down.1)?);
        let mut hidden = product(x, &down.0, Some(&down.1), channels);
        let factors = self.factors.as_ref().map(values).transpose()?;
        let factors = factors.as_deref();
        for_row_blocks(&mut hidden, width, |first, block| {
            block.iter_mut().for_each(|h| *h = at_least(0.0, *h));
            if let Some(factors) = factors {
                let factors = &factors[first * width..];
                block.iter_mut().zip(factors).for_each(|(h, factor)| *h *= factor);
            }
        });
        let (rows, scale) = (x.len() / channels, self.scale as f32);
        let bias: Vec<f32> = values(&self.up.1)?.iter().map(|b| scale * b).collect();
        for_row_blocks(y, channels, |_, block| {
            for row in block.chunks_exact_mut(channels) {
                row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b);
            }
        });
        let up = values(&self.up.0)?;
        let (h, up) = (Mat::new(&hidden, rows, width), Mat::new(&up, channels, width));
        gemm(scale, h, up.t(), 1.0, MatMut::new(y, rows, channels), Threads::Pool);
        Ok(hidden)
    }

    /// The gradient of all parameters, one after the other, for that of the output of the rows `x`, whose hidden values
    /// [`Bottleneck::add_to`] returned; that of `x` is added to `dx`.
    pub(super) fn gradient(
        &self,
        (x, hidden): (&[f32], &[f32]),
        grad: &[f32],
        dx: Option<&mut [f32]>,
    ) -> Result<Vec<f32>> {
        let ((channels, width), scale) = (self.up.0.dims2()?, self.scale as f32);
        let rows = x.len() / channels;
        let mut dhidden = scratch(hidden.len());
        let (g, up) = (Mat::new(grad, rows, channels), values(&self.up.0)?);
        let product = MatMut::new(&mut dhidden, rows, width);
        gemm(scale, g, Mat::new(&up, channels, width), 0.0, product, Threads::Pool);
        let factors = self.factors.as_ref().map(values).transpose()?;
        let factor = |i: usize| factors.as_ref().map_or(1.0, |factors| factors[i]);
        for (i, (d, &h)) in dhidden.iter_mut().zip(hidden).enumerate() {
            *d = if h > 0.0 { *d * factor(i) } else { 0.0 };
        }
        let down = values(&self.down.0)?;
        let d = Mat::new(&dhidden, rows, width);
        if let Some(dx) = dx {
            let dx = MatMut::new(dx, rows, channels);
            gemm(1.0, d, Mat::new(&down, width, channels), 1.0, dx, Threads::Pool);
        }
        let mut all = vec![0.0; 2 * channels * width + channels + width];
        let (ddown, rest) = all.split_at_mut(width * channels);
        let (dbias, rest) = rest.split_at_mut(width);
        let (dup, dup_bias) = rest.split_at_mut(channels * width);
        let x = Mat::new(x, rows, channels);
        gemm(1.0, d.t(), x, 0.0, MatMut::new(ddown, width, channels), Threads::Pool);
        dbias.copy_from_slice(&column_sums(&dhidden, width));
        let (h, dup) = (Mat::new(hidden, rows, width), MatMut::new(dup, channels, width));
        gemm(scale, g.t(), h, 0.0, dup, Threads::Pool);
        let sums = column_sums(grad, channels);
        dup_bias.iter_mut().zip(sums).for_each(|(d, sum)| *d = scale * sum);
        Ok(all)
    }

    /// `[B, N, C]` fits.
    pub(super) fn fits(&self, shape: &Shape) -> bool {
        let [down, down_bias, up, up_bias] = self.parameters().map(Tensor::dims);
        match (shape.dims(), up_bias, down_bias) {
            (&[batch, tokens, width], &[channels], &[hidden]) => {
                width == channels
                    && down == [hidden, channels]
                    && up == [channels, hidden]
                    && self.factors.as_ref().is_none_or(|f| f.dims() == [batch, tokens, hidden])
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal, relative_difference};
    use crate::ops::twin::{assert_twins, random};
    use crate::ops::{MlpBranch, composed};

    fn bottleneck(parameters: &[Tensor], factors: Option<Tensor>) -> Bottleneck {
        let [down, down_bias, up, up_bias] = [0, 1, 2, 3].map(|i| parameters[i].clone());
        Bottleneck { down: (down, down_bias), up: (up, up_bias), scale: 0.3, factors }
    }

    /// Two images of 5 tokens lose a third of their hidden values.
    fn factors(tokens: usize, width: usize) -> Result<Tensor> {
        let values = (0..2 * tokens * width).map(|i| if i % 3 == 1 { 0.0f32 } else { 1.5 });
        Tensor::from_iter(values, &candle_core::Device::Cpu)?.reshape((2, tokens, width))
    }

    fn mlp(channels: usize) -> Result<MlpBranch> {
        let small = |shape: &[usize], seed| random(shape, seed)? * (shape[1] as f64).powf(-0.5);
        Ok(MlpBranch {
            norm: (random(&[channels], 11)?, random(&[channels], 12)?),
            eps: 1e-6,
            fc1: (small(&[4 * channels, channels], 13)?, random(&[4 * channels], 14)?),
            fc2: (small(&[channels, 4 * channels], 15)?, random(&[channels], 16)?),
            gamma: None,
        })
    }

    #[test]
    fn the_composed_gradients_are_right() -> Result<()> {
        let parameters =
            [normal(&[3, 6], 2)?, normal(&[3], 3)?, normal(&[6, 3], 4)?, normal(&[6], 5)?];
        let inputs = [&[normal(&[2, 5, 6], 1)?], &parameters[..]].concat();
        let factors = factors(5, 3)?.to_dtype(candle_core::DType::F64)?;
        check(|t| bottleneck(&t[1..], None).forward(&t[0]), &inputs)?;
        check(|t| bottleneck(&t[1..], Some(factors.clone())).forward(&t[0]), &inputs)
    }

    #[test]
    fn beside_the_half_block_it_is_what_it_is_alone() -> Result<()> {
        let (mlp, tokens, width) = (mlp(24)?, 40, 8);
        let x = random(&[2, tokens, 24], 1)?;
        let parameters = [
            random(&[width, 24], 2)?,
            random(&[width], 3)?,
            random(&[24, width], 4)?,
            random(&[24], 5)?,
        ];
        let half = (0..2 * tokens).map(|i| f32::from(u8::from(i % 5 < 2)));
        let half = Tensor::from_iter(half, x.device())?.reshape((2, tokens))?;
        for factors in [None, Some(factors(tokens, width)?)] {
            let all = [&[x.clone(), half.clone()], &parameters[..]].concat();
            assert_twins("mlp_branch", 2e-5, &all, |t| {
                mlp.sum(&t[0], Some(&t[1]), Some(&bottleneck(&t[2..], factors.clone())))
            })?;
            let all = [std::slice::from_ref(&x), &parameters].concat();
            assert_twins("mlp_branch", 2e-5, &all, |t| {
                mlp.sum(&t[0], None, Some(&bottleneck(&t[1..], factors.clone())))
            })?;
            // Frozen, and of an input that wants no gradient.
            let frozen = bottleneck(&parameters, factors.clone());
            assert_twins("mlp_branch", 2e-5, &all[..1], |t| mlp.sum(&t[0], None, Some(&frozen)))?;
            assert_twins("mlp_branch", 2e-5, &parameters, |t| {
                mlp.sum(&x, Some(&half), Some(&bottleneck(t, factors.clone())))
            })?;
        }
        Ok(())
    }

    #[test]
    fn rows_without_work_get_it_too() -> Result<()> {
        let (mlp, x) = (mlp(24)?, random(&[2, 40, 24], 1)?);
        let parameters =
            [random(&[8, 24], 2)?, random(&[8], 3)?, random(&[24, 8], 4)?, random(&[24], 5)?];
        let adapter = bottleneck(&parameters, None);
        for active in [vec![], vec![3, 50, 7]] {
            let gathered = mlp.gathered(&x, &active, Some(&adapter))?;
            let plain = composed(|| mlp.gathered(&x, &active, Some(&adapter)))?;
            let apart = adapter.add(&mlp.gathered(&x, &active, None)?, &x)?;
            assert!(relative_difference(&gathered, &plain)? < 1e-5);
            assert_eq!(gathered.to_vec3::<f32>()?, apart.to_vec3::<f32>()?);
        }
        let wrong = Bottleneck { up: (random(&[23, 8], 4)?, random(&[23], 5)?), ..adapter };
        assert!(mlp.sum(&x, None, Some(&wrong)).is_err());
        Ok(())
    }
}
