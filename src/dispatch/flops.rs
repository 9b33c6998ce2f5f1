//! Counting multiply-adds.

use super::{Site, comparisons, tokens_left};
use crate::backbone::{Dims, Reads};
use crate::config::{DispatchConfig, TomeConfig, TuningConfig, Variant};
use crate::tuning;

/// The multiply-adds of one forward pass over one image, part by part.
///
/// *Nominal* counts as the papers do: every matrix product and convolution by its definition, dispatched work by the share
/// of tokens that is kept; norms, activations and interpolation are free. *Executed* is what the code really multiplies,
/// after algebra.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FlopCount {
    /// In the order of the model.
    pub parts: Vec<Part>,
}

/// One part of the model.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// Multiply-adds by the papers' counting.
    pub nominal: f64,
    /// Multiply-adds that are executed.
    pub executed: f64,
}

impl FlopCount {
    /// Appends a part, in multiply-adds.
    pub fn add(&mut self, name: impl Into<String>, nominal: f64, executed: f64) {
        self.parts.push(Part { name: name.into(), nominal, executed });
    }

    /// The same `times` over, e.g. for every frame of a clip.
    #[must_use]
    pub fn repeated(mut self, times: usize) -> Self {
        for part in &mut self.parts {
            part.nominal *= times as f64;
            part.executed *= times as f64;
        }
        self
    }

    /// The sum in units of 10⁹.
    pub fn nominal_gmacs(&self) -> f64 {
        self.parts.iter().map(|part| part.nominal).sum::<f64>() / 1e9
    }

    /// The sum in units of 10⁹.
    pub fn executed_gmacs(&self) -> f64 {
        self.parts.iter().map(|part| part.executed).sum::<f64>() / 1e9
    }
}

/// The backbone on one image of `size` (height, width) for a head that `reads` so much of it; `kept` are the shares of the
/// patch tokens that the dispatchers let pass, in their order, or one share for all of them.
pub fn backbone(
    dims: &Dims,
    (dispatch, tuning): (&DispatchConfig, &TuningConfig),
    reads: &Reads,
    size: (usize, usize),
    kept: &[f64],
) -> FlopCount {
    let grid = dims.padded_grid(size);
    let patches = (grid.0 * grid.1) as f64;
    let first = dims.prefix() + tuning.prompts();
    let (prefix, tokens) = (first as f64, patches + first as f64);
    let (dim, hidden) = (dims.dim as f64, dims.hidden as f64);
    let counts = token_counts(dims, dispatch, (first, grid));
    let mut count = FlopCount::default();
    let embedding = patches * dim * 3.0 * (dims.patch * dims.patch) as f64;
    count.add("patch embedding", embedding, embedding);
    // Tokens that pass a half of a block, of those that come to it.
    let active = |block: usize, half: Site| match share(dispatch, kept, (block, half)) {
        Passing::Nobody => 0.0,
        Passing::Share(share) => prefix + share * (coming(&counts, block, half) - prefix),
    };
    attention(&mut count, dims, (first, grid), |block| active(block, Site::Attention) / tokens);
    let over = |sites: &[Site], value: &dyn Fn(usize, Site) -> f64| -> f64 {
        let blocks = 0..dims.depth;
        blocks.flat_map(|block| sites.iter().map(move |&site| value(block, site))).sum()
    };
    // What is left of so many tokens where patches that nobody reads end before the last MLP.
    let ends = reads.leave_out_patches(dispatch, tuning);
    let left = |tokens: f64, block: usize, site: Site| {
        let last = ends && block + 1 == dims.depth && site == Site::Mlp;
        if last { tokens.min(prefix) } else { tokens }
    };
    // Multiply-adds of what tokens pass, `each` of them: nominal and executed.
    let both = |sites: &[Site], tokens: &dyn Fn(usize, Site) -> f64, each: f64| {
        let left = |block, site| left(tokens(block, site), block, site);
        (over(sites, tokens) * each, over(sites, &left) * each)
    };
    let (nominal, executed) = both(&[Site::Mlp], &active, 2.0 * dim * hidden);
    count.add("mlp", nominal, executed);
    let scored = |block, site| match share(dispatch, kept, (block, site)) {
        Passing::Nobody => 0.0,
        Passing::Share(_) => coming(&counts, block, site) - prefix,
    };
    if dispatch.variant != Variant::None {
        let macs = over(dispatch.variant.dispatched(), &scored) * dim;
        count.add("dispatchers", macs, macs);
    }
    if dispatch.tome.is_some() {
        let (nominal, executed) = merging(dims, &counts, first);
        count.add("token merging", nominal, executed);
    }
    if let Some(adapter) = tuning.adapter {
        let (width, experts) = (adapter.bottleneck as f64, adapter.experts as f64);
        let sites = dispatch.variant.adapted();
        let adapters = (dims.depth * sites.len()) as f64;
        let come = |block, site| coming(&counts, block, site);
        let (nominal, executed) = both(sites, &come, 2.0 * dim * width);
        count.add("adapters", nominal, executed);
        if adapter.experts > 1 {
            let macs = adapters * experts * (dim + 2.0 * dim * width);
            count.add("routers and merging", macs, macs);
        }
    }
    if let Some(adapter) = tuning.st_adapter {
        let taps: usize = adapter.kernel.iter().product();
        let width = adapter.bottleneck as f64;
        let macs = dims.depth as f64 * patches * width * (2.0 * dim + taps as f64);
        count.add("adapters over time", macs, macs);
    }
    tuning::flops::count(&mut count, dims, tuning, tokens);
    count
}

/// The tokens that come to every block, and that leave the last: fewer where they are merged; `prefix` of them, before
/// the patches on `grid`, never are.
fn token_counts(
    dims: &Dims,
    dispatch: &DispatchConfig,
    (prefix, grid): (usize, (usize, usize)),
) -> Vec<usize> {
    let mut counts = vec![grid.0 * grid.1 + prefix];
    for block in 0..dims.depth {
        let left = |tome: TomeConfig| tokens_left(counts[block], prefix, tome.r);
        counts.push(dispatch.tome.map_or(counts[block], left));
    }
    counts
}

/// Comparing the keys of the tokens that come to every block, nominal and executed; their mean over the heads is computed
/// for itself, outside of the attention.
fn merging(dims: &Dims, counts: &[usize], prefix: usize) -> (f64, f64) {
    let (dim, width) = (dims.dim as f64, (dims.dim / dims.heads) as f64);
    let tokens = &counts[..dims.depth];
    let compared = |&tokens: &usize| {
        let (joining, joined) = comparisons(tokens, prefix);
        (joining * joined) as f64 * width
    };
    let compared: f64 = tokens.iter().map(compared).sum();
    let keys: f64 = tokens.iter().map(|&tokens| tokens as f64 * dim * width).sum();
    (compared, compared + keys)
}

/// The tokens that come to `site` of `block`: before the MLP they may have been merged.
fn coming(counts: &[usize], block: usize, site: Site) -> f64 {
    counts[if site == Site::Mlp { block + 1 } else { block }] as f64
}

/// Which tokens pass a half of a block.
enum Passing {
    /// It was pruned.
    Nobody,
    /// The prefix and this share of the patches.
    Share(f64),
}

/// Who passes `half` (attention or MLP) of `block`.
fn share(dispatch: &DispatchConfig, kept: &[f64], (block, half): (usize, Site)) -> Passing {
    let sites = dispatch.variant.dispatched();
    let decided = |&site: &Site| site == half || site == Site::Layer;
    let Some(position) = sites.iter().position(decided) else { return Passing::Share(1.0) };
    let number = block * sites.len() + position;
    if dispatch.pruned.contains(&number) {
        return Passing::Nobody;
    }
    Passing::Share(kept.get(number).or(kept.last()).copied().unwrap_or(1.0))
}

/// Appends the attention of all blocks to `prefix` tokens and the patches on `grid`; `active(block)` is the share of tokens
/// that are asked and ask. In windows the reference also computes the padding's queries and projections; here padding is
/// only a key.
fn attention(
    count: &mut FlopCount,
    dims: &Dims,
    (prefix, grid): (usize, (usize, usize)),
    active: impl Fn(usize) -> f64,
) {
    let (dim, tokens) = (dims.dim as f64, (grid.0 * grid.1 + prefix) as f64);
    let [mut projections, mut scores, mut positions] = [(0.0, 0.0); 3];
    let add = |part: &mut (f64, f64), nominal: f64, executed: f64| {
        *part = (part.0 + nominal, part.1 + executed);
    };
    for index in 0..dims.depth {
        // Tokens that the reference computes, and keys of each.
        let (computed, keys, places) = match dims.window_of(index) {
            None => (tokens, tokens, grid),
            Some(size) => {
                let padded = grid.0.next_multiple_of(size) * grid.1.next_multiple_of(size);
                (padded as f64, (size * size) as f64, (size, size))
            }
        };
        let share = active(index);
        let (computed, tokens, keys) = (share * computed, share * tokens, share * keys);
        add(&mut projections, computed * 4.0 * dim * dim, tokens * 4.0 * dim * dim);
        add(&mut scores, 2.0 * computed * keys * dim, 2.0 * tokens * keys * dim);
        if dims.rel_pos.is_some() {
            // A query meets the distances to its own keys; the kernel multiplies the whole tables.
            let (needed, table) = (places.0 + places.1, 2 * (places.0 + places.1) - 2);
            add(&mut positions, computed * needed as f64 * dim, tokens * table as f64 * dim);
        }
    }
    count.add("attention projections", projections.0, projections.1);
    count.add("attention scores and mixing", scores.0, scores.1);
    if dims.rel_pos.is_some() {
        count.add("relative positions", positions.0, positions.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BackboneConfig, RelPosConfig, VptConfig, WindowConfig, WindowPadding};

    /// One block in windows and one that sees the whole image; two channels, patches of one pixel.
    fn dims(padding: WindowPadding, rel_pos: Option<RelPosConfig>) -> Dims {
        let window = Some(WindowConfig { size: 2, global_blocks: vec![1], padding });
        let cfg = BackboneConfig {
            arch: None,
            embed_dim: Some(2),
            depth: Some(2),
            num_heads: Some(1),
            mlp_ratio: Some(1.0),
            patch_size: 1,
            layer_scale: false,
            cls_token: false,
            reg_tokens: 0,
            no_embed_class: false,
            pos_embed_grid: [1, 1],
            window,
            rel_pos,
            weights: None,
            drop_path: 0.0,
        };
        Dims::new(&cfg).unwrap()
    }

    #[test]
    fn windows_their_padding_and_relative_positions_are_counted() {
        let (dispatch, tuning) = (DispatchConfig::default(), TuningConfig::default());
        let part = |dims: &Dims, name: &str| {
            let count = backbone(dims, (&dispatch, &tuning), &Reads::all(&[]), (3, 4), &[]);
            let part = count.parts.iter().find(|part| part.name == name).unwrap().clone();
            (part.nominal, part.executed)
        };
        // 12 tokens; windows of 2 × 2 pad them to 16. Projections: 4 · 2² a token.
        let tokens = dims(WindowPadding::Tokens, Some(RelPosConfig { grid: [3, 4] }));
        assert_eq!(part(&tokens, "attention projections"), (16.0 * 28.0, 16.0 * 24.0));
        // 2 · 2 a pair: 4 keys in the windows, 12 in the image.
        let scores = (4.0 * (16.0 * 4.0 + 144.0), 4.0 * (12.0 * 4.0 + 144.0));
        assert_eq!(part(&tokens, "attention scores and mixing"), scores);
        // 2 a distance: 2 + 2 of 3 + 3 in the windows, 3 + 4 of 5 + 7 in the image.
        let positions = (2.0 * (16.0 * 4.0 + 12.0 * 7.0), 2.0 * (12.0 * 6.0 + 12.0 * 12.0));
        assert_eq!(part(&tokens, "relative positions"), positions);
        // Padded images: everything is done for 16 tokens.
        let images = dims(WindowPadding::Images, None);
        assert_eq!(part(&images, "patch embedding"), (16.0 * 6.0, 16.0 * 6.0));
        assert_eq!(part(&images, "attention projections"), (16.0 * 32.0, 16.0 * 32.0));
        assert_eq!(part(&images, "mlp"), (2.0 * 16.0 * 8.0, 2.0 * 16.0 * 8.0));
    }

    #[test]
    fn prompts_are_asked_and_ask() {
        let dims = Dims { window: None, cls_tokens: 1, ..dims(WindowPadding::Tokens, None) };
        let vpt = Some(VptConfig { tokens: 3, deep: true });
        let tuning = TuningConfig { vpt, ..TuningConfig::default() };
        let count =
            backbone(&dims, (&DispatchConfig::default(), &tuning), &Reads::all(&[]), (3, 4), &[]);
        let macs: Vec<f64> = count.parts[1..].iter().map(|part| part.executed).collect();
        // Two blocks of 16 tokens, 12 of them patches: projections 4 · 2², pairs 2 · 2, MLP 2 · 2 · 2.
        assert_eq!(macs, [2.0 * 16.0 * 16.0, 2.0 * 256.0 * 4.0, 2.0 * 16.0 * 8.0]);
    }

    #[test]
    fn every_variant_counts_what_active_tokens_alone_pass() {
        use crate::config::Variant::{Attention, AttentionMlp, Layer, Mlp, None};
        // Two blocks in no windows; a class token and 12 patches of two channels, hidden width 2.
        let dims = Dims {
            window: Option::None,
            cls_tokens: 1,
            ..dims(WindowPadding::Tokens, Option::None)
        };
        let (tuning, every) = (TuningConfig::default(), Reads::all(&[]));
        let macs = |variant, pruned: Vec<usize>, kept: &[f64]| {
            let dispatch = DispatchConfig { variant, pruned, ..DispatchConfig::default() };
            let count = backbone(&dims, (&dispatch, &tuning), &every, (3, 4), kept);
            count.parts[1..].iter().map(|part| part.executed).collect::<Vec<_>>()
        };
        let projections = |active: [f64; 2]| 16.0 * (active[0] + active[1]);
        let scores = |active: [f64; 2]| 4.0 * (active[0].powi(2) + active[1].powi(2));
        let mlp = |active: [f64; 2]| 8.0 * (active[0] + active[1]);
        let all = [13.0, 13.0];
        let dense = vec![projections(all), scores(all), mlp(all)];
        assert_eq!(macs(None, vec![], &[0.5]), dense);
        // A share of ¼ and then ¾: 1 + 3 and 1 + 9 tokens. A dispatcher: 12 · 2.
        let (kept, some) = ([0.25, 0.75], [4.0, 10.0]);
        assert_eq!(macs(Mlp, vec![], &kept), [dense[0], dense[1], mlp(some), 48.0]);
        assert_eq!(
            macs(Attention, vec![], &kept),
            [projections(some), scores(some), dense[2], 48.0]
        );
        assert_eq!(macs(Layer, vec![], &kept), [projections(some), scores(some), mlp(some), 48.0]);
        // Two dispatchers a block: the attentions have ¼ and ½, the MLPs ¾ and 0.
        let (asked, fed) = ([4.0, 7.0], [10.0, 1.0]);
        let both = macs(AttentionMlp, vec![], &[0.25, 0.75, 0.5, 0.0]);
        assert_eq!(both, [projections(asked), scores(asked), mlp(fed), 96.0]);
        // 13 tokens of which 4 join others before each MLP: the attentions get 13 and 9, the MLPs 9 and 5.
        let merging =
            DispatchConfig { tome: Some(TomeConfig { r: 4 }), ..DispatchConfig::default() };
        let count = backbone(&dims, (&merging, &tuning), &every, (3, 4), &[]);
        let macs_merged: Vec<f64> = count.parts[1..].iter().map(|part| part.executed).collect();
        let (attended, fed) = ([13.0, 9.0], [9.0, 5.0]);
        // 6 keys of two channels are compared with 6, then 4 with 4; each key costs 2 · 2.
        let merging = 2.0 * (6.0 * 6.0 + 4.0 * 4.0) + 4.0 * (13.0 + 9.0);
        let parts = [projections(attended), scores(attended), mlp(fed), merging];
        assert_eq!(macs_merged, parts);
        // What nobody reads is not executed: of the last MLP's 10 tokens all but the class token.
        let count = |dispatch: &DispatchConfig, reads: &Reads| {
            let count = backbone(&dims, (dispatch, &tuning), reads, (3, 4), &kept);
            let mlp = count.parts.iter().find(|part| part.name == "mlp").unwrap();
            (mlp.nominal, mlp.executed)
        };
        let dispatch = DispatchConfig { variant: Mlp, ..DispatchConfig::default() };
        assert_eq!(count(&dispatch, &Reads::prefix()), (mlp(some), mlp([4.0, 1.0])));
        let whole = DispatchConfig { variant: Layer, ..DispatchConfig::default() };
        assert_eq!(count(&whole, &Reads::prefix()), (mlp(some), mlp(some)));
        // What was pruned is not even passed by the class token.
        assert_eq!(macs(Mlp, vec![1], &[0.25, 0.0]), [dense[0], dense[1], mlp([4.0, 0.0]), 24.0]);
    }
}
