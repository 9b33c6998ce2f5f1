//! PyTorch checkpoints (`.pth`, `.pt`, `.bin`): the zip format of today and the older one that is a row of pickles; and
//! single pickles of NumPy arrays (`.pkl`).
//!
//! Only tensors are read; see [`pickle`](super::pickle) for why nothing can be executed.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use candle_core::{DType, Device, Result, Tensor, bail};
use zip::ZipArchive;

use super::arrays::array;
use super::checkpoint::Tensors;
use super::pickle::{self, Id, Value, Values};

/// The first bytes of the older format: a pickled magic number.
pub(super) const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// Keys under which training scripts put the weights, the first one present wins.
const NESTING: [&str; 8] =
    ["state_dict", "model", "module", "model_state_dict", "teacher", "student", "net", "weights"];

/// What a checkpoint holds.
pub(super) struct Contents {
    pub(super) tensors: Tensors,
    /// Keys that were descended into, outermost first.
    pub(super) nesting: Vec<String>,
    /// Entries beside the weights (optimizer, epoch …).
    pub(super) beside: Vec<String>,
}

/// Read the zip format.
pub(super) fn read_zip(archive: &mut ZipArchive<Cursor<&[u8]>>) -> Result<Contents> {
    let names: Vec<String> = archive.file_names().flatten().map(String::from).collect();
    let Some(root) = names.iter().find_map(|name| name.strip_suffix("data.pkl")) else {
        bail!("it has no data.pkl")
    };
    if names.iter().any(|name| name == &format!("{root}byteorder"))
        && entry(archive, &format!("{root}byteorder"))? == b"big"
    {
        bail!("its numbers are in big-endian order");
    }
    let program = entry(archive, &format!("{root}data.pkl"))?;
    let (values, object, _) = pickle::read(&program)?;
    // Only the last storage is kept: a file's tensors have one each, or are views of a common one, and keeping all would
    // hold the file in memory twice.
    let mut last = (String::new(), Vec::new());
    contents((&values, object, &program), |storage, select| {
        if last.0 != storage.key {
            last = (storage.key.clone(), entry(archive, &format!("{root}data/{}", storage.key))?);
        }
        select(&last.1)
    })
}

fn entry(archive: &mut ZipArchive<Cursor<&[u8]>>, name: &str) -> Result<Vec<u8>> {
    let missing =
        |error: zip::result::ZipError| candle_core::Error::Msg(format!("`{name}` in it: {error}"));
    let mut file = archive.by_name(name).map_err(missing)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Read the format before PyTorch 1.6: magic number, version, system, object, keys of the storages, storages.
pub(super) fn read_legacy(bytes: &[u8]) -> Result<Contents> {
    let mut at = LEGACY_MAGIC.len();
    for _ in 0..2 {
        at += pickle::read(&bytes[at..])?.2;
    }
    let program = &bytes[at..];
    let (values, object, used) = pickle::read(program)?;
    at += used;
    let (key_values, keys, used) = pickle::read(&bytes[at..])?;
    at += used;
    // The length of a storage is in elements, so its type must be known, and only the tensors' descriptions tell it.
    let types = storage_types(&values)?;
    let mut storages = HashMap::new();
    for &key in key_values.list(keys).unwrap_or_default() {
        let Some(key) = key_values.text(key) else { bail!("a storage without a name") };
        let Some(&dtype) = types.get(key) else { bail!("storage `{key}` has no type") };
        let length = bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let range =
            length.and_then(|n| usize::try_from(n).ok()?.checked_mul(dtype.size_in_bytes()));
        let range = range.and_then(|n| Some(at + 8..at.checked_add(8)?.checked_add(n)?));
        let Some(range) = range.filter(|range| range.end <= bytes.len()) else {
            bail!("it is cut off")
        };
        at = range.end;
        storages.insert(key.to_owned(), range);
    }
    contents((&values, object, program), |storage, select| match storages.get(&storage.key) {
        Some(range) => select(&bytes[range.clone()]),
        None => bail!("storage `{}` is not in the file", storage.key),
    })
}

/// Read a single pickle of NumPy arrays.
pub(super) fn read_pickle(bytes: &[u8]) -> Result<Contents> {
    let (values, object, _) = pickle::read(bytes)?;
    contents((&values, object, bytes), |storage, _| {
        bail!("storage `{}` is not in the file", storage.key)
    })
}

/// The element type of every storage that the pickle mentions.
fn storage_types(values: &Values) -> Result<HashMap<String, DType>> {
    let mut types = HashMap::new();
    for value in values.iter() {
        if let Value::Persistent(description) = value {
            let storage = Storage::new(values, *description)?;
            types.insert(storage.key, storage.dtype);
        }
    }
    Ok(types)
}

/// A tensor's memory outside of the pickle.
struct Storage {
    key: String,
    dtype: DType,
}

impl Storage {
    /// `('storage', type, key, device, length)`, in the older format with a sixth entry for views of storages.
    fn new(values: &Values, description: Id) -> Result<Self> {
        let Some([kind, class, key, _device, _length, view @ ..]) = values.list(description) else {
            bail!("a storage without a description")
        };
        let (Some("storage"), Some(class), Some(key)) =
            (values.text(*kind), values.global(*class), values.text(*key))
        else {
            bail!("a storage without a type")
        };
        if view.iter().any(|&view| values.get(view) != &Value::None) {
            bail!("storage `{key}` is a view of another one");
        }
        let dtype = match class.rsplit('.').next().unwrap_or_default() {
            "FloatStorage" => DType::F32,
            "DoubleStorage" => DType::F64,
            "HalfStorage" => DType::F16,
            "BFloat16Storage" => DType::BF16,
            "LongStorage" => DType::I64,
            "IntStorage" => DType::I32,
            "ShortStorage" => DType::I16,
            "ByteStorage" | "BoolStorage" => DType::U8,
            other => bail!("element type {other} is not supported"),
        };
        Ok(Self { key: key.to_owned(), dtype })
    }
}

/// Passes a storage's bytes to a reader.
type Select<'a> = &'a mut dyn FnMut(&[u8]) -> Result<Tensor>;

/// The tensors of the innermost dictionary of weights in a pickle: its values, the outermost one, and its bytes.
fn contents(
    (values, root, program): (&Values, Id, &[u8]),
    mut storage_bytes: impl FnMut(&Storage, Select) -> Result<Tensor>,
) -> Result<Contents> {
    let (mut object, mut nesting, mut beside) = (root, vec![], vec![]);
    let entries = loop {
        let Value::Dict(entries) = values.get(object) else {
            bail!("it holds {} instead of a dictionary of tensors", described(values, object))
        };
        let inner = NESTING.iter().find_map(|&wanted| {
            let found = entries.iter().rev().find(|(key, _)| values.text(*key) == Some(wanted))?;
            matches!(values.get(found.1), Value::Dict(_)).then_some((wanted, found.1))
        });
        // More than a handful of levels means a dictionary that contains itself.
        let Some((key, value)) = inner.filter(|_| nesting.len() < 8) else { break entries };
        let others = entries
            .iter()
            .filter_map(|(other, _)| values.text(*other))
            .filter(|other| *other != key);
        beside.extend(others.map(str::to_owned));
        nesting.push(key.to_owned());
        object = value;
    };
    let mut tensors = Tensors::new();
    for (key, value) in entries {
        let Some(name) = values.text(*key) else { continue };
        let found = match values.get(*value) {
            Value::Tensor(arguments) => tensor(values, arguments, &mut storage_bytes).map(Some),
            _ => array(values, *value, program),
        };
        match found {
            Ok(Some(tensor)) => drop(tensors.insert(name.to_owned(), tensor)),
            Ok(None) => beside.push(name.to_owned()),
            Err(error) => bail!("tensor `{name}`: {error}"),
        }
    }
    Ok(Contents { tensors, nesting, beside })
}

fn described(values: &Values, object: Id) -> String {
    match values.get(object) {
        Value::Object(class) => {
            format!("a Python object of type {}", values.global(*class).unwrap_or("unknown"))
        }
        Value::Tensor(_) => "a single tensor".into(),
        Value::List(_) => "a list".into(),
        _ => "a plain value".into(),
    }
}

/// `(storage, offset, size, stride, …)`, offset and stride in elements.
fn tensor(
    values: &Values,
    arguments: &[Id],
    storage_bytes: &mut impl FnMut(&Storage, Select) -> Result<Tensor>,
) -> Result<Tensor> {
    let &[storage, offset, size, stride, ..] = arguments else {
        bail!("its description is incomplete")
    };
    let &Value::Persistent(storage) = values.get(storage) else { bail!("it has no storage") };
    let storage = Storage::new(values, storage)?;
    let number = |id: Id| values.int(id).and_then(|n| usize::try_from(n).ok());
    let numbers = |id: Id| {
        values
            .list(id)
            .and_then(|list| list.iter().map(|&id| number(id)).collect::<Option<Vec<_>>>())
    };
    let (Some(offset), Some(shape), Some(stride)) =
        (number(offset), numbers(size), numbers(stride))
    else {
        bail!("its shape is not one")
    };
    let item = storage.dtype.size_in_bytes();
    storage_bytes(&storage, &mut |bytes| {
        let selected = gather(bytes, item, &View { offset, shape: &shape, stride: &stride })?;
        Tensor::from_raw_buffer(&selected, storage.dtype, &shape, &Device::Cpu)
    })
}

/// How a tensor lies in its storage, in elements.
struct View<'a> {
    offset: usize,
    shape: &'a [usize],
    stride: &'a [usize],
}

/// The elements of `view` in row-major order.
fn gather<'a>(bytes: &'a [u8], item: usize, view: &View) -> Result<std::borrow::Cow<'a, [u8]>> {
    let View { offset, shape, stride } = *view;
    if shape.len() != stride.len() {
        bail!("it has {} sizes and {} strides", shape.len(), stride.len());
    }
    let available = bytes.len() / item;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let last = shape
        .iter()
        .zip(stride)
        .try_fold(offset, |end, (&d, &s)| end.checked_add(d.saturating_sub(1).checked_mul(s)?));
    let (Some(count), Some(last)) = (count, last) else { bail!("its size is out of range") };
    if count == 0 {
        return Ok(Vec::new().into());
    }
    if last >= available || count > available {
        bail!("it wants element {last} of a storage of {available}");
    }
    let contiguous: Vec<usize> =
        (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
    if shape.iter().zip(stride).zip(&contiguous).all(|((&d, s), c)| d == 1 || s == c) {
        return Ok(bytes[offset * item..(offset + count) * item].into());
    }
    let mut selected = Vec::with_capacity(count * item);
    let mut index = vec![0; shape.len()];
    let mut element = offset;
    for _ in 0..count {
        selected.extend_from_slice(&bytes[element * item..][..item]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            element += stride[axis];
            if index[axis] < shape[axis] {
                break;
            }
            element -= stride[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    Ok(selected.into())
}
