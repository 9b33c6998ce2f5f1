//! Maps at several strides from a transformer's single one; configured under `head`, saved under `backbone.`.

pub mod dyt;
pub mod vitdet;

pub use dyt::{DytPyramid, Level};
pub use vitdet::SimplePyramid;
