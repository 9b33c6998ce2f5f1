//! The processes that train together, and what they exchange.
//!
//! There is one process unless `mpirun`, or Slurm's `srun --mpi`, started several and the binary was built with the feature
//! `mpi`. Every process calls the same exchanges in the same order; with one process they are free.

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;

use candle_core::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ops::flat::{flat, split};
use crate::{Error, Result};

/// This process among those that train together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// Number of this process.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
}

/// Keeps the connection to the other processes open; dropped at the end of the program.
pub struct Membership {
    #[cfg(feature = "mpi")]
    _universe: Option<::mpi::environment::Universe>,
}

impl World {
    /// One process.
    pub const SINGLE: World = World { rank: 0, size: 1 };

    /// The processes that a launcher started together with this one.
    ///
    /// # Errors
    /// If there are several and this binary cannot talk to them.
    pub fn join() -> Result<(Self, Membership)> {
        let size = launched();
        #[cfg(feature = "mpi")]
        return mpi::join(size);
        #[cfg(not(feature = "mpi"))]
        match size {
            1 => Ok((Self::SINGLE, Membership {})),
            _ => Err(Error::usage(format!(
                "{size} processes were started together, and this binary cannot join them"
            ))
            .with_hint("build it with `--features mpi`, or start one process")),
        }
    }

    /// Whether this process speaks for all: it logs and writes.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Replaces each value by its sum over all processes.
    ///
    /// # Errors
    /// If the processes cannot talk to each other.
    pub fn sum(&self, values: &mut [f64]) -> Result<()> {
        self.exchange(values, Exchange::sum)
    }

    /// [`World::sum`] of f32 tensors, which have the same shapes in all processes: of those on GPUs by NCCL where the binary is
    /// built with it, of others by way of the host.
    ///
    /// # Errors
    /// As [`World::sum`].
    pub fn sum_tensors(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
        if self.size == 1 {
            return Ok(tensors.to_vec());
        }
        Ok(split(&self.sum_flat(flat(tensors)?)?, tensors.iter().map(Tensor::shape))?)
    }

    fn sum_flat(&self, values: Tensor) -> Result<Tensor> {
        #[cfg(feature = "nccl")]
        if values.device().is_cuda() {
            // A copy: a row of one tensor is that tensor, and others may hold it.
            let values = values.copy()?;
            nccl::sum(self, &values)?;
            return Ok(values);
        }
        let mut sums = values.to_vec1::<f32>()?;
        self.exchange(&mut sums[..], Exchange::sum_f32)?;
        Ok(Tensor::from_vec(sums, values.shape(), values.device())?)
    }

    /// What all processes have, in the order of their ranks.
    ///
    /// # Errors
    /// As [`World::sum`], or if a value has no JSON form.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        if self.size == 1 {
            return Ok(vec![own]);
        }
        let text = serde_json::to_vec(&own).map_err(Error::usage)?;
        let mut all = vec![text];
        self.exchange(&mut all, Exchange::gather)?;
        all.iter().map(|text| serde_json::from_slice(text).map_err(Error::usage)).collect()
    }

    /// What all processes found, put together by `merge` in the order of their ranks; the same on each.
    ///
    /// # Errors
    /// As [`World::gather`], or if `merge` refuses.
    pub fn merged<T: Serialize + DeserializeOwned>(
        &self,
        own: T,
        mut merge: impl FnMut(&mut T, &T) -> Result<()>,
    ) -> Result<T> {
        let mut parts = self.gather(own)?;
        let mut all = parts.remove(0);
        parts.iter().try_for_each(|part| merge(&mut all, part))?;
        Ok(all)
    }

    /// Ends all processes because this one failed.
    pub fn abort(&self) {
        #[cfg(feature = "mpi")]
        if self.size > 1 {
            mpi::abort();
        }
    }

    fn exchange<T: ?Sized>(&self, values: &mut T, by: impl Fn(&Exchange, &mut T)) -> Result<()> {
        if self.size > 1 {
            by(&Exchange::open()?, values);
        }
        Ok(())
    }
}

/// The number of this process among those on its machine, as the launcher says.
pub fn place_on_machine() -> usize {
    let names = ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];
    names.into_iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
}

/// How many processes the launcher says it started.
fn launched() -> usize {
    let size = |name| std::env::var(name).ok()?.parse::<usize>().ok();
    let names = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];
    names.into_iter().find_map(size).unwrap_or(1).max(1)
}

#[cfg(feature = "mpi")]
use mpi::Exchange;

/// There is nobody to talk to without the feature `mpi`.
#[cfg(not(feature = "mpi"))]
enum Exchange {}

#[cfg(not(feature = "mpi"))]
impl Exchange {
    fn open() -> Result<Self> {
        Err(Error::usage("this binary was built without `mpi`"))
    }

    fn sum(&self, _: &mut [f64]) {}

    fn sum_f32(&self, _: &mut [f32]) {}

    fn gather(&self, _: &mut Vec<Vec<u8>>) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

    use super::*;

    #[test]
    fn one_process_exchanges_with_itself() {
        let mut values = [1.5, -2.0];
        World::SINGLE.sum(&mut values).unwrap();
        assert_eq!(values, [1.5, -2.0]);
        assert_eq!(World::SINGLE.gather(vec![3u8, 4]).unwrap(), [[3, 4]]);
        assert!(World::SINGLE.leads() && !World { rank: 1, size: 2 }.leads());
    }
}
