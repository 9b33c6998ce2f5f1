//! Counting multiply-adds.

use crate::backbone::Dims;
use crate::config::{DispatchConfig, TuningConfig, Variant};

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

    /// The sum in units of 10⁹.
    pub fn nominal_gmacs(&self) -> f64 {
        self.parts.iter().map(|part| part.nominal).sum::<f64>() / 1e9
    }

    /// The sum in units of 10⁹.
    pub fn executed_gmacs(&self) -> f64 {
        self.parts.iter().map(|part| part.executed).sum::<f64>() / 1e9
    }
}

/// The backbone on one image of `size` (height, width); `kept` is the share of patch tokens that dispatched parts work on.
pub fn backbone(
    dims: &Dims,
    dispatch: &DispatchConfig,
    tuning: &TuningConfig,
    size: (usize, usize),
    kept: f64,
) -> FlopCount {
    let patches = (size.0.div_ceil(dims.patch) * size.1.div_ceil(dims.patch)) as f64;
    let tokens = patches + dims.prefix() as f64;
    let (dim, depth, hidden) = (dims.dim as f64, dims.depth as f64, dims.hidden as f64);
    let mut count = FlopCount::default();
    let mut same = |name: &str, macs: f64| count.add(name, macs, macs);
    same("patch embedding", patches * dim * 3.0 * (dims.patch * dims.patch) as f64);
    same("attention projections", depth * tokens * 4.0 * dim * dim);
    same("attention scores and mixing", depth * 2.0 * tokens * tokens * dim);
    let active = match dispatch.variant {
        Variant::None => tokens,
        Variant::Mlp => dims.prefix() as f64 + kept * patches,
    };
    same("mlp", depth * active * 2.0 * dim * hidden);
    if dispatch.variant != Variant::None {
        same("dispatchers", depth * patches * dim);
    }
    if let Some(adapter) = tuning.adapter {
        let (width, experts) = (adapter.bottleneck as f64, adapter.experts as f64);
        same("adapters", depth * tokens * 2.0 * dim * width);
        if adapter.experts > 1 {
            same("routers and merging", depth * experts * (dim + 2.0 * dim * width));
        }
    }
    count
}

/// Appends the pyramid [`crate::backbone::pyramid::DytPyramid`] over maps of `grid` (rows, columns) and `dim` channels.
pub fn dyt_pyramid(count: &mut FlopCount, dim: usize, grid: (usize, usize)) {
    // fpn1.0 and fpn2.0 on h·w, fpn1.2 on 4·h·w positions, each with 2 × 2 outputs.
    let macs = 6.0 * 4.0 * (grid.0 * grid.1 * dim * dim) as f64;
    count.add("pyramid", macs, macs);
}
