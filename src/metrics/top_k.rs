//! Classification accuracy.

use serde::Serialize;

use crate::{Error, Result};

/// Counts of images whose class is the best guess, or among the five best.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopK {
    /// Per class: images, best guess right, among the five best.
    counts: Vec<[u64; 3]>,
}

/// Accuracies, as fractions; `None` where there is no image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopKScores {
    /// The best guess is right.
    pub top1: Option<f64>,
    /// The class is among the five best.
    pub top5: Option<f64>,
    /// Mean over the classes of each class's top-1 accuracy.
    pub mean_class: Option<f64>,
    /// Top-1 accuracy per class.
    pub per_class: Vec<Option<f64>>,
}

impl TopK {
    /// No image yet.
    pub fn new(classes: usize) -> Self {
        Self { counts: vec![[0; 3]; classes] }
    }

    /// Adds one image with the logits of its classes. Of equal logits the lower class comes first.
    ///
    /// # Errors
    /// If there is not one logit per class, one is not a number, or the class is unknown.
    pub fn add(&mut self, class: u32, logits: &[f32]) -> Result<()> {
        let class = class as usize;
        if logits.len() != self.counts.len() || class >= logits.len() {
            let (classes, given) = (self.counts.len(), logits.len());
            return Err(Error::usage(format!(
                "class {class} with {given} logits, but there are {classes} classes"
            )));
        }
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::usage("a class logit is not a number"));
        }
        let own = logits[class];
        let better = logits
            .iter()
            .enumerate()
            .filter(|(c, logit)| **logit > own || (**logit == own && *c < class))
            .count();
        let counts = &mut self.counts[class];
        counts[0] += 1;
        counts[1] += u64::from(better < 1);
        counts[2] += u64::from(better < 5);
        Ok(())
    }

    /// The accuracies.
    pub fn scores(&self) -> TopKScores {
        let total = |i: usize| self.counts.iter().map(|counts| counts[i]).sum::<u64>();
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let per_class: Vec<_> =
            self.counts.iter().map(|counts| share(counts[1], counts[0])).collect();
        let known: Vec<f64> = per_class.iter().flatten().copied().collect();
        let mean_class =
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
        TopKScores {
            top1: share(total(1), total(0)),
            top5: share(total(2), total(0)),
            mean_class,
            per_class,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracies_by_hand() {
        let mut top = TopK::new(7);
        let rising = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        top.add(6, &rising).unwrap();
        top.add(2, &rising).unwrap();
        top.add(1, &rising).unwrap();
        // All equal: class 0 comes first.
        top.add(0, &[1.0; 7]).unwrap();
        let scores = top.scores();
        assert_eq!((scores.top1, scores.top5), (Some(0.5), Some(0.75)));
        assert_eq!(scores.per_class[..3], [Some(1.0), Some(0.0), Some(0.0)]);
        assert_eq!(scores.mean_class, Some(0.5));
    }

    #[test]
    fn wrong_lengths_and_nan_are_refused() {
        let mut top = TopK::new(3);
        assert!(top.add(0, &[0.0; 2]).is_err());
        assert!(top.add(3, &[0.0; 3]).is_err());
        assert!(top.add(0, &[0.0, f32::NAN, 1.0]).is_err());
    }
}
