//! The objects of one image: what detection is trained towards.

use ndarray::Array2;

/// The annotated objects of one image, in pixels of the model's input.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instances {
    /// Height and width of the model's input without padding: proposals are clipped to it.
    pub size: (usize, usize),
    /// (x0, y0, x1, y1) of every object, x1 and y1 exclusive.
    pub boxes: Vec<[f32; 4]>,
    /// Its class, `0..K` without a background class.
    pub classes: Vec<u32>,
    /// Its pixels; empty where the set has no masks.
    pub masks: Vec<InstanceMask>,
    /// Regions with too many objects to tell apart: neither positives nor negatives.
    pub crowds: Vec<[f32; 4]>,
}

/// The pixels of one object, kept for the part of the image that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceMask {
    /// Row and column of the image at which the bitmap begins.
    pub origin: (usize, usize),
    /// 1 where the object is.
    pub bitmap: Array2<u8>,
}
