//! Samples in order, read ahead by worker threads.
//!
//! What a sample is depends only on (seed, sample number): number n lies in epoch n / len, at place n mod len of that
//! epoch's permutation, and its augmentation draws from the stream of n. Workers take numbers in turn and the results are
//! handed out in the order of the numbers, so the stream of batches is the same for any number of workers, and a run
//! resumes at any number without replaying anything.
//!
//! Training batches hold portraits or landscapes where the set tells them apart: each epoch's permutation is rearranged so
//! that whole batches are of one kind, as far as the numbers allow.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use ndarray::{Array3, ArrayViewMut3, s};

use super::{Batch, Batching, Dataset, Sample};
use crate::config::OnError;
use crate::head::World;
use crate::rng::{Purpose, Rng};
use crate::{Error, Result};

/// Order and end of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Endless, shuffled anew in every epoch; batches run across the ends of epochs and are always full.
    Train,
    /// Once, in the set's order. A batch ends early at the end, and where the next image has another size in a set that does
    /// not pad.
    Evaluate,
}

/// How samples are ordered, stacked and read ahead.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Images per batch.
    pub batch_size: usize,
    /// Threads that read and transform; 0 reads in the caller's thread.
    pub workers: usize,
    /// Batches that are read ahead at most.
    pub prefetch: usize,
    /// Seed of order and augmentation.
    pub seed: u64,
    /// The first sample's number: where a resumed run goes on.
    pub first_sample: u64,
    /// Order and end.
    pub mode: Mode,
    /// This process and how many there are: consecutive batches go to consecutive ranks.
    pub world: World,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            batch_size: 1,
            workers: 2,
            prefetch: 2,
            seed: 0,
            first_sample: 0,
            mode: Mode::Train,
            world: World::SINGLE,
        }
    }
}

/// The samples that were left out, by message, with how often each was met.
pub type Skipped = BTreeMap<String, u64>;

/// An iterator over batches.
pub struct Loader<T: Send + 'static> {
    plan: Arc<Plan<T>>,
    queue: Arc<Queue<T>>,
    workers: Vec<JoinHandle<()>>,
    /// The ticket that is handed out next.
    next: u64,
    /// Read, but of another size than the batch before it.
    pending: Option<(u64, Sample<T>)>,
    skipped: Skipped,
    /// The epoch that the last sample belongs to, and how many were left out in it.
    epoch: (u64, u64),
    waited: Duration,
    failed: bool,
}

impl<T: Send + 'static> Loader<T> {
    /// Starts the workers.
    ///
    /// # Errors
    /// If the set or a batch is empty, or a thread cannot be started.
    pub fn new(set: Arc<dyn Dataset<Target = T>>, options: LoaderOptions) -> Result<Self> {
        if options.batch_size == 0 {
            return Err(Error::usage("a batch needs at least one image")
                .with_hint("set `batch_size` to 1 or more"));
        }
        if set.is_empty() {
            return Err(Error::usage("the data set has no samples"));
        }
        let ahead = (options.prefetch * options.batch_size).max(options.workers).max(1) as u64;
        let workers = options.workers;
        let plan =
            Arc::new(Plan { set, rng: Rng::new(options.seed), options, orders: Mutex::default() });
        let queue = Arc::new(Queue::new(ahead));
        let mut loader = Self {
            plan,
            queue,
            workers: Vec::new(),
            next: 0,
            pending: None,
            skipped: Skipped::new(),
            epoch: (0, 0),
            waited: Duration::ZERO,
            failed: false,
        };
        for number in 0..workers {
            let (plan, queue) = (loader.plan.clone(), loader.queue.clone());
            let thread = std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || work(&plan, &queue));
            loader.workers.push(thread.map_err(|e| Error::io("start", "a loader thread", e))?);
        }
        Ok(loader)
    }

    /// The samples that were left out so far.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// How long the caller has waited for data so far.
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The number of the sample that comes first in the next batch (of this process).
    pub fn position(&self) -> u64 {
        self.pending.as_ref().map_or_else(|| self.plan.sample(self.next), |(sample, _)| *sample)
    }

    fn next_batch(&mut self) -> Option<Result<Batch<T>>> {
        let size = self.plan.options.batch_size;
        let mut items: Vec<(u64, Sample<T>)> = Vec::with_capacity(size);
        while items.len() < size {
            let Some(item) = self.pending.take().map(Ok).or_else(|| self.next_sample()) else {
                break;
            };
            let item = match item {
                Ok(item) => item,
                Err(error) => return Some(Err(error)),
            };
            if let Some((_, first)) = items.first()
                && first.image.dim() != item.1.image.dim()
                && self.plan.set.batching() == Batching::OneSize
            {
                if self.plan.options.mode == Mode::Train {
                    return Some(Err(sizes_differ(first, &item.1)));
                }
                self.pending = Some(item);
                break;
            }
            items.push(item);
        }
        (!items.is_empty()).then(|| stack(items))
    }

    /// The next sample that is not left out.
    fn next_sample(&mut self) -> Option<Result<(u64, Sample<T>)>> {
        loop {
            self.plan.index(self.plan.sample(self.next))?;
            let outcome = if self.workers.is_empty() {
                self.plan.fetch(self.next)
            } else {
                self.queue.take(self.next)
            };
            self.next += 1;
            self.count_left_out(&outcome);
            for message in outcome.skipped {
                let times = self.skipped.entry(message).or_insert(0);
                *times += 1;
            }
            match outcome.result {
                Ok(Some(sample)) => return Some(Ok((outcome.sample, sample))),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Says at the end of an epoch of training how many samples were left out in it.
    fn count_left_out(&mut self, outcome: &Outcome<T>) {
        if self.plan.options.mode == Mode::Evaluate {
            return;
        }
        let epoch = outcome.sample / self.plan.set.len() as u64;
        if let (before, left_out @ 1..) = self.epoch
            && before < epoch
        {
            tracing::warn!("epoch {}: {left_out} broken samples were left out", before + 1);
        }
        if self.epoch.0 != epoch {
            self.epoch = (epoch, 0);
        }
        self.epoch.1 += outcome.skipped.len() as u64;
    }
}

impl<T: Send + 'static> Iterator for Loader<T> {
    type Item = Result<Batch<T>>;

    /// The next batch; nothing follows an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let start = Instant::now();
        let batch = self.next_batch();
        self.waited += start.elapsed();
        self.failed = matches!(batch, Some(Err(_)));
        batch
    }
}

impl<T: Send + 'static> Drop for Loader<T> {
    fn drop(&mut self) {
        self.queue.stop();
        for worker in self.workers.drain(..) {
            // A worker's panics are caught where they happen.
            let _ = worker.join();
        }
    }
}

fn sizes_differ<T>(a: &Sample<T>, b: &Sample<T>) -> Error {
    let size =
        |s: &Sample<T>| format!("`{}` is {}×{}", s.meta.name, s.image.dim().2, s.image.dim().1);
    Error::usage(format!(
        "images of a batch must have one size after the transforms, but {} and {}",
        size(a),
        size(b)
    ))
    .with_hint("end the training transforms with `random_crop` and `pad` to the same size")
}

/// Images that are smaller than the largest are padded right and bottom with zeros, the mean colour.
fn stack<T>(items: Vec<(u64, Sample<T>)>) -> Result<Batch<T>> {
    let (channels, mut height, mut width) = items[0].1.image.dim();
    for (_, sample) in &items {
        let (_, h, w) = sample.image.dim();
        (height, width) = (height.max(h), width.max(w));
    }
    let mut values = Vec::with_capacity(items.len() * channels * height * width);
    let mut batch = (Vec::new(), Vec::new(), Vec::new());
    let count = items.len();
    for (number, sample) in items {
        append(&mut values, &sample.image, (height, width));
        batch.0.push(sample.target);
        batch.1.push(sample.meta);
        batch.2.push(number);
    }
    // A clip's planes are those of its frames, one after the other.
    let images = (count * channels / 3, 3, height, width);
    let images = Tensor::from_vec(values, images, &Device::Cpu)?;
    Ok(Batch { images, targets: batch.0, metas: batch.1, samples: batch.2 })
}

/// Appends an image that is padded to `height × width`.
fn append(values: &mut Vec<f32>, image: &Array3<f32>, (height, width): (usize, usize)) {
    let (channels, rows, columns) = image.dim();
    match image.as_slice() {
        Some(slice) if (rows, columns) == (height, width) => values.extend_from_slice(slice),
        _ => {
            let start = values.len();
            values.resize(start + channels * height * width, 0.0);
            let shape = (channels, height, width);
            if let Ok(mut target) = ArrayViewMut3::from_shape(shape, &mut values[start..]) {
                target.slice_mut(s![.., ..rows, ..columns]).assign(image);
            }
        }
    }
}

/// One sample's way: read, left out, or an error.
struct Outcome<T> {
    sample: u64,
    /// `None` where evaluation leaves a broken sample out.
    result: Result<Option<Sample<T>>>,
    skipped: Vec<String>,
}

/// Which sample is where; shared by all workers.
struct Plan<T> {
    set: Arc<dyn Dataset<Target = T>>,
    rng: Rng,
    options: LoaderOptions,
    /// The permutations of the latest epochs.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl<T: Send + 'static> Plan<T> {
    /// The number of the sample that `ticket` of this process stands for.
    fn sample(&self, ticket: u64) -> u64 {
        let World { rank, size } = self.options.world;
        let batch_size = self.options.batch_size as u64;
        let batch = ticket / batch_size * size as u64 + rank as u64;
        self.options.first_sample + batch * batch_size + ticket % batch_size
    }

    /// Where the sample is in the set; `None` after the end.
    fn index(&self, sample: u64) -> Option<usize> {
        let len = self.set.len() as u64;
        match self.options.mode {
            Mode::Train => Some(self.order(sample / len)[(sample % len) as usize] as usize),
            Mode::Evaluate => (sample < len).then_some(sample as usize),
        }
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = lock(&self.orders);
        if let Some((_, order)) = orders.iter().find(|(of, _)| *of == epoch) {
            return order.clone();
        }
        let mut order: Vec<u32> = (0..self.set.len() as u32).collect();
        self.rng.stream(Purpose::Shuffle, epoch, 0).shuffle(&mut order);
        let order = Arc::new(self.grouped(order, epoch));
        // Workers read at most a few batches ahead; small sets may have several epochs among them.
        if orders.len() >= 8 {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }

    /// The permutation with portraits and landscapes gathered into whole batches. What completes the last epoch's batch and
    /// what is left for the next one's stays as it comes.
    fn grouped(&self, order: Vec<u32>, epoch: u64) -> Vec<u32> {
        let batch = self.options.batch_size;
        let begun = (epoch.wrapping_mul(order.len() as u64) % batch as u64) as usize;
        let head = ((batch - begun) % batch).min(order.len());
        let mut arranged = order[..head].to_vec();
        let mut waiting = [Vec::with_capacity(batch), Vec::with_capacity(batch)];
        for index in &order[head..] {
            let kind = &mut waiting[usize::from(self.set.is_portrait(*index as usize))];
            kind.push(*index);
            if kind.len() == batch {
                arranged.append(kind);
            }
        }
        arranged.extend(waiting.into_iter().flatten());
        arranged
    }

    fn fetch(&self, ticket: u64) -> Outcome<T> {
        let sample = self.sample(ticket);
        let mut skipped = Vec::new();
        let result = match self.index(sample) {
            Some(start) => self.read(start, sample, &mut skipped),
            None => Ok(None),
        };
        Outcome { sample, result, skipped }
    }

    /// Reads the sample at `start`, or the first good one after it where broken ones are skipped.
    fn read(
        &self,
        start: usize,
        sample: u64,
        skipped: &mut Vec<String>,
    ) -> Result<Option<Sample<T>>> {
        let len = self.set.len();
        for index in (start..len).chain(0..start) {
            let mut stream = self.rng.stream(Purpose::Augment, sample, 0);
            let read = catch_unwind(AssertUnwindSafe(|| self.set.get(index, &mut stream)));
            let read = read.map_err(|panic| self.panicked(index, &*panic))?;
            match (read, self.set.on_error(index)) {
                (Ok(sample), _) => return Ok(Some(sample)),
                (Err(error), OnError::Stop) => return Err(error),
                (Err(error), OnError::Skip) => skipped.push(error.to_string()),
            }
            // A replacement would count twice in an evaluation.
            if self.options.mode == Mode::Evaluate {
                return Ok(None);
            }
        }
        Err(Error::usage(format!("all {len} samples are broken; the first: {}", skipped[0])))
    }

    fn panicked(&self, index: usize, panic: &(dyn Any + Send)) -> Error {
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Error::file(
            self.set.name(index),
            format!("reading it panicked: {}", text.unwrap_or_default()),
        )
        .with_hint("this is a bug in the reader; leave the file out to go on")
    }
}

/// Tickets and results between the workers and the loader.
struct Queue<T> {
    state: Mutex<State<T>>,
    /// A ticket became free.
    free: Condvar,
    /// A result arrived.
    arrived: Condvar,
    /// How many tickets may be open at once.
    ahead: u64,
}

struct State<T> {
    /// The ticket that a worker takes next.
    open: u64,
    /// The ticket that is handed out next.
    due: u64,
    ready: BTreeMap<u64, Outcome<T>>,
    stopped: bool,
}

impl<T> Queue<T> {
    fn new(ahead: u64) -> Self {
        let state = State { open: 0, due: 0, ready: BTreeMap::new(), stopped: false };
        Self { state: Mutex::new(state), free: Condvar::new(), arrived: Condvar::new(), ahead }
    }

    /// A ticket for a worker; `None` when the loader is gone.
    fn open(&self) -> Option<u64> {
        let full = |state: &mut State<T>| !state.stopped && state.open >= state.due + self.ahead;
        let mut state =
            self.free.wait_while(lock(&self.state), full).unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return None;
        }
        state.open += 1;
        Some(state.open - 1)
    }

    fn put(&self, ticket: u64, outcome: Outcome<T>) {
        lock(&self.state).ready.insert(ticket, outcome);
        self.arrived.notify_one();
    }

    fn take(&self, ticket: u64) -> Outcome<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(outcome) = state.ready.remove(&ticket) {
                state.due = ticket + 1;
                self.free.notify_all();
                return outcome;
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn stop(&self) {
        lock(&self.state).stopped = true;
        self.free.notify_all();
    }
}

fn lock<S>(mutex: &Mutex<S>) -> MutexGuard<'_, S> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work<T: Send + 'static>(plan: &Plan<T>, queue: &Queue<T>) {
    while let Some(ticket) = queue.open() {
        if plan.index(plan.sample(ticket)).is_none() {
            return;
        }
        queue.put(ticket, plan.fetch(ticket));
    }
}
