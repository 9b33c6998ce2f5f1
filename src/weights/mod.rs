//! Checkpoints: reading other people's files, and reading and writing our own.

pub mod checkpoint;
mod safetensors;
