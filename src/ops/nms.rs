//! Greedy non-maximum suppression of many lists of boxes at once.

use candle_core::{Device, Result};
use rayon::prelude::*;

use super::gpu;
use crate::boxes::survivors;

/// Which boxes of each list (best first) no better one that stays overlaps by more than `threshold`; lists do not touch each
/// other. The definition is that of [`boxes::nms`](crate::boxes::nms), and `device` finds the same: a GPU with all lists at once.
///
/// # Errors
/// If the GPU fails.
pub fn nms(lists: &[&[[f32; 4]]], threshold: f32, device: &Device) -> Result<Vec<Vec<bool>>> {
    if gpu::runs_on(device) {
        return gpu::nms(lists, threshold, device);
    }
    let of_list = |list: &&[[f32; 4]]| survivors(list.iter().copied(), threshold);
    Ok(lists.par_iter().map(of_list).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::{Result, Tensor};

    use super::*;
    use crate::boxes::{batched_nms, by_falling_score};
    use crate::ops::gpu::emulator::assert_kernel;
    use crate::rng::{Purpose, Rng};

    /// Groups of several words, of one, of one box and of none; a third of the boxes stands on whole pixels, so that many overlap
    /// by exactly the threshold or are the same box, and there are few different scores.
    #[test]
    fn the_gpu_suppresses_as_the_host_does() -> Result<()> {
        const COUNT: usize = 300;
        let mut stream = Rng::new(3).stream(Purpose::Synthetic, 0, 0);
        let mut below = |n: f64| (stream.uniform() * n) as f32;
        let values: Vec<f32> = (0..COUNT)
            .flat_map(|i| {
                let place = [below(12.0), below(12.0), 1.0 + below(8.0), 1.0 + below(8.0)];
                let [x, y, w, h] = if i % 3 == 0 { place.map(f32::floor) } else { place };
                [x, y, x + w, y + h]
            })
            .collect();
        let scores: Vec<f32> = (0..COUNT).map(|_| below(9.0).floor()).collect();
        let groups: Vec<u32> =
            (0..COUNT as u32).map(|i| if i == 7 { 1 } else { 2 * (i % 4).min(1) }).collect();
        let boxes = [Tensor::from_vec(values, (COUNT, 4), &Device::Cpu)?];
        let order = by_falling_score(&scores);
        let members: Vec<Vec<usize>> = (0..4)
            .map(|group| order.iter().copied().filter(|&i| groups[i] == group).collect())
            .collect();
        for threshold in [0.25, 0.5, 0.7] {
            assert_kernel("nms_sweep", 1e-6, &boxes, |t| {
                let rows = t[0].to_vec2::<f32>()?;
                let list: Vec<[f32; 4]> = rows.iter().map(|r| [r[0], r[1], r[2], r[3]]).collect();
                let lists: Vec<Vec<[f32; 4]>> =
                    members.iter().map(|group| group.iter().map(|&i| list[i]).collect()).collect();
                let lists: Vec<&[[f32; 4]]> = lists.iter().map(Vec::as_slice).collect();
                let alive = nms(&lists, threshold, t[0].device())?.concat();
                let mut kept = [0f32; COUNT];
                members.concat().iter().zip(alive).for_each(|(&i, is)| kept[i] = f32::from(is));
                let wanted = batched_nms(&list, &scores, &groups, threshold);
                assert!(wanted.len() > 10 && wanted.len() < COUNT - 10);
                let found = order.iter().copied().filter(|&i| kept[i] == 1.0);
                assert_eq!(found.collect::<Vec<_>>(), wanted);
                // The input takes part, so that it has a gradient to compare.
                t[0].broadcast_add(&Tensor::new(&kept, t[0].device())?.unsqueeze(1)?)
            })?;
        }
        Ok(())
    }
}
