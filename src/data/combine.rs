//! Sets made of other sets.

use std::sync::Arc;

use super::{Batching, Dataset, Sample};
use crate::config::OnError;
use crate::rng::Stream;
use crate::{Error, Result};

/// Several sets of the same classes, one after the other.
pub struct Concat<T> {
    parts: Vec<Arc<dyn Dataset<Target = T>>>,
    /// The first index after each part.
    ends: Vec<usize>,
}

impl<T: Send + 'static> Concat<T> {
    /// Joins the sets.
    ///
    /// # Errors
    /// If there is none, or their classes differ.
    pub fn new(parts: Vec<Arc<dyn Dataset<Target = T>>>) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(Error::usage("`concat` is empty").with_hint("list at least one set"));
        };
        for (number, part) in parts.iter().enumerate() {
            same_classes(
                ("the first set of `concat`", first.classes()),
                (&format!("set {number}"), part.classes()),
            )?;
        }
        let ends = parts.iter().scan(0, |end, part| {
            *end += part.len();
            Some(*end)
        });
        Ok(Self { ends: ends.collect(), parts })
    }

    fn locate(&self, index: usize) -> (&dyn Dataset<Target = T>, usize) {
        let part = self.ends.partition_point(|end| *end <= index);
        let start = part.checked_sub(1).map_or(0, |before| self.ends[before]);
        (&*self.parts[part], index - start)
    }
}

/// Refuses two sets whose classes differ in number, name or order.
///
/// # Errors
/// Names the first difference.
pub fn same_classes(a: (&str, &[String]), b: (&str, &[String])) -> Result<()> {
    if a.1 == b.1 {
        return Ok(());
    }
    let reason = match a.1.iter().zip(b.1).position(|(x, y)| x != y) {
        Some(i) => format!("class {i} is `{}` in {} but `{}` in {}", a.1[i], a.0, b.1[i], b.0),
        None => format!("{} has {} classes but {} has {}", a.0, a.1.len(), b.0, b.1.len()),
    };
    Err(Error::usage(reason).with_hint("give both the same class list in the same order"))
}

impl<T: Send + 'static> Dataset for Concat<T> {
    type Target = T;

    fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<T>> {
        let (part, index) = self.locate(index);
        part.get(index, stream)
    }

    fn classes(&self) -> &[String] {
        self.parts[0].classes()
    }

    fn name(&self, index: usize) -> String {
        let (part, index) = self.locate(index);
        part.name(index)
    }

    fn is_portrait(&self, index: usize) -> bool {
        let (part, index) = self.locate(index);
        part.is_portrait(index)
    }

    fn batching(&self) -> Batching {
        self.parts[0].batching()
    }

    fn on_error(&self, index: usize) -> OnError {
        let (part, index) = self.locate(index);
        part.on_error(index)
    }
}

/// A set that is passed several times in an epoch.
pub struct Repeat<T> {
    set: Arc<dyn Dataset<Target = T>>,
    times: usize,
}

impl<T: Send + 'static> Repeat<T> {
    /// Repeats `set`.
    ///
    /// # Errors
    /// If `times` is 0.
    pub fn new(set: Arc<dyn Dataset<Target = T>>, times: usize) -> Result<Self> {
        if times == 0 {
            return Err(Error::usage("`repeat` is 0, so there would be no sample")
                .with_hint("give 1 or more"));
        }
        Ok(Self { set, times })
    }
}

impl<T: Send + 'static> Dataset for Repeat<T> {
    type Target = T;

    fn len(&self) -> usize {
        self.set.len() * self.times
    }

    fn get(&self, index: usize, stream: &mut Stream) -> Result<Sample<T>> {
        self.set.get(index % self.set.len(), stream)
    }

    fn classes(&self) -> &[String] {
        self.set.classes()
    }

    fn name(&self, index: usize) -> String {
        self.set.name(index % self.set.len())
    }

    fn is_portrait(&self, index: usize) -> bool {
        self.set.is_portrait(index % self.set.len())
    }

    fn batching(&self) -> Batching {
        self.set.batching()
    }

    fn on_error(&self, index: usize) -> OnError {
        self.set.on_error(index % self.set.len())
    }
}
