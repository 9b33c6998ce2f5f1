//! RoIAlign on the CPU. Pixels first (`[H·W, C]`), so that every weight meets a run of channels; forward all regions side
//! by side, backward all blocks of channels, so that no two threads add to one place and the order of sums is fixed.

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Axis, Roi, RoiAlign};
use crate::ops::conv2d::{pixels_first, transpose};
use crate::ops::count;
use crate::ops::host::{slice, values};
use crate::ops::rows::scratch;
use crate::ops::vector::vectorised;

/// Channels that one task of the backward pass handles.
const BLOCK: usize = 64;

pub(super) struct Kernel {
    regions: Vec<Region>,
    size: usize,
    gradient_scale: f32,
}

struct Region {
    image: usize,
    rows: Axis,
    columns: Axis,
}

impl Kernel {
    pub(super) fn new(rois: &[Roi], options: RoiAlign, map: (usize, usize)) -> Self {
        let region = |roi: &Roi| Region {
            image: roi.image,
            rows: Axis::new(roi.bounds[1], roi.bounds[3], map.0, options),
            columns: Axis::new(roi.bounds[0], roi.bounds[2], map.1, options),
        };
        Self {
            regions: rois.iter().map(region).collect(),
            size: options.size,
            gradient_scale: options.gradient_scale,
        }
    }
}

impl CustomOp1 for Kernel {
    fn name(&self) -> &'static str {
        "roi_align"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        count("roi_align");
        let (_, channels, height, width) = layout.shape().dims4()?;
        let pixels = pixels_first(slice(x, layout)?, channels, (height, width), width);
        let bins = self.size * self.size;
        let mut out = vec![0.0; self.regions.len() * channels * bins];
        out.par_chunks_exact_mut(channels * bins).zip(&self.regions).for_each(|(out, region)| {
            let image = &pixels[region.image * height * width * channels..];
            let mut sums = scratch(bins * channels);
            sums.fill(0.0);
            region.pool(image, (width, channels), self.size, &mut sums);
            transpose(&sums, channels, (bins, channels), out);
        });
        Ok((CpuStorage::F32(out), (self.regions.len(), channels, self.size, self.size).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        count("roi_align.backward");
        let (_, channels, height, width) = x.dims4()?;
        let (area, bins) = (height * width, self.size * self.size);
        let grad = grad.contiguous()?;
        let grads = values(&grad)?;
        let mut dx = vec![0.0; x.elem_count()];
        dx.par_chunks_exact_mut(channels * area).enumerate().for_each(|(image, dx)| {
            dx.par_chunks_mut(BLOCK * area).enumerate().for_each(|(block, dx)| {
                let depth = dx.len() / area;
                let mut sums = scratch(area * depth);
                sums.fill(0.0);
                let mut own = scratch(bins * depth);
                let members = self.regions.iter().enumerate().filter(|(_, r)| r.image == image);
                for (r, region) in members {
                    let first = (r * channels + block * BLOCK) * bins;
                    transpose(&grads[first..][..depth * bins], bins, (depth, bins), &mut own);
                    own.iter_mut().for_each(|g| *g *= self.gradient_scale);
                    region.spread(&own, (width, depth), self.size, &mut sums);
                }
                transpose(&sums, depth, (area, depth), dx);
            });
        });
        Tensor::from_vec(dx, x.shape(), &Device::Cpu).map(Some)
    }
}

impl Region {
    /// Adds the bins `[size · size, C]` of `image` `[H·W, C]`.
    fn pool(
        &self,
        image: &[f32],
        (width, channels): (usize, usize),
        size: usize,
        bins: &mut [f32],
    ) {
        let mut line = scratch(size * channels);
        for y in self.rows.span() {
            vectorised(
                #[inline(always)]
                || {
                    for (j, sum) in line.chunks_exact_mut(channels).enumerate() {
                        let (first, weights) = self.columns.bin(j);
                        sum.fill(0.0);
                        let pixels = image[(y * width + first) * channels..].chunks_exact(channels);
                        for (&weight, pixel) in weights.iter().zip(pixels) {
                            add(sum, weight, pixel);
                        }
                    }
                    for (i, bins) in bins.chunks_exact_mut(size * channels).enumerate() {
                        let weight = self.rows.weight(i, y);
                        if weight != 0.0 {
                            add(bins, weight, &line);
                        }
                    }
                },
            );
        }
    }

    /// The transposed operation: adds the gradient `[size · size, C]` of the bins to that of the image `[H·W, C]`.
    fn spread(
        &self,
        bins: &[f32],
        (width, channels): (usize, usize),
        size: usize,
        image: &mut [f32],
    ) {
        let mut line = scratch(size * channels);
        for y in self.rows.span() {
            vectorised(
                #[inline(always)]
                || {
                    line.fill(0.0);
                    for (i, bins) in bins.chunks_exact(size * channels).enumerate() {
                        let weight = self.rows.weight(i, y);
                        if weight != 0.0 {
                            add(&mut line, weight, bins);
                        }
                    }
                    for (j, sum) in line.chunks_exact(channels).enumerate() {
                        let (first, weights) = self.columns.bin(j);
                        let pixels =
                            image[(y * width + first) * channels..].chunks_exact_mut(channels);
                        for (&weight, pixel) in weights.iter().zip(pixels) {
                            add(pixel, weight, sum);
                        }
                    }
                },
            );
        }
    }
}

/// sum += weight · x.
#[inline(always)]
fn add(sum: &mut [f32], weight: f32, x: &[f32]) {
    for (sum, &x) in sum.iter_mut().zip(x) {
        *sum = x.mul_add(weight, *sum);
    }
}
