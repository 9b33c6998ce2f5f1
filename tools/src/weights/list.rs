//! `rescatter weights list`: a table to look things up in, kept by hand.

use rescatter::Result;
use serde_json::json;

/// Arguments of `rescatter weights list`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One published checkpoint.
struct Published {
    /// What it is usually called.
    name: &'static str,
    /// Its file at the publisher.
    file: &'static str,
    /// Where it is published.
    place: &'static str,
    /// Whose names it uses.
    names: &'static str,
    /// The lines of `backbone` that fit it.
    config: &'static str,
    /// The start of its SHA-256, where the publisher states it (in the file's name).
    sha256: Option<&'static str>,
}

const B16: &str = "arch: vit_b, patch_size: 16, pos_embed_grid: [14, 14]";
const VITDET_B: &str = "arch: vit_b, patch_size: 16, pos_embed_grid: [14, 14], cls_token: false, window: { size: 14, global_blocks: [2, 5, 8, 11] }, rel_pos: { grid: [64, 64] }";
const L16: &str = "arch: vit_l, patch_size: 16, pos_embed_grid: [14, 14]";

const PUBLISHED: [Published; 12] = [
    Published {
        name: "ViT-B/16 ImageNet-21k (the backbone of [DyT])",
        file: "jx_vit_base_patch16_224_in21k-e5005f0a.pth",
        place: "github.com/rwightman/pytorch-image-models, release v0.1-vitjx",
        names: "timm",
        config: B16,
        sha256: Some("e5005f0a"),
    },
    Published {
        name: "ViT-B/16 ImageNet-21k, original",
        file: "ViT-B_16.npz",
        place: "storage.googleapis.com/vit_models/imagenet21k",
        names: "Google npz",
        config: B16,
        sha256: None,
    },
    Published {
        name: "ViT-L/16 ImageNet-21k, original",
        file: "ViT-L_16.npz",
        place: "storage.googleapis.com/vit_models/imagenet21k",
        names: "Google npz",
        config: L16,
        sha256: None,
    },
    Published {
        name: "ViT-B/16 AugReg",
        file: "model.safetensors",
        place: "huggingface.co/timm/vit_base_patch16_224.augreg_in21k",
        names: "timm",
        config: B16,
        sha256: None,
    },
    Published {
        name: "ViT-B/16 ImageNet-21k, Hugging Face",
        file: "model.safetensors or pytorch_model.bin",
        place: "huggingface.co/google/vit-base-patch16-224-in21k",
        names: "Hugging Face ViT",
        config: B16,
        sha256: None,
    },
    Published {
        name: "DINOv2 ViT-S/14",
        file: "dinov2_vits14_pretrain.pth",
        place: "github.com/facebookresearch/dinov2 (README, pretrained models)",
        names: "DINOv2",
        config: "arch: vit_s, patch_size: 14, layer_scale: true, pos_embed_grid: [37, 37]",
        sha256: None,
    },
    Published {
        name: "DINOv2 ViT-B/14",
        file: "dinov2_vitb14_pretrain.pth",
        place: "github.com/facebookresearch/dinov2 (README, pretrained models)",
        names: "DINOv2",
        config: "arch: vit_b, patch_size: 14, layer_scale: true, pos_embed_grid: [37, 37]",
        sha256: None,
    },
    Published {
        name: "DINOv2 ViT-B/14 with registers",
        file: "dinov2_vitb14_reg4_pretrain.pth",
        place: "github.com/facebookresearch/dinov2 (README, pretrained models)",
        names: "DINOv2",
        config: "arch: vit_b, patch_size: 14, layer_scale: true, reg_tokens: 4, pos_embed_grid: [37, 37]",
        sha256: None,
    },
    Published {
        name: "DINOv2 ViT-S/14, Hugging Face",
        file: "model.safetensors",
        place: "huggingface.co/facebook/dinov2-small",
        names: "Hugging Face DINOv2",
        config: "arch: vit_s, patch_size: 14, layer_scale: true, pos_embed_grid: [37, 37]",
        sha256: None,
    },
    Published {
        name: "DINOv2 ViT-S/14 with registers, timm",
        file: "model.safetensors",
        place: "huggingface.co/timm/vit_small_patch14_reg4_dinov2.lvd142m",
        names: "timm",
        config: "arch: vit_s, patch_size: 14, layer_scale: true, reg_tokens: 4, no_embed_class: true, pos_embed_grid: [37, 37]",
        sha256: None,
    },
    Published {
        name: "ViTDet-B, Mask R-CNN on COCO (saved again with torch.save: the file is a plain pickle)",
        file: "model_final_61ccd1.pkl",
        place: "github.com/facebookresearch/detectron2, projects/ViTDet",
        names: "detectron2",
        config: VITDET_B,
        sha256: None,
    },
    Published {
        name: "[DyT], trained with its authors' code (they publish the code, not the weights)",
        file: "final_checkpoint.pth, or mmseg's iter_160000.pth",
        place: "github.com/NUS-HPC-AI-Lab/Dynamic-Tuning",
        names: "DyT, or mmseg for segmentation (only with use_rel_pos_bias=False)",
        config: B16,
        sha256: None,
    },
];

pub(super) fn run(args: &Args) -> Result<()> {
    const UNKNOWN: &str = "not stated by the publisher; `rescatter weights inspect FILE` prints it";
    for published in &PUBLISHED {
        let Published { name, file, place, names, config, sha256 } = published;
        if args.json {
            let line = json!({ "name": name, "file": file, "place": place, "names": names, "backbone": config, "sha256_starts_with": sha256 });
            println!("{line}");
            continue;
        }
        println!("{name}");
        println!("  file      {file}");
        println!("  place     {place}");
        println!("  names     {names}");
        println!("  backbone  {config}");
        match sha256 {
            Some(start) => println!("  sha256    starts with {start} (in the file's name)"),
            None => println!("  sha256    {UNKNOWN}"),
        }
        println!();
    }
    Ok(())
}
