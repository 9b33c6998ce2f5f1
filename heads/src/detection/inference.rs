//! Detecting the objects of one image, mirrored or not.

use candle_core::{Result, Tensor};
use ndarray::{Array2, s};
use rescatter::Error;
use rescatter::backbone::Pass;
use rescatter::boxes::mirror;
use rescatter::config::{EvalConfig, EvalMode};
use rescatter::head::ImageMeta;
use rescatter::model::{Model, crop, pad_to};

use crate::kept::Kept;
use crate::mask_rcnn::mask_head::MASK_SIZE;
use crate::mask_rcnn::{Candidates, Detections, Look, MaskRcnn};
use crate::token_map::{in_pixels, worked_grids};

/// A model and the way in which it looks at images.
#[derive(Clone, Copy)]
pub struct Detector<'a> {
    model: &'a Model<MaskRcnn>,
    mirrored_too: Mirrored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mirrored {
    No,
    /// The boxes of both looks are suppressed together, the masks of what is left are averaged.
    Too,
}

/// What was found in one image.
#[derive(Debug, Clone)]
pub struct Found {
    /// In pixels of the model's input.
    pub detections: Detections,
    /// How many layers worked on each pixel's patch, at the size of the model's input, without mirroring. Nothing for a model
    /// without dispatchers.
    pub layers_worked: Option<Array2<f32>>,
    /// Share of the tokens that were worked on, over all looks.
    pub kept: Kept,
}

impl<'a> Detector<'a> {
    /// A detector sees whole images at one scale.
    ///
    /// # Errors
    /// If `config` asks for a sliding window or other scales.
    pub fn new(model: &'a Model<MaskRcnn>, config: &EvalConfig) -> rescatter::Result<Self> {
        if config.mode != EvalMode::Whole || config.scales.iter().any(|scale| *scale != 1.0) {
            return Err(Error::usage("a detector sees whole images at one scale")
                .with_hint("leave `eval.mode` and `eval.scales` out; `eval.flip` is known"));
        }
        let mirrored_too = if config.flip { Mirrored::Too } else { Mirrored::No };
        Ok(Self { model, mirrored_too })
    }

    /// Detects the objects of the one image `[1, 3, H, W]`, normalised; what lies beyond `meta.input` is padding, which the
    /// model sees as it did in training and in which nothing is found.
    ///
    /// # Errors
    /// If the image does not fit the model.
    pub fn detect(&self, image: &Tensor, meta: &ImageMeta) -> Result<Found> {
        let width = meta.input.1;
        // The pyramid halves the patches' map once.
        let least = 2 * self.model.backbone.dims().patch;
        let image = pad_to(&image.to_device(self.model.params.device())?, (least, least))?;
        let mut kept = Kept::default();
        let (plain, layers_worked) = self.look(&image, meta, &mut kept)?;
        let mut candidates = plain.candidates[0].clone();
        let turned = match self.mirrored_too {
            Mirrored::No => None,
            Mirrored::Too => Some(self.look(&turned(&image, meta.input)?, meta, &mut kept)?.0),
        };
        if let Some(turned) = &turned {
            candidates.extend(mirrored(&turned.candidates[0], width));
        }
        let head = &self.model.head;
        let chosen = candidates.suppress(&head.config().detections);
        let mut masks = head.masks(&plain, std::slice::from_ref(&chosen))?.concat();
        if let Some(turned) = &turned {
            let others = head.masks(turned, &[mirrored(&chosen, width)])?.concat();
            masks.iter_mut().zip(&others).for_each(|(mask, other)| average(mask, other));
        }
        let Candidates { boxes, scores, classes } = chosen;
        let detections = Detections { boxes, scores, classes, masks, meta: meta.clone() };
        Ok(Found { detections, layers_worked, kept })
    }

    fn look(
        &self,
        image: &Tensor,
        meta: &ImageMeta,
        kept: &mut Kept,
    ) -> Result<(Look, Option<Array2<f32>>)> {
        let features = self.model.backbone.forward(image, &Pass::Infer)?;
        kept.count(&features.kept)?;
        let worked = worked_grids(&features)?;
        let worked = worked.first().map(|grid| in_pixels(grid, features.stride_px, meta.input));
        Ok((self.model.head.look(&features, std::slice::from_ref(meta))?, worked))
    }
}

/// `[1, 3, H, W]` with its upper left `size` mirrored in place.
fn turned(image: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    let (_, _, height, width) = image.dims4()?;
    pad_to(&crop(image, size)?.contiguous()?.flip(&[3])?.contiguous()?, (height, width))
}

fn mirrored(candidates: &Candidates, width: usize) -> Candidates {
    let boxes = candidates.boxes.iter().map(|b| mirror(*b, width)).collect();
    Candidates { boxes, ..candidates.clone() }
}

/// The mean of a mask and of one that was seen mirrored.
fn average(mask: &mut Array2<f32>, turned: &Array2<f32>) {
    debug_assert_eq!(mask.dim(), (MASK_SIZE, MASK_SIZE));
    mask.zip_mut_with(&turned.slice(s![.., ..;-1]), |a, b| *a = (*a + b) / 2.0);
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rescatter::head::Head;
    use rescatter::rng::{Purpose, Rng};

    use super::*;
    use crate::{Config, TaskModel};

    /// A random detector on a random backbone of patch 8 that skips half of the tokens.
    fn model() -> Model<MaskRcnn> {
        let split = "{ coco: { images: a, annotations: b }, transforms: [normalize: {}] }";
        let yaml = format!(
            "task: detection\n\
             backbone: {{ embed_dim: 16, depth: 2, num_heads: 2, patch_size: 8, pos_embed_grid: [6, 6] }}\n\
             dispatch: {{ variant: mlp, inference: {{ top_k: 0.5 }} }}\n\
             head: {{ mask_rcnn: {{ channels: 8, anchors: {{ sizes: [4, 8, 16, 32, 48] }}, \
             rpn: {{ pre_nms: {{ train: 50, test: 50 }}, post_nms: {{ train: 20, test: 20 }} }}, \
             box_head: {{ conv_dim: 8, fc_dim: 16 }}, mask_head: {{ dim: 8 }}, \
             detections: {{ score_threshold: 0.01, per_image: 12 }} }} }}\n\
             data: {{ train: {split}, val: {split} }}\n\
             train: {{ iterations: 1, batch_size: 1 }}"
        );
        let config: Config =
            rescatter::config::load::parse(&yaml, "test.yaml".as_ref(), &[]).unwrap();
        match TaskModel::new(&config, 3, &Device::Cpu).unwrap() {
            TaskModel::Detection(model) => model,
            _ => unreachable!("the config detects"),
        }
    }

    fn picture(size: (usize, usize)) -> (Tensor, ImageMeta) {
        let mut stream = Rng::new(2).stream(Purpose::Synthetic, 0, 0);
        let values: Vec<f32> = (0..3 * size.0 * size.1).map(|_| stream.normal() as f32).collect();
        let image = Tensor::from_vec(values, (1, 3, size.0, size.1), &Device::Cpu).unwrap();
        (image, ImageMeta { name: "p".into(), original: size, input: size, flipped: false })
    }

    fn detect(
        model: &Model<MaskRcnn>,
        mirrored_too: Mirrored,
        image: &Tensor,
        meta: &ImageMeta,
    ) -> Found {
        let config = EvalConfig { flip: mirrored_too == Mirrored::Too, ..EvalConfig::default() };
        Detector::new(model, &config).unwrap().detect(image, meta).unwrap()
    }

    #[test]
    fn padding_is_seen_and_nothing_is_found_in_it() {
        let model = model();
        let (image, meta) = picture((40, 48));
        let padded = pad_to(&image, (64, 64)).unwrap();
        let seen = model.backbone.forward(&padded, &Pass::Infer).unwrap();
        let wanted = model.head.predict(&seen, std::slice::from_ref(&meta)).unwrap();
        let plain = detect(&model, Mirrored::No, &padded, &meta);
        assert_eq!(plain.detections, wanted[0]);
        assert_eq!(plain.detections.boxes.len(), 12);
        assert_eq!((plain.kept.overall(), plain.layers_worked.unwrap().dim()), (0.5, (40, 48)));
        let inside = |b: &[f32; 4]| b[0] >= 0.0 && b[1] >= 0.0 && b[2] <= 48.0 && b[3] <= 40.0;
        assert!(plain.detections.boxes.iter().all(inside));
        assert!(plain.detections.scores.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn with_mirroring_a_mirrored_image_gives_the_mirrored_result() {
        let model = model();
        let (image, meta) = picture((40, 48));
        let image = pad_to(&image, (48, 64)).unwrap();
        let plain = detect(&model, Mirrored::Too, &image, &meta).detections;
        let turned = turned(&image, meta.input).unwrap();
        let turned = detect(&model, Mirrored::Too, &turned, &meta).detections;
        // Equal scores may come in another order: every object must have its counterpart.
        for (i, b) in plain.boxes.iter().enumerate() {
            let wanted = mirror(*b, 48);
            let near = |j: &usize| {
                let close = wanted.iter().zip(&turned.boxes[*j]).all(|(a, b)| (a - b).abs() < 1e-3);
                close && plain.classes[i] == turned.classes[*j]
            };
            let j = (0..turned.boxes.len()).find(near).expect("a counterpart");
            assert!((plain.scores[i] - turned.scores[j]).abs() < 1e-5);
            let flipped = turned.masks[j].slice(s![.., ..;-1]).to_owned();
            let apart =
                (&plain.masks[i] - &flipped).mapv(f32::abs).fold(0.0, |a: f32, b| a.max(*b));
            assert!(apart < 1e-4, "{apart}");
        }
    }

    #[test]
    fn an_image_smaller_than_the_pyramid_is_no_error() {
        let model = model();
        for size in [(1, 1), (3, 90)] {
            let (image, meta) = picture(size);
            detect(&model, Mirrored::Too, &image, &meta);
        }
    }

    #[test]
    fn a_sliding_window_is_refused() {
        let model = model();
        let mode = EvalMode::Slide { crop: 32, stride: 16 };
        let config = EvalConfig { mode, ..EvalConfig::default() };
        assert!(Detector::new(&model, &config).is_err());
    }
}
