//! Frames per second of reading 8 evenly spread frames of each clip; `benches/video_decode.py` compares with other readers.
//!
//! `cargo bench --features video --bench video_decode -- CLIP…` prints one JSON object.

use std::path::PathBuf;
use std::time::Instant;

use rescatter::data::video::Video;

const FRAMES: usize = 8;
const ROUNDS: usize = 5;

fn main() -> rescatter::Result<()> {
    // cargo adds `--bench` to the arguments.
    let clips: Vec<PathBuf> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).map(PathBuf::from).collect();
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for clip in &clips {
            let mut video = Video::open(clip)?;
            let step = (video.frames() - 1) as f64 / (FRAMES - 1) as f64;
            let wanted: Vec<usize> =
                (0..FRAMES).map(|i| (i as f64 * step).round() as usize).collect();
            std::hint::black_box(video.read(&wanted, None)?);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    let frames = (FRAMES * clips.len()) as f64;
    println!("{{\"clips\": {}, \"frames_per_second\": {:.1}}}", clips.len(), frames / best);
    Ok(())
}
