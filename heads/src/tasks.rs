//! All answers of a model to an image in one pass: those of the tasks that it was extended by, and of the first.

use std::path::Path;

use image::RgbImage;
use rescatter::Error;
use rescatter::Result;
use rescatter::backbone::{Features, Pass};
use rescatter::data::LabelMap;
use rescatter::data::transforms::{Labels, Pipeline};
use rescatter::head::Head;
use rescatter::model::Model;

use crate::extension::{AnyHead, EarlierHead};
use crate::images::input;
use crate::run::{Trained, Which};
use crate::{ClassifierHead, TaskModel};

/// A classifier with the tasks that it was added to, if there are any.
pub struct TasksPredictor {
    model: Model<ClassifierHead>,
    classes: Vec<String>,
    earlier: Vec<EarlierHead>,
    pipeline: Pipeline,
}

/// What a task says of one image.
#[derive(Debug, Clone)]
pub enum Answer {
    /// A score per class.
    Classification {
        /// As the head gives them.
        logits: Vec<f32>,
        /// softmax(logits).
        probabilities: Vec<f32>,
    },
    /// The class of every pixel, at the image's own size.
    Segmentation(LabelMap),
}

impl TasksPredictor {
    /// The best checkpoint of a run's folder, or an exported file.
    ///
    /// # Errors
    /// If there is none, or its last task is not a classification.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Trained::open(path.as_ref(), Which::Best, &[])?.calibrated()?)
    }

    /// Of a model that was opened before. Every task gets the image as the last task's validation set has it.
    ///
    /// # Errors
    /// If its last task is not a classification, or that set cuts images of which an earlier task names every pixel.
    pub fn new(trained: Trained) -> Result<Self> {
        let Trained { config, model, classes, earlier, .. } = trained;
        let TaskModel::Classification(model) = model else {
            return Err(Error::usage("the model does not classify"));
        };
        let transforms = config.data.val_transforms()?;
        let dense = earlier.iter().any(|task| matches!(task.head, AnyHead::Segmentation(_)));
        let labels = if dense { Labels::AsOnDisk } else { Labels::OfTheWhole };
        let pipeline = Pipeline::new(transforms, labels)?;
        Ok(Self { model, classes, earlier, pipeline })
    }

    /// The names of the classes of every task, the first task first.
    pub fn classes(&self) -> Vec<&[String]> {
        let earlier = self.earlier.iter().map(|earlier| earlier.task.classes.as_slice());
        earlier.chain([self.classes.as_slice()]).collect()
    }

    /// The answer of every task, the first task first, from one pass of the backbone.
    ///
    /// # Errors
    /// If the image is too small for the transforms.
    pub fn predict(&self, image: &RgbImage) -> Result<Vec<Answer>> {
        let (input, meta) = input(&self.pipeline, image)?;
        let input = input.to_device(self.model.params.device())?;
        let features = self.model.backbone.forward(&input, &Pass::Infer)?;
        let meta = [meta];
        let mut answers = Vec::with_capacity(self.earlier.len() + 1);
        for earlier in &self.earlier {
            answers.push(match &earlier.head {
                AnyHead::Classification(head) => classification(head, &features)?,
                AnyHead::Segmentation(head) => {
                    let scores = head.predict(&features, &meta)?.swap_remove(0);
                    Answer::Segmentation(scores.labels()?)
                }
            });
        }
        answers.push(classification(&self.model.head, &features)?);
        Ok(answers)
    }
}

fn classification(head: &ClassifierHead, features: &Features) -> Result<Answer> {
    let (logits, probabilities) = head.answer(features)?;
    Ok(Answer::Classification { logits, probabilities })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rescatter::config::load;

    use super::*;
    use crate::Config;

    #[test]
    fn classifiers_take_the_middle_of_an_image() {
        let text = "
task: classification
backbone: { embed_dim: 16, depth: 1, num_heads: 2, patch_size: 8, pos_embed_grid: [4, 4] }
head: { classifier: {} }
data:
  train: { image_folder: { root: none }, transforms: [{ normalize: {} }] }
  val: { image_folder: { root: none }, transforms: [{ center_crop: { size: [32, 32] } }, { normalize: {} }] }
train: { iterations: 1, batch_size: 1 }
";
        let config: Config = load::parse(text, "a.yaml".as_ref(), &[]).unwrap();
        let model = TaskModel::new(&config, 2, &Device::Cpu).unwrap();
        let classes = vec!["a".into(), "b".into()];
        let trained = Trained { config, model, classes, earlier: Vec::new(), step: 0 };
        let answers = TasksPredictor::new(trained).unwrap().predict(&RgbImage::new(40, 36));
        assert_eq!(answers.unwrap().len(), 1);
    }
}
