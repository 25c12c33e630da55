//! State and observations as messages.

pub mod queues;

use std::collections::BTreeMap;
use std::fmt;

use crescendo_core::access::Scope;
use crescendo_core::decide::{Limits, PendingReason};
use crescendo_core::error::RequestError;
use crescendo_core::explain::short_logs;
use crescendo_core::histogram::Scale;
use crescendo_core::ids::{JobId, NodeId, StageRef, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::log_reads::ReadLog;
use crescendo_core::marks::MarkChange;
use crescendo_core::note::Note;
use crescendo_core::observed::Observed;
use crescendo_core::precision::{self, Arithmetic};
use crescendo_core::processor;
use crescendo_core::records::{NodeRecord, UnitState};
use crescendo_core::state::{ClusterState, Job, Stage};
use crescendo_core::under_way::{CandidateCounts, Waiting};
use crescendo_proto::{convert, v1};

/// Benched curators of a stage that are listed.
const MAX_CURATORS: usize = 32;

/// A job without its spec, its notes, its revision and its deletion.
pub fn job(
    state: &ClusterState,
    job: &Job,
    seen: &Observed,
    limits: &Limits,
    wait: Option<&PendingReason>,
    now: Timestamp,
) -> v1::Job {
    let record = &job.record;
    let current = job.current_stage();
    let stages = job
        .stages
        .iter()
        .enumerate()
        .map(|(index, stage)| {
            let log = state.read_log(job, index);
            let status = self::stage(job, index, (stage, log), seen, wait.filter(|_| current == Some(index)));
            if record.state.is_terminal() { status } else { with_curation(status, stage, seen, limits, now) }
        })
        .collect();
    v1::Job {
        job_id: record.id.to_string(),
        name: record.spec.name.clone(),
        tenant: record.spec.tenant.clone(),
        priority: record.spec.priority,
        state: convert::job_state(&record.state).into(),
        reason: reason(job, seen, wait, now),
        stages,
        submitted_at: Some(convert::timestamp(record.submitted_at)),
        started_at: record.started_at.map(convert::timestamp),
        finished_at: record.finished_at.map(convert::timestamp),
        revision: 0,
        resolved_spec_yaml: String::new(),
        request_id: record.request.to_string(),
        labels: record.spec.labels.clone().into_iter().collect(),
        slots_held: {
            let attempts = job.stages.iter().filter_map(Stage::active_attempt);
            u32::try_from(attempts.map(|attempt| attempt.ranks.len()).sum::<usize>()).unwrap_or(u32::MAX)
        },
        notes: Vec::new(),
        deletion: None,
    }
}

/// The changes of the marks of the log that a stage reads; none before the first.
pub fn mark_changes(state: &ClusterState, stage: &StageRef) -> Option<v1::PairMarks> {
    let marks = state.read_log_of(stage)?.of.marks.as_deref()?;
    let (indices, bad) = marks.changes.iter().map(|change| (change.index, change.bad)).unzip();
    Some(v1::PairMarks { indices, bad })
}

/// The marks of the log that a stage reads, as they are now.
pub fn marks(state: &ClusterState, stage: &StageRef) -> v1::PairMarkList {
    let Some(record) = state.read_log_of(stage).and_then(|log| log.of.marks.as_deref()) else {
        return v1::PairMarkList::default();
    };
    let mark = |(index, change): (u64, &MarkChange)| v1::PairMark {
        index,
        by: change.by.clone(),
        at: Some(convert::timestamp(change.at)),
        reason: change.reason.clone(),
    };
    v1::PairMarkList { version: record.version(), marks: record.marked().into_iter().map(mark).collect() }
}

/// What people have noted on a job, the oldest first.
pub fn notes(state: &ClusterState, job: &JobId) -> Vec<v1::JobNote> {
    let note = |Note { at, by, text }: &Note| v1::JobNote {
        at: Some(convert::timestamp(*at)),
        by: by.clone(),
        text: text.clone(),
    };
    state.notes(job).into_iter().flat_map(|record| &record.notes).map(note).collect()
}

fn reason(job: &Job, seen: &Observed, wait: Option<&PendingReason>, now: Timestamp) -> String {
    match &job.record.state {
        JobState::Failed { reason } | JobState::Cancelled { reason } => return reason.clone(),
        JobState::Succeeded => return short_logs(job).join("; "),
        JobState::Queued
        | JobState::Placing { .. }
        | JobState::Running { .. }
        | JobState::Paused(_)
        | JobState::Preempting { .. } => {}
    }
    if let Some(wait) = wait {
        return wait.to_string();
    }
    // Its ranks may well go on while their node is out of sight: said, but nothing follows from it.
    let attempt = job.stages.iter().find_map(Stage::active_attempt);
    let unseen = attempt.and_then(|attempt| {
        attempt.ranks.iter().find(|rank| !seen.nodes.get(&rank.node).is_some_and(|view| view.connected))
    });
    match unseen {
        Some(rank) => {
            let heard = seen.nodes.get(&rank.node).map_or(seen.since, |view| view.last_heard);
            format!("node {} is out of sight for {} s", rank.node, now.since(heard).as_secs())
        }
        None => String::new(),
    }
}

fn stage(
    job: &Job,
    index: usize,
    (stage, log): (&Stage, Option<ReadLog<'_>>),
    seen: &Observed,
    wait: Option<&PendingReason>,
) -> v1::StageStatus {
    let spec = job.stage_spec(index);
    let steps_total = spec.map_or(0, |spec| spec.train.steps);
    let checkpoint_step = stage.newest_checkpoint().map_or(0, |checkpoint| checkpoint.step);
    let attempt = stage.attempt.as_ref();
    let progress = attempt.and_then(|attempt| seen.gang(&attempt.attempt)).map(|gang| gang.progress.clone());
    let progress = progress.unwrap_or_default();
    let active = stage.active_attempt().is_some();
    let done = stage.is_done();
    let phase = if done {
        v1::StagePhase::Done
    } else if job.record.state.is_terminal() {
        v1::StagePhase::Stopped
    } else if active {
        v1::StagePhase::Training
    } else if stage.log.is_sealed() && (job.makes_pairs(index) || job.current_stage() == Some(index)) {
        v1::StagePhase::Waiting
    } else if stage.log.is_begun() || job.record.state == (JobState::Running { stage: index }) {
        v1::StagePhase::Curating
    } else {
        v1::StagePhase::Pending
    };
    let step = if done { steps_total } else { progress.step.max(checkpoint_step) };
    let batch = spec.map_or(0, |spec| spec.train.global_batch);
    let waiting_for = match wait {
        Some(wait) => wait.to_string(),
        None if active => progress.waiting_for.clone(),
        None => String::new(),
    };
    v1::StageStatus {
        name: stage.id.stage.to_string(),
        phase: phase.into(),
        generation: stage.generation().0,
        restarts: attempt.map_or(0, |attempt| attempt.restarts),
        step,
        steps_total,
        loss: progress.loss,
        grad_norm: progress.grad_norm,
        learning_rate: progress.learning_rate,
        samples_per_sec: progress.samples_per_sec,
        data_wait_fraction: progress.data_wait_fraction,
        pairs_committed: log.map_or(0, |log| log.committed()),
        pairs_target: spec.map_or(0, |spec| spec.data.pairs),
        pairs_rejected: stage.log.rejected().clone(),
        pairs_sealed: log.is_some_and(|log| log.is_sealed()),
        checkpoint_step,
        final_checkpoint: stage
            .final_checkpoint()
            .map(|checkpoint| checkpoint.path.clone())
            .unwrap_or_default(),
        eta_seconds: if active {
            eta_seconds(step, steps_total, batch, progress.samples_per_sec)
        } else {
            0.0
        },
        waiting_for,
        replay_passes: progress.replay_passes,
        skipped_steps: progress.skipped_steps,
        scores: stage.log.scores().scores().map(histogram).collect(),
        precision: precision::of_stage(&job.record.spec, stage).map(|p| p.to_string()).unwrap_or_default(),
        precision_reason: stage.precision_choice().map(|settled| settled.why.clone()).unwrap_or_default(),
        kind_changes: processor::changes(stage).map(|change| change.to_string()).collect(),
        ..v1::StageStatus::default()
    }
}

/// Adds how its units come, and what keeps them from being made.
fn with_curation(
    status: v1::StageStatus,
    stage: &Stage,
    seen: &Observed,
    limits: &Limits,
    now: Timestamp,
) -> v1::StageStatus {
    let last = stage.log.last_failure().filter(|(unit, _)| !unit.is_done() && !stage.log.is_sealed());
    let last_failure = last.map(|(unit, failure)| v1::UnitFailure {
        unit: unit.unit,
        node_id: failure.node.to_string(),
        reason: failure.reason.clone(),
        ago_seconds: now.since(failure.at).as_secs_f64(),
        retry_in_seconds: match &unit.state {
            UnitState::Free { from, .. } => from.since(now).as_secs_f64(),
            UnitState::Leased { .. } | UnitState::Done(_) => 0.0,
        },
    });
    let cooldowns = seen.cooldowns.of(&stage.id, limits, now).take(MAX_CURATORS).map(|(node, cooldown)| {
        let again = cooldown.until(limits).since(now).as_secs_f64();
        v1::CuratorCooldown {
            node_id: node.to_string(),
            reason: cooldown.reason.clone(),
            asked_again_in_seconds: again,
        }
    });
    let waiting = seen.under_way.waiting(&stage.id, limits.silent_after, now).take(MAX_CURATORS).map(
        |Waiting { node, reason, since: _ }| v1::WaitingCurator {
            node_id: node.to_string(),
            reason: reason.to_owned(),
        },
    );
    let (units, candidates) = seen.under_way.of(&stage.id, limits.silent_after, now);
    let CandidateCounts { planned, drawn, filtered, judged, accepted } = candidates;
    let under_way = v1::UnitsUnderWay { units, candidates: planned, drawn, filtered, judged, accepted };
    v1::StageStatus {
        last_failure,
        cooldowns: cooldowns.collect(),
        // What is not needed any more is not waited for.
        waiting_curators: if stage.log.is_sealed() { Vec::new() } else { waiting.collect() },
        under_way: (units > 0).then_some(under_way),
        pairs_per_minute: if stage.log.is_sealed() { 0.0 } else { 60.0 * seen.pairs_per_sec(&stage.id, now) },
        ..status
    }
}

fn histogram((scale, counts): (&Scale, &[u64])) -> (String, v1::Histogram) {
    let histogram = v1::Histogram { least: scale.least, most: scale.most, counts: counts.to_vec() };
    (scale.name.to_owned(), histogram)
}

/// The part of all steps of a job that is done, 0 to 1.
#[allow(clippy::cast_precision_loss)] // an estimate
pub fn done_part(job: &Job, seen: &Observed) -> f64 {
    let mut sums = (0u64, 0u64);
    for (index, stage) in job.stages.iter().enumerate() {
        let total = job.stage_spec(index).map_or(0, |spec| spec.train.steps);
        let gang = stage.attempt.as_ref().and_then(|attempt| seen.gang(&attempt.attempt));
        let saved = stage.newest_checkpoint().map_or(0, |checkpoint| checkpoint.step);
        let done = match stage.is_done() {
            true => total,
            false => gang.map_or(0, |gang| gang.progress.step).max(saved),
        };
        sums = (sums.0.saturating_add(done.min(total)), sums.1.saturating_add(total));
    }
    if sums.1 == 0 { 0.0 } else { sums.0 as f64 / sums.1 as f64 }
}

/// Seconds until the last step at the present pace; 0 if there is no pace.
#[allow(clippy::cast_precision_loss)] // an estimate
fn eta_seconds(step: u64, steps_total: u64, global_batch: u32, samples_per_sec: f64) -> f64 {
    if samples_per_sec > 0.0 && samples_per_sec.is_finite() {
        steps_total.saturating_sub(step) as f64 * f64::from(global_batch) / samples_per_sec
    } else {
        0.0
    }
}

/// Every node. Of what runs there only the jobs that `scope` sees are named; the slots of all are counted.
pub fn nodes(
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    scope: &Scope,
    now: Timestamp,
) -> v1::ListNodesResponse {
    let used = used_slots(state);
    let nodes = state.nodes().map(|record| {
        let used = used.get(&record.id).copied().unwrap_or(0);
        node(record, used, state, seen, limits, scope, now)
    });
    v1::ListNodesResponse { nodes: nodes.collect() }
}

/// Slots of each node that active attempts hold.
fn used_slots(state: &ClusterState) -> BTreeMap<&NodeId, u32> {
    let attempts = state.open_jobs().flat_map(|job| &job.stages).filter_map(Stage::active_attempt);
    let mut used = BTreeMap::new();
    for rank in attempts.flat_map(|attempt| &attempt.ranks) {
        *used.entry(&rank.node).or_insert(0) += 1;
    }
    used
}

pub fn one_node(
    id: &NodeId,
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    scope: &Scope,
    now: Timestamp,
) -> Option<v1::Node> {
    let used = used_slots(state).get(id).copied().unwrap_or(0);
    Some(node(state.node(id)?, used, state, seen, limits, scope, now))
}

fn node(
    record: &NodeRecord,
    used: u32,
    state: &ClusterState,
    seen: &Observed,
    limits: &Limits,
    scope: &Scope,
    now: Timestamp,
) -> v1::Node {
    let sees = |job: &JobId| match (scope, state.job(job)) {
        (Scope::Everything, _) => true,
        (Scope::Only(_), known) => known.is_some_and(|job| scope.sees(&job.record.spec.tenant)),
    };
    let view = seen.nodes.get(&record.id);
    let draining = record.drained || view.is_some_and(|view| view.draining);
    let silence = now.since(view.map_or(seen.since, |view| view.last_heard));
    let connected = view.is_some_and(|view| view.connected) && silence < limits.silent_after;
    let reach = if connected { v1::NodeReach::Connected } else { v1::NodeReach::Silent };
    v1::Node {
        node_id: record.id.to_string(),
        kind: convert::node_kind(record.kind).into(),
        reach: reach.into(),
        slots: record.slots,
        slots_used: used,
        device: record.device.clone(),
        address: record.address.clone(),
        labels: record.labels.clone(),
        version: record.version.clone(),
        silent_seconds: silence.as_secs_f64(),
        running: view
            .into_iter()
            .flat_map(|view| &view.running)
            .filter(|attempt| sees(&attempt.job))
            .map(convert::attempt_message)
            .collect(),
        curating: view
            .into_iter()
            .flat_map(|view| &view.curating)
            .filter(|stage| sees(&stage.job))
            .map(convert::stage_message)
            .collect(),
        draining,
        cordon_reason: record.cordon.clone().unwrap_or_default(),
        stuck_slots: view
            .into_iter()
            .flat_map(|view| &view.health.stuck)
            .map(|(slot, what)| v1::StuckSlot { slot: *slot, what: what.clone() })
            .collect(),
        store_fault: view.and_then(|view| view.health.store_fault.clone()).unwrap_or_default(),
        rival_address: seen.rival(&record.id, now).map(|rival| rival.address.clone()).unwrap_or_default(),
        arithmetic: record.arithmetic.as_ref().map(convert::arithmetic_message),
        device_memory_bytes: record.device_memory_bytes.unwrap_or(0),
        bf16_factor: record.arithmetic.as_ref().and_then(Arithmetic::bf16_factor).unwrap_or(0.0),
    }
}

/// A job's checkpoints, oldest first: by stage, then step.
pub fn checkpoints(job: &Job, stage: Option<&str>) -> Result<Vec<v1::Checkpoint>, RequestError> {
    if let Some(name) = stage
        && job.stage_index(name).is_none()
    {
        return Err(RequestError::NotFound { what: format!("stage {}/{name}", job.record.id) });
    }
    let stages = job.stages.iter().filter(|known| stage.is_none_or(|name| known.id.stage.as_str() == name));
    let of_stage = |stage: &Stage| -> Vec<v1::Checkpoint> {
        let known = stage.checkpoints.iter();
        let message = known.map(|(key, checkpoint)| v1::Checkpoint {
            kept: stage.keeps.contains_key(key),
            ..convert::checkpoint_message(checkpoint)
        });
        message.collect()
    };
    Ok(stages.flat_map(of_stage).collect())
}

/// Place in the list of jobs, newest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageToken {
    newest_first: std::cmp::Reverse<Timestamp>,
    job: JobId,
}

impl PageToken {
    pub fn of(job: &Job) -> Self {
        Self { newest_first: std::cmp::Reverse(job.record.submitted_at), job: job.record.id.clone() }
    }

    /// `None` for the first page.
    pub fn parse(text: &str) -> Result<Option<Self>, RequestError> {
        if text.is_empty() {
            return Ok(None);
        }
        let parse = || {
            let (millis, job) = text.split_once('_')?;
            let millis = Timestamp(millis.parse().ok()?);
            Some(Self { newest_first: std::cmp::Reverse(millis), job: JobId::parse(job).ok()? })
        };
        parse()
            .map(Some)
            .ok_or_else(|| RequestError::invalid("page_token", "is not one that a page has ended with"))
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.newest_first.0.0, self.job)
    }
}
