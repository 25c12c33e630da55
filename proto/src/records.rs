//! Core records to and from what is stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::deletion::{
    DeletionPhase, DeletionRecord, FinalCheckpoint, KeptParts, Lineage, ObjectTotals,
};
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{
    AttemptRef, Generation, Incarnation, InvalidId, JobId, NodeId, RequestId, StageName, StageRef, Tenant,
    Timestamp,
};
use crescendo_core::job::{JobState, Pause};
use crescendo_core::marks::{MarkChange, MarksRecord};
use crescendo_core::note::{Note, NotesRecord};
use crescendo_core::notices::{EndNotice, NoticeRecord, WebhookId};
use crescendo_core::precision::{Arithmetic, PrecisionChoice, StagePrecision};
use crescendo_core::processor::{GangKind, GangPart, RanOn};
use crescendo_core::records::{
    AttemptRecord, AttemptState, CheckpointRecord, ClusterRecord, FailureKind, JobRecord, KeepRecord,
    NodeKind, NodeRecord, RankPlacement, Record, RequestRecord, ShardRecord, StageRecord, UnitFailure,
    UnitRecord, UnitResult, UnitState,
};
use crescendo_core::segment::{DoneUnit, SegmentRecord, UnitSums};
use crescendo_core::usage::{Month, UsageRecord};
use prost::Message as _;

pub use crate::record_parts::{BadRecord, VERSION};
use crate::record_parts::{file_in, file_out, stage_in};
use crate::samplings::{sampling_in, sampling_out};
use crate::store_v1 as stored;

/// The stored bytes of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    use stored::record::Record as Kind;
    let kind = match record {
        Record::Job(record) => Kind::Job(job_out(record)),
        Record::Request(record) => Kind::Request(stored::Request {
            request_id: record.request.to_string(),
            job_id: record.job.to_string(),
            tenant: record.tenant.as_ref().map(Tenant::to_string).unwrap_or_default(),
        }),
        Record::Stage(record) => Kind::Stage(stage_out(record)),
        Record::Attempt(record) => Kind::Attempt(attempt_out(record)),
        Record::Segment(record) => Kind::Segment(segment_out(record)),
        Record::Unit(record) => Kind::Unit(unit_out(record)),
        Record::Checkpoint(record) => Kind::Checkpoint(checkpoint_out(record)),
        Record::Node(record) => Kind::Node(node_out(record)),
        Record::Cluster(ClusterRecord { id, stores }) => Kind::Cluster(stored::Cluster {
            id: id.clone(),
            stores: stores.iter().map(|(url, store)| (url.clone(), store.clone())).collect(),
        }),
        Record::Deletion(record) => Kind::Deletion(deletion_out(record)),
        Record::Usage(record) => Kind::Usage(usage_out(record)),
        Record::Notice(record) => Kind::Notice(notice_out(record)),
        Record::Notes(record) => Kind::Notes(notes_out(record)),
        Record::Sampling(record) => Kind::Sampling(sampling_out(record)),
        Record::Marks(record) => Kind::Marks(marks_out(record)),
        Record::Keep(KeepRecord { stage, step, generation, at }) => Kind::Keep(stored::Keep {
            job_id: stage.job.to_string(),
            stage: stage.stage.to_string(),
            step: *step,
            generation: generation.0,
            at_millis: at.0,
        }),
    };
    stored::Record { record: Some(kind), version: VERSION }.encode_to_vec()
}

/// The record behind stored bytes.
pub fn decode(bytes: &[u8]) -> Result<Record, BadRecord> {
    use stored::record::Record as Kind;
    let stored::Record { record, version } = stored::Record::decode(bytes)?;
    if version > VERSION {
        return Err(BadRecord::Newer { version });
    }
    // Whoever writes a record says a version; what says none was perhaps no record.
    let nothing = if version == 0 { BadRecord::Empty } else { BadRecord::NewKind };
    Ok(match record.ok_or(nothing)? {
        Kind::Job(message) => Record::Job(job_in(message)?),
        Kind::Request(message) => Record::Request(RequestRecord {
            tenant: match message.tenant.as_str() {
                "" => None,
                tenant => Some(Tenant::parse(tenant)?),
            },
            request: RequestId::parse(&message.request_id)?,
            job: JobId::parse(&message.job_id)?,
        }),
        Kind::Stage(message) => Record::Stage(stage_record_in(message)?),
        Kind::Attempt(message) => Record::Attempt(attempt_in(message)?),
        Kind::Segment(message) => Record::Segment(segment_in(message)?),
        Kind::Unit(message) => Record::Unit(unit_in(message)?),
        Kind::Checkpoint(message) => Record::Checkpoint(checkpoint_in(message)?),
        Kind::Node(message) => Record::Node(node_in(message)?),
        Kind::Cluster(stored::Cluster { id, .. }) if id.is_empty() => {
            return Err(BadRecord::Field { field: "cluster id" });
        }
        Kind::Cluster(stored::Cluster { id, stores }) => {
            Record::Cluster(ClusterRecord { id, stores: stores.into_iter().collect() })
        }
        Kind::Deletion(message) => Record::Deletion(deletion_in(message)?),
        Kind::Usage(message) => Record::Usage(usage_in(message)?),
        Kind::Notice(message) => Record::Notice(notice_in(message)?),
        Kind::Notes(message) => Record::Notes(notes_in(message)?),
        Kind::Sampling(message) => Record::Sampling(sampling_in(message)?),
        Kind::Marks(message) => Record::Marks(marks_in(message)?),
        Kind::Keep(stored::Keep { job_id, stage, step, generation, at_millis }) => Record::Keep(KeepRecord {
            stage: stage_in(&job_id, &stage)?,
            step,
            generation: Generation(generation),
            at: Timestamp(at_millis),
        }),
    })
}

fn usage_out(record: &UsageRecord) -> stored::Usage {
    let UsageRecord { tenant, decayed_millis, at, months } = record;
    let all =
        months.iter().flat_map(|(month, used)| used.iter().map(move |(device, used)| (month, device, used)));
    stored::Usage {
        tenant: tenant.to_string(),
        decayed_millis: *decayed_millis,
        at_millis: at.0,
        months: all
            .map(|(Month { year, month }, device, used)| stored::usage::Month {
                year: *year,
                month: *month,
                device: device.clone(),
                slot_millis: *used,
            })
            .collect(),
    }
}

fn usage_in(message: stored::Usage) -> Result<UsageRecord, BadRecord> {
    let stored::Usage { tenant, decayed_millis, at_millis, months } = message;
    let mut by_month: BTreeMap<Month, BTreeMap<String, u64>> = BTreeMap::new();
    for stored::usage::Month { year, month, device, slot_millis } in months {
        if !(1..=12).contains(&month) {
            return Err(BadRecord::Field { field: "month" });
        }
        by_month.entry(Month { year, month }).or_default().insert(device, slot_millis);
    }
    let tenant = Tenant::parse(&tenant)?;
    Ok(UsageRecord { tenant, decayed_millis, at: Timestamp(at_millis), months: by_month })
}

fn notice_out(record: &NoticeRecord) -> stored::Notice {
    let end = |end: &EndNotice| {
        let (state, _, reason) = state_out(&end.state);
        stored::notice::End {
            state: state.into(),
            reason: reason.to_owned(),
            started_at_millis: time_out(end.started_at),
            finished_at_millis: end.finished_at.0,
            waiting: end.waiting.iter().map(|WebhookId(id)| id.clone()).collect(),
        }
    };
    stored::Notice { job_id: record.job.to_string(), ends: record.ends.iter().map(end).collect() }
}

fn notice_in(message: stored::Notice) -> Result<NoticeRecord, BadRecord> {
    let end = |end: stored::notice::End| {
        let state = state_in(end.state(), &StateFacts { reason: &end.reason, ..StateFacts::default() })?;
        if !state.is_terminal() {
            return Err(BadRecord::Field { field: "state of an end" });
        }
        Ok(EndNotice {
            state,
            started_at: time_in(end.started_at_millis),
            finished_at: Timestamp(end.finished_at_millis),
            waiting: end.waiting.into_iter().map(WebhookId).collect(),
        })
    };
    let ends: Result<Vec<EndNotice>, BadRecord> = message.ends.into_iter().map(end).collect();
    Ok(NoticeRecord { job: JobId::parse(&message.job_id)?, ends: ends? })
}

fn notes_out(record: &NotesRecord) -> stored::Notes {
    let note = |Note { at, by, text }: &Note| stored::notes::Note {
        at_millis: at.0,
        by: by.clone(),
        text: text.clone(),
    };
    stored::Notes { job_id: record.job.to_string(), notes: record.notes.iter().map(note).collect() }
}

fn marks_out(record: &MarksRecord) -> stored::Marks {
    let change = |MarkChange { at, by, index, bad, reason }: &MarkChange| stored::marks::Change {
        at_millis: at.0,
        by: by.clone(),
        index: *index,
        bad: *bad,
        reason: reason.clone(),
    };
    stored::Marks {
        job_id: record.stage.job.to_string(),
        stage: record.stage.stage.to_string(),
        changes: record.changes.iter().map(change).collect(),
    }
}

fn marks_in(message: stored::Marks) -> Result<MarksRecord, BadRecord> {
    let stored::Marks { job_id, stage, changes } = message;
    let change = |stored::marks::Change { at_millis, by, index, bad, reason }| MarkChange {
        at: Timestamp(at_millis),
        by,
        index,
        bad,
        reason,
    };
    Ok(MarksRecord { stage: stage_in(&job_id, &stage)?, changes: changes.into_iter().map(change).collect() })
}

fn notes_in(message: stored::Notes) -> Result<NotesRecord, BadRecord> {
    let note = |stored::notes::Note { at_millis, by, text }| Note { at: Timestamp(at_millis), by, text };
    let notes = message.notes.into_iter().map(note).collect();
    Ok(NotesRecord { job: JobId::parse(&message.job_id)?, notes })
}

fn time_out(time: Option<Timestamp>) -> u64 {
    time.map_or(0, |time| time.0)
}

fn time_in(millis: u64) -> Option<Timestamp> {
    (millis > 0).then_some(Timestamp(millis))
}

/// The state, its stage and its reason.
fn state_out(state: &JobState) -> (stored::JobState, usize, &str) {
    match state {
        JobState::Queued => (stored::JobState::Queued, 0, ""),
        JobState::Placing { stage } => (stored::JobState::Placing, *stage, ""),
        JobState::Running { stage } => (stored::JobState::Running, *stage, ""),
        JobState::Paused(Pause { reason, .. }) => (stored::JobState::Paused, 0, reason.as_str()),
        JobState::Preempting { stage, .. } => (stored::JobState::Preempting, *stage, ""),
        JobState::Succeeded => (stored::JobState::Succeeded, 0, ""),
        JobState::Failed { reason } => (stored::JobState::Failed, 0, reason.as_str()),
        JobState::Cancelled { reason } => (stored::JobState::Cancelled, 0, reason.as_str()),
    }
}

fn job_out(record: &JobRecord) -> stored::Job {
    let (state, stage, reason) = state_out(&record.state);
    stored::Job {
        id: record.id.to_string(),
        request_id: record.request.to_string(),
        spec_json: record.spec_json.to_vec(),
        state: state.into(),
        stage_index: u32::try_from(stage).unwrap_or(u32::MAX),
        reason: reason.to_owned(),
        submitted_at_millis: record.submitted_at.0,
        started_at_millis: time_out(record.started_at),
        finished_at_millis: time_out(record.finished_at),
        paused_curates: matches!(record.state, JobState::Paused(Pause { curates: true, .. })),
        preempted_by: match &record.state {
            JobState::Preempting { by, .. } => by.to_string(),
            JobState::Queued
            | JobState::Placing { .. }
            | JobState::Running { .. }
            | JobState::Paused(_)
            | JobState::Succeeded
            | JobState::Failed { .. }
            | JobState::Cancelled { .. } => String::new(),
        },
        trace_parent: record.trace.map(|trace| trace.to_string()).unwrap_or_default(),
    }
}

/// What is kept of a job's state beside its name.
#[derive(Default)]
struct StateFacts<'a> {
    stage: usize,
    reason: &'a str,
    paused_curates: bool,
    preempted_by: &'a str,
}

fn state_in(state: stored::JobState, facts: &StateFacts<'_>) -> Result<JobState, BadRecord> {
    let StateFacts { stage, reason, paused_curates, preempted_by } = *facts;
    Ok(match state {
        stored::JobState::Unspecified => return Err(BadRecord::Field { field: "job state" }),
        stored::JobState::Queued => JobState::Queued,
        stored::JobState::Placing => JobState::Placing { stage },
        stored::JobState::Running => JobState::Running { stage },
        stored::JobState::Paused => {
            JobState::Paused(Pause { curates: paused_curates, reason: reason.to_owned() })
        }
        stored::JobState::Preempting => JobState::Preempting { stage, by: JobId::parse(preempted_by)? },
        stored::JobState::Succeeded => JobState::Succeeded,
        stored::JobState::Failed => JobState::Failed { reason: reason.to_owned() },
        stored::JobState::Cancelled => JobState::Cancelled { reason: reason.to_owned() },
    })
}

fn job_in(message: stored::Job) -> Result<JobRecord, BadRecord> {
    let facts = StateFacts {
        stage: message.stage_index as usize,
        reason: &message.reason,
        paused_curates: message.paused_curates,
        preempted_by: &message.preempted_by,
    };
    let state = state_in(message.state(), &facts)?;
    Ok(JobRecord {
        id: JobId::parse(&message.id)?,
        request: RequestId::parse(&message.request_id)?,
        spec: Arc::new(serde_json::from_slice(&message.spec_json).map_err(BadRecord::Spec)?),
        spec_json: message.spec_json.into(),
        state,
        submitted_at: Timestamp(message.submitted_at_millis),
        trace: message.trace_parent.parse().ok(),
        started_at: time_in(message.started_at_millis),
        finished_at: time_in(message.finished_at_millis),
    })
}

fn deletion_out(record: &DeletionRecord) -> stored::Deletion {
    use stored::deletion::Phase;
    let (phase, gone_at) = match record.phase {
        DeletionPhase::Files => (Phase::Files, None),
        DeletionPhase::Records => (Phase::Records, None),
        DeletionPhase::Gone { at } => (Phase::Gone, Some(at)),
    };
    let KeptParts { checkpoints, pairs, logs } = record.keep;
    stored::Deletion {
        job_id: record.job.to_string(),
        tenant: record.tenant.to_string(),
        phase: phase.into(),
        keep_checkpoints: checkpoints,
        keep_pairs: pairs,
        keep_logs: logs,
        requested_at_millis: record.requested_at.0,
        gone_at_millis: time_out(gone_at),
        by_retention: record.by_retention.clone().unwrap_or_default(),
        removed_objects: record.removed.objects,
        removed_bytes: record.removed.bytes,
        kept_checkpoint_bytes: record.kept_checkpoint_bytes,
        kept_pair_bytes: record.kept_pair_bytes,
        lineage: Some(lineage_out(&record.lineage)),
    }
}

fn lineage_out(lineage: &Lineage) -> stored::deletion::Lineage {
    let (state, _, reason) = state_out(&lineage.state);
    let a_final = |last: &FinalCheckpoint| stored::deletion::Final {
        stage: last.stage.to_string(),
        step: last.step,
        path: last.path.clone(),
        files: last.files.iter().map(file_out).collect(),
    };
    stored::deletion::Lineage {
        name: lineage.name.clone(),
        request_id: lineage.request.to_string(),
        state: state.into(),
        reason: reason.to_owned(),
        submitted_at_millis: lineage.submitted_at.0,
        finished_at_millis: time_out(lineage.finished_at),
        spec_sha256: lineage.spec_sha256.clone(),
        from: lineage.from.clone(),
        finals: lineage.finals.iter().map(a_final).collect(),
    }
}

fn deletion_in(message: stored::Deletion) -> Result<DeletionRecord, BadRecord> {
    use stored::deletion::Phase;
    let phase = match message.phase() {
        Phase::Unspecified => return Err(BadRecord::Field { field: "phase of a deletion" }),
        Phase::Files => DeletionPhase::Files,
        Phase::Records => DeletionPhase::Records,
        Phase::Gone => DeletionPhase::Gone { at: Timestamp(message.gone_at_millis) },
    };
    let lineage = message.lineage.ok_or(BadRecord::Field { field: "lineage of a deletion" })?;
    Ok(DeletionRecord {
        job: JobId::parse(&message.job_id)?,
        tenant: Tenant::parse(&message.tenant)?,
        phase,
        keep: KeptParts {
            checkpoints: message.keep_checkpoints,
            pairs: message.keep_pairs,
            logs: message.keep_logs,
        },
        requested_at: Timestamp(message.requested_at_millis),
        by_retention: Some(message.by_retention).filter(|why| !why.is_empty()),
        removed: ObjectTotals { objects: message.removed_objects, bytes: message.removed_bytes },
        kept_checkpoint_bytes: message.kept_checkpoint_bytes,
        kept_pair_bytes: message.kept_pair_bytes,
        lineage: lineage_in(lineage)?,
    })
}

fn lineage_in(message: stored::deletion::Lineage) -> Result<Lineage, BadRecord> {
    let facts = StateFacts { reason: &message.reason, ..StateFacts::default() };
    let state = state_in(message.state(), &facts)?;
    let a_final = |last: stored::deletion::Final| {
        Ok::<_, InvalidId>(FinalCheckpoint {
            stage: StageName::parse(&last.stage)?,
            step: last.step,
            path: last.path,
            files: last.files.into_iter().map(file_in).collect(),
        })
    };
    Ok(Lineage {
        name: message.name,
        request: RequestId::parse(&message.request_id)?,
        submitted_at: Timestamp(message.submitted_at_millis),
        finished_at: time_in(message.finished_at_millis),
        state,
        spec_sha256: message.spec_sha256,
        from: message.from,
        finals: message.finals.into_iter().map(a_final).collect::<Result<_, _>>()?,
    })
}

fn nanos_out(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn stage_out(record: &StageRecord) -> stored::Stage {
    let part = |part: &GangPart| stored::stage::Part {
        ranks: part.ranks,
        processor: part.processor.clone(),
        threads: part.threads,
    };
    stored::Stage {
        job_id: record.stage.job.to_string(),
        stage: record.stage.stage.to_string(),
        precision_choice: record.precision.as_ref().map(|choice| stored::stage::PrecisionChoice {
            bf16: choice.precision == StagePrecision::Bf16,
            why: choice.why.clone(),
        }),
        ran_on: record
            .ran_on
            .iter()
            .map(|ran| stored::stage::RanOn {
                generation: ran.generation.0,
                from_step: ran.from_step,
                parts: ran.gang.parts.iter().map(part).collect(),
            })
            .collect(),
    }
}

fn stage_record_in(message: stored::Stage) -> Result<StageRecord, BadRecord> {
    let part = |part: stored::stage::Part| GangPart {
        ranks: part.ranks,
        processor: part.processor,
        threads: part.threads,
    };
    Ok(StageRecord {
        stage: stage_in(&message.job_id, &message.stage)?,
        precision: message.precision_choice.map(|choice| PrecisionChoice {
            precision: if choice.bf16 { StagePrecision::Bf16 } else { StagePrecision::F32 },
            why: choice.why,
        }),
        ran_on: message
            .ran_on
            .into_iter()
            .map(|ran| RanOn {
                generation: Generation(ran.generation),
                from_step: ran.from_step,
                gang: GangKind { parts: ran.parts.into_iter().map(part).collect() },
            })
            .collect(),
    })
}

fn attempt_out(record: &AttemptRecord) -> stored::Attempt {
    let (ended, end_reason, ended_at) = match &record.state {
        AttemptState::Active => (false, "", 0),
        AttemptState::Ended { reason, at } => (true, reason.as_str(), at.0),
    };
    stored::Attempt {
        job_id: record.attempt.job.to_string(),
        stage: record.attempt.stage.to_string(),
        generation: record.attempt.generation.0,
        ranks: record
            .ranks
            .iter()
            .map(|rank| stored::Rank {
                node_id: rank.node.to_string(),
                incarnation: rank.incarnation.to_string(),
                device_index: rank.device_index,
            })
            .collect(),
        ended,
        end_reason: end_reason.to_owned(),
        ended_at_millis: ended_at,
        started_at_millis: record.started_at.0,
        restarts: record.restarts,
        failures_in_a_row: record.failures_in_a_row,
        resume_from: record.resume_from.as_ref().map(checkpoint_out),
        init_from: record.init_from.as_ref().map(checkpoint_out),
        ran_millis: record.ran_millis,
        ahead_of: record.ahead_of.as_ref().map(ToString::to_string).unwrap_or_default(),
    }
}

fn attempt_in(message: stored::Attempt) -> Result<AttemptRecord, BadRecord> {
    let StageRef { job, stage } = stage_in(&message.job_id, &message.stage)?;
    let rank = |rank: stored::Rank| {
        Ok::<_, InvalidId>(RankPlacement {
            node: NodeId::parse(&rank.node_id)?,
            incarnation: Incarnation::parse(&rank.incarnation)?,
            device_index: rank.device_index,
        })
    };
    Ok(AttemptRecord {
        attempt: AttemptRef { job, stage, generation: Generation(message.generation) },
        ranks: message.ranks.into_iter().map(rank).collect::<Result<_, _>>()?,
        state: if message.ended {
            AttemptState::Ended { reason: message.end_reason, at: Timestamp(message.ended_at_millis) }
        } else {
            AttemptState::Active
        },
        started_at: Timestamp(message.started_at_millis),
        restarts: message.restarts,
        failures_in_a_row: message.failures_in_a_row,
        resume_from: message.resume_from.map(checkpoint_in).transpose()?,
        init_from: message.init_from.map(checkpoint_in).transpose()?,
        ran_millis: message.ran_millis,
        ahead_of: match message.ahead_of.as_str() {
            "" => None,
            job => Some(JobId::parse(job)?),
        },
    })
}

type StoredScores = BTreeMap<String, stored::unit::ScoreCounts>;

fn scores_out(scores: &ScoreCounts) -> StoredScores {
    let counts = scores.counts().iter();
    counts
        .map(|(name, counts)| (name.clone(), stored::unit::ScoreCounts { counts: counts.clone() }))
        .collect()
}

fn scores_in(scores: StoredScores) -> ScoreCounts {
    ScoreCounts::stored(scores.into_iter().map(|(name, scores)| (name, scores.counts)).collect())
}

fn segment_out(record: &SegmentRecord) -> stored::Segment {
    let SegmentRecord { stage, first_unit, units, odd_shards, sums, exhausted, last_failed } = record;
    let UnitSums { rejected, scores, failures, lost_leases, made } = sums;
    let odd_shard = |(unit, shard): (&u64, &ShardRecord)| stored::segment::OddShard {
        unit: *unit,
        path: shard.path.clone(),
        sha256: shard.sha256.clone(),
    };
    stored::Segment {
        job_id: stage.job.to_string(),
        stage: stage.stage.to_string(),
        first_unit: *first_unit,
        lease_generations: units.iter().map(|unit| unit.lease_generation).collect(),
        pairs: units.iter().map(|unit| unit.pairs).collect(),
        sizes_bytes: units.iter().map(|unit| unit.size_bytes).collect(),
        sha256: units.iter().flat_map(|unit| unit.sha256).collect(),
        odd_shards: odd_shards.iter().map(odd_shard).collect(),
        rejected: rejected.clone(),
        scores: scores_out(scores),
        failures: *failures,
        lost_leases: *lost_leases,
        made: *made,
        exhausted: *exhausted,
        last_failed: last_failed.as_ref().map(unit_out),
    }
}

fn segment_in(message: stored::Segment) -> Result<SegmentRecord, BadRecord> {
    let wrong = |field| BadRecord::Field { field };
    let (count, hashes) = (message.pairs.len(), message.sha256.as_chunks::<32>());
    if count == 0 {
        return Err(wrong("pairs of its units"));
    }
    if message.lease_generations.len() != count {
        return Err(wrong("lease of each unit"));
    }
    if message.sizes_bytes.len() != count {
        return Err(wrong("size of each unit"));
    }
    if hashes.0.len() != count || !hashes.1.is_empty() {
        return Err(wrong("hash of each unit"));
    }
    let numbers = message.lease_generations.into_iter().zip(message.pairs).zip(message.sizes_bytes);
    let units: Vec<DoneUnit> = numbers
        .zip(hashes.0)
        .map(|(((lease_generation, pairs), size_bytes), sha256)| DoneUnit {
            lease_generation,
            pairs,
            size_bytes,
            sha256: *sha256,
        })
        .collect();
    let odd_shard = |odd: stored::segment::OddShard| {
        let at = odd.unit.checked_sub(message.first_unit).and_then(|at| usize::try_from(at).ok());
        let unit = at.and_then(|at| units.get(at)).ok_or_else(|| wrong("unit of an odd shard"))?;
        let (pairs, size_bytes) = (unit.pairs, unit.size_bytes);
        Ok((odd.unit, ShardRecord { path: odd.path, pairs, size_bytes, sha256: odd.sha256 }))
    };
    Ok(SegmentRecord {
        stage: stage_in(&message.job_id, &message.stage)?,
        first_unit: message.first_unit,
        odd_shards: message.odd_shards.into_iter().map(odd_shard).collect::<Result<_, BadRecord>>()?,
        units,
        sums: UnitSums {
            rejected: message.rejected,
            scores: scores_in(message.scores),
            failures: message.failures,
            lost_leases: message.lost_leases,
            made: message.made,
        },
        exhausted: message.exhausted,
        last_failed: message.last_failed.map(unit_in).transpose()?,
    })
}

fn unit_out(record: &UnitRecord) -> stored::Unit {
    let state = match &record.state {
        UnitState::Free { wait: Duration::ZERO, .. } => None,
        UnitState::Free { from, wait } => Some(stored::unit::State::Wait(stored::unit::Wait {
            until_millis: from.0,
            wait_millis: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        })),
        UnitState::Leased { node, expires_at } => Some(stored::unit::State::Lease(stored::unit::Lease {
            node_id: node.to_string(),
            expires_at_millis: expires_at.0,
        })),
        UnitState::Done(result) => Some(stored::unit::State::Result(stored::unit::Result {
            shard_path: result.shard.path.clone(),
            pairs: result.shard.pairs,
            size_bytes: result.shard.size_bytes,
            sha256: result.shard.sha256.clone(),
            rejected: result.rejected.clone(),
            exhausted: result.exhausted,
            scores: scores_out(&result.scores),
        })),
    };
    stored::Unit {
        job_id: record.stage.job.to_string(),
        stage: record.stage.stage.to_string(),
        unit: record.unit,
        lease_generation: record.lease_generation,
        released: record.released,
        failures: record.failures,
        failed_on: record.failed_on.iter().map(NodeId::to_string).collect(),
        last_failure: record.last_failure.as_ref().map(|failure| stored::unit::Failure {
            node_id: failure.node.to_string(),
            source: failure.kind == FailureKind::Source,
            reason: failure.reason.clone(),
            at_millis: failure.at.0,
        }),
        state,
    }
}

fn unit_in(message: stored::Unit) -> Result<UnitRecord, BadRecord> {
    let state = match message.state {
        None => UnitState::Free { from: Timestamp(0), wait: Duration::ZERO },
        // Kept by a version that knew instants alone: a wait that is not told is over.
        Some(stored::unit::State::Wait(stored::unit::Wait { wait_millis: 0, .. })) => {
            UnitState::Free { from: Timestamp(0), wait: Duration::ZERO }
        }
        Some(stored::unit::State::Wait(wait)) => UnitState::Free {
            from: Timestamp(wait.until_millis),
            wait: Duration::from_millis(wait.wait_millis),
        },
        Some(stored::unit::State::Lease(lease)) => UnitState::Leased {
            node: NodeId::parse(&lease.node_id)?,
            expires_at: Timestamp(lease.expires_at_millis),
        },
        Some(stored::unit::State::Result(result)) => UnitState::Done(UnitResult {
            shard: ShardRecord {
                path: result.shard_path,
                pairs: result.pairs,
                size_bytes: result.size_bytes,
                sha256: result.sha256,
            },
            rejected: result.rejected,
            scores: scores_in(result.scores),
            exhausted: result.exhausted,
        }),
    };
    let failure = |failure: stored::unit::Failure| {
        Ok::<_, InvalidId>(UnitFailure {
            node: NodeId::parse(&failure.node_id)?,
            kind: if failure.source { FailureKind::Source } else { FailureKind::Passing },
            reason: failure.reason,
            at: Timestamp(failure.at_millis),
        })
    };
    Ok(UnitRecord {
        stage: stage_in(&message.job_id, &message.stage)?,
        unit: message.unit,
        lease_generation: message.lease_generation,
        released: message.released,
        failures: message.failures,
        failed_on: message.failed_on.iter().map(|node| NodeId::parse(node)).collect::<Result<_, _>>()?,
        last_failure: message.last_failure.map(failure).transpose()?,
        state,
    })
}

fn checkpoint_out(record: &CheckpointRecord) -> stored::Checkpoint {
    stored::Checkpoint {
        job_id: record.stage.job.to_string(),
        stage: record.stage.stage.to_string(),
        generation: record.generation.0,
        step: record.step,
        path: record.path.clone(),
        files: record.files.iter().map(file_out).collect(),
        committed_at_millis: record.committed_at.0,
        r#final: record.is_final,
        damaged: record.damaged.clone().unwrap_or_default(),
        next_position: record.next_position,
    }
}

fn checkpoint_in(message: stored::Checkpoint) -> Result<CheckpointRecord, BadRecord> {
    Ok(CheckpointRecord {
        stage: stage_in(&message.job_id, &message.stage)?,
        generation: Generation(message.generation),
        step: message.step,
        path: message.path,
        files: message.files.into_iter().map(file_in).collect(),
        committed_at: Timestamp(message.committed_at_millis),
        is_final: message.r#final,
        damaged: (!message.damaged.is_empty()).then_some(message.damaged),
        next_position: message.next_position,
    })
}

fn node_out(record: &NodeRecord) -> stored::Node {
    stored::Node {
        id: record.id.to_string(),
        incarnation: record.incarnation.to_string(),
        curator: record.kind == NodeKind::Curator,
        slots: record.slots,
        device: record.device.clone(),
        address: record.address.clone(),
        labels: record.labels.clone(),
        version: record.version.clone(),
        drained: record.drained,
        cordon: record.cordon.clone().unwrap_or_default(),
        device_memory_bytes: record.device_memory_bytes.unwrap_or(0),
        arithmetic: record.arithmetic.as_ref().map(|arithmetic| stored::node::Arithmetic {
            f32_nanos: nanos_out(arithmetic.f32_time),
            bf16_nanos: nanos_out(arithmetic.bf16_time),
            processor: arithmetic.processor.clone(),
            threads: arithmetic.threads,
        }),
    }
}

fn node_in(message: stored::Node) -> Result<NodeRecord, BadRecord> {
    Ok(NodeRecord {
        id: NodeId::parse(&message.id)?,
        incarnation: Incarnation::parse(&message.incarnation)?,
        kind: if message.curator { NodeKind::Curator } else { NodeKind::Trainer },
        slots: message.slots,
        device: message.device,
        address: message.address,
        labels: message.labels,
        version: message.version,
        drained: message.drained,
        cordon: (!message.cordon.is_empty()).then_some(message.cordon),
        device_memory_bytes: (message.device_memory_bytes > 0).then_some(message.device_memory_bytes),
        arithmetic: message.arithmetic.map(|arithmetic| Arithmetic {
            f32_time: Duration::from_nanos(arithmetic.f32_nanos),
            bf16_time: Duration::from_nanos(arithmetic.bf16_nanos),
            processor: arithmetic.processor,
            threads: arithmetic.threads,
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use crescendo_core::file::FileRecord;
    use crescendo_core::sampling::{DrawnSamples, SamplingRecord, SamplingState, ValidationLoss};

    use super::*;

    fn stage() -> StageRef {
        stage_in("trial-abc", "stage-1").expect("valid")
    }

    fn checkpoint() -> CheckpointRecord {
        CheckpointRecord {
            stage: stage(),
            generation: Generation(3),
            step: 20,
            path: "jobs/trial-abc/stage-1/checkpoints/step-00000020-g3".into(),
            files: vec![FileRecord { name: "state.json".into(), size_bytes: 9, sha256: "a".repeat(64) }],
            committed_at: Timestamp(77),
            is_final: true,
            damaged: Some("torn".into()),
            next_position: 640,
        }
    }

    fn stage_record(precision: Option<StagePrecision>) -> Record {
        let part = |ranks, processor: &str| GangPart { ranks, processor: processor.into(), threads: 1 };
        Record::Stage(StageRecord {
            stage: stage(),
            precision: precision.map(|precision| PrecisionChoice {
                precision,
                why: "node t runs bf16 at 0.12 of f32".into(),
            }),
            ran_on: vec![
                RanOn {
                    generation: Generation(1),
                    from_step: 0,
                    gang: GangKind { parts: vec![part(2, "amd avx2"), part(1, "")] },
                },
                RanOn {
                    generation: Generation(3),
                    from_step: 20,
                    gang: GangKind { parts: vec![part(3, "intel amx")] },
                },
            ],
        })
    }

    fn unit(state: UnitState) -> Record {
        let last_failure = Some(UnitFailure {
            node: NodeId::parse("c-2").expect("valid"),
            kind: FailureKind::Source,
            reason: "cannot read /x".into(),
            at: Timestamp(6),
        });
        let record = UnitRecord::new(&stage(), 7);
        Record::Unit(UnitRecord {
            lease_generation: 4,
            released: 1,
            failures: 1,
            failed_on: vec![NodeId::parse("c-2").expect("valid")],
            last_failure,
            state,
            ..record
        })
    }

    fn attempt(state: AttemptState) -> Record {
        let StageRef { job, stage } = stage();
        let rank = RankPlacement {
            node: NodeId::parse("t-1").expect("valid"),
            incarnation: Incarnation::parse("i-9").expect("valid"),
            device_index: 1,
        };
        Record::Attempt(AttemptRecord {
            attempt: AttemptRef { job, stage, generation: Generation(4) },
            ranks: vec![rank],
            state,
            started_at: Timestamp(5),
            restarts: 2,
            failures_in_a_row: 1,
            resume_from: Some(checkpoint()),
            init_from: None,
            ran_millis: 61_000,
            ahead_of: Some(JobId::parse("large-1").expect("valid")),
        })
    }

    fn sampling(step: u64, state: SamplingState) -> Record {
        Record::Sampling(SamplingRecord { stage: stage(), step, generation: Generation(step / 250), state })
    }

    #[test]
    fn what_is_stored_reads_back() {
        let shard = ShardRecord { path: "p".into(), pairs: 3, size_bytes: 8, sha256: "b".repeat(64) };
        let rejected = BTreeMap::from([("too_small".to_owned(), 2)]);
        let mut scores = ScoreCounts::default();
        scores.count("judge", 3.5);
        let node = NodeId::parse("c-1").expect("valid");
        let records = [
            unit(UnitState::Free { from: Timestamp(0), wait: Duration::ZERO }),
            unit(UnitState::Free { from: Timestamp(8), wait: Duration::from_secs(3) }),
            unit(UnitState::Leased { node: node.clone(), expires_at: Timestamp(9) }),
            unit(UnitState::Done(UnitResult { shard, rejected, scores, exhausted: true })),
            Record::Segment(segment()),
            attempt(AttemptState::Active),
            attempt(AttemptState::Ended { reason: "signal 9".into(), at: Timestamp(8) }),
            Record::Checkpoint(checkpoint()),
            Record::Request(RequestRecord {
                tenant: Some(Tenant::parse("research").expect("valid")),
                request: RequestId::parse("r-1").expect("valid"),
                job: stage().job,
            }),
            Record::Request(RequestRecord {
                tenant: None,
                request: RequestId::parse("r-1").expect("valid"),
                job: stage().job,
            }),
            deletion(DeletionPhase::Files, JobState::Succeeded),
            deletion(DeletionPhase::Records, JobState::Failed { reason: "worn".into() }),
            deletion(DeletionPhase::Gone { at: Timestamp(11) }, JobState::Cancelled { reason: "c".into() }),
            Record::Keep(KeepRecord {
                stage: stage(),
                step: 500,
                generation: Generation(3),
                at: Timestamp(5),
            }),
            Record::Cluster(ClusterRecord {
                id: "c0ffee".into(),
                stores: BTreeMap::from([("file:///data".into(), "b0b".into())]),
            }),
            Record::Node(NodeRecord {
                id: node,
                incarnation: Incarnation::parse("i-1").expect("valid"),
                kind: NodeKind::Curator,
                slots: 0,
                device: "cpu".into(),
                address: "127.0.0.1:9".into(),
                labels: BTreeMap::from([("zone".to_owned(), "a".to_owned())]),
                version: "0.1.0".into(),
                drained: true,
                cordon: Some("3 jobs have failed on it".into()),
                device_memory_bytes: Some(85_000_000_000),
                arithmetic: Some(Arithmetic {
                    f32_time: Duration::from_micros(210),
                    bf16_time: Duration::from_nanos(1),
                    processor: "amd avx2".into(),
                    threads: 2,
                }),
            }),
            stage_record(Some(StagePrecision::F32)),
            stage_record(Some(StagePrecision::Bf16)),
            stage_record(None),
        ];
        for record in records.into_iter().chain(told()).chain(samplings()) {
            assert_eq!(decode(&encode(&record)).expect("readable"), record);
        }
    }

    /// What people have said, and what is still to be told.
    fn told() -> Vec<Record> {
        vec![
            Record::Notice(NoticeRecord {
                job: stage().job,
                ends: [JobState::Failed { reason: "no pairs".into() }, JobState::Succeeded]
                    .map(|state| EndNotice {
                        state,
                        started_at: None,
                        finished_at: Timestamp(8),
                        waiting: BTreeSet::from([WebhookId("a1".into()), WebhookId("b2".into())]),
                    })
                    .to_vec(),
            }),
            Record::Notes(NotesRecord {
                job: stage().job,
                notes: vec![Note { at: Timestamp(9), by: "ada".into(), text: "it looks right".into() }],
            }),
            Record::Marks(MarksRecord {
                stage: stage(),
                changes: [(7, true, "a blurred cup"), (7, false, "")]
                    .map(|(index, bad, reason)| MarkChange {
                        at: Timestamp(9),
                        by: "ada".into(),
                        index,
                        bad,
                        reason: reason.into(),
                    })
                    .to_vec(),
            }),
        ]
    }

    fn samplings() -> Vec<Record> {
        vec![
            sampling(0, SamplingState::Wanted { tries: 2, failure: "no memory".into() }),
            sampling(500, SamplingState::GivenUp { reason: "a newer came first".into() }),
            sampling(
                500,
                SamplingState::Drawn(DrawnSamples {
                    file: Some(FileRecord { name: "n.tar".into(), size_bytes: 7, sha256: "c".repeat(64) }),
                    pictures: 4,
                    validation: Some(ValidationLoss { mean: 0.5, pairs: 8, by_time: vec![0.25, 0.75] }),
                    at: Timestamp(9),
                }),
            ),
        ]
    }

    fn deletion(phase: DeletionPhase, state: JobState) -> Record {
        Record::Deletion(DeletionRecord {
            job: stage().job,
            tenant: Tenant::parse("research").expect("valid"),
            phase,
            keep: KeptParts { checkpoints: true, pairs: false, logs: true },
            requested_at: Timestamp(7),
            by_retention: (state == JobState::Succeeded).then(|| "it is old".into()),
            removed: ObjectTotals { objects: 3, bytes: 4 },
            kept_checkpoint_bytes: 5,
            kept_pair_bytes: 6,
            lineage: Lineage {
                name: "uno".into(),
                request: RequestId::parse("r").expect("valid"),
                submitted_at: Timestamp(1),
                finished_at: Some(Timestamp(2)),
                state,
                spec_sha256: "b".repeat(64),
                from: vec!["store:jobs/k/stage-1".into()],
                finals: vec![FinalCheckpoint {
                    stage: stage().stage,
                    step: 500,
                    path: "jobs/j/stage-1/checkpoints/step-00000500-g3".into(),
                    files: checkpoint().files,
                }],
            },
        })
    }

    fn segment() -> SegmentRecord {
        let Record::Unit(failed) = unit(UnitState::Free { from: Timestamp(0), wait: Duration::ZERO }) else {
            panic!("a unit")
        };
        let mut scores = ScoreCounts::default();
        scores.count("judge", 3.5);
        let done =
            |pairs| DoneUnit { lease_generation: 3, pairs, size_bytes: 8 * pairs, sha256: [pairs as u8; 32] };
        let odd = ShardRecord { path: "elsewhere".into(), pairs: 5, size_bytes: 40, sha256: "none".into() };
        SegmentRecord {
            stage: stage(),
            first_unit: 1000,
            units: vec![done(3), done(0), done(5)],
            odd_shards: BTreeMap::from([(1002, odd)]),
            sums: UnitSums {
                rejected: BTreeMap::from([("too_small".to_owned(), 2)]),
                scores,
                failures: 4,
                lost_leases: 1,
                made: 2,
            },
            exhausted: true,
            last_failed: Some(failed),
        }
    }

    #[test]
    fn a_segment_whose_columns_differ_in_length_is_an_error() {
        let good = segment_out(&segment());
        let shorter = [
            stored::Segment { pairs: Vec::new(), ..good.clone() },
            stored::Segment { lease_generations: vec![1, 2], ..good.clone() },
            stored::Segment { sizes_bytes: vec![1, 2, 3, 4], ..good.clone() },
            stored::Segment { sha256: vec![0; 95], ..good.clone() },
            stored::Segment { sha256: vec![0; 97], ..good.clone() },
            stored::Segment { first_unit: 1003, ..good.clone() },
        ];
        assert_eq!(segment_in(good).expect("readable"), segment());
        for bad in shorter {
            assert!(matches!(segment_in(bad), Err(BadRecord::Field { .. })));
        }
    }

    #[test]
    fn every_job_state_reads_back() {
        let spec = include_bytes!("../../examples/nano.yaml");
        let spec = crescendo_core::spec::parse(spec).expect("the example is valid");
        let spec_json: Arc<[u8]> = serde_json::to_vec(&spec).expect("plain data").into();
        let states = [
            JobState::Queued,
            JobState::Placing { stage: 1 },
            JobState::Running { stage: 1 },
            JobState::Paused(Pause { curates: true, reason: "the cluster is moved".into() }),
            JobState::Preempting { stage: 1, by: JobId::parse("urgent-1").expect("valid") },
            JobState::Succeeded,
            JobState::Failed { reason: "no pairs".into() },
            JobState::Cancelled { reason: "enough".into() },
        ];
        for state in states {
            let record = Record::Job(JobRecord {
                id: stage().job,
                request: RequestId::parse("r-1").expect("valid"),
                spec: Arc::new(spec.clone()),
                spec_json: spec_json.clone(),
                finished_at: state.is_terminal().then_some(Timestamp(3)),
                state,
                submitted_at: Timestamp(1),
                trace: "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01".parse().ok(),
                started_at: Some(Timestamp(2)),
            });
            assert_eq!(decode(&encode(&record)).expect("readable"), record);
        }
    }

    #[test]
    fn scores_of_another_version_are_kept_as_they_are() {
        let Record::Unit(record) = unit(UnitState::Done(UnitResult {
            shard: ShardRecord::default(),
            rejected: BTreeMap::new(),
            scores: ScoreCounts::stored(BTreeMap::from([
                ("beauty".to_owned(), vec![1, 2]),
                ("judge".to_owned(), vec![3; 5]),
            ])),
            exhausted: false,
        })) else {
            panic!("a unit")
        };
        assert_eq!(
            decode(&encode(&Record::Unit(record.clone()))).expect("readable"),
            Record::Unit(record.clone())
        );
        let scores = &record.result().expect("done").scores;
        assert_eq!(scores.scores().count(), 0, "and not shown on a scale that is not theirs");
        let mut sum = ScoreCounts::default();
        sum.count("judge", 1.0);
        let before = sum.clone();
        sum.add(scores);
        let judged = |counts: &ScoreCounts| counts.counts().get("judge").cloned();
        assert_eq!(judged(&sum), judged(&before));
    }

    #[test]
    fn a_record_of_before_there_were_versions_is_read_and_one_of_a_newer_version_left_alone() {
        let record = attempt(AttemptState::Active);
        let with = |version| {
            let stored = stored::Record::decode(encode(&record).as_slice()).expect("readable");
            assert_eq!(stored.version, VERSION);
            stored::Record { version, ..stored }.encode_to_vec()
        };
        assert_eq!(decode(&with(0)).expect("readable"), record);
        let error = decode(&with(VERSION + 1)).expect_err("it may mean something else").to_string();
        assert!(error.starts_with("a newer version of the controller wrote it"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_record_are_an_error() {
        assert!(matches!(decode(b"\xff\xff\xff"), Err(BadRecord::Decode(_))));
        assert!(matches!(decode(b""), Err(BadRecord::Empty)));
        let new_kind = stored::Record { record: None, version: VERSION };
        assert!(matches!(decode(&new_kind.encode_to_vec()), Err(BadRecord::NewKind)));
        let newer = stored::Record { record: None, version: VERSION + 1 };
        assert!(matches!(decode(&newer.encode_to_vec()), Err(BadRecord::Newer { .. })));
        let bad = stored::Request { request_id: "a b".into(), job_id: "j".into(), tenant: String::new() };
        let bad = stored::Record { record: Some(stored::record::Record::Request(bad)), version: VERSION };
        assert!(matches!(decode(&bad.encode_to_vec()), Err(BadRecord::Id(_))));
    }
}
