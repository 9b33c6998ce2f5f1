//! How an image is looked at: at which scales, mirrored or not, whole or through a sliding window.

use rescatter::config::EvalConfig;

/// One look at the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct View {
    /// Factor on both sides.
    pub(super) scale: f64,
    /// Mirrored left and right.
    pub(super) flipped: bool,
}

/// The looks whose results are averaged; the plain one comes first if it is among them.
pub(super) fn views(config: &EvalConfig) -> Vec<View> {
    let scales = if config.scales.is_empty() { &[1.0][..] } else { &config.scales };
    let flips: &[bool] = if config.flip { &[false, true] } else { &[false] };
    scales
        .iter()
        .flat_map(|&scale| flips.iter().map(move |&flipped| View { scale, flipped }))
        .collect()
}

/// Where the windows of mmsegmentation's `slide` mode start along one axis, and their common length. The last window is
/// shifted back so that it ends with the image.
pub(super) fn windows(length: usize, crop: usize, stride: usize) -> (Vec<usize>, usize) {
    let crop = crop.min(length);
    let count = (length - crop).div_ceil(stride.max(1)) + 1;
    ((0..count).map(|i| (i * stride).min(length - crop)).collect(), crop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_axis_and_the_last_ends_with_it() {
        assert_eq!(windows(683, 512, 341), (vec![0, 171], 512));
        assert_eq!(windows(512, 512, 341), (vec![0], 512));
        assert_eq!(windows(300, 512, 341), (vec![0], 300));
        assert_eq!(windows(1194, 512, 341), (vec![0, 341, 682], 512));
        assert_eq!(windows(1195, 512, 341), (vec![0, 341, 682, 683], 512));
    }

    #[test]
    fn every_scale_is_seen_with_and_without_mirroring() {
        let config = EvalConfig { scales: vec![1.0, 1.5], flip: true, ..EvalConfig::default() };
        let seen: Vec<_> = views(&config).iter().map(|v| (v.scale, v.flipped)).collect();
        assert_eq!(seen, [(1.0, false), (1.0, true), (1.5, false), (1.5, true)]);
    }
}
