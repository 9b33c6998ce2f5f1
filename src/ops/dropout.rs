//! Dropout and stochastic depth, from the run's counter-based generator.

use candle_core::{Result, Tensor, bail};

use crate::rng::Stream;

/// Sets each element to 0 with probability `p` and multiplies the others by 1 / (1 − p); one stream per row of dimension
/// 0. For training only.
///
/// # Errors
/// If `p` is not in [0, 1) or the number of streams differs from dimension 0.
pub fn dropout(x: &Tensor, p: f64, streams: &mut [Stream]) -> Result<Tensor> {
    let per_row = x.elem_count() / x.dim(0)?.max(1);
    scaled(x, p, streams, x.dims().to_vec(), per_row)
}

/// Sets whole samples (rows of dimension 0) to 0 with probability `p` and multiplies the others by 1 / (1 − p); one stream
/// per sample. For training only.
///
/// # Errors
/// If `p` is not in [0, 1) or the number of streams differs from dimension 0.
pub fn drop_path(x: &Tensor, p: f64, streams: &mut [Stream]) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[0] = x.dim(0)?;
    scaled(x, p, streams, shape, 1)
}

fn scaled(
    x: &Tensor,
    p: f64,
    streams: &mut [Stream],
    shape: Vec<usize>,
    per_row: usize,
) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("dropout: the probability {p} is not in [0, 1)");
    }
    if streams.len() != x.dim(0)? {
        bail!("dropout: {} streams for {} rows", streams.len(), x.dim(0)?);
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    // 32 bits decide: P(drop) is p to within 2⁻³².
    let threshold = (p * (1u64 << 32) as f64) as u64;
    let kept = (1.0 / (1.0 - p)) as f32;
    let factors: Vec<f32> = streams
        .iter_mut()
        .flat_map(|stream| {
            (0..per_row).map(|_| if u64::from(stream.next_u32()) < threshold { 0.0 } else { kept })
        })
        .collect();
    x.broadcast_mul(&Tensor::from_vec(factors, shape, x.device())?.to_dtype(x.dtype())?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::rng::{Purpose, Rng};

    fn streams(n: u64) -> Vec<Stream> {
        (0..n).map(|sample| Rng::new(5).stream(Purpose::Dropout, sample, 0)).collect()
    }

    #[test]
    fn a_quarter_is_dropped_and_the_mean_stays() -> Result<()> {
        let x = Tensor::ones((4, 10_000), DType::F32, &Device::Cpu)?;
        let y = dropout(&x, 0.25, &mut streams(4))?.flatten_all()?.to_vec1::<f32>()?;
        let dropped = y.iter().filter(|&&v| v == 0.0).count() as f64 / y.len() as f64;
        // Standard deviation of the share: √(0.25 · 0.75 / 40000) = 0.0022.
        assert!((dropped - 0.25).abs() < 0.01, "{dropped}");
        assert!(y.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
        Ok(())
    }

    #[test]
    fn a_sample_drops_the_same_in_any_batch() -> Result<()> {
        let x = Tensor::ones((3, 50), DType::F32, &Device::Cpu)?;
        let together = dropout(&x, 0.5, &mut streams(3))?.get(2)?.to_vec1::<f32>()?;
        let alone =
            dropout(&x.narrow(0, 2, 1)?, 0.5, &mut streams(3)[2..])?.get(0)?.to_vec1::<f32>()?;
        assert_eq!(together, alone);
        Ok(())
    }

    #[test]
    fn drop_path_treats_a_sample_as_one() -> Result<()> {
        let x = Tensor::ones((64, 2, 3), DType::F64, &Device::Cpu)?;
        let rows = drop_path(&x, 0.5, &mut streams(64))?.reshape((64, 6))?.to_vec2::<f64>()?;
        assert!(rows.iter().all(|row| row == &[0.0; 6] || row == &[2.0; 6]));
        assert!(rows.iter().any(|row| row[0] == 0.0) && rows.iter().any(|row| row[0] == 2.0));
        Ok(())
    }

    #[test]
    fn wrong_probabilities_and_stream_counts_are_refused() -> Result<()> {
        let x = Tensor::ones((3, 2), DType::F32, &Device::Cpu)?;
        assert!(dropout(&x, 1.0, &mut streams(3)).is_err());
        assert!(dropout(&x, 0.1, &mut streams(2)).is_err());
        Ok(())
    }
}
