//! An exponential moving average of the trained weights.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

use crate::ops::optimizer::moving_average;
use crate::params::{ParamStore, Role};

/// Name of an average in a checkpoint: `ema.` before the parameter's.
pub const PREFIX: &str = "ema.";

/// e ← decay · e + (1 − decay) · p after every step, from the initial weights. Running statistics are not averaged.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    live: Var,
    average: Var,
}

impl Ema {
    /// Averages of all trainable parameters, which start at their present values.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(params: &ParamStore, decay: f64) -> Result<Self> {
        Self::with_vars(params.with_role(Role::Trainable), decay)
    }

    /// Averages of the given variables.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn with_vars(vars: Vec<(String, Var)>, decay: f64) -> Result<Self> {
        let entry = |(name, live): (String, Var)| {
            let average = Var::from_tensor(&live.as_detached_tensor().copy()?)?;
            Ok(Entry { name, live, average })
        };
        Ok(Self { decay, entries: vars.into_iter().map(entry).collect::<Result<_>>()? })
    }

    /// Takes the present weights into the averages.
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn update(&self) -> Result<()> {
        self.entries
            .iter()
            .try_for_each(|e| moving_average(&e.average, &e.live.as_detached_tensor(), self.decay))
    }

    /// Exchanges weights and averages: call it before and after an evaluation.
    ///
    /// # Errors
    /// If the arithmetic fails.
    pub fn swap(&self) -> Result<()> {
        for Entry { live, average, .. } in &self.entries {
            let held = live.as_detached_tensor().copy()?;
            live.set(&average.as_detached_tensor())?;
            average.set(&held)?;
        }
        Ok(())
    }

    /// The averages by their names in a checkpoint.
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        self.entries
            .iter()
            .map(|e| (format!("{PREFIX}{}", e.name), e.average.as_detached_tensor()))
            .collect()
    }

    /// Overwrites the averages with those of a checkpoint.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.entries.iter().try_for_each(|e| {
            super::optim::restore(&e.average, state, &format!("{PREFIX}{}", e.name))
        })
    }
}
