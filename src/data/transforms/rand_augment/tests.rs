//! Against torchvision's own results, and that a clip's frames are distorted alike.

use super::*;
use crate::rng::{Purpose, Rng};

/// Width and height of a cell of the fixture.
const CELL: (u32, u32) = (36, 28);

/// The picture, then every distortion at strengths 9 and 30, each with both signs (`tests/fixtures/data/make_augment.py`).
fn cell(number: usize) -> RgbImage {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data/augment.png");
    let sheet = crate::data::read_image(path).unwrap();
    image::imageops::crop_imm(&sheet, number as u32 * CELL.0, 0, CELL.0, CELL.1).to_image()
}

#[test]
fn every_distortion_is_torchvisions() {
    let picture = cell(0);
    let mut number = 0;
    for strength in [9.0, 30.0] {
        for op in OPS {
            for sign in [1.0, -1.0] {
                number += 1;
                let mut found = picture.clone();
                op.apply(&mut found, strength / STEPS, sign);
                let expected = cell(number);
                let differing = found.pixels().zip(expected.pixels()).filter(|(a, b)| a != b);
                // Pillow warps in fixed point: a place on the border of two pixels may fall to the other one.
                let allowed = if op == Op::Rotate { 3 } else { 0 };
                let count = differing.count();
                assert!(count <= allowed, "{op:?} {strength} {sign}: {count} pixels differ");
                let unchanged = op == Op::Identity || (op == Op::Equalize && found == picture);
                assert!(unchanged || found != picture, "{op:?} {strength} does nothing");
            }
        }
    }
}

#[test]
fn frames_of_one_stream_are_distorted_alike_and_samples_differently() {
    let strength = Strength { mean: 15.0, std: 0.5 };
    let distorted = |sample: u64, side: u32| {
        let mut image =
            RgbImage::from_fn(side, side, |x, y| Rgb([(x * 6) as u8, (y * 6) as u8, 99]));
        let mut stream = Rng::new(4).stream(Purpose::Augment, sample, 0);
        apply(&mut image, 3, strength, &mut stream);
        (image, stream.next_u64())
    };
    let different = (1..20).filter(|sample| distorted(*sample, 32) != distorted(0, 32)).count();
    assert!(different > 15, "{different}");
    assert_eq!(distorted(3, 32), distorted(3, 32));
    // The next step draws the same numbers whatever the size of the image.
    assert!((0..20).all(|sample| distorted(sample, 32).1 == distorted(sample, 40).1));
}
