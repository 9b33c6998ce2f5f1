//! Batches that are on the GPU when they are asked for.

use std::sync::mpsc::sync_channel;

use candle_core::{Device, Tensor};

use super::Batch;
use crate::Result;
use crate::ops::Upload;

/// Runs `work` on the batches. For a GPU a thread prepares the next one and copies its images there while `work` computes on the
/// present one; elsewhere they are prepared when they are asked for.
pub fn ahead<T: Send, R>(
    mut batches: impl Iterator<Item = Result<Batch<T>>> + Send,
    device: &Device,
    work: impl FnOnce(&mut dyn Iterator<Item = Result<Batch<T>>>) -> R,
) -> R {
    if !device.is_cuda() {
        return work(&mut batches);
    }
    let mut upload = Upload::to(device);
    in_a_thread(batches, move |images| Ok(upload.send(images)?), work)
}

/// The images of one batch are sent ahead: it waits in the thread until the batch before it is done with.
fn in_a_thread<T: Send, R>(
    batches: impl Iterator<Item = Result<Batch<T>>> + Send,
    mut send: impl FnMut(&Tensor) -> Result<Tensor> + Send,
    work: impl FnOnce(&mut dyn Iterator<Item = Result<Batch<T>>>) -> R,
) -> R {
    std::thread::scope(|scope| {
        let (ready, sent) = sync_channel(0);
        scope.spawn(move || {
            for batch in batches {
                let batch = batch.and_then(|batch| {
                    let images = send(&batch.images)?;
                    Ok(Batch { images, ..batch })
                });
                let failed = batch.is_err();
                // Nobody takes what comes after the end of the work.
                if ready.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        work(&mut sent.into_iter())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn batch(number: u64) -> Result<Batch<u32>> {
        let images = Tensor::full(number as f32, (1, 3, 2, 2), &Device::Cpu)?;
        Ok(Batch { images, targets: vec![0], metas: Vec::new(), samples: vec![number] })
    }

    fn seen(batch: Result<Batch<u32>>) -> Result<(u64, f32)> {
        let batch = batch?;
        Ok((batch.samples[0], batch.images.max_all()?.to_scalar::<f32>()?))
    }

    #[test]
    fn batches_come_in_order_with_their_images_sent() {
        let double = |images: &Tensor| Ok((images * 2.0)?);
        let all: Vec<_> =
            in_a_thread((0..5).map(batch), double, |batches| batches.map(seen).collect());
        let all: Result<Vec<_>> = all.into_iter().collect();
        assert_eq!(all.unwrap(), [(0, 0.0), (1, 2.0), (2, 4.0), (3, 6.0), (4, 8.0)]);
    }

    #[test]
    fn an_endless_stream_ends_with_the_work_and_a_failed_one_with_its_error() {
        let same = |images: &Tensor| Ok(images.clone());
        let last = in_a_thread((0..).map(batch), same, |batches| batches.nth(3));
        assert_eq!(seen(last.unwrap()).unwrap().0, 3);
        let fails = |images: &Tensor| match images.max_all()?.to_scalar::<f32>()? {
            2.0.. => Err(Error::usage("the GPU is full")),
            _ => Ok(images.clone()),
        };
        let all: Vec<_> =
            in_a_thread((0..).map(batch), fails, |batches| batches.map(seen).collect());
        assert_eq!(all.len(), 3);
        assert!(all[2].as_ref().unwrap_err().to_string().contains("the GPU is full"));
    }
}
