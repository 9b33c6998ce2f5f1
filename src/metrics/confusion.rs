//! Mean intersection over union and the accuracies beside it.

use serde::{Deserialize, Serialize};

use crate::data::LabelMap;
use crate::{Error, Result};

/// `K × K` counts of (label, prediction), summed over all pixels of all images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfusionMatrix {
    classes: usize,
    ignore_index: u16,
    /// Row: label; column: prediction.
    counts: Vec<u64>,
    /// Pixels of each label whose prediction is none of the classes: wrong, but charged to no other class.
    outside: Vec<u64>,
}

/// The scores of a confusion matrix, as fractions; `None` stands for 0/0.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(non_snake_case)]
pub struct SegmentationScores {
    /// Mean of `IoU` over the classes that occur.
    pub mIoU: Option<f64>,
    /// Right pixels over labelled pixels.
    pub aAcc: Option<f64>,
    /// Mean of `Acc` over the classes that are labelled somewhere.
    pub mAcc: Option<f64>,
    /// Intersection over union per class; `None` where a class is neither labelled nor predicted.
    pub IoU: Vec<Option<f64>>,
    /// Right pixels over labelled pixels per class; `None` where a class is not labelled.
    pub Acc: Vec<Option<f64>>,
}

impl ConfusionMatrix {
    /// No pixel yet.
    pub fn new(classes: usize, ignore_index: u32) -> Self {
        let ignore_index = u16::try_from(ignore_index).unwrap_or(u16::MAX);
        Self {
            classes,
            ignore_index,
            counts: vec![0; classes * classes],
            outside: vec![0; classes],
        }
    }

    /// Adds one image. Pixels whose label is the ignore index are left out.
    ///
    /// # Errors
    /// If the sizes differ or a label is neither a class nor the ignore index.
    pub fn add(&mut self, label: &LabelMap, prediction: &LabelMap) -> Result<()> {
        if label.dim() != prediction.dim() {
            let ((h, w), (rows, columns)) = (label.dim(), prediction.dim());
            return Err(Error::usage(format!(
                "the prediction is {columns}×{rows} but the label is {w}×{h}"
            )));
        }
        for (label, prediction) in label.iter().zip(prediction) {
            if *label == self.ignore_index {
                continue;
            }
            let (l, p) = (usize::from(*label), usize::from(*prediction));
            if l >= self.classes {
                return Err(Error::usage(format!(
                    "label value {l} is outside the {} classes",
                    self.classes
                )));
            }
            match p < self.classes {
                true => self.counts[l * self.classes + p] += 1,
                false => self.outside[l] += 1,
            }
        }
        Ok(())
    }

    /// Adds the counts of another matrix, e.g. of another process.
    ///
    /// # Errors
    /// If it has another number of classes.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.classes != other.classes {
            return Err(Error::usage(format!(
                "confusion matrices of {} and {} classes",
                self.classes, other.classes
            )));
        }
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.outside.iter_mut().zip(&other.outside).for_each(|(a, b)| *a += b);
        Ok(())
    }

    /// How many labelled pixels of class `label` were predicted as `prediction`.
    pub fn count(&self, label: usize, prediction: usize) -> u64 {
        self.counts[label * self.classes + prediction]
    }

    /// The scores.
    pub fn scores(&self) -> SegmentationScores {
        let k = self.classes;
        let hit: Vec<u64> = (0..k).map(|c| self.counts[c * k + c]).collect();
        let labelled: Vec<u64> = (0..k)
            .map(|c| self.counts[c * k..(c + 1) * k].iter().sum::<u64>() + self.outside[c])
            .collect();
        let predicted: Vec<u64> =
            (0..k).map(|c| (0..k).map(|l| self.counts[l * k + c]).sum()).collect();
        let iou: Vec<_> =
            (0..k).map(|c| ratio(hit[c], labelled[c] + predicted[c] - hit[c])).collect();
        let acc: Vec<_> = (0..k).map(|c| ratio(hit[c], labelled[c])).collect();
        SegmentationScores {
            mIoU: mean(&iou),
            aAcc: ratio(hit.iter().sum(), labelled.iter().sum()),
            mAcc: mean(&acc),
            IoU: iou,
            Acc: acc,
        }
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn mean(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = values.iter().flatten().copied().collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: [u16; 6]) -> LabelMap {
        LabelMap::from_shape_vec((2, 3), values.to_vec()).unwrap()
    }

    #[test]
    fn scores_by_hand() {
        let mut matrix = ConfusionMatrix::new(4, 255);
        matrix.add(&map([0, 0, 1, 1, 255, 0]), &map([0, 1, 1, 1, 0, 2])).unwrap();
        let scores = matrix.scores();
        // Class 0: 1 hit, 3 labelled, 1 predicted; class 1: 2, 2, 3; class 2: only predicted; class 3: never.
        assert_eq!(scores.IoU, [Some(1.0 / 3.0), Some(2.0 / 3.0), Some(0.0), None]);
        assert_eq!(scores.Acc, [Some(1.0 / 3.0), Some(1.0), None, None]);
        assert_eq!(scores.aAcc, Some(3.0 / 5.0));
        assert!((scores.mIoU.unwrap() - 1.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn images_may_come_one_by_one_or_from_several_processes() {
        let (a, b) = (map([0, 1, 2, 2, 1, 0]), map([0, 1, 1, 2, 0, 0]));
        let mut both = ConfusionMatrix::new(3, 255);
        both.add(&a, &b).unwrap();
        both.add(&b, &a).unwrap();
        let (mut first, mut second) = (ConfusionMatrix::new(3, 255), ConfusionMatrix::new(3, 255));
        first.add(&a, &b).unwrap();
        second.add(&b, &a).unwrap();
        first.merge(&second).unwrap();
        assert_eq!(first, both);
    }

    #[test]
    fn nothing_labelled_gives_nothing() {
        let scores = ConfusionMatrix::new(2, 255).scores();
        assert_eq!((scores.mIoU, scores.aAcc, scores.mAcc), (None, None, None));
    }
}
