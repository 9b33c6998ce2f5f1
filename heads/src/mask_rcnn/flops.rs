//! Multiply-adds of the detector on one image.

use rescatter::dispatch::flops::FlopCount;

use super::MaskRcnnConfig;
use super::box_head::BOX_BINS;
use super::mask_head::MASK_BINS;

/// Appends pyramid, proposal network and both heads on a map of `grid` (rows, columns) patches and `dim` channels, for
/// `classes` classes beside the background, with as many proposals and detections as there may be.
pub fn count(
    count: &mut FlopCount,
    config: &MaskRcnnConfig,
    (dim, classes): (usize, usize),
    (rows, columns): (usize, usize),
) {
    let mut same = |name: String, macs: usize| count.add(name, macs as f64, macs as f64);
    let (c, area) = (config.channels, rows * columns);
    let coarse = (rows / 2) * (columns / 2);
    let top = (rows / 2).div_ceil(2) * (columns / 2).div_ceil(2);
    // 1×1 from `input` channels and 3×3 on a level.
    let project = |positions: usize, input: usize| positions * (input * c + 9 * c * c);
    let first = area * 4 * dim * (dim / 2);
    let second = 4 * area * 4 * (dim / 2) * (dim / 4);
    same("pyramid p2".into(), first + second + project(16 * area, dim / 4));
    same("pyramid p3".into(), first + project(4 * area, dim / 2));
    same("pyramid p4 and p5".into(), project(area, dim) + project(coarse, dim));
    let positions = 21 * area + coarse + top;
    let scores = 5 * config.anchors.ratios.len() * c;
    same("proposal network".into(), positions * (config.rpn.convs * 9 * c * c + scores));

    let head = &config.box_head;
    let regions = config.rpn.post_nms.test * config.stages().len();
    let bins = BOX_BINS * BOX_BINS;
    let convs = stack(head.convs, c, head.conv_dim) * bins * 9;
    let flat = bins * if head.convs == 0 { c } else { head.conv_dim };
    let boxes = if config.class_agnostic() { 1 } else { classes + 1 };
    let dense = stack(head.fcs, flat, head.fc_dim) + head.fc_dim * (classes + 1 + 4 * boxes);
    same(format!("box head on {regions} regions"), regions * (convs + dense));
    if let Some(mask) = &config.mask_head {
        let (regions, bins) = (config.detections.per_image, MASK_BINS * MASK_BINS);
        let input = if mask.convs == 0 { c } else { mask.dim };
        let hidden = 9 * stack(mask.convs, c, mask.dim) + 4 * input * mask.dim;
        let name = format!("mask head on {regions} regions");
        let with = |classes: usize| (regions * bins * (hidden + 4 * mask.dim * classes)) as f64;
        // Each region's own class alone is computed.
        count.add(name, with(classes + 1), with(1));
    }
}

/// Products of channels of `layers` layers from `input` to `width`.
fn stack(layers: usize, input: usize, width: usize) -> usize {
    match layers.checked_sub(1) {
        Some(more) => input * width + more * width * width,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vitdets_numbers_by_hand() {
        let mut found = FlopCount::default();
        count(&mut found, &MaskRcnnConfig::default(), (768, 80), (64, 64));
        let part = |name: &str| {
            found.parts.iter().find(|part| part.name.starts_with(name)).unwrap().nominal / 1e9
        };
        // p4: 4096 · (768 · 256 + 9 · 256²) = 3.22 G; p5 a quarter of it.
        assert!((part("pyramid p4") - 4.0266).abs() < 1e-3);
        // 87 296 positions · (18 · 256² + 15 · 256): 103.3 G.
        assert!((part("proposal network") - 103.31).abs() < 0.1, "{}", part("proposal network"));
        // 1000 · (49 · 9 · 4 · 256² + 12 544 · 1024 + 1024 · (81 + 324)): 128.9 G.
        assert!((part("box head") - 128.87).abs() < 0.1, "{}", part("box head"));
    }
}
