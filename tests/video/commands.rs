//! The commands on clips that `data make` wrote.

use crate::sandbox::Sandbox;

fn json(sandbox: &Sandbox, name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(sandbox.path(name)).unwrap()).unwrap()
}

#[test]
fn clips_are_made_checked_trained_on_evaluated_and_predicted() {
    let sandbox = Sandbox::with_clips();
    sandbox.succeeds("data check clips.yaml");
    sandbox.succeeds("data browse clips.yaml --output sheets --count 4");
    assert_eq!(sandbox.names("sheets"), ["sheet_000.png"]);
    sandbox.succeeds("train clips.yaml --run run");
    let results = json(&sandbox, "run/results.json");
    for key in ["top1", "top5", "mean_class", "kept"] {
        assert!(results[key].as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)), "{key}");
    }
    assert_eq!(
        (results["images"].as_u64(), results["per_class"].as_array().unwrap().len()),
        (Some(4), 4)
    );
    let videos = json(&sandbox, "run/videos.json");
    assert_eq!(videos["videos"].as_array().unwrap().len(), 4);
    assert!(videos["videos"][0]["top"][0]["probability"].as_f64().unwrap() > 0.0);

    let told = sandbox.succeeds("eval run --checkpoint last --json");
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["top1"], results["top1"]);
    let kept = |found: &serde_json::Value| found["kept"].as_f64().unwrap();
    assert!((kept(&told) - kept(&results)).abs() < 1e-6, "{told}");

    let list = std::fs::read_to_string(sandbox.path("moving/val.txt")).unwrap();
    let clip = list.split(' ').next().unwrap();
    sandbox.succeeds(&format!("predict run moving/{clip} --output out --windows 2"));
    let stem = std::path::Path::new(clip).file_stem().unwrap().to_str().unwrap();
    let found = json(&sandbox, &format!("out/classes/{stem}.json"));
    assert_eq!(
        (found["windows"].as_array().unwrap().len(), found["top"].as_array().unwrap().len()),
        (2, 4)
    );
    let total: f64 =
        found["top"].as_array().unwrap().iter().map(|g| g["probability"].as_f64().unwrap()).sum();
    assert!((total - 1.0).abs() < 1e-4);
    let strip = image::open(sandbox.path(&format!("out/strips/{stem}.png"))).unwrap();
    assert!(strip.width() >= 4 * 32 && strip.height() >= 4 * 32, "two rows for each window");
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let sandbox = Sandbox::with_clips();
    sandbox.succeeds("train clips.yaml --run whole");
    sandbox.succeeds("train clips.yaml --run alone data.workers=0");
    assert_eq!(
        sandbox.tensors("whole/last.safetensors"),
        sandbox.tensors("alone/last.safetensors")
    );
    sandbox.succeeds("flops clips.yaml --json");
    sandbox.succeeds("bench whole --repeat 1 --json");
}

#[test]
fn broken_clips_are_found_by_check_and_named_by_train() {
    let sandbox = Sandbox::with_clips();
    let list = std::fs::read_to_string(sandbox.path("moving/train.txt")).unwrap();
    let broken = list.lines().nth(2).unwrap().split(' ').next().unwrap().to_owned();
    let path = sandbox.path("moving").join(&broken);
    if path.is_dir() {
        std::fs::remove_dir_all(&path).unwrap();
    } else {
        std::fs::write(&path, b"").unwrap();
    }
    std::fs::write(sandbox.path("moving/train.txt"), list.clone() + "clips/00001.mp4 9\n").unwrap();
    let output = sandbox.command("data check clips.yaml --json").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = report["splits"][0]["problems"].to_string();
    assert!(
        problems.contains(&broken) && problems.contains("line 17: the label `9`"),
        "{problems}"
    );
    std::fs::write(sandbox.path("moving/train.txt"), list).unwrap();
    let message = sandbox.fails("train clips.yaml --run run");
    assert!(message.contains(&broken), "{message}");
    sandbox.succeeds("train clips.yaml --run skipping data.train.video_list.on_error=skip");
}
