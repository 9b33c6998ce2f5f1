//! Reading label maps: the stored numbers of a PNG, never its colours.

use std::path::Path;

use image::DynamicImage;

use super::LabelMap;
use crate::{Error, Result};

pub(crate) const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
const GREY: u8 = 0;
const PALETTE: u8 = 3;

/// Reads an 8- or 16-bit grey PNG, or the indices of a palette PNG, as they are stored.
///
/// # Errors
/// If the file cannot be read, is no PNG, is truncated or damaged, or holds colours instead of numbers.
pub fn read_label(path: impl AsRef<Path>) -> Result<LabelMap> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    decode_label(&bytes).map_err(|reason| {
        let error = Error::file(path, reason);
        if bytes.starts_with(PNG_SIGNATURE) {
            error
        } else {
            error.with_hint("labels are PNG files with one class number per pixel")
        }
    })
}

fn decode_label(bytes: &[u8]) -> std::result::Result<LabelMap, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    if !bytes.starts_with(PNG_SIGNATURE) {
        return Err("a label must be a PNG file".into());
    }
    let chunks = png_chunks(bytes)?;
    let header = chunks
        .iter()
        .find(|c| c.kind == *b"IHDR" && c.body.len() == 13)
        .ok_or("damaged PNG: no header")?;
    let (depth, color) = (header.body[8], header.body[9]);
    let image = match color {
        GREY => decode(bytes)?,
        PALETTE => decode(&with_identity_palette(&chunks, depth))?,
        _ => return Err("the label holds colours; it must hold one class number per pixel (grey or palette PNG)".into()),
    };
    numbers(image, if color == GREY { depth } else { 8 })
}

fn decode(bytes: &[u8]) -> std::result::Result<DynamicImage, String> {
    image::load_from_memory_with_format(bytes, image::ImageFormat::Png)
        .map_err(|e| format!("damaged PNG: {e}"))
}

fn numbers(image: DynamicImage, depth: u8) -> std::result::Result<LabelMap, String> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    // The decoder stretches 1, 2 and 4 bits to the range of 8.
    let step = if depth < 8 { 255 / ((1u16 << depth) - 1) } else { 1 };
    let values: Vec<u16> = match image {
        DynamicImage::ImageLuma8(grey) => {
            grey.into_raw().into_iter().map(|v| u16::from(v) / step).collect()
        }
        DynamicImage::ImageLuma16(grey) => grey.into_raw(),
        DynamicImage::ImageRgb8(indices) => {
            indices.into_raw().chunks_exact(3).map(|v| u16::from(v[0])).collect()
        }
        // A transparent colour turns grey into grey with alpha; the numbers stay what they are.
        DynamicImage::ImageLumaA8(grey) => {
            grey.into_raw().chunks_exact(2).map(|v| u16::from(v[0]) / step).collect()
        }
        DynamicImage::ImageLumaA16(grey) => grey.into_raw().chunks_exact(2).map(|v| v[0]).collect(),
        other => return Err(format!("damaged PNG: decoded as {:?}", other.color())),
    };
    LabelMap::from_shape_vec((height, width), values).map_err(|e| format!("damaged PNG: {e}"))
}

/// One chunk of a PNG file.
pub(crate) struct PngChunk<'a> {
    kind: [u8; 4],
    body: &'a [u8],
}

/// The chunks of a PNG file up to `IEND`, without which it is truncated.
pub(crate) fn png_chunks(bytes: &[u8]) -> std::result::Result<Vec<PngChunk<'_>>, String> {
    let mut chunks = Vec::new();
    let mut rest = &bytes[PNG_SIGNATURE.len().min(bytes.len())..];
    let truncated = || "truncated PNG: the file ends before the image does".to_string();
    loop {
        let (head, tail) = rest.split_first_chunk::<8>().ok_or_else(truncated)?;
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = [head[4], head[5], head[6], head[7]];
        // Four bytes of checksum follow the body.
        if tail.len() < length.saturating_add(4) {
            return Err(truncated());
        }
        chunks.push(PngChunk { kind, body: &tail[..length] });
        if kind == *b"IEND" {
            return Ok(chunks);
        }
        rest = &tail[length + 4..];
    }
}

/// The same file with the palette `i → (i, i, i)`, so that the colours that a decoder gives are the stored indices.
fn with_identity_palette(chunks: &[PngChunk], depth: u8) -> Vec<u8> {
    let palette: Vec<u8> = (0..1u16 << depth.min(8)).flat_map(|i| [i as u8; 3]).collect();
    let mut file = PNG_SIGNATURE.to_vec();
    for chunk in chunks.iter().filter(|chunk| chunk.kind != *b"tRNS") {
        let body = if chunk.kind == *b"PLTE" { &palette } else { chunk.body };
        file.extend((body.len() as u32).to_be_bytes());
        let start = file.len();
        file.extend(chunk.kind);
        file.extend(body);
        file.extend(crc32fast::hash(&file[start..]).to_be_bytes());
    }
    file
}
