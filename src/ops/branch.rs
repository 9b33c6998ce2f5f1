//! Steps that the two half blocks share, on rows of f32 values on the CPU.

use candle_core::{Result, Tensor, bail};

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::host::values;
use super::layer_norm::Affine;
use super::rows::{filled, for_row_blocks};
use super::vector::vectorised;

/// What a half block gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// The branch alone.
    Branch,
    /// The branch added to the input.
    Sum,
}

impl Output {
    /// What is added to the branch, or to its gradient: `values`, or nothing.
    pub(crate) fn beside(self, values: &[f32]) -> Option<&[f32]> {
        (self == Self::Sum).then_some(values)
    }
}

/// Writes the layer norm of the rows `x(0), x(1), …` to the rows of `y`.
pub(crate) fn normalise<'a>(
    x: impl Fn(usize) -> &'a [f32] + Sync,
    norm: &(Tensor, Tensor),
    eps: f64,
    y: &mut [f32],
) -> Result<()> {
    let (weight, bias) = (values(&norm.0)?, values(&norm.1)?);
    let affine = Affine { weight: &weight, bias: &bias, eps: eps as f32 };
    for_row_blocks(y, weight.len(), |first, block| {
        vectorised(
            #[inline(always)]
            || {
                for (i, y) in block.chunks_exact_mut(affine.weight.len()).enumerate() {
                    affine.normalise(x(first + i), y);
                }
            },
        );
    });
    Ok(())
}

/// Writes the gradient of the rows `x` of a layer norm, plus `beside`; `grad(i)` is that of row i's normalised form, or
/// nothing where it is zero.
pub(crate) fn normalise_gradient<'a>(
    x: &[f32],
    grad: impl Fn(usize) -> Option<&'a [f32]> + Sync,
    norm: (&(Tensor, Tensor), f64),
    beside: Option<&[f32]>,
    dx: &mut [f32],
) -> Result<()> {
    let (norm, eps) = norm;
    let (weight, bias) = (values(&norm.0)?, values(&norm.1)?);
    let affine = Affine { weight: &weight, bias: &bias, eps: eps as f32 };
    let width = weight.len();
    for_row_blocks(dx, width, |first, block| {
        vectorised(
            #[inline(always)]
            || {
                let rows =
                    block.chunks_exact_mut(width).zip(x[first * width..].chunks_exact(width));
                for (i, (dx, x)) in rows.enumerate() {
                    match grad(first + i) {
                        Some(grad) => affine.backward(x, grad, dx),
                        None => dx.fill(0.0),
                    }
                    if let Some(beside) = beside {
                        let beside = &beside[(first + i) * width..][..width];
                        dx.iter_mut().zip(beside).for_each(|(d, b)| *d += b);
                    }
                }
            },
        );
    });
    Ok(())
}

/// `x · weightᵀ`, `weight` `[out, in]`.
pub(crate) fn product(x: &[f32], weight: &Tensor, y: &mut [f32]) -> Result<()> {
    let (out, width) = weight.dims2()?;
    let (rows, weight) = (x.len() / width.max(1), values(weight)?);
    let (x, weight) = (Mat::new(x, rows, width), Mat::new(&weight, out, width));
    gemm(1.0, x, weight.t(), 0.0, MatMut::new(y, rows, out), Threads::Pool);
    Ok(())
}

/// `grad · weight`, the gradient of the input of [`product`].
pub(crate) fn gradient_product(grad: &[f32], weight: &Tensor, dx: &mut [f32]) -> Result<()> {
    let (out, width) = weight.dims2()?;
    let (rows, weight) = (grad.len() / out.max(1), values(weight)?);
    let (grad, weight) = (Mat::new(grad, rows, out), Mat::new(&weight, out, width));
    gemm(1.0, grad, weight, 0.0, MatMut::new(dx, rows, width), Threads::Pool);
    Ok(())
}

/// y ← (y + bias) · γ + beside in every row.
pub(crate) fn add_bias(
    y: &mut [f32],
    bias: &Tensor,
    gamma: Option<&Tensor>,
    beside: Option<&[f32]>,
) -> Result<()> {
    let (bias, gamma) = (values(bias)?, gamma.map(values).transpose()?);
    let (bias, gamma) = (&*bias, gamma.as_deref());
    for_row_blocks(y, bias.len(), |first, block| {
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in block.chunks_exact_mut(bias.len()).enumerate() {
                    match gamma {
                        Some(gamma) => {
                            row.iter_mut()
                                .zip(bias)
                                .zip(gamma)
                                .for_each(|((y, b), g)| *y = (*y + b) * g);
                        }
                        None => row.iter_mut().zip(bias).for_each(|(y, b)| *y += b),
                    }
                    if let Some(beside) = beside {
                        let beside = &beside[(first + i) * bias.len()..][..bias.len()];
                        row.iter_mut().zip(beside).for_each(|(y, b)| *y += b);
                    }
                }
            },
        );
    });
    Ok(())
}

/// Writes x + branch of the `active` rows, and x of the others; `branch` has the active rows alone, in their order.
pub(crate) fn add_rows(x: &[f32], active: &[u32], branch: &[f32], channels: usize) -> Vec<f32> {
    let position = positions(active.iter().map(|&row| row as usize), x.len() / channels);
    filled(x.len(), channels, |row, y| {
        let x = &x[row * channels..][..channels];
        match position[row] {
            Some(at) => {
                let branch = &branch[at * channels..][..channels];
                y.iter_mut().zip(x).zip(branch).for_each(|((y, x), b)| *y = x + b);
            }
            None => y.copy_from_slice(x),
        }
    })
}

/// Where each of `rows` rows stands in the list.
pub(crate) fn positions(list: impl Iterator<Item = usize>, rows: usize) -> Vec<Option<usize>> {
    let mut position = vec![None; rows];
    list.enumerate().for_each(|(at, row)| position[row] = Some(at));
    position
}

/// Refuses row numbers beyond `rows` and repetitions, in the name of `op`.
pub(crate) fn check_rows(op: &str, active: &[u32], rows: usize) -> Result<()> {
    let mut seen = vec![false; rows];
    for &row in active {
        match seen.get_mut(row as usize) {
            None => bail!("{op}: row {row} of {rows}"),
            Some(true) => bail!("{op}: row {row} is listed twice"),
            Some(free) => *free = true,
        }
    }
    Ok(())
}
