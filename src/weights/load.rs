//! A pretrained checkpoint into a model, with a report of what went where.

use std::collections::BTreeSet;
use std::fmt::{Display, Formatter};
use std::path::{Path, PathBuf};

use super::checkpoint::Tensors;
use super::layout::Layout;
use super::names::{NameMap, to_timm};
use super::{File, Format, sha256};
use crate::params::ParamStore;
use crate::{Error, Result};

mod positions;

/// Parts of names that the method adds to a pretrained backbone. They may be missing in a file that holds none of the
/// kind, and a file may hold them although the model does not.
const ADDED: [&str; 8] = [
    "adaptmlp.",
    "adaptattn.",
    "adaptlayer.",
    "adaptst.",
    "token_select.",
    "fpn1.",
    "fpn2.",
    "simfp_",
];

/// Whether `name` is that of a layer with one row per class: with other classes it starts anew.
fn is_classifier(name: &str) -> bool {
    const BY_CLASS: [&str; 3] = [".conv_seg.", ".box_predictor.", ".mask_fcn_logits."];
    name.starts_with("head.") || BY_CLASS.iter().any(|part| name.contains(part))
}

/// Where a checkpoint goes.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions<'a> {
    /// The backbone's prefix in the store, without a dot; empty if its names have none.
    pub prefix: &'a str,
    /// Rows and columns of the model's position embedding.
    pub grid: (usize, usize),
    /// Further parts of backbone names that the file may lack.
    pub may_lack: &'a [&'a str],
}

impl LoadOptions<'_> {
    /// A backbone below `backbone.` with a position embedding of `grid`.
    pub fn backbone([rows, columns]: [usize; 2]) -> Self {
        Self { prefix: "backbone", grid: (rows, columns), may_lack: &[] }
    }

    fn full(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// The name below the prefix.
    fn below<'n>(&self, name: &'n str) -> Option<&'n str> {
        if self.prefix.is_empty() {
            Some(name)
        } else {
            name.strip_prefix(self.prefix)?.strip_prefix('.')
        }
    }
}

/// What became of the tensors of a file and of the model's parameters.
#[derive(Debug, Clone)]
pub struct LoadReport {
    /// The file.
    pub path: PathBuf,
    /// How it is stored.
    pub format: Format,
    /// Whose names it uses.
    pub map: NameMap,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Parameters that were loaded.
    pub matched: Vec<String>,
    /// Parameters that the file lacks and that keep their initial values.
    pub missing: Vec<String>,
    /// Tensors of the file that the model lacks, under the model's names.
    pub unexpected: Vec<String>,
    /// Position embeddings that were adapted, and how.
    pub resized: Vec<String>,
    /// Tensors that belong to pretraining, under the file's names.
    pub ignored: Vec<String>,
}

impl Display for LoadReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { path, format, map, sha256, matched, .. } = self;
        write!(
            f,
            "{}: {} parameters loaded ({format}, {map} names, sha256 {})",
            path.display(),
            matched.len(),
            &sha256[..12]
        )?;
        for (what, names) in [
            ("resized", &self.resized),
            ("new", &self.missing),
            ("unexpected", &self.unexpected),
            ("ignored", &self.ignored),
        ] {
            if !names.is_empty() {
                write!(f, "\n  {what:<10} {}", few(names))?;
            }
        }
        Ok(())
    }
}

/// Put the checkpoint `path` of any supported format and naming into `store`.
///
/// Position embeddings of another grid are resized; a class part is added to the class token or left out as the model
/// wants it. Everything is checked before the first parameter changes.
///
/// # Errors
/// If the file cannot be read, belongs to another model, or lacks a parameter that the method does not add; the message
/// names the file, the first offending tensor, and the cure.
pub fn load_pretrained(
    path: &Path,
    store: &ParamStore,
    options: &LoadOptions,
) -> Result<LoadReport> {
    let file = File::read(path)?;
    let renamed = to_timm(&file.tensors).map_err(|error| {
        Error::file(path, error)
            .with_hint("`rescatter weights list` shows which checkpoints are supported")
    })?;
    let mut loading = Loading {
        path,
        store,
        options,
        tensors: renamed
            .tensors
            .into_iter()
            .map(|(name, tensor)| (placed(name, renamed.map, options), tensor))
            .collect(),
        map: renamed.map,
        ignored: renamed.ignored,
    };
    loading.leave_other_classifiers();
    let mut resized = loading.fit_positions()?;
    resized.extend(loading.fit_relative_positions()?);
    loading.leave_prefix_tokens();
    loading.check_shapes()?;
    let missing = loading.missing()?;
    let unexpected = loading.unexpected()?;
    let mut matched = vec![];
    for (name, tensor) in &loading.tensors {
        if store.get(name).is_some() {
            store.set(name, tensor)?;
            matched.push(name.clone());
        }
    }
    let Loading { map, ignored, .. } = loading;
    let (format, sha256) = (file.format, sha256(path)?);
    Ok(LoadReport {
        path: path.into(),
        format,
        map,
        sha256,
        matched,
        missing,
        unexpected,
        resized,
        ignored,
    })
}

/// The model's name of a renamed tensor.
fn placed(name: String, map: NameMap, options: &LoadOptions) -> String {
    if map == NameMap::Detectron2 {
        // Its names say where they belong.
        return name.strip_prefix("backbone.").map_or(name.clone(), |rest| options.full(rest));
    }
    if [NameMap::Segmentor, NameMap::Torchvision].contains(&map) || name.starts_with("head.") {
        return name;
    }
    if name == "query_token" || name.starts_with("attentive_blocks.") {
        // The released code says `norm_q` where the others of its family say `norm1_q`.
        return format!(
            "temporal_head.{}",
            name.replace("attentive_blocks.norm_", "attentive_blocks.norm1_")
        );
    }
    options.full(&name)
}

struct Loading<'a> {
    path: &'a Path,
    store: &'a ParamStore,
    options: &'a LoadOptions<'a>,
    /// Under the model's names.
    tensors: Tensors,
    map: NameMap,
    ignored: Vec<String>,
}

impl Loading<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.store.get(name).map(|param| param.var.dims().to_vec())
    }

    /// A classifier of other classes, or of a task that the model does not do, is no part of it.
    fn leave_other_classifiers(&mut self) {
        let others: Vec<String> = self
            .tensors
            .iter()
            .filter(|(name, tensor)| {
                is_classifier(name) && self.shape(name).as_deref() != Some(tensor.dims())
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in others {
            self.tensors.remove(&name);
            self.ignored.push(name);
        }
    }

    /// The first tensor whose shape differs stops the loading.
    fn check_shapes(&self) -> Result<()> {
        for (name, tensor) in &self.tensors {
            if let Some(shape) = self.shape(name).filter(|shape| shape != tensor.dims()) {
                let reason = format!(
                    "`{name}` is {:?} in the file and {shape:?} in the model",
                    tensor.dims()
                );
                return Err(Error::file(self.path, reason).with_hint(self.fitting_config()));
            }
        }
        Ok(())
    }

    /// Parameters that the file lacks; an error unless all of them are new by nature.
    fn missing(&self) -> Result<Vec<String>> {
        let missing: Vec<String> = self
            .store
            .all()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| !self.tensors.contains_key(name))
            .collect();
        let parts: BTreeSet<&str> =
            self.tensors.keys().filter_map(|name| name.split('.').next()).collect();
        let needed: Vec<String> =
            missing.iter().filter(|name| !self.may_lack(name, &parts)).cloned().collect();
        if needed.is_empty() {
            return Ok(missing);
        }
        let reason = format!("lacks parameters of the model: {}", few(&needed));
        Err(Error::file(self.path, reason).with_hint(self.fitting_config()))
    }

    fn may_lack(&self, name: &str, parts: &BTreeSet<&str>) -> bool {
        let Some(rest) = self.options.below(name) else {
            // A head is in the file as a whole or not at all, but for layers of other classes.
            let part = name.split('.').next().unwrap_or_default();
            return is_classifier(name) || !parts.contains(part);
        };
        if let Some(kind) = ADDED.iter().find(|kind| rest.contains(**kind)) {
            return !self.tensors.keys().any(|name| name.contains(kind));
        }
        // The segmentation model of [DyT] and ViTDet have no final norm, because their heads read the blocks themselves.
        let without_norm = [NameMap::Segmentor, NameMap::HuggingFaceVitDet, NameMap::Detectron2]
            .contains(&self.map);
        if rest.contains(".attn.rel_pos_") {
            // ViTDet starts from weights without relative positions.
            return !self.tensors.keys().any(|name| name.contains(".attn.rel_pos_"));
        }
        without_norm && rest.starts_with("norm.")
            || self.options.may_lack.iter().any(|part| rest.contains(part))
    }

    /// Tensors that the model lacks; an error where leaving them out would change what the backbone computes.
    fn unexpected(&self) -> Result<Vec<String>> {
        let unexpected: Vec<String> =
            self.tensors.keys().filter(|name| self.store.get(name).is_none()).cloned().collect();
        let part_of_backbone = |name: &&String| {
            self.options
                .below(name)
                .is_some_and(|rest| !ADDED.iter().any(|kind| rest.contains(kind)))
        };
        let wrong: Vec<String> = unexpected.iter().filter(part_of_backbone).cloned().collect();
        let Some(first) = wrong.first() else { return Ok(unexpected) };
        let cure = if first.contains("relative_position_bias_table") {
            "this ViT has no relative position bias; use a checkpoint that was trained without (use_rel_pos_bias=False)".into()
        } else if first.contains("dist_token") {
            "distilled DeiT models are not supported; use the plain one".into()
        } else {
            self.fitting_config()
        };
        let reason = format!("holds parts that the model does not have: {}", few(&wrong));
        Err(Error::file(self.path, reason).with_hint(cure))
    }

    /// What the `backbone` section must say for this file.
    fn fitting_config(&self) -> String {
        let prefix = self.options.full("");
        match Layout::of(&self.tensors, &prefix) {
            Some(layout) => format!("the file holds a {layout}; a config that fits it says `backbone: {{ {} }}`", layout.config()),
            None => "the file holds no vision transformer of this kind; `rescatter weights inspect` shows its tensors".into(),
        }
    }
}

/// The first three names and how many there are.
fn few(names: &[String]) -> String {
    let first = names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 3 { format!("{first}, … ({} in all)", names.len()) } else { first }
}
