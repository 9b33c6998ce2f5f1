//! RoIAlign (He et al., *Mask R-CNN*, ICCV 2017, arXiv 1703.06870, §3), aligned as in detectron2's `ROIAlignV2`.
//!
//! The samples of a region lie on a grid, and bilinear interpolation is a product over the axes, so that
//! `out[i, j] = Σ_y Σ_x W_y[i, y] · W_x[j, x] · map[y, x]` with two small matrices per region: the mean over the samples is
//! never taken sample by sample.

mod axis;
mod bitmap;
mod kernel;

use candle_core::{Result, Tensor, bail};

pub(super) use self::axis::Axis;
use super::{fusible, gpu};
pub use bitmap::roi_align_bitmap;

/// A region of an image of the batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Roi {
    /// Number of the image in the batch.
    pub image: usize,
    /// `[x0, y0, x1, y1]` in pixels of the model's input.
    pub bounds: [f32; 4],
}

/// How regions are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoiAlign {
    /// Bins along each axis.
    pub size: usize,
    /// Pixels of the map per pixel of the input: 1 / stride.
    pub scale: f32,
    /// Samples along each axis of a bin; 0: as many as the bin has pixels, rounded up.
    pub sampling_ratio: usize,
    /// Factor on the gradient that goes to the map (Cascade R-CNN averages over its stages); 1 is the derivative.
    pub gradient_scale: f32,
}

/// The largest coordinate that a region may have.
const FARTHEST: f32 = 16_777_216.0;

/// Mean of bilinear samples in `size × size` bins of every region: `map` `[B, C, H, W]` → `[R, C, size, size]`, in the order
/// of `rois`. Samples more than a pixel outside the map count as 0.
///
/// # Errors
/// If a region names an image that is not there or has coordinates that are no numbers.
pub fn roi_align(map: &Tensor, rois: &[Roi], options: RoiAlign) -> Result<Tensor> {
    let (batch, channels, height, width) = map.dims4()?;
    for roi in rois {
        if roi.image >= batch || !roi.bounds.iter().all(|v| v.abs() < FARTHEST) {
            bail!("roi_align: {roi:?} does not fit a batch of {batch} images");
        }
    }
    let size = options.size;
    if rois.is_empty() || map.elem_count() == 0 || size == 0 {
        return Tensor::zeros((rois.len(), channels, size, size), map.dtype(), map.device());
    }
    if gpu::runs(&[map]) {
        return gpu::roi_align(map, rois, options);
    }
    if fusible(&[map]) {
        return map.contiguous()?.apply_op1(kernel::Kernel::new(rois, options, (height, width)));
    }
    composed(map, rois, options)
}

/// Regions that one product of [`composed`] handles.
const REGIONS: usize = 64;

/// Two batched products with the matrices of both axes.
fn composed(map: &Tensor, rois: &[Roi], options: RoiAlign) -> Result<Tensor> {
    let (batch, channels, height, width) = map.dims4()?;
    let size = options.size;
    let map = match options.gradient_scale {
        1.0 => map.clone(),
        // The value is the map's; only the first part has a gradient.
        share => ((map * f64::from(share))? + (map.detach() * (1.0 - f64::from(share)))?)?,
    };
    // [B, H, W, C]
    let rows = map.permute((0, 2, 3, 1))?.contiguous()?;
    let matrix = |rois: &[Roi], low: usize, pixels: usize| -> Result<Tensor> {
        let dense = rois.iter().flat_map(|roi| {
            Axis::new(roi.bounds[low], roi.bounds[low + 2], pixels, options).dense(pixels)
        });
        let dense: Vec<f32> = dense.collect();
        Tensor::from_vec(dense, (rois.len(), size, pixels), map.device())?.to_dtype(map.dtype())
    };
    let (mut pooled, mut order) = (Vec::new(), Vec::new());
    for image in 0..batch {
        let members: Vec<usize> = (0..rois.len()).filter(|&r| rois[r].image == image).collect();
        let flat = rows.get(image)?.reshape((height, width * channels))?;
        for members in members.chunks(REGIONS) {
            let part: Vec<Roi> = members.iter().map(|&r| rois[r]).collect();
            let vertical = matrix(&part, 1, height)?.reshape((part.len() * size, height))?;
            // [R·S, W·C] → [R, W, S·C]
            let lines = vertical.matmul(&flat)?;
            let lines = lines.reshape((part.len(), size, width, channels))?;
            let lines = lines.transpose(1, 2)?.contiguous()?;
            let lines = lines.reshape((part.len(), width, size * channels))?;
            // [R, S (columns), S (rows), C] → [R, C, rows, columns]
            let bins = matrix(&part, 0, width)?.matmul(&lines)?;
            let bins = bins.reshape((part.len(), size, size, channels))?.permute((0, 3, 2, 1))?;
            pooled.push(bins);
            order.extend_from_slice(members);
        }
    }
    let pooled = Tensor::cat(&pooled, 0)?.contiguous()?;
    if order.is_sorted() {
        return Ok(pooled);
    }
    let mut places = vec![0u32; order.len()];
    order.iter().enumerate().for_each(|(place, &r)| places[r] = place as u32);
    pooled.index_select(&Tensor::new(places, map.device())?, 0)
}

/// The pyramid level of a box (Lin et al., *Feature Pyramid Networks*, arXiv 1612.03144, Eq. 1):
/// ⌊canonical_level + log₂(√area / canonical_size)⌋, limited to `levels`.
pub fn pyramid_level(
    bounds: [f32; 4],
    (canonical_size, canonical_level): (f32, usize),
    levels: std::ops::RangeInclusive<usize>,
) -> usize {
    let side = crate::boxes::area(bounds).sqrt();
    let level = canonical_level as f32 + (side / canonical_size + 1e-8).log2();
    // A box without area (or with a negative one) goes to the finest level.
    (level.floor().max(0.0) as usize).clamp(*levels.start(), *levels.end())
}

#[cfg(test)]
mod tests;
