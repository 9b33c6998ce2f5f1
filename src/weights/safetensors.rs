//! Reading safetensors files through a memory map.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::{SafeTensorError, SafeTensors};

use super::checkpoint::{Metadata, Tensors};
use crate::{Error, Result};

/// A mapped file whose header was checked.
pub(crate) struct File {
    path: PathBuf,
    map: memmap2::Mmap,
    metadata: Metadata,
}

impl File {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let (_, header) =
            SafeTensors::read_metadata(&map).map_err(|error| not_readable(path, &error))?;
        // A file that lost its end still has a valid header; the offsets tell.
        SafeTensors::deserialize(&map).map_err(|error| not_readable(path, &error))?;
        let metadata =
            header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(Self { path: path.into(), map, metadata })
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    pub(crate) fn tensors(&self) -> Result<Tensors> {
        let file = SafeTensors::deserialize(&self.map)
            .map_err(|error| not_readable(&self.path, &error))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let tensor: Tensor = view.load(&Device::Cpu).map_err(|error| {
                Error::file(&self.path, format!("tensor `{name}` cannot be read: {error}"))
            })?;
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(tensors)
    }
}

/// Whether `bytes` begin with the length of a JSON object (64 bits, little endian) and hold all of it.
pub(crate) fn has_header(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk() else { return false };
    rest.first() == Some(&b'{') && u64::from_le_bytes(*length) <= rest.len() as u64
}

/// Map `path` into memory, read only.
pub(crate) fn map(path: &Path) -> Result<memmap2::Mmap> {
    let file = std::fs::File::open(path).map_err(|error| Error::io("read", path, error))?;
    if file.metadata().map_err(|error| Error::io("read", path, error))?.len() == 0 {
        return Err(Error::file(path, "is empty").with_hint(CURE));
    }
    // SAFETY: the map is read only and private to this process. A program that shortens the file while it is mapped
    // would end this one; our own writers never change a file in place (`fs::atomic_write` renames), and reading a
    // pretrained file through a map saves a copy of hundreds of megabytes.
    #[allow(unsafe_code)]
    let map = unsafe { memmap2::Mmap::map(&file) };
    map.map_err(|error| Error::io("read", path, error))
}

const CURE: &str =
    "the file is incomplete or damaged: copy or download it again, or use an earlier checkpoint";

fn not_readable(path: &Path, error: &SafeTensorError) -> Error {
    Error::file(path, format!("is not a complete safetensors file ({error})")).with_hint(CURE)
}
