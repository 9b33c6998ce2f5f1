//! RoIAlign against its definition, sample by sample, and its two forms against each other.

use candle_core::{DType, Device};
use ndarray::Array2;

use super::*;
use crate::data::InstanceMask;
use crate::ops::gradcheck::{check, normal, relative_difference};
use crate::ops::twin::{assert_twins, random};

/// torchvision's loops: bilinear samples one by one, in f64.
fn slow(map: &Tensor, rois: &[Roi], options: RoiAlign) -> Tensor {
    let (_, channels, height, width) = map.dims4().unwrap();
    let f = map.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let at =
        |b: usize, c: usize, y: usize, x: usize| f[((b * channels + c) * height + y) * width + x];
    let sample = |b: usize, c: usize, y: f64, x: f64| {
        if y < -1.0 || y > height as f64 || x < -1.0 || x > width as f64 {
            return 0.0;
        }
        let pair = |v: f64, n: usize| {
            let (v, low) = (v.max(0.0), v.max(0.0) as usize);
            if low >= n - 1 { (n - 1, n - 1, 0.0) } else { (low, low + 1, v - low as f64) }
        };
        let ((y0, y1, ly), (x0, x1, lx)) = (pair(y, height), pair(x, width));
        (1.0 - ly) * ((1.0 - lx) * at(b, c, y0, x0) + lx * at(b, c, y0, x1))
            + ly * ((1.0 - lx) * at(b, c, y1, x0) + lx * at(b, c, y1, x1))
    };
    let s = options.size;
    let mut out = Vec::new();
    for roi in rois {
        let [xa, ya, xb, yb] = roi.bounds.map(|v| f64::from(v) * f64::from(options.scale) - 0.5);
        let (bh, bw) = ((yb - ya) / s as f64, (xb - xa) / s as f64);
        let samples = |bin: f64| match options.sampling_ratio {
            0 => bin.ceil().max(0.0) as usize,
            n => n,
        };
        let (gh, gw) = (samples(bh), samples(bw));
        for (c, i, j) in
            (0..channels).flat_map(|c| (0..s).flat_map(move |i| (0..s).map(move |j| (c, i, j))))
        {
            let place = |start: f64, bin: f64, i: usize, u: usize, g: usize| {
                start + (i as f64 + (u as f64 + 0.5) / g as f64) * bin
            };
            let sum: f64 = (0..gh)
                .flat_map(|u| (0..gw).map(move |v| (u, v)))
                .map(|(u, v)| {
                    sample(roi.image, c, place(ya, bh, i, u, gh), place(xa, bw, j, v, gw))
                })
                .sum();
            out.push(sum / (gh * gw).max(1) as f64);
        }
    }
    Tensor::from_vec(out, (rois.len(), channels, s, s), &Device::Cpu).unwrap()
}

/// Inside, across the borders, outside, tiny, without area, over everything.
fn regions() -> Vec<Roi> {
    let bounds = [
        [3.3, 2.1, 17.8, 20.9],
        [-9.0, -7.5, 12.2, 8.4],
        [20.1, 14.7, 60.0, 49.3],
        [200.0, 200.0, 220.0, 230.0],
        [5.1, 5.2, 5.6, 5.9],
        [8.0, 8.0, 8.0, 12.0],
        [0.0, 0.0, 56.0, 44.0],
    ];
    bounds.into_iter().enumerate().map(|(i, bounds)| Roi { image: i % 2, bounds }).collect()
}

fn options(size: usize, sampling_ratio: usize) -> RoiAlign {
    RoiAlign { size, scale: 0.25, sampling_ratio, gradient_scale: 1.0 }
}

#[test]
fn both_forms_are_the_definition() -> Result<()> {
    let map = random(&[2, 5, 11, 14], 3)?;
    for options in [options(7, 0), options(3, 2), options(14, 0)] {
        let wanted = slow(&map, &regions(), options);
        let fused = roi_align(&map, &regions(), options)?.to_dtype(DType::F64)?;
        assert!(relative_difference(&fused, &wanted)? < 2e-6);
        let plain = roi_align(&map.to_dtype(DType::F64)?, &regions(), options)?;
        assert!(relative_difference(&plain, &wanted)? < 2e-6);
    }
    Ok(())
}

#[test]
fn the_composed_gradient_is_right() -> Result<()> {
    let map = normal(&[2, 2, 5, 6], 1)?;
    let rois = [
        Roi { image: 1, bounds: [3.3, 2.1, 17.8, 14.9] },
        Roi { image: 0, bounds: [-3.0, -2.5, 12.2, 8.4] },
    ];
    check(|t| roi_align(&t[0], &rois, options(3, 0)), &[map])
}

#[test]
fn fused_equals_composed() -> Result<()> {
    // 100 channels: a whole block of the backward pass and a part of one.
    let map = random(&[2, 100, 11, 14], 3)?;
    for options in [options(7, 0), options(5, 2)] {
        assert_twins("roi_align", 2e-6, std::slice::from_ref(&map), |t| {
            roi_align(&t[0], &regions(), options)
        })?;
        let third = RoiAlign { gradient_scale: 1.0 / 3.0, ..options };
        assert_twins("roi_align", 2e-6, std::slice::from_ref(&map), |t| {
            roi_align(&t[0], &regions(), third)
        })?;
    }
    Ok(())
}

#[test]
fn a_part_of_a_bitmap_is_sampled_as_the_whole() -> Result<()> {
    let (height, width) = (20, 26);
    let inside = |y: usize, x: usize| {
        (4..13).contains(&y) && (6..25).contains(&x) && !(x + y).is_multiple_of(5)
    };
    let mask = InstanceMask {
        origin: (4, 6),
        bitmap: Array2::from_shape_fn((9, 19), |(y, x)| u8::from(inside(y + 4, x + 6))),
    };
    let whole: Vec<f32> =
        (0..height * width).map(|i| f32::from(u8::from(inside(i / width, i % width)))).collect();
    let whole = Tensor::from_vec(whole, (1, 1, height, width), &Device::Cpu)?;
    for bounds in [[5.5, 3.2, 24.0, 14.0], [0.0, 0.0, 26.0, 20.0], [18.2, 9.9, 40.0, 19.0]] {
        let options = RoiAlign { size: 6, scale: 1.0, sampling_ratio: 0, gradient_scale: 1.0 };
        let wanted = roi_align(&whole, &[Roi { image: 0, bounds }], options)?;
        let wanted = wanted.flatten_all()?.to_vec1::<f32>()?;
        let found = roi_align_bitmap(&mask, bounds, 6, (height, width));
        let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{bounds:?}: {worst}");
    }
    Ok(())
}

#[test]
fn nonsense_is_refused() -> Result<()> {
    let map = random(&[1, 2, 4, 4], 3)?;
    let error = |roi| roi_align(&map, &[roi], options(2, 0)).unwrap_err().to_string();
    assert!(error(Roi { image: 1, bounds: [0.0; 4] }).contains("a batch of 1"));
    assert!(error(Roi { image: 0, bounds: [0.0, f32::NAN, 1.0, 1.0] }).contains("NaN"));
    assert_eq!(roi_align(&map, &[], options(2, 0))?.dims(), [0, 2, 2, 2]);
    Ok(())
}

#[test]
fn squares_of_canonical_size_are_on_their_level() {
    // 224 → 4, 112 → 3; a little less falls to the next finer one; the ends are limited.
    let level = |side: f32| pyramid_level([0.0, 0.0, side, side], (224.0, 4), 2..=5);
    assert_eq!([224.0, 223.0, 112.0, 448.0, 2000.0, 8.0, 0.0].map(level), [4, 3, 3, 5, 5, 2, 2]);
}
