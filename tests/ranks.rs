//! Several processes train and score as one does (feature `mpi`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[cfg(not(feature = "mpi"))]
#[test]
fn several_processes() {
    println!("skipped: training on several processes because Open MPI is not installed");
}

#[cfg(feature = "mpi")]
mod sandbox;

#[cfg(feature = "mpi")]
mod tests {
    use std::process::{Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use serde_json::Value;

    use super::sandbox::Sandbox;

    /// `mpirun -n 2 rescatter ARGS` in the sandbox, one thread each.
    fn two(sandbox: &Sandbox, args: &str) -> Command {
        let alone = sandbox.command(args);
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", "2"]);
        command.arg(alone.get_program()).args(alone.get_args());
        // Open MPI's own folder: two jobs that begin at once must not both make the one in /tmp.
        command.current_dir(sandbox.path(".")).env("TMPDIR", sandbox.path("."));
        command.env("RAYON_NUM_THREADS", "1").env("RESCATTER_LOG", "warn");
        command
    }

    fn succeed(mut command: Command) -> Output {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// What the steps of a run lost, by its log.
    fn losses(sandbox: &Sandbox, run: &str) -> Vec<f64> {
        let log = std::fs::read_to_string(sandbox.path(run).join("log.jsonl")).unwrap();
        let rows = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        rows.filter_map(|row| row["total"].as_f64()).collect()
    }

    fn assert_alike(sandbox: &Sandbox, one: &str, other: &str) {
        let (one, other) = (losses(sandbox, one), losses(sandbox, other));
        assert!(one.len() >= 4 && one.len() == other.len(), "{one:?} {other:?}");
        for (a, b) in one.iter().zip(&other) {
            assert!((a - b).abs() < 1e-4 * a.abs().max(1.0), "{one:?} {other:?}");
        }
    }

    const STEPS: &str = r#"train.iterations=5 train.log_every=1 optimizer={"sgd":{"lr":0.05}}"#;

    #[test]
    fn two_processes_learn_what_one_with_twice_the_batch_learns() {
        let sandbox = Sandbox::new();
        train_both_ways(&sandbox, "segment.yaml", "");
        assert_scored_alike(&sandbox);
        let train =
            |run: &str, batch: &str| format!("train segment.yaml --run {run} {STEPS} {batch}");
        succeed(two(
            &sandbox,
            &train("four", "train.batch_size=1 train.accumulate=2 head.linear.dropout=0.0"),
        ));
        // Batch norm sees micro-batches one after the other, so the accumulated steps have a twin of their own.
        sandbox.succeeds(&train(
            "half",
            "train.batch_size=2 train.accumulate=2 head.linear.dropout=0.0",
        ));
        assert_alike(&sandbox, "half", "four");
    }

    /// Trains with four samples a step, on one process and on two.
    fn train_both_ways(sandbox: &Sandbox, config: &str, overrides: &str) {
        let train = |run: &str, batch: usize| {
            let steps = format!("{STEPS} train.accumulate=1 train.batch_size={batch}");
            format!("train {config} --run {run} {steps} {overrides}")
        };
        sandbox.succeeds(&train("one", 4));
        succeed(two(sandbox, &train("two", 2)));
        assert_alike(sandbox, "one", "two");
    }

    #[test]
    fn detectors_learn_the_same() {
        let sandbox = Sandbox::with_objects();
        // Of one size, because images are filled up to the largest of a process's batch.
        let sized = r#"data.train.transforms=[{"resize":{"size":[64,64],"keep_ratio":false}},{"normalize":{}}]"#;
        train_both_ways(&sandbox, "detect.yaml", sized);
        assert_scored_alike(&sandbox);
    }

    #[test]
    fn video_classifiers_learn_the_same() {
        let sandbox = Sandbox::with_clips();
        train_both_ways(&sandbox, "clips.yaml", "");
        assert_scored_alike(&sandbox);
    }

    /// Evaluating run `one` finds the same on one process and on two.
    fn assert_scored_alike(sandbox: &Sandbox) {
        let scores = |output: Output| {
            let mut found: Value = serde_json::from_slice(&output.stdout).unwrap();
            for time in ["seconds", "seconds_per_image"] {
                found.as_object_mut().unwrap().remove(time).unwrap();
            }
            found
        };
        let alone = scores(sandbox.succeeds("eval one --json"));
        assert_eq!(scores(succeed(two(sandbox, "eval one --json"))), alone);
    }

    #[test]
    fn a_process_that_dies_ends_the_job_and_another_number_goes_on() {
        let sandbox = Sandbox::new();
        let args = "train segment.yaml --run run train.iterations=4000 train.eval_every=null train.batch_size=1";
        let mut job = two(&sandbox, args).stderr(Stdio::piped()).spawn().unwrap();
        let last = sandbox.path("run/last.safetensors");
        let start = Instant::now();
        while !last.exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint");
            std::thread::sleep(Duration::from_millis(20));
        }
        let ranks = Command::new("pgrep").args(["-P", &job.id().to_string()]).output().unwrap();
        let ranks = String::from_utf8(ranks.stdout).unwrap();
        let victim = ranks.lines().last().unwrap();
        assert!(Command::new("kill").args(["-9", victim]).status().unwrap().success());
        assert!(!job.wait().unwrap().success());
        let meta = std::fs::read(&last).unwrap();
        assert!(!meta.is_empty());
        // One process goes on where the two stopped.
        let mut alone =
            sandbox.command(&format!("{args} --resume")).stderr(Stdio::piped()).spawn().unwrap();
        let before = std::fs::metadata(&last).unwrap().modified().unwrap();
        let start = Instant::now();
        while std::fs::metadata(&last).unwrap().modified().unwrap() == before {
            assert!(alone.try_wait().unwrap().is_none(), "it stopped");
            assert!(start.elapsed() < Duration::from_secs(60), "no further checkpoint");
            std::thread::sleep(Duration::from_millis(20));
        }
        alone.kill().unwrap();
        alone.wait().unwrap();
    }

    #[test]
    fn an_epoch_is_one_of_all_processes_and_a_run_keeps_its_length_on_others() {
        let sandbox = Sandbox::new();
        let train = |epochs: usize| {
            format!(
                "train classify.yaml --run run train.iterations=null train.epochs={epochs} \
                 schedule.cosine.warmup_epochs=1 train.batch_size=2"
            )
        };
        succeed(two(&sandbox, &train(4)));
        // Four times eight images, four a step.
        let config = std::fs::read_to_string(sandbox.path("run/config.yaml")).unwrap();
        assert!(config.contains("iterations: 8") && config.contains("warmup_iters: 2"), "{config}");
        sandbox.succeeds(&format!("{} --resume", train(4)));
        let refused = sandbox.fails(&format!("{} --resume", train(5)));
        assert!(refused.contains("the run has another config"), "{refused}");
    }

    #[test]
    fn what_is_not_shared_says_so() {
        let sandbox = Sandbox::new();
        let output = two(&sandbox, "flops segment.yaml").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains("only `train` and `eval`"), "{text}");
    }
}
