//! Reading and writing a config: text → typed value, with file, line and the nearest known key in every error.
//!
//! Enums are one-key maps (`adamw: { … }`), for both directions, so errors keep their line. The text is parsed once as it
//! stands, which is what errors with a line number come from; overrides then change the untyped value, which is typed
//! again, and an error there names the override.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_yaml::Value;
use serde_yaml::with::singleton_map_recursive;

use super::{Config, overrides, validate};
use crate::{Error, Result};

/// The config in the file `path` with `key.path=value` `overrides` applied, checked by `validate::check`.
///
/// Relative paths inside it stay as they are: relative to the working directory.
///
/// # Errors
/// If the file cannot be read or a key, a value or an override is wrong; the message says where.
pub fn load<H: DeserializeOwned>(path: &Path, overrides: &[String]) -> Result<Config<H>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    parse(&text, path, overrides)
}

/// As [`load`], from `text`; `path` only serves the messages.
///
/// # Errors
/// As [`load`].
pub fn parse<H: DeserializeOwned>(
    text: &str,
    path: &Path,
    overrides: &[String],
) -> Result<Config<H>> {
    let mut config: Config<H> =
        singleton_map_recursive::deserialize(serde_yaml::Deserializer::from_str(text))
            .map_err(|e| located(path, &e))?;
    if !overrides.is_empty() {
        let value: Value = serde_yaml::from_str(text).map_err(|e| located(path, &e))?;
        config = overrides::apply(value, overrides)?;
    }
    validate::check(&config).map_err(|reason| Error::file(path, reason))?;
    Ok(config)
}

/// The config as YAML that [`load`] reads back identically.
///
/// # Errors
/// If the head's section has no YAML form.
pub fn to_yaml<H: Serialize>(config: &Config<H>) -> Result<String> {
    let mut bytes = Vec::new();
    let mut serializer = serde_yaml::Serializer::new(&mut bytes);
    singleton_map_recursive::serialize(config, &mut serializer).map_err(Error::usage)?;
    String::from_utf8(bytes).map_err(Error::usage)
}

/// The first key whose value differs, with both values; `None` for equal configs.
///
/// # Errors
/// If the head's section has no YAML form.
pub fn first_difference<H: Serialize>(
    before: &Config<H>,
    now: &Config<H>,
) -> Result<Option<String>> {
    let value =
        |config| -> Result<Value> { serde_yaml::from_str(&to_yaml(config)?).map_err(Error::usage) };
    Ok(differing("", &value(before)?, &value(now)?))
}

fn differing(path: &str, before: &Value, now: &Value) -> Option<String> {
    let below = |key: &str| if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
    match (before, now) {
        (Value::Mapping(a), Value::Mapping(b)) if a.keys().eq(b.keys()) => {
            a.iter().zip(b.values()).find_map(|((key, a), b)| differing(&below(&short(key)), a, b))
        }
        (Value::Sequence(a), Value::Sequence(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(i, (a, b))| differing(&below(&i.to_string()), a, b)),
        _ => (before != now)
            .then(|| format!("`{path}` was {} and is now {}", short(before), short(now))),
    }
}

/// A value on one line.
fn short(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::String(value) => value.clone(),
        Value::Sequence(items) => {
            format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(", "))
        }
        Value::Mapping(map) => {
            let entries =
                map.iter().map(|(key, value)| format!("{}: {}", short(key), short(value)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
        Value::Tagged(tagged) => format!("{} {}", tagged.tag, short(&tagged.value)),
    }
}

fn located(path: &Path, error: &serde_yaml::Error) -> Error {
    let (reason, hint) = explain(error);
    let error = match error.location() {
        Some(at) => {
            Error::file(path, format!("line {}, column {}: {reason}", at.line(), at.column()))
        }
        None => Error::file(path, reason),
    };
    match hint {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

/// What is wrong and what would be right, from one of serde's messages.
pub(super) fn explain(error: &serde_yaml::Error) -> (String, Option<String>) {
    let text = error.to_string();
    let text = match error.location() {
        Some(at) => text.replace(&format!(" at line {} column {}", at.line(), at.column()), ""),
        None => text,
    };
    for (what, noun) in [("unknown field `", "key"), ("unknown variant `", "value")] {
        let Some(start) = text.find(what) else { continue };
        // serde_yaml puts the path of the enclosing map before the message: `head.upernet: unknown field …`.
        let place = text[..start].trim_end_matches(": ");
        let Some((name, rest)) = text[start + what.len()..].split_once('`') else { continue };
        let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        let within = if place.is_empty() { String::new() } else { format!(" in `{place}`") };
        let nearest = match nearest(name, &known) {
            Some(best) => format!("; the nearest known {noun} is `{best}`"),
            None => String::new(),
        };
        let hint = (!known.is_empty()).then(|| format!("known here: {}", known.join(", ")));
        return (format!("unknown {noun} `{name}`{within}{nearest}"), hint);
    }
    (text, None)
}

fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let score = |candidate: &str| strsim::normalized_damerau_levenshtein(name, candidate);
    known.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::config::{EvalMode, Inference, OptimizerConfig, Variant};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Head {
        Linear(Linear),
        Deep(Deep),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Linear {
        tap: usize,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Deep {
        taps: Vec<usize>,
        aux: Option<Linear>,
    }

    const TEXT: &str = "\
task: segmentation
backbone:
  arch: vit_s
  patch_size: 14
  pos_embed_grid: [37, 37]
dispatch: { variant: mlp, inference: { calibrated: 0.5 } }
head:
  deep: { taps: [3, 5], aux: { tap: 1 } }
data:
  train:
    ade20k: { images: a, labels: b, classes: [x, y], label_map: { 11: 255 } }
    transforms:
      - resize: { size: [512, 512], ratio_range: [0.5, 2.0] }
      - random_crop: { size: [252, 252], cat_max_ratio: 0.75 }
      - normalize: {}
  val:
    ade20k: { images: a, labels: b, classes: names.txt }
    transforms: [{ normalize: {} }]
optimizer: { adamw: { lr: 1e-3 } }
train: { iterations: 10, batch_size: 2 }
eval: { mode: { slide: { crop: 512, stride: 341 } } }
";

    fn with(overrides: &[&str]) -> Result<Config<Head>> {
        let overrides: Vec<String> = overrides.iter().map(|o| (*o).to_string()).collect();
        parse(TEXT, Path::new("c.yaml"), &overrides)
    }

    fn message(result: Result<Config<Head>>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn a_saved_config_reads_back_identically() -> Result<()> {
        let config = with(&[])?;
        assert_eq!(parse::<Head>(&to_yaml(&config)?, Path::new("saved"), &[])?, config);
        Ok(())
    }

    #[test]
    fn an_unknown_key_is_named_with_its_place_and_the_nearest_one() {
        let wrong = TEXT.replace("patch_size", "patch_sise");
        assert_eq!(
            parse::<Head>(&wrong, Path::new("c.yaml"), &[]).unwrap_err().to_string(),
            "c.yaml: line 4, column 3: unknown key `patch_sise` in `backbone`; the nearest known key is `patch_size`"
        );
        let wrong = TEXT.replace("iterations", "iteration");
        let text = parse::<Head>(&wrong, Path::new("c.yaml"), &[]).unwrap_err().to_string();
        assert!(text.contains("line 20, column 10: unknown key `iteration` in `train`"), "{text}");
        let wrong = TEXT.replace("ratio_range", "ratio_rang");
        let text = parse::<Head>(&wrong, Path::new("c.yaml"), &[]).unwrap_err().to_string();
        assert!(text.contains("line 13") && text.contains("is `ratio_range`"), "{text}");
        let wrong = TEXT.replace("variant: mlp", "variant: mpl");
        let text = parse::<Head>(&wrong, Path::new("c.yaml"), &[]).unwrap_err().to_string();
        assert!(
            text.contains("line 6")
                && text.contains("unknown value `mpl`")
                && text.contains("is `mlp`"),
            "{text}"
        );
    }

    #[test]
    fn overrides_set_values_and_switch_variants() -> Result<()> {
        let config = with(&[
            "dispatch.variant=none",
            "dispatch.inference=threshold",
            "data.val.ade20k.images=../other",
            "data.train.ade20k.label_map.12=0",
            "data.train.transforms.0.resize.ratio_range=[1.0, 1.5]",
            "optimizer.sgd.lr=5e-2",
            "optimizer.sgd.momentum=0.5",
            "head.linear.tap=7",
            "eval.mode=whole",
            "loss.rate=3",
            "train.clip_norm=1",
        ])?;
        assert_eq!(config.dispatch.variant, Variant::None);
        assert_eq!(config.dispatch.inference, Inference::Threshold);
        assert_eq!(config.head, Head::Linear(Linear { tap: 7 }));
        assert_eq!(config.eval.mode, EvalMode::Whole);
        assert_eq!(config.loss.rate, 3.0);
        assert_eq!(config.train.clip_norm, Some(1.0));
        let OptimizerConfig::Sgd(sgd) = config.optimizer else {
            panic!("the optimizer did not change")
        };
        assert_eq!((sgd.lr, sgd.momentum), (0.05, 0.5));
        let train = config.data.train.ade20k.unwrap();
        assert_eq!(train.label_map, [(11, 255), (12, 0)].into());
        assert_eq!(config.data.val.ade20k.unwrap().images, Path::new("../other"));
        Ok(())
    }

    #[test]
    fn overrides_that_only_fit_together_are_accepted() -> Result<()> {
        let config = with(&["dispatch.noise.until=0.7", "dispatch.noise.anneal_to=0.0"])?;
        assert_eq!(config.dispatch.noise.map(|n| n.until), Some(0.7));
        Ok(())
    }

    #[test]
    fn an_error_in_an_override_names_it() {
        let text = message(with(&["loss.rate=1", "head.deep.tap=4"]));
        assert!(text.starts_with("in the override `head.deep.tap=4`: unknown key `tap`"), "{text}");
        assert!(
            message(with(&["train.iterations=many"]))
                .contains("`train.iterations=many`: invalid type")
        );
        assert!(
            message(with(&["train.iterations"]))
                .contains("`train.iterations`: expected `key.path=value`")
        );
        assert!(
            message(with(&["data.train.transforms.9.resize={}"]))
                .contains("the list has 3 entries")
        );
        assert!(message(with(&["device.x.y=1"])).contains("`device.x.y=1`"));
    }

    #[test]
    fn a_mistyped_override_is_not_thrown_out_by_a_later_one() {
        for (overrides, wrong) in [
            (["eval.mode.slide.strid=3", "eval.flip=true"], "strid"),
            (["dispatch={variant: atention}", "dispatch.target_rate=0.3"], "atention"),
        ] {
            let text = message(with(&overrides));
            let named = format!("in the override `{}`: ", overrides[0]);
            assert!(text.starts_with(&named) && text.contains(wrong), "{text}");
        }
    }

    #[test]
    fn a_difference_names_its_key() -> Result<()> {
        let base = with(&[])?;
        assert_eq!(first_difference(&base, &base)?, None);
        let differing = |o: &str| first_difference(&base, &with(&[o]).unwrap()).unwrap().unwrap();
        assert_eq!(
            differing("optimizer.adamw.lr=0.01"),
            "`optimizer.adamw.lr` was 0.001 and is now 0.01"
        );
        assert_eq!(
            differing("data.train.transforms.1.random_crop.size=[126, 252]"),
            "`data.train.transforms.1.random_crop.size.0` was 252 and is now 126"
        );
        assert_eq!(
            differing("eval.mode=whole"),
            "`eval.mode` was { slide: { crop: 512, stride: 341 } } and is now whole"
        );
        Ok(())
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        let case = |o: &str, key: &str| {
            let text = message(with(&[o]));
            assert!(text.contains(key), "{text}");
        };
        case("train.iterations=0", "`train.iterations`");
        case("train.batch_size=0", "`train.batch_size`");
        case("dispatch.target_rate=1.5", "`dispatch.target_rate`");
        case("dispatch.inference.top_k=1.5", "`dispatch.inference`");
        case("dispatch.pruned=[3, 12]", "`dispatch.pruned` names dispatcher 12");
        case("dispatch.tome={r: 8}", "`dispatch.tome` merges tokens, which only the task");
        case("dispatch.tau_schedule={to: 0.0}", "`dispatch.tau_schedule.to`");
        case("dispatch={select: sample, inference: {top_k: 0.5}}", "`dispatch.inference`");
        case("data.train.coco_stuff={images: a, labels: b, classes: []}", "`data.train`");
        case("data.val.ade20k=null", "`data.val`");
        case(
            "data.train.transforms.1.random_crop.size=[0, 4]",
            "`data.train.transforms.1.random_crop.size`",
        );
        case("backbone.num_heads=7", "`backbone.num_heads`");
        let cls = "backbone.cls_token=false";
        let window = "backbone.window={size: 14, global_blocks: [2, 5]}";
        case(window, "`backbone.cls_token: false`");
        assert!(with(&[cls, window, "backbone.rel_pos={grid: [64, 64]}"]).is_ok());
        case("backbone.rel_pos={grid: [64, 64]}", "`backbone.rel_pos`");
        let restricted = [cls, "backbone.rel_pos={grid: [64, 64]}", "dispatch.variant=layer"];
        assert!(message(with(&restricted)).contains("`dispatch.variant` cannot restrict"));
        assert!(with(&[cls, window, "dispatch.variant=attention_mlp"]).is_ok());
        let both = |o: &str, key: &str| {
            let text = message(with(&[cls, o]));
            assert!(text.contains(key), "{text}");
        };
        both("backbone.window={size: 0, global_blocks: []}", "`backbone.window.size`");
        both("backbone.window={size: 7, global_blocks: [5, 2]}", "`backbone.window.global_blocks`");
        both("backbone.window={size: 7, global_blocks: [12]}", "count from 0");
        both("backbone.window={size: 7, globals: [2]}", "`globals`");
        both("backbone.reg_tokens=4", "`backbone.reg_tokens`");
        case("eval.scales=[]", "`eval.scales`");
        case("optimizer.adamw.betas=[0.9, 1.0]", "`optimizer.adamw.betas`");
        case("device=cuda", "`device`");
    }
}
