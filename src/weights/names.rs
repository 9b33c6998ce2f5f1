//! From the names of each publisher to timm's, which are this crate's own.
//!
//! | map | example of its names | published by |
//! |---|---|---|
//! | [`Timm`](NameMap::Timm) | `blocks.0.attn.qkv.weight` | timm, DeiT, MAE |
//! | [`Dyt`](NameMap::Dyt) | the same and `blocks.0.adaptmlp.down_proj.weight` | the code of \[DyT\] |
//! | [`Segmentor`](NameMap::Segmentor) | `backbone.blocks.0.…`, `decode_head.…` | mmseg's layout and this crate |
//! | [`Dinov2`](NameMap::Dinov2) | `blocks.0.0.ls1.gamma`, `register_tokens` | DINOv2's own code |
//! | [`HuggingFaceVit`](NameMap::HuggingFaceVit) | `vit.encoder.layer.0.attention.attention.query.weight` | Hugging Face |
//! | [`HuggingFaceDinov2`](NameMap::HuggingFaceDinov2) | `encoder.layer.0.layer_scale1.lambda1` | Hugging Face |
//! | [`HuggingFaceVitDet`](NameMap::HuggingFaceVitDet) | `encoder.layer.0.attention.rel_pos_h` | Hugging Face |
//! | [`Detectron2`](NameMap::Detectron2) | `backbone.net.blocks.0.…`, `proposal_generator.…` | detectron2's ViTDet |
//! | [`Torchvision`](NameMap::Torchvision) | `rpn.head.…`, `roi_heads.…` | torchvision's detectors |
//! | [`Google`](NameMap::Google) | `Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel` | Google's `.npz` |

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, bail};

use super::checkpoint::Tensors;
use super::detectors;

/// Whose names a checkpoint uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMap {
    /// timm's vision transformer.
    Timm,
    /// timm's names with \[DyT\]'s adapters and dispatchers.
    Dyt,
    /// timm's names below `backbone.`, heads beside it.
    Segmentor,
    /// DINOv2's own code.
    Dinov2,
    /// Hugging Face's `ViTModel` and what contains it.
    HuggingFaceVit,
    /// Hugging Face's `Dinov2Model`, with or without registers.
    HuggingFaceDinov2,
    /// Hugging Face's `VitDetModel` and `VitDetBackbone`.
    HuggingFaceVitDet,
    /// detectron2's ViTDet: timm's names below `backbone.net.`, the pyramid below `backbone.`, heads beside it.
    Detectron2,
    /// torchvision's Mask R-CNN: its heads; its backbones belong to nothing here.
    Torchvision,
    /// Google's Flax code.
    Google,
}

impl std::fmt::Display for NameMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Timm => "timm",
            Self::Dyt => "DyT",
            Self::Segmentor => "mmseg",
            Self::Dinov2 => "DINOv2",
            Self::HuggingFaceVit => "Hugging Face ViT",
            Self::HuggingFaceDinov2 => "Hugging Face DINOv2",
            Self::HuggingFaceVitDet => "Hugging Face VitDet",
            Self::Detectron2 => "detectron2",
            Self::Torchvision => "torchvision",
            Self::Google => "Google npz",
        })
    }
}

/// A checkpoint under timm's names.
#[derive(Debug, Clone)]
pub struct Renamed {
    /// Whose names they were.
    pub map: NameMap,
    /// Tensors by their new names: those of the backbone without a prefix, unless the file itself holds `backbone.`
    /// names beside those of a head.
    pub tensors: Tensors,
    /// Old names of tensors that no model of this crate has: pretraining heads, mask tokens, counters.
    pub ignored: Vec<String>,
}

/// What becomes of one tensor.
enum Becomes {
    /// It is kept under this name.
    Whole(String, Tensor),
    /// It is the given third of query, key and value, stacked under this name.
    Third(String, usize, Tensor),
    /// It belongs to nothing here.
    Nothing,
}

/// Detect whose names `tensors` has, and rename them to timm's; query, key and value become one `qkv`.
///
/// # Errors
/// If the names are of no known layout, or one of query, key and value is missing.
pub fn to_timm(tensors: &Tensors) -> Result<Renamed> {
    let stripped = strip_wrappers(tensors);
    let Some(map) = detect(&stripped) else {
        let few: Vec<&str> = tensors.keys().take(3).map(String::as_str).collect();
        bail!(
            "its names are of no known layout (the first of {}: {})",
            tensors.len(),
            few.join(", ")
        )
    };
    let (mut kept, mut ignored) = (Tensors::new(), vec![]);
    let convs = detectors::box_convolutions(&stripped);
    let mut thirds: BTreeMap<String, [Option<Tensor>; 3]> = BTreeMap::new();
    for (name, tensor) in stripped {
        match becomes(map, &name, tensor, convs)? {
            Becomes::Whole(new, tensor) => drop(kept.insert(new, tensor)),
            Becomes::Third(new, third, tensor) => {
                thirds.entry(new).or_default()[third] = Some(tensor)
            }
            Becomes::Nothing => ignored.push(name),
        }
    }
    for (name, parts) in thirds {
        let [Some(query), Some(key), Some(value)] = parts else {
            bail!("`{name}` lacks its query, key or value")
        };
        kept.insert(name, Tensor::cat(&[query, key, value], 0)?);
    }
    Ok(Renamed { map, tensors: kept, ignored })
}

/// Prefixes that wrappers put before every name (data-parallel training, compilation, trainers, DINO's teacher).
const WRAPPERS: [&str; 6] =
    ["module.", "_orig_mod.", "model.", "backbone.", "opt/target/", "params/"];

/// The tensors without the prefixes that all names share.
fn strip_wrappers(tensors: &Tensors) -> Tensors {
    let mut stripped = tensors.clone();
    loop {
        let shared = |prefix: &&&str| {
            !stripped.is_empty() && stripped.keys().all(|name| name.starts_with(**prefix))
        };
        let Some(prefix) = WRAPPERS.iter().find(shared) else { return stripped };
        stripped = stripped
            .into_iter()
            .map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor))
            .collect();
    }
}

fn detect(tensors: &Tensors) -> Option<NameMap> {
    let any = |part: &str| tensors.keys().any(|name| name.contains(part));
    if any("encoderblock_") {
        return Some(NameMap::Google);
    }
    if any("net.patch_embed.") {
        return Some(NameMap::Detectron2);
    }
    if any("embeddings.projection.") && any("encoder.layer.") && !any("patch_embeddings.") {
        return Some(NameMap::HuggingFaceVitDet);
    }
    if any("patch_embeddings.projection.") {
        let map = if any("layer_scale1.lambda1") {
            NameMap::HuggingFaceDinov2
        } else {
            NameMap::HuggingFaceVit
        };
        return Some(map);
    }
    if any("net.patch_embed.") {
        return Some(NameMap::Detectron2);
    }
    if any("rpn.head.") && any("backbone.body.") {
        return Some(NameMap::Torchvision);
    }
    if any("decode_head.") || (any("backbone.patch_embed.") && any("head")) {
        return Some(NameMap::Segmentor);
    }
    if !any("blocks.") {
        return None;
    }
    if any("register_tokens") || tensors.keys().any(|name| chunked(name).is_some()) {
        return Some(NameMap::Dinov2);
    }
    // MAE's files have a mask token too, but no layer scale.
    if any("mask_token") && any(".ls1.gamma") {
        return Some(NameMap::Dinov2);
    }
    Some(if any("adaptmlp.") || any("token_select.") { NameMap::Dyt } else { NameMap::Timm })
}

/// `convs`: the convolutions of a detector's box head.
fn becomes(map: NameMap, name: &str, tensor: Tensor, convs: usize) -> Result<Becomes> {
    Ok(match map {
        NameMap::Google => return google(name, &tensor),
        NameMap::HuggingFaceVit | NameMap::HuggingFaceDinov2 => hugging_face(name, tensor),
        NameMap::HuggingFaceVitDet => hugging_face_vitdet(name, tensor),
        NameMap::Detectron2 => return detectron2(name, tensor, convs),
        NameMap::Torchvision => match detectors::torchvision(name) {
            Some(new) => Becomes::Whole(new, tensor),
            None => Becomes::Nothing,
        },
        NameMap::Dinov2 => dinov2(name, tensor),
        NameMap::Timm | NameMap::Dyt | NameMap::Segmentor => timm(name, tensor),
    })
}

/// Parts of names that belong to pretraining, or count batches.
const IGNORED: [&str; 8] = [
    "mask_token",
    "decoder_",
    "pre_logits",
    "num_batches_tracked",
    "head_dist",
    "dino_head",
    "ibot_head",
    "relative_position_index",
];

fn timm(name: &str, tensor: Tensor) -> Becomes {
    if IGNORED.iter().any(|part| name.contains(part)) {
        return Becomes::Nothing;
    }
    Becomes::Whole(name.to_owned(), tensor)
}

fn dinov2(name: &str, tensor: Tensor) -> Becomes {
    match chunked(name) {
        Some(plain) => timm(&plain, tensor),
        None if name == "register_tokens" => Becomes::Whole("reg_token".into(), tensor),
        None => timm(name, tensor),
    }
}

/// `blocks.2.5.…` as `blocks.5.…`: DINOv2 stores its blocks in chunks but numbers them through.
fn chunked(name: &str) -> Option<String> {
    let rest = name.strip_prefix("blocks.")?;
    let (chunk, rest) = rest.split_once('.')?;
    let (block, _) = rest.split_once('.')?;
    (chunk.parse::<usize>().is_ok() && block.parse::<usize>().is_ok())
        .then(|| format!("blocks.{rest}"))
}

/// Old and new name of what follows `encoder.layer.N.`, of releases before and since 5 of `transformers`.
const HUGGING_FACE_BLOCK: [(&str, &str); 15] = [
    ("attention.output.dense", "attn.proj"),
    ("attention.o_proj", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
    ("layer_scale1.lambda1", "ls1.gamma"),
    ("layer_scale2.lambda1", "ls2.gamma"),
    ("attention.attention.query", "0"),
    ("attention.attention.key", "1"),
    ("attention.attention.value", "2"),
];

fn hugging_face(name: &str, tensor: Tensor) -> Becomes {
    let name = ["vit.", "dinov2.", "dinov2_with_registers."]
        .iter()
        .find_map(|p| name.strip_prefix(p))
        .unwrap_or(name);
    let outside = match name {
        "embeddings.cls_token" => Some("cls_token"),
        "embeddings.position_embeddings" => Some("pos_embed"),
        "embeddings.register_tokens" => Some("reg_token"),
        "embeddings.patch_embeddings.projection.weight" => Some("patch_embed.proj.weight"),
        "embeddings.patch_embeddings.projection.bias" => Some("patch_embed.proj.bias"),
        "layernorm.weight" => Some("norm.weight"),
        "layernorm.bias" => Some("norm.bias"),
        "classifier.weight" => Some("head.weight"),
        "classifier.bias" => Some("head.bias"),
        _ => None,
    };
    if let Some(new) = outside {
        return Becomes::Whole(new.into(), tensor);
    }
    if name == "embeddings.mask_token" || name.starts_with("pooler.") {
        return Becomes::Nothing;
    }
    block_of(name, &["encoder.layer.", "layers."])
        .and_then(|(block, rest)| hugging_face_block(block, rest, &tensor))
        // An unknown name stays as it is, so that the report shows it.
        .unwrap_or_else(|| Becomes::Whole(name.to_owned(), tensor))
}

fn hugging_face_block(block: usize, rest: &str, tensor: &Tensor) -> Option<Becomes> {
    let thirds = ["q_proj", "k_proj", "v_proj"];
    if let Some((module, parameter)) =
        rest.strip_prefix("attention.").and_then(|rest| rest.split_once('.'))
        && let Some(third) = thirds.iter().position(|part| *part == module)
    {
        return Some(Becomes::Third(
            format!("blocks.{block}.attn.qkv.{parameter}"),
            third,
            tensor.clone(),
        ));
    }
    let (old, new) = HUGGING_FACE_BLOCK.iter().find(|(old, _)| rest.starts_with(old))?;
    let parameter = &rest[old.len()..];
    Some(match new.parse::<usize>() {
        Ok(third) => {
            Becomes::Third(format!("blocks.{block}.attn.qkv{parameter}"), third, tensor.clone())
        }
        Err(_) => Becomes::Whole(format!("blocks.{block}.{new}{parameter}"), tensor.clone()),
    })
}

/// `VitDetModel` has detectron2's modules under other names of their containers.
fn hugging_face_vitdet(name: &str, tensor: Tensor) -> Becomes {
    let name = name.strip_prefix("vitdet.").unwrap_or(name);
    let new = match name.strip_prefix("embeddings.") {
        Some("position_embeddings") => "pos_embed".into(),
        Some(rest) => rest.replacen("projection.", "patch_embed.proj.", 1),
        None => match block_of(name, &["encoder.layer."]) {
            Some((block, rest)) => {
                format!("blocks.{block}.{}", rest.replacen("attention.", "attn.", 1))
            }
            None => name.to_owned(),
        },
    };
    Becomes::Whole(new, tensor)
}

/// The transformer directly below `backbone.`, the pyramid as it is, heads by their own map.
fn detectron2(name: &str, tensor: Tensor, convs: usize) -> Result<Becomes> {
    let inner = name.strip_prefix("backbone.").unwrap_or(name);
    if let Some(rest) = inner.strip_prefix("net.") {
        return Ok(Becomes::Whole(format!("backbone.{rest}"), tensor));
    }
    if inner.starts_with("simfp_") {
        return Ok(Becomes::Whole(format!("backbone.{inner}"), tensor));
    }
    Ok(match detectors::detectron2(name, &tensor, convs)? {
        Some((new, tensor)) => Becomes::Whole(new, tensor),
        None => Becomes::Nothing,
    })
}

/// The number after one of `prefixes` and what follows it.
fn block_of<'a>(name: &'a str, prefixes: &[&str]) -> Option<(usize, &'a str)> {
    let rest = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let (number, rest) = rest.split_once(['.', '/'])?;
    Some((number.parse().ok()?, rest))
}

/// Flax stores a product's weight as [in, out], and the attention's heads as an axis of their own.
fn google(name: &str, tensor: &Tensor) -> Result<Becomes> {
    let whole = |new: String, tensor: Tensor| Ok(Becomes::Whole(new, tensor));
    if let Some((block, rest)) = block_of(name, &["Transformer/encoderblock_"]) {
        return google_block(block, rest, tensor);
    }
    match name {
        "cls" => whole("cls_token".into(), tensor.clone()),
        "Transformer/posembed_input/pos_embedding" | "pos_embedding" => {
            whole("pos_embed".into(), tensor.clone())
        }
        // [h, w, in, out] → [out, in, h, w]
        "embedding/kernel" if tensor.rank() == 4 => {
            whole("patch_embed.proj.weight".into(), tensor.permute((3, 2, 0, 1))?.contiguous()?)
        }
        "embedding/bias" => whole("patch_embed.proj.bias".into(), tensor.clone()),
        "Transformer/encoder_norm/scale" => whole("norm.weight".into(), tensor.clone()),
        "Transformer/encoder_norm/bias" => whole("norm.bias".into(), tensor.clone()),
        "head/kernel" if tensor.rank() == 2 => {
            whole("head.weight".into(), tensor.t()?.contiguous()?)
        }
        "head/bias" => whole("head.bias".into(), tensor.clone()),
        "pre_logits/kernel" | "pre_logits/bias" => Ok(Becomes::Nothing),
        _ => whole(name.to_owned(), tensor.clone()),
    }
}

fn google_block(block: usize, rest: &str, tensor: &Tensor) -> Result<Becomes> {
    let named = |new: &str| format!("blocks.{block}.{new}");
    let Some((path, parameter)) = rest.rsplit_once('/') else {
        bail!("`{rest}` is not a name of Google's ViT")
    };
    let module = match path.split('/').collect::<Vec<_>>()[..] {
        // The newer code counts all modules by themselves, the older one all of a block together.
        ["LayerNorm_0"] => "norm1",
        ["LayerNorm_1" | "LayerNorm_2"] => "norm2",
        ["MlpBlock_0" | "MlpBlock_3", "Dense_0"] => "mlp.fc1",
        ["MlpBlock_0" | "MlpBlock_3", "Dense_1"] => "mlp.fc2",
        ["MultiHeadDotProductAttention_0" | "MultiHeadDotProductAttention_1", part] => {
            let Some(third) = ["query", "key", "value"].iter().position(|p| *p == part) else {
                return google_output(named("attn.proj"), part, parameter, tensor);
            };
            // [in, heads, width] → [heads · width, in]
            let (suffix, value) = match parameter {
                "kernel" => ("weight", tensor.flatten_from(1)?.t()?.contiguous()?),
                _ => ("bias", tensor.flatten_all()?),
            };
            return Ok(Becomes::Third(named(&format!("attn.qkv.{suffix}")), third, value));
        }
        _ => return Ok(Becomes::Whole(named(rest), tensor.clone())),
    };
    Ok(match parameter {
        "kernel" => Becomes::Whole(named(&format!("{module}.weight")), tensor.t()?.contiguous()?),
        "scale" => Becomes::Whole(named(&format!("{module}.weight")), tensor.clone()),
        _ => Becomes::Whole(named(&format!("{module}.bias")), tensor.clone()),
    })
}

/// [heads, width, out] → [out, heads · width]
fn google_output(name: String, part: &str, parameter: &str, tensor: &Tensor) -> Result<Becomes> {
    Ok(match (part, parameter) {
        ("out", "kernel") if tensor.rank() == 3 => {
            Becomes::Whole(format!("{name}.weight"), tensor.flatten(0, 1)?.t()?.contiguous()?)
        }
        ("out", "bias") => Becomes::Whole(format!("{name}.bias"), tensor.clone()),
        _ => Becomes::Whole(format!("{name}.{part}.{parameter}"), tensor.clone()),
    })
}
