//! Tuning methods through the binary: merged weights are those of a plain model that answers alike, and a task that is
//! added to a run leaves the answers of the tasks before it as they were.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod sandbox;

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::Tensor;
use rescatter::backbone::Pass;
use rescatter::ops::kernel_calls;
use rescatter_heads::Trained;
use rescatter_heads::run::Which;
use sandbox::Sandbox;
use serde_json::Value;

const ADAPTER: &str = "tuning: { adapter: { bottleneck: 4, dropout: 0.1 } }";

/// Writes `NAME.yaml`, which is `from` with replacements.
fn config(sandbox: &Sandbox, name: &str, from: &str, changes: &[(&str, &str)]) {
    let mut text = std::fs::read_to_string(sandbox.path(from)).unwrap();
    for (old, new) in changes {
        assert!(text.contains(old), "`{old}` is not in {from}");
        text = text.replace(old, new);
    }
    std::fs::write(sandbox.path(&format!("{name}.yaml")), text).unwrap();
}

/// The sections of all tasks for an image of the sandbox.
fn answers(sandbox: &Sandbox, run: &str) -> Vec<Value> {
    sandbox.succeeds(&format!("predict {run} data/images/val/8.jpg --output out-{run}"));
    let text = std::fs::read(sandbox.path(&format!("out-{run}/tasks/8.json"))).unwrap();
    let record: Value = serde_json::from_slice(&text).unwrap();
    record["tasks"].as_array().unwrap().clone()
}

fn logits(section: &Value) -> Vec<f64> {
    let logits = section["logits"].as_array().unwrap();
    logits.iter().map(|value| value.as_f64().unwrap()).collect()
}

/// The largest |a − b| as a share of the largest |b|.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let largest = b.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    a.iter().zip(b).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs())) / largest
}

fn names(sandbox: &Sandbox, file: &str) -> BTreeSet<String> {
    sandbox.tensors(file).into_keys().collect()
}

#[test]
fn merged_weights_are_those_of_a_plain_model_that_answers_alike() {
    let sandbox = Sandbox::new();
    sandbox.succeeds("train classify.yaml --run plain");
    sandbox.succeeds("weights export plain --output plain.safetensors");
    let plain = names(&sandbox, "plain.safetensors");
    for (name, section) in [
        ("lora", "lora: { rank: 2, targets: [q, k, v, o, fc1, fc2] }"),
        ("rlrr", "rlrr: {}"),
        ("both", "ssf: {}, ia3: {}"),
    ] {
        let tuning = format!("tuning: {{ {section}, adapter: {{ bottleneck: 4 }} }}");
        config(
            &sandbox,
            name,
            "classify.yaml",
            &[(ADAPTER, tuning.as_str()), ("lr: 1e-3", "lr: 1e-2")],
        );
        sandbox.succeeds(&format!("train {name}.yaml --run {name}"));
        let file = format!("{name}.safetensors");
        let output = sandbox.succeeds(&format!("weights merge {name} --output {file}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("folded into the weights; largest difference"), "{text}");
        assert_eq!(names(&sandbox, &file), plain, "{name}");
        let (before, after) = (answers(&sandbox, name), answers(&sandbox, &file));
        let difference = difference(&logits(&after[0]), &logits(&before[0]));
        assert!(difference <= 1e-5, "{name}: {difference:e}");
        sandbox.succeeds(&format!("eval {file}"));
    }
    let text = sandbox.fails("weights merge plain --output none.safetensors");
    assert!(text.contains("there is nothing to merge"), "{text}");
    assert!(!sandbox.path("none.safetensors").exists());
    runs_on_fused_kernels(&sandbox.path("rlrr.safetensors"));
    // Unmerged weights are folded once and then run as fast.
    runs_on_fused_kernels(&sandbox.path("rlrr"));
}

/// Whole half blocks in one kernel each: what only frozen weights allow.
fn runs_on_fused_kernels(model: &Path) {
    let trained = Trained::open(model, Which::Best, &[]).unwrap();
    let vit = trained.model.backbone();
    let images = Tensor::ones((1, 3, 32, 32), candle_core::DType::F32, &candle_core::Device::Cpu);
    let images = images.unwrap();
    let calls = || (kernel_calls("attention_branch"), kernel_calls("mlp_branch.gathered"));
    let before = calls();
    vit.forward(&images, &Pass::Infer).unwrap();
    // Other tests of this process may run kernels too.
    let after = calls();
    assert!(after.0 >= before.0 + 2 && after.1 > before.1, "{before:?} {after:?}");
}

#[test]
fn an_added_task_leaves_the_answers_of_the_earlier_ones() {
    let sandbox = Sandbox::new();
    // A pretrained file, so that frozen weights are not copied into checkpoints.
    sandbox.succeeds("train classify.yaml --run pre tuning.backbone=full tuning.adapter=null dispatch.variant=none");
    std::fs::copy(sandbox.path("pre/best.safetensors"), sandbox.path("vit.safetensors")).unwrap();
    let memory = "tuning: { adapter: { bottleneck: 4 }, lora: { rank: 2 }, memory: { tokens: 3 } }";
    let weights = ("backbone: {", "backbone: { weights: vit.safetensors,");
    let calibrated = ("variant: mlp", "variant: mlp, inference: { calibrated: 0.5 }");
    let cls = ("pool: mean", "pool: cls");
    config(&sandbox, "first", "classify.yaml", &[(ADAPTER, memory), weights, calibrated, cls]);
    sandbox.succeeds("train first.yaml --run first");
    let alone = answers(&sandbox, "first");
    let extends = ("task: classification", "task: classification\nextends: first");
    config(
        &sandbox,
        "second",
        "first.yaml",
        &[extends, ("tokens: 3", "tokens: 2"), ("iterations: 3", "iterations: 6")],
    );
    sandbox.succeeds("train second.yaml --run second");
    config(&sandbox, "third", "second.yaml", &[("extends: first", "extends: second")]);
    sandbox.succeeds("train third.yaml --run third");

    let (two, three) = (answers(&sandbox, "second"), answers(&sandbox, "third"));
    assert_eq!((alone.len(), two.len(), three.len()), (1, 2, 3));
    assert!(difference(&logits(&two[0]), &logits(&alone[0])) <= 1e-6);
    assert!(difference(&logits(&three[0]), &logits(&alone[0])) <= 1e-6);
    assert!(difference(&logits(&three[1]), &logits(&two[1])) <= 1e-6);
    assert!(difference(&logits(&three[2]), &logits(&three[1])) > 1e-3, "the tasks are one");

    let kept = sandbox.tensors("first/best.safetensors");
    let extended = sandbox.tensors("second/best.safetensors");
    for (name, bytes) in kept.iter().filter(|(name, _)| !name.starts_with("optimizer.")) {
        assert_eq!(bytes, &extended[name], "{name}");
    }
    for name in
        ["backbone.memory.1.0", "backbone.task_cls.0", "heads.1.weight", "backbone.memory.0.1"]
    {
        assert!(extended.contains_key(name), "{name} is not among {:?}", extended.keys());
    }
    assert!(!extended.contains_key("backbone.blocks.0.attn.qkv.weight"));
    // The optimizer knows the new task alone.
    let last = sandbox.tensors("second/last.safetensors");
    let moments: BTreeSet<_> =
        last.keys().filter_map(|name| name.strip_prefix("optimizer.m.")).collect();
    let own = [
        "backbone.memory.1.0",
        "backbone.memory.1.1",
        "backbone.task_cls.0",
        "heads.1.bias",
        "heads.1.weight",
    ];
    assert_eq!(moments, own.into());

    sandbox.succeeds("eval second");
    sandbox.succeeds("train second.yaml --run second --resume");
    sandbox.succeeds("weights merge third --output third.safetensors");
    let merged = answers(&sandbox, "third.safetensors");
    assert!(difference(&logits(&merged[0]), &logits(&alone[0])) <= 1e-5);
    sandbox.succeeds("flops second.yaml --size 32x32");
    config(&sandbox, "other", "second.yaml", &[("bottleneck: 4", "bottleneck: 5")]);
    let text = sandbox.fails("train other.yaml --run other");
    assert!(text.contains("`tuning.adapter.bottleneck` was 4 and is now 5"), "{text}");
}

#[test]
fn a_dense_head_stays_as_it_was_beside_an_added_task() {
    let sandbox = Sandbox::new();
    // No file of pretrained weights: then all weights are kept in the new run.
    sandbox.succeeds("train segment.yaml --run dense train.iterations=4 train.eval_every=4");
    sandbox.succeeds("predict dense data/images/val/8.jpg --output out-dense");
    let adapter = "tuning: { adapter: { bottleneck: 4, dropout: 0.1 }, memory: { tokens: 2 } }";
    config(
        &sandbox,
        "added",
        "classify.yaml",
        &[
            (ADAPTER, adapter),
            ("task: classification", "task: classification\nextends: dense"),
            ("variant: mlp", "variant: mlp, inference: { calibrated: 0.5 }"),
            ("pool: mean", "pool: cls"),
        ],
    );
    sandbox.succeeds("train added.yaml --run added");
    let both = answers(&sandbox, "added");
    assert_eq!(
        (both[0]["kind"].as_str(), both[1]["kind"].as_str()),
        (Some("segmentation"), Some("classification"))
    );
    assert!(both[0]["features"].as_str().unwrap().starts_with("shared"));
    let labels = |folder: &str| {
        image::open(sandbox.path(folder).join("labels/8.png")).unwrap().to_luma8().into_raw()
    };
    assert_eq!(labels("out-dense"), labels("out-added"));
    let (dense, added) =
        (sandbox.tensors("dense/best.safetensors"), sandbox.tensors("added/best.safetensors"));
    let averaged = |name: &str| dense.get(&format!("ema.{name}")).unwrap_or(&dense[name]).clone();
    for name in [
        "decode_head.bn.running_mean",
        "decode_head.conv_seg.weight",
        "backbone.blocks.1.adaptmlp.up_proj.weight",
    ] {
        assert_eq!(averaged(name), added[name], "{name}");
    }
}

#[test]
fn an_added_task_is_compared_and_not_trained_again() {
    let sandbox = Sandbox::new();
    let memory = "tuning: { adapter: { bottleneck: 4 }, memory: { tokens: 2 } }";
    config(&sandbox, "first", "classify.yaml", &[(ADAPTER, memory), ("pool: mean", "pool: cls")]);
    sandbox.succeeds("train first.yaml --run first train.iterations=1");
    let extends = ("task: classification", "task: classification\nextends: first");
    config(&sandbox, "second", "first.yaml", &[extends]);
    std::fs::write(sandbox.path("plan.yaml"), "base: second.yaml\nmethods: [{ name: added }]\n")
        .unwrap();
    let compare = "compare plan.yaml --output out train.iterations=1 \
        data.val.transforms=[{\"resize\":{\"size\":[32,32],\"keep_ratio\":false}},{\"normalize\":{}}]";
    sandbox.succeeds(compare);
    let results = sandbox.path("out/added/seed_0/results.json");
    let written = || std::fs::metadata(&results).unwrap().modified().unwrap();
    let before = written();
    sandbox.succeeds(compare);
    assert_eq!(written(), before);
}
