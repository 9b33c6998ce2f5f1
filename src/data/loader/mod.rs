//! Samples in order, read ahead by worker threads.
//!
//! What a sample is depends only on (seed, sample number): number n lies in epoch n / len, at place n mod len of that
//! epoch's permutation, and its augmentation draws from the stream of n. Workers take numbers in turn and the results are
//! handed out in the order of the numbers, so the stream of batches is the same for any number of workers, and a run
//! resumes at any number without replaying anything.
//!
//! Training batches hold portraits or landscapes where the set tells them apart: each epoch's permutation is rearranged so
//! that whole batches are of one kind, as far as the numbers allow.

mod plan;
mod queue;
mod stack;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Batch, Batching, Dataset, Sample};
use crate::world::World;
use crate::{Error, Result};
use plan::{Outcome, Plan};
use queue::Queue;
use stack::{sizes_differ, stack};

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
        let plan = Arc::new(Plan::new(set, options));
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
