//! A picture that plotters draws on, with text in the font of this crate: no font need be installed.

use std::convert::Infallible;

use image::{Rgb, RgbImage};
use plotters_backend::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendTextStyle, DrawingBackend, DrawingErrorKind,
};
use rescatter::draw;

/// Memory takes every pixel.
type Drawn = Result<(), DrawingErrorKind<Infallible>>;

/// Draws on an image.
pub(super) struct Canvas<'a>(pub(super) &'a mut RgbImage);

/// Height of a line of text in pixels.
const LINE: u32 = 16;

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.0.dimensions()
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Drawn {
        let place = u32::try_from(x).ok().zip(u32::try_from(y).ok());
        if let Some(pixel) = place.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
            let [r, g, b] = [color.rgb.0, color.rgb.1, color.rgb.2];
            let mixed = |old: u8, new: u8| {
                let value = f64::from(old) + (f64::from(new) - f64::from(old)) * color.alpha;
                value.round().clamp(0.0, 255.0) as u8
            };
            let old = pixel.0;
            *pixel = Rgb([mixed(old[0], r), mixed(old[1], g), mixed(old[2], b)]);
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        (x, y): BackendCoord,
    ) -> Drawn {
        let (width, height) = (draw::text_width(text) as i32, LINE as i32);
        let anchor = style.anchor();
        let left = match anchor.h_pos {
            HPos::Left => x,
            HPos::Center => x - width / 2,
            HPos::Right => x - width,
        };
        let top = match anchor.v_pos {
            VPos::Top => y,
            VPos::Center => y - height / 2,
            VPos::Bottom => y - height,
        };
        let color = style.color().rgb;
        let at = (left.max(0) as u32, top.max(0) as u32);
        draw::text(self.0, at, text, Rgb([color.0, color.1, color.2]));
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        _style: &S,
    ) -> Result<(u32, u32), DrawingErrorKind<Infallible>> {
        Ok((draw::text_width(text), LINE))
    }
}
