//! A run that is interrupted and resumed ends where the uninterrupted run ends, bit for bit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

mod sandbox;

use std::process::Stdio;
use std::time::{Duration, Instant};

use rescatter::rng::{Purpose, Rng};
use sandbox::Sandbox;
use serde_json::Value;

const KILLS: usize = 10;

/// The rows of a log without what depends on the clock.
fn timeless_log(sandbox: &Sandbox, run: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(sandbox.path(run).join("log.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        for key in ["it_per_s", "data_wait", "eval_seconds"] {
            row.as_object_mut().unwrap().remove(key);
        }
        row
    };
    text.lines().map(timeless).collect()
}

#[test]
fn ten_kills_at_random_moments_change_no_bit() {
    let sandbox = Sandbox::new();
    let start = Instant::now();
    sandbox.succeeds("train segment.yaml --run straight");
    let whole = start.elapsed();
    let seed = std::process::id().into();
    let mut moments = Rng::new(seed).stream(Purpose::Synthetic, 0, 0);
    let mut kills = 0;
    while kills < KILLS {
        let mut child = sandbox
            .command("train segment.yaml --run killed --resume")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole.mul_f64(moments.uniform()));
        let finished = child.try_wait().unwrap();
        if let Some(status) = finished {
            assert!(status.success(), "seed {seed}");
            std::fs::remove_dir_all(sandbox.path("killed")).unwrap();
            continue;
        }
        // SIGKILL: nothing can be tidied up.
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    sandbox.succeeds("train segment.yaml --run killed --resume");
    for file in ["last.safetensors", "best.safetensors"] {
        let (straight, killed) = (
            sandbox.tensors(&format!("straight/{file}")),
            sandbox.tensors(&format!("killed/{file}")),
        );
        assert!(straight.keys().eq(killed.keys()), "seed {seed}");
        for (name, bytes) in &straight {
            assert_eq!(bytes, &killed[name], "`{name}` of {file} differs, seed {seed}");
        }
    }
    // Statistics, optimizer and averages are part of it.
    let tensors = sandbox.tensors("straight/last.safetensors");
    for name in [
        "decode_head.bn.running_var",
        "optimizer.v.decode_head.conv_seg.weight",
        "ema.decode_head.bn.weight",
    ] {
        assert!(tensors.contains_key(name), "{name} is not among {:?}", tensors.keys());
    }
    assert_eq!(timeless_log(&sandbox, "straight"), timeless_log(&sandbox, "killed"), "seed {seed}");
}

#[test]
fn the_number_of_workers_changes_no_bit() {
    let sandbox = Sandbox::new();
    sandbox.succeeds("train segment.yaml --run zero data.workers=0 train.iterations=6");
    sandbox.succeeds("train segment.yaml --run three data.workers=3 train.iterations=6");
    assert_eq!(sandbox.tensors("zero/last.safetensors"), sandbox.tensors("three/last.safetensors"));
}

#[test]
fn ctrl_c_saves_and_the_resumed_run_ends_in_the_same_weights() {
    let sandbox = Sandbox::new();
    let overrides = "train.iterations=300 train.eval_every=null train.checkpoint_every=100000";
    let mut child =
        sandbox.command(&format!("train segment.yaml --run run {overrides}")).spawn().unwrap();
    let log = sandbox.path("run/log.jsonl");
    let start = Instant::now();
    while std::fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 3 {
        assert!(start.elapsed() < Duration::from_secs(60), "no step was logged");
        assert!(child.try_wait().unwrap().is_none(), "the training ended too early");
        std::thread::sleep(Duration::from_millis(5));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(
        sandbox.path("run/last.safetensors").exists() && !sandbox.path("run/results.json").exists()
    );
    sandbox.succeeds(&format!("train segment.yaml --run run --resume {overrides}"));
    sandbox.succeeds(&format!("train segment.yaml --run straight {overrides}"));
    assert_eq!(
        sandbox.tensors("run/last.safetensors"),
        sandbox.tensors("straight/last.safetensors")
    );
}

#[test]
fn two_micro_batches_of_two_equal_a_batch_of_four() {
    let sandbox = Sandbox::new();
    let overrides = "loss.rate=5.0 loss.complete=0.5 loss.distill=0.5 optimizer.sgd.lr=0.05";
    sandbox.succeeds(&format!("train classify.yaml --run four {overrides}"));
    sandbox.succeeds(&format!(
        "train classify.yaml --run two train.batch_size=2 train.accumulate=2 {overrides}"
    ));
    let (four, two) =
        (sandbox.tensors("four/last.safetensors"), sandbox.tensors("two/last.safetensors"));
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let mut moved = 0;
    // The buffer is linear in the gradients, so that a wrong factor shows.
    for (name, bytes) in four.iter().filter(|(name, _)| name.starts_with("optimizer.")) {
        let (a, b) = (numbers(bytes), numbers(&two[name]));
        let largest = a.iter().fold(0f32, |most, x| most.max(x.abs()));
        moved += usize::from(largest > 0.0);
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() <= 1e-4 * largest, "{name}: {a} and {b}");
        }
    }
    assert!(moved > 8, "only {moved} parameters had a gradient");
}
