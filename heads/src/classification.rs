//! Classifying pictures with a trained model: the library call behind `rescatter predict`.

use std::path::Path;

use image::RgbImage;
use ndarray::Array2;
use rescatter::backbone::Pass;
use rescatter::data::transforms::{Axis, Geometry, Labels, Pipeline};
use rescatter::metrics::best;
use rescatter::model::Model;
use rescatter::{Error, Result};

use crate::images::{pixels, transformed};
use crate::kept::Kept;
use crate::run::{Trained, Which};
use crate::token_map::worked_grids;
use crate::{ClassifierHead, TaskModel};

/// A classification model with the transforms that its images need.
///
/// ```no_run
/// use rescatter_heads::ClassPredictor;
///
/// let predictor = ClassPredictor::open("runs/cifar")?;
/// let image = rescatter::data::read_image("ship.jpg")?;
/// for (class, probability) in predictor.predict(&image)?.best(5) {
///     println!("{} {probability:.3}", predictor.classes()[class]);
/// }
/// # Ok::<(), rescatter::Error>(())
/// ```
pub struct ClassPredictor {
    model: Model<ClassifierHead>,
    classes: Vec<String>,
    pipeline: Pipeline,
}

/// What an image shows.
#[derive(Debug, Clone)]
pub struct Classified {
    /// One per class, as the head gives them.
    pub logits: Vec<f32>,
    /// One per class; they add up to 1.
    pub probabilities: Vec<f32>,
    /// How many layers worked on the patch of every pixel, 0 where the transforms cut the image; nothing for a model without
    /// dispatchers, or that merges tokens.
    pub token_map: Option<Array2<f32>>,
    /// Share of the tokens that were worked on, overall and per layer.
    pub kept: Kept,
}

impl Classified {
    /// The `count` most probable classes with their probabilities.
    pub fn best(&self, count: usize) -> Vec<(usize, f32)> {
        let order = best(&self.probabilities, count).into_iter();
        order.map(|class| (class, self.probabilities[class])).collect()
    }
}

impl ClassPredictor {
    /// The best checkpoint of a run's folder, or a file that `rescatter weights export` wrote.
    ///
    /// # Errors
    /// If there is none, or it does not classify.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Trained::open(path.as_ref(), Which::Best, &[])?.calibrated()?)
    }

    /// Of a model that was opened before.
    ///
    /// # Errors
    /// If it does not classify.
    pub fn new(trained: Trained) -> Result<Self> {
        let Trained { config, model, classes, .. } = trained;
        let TaskModel::Classification(model) = model else {
            return Err(Error::usage("the model does not classify images"));
        };
        let pipeline = Pipeline::new(config.data.val_transforms()?, Labels::OfTheWhole)?;
        Ok(Self { model, classes, pipeline })
    }

    /// Names of the classes in the order of their numbers.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// How many layers dispatch tokens, and so the largest value of a token map.
    pub fn dispatching_layers(&self) -> usize {
        self.model.backbone.dispatched_parts()
    }

    /// Classifies one image.
    ///
    /// # Errors
    /// If it is too small for the transforms.
    pub fn predict(&self, image: &RgbImage) -> Result<Classified> {
        let done = transformed(&self.pipeline, image)?;
        let input = pixels(&done.image, self.model.params.device())?;
        let features = self.model.backbone.forward(&input, &Pass::Infer)?;
        let (logits, probabilities) = self.model.head.answer(&features)?;
        let mut kept = Kept::default();
        kept.count(&features.kept)?;
        let size = (image.height() as usize, image.width() as usize);
        let worked = worked_grids(&features)?.into_iter().next();
        let token_map = worked.map(|grid| on_disk(&grid, &done.geometry, features.stride_px, size));
        Ok(Classified { logits, probabilities, token_map, kept })
    }
}

/// The value of the patch that every pixel of an image of `size` went into; 0 where it was cut away.
fn on_disk(
    grid: &Array2<f32>,
    geometry: &Geometry,
    patch: f32,
    size: (usize, usize),
) -> Array2<f32> {
    let place = |axis: Axis, pixel: usize, patches: usize| {
        let patch = (axis.apply(pixel as f64 + 0.5) / f64::from(patch)).floor();
        (patch >= 0.0 && patch < patches as f64).then_some(patch as usize)
    };
    Array2::from_shape_fn(size, |(y, x)| {
        let row = place(geometry.y, y, grid.nrows());
        let column = place(geometry.x, x, grid.ncols());
        row.zip(column).map_or(0.0, |at| grid[at])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_map_lies_where_the_crop_was() {
        let grid = ndarray::arr2(&[[1.0, 2.0], [3.0, 4.0]]);
        // 6 × 8 pixels, doubled, the middle 4 × 4 cut out from column 6 and row 4; patches of 2.
        let mut geometry = Geometry::default();
        geometry.scale(2.0, 2.0);
        geometry.shift(6.0, 4.0);
        let map = on_disk(&grid, &geometry, 2.0, (6, 8));
        let seen = ndarray::arr2(&[[1.0, 2.0], [3.0, 4.0]]);
        assert_eq!(map.slice(ndarray::s![2..4, 3..5]), seen);
        assert_eq!(map.sum(), 10.0);
    }
}
