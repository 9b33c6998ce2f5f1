//! The map operations against reference files, finite differences and each other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Result, Tensor, Var};

use super::gradcheck::{check, normal};
use super::twin::{assert_twins, random};
use super::*;
use crate::world::World;

/// A reference file: its tensors, and metadata as JSON.
struct Fixture {
    name: String,
    hyper: serde_json::Value,
    tolerances: HashMap<String, f64>,
    tensors: HashMap<String, Tensor>,
}

impl Fixture {
    fn read(path: &Path) -> Fixture {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let meta = header.metadata().clone().unwrap();
        Fixture {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            hyper: serde_json::from_str(&meta["hyper"]).unwrap(),
            tolerances: serde_json::from_str(&meta["tolerances"]).unwrap(),
            tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
        }
    }

    fn size(&self, key: &str) -> usize {
        self.hyper[key].as_u64().unwrap() as usize
    }

    fn output_size(&self) -> (usize, usize) {
        let side = |i: usize| self.hyper["size"][i].as_u64().unwrap() as usize;
        (side(0), side(1))
    }

    fn run(&self, vars: &HashMap<&str, Var>) -> Result<Tensor> {
        let x = vars["input.x"].as_tensor();
        let align_corners = self.hyper["align_corners"].as_bool().unwrap_or(false);
        match self.hyper["op"].as_str().unwrap() {
            "bilinear" => resize(x, self.output_size(), Interpolation::Bilinear { align_corners }),
            "bicubic" => resize(x, self.output_size(), Interpolation::Bicubic { align_corners }),
            "nearest" => resize(x, self.output_size(), Interpolation::Nearest),
            "adaptive_avg_pool2d" => adaptive_avg_pool2d(x, self.output_size()),
            "max_pool2d" => {
                max_pool2d(x, self.size("kernel"), self.size("stride"), self.size("padding"))
            }
            "conv_transpose2d" => {
                conv_transpose2x2(x, &vars["weights.weight"], Some(&vars["weights.bias"]))
            }
            other => panic!("{other} is not a map operation"),
        }
    }

    /// Every output and gradient within the file's own tolerances.
    fn assert_holds(&self) -> Result<()> {
        let mut vars = HashMap::new();
        for name in ["input.x", "weights.weight", "weights.bias"] {
            if let Some(tensor) = self.tensors.get(name) {
                vars.insert(name, Var::from_tensor(tensor)?);
            }
        }
        let y = self.run(&vars)?;
        let grads = (&y * &self.tensors["input.grad_out"])?.sum_all()?.backward()?;
        for (name, tolerance) in &self.tolerances {
            let mine = match name.as_str() {
                "output.y" => y.clone(),
                "grad.input.x" => grads.get(&vars["input.x"]).unwrap().clone(),
                "grad.weight" => grads.get(&vars["weights.weight"]).unwrap().clone(),
                "grad.bias" => grads.get(&vars["weights.bias"]).unwrap().clone(),
                other => panic!("unknown output {other}"),
            };
            let wanted = &self.tensors[name];
            assert_eq!(mine.dims(), wanted.dims(), "{} {name}", self.name);
            let worst = (mine - wanted)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            assert!(
                f64::from(worst) <= *tolerance,
                "{} {name}: off by {worst}, allowed {tolerance}",
                self.name
            );
        }
        Ok(())
    }
}

fn fixtures(prefix: &str) -> Vec<Fixture> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix));
    paths.sort();
    paths.iter().map(|path| Fixture::read(path)).collect()
}

#[test]
fn resizing_and_pooling_match_the_reference_files() -> Result<()> {
    let fixtures = fixtures("resize_");
    assert!(fixtures.len() >= 20, "only {} files", fixtures.len());
    for fixture in fixtures {
        composed(|| fixture.assert_holds())?;
        fixture.assert_holds()?;
    }
    Ok(())
}

#[test]
fn convolution_gradients_match_finite_differences() -> Result<()> {
    let cases = [
        // (map, kernel, convolution)
        ((5, 6), (3, 3), Conv2d { stride: 2, padding: 1, ..Conv2d::default() }),
        ((5, 7), (3, 3), Conv2d::same(3)),
        ((6, 5), (3, 2), Conv2d { dilation: 2, padding: 2, ..Conv2d::default() }),
        ((5, 4), (1, 1), Conv2d::default()),
        ((5, 4), (1, 1), Conv2d { stride: 2, ..Conv2d::default() }),
        ((5, 7), (2, 2), Conv2d { stride: 2, ..Conv2d::default() }),
        ((4, 5), (3, 3), Conv2d { groups: 2, ..Conv2d::same(3) }),
    ];
    for ((height, width), (kh, kw), conv) in cases {
        let x = normal(&[2, 4, height, width], 1)?;
        let inputs = [x, normal(&[6, 4 / conv.groups, kh, kw], 2)?, normal(&[6], 3)?];
        check(|t| conv2d(&t[0], &t[1], Some(&t[2]), conv), &inputs)?;
    }
    Ok(())
}

#[test]
fn convolution_equals_candles() -> Result<()> {
    for conv in [Conv2d::same(3), Conv2d { stride: 2, padding: 1, dilation: 1, groups: 2 }] {
        let (x, w) = (normal(&[2, 4, 7, 6], 1)?, normal(&[6, 4 / conv.groups, 3, 3], 2)?);
        let wanted = x.conv2d(&w, conv.padding, conv.stride, conv.dilation, conv.groups)?;
        assert!(gradcheck::relative_difference(&conv2d(&x, &w, None, conv)?, &wanted)? < 1e-12);
    }
    Ok(())
}

#[test]
fn map_gradients_match_finite_differences() -> Result<()> {
    let x = [normal(&[2, 3, 5, 7], 4)?];
    check(|t| max_pool2d(&t[0], 2, 2, 0), &x)?;
    check(|t| max_pool2d(&t[0], 3, 2, 1), &x)?;
    check(|t| max_pool2d(&t[0], 1, 2, 0), &x)?;
    check(|t| avg_pool2d(&t[0], 2, 2), &x)?;
    check(|t| avg_pool2d(&t[0], 3, 1), &x)?;
    check(|t| adaptive_avg_pool2d(&t[0], (3, 2)), &x)?;
    check(|t| resize(&t[0], (9, 4), Interpolation::Nearest), &x)?;
    check(|t| resize_bilinear(&t[0], (9, 4)), &x)?;
    check(|t| resize(&t[0], (3, 11), Interpolation::Bicubic { align_corners: true }), &x)?;
    // A map that is used twice collects both gradients.
    check(
        |t| resize_bilinear(&t[0], (10, 14))?.narrow(2, 0, 5)?.narrow(3, 0, 7)? + &t[0] * 2.0,
        &x,
    )?;
    let inputs = [x[0].clone(), normal(&[3, 4, 2, 2], 5)?, normal(&[4], 6)?];
    check(|t| conv_transpose2x2(&t[0], &t[1], Some(&t[2])), &inputs)
}

fn batch_norm(channels: usize, dtype: DType) -> Result<BatchNorm> {
    let store = crate::params::ParamStore::new(&Device::Cpu, dtype, 0);
    BatchNorm::new(channels, &store.root())
}

#[test]
fn batch_norm_gradients_match_finite_differences() -> Result<()> {
    let inputs = [normal(&[2, 3, 4, 5], 7)?, normal(&[3], 8)?, normal(&[3], 9)?];
    for mode in [NormMode::Batch { update: false, world: World::SINGLE }, NormMode::Running] {
        let norm = batch_norm(3, DType::F64)?;
        norm.running_var.set(&normal(&[3], 10)?.sqr()?)?;
        check(
            |t| {
                let norm = BatchNorm { weight: t[1].clone(), bias: t[2].clone(), ..norm.clone() };
                norm.forward(&t[0], mode)
            },
            &inputs,
        )?;
    }
    Ok(())
}

#[test]
fn running_statistics_follow_the_batch() -> Result<()> {
    // Channel values 1, 3, 5, 7: mean 4, unbiased variance 20/3; a tenth of them joins 0 and 1.
    let norm = batch_norm(1, DType::F32)?;
    let x = Tensor::new(&[1f32, 3., 5., 7.], &Device::Cpu)?.reshape((1, 1, 2, 2))?;
    let y = norm.forward(&x, NormMode::Batch { update: true, world: World::SINGLE })?;
    assert!((norm.running_mean.to_vec1::<f32>()?[0] - 0.4).abs() < 1e-6);
    assert!((norm.running_var.to_vec1::<f32>()?[0] - (0.9 + 2.0 / 3.0)).abs() < 1e-6);
    // (1 − 4) / √5.
    assert!((y.flatten_all()?.to_vec1::<f32>()?[0] + 3.0 / 5f32.sqrt()).abs() < 1e-5);
    assert!(
        norm.forward(
            &x.narrow(2, 0, 1)?.narrow(3, 0, 1)?,
            NormMode::Batch { update: false, world: World::SINGLE }
        )
        .is_err()
    );
    Ok(())
}

#[test]
fn fused_convolution_equals_the_composed_one() -> Result<()> {
    let default = Conv2d::default();
    let cases = [
        // (batch, channels, map, outputs, kernel, convolution)
        (1, 768, (9, 11), 40, 3, Conv2d::same(3)),
        (2, 24, (13, 7), 768, 3, Conv2d::same(3)),
        (3, 768, (5, 7), 19, 1, default),
        (2, 3, (29, 33), 50, 14, Conv2d { stride: 14, ..default }),
        (2, 5, (8, 11), 6, 3, Conv2d { stride: 2, padding: 1, ..default }),
        (2, 5, (9, 10), 6, 3, Conv2d { stride: 3, padding: 1, ..default }),
        (2, 5, (9, 10), 6, 5, Conv2d { stride: 2, padding: 2, dilation: 2, ..default }),
        (2, 5, (9, 10), 6, 3, Conv2d { padding: 3, dilation: 2, ..default }),
        (2, 5, (4, 6), 6, 1, Conv2d { stride: 2, padding: 2, ..default }),
        (1, 4, (1, 1), 3, 3, Conv2d::same(3)),
        (1, 4, (70, 65), 8, 3, Conv2d::same(3)),
        (1, 4, (6, 8), 2, 2, Conv2d { stride: 3, ..default }),
    ];
    for (batch, channels, (height, width), outputs, kernel, conv) in cases {
        let x = random(&[batch, channels, height, width], 1)?;
        let inputs = [x, random(&[outputs, channels, kernel, kernel], 2)?, random(&[outputs], 3)?];
        let biased = |t: &[Tensor]| conv2d(&t[0], &t[1], Some(&t[2]), conv);
        assert_twins("conv2d", 1e-5, &inputs, biased)?;
        let plain = |t: &[Tensor]| conv2d(&t[0], &t[1], None, conv);
        assert_twins("conv2d", 1e-5, &inputs[..2], plain)?;
    }
    Ok(())
}

#[test]
fn a_frozen_convolution_costs_no_weight_gradient() -> Result<()> {
    let (x, w) = (Var::from_tensor(&random(&[1, 4, 5, 5], 1)?)?, random(&[3, 4, 3, 3], 2)?);
    let grads = conv2d(&x, &w, None, Conv2d::same(3))?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_some() && grads.get(&w).is_none());
    Ok(())
}

#[test]
fn fused_transposed_convolution_equals_the_composed_one() -> Result<()> {
    for (batch, channels, outputs, height, width) in
        [(1, 768, 96, 9, 7), (3, 5, 768, 3, 5), (2, 3, 2, 1, 1)]
    {
        let x = random(&[batch, channels, height, width], 1)?;
        let inputs = [x, random(&[channels, outputs, 2, 2], 2)?, random(&[outputs], 3)?];
        let biased = |t: &[Tensor]| conv_transpose2x2(&t[0], &t[1], Some(&t[2]));
        assert_twins("conv_transpose2x2", 1e-5, &inputs, biased)?;
        let plain = |t: &[Tensor]| conv_transpose2x2(&t[0], &t[1], None);
        assert_twins("conv_transpose2x2", 1e-5, &inputs[..2], plain)?;
    }
    Ok(())
}

#[test]
fn fused_resizing_and_averaging_equal_the_composed_ones() -> Result<()> {
    let x = [random(&[2, 768, 7, 9], 1)?];
    let modes = [
        Interpolation::Nearest,
        Interpolation::Bilinear { align_corners: false },
        Interpolation::Bilinear { align_corners: true },
        Interpolation::Bicubic { align_corners: false },
    ];
    for mode in modes {
        for size in [(14, 18), (28, 36), (11, 4), (3, 20), (1, 1), (5, 9)] {
            assert_twins("separable", 1e-5, &x, |t| resize(&t[0], size, mode))?;
        }
    }
    for size in [(1, 1), (2, 2), (3, 3), (6, 6), (11, 11)] {
        assert_twins("separable", 1e-5, &x, |t| adaptive_avg_pool2d(&t[0], size))?;
    }
    assert_twins("separable", 1e-5, &x, |t| avg_pool2d(&t[0], 3, 2))
}

#[test]
fn fused_max_pooling_equals_the_composed_one() -> Result<()> {
    // Small integers: ties are common, and the first must win in both.
    let x = (random(&[2, 768, 7, 9], 1)? * 1.5)?.round()?;
    for (kernel, stride, padding) in [(2, 2, 0), (3, 2, 1), (1, 2, 0), (3, 1, 1), (5, 3, 2)] {
        let f = |t: &[Tensor]| max_pool2d(&t[0], kernel, stride, padding);
        assert_twins("max_pool2d", 1e-6, std::slice::from_ref(&x), f)?;
    }
    Ok(())
}

/// A norm whose parameters and statistics are not what they start as, and which wants no gradient.
pub(super) fn trained_norm(channels: usize) -> Result<BatchNorm> {
    let norm = batch_norm(channels, DType::F32)?;
    norm.running_mean.set(&random(&[channels], 4)?)?;
    norm.running_var.set(&(random(&[channels], 5)?.sqr()? + 0.1)?)?;
    Ok(BatchNorm { weight: random(&[channels], 6)?, bias: random(&[channels], 7)?, ..norm })
}

#[test]
fn norms_are_folded_into_convolutions_where_no_gradient_is_wanted() -> Result<()> {
    let mode = NormMode::Running;
    // By products of taps, by Winograd, by one product, by products of patches, by phases.
    let cases = [
        (&[2, 6, 7, 9], &[5, 6, 3, 3], Conv2d::same(3)),
        (&[1, 32, 40, 37], &[30, 32, 3, 3], Conv2d::same(3)),
        (&[2, 6, 7, 9], &[5, 6, 1, 1], Conv2d::default()),
        (&[2, 6, 8, 8], &[5, 6, 2, 2], Conv2d { stride: 2, ..Conv2d::default() }),
        (&[2, 6, 8, 9], &[5, 6, 3, 3], Conv2d { stride: 2, padding: 1, ..Conv2d::default() }),
    ];
    for (x, weight, conv) in cases {
        let (x, weight, norm) = (random(x, 1)?, random(weight, 2)?, trained_norm(weight[0])?);
        let before = kernel_calls("conv2d.norm_relu");
        let folded = conv2d_norm_relu(&x, &weight, conv, norm.relu(mode))?;
        assert_eq!(kernel_calls("conv2d.norm_relu"), before + 1);
        let apart = norm.relu(mode).forward(&conv2d(&x, &weight, None, conv)?)?;
        assert!(gradcheck::relative_difference(&folded, &apart)? < 1e-5);
        let coarse = random(&[apart.dim(0)?, apart.dim(1)?, 2, 3], 8)?;
        let then = norm.relu(mode).plus(&coarse);
        let sum = conv2d_norm_relu(&x, &weight, conv, then)?;
        let apart_sum = (&apart + resize_bilinear(&coarse, (apart.dim(2)?, apart.dim(3)?))?)?;
        assert!(gradcheck::relative_difference(&sum, &apart_sum)? < 1e-5);
        // With a gradient it is the two of them.
        let weight = Var::from_tensor(&weight)?;
        let tracked = conv2d_norm_relu(&x, &weight, conv, norm.relu(mode))?;
        assert!(tracked.track_op() && kernel_calls("conv2d.norm_relu") == before + 2);
        assert!(gradcheck::relative_difference(&tracked, &apart)? < 1e-5);
    }
    let (x, weight, bias) =
        (random(&[2, 6, 4, 5], 1)?, random(&[6, 5, 2, 2], 2)?, random(&[5], 3)?);
    let norm = trained_norm(5)?;
    let folded = conv_transpose2x2_norm_relu(&x, &weight, &bias, norm.relu(mode))?;
    let apart = norm.relu(mode).forward(&conv_transpose2x2(&x, &weight, Some(&bias))?)?;
    assert!(gradcheck::relative_difference(&folded, &apart)? < 1e-5);
    let wrong = trained_norm(4)?;
    assert!(conv_transpose2x2_norm_relu(&x, &weight, &bias, wrong.relu(mode)).is_err());
    Ok(())
}

#[test]
fn fused_batch_norm_equals_the_composed_one() -> Result<()> {
    let x = ((random(&[3, 768, 7, 5], 1)? * 2.0)? + 3.0)?;
    let inputs = [x, random(&[768], 2)?, random(&[768], 3)?];
    let norm = trained_norm(768)?;
    let with =
        |t: &[Tensor]| BatchNorm { weight: t[1].clone(), bias: t[2].clone(), ..norm.clone() };
    for mode in [NormMode::Batch { update: false, world: World::SINGLE }, NormMode::Running] {
        assert_twins("batch_norm", 2e-5, &inputs, |t| with(t).forward(&t[0], mode))?;
        assert_twins("batch_norm", 2e-5, &inputs, |t| with(t).relu(mode).forward(&t[0]))?;
        for size in [(3, 2), (7, 5), (1, 9)] {
            let inputs = [&inputs[..], &[random(&[3, 768, size.0, size.1], 8)?]].concat();
            let sum = |t: &[Tensor]| with(t).relu(mode).plus(&t[3]).forward(&t[0]);
            assert_twins("batch_norm", 2e-5, &inputs, sum)?;
        }
        let narrow = inputs[0].narrow(1, 0, 1)?;
        assert!(norm.relu(mode).plus(&narrow).forward(&inputs[0]).is_err());
    }
    let updated = |norm: BatchNorm| -> Result<(Tensor, Tensor)> {
        norm.forward(&inputs[0], NormMode::Batch { update: true, world: World::SINGLE })?;
        Ok((norm.running_mean.as_tensor().copy()?, norm.running_var.as_tensor().copy()?))
    };
    let fused = updated(batch_norm(768, DType::F32)?)?;
    let plain = composed(|| updated(batch_norm(768, DType::F32)?))?;
    assert!(gradcheck::relative_difference(&fused.0, &plain.0)? < 1e-6);
    assert!(gradcheck::relative_difference(&fused.1, &plain.1)? < 1e-6);
    Ok(())
}
