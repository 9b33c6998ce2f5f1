//! Checkpoints: reading other people's files, and reading and writing our own.
//!
//! A file is recognised by its first bytes, never by its extension. [`File::read`] gives its tensors as they are
//! stored.

use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use crate::{Error, Result};

mod arrays;
pub mod checkpoint;
mod detectors;
mod layout;
mod load;
pub mod names;
mod npz;
mod pickle;
mod safetensors;
mod torch;

pub use layout::Layout;
pub use load::{LoadOptions, LoadReport, load_pretrained};

use checkpoint::{Metadata, Tensors};

/// How a checkpoint is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Hugging Face's safetensors.
    Safetensors,
    /// PyTorch's zip format (since 1.6).
    TorchZip,
    /// PyTorch's older format.
    TorchLegacy,
    /// NumPy's archive of arrays.
    Npz,
    /// Python's pickle of NumPy arrays (detectron2).
    Pickle,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Safetensors => "safetensors",
            Self::TorchZip => "PyTorch (zip)",
            Self::TorchLegacy => "PyTorch (before 1.6)",
            Self::Npz => "NumPy archive",
            Self::Pickle => "pickle of NumPy arrays",
        })
    }
}

/// A checkpoint as it is stored.
#[derive(Debug, Clone)]
pub struct File {
    /// Where it was read from.
    pub path: PathBuf,
    /// How it is stored.
    pub format: Format,
    /// Its tensors under its own names and in its own types, in main memory.
    pub tensors: Tensors,
    /// Its text (safetensors only).
    pub metadata: Metadata,
    /// Keys that were descended into to find the weights (pickles only), outermost first.
    pub nesting: Vec<String>,
    /// Entries that are not weights: optimizer, epoch, arguments.
    pub beside: Vec<String>,
}

impl File {
    /// Read the checkpoint `path`, whatever its format. Of a PyTorch file only tensors are read; nothing is executed.
    ///
    /// # Errors
    /// If it is missing, damaged, or of a format that is not read; the message names the file and the cure.
    pub fn read(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::file(path, "is a folder")
                .with_hint("name the file in it, e.g. model.safetensors or pytorch_model.bin"));
        }
        let map = safetensors::map(path)?;
        // Looked for first: the length that such a file begins with may look like the start of the other formats.
        if safetensors::has_header(&map) {
            return Self::read_safetensors(path);
        }
        if let Some(archive) =
            map.starts_with(b"PK").then(|| ZipArchive::new(Cursor::new(&map[..])))
        {
            return Self::read_archive(
                path,
                &mut archive.map_err(|error| damaged(path, "zip archive", &error))?,
            );
        }
        if map.starts_with(torch::LEGACY_MAGIC) {
            let contents = torch::read_legacy(&map)
                .map_err(|error| damaged(path, "PyTorch checkpoint", &error))?;
            return Ok(Self::from_torch(path, Format::TorchLegacy, contents));
        }
        // Every pickle since protocol 2 starts with its number.
        if map.first() == Some(&0x80) {
            let contents = torch::read_pickle(&map)
                .map_err(|error| damaged(path, "pickle of NumPy arrays", &error))?;
            return Ok(Self::from_torch(path, Format::Pickle, contents));
        }
        // Cut off within its header; the error says so.
        if map.get(8) == Some(&b'{') {
            return Self::read_safetensors(path);
        }
        Err(unknown(path, &map))
    }

    fn read_safetensors(path: &Path) -> Result<Self> {
        let file = safetensors::File::open(path)?;
        let metadata = file.metadata().clone();
        Ok(Self::new(path, Format::Safetensors, file.tensors()?, metadata))
    }

    fn read_archive(path: &Path, archive: &mut ZipArchive<Cursor<&[u8]>>) -> Result<Self> {
        let has = |suffix: &str| archive.file_names().flatten().any(|name| name.ends_with(suffix));
        if has("constants.pkl") {
            return Err(Error::file(path, "is a TorchScript program, not a dictionary of weights")
                .with_hint(RESAVE));
        }
        if has("data.pkl") {
            let contents = torch::read_zip(archive)
                .map_err(|error| damaged(path, "PyTorch checkpoint", &error))?;
            return Ok(Self::from_torch(path, Format::TorchZip, contents));
        }
        if has(".npy") {
            let (tensors, beside) =
                npz::read(archive).map_err(|error| damaged(path, "NumPy archive", &error))?;
            return Ok(Self { beside, ..Self::new(path, Format::Npz, tensors, Metadata::new()) });
        }
        Err(Error::file(path, "is a zip archive without weights").with_hint(FORMATS))
    }

    fn from_torch(path: &Path, format: Format, contents: torch::Contents) -> Self {
        let torch::Contents { tensors, nesting, beside } = contents;
        Self { nesting, beside, ..Self::new(path, format, tensors, Metadata::new()) }
    }

    fn new(path: &Path, format: Format, tensors: Tensors, metadata: Metadata) -> Self {
        Self { path: path.into(), format, tensors, metadata, nesting: vec![], beside: vec![] }
    }
}

/// The tensors of a checkpoint of any format under its own names; see [`File::read`].
///
/// # Errors
/// As [`File::read`].
pub fn read(path: &Path) -> Result<Tensors> {
    Ok(File::read(path)?.tensors)
}

/// SHA-256 of a file's bytes in hexadecimal, read in pieces.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let unreadable = |error| Error::io("read", path, error);
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let count = file.read(&mut buffer).map_err(unreadable)?;
        if count == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..count]);
    }
}

const FORMATS: &str = "weights are read from safetensors, PyTorch (.pth, .pt, .bin), NumPy (.npz) and detectron2 (.pkl) files";

const RESAVE: &str = "save the weights alone with torch.save(model.state_dict(), \"weights.pth\")";

fn damaged(path: &Path, what: &str, error: &dyn std::fmt::Display) -> Error {
    let text = error.to_string();
    let hint = if text.contains("instead of a dictionary") {
        RESAVE
    } else {
        "the file may be incomplete: copy or download it again and compare its size with the publisher's"
    };
    Error::file(path, format!("is not a readable {what}: {text}")).with_hint(hint)
}

/// What a file that is no checkpoint most often is.
fn unknown(path: &Path, bytes: &[u8]) -> Error {
    let start = &bytes[..bytes.len().min(64)];
    let text = String::from_utf8_lossy(start).to_ascii_lowercase();
    let (reason, hint) = if text.starts_with("version https://git-lfs") {
        (
            "is a Git LFS pointer, not the weights themselves",
            "run `git lfs pull` in its repository, or download the file",
        )
    } else if text.trim_start().starts_with('<') {
        (
            "is a web page, not a checkpoint",
            "open the link in a browser and save the file that it offers",
        )
    } else if start.starts_with(b"\x89HDF") {
        ("is an HDF5 file (Keras)", FORMATS)
    } else if start.starts_with(b"GGUF") {
        ("is a GGUF file", FORMATS)
    } else if start.starts_with(b"\x1f\x8b") {
        ("is compressed with gzip", "unpack it with gunzip or tar first")
    } else {
        ("is not a checkpoint of a known format", FORMATS)
    };
    Error::file(path, reason).with_hint(hint)
}
