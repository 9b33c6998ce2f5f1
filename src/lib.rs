//! Dense prediction with vision transformers that skip work for unimportant tokens: the core that every task shares.
//!
//! Papers, cited by key throughout:
//! - **\[DyT\]** Zhao et al., *Dynamic Tuning Towards Parameter and Inference Efficiency for ViT Adaptation*, NeurIPS 2024,
//!   arXiv 2403.11808v2.
//!
//! Letters for dimensions: `B` images, `T` frames, `N` tokens, `P` patch tokens, `C` channels, `H × W` pixels,
//! `h × w` grid of patches, `K` classes.

pub mod backbone;
pub mod boxes;
pub mod config;
pub mod data;
pub mod dispatch;
pub mod draw;
pub mod engine;
pub mod error;
pub mod fs;
pub mod head;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod params;
pub mod rng;
pub mod tuning;
pub mod weights;
pub mod world;

pub use error::{Error, Result};
