//! Messages to and from the types of `crescendo-core`. What comes in is checked; an error names the field.

use std::time::Duration;

use crescendo_core::error::RequestError;
use crescendo_core::histogram::ScoreCounts;
use crescendo_core::ids::{
    AttemptRef, Generation, Incarnation, InvalidId, JobId, NodeId, StageName, StageRef, Timestamp,
};
use crescendo_core::job::JobState;
use crescendo_core::observed::{NodeFailure, NodeHealth, NodeReport, Progress, Report};
use crescendo_core::precision::Arithmetic;
use crescendo_core::ranks::{RankPhase, RankWord};
use crescendo_core::reach::{Bounds, EndpointRule, Reach};
use crescendo_core::records::{
    CheckpointRecord, FailureKind, FileRecord, NodeKind, NodeRecord, RankPlacement, ShardRecord,
};
use crescendo_core::secret::redact;
use crescendo_core::transitions::{UnitCommit, UnitFate, UnitLeaseRef};
use crescendo_core::under_way::{CandidateCounts, UnitProgress};

use crate::v1;

/// Slots of one node; far above any machine.
const MAX_SLOTS: u32 = 1024;
/// Ranks of one attempt on one node, at most one a slot.
const MAX_RANKS: usize = MAX_SLOTS as usize;
const MAX_LABELS: usize = 64;
const MAX_TEXT_BYTES: usize = 256;
/// Most characters of a report's reason that are kept.
const MAX_REASON_CHARS: usize = 500;

/// An id out of `field`.
pub fn id<T>(
    field: &'static str,
    text: &str,
    parse: fn(&str) -> Result<T, InvalidId>,
) -> Result<T, RequestError> {
    parse(text).map_err(|error| RequestError::bad_id(field, &error))
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, RequestError> {
    value.ok_or_else(|| RequestError::invalid(field, "is missing"))
}

/// A stage out of a job id and a stage name.
pub fn stage(job: &str, stage: &str) -> Result<StageRef, RequestError> {
    Ok(StageRef { job: id("job_id", job, JobId::parse)?, stage: id("stage", stage, StageName::parse)? })
}

pub fn attempt(message: &v1::AttemptRef) -> Result<AttemptRef, RequestError> {
    let StageRef { job, stage } = stage(&message.job_id, &message.stage)?;
    Ok(AttemptRef { job, stage, generation: Generation(message.generation) })
}

pub fn lease(message: Option<v1::UnitLease>) -> Result<UnitLeaseRef, RequestError> {
    let message = required("lease", message)?;
    Ok(UnitLeaseRef {
        stage: stage(&message.job_id, &message.stage)?,
        unit: message.unit,
        lease_generation: message.lease_generation,
    })
}

/// What becomes of a unit that is given back.
pub fn unit_fate(message: &v1::FailUnitRequest) -> Result<UnitFate, RequestError> {
    match (message.released, message.job_fails) {
        (true, true) => Err(RequestError::invalid(
            "job_fails",
            "a unit that is released does not fail its job".to_owned(),
        )),
        (true, false) => Ok(UnitFate::Released),
        (false, true) => Ok(UnitFate::JobFails),
        (false, false) => Ok(UnitFate::Failed(match message.kind() {
            v1::UnitFailureKind::Source => FailureKind::Source,
            v1::UnitFailureKind::Passing | v1::UnitFailureKind::Unspecified => FailureKind::Passing,
        })),
    }
}

/// The kind of a unit's failure, as a curator says it.
pub fn failure_kind(kind: FailureKind) -> v1::UnitFailureKind {
    match kind {
        FailureKind::Passing => v1::UnitFailureKind::Passing,
        FailureKind::Source => v1::UnitFailureKind::Source,
    }
}

pub fn unit_commit(message: v1::CommitUnitRequest) -> Result<UnitCommit, RequestError> {
    let lease = lease(message.lease)?;
    let shard = message.shard.unwrap_or_default();
    if shard.unit != lease.unit && shard.pairs > 0 {
        return Err(RequestError::invalid("shard.unit", format!("must be {}", lease.unit)));
    }
    let v1::Shard { path, pairs, size_bytes, sha256, .. } = shard;
    let scores = message.scores.into_iter().map(|(name, scores)| (name, scores.counts)).collect();
    Ok(UnitCommit {
        lease,
        shard: ShardRecord { path, pairs, size_bytes, sha256 },
        rejected: message.rejected,
        scores: ScoreCounts::checked(scores).map_err(|reason| RequestError::invalid("scores", reason))?,
        exhausted: message.exhausted,
    })
}

pub fn checkpoint(message: Option<v1::Checkpoint>) -> Result<CheckpointRecord, RequestError> {
    let message = required("checkpoint", message)?;
    Ok(CheckpointRecord {
        stage: stage(&message.job_id, &message.stage)?,
        generation: Generation(message.generation),
        step: message.step,
        path: message.path,
        files: message
            .files
            .into_iter()
            .map(|file| FileRecord { name: file.name, size_bytes: file.size_bytes, sha256: file.sha256 })
            .collect(),
        committed_at: Timestamp::default(),
        is_final: message.r#final,
        damaged: None,
        next_position: message.next_position,
    })
}

pub fn reach_message(reach: &Reach) -> v1::Reach {
    match reach {
        Reach::Everything => v1::Reach { everything: true, ..Default::default() },
        Reach::Bounded(Bounds { store_prefixes, roots, keys, endpoints }) => v1::Reach {
            everything: false,
            store_prefixes: store_prefixes.clone(),
            roots: roots.clone(),
            keys: keys.iter().cloned().collect(),
            endpoints: endpoints.iter().map(ToString::to_string).collect(),
        },
    }
}

/// What a job's spec may name; controllers of before say nothing of it, and mean everything.
pub fn reach(message: Option<v1::Reach>) -> Result<Reach, RequestError> {
    let Some(v1::Reach { everything, store_prefixes, roots, keys, endpoints }) = message else {
        return Ok(Reach::Everything);
    };
    if everything {
        return Ok(Reach::Everything);
    }
    let rule = |text: &String| {
        EndpointRule::parse(text)
            .map_err(|reason| RequestError::invalid("reach.endpoints", format!("{text}: {reason}")))
    };
    let endpoints = endpoints.iter().map(rule).collect::<Result<_, _>>()?;
    Ok(Reach::Bounded(Bounds { store_prefixes, roots, keys: keys.into_iter().collect(), endpoints }))
}

pub fn checkpoint_message(record: &CheckpointRecord) -> v1::Checkpoint {
    v1::Checkpoint {
        job_id: record.stage.job.to_string(),
        stage: record.stage.stage.to_string(),
        generation: record.generation.0,
        step: record.step,
        path: record.path.clone(),
        files: record
            .files
            .iter()
            .map(|file| v1::CheckpointFile {
                name: file.name.clone(),
                size_bytes: file.size_bytes,
                sha256: file.sha256.clone(),
            })
            .collect(),
        committed_at: Some(timestamp(record.committed_at)),
        r#final: record.is_final,
        damaged: record.damaged.clone().unwrap_or_default(),
        next_position: record.next_position,
        kept: false,
    }
}

/// A node's introduction.
#[derive(Clone, Debug, PartialEq)]
pub struct Introduction {
    pub record: NodeRecord,
    pub running: Vec<AttemptRef>,
    pub curating: Vec<StageRef>,
    /// It is about to leave.
    pub draining: bool,
    /// What left it at its last stop.
    pub left: Vec<LeftAttempt>,
    pub health: NodeHealth,
}

/// An attempt whose node was told to stop, with a checkpoint that may not be registered.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftAttempt {
    pub attempt: AttemptRef,
    pub checkpoint: Option<CheckpointRecord>,
}

fn left(message: v1::LeftAttempt) -> Result<LeftAttempt, RequestError> {
    let attempt = attempt(&required("hello.left.attempt", message.attempt)?)?;
    let checkpoint = message.checkpoint.map(|saved| checkpoint(Some(saved))).transpose()?;
    Ok(LeftAttempt { attempt, checkpoint })
}

/// Attempts that one node may have left.
const MAX_LEFT: usize = 1024;

pub fn hello(message: v1::Hello) -> Result<Introduction, RequestError> {
    let kind = match message.kind() {
        v1::NodeKind::Trainer => NodeKind::Trainer,
        v1::NodeKind::Curator => NodeKind::Curator,
        v1::NodeKind::Unspecified => {
            return Err(RequestError::invalid("hello.kind", "must be trainer or curator"));
        }
    };
    if message.slots > MAX_SLOTS {
        return Err(RequestError::invalid("hello.slots", format!("must be at most {MAX_SLOTS}")));
    }
    let texts = [
        ("hello.device", &message.device),
        ("hello.address", &message.address),
        ("hello.version", &message.version),
    ];
    for (field, text) in texts {
        if text.len() > MAX_TEXT_BYTES || text.chars().any(char::is_control) {
            return Err(RequestError::invalid(
                field,
                format!("must be one line of at most {MAX_TEXT_BYTES} bytes"),
            ));
        }
    }
    let too_long = |text: &str| text.len() > MAX_TEXT_BYTES;
    if message.labels.len() > MAX_LABELS
        || message.labels.iter().any(|(key, value)| too_long(key) || too_long(value))
    {
        let message = format!("must be at most {MAX_LABELS} of at most {MAX_TEXT_BYTES} bytes");
        return Err(RequestError::invalid("hello.labels", message));
    }
    let running = message.running.iter().map(attempt).collect::<Result<_, _>>()?;
    let curating =
        message.curating.iter().map(|at| stage(&at.job_id, &at.stage)).collect::<Result<_, _>>()?;
    Ok(Introduction {
        record: NodeRecord {
            id: id("hello.node_id", &message.node_id, NodeId::parse)?,
            incarnation: id("hello.incarnation", &message.incarnation, Incarnation::parse)?,
            kind,
            slots: message.slots,
            device: message.device,
            address: message.address,
            labels: message.labels,
            version: message.version,
            // What is known of it stands: see `DrainNode`.
            drained: false,
            cordon: None,
            arithmetic: message.arithmetic.map(arithmetic).transpose()?,
            device_memory_bytes: (message.device_memory_bytes > 0).then_some(message.device_memory_bytes),
        },
        running,
        curating,
        draining: message.draining,
        // What is not understood of it loses nothing else.
        left: message.left.into_iter().take(MAX_LEFT).filter_map(|message| left(message).ok()).collect(),
        health: node_health(message.health.unwrap_or_default()),
    })
}

/// How a node is. What is more than there can be of it is left out.
pub fn node_health(message: v1::NodeHealth) -> NodeHealth {
    let v1::NodeHealth { stuck_slots, device_fault, store_fault, store_id } = message;
    let told = |text: String| (!text.is_empty()).then(|| line(&text));
    let stuck = stuck_slots.into_iter().filter(|stuck| stuck.slot < MAX_SLOTS).take(MAX_RANKS);
    NodeHealth {
        stuck: stuck.map(|stuck| (stuck.slot, line(&stuck.what))).collect(),
        device_fault: told(device_fault),
        store_fault: told(store_fault),
        store_id: Some(store_id).filter(|id| !id.is_empty() && id.len() <= MAX_TEXT_BYTES),
    }
}

/// A stage, and how far its unit is that a curator works on; when it was said is for whoever hears it to note.
pub fn unit_report(message: &v1::UnitReport) -> Result<(StageRef, UnitProgress), RequestError> {
    let at =
        message.stage.as_ref().ok_or_else(|| RequestError::invalid("unit_report.stage", "is missing"))?;
    let v1::UnitReport { stage: _, unit, candidates, drawn, filtered, judged, accepted, waits_for } = message;
    let candidates = CandidateCounts {
        planned: *candidates,
        drawn: *drawn,
        filtered: *filtered,
        judged: *judged,
        accepted: *accepted,
    };
    let waits_for = (!waits_for.is_empty()).then(|| line(waits_for));
    let progress = UnitProgress { unit: *unit, candidates, waits_for, ..UnitProgress::default() };
    Ok((stage(&at.job_id, &at.stage)?, progress))
}

/// What a node has measured of itself.
fn arithmetic(message: v1::Arithmetic) -> Result<Arithmetic, RequestError> {
    let v1::Arithmetic { f32_nanos, bf16_nanos, processor, threads } = message;
    if processor.len() > MAX_TEXT_BYTES || processor.chars().any(char::is_control) {
        let wanted = format!("must be one line of at most {MAX_TEXT_BYTES} bytes");
        return Err(RequestError::invalid("hello.arithmetic.processor", wanted));
    }
    let time = |nanos: u64| Duration::from_nanos(nanos);
    Ok(Arithmetic { f32_time: time(f32_nanos), bf16_time: time(bf16_nanos), processor, threads })
}

pub fn arithmetic_message(arithmetic: &Arithmetic) -> v1::Arithmetic {
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    v1::Arithmetic {
        f32_nanos: nanos(arithmetic.f32_time),
        bf16_nanos: nanos(arithmetic.bf16_time),
        processor: arithmetic.processor.clone(),
        threads: arithmetic.threads,
    }
}

/// What a node says, as one line without what it may not show.
fn line(text: &str) -> String {
    redact(text).chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect()
}

pub fn report(node: NodeId, message: v1::AttemptReport) -> Result<Report, RequestError> {
    let attempt = attempt(&required("attempt_report.attempt", message.attempt.clone())?)?;
    let phase = match message.phase() {
        v1::AttemptPhase::Unspecified => {
            return Err(RequestError::invalid("attempt_report.phase", "is missing or unknown"));
        }
        v1::AttemptPhase::Starting => NodeReport::Starting,
        v1::AttemptPhase::Running => NodeReport::Running,
        v1::AttemptPhase::Succeeded => NodeReport::Succeeded,
        v1::AttemptPhase::Failed => {
            let kind = match (message.permanent, message.peer_lost, message.rank_died) {
                (true, _, _) => NodeFailure::Permanent,
                (false, true, _) => NodeFailure::PeerLost,
                (false, false, true) => NodeFailure::RankDied,
                (false, false, false) => NodeFailure::Retryable,
            };
            NodeReport::Failed { reason: line(&message.reason), kind }
        }
        v1::AttemptPhase::Stopped => NodeReport::Stopped,
        v1::AttemptPhase::Drained => NodeReport::Drained { reason: line(&message.reason) },
    };
    let finite = |value: f64| if value.is_finite() { value } else { f64::NAN };
    let progress = Progress {
        step: message.step,
        loss: finite(message.loss),
        grad_norm: finite(message.grad_norm),
        learning_rate: finite(message.learning_rate),
        samples_per_sec: finite(message.samples_per_sec),
        data_wait_fraction: finite(message.data_wait_fraction),
        waiting_for: if phase == NodeReport::Running { line(&message.reason) } else { String::new() },
        replay_passes: message.replay_passes,
        skipped_steps: message.skipped_steps,
    };
    let ranks = message.ranks.into_iter().take(MAX_RANKS).filter_map(rank_word).collect();
    Ok(Report { node, attempt, phase, progress: Some(progress), ranks })
}

/// What a rank says of itself; nothing of one whose phase this version does not know.
fn rank_word(status: v1::RankStatus) -> Option<RankWord> {
    let phase = match status.phase() {
        v1::RankPhase::Unspecified => return None,
        v1::RankPhase::Loading => RankPhase::Loading,
        v1::RankPhase::Meeting => RankPhase::Meeting,
        v1::RankPhase::WaitingForPairs => RankPhase::WaitingForPairs,
        v1::RankPhase::Forward => RankPhase::Forward,
        v1::RankPhase::Backward => RankPhase::Backward,
        v1::RankPhase::AllReduce => RankPhase::AllReduce,
        v1::RankPhase::Optimizer => RankPhase::Optimizer,
        v1::RankPhase::Saving => RankPhase::Saving,
        v1::RankPhase::Leaving => RankPhase::Leaving,
    };
    let v1::RankStatus { rank, phase: _, step, moves, beats, steps_done, step_seconds, own_seconds } = status;
    let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let (step_time, own_time) = (time(step_seconds), time(own_seconds));
    Some(RankWord { rank, phase, step, moves, beats, steps_done, step_time, own_time })
}

pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let millis = i64::try_from(time.0).unwrap_or(i64::MAX);
    prost_types::Timestamp {
        seconds: millis / 1000,
        nanos: i32::try_from(millis % 1000).unwrap_or(0) * 1_000_000,
    }
}

pub fn job_state(state: &JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Placing { .. } => v1::JobState::Placing,
        JobState::Running { .. } => v1::JobState::Running,
        JobState::Paused(_) => v1::JobState::Paused,
        JobState::Preempting { .. } => v1::JobState::Preempting,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed { .. } => v1::JobState::Failed,
        JobState::Cancelled { .. } => v1::JobState::Cancelled,
    }
}

pub fn node_kind(kind: NodeKind) -> v1::NodeKind {
    match kind {
        NodeKind::Trainer => v1::NodeKind::Trainer,
        NodeKind::Curator => v1::NodeKind::Curator,
    }
}

pub fn attempt_message(attempt: &AttemptRef) -> v1::AttemptRef {
    v1::AttemptRef {
        job_id: attempt.job.to_string(),
        stage: attempt.stage.to_string(),
        generation: attempt.generation.0,
    }
}

pub fn stage_message(stage: &StageRef) -> v1::StageRef {
    v1::StageRef { job_id: stage.job.to_string(), stage: stage.stage.to_string() }
}

/// The gang, by rank.
pub fn ranks_message(ranks: &[RankPlacement]) -> Vec<v1::RankPlacement> {
    ranks
        .iter()
        .zip(0u32..)
        .map(|(placed, rank)| v1::RankPlacement {
            rank,
            node_id: placed.node.to_string(),
            device_index: placed.device_index,
        })
        .collect()
}

pub fn shard_message(unit: u64, shard: &ShardRecord, first_index: u64) -> v1::Shard {
    let ShardRecord { path, pairs, size_bytes, sha256 } = shard.clone();
    v1::Shard { unit, path, pairs, size_bytes, sha256, first_index }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid_hello() -> v1::Hello {
        v1::Hello {
            node_id: "t-1".into(),
            incarnation: "i-1".into(),
            kind: v1::NodeKind::Trainer.into(),
            slots: 2,
            device: "cpu".into(),
            address: "127.0.0.1:9".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_bad_hello_is_refused_by_field() {
        assert!(hello(valid_hello()).is_ok());
        let bad = [
            ("hello.kind", v1::Hello { kind: 9, ..valid_hello() }),
            ("hello.slots", v1::Hello { slots: 1_000_000, ..valid_hello() }),
            ("hello.node_id", v1::Hello { node_id: "../etc".into(), ..valid_hello() }),
            ("hello.incarnation", v1::Hello { incarnation: String::new(), ..valid_hello() }),
            ("hello.address", v1::Hello { address: "a\nb".into(), ..valid_hello() }),
            (
                "hello.arithmetic.processor",
                v1::Hello {
                    arithmetic: Some(v1::Arithmetic { processor: "a\nb".into(), ..Default::default() }),
                    ..valid_hello()
                },
            ),
            ("hello.labels", v1::Hello { labels: [("k".into(), "v".repeat(300))].into(), ..valid_hello() }),
            ("job_id", v1::Hello { running: vec![v1::AttemptRef::default()], ..valid_hello() }),
        ];
        for (field, message) in bad {
            let refused = hello(message).expect_err(field).to_string();
            assert!(refused.starts_with(field), "{refused}");
        }
    }

    #[test]
    fn a_report_says_one_line_whatever_came() {
        let attempt = v1::AttemptRef { job_id: "j".into(), stage: "s".into(), generation: 1 };
        let message = v1::AttemptReport {
            attempt: Some(attempt),
            phase: v1::AttemptPhase::Failed.into(),
            reason: format!("a\nb{}", "c".repeat(10_000)),
            loss: f64::INFINITY,
            ..Default::default()
        };
        let node = NodeId::parse("t-1").expect("valid");
        let taken = report(node.clone(), message).expect("taken");
        let NodeReport::Failed { reason, kind: NodeFailure::Retryable } = taken.phase else {
            panic!("{taken:?}")
        };
        assert!(reason.starts_with("a bc") && reason.len() <= MAX_REASON_CHARS);
        let refused = report(node, v1::AttemptReport::default()).expect_err("no attempt");
        assert!(refused.to_string().starts_with("attempt_report.attempt"), "{refused}");
    }
}
