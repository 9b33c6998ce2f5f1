//! Anchors: boxes of given sizes and ratios around every position of every level.

use super::config::AnchorConfig;

/// The anchors of one level, `h · w · A` in the order row, column, ratio: √area `size`, height over width `ratios`, centres
/// at (column, row) · `stride` pixels.
pub fn level_anchors(
    size: f32,
    ratios: &[f32],
    stride: f32,
    (rows, columns): (usize, usize),
) -> Vec<[f32; 4]> {
    let cells: Vec<(f32, f32)> = ratios
        .iter()
        .map(|&ratio| {
            let width = (f64::from(size) * f64::from(size) / f64::from(ratio)).sqrt();
            (width as f32 / 2.0, (f64::from(ratio) * width) as f32 / 2.0)
        })
        .collect();
    let mut anchors = Vec::with_capacity(rows * columns * cells.len());
    for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
        let (x, y) = (column as f32 * stride, row as f32 * stride);
        anchors.extend(cells.iter().map(|(w, h)| [x - w, y - h, x + w, y + h]));
    }
    anchors
}

/// The anchors of all levels, whose maps have `shapes` (rows, columns) and `strides`.
pub fn anchors(
    config: &AnchorConfig,
    strides: &[f32],
    shapes: &[(usize, usize)],
) -> Vec<Vec<[f32; 4]>> {
    let levels = config.sizes.iter().zip(strides).zip(shapes);
    levels
        .map(|((&size, &stride), &shape)| level_anchors(size, &config.ratios, stride, shape))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_by_hand() {
        // Area 64: 16 × 4 and 4 × 16 have ratios 1/4 and 4.
        let found = level_anchors(8.0, &[0.25, 4.0], 3.5, (1, 2));
        assert_eq!(
            found,
            [
                [-8.0, -2.0, 8.0, 2.0],
                [-2.0, -8.0, 2.0, 8.0],
                [-4.5, -2.0, 11.5, 2.0],
                [1.5, -8.0, 5.5, 8.0]
            ]
        );
    }
}
