//! NumPy's `.npz` archives, the form in which Google publishes ViT.

use std::io::{Cursor, Read};

use candle_core::{DType, Device, Result, Tensor, bail};
use zip::ZipArchive;

use super::checkpoint::Tensors;

/// The arrays of an archive by name, and the names of entries that are no arrays of numbers.
pub(super) fn read(archive: &mut ZipArchive<Cursor<&[u8]>>) -> Result<(Tensors, Vec<String>)> {
    let (mut tensors, mut beside) = (Tensors::new(), vec![]);
    for index in 0..archive.len() {
        let mut file = archive.by_index(index).map_err(candle_core::Error::wrap)?;
        let name = file.name().map_err(candle_core::Error::wrap)?.into_owned();
        let Some(name) = name.strip_suffix(".npy") else {
            beside.push(name);
            continue;
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let array = array(&bytes)
            .map_err(|error| candle_core::Error::Msg(format!("array `{name}`: {error}")))?;
        match array {
            Some(tensor) => drop(tensors.insert(name.to_owned(), tensor)),
            None => beside.push(name.to_owned()),
        }
    }
    Ok((tensors, beside))
}

/// One `.npy` array; `None` for one of Python objects or strings.
fn array(bytes: &[u8]) -> Result<Option<Tensor>> {
    let Some((header, data)) = split(bytes) else { bail!("its header is damaged") };
    let (Some(descr), Some(order), Some(shape)) =
        (field(header, "descr"), field(header, "fortran_order"), field(header, "shape"))
    else {
        bail!("its header lacks a field: {header}")
    };
    let dims =
        shape.trim_matches(['(', ')']).split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let Ok(dims) = dims.map(str::parse::<usize>).collect::<std::result::Result<Vec<_>, _>>() else {
        bail!("its shape {shape} is not one")
    };
    let order = if order == "False" { Order::Rows } else { Order::Columns };
    tensor(descr.trim_matches(['\'', '"']), order, dims, data)
}

/// How the elements of an array follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The last axis fastest (C).
    Rows,
    /// The first axis fastest (Fortran).
    Columns,
}

/// The array of type `descr` (`<f4`, …) and size `dims` at the start of `data`; `None` for Python objects or strings.
pub(super) fn tensor(
    descr: &str,
    order: Order,
    mut dims: Vec<usize>,
    data: &[u8],
) -> Result<Option<Tensor>> {
    let dtype = match descr {
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "<f2" => DType::F16,
        // JAX saves bfloat16 as two bytes of no type.
        "|V2" | "<V2" => DType::BF16,
        "<i8" => DType::I64,
        "<i4" => DType::I32,
        "<i2" => DType::I16,
        "<u4" => DType::U32,
        "|u1" | "|b1" => DType::U8,
        other if other.contains(['O', 'U', 'S']) => return Ok(None),
        other => bail!("element type {other} is not supported"),
    };
    let wanted = dims.iter().try_fold(dtype.size_in_bytes(), |n, &dim| n.checked_mul(dim));
    let Some(values) = wanted.and_then(|wanted| data.get(..wanted)) else { bail!("it is cut off") };
    if order == Order::Rows {
        return Tensor::from_raw_buffer(values, dtype, &dims, &Device::Cpu).map(Some);
    }
    // Column-major order is row-major order of the transpose.
    dims.reverse();
    let transposed = Tensor::from_raw_buffer(values, dtype, &dims, &Device::Cpu)?;
    let axes: Vec<usize> = (0..dims.len()).rev().collect();
    transposed.permute(axes)?.contiguous().map(Some)
}

/// Header text and data, after the magic bytes, the version and the header's length.
fn split(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let rest = bytes.strip_prefix(b"\x93NUMPY")?;
    let (version, rest) = rest.split_at_checked(2)?;
    let width = if version[0] == 1 { 2 } else { 4 };
    let (length, rest) = rest.split_at_checked(width)?;
    let length = length.iter().rev().fold(0, |sum, &byte| (sum << 8) | usize::from(byte));
    let (header, data) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// The value of `name` in `{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }`.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{name}':"))?;
    let rest = rest.trim_start();
    let end = if rest.starts_with('(') { rest.find(')')? + 1 } else { rest.find([',', '}'])? };
    Some(rest[..end].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn both_orders_and_scalars() {
        let data: Vec<u8> =
            [1f32, 2., 3., 4., 5., 6.].iter().flat_map(|v| v.to_le_bytes()).collect();
        let rows =
            array(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", &data))
                .unwrap()
                .unwrap();
        assert_eq!(rows.to_vec2::<f32>().unwrap(), [[1., 2., 3.], [4., 5., 6.]]);
        let columns =
            array(&npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", &data))
                .unwrap()
                .unwrap();
        assert_eq!(columns.to_vec2::<f32>().unwrap(), [[1., 3., 5.], [2., 4., 6.]]);
        let scalar = array(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", &data))
            .unwrap()
            .unwrap();
        assert_eq!(scalar.to_scalar::<f32>().unwrap(), 1.0);
    }

    #[test]
    fn objects_are_left_alone_and_damage_is_an_error() {
        assert!(
            array(&npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b""))
                .unwrap()
                .is_none()
        );
        assert!(
            array(&npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", &[0; 7]))
                .is_err()
        );
        assert!(
            array(&npy("{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", &[0; 4]))
                .is_err()
        );
        assert!(array(b"\x93NUMPY\x01\x00\xff\xff{").is_err());
    }
}
