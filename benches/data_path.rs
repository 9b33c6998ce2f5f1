//! Images per second from files to batches (decode, random crop to 224 px, mirror, normalise); `benches/data_path.py` compares
//! with torchvision.
//!
//! `cargo bench --bench data_path -- WORKERS LIST` prints one JSON object; LIST has a line `path label` for each image.

use std::path::PathBuf;
use std::time::Instant;

use rescatter::config::{ClassNames, ImageListConfig, OnError, SplitConfig, TransformConfig};
use rescatter::data::{Loader, LoaderOptions};
use rescatter::{Error, Result, data};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 20;
const ROUNDS: usize = 5;

fn main() -> Result<()> {
    // cargo adds `--bench` to the arguments.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let workers = args.next().and_then(|workers| workers.parse().ok());
    let (Some(workers), Some(list)) = (workers, args.next().map(PathBuf::from)) else {
        return Err(Error::usage("give the number of workers and the list"));
    };
    let root = list.parent().map(PathBuf::from).unwrap_or_default();
    let image_list =
        ImageListConfig { root, list, classes: ClassNames::Count(1), on_error: OnError::Stop };
    let split = SplitConfig {
        image_list: Some(image_list),
        transforms: vec![
            TransformConfig::RandomResizedCrop { size: [224, 224], scale: [0.08, 1.0] },
            TransformConfig::RandomFlip { prob: 0.5 },
            TransformConfig::Normalize { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] },
        ],
        ..SplitConfig::default()
    };
    let set = data::classification(&split)?;
    let batches = set.len().div_ceil(BATCH);
    let mut loader =
        Loader::new(set, LoaderOptions { batch_size: BATCH, workers, ..LoaderOptions::default() })?;
    let mut best = f64::INFINITY;
    for round in 0..=ROUNDS {
        let start = Instant::now();
        for batch in loader.by_ref().take(batches) {
            std::hint::black_box(batch?);
        }
        // The first round starts the workers.
        if round > 0 {
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    let images = (batches * BATCH) as f64;
    println!("{{\"workers\": {workers}, \"images_per_second\": {:.1}}}", images / best);
    Ok(())
}
