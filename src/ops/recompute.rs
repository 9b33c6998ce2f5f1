//! Activations that are computed again instead of kept (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
//! arXiv 1604.06174).

use candle_core::{Result, Shape, Tensor, Var};

use super::flat::{flat, split};
use super::fresh::Fresh;
use super::{are_composed, composed};

/// What `run` makes of `x`, tensors of one type; of what lies between, nothing is kept. The backward pass calls `run` once
/// more, which must give the same again: random numbers come from their keys, and nothing may be counted or updated. The
/// gradients reach `x` and every parameter that `run` reads.
///
/// # Errors
/// If `run` fails, or gives tensors of several types.
pub(crate) fn recomputed(
    x: &Tensor,
    run: impl Fn(&Tensor) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Result<Vec<Tensor>> {
    let input = cut(x)?;
    let outputs = run(&input)?;
    let shapes: Vec<Shape> = outputs.iter().map(|y| y.shape().clone()).collect();
    let outputs = flat(&outputs)?;
    let parameters: Vec<Tensor> = outputs
        .sorted_nodes()
        .into_iter()
        .filter(|node| node.is_variable() && node.id() != input.id())
        .cloned()
        .collect();
    let values = outputs.detach();
    drop(outputs);
    let together = match &parameters[..] {
        [] => values.clone(), // Without gradient.
        some => flat(some)?,
    };
    let composed_too = are_composed();
    let backward = move |inputs: &[&Tensor], _: &Tensor, grad: &Tensor| {
        let input = cut(inputs[0])?;
        let again = || flat(&run(&input)?);
        let outputs = if composed_too { composed(again) } else { again() }?;
        let mut grads = (outputs * grad)?.sum_all()?.backward()?;
        let of_x = if inputs[0].track_op() { grads.remove(&input) } else { None };
        let of_parameters = parameters.iter().map(|parameter| match grads.remove(parameter) {
            Some(grad) => Ok(grad),
            None => parameter.zeros_like(),
        });
        let of_parameters = of_parameters.collect::<Result<Vec<_>>>()?;
        let together = if of_parameters.is_empty() { None } else { Some(flat(&of_parameters)?) };
        Ok(vec![of_x, together])
    };
    let y = Fresh::copy_of(&values)?.with_gradient(&[x, &together], backward)?;
    split(&y, &shapes)
}

/// The same values as a leaf of their own graph, which has a gradient where `x` has one.
fn cut(x: &Tensor) -> Result<Tensor> {
    if x.track_op() { Ok(Var::from_tensor(x)?.into_inner()) } else { Ok(x.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradcheck::{check, normal};

    #[test]
    fn gradients_reach_the_input_and_every_parameter() -> Result<()> {
        let inputs = [normal(&[3, 4], 1)?, normal(&[4, 5], 2)?, normal(&[5], 3)?];
        let both = |t: &[Tensor]| {
            let (weight, bias) = (t[1].clone(), t[2].clone());
            let run = move |x: &Tensor| {
                let y = x.matmul(&weight)?;
                Ok(vec![y.tanh()?, y.broadcast_mul(&bias)?.sum(0)?])
            };
            let outputs = recomputed(&t[0], run)?;
            assert_eq!((outputs[0].dims(), outputs[1].dims()), (&[3, 5][..], &[5][..]));
            outputs[0].broadcast_mul(&outputs[1])
        };
        check(both, &inputs)
    }

    #[test]
    fn an_input_without_gradient_stays_without() -> Result<()> {
        let (x, weight) = (normal(&[3, 4], 1)?, Var::from_tensor(&normal(&[4, 5], 2)?)?);
        let tensor = weight.as_tensor().clone();
        let y = recomputed(&x, move |x| Ok(vec![x.matmul(&tensor)?]))?.remove(0);
        let grads = y.sum_all()?.backward()?;
        assert!(grads.get(&x).is_none());
        let want = x.matmul(weight.as_tensor())?.sum_all()?.backward()?;
        let values = |t: Option<&Tensor>| t.unwrap().to_vec2::<f64>();
        assert_eq!(values(grads.get(&weight))?, values(want.get(&weight))?);
        assert!(!recomputed(&x, |x| Ok(vec![x.sqr()?]))?[0].track_op());
        Ok(())
    }
}
