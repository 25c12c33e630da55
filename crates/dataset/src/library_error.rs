//! Why a library or a folder of pictures cannot be opened.

use crate::index;
use crate::split::UnknownName;
use std::path::PathBuf;

/// Why a library cannot be used, or one picture of it.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not an index of pictures: {reason}", path.display())]
    Index { path: PathBuf, reason: String },
    #[error("{} is not a folder of pictures: {reason}", path.display())]
    Folder { path: PathBuf, reason: String },
    #[error("cannot decode {}: {reason}", path.display())]
    Picture { path: PathBuf, reason: String },
    #[error("holdOut names subjects that are not in {}: {}", path.display(), listed(names))]
    HoldOut { path: PathBuf, names: Vec<UnknownName> },
}

/// All of them, within reason.
fn listed(names: &[UnknownName]) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    index::listed(&names.iter().map(String::as_str).collect::<Vec<_>>())
}
