//! Parts of blocks that no patch passes are left out, and nobody sees it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod sandbox;

use candle_core::{Device, Tensor};
use rescatter::backbone::Pass;
use rescatter::weights::checkpoint;
use rescatter_heads::Trained;
use rescatter_heads::run::Which;
use sandbox::Sandbox;
use serde_json::Value;

/// Checks that the message has all of `parts`.
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

/// Gives the dispatchers `names` (block and site) of the run's best checkpoint biases with which no patch passes.
fn shut(sandbox: &Sandbox, run: &str, names: &[&str]) {
    let path = sandbox.path(&format!("{run}/best.safetensors"));
    let (mut tensors, metadata) = checkpoint::read(&path).unwrap();
    for name in names {
        let bias = format!("backbone.blocks.{name}_token_select.mlp_head.bias");
        // Where the run keeps averages, these are what is looked at.
        for (_, value) in tensors.iter_mut().filter(|(name, _)| name.ends_with(&bias)) {
            *value = Tensor::new(&[-50f32], &Device::Cpu).unwrap();
        }
    }
    checkpoint::write(&path, &tensors, &metadata).unwrap();
}

fn json(output: &std::process::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_no_patch_passes_is_pruned_without_a_trace() {
    let sandbox = Sandbox::new();
    let train = "train segment.yaml --run run train.iterations=3 dispatch.variant=attention_mlp";
    sandbox.succeeds(train);
    shut(&sandbox, "run", &["0.mlp", "1.attn", "1.mlp"]);
    let prune = "weights prune run --output pruned.safetensors --json";
    let report = json(&sandbox.succeeds(prune));
    // The class token still passes block 0, and block 1 reads it.
    assert_eq!(report["dropped"], serde_json::json!([2, 3]));
    // Two norms, qkv and projection, two dispatchers, and the MLP of 16 to 32 channels.
    let attention = 48 * 17 + 16 * 17;
    assert_eq!(report["parameters_saved"], 2 * 32 + attention + 2 * 17 + 32 * 17 + 16 * 33);
    assert!(report["gmacs_saved"].as_f64().unwrap() > 0.0);
    sandbox.succeeds("weights export run --output whole.safetensors");
    let size = |name: &str| sandbox.tensors(name).values().map(Vec::len).sum::<usize>();
    let saved = size("whole.safetensors") - size("pruned.safetensors");
    assert_eq!(report["bytes_saved"], saved);

    let scores = |target: &str| {
        let found = json(&sandbox.succeeds(&format!("eval {target} --json")));
        (found["mIoU"].clone(), found["aAcc"].clone(), found["kept_per_layer"].clone())
    };
    assert_eq!(scores("pruned.safetensors"), scores("run"));
    let maps = |name: &str| -> Vec<Vec<f32>> {
        let trained = Trained::open(&sandbox.path(name), Which::Best, &[]).unwrap();
        let pixels = Tensor::arange(0f32, 3072.0, &Device::Cpu).unwrap();
        let images = (pixels / 3072.0).unwrap().reshape((1, 3, 32, 32)).unwrap();
        let features = trained.model.backbone().forward(&images, &Pass::Infer).unwrap();
        features.maps.iter().map(|m| m.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    assert_eq!(maps("pruned.safetensors"), maps("whole.safetensors"));
    sandbox.succeeds("predict pruned.safetensors data/images/val --output out");

    let again = "weights prune pruned.safetensors --output again.safetensors";
    says(&sandbox.fails(again), &["nothing is unused", "hint: ", "--drop-prefix"]);
    let more = json(&sandbox.succeeds(&format!("{again} --drop-prefix --json")));
    assert_eq!(more["dropped"], serde_json::json!([1]));
    sandbox.succeeds("eval again.safetensors");
}

#[test]
fn a_class_token_that_is_read_keeps_its_layer() {
    let sandbox = Sandbox::new();
    let train = "train classify.yaml --run run dispatch.variant=layer head.classifier.pool=cls";
    sandbox.succeeds(train);
    let prune = "weights prune run --images train --output pruned.safetensors";
    let message = sandbox.fails(prune);
    says(&message, &["nothing is unused", "--tolerance"]);
    shut(&sandbox, "run", &["1.layer"]);
    says(&sandbox.fails(prune), &["nothing is unused", "--drop-prefix"]);
    let done = sandbox.succeeds(&format!("{prune} --drop-prefix"));
    let table = String::from_utf8_lossy(&done.stdout);
    assert!(table.contains("dropped: layer of block 1"), "{table}");
    let tensors = sandbox.tensors("pruned.safetensors");
    let left: Vec<_> = tensors.keys().filter(|name| name.contains("blocks.1.")).collect();
    assert!(!left.is_empty() && left.iter().all(|name| name.contains("adaptlayer")), "{left:?}");
}
