//! A 3×3 convolution of a map that was enlarged first, without the enlarged map.
//!
//! Mixing channels and bilinear resizing commute, so with up(·) the resizing and W_t the matrix of tap t
//! `conv3x3(up(x)) = Σ_t shift_t(up(W_t · x))`: the product runs at the map's own size, a fraction 1/k² of the pixels, and
//! what it gives is enlarged, shifted (zeros come in from beyond the edge) and added.

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::conv2d::Geometry;
use super::fresh::Fresh;
use super::host::values;
use super::resize::{Interpolation, axis};
use super::rows::scratch;
use super::separable::{Axis, Dense, Taps};
use super::vector::vectorised;
use super::{Conv2d, add, conv2d, count, fusible, resize_bilinear};

/// `conv2d(resize_bilinear(x, size), weight)` with padding 1, added to `onto`: `x` `[B, C, h, w]`, `weight` `[O, C, 3, 3]` →
/// `[B, O, H, W]`.
///
/// # Errors
/// If the shapes do not fit together or a side is 0.
pub fn conv3x3_of_resized(
    x: &Tensor,
    weight: &Tensor,
    size: (usize, usize),
    onto: Option<&Tensor>,
) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    let (outputs, _, _, _) = weight.dims4()?;
    if let Some(onto) = onto.filter(|onto| onto.dims() != [batch, outputs, size.0, size.1]) {
        bail!("conv_of_resized: {outputs} maps of {size:?} do not add to {:?}", onto.dims());
    }
    if mixes_before_resizing((height, width), size)
        && fusible(&[x, weight])
        && onto.is_none_or(|onto| fusible(&[onto]))
    {
        let taps = weight.permute((0, 2, 3, 1))?.reshape((9 * outputs, channels, 1, 1))?;
        return fused(x, &taps, Spread::new((height, width), size), onto);
    }
    let y = conv2d(&resize_bilinear(x, size)?, weight, None, Conv2d::same(3))?;
    match onto {
        Some(onto) => add(onto, &y),
        None => Ok(y),
    }
}

/// `taps`: `[O · 9, C, 1, 1]`. The mixed maps are not kept: they have nine times the output's channels.
fn fused(x: &Tensor, taps: &Tensor, spread: Spread, onto: Option<&Tensor>) -> Result<Tensor> {
    count("conv_of_resized");
    let (x, taps) = (x.contiguous()?, taps.contiguous()?);
    let onto = onto.map(Tensor::contiguous).transpose()?;
    let mix = Geometry::new(x.shape(), taps.shape(), Conv2d::default())?;
    let y = {
        let onto = onto.as_ref().map(values).transpose()?;
        spread.spread(&mix.forward(&values(&x)?, &values(&taps)?, None), onto.as_deref())
    };
    let (batch, outputs) = (x.dim(0)?, taps.dim(0)? / 9);
    let inputs: Vec<&Tensor> = [&x, &taps].into_iter().chain(&onto).collect();
    let y = Fresh::on_cpu(y, (batch, outputs, spread.to.0, spread.to.1));
    y.with_gradient(&inputs, move |inputs, _, grad| {
        count("conv_of_resized.backward");
        let mixed = spread.gather(&values(grad)?);
        let gradient = |(i, input): (usize, &&Tensor)| {
            let values = match i {
                _ if !input.track_op() => return Ok(None),
                0 => mix.input_gradient(&values(inputs[1])?, &mixed, None),
                1 => mix.weight_gradient(&values(inputs[0])?, &mixed),
                _ => return Ok(Some(grad.clone())),
            };
            Tensor::from_vec(values, input.shape(), &Device::Cpu).map(Some)
        };
        inputs.iter().enumerate().map(gradient).collect()
    })
}

/// Whether nine products at the size `from` cost clearly less than the convolution at the size `to`.
pub fn mixes_before_resizing(from: (usize, usize), to: (usize, usize)) -> bool {
    let (small, large) = (from.0 * from.1, to.0 * to.1);
    small > 0 && 2 * small <= large
}

/// Nine maps per output, enlarged, shifted by the place of their tap and added.
struct Spread {
    /// Enlarging and shifting by −1, 0 and 1, along the rows and along the columns.
    rows: [Axis; 3],
    columns: [Axis; 3],
    from: (usize, usize),
    to: (usize, usize),
}

impl Spread {
    fn new(from: (usize, usize), to: (usize, usize)) -> Self {
        let shifted = |n: usize, m: usize| {
            let whole = axis(n, m, Interpolation::Bilinear { align_corners: false });
            [0, 1, 2].map(|tap| {
                // Output j sees the enlarged sample j + tap − 1.
                let seen = |j: usize| (j + tap).checked_sub(1).and_then(|j| whole.rows.get(j));
                let nothing = Taps { start: 0, weights: Vec::new() };
                let rows = (0..m).map(|j| seen(j).unwrap_or(&nothing).clone()).collect();
                Axis { inputs: n, rows }
            })
        };
        Self { rows: shifted(from.0, to.0), columns: shifted(from.1, to.1), from, to }
    }

    fn spread(&self, x: &[f32], onto: Option<&[f32]>) -> Vec<f32> {
        let (small, large) = (self.from.0 * self.from.1, self.to.0 * self.to.1);
        let (rows, columns) =
            (self.rows.each_ref().map(Dense::new), self.columns.each_ref().map(Dense::new));
        let mut out = vec![0.0; x.len() / (9 * small) * large];
        let maps = out.par_chunks_exact_mut(large).zip(x.par_chunks_exact(9 * small)).enumerate();
        maps.for_each(|(map, (out, x))| {
            if let Some(onto) = onto {
                out.copy_from_slice(&onto[map * large..][..large]);
            }
            vectorised(
                #[inline(always)]
                || {
                    let (height, width) = (self.from.0, self.to.1);
                    let mut lines = scratch(height * width);
                    let mut part = scratch(width);
                    for (maps, rows) in x.chunks_exact(3 * small).zip(&rows) {
                        for (y, line) in lines.chunks_exact_mut(width).enumerate() {
                            line.fill(0.0);
                            for (map, columns) in maps.chunks_exact(small).zip(&columns) {
                                columns.along(&map[y * self.from.1..][..self.from.1], &mut part);
                                line.iter_mut().zip(&*part).for_each(|(line, part)| *line += part);
                            }
                        }
                        for (i, out) in out.chunks_exact_mut(width).enumerate() {
                            rows.one_across(i, &lines[rows.start[i] * width..], &mut part);
                            out.iter_mut().zip(&*part).for_each(|(out, part)| *out += part);
                        }
                    }
                },
            );
        });
        out
    }

    /// The transpose of [`Self::spread`].
    fn gather(&self, grad: &[f32]) -> Vec<f32> {
        let (small, large) = (self.from.0 * self.from.1, self.to.0 * self.to.1);
        let rows = self.rows.each_ref().map(Dense::new);
        let columns = self.columns.each_ref().map(|axis| Dense::new(&axis.transposed()));
        let mut out = vec![0.0; grad.len() / large * 9 * small];
        out.par_chunks_exact_mut(9 * small).zip(grad.par_chunks_exact(large)).for_each(
            |(out, grad)| {
                vectorised(
                    #[inline(always)]
                    || {
                        let (height, width) = (self.from.0, self.to.1);
                        let mut lines = scratch(height * width);
                        for (maps, rows) in out.chunks_exact_mut(3 * small).zip(&rows) {
                            lines.fill(0.0);
                            for (i, grad) in grad.chunks_exact(width).enumerate() {
                                rows.one_back(i, grad, &mut lines[rows.start[i] * width..]);
                            }
                            for (map, columns) in maps.chunks_exact_mut(small).zip(&columns) {
                                for (line, to) in
                                    lines.chunks_exact(width).zip(map.chunks_exact_mut(self.from.1))
                                {
                                    columns.along(line, to);
                                }
                            }
                        }
                    },
                );
            },
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::relative_difference;
    use crate::ops::kernel_calls;
    use crate::ops::twin::{assert_twins, random};

    #[test]
    fn it_is_the_convolution_of_the_enlarged_map() -> Result<()> {
        // Twice, by an odd ratio along each axis, eightfold, from the single pixel of a pooled map, to a single row.
        let sizes = [
            ((8, 8), (16, 16)),
            ((5, 7), (19, 30)),
            ((3, 2), (24, 16)),
            ((1, 1), (9, 6)),
            ((1, 2), (1, 5)),
        ];
        for (from, to) in sizes {
            let inputs = [random(&[2, 6, from.0, from.1], 1)?, random(&[5, 6, 3, 3], 2)?];
            assert_twins("conv_of_resized", 1e-5, &inputs, |t| {
                conv3x3_of_resized(&t[0], &t[1], to, None)
            })?;
            let inputs = [&inputs[..], &[random(&[2, 5, to.0, to.1], 3)?]].concat();
            assert_twins("conv_of_resized", 1e-5, &inputs, |t| {
                conv3x3_of_resized(&t[0], &t[1], to, Some(&t[2]))
            })?;
        }
        Ok(())
    }

    #[test]
    fn at_real_width_it_stays_within_rounding() -> Result<()> {
        let inputs = [random(&[1, 768, 9, 11], 1)?, (random(&[64, 768, 3, 3], 2)? * 0.02)?];
        assert_twins("conv_of_resized", 1e-5, &inputs, |t| {
            conv3x3_of_resized(&t[0], &t[1], (18, 23), None)
        })
    }

    #[test]
    fn a_map_that_hardly_grows_is_enlarged_first() -> Result<()> {
        let (x, weight) = (random(&[1, 4, 8, 8], 1)?, random(&[4, 4, 3, 3], 2)?);
        let before = kernel_calls("conv_of_resized");
        let y = conv3x3_of_resized(&x, &weight, (9, 9), None)?;
        let twice = conv3x3_of_resized(&x, &weight, (9, 9), Some(&y))?;
        assert!(relative_difference(&twice, &(&y * 2.0)?)? < 1e-6);
        assert!(conv3x3_of_resized(&x, &weight, (8, 9), Some(&y)).is_err());
        assert_eq!((y.dims(), kernel_calls("conv_of_resized")), (&[1usize, 4, 9, 9][..], before));
        Ok(())
    }
}
