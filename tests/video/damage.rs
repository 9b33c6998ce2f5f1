//! Damaged files: whatever the bytes are, an error or frames come back, in time and without a crash or a leak.
//!
//! `RESCATTER_MUTATIONS=1000 cargo test --release --workspace --features video --test video damage` tries as many files.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rescatter::data::video::Video;
use rescatter::rng::{Purpose, Rng, Stream};
use tempfile::TempDir;

use crate::clips::{SIZE, encode, has_ffmpeg};

/// The files that a child of the test decodes.
const FILES: &str = "RESCATTER_DAMAGED_FILES";
const LIMIT: Duration = Duration::from_secs(10);

/// In a child process: decodes every file and says how much memory the process holds after each.
#[test]
fn child() {
    let Ok(files) = std::env::var(FILES) else { return };
    for file in files.lines() {
        if let Ok(mut video) = Video::open(Path::new(file)) {
            let frames: Vec<usize> = (0..video.frames()).step_by(5).take(100).collect();
            // Damage may leave the frames whole or make them an error; both are fine here.
            let _ = video.read(&frames, None);
            let _ = video.read(&[video.frames() - 1], Some(32));
        }
        println!("resident: {}", resident_kib());
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Runs [`child`] on the files; its memory after each.
fn decode_in_child(files: &[PathBuf], limit: Duration) -> Vec<u64> {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["damage::child", "--exact", "--nocapture"])
        .env(FILES, names.join("\n"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > limit => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{names:?} took longer than {limit:?}");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    assert!(status.success(), "{names:?}: {status}");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    // On one core the first line has the name of the test before it.
    text.lines().filter_map(|line| line.split_once("resident: ")?.1.parse().ok()).collect()
}

/// Bytes flipped or overwritten, parts cut out, doubled, swapped or cleared, the end cut off.
fn mutated(bytes: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    // Headers lie at both ends; half of the damage goes there.
    let place = |bytes: &[u8], stream: &mut Stream| {
        let head = 1500.min(bytes.len());
        match stream.below(4) {
            0 => stream.below(head),
            1 => bytes.len() - 1 - stream.below(head),
            _ => stream.below(bytes.len()),
        }
    };
    for _ in 0..1 + stream.below(4) {
        let at = place(&bytes, stream);
        let end = (at + 1 + stream.below(64)).min(bytes.len());
        match stream.below(7) {
            0 => bytes[at] ^= 1 << stream.below(8),
            1 => bytes[at..end].iter_mut().for_each(|byte| *byte = stream.next_u32() as u8),
            2 => bytes[at..end].fill(if stream.chance(0.5) { 0 } else { 255 }),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let other = place(&bytes, stream);
                let length = (end - at).min(bytes.len() - at.max(other));
                (0..length).for_each(|i| bytes.swap(at + i, other + i));
            }
            _ => bytes.truncate((bytes.len() / 4).max(at)),
        }
    }
    bytes
}

#[test]
fn reading_a_video_again_and_again_takes_no_more_memory() {
    if !has_ffmpeg("reading_a_video_again_and_again_takes_no_more_memory") {
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("noisy.mp4");
    encode("-vf noise=alls=40:allf=t -c:v libx264 -pix_fmt yuv420p -qp 8", 30, SIZE, &path);
    let size = std::fs::metadata(&path).unwrap().len() >> 10;
    let resident = decode_in_child(&vec![path; 60], 6 * LIMIT);
    println!(
        "a file of {size} KiB, 60 times: {} KiB after 20, {} after all",
        resident[19], resident[59]
    );
    // Forty more readings, twice or three times of everything in the file.
    assert!(resident[59] < resident[19] + 8 * size, "{resident:?}");
}

#[test]
fn mutated_files_neither_crash_nor_hang_nor_leak() {
    if !has_ffmpeg("mutated_files_neither_crash_nor_hang_nor_leak") {
        return;
    }
    let count = std::env::var("RESCATTER_MUTATIONS").map_or(100, |text| text.parse().unwrap());
    let folder = TempDir::new().unwrap();
    let sources: Vec<Vec<u8>> = [
        ("a.mp4", "-c:v libx264 -pix_fmt yuv420p -bf 2 -g 12"),
        ("b.mp4", "-c:v libx264 -pix_fmt yuv420p -bf 3 -g 30 -movflags +faststart"),
        ("c.mp4", "-c:v libx265 -pix_fmt yuv420p -x265-params log-level=none:keyint=15"),
        ("d.mp4", "-c:v mpeg4 -q:v 3 -bf 2"),
    ]
    .into_iter()
    .map(|(name, args)| {
        let path = folder.path().join(name);
        encode(args, 40, SIZE, &path);
        std::fs::read(path).unwrap()
    })
    .collect();
    let files: Vec<PathBuf> = (0..count)
        .map(|number: usize| {
            let mut stream = Rng::new(7).stream(Purpose::Synthetic, number as u64, 0);
            let path = folder.path().join(format!("mutated_{number}.mp4"));
            std::fs::write(&path, mutated(&sources[number % sources.len()], &mut stream)).unwrap();
            path
        })
        .collect();
    for file in &files {
        decode_in_child(std::slice::from_ref(file), LIMIT);
    }
    // All of them in one process, twice: what the first round did not give back, the second would double.
    let rounds: Vec<PathBuf> = files.iter().chain(&files).cloned().collect();
    let resident = decode_in_child(&rounds, LIMIT * count as u32);
    let (first, second) = resident.split_at(resident.len() / 2);
    let peak = |part: &[u64]| part.iter().copied().max().unwrap();
    println!(
        "{count} files: at most {} KiB in the first round, {} KiB in the second",
        peak(first),
        peak(second)
    );
    assert_eq!(resident.len(), 2 * count);
    assert!(peak(second) < peak(first) + (16 << 10), "memory grows from round to round");
}
