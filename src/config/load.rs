//! Reading a config: text → typed value, with file, line and the nearest known key in every error.
