//! What a task adds to the shared backbone.
