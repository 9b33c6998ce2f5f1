//! One axis of a region: which pixels each bin sees, and how much of each.

use super::RoiAlign;

/// The weights of the bins of one region along one axis; those of a bin are for neighbouring pixels.
#[derive(Debug, Clone, Default)]
pub(in crate::ops) struct Axis {
    bins: Vec<Bin>,
    weights: Vec<f32>,
}

#[derive(Debug, Clone, Copy)]
struct Bin {
    /// First pixel.
    first: u32,
    /// Where its weights begin.
    start: u32,
    count: u32,
}

impl Axis {
    /// Of a region from `low` to `high` (in pixels of the input) on an axis of `pixels` of the map. Computed in f32 and in the
    /// usual order of operations, because the number of samples is a rounded quotient.
    pub(in crate::ops) fn new(low: f32, high: f32, pixels: usize, options: RoiAlign) -> Self {
        let start = low * options.scale - 0.5;
        let length = high * options.scale - 0.5 - start;
        let bin = length / options.size as f32;
        let samples = match options.sampling_ratio {
            0 => bin.ceil().max(0.0) as usize,
            fixed => fixed,
        };
        let mut axis = Self::default();
        for i in 0..options.size {
            let origin = start + i as f32 * bin;
            let places = (0..samples).map(|u| origin + (u as f32 + 0.5) * bin / samples as f32);
            axis.push(places.filter_map(|place| neighbours(place, pixels)), samples);
        }
        axis
    }

    /// Appends a bin that is the mean of `samples` samples, each given by its first pixel, its last one and the last one's
    /// share.
    fn push(&mut self, samples: impl Iterator<Item = (usize, usize, f32)> + Clone, count: usize) {
        let first = samples.clone().map(|(first, _, _)| first).min().unwrap_or(0);
        let end = samples.clone().map(|(_, last, _)| last + 1).max().unwrap_or(0);
        let start = self.weights.len();
        self.weights.resize(start + end - first, 0.0);
        let share = 1.0 / count.max(1) as f32;
        for (low, high, fraction) in samples {
            self.weights[start + low - first] += (1.0 - fraction) * share;
            self.weights[start + high - first] += fraction * share;
        }
        let (first, start, count) = (first as u32, start as u32, (end - first) as u32);
        self.bins.push(Bin { first, start, count });
    }

    /// First pixel and weights of bin `i`.
    #[inline(always)]
    pub(super) fn bin(&self, i: usize) -> (usize, &[f32]) {
        let Bin { first, start, count } = self.bins[i];
        (first as usize, &self.weights[start as usize..(start + count) as usize])
    }

    /// First pixel and weights of every bin.
    pub(in crate::ops) fn bins(&self) -> impl Iterator<Item = (usize, &[f32])> {
        (0..self.bins.len()).map(|i| self.bin(i))
    }

    /// The pixels that any bin sees.
    pub(super) fn span(&self) -> std::ops::Range<usize> {
        let seen = || self.bins.iter().filter(|bin| bin.count > 0);
        let start = seen().map(|bin| bin.first).min().unwrap_or(0);
        let end = seen().map(|bin| bin.first + bin.count).max().unwrap_or(0);
        start as usize..end as usize
    }

    /// The weight of `pixel` in bin `i`.
    #[inline(always)]
    pub(super) fn weight(&self, i: usize, pixel: usize) -> f32 {
        let (first, weights) = self.bin(i);
        pixel.checked_sub(first).and_then(|at| weights.get(at)).copied().unwrap_or(0.0)
    }

    /// `[bins, pixels]`, row after row.
    pub(super) fn dense(&self, pixels: usize) -> Vec<f32> {
        let bins = 0..self.bins.len();
        bins.flat_map(|i| (0..pixels).map(move |pixel| self.weight(i, pixel))).collect()
    }
}

/// The two pixels beside a place and the share of the second; nothing more than a pixel outside the map.
fn neighbours(place: f32, pixels: usize) -> Option<(usize, usize, f32)> {
    if !(-1.0..=pixels as f32).contains(&place) {
        return None;
    }
    let place = place.max(0.0);
    let low = place as usize;
    let last = pixels - 1;
    Some(if low >= last { (last, last, 0.0) } else { (low, low + 1, place - low as f32) })
}
