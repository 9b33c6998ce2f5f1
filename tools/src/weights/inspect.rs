//! `rescatter weights inspect`.

use std::path::PathBuf;

use rescatter::Result;
use rescatter::weights::names::to_timm;
use rescatter::weights::{File, Layout, sha256};
use serde_json::{Value, json};

/// Arguments of `rescatter weights inspect`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A safetensors, PyTorch (.pth, .pt, .bin) or NumPy (.npz) file.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let file = File::read(&args.file)?;
    let hash = sha256(&args.file)?;
    let renamed = to_timm(&file.tensors).ok();
    let layout = renamed.as_ref().and_then(|renamed| {
        Layout::of(&renamed.tensors, "").or_else(|| Layout::of(&renamed.tensors, "backbone."))
    });
    let map = renamed.map(|renamed| renamed.map.to_string());
    let numbers: usize = file.tensors.values().map(candle_core::Tensor::elem_count).sum();
    if args.json {
        let tensors: serde_json::Map<String, Value> = file
            .tensors
            .iter()
            .map(|(name, t)| {
                (name.clone(), json!({ "shape": t.dims(), "dtype": t.dtype().as_str() }))
            })
            .collect();
        let summary = json!({
            "file": args.file.display().to_string(), "format": file.format.to_string(), "names": map,
            "model": layout.as_ref().map(ToString::to_string),
            "backbone": layout.as_ref().map(Layout::config),
            "parameters": numbers, "sha256": hash, "metadata": file.metadata,
            "nesting": file.nesting, "beside": file.beside, "tensors": tensors,
        });
        println!("{summary}");
        return Ok(());
    }
    let width = file.tensors.keys().map(String::len).max().unwrap_or(0);
    for (name, tensor) in &file.tensors {
        println!("{name:width$}  {:4}  {:?}", tensor.dtype().as_str(), tensor.dims());
    }
    let types: Vec<String> =
        super::type_counts(&file.tensors).iter().map(|(t, n)| format!("{n} {t}")).collect();
    println!();
    println!("format      {}", file.format);
    println!("names       {}", map.as_deref().unwrap_or("of no known layout"));
    if let Some(layout) = &layout {
        println!("model       {layout}");
        println!("config      backbone: {{ {} }}", layout.config());
    }
    println!("tensors     {} ({})", file.tensors.len(), types.join(", "));
    println!("parameters  {numbers}");
    println!("sha256      {hash}");
    for (what, names) in [("inside", &file.nesting), ("beside", &file.beside)] {
        if !names.is_empty() {
            println!("{what:<11} {}", names.join(", "));
        }
    }
    for (key, value) in &file.metadata {
        let short: String = value.chars().take(100).collect();
        let more = if short.len() < value.len() { " …" } else { "" };
        println!("metadata    {key}: {}{more}", short.replace('\n', " "));
    }
    Ok(())
}
