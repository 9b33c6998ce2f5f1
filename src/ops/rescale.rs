//! Rank-one rescaling of a frozen weight: w + w ∘ (line · column).

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor, bail};

use super::host::{slice, values};
use super::rows::{for_row_blocks, sum_rows};
use super::vector::{sum_of, vectorised};
use super::{count, fusible};

/// `weight` `[out, in]` with row i multiplied by 1 + line\[i\] · column, where the rows are divided into as many equal parts
/// as `columns` has rows, each with a column of its own; `line`: `[out]`, `columns`: `[parts, in]`.
///
/// # Errors
/// If the sizes do not agree.
pub fn rescale(weight: &Tensor, line: &Tensor, columns: &Tensor) -> Result<Tensor> {
    let ((out, input), parts) = (weight.dims2()?, columns.dim(0)?);
    if line.dims() != [out] || columns.dims() != [parts, input] || !out.is_multiple_of(parts) {
        bail!(
            "rescale: vectors {:?} and {:?} do not fit a weight {:?}",
            line.dims(),
            columns.dims(),
            weight.dims()
        );
    }
    if fusible(&[weight, line, columns]) && !weight.track_op() {
        let op = Fused { weight: weight.contiguous()?, part: out / parts };
        return line.contiguous()?.apply_op2(&columns.contiguous()?, op);
    }
    let line = line.reshape((parts, out / parts, 1))?;
    let factor = (line.broadcast_mul(&columns.unsqueeze(1)?)? + 1.0)?.reshape((out, input))?;
    weight * factor
}

struct Fused {
    weight: Tensor,
    /// Rows of a part.
    part: usize,
}

impl CustomOp2 for Fused {
    fn name(&self) -> &'static str {
        "rescale"
    }

    fn cpu_fwd(
        &self,
        line: &CpuStorage,
        line_layout: &Layout,
        columns: &CpuStorage,
        columns_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        count("rescale");
        let (line, columns) = (slice(line, line_layout)?, slice(columns, columns_layout)?);
        let weight = values(&self.weight)?;
        let (weight, width, mut y) = (&*weight, self.weight.dim(1)?, vec![0.0; weight.len()]);
        for_row_blocks(&mut y, width, |first, block| {
            vectorised(
                #[inline(always)]
                || {
                    for (i, y) in (first..).zip(block.chunks_exact_mut(width)) {
                        let column = &columns[i / self.part * width..][..width];
                        let rows = y.iter_mut().zip(&weight[i * width..][..width]).zip(column);
                        rows.for_each(|((y, w), c)| *y = w * (line[i] * c + 1.0));
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), self.weight.shape().clone()))
    }

    fn bwd(
        &self,
        line: &Tensor,
        columns: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        count("rescale.backward");
        let grad = grad.contiguous()?;
        let (grad, weight) = (values(&grad)?, values(&self.weight)?);
        let (line_values, column_values) = (values(line)?, values(columns)?);
        let (grad, weight) = (&*grad, &*weight);
        let (line_values, column_values) = (&*line_values, &*column_values);
        let width = self.weight.dim(1)?;
        let row = |i: usize| i * width..(i + 1) * width;
        let mut dline = vec![0.0; line_values.len()];
        // dline[i] = Σⱼ g w c, a row at a time.
        for_row_blocks(&mut dline, 1, |first, block| {
            let mut products = vec![0.0; width];
            for (i, d) in (first..).zip(block) {
                let column = &column_values[i / self.part * width..][..width];
                products
                    .iter_mut()
                    .zip(&weight[row(i)])
                    .zip(column)
                    .for_each(|((p, w), c)| *p = w * c);
                *d = vectorised(
                    #[inline(always)]
                    || sum_of(&grad[row(i)], &products, |g, p| g * p),
                );
            }
        });
        // dcolumn[j] = Σᵢ g w line over the rows of its part.
        let mut dcolumns = Vec::with_capacity(column_values.len());
        for part in 0..column_values.len() / width.max(1) {
            let first = part * self.part;
            dcolumns.extend(sum_rows(self.part, width, |range, sums| {
                vectorised(
                    #[inline(always)]
                    || {
                        for i in range.start + first..range.end + first {
                            let rows = grad[row(i)].iter().zip(&weight[row(i)]);
                            let scale = line_values[i];
                            sums.iter_mut().zip(rows).for_each(|(s, (g, w))| *s += g * w * scale);
                        }
                    },
                );
            }));
        }
        Ok((
            Some(Tensor::from_vec(dline, line.shape(), &Device::Cpu)?),
            Some(Tensor::from_vec(dcolumns, columns.shape(), &Device::Cpu)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn the_composed_gradient_is_right() -> Result<()> {
        let weight = normal(&[6, 4], 1)?;
        let f = |t: &[Tensor]| rescale(&weight, &t[0], &t[1]);
        check(f, &[normal(&[6], 2)?, normal(&[3, 4], 3)?])?;
        let f = |t: &[Tensor]| rescale(&t[0], &t[1], &t[2]);
        check(f, &[weight.clone(), normal(&[6], 2)?, normal(&[1, 4], 3)?])
    }

    #[test]
    fn fused_equals_composed() -> Result<()> {
        for (out, input, parts) in [(1152, 384, 3), (384, 1536, 1), (9, 7, 3)] {
            let weight = random(&[out, input], 1)?;
            let vectors = [random(&[out], 2)?, random(&[parts, input], 3)?];
            // Sums of 1536 terms in another order.
            assert_twins("rescale", 1e-5, &vectors, |t| rescale(&weight, &t[0], &t[1]))?;
        }
        Ok(())
    }

    #[test]
    fn every_part_has_its_own_column() -> Result<()> {
        let weight = Tensor::ones((4, 2), candle_core::DType::F32, &Device::Cpu)?;
        let line = Tensor::new(&[1f32, 2.0, 1.0, 0.0], &Device::Cpu)?;
        let columns = Tensor::new(&[[1f32, 2.0], [10.0, 20.0]], &Device::Cpu)?;
        let expected = [[2.0, 3.0], [3.0, 5.0], [11.0, 21.0], [1.0, 1.0]];
        assert_eq!(rescale(&weight, &line, &columns)?.to_vec2::<f32>()?, expected);
        assert!(rescale(&weight, &columns, &line).is_err());
        Ok(())
    }
}
