//! The loader: the same stream whatever the number of workers, resumable anywhere, never hanging.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ndarray::Array3;
use rescatter::config::OnError;
use rescatter::data::{Batching, Dataset, Loader, LoaderOptions, Mode, Sample};
use rescatter::head::ImageMeta;
use rescatter::rng::Stream;
use rescatter::world::World;
use rescatter::{Error, Result};

/// Sample i is one pixel with its number and a random draw; some are broken, one panics.
struct Numbers {
    len: usize,
    broken: Vec<usize>,
    panics: Option<usize>,
    on_error: OnError,
    /// Width of sample i.
    width: fn(usize) -> usize,
    portrait: fn(usize) -> bool,
    batching: Batching,
    read: AtomicUsize,
}

fn numbers(len: usize) -> Numbers {
    Numbers {
        len,
        broken: vec![],
        panics: None,
        on_error: OnError::Stop,
        width: |_| 1,
        portrait: |_| false,
        batching: Batching::OneSize,
        read: AtomicUsize::new(0),
    }
}

impl Dataset for Numbers {
    type Target = u32;

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<u32>> {
        self.read.fetch_add(1, Ordering::SeqCst);
        // Later samples are often ready first.
        std::thread::sleep(Duration::from_micros((index * 37 % 5) as u64 * 100));
        assert_ne!(self.panics, Some(index), "sample {index} is a trap");
        if self.broken.contains(&index) {
            return Err(Error::file(self.name(index), "broken"));
        }
        let width = (self.width)(index);
        let image = Array3::from_elem((3, 1, width), stream.uniform() as f32);
        let meta = ImageMeta {
            name: self.name(index),
            original: (1, width),
            input: (1, width),
            flipped: false,
        };
        Ok(Sample { image, target: index as u32, meta })
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn name(&self, index: usize) -> String {
        format!("image_{index}.jpg")
    }

    fn on_error(&self, _index: usize) -> OnError {
        self.on_error
    }

    fn is_portrait(&self, index: usize) -> bool {
        (self.portrait)(index)
    }

    fn batching(&self) -> Batching {
        self.batching
    }
}

fn options(workers: usize) -> LoaderOptions {
    LoaderOptions { batch_size: 3, workers, prefetch: 2, seed: 11, ..Default::default() }
}

/// What identifies a batch: sample numbers, targets and the drawn values.
type Seen = (Vec<u64>, Vec<u32>, Vec<f32>);

fn seen(batch: rescatter::data::Batch<u32>) -> Seen {
    let values = batch.images.flatten_all().unwrap().to_vec1().unwrap();
    (batch.samples, batch.targets, values)
}

fn run(set: Numbers, options: LoaderOptions, batches: usize) -> Vec<Seen> {
    Loader::new(Arc::new(set), options)
        .unwrap()
        .take(batches)
        .map(|batch| seen(batch.unwrap()))
        .collect()
}

#[test]
fn any_number_of_workers_gives_the_same_stream() {
    let alone = run(numbers(10), options(0), 12);
    assert_eq!(alone.len(), 12);
    for workers in [1, 2, 5] {
        assert_eq!(run(numbers(10), options(workers), 12), alone, "{workers} workers");
    }
}

#[test]
fn every_epoch_holds_every_sample_once_in_another_order() {
    let targets: Vec<u32> =
        run(numbers(10), options(2), 10).into_iter().flat_map(|seen| seen.1).collect();
    let epochs: Vec<Vec<u32>> = targets.chunks(10).map(<[u32]>::to_vec).collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2], "{epochs:?}");
}

#[test]
fn a_resumed_stream_goes_on_where_it_stopped_without_replaying() {
    let whole = run(numbers(10), options(2), 12);
    let set = Arc::new(numbers(10));
    let rest =
        Loader::new(set.clone(), LoaderOptions { first_sample: 15, workers: 0, ..options(0) })
            .unwrap();
    let rest: Vec<_> = rest.take(7).map(|batch| seen(batch.unwrap())).collect();
    assert_eq!(rest, whole[5..]);
    assert_eq!(set.read.load(Ordering::SeqCst), 21, "only what was asked for is read");
}

#[test]
fn ranks_share_the_batches_of_one_process() {
    let whole = run(numbers(10), options(0), 8);
    for rank in 0..2 {
        let part =
            run(numbers(10), LoaderOptions { world: World { rank, size: 2 }, ..options(2) }, 4);
        let expected: Vec<_> = whole.iter().skip(rank).step_by(2).cloned().collect();
        assert_eq!(part, expected, "rank {rank}");
    }
}

#[test]
fn prefetching_is_bounded() {
    let set = Arc::new(numbers(1000));
    let mut loader = Loader::new(set.clone(), options(2)).unwrap();
    loader.next().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let read = set.read.load(Ordering::SeqCst);
    assert!(
        (3..=3 + 2 * 3).contains(&read),
        "{read} samples read for one batch of 3 with 2 batches ahead"
    );
}

#[test]
fn dropping_a_loader_ends_its_threads() {
    let set = Arc::new(numbers(1000));
    for taken in [0, 1, 3] {
        let mut loader = Loader::new(set.clone(), options(5)).unwrap();
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        drop(loader);
        assert_eq!(Arc::strong_count(&set), 1, "a thread still holds the set");
    }
}

#[test]
fn an_evaluation_passes_once_in_order() {
    for workers in [0, 3] {
        let all = run(numbers(10), LoaderOptions { mode: Mode::Evaluate, ..options(workers) }, 99);
        let sizes: Vec<_> = all.iter().map(|seen| seen.0.len()).collect();
        assert_eq!(sizes, [3, 3, 3, 1]);
        assert_eq!(
            all.into_iter().flat_map(|seen| seen.1).collect::<Vec<_>>(),
            (0..10).collect::<Vec<_>>()
        );
    }
}

#[test]
fn an_evaluation_cuts_batches_where_sizes_change_and_training_refuses_them() {
    let set = || Numbers { width: |i| 1 + i / 4, ..numbers(10) };
    let all = run(set(), LoaderOptions { mode: Mode::Evaluate, ..options(2) }, 99);
    let targets: Vec<_> = all.into_iter().map(|seen| seen.1).collect();
    assert_eq!(targets, [vec![0, 1, 2], vec![3], vec![4, 5, 6], vec![7], vec![8, 9]]);
    let mut loader = Loader::new(Arc::new(set()), options(2)).unwrap();
    let error = loader.find_map(Result::err).unwrap();
    assert!(error.to_string().contains("must have one size"), "{error}");
    assert!(loader.next().is_none(), "nothing follows an error");
}

#[test]
fn a_padding_set_pads_right_and_bottom_with_the_mean() {
    let set = || Numbers { width: |i| 1 + i % 3, batching: Batching::Padded, ..numbers(6) };
    for mode in [Mode::Evaluate, Mode::Train] {
        let loader = Loader::new(Arc::new(set()), LoaderOptions { mode, ..options(2) }).unwrap();
        for batch in loader.take(2) {
            let batch = batch.unwrap();
            let widest = batch.metas.iter().map(|meta| meta.input.1).max().unwrap();
            assert_eq!(batch.images.dims(), [3, 3, 1, widest]);
            let values = batch.images.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (row, values) in values.chunks(widest).enumerate() {
                let width = batch.metas[row / 3].input.1;
                assert!(values[..width].iter().all(|v| *v > 0.0), "{values:?}");
                assert!(values[width..].iter().all(|v| *v == 0.0), "{values:?}");
            }
        }
    }
}

#[test]
fn batches_hold_portraits_or_landscapes_and_every_sample_once() {
    // 17 samples, every third a portrait; batches of 3 run across the ends of the epochs.
    let set = || Numbers { portrait: |i| i % 3 == 0, ..numbers(17) };
    let whole = run(set(), options(0), 34);
    assert_eq!(run(set(), options(3), 34), whole);
    let order: Vec<u32> = whole.iter().flat_map(|seen| seen.1.clone()).collect();
    let (mut mixed, mut epochs) = (0, Vec::new());
    for batch in &whole {
        let portraits = batch.1.iter().filter(|target| *target % 3 == 0).count();
        mixed += usize::from(portraits > 0 && portraits < 3);
    }
    for epoch in order.chunks_exact(17) {
        let mut sorted = epoch.to_vec();
        sorted.sort();
        assert_eq!(sorted, (0..17).collect::<Vec<_>>());
        epochs.push(epoch.to_vec());
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 6, "every epoch has its own order");
    // At most the batch that crosses an epoch's end and one of leftovers; unsorted, most of them would be mixed.
    assert!(mixed <= 12, "{mixed} of 34 batches are mixed");
    let mut resumed =
        Loader::new(Arc::new(set()), LoaderOptions { first_sample: 3 * 13, ..options(2) }).unwrap();
    assert_eq!(seen(resumed.next().unwrap().unwrap()), whole[13]);
}

#[test]
fn errors_and_panics_come_out_with_the_file() {
    for workers in [0, 2] {
        let broken = Numbers { broken: vec![4], ..numbers(10) };
        let error =
            Loader::new(Arc::new(broken), options(workers)).unwrap().find_map(Result::err).unwrap();
        assert_eq!(error.to_string(), "image_4.jpg: broken");
        let trap = Numbers { panics: Some(7), on_error: OnError::Skip, ..numbers(10) };
        let error =
            Loader::new(Arc::new(trap), options(workers)).unwrap().find_map(Result::err).unwrap();
        assert!(error.to_string().starts_with("image_7.jpg: reading it panicked"), "{error}");
        assert!(error.to_string().contains("sample 7 is a trap"), "{error}");
    }
}

#[test]
fn skipped_samples_are_replaced_by_the_next_and_counted() {
    let set = || Numbers { broken: vec![4, 5], on_error: OnError::Skip, ..numbers(10) };
    let whole = run(set(), options(0), 10);
    let mut loader = Loader::new(Arc::new(set()), options(3)).unwrap();
    let with_workers: Vec<_> = loader.by_ref().take(10).map(|batch| seen(batch.unwrap())).collect();
    assert_eq!(with_workers, whole);
    // 30 samples are three epochs. Samples 4 and 5 both become 6: it is seen three times an epoch.
    let sixes = whole.iter().flat_map(|seen| &seen.1).filter(|target| **target == 6).count();
    assert_eq!(sixes, 9);
    let report: Vec<_> =
        loader.skipped().iter().map(|(message, times)| (message.as_str(), *times)).collect();
    assert_eq!(report, [("image_4.jpg: broken", 3), ("image_5.jpg: broken", 6)]);
}

#[test]
fn an_evaluation_leaves_broken_samples_out() {
    let set = Numbers { broken: vec![4, 9], on_error: OnError::Skip, ..numbers(10) };
    let mut loader =
        Loader::new(Arc::new(set), LoaderOptions { mode: Mode::Evaluate, ..options(2) }).unwrap();
    let targets: Vec<_> = loader.by_ref().flat_map(|batch| seen(batch.unwrap()).1).collect();
    assert_eq!(targets, [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(loader.skipped().len(), 2);
}

#[test]
fn a_set_without_a_good_sample_ends_the_run() {
    let set = Numbers { broken: (0..4).collect(), on_error: OnError::Skip, ..numbers(4) };
    let error = Loader::new(Arc::new(set), options(2)).unwrap().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("all 4 samples are broken"), "{error}");
    assert!(Loader::new(Arc::new(numbers(0)), options(2)).is_err());
    assert!(
        Loader::new(Arc::new(numbers(3)), LoaderOptions { batch_size: 0, ..options(2) }).is_err()
    );
}

#[test]
fn waiting_is_measured() {
    let mut loader = Loader::new(Arc::new(numbers(100)), options(0)).unwrap();
    loader.by_ref().take(5).for_each(|batch| drop(batch.unwrap()));
    assert!(loader.waited() > Duration::from_micros(500), "{:?}", loader.waited());
    assert_eq!(loader.position(), 15);
}
