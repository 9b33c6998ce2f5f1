//! In-place arithmetic of the optimizers: one pass over a parameter and its state, no temporary tensors.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, Var, bail};
use rayon::prelude::*;

use super::{count, fusible, gpu, host};

/// Values per task. Fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 14;

/// The numbers of one AdamW step.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// β₁, β₂.
    pub betas: [f64; 2],
    /// ε.
    pub eps: f64,
    /// Number t of this step, from 1.
    pub step: u64,
    /// Factor on the gradients, for clipping.
    pub gradient_scale: f64,
}

/// A parameter that an AdamW step moves.
#[derive(Debug, Clone, Copy)]
pub struct AdamWParameter<'a> {
    /// Its values p.
    pub value: &'a Var,
    /// m and v.
    pub moments: [&'a Var; 2],
    /// g.
    pub gradient: &'a Tensor,
    /// Learning rate η.
    pub lr: f64,
    /// Decoupled decay λ.
    pub weight_decay: f64,
}

/// The numbers of one SGD step.
#[derive(Debug, Clone, Copy)]
pub struct SgdStep {
    /// Learning rate η.
    pub lr: f64,
    /// Factor μ of the buffer.
    pub momentum: f64,
    /// λ, added to the gradient.
    pub weight_decay: f64,
    /// Factor on the gradient, for clipping.
    pub gradient_scale: f64,
}

/// One AdamW step (Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2, as in torch) of every parameter:
/// p ← p·(1 − ηλ); m ← β₁m + (1 − β₁)g; v ← β₂v + (1 − β₂)g²; p ← p − η·m̂ / (√v̂ + ε) with m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ).
/// On a GPU it is one launch for all of them.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn adamw(parameters: &[AdamWParameter], s: &AdamWStep) -> Result<()> {
    let corrections = s.betas.map(|beta| 1.0 - beta.powf(s.step as f64));
    let mut on_gpu = Vec::new();
    for p in parameters {
        let AdamWParameter { value: parameter, moments, gradient, .. } = *p;
        let [m, v] = moments;
        same_shape(&[parameter, m, v], gradient)?;
        let rates = [1.0 - p.lr * p.weight_decay, p.lr / corrections[0]];
        if gpu::runs(&[parameter, m, v, gradient]) {
            on_gpu.push(gpu::Update { parameter, moments, gradient, rates });
        } else {
            adamw_of_one(p, s, (rates, corrections))?;
        }
    }
    let [beta1, beta2] = s.betas;
    gpu::adamw(&on_gpu, [beta1, beta2, 1.0 / corrections[1].sqrt(), s.eps, s.gradient_scale])
}

/// [`adamw`] without a GPU kernel, given 1 − ηλ and η / (1 − β₁ᵗ), 1 − β₁ᵗ and 1 − β₂ᵗ.
fn adamw_of_one(
    parameter: &AdamWParameter,
    s: &AdamWStep,
    ([shrink, rate], corrections): ([f64; 2], [f64; 2]),
) -> Result<()> {
    let AdamWParameter { value: parameter, moments: [m, v], gradient, .. } = *parameter;
    let [beta1, beta2] = s.betas;
    if !fusible(&[parameter, m, v, gradient]) {
        let g = (gradient * s.gradient_scale)?;
        m.set(&((m.as_detached_tensor() * beta1)? + (&g * (1.0 - beta1))?)?)?;
        v.set(&((v.as_detached_tensor() * beta2)? + (g.sqr()? * (1.0 - beta2))?)?)?;
        let denominator = ((v.as_detached_tensor() / corrections[1])?.sqrt()? + s.eps)?;
        let moved = ((m.as_detached_tensor() * rate)? / denominator)?;
        return parameter.set(&((parameter.as_detached_tensor() * shrink)? - moved)?);
    }
    count("adamw");
    let root = 1.0 / corrections[1].sqrt();
    let (b1, b2, c1, c2) = (beta1 as f32, beta2 as f32, (1.0 - beta1) as f32, (1.0 - beta2) as f32);
    let (shrink, rate, root) = (shrink as f32, rate as f32, root as f32);
    let (eps, scale) = (s.eps as f32, s.gradient_scale as f32);
    let gradient = gradient.contiguous()?;
    let g = host::values(&gradient)?;
    in_place(parameter, |p| {
        in_place(m, |m| {
            in_place(v, |v| {
                let rows = p
                    .par_chunks_mut(CHUNK)
                    .zip(m.par_chunks_mut(CHUNK))
                    .zip(v.par_chunks_mut(CHUNK));
                rows.zip(g.par_chunks(CHUNK)).for_each(|(((p, m), v), g)| {
                    vectorised(
                        #[inline(always)]
                        || {
                            for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
                                let g = g * scale;
                                *m = *m * b1 + g * c1;
                                *v = *v * b2 + g * g * c2;
                                *p = *p * shrink - rate * *m / (v.sqrt() * root + eps);
                            }
                        },
                    );
                });
            })
        })
    })???;
    Ok(())
}

/// One step of SGD with momentum, neither dampened nor Nesterov: g ← g + λp; b ← μb + g; p ← p − ηb. A buffer of zeros
/// makes the first b equal to g.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn sgd(parameter: &Var, buffer: &Var, gradient: &Tensor, s: &SgdStep) -> Result<()> {
    same_shape(&[parameter, buffer], gradient)?;
    if !fusible(&[parameter, buffer, gradient]) {
        let p = parameter.as_detached_tensor();
        let g = ((gradient * s.gradient_scale)? + (&p * s.weight_decay)?)?;
        buffer.set(&((buffer.as_detached_tensor() * s.momentum)? + g)?)?;
        return parameter.set(&(p - (buffer.as_detached_tensor() * s.lr)?)?);
    }
    count("sgd");
    let (lr, momentum) = (s.lr as f32, s.momentum as f32);
    let (decay, scale) = (s.weight_decay as f32, s.gradient_scale as f32);
    let gradient = gradient.contiguous()?;
    let g = host::values(&gradient)?;
    in_place(parameter, |p| {
        in_place(buffer, |b| {
            let rows =
                p.par_chunks_mut(CHUNK).zip(b.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK));
            rows.for_each(|((p, b), g)| {
                vectorised(
                    #[inline(always)]
                    || {
                        for ((p, b), g) in p.iter_mut().zip(b).zip(g) {
                            *b = *b * momentum + (g * scale + *p * decay);
                            *p -= lr * *b;
                        }
                    },
                );
            });
        })
    })??;
    Ok(())
}

/// average ← decay · average + (1 − decay) · value.
///
/// # Errors
/// If shapes, types or devices differ.
pub fn moving_average(average: &Var, value: &Tensor, decay: f64) -> Result<()> {
    same_shape(&[average], value)?;
    if !fusible(&[average, value]) {
        return average
            .set(&((average.as_detached_tensor() * decay)? + (value.detach() * (1.0 - decay))?)?);
    }
    count("moving_average");
    let (keep, take) = (decay as f32, (1.0 - decay) as f32);
    let value = value.contiguous()?;
    let new = host::values(&value)?;
    in_place(average, |old| {
        old.par_chunks_mut(CHUNK).zip(new.par_chunks(CHUNK)).for_each(|(old, new)| {
            old.iter_mut().zip(new).for_each(|(old, new)| *old = *old * keep + new * take);
        });
    })
}

/// Σ x² over all tensors, summed in f64 in an order that does not depend on the number of threads. A GPU is waited for once.
///
/// # Errors
/// If a type is no floating-point type.
pub fn squared_norm(tensors: &[&Tensor]) -> Result<f64> {
    let (fused, others): (Vec<&Tensor>, Vec<&Tensor>) =
        tensors.iter().partition(|tensor| fusible(&[tensor]));
    let fused = fused.into_iter().map(squared_norm_of_one).collect::<Result<Vec<_>>>()?;
    let sum = fused.iter().sum::<f64>();
    if others.is_empty() {
        return Ok(sum);
    }
    let square = |x: &&Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all();
    let squares = others.iter().map(square).collect::<Result<Vec<_>>>()?;
    Ok(sum + Tensor::stack(&squares, 0)?.sum_all()?.to_scalar::<f64>()?)
}

fn squared_norm_of_one(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    let values = host::values(&x)?;
    // Eight partial sums keep the loop in vector registers.
    let partial: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut sums = [0f64; 8];
            for group in chunk.chunks(8) {
                sums.iter_mut()
                    .zip(group)
                    .for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
            }
            sums.iter().sum()
        })
        .collect();
    Ok(partial.iter().sum())
}

fn same_shape(state: &[&Var], value: &Tensor) -> Result<()> {
    for var in state {
        if var.shape() != value.shape() {
            bail!(
                "an optimizer's state has shape {:?} and the gradient {:?}",
                var.dims(),
                value.dims()
            );
        }
    }
    Ok(())
}

/// Compiles the loop for the widest vectors that this machine has.
#[inline(always)]
fn vectorised(f: impl FnOnce()) {
    pulp::Arch::new().dispatch(f);
}

/// Runs `f` on the values of a contiguous f32 tensor on the CPU.
fn in_place<R>(var: &Var, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = InPlace { f: Cell::new(Some(f)), result: Cell::new(None) };
    var.inplace_op1(&op)?;
    match op.result.take() {
        Some(result) => Ok(result),
        None => bail!("an in-place update did not run"),
    }
}

/// Candle lends a tensor's values for writing to an `InplaceOp1` alone.
struct InPlace<F, R> {
    f: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

impl<F: FnOnce(&mut [f32]) -> R, R> InplaceOp1 for InPlace<F, R> {
    fn name(&self) -> &'static str {
        "in_place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(data), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("an in-place update needs a contiguous f32 tensor")
        };
        self.result.set(self.f.take().map(|f| f(&mut data[start..end])));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::{composed, kernel_calls};

    fn values(n: usize, seed: u64) -> Tensor {
        let mut stream = crate::rng::Rng::new(seed).stream(crate::rng::Purpose::Init, 0, 0);
        let data: Vec<f32> = (0..n).map(|_| stream.normal() as f32).collect();
        Tensor::from_vec(data, n, &Device::Cpu).unwrap()
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
    }

    fn step(step: u64) -> AdamWStep {
        AdamWStep { betas: [0.9, 0.999], eps: 1e-8, step, gradient_scale: 0.3 }
    }

    /// Parameters of less than a chunk, of one and of more, each with a rate of its own.
    #[test]
    fn the_gpus_adamw_equals_the_composed_one() -> Result<()> {
        let sizes = [300, 1, 2048, 5000];
        let inputs = [values(sizes.iter().sum(), 1), values(sizes.iter().sum(), 2)];
        crate::ops::gpu::emulator::assert_kernel("adamw", 1e-6, &inputs, |t| {
            let parts = |t: &Tensor| -> Result<Vec<Tensor>> {
                let part = |start: &mut usize, size: &usize| {
                    let part = t.detach().narrow(0, *start, *size);
                    *start += size;
                    Some(part)
                };
                sizes.iter().scan(0, part).collect()
            };
            let vars = |like: &Tensor| {
                parts(like)?.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>()
            };
            let (p, m, v) = (vars(&t[0])?, vars(&t[0].zeros_like()?)?, vars(&t[0].zeros_like()?)?);
            let gradients = parts(&t[1])?;
            let parameters: Vec<AdamWParameter> = (0..sizes.len())
                .map(|i| AdamWParameter {
                    value: &p[i],
                    moments: [&m[i], &v[i]],
                    gradient: &gradients[i],
                    lr: 0.01 * (1.0 + i as f64),
                    weight_decay: 0.05 * i as f64,
                })
                .collect();
            for t in 2..5 {
                adamw(&parameters, &step(t))?;
            }
            let whole = |vars: &[Var]| {
                Tensor::cat(&vars.iter().map(Var::as_detached_tensor).collect::<Vec<_>>(), 0)
            };
            let after = Tensor::stack(&[whole(&p)?, whole(&m)?, whole(&v)?], 0)?;
            // The inputs take part, so that they have gradients to compare.
            after.broadcast_add(&(&t[0] + &t[1])?)
        })
    }

    /// An odd size over several chunks; three steps, so that the state matters.
    const N: usize = 3 * CHUNK + 17;

    #[test]
    fn the_fused_adamw_equals_the_composed_one() -> Result<()> {
        let run = || -> Result<Vec<Var>> {
            let vars =
                vec![Var::from_tensor(&values(N, 1))?, Var::zeros(N, DType::F32, &Device::Cpu)?];
            let vars = [vars, vec![Var::zeros(N, DType::F32, &Device::Cpu)?]].concat();
            for t in 1..=3 {
                let parameter = AdamWParameter {
                    value: &vars[0],
                    moments: [&vars[1], &vars[2]],
                    gradient: &values(N, 1 + t),
                    lr: 0.01,
                    weight_decay: 0.05,
                };
                adamw(&[parameter], &step(t))?;
            }
            Ok(vars)
        };
        let before = kernel_calls("adamw");
        let fused = run()?;
        assert!(kernel_calls("adamw") >= before + 3);
        for (fused, plain) in fused.iter().zip(composed(run)?) {
            assert!(largest_difference(fused, &plain) < 1e-6);
        }
        Ok(())
    }

    #[test]
    fn the_fused_sgd_and_average_equal_the_composed_ones() -> Result<()> {
        let run = || -> Result<Vec<Var>> {
            let vars =
                vec![Var::from_tensor(&values(N, 1))?, Var::zeros(N, DType::F32, &Device::Cpu)?];
            let average = Var::from_tensor(&values(N, 9))?;
            for step in 1..=3 {
                let s = SgdStep { lr: 0.1, momentum: 0.9, weight_decay: 0.01, gradient_scale: 0.5 };
                sgd(&vars[0], &vars[1], &values(N, 1 + step), &s)?;
                moving_average(&average, &vars[0], 0.7)?;
            }
            Ok([vars, vec![average]].concat())
        };
        let before = kernel_calls("sgd");
        let fused = run()?;
        assert!(kernel_calls("sgd") >= before + 3);
        for (fused, plain) in fused.iter().zip(composed(run)?) {
            assert!(largest_difference(fused, &plain) < 2e-6);
        }
        Ok(())
    }

    #[test]
    fn the_norm_does_not_depend_on_the_number_of_threads() -> Result<()> {
        let x = values(N, 4);
        let alone = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .map_err(candle_core::Error::wrap)?;
        let both = [&x, &x];
        let one = alone.install(|| squared_norm(&both))?;
        assert_eq!(one.to_bits(), squared_norm(&both)?.to_bits());
        assert!((one - composed(|| squared_norm(&both))?).abs() < 1e-6 * one);
        Ok(())
    }
}
