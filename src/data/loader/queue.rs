//! What workers and the loader hand to each other.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;
use super::plan::Outcome;

/// Tickets and results between the workers and the loader.
pub(super) struct Queue<T> {
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
    pub(super) fn new(ahead: u64) -> Self {
        let state = State { open: 0, due: 0, ready: BTreeMap::new(), stopped: false };
        Self { state: Mutex::new(state), free: Condvar::new(), arrived: Condvar::new(), ahead }
    }

    /// A ticket for a worker; `None` when the loader is gone.
    pub(super) fn open(&self) -> Option<u64> {
        let full = |state: &mut State<T>| !state.stopped && state.open >= state.due + self.ahead;
        let mut state =
            self.free.wait_while(lock(&self.state), full).unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            return None;
        }
        state.open += 1;
        Some(state.open - 1)
    }

    pub(super) fn put(&self, ticket: u64, outcome: Outcome<T>) {
        lock(&self.state).ready.insert(ticket, outcome);
        self.arrived.notify_one();
    }

    pub(super) fn take(&self, ticket: u64) -> Outcome<T> {
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

    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.free.notify_all();
    }
}
