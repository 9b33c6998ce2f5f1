//! `key.path=value` on a config's untyped value.

use serde::de::DeserializeOwned;
use serde_yaml::with::singleton_map_recursive;
use serde_yaml::{Mapping, Value};

use super::load::explain;
use crate::{Error, Result};

/// `value` with the `overrides` applied in order, typed.
///
/// Whether a map on the way is an enum is known to the types alone. So where setting a key beside the others is refused, a
/// one-key map on the way is replaced by the key (`optimizer.sgd.lr=0.1` on `optimizer: { adamw: … }`). That is not tried
/// while an earlier override waits to be completed: it would be thrown out with the map.
///
/// # Errors
/// Names the override that is at fault.
pub(super) fn apply<C: DeserializeOwned>(mut value: Value, overrides: &[String]) -> Result<C> {
    // The first override after which the value is no longer a config; a later one may complete it.
    let mut pending: Option<(&str, serde_yaml::Error)> = None;
    for text in overrides {
        let change = Change::parse(text)?;
        let (next, error) = match pending {
            None => change.apply::<C>(&value)?,
            Some(_) => change.apply_plainly::<C>(&value)?,
        };
        value = next;
        pending = match (error, pending.take()) {
            (None, _) => None,
            (Some(_), Some(first)) => Some(first),
            (Some(error), None) => Some((text, error)),
        };
    }
    match pending {
        Some((text, error)) => {
            let (reason, hint) = explain(&error);
            let error = wrong(text, reason);
            Err(match hint {
                Some(hint) => error.with_hint(hint),
                None => error,
            })
        }
        None => typed(&value).map_err(Error::usage),
    }
}

fn typed<C: DeserializeOwned>(value: &Value) -> serde_yaml::Result<C> {
    singleton_map_recursive::deserialize(value.clone())
}

/// One override.
struct Change<'a> {
    text: &'a str,
    keys: Vec<&'a str>,
    new: Value,
}

/// A changed value, and why it is no config.
type Changed = (Value, Option<serde_yaml::Error>);

impl<'a> Change<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let (path, new) =
            text.split_once('=').ok_or_else(|| wrong(text, "expected `key.path=value`"))?;
        let new = serde_yaml::from_str(new).map_err(|error| wrong(text, error))?;
        let keys: Vec<&str> = path.split('.').collect();
        if keys.iter().any(|key| key.is_empty()) {
            return Err(wrong(text, "a key is empty"));
        }
        Ok(Self { text, keys, new })
    }

    /// `value` with the key set, if need be in place of the only other key of a map on the way.
    fn apply<C: DeserializeOwned>(&self, value: &Value) -> Result<Changed> {
        let plain = self.apply_plainly::<C>(value)?;
        if plain.1.is_none() {
            return Ok(plain);
        }
        for place in 1..=self.keys.len() {
            let replaced = self.replacing::<C>(place, value)?;
            if replaced.1.is_none() {
                return Ok(replaced);
            }
        }
        Ok(plain)
    }

    /// `value` with the key set beside all others.
    fn apply_plainly<C: DeserializeOwned>(&self, value: &Value) -> Result<Changed> {
        self.replacing::<C>(0, value)
    }

    /// Place 0 replaces nothing; place n replaces the other key of the one-key map in which the n-th key is set.
    fn replacing<C: DeserializeOwned>(&self, place: usize, value: &Value) -> Result<Changed> {
        let mut candidate = value.clone();
        set(&mut candidate, &self.keys, &self.new, place).map_err(|e| wrong(self.text, e))?;
        let error = typed::<C>(&candidate).err();
        Ok((candidate, error))
    }
}

fn wrong(text: &str, reason: impl std::fmt::Display) -> Error {
    Error::usage(format!("in the override `{text}`: {reason}"))
}

fn set(
    place: &mut Value,
    keys: &[&str],
    new: &Value,
    replace: usize,
) -> std::result::Result<(), String> {
    let Some((&key, rest)) = keys.split_first() else {
        *place = new.clone();
        return Ok(());
    };
    let deeper = replace.saturating_sub(1);
    if let Value::Sequence(items) = place {
        let count = items.len();
        let item = key.parse::<usize>().ok().and_then(|i| items.get_mut(i));
        let item =
            item.ok_or_else(|| format!("`{key}` is no index here, the list has {count} entries"))?;
        return set(item, rest, new, deeper);
    }
    // A scalar on the way gives place to a map; if the types do not want one there, they say so.
    if !place.is_mapping() {
        *place = Value::Mapping(Mapping::new());
    }
    let Value::Mapping(map) = place else { return Err(format!("`{key}` is not within a map")) };
    // Keys like `11` are numbers in YAML.
    let key = key.parse::<u64>().map_or_else(|_| Value::from(key), Value::from);
    if replace == 1 && map.len() == 1 && !map.contains_key(&key) {
        map.clear();
    }
    set(map.entry(key).or_insert(Value::Null), rest, new, deeper)
}
