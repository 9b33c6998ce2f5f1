//! One error type for everything that is not tensor arithmetic: it names the file or key and, where one is known, the cure.

use std::path::{Path, PathBuf};

/// What went wrong outside the tensor arithmetic.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {reason}", path.display())]
    Io {
        /// A verb: `read`, `write`, `create` …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// The request itself is wrong (a config key, an option, a combination of them).
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// Tensor arithmetic failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(error) => error,
            other => Self::wrap(other),
        }
    }
}

/// Shorthand for results with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The operating system refused to `action` (a verb) `path`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, reason: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().into(), reason }
    }

    /// `path` is not what it should be.
    pub fn file(path: impl AsRef<Path>, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.as_ref().into(), reason: reason.to_string(), hint: None }
    }

    /// The request is wrong.
    pub fn usage(message: impl std::fmt::Display) -> Self {
        Self::Usage { message: message.to_string(), hint: None }
    }

    /// The same error with the cure.
    #[must_use]
    pub fn with_hint(mut self, cure: impl std::fmt::Display) -> Self {
        if let Self::File { hint, .. } | Self::Usage { hint, .. } = &mut self {
            *hint = Some(cure.to_string());
        }
        self
    }

    /// The cure, where one is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::File { hint, .. } | Self::Usage { hint, .. } => hint.as_deref(),
            Self::Io { .. } | Self::Tensor(_) => None,
        }
    }
}
