//! RoIAlign.

use candle_core::{Device, Result, Tensor};

use super::call::{Call, Grid, Output};
use crate::ops::roi_align::{Axis, Roi, RoiAlign};

/// As [`roi_align`](crate::ops::roi_align), which knows that the regions fit.
pub(in crate::ops) fn roi_align(map: &Tensor, rois: &[Roi], options: RoiAlign) -> Result<Tensor> {
    let map = map.contiguous()?;
    let (_, channels, height, width) = map.dims4()?;
    let size = options.size;
    let device = map.device();
    let images: Vec<u32> = rois.iter().map(|roi| roi.image as u32).collect();
    let images = Tensor::new(images, device)?;
    let axis = |low: usize, pixels: usize| {
        let of_roi = |roi: &Roi| Axis::new(roi.bounds[low], roi.bounds[low + 2], pixels, options);
        table(rois.iter().map(of_roi), device)
    };
    let ((rows, row_weights), (columns, column_weights)) = (axis(1, height)?, axis(0, width)?);
    let sizes = [rois.len(), channels, size, height, width];
    let grid = Grid::Values(rois.len() * channels * size * size);
    let y = Call {
        kernel: "roi_align",
        inputs: &[&map, &images, &rows, &row_weights, &columns, &column_weights],
        outputs: &[Output::Unwritten((rois.len(), channels, size, size).into())],
        numbers: &sizes.map(Into::into),
        grid,
    };
    y.one()?.with_gradient(&[&map], move |inputs, _, grad| {
        let mut numbers = sizes.map(Into::into).to_vec();
        numbers.push(f64::from(options.gradient_scale).into());
        let dmap = Call {
            kernel: "roi_align_gradient",
            inputs: &[grad, &images, &rows, &row_weights, &columns, &column_weights],
            outputs: &[Output::Zeros(inputs[0].shape().clone())],
            numbers: &numbers,
            grid,
        };
        Ok(vec![Some(dmap.one()?.tensor())])
    })
}

/// For every bin its first pixel, where its weights begin and how many they are; and the weights.
fn table(axes: impl Iterator<Item = Axis>, device: &Device) -> Result<(Tensor, Tensor)> {
    let (mut bins, mut weights) = (Vec::new(), Vec::new());
    for axis in axes {
        for (first, of_bin) in axis.bins() {
            bins.extend([first, weights.len(), of_bin.len()].map(|n| n as u32));
            weights.extend_from_slice(of_bin);
        }
    }
    // Not empty, so that there is something to point to.
    weights.push(0.0);
    Ok((Tensor::new(bins, device)?, Tensor::new(weights, device)?))
}

#[cfg(test)]
mod tests {
    use candle_core::Result;

    use crate::ops::gpu::emulator::assert_kernel;
    use crate::ops::twin::random;
    use crate::ops::{Roi, RoiAlign, roi_align};

    #[test]
    fn it_equals_the_composed_definition() -> Result<()> {
        let map = [random(&[2, 3, 13, 17], 1)?];
        let rois = [
            Roi { image: 1, bounds: [3.0, 4.0, 40.0, 31.0] },
            Roi { image: 0, bounds: [-20.0, -9.0, 70.0, 60.0] },
            Roi { image: 1, bounds: [200.0, 200.0, 240.0, 240.0] },
            Roi { image: 0, bounds: [8.0, 8.0, 8.0, 8.0] },
        ];
        for (sampling_ratio, gradient_scale) in [(0, 1.0), (2, 0.5)] {
            let options = RoiAlign { size: 7, scale: 0.25, sampling_ratio, gradient_scale };
            assert_kernel("roi_align", 2e-6, &map, |t| roi_align(&t[0], &rois, options))?;
        }
        Ok(())
    }
}
