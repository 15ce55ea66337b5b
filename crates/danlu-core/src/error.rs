use std::path::{Path, PathBuf};

/// Result of anything in Danlu that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, with the operands: the file, the row or the parameter, what was expected and
/// what was found. Panics are for bugs only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the reader needs.
        expected: String,
        /// What is there.
        found: String,
    },
    /// One row of a sample file is not usable.
    #[error("{}:{line}: {message}", path.display())]
    Row {
        /// The sample file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A parameter of a recipe or of the command line has a value that cannot work.
    #[error("`{name}`: expected {expected}, found {found}")]
    Parameter {
        /// The parameter, as the user wrote it.
        name: String,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Too many rows of a file were unusable.
    #[error(
        "{}: {bad} of {seen} rows are bad, more than the allowed {allowed}; the first: {first}",
        path.display()
    )]
    TooManyBadRows {
        /// The sample file.
        path: PathBuf,
        /// Bad rows so far.
        bad: usize,
        /// Rows read so far.
        seen: usize,
        /// The limit (`max_bad_rows`).
        allowed: usize,
        /// The message of the first.
        first: String,
    },
    /// Work was asked to stop, and what was done is kept: how to go on with it.
    #[error("{0}")]
    Stopped(String),
    /// Anything else, in a full sentence.
    #[error("{0}")]
    Other(String),
}

impl Error {
    /// An [`Error::Io`] of `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().into(), source }
    }

    /// An [`Error::File`] of `path`.
    pub fn file(
        path: impl AsRef<Path>,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::File {
            path: path.as_ref().into(),
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    /// An [`Error::Parameter`] named `name`.
    pub fn parameter(
        name: impl Into<String>,
        expected: impl Into<String>,
        found: impl std::fmt::Display,
    ) -> Self {
        Self::Parameter { name: name.into(), expected: expected.into(), found: found.to_string() }
    }

    /// An [`Error::Row`] at `line` (from 1) of `path`.
    pub fn row(path: impl AsRef<Path>, line: usize, message: impl std::fmt::Display) -> Self {
        Self::Row { path: path.as_ref().into(), line, message: message.to_string() }
    }
}
