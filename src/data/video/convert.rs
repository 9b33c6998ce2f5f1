//! From decoded frames to upright RGB images.
#![allow(
    unsafe_code,
    reason = "colour matrices have no safe wrapper; each block says why it is sound"
)]

use image::{RgbImage, imageops};
use video_rs::ffmpeg::codec::packet::side_data;
use video_rs::ffmpeg::software::scaling::{Context, Flags};
use video_rs::ffmpeg::{Stream, ffi, format, frame};

use crate::data::transforms::reduced;

/// How a frame is turned before it is shown, clockwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    None,
    Quarter,
    Half,
    ThreeQuarters,
}

impl Rotation {
    /// What the container says beside the stream.
    pub(super) fn of(stream: &Stream) -> Self {
        let mut data = stream.side_data();
        let matrix = data.find(|data| data.kind() == side_data::Type::DisplayMatrix);
        matrix.map_or(Self::None, |matrix| Self::of_matrix(matrix.data()))
    }

    /// Of nine 32-bit numbers: the first two rows turn, in fixed point.
    fn of_matrix(bytes: &[u8]) -> Self {
        let number = |i: usize| {
            let bytes = bytes.get(4 * i..4 * i + 4)?;
            bytes.try_into().ok().map(|bytes| f64::from(i32::from_ne_bytes(bytes)))
        };
        let (Some(a), Some(b), Some(c), Some(d)) = (number(0), number(1), number(3), number(4))
        else {
            return Self::None;
        };
        // The axes may be scaled apart.
        let (x, y) = (a.hypot(c), b.hypot(d));
        if x == 0.0 || y == 0.0 {
            return Self::None;
        }
        match ((b / y).atan2(a / x).to_degrees().round() as i32).rem_euclid(360) {
            46..=135 => Self::Quarter,
            136..=225 => Self::Half,
            226..=315 => Self::ThreeQuarters,
            _ => Self::None,
        }
    }

    fn apply(self, image: RgbImage) -> RgbImage {
        match self {
            Self::None => image,
            Self::Quarter => imageops::rotate90(&image),
            Self::Half => imageops::rotate180(&image),
            Self::ThreeQuarters => imageops::rotate270(&image),
        }
    }
}

/// What a frame is before and after the conversion.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    format: format::Pixel,
    size: (u32, u32),
    /// Matrix and range of its colours.
    colours: (i32, bool),
}

/// Converts pixel format and size in one pass.
pub(super) struct Converter {
    short_side: Option<usize>,
    rotation: Rotation,
    /// Width and height of every result, from the first frame.
    target: Option<(u32, u32)>,
    scaler: Option<(Shape, Context)>,
}

impl Converter {
    pub(super) fn new(short_side: Option<usize>, rotation: Rotation) -> Self {
        Self { short_side, rotation, target: None, scaler: None }
    }

    /// The frame as upright RGB. A video whose frames change their size keeps that of the first.
    ///
    /// # Errors
    /// The reason, if ffmpeg cannot convert it.
    pub(super) fn image(&mut self, frame: &frame::Video) -> Result<RgbImage, String> {
        let (width, height) = *self.target.get_or_insert_with(|| {
            let size = (frame.height() as usize, frame.width() as usize);
            let (height, width) = reduced(size, self.short_side);
            (width as u32, height as u32)
        });
        let shape = Shape {
            format: frame.format(),
            size: (frame.width(), frame.height()),
            colours: colours(frame),
        };
        let scaler = match &mut self.scaler {
            Some((known, scaler)) if *known == shape => scaler,
            slot => &mut slot.insert((shape, scaler(&shape, (width, height))?)).1,
        };
        let mut rgb = frame::Video::empty();
        scaler.run(frame, &mut rgb).map_err(|e| format!("has frames of an odd kind: {e}"))?;
        let (row, stride) = (3 * width as usize, rgb.stride(0));
        let lines = rgb.data(0).chunks(stride.max(1)).take(height as usize);
        let pixels: Vec<u8> =
            lines.flat_map(|line| &line[..row.min(line.len())]).copied().collect();
        let image = RgbImage::from_raw(width, height, pixels)
            .ok_or("has a frame with too few pixels".to_owned())?;
        Ok(self.rotation.apply(image))
    }
}

fn scaler(shape: &Shape, (width, height): (u32, u32)) -> Result<Context, String> {
    let (from, to) = (shape.format, format::Pixel::RGB24);
    let (w, h) = shape.size;
    let mut scaler =
        Context::get(from, w, h, to, width, height, Flags::BILINEAR).map_err(|_| {
            format!("has frames of the pixel format {from:?}, which cannot be converted")
        })?;
    let (matrix, full_range) = shape.colours;
    // SAFETY: the context was just made; the tables are ffmpeg's own and live as long as the program. What is not YUV
    // refuses the call and needs none.
    unsafe {
        let (of_frame, of_rgb) =
            (ffi::sws_getCoefficients(matrix), ffi::sws_getCoefficients(ffi::SWS_CS_DEFAULT));
        let (range, one) = (i32::from(full_range), 1 << 16);
        ffi::sws_setColorspaceDetails(scaler.as_mut_ptr(), of_frame, range, of_rgb, 0, 0, one, one);
    }
    Ok(scaler)
}

/// The matrix, and whether values use the full range.
fn colours(frame: &frame::Video) -> (i32, bool) {
    use format::Pixel::{YUVJ411P, YUVJ420P, YUVJ422P, YUVJ440P, YUVJ444P};
    let full = [YUVJ411P, YUVJ420P, YUVJ422P, YUVJ440P, YUVJ444P].contains(&frame.format());
    // SAFETY: the frame holds a picture; the fields are plain numbers.
    unsafe {
        let raw = &*frame.as_ptr();
        (raw.colorspace as i32, full || raw.color_range == ffi::AVColorRange::AVCOL_RANGE_JPEG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_matrices_turn_clockwise() {
        let of = |rows: [i32; 9]| {
            let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_ne_bytes()).collect();
            Rotation::of_matrix(&bytes)
        };
        let one = 1 << 16;
        assert_eq!(of([one, 0, 0, 0, one, 0, 0, 0, 1 << 30]), Rotation::None);
        // What phones write for portraits.
        assert_eq!(of([0, one, 0, -one, 0, 0, 0, 0, 1 << 30]), Rotation::Quarter);
        assert_eq!(of([-one, 0, 0, 0, -one, 0, 0, 0, 1 << 30]), Rotation::Half);
        assert_eq!(of([0, -one, 0, one, 0, 0, 0, 0, 1 << 30]), Rotation::ThreeQuarters);
        assert_eq!(Rotation::of_matrix(&[1, 2, 3]), Rotation::None);
    }
}
