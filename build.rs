//! With the feature `cuda`: compiles the GPU kernels to PTX, which every GPU from compute capability 8.0 on can run.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/ops/gpu");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let nvcc = match std::env::var_os("CUDA_HOME") {
        Some(home) => Path::new(&home).join("bin/nvcc"),
        None => PathBuf::from("nvcc"),
    };
    let output =
        PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("kernels.ptx");
    let mut compiler = Command::new(&nvcc);
    compiler.args([
        "-ptx",
        "-arch=compute_80",
        "-O3",
        "-std=c++17",
        "src/ops/gpu/kernels.cu",
        "-o",
    ]);
    match compiler.arg(&output).status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} ended with {status}", nvcc.display()),
        Err(error) => {
            panic!("{} cannot be run ({error}); `make cuda` finds or fetches it", nvcc.display())
        }
    }
}
