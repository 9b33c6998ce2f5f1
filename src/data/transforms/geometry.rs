//! What was done to an image's pixels, for whatever must follow them.

/// Where a coordinate of the image on disk lies in the transformed image: `scale · v + offset`.
///
/// Coordinates are continuous: pixel `i` reaches from `i` to `i + 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    /// Pixels of the transformed image per pixel on disk; negative where mirrored.
    pub scale: f64,
    /// Where coordinate 0 went.
    pub offset: f64,
}

impl Axis {
    /// The place in the transformed image.
    pub fn apply(&self, value: f64) -> f64 {
        self.scale * value + self.offset
    }

    /// The place on disk.
    pub fn invert(&self, value: f64) -> f64 {
        (value - self.offset) / self.scale
    }
}

/// Resizing, cropping and mirroring so far, axis by axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Geometry {
    /// To the right.
    pub x: Axis,
    /// Downwards.
    pub y: Axis,
}

impl Default for Geometry {
    fn default() -> Self {
        let axis = Axis { scale: 1.0, offset: 0.0 };
        Self { x: axis, y: axis }
    }
}

impl Geometry {
    /// The image was resized by these factors.
    pub fn scale(&mut self, x: f64, y: f64) {
        for (axis, factor) in [(&mut self.x, x), (&mut self.y, y)] {
            *axis = Axis { scale: axis.scale * factor, offset: axis.offset * factor };
        }
    }

    /// The image was cut so that its upper left corner is at (`left`, `top`) of what it was.
    pub fn shift(&mut self, left: f64, top: f64) {
        self.x.offset -= left;
        self.y.offset -= top;
    }

    /// The image, `width` pixels wide, was mirrored left and right.
    pub fn mirror(&mut self, width: f64) {
        self.x = Axis { scale: -self.x.scale, offset: width - self.x.offset };
    }

    /// Whether left and right are exchanged.
    pub fn is_mirrored(&self) -> bool {
        self.x.scale < 0.0
    }
}
