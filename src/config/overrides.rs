//! `key.path=value` on a config's untyped value.

use serde::de::DeserializeOwned;
use serde_yaml::with::singleton_map_recursive;
use serde_yaml::{Mapping, Value};

use super::load::explain;
use crate::{Error, Result};

/// `value` with the `overrides` applied in order, typed.
///
/// Whether a map on the way is an enum is known to the types alone. So where setting a key beside the others is refused, a
/// one-key map on the way is replaced by the key (`optimizer.sgd.lr=0.1` on `optimizer: { adamw: … }`).
///
/// # Errors
/// Names the override that is at fault.
pub(super) fn apply<C: DeserializeOwned>(mut value: Value, overrides: &[String]) -> Result<C> {
    // The first override after which the value is no longer a config; a later one may complete it.
    let mut pending: Option<(&str, serde_yaml::Error)> = None;
    for text in overrides {
        let (next, error) = apply_one::<C>(&value, text)?;
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
            let error = Error::usage(format!("in the override `{text}`: {reason}"));
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

fn apply_one<C: DeserializeOwned>(
    value: &Value,
    text: &str,
) -> Result<(Value, Option<serde_yaml::Error>)> {
    let named = |reason: String| Error::usage(format!("in the override `{text}`: {reason}"));
    let (path, new) =
        text.split_once('=').ok_or_else(|| named("expected `key.path=value`".into()))?;
    let new: Value = serde_yaml::from_str(new).map_err(|e| named(e.to_string()))?;
    let keys: Vec<&str> = path.split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(named("a key is empty".into()));
    }
    let mut plain = None;
    // Level 0 replaces nothing; level n replaces the other key of the one-key map in which the n-th key is set.
    for replace in 0..=keys.len() {
        let mut candidate = value.clone();
        set(&mut candidate, &keys, &new, replace).map_err(named)?;
        match typed::<C>(&candidate) {
            Ok(_) => return Ok((candidate, None)),
            Err(error) => plain = plain.or(Some((candidate, Some(error)))),
        }
    }
    plain.ok_or_else(|| named("it changes nothing".into()))
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
