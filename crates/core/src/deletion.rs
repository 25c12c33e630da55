//! Ended jobs on their way out.
//!
//! ```text
//!            files are gone           no record is left
//!   Files ──────────────────▶ Records ─────────────────▶ Gone
//!     ▲                                                    │ what was kept is to go too
//!     └────────────────────────────────────────────────────┘
//! ```
//!
//! A [`DeletionRecord`] comes first, and only while nobody needs the job ([`references`](crate::references)). From then on the job is being
//! deleted, and nothing takes that back. Curators remove its files, then its records go, a few at a time, the job's own last and
//! together with the step to `Gone`. Every step rests on what is durable alone, so that whoever leads next goes on where it stood.
//! What stays is the record itself, with the job's [`Lineage`].

use crate::file::FileRecord;
use crate::ids::{JobId, RequestId, StageName, Tenant, Timestamp};
use crate::job::JobState;
use crate::object_keys::JobPart;

/// Deleted jobs that are remembered; the oldest of which nothing is kept are forgotten first.
pub const MAX_LINEAGES: usize = 10_000;

/// What of a job's files stays when it is deleted. Its records go all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptParts {
    pub checkpoints: bool,
    pub pairs: bool,
    pub logs: bool,
}

impl KeptParts {
    pub fn keeps(self, part: JobPart) -> bool {
        match part {
            JobPart::Checkpoints => self.checkpoints,
            JobPart::Pairs => self.pairs,
            JobPart::Logs => self.logs,
            JobPart::Rest => false,
        }
    }

    /// Nothing stays.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// What both keep.
    pub fn and(self, other: Self) -> Self {
        Self {
            checkpoints: self.checkpoints && other.checkpoints,
            pairs: self.pairs && other.pairs,
            logs: self.logs && other.logs,
        }
    }
}

/// How far the deletion of a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeletionPhase {
    /// Its files are being removed.
    Files,
    /// They are gone, and its records go.
    Records,
    /// Nothing is left of it but this, and what was kept.
    Gone { at: Timestamp },
}

/// Objects of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectTotals {
    pub objects: u64,
    pub bytes: u64,
}

impl ObjectTotals {
    pub fn plus(self, other: Self) -> Self {
        Self {
            objects: self.objects.saturating_add(other.objects),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

/// A job that is being deleted, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletionRecord {
    pub job: JobId,
    pub tenant: Tenant,
    pub phase: DeletionPhase,
    pub keep: KeptParts,
    /// When it was asked for.
    pub requested_at: Timestamp,
    /// It was not a person who asked, but the retention of its tenant: in words.
    pub by_retention: Option<String>,
    /// What was removed of the object store so far.
    pub removed: ObjectTotals,
    /// Bytes of kept checkpoints and pairs, as they were registered: they count as the tenant's. Known once the phase is
    /// [`DeletionPhase::Records`].
    pub kept_checkpoint_bytes: u64,
    pub kept_pair_bytes: u64,
    pub lineage: Lineage,
}

impl DeletionRecord {
    /// Kept bytes that count as the tenant's.
    pub fn kept_bytes(&self) -> u64 {
        self.kept_checkpoint_bytes.saturating_add(self.kept_pair_bytes)
    }
}

/// What stays known of a job: where it came from, and what it made. Bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    pub name: String,
    pub request: RequestId,
    pub submitted_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// As it was when this was written: for a job that is deleted, as it ended.
    pub state: JobState,
    /// SHA-256 of the resolved spec as it was accepted, lower-case hexadecimal.
    pub spec_sha256: String,
    /// Weights, and files of the object store, that its spec named.
    pub from: Vec<String>,
    pub finals: Vec<FinalCheckpoint>,
}

/// The final checkpoint of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalCheckpoint {
    pub stage: StageName,
    pub step: u64,
    /// Folder in the object store, where it was or is.
    pub path: String,
    pub files: Vec<FileRecord>,
}
