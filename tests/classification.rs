//! Classification from training to prediction, and `compare`, through the binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod sandbox;

use sandbox::Sandbox;
use serde_json::Value;

fn json(sandbox: &Sandbox, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(sandbox.path(name)).unwrap()).unwrap()
}

/// The losses of a run's log, line by line.
fn losses(sandbox: &Sandbox, run: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(sandbox.path(&format!("{run}/log.jsonl"))).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line["losses"]["ce"].as_f64()).collect()
}

#[test]
fn a_run_counts_epochs_and_reports_every_class() {
    let sandbox = Sandbox::new();
    let epochs = "train.iterations=null train.epochs=3 schedule.cosine.warmup_epochs=1";
    sandbox.succeeds(&format!("train classify.yaml --run run {epochs}"));
    // Three times eight images in batches of four.
    let results = json(&sandbox, "run/results.json");
    assert_eq!(results["step"], 6);
    let config = std::fs::read_to_string(sandbox.path("run/config.yaml")).unwrap();
    assert!(config.contains("iterations: 6") && config.contains("warmup_iters: 2"), "{config}");
    assert!(!config.contains("epochs"), "{config}");
    sandbox.succeeds(&format!("train classify.yaml --run run {epochs} --resume"));
    // Two classes from 16 channels.
    assert_eq!(results["trained"]["head"], 2 * 17);

    let output = sandbox.succeeds("eval run --json");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = |class: usize| -> u64 {
        let counts = found["confusion"][class].as_array().unwrap();
        counts.iter().map(|count| count.as_u64().unwrap()).sum()
    };
    assert_eq!((row(0), row(1)), (1, 1));
    let right =
        found["confusion"][0][0].as_u64().unwrap() + found["confusion"][1][1].as_u64().unwrap();
    assert_eq!(found["top1"].as_f64().unwrap(), right as f64 / 2.0);
    let table = sandbox.succeeds("eval run").stdout;
    assert!(String::from_utf8(table).unwrap().contains("mostly mistaken for"));

    sandbox.succeeds("predict run classes/val --output out");
    let prediction = json(&sandbox, "out/tasks/odd/9.json");
    let classes = prediction["tasks"][0]["top"].as_array().unwrap();
    let sum: f64 = classes.iter().map(|class| class["probability"].as_f64().unwrap()).sum();
    assert!(classes.len() == 2 && (sum - 1.0).abs() < 1e-5, "{prediction}");
    assert!(["even", "odd"].contains(&classes[0]["label"].as_str().unwrap()));
    for picture in ["out/overlays/odd/9.png", "out/tokens/odd/9.png", "out/legend.png"] {
        assert!(image::open(sandbox.path(picture)).unwrap().width() >= 192, "{picture}");
    }
}

const AUGMENTED: &str = "head.classifier.label_smoothing=0.1 data.mix.mixup=0.8 data.mix.cutmix=1.0 \
    data.train.transforms=[{\"rand_augment\":{\"magnitude_std\":0.5}},{\"color_jitter\":{\"hue\":0.1}},{\"normalize\":{}},{\"random_erasing\":{\"fill\":noise}}]";

#[test]
fn an_augmented_run_is_the_same_for_any_workers_and_after_a_stop() {
    let sandbox = Sandbox::new();
    let train = |more: &str| sandbox.succeeds(&format!("train classify.yaml {AUGMENTED} {more}"));
    train("--run zero data.workers=0 train.iterations=6 train.log_every=1");
    train("--run three data.workers=3 train.iterations=6 train.log_every=1");
    assert_eq!(sandbox.tensors("zero/last.safetensors"), sandbox.tensors("three/last.safetensors"));
    let ce = losses(&sandbox, "zero");
    assert!(ce.len() == 6 && ce.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{ce:?}");
    sandbox.succeeds("train classify.yaml --run plain train.iterations=6 train.log_every=1");
    assert_ne!(ce, losses(&sandbox, "plain"));
    let refused = sandbox.fails(
        "train classify.yaml --run no data.val.transforms=[{\"rand_augment\":{}},{\"normalize\":{}}]",
    );
    assert!(refused.contains("`rand_augment` is random"), "{refused}");
    let refused = sandbox.fails(
        "train segment.yaml --run no data.train.transforms=[{\"rand_augment\":{}},{\"normalize\":{}}]",
    );
    assert!(
        refused.contains("`rand_augment` moves pixels where labels cannot follow"),
        "{refused}"
    );
}

#[test]
fn a_linear_probe_on_cached_features_is_the_same_probe() {
    let sandbox = Sandbox::new();
    for pool in ["cls", "mean"] {
        let probe = format!(
            "head.classifier.pool={pool} tuning={{}} dispatch.variant=none optimizer.adamw.lr=0.05 \
             data.train.transforms=[{{\"normalize\":{{}}}}] train.iterations=20 train.log_every=1"
        );
        sandbox.succeeds(&format!("train classify.yaml --run {pool} {probe}"));
        let cached = format!("{pool}_cached");
        sandbox.succeeds(&format!(
            "train classify.yaml --run {cached} {probe} train.cache_features=true"
        ));
        let (slow, fast) = (losses(&sandbox, pool), losses(&sandbox, &cached));
        let near = slow.iter().zip(&fast).all(|(a, b)| (a - b).abs() < 1e-4 * a.abs());
        assert!(slow.len() == 20 && fast.len() == 20 && near, "{slow:?} {fast:?}");
        let sum = |losses: &[f64]| losses.iter().sum::<f64>();
        assert!(sum(&slow[15..]) < sum(&slow[..5]), "{slow:?}");
    }
    let refused = sandbox.fails("train classify.yaml --run no train.cache_features=true");
    assert!(refused.contains("`train.cache_features` cannot be used"), "{refused}");
}

const PLAN: &str = "\
base: classify.yaml
seeds: [0, 1]
methods:
  - { name: linear, overrides: { tuning: {}, dispatch.variant: none } }
  - { name: DyT r = 0.5 }
";

#[test]
fn two_methods_with_two_seeds_are_compared_once() {
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("plan.yaml"), PLAN).unwrap();
    let compare = "compare plan.yaml --output out train.iterations=2 data.val.transforms=[{\"resize\":{\"size\":[32,32],\"keep_ratio\":false}},{\"normalize\":{}}]";
    let list = String::from_utf8(sandbox.succeeds(&format!("{compare} --list")).stdout).unwrap();
    assert_eq!(list.lines().filter(|line| line.starts_with("to do")).count(), 4, "{list}");
    let table = String::from_utf8(sandbox.succeeds(compare).stdout).unwrap();
    assert!(table.contains("| linear |") && table.contains("| DyT r = 0.5 |"), "{table}");
    let found = json(&sandbox, "out/compare.json");
    let rows = found["rows"].as_array().unwrap();
    let number = |row: usize, key: &str| rows[row][key].as_f64().unwrap();
    assert_eq!((rows.len(), rows[1]["scores"].as_array().unwrap().len()), (2, 2));
    assert!(rows[0]["spread"].is_number());
    assert_eq!((number(0, "backbone_parameters"), number(0, "head_parameters")), (0.0, 34.0));
    // Two adapters of 2 · 16 · 4 + 4 + 16 numbers and two dispatchers of 16 + 1.
    assert_eq!(number(1, "backbone_parameters"), 2.0 * (148.0 + 17.0));
    assert_eq!((number(0, "kept"), number(0, "gmacs_share")), (1.0, 1.0));
    assert!(number(1, "seconds_per_step") > 0.0 && number(1, "gmacs_share") < 1.1);
    let picture = image::open(sandbox.path("out/compare.png")).unwrap().to_rgb8();
    assert!(picture.pixels().filter(|pixel| pixel.0 != [255; 3]).count() > 2000);
    let svg = std::fs::read_to_string(sandbox.path("out/compare.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("DyT r = 0.5"), "{svg}");

    // Again, without one of the runs: only that one is trained.
    std::fs::remove_dir_all(sandbox.path("out/linear/seed_1")).unwrap();
    let written = |run: &str| {
        std::fs::metadata(sandbox.path(&format!("out/{run}/results.json")))
            .unwrap()
            .modified()
            .unwrap()
    };
    let before = written("linear/seed_0");
    let list = String::from_utf8(sandbox.succeeds(&format!("{compare} --list")).stdout).unwrap();
    assert!(
        list.contains("to do  linear/seed_1") && list.contains("done   linear/seed_0"),
        "{list}"
    );
    sandbox.succeeds(compare);
    assert_eq!(written("linear/seed_0"), before);
    assert!(written("linear/seed_1") > before);
    assert_eq!(json(&sandbox, "out/compare.json")["rows"][0]["scores"], found["rows"][0]["scores"]);
    let other = sandbox.fails(&compare.replace("iterations=2", "iterations=3"));
    assert!(other.contains("`train.iterations` was 2 and is now 3"), "{other}");
}

#[test]
fn a_suite_has_group_means_and_plans_that_ship_are_good() {
    let sandbox = Sandbox::new();
    sandbox.succeeds("data make vtab --output vtab --count 15");
    let plan = PLAN.replace("[0, 1]", "[0]").replace("classify.yaml", "vtab.yaml");
    std::fs::write(sandbox.path("plan.yaml"), plan).unwrap();
    let text = std::fs::read_to_string(sandbox.path("classify.yaml")).unwrap();
    let reader = |list: &str| format!("vtab: {{ root: vtab, task: cifar, list: {list} }}");
    let text = text
        .replace("image_folder: { root: classes/train }", &reader("train800val200"))
        .replace("image_folder: { root: classes/val }", &reader("test"))
        .replace(
            "[{ normalize: {} }]",
            "[{ resize: { size: [32, 32], keep_ratio: false } }, { normalize: {} }]",
        )
        .replace(
            "[{ random_flip: {} }, { normalize: {} }]",
            "[{ resize: { size: [32, 32], keep_ratio: false } }, { normalize: {} }]",
        )
        .replace("iterations: 3", "iterations: 1");
    std::fs::write(sandbox.path("vtab.yaml"), text).unwrap();
    let table = sandbox.succeeds("compare plan.yaml --suite vtab --output out").stdout;
    let table = String::from_utf8(table).unwrap();
    assert!(table.contains("| Natural | Specialized | Structured | mean of groups |"), "{table}");
    let suite = &json(&sandbox, "out/compare.json")["rows"][1]["suite"];
    assert_eq!(suite["tasks"].as_array().unwrap().len(), 19);
    assert_eq!(suite["groups"][2][0], "Structured");

    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for entry in std::fs::read_dir(format!("{root}/configs/compare")).unwrap() {
        let plan = entry.unwrap().path();
        let list = format!("compare {} --output nowhere --list", plan.display());
        let output = sandbox.command(&list).current_dir(root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.len() > 50);
    }
}
