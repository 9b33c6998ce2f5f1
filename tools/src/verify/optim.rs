//! The kind `optim`: optimizer steps, clipping, the moving average and the schedules.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor, Var};
use rescatter::config::{CosineConfig, PolyConfig, ScheduleConfig};
use rescatter::engine::{Ema, Optimizer, Parameter, Rule, Schedule, clip_scale, gradient_norm};

use super::{Fixture, Outputs};

/// `optim`: what the operation in `hyper` gives.
pub(super) fn optim(fixture: &Fixture) -> Result<Option<Outputs>> {
    match fixture.hyper::<String>("op")?.as_str() {
        "adamw" => steps(
            fixture,
            Rule::AdamW { betas: fixture.hyper("betas")?, eps: fixture.hyper("eps")? },
        ),
        "sgd" => steps(fixture, Rule::Sgd { momentum: fixture.hyper("momentum")? }),
        "clip_grad_norm" => clipped(fixture),
        "ema" => averages(fixture),
        "poly_warmup" => {
            let config = PolyConfig {
                power: fixture.hyper("power")?,
                warmup_iters: fixture.hyper("warmup_iters")?,
                warmup_epochs: None,
                warmup_ratio: fixture.hyper("warmup_ratio")?,
                min_lr: fixture.hyper("min_lr")?,
            };
            rates(fixture, &ScheduleConfig::Poly(config))
        }
        "cosine_warmup" => {
            let config = CosineConfig {
                warmup_iters: fixture.hyper("warmup_iters")?,
                warmup_epochs: None,
                warmup_lr: fixture.hyper("warmup_lr")?,
                min_lr: fixture.hyper("min_lr")?,
            };
            rates(fixture, &ScheduleConfig::Cosine(config))
        }
        op => bail!("unknown op `{op}`"),
    }
    .map(Some)
}

fn variables(fixture: &Fixture) -> Result<Vec<(String, Var)>> {
    let variable =
        |(name, tensor): (&str, &Tensor)| Ok((name.to_string(), Var::from_tensor(tensor)?));
    fixture.weights().into_iter().map(variable).collect()
}

fn steps(fixture: &Fixture, rule: Rule) -> Result<Outputs> {
    let decay: BTreeMap<String, f64> = fixture.hyper("weight_decay")?;
    let parameter = |(name, var): (String, Var)| {
        let weight_decay = decay.get(&name).copied().unwrap_or(0.0);
        Parameter { name, var, lr_scale: 1.0, weight_decay }
    };
    let parameters = variables(fixture)?.into_iter().map(parameter).collect();
    let mut optimizer = Optimizer::with_parameters(rule, parameters)?;
    let mut outputs = Outputs::new();
    for t in 1..=fixture.hyper::<u64>("steps")? {
        let gradient = |p: &Parameter| fixture.input(&format!("grad.{t}.{}", p.name)).map(Some);
        let gradients = optimizer.parameters().iter().map(gradient).collect::<Result<Vec<_>>>()?;
        optimizer.step(&gradients, fixture.hyper("lr")?, 1.0)?;
        for p in optimizer.parameters() {
            outputs.insert(format!("output.{}.{t}", p.name), p.var.as_detached_tensor().copy()?);
        }
    }
    Ok(outputs)
}

fn clipped(fixture: &Fixture) -> Result<Outputs> {
    let names: Vec<&str> = fixture.weights().into_keys().collect();
    let gradient = |name: &&str| fixture.input(&format!("grad.1.{name}")).map(Some);
    let gradients = names.iter().map(gradient).collect::<Result<Vec<_>>>()?;
    let norm = gradient_norm(&gradients)?;
    let scale = clip_scale(norm, fixture.hyper("max_norm")?);
    let mut outputs = Outputs::from([("output.norm".into(), Tensor::new(norm, &Device::Cpu)?)]);
    for (name, gradient) in names.iter().zip(gradients.iter().flatten()) {
        outputs.insert(format!("output.clipped.{name}"), (gradient * scale)?);
    }
    Ok(outputs)
}

fn averages(fixture: &Fixture) -> Result<Outputs> {
    let variables = variables(fixture)?;
    let ema = Ema::with_vars(variables.clone(), fixture.hyper("decay")?)?;
    let mut outputs = Outputs::new();
    for t in 1..=fixture.hyper::<u64>("steps")? {
        for (name, var) in &variables {
            var.set(&fixture.input(&format!("value.{t}.{name}"))?)?;
        }
        ema.update()?;
        for (name, average) in ema.state() {
            let name = name.trim_start_matches(rescatter::engine::ema::PREFIX);
            outputs.insert(format!("output.{name}.{t}"), average.copy()?);
        }
    }
    Ok(outputs)
}

fn rates(fixture: &Fixture, config: &ScheduleConfig) -> Result<Outputs> {
    let iterations: u64 = fixture.hyper("max_iters")?;
    let schedule = Schedule::new(config, fixture.hyper("base_lr")?, iterations);
    let rates: Vec<f64> = (0..iterations).map(|t| schedule.lr(t)).collect();
    Ok(Outputs::from([("output.lr".into(), Tensor::new(rates, &Device::Cpu)?)]))
}
