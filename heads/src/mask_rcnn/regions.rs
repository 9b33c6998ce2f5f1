//! The regions that the second stage is trained on.

use rescatter::boxes::BoxCoder;
use rescatter::data::Instances;
use rescatter::head::StepContext;
use rescatter::ops::Roi;
use rescatter::rng::Purpose;

use super::box_head::{IGNORED, RegionTargets};
use super::config::RoiConfig;
use super::matcher::{Label, Matcher, Matches, ignore_crowds};
use super::pooler::RoiPooler;
use super::proposals::ProposalSet;
use super::sampler::sample;

/// Layer of the random streams that sample regions.
const STREAM: u16 = 1;

/// Regions of a batch with what they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Regions {
    /// Where.
    pub rois: Vec<Roi>,
    /// 0 background, 1 + class, or [`IGNORED`].
    pub labels: Vec<u32>,
    /// The object of the region's image that it belongs to; without meaning for the background.
    pub matched: Vec<usize>,
}

impl Regions {
    /// Samples from the proposals of every image and its objects themselves.
    pub fn sampled(
        config: &RoiConfig,
        iou: f32,
        proposals: &[ProposalSet],
        objects: &[Instances],
        ctx: &StepContext,
    ) -> Self {
        let mut all = Self::default();
        for (image, (proposals, objects)) in proposals.iter().zip(objects).enumerate() {
            let boxes: Vec<[f32; 4]> =
                proposals.boxes.iter().chain(&objects.boxes).copied().collect();
            let found = assigned(iou, &boxes, objects);
            let number = ctx.samples.get(image).copied().unwrap_or(image as u64);
            let mut stream = ctx.rng.stream(Purpose::RoiSampling, number, STREAM);
            let chosen =
                sample(&found.labels, config.sampled, config.positive_fraction, &mut stream);
            for i in chosen.positives.into_iter().chain(chosen.negatives) {
                all.push(Roi { image, bounds: boxes[i] }, (&found, i), objects);
            }
        }
        all
    }

    /// All of `rois`, matched anew.
    pub fn matched(iou: f32, rois: &[Roi], objects: &[Instances]) -> Self {
        let mut all = Self::default();
        for (image, objects) in objects.iter().enumerate() {
            let own: Vec<Roi> = rois.iter().filter(|roi| roi.image == image).copied().collect();
            let boxes: Vec<[f32; 4]> = own.iter().map(|roi| roi.bounds).collect();
            let found = assigned(iou, &boxes, objects);
            for (i, roi) in own.into_iter().enumerate() {
                all.push(roi, (&found, i), objects);
            }
        }
        all
    }

    fn push(&mut self, roi: Roi, (found, i): (&Matches, usize), objects: &Instances) {
        let matched = found.matched[i];
        self.rois.push(roi);
        self.matched.push(matched);
        self.labels.push(match found.labels[i] {
            Label::Positive => 1 + objects.classes[matched],
            Label::Negative => 0,
            Label::Ignored => IGNORED,
        });
    }

    /// The same regions in an order in which `pooler` copies nothing.
    #[must_use]
    pub fn by_level(self, pooler: &RoiPooler) -> Self {
        self.picked(&pooler.by_level(&self.rois))
    }

    /// Those of the given numbers.
    #[must_use]
    pub fn picked(&self, numbers: &[usize]) -> Self {
        Self {
            rois: numbers.iter().map(|&i| self.rois[i]).collect(),
            labels: numbers.iter().map(|&i| self.labels[i]).collect(),
            matched: numbers.iter().map(|&i| self.matched[i]).collect(),
        }
    }

    /// The numbers of those that belong to an object.
    pub fn positives(&self) -> Vec<usize> {
        let positive = |&i: &usize| self.labels[i] != 0 && self.labels[i] != IGNORED;
        (0..self.rois.len()).filter(positive).collect()
    }

    /// What a box head with the deltas of `coder` is trained towards.
    pub fn targets(&self, coder: BoxCoder, objects: &[Instances]) -> RegionTargets {
        let delta = |i: usize| {
            let Roi { image, bounds } = self.rois[i];
            (i, coder.encode(bounds, objects[image].boxes[self.matched[i]]))
        };
        RegionTargets {
            labels: self.labels.clone(),
            positives: self.positives().into_iter().map(delta).collect(),
        }
    }
}

fn assigned(iou: f32, boxes: &[[f32; 4]], objects: &Instances) -> Matches {
    let mut found = Matcher::regions(iou).assign(&objects.boxes, boxes);
    ignore_crowds(&objects.crowds, boxes, &mut found.labels);
    found
}

#[cfg(test)]
mod tests {
    use rescatter::rng::Rng;
    use rescatter::world::World;

    use super::*;

    /// One object, one crowd; proposals on the object, in the crowd and elsewhere.
    fn scene() -> (ProposalSet, Instances) {
        let objects = Instances {
            size: (100, 100),
            boxes: vec![[10.0, 10.0, 30.0, 30.0]],
            classes: vec![4],
            masks: Vec::new(),
            crowds: vec![[50.0, 50.0, 90.0, 90.0]],
        };
        let near = (0..6).map(|i| [10.0, 10.0, 30.0, 28.0 + i as f32]);
        let crowded = (0..20).map(|i| [52.0 + i as f32, 52.0, 72.0 + i as f32, 80.0]);
        let empty = (0..40).map(|i| [i as f32, 60.0, 20.0 + i as f32, 80.0]);
        let boxes: Vec<[f32; 4]> = near.chain(crowded).chain(empty).collect();
        (ProposalSet { logits: vec![0.0; boxes.len()], boxes }, objects)
    }

    fn sampled(samples: &[u64]) -> Regions {
        let config = RoiConfig { sampled: 32, ..RoiConfig::default() };
        let (proposals, objects) = scene();
        let (rng, world) = (Rng::new(5), World::SINGLE);
        let ctx = StepContext {
            training: true,
            update_stats: true,
            rng: &rng,
            step: 0,
            progress: 0.0,
            samples,
            world: &world,
        };
        Regions::sampled(&config, 0.5, &[proposals], &[objects], &ctx)
    }

    #[test]
    fn crowds_are_never_trained_on_and_objects_are_proposals_too() {
        let found = sampled(&[7]);
        // 6 proposals and the object itself are positives; the share allows 8.
        assert_eq!((found.rois.len(), found.positives().len()), (32, 7));
        assert!(found.positives().iter().all(|&i| found.labels[i] == 5));
        assert!(found.rois.iter().any(|roi| roi.bounds == [10.0, 10.0, 30.0, 30.0]));
        let crowd = [50.0, 50.0, 90.0, 90.0];
        let inside = |roi: &Roi| rescatter::boxes::share_inside(roi.bounds, crowd) > 0.5;
        assert!(!found.rois.iter().any(inside));
        // The same sample draws the same regions, another one others.
        assert_eq!(found, sampled(&[7]));
        assert_ne!(found, sampled(&[8]));
    }

    #[test]
    fn matching_anew_ignores_crowds_and_keeps_all() {
        let (proposals, objects) = scene();
        let rois: Vec<Roi> =
            proposals.boxes.iter().map(|&bounds| Roi { image: 0, bounds }).collect();
        let found = Regions::matched(0.95, &rois, &[objects]);
        assert_eq!(found.rois, rois);
        // 18 to 23 rows against 20: those of 19, 20 and 21 reach 0.95.
        assert_eq!(found.positives(), [1, 2, 3]);
        assert_eq!(found.labels.iter().filter(|&&label| label == IGNORED).count(), 20);
    }
}
