//! Reading images and labels.

use std::path::Path;

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use rescatter::data::{decode_image, read_image, read_label};

use crate::fixture;

/// A picture without large flat areas, so that no end of a file is mere padding.
fn busy(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let wave = (f64::from(x) / 3.0).sin() * (f64::from(y) / 5.0).cos();
        Rgb([(127.0 + 90.0 * wave) as u8, (x * 5 % 256) as u8, (y * 7 % 256) as u8])
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn centres(image: &RgbImage) -> [[u8; 3]; 4] {
    [(8, 8), (24, 8), (8, 24), (24, 24)].map(|(x, y)| image.get_pixel(x, y).0)
}

fn assert_close(found: [[u8; 3]; 4], expected: [[u8; 3]; 4]) {
    let near = |a: [u8; 3], b: [u8; 3]| (0..3).all(|c| a[c].abs_diff(b[c]) <= 3);
    assert!(found.iter().zip(expected).all(|(a, b)| near(*a, b)), "{found:?} is not {expected:?}");
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let baseline = encoded(busy(61, 47), ImageFormat::Jpeg);
    let progressive = std::fs::read(fixture("data/progressive.jpg")).unwrap();
    let png = encoded(busy(61, 47), ImageFormat::Png);
    for (kind, bytes) in [("baseline", baseline), ("progressive", progressive), ("png", png)] {
        assert!(decode_image(&bytes).is_ok(), "{kind}, whole");
        for length in 0..bytes.len() {
            assert!(
                decode_image(&bytes[..length]).is_err(),
                "{kind}, {length} of {} bytes",
                bytes.len()
            );
        }
    }
}

#[test]
fn bytes_after_the_image_do_no_harm() {
    let mut bytes = encoded(busy(20, 10), ImageFormat::Jpeg);
    bytes.extend([0; 100]);
    assert_eq!(decode_image(&bytes).unwrap().dimensions(), (20, 10));
}

#[test]
fn errors_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.jpg");
    for (bytes, reason) in [
        (&b""[..], "the file is empty"),
        (b"GIF89a etc.", "this is no image"),
        (b"\xFF\xD8\xFF\xE0\x00\x10JF", "truncated JPEG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", "truncated PNG"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let message = read_image(&path).unwrap_err().to_string();
        assert!(
            message.starts_with(path.to_str().unwrap()) && message.contains(reason),
            "{message}"
        );
    }
    let missing = read_image(folder.path().join("none.jpg")).unwrap_err().to_string();
    assert!(missing.contains("none.jpg"), "{missing}");
}

/// Expected colours: what Pillow gives, see `tests/fixtures/data/make.py`.
#[test]
fn ink_becomes_light() {
    let path = fixture("data/cmyk.jpg");
    let expected = [[55, 225, 245], [215, 30, 114], [152, 159, 10], [55, 55, 55]];
    assert_close(centres(&read_image(&path).unwrap()), expected);
    let ycck = read_image(fixture("data/ycck.jpg")).unwrap();
    assert_close(centres(&ycck), [[36, 255, 28], [0, 0, 139], [115, 0, 0], [0, 29, 0]]);
    // Without Adobe's segment the same samples are ink that is not inverted: 255 − sample takes the sample's place.
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"Adobe").unwrap() - 4;
    bytes.drain(at..at + 16);
    let plain = [[200, 30, 10, 255], [0, 220, 120, 215], [20, 10, 240, 165], [0, 0, 0, 55]]
        .map(|s: [u32; 4]| [0, 1, 2].map(|c| (s[c] * (255 - s[3]) / 255) as u8));
    assert_close(centres(&decode_image(&bytes).unwrap()), plain);
}

#[test]
fn every_depth_and_kind_of_colour_becomes_rgb() {
    let rgb16 = image::ImageBuffer::from_pixel(3, 2, Rgb([65535u16, 257 * 100, 0]));
    let grey16 = image::ImageBuffer::from_pixel(3, 2, image::Luma([257u16 * 77]));
    let grey_alpha = image::ImageBuffer::from_pixel(3, 2, image::LumaA([90u8, 10]));
    let rgba = image::ImageBuffer::from_pixel(3, 2, image::Rgba([1u8, 2, 3, 0]));
    let grey = image::ImageBuffer::from_pixel(3, 2, image::Luma([200u8]));
    for (image, format, expected) in [
        (DynamicImage::ImageRgb16(rgb16), ImageFormat::Png, [255, 100, 0]),
        (DynamicImage::ImageLuma16(grey16), ImageFormat::Png, [77; 3]),
        (DynamicImage::ImageLumaA8(grey_alpha), ImageFormat::Png, [90; 3]),
        (DynamicImage::ImageRgba8(rgba), ImageFormat::Png, [1, 2, 3]),
        (DynamicImage::ImageLuma8(grey.clone()), ImageFormat::Png, [200; 3]),
        (DynamicImage::ImageLuma8(grey.clone()), ImageFormat::Jpeg, [200; 3]),
        (
            DynamicImage::ImageRgb8(RgbImage::from_pixel(3, 2, Rgb([9, 8, 7]))),
            ImageFormat::Bmp,
            [9, 8, 7],
        ),
        (
            DynamicImage::ImageRgb8(RgbImage::from_pixel(3, 2, Rgb([9, 8, 7]))),
            ImageFormat::Tiff,
            [9, 8, 7],
        ),
        (
            DynamicImage::ImageRgb8(RgbImage::from_pixel(3, 2, Rgb([9, 8, 7]))),
            ImageFormat::WebP,
            [9, 8, 7],
        ),
    ] {
        let read = decode_image(&encoded(image, format)).unwrap();
        assert_eq!((read.dimensions(), read.get_pixel(2, 1).0), ((3, 2), expected), "{format:?}");
    }
    let palette = read_image(fixture("data/palette_8.png")).unwrap();
    // Index (1 + 2 · 1) mod 21 = 3 has the colour 37 · 3 + 90 c.
    assert_eq!(palette.get_pixel(1, 1).0, [111, 201, 35]);
}

/// `orientation` in an EXIF segment behind the start of a JPEG.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let mut file = jpeg[..2].to_vec();
    file.extend([0xFF, 0xE1, 0, exif.len() as u8 + 2]);
    file.extend(exif);
    file.extend(&jpeg[2..]);
    file
}

#[test]
fn all_eight_exif_orientations_are_turned_upright() {
    use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
    let colours = [[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30]];
    let upright = RgbImage::from_fn(32, 32, |x, y| Rgb(colours[(x / 16 + 2 * (y / 16)) as usize]));
    // What a camera stores, by the definition of the tag: where its row 0 and its column 0 lie in the upright picture.
    let stored = [
        upright.clone(),
        flip_horizontal(&upright),
        rotate180(&upright),
        flip_vertical(&upright),
        flip_horizontal(&rotate90(&upright)),
        rotate270(&upright),
        flip_horizontal(&rotate270(&upright)),
        rotate90(&upright),
    ];
    for (orientation, image) in (1..).zip(stored) {
        let bytes = with_orientation(&encoded(image, ImageFormat::Jpeg), orientation);
        let found = centres(&decode_image(&bytes).unwrap());
        let near = |a: [u8; 3], b: [u8; 3]| (0..3).all(|c| a[c].abs_diff(b[c]) < 30);
        assert!(
            found.iter().zip(colours).all(|(a, b)| near(*a, b)),
            "orientation {orientation}: {found:?}"
        );
    }
    let tall = with_orientation(&encoded(busy(40, 20), ImageFormat::Jpeg), 6);
    assert_eq!(decode_image(&tall).unwrap().dimensions(), (20, 40));
}

#[test]
fn labels_are_the_stored_numbers() {
    for (bits, n) in [(1, 2), (4, 16), (8, 21)] {
        let label = read_label(fixture(&format!("data/palette_{bits}.png"))).unwrap();
        assert_eq!(label.dim(), (7, 13));
        for ((y, x), value) in label.indexed_iter() {
            assert_eq!(usize::from(*value), (x + 2 * y) % n, "{bits} bits at ({y}, {x})");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    image::ImageBuffer::from_fn(3, 1, |x, _| image::Luma([[0u16, 300, 65535][x as usize]]))
        .save(&path)
        .unwrap();
    assert_eq!(read_label(&path).unwrap().into_raw_vec_and_offset().0, [0, 300, 65535]);
}

#[test]
fn a_label_of_colours_or_of_another_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |path: &Path, reason: &str| {
        let error = read_label(path).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with(path.to_str().unwrap()) && message.contains(reason),
            "{message}"
        );
    };
    let (colours, jpeg) = (folder.path().join("c.png"), folder.path().join("j.png"));
    busy(4, 4).save(&colours).unwrap();
    refuse(&colours, "colours");
    std::fs::write(&jpeg, encoded(busy(4, 4), ImageFormat::Jpeg)).unwrap();
    refuse(&jpeg, "must be a PNG");
    let bytes = encoded(image::GrayImage::new(30, 30), ImageFormat::Png);
    std::fs::write(&jpeg, &bytes[..bytes.len() - 9]).unwrap();
    refuse(&jpeg, "truncated");
}
