//! Image and label stay aligned: the label is written into the image, and read back after the transforms.

use image::Rgb;
use proptest::prelude::*;

use super::*;
use crate::rng::{Purpose, Rng};

const IGNORE: u16 = 255;

/// Blocks of `block` pixels with changing classes; red holds the class, green and blue the place.
fn frame(height: usize, width: usize, block: usize) -> Frame {
    let class = |y: usize, x: usize| ((y / block) * 3 + (x / block) * 5) as u16 % 11;
    let label = LabelMap::from_shape_fn((height, width), |(y, x)| class(y, x));
    let image = RgbImage::from_fn(width as u32, height as u32, |x, y| {
        Rgb([10 * class(y as usize, x as usize) as u8, y as u8, x as u8])
    });
    Frame::new(image).with_label(label, IGNORE)
}

fn plain() -> TransformConfig {
    TransformConfig::Normalize { mean: [0.0; 3], std: [1.0 / 255.0; 3] }
}

fn run(steps: &[TransformConfig], frame: Frame, seed: u64) -> Done {
    let steps = [steps, &[plain(), TransformConfig::Pad { size: [48, 40] }]].concat();
    let pipeline = Pipeline::new(&steps, Labels::Transformed).unwrap();
    pipeline
        .apply(frame, "test".into(), &mut Rng::new(seed).stream(Purpose::Augment, 0, 0))
        .unwrap()
}

proptest! {
    #[test]
    fn flips_crops_and_padding_keep_every_pixel_with_its_label(
        height in 1usize..90, width in 1usize..90, crop_h in 1usize..70, crop_w in 1usize..70, seed: u64, ratio in 0.2..1.0,
    ) {
        let steps = [
            TransformConfig::RandomFlip { prob: 0.5 },
            TransformConfig::RandomCrop { size: [crop_h, crop_w], cat_max_ratio: ratio },
            TransformConfig::RandomFlip { prob: 0.5 },
        ];
        let done = run(&steps, frame(height, width, 7), seed);
        let (h, w) = (height.min(crop_h), width.min(crop_w));
        prop_assert_eq!(done.meta.input, (h, w));
        prop_assert_eq!(done.meta.original, (height, width));
        let label = done.label.unwrap();
        prop_assert_eq!(label.dim(), (h.max(48), w.max(40)));
        prop_assert_eq!(done.image.dim(), (3, h.max(48), w.max(40)));
        for ((y, x), class) in label.indexed_iter() {
            let red = done.image[(0, y, x)];
            if y < h && x < w {
                prop_assert!((red - 10.0 * f32::from(*class)).abs() < 1e-3, "({}, {}): {} and {}", y, x, red, class);
            } else {
                prop_assert_eq!((*class, red), (IGNORE, 0.0));
            }
        }
        // Mirrored as reported: the columns fall instead of rising.
        if w > 1 {
            let step = done.image[(2, 0, 1)] - done.image[(2, 0, 0)];
            prop_assert_eq!(step < 0.0, done.meta.flipped);
        }
    }

    #[test]
    fn resizing_moves_image_and_label_alike(
        height in 20usize..120, width in 20usize..120, low in 0.5f64..1.5, keep_ratio: bool, seed: u64, inception: bool,
    ) {
        let step = if inception {
            TransformConfig::RandomResizedCrop { size: [60, 52], scale: [0.4, 1.0] }
        } else {
            TransformConfig::Resize { size: Some([64, 56]), ratio_range: [low, low + 0.5], keep_ratio, min_side: None, multiple_of: None }
        };
        let done = run(&[step], frame(height, width, 20), seed);
        let label = done.label.unwrap();
        let (h, w) = done.meta.input;
        // Away from the borders of the blocks both must name the same class; nearest and bilinear round differently there:
        // bilinear blends over half a pixel of the source on either side. An inception crop keeps at least 0.4 of a side.
        let kept = if inception { 0.4 } else { 1.0 };
        let scale = (h as f64 / height as f64).max(w as f64 / width as f64) / kept;
        let reach = (scale / 2.0).ceil() as usize + 1;
        let mut inside = 0;
        for y in reach..h.saturating_sub(reach) {
            for x in reach..w.saturating_sub(reach) {
                let class = label[(y, x)];
                let around = (y - reach..=y + reach)
                    .flat_map(|y| (x - reach..=x + reach).map(move |x| (y, x)));
                if around.into_iter().all(|at| label[at] == class) {
                    inside += 1;
                    let red = done.image[(0, y, x)];
                    prop_assert!((red - 10.0 * f32::from(class)).abs() < 1.5, "({}, {}): {} and {}", y, x, red, class);
                }
            }
        }
        // A block of 20 pixels that is still larger than the neighbourhood shows its inside.
        let block = 20.0 * (h as f64 / height as f64).min(w as f64 / width as f64);
        prop_assert!(inside > 0 || block < (4 * reach + 2) as f64);
    }

    #[test]
    fn the_same_numbers_give_the_same_sample(seed: u64) {
        let steps = [
            TransformConfig::Resize { size: None, ratio_range: [0.5, 2.0], keep_ratio: true, min_side: Some(30), multiple_of: None },
            TransformConfig::RandomCrop { size: [32, 32], cat_max_ratio: 0.75 },
            TransformConfig::PhotometricDistortion { brightness: 32.0, contrast: [0.5, 1.5], saturation: [0.5, 1.5], hue: 18.0 },
        ];
        let (a, b) = (run(&steps, frame(50, 60, 7), seed), run(&steps, frame(50, 60, 7), seed));
        prop_assert_eq!(a.image, b.image);
        prop_assert_eq!(a.label, b.label);
    }
}

#[test]
fn values_are_normalised_per_channel() {
    let image = RgbImage::from_pixel(1, 1, Rgb([255, 51, 0]));
    let steps = [TransformConfig::Normalize { mean: [0.5, 0.2, 0.1], std: [0.5, 0.1, 0.2] }];
    let frame = Frame::new(image);
    let pipeline = Pipeline::new(&steps, Labels::Transformed).unwrap();
    let done = pipeline
        .apply(frame, "one".into(), &mut Rng::new(0).stream(Purpose::Augment, 0, 0))
        .unwrap();
    // (1 − 0.5) / 0.5, (0.2 − 0.2) / 0.1, (0 − 0.1) / 0.2.
    let found: Vec<f32> = done.image.into_raw_vec_and_offset().0;
    assert!(found.iter().zip([1.0, 0.0, -0.5]).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
}

#[test]
fn the_middle_is_cut_out() {
    let done = run(&[TransformConfig::CenterCrop { size: [48, 40] }], frame(58, 61, 7), 0);
    // (58 − 48) / 2 = 5 rows above, (61 − 40) / 2 = 10 columns left.
    assert_eq!((done.image[(1, 0, 0)], done.image[(2, 0, 0)]), (5.0, 10.0));
}

#[test]
fn another_place_moves_the_crop_along_the_longer_side_alone() {
    let cropped = |height, width, place| {
        let frame = frame(height, width, 7).with_crop_place(place);
        let done = run(&[TransformConfig::CenterCrop { size: [48, 40] }], frame, 0);
        (done.image[(1, 0, 0)].round(), done.image[(2, 0, 0)].round())
    };
    // Of a wide image, 5 of 10 rows above and 0 or 21 columns left; of a tall one, 0 or 13 rows above and 9 of 18 columns left.
    assert_eq!((cropped(58, 61, 0.0), cropped(58, 61, 1.0)), ((5.0, 0.0), (5.0, 21.0)));
    assert_eq!((cropped(61, 58, 0.0), cropped(61, 58, 1.0)), ((0.0, 9.0), (13.0, 9.0)));
}
