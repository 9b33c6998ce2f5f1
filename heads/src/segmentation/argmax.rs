//! The class of every pixel from scores of another size, without the resized scores.

use ndarray::{ArrayView3, s};
use rayon::prelude::*;
use rescatter::data::LabelMap;

/// Where a resized row or column reads: two neighbours and the share of the second.
#[derive(Clone, Copy)]
struct Between {
    low: usize,
    high: usize,
    share: f32,
}

/// Output `j` of `m` among `n` pixels, bilinear with `align_corners` false.
fn between(j: usize, n: usize, m: usize) -> Between {
    let source = ((j as f64 + 0.5) * n as f64 / m as f64 - 0.5).max(0.0);
    let low = (source as usize).min(n - 1);
    Between { low, high: (low + 1).min(n - 1), share: (source - low as f64) as f32 }
}

/// `scores` `[K, h, w]`, resized bilinearly to `size` → the class with the highest score of every pixel; the first of equals.
pub(super) fn argmax_resized(scores: ArrayView3<f32>, size: (usize, usize)) -> LabelMap {
    let (_, h, w) = scores.dim();
    let columns: Vec<Between> = (0..size.1).map(|x| between(x, w, size.1)).collect();
    let mut labels = LabelMap::zeros(size);
    let rows: Vec<_> = labels.outer_iter_mut().enumerate().collect();
    rows.into_par_iter().for_each(|(y, mut row)| {
        let at = between(y, h, size.0);
        let mut best = vec![f32::NEG_INFINITY; size.1];
        let mut line = vec![0f32; w];
        for (class, map) in scores.outer_iter().enumerate() {
            let (low, high) = (map.slice(s![at.low, ..]), map.slice(s![at.high, ..]));
            for (value, (a, b)) in line.iter_mut().zip(low.iter().zip(high)) {
                *value = a + (b - a) * at.share;
            }
            for ((column, best), label) in columns.iter().zip(&mut best).zip(row.iter_mut()) {
                let score =
                    line[column.low] + (line[column.high] - line[column.low]) * column.share;
                if score > *best {
                    (*best, *label) = (score, class as u16);
                }
            }
        }
    });
    labels
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use ndarray::Array3;
    use rescatter::rng::{Purpose, Rng};

    use super::*;

    #[test]
    fn it_equals_the_argmax_of_the_resized_scores() -> candle_core::Result<()> {
        let mut stream = Rng::new(1).stream(Purpose::Synthetic, 0, 0);
        for ((h, w), size) in
            [((5, 7), (11, 4)), ((4, 4), (4, 4)), ((1, 3), (8, 9)), ((6, 5), (3, 2))]
        {
            let scores = Array3::from_shape_simple_fn((6, h, w), || stream.normal() as f32);
            let labels = argmax_resized(scores.view(), size);
            let tensor =
                Tensor::from_iter(scores.iter().copied(), &Device::Cpu)?.reshape((1, 6, h, w))?;
            let resized = rescatter::ops::resize_bilinear(&tensor, size)?;
            let expected = resized.argmax(1)?.flatten_all()?.to_vec1::<u32>()?;
            let best = resized.max(1)?.flatten_all()?.to_vec1::<f32>()?;
            let chosen = Tensor::from_iter(labels.iter().map(|&l| u32::from(l)), &Device::Cpu)?;
            let chosen = resized
                .gather(&chosen.reshape((1, 1, size.0, size.1))?, 1)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            assert!(best.iter().zip(chosen).all(|(a, b)| (a - b).abs() < 1e-5));
            let same = labels.iter().zip(&expected).filter(|&(&a, &b)| u32::from(a) == b).count();
            assert!(same * 100 >= expected.len() * 99, "{same} of {}", expected.len());
        }
        Ok(())
    }
}
