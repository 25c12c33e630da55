//! Deletions and lineages as messages.

use crescendo_core::deletion::{DeletionPhase, DeletionRecord, FinalCheckpoint, KeptParts, Lineage};
use crescendo_core::ids::{JobId, Timestamp};
use crescendo_core::job::JobState;

use crate::convert;
use crate::v1;

pub fn kept_parts(message: Option<v1::KeptParts>) -> KeptParts {
    let v1::KeptParts { checkpoints, pairs, logs } = message.unwrap_or_default();
    KeptParts { checkpoints, pairs, logs }
}

/// How far a deletion is, and what it waits for.
pub fn deletion_message(record: &DeletionRecord, waiting_for: String) -> v1::JobDeletion {
    let (phase, gone_at): (_, Option<Timestamp>) = match record.phase {
        DeletionPhase::Files => (v1::DeletionPhase::Files, None),
        DeletionPhase::Records => (v1::DeletionPhase::Records, None),
        DeletionPhase::Gone { at } => (v1::DeletionPhase::Gone, Some(at)),
    };
    let KeptParts { checkpoints, pairs, logs } = record.keep;
    v1::JobDeletion {
        job_id: record.job.to_string(),
        tenant: record.tenant.to_string(),
        phase: phase.into(),
        keep: Some(v1::KeptParts { checkpoints, pairs, logs }),
        requested_at: Some(convert::timestamp(record.requested_at)),
        gone_at: gone_at.map(convert::timestamp),
        removed_objects: record.removed.objects,
        removed_bytes: record.removed.bytes,
        kept_bytes: record.kept_bytes(),
        by_retention: record.by_retention.clone().unwrap_or_default(),
        waiting_for,
    }
}

pub fn lineage_message(job: &JobId, tenant: &str, lineage: &Lineage) -> v1::Lineage {
    let reason = match &lineage.state {
        JobState::Failed { reason } | JobState::Cancelled { reason } => reason.clone(),
        JobState::Queued
        | JobState::Placing { .. }
        | JobState::Running { .. }
        | JobState::Paused(_)
        | JobState::Preempting { .. }
        | JobState::Succeeded => String::new(),
    };
    v1::Lineage {
        job_id: job.to_string(),
        tenant: tenant.to_owned(),
        name: lineage.name.clone(),
        request_id: lineage.request.to_string(),
        state: lineage.state.name().to_owned(),
        reason,
        submitted_at: Some(convert::timestamp(lineage.submitted_at)),
        finished_at: lineage.finished_at.map(convert::timestamp),
        spec_sha256: lineage.spec_sha256.clone(),
        from: lineage.from.clone(),
        final_checkpoints: lineage.finals.iter().map(final_message).collect(),
    }
}

fn final_message(last: &FinalCheckpoint) -> v1::FinalCheckpoint {
    let file = |file: &crescendo_core::records::FileRecord| v1::CheckpointFile {
        name: file.name.clone(),
        size_bytes: file.size_bytes,
        sha256: file.sha256.clone(),
    };
    v1::FinalCheckpoint {
        stage: last.stage.to_string(),
        step: last.step,
        path: last.path.clone(),
        files: last.files.iter().map(file).collect(),
    }
}
