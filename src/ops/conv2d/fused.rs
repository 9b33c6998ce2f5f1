//! The convolution without im2col: one product per tap of the kernel, each reading the padded map at an offset; 3×3
//! kernels of stride 1 go through [`super::winograd`] where that pays.

use std::borrow::Cow;

use candle_core::Shape;

use super::Geometry;
use super::bilinear::Bilinear;
use super::grid::{Grid, GridSpec, pixels_first, transpose};
use super::product::{Product, Tap, weight_gradient};
use super::winograd::Winograd;
use crate::ops::count;
use crate::ops::epilogue::Epilogue;
use crate::ops::gemm::{Mat, MatMut, Threads, gemm};
use crate::ops::rows::{filled, zeros};

/// The convolution as one operation with its own backward pass.
pub(super) struct Convolution(pub(super) Geometry);

impl Bilinear for Convolution {
    const FORWARD: &str = "conv2d";
    const BACKWARD: &str = "conv2d.backward";

    fn shape(&self) -> Shape {
        self.0.output_shape()
    }

    fn forward(&self, x: &[f32], weight: &[f32], epilogue: Epilogue) -> Vec<f32> {
        if Winograd::of(&self.0).is_some() {
            count("conv2d.winograd");
        }
        self.0.forward(x, weight, epilogue)
    }

    fn input_gradient(&self, weight: &[f32], grad: &[f32]) -> Vec<f32> {
        self.0.input_gradient(weight, grad, Epilogue::bias(None))
    }

    fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        self.0.weight_gradient(x, grad)
    }
}

impl Geometry {
    fn area(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }

    /// How many rows and columns of a phase lie before the last tap.
    fn reach(&self) -> (usize, usize) {
        let reach = |kernel: usize| (kernel - 1) * self.conv.dilation / self.conv.stride;
        (reach(self.kernel.0), reach(self.kernel.1))
    }

    /// The taps as (row, column) of the kernel, in the order of the matrices.
    fn kernel_taps(&self) -> impl Iterator<Item = (usize, usize)> {
        let (kh, kw) = self.kernel;
        (0..kh).flat_map(move |ky| (0..kw).map(move |kx| (ky, kx)))
    }

    fn input_grid<'a>(&self, x: &'a [f32]) -> Grid<'a> {
        let (reach, pad) = (self.reach(), self.conv.padding);
        let grid = Grid::new(
            x,
            &GridSpec {
                channels: self.channels,
                size: self.input,
                pad: (pad, pad),
                plane: (self.size.0 + reach.0, self.size.1 + reach.1),
                stride: self.conv.stride,
            },
        );
        if self.patches() { grid.merged() } else { grid }
    }

    /// Where the outputs see the input grid through each tap.
    fn input_taps(&self, width: usize) -> Vec<Tap> {
        if self.patches() {
            return vec![Tap { matrix: 0, phase: 0, offset: 0 }];
        }
        let (s, d) = (self.conv.stride, self.conv.dilation);
        let tap = |(matrix, (ky, kx)): (usize, (usize, usize))| Tap {
            matrix,
            phase: ky * d % s * s + kx * d % s,
            offset: ky * d / s * width + kx * d / s,
        };
        self.kernel_taps().enumerate().map(tap).collect()
    }

    /// `x` `[B, C, H, W]` → `[B, O, H', W']`.
    pub(in crate::ops) fn forward(&self, x: &[f32], w: &[f32], epilogue: Epilogue) -> Vec<f32> {
        match Winograd::of(self) {
            Some(winograd) => winograd.forward(x, w, epilogue),
            None => self.direct(x, w, epilogue),
        }
    }

    /// The same as a sum of products.
    pub(super) fn direct(&self, x: &[f32], w: &[f32], epilogue: Epilogue) -> Vec<f32> {
        let grid = self.input_grid(x);
        let matrices = if self.area() == 1 { Cow::Borrowed(w) } else { Cow::Owned(self.by_tap(w)) };
        let mut out = zeros(self.batch * self.outputs * self.size.0 * self.size.1);
        let taps = self.input_taps(grid.width);
        let product = Product {
            grid: &grid,
            matrices: &matrices,
            m: self.outputs,
            taps: &taps,
            epilogue,
            count: self.size,
            size: self.size,
            first: (0, 0),
            step: 1,
        };
        product.run(&mut out);
        out
    }

    /// The weight `[O, C, tap]` as `[O, tap, C]`.
    fn by_tap(&self, w: &[f32]) -> Vec<f32> {
        let (channels, area) = (self.channels, self.area());
        filled(w.len(), channels * area, |o, to| {
            transpose(&w[o * channels * area..], area, (channels, area), to);
        })
    }

    /// The weight `[O, C, tap]` as `[C, tap, O]`.
    fn by_tap_of_input(&self, w: &[f32]) -> Vec<f32> {
        let (channels, outputs, area) = (self.channels, self.outputs, self.area());
        filled(w.len(), outputs * area, |c, to| {
            for (o, taps) in w[c * area..].chunks(channels * area).enumerate() {
                for (to, tap) in to[o..].iter_mut().step_by(outputs).zip(taps) {
                    *to = *tap;
                }
            }
        })
    }

    /// Each phase of the padded input is a convolution of the gradient with the transposed taps that lead to it.
    /// With an `epilogue` it is a transposed convolution.
    pub(in crate::ops) fn input_gradient(
        &self,
        w: &[f32],
        grad: &[f32],
        epilogue: Epilogue,
    ) -> Vec<f32> {
        match Winograd::of(self) {
            Some(winograd) if epilogue.is_nothing() => winograd.input_gradient(w, grad),
            _ => self.direct_input_gradient(w, grad, epilogue),
        }
    }

    pub(super) fn direct_input_gradient(
        &self,
        w: &[f32],
        grad: &[f32],
        epilogue: Epilogue,
    ) -> Vec<f32> {
        let (s, d, pad, reach) =
            (self.conv.stride, self.conv.dilation, self.conv.padding, self.reach());
        let last = ((self.input.0 - 1 + pad) / s, (self.input.1 - 1 + pad) / s);
        let grid = Grid::new(
            grad,
            &GridSpec {
                channels: self.outputs,
                size: self.size,
                pad: reach,
                plane: (reach.0 + last.0 + 1, reach.1 + last.1 + 1),
                stride: 1,
            },
        );
        let matrices = self.by_tap_of_input(w);
        let mut dx = zeros(self.batch * self.channels * self.input.0 * self.input.1);
        for (py, px) in (0..s).flat_map(|py| (0..s).map(move |px| (py, px))) {
            let rows = Phase::new(py, s, pad, self.input.0);
            let cols = Phase::new(px, s, pad, self.input.1);
            let leads =
                |&(_, (ky, kx)): &(usize, (usize, usize))| ky * d % s == py && kx * d % s == px;
            let tap = |(matrix, (ky, kx)): (usize, (usize, usize))| {
                let row = rows.first + reach.0 - ky * d / s;
                Tap {
                    matrix,
                    phase: 0,
                    offset: row * grid.width + cols.first + reach.1 - kx * d / s,
                }
            };
            let taps: Vec<Tap> = self.kernel_taps().enumerate().filter(leads).map(tap).collect();
            let product = Product {
                grid: &grid,
                matrices: &matrices,
                m: self.channels,
                taps: &taps,
                epilogue,
                count: (rows.count, cols.count),
                size: self.input,
                first: (rows.pixel, cols.pixel),
                step: s,
            };
            product.run(&mut dx);
        }
        dx
    }

    pub(in crate::ops) fn weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        match Winograd::of(self) {
            Some(winograd) => winograd.weight_gradient(x, grad),
            None => self.direct_weight_gradient(x, grad),
        }
    }

    pub(super) fn direct_weight_gradient(&self, x: &[f32], grad: &[f32]) -> Vec<f32> {
        if self.pointwise() {
            let mut dw = zeros(self.outputs * self.channels);
            self.add_weight_gradient(x, grad, &mut dw);
            return dw;
        }
        let grid = self.input_grid(x);
        let taps = self.input_taps(grid.width);
        let grad = pixels_first(grad, self.outputs, self.size, grid.width);
        let positions = (self.size.0 - 1) * grid.width + self.size.1;
        // [tap, C, O], also where the phases are channels.
        let by_tap = weight_gradient(&grid, &grad, self.outputs, &taps, positions);
        let (area, channels) = (self.area(), self.channels);
        filled(by_tap.len(), channels * area, |o, dw| {
            for (i, value) in dw.iter_mut().enumerate() {
                *value = by_tap[(i % area * channels + i / area) * self.outputs + o];
            }
        })
    }
}

impl Geometry {
    /// The same map of one image.
    pub(in crate::ops) fn of_one_image(&self) -> Self {
        Self { batch: 1, ..*self }
    }

    /// Adds the gradient of the weight of a 1×1 kernel to `dw` `[O, C]`: one product an image, without copies.
    pub(in crate::ops) fn add_weight_gradient(&self, x: &[f32], grad: &[f32], dw: &mut [f32]) {
        let area = self.input.0 * self.input.1;
        let images = x.chunks_exact(self.channels * area);
        for (x, grad) in images.zip(grad.chunks_exact(self.outputs * area)) {
            let (x, grad) = (Mat::new(x, self.channels, area), Mat::new(grad, self.outputs, area));
            let dw = MatMut::new(dw, self.outputs, self.channels);
            gemm(1.0, grad, x.t(), 1.0, dw, Threads::Pool);
        }
    }
}

/// The pixels of one axis that lie on a phase of the padded input.
struct Phase {
    /// Position of the first one among the phase's.
    first: usize,
    /// Its pixel.
    pixel: usize,
    count: usize,
}

impl Phase {
    fn new(phase: usize, stride: usize, pad: usize, size: usize) -> Self {
        let first = pad.saturating_sub(phase).div_ceil(stride);
        let pixel = first * stride + phase - pad;
        Self { first, pixel, count: size.saturating_sub(pixel).div_ceil(stride) }
    }
}
