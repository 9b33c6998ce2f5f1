//! COCO's formats: annotation files (`instances_*.json`), results files, masks as runs, and the data set made of them.

mod annotations;
mod json;
mod objects;
mod problems;
mod results;
mod rle;
mod set;

pub use annotations::{Annotations, CategoryRecord, ImageRecord, ObjectRecord};
pub use problems::{Depth, Fault, Problem};
pub use results::Detection;
pub use rle::{Merge, Refused, Rle};
pub use set::CocoSet;
