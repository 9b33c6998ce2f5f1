//! Boxes from deltas, differentiable; the host's twin is [`BoxCoder::decode`](crate::boxes::BoxCoder::decode).

use candle_core::{D, Result, Tensor, bail};

use crate::boxes::BoxCoder;

/// The boxes `[N, 4·k]` that the deltas `[N, 4·k]` (k corrections per source) make of the sources `[N, 4]`; formula at
/// [`BoxCoder`]. No gradient where the growth of a side is cut.
///
/// # Errors
/// If the shapes do not fit together.
pub fn decode_boxes(sources: &Tensor, deltas: &Tensor, coder: BoxCoder) -> Result<Tensor> {
    let ((count, four), (rows, width)) = (sources.dims2()?, deltas.dims2()?);
    if four != 4 || rows != count || width % 4 != 0 {
        bail!("decode_boxes: deltas {:?} do not fit boxes {:?}", deltas.dims(), sources.dims());
    }
    let sources = sources.unsqueeze(1)?;
    let deltas = deltas.reshape((count, (), 4))?;
    let size = (sources.narrow(D::Minus1, 2, 2)? - sources.narrow(D::Minus1, 0, 2)?)?;
    let centre = (sources.narrow(D::Minus1, 0, 2)? + (&size * 0.5)?)?;
    let weights = Tensor::new(&coder.weights, deltas.device())?.to_dtype(deltas.dtype())?;
    let deltas = deltas.broadcast_div(&weights)?;
    let shift = deltas.narrow(D::Minus1, 0, 2)?.broadcast_mul(&size)?;
    let limit = f64::from(BoxCoder::largest_log_scale());
    let growth = deltas.narrow(D::Minus1, 2, 2)?.minimum(limit)?.exp()?;
    let half = (growth.broadcast_mul(&size)? * 0.5)?;
    let centre = centre.broadcast_add(&shift)?;
    Tensor::cat(&[(&centre - &half)?, (centre + half)?], D::Minus1)?.reshape((count, width))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::ops::gradcheck::{check, normal};

    const CODER: BoxCoder = BoxCoder { weights: [10.0, 10.0, 5.0, 5.0] };

    fn sources() -> Result<Tensor> {
        Tensor::new(&[[1f64, 2.0, 9.0, 7.0], [0.0, 0.0, 4.0, 30.0]], &Device::Cpu)
    }

    #[test]
    fn the_gradient_is_right() -> Result<()> {
        check(|t| decode_boxes(&sources()?, &t[0], CODER), &[normal(&[2, 12], 1)?])
    }

    #[test]
    fn it_agrees_with_the_host_and_cuts_the_growth() -> Result<()> {
        let deltas = (normal(&[2, 4], 4)? * 20.0)?.to_dtype(DType::F32)?;
        let sources = sources()?.to_dtype(DType::F32)?;
        let found = decode_boxes(&sources, &deltas, CODER)?.to_vec2::<f32>()?;
        let rows = |t: &Tensor| -> Result<Vec<[f32; 4]>> {
            Ok(t.to_vec2::<f32>()?.into_iter().map(|r| [r[0], r[1], r[2], r[3]]).collect())
        };
        for ((source, delta), found) in rows(&sources)?.into_iter().zip(rows(&deltas)?).zip(found) {
            let wanted = CODER.decode(source, delta);
            assert!(
                wanted.iter().zip(&found).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1.0))
            );
        }
        Ok(())
    }
}
