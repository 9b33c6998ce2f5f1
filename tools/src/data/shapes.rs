//! Synthetic pictures: coloured, patterned shapes on textured backgrounds.
//!
//! Each class has its own pattern and prefers a hue, but one shape in fourteen has any hue, and the backgrounds carry the same
//! patterns more faintly.

use std::f64::consts::TAU;

use image::{Rgb, RgbImage};
use ndarray::Array2;
use rescatter::rng::Stream;

/// The shapes, in the order of their classes.
pub(super) const SHAPES: [&str; 6] = ["disc", "square", "triangle", "star", "ring", "cross"];

/// A picture, and per pixel what is there.
pub(super) struct Picture {
    pub(super) image: RgbImage,
    pub(super) content: Array2<Content>,
    /// Per pixel the number of the shape that covers it, from 1; 0 is background.
    pub(super) owner: Array2<u8>,
    shapes: Vec<Shape>,
}

impl Picture {
    /// The classes of the shapes, in the order of their numbers.
    pub(super) fn kinds(&self) -> Vec<usize> {
        self.shapes.iter().map(|shape| shape.kind).collect()
    }

    /// Corners of the outline of shape `number` (from 1), where its middle sees all of it: not of a ring.
    pub(super) fn outline(&self, number: usize) -> Option<Vec<[f64; 2]>> {
        let shape = &self.shapes[number - 1];
        (shape.distance(shape.center) < 0.0).then(|| shape.outline())
    }
}

/// What a pixel shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Background,
    /// The outline of a shape, where two things mix.
    Edge,
    /// An index into [`SHAPES`].
    Shape(usize),
}

/// Distance in pixels within which a pixel belongs to an outline.
const EDGE_PX: f64 = 0.75;

struct Shape {
    kind: usize,
    center: [f64; 2],
    radius: f64,
    angle: f64,
    surface: Surface,
}

/// A hue with a pattern.
struct Surface {
    colour: [f64; 3],
    pattern: usize,
    /// Radians per pixel.
    frequency: f64,
    angle: f64,
    phase: f64,
    contrast: f64,
}

/// `count` shapes (fewer where there is no room) on a picture of `side` × `side` pixels.
pub(super) fn scene(side: usize, count: usize, stream: &mut Stream) -> Picture {
    landscape((side, side), count, stream)
}

/// `count` shapes (fewer where there is no room) on a picture of `size` (height, width).
pub(super) fn landscape(size: (usize, usize), count: usize, stream: &mut Stream) -> Picture {
    let (height, width) = (size.0 as f64, size.1 as f64);
    let background = Surface::background(stream);
    let mut shapes: Vec<Shape> = Vec::new();
    for _ in 0..count {
        let kind = stream.below(SHAPES.len());
        let radius = height.min(width) * stream.range(0.16, 0.26);
        // A place that is mostly free; crowded pictures get fewer shapes.
        for _ in 0..20 {
            let center = [width, height].map(|end| stream.range(radius * 0.8, end - radius * 0.8));
            let free =
                |other: &Shape| distance(center, other.center) > 0.85 * (radius + other.radius);
            if shapes.iter().all(free) {
                shapes.push(Shape::draw(kind, center, radius, stream));
                break;
            }
        }
    }
    paint(size, &background, shapes, stream)
}

/// One shape that fills most of a picture of `side` × `side` pixels.
pub(super) fn portrait(side: usize, kind: usize, stream: &mut Stream) -> Picture {
    let background = Surface::background(stream);
    let size = side as f64;
    let radius = size * stream.range(0.26, 0.42);
    let center = [0, 1].map(|_| size / 2.0 + stream.range(-0.1, 0.1) * size);
    let shape = Shape::draw(kind, center, radius, stream);
    paint((side, side), &background, vec![shape], stream)
}

fn paint(
    size: (usize, usize),
    background: &Surface,
    shapes: Vec<Shape>,
    stream: &mut Stream,
) -> Picture {
    let mut content = Array2::from_elem(size, Content::Background);
    let mut owner = Array2::zeros(size);
    let noise = stream.range(2.0, 9.0);
    let image = RgbImage::from_fn(size.1 as u32, size.0 as u32, |x, y| {
        let at = [f64::from(x) + 0.5, f64::from(y) + 0.5];
        let mut colour = background.at(at);
        for (number, shape) in (1..).zip(&shapes) {
            let away = shape.distance(at);
            let cover = (0.5 - away).clamp(0.0, 1.0);
            let surface = shape.surface.at(at);
            colour = std::array::from_fn(|c| colour[c] + (surface[c] - colour[c]) * cover);
            if away < 0.0 {
                owner[(y as usize, x as usize)] = number;
            }
            let cell = &mut content[(y as usize, x as usize)];
            if away.abs() < EDGE_PX {
                *cell = Content::Edge;
            } else if away < 0.0 {
                *cell = Content::Shape(shape.kind);
            }
        }
        Rgb(colour.map(|value| {
            (value + noise * (stream.uniform() + stream.uniform() - 1.0)).clamp(0.0, 255.0) as u8
        }))
    });
    Picture { image, content, owner, shapes }
}

impl Shape {
    fn draw(kind: usize, center: [f64; 2], radius: f64, stream: &mut Stream) -> Self {
        let angle = stream.range(0.0, TAU);
        Self { kind, center, radius, angle, surface: Surface::of_class(kind, stream) }
    }

    /// Where rays from the middle leave the shape.
    fn outline(&self) -> Vec<[f64; 2]> {
        const RAYS: usize = 48;
        let at = |angle: f64, length: f64| {
            [self.center[0] + length * angle.cos(), self.center[1] + length * angle.sin()]
        };
        (0..RAYS)
            .map(|ray| {
                let angle = TAU * ray as f64 / RAYS as f64;
                let (mut inside, mut outside) = (0.0, 2.0 * self.radius);
                for _ in 0..24 {
                    let middle = 0.5 * (inside + outside);
                    let out = self.distance(at(angle, middle)) > 0.0;
                    *(if out { &mut outside } else { &mut inside }) = middle;
                }
                at(angle, inside)
            })
            .collect()
    }

    /// Signed distance to the outline in pixels, negative inside.
    fn distance(&self, at: [f64; 2]) -> f64 {
        let (x, y) = (at[0] - self.center[0], at[1] - self.center[1]);
        let (sin, cos) = self.angle.sin_cos();
        let p = [cos * x + sin * y, cos * y - sin * x];
        let r = self.radius;
        match SHAPES[self.kind] {
            "disc" => distance(p, [0.0; 2]) - 0.9 * r,
            "square" => rectangle(p, [0.8 * r; 2]),
            "triangle" => polygon(p, 3, 0.52 * r),
            "star" => star(p, r),
            "ring" => (distance(p, [0.0; 2]) - 0.7 * r).abs() - 0.26 * r,
            _ => rectangle(p, [r, 0.32 * r]).min(rectangle(p, [0.32 * r, r])),
        }
    }
}

fn distance(a: [f64; 2], b: [f64; 2]) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

fn rectangle(p: [f64; 2], half: [f64; 2]) -> f64 {
    (p[0].abs() - half[0]).max(p[1].abs() - half[1])
}

/// A regular polygon whose sides are `apothem` from the middle.
fn polygon(p: [f64; 2], sides: usize, apothem: f64) -> f64 {
    let directions = (0..sides).map(|i| (TAU * i as f64 / sides as f64).sin_cos());
    directions.map(|(sin, cos)| p[0] * cos + p[1] * sin).fold(f64::MIN, f64::max) - apothem
}

/// A star of five points: within one tenth of the circle its outline is one straight line.
fn star(p: [f64; 2], outer: f64) -> f64 {
    let inner = 0.42 * outer;
    let tenth = TAU / 10.0;
    let turn = p[1].atan2(p[0]).rem_euclid(2.0 * tenth);
    let turn = turn.min(2.0 * tenth - turn);
    let length = distance(p, [0.0; 2]);
    let (x, y) = (length * turn.cos(), length * turn.sin());
    // From the point (outer, 0) to the notch at a tenth of the circle.
    let (dx, dy) = (inner * tenth.cos() - outer, inner * tenth.sin());
    ((x - outer) * dy - y * dx) / dx.hypot(dy)
}

impl Surface {
    fn of_class(kind: usize, stream: &mut Stream) -> Self {
        let own_hue = kind as f64 / SHAPES.len() as f64 + stream.range(-0.06, 0.06);
        let hue = if stream.chance(0.92) { own_hue } else { stream.uniform() };
        let colour = rgb(hue, stream.range(0.55, 0.9), stream.range(150.0, 235.0));
        Self::new(colour, kind, stream.range(0.25, 0.55), stream)
    }

    fn background(stream: &mut Stream) -> Self {
        let colour = rgb(stream.uniform(), stream.range(0.05, 0.4), stream.range(60.0, 190.0));
        let (pattern, contrast) = (stream.below(SHAPES.len()), stream.range(0.08, 0.25));
        Self::new(colour, pattern, contrast, stream)
    }

    fn new(colour: [f64; 3], pattern: usize, contrast: f64, stream: &mut Stream) -> Self {
        let frequency = TAU / stream.range(5.0, 11.0);
        Self {
            colour,
            pattern,
            frequency,
            angle: stream.range(0.0, TAU),
            phase: stream.range(0.0, TAU),
            contrast,
        }
    }

    fn at(&self, at: [f64; 2]) -> [f64; 3] {
        let (sin, cos) = self.angle.sin_cos();
        let u = self.frequency * (cos * at[0] + sin * at[1]) + self.phase;
        let v = self.frequency * (cos * at[1] - sin * at[0]) + self.phase;
        // From −1 to 1.
        let wave = match self.pattern {
            0 => 0.3 * (0.2 * u).sin(),
            1 => u.sin(),
            2 => (u.sin() * v.sin()).signum(),
            3 => {
                if u.sin() * v.sin() > 0.45 {
                    1.0
                } else {
                    -0.4
                }
            }
            4 => (0.5 * u).sin() * (0.5 * v).sin(),
            _ => (u + 1.5 * (0.5 * v).sin()).sin(),
        };
        self.colour.map(|value| value * (1.0 + self.contrast * wave))
    }
}

/// Hue and saturation in 0 to 1, value in 0 to 255.
fn rgb(hue: f64, saturation: f64, value: f64) -> [f64; 3] {
    [5.0, 3.0, 1.0].map(|n: f64| {
        let k = (n + 6.0 * hue).rem_euclid(6.0);
        value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rescatter::rng::{Purpose, Rng};

    #[test]
    fn every_shape_is_drawn_where_its_label_says() {
        for (kind, name) in SHAPES.iter().enumerate() {
            let mut stream = Rng::new(5).stream(Purpose::Synthetic, kind as u64, 0);
            let picture = portrait(64, kind, &mut stream);
            let of_shape = picture.content.iter().filter(|c| **c == Content::Shape(kind)).count();
            let edge = picture.content.iter().filter(|c| **c == Content::Edge).count();
            assert!((150..2600).contains(&of_shape), "{name}: {of_shape} pixels");
            assert!(edge > 40 && edge < of_shape, "{name}: {edge} pixels of outline");
        }
    }

    #[test]
    fn a_stars_points_and_notches_lie_on_its_outline() {
        for tenth in 0..10 {
            let radius = if tenth % 2 == 0 { 10.0 } else { 4.2 };
            let (sin, cos) = (TAU * f64::from(tenth) / 10.0).sin_cos();
            assert!(star([radius * cos, radius * sin], 10.0).abs() < 1e-9);
        }
        assert!(star([0.0, 0.0], 10.0) < -2.0 && star([9.0, 4.0], 10.0) > 1.0);
    }
}
