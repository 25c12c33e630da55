//! `source: import`: pairs that exist already, as published data sets or shards.
//!
//! | format | unit |
//! |---|---|
//! | `uno1m` | `unitSize` candidates of the label files, streamed: a label file is never held in memory |
//! | `uno-train` | the same, of records as UNO's own training reads them |
//! | `webdataset` | one tar, by name |
//!
//! What is wrong with one record or picture costs that candidate and is counted; what is wrong with a label file or a tar
//! is an error that names it, and costs the unit that it lies in: label files and tars after it are read.

mod index;
mod picture;
mod records;
mod score;
#[cfg(test)]
mod tests;
mod uno1m;
mod uno_train;
mod webdataset;

pub use index::LabelIndex;
pub use records::{Record, Records, RecordsError};
pub use uno1m::Uno1m;
pub use webdataset::Webdataset;

use crescendo_dataset::shard::ShardError;
use std::path::PathBuf;

/// Size of one picture file beyond which it is not read.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Why a unit cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{} has no {what}", path.display())]
    Nothing { path: PathBuf, what: &'static str },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the label files have more than {most} records")]
    TooMany { most: u64 },
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error("{}: {source}", path.display())]
    Shard { path: PathBuf, source: ShardError },
}
