//! Multiply-adds of a whole model.

use candle_core::Result;
use rescatter::backbone::{Dims, TokenGrid};
use rescatter::dispatch::flops::{self, FlopCount};
use rescatter::ops;

use crate::{Config, HeadConfig, TemporalTransformerConfig, UperNetConfig, mask_rcnn};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass<'a> {
    /// Height and width of one image in pixels.
    pub size: (usize, usize),
    /// Shares of the patch tokens that the dispatchers let pass, in their order, or one share for all of them.
    pub kept: &'a [f64],
    /// K.
    pub classes: usize,
}

/// One inference pass of the model of `config` over one image, or over one clip of a video model; the auxiliary head belongs
/// to training and is not in it.
///
/// # Errors
/// If the sizes in `config` do not fit together.
pub fn count(config: &Config, pass: Pass) -> Result<FlopCount> {
    let dims = Dims::new(&config.backbone)?;
    let grid = (pass.size.0.div_ceil(dims.patch), pass.size.1.div_ceil(dims.patch));
    let frames = config.data.train.frames();
    let reads = config.head.reads(dims.depth);
    let mut count =
        flops::backbone(&dims, (&config.dispatch, &config.tuning), &reads, pass.size, pass.kept)
            .repeated(frames);
    let patches = frames * grid.0 * grid.1;
    match &config.head {
        HeadConfig::Upernet(head) => {
            upernet(&mut count, head, (dims.dim, pass.classes), grid);
        }
        HeadConfig::Linear(head) => {
            let input = dims.dim * head.taps.len().max(1);
            same(&mut count, "linear head", grid.0 * grid.1 * input * pass.classes);
        }
        HeadConfig::MaskRcnn(head) => {
            mask_rcnn::flops::count(&mut count, head, (dims.dim, pass.classes), grid);
        }
        HeadConfig::Classifier(_) => same(&mut count, "classifier", dims.dim * pass.classes),
        HeadConfig::TemporalQuery(_) => {
            // Keys and values of every token; the one query, its mixing and its projection.
            let prefix = dims.prefix() + config.tuning.prompts();
            let (keys, dim) = (patches + frames * prefix, dims.dim);
            let macs = 2 * keys * dim * dim + 2 * keys * dim + 2 * dim * dim;
            same(&mut count, "query over all frames", macs + dim * pass.classes);
        }
        HeadConfig::TemporalTransformer(head) => {
            let macs = clip_transformer(head, dims.dim) + head.dim * pass.classes;
            same(&mut count, "transformer over the frames", macs);
            if let Some(radius) = head.correlation {
                matching(&mut count, head, radius, dims.dim, TokenGrid { grid, frames });
            }
        }
    }
    Ok(count)
}

/// The decode head on levels of ¼, ½, 1 and 2 of the patch size, from `input` channels to `classes`.
fn upernet(
    count: &mut FlopCount,
    head: &UperNetConfig,
    (input, classes): (usize, usize),
    (rows, columns): (usize, usize),
) {
    let c = head.channels;
    let (top, finest) = ((rows / 2, columns / 2), (4 * rows, 4 * columns));
    let area = |size: (usize, usize)| size.0 * size.1;
    let finer = area(finest) + 4 * rows * columns + rows * columns;
    // Enlarging by a transposed convolution and the lateral convolution after it, for the two finer levels (the finest is
    // enlarged twice), then the lateral convolution of the third.
    let enlarge = |pixels: usize| 4 * pixels * input * input;
    let lateral = |pixels: usize| pixels * input * c;
    let (patches, mut executed) = (rows * columns, 0);
    for pixels in [4 * patches, patches] {
        executed += match ops::mixing_first_pays(pixels, [input, input, c]) {
            true => 4 * (lateral(pixels) + input * input * c),
            false => enlarge(pixels) + lateral(4 * pixels),
        };
    }
    let nominal = enlarge(4 * patches) + enlarge(patches) + lateral(16 * patches + 4 * patches);
    let rest = enlarge(patches) + lateral(patches);
    add(count, "pyramid and lateral convolutions", (nominal, executed), (rest, rest));
    let scales = || head.pool_scales.iter().map(|&scale| (scale, scale));
    let pooled: usize = scales().map(|scale| area(scale) * input * c).sum();
    let direct = pooled + area(top) * 9 * input * c;
    let bottleneck = joined(scales(), top, c);
    add(count, "decode head: pyramid pooling", (direct, direct), bottleneck);
    same(count, "decode head: level convolutions", finer * 9 * c * c);
    let levels = [finest, (2 * rows, 2 * columns), (rows, columns), top];
    add(count, "decode head: fuse convolution", (0, 0), joined(levels.into_iter(), finest, c));
    same(count, "decode head: class scores", area(finest) * c * classes);
}

/// A 3×3 convolution of `parts` with `c` channels each, resized to `size`, to `c` channels: nominal and executed, as
/// coarse parts mix their channels before they are resized.
fn joined(
    parts: impl Iterator<Item = (usize, usize)>,
    size: (usize, usize),
    c: usize,
) -> (usize, usize) {
    let each = |part: (usize, usize)| {
        let at = if ops::mixes_before_resizing(part, size) { part } else { size };
        (size.0 * size.1 * 9 * c * c, at.0 * at.1 * 9 * c * c)
    };
    parts.map(each).fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1))
}

fn add(count: &mut FlopCount, name: &str, a: (usize, usize), b: (usize, usize)) {
    count.add(name, (a.0 + b.0) as f64, (a.1 + b.1) as f64);
}

fn clip_transformer(head: &TemporalTransformerConfig, channels: usize) -> usize {
    let (cells, dim) = (head.frames * head.cells[0] * head.cells[1], head.dim);
    let tokens = cells + 1;
    cells * channels * dim + head.depth * (12 * tokens * dim * dim + 2 * tokens * tokens * dim)
}

/// Every patch is multiplied with all of the next frame, where those around it would do; the cells' matches are mixed.
fn matching(
    count: &mut FlopCount,
    head: &TemporalTransformerConfig,
    radius: usize,
    channels: usize,
    TokenGrid { grid, frames }: TokenGrid,
) {
    let (displacements, patches) = ((2 * radius + 1).pow(2), grid.0 * grid.1);
    let mixed = head.frames * head.cells[0] * head.cells[1] * displacements * head.dim;
    let macs = |compared: usize| ((frames - 1) * patches * compared * channels + mixed) as f64;
    count.add("matches in the next frame", macs(displacements), macs(patches));
}

fn same(count: &mut FlopCount, name: &str, macs: usize) {
    count.add(name, macs as f64, macs as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rescatter::config::Variant;

    fn ade20k() -> Config {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/ade20k_upernet_vit_b16_dyt.yaml");
        rescatter::config::load::load(path.as_ref(), &[]).unwrap()
    }

    /// Gmac of the paper's setting.
    fn gmacs(config: &Config, kept: f64) -> f64 {
        let pass = Pass { size: (512, 512), kept: &[kept], classes: 150 };
        count(config, pass).unwrap().nominal_gmacs()
    }

    #[test]
    fn the_query_reads_prompts() {
        let query = |overrides: &[&str]| {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/ssv2_vit_b16_dyt.yaml");
            let overrides: Vec<String> = overrides.iter().map(|&o| o.into()).collect();
            let config = rescatter::config::load::load(path.as_ref(), &overrides).unwrap();
            let pass = Pass { size: (224, 224), kept: &[0.5], classes: 174 };
            let parts = count(&config, pass).unwrap().parts;
            parts.into_iter().find(|part| part.name == "query over all frames").unwrap().nominal
        };
        // 5 prompts in each of 8 frames are keys and values, 2 · 768², and are asked and mixed, 2 · 768.
        let more = query(&["tuning.vpt={tokens: 5}"]) - query(&[]);
        assert_eq!(more, 40.0 * 2.0 * 768.0 * 769.0);
    }

    #[test]
    fn the_published_counts_are_met() {
        let mut config = ade20k();
        let dispatched = gmacs(&config, 1.0);
        config.dispatch.variant = Variant::None;
        let adapted = gmacs(&config, 1.0);
        config.tuning.adapter = None;
        let dense = gmacs(&config, 1.0);
        // [DyT] Table 10: 605.36 for the dense model. Its counter adds norms and interpolation, 0.07 % here.
        assert!((dense / 605.36 - 1.0).abs() < 1e-3, "{dense}");
        // 606.57 with AdaptFormer: the adapters cost 12 · 1025 · 2 · 768 · 64 = 1.21 G.
        assert!((adapted - dense - (606.57 - 605.36)).abs() < 0.005, "{adapted}");
        // Dispatchers: 12 · 1024 · 768.
        assert!((dispatched - adapted - 12.0 * 1024.0 * 768.0 / 1e9).abs() < 1e-6, "{dispatched}");
        // 584.57 for DyT: between r = 0.5 and all tokens, as more than half are kept at the published threshold.
        config = ade20k();
        assert!((gmacs(&config, 0.5)..dispatched).contains(&584.57));
        // Half of the patches skip 12 · 512 · 8 · 768².
        let saved = dispatched - gmacs(&config, 0.5);
        assert!((saved - 12.0 * 512.0 * 8.0 * 768.0 * 768.0 / 1e9).abs() < 1e-6, "{saved}");
    }
}
