//! Brightness, contrast, saturation and hue in the order and with the chances of mmsegmentation's
//! `PhotoMetricDistortion` (from SSD, Liu et al., arXiv 1512.02325 §3.6): each with probability ½, the contrast before or
//! after the colours with equal chance.

use image::RgbImage;

use crate::rng::Stream;

/// What will be done to one image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    /// Added.
    brightness: Option<f64>,
    /// Multiplied.
    contrast: Option<f64>,
    contrast_last: bool,
    /// Multiplied.
    saturation: Option<f64>,
    /// Added, in steps of two degrees.
    hue: Option<f64>,
}

impl Plan {
    pub(super) fn draw(
        brightness: f64,
        contrast: [f64; 2],
        saturation: [f64; 2],
        hue: f64,
        stream: &mut Stream,
    ) -> Self {
        let mut maybe = |low: f64, high: f64| {
            let value = stream.range(low, high);
            stream.chance(0.5).then_some(value)
        };
        let brightness = maybe(-brightness, brightness);
        let contrast = maybe(contrast[0], contrast[1]);
        let saturation = maybe(saturation[0], saturation[1]);
        let hue = maybe(-hue, hue).map(f64::floor);
        Self { brightness, contrast, contrast_last: stream.chance(0.5), saturation, hue }
    }

    pub(super) fn apply(&self, image: &mut RgbImage) {
        let early = self.contrast.filter(|_| !self.contrast_last);
        let late = self.contrast.filter(|_| self.contrast_last);
        // Brightness and the early contrast act on each value alone: one table does both.
        let before = table(|v| scale(shift(v, self.brightness), early));
        let after = table(|v| scale(v, late));
        let colours = self.saturation.is_some() || self.hue.is_some();
        let saturation = table(|v| scale(v, self.saturation));
        for pixel in image.as_mut().as_chunks_mut::<3>().0 {
            *pixel = pixel.map(|v| before[usize::from(v)]);
            if colours {
                let [h, s, v] = hsv_from_rgb(*pixel);
                *pixel = rgb_from_hsv([
                    h + self.hue.unwrap_or(0.0) as f32 / 30.0,
                    f32::from(saturation[usize::from(s as u8)]),
                    v,
                ]);
            }
            *pixel = pixel.map(|v| after[usize::from(v)]);
        }
    }
}

/// Values are cut to 0..=255 and truncated, as `numpy.astype(uint8)` does.
fn table(f: impl Fn(f64) -> f64) -> [u8; 256] {
    std::array::from_fn(|v| f(v as f64) as u8)
}

fn shift(value: f64, by: Option<f64>) -> f64 {
    (value + by.unwrap_or(0.0)).clamp(0.0, 255.0).floor()
}

fn scale(value: f64, by: Option<f64>) -> f64 {
    (value * by.unwrap_or(1.0)).clamp(0.0, 255.0).floor()
}

/// Hue in sixths of the circle, saturation and value in 0..=255.
pub(super) fn hsv_from_rgb(rgb: [u8; 3]) -> [f32; 3] {
    let [r, g, b] = rgb.map(f32::from);
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = high - low;
    if chroma == 0.0 {
        return [0.0, 0.0, high];
    }
    let hue = if high == r {
        (g - b) / chroma
    } else if high == g {
        2.0 + (b - r) / chroma
    } else {
        4.0 + (r - g) / chroma
    };
    [hue, (chroma / high * 255.0).round(), high]
}

pub(super) fn rgb_from_hsv([hue, saturation, value]: [f32; 3]) -> [u8; 3] {
    let chroma = value * saturation / 255.0;
    // f(n) = v − c · max(0, min(k, 4 − k, 1)) with k = (n + hue) mod 6, for n = 5, 3, 1.
    [5.0, 3.0, 1.0].map(|n: f32| {
        let k = (n + hue).rem_euclid(6.0);
        (value - chroma * k.min(4.0 - k).clamp(0.0, 1.0)).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    const STILL: Plan = Plan {
        brightness: None,
        contrast: None,
        contrast_last: false,
        saturation: None,
        hue: None,
    };

    fn on(plan: &Plan, rgb: [u8; 3]) -> [u8; 3] {
        let mut image = RgbImage::from_pixel(1, 1, image::Rgb(rgb));
        plan.apply(&mut image);
        image.get_pixel(0, 0).0
    }

    #[test]
    fn colours_survive_the_way_to_hsv_and_back() {
        let mut worst = 0;
        for rgb in (0..32u8).flat_map(|r| {
            (0..32u8).flat_map(move |g| (0..32u8).map(move |b| [r * 8, g * 8, b * 8]))
        }) {
            let back = rgb_from_hsv(hsv_from_rgb(rgb));
            worst = worst.max((0..3).map(|c| rgb[c].abs_diff(back[c])).max().unwrap());
        }
        assert!(worst <= 1, "largest difference {worst}");
    }

    #[test]
    fn each_distortion_does_what_it_says() {
        assert_eq!(on(&STILL, [10, 200, 30]), [10, 200, 30]);
        assert_eq!(on(&Plan { brightness: Some(-20.5), ..STILL }, [10, 200, 30]), [0, 179, 9]);
        assert_eq!(on(&Plan { contrast: Some(1.5), ..STILL }, [10, 200, 31]), [15, 255, 46]);
        // Without saturation only the value is left.
        assert_eq!(on(&Plan { saturation: Some(0.0), ..STILL }, [10, 200, 30]), [200, 200, 200]);
        // 60 steps of two degrees turn red into green.
        assert_eq!(on(&Plan { hue: Some(60.0), ..STILL }, [200, 0, 0]), [0, 200, 0]);
    }

    #[test]
    fn half_of_the_images_get_each_distortion() {
        let plans: Vec<_> = (0..2000)
            .map(|sample| {
                let mut stream = Rng::new(3).stream(Purpose::Augment, sample, 0);
                Plan::draw(32.0, [0.5, 1.5], [0.5, 1.5], 18.0, &mut stream)
            })
            .collect();
        let share =
            |f: fn(&Plan) -> bool| plans.iter().filter(|plan| f(plan)).count() as f64 / 2000.0;
        let drawn: [fn(&Plan) -> bool; 5] = [
            |p| p.brightness.is_some(),
            |p| p.contrast.is_some(),
            |p| p.contrast_last,
            |p| p.saturation.is_some(),
            |p| p.hue.is_some(),
        ];
        for f in drawn {
            assert!((share(f) - 0.5).abs() < 0.05, "{}", share(f));
        }
        let hues = plans.iter().filter_map(|p| p.hue);
        assert!(hues.clone().all(|h| (-18.0..18.0).contains(&h)), "{hues:?}");
    }
}
