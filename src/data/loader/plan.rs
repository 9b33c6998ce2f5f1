//! Which sample comes when, and how it is read.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use super::super::{Dataset, Sample};
use super::{LoaderOptions, Mode, lock};
use crate::config::OnError;
use crate::rng::{Purpose, Rng};
use crate::world::World;
use crate::{Error, Result};

/// One sample's way: read, left out, or an error.
pub(super) struct Outcome<T> {
    pub(super) sample: u64,
    /// `None` where evaluation leaves a broken sample out.
    pub(super) result: Result<Option<Sample<T>>>,
    pub(super) skipped: Vec<String>,
}

/// Which sample is where; shared by all workers.
pub(super) struct Plan<T> {
    pub(super) set: Arc<dyn Dataset<Target = T>>,
    rng: Rng,
    pub(super) options: LoaderOptions,
    /// The permutations of the latest epochs.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl<T: Send + 'static> Plan<T> {
    /// Of `set` in the order that `options` ask for.
    pub(super) fn new(set: Arc<dyn Dataset<Target = T>>, options: LoaderOptions) -> Self {
        Self { set, rng: Rng::new(options.seed), options, orders: Mutex::default() }
    }

    /// The number of the sample that `ticket` of this process stands for.
    pub(super) fn sample(&self, ticket: u64) -> u64 {
        let World { rank, size } = self.options.world;
        let batch_size = self.options.batch_size as u64;
        let batch = ticket / batch_size * size as u64 + rank as u64;
        self.options.first_sample + batch * batch_size + ticket % batch_size
    }

    /// Where the sample is in the set; `None` after the end.
    pub(super) fn index(&self, sample: u64) -> Option<usize> {
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

    /// The permutation with portraits and landscapes gathered into whole batches of all ranks together. What completes the
    /// last epoch's batch and what is left for the next one's stays as it comes.
    fn grouped(&self, order: Vec<u32>, epoch: u64) -> Vec<u32> {
        let batch = self.options.batch_size * self.options.world.size;
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

    pub(super) fn fetch(&self, ticket: u64) -> Outcome<T> {
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
