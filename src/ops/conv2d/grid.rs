//! Maps laid out so that a tap of the kernel is an offset: padded, and split into the phases of the stride.
//!
//! With a stride s the padded row r = q·s + phase goes to row q of plane `phase`; the outputs that see the map through one
//! tap then see one plane from one offset on, row after row. No window is ever copied.

use std::borrow::Cow;

use rayon::prelude::*;

/// A batch of maps `[B, s·s phases, C, rows, width]`.
pub(super) struct Grid<'a> {
    data: Cow<'a, [f32]>,
    /// Channels of one phase.
    pub(super) channels: usize,
    /// Phases of the stride along both axes together.
    pub(super) phases: usize,
    /// From a channel to the next.
    pub(super) plane: usize,
    /// From a row to the next.
    pub(super) width: usize,
}

/// What a grid is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct GridSpec {
    /// Channels of the map.
    pub(super) channels: usize,
    /// Its height and width.
    pub(super) size: (usize, usize),
    /// Zeros above and left of it.
    pub(super) pad: (usize, usize),
    /// Rows and columns of each plane; what does not fit is left out.
    pub(super) plane: (usize, usize),
    /// Phases along each axis.
    pub(super) stride: usize,
}

impl<'a> Grid<'a> {
    /// Lays out `x` `[B, C, H, W]`; borrows it where nothing has to move.
    pub(super) fn new(x: &'a [f32], spec: &GridSpec) -> Self {
        let plane = spec.plane.0 * spec.plane.1;
        let phases = spec.stride * spec.stride;
        let in_place = spec.stride == 1 && spec.pad == (0, 0) && spec.plane == spec.size;
        let data = if in_place { Cow::Borrowed(x) } else { Cow::Owned(spec.lay_out(x)) };
        Self { data, channels: spec.channels, phases, plane, width: spec.plane.1 }
    }

    /// The same values with the phases taken as channels.
    pub(super) fn merged(self) -> Self {
        Self { channels: self.channels * self.phases, phases: 1, ..self }
    }

    /// All channels of a phase of an image.
    pub(super) fn phase(&self, image: usize, phase: usize) -> &[f32] {
        let size = self.channels * self.plane;
        &self.data[(image * self.phases + phase) * size..][..size]
    }
}

impl GridSpec {
    fn lay_out(&self, x: &[f32]) -> Vec<f32> {
        let ((height, width), s) = (self.size, self.stride);
        let area = height * width;
        let plane = self.plane.0 * self.plane.1;
        let planes = x.len() / area.max(1) * s * s;
        let mut out = vec![0.0; planes * plane];
        out.par_chunks_exact_mut(plane).enumerate().for_each(|(index, target)| {
            let (image, rest) = (index / (s * s * self.channels), index % (s * s * self.channels));
            let (phase, channel) = (rest / self.channels, rest % self.channels);
            let source = &x[(image * self.channels + channel) * area..][..area];
            let first = inside(self.pad.1, phase % s, s, width, self.plane.1);
            for (q, row) in target.chunks_exact_mut(self.plane.1).enumerate() {
                let Some(r) = (q * s + phase / s).checked_sub(self.pad.0).filter(|&r| r < height)
                else {
                    continue;
                };
                let (from, count) = first;
                let column = from * s + phase % s - self.pad.1;
                let source = &source[r * width + column..(r + 1) * width];
                copy_strided(&mut row[from..from + count], source, s);
            }
        });
        out
    }
}

/// The positions of a phase that lie on the map: the first, and how many.
fn inside(
    pad: usize,
    phase: usize,
    stride: usize,
    size: usize,
    positions: usize,
) -> (usize, usize) {
    let from = pad.saturating_sub(phase).div_ceil(stride);
    let to = (size + pad).saturating_sub(phase).div_ceil(stride).min(positions);
    (from.min(to), to.saturating_sub(from))
}

fn copy_strided(target: &mut [f32], source: &[f32], stride: usize) {
    if stride == 1 {
        target.copy_from_slice(&source[..target.len()]);
    } else {
        for (t, s) in target.iter_mut().zip(source.iter().step_by(stride)) {
            *t = *s;
        }
    }
}

/// Each image's `x` `[C, H, W]` as `[(H − 1)·width + W, C]`: pixels first, zeros in the columns beyond the map.
pub(in crate::ops) fn pixels_first(
    x: &[f32],
    channels: usize,
    size: (usize, usize),
    width: usize,
) -> Vec<f32> {
    let positions = (size.0 - 1) * width + size.1;
    let mut out = vec![0.0; x.len() / (size.0 * size.1) * positions];
    let images = out
        .par_chunks_exact_mut(positions * channels)
        .zip(x.par_chunks_exact(channels * size.0 * size.1));
    images.for_each(|(target, image)| {
        // Row by row, so that parts of one image can run side by side.
        target.par_chunks_mut(width * channels).enumerate().for_each(|(row, target)| {
            transpose(&image[row * size.1..], size.0 * size.1, (channels, size.1), target);
        });
    });
    out
}

/// `source` `[rows, cols]` with `stride` from row to row → `target` `[cols, rows]`.
pub(in crate::ops) fn transpose(
    source: &[f32],
    stride: usize,
    (rows, cols): (usize, usize),
    target: &mut [f32],
) {
    const BLOCK: usize = 16;
    for r0 in (0..rows).step_by(BLOCK) {
        for c0 in (0..cols).step_by(BLOCK) {
            let (r1, c1) = ((r0 + BLOCK).min(rows), (c0 + BLOCK).min(cols));
            for c in c0..c1 {
                let target = &mut target[c * rows + r0..c * rows + r1];
                for (t, r) in target.iter_mut().zip(r0..r1) {
                    *t = source[r * stride + c];
                }
            }
        }
    }
}
