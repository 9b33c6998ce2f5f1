//! Resizing of maps with torch's conventions (no antialiasing).

use candle_core::{Result, Shape, Tensor, bail};

use super::separable::{self, Axis, separable};

/// How samples between pixels are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interpolation {
    /// The pixel at ⌊j·n/m⌋.
    Nearest,
    /// The two nearest pixels along each axis.
    Bilinear {
        /// Whether the first and last samples lie on the first and last pixels.
        align_corners: bool,
    },
    /// The four nearest pixels along each axis, cubic convolution with a = −0.75.
    Bicubic {
        /// Whether the first and last samples lie on the first and last pixels.
        align_corners: bool,
    },
}

/// Resize `x` `[B, C, H, W]` to `[B, C, size.0, size.1]`.
///
/// # Errors
/// If `x` has other dimensions, or a side of it or of `size` is 0.
pub fn resize(x: &Tensor, size: (usize, usize), mode: Interpolation) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if height * width * size.0 * size.1 == 0 {
        bail!("resize: cannot resize {height}x{width} to {}x{}", size.0, size.1);
    }
    if (height, width) == size {
        return Ok(x.clone());
    }
    separable(x, &axis(height, size.0, mode), &axis(width, size.1, mode))
}

/// [`resize`] in the way of segmentation heads: bilinear, corners not aligned.
///
/// # Errors
/// As [`resize`].
pub fn resize_bilinear(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    resize(x, size, Interpolation::Bilinear { align_corners: false })
}

/// [`resize_bilinear`] from one map to the size of another, in operations that have the values themselves.
pub(super) struct Resized {
    rows: Axis,
    columns: Axis,
}

impl Resized {
    /// From `x` `[B, C, h, w]` to the shape `to` `[B, C, H, W]`.
    pub(super) fn new(x: &Tensor, to: &Shape) -> Result<Self> {
        let ((batch, channels, height, width), (_, _, h, w)) = (to.dims4()?, x.dims4()?);
        if x.dims()[..2] != [batch, channels] || h * w * height * width == 0 {
            bail!("resize: {:?} cannot be added to {to:?}", x.dims());
        }
        let mode = Interpolation::Bilinear { align_corners: false };
        Ok(Self { rows: axis(h, height, mode), columns: axis(w, width, mode) })
    }

    /// Adds the resized `x` to `onto`.
    pub(super) fn add(&self, x: &[f32], onto: &mut [f32]) {
        separable::add(x, &self.rows, &self.columns, onto);
    }

    /// The gradient of the map from that of the sum.
    pub(super) fn gradient(&self, grad: &[f32]) -> Vec<f32> {
        separable::run(grad, &self.rows.transposed(), &self.columns.transposed())
    }
}

/// The matrix of one axis from `n` to `m` samples.
pub(super) fn axis(n: usize, m: usize, mode: Interpolation) -> Axis {
    match mode {
        Interpolation::Nearest => Axis::new(n, m, |j| vec![(j * n / m, 1.0)]),
        Interpolation::Bilinear { .. } => Axis::new(n, m, |j| linear(source(j, n, m, mode), n)),
        Interpolation::Bicubic { .. } => Axis::new(n, m, |j| cubic(source(j, n, m, mode), n)),
    }
}

/// Where sample `j` lies among the `n` pixels.
fn source(j: usize, n: usize, m: usize, mode: Interpolation) -> f64 {
    let aligned = match mode {
        Interpolation::Nearest => false,
        Interpolation::Bilinear { align_corners } | Interpolation::Bicubic { align_corners } => {
            align_corners
        }
    };
    match (aligned, m) {
        (true, 1) => 0.0,
        (true, _) => j as f64 * (n - 1) as f64 / (m - 1) as f64,
        (false, _) => (j as f64 + 0.5) * n as f64 / m as f64 - 0.5,
    }
}

fn linear(source: f64, n: usize) -> Vec<(usize, f64)> {
    let source = source.max(0.0);
    let first = (source as usize).min(n - 1);
    let fraction = source - first as f64;
    if fraction == 0.0 {
        return vec![(first, 1.0)];
    }
    vec![(first, 1.0 - fraction), ((first + 1).min(n - 1), fraction)]
}

fn cubic(source: f64, n: usize) -> Vec<(usize, f64)> {
    let first = source.floor();
    let t = source - first;
    let near = |x: f64| (1.25 * x - 2.25) * x * x + 1.0;
    let far = |x: f64| ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    let clamped = |k: usize| (first + k as f64 - 1.0).clamp(0.0, (n - 1) as f64) as usize;
    weights.into_iter().enumerate().map(|(k, weight)| (clamped(k), weight)).collect()
}
