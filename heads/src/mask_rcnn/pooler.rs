//! Features of regions, each from the level of its size (detectron2's `ROIPooler`).

use candle_core::{Result, Tensor, bail};
use rescatter::ops::{Roi, RoiAlign, pyramid_level, roi_align};

/// Pools regions from several levels.
#[derive(Debug, Clone, PartialEq)]
pub struct RoiPooler {
    /// Bins along each axis.
    pub size: usize,
    /// Samples along each axis of a bin; 0 adapts.
    pub sampling_ratio: usize,
    /// Pixels of the input per pixel of each level, fine to coarse.
    pub strides: Vec<f32>,
    /// Number of the first of these levels.
    pub min_level: usize,
    /// √area of a region that belongs to `canonical_level`.
    pub canonical_size: f32,
    /// The level of such a region.
    pub canonical_level: usize,
}

impl RoiPooler {
    /// The number of the level that a region is pooled from.
    pub fn level(&self, bounds: [f32; 4]) -> usize {
        let last = self.min_level + self.strides.len() - 1;
        pyramid_level(bounds, (self.canonical_size, self.canonical_level), self.min_level..=last)
    }

    /// The regions' numbers, grouped by level: an order in which pooling copies nothing.
    pub fn by_level(&self, rois: &[Roi]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..rois.len()).collect();
        order.sort_by_cached_key(|&i| self.level(rois[i].bounds));
        order
    }

    /// `levels`: `[B, C, hₗ, wₗ]` → `[R, C, size, size]` in the order of `rois`; the gradient to the levels is multiplied by
    /// `gradient_scale`.
    ///
    /// # Errors
    /// If the levels do not fit the strides, or a region does not fit the batch.
    pub fn pool(&self, levels: &[Tensor], rois: &[Roi], gradient_scale: f32) -> Result<Tensor> {
        if levels.len() != self.strides.len() {
            bail!("the pooler has {} strides, got {} levels", self.strides.len(), levels.len());
        }
        let order = self.by_level(rois);
        let mut pooled = Vec::new();
        for members in
            order.chunk_by(|&a, &b| self.level(rois[a].bounds) == self.level(rois[b].bounds))
        {
            let level = self.level(rois[members[0]].bounds) - self.min_level;
            let options = RoiAlign {
                size: self.size,
                scale: 1.0 / self.strides[level],
                sampling_ratio: self.sampling_ratio,
                gradient_scale,
            };
            let members: Vec<Roi> = members.iter().map(|&i| rois[i]).collect();
            pooled.push(roi_align(&levels[level], &members, options)?);
        }
        let pooled = match pooled.as_slice() {
            [] => {
                let (channels, map) = (levels[0].dim(1)?, &levels[0]);
                let shape = (0, channels, self.size, self.size);
                return Tensor::zeros(shape, map.dtype(), map.device());
            }
            [one] => one.clone(),
            several => Tensor::cat(several, 0)?,
        };
        if order.is_sorted() {
            return Ok(pooled);
        }
        let mut places = vec![0u32; order.len()];
        for (place, &i) in order.iter().enumerate() {
            places[i] = place as u32;
        }
        let places = Tensor::from_vec(places, order.len(), pooled.device())?;
        pooled.index_select(&places, 0)
    }
}
