//! Which boxes of an image are trained on (detectron2's `subsample_labels`).

use rescatter::rng::Stream;

use super::matcher::Label;

/// The chosen boxes, each list in the order in which it was drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sampled {
    /// At most the wanted share.
    pub positives: Vec<usize>,
    /// As many as fill up the number.
    pub negatives: Vec<usize>,
}

/// Draws `count` boxes without replacement, of which at most a share of `positive_fraction` are positives.
pub fn sample(
    labels: &[Label],
    count: usize,
    positive_fraction: f64,
    stream: &mut Stream,
) -> Sampled {
    let of = |wanted: Label| -> Vec<usize> {
        (0..labels.len()).filter(|&i| labels[i] == wanted).collect()
    };
    let most = (count as f64 * positive_fraction) as usize;
    let positives = draw(of(Label::Positive), most, stream);
    let negatives = draw(of(Label::Negative), count - positives.len(), stream);
    Sampled { positives, negatives }
}

/// The first `count` of a shuffled list.
fn draw(mut list: Vec<usize>, count: usize, stream: &mut Stream) -> Vec<usize> {
    let count = count.min(list.len());
    for i in 0..count {
        let other = i + stream.below(list.len() - i);
        list.swap(i, other);
    }
    list.truncate(count);
    list
}

#[cfg(test)]
mod tests {
    use rescatter::rng::{Purpose, Rng};

    use super::*;

    fn labels() -> Vec<Label> {
        (0..1000)
            .map(|i| match i % 10 {
                0 => Label::Positive,
                1 => Label::Ignored,
                _ => Label::Negative,
            })
            .collect()
    }

    #[test]
    fn numbers_and_shares_are_kept() {
        let stream = |sample| Rng::new(1).stream(Purpose::RoiSampling, sample, 0);
        let found = sample(&labels(), 64, 0.25, &mut stream(0));
        assert_eq!((found.positives.len(), found.negatives.len()), (16, 48));
        assert!(found.positives.iter().all(|i| i % 10 == 0));
        assert!(found.negatives.iter().all(|i| i % 10 > 1));
        let mut all: Vec<_> = found.positives.iter().chain(&found.negatives).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 64);
        assert_eq!(found, sample(&labels(), 64, 0.25, &mut stream(0)));
        assert_ne!(found, sample(&labels(), 64, 0.25, &mut stream(1)));
        // Few positives: negatives fill up; few of both: what there is.
        let few = [Label::Positive, Label::Negative, Label::Negative, Label::Negative];
        let found = sample(&few, 3, 0.5, &mut stream(0));
        assert_eq!((found.positives.len(), found.negatives.len()), (1, 2));
        let found = sample(&few, 100, 0.5, &mut stream(0));
        assert_eq!((found.positives.len(), found.negatives.len()), (1, 3));
    }

    #[test]
    fn every_box_has_the_same_chance() {
        let mut hits = vec![0usize; 20];
        for number in 0..4000 {
            let mut stream = Rng::new(3).stream(Purpose::RoiSampling, number, 0);
            for i in draw((0..20).collect(), 5, &mut stream) {
                hits[i] += 1;
            }
        }
        // 1000 expected, standard deviation 27.
        assert!(hits.iter().all(|&n| (890..1110).contains(&n)), "{hits:?}");
    }
}
