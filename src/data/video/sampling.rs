//! Which frames of a video make a clip: places `0..n` in a video of n frames.

use crate::config::SamplingConfig;
use crate::rng::Stream;

/// One clip of `frames` places, drawn at random.
pub(super) fn random_clip(
    sampling: SamplingConfig,
    frames: usize,
    length: usize,
    stream: &mut Stream,
) -> Vec<usize> {
    match sampling {
        SamplingConfig::Dense { rate } => match slack(rate, frames, length) {
            Some(slack) => every(rate, frames, stream.below(slack + 1)),
            None => evenly(frames, length),
        },
        SamplingConfig::Uniform {} => segments(frames, length, || stream.uniform()),
    }
}

/// `clips` clips of `frames` places each, the same every time.
pub(super) fn fixed_clips(
    sampling: SamplingConfig,
    frames: usize,
    length: usize,
    clips: usize,
) -> Vec<Vec<usize>> {
    let clip = |number: usize| match sampling {
        SamplingConfig::Dense { rate } => match slack(rate, frames, length) {
            Some(slack) if clips == 1 => every(rate, frames, slack / 2),
            Some(slack) => {
                let start = (slack * number) as f64 / (clips - 1) as f64;
                every(rate, frames, start.round() as usize)
            }
            None => evenly(frames, length),
        },
        SamplingConfig::Uniform {} => {
            segments(frames, length, || (number as f64 + 0.5) / clips as f64)
        }
    };
    (0..clips).map(clip).collect()
}

/// `count` clips one after the other: dense ones spread over the video, as many as fit by default; uniform ones each of an
/// equal part of it, one by default.
pub(super) fn windows(
    sampling: SamplingConfig,
    frames: usize,
    length: usize,
    count: Option<usize>,
) -> Vec<Vec<usize>> {
    match sampling {
        SamplingConfig::Dense { rate } => {
            let count = count.unwrap_or(length / (frames * rate)).max(1);
            fixed_clips(sampling, frames, length, count)
        }
        SamplingConfig::Uniform {} => {
            let count = count.unwrap_or(1).clamp(1, length);
            let part = |number: usize| {
                let (start, end) = (number * length / count, (number + 1) * length / count);
                let middles = segments(frames, end - start, || 0.5);
                middles.into_iter().map(|place| start + place).collect()
            };
            (0..count).map(part).collect()
        }
    }
}

/// How far a clip can move; `None` if the video is shorter than the clip.
fn slack(rate: usize, frames: usize, length: usize) -> Option<usize> {
    length.checked_sub((frames - 1) * rate + 1)
}

fn every(rate: usize, frames: usize, start: usize) -> Vec<usize> {
    (0..frames).map(|i| start + i * rate).collect()
}

/// From the first to the last frame.
fn evenly(frames: usize, length: usize) -> Vec<usize> {
    let step = (length - 1) as f64 / (frames - 1).max(1) as f64;
    (0..frames).map(|i| (i as f64 * step).round() as usize).collect()
}

/// One place of each segment, `within` (0 to 1) says where.
fn segments(frames: usize, length: usize, mut within: impl FnMut() -> f64) -> Vec<usize> {
    let width = length as f64 / frames as f64;
    (0..frames).map(|i| (((i as f64 + within()) * width) as usize).min(length - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Rng};

    const UNIFORM: SamplingConfig = SamplingConfig::Uniform {};
    const DENSE: SamplingConfig = SamplingConfig::Dense { rate: 16 };

    #[test]
    fn dense_clips_are_spread_over_the_video() {
        // 8 frames at rate 16 reach over 113; of 300 that leaves a slack of 187.
        let clips = fixed_clips(DENSE, 8, 300, 3);
        assert_eq!(clips[0], [0, 16, 32, 48, 64, 80, 96, 112]);
        assert_eq!((clips[1][0], clips[2][7]), (94, 299));
        assert_eq!(fixed_clips(DENSE, 8, 300, 1)[0][0], 93);
    }

    #[test]
    fn a_short_video_is_sampled_evenly() {
        let even = [0, 3, 7, 10, 13, 16, 20, 23];
        assert_eq!(fixed_clips(DENSE, 8, 24, 1), [even]);
        let mut stream = Rng::new(0).stream(Purpose::Augment, 0, 0);
        assert_eq!(random_clip(DENSE, 8, 24, &mut stream), even);
        assert_eq!(fixed_clips(DENSE, 8, 1, 1), [[0; 8]]);
        assert_eq!(fixed_clips(UNIFORM, 4, 2, 1), [[0, 0, 1, 1]]);
        assert_eq!(fixed_clips(DENSE, 1, 1, 1), [[0]]);
    }

    #[test]
    fn segments_give_their_middle_or_a_random_place() {
        assert_eq!(fixed_clips(UNIFORM, 8, 24, 1), [[1, 4, 7, 10, 13, 16, 19, 22]]);
        assert_eq!(fixed_clips(UNIFORM, 2, 12, 3), [[1, 7], [3, 9], [5, 11]]);
        let mut seen = [false; 24];
        for sample in 0..200 {
            let mut stream = Rng::new(1).stream(Purpose::Augment, sample, 0);
            for (i, place) in random_clip(UNIFORM, 8, 24, &mut stream).into_iter().enumerate() {
                assert_eq!(place / 3, i, "each place lies in its segment");
                seen[place] = true;
            }
        }
        assert_eq!(seen, [true; 24]);
    }

    #[test]
    fn windows_follow_each_other() {
        assert_eq!(windows(UNIFORM, 2, 12, Some(3)), [[1, 3], [5, 7], [9, 11]]);
        assert_eq!(windows(UNIFORM, 2, 12, None), [[3, 9]]);
        let dense = windows(DENSE, 8, 300, None);
        assert_eq!((dense.len(), dense[0][0], dense[1][7]), (2, 0, 299));
        assert_eq!(windows(DENSE, 8, 24, None).len(), 1);
    }

    #[test]
    fn random_dense_clips_start_anywhere() {
        let starts: Vec<usize> = (0..400)
            .map(|sample| {
                let mut stream = Rng::new(1).stream(Purpose::Augment, sample, 0);
                random_clip(DENSE, 8, 116, &mut stream)[0]
            })
            .collect();
        assert_eq!((starts.iter().min(), starts.iter().max()), (Some(&0), Some(&3)));
    }
}
