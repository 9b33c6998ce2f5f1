//! One safetensors file with tensors and string metadata, written at once and with the same bytes for the same content.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use serde_json::{Value, json};

use super::safetensors;
use crate::fs::atomic_write_with;
use crate::{Error, Result};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Strings by name.
pub type Metadata = BTreeMap<String, String>;

/// Replace `path` by one safetensors file; see [`atomic_write_with`] for what happens on failure.
///
/// Equal tensors and metadata give equal bytes: names are sorted, and wide types come first, so that every tensor is
/// aligned to its element size.
///
/// # Errors
/// If the file cannot be written, or a tensor has a type that the format does not know.
pub fn write(path: &Path, tensors: &Tensors, metadata: &Metadata) -> Result<()> {
    let mut host = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(&Device::Cpu)?.contiguous()?;
        let Some(code) = type_code(tensor.dtype()) else {
            return Err(Error::file(
                path,
                format!("`{name}` has type {:?}, which cannot be saved", tensor.dtype()),
            ));
        };
        host.push((name, code, tensor));
    }
    host.sort_by_key(|(_, _, tensor)| std::cmp::Reverse(tensor.dtype().size_in_bytes()));
    let header = header(&host, metadata);
    atomic_write_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        host.iter().try_for_each(|(_, _, tensor)| write_values(file, tensor))
    })
}

/// The tensors and metadata of a file that [`write`](fn@write) wrote (or any safetensors file).
///
/// # Errors
/// If the file is missing, truncated or not a safetensors file; the message names it.
pub fn read(path: &Path) -> Result<(Tensors, Metadata)> {
    let file = safetensors::File::open(path)?;
    Ok((file.tensors()?, file.metadata().clone()))
}

/// The metadata alone; no tensor is read.
///
/// # Errors
/// As [`read`].
pub fn read_metadata(path: &Path) -> Result<Metadata> {
    Ok(safetensors::File::open(path)?.metadata().clone())
}

/// The JSON header, padded with spaces so that the values start at a multiple of eight bytes.
fn header(tensors: &[(&String, &str, Tensor)], metadata: &Metadata) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    if !metadata.is_empty() {
        entries.insert("__metadata__".into(), json!(metadata));
    }
    let mut start = 0;
    for (name, code, tensor) in tensors {
        let end = start + tensor.elem_count() * tensor.dtype().size_in_bytes();
        entries.insert(
            (*name).clone(),
            json!({ "dtype": code, "shape": tensor.dims(), "data_offsets": [start, end] }),
        );
        start = end;
    }
    let mut bytes = Value::Object(entries).to_string().into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    bytes
}

fn type_code(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::U8 => Some("U8"),
        DType::U32 => Some("U32"),
        DType::I16 => Some("I16"),
        DType::I32 => Some("I32"),
        DType::I64 => Some("I64"),
        DType::BF16 => Some("BF16"),
        DType::F16 => Some("F16"),
        DType::F32 => Some("F32"),
        DType::F64 => Some("F64"),
        _ => None,
    }
}

fn write_values(out: &mut impl Write, tensor: &Tensor) -> io::Result<()> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(io::Error::other("the tensor is not in main memory"));
    };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    match storage {
        CpuStorage::U8(v) => out.write_all(&v[range]),
        CpuStorage::U32(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        CpuStorage::I16(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        CpuStorage::I32(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        CpuStorage::I64(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        CpuStorage::BF16(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        CpuStorage::F16(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        CpuStorage::F32(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        CpuStorage::F64(v) => write_little_endian(out, &v[range], |x| x.to_le_bytes()),
        _ => Err(io::Error::other("the tensor's type cannot be saved")),
    }
}

fn write_little_endian<T: Copy, const SIZE: usize>(
    out: &mut impl Write,
    values: &[T],
    bytes_of: impl Fn(T) -> [u8; SIZE],
) -> io::Result<()> {
    let mut buffer = vec![0; SIZE * values.len().min(1 << 16)];
    for chunk in values.chunks(1 << 16) {
        let bytes = &mut buffer[..SIZE * chunk.len()];
        for (slot, &value) in bytes.as_chunks_mut::<SIZE>().0.iter_mut().zip(chunk) {
            *slot = bytes_of(value);
        }
        out.write_all(bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Tensors, Metadata) {
        let cpu = &Device::Cpu;
        let f32s = Tensor::arange(0f32, 6.0, cpu).unwrap().reshape((2, 3)).unwrap();
        let tensors = BTreeMap::from([
            ("bytes".into(), Tensor::new(&[1u8, 2, 3], cpu).unwrap()),
            ("f32".into(), f32s.clone()),
            ("f64".into(), Tensor::new(&[0.1f64, -2.5], cpu).unwrap()),
            (
                "half".into(),
                Tensor::new(&[0.5f32, 3.0], cpu).unwrap().to_dtype(DType::F16).unwrap(),
            ),
            (
                "bfloat".into(),
                Tensor::new(&[0.5f32, 3.0], cpu).unwrap().to_dtype(DType::BF16).unwrap(),
            ),
            ("i64".into(), Tensor::new(&[-7i64, 9], cpu).unwrap()),
            ("u32".into(), Tensor::new(&[7u32], cpu).unwrap()),
            ("scalar".into(), Tensor::new(4f32, cpu).unwrap()),
            ("empty".into(), Tensor::zeros((0, 4), DType::F32, cpu).unwrap()),
            ("view".into(), f32s.t().unwrap().narrow(0, 1, 2).unwrap()),
        ]);
        let metadata =
            BTreeMap::from([("step".into(), "3".into()), ("about \"x\"".into(), "ü\n".into())]);
        (tensors, metadata)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let (tensors, metadata) = sample();
        write(&path, &tensors, &metadata).unwrap();
        let (back, meta) = read(&path).unwrap();
        assert_eq!(meta, metadata);
        assert_eq!(read_metadata(&path).unwrap(), metadata);
        assert!(tensors.keys().eq(back.keys()));
        for (name, tensor) in &tensors {
            assert_eq!(
                (tensor.dtype(), tensor.dims()),
                (back[name].dtype(), back[name].dims()),
                "{name}"
            );
            let values = |t: &Tensor| {
                t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(values(tensor), values(&back[name]), "{name}");
        }
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_and_aligned_values() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("1"), folder.path().join("2"));
        let (tensors, metadata) = sample();
        write(&one, &tensors, &metadata).unwrap();
        write(&two, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&one).unwrap();
        assert_eq!(bytes, std::fs::read(&two).unwrap());
        let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        assert_eq!(length % 8, 0);
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        assert_eq!(header["f64"]["data_offsets"][0].as_u64().unwrap() % 8, 0);
        assert_eq!(header["f32"]["data_offsets"][0].as_u64().unwrap() % 4, 0);
    }

    #[test]
    fn a_truncated_file_and_another_format_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let (tensors, metadata) = sample();
        write(&path, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [0, 5, 40, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.to_string().contains("a.safetensors"), "{error}");
            assert!(error.hint().is_some(), "{error}");
        }
        std::fs::write(&path, b"PK\x03\x04 this is no safetensors file").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("a.safetensors"));
    }
}
