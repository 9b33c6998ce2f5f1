//! 3×3 convolutions of stride 1 by Winograd's F(4×4, 3×3) (Lavin & Gray, arXiv 1509.09308, §4.3): a tile of 4 × 4 outputs
//! costs 36 multiplications per pair of channels instead of 144.
//!
//! With d a tile of 6 × 6 inputs, g a kernel and Y a tile of outputs, Y = Aᵀ[(GgGᵀ) ⊙ (BᵀdB)]A; summed over channels, each of
//! the 36 points is a matrix product over many tiles. The gradient of the kernel is the transposed chain,
//! Gᵀ[Σ (A dY Aᵀ) ⊙ (BᵀdB)]G. In f32 the error stays below 1e-5 of the largest output at 768 channels (the direct sum: 3e-6).
//!
//! Tiles are counted through the batch, row by row; a part of a few such rows is transformed, multiplied and transformed
//! back before the next one is read.

mod transforms;

use std::ops::Range;

use rayon::prelude::*;

use super::Geometry;
use crate::ops::epilogue::{Epilogue, Finish};
use crate::ops::gemm::{Mat, MatMut, Threads, gemm};
use crate::ops::rows::{Scratch, filled, scratch, zeros};
use transforms::{
    kernel_gradient, kernel_transform, spread_gradient, transform_input, transform_output,
};

/// Outputs of a tile along an axis.
const OUT: usize = 4;
/// Inputs of a tile along an axis.
const IN: usize = 6;
/// Products that stand for a tile.
const POINTS: usize = IN * IN;

/// Tiles that a thread's share of a part holds: enough for efficient products, few enough for the cache.
const PART: usize = 128;

/// Below so many tiles the transform of the kernels costs more than it saves.
const MIN_TILES: usize = 48;

/// Below so many channels on either side the transforms of the maps do.
const MIN_CHANNELS: usize = 24;

/// A 3×3 convolution of stride 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Winograd {
    batch: usize,
    channels: usize,
    outputs: usize,
    input: (usize, usize),
    padding: usize,
    size: (usize, usize),
}

impl Winograd {
    /// The convolution `geometry`, if this is the way to compute it.
    pub(super) fn of(geometry: &Geometry) -> Option<Self> {
        let Geometry { conv, batch, channels, input, outputs, kernel, size } = *geometry;
        let shaped = kernel == (3, 3)
            && conv.stride == 1
            && conv.dilation == 1
            && conv.groups == 1
            && conv.padding <= 2;
        let winograd = Self { batch, channels, outputs, input, padding: conv.padding, size };
        let (rows, columns) = winograd.tiles();
        let pays = batch * rows * columns >= MIN_TILES && channels.min(outputs) >= MIN_CHANNELS;
        (shaped && pays).then_some(winograd)
    }

    /// Rows and columns of tiles of one image.
    fn tiles(&self) -> (usize, usize) {
        (self.size.0.div_ceil(OUT), self.size.1.div_ceil(OUT))
    }

    /// The parts as ranges of tile rows.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, columns) = self.tiles();
        let rows = self.batch * rows;
        let parts = (rows * columns).div_ceil(PART * rayon::current_num_threads());
        let per = rows.div_ceil(parts);
        (0..rows).step_by(per).map(move |first| first..rows.min(first + per))
    }

    /// `x` `[B, C, H, W]`, `w` `[O, C, 3, 3]` → `[B, O, H', W']`.
    pub(super) fn forward(&self, x: &[f32], w: &[f32], epilogue: Epilogue) -> Vec<f32> {
        let kernels = kernel_transform(w, self.channels);
        let kernel = |point: usize| {
            let shape = (self.outputs, self.channels);
            Mat::strided(&kernels[point * self.channels..], shape, (POINTS * self.channels, 1))
        };
        let area = self.size.0 * self.size.1;
        let (rows, columns) = self.tiles();
        let mut out = zeros(self.batch * self.outputs * area);
        for part in self.parts() {
            let tiles = part.len() * columns;
            let inputs = self.transform_map(x, &part);
            // [point, O, tile], so that the products run side by side.
            let mut results = scratch(POINTS * self.outputs * tiles);
            results.par_chunks_exact_mut(self.outputs * tiles).enumerate().for_each(
                |(point, result)| {
                    let result = MatMut::new(result, self.outputs, tiles);
                    let input = points(&inputs, (self.channels, tiles), point);
                    gemm(1.0, kernel(point), input, 0.0, result, Threads::One);
                },
            );
            let results = &*results;
            let images = part.start / rows..(part.end - 1) / rows + 1;
            let planes =
                &mut out[images.start * self.outputs * area..images.end * self.outputs * area];
            planes.par_chunks_exact_mut(area).enumerate().for_each_init(
                Vec::new,
                |scratch, (plane, target)| {
                    let (image, o) = (images.start + plane / self.outputs, plane % self.outputs);
                    let finish = epilogue.of(o);
                    for row in part.start.max(image * rows)..part.end.min((image + 1) * rows) {
                        let seen = |point: usize| {
                            &results[(point * self.outputs + o) * tiles
                                + (row - part.start) * columns..][..columns]
                        };
                        let lines = &mut target[(row % rows) * OUT * self.size.1..];
                        transform_output(seen, finish, (lines, self.size.1), scratch);
                    }
                },
            );
        }
        out
    }

    /// `w` `[O, C, 3, 3]` and the gradient of the output → that of the map, `[B, C, H, W]`: a convolution with the kernels
    /// turned by half a circle.
    pub(super) fn input_gradient(&self, w: &[f32], grad: &[f32]) -> Vec<f32> {
        let turned = Self {
            channels: self.outputs,
            outputs: self.channels,
            input: self.size,
            padding: 2 - self.padding,
            size: self.input,
            ..*self
        };
        let kernels = filled(w.len(), self.outputs * 9, |c, kernels| {
            for (o, kernel) in kernels.chunks_exact_mut(9).enumerate() {
                kernel.copy_from_slice(&w[(o * self.channels + c) * 9..][..9]);
                kernel.reverse();
            }
        });
        turned.forward(grad, &kernels, Epilogue::bias(None))
    }

    /// `x` `[B, C, H, W]` and the gradient of the output → that of the weight, `[O, C, 3, 3]`.
    pub(super) fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        let columns = self.tiles().1;
        let mut sums = zeros(POINTS * self.outputs * self.channels);
        for part in self.parts() {
            let tiles = part.len() * columns;
            let (inputs, grads) = (self.transform_map(x, &part), self.spread(grad, &part));
            sums.par_chunks_exact_mut(self.outputs * self.channels).enumerate().for_each(
                |(point, sum)| {
                    let grad = points(&grads, (self.outputs, tiles), point);
                    let input = points(&inputs, (self.channels, tiles), point).t();
                    let kept = if part.start == 0 { 0.0 } else { 1.0 };
                    gemm(
                        1.0,
                        grad,
                        input,
                        kept,
                        MatMut::new(sum, self.outputs, self.channels),
                        Threads::One,
                    );
                },
            );
        }
        kernel_gradient(&sums)
    }

    /// BᵀdB of the tiles of `part`: `[C, point, tile]`.
    fn transform_map(&self, x: &[f32], part: &Range<usize>) -> Scratch {
        let (height, width) = self.input;
        let (rows, columns) = self.tiles();
        let tiles = part.len() * columns;
        let mut to = scratch(self.channels * POINTS * tiles);
        to.par_chunks_exact_mut(POINTS * tiles).enumerate().for_each_init(
            Vec::new,
            |scratch, (c, to)| {
                for (i, row) in part.clone().enumerate() {
                    let plane =
                        &x[(row / rows * self.channels + c) * height * width..][..height * width];
                    let first = (row % rows * OUT) as isize - self.padding as isize;
                    transform_input(
                        (plane, width),
                        (first, self.padding),
                        (&mut to[i * columns..], tiles, columns),
                        scratch,
                    );
                }
            },
        );
        to
    }

    /// A dY Aᵀ of the tiles of `part`: `[O, point, tile]`.
    fn spread(&self, grad: &[f32], part: &Range<usize>) -> Scratch {
        let (height, width) = self.size;
        let (rows, columns) = self.tiles();
        let tiles = part.len() * columns;
        let mut to = scratch(self.outputs * POINTS * tiles);
        to.par_chunks_exact_mut(POINTS * tiles).enumerate().for_each_init(
            Vec::new,
            |scratch, (o, to)| {
                for (i, row) in part.clone().enumerate() {
                    let plane =
                        &grad[(row / rows * self.outputs + o) * height * width..][..height * width];
                    spread_gradient(
                        (plane, width),
                        row % rows * OUT,
                        (&mut to[i * columns..], tiles, columns),
                        scratch,
                    );
                }
            },
        );
        to
    }
}

/// One point of all channels and tiles of `[channel, point, tile]`.
fn points(maps: &[f32], (channels, tiles): (usize, usize), point: usize) -> Mat<'_> {
    Mat::strided(&maps[point * tiles..], (channels, tiles), (POINTS * tiles, 1))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Result, Tensor};

    use super::super::{Conv2d, conv2d};
    use super::*;
    use crate::ops::gradcheck::relative_difference;
    use crate::ops::kernel_calls;
    use crate::ops::twin::random;

    fn geometry(x: &Tensor, w: &Tensor, padding: usize) -> Result<Geometry> {
        Geometry::new(x.shape(), w.shape(), Conv2d { padding, ..Conv2d::default() })
    }

    /// The largest difference over the largest value.
    fn apart(a: &[f32], b: &[f32]) -> f32 {
        let size = b.iter().fold(0f32, |size, v| size.max(v.abs()));
        a.iter().zip(b).fold(0f32, |apart, (a, b)| apart.max((a - b).abs())) / size
    }

    #[test]
    fn all_three_passes_are_those_of_the_direct_convolution() -> Result<()> {
        // Odd sizes, several images in a part and several parts in an image, every padding.
        let cases = [((3, 24, 29, 31), 40, 1), ((1, 33, 70, 150), 25, 0), ((9, 26, 9, 10), 24, 2)];
        for ((batch, channels, height, width), outputs, padding) in cases {
            let x = random(&[batch, channels, height, width], 1)?;
            let w = random(&[outputs, channels, 3, 3], 2)?;
            let geometry = geometry(&x, &w, padding)?;
            let winograd = Winograd::of(&geometry).expect("large enough");
            let grad = random(geometry.output_shape().dims(), 3)?;
            let data = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
            let (x, w, grad, bias) =
                (data(&x)?, data(&w)?, data(&grad)?, data(&random(&[outputs], 4)?)?);
            let y = winograd.forward(&x, &w, Epilogue::bias(Some(&bias)));
            assert!(apart(&y, &geometry.direct(&x, &w, Epilogue::bias(Some(&bias)))) < 1e-5);
            let dx = winograd.input_gradient(&w, &grad);
            assert!(
                apart(&dx, &geometry.direct_input_gradient(&w, &grad, Epilogue::bias(None))) < 1e-5
            );
            let dw = winograd.weight_gradient(&x, &grad);
            assert!(apart(&dw, &geometry.direct_weight_gradient(&x, &grad)) < 1e-5);
        }
        Ok(())
    }

    #[test]
    fn at_real_width_the_error_stays_below_that_of_a_tolerance() -> Result<()> {
        let (x, w) = (random(&[1, 768, 28, 27], 1)?, random(&[96, 768, 3, 3], 2)?);
        let before = kernel_calls("conv2d.winograd");
        let y = conv2d(&x, &w, None, Conv2d::same(3))?;
        assert!(kernel_calls("conv2d.winograd") > before);
        let (x, w) = (x.to_dtype(DType::F64)?, w.to_dtype(DType::F64)?);
        let exact = conv2d(&x, &w, None, Conv2d::same(3))?;
        let error = relative_difference(&y.to_dtype(DType::F64)?, &exact)?;
        assert!(error < 3e-5, "{error:e} of the largest value");
        Ok(())
    }

    #[test]
    fn small_strided_and_spread_kernels_are_left_to_the_direct_way() -> Result<()> {
        let (x, w) = (random(&[1, 32, 40, 40], 1)?, random(&[32, 32, 3, 3], 2)?);
        let chosen = |conv| {
            Ok::<_, candle_core::Error>(
                Winograd::of(&Geometry::new(x.shape(), w.shape(), conv)?).is_some(),
            )
        };
        assert!(chosen(Conv2d::same(3))?);
        assert!(!chosen(Conv2d { stride: 2, ..Conv2d::same(3) })?);
        assert!(!chosen(Conv2d { dilation: 2, ..Conv2d::same(3) })?);
        assert!(Winograd::of(&geometry(&x.narrow(2, 0, 8)?, &w, 1)?).is_none());
        Ok(())
    }
}
