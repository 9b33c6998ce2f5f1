//! What the temporal heads can tell and what they cannot.

use candle_core::{Device, Result, Tensor};
use rescatter::config::load;
use rescatter::head::ImageMeta;
use rescatter::model::Model;
use rescatter::rng::{Purpose, Rng};
use rescatter_heads::{Config, TaskModel, TemporalHead};

fn model(head: &str, tuning: &str) -> Model<TemporalHead> {
    let split = "{ video_list: { root: a, file: b, classes: 3, sampling: { uniform: {} }, frames: 4 }, transforms: [normalize: {}] }";
    let yaml = format!(
        "task: video\n\
         backbone: {{ embed_dim: 32, depth: 2, num_heads: 2, patch_size: 8, pos_embed_grid: [4, 4] }}\n\
         dispatch: {{ variant: mlp, inference: {{ top_k: 0.5 }} }}\n\
         tuning: {tuning}\nhead: {head}\n\
         data: {{ train: {split}, val: {split} }}\n\
         train: {{ iterations: 1, batch_size: 1 }}\n"
    );
    let config: Config = load::parse(&yaml, "video.yaml".as_ref(), &[]).unwrap();
    let TaskModel::Video(model) = TaskModel::new(&config, 3, &Device::Cpu).unwrap() else {
        panic!("asked for video")
    };
    for (i, (name, param)) in model.params.all().into_iter().enumerate() {
        if param.var.rank() >= 2 {
            let values = (normal(param.var.dims(), i as u64).unwrap() * 0.3).unwrap();
            model.params.set(&name, &values).unwrap();
        }
    }
    model
}

fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut stream = Rng::new(seed).stream(Purpose::Synthetic, 0, 0);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| stream.normal() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

fn predict(model: &Model<TemporalHead>, images: &Tensor, clips: usize) -> Vec<Vec<f32>> {
    let size = (32, 32);
    let meta = ImageMeta { name: String::new(), original: size, input: size, flipped: false };
    model.predict(images, &vec![meta; clips]).unwrap().0
}

/// The largest difference over the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    let largest = b.iter().fold(0f32, |most, value| most.max(value.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max) / largest
}

const QUERY: &str = "{ temporal_query: {} }";
const MATCHING: &str =
    "{ temporal_transformer: { frames: 4, correlation: 1, dim: 16, num_heads: 2 } }";
const TRANSFORMER: &str =
    "{ temporal_transformer: { frames: 4, cells: [2, 2], dim: 16, num_heads: 2 } }";

#[test]
fn frames_repeated_are_one_frame_to_the_published_head() -> Result<()> {
    let model = model(QUERY, "{ adapter: { bottleneck: 4 } }");
    let one = normal(&[1, 3, 32, 32], 1)?;
    let repeated = Tensor::cat(&[&one, &one, &one, &one], 0)?;
    let off = difference(&predict(&model, &repeated, 1)[0], &predict(&model, &one, 1)[0]);
    assert!(off < 1e-5, "{off}");
    Ok(())
}

#[test]
fn a_clip_alone_is_the_clip_in_a_batch() -> Result<()> {
    for head in [QUERY, TRANSFORMER, MATCHING] {
        let model = model(head, "{ st_adapter: { bottleneck: 4 } }");
        let images = normal(&[12, 3, 32, 32], 2)?;
        let batch = predict(&model, &images, 3);
        let alone = predict(&model, &images.narrow(0, 4, 4)?, 1);
        let off = difference(&alone[0], &batch[1]);
        assert!(off < 1e-5, "{head}: {off}");
    }
    Ok(())
}

#[test]
fn only_positions_or_an_adapter_over_time_tell_a_clip_from_its_reverse() -> Result<()> {
    let images = normal(&[4, 3, 32, 32], 3)?;
    let backwards = images.flip(&[0])?;
    for (head, tuning, blind) in [
        (QUERY, "{}", true),
        (QUERY, "{ st_adapter: { bottleneck: 4 } }", false),
        (TRANSFORMER, "{}", false),
    ] {
        let model = model(head, tuning);
        let off = difference(&predict(&model, &images, 1)[0], &predict(&model, &backwards, 1)[0]);
        assert_eq!(off < 1e-5, blind, "{head} with {tuning}: {off}");
    }
    Ok(())
}

#[test]
fn a_transformer_for_other_clips_says_so() -> Result<()> {
    let model = model(TRANSFORMER, "{}");
    let size = (32, 32);
    let meta = ImageMeta { name: String::new(), original: size, input: size, flipped: false };
    let error = model.predict(&normal(&[3, 3, 32, 32], 1)?, &[meta]).unwrap_err().to_string();
    assert!(
        error.contains("`head.temporal_transformer.frames` is 4, but the clips have 3"),
        "{error}"
    );
    Ok(())
}
