//! Segmenting one image of any size: whole or through mmsegmentation's sliding window, at several scales, mirrored or not.

use candle_core::{Device, Result, Tensor};
use ndarray::{Array2, Array3, ArrayView3, s};
use rescatter::backbone::{Features, Pass};
use rescatter::config::{EvalConfig, EvalMode};
use rescatter::data::LabelMap;
use rescatter::head::{Head, ImageMeta};
use rescatter::model::Model;
use rescatter::ops;

use super::argmax::argmax_resized;
use super::views::{View, views, windows};
use super::{ClassScores, SegmentationHead};
use crate::kept::Kept;
use crate::token_map::{in_pixels, worked_grids};

/// Windows that go through the model together.
const WINDOWS_AT_ONCE: usize = 4;

/// A model and the way in which it looks at images.
#[derive(Clone, Copy)]
pub struct Segmenter<'a> {
    /// The model.
    pub model: &'a Model<SegmentationHead>,
    /// Scales, mirroring, window.
    pub config: &'a EvalConfig,
}

/// What was found in one image.
#[derive(Debug, Clone)]
pub struct Segmentation {
    scores: Scores,
    /// How many layers worked on each pixel's patch, at the size of the model's input: the mean over the windows that saw
    /// it, in the first of several views. Nothing for a model without dispatchers.
    pub layers_worked: Option<Array2<f32>>,
    /// Share of the tokens that were worked on, over all views and windows.
    pub kept: Kept,
}

#[derive(Debug, Clone)]
enum Scores {
    /// Of the only view, `[K, H, W]` at the size of the model's input.
    Logits(Array3<f32>),
    /// Mean over the views, `[K, H, W]` at the image's own size.
    Probabilities(Array3<f32>),
}

impl Segmentation {
    /// The class of every pixel at `size` (normally [`ImageMeta::original`]): the scores are resized bilinearly first.
    pub fn labels(&self, size: (usize, usize)) -> LabelMap {
        match &self.scores {
            Scores::Logits(scores) | Scores::Probabilities(scores) => {
                argmax_resized(scores.view(), size)
            }
        }
    }

    /// The probability of every class at every pixel, `[K, H, W]` at `size`.
    ///
    /// # Errors
    /// If tensor arithmetic fails.
    pub fn probabilities(&self, size: (usize, usize)) -> Result<Array3<f32>> {
        match &self.scores {
            Scores::Logits(logits) => to_array(&probabilities(&to_tensor(logits.view())?, size)?),
            Scores::Probabilities(p) => {
                to_array(&ops::resize_bilinear(&to_tensor(p.view())?, size)?)
            }
        }
    }
}

/// One view of an image.
struct Seen {
    /// `[1, K, H, W]` at the size of the view.
    logits: Tensor,
    layers_worked: Option<Array2<f32>>,
    kept: Kept,
}

impl Segmenter<'_> {
    /// Segments the one image `[1, 3, H, W]`, normalised; what lies beyond `meta.input` is padding.
    ///
    /// # Errors
    /// If the image does not fit the model.
    pub fn segment(&self, image: &Tensor, meta: &ImageMeta) -> Result<Segmentation> {
        let image = image.to_device(self.model.params.device())?;
        let views = views(self.config);
        let mut kept = Kept::default();
        let mut layers_worked = None;
        let mut sum: Option<Tensor> = None;
        for view in &views {
            let seen = self.look(&image, meta.input, *view)?;
            kept.add(&seen.kept);
            layers_worked = layers_worked.or(seen.layers_worked);
            if let ([_], false) = (views.as_slice(), view.flipped) {
                let scores = Scores::Logits(to_array(&seen.logits)?);
                return Ok(Segmentation { scores, layers_worked, kept });
            }
            let logits = if view.flipped { mirrored(&seen.logits)? } else { seen.logits };
            let part = (probabilities(&logits, meta.original)? / views.len() as f64)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let Some(sum) = sum else { candle_core::bail!("an image was looked at in no way") };
        Ok(Segmentation { scores: Scores::Probabilities(to_array(&sum)?), layers_worked, kept })
    }

    /// One view of the image, without its padding.
    fn look(&self, image: &Tensor, input: (usize, usize), view: View) -> Result<Seen> {
        let image = image.narrow(2, 0, input.0)?.narrow(3, 0, input.1)?.contiguous()?;
        let scaled = |length: usize| ((length as f64 * view.scale).round() as usize).max(1);
        let image = ops::resize_bilinear(&image, (scaled(input.0), scaled(input.1)))?;
        let image = if view.flipped { mirrored(&image)? } else { image };
        match self.config.mode {
            EvalMode::Whole => self.whole(&image),
            EvalMode::Slide { crop, stride } => self.slide(&image, crop, stride),
        }
    }

    fn whole(&self, image: &Tensor) -> Result<Seen> {
        let (_, _, h, w) = image.dims4()?;
        let (features, scores) = self.forward(image)?;
        let mut kept = Kept::default();
        kept.count(&features.kept)?;
        let worked = worked_grids(&features)?;
        let layers_worked = worked.first().map(|grid| in_pixels(grid, features.stride_px, (h, w)));
        Ok(Seen { logits: scores[0].at_input_size()?.unsqueeze(0)?, layers_worked, kept })
    }

    fn slide(&self, image: &Tensor, crop: usize, stride: usize) -> Result<Seen> {
        let (_, _, h, w) = image.dims4()?;
        let ((rows, height), (columns, width)) =
            (windows(h, crop, stride), windows(w, crop, stride));
        let origins: Vec<_> =
            rows.iter().flat_map(|&y| columns.iter().map(move |&x| (y, x))).collect();
        let mut mosaic = Mosaic::new((h, w));
        let mut kept = Kept::default();
        for origins in origins.chunks(WINDOWS_AT_ONCE) {
            let window = |&(y, x): &(usize, usize)| image.narrow(2, y, height)?.narrow(3, x, width);
            let batch = Tensor::cat(&origins.iter().map(window).collect::<Result<Vec<_>>>()?, 0)?;
            let (features, scores) = self.forward(&batch)?;
            kept.count(&features.kept)?;
            let worked = worked_grids(&features)?;
            for (i, (&origin, scores)) in origins.iter().zip(&scores).enumerate() {
                let logits = to_array(&scores.at_input_size()?.unsqueeze(0)?)?;
                let worked =
                    worked.get(i).map(|grid| in_pixels(grid, features.stride_px, (height, width)));
                mosaic.add(origin, &logits, worked.as_ref());
            }
        }
        let (logits, layers_worked) = mosaic.mean();
        Ok(Seen { logits: to_tensor(logits.view())?, layers_worked, kept })
    }

    fn forward(&self, images: &Tensor) -> Result<(Features, Vec<ClassScores>)> {
        let (batch, _, h, w) = images.dims4()?;
        let meta =
            ImageMeta { name: String::new(), original: (h, w), input: (h, w), flipped: false };
        let features = self.model.backbone.forward(images, &Pass::Infer)?;
        let scores = self.model.head.predict(&features, &vec![meta; batch])?;
        Ok((features, scores))
    }
}

/// Overlapping windows on their way to a mean.
struct Mosaic {
    size: (usize, usize),
    logits: Option<Array3<f32>>,
    worked: Option<Array2<f32>>,
    seen: Array2<f32>,
}

impl Mosaic {
    fn new(size: (usize, usize)) -> Self {
        Self { size, logits: None, worked: None, seen: Array2::zeros(size) }
    }

    fn add(&mut self, (y, x): (usize, usize), logits: &Array3<f32>, worked: Option<&Array2<f32>>) {
        let ((h, w), (classes, height, width)) = (self.size, logits.dim());
        let (rows, columns) = (y..y + height, x..x + width);
        let sum = self.logits.get_or_insert_with(|| Array3::zeros((classes, h, w)));
        let mut part = sum.slice_mut(s![.., rows.clone(), columns.clone()]);
        part += logits;
        if let Some(worked) = worked {
            let sum = self.worked.get_or_insert_with(|| Array2::zeros((h, w)));
            let mut part = sum.slice_mut(s![rows.clone(), columns.clone()]);
            part += worked;
        }
        let mut part = self.seen.slice_mut(s![rows, columns]);
        part += 1.0;
    }

    fn mean(self) -> (Array3<f32>, Option<Array2<f32>>) {
        let logits = self.logits.unwrap_or_else(|| Array3::zeros((0, self.size.0, self.size.1)));
        (logits / &self.seen, self.worked.map(|worked| worked / &self.seen))
    }
}

/// `[1, K, h, w]` of logits → probabilities `[1, K, H, W]` at `size`.
fn probabilities(logits: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    ops::log_softmax(&ops::resize_bilinear(logits, size)?, 1)?.exp()
}

/// Left and right exchanged.
fn mirrored(map: &Tensor) -> Result<Tensor> {
    map.flip(&[3])?.contiguous()
}

fn to_tensor(array: ArrayView3<f32>) -> Result<Tensor> {
    let (c, h, w) = array.dim();
    match array.as_slice() {
        Some(values) => Tensor::from_slice(values, (1, c, h, w), &Device::Cpu),
        None => Tensor::from_vec(array.iter().copied().collect(), (1, c, h, w), &Device::Cpu),
    }
}

fn to_array(map: &Tensor) -> Result<Array3<f32>> {
    let (_, c, h, w) = map.dims4()?;
    let values = map.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1()?;
    Array3::from_shape_vec((c, h, w), values).map_err(candle_core::Error::wrap)
}

#[cfg(test)]
mod tests {
    use rescatter::rng::{Purpose, Rng};

    use super::*;
    use crate::{Config, TaskModel};

    /// A random linear head on a random backbone of patch 4, that skips half of the tokens.
    fn model() -> Model<SegmentationHead> {
        let split =
            "{ ade20k: { images: a, labels: b, classes: [x, y, z] }, transforms: [normalize: {}] }";
        let yaml = format!(
            "task: segmentation\n\
             backbone: {{ embed_dim: 16, depth: 2, num_heads: 2, patch_size: 4, pos_embed_grid: [4, 4] }}\n\
             dispatch: {{ variant: mlp, inference: {{ top_k: 0.5 }} }}\n\
             head: {{ linear: {{ taps: [0, 1] }} }}\n\
             data: {{ train: {split}, val: {split} }}\n\
             train: {{ iterations: 1, batch_size: 1 }}"
        );
        let config: Config =
            rescatter::config::load::parse(&yaml, "test.yaml".as_ref(), &[]).unwrap();
        match TaskModel::new(&config, 3, &Device::Cpu).unwrap() {
            TaskModel::Segmentation(model) => model,
            _ => unreachable!("the config segments"),
        }
    }

    fn picture((h, w): (usize, usize)) -> (Tensor, ImageMeta) {
        let mut stream = Rng::new(2).stream(Purpose::Synthetic, 0, 0);
        let image = Array3::from_shape_simple_fn((3, h, w), || stream.normal() as f32);
        let meta = ImageMeta { name: "p".into(), original: (h, w), input: (h, w), flipped: false };
        (to_tensor(image.view()).unwrap(), meta)
    }

    fn probabilities_of(
        model: &Model<SegmentationHead>,
        config: &EvalConfig,
        size: (usize, usize),
    ) -> Array3<f32> {
        let (image, meta) = picture(size);
        let found = Segmenter { model, config }.segment(&image, &meta).unwrap();
        found.probabilities(size).unwrap()
    }

    fn far(a: &Array3<f32>, b: &Array3<f32>) -> f32 {
        assert_eq!(a.dim(), b.dim());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    fn slide(crop: usize, stride: usize) -> EvalConfig {
        EvalConfig { mode: EvalMode::Slide { crop, stride }, ..EvalConfig::default() }
    }

    #[test]
    fn a_window_over_the_whole_image_is_the_whole_image() {
        let model = model();
        let whole = probabilities_of(&model, &EvalConfig::default(), (18, 23));
        assert_eq!(far(&whole, &probabilities_of(&model, &slide(64, 32), (18, 23))), 0.0);
    }

    #[test]
    fn windows_meet_where_they_overlap() {
        // 16 × 24 pixels, windows of 16 every 8: columns 0–8 see one window, 8–16 both.
        let model = model();
        let (image, meta) = picture((16, 24));
        let config = slide(16, 8);
        let found = Segmenter { model: &model, config: &config }.segment(&image, &meta).unwrap();
        let alone = |x: usize| {
            let part = image.narrow(3, x, 16).unwrap().contiguous().unwrap();
            let meta = ImageMeta { original: (16, 16), input: (16, 16), ..meta.clone() };
            let whole = EvalConfig::default();
            let found = Segmenter { model: &model, config: &whole }.segment(&part, &meta).unwrap();
            let Scores::Logits(logits) = found.scores else { panic!("one view gives logits") };
            (logits, found.layers_worked.unwrap())
        };
        let (((left, worked_left), (right, worked_right)), worked) =
            ((alone(0), alone(8)), found.layers_worked.unwrap());
        let Scores::Logits(logits) = found.scores else { panic!("one view gives logits") };
        for y in 0..16 {
            for c in 0..3 {
                assert!((logits[[c, y, 3]] - left[[c, y, 3]]).abs() < 1e-5);
                assert!(
                    (logits[[c, y, 11]] - (left[[c, y, 11]] + right[[c, y, 3]]) / 2.0).abs() < 1e-5
                );
                assert!((logits[[c, y, 20]] - right[[c, y, 12]]).abs() < 1e-5);
            }
            assert_eq!(worked[[y, 11]], (worked_left[[y, 11]] + worked_right[[y, 3]]) / 2.0);
        }
    }

    #[test]
    fn with_mirroring_a_mirrored_image_gives_the_mirrored_result() {
        let model = model();
        let config = EvalConfig { flip: true, scales: vec![0.75, 1.25], ..EvalConfig::default() };
        let (image, meta) = picture((16, 20));
        let segmenter = Segmenter { model: &model, config: &config };
        let plain = segmenter.segment(&image, &meta).unwrap().probabilities((16, 20)).unwrap();
        let turned = segmenter.segment(&mirrored(&image).unwrap(), &meta).unwrap();
        let turned = turned.probabilities((16, 20)).unwrap().slice(s![.., .., ..;-1]).to_owned();
        assert!(far(&plain, &turned) < 1e-5, "{}", far(&plain, &turned));
        let sums = plain.sum_axis(ndarray::Axis(0));
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-5));
    }

    #[test]
    fn padding_is_not_looked_at() {
        let model = model();
        let (image, meta) = picture((12, 16));
        let padded = image.pad_with_zeros(2, 0, 8).unwrap().pad_with_zeros(3, 0, 4).unwrap();
        let segmenter = Segmenter { model: &model, config: &EvalConfig::default() };
        let (a, b) =
            (segmenter.segment(&image, &meta).unwrap(), segmenter.segment(&padded, &meta).unwrap());
        assert_eq!(a.labels((24, 32)), b.labels((24, 32)));
        assert_eq!(a.kept.overall(), 0.5);
    }
}
