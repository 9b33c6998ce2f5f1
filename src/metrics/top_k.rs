//! Classification accuracy.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Counts of images whose class is the best guess, or among the five best.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopK {
    /// Per class: images whose class is among the five best.
    among_five: Vec<u64>,
    /// Row: class; column: best guess.
    confusion: Vec<Vec<u64>>,
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
    /// Images of each class (row) by the best guess (column).
    pub confusion: Vec<Vec<u64>>,
}

impl TopK {
    /// No image yet.
    pub fn new(classes: usize) -> Self {
        Self { among_five: vec![0; classes], confusion: vec![vec![0; classes]; classes] }
    }

    /// Adds one image with the logits of its classes. Of equal logits the lower class comes first.
    ///
    /// # Errors
    /// If there is not one logit per class, one is not a number, or the class is unknown.
    pub fn add(&mut self, class: u32, logits: &[f32]) -> Result<()> {
        let class = class as usize;
        if logits.len() != self.among_five.len() || class >= logits.len() {
            let (classes, given) = (self.among_five.len(), logits.len());
            return Err(Error::usage(format!(
                "class {class} with {given} logits, but there are {classes} classes"
            )));
        }
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(Error::usage("a class logit is not a number"));
        }
        let best = best(logits, 5);
        self.among_five[class] += u64::from(best.contains(&class));
        self.confusion[class][best[0]] += 1;
        Ok(())
    }

    /// Adds the counts of another one, e.g. of another process.
    ///
    /// # Errors
    /// If it has another number of classes.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let (classes, theirs) = (self.among_five.len(), other.among_five.len());
        if classes != theirs {
            return Err(Error::usage(format!("accuracies over {classes} and {theirs} classes")));
        }
        self.among_five.iter_mut().zip(&other.among_five).for_each(|(a, b)| *a += b);
        let (mine, others) =
            (self.confusion.iter_mut().flatten(), other.confusion.iter().flatten());
        mine.zip(others).for_each(|(a, b)| *a += b);
        Ok(())
    }

    /// The accuracies.
    pub fn scores(&self) -> TopKScores {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let images: Vec<u64> = self.confusion.iter().map(|row| row.iter().sum()).collect();
        let right: Vec<u64> = self.confusion.iter().enumerate().map(|(i, row)| row[i]).collect();
        let per_class: Vec<_> =
            right.iter().zip(&images).map(|(right, images)| share(*right, *images)).collect();
        let known: Vec<f64> = per_class.iter().flatten().copied().collect();
        let mean_class =
            (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
        TopKScores {
            top1: share(right.iter().sum(), images.iter().sum()),
            top5: share(self.among_five.iter().sum(), images.iter().sum()),
            mean_class,
            per_class,
            confusion: self.confusion.clone(),
        }
    }
}

/// The `count` classes with the largest values, the largest first; of equal values the lower class comes first.
pub fn best(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(count);
    order
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
        assert_eq!(scores.confusion[1], [0, 0, 0, 0, 0, 0, 1]);
        assert_eq!((scores.confusion[0][0], scores.confusion[6][6]), (1, 1));
    }

    #[test]
    fn wrong_lengths_and_nan_are_refused() {
        let mut top = TopK::new(3);
        assert!(top.add(0, &[0.0; 2]).is_err());
        assert!(top.add(3, &[0.0; 3]).is_err());
        assert!(top.add(0, &[0.0, f32::NAN, 1.0]).is_err());
    }
}
