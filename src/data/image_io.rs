//! Reading images: always RGB, 8 bits, upright; a broken file is an error that names it, never a grey rest.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::{Error, Result};

/// Reads a JPEG, PNG, BMP, WebP or TIFF file (recognised by its content) as upright 8-bit RGB.
///
/// Grey becomes RGB, 16 bits are scaled to 8, an alpha channel is dropped, a palette and CMYK are converted, and the
/// EXIF orientation is applied. A JPEG whose data was cut but which was given a proper end marker again may pass: the
/// decoder fills such a picture up without a word.
///
/// # Errors
/// If the file cannot be read, is no image, or is truncated or damaged.
pub fn read_image(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    decode_image(&bytes).map_err(|reason| Error::file(path, reason))
}

/// As [`read_image`], from memory; the error is the reason alone.
///
/// # Errors
/// If the bytes are no image, or truncated or damaged.
pub fn decode_image(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    if bytes.starts_with(&[0xFF, 0xD8]) { decode_jpeg(bytes) } else { decode_other(bytes) }
}

fn decode_jpeg(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    let layout = jpeg_layout(bytes)?;
    // Four components without Adobe's marker hold plain ink; the decoder would take them for Adobe's inverted ink.
    let plain_cmyk = layout.components == 4 && !layout.adobe;
    let out = if plain_cmyk { ColorSpace::CMYK } else { ColorSpace::RGB };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(1 << 16)
        .set_max_height(1 << 16)
        .jpeg_set_out_colorspace(out);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let mut pixels = decoder.decode().map_err(|e| format!("damaged JPEG: {e}"))?;
    let (width, height) = decoder.dimensions().ok_or("damaged JPEG: no size")?;
    if plain_cmyk {
        pixels = pixels.as_chunks::<4>().0.iter().flat_map(|ink| rgb_from_cmyk(*ink)).collect();
    }
    let image = RgbImage::from_raw(width as u32, height as u32, pixels)
        .ok_or("damaged JPEG: too few pixels")?;
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    Ok(upright(DynamicImage::ImageRgb8(image), orientation))
}

fn rgb_from_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    [c, m, y].map(|ink| {
        let product = u32::from(255 - ink) * u32::from(255 - k);
        ((product + 127) / 255) as u8
    })
}

fn decode_other(bytes: &[u8]) -> std::result::Result<RgbImage, String> {
    if bytes.starts_with(super::label_io::PNG_SIGNATURE) {
        super::label_io::png_chunks(bytes)?;
    }
    let reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let Some(format) = reader.format().filter(|format| format.reading_enabled()) else {
        return Err("this is no image (JPEG, PNG, BMP, WebP and TIFF are read)".into());
    };
    let describe = |e: image::ImageError| format!("damaged or unsupported {format:?} file: {e}");
    let mut decoder = reader.into_decoder().map_err(describe)?;
    let orientation = decoder.orientation().ok();
    Ok(upright(DynamicImage::from_decoder(decoder).map_err(describe)?, orientation))
}

fn upright(mut image: DynamicImage, orientation: Option<Orientation>) -> RgbImage {
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    image.into_rgb8()
}

struct JpegLayout {
    components: u8,
    adobe: bool,
}

/// Walks the segments up to the end-of-image marker, without which the file is truncated whatever a decoder makes of it.
/// (A scan that ends early but was closed with that marker is left to the decoder, which does not find every such case.)
fn jpeg_layout(bytes: &[u8]) -> std::result::Result<JpegLayout, String> {
    let mut layout = JpegLayout { components: 0, adobe: false };
    let mut at = 2;
    loop {
        let (marker, next) =
            next_marker(bytes, at).ok_or("truncated JPEG: the file ends before the image does")?;
        at = next;
        match marker {
            0xD9 => return Ok(layout),
            0x01 | 0xD0..=0xD8 => continue,
            _ => {}
        }
        let length = bytes.get(at..at + 2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1]));
        let body = length
            .and_then(|n| bytes.get(at + 2..at + n.max(2)))
            .ok_or("truncated JPEG: the file ends within a header")?;
        match marker {
            0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF => {
                layout.components = *body.get(5).unwrap_or(&0)
            }
            0xEE => layout.adobe |= body.starts_with(b"Adobe"),
            _ => {}
        }
        at += 2 + body.len();
    }
}

/// The first marker at or after `at`, and where its segment starts. Entropy-coded data and fill bytes are passed over:
/// there a 0xFF is followed by 0 (a stuffed byte) or another 0xFF.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|b| *b == 0xFF)? + 1;
        match *bytes.get(at)? {
            0x00 => at += 1,
            0xFF => {}
            marker => return Some((marker, at + 1)),
        }
    }
}
