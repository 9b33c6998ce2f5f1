//! Maps at four strides from a transformer's single one; configured under `head`, saved under `backbone.`.

pub mod dyt;

pub use dyt::DytPyramid;
