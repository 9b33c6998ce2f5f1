//! The kinds `roi_align`, `multilevel_roi_align`, `level_assignment` and `paste_masks`.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use ndarray::{Array2, s};
use rescatter::ops::{Roi, RoiAlign, roi_align};
use rescatter_heads::mask_rcnn::paste::paste;
use rescatter_heads::mask_rcnn::pooler::RoiPooler;

use super::boxes::indices;
use super::{Fixture, Outputs};

/// Regions `[R, 5]` = (image, x0, y0, x1, y1).
pub(super) fn rois(values: &[f32]) -> Vec<Roi> {
    let roi = |v: &[f32; 5]| Roi { image: v[0] as usize, bounds: [v[1], v[2], v[3], v[4]] };
    values.as_chunks::<5>().0.iter().map(roi).collect()
}

/// `roi_align`: bins and the gradient of the map.
pub(super) fn align(fixture: &Fixture) -> Result<Option<Outputs>> {
    let map = Var::from_tensor(&fixture.input("feature")?)?;
    let options = RoiAlign {
        size: fixture.hyper("size")?,
        scale: fixture.hyper("scale")?,
        sampling_ratio: fixture.hyper("sampling_ratio")?,
        gradient_scale: 1.0,
    };
    let pooled = roi_align(&map, &rois(&fixture.values::<f32>("rois")?), options)?;
    let grads = (&pooled * fixture.input("grad_out.pooled")?)?.sum_all()?.backward()?;
    let grad = grads.get(&map).cloned().map_or_else(|| map.zeros_like(), Ok)?;
    Ok(Some(Outputs::from([("output.pooled".into(), pooled), ("grad.input.feature".into(), grad)])))
}

/// The pooler of `hyper`, over the levels that it names.
pub(super) fn pooler(fixture: &Fixture, size: usize, sampling_ratio: usize) -> Result<RoiPooler> {
    let (min_level, max_level): (usize, usize) =
        (fixture.hyper("min_level")?, fixture.hyper("max_level")?);
    Ok(RoiPooler {
        size,
        sampling_ratio,
        strides: (min_level..=max_level).map(|level| 2f32.powi(level as i32)).collect(),
        min_level,
        canonical_size: fixture.hyper("canonical_size")?,
        canonical_level: fixture.hyper("canonical_level")?,
    })
}

/// `multilevel_roi_align`: bins from the level of each region's size.
pub(super) fn multilevel(fixture: &Fixture) -> Result<Option<Outputs>> {
    let pooler = pooler(fixture, fixture.hyper("size")?, fixture.hyper("sampling_ratio")?)?;
    let vars = fixture.numbered("feature");
    let vars = vars.iter().map(Var::from_tensor).collect::<candle_core::Result<Vec<_>>>()?;
    let levels: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let rois = rois(&fixture.values::<f32>("rois")?);
    let pooled = pooler.pool(&levels, &rois, 1.0)?;
    let grads = (&pooled * fixture.input("grad_out.pooled")?)?.sum_all()?.backward()?;
    let level = rois.iter().map(|roi| pooler.level(roi.bounds));
    let mut outputs =
        Outputs::from([("output.pooled".into(), pooled), ("output.level".into(), indices(level)?)]);
    for (l, var) in vars.iter().enumerate() {
        let grad = grads.get(var).cloned().map_or_else(|| var.zeros_like(), Ok)?;
        outputs.insert(format!("grad.input.feature.{l}"), grad);
    }
    Ok(Some(outputs))
}

/// `level_assignment`: the level of every box.
pub(super) fn levels(fixture: &Fixture) -> Result<Option<Outputs>> {
    let pooler = pooler(fixture, 1, 0)?;
    let levels = fixture.boxes("boxes")?.into_iter().map(|b| pooler.level(b));
    Ok(Some(Outputs::from([("output.level".into(), indices(levels)?)])))
}

/// Masks pasted into an image of `size`: probabilities, and what is at least ½, both `[n, height, width]`.
pub(super) fn pasted(
    probs: &[Array2<f32>],
    boxes: &[[f32; 4]],
    size: (usize, usize),
) -> Result<(Tensor, Tensor)> {
    let (mut soft, mut mask) = (Vec::new(), Vec::new());
    for (probs, bounds) in probs.iter().zip(boxes) {
        let pasted = paste(probs, *bounds, size);
        let (y, x) = pasted.origin;
        let (height, width) = pasted.soft.dim();
        let mut whole = Array2::<f32>::zeros(size);
        whole.slice_mut(s![y..y + height, x..x + width]).assign(&pasted.soft);
        soft.extend(whole);
        let mut whole = Array2::<u8>::zeros(size);
        whole.slice_mut(s![y..y + height, x..x + width]).assign(&pasted.mask().bitmap);
        mask.extend(whole);
    }
    let shape = (probs.len().min(boxes.len()), size.0, size.1);
    Ok((Tensor::from_vec(soft, shape, &Device::Cpu)?, Tensor::from_vec(mask, shape, &Device::Cpu)?))
}

/// `paste_masks`: masks of boxes in an image.
pub(super) fn paste_masks(fixture: &Fixture) -> Result<Option<Outputs>> {
    let probs = fixture.input("probs")?;
    let (count, height, width) = probs.dims3()?;
    let masks = (0..count).map(|i| {
        let values = probs.get(i)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Array2::from_shape_vec((height, width), values)?)
    });
    let masks = masks.collect::<Result<Vec<_>>>()?;
    let size: (usize, usize) = fixture.hyper("image")?;
    let (soft, mask) = pasted(&masks, &fixture.boxes("boxes")?, size)?;
    Ok(Some(Outputs::from([("output.soft".into(), soft), ("output.mask".into(), mask)])))
}
