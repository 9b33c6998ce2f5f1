use candle_core::{Device, Result, Tensor};

use super::*;
use crate::ops::gradcheck::{check, normal};
use crate::ops::twin::{assert_twins, random};

fn scalar(x: &Tensor) -> f64 {
    x.to_dtype(candle_core::DType::F64).unwrap().to_scalar().unwrap()
}

fn labels() -> Result<Tensor> {
    Tensor::new(&[[[0u32, 2, 255], [1, 255, 2]], [[255, 0, 0], [1, 1, 2]]], &Device::Cpu)
}

#[test]
fn cross_entropy_by_hand() -> Result<()> {
    // Equal logits of 4 classes: ln 4 per position. Weights 1 and 3; the third position is ignored.
    let logits = Tensor::zeros((1, 4, 3), candle_core::DType::F32, &Device::Cpu)?;
    let labels = Tensor::new(&[[0u32, 1, 255]], &Device::Cpu)?;
    let (sum, count) = cross_entropy(&logits, &labels, &CrossEntropy::default())?;
    assert!((scalar(&sum) - 2.0 * 4f64.ln()).abs() < 1e-5 && count == 2.0);
    let class_weights = Some(Tensor::new(&[1f32, 3.0, 1.0, 1.0], &Device::Cpu)?);
    let weighted = CrossEntropy { class_weights, ..CrossEntropy::default() };
    let (sum, count) = cross_entropy(&logits, &labels, &weighted)?;
    assert!((scalar(&sum) - 4.0 * 4f64.ln()).abs() < 1e-5 && count == 4.0);
    Ok(())
}

#[test]
fn soft_targets_by_hand_and_in_the_gradient() -> Result<()> {
    // log softmax of (ln 1, ln 2, ln 5) is ln of (1/8, 2/8, 5/8).
    let logits = Tensor::new(&[[1f64.ln(), 2f64.ln(), 5f64.ln()]], &Device::Cpu)?;
    let targets = Tensor::new(&[[0.25, 0.75, 0.0]], &Device::Cpu)?;
    let expected = -(0.25 * 0.125f64.ln() + 0.75 * 0.25f64.ln());
    assert!((scalar(&soft_cross_entropy(&logits, &targets)?) - expected).abs() < 1e-12);
    let targets = candle_nn::ops::softmax(&normal(&[4, 3], 2)?, 1)?;
    check(|t| soft_cross_entropy(&t[0], &targets), &[normal(&[4, 3], 1)?])
}

#[test]
fn loss_gradients_match_finite_differences() -> Result<()> {
    let logits = [normal(&[2, 3, 2, 3], 1)?];
    let weighted = CrossEntropy {
        ignore_index: 255,
        class_weights: Some(Tensor::new(&[0.5, 2.0, 1.0], &Device::Cpu)?),
    };
    for opts in [CrossEntropy::default(), weighted] {
        check(|t| Ok(cross_entropy(&t[0], &labels()?, &opts)?.0), &logits)?;
        check(|t| cross_entropy_per_pixel(&t[0], &labels()?, &opts), &logits)?;
    }
    check(|t| Ok(dice(&t[0], &labels()?, &Dice::default())?.0), &logits)?;
    let teacher = normal(&[2, 3, 2, 3], 2)?;
    check(|t| kl_div(&teacher, &t[0], 1), &logits)?;
    let targets = candle_nn::ops::sigmoid(&teacher)?;
    check(|t| bce_with_logits(&t[0], &targets), &logits)?;
    // A head that starts at zero needs the gradient there.
    check(|t| bce_with_logits(&t[0], &targets), &[targets.zeros_like()?])?;
    check(|t| smooth_l1(&t[0], 0.0), &logits)?;
    check(|t| smooth_l1(&t[0], 1.0), &logits)
}

#[test]
fn large_logits_do_not_overflow() -> Result<()> {
    let x = Tensor::new(&[200f32, -200.0], &Device::Cpu)?;
    let loss = bce_with_logits(&x, &Tensor::new(&[0f32, 1.0], &Device::Cpu)?)?;
    assert_eq!(loss.to_vec1::<f32>()?, [200.0, 200.0]);
    let logits = Tensor::new(&[[500f32, -500.0]], &Device::Cpu)?;
    let (sum, _) =
        cross_entropy(&logits, &Tensor::new(&[1u32], &Device::Cpu)?, &CrossEntropy::default())?;
    assert_eq!(scalar(&sum), 1000.0);
    Ok(())
}

#[test]
fn the_teacher_gets_no_gradient() -> Result<()> {
    let teacher = candle_core::Var::from_tensor(&normal(&[2, 3], 1)?)?;
    let student = candle_core::Var::from_tensor(&normal(&[2, 3], 2)?)?;
    let grads = kl_div(&teacher, &student, 1)?.sum_all()?.backward()?;
    assert!(grads.get(&teacher).is_none() && grads.get(&student).is_some());
    assert!(scalar(&kl_div(&student, &student, 1)?.sum_all()?).abs() < 1e-12);
    Ok(())
}

#[test]
fn hard_pixels_are_chosen_by_threshold_or_loss() -> Result<()> {
    // Two classes, label 0; true-class probabilities 0.9, 0.6, 0.3, and an ignored position.
    let odds = |p: f64| (p / (1.0 - p)).ln();
    let logits = Tensor::new(&[[[odds(0.9), odds(0.6), odds(0.3), 0.0], [0.0; 4]]], &Device::Cpu)?;
    let labels = Tensor::new(&[[0u32, 0, 0, 255]], &Device::Cpu)?;
    let sum = |ohem| -> Result<f64> {
        let (sum, count) = ohem_cross_entropy(&logits, &labels, &CrossEntropy::default(), ohem)?;
        assert_eq!(count, 3.0);
        Ok(scalar(&sum))
    };
    // Below 0.7: 0.6 and 0.3.
    let hard = -(0.6f64.ln() + 0.3f64.ln());
    assert!((sum(Ohem { thresh: Some(0.7), min_kept: 1 })? - hard).abs() < 1e-9);
    // Below 0.1 nothing lies; the third smallest probability, 0.9, becomes the bound (strictly below).
    assert!((sum(Ohem { thresh: Some(0.1), min_kept: 2 })? - hard).abs() < 1e-9);
    // The largest loss alone.
    assert!((sum(Ohem { thresh: None, min_kept: 1 })? + 0.3f64.ln()).abs() < 1e-9);
    Ok(())
}

#[test]
fn dice_by_hand() -> Result<()> {
    // Certain and right everywhere: p = t, so 1 − 2n / (2n + 2 eps) with n = 2 positions that count.
    let logits = Tensor::new(&[[[1000f64, -1000.0, 0.0], [-1000.0, 1000.0, 0.0]]], &Device::Cpu)?;
    let labels = Tensor::new(&[[0u32, 1, 255]], &Device::Cpu)?;
    let (sum, count) = dice(&logits, &labels, &Dice::default())?;
    assert!((scalar(&sum) - (1.0 - 4.0 / 4.002)).abs() < 1e-12 && count == 1.0);
    Ok(())
}

/// Labels below `classes`, about a tenth of them ignored.
fn random_labels(shape: &[usize], classes: usize) -> Result<Tensor> {
    let values = random(shape, 5)?.flatten_all()?.to_vec1::<f32>()?;
    let label = |v: f32| if v > 1.3 { 255 } else { (v.abs() * 1e4) as u32 % classes as u32 };
    Tensor::from_vec(values.into_iter().map(label).collect::<Vec<u32>>(), shape, &Device::Cpu)
}

#[test]
fn fused_cross_entropy_equals_the_composed_one() -> Result<()> {
    for (classes, shape) in
        [(150, vec![2, 37, 29]), (1, vec![2, 3]), (11, vec![3, 700]), (5, vec![4])]
    {
        let mut dims = shape.clone();
        dims.insert(1, classes);
        let logits = (random(&dims, 1)? * 5.0)?;
        let labels = random_labels(&shape, classes)?;
        let class_weights = Some(random(&[classes], 2)?.abs()?);
        for opts in
            [CrossEntropy::default(), CrossEntropy { class_weights, ..CrossEntropy::default() }]
        {
            let per_pixel = |t: &[Tensor]| cross_entropy_per_pixel(&t[0], &labels, &opts);
            assert_twins("cross_entropy", 1e-5, std::slice::from_ref(&logits), per_pixel)?;
            let sum = |t: &[Tensor]| Ok(cross_entropy(&t[0], &labels, &opts)?.0);
            assert_twins("cross_entropy", 1e-5, std::slice::from_ref(&logits), sum)?;
        }
    }
    Ok(())
}

#[test]
fn cross_entropy_of_resized_logits_equals_the_composed_one() -> Result<()> {
    for (low, high) in [
        ((9, 13), (36, 52)),
        ((9, 7), (41, 50)),
        ((5, 6), (3, 17)),
        ((1, 1), (20, 4)),
        ((40, 30), (20, 33)),
    ] {
        let logits = (random(&[2, 21, low.0, low.1], 1)? * 3.0)?;
        let labels = random_labels(&[2, high.0, high.1], 21)?;
        let class_weights = Some(random(&[21], 2)?.abs()?);
        for opts in
            [CrossEntropy::default(), CrossEntropy { class_weights, ..CrossEntropy::default() }]
        {
            let sum = |t: &[Tensor]| Ok(cross_entropy_resized(&t[0], &labels, &opts)?.0);
            assert_twins("cross_entropy_resized", 1e-5, std::slice::from_ref(&logits), sum)?;
            let (_, count) = cross_entropy_resized(&logits, &labels, &opts)?;
            assert_eq!(
                count,
                crate::ops::composed(|| cross_entropy_resized(&logits, &labels, &opts))?.1
            );
        }
    }
    Ok(())
}
