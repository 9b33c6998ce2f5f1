//! NumPy arrays inside a pickle: the form in which detectron2 publishes its models (`.pkl`).

use std::borrow::Cow;

use candle_core::{Result, Tensor, bail};

use super::npz::{Order, tensor};
use super::pickle::{Id, Value, Values};

/// The array `id` of a pickle with the bytes `input`; `None` for any other value, and for arrays of objects or strings.
///
/// # Errors
/// If its description is incomplete, its type is not supported, or its data is cut off.
pub(super) fn array(values: &Values, id: Id, input: &[u8]) -> Result<Option<Tensor>> {
    let (shape, element, columns, data) = match values.get(id) {
        Value::Array(Some(state)) => match values.list(*state) {
            Some(&[_version, shape, element, fortran, data]) => {
                (shape, element, values.get(fortran) == &Value::Bool(true), data)
            }
            _ => bail!("an array without its state"),
        },
        Value::Array(None) => bail!("an array without its state"),
        Value::Buffer(arguments) => match arguments[..] {
            [data, element, shape, order] => {
                (shape, element, values.text(order) == Some("F"), data)
            }
            _ => bail!("an array without a description"),
        },
        _ => return Ok(None),
    };
    let Some(descr) = element_type(values, element) else { bail!("an array without a type") };
    let number = |&id: &Id| values.int(id).and_then(|n| usize::try_from(n).ok());
    let dims = values.list(shape).and_then(|list| list.iter().map(number).collect());
    let Some(dims) = dims else { bail!("its shape is not one") };
    let Some(data) = bytes(values, data, input) else {
        // Arrays of Python objects have a list instead.
        return Ok(None);
    };
    let order = if columns { Order::Columns } else { Order::Rows };
    tensor(&descr, order, dims, &data)
}

/// `<f4` and the like.
fn element_type(values: &Values, id: Id) -> Option<String> {
    let Value::ElementType(name, state) = values.get(id) else { return None };
    let order = state.and_then(|state| values.text(*values.list(state)?.get(1)?));
    let name = values.text(*name)?;
    // A name that tells its byte order needs no state.
    Some(match name.starts_with(['<', '>', '|']) {
        true => name.to_owned(),
        false => format!("{}{name}", order.unwrap_or("|")),
    })
}

fn bytes<'a>(values: &Values, id: Id, input: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    match values.get(id) {
        Value::Bytes(range, _) => input.get(range.clone()).map(Cow::Borrowed),
        Value::Encoded(text) => {
            let characters = values.text(*text)?.chars();
            characters
                .map(|c| u8::try_from(u32::from(c)).ok())
                .collect::<Option<Vec<u8>>>()
                .map(Cow::Owned)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::pickle::read;

    /// `{"w": array([1.0, -2.0], dtype=<order>f4)}` as Python 2 writes it, with text and data in byte strings.
    fn python_2(order: u8) -> Vec<u8> {
        let mut bytes = b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01".to_vec();
        bytes.push(order);
        bytes.extend(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08");
        bytes.extend([1f32, -2.0].iter().flat_map(|value| value.to_le_bytes()));
        bytes.extend(b"tbs.");
        bytes
    }

    fn first(bytes: &[u8]) -> Result<Option<Tensor>> {
        let (values, root, _) = read(bytes)?;
        let Value::Dict(entries) = values.get(root) else { bail!("no dictionary") };
        let Some((_, value)) = entries.first() else { bail!("an empty dictionary") };
        array(&values, *value, bytes)
    }

    #[test]
    fn arrays_that_python_2_wrote() {
        let found = first(&python_2(b'<')).unwrap().unwrap();
        assert_eq!(found.to_vec1::<f32>().unwrap(), [1.0, -2.0]);
    }

    #[test]
    fn the_other_byte_order_is_an_error() {
        assert!(first(&python_2(b'>')).unwrap_err().to_string().contains(">f4"));
    }

    #[test]
    fn damage_is_an_error_or_another_value_and_never_a_panic() {
        let whole = python_2(b'<');
        for at in 0..whole.len() {
            for byte in [0, 1, 2, b'.', b'N', b'b', b't', b'R', 255] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                drop(first(&damaged));
            }
        }
    }
}
