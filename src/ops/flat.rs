//! Several tensors as one row of values, and back.

use candle_core::{Result, Shape, Tensor};

/// All values one after the other.
pub(crate) fn flat(tensors: &[Tensor]) -> Result<Tensor> {
    let parts = tensors.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}

/// The parts of such a row.
pub(crate) fn split<'a>(
    flat: &Tensor,
    shapes: impl IntoIterator<Item = &'a Shape>,
) -> Result<Vec<Tensor>> {
    let mut first = 0;
    let part = |shape: &Shape| {
        let part = flat.narrow(0, first, shape.elem_count())?.reshape(shape)?;
        first += shape.elem_count();
        Ok(part)
    };
    shapes.into_iter().map(part).collect()
}
