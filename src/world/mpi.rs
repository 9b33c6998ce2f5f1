//! [`World`] over MPI.

use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::datatype::PartitionMut;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives};

use super::{Membership, World};
use crate::{Error, Result};

/// Joins the `launched` processes; one that was started alone stays alone.
pub(super) fn join(launched: usize) -> Result<(World, Membership)> {
    if launched == 1 {
        return Ok((World::SINGLE, Membership { _universe: None }));
    }
    // Only the main thread talks to the others.
    let (universe, _) = ::mpi::initialize_with_threading(Threading::Funneled)
        .ok_or_else(|| Error::usage("MPI was started twice in one process"))?;
    let world = universe.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    if size != launched {
        return Err(Error::usage(format!(
            "{launched} processes were started together, but MPI connects {size}"
        ))
        .with_hint("start them with the `mpirun` of the MPI that this binary was built with; with Slurm `srun --mpi=pmix`"));
    }
    Ok((World { rank, size }, Membership { _universe: Some(universe) }))
}

pub(super) fn abort() {
    SimpleCommunicator::world().abort(1);
}

/// The open connection.
pub(super) struct Exchange(SimpleCommunicator);

impl Exchange {
    pub(super) fn open() -> Result<Self> {
        if !::mpi::environment::is_initialized() {
            return Err(Error::usage(
                "there are several processes, but no connection between them",
            ));
        }
        Ok(Self(SimpleCommunicator::world()))
    }

    pub(super) fn sum(&self, values: &mut [f64]) {
        let own = values.to_vec();
        self.0.all_reduce_into(&own[..], values, SystemOperation::sum());
    }

    pub(super) fn sum_f32(&self, values: &mut [f32]) {
        let own = values.to_vec();
        self.0.all_reduce_into(&own[..], values, SystemOperation::sum());
    }

    /// The only element becomes those of all processes.
    pub(super) fn gather(&self, values: &mut Vec<Vec<u8>>) {
        let own = values.swap_remove(0);
        let mut counts = vec![0i32; self.0.size() as usize];
        self.0.all_gather_into(&(own.len() as i32), &mut counts[..]);
        let before = |end: &mut i32, count: &i32| Some(std::mem::replace(end, *end + count));
        let starts: Vec<i32> = counts.iter().scan(0, before).collect();
        let mut all = vec![0u8; counts.iter().sum::<i32>() as usize];
        self.0.all_gather_varcount_into(
            &own[..],
            &mut PartitionMut::new(&mut all[..], &counts[..], &starts[..]),
        );
        let parts = starts.iter().zip(&counts);
        *values = parts
            .map(|(&start, &count)| all[start as usize..][..count as usize].to_vec())
            .collect();
    }
}
