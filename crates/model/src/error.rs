//! The one error type of this crate.

use std::path::PathBuf;

use crescendo_dataset::pictures::PictureError;
use tch::TchError;

/// What went wrong, with the file, tensor or field that it went wrong in.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read or written.
    #[error("cannot access {}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file is not whole and well-formed: weights, their index or configuration, or a tokenizer.
    #[error("{} is not usable: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// A set of tensors does not fit the network; every problem is listed.
    #[error("{origin} does not fit: {}", join(problems))]
    Weights {
        /// The file, or the words that say where the tensors came from.
        origin: String,
        problems: Vec<TensorProblem>,
    },
    /// A configuration value is out of its range.
    #[error("{field}: {reason}")]
    Config { field: &'static str, reason: String },
    /// An input tensor or number does not fit the network or its fellow inputs.
    #[error("input {name}: {reason}")]
    Input { name: String, reason: String },
    /// A picture cannot be used: unreadable, too large, or of a shape that nothing can be made of.
    #[error("picture {name}: {reason}")]
    Picture { name: String, reason: String },
    /// libtorch refused an operation.
    #[error("tensor operation failed: {0}")]
    Torch(String),
    /// A callback given by the caller failed; its error is the source.
    #[error("interrupted by the caller: {0}")]
    Caller(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One tensor that does not fit, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorProblem {
    /// The tensor's name as spelled in the file.
    pub tensor: String,
    pub kind: ProblemKind,
}

/// The way in which a tensor does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    Missing,
    Unexpected,
    Shape {
        found: Vec<i64>,
        expected: Vec<i64>,
    },
    Dtype {
        found: String,
        expected: String,
    },
    /// It holds NaN or an infinity.
    NotFinite,
    /// It holds values that the dtype which it is to be stored in cannot.
    TooLarge {
        dtype: String,
    },
}

impl std::fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.tensor;
        match &self.kind {
            ProblemKind::Missing => write!(f, "{name} is missing"),
            ProblemKind::Unexpected => write!(f, "{name} is unexpected"),
            ProblemKind::Shape { found, expected } => {
                write!(f, "{name} has shape {found:?}, expected {expected:?}")
            }
            ProblemKind::Dtype { found, expected } => {
                write!(f, "{name} has dtype {found}, expected {expected}")
            }
            ProblemKind::NotFinite => write!(f, "{name} has values that are not finite"),
            ProblemKind::TooLarge { dtype } => write!(f, "{name} has values too large for {dtype}"),
        }
    }
}

/// A file of another network can have thousands of problems; the message names the first few.
const PROBLEMS_SHOWN: usize = 20;

fn join(problems: &[TensorProblem]) -> String {
    let mut text =
        problems.iter().take(PROBLEMS_SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if problems.len() > PROBLEMS_SHOWN {
        text.push_str(&format!("; and {} more", problems.len() - PROBLEMS_SHOWN));
    }
    text
}

impl From<TchError> for ModelError {
    fn from(error: TchError) -> Self {
        // libtorch appends its C++ backtrace after the first line.
        let text = error.to_string();
        let first_line = text.lines().next().unwrap_or_default();
        Self::Torch(first_line.to_owned())
    }
}

impl From<PictureError> for ModelError {
    fn from(error: PictureError) -> Self {
        match error {
            PictureError::Io { path, source } => Self::Io { path, source },
            PictureError::Picture { name, reason } => Self::Picture { name, reason },
            PictureError::Input { name, reason } => Self::input(name, reason),
        }
    }
}

impl ModelError {
    pub(crate) fn input(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Input { name: name.into(), reason: reason.into() }
    }
}

pub type Result<T, E = ModelError> = std::result::Result<T, E>;
