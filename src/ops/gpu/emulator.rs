//! Runs kernels on the CPU, for the tests: the `.cu` files compiled as C++ (`emulate.h`), called as the driver would.
//!
//! Where `RESCATTER_TEST_DEVICE` names a GPU (`cuda:0`), [`assert_kernel`] takes that instead.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::cell::Cell;
use std::ffi::c_void;
use std::process::Command;
use std::sync::OnceLock;

use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, bail};
use libloading::{Library, Symbol};

use super::call::{Call, Number, Output};
use crate::ops::twin::assert_twins;
use crate::ops::with;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

pub(super) fn is_on() -> bool {
    ON.get()
}

/// The GPU that `RESCATTER_TEST_DEVICE` names.
pub(crate) fn test_gpu() -> Result<Option<Device>> {
    let number = |name: String| name.trim_start_matches("cuda:").parse().unwrap();
    std::env::var("RESCATTER_TEST_DEVICE").ok().map(number).map(Device::new_cuda).transpose()
}

/// [`assert_twins`] for the kernel `name`: on the GPU that `RESCATTER_TEST_DEVICE` names, else emulated.
pub(crate) fn assert_kernel(
    name: &str,
    tolerance: f64,
    inputs: &[Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let device = device()?;
    if device.is_cpu() && library().is_none() {
        eprintln!("skipped: {name} because c++ is not installed");
        return Ok(());
    }
    let inputs = inputs.iter().map(|t| t.to_device(&device)).collect::<Result<Vec<_>>>()?;
    with(&ON, device.is_cpu(), || assert_twins(name, tolerance, &inputs, f))
}

/// [`test_gpu`], or the CPU.
pub(super) fn device() -> Result<Device> {
    Ok(test_gpu()?.unwrap_or(Device::Cpu))
}

/// The emulated kernels; `None` without a C++ compiler.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    let load = || {
        Command::new("c++").arg("--version").output().ok()?;
        let folder = tempfile::tempdir().unwrap();
        let (sources, file) =
            (concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops/gpu"), folder.path().join("kernels.so"));
        let mut compiler = Command::new("c++");
        compiler.current_dir(sources).args(
            "-O1 -std=c++17 -shared -fPIC -include emulate.h -x c++ kernels.cu -o".split(' '),
        );
        let output = compiler.arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // SAFETY: it has no constructors but those of C++'s thread-local variables.
        Some(unsafe { Library::new(file) }.unwrap())
    };
    LIBRARY.get_or_init(load).as_ref()
}

/// What a kernel's entry takes: the number of blocks, threads of a block, pointers to the arguments.
type Entry = unsafe extern "C" fn(u32, u32, *mut *mut c_void);

pub(super) fn run(call: &Call, inputs: &[(&Storage, &Layout)]) -> Result<Vec<Storage>> {
    let mut pointers = Vec::new();
    for (storage, layout) in inputs {
        let (from, to) = call.span(layout)?;
        pointers.push(match storage {
            Storage::Cpu(CpuStorage::F32(values)) => values[from..to].as_ptr().cast::<c_void>(),
            Storage::Cpu(CpuStorage::U32(values)) => values[from..to].as_ptr().cast(),
            Storage::Cpu(CpuStorage::I64(values)) => values[from..to].as_ptr().cast(),
            _ => bail!("{}: an input is no f32, u32 or i64", call.kernel),
        });
    }
    let outputs = call.outputs.iter().map(|output| {
        let count = output.shape().elem_count();
        match output {
            // Not a number, so that a test sees what the kernel left out.
            Output::Unwritten(_) => CpuStorage::F32(vec![f32::NAN; count]),
            Output::Zeros(_) => CpuStorage::F32(vec![0.0; count]),
            Output::Words(_) => CpuStorage::I64(vec![0x5555_5555_5555_5555; count]),
        }
    });
    let mut outputs: Vec<CpuStorage> = outputs.collect();
    pointers.extend(outputs.iter_mut().map(|output| match output {
        CpuStorage::F32(values) => values.as_mut_ptr().cast_const().cast(),
        CpuStorage::I64(words) => words.as_mut_ptr().cast_const().cast(),
        _ => unreachable!("outputs are f32 or i64"),
    }));
    let mut numbers = call.numbers.to_vec();
    let pointers_of =
        pointers.iter_mut().map(|pointer| std::ptr::from_mut(pointer).cast::<c_void>());
    let numbers_of = numbers.iter_mut().map(|number| match number {
        Number::U32(value) => std::ptr::from_mut(value).cast(),
        Number::Size(value) => std::ptr::from_mut(value).cast(),
        Number::F32(value) => std::ptr::from_mut(value).cast(),
    });
    let mut arguments: Vec<*mut c_void> = pointers_of.chain(numbers_of).collect();
    let name = format!("emulate_{}", call.kernel);
    let (blocks, threads) = call.grid.size();
    // SAFETY: every kernel has such an entry; its arguments are what `Call` says.
    unsafe {
        let entry: Symbol<Entry> = library().unwrap().get(name.as_bytes()).unwrap();
        entry(blocks as u32, threads as u32, arguments.as_mut_ptr());
    }
    Ok(outputs.into_iter().map(Storage::Cpu).collect())
}
