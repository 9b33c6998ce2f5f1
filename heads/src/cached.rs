//! What a frozen backbone gives for the images of a set, computed once: all that a classifier's head is trained on.

use std::sync::Arc;

use ndarray::Array3;
use rescatter::backbone::Pass;
use rescatter::data::{Batch, Dataset, Loader, LoaderOptions, Mode, Sample};
use rescatter::head::ImageMeta;
use rescatter::model::Model;
use rescatter::rng::Stream;
use rescatter::{Error, Result};

use crate::ClassifierHead;

/// Images per pass of the backbone.
const BATCH: usize = 16;

/// A set whose images are `1 × 1 × C`: one token each.
pub struct CachedFeatures {
    samples: Vec<(Vec<f32>, u32, ImageMeta)>,
    classes: Vec<String>,
}

impl CachedFeatures {
    /// Shows every image of `set` to the backbone of `model`, in which nothing is trained or random.
    ///
    /// # Errors
    /// If an image cannot be read or does not fit the model.
    pub fn compute(
        model: &Model<ClassifierHead>,
        set: Arc<dyn Dataset<Target = u32>>,
        workers: usize,
    ) -> Result<Self> {
        let classes = set.classes().to_vec();
        let options = LoaderOptions {
            batch_size: BATCH,
            workers,
            mode: Mode::Evaluate,
            ..LoaderOptions::default()
        };
        let mut samples = Vec::with_capacity(set.len());
        for batch in Loader::new(set, options)? {
            let Batch { images, targets, metas, .. } = batch?;
            let images = images.to_device(model.params.device())?;
            let features = model.backbone.forward(&images, &Pass::Infer)?;
            let tokens = model.head.pooled(&features)?.detach().to_vec2()?;
            let batch = tokens.into_iter().zip(targets).zip(metas);
            samples.extend(batch.map(|((token, target), meta)| (token, target, meta)));
        }
        Ok(Self { samples, classes })
    }
}

impl Dataset for CachedFeatures {
    type Target = u32;

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn get(&self, index: usize, _stream: &mut Stream) -> Result<Sample<u32>> {
        let (token, target, meta) = &self.samples[index];
        let image = Array3::from_shape_vec((1, 1, token.len()), token.clone());
        let image = image.map_err(Error::usage)?;
        Ok(Sample { image, target: *target, meta: meta.clone() })
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, index: usize) -> String {
        self.samples[index].2.name.clone()
    }
}

/// A batch of [`CachedFeatures`] as a model takes it: tokens `[B, 1, C]`.
///
/// # Errors
/// If its images are not `1 × 1 × C`.
pub fn as_tokens<T>(batch: Batch<T>) -> Result<Batch<T>> {
    Ok(Batch { images: batch.images.squeeze(1)?, ..batch })
}
