//! What several kinds of stored records have in common.

use crescendo_core::file::FileRecord;
use crescendo_core::ids::{InvalidId, JobId, StageName, StageRef};

use crate::store_v1 as stored;

/// Version of the records that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// A stored value that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    #[error("decode the record")]
    Decode(#[from] prost::DecodeError),
    #[error(
        "a newer version of the controller wrote it: it has version {version}, and this one reads up to {VERSION}"
    )]
    Newer { version: u32 },
    #[error("the record holds nothing")]
    Empty,
    #[error("the record is of a kind that this version does not know")]
    NewKind,
    #[error("the record has a bad id")]
    Id(#[from] InvalidId),
    #[error("the record has a bad job spec")]
    Spec(#[source] serde_json::Error),
    #[error("the record's {field} is missing or unknown")]
    Field { field: &'static str },
}

pub(crate) fn stage_in(job: &str, stage: &str) -> Result<StageRef, InvalidId> {
    Ok(StageRef { job: JobId::parse(job)?, stage: StageName::parse(stage)? })
}

pub(crate) fn file_out(file: &FileRecord) -> stored::checkpoint::File {
    let FileRecord { name, size_bytes, sha256 } = file.clone();
    stored::checkpoint::File { name, size_bytes, sha256 }
}

pub(crate) fn file_in(file: stored::checkpoint::File) -> FileRecord {
    let stored::checkpoint::File { name, size_bytes, sha256 } = file;
    FileRecord { name, size_bytes, sha256 }
}
