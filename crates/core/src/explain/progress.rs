//! Jobs whose ranks run, are started, or have failed; and jobs that have ended.

use std::collections::BTreeSet;
use std::time::Duration;

use super::words::{count, span};
use super::{Explanation, PairForecast, View, pairs};
use crate::decide::{PendingReason, lost_pairs, short_log, sources};
use crate::ids::NodeId;
use crate::observed::Progress;
use crate::ranks::RankViews;
use crate::records::{AttemptRecord, AttemptState, FailureKind};
use crate::state::{Job, Stage};

/// Share of the step time spent waiting for data above which more curators would help.
const STARVING: f64 = 0.2;

pub(super) fn succeeded(job: &Job) -> Explanation {
    let mut findings = Vec::new();
    for stage in &job.stages {
        if let Some(last) = stage.final_checkpoint() {
            findings.push(format!("{} ended with {} after {} steps", stage.id.stage, last.path, last.step));
        }
    }
    let short = short_logs(job);
    let what = if short.is_empty() { "" } else { ", of fewer pairs than were asked for" };
    findings.extend(short);
    findings.extend(took(job));
    let id = &job.record.id;
    Explanation {
        cause: "succeeded",
        summary: format!("has succeeded: every stage has its final checkpoint{what}"),
        findings,
        remedies: vec![
            format!("take what was trained: crescendo cp {id} {id}.safetensors"),
            format!("its files, with their SHA-256: crescendo checkpoints {id} -o json"),
        ],
        ..Explanation::default()
    }
}

/// Stages that were trained on fewer pairs than were asked for, one line each.
pub fn short_logs(job: &Job) -> Vec<String> {
    job.stages.iter().filter(|stage| stage.log.ends_short()).map(short_log).collect()
}

pub(super) fn cancelled(job: &Job, reason: &str) -> Explanation {
    let mut findings = kept(job);
    findings.extend(took(job));
    Explanation {
        cause: "cancelled",
        summary: if reason.is_empty() {
            "was cancelled".to_owned()
        } else {
            format!("was cancelled: {reason}")
        },
        findings,
        remedies: vec!["submit the spec again to start anew".to_owned()],
        ..Explanation::default()
    }
}

pub(super) fn failed(view: &View<'_>, job: &Job, reason: &str) -> Explanation {
    let id = &job.record.id;
    let at = job.current_stage().and_then(|index| Some((index, job.stages.get(index)?)));
    let mut findings = Vec::new();
    let mut remedies = Vec::new();
    if let Some((index, stage)) = at {
        let starved = job.makes_pairs(index) && stage.log.is_sealed() && stage.log.committed() == 0
            || !stage.log.is_sealed() && stage.log.empty_in_a_row() >= view.limits.max_empty_units;
        if let Some(attempt) = &stage.attempt {
            findings.push(format!(
                "{} was tried {}, {} in a row without a new checkpoint",
                stage.id.stage,
                times(attempt.restarts.saturating_add(1)),
                times(attempt.failures_in_a_row)
            ));
        }
        findings.extend(pairs::last_failure(view, stage));
        findings.extend(pairs::turned_down(stage));
        let unopened = stage
            .log
            .last_failure()
            .is_some_and(|(unit, failure)| !unit.is_done() && failure.kind == FailureKind::Source);
        if unopened {
            remedies.push(pairs::correct_source(index));
        } else if starved {
            remedies.extend(pairs::loosen(job, index, stage));
        } else {
            remedies.push(format!("correct what the reason and the log say: crescendo logs {id}"));
        }
    }
    findings.extend(kept(job));
    findings.extend(took(job));
    remedies.push(match at.and_then(|(index, _)| lost_pairs(view.state, view.limits, job, index)) {
        None => format!("then have it tried again from where it was: crescendo retry {id}"),
        Some(_) if at.is_some_and(|(index, _)| job.making_stage(index).is_none()) => {
            format!("once the pairs that it takes are there, have it tried again: crescendo retry {id}")
        }
        Some(_) => {
            "then submit it again: its pairs are settled, so that a retry would change nothing".to_owned()
        }
    });
    Explanation {
        cause: "failed",
        stage: at.map(|(_, stage)| stage.id.stage.to_string()).unwrap_or_default(),
        summary: format!("has failed: {reason}"),
        findings,
        remedies,
        ..Explanation::default()
    }
}

/// Checkpoints that are still there.
fn kept(job: &Job) -> Vec<String> {
    let kept = job.stages.iter().filter_map(|stage| {
        let newest = stage.newest_checkpoint()?;
        Some(format!(
            "the newest checkpoint of {} is kept: {} (step {})",
            stage.id.stage, newest.path, newest.step
        ))
    });
    kept.collect()
}

fn took(job: &Job) -> Option<String> {
    let record = &job.record;
    let finished = record.finished_at?;
    let whole = span(finished.since(record.submitted_at));
    Some(match record.started_at {
        Some(started) => {
            format!(
                "ended {whole} after its submit, having waited {}",
                span(started.since(record.submitted_at))
            )
        }
        None => format!("ended {whole} after its submit, before any of its work began"),
    })
}

pub(super) fn backoff(view: &View<'_>, stage: &Stage, reason: &str, failures: u32) -> Explanation {
    let mut findings = vec![format!(
        "the last {failures} attempts ended without a new checkpoint; after {} the job fails",
        view.limits.max_failures_in_a_row.saturating_add(1)
    )];
    match stage.newest_checkpoint() {
        Some(newest) => findings.push(format!("the next one goes on from step {}", newest.step)),
        None => findings.push("the next one begins the stage anew: it has no checkpoint yet".to_owned()),
    }
    if let Some(AttemptRecord { state: AttemptState::Ended { at, .. }, .. }) = stage.attempt.as_deref() {
        findings.push(format!("the last one ended {} ago", span(view.wall_now().since(*at))));
    }
    Explanation {
        summary: format!("starts again shortly after {failures} failures: {reason}"),
        findings,
        remedies: vec![format!("see what the failing rank wrote: crescendo logs {}", stage.id.job)],
        goes_on_in: Some(view.limits.max_restart_backoff),
        ..Explanation::default()
    }
}

/// Ranks are placed and have not all reported.
pub(super) fn starting(view: &View<'_>, stage: &Stage) -> Explanation {
    let Some(attempt) = stage.active_attempt() else { return Explanation::default() };
    let reports = view.seen.gang(&attempt.attempt).map(|gang| &gang.nodes);
    let silent: Vec<String> = nodes_of(attempt)
        .into_iter()
        .filter(|node| reports.is_none_or(|reports| !reports.contains_key(*node)))
        .map(|node| node_state(view, node))
        .collect();
    Explanation {
        findings: vec![
            format!(
                "placed {} ago as generation {}",
                span(view.wall_now().since(attempt.started_at)),
                attempt.attempt.generation
            ),
            format!("no report yet from: {}", silent.join(", ")),
        ],
        remedies: vec![format!(
            "loading weights takes its time; if it lasts, the agents' lines say what they do: crescendo logs {}",
            stage.id.job
        )],
        ..Explanation::default()
    }
}

/// What a gang says of its pace and of what it waits for.
fn pace(progress: &Progress, findings: &mut Vec<String>, remedies: &mut Vec<String>) {
    if !progress.waiting_for.is_empty() {
        findings.push(format!("its ranks say: {}", progress.waiting_for));
    }
    if progress.samples_per_sec > 0.0 {
        findings.push(format!("{:.1} samples a second, loss {:.4}", progress.samples_per_sec, progress.loss));
    }
    if progress.skipped_steps > 0 {
        findings.push(format!(
            "{} skipped so far, because the loss or the gradients were not finite",
            count(progress.skipped_steps, "step")
        ));
    }
    if progress.data_wait_fraction > STARVING {
        findings.push(format!(
            "{:.0}% of the time is spent waiting for pairs",
            100.0 * progress.data_wait_fraction.min(1.0)
        ));
        remedies.push("add curators: the ranks are faster than the pairs come".to_owned());
    }
}

/// A rank that has not moved for longer than this is worth a line.
const STILL: Duration = Duration::from_secs(5);

/// Which ranks are behind.
fn ranks(view: &View<'_>, ranks: &RankViews, findings: &mut Vec<String>, remedies: &mut Vec<String>) {
    let still = ranks.last(view.now).filter(|last| view.now.since(last.moved_at) >= STILL);
    findings.extend(still.map(|last| {
        format!(
            "rank {} on {} has been in {} for {}",
            last.word.rank,
            last.node,
            last.word.phase,
            span(view.now.since(last.moved_at))
        )
    }));
    let stragglers = ranks.stragglers(&view.limits.hang, view.now);
    if !stragglers.is_empty() {
        remedies.push("look at what else runs on a straggler's node, and at its clocks and heat: the gang goes at its pace".to_owned());
    }
    findings.extend(
        stragglers
            .iter()
            .take(8)
            .map(|slow| format!("a straggler for {}: {slow}", span(view.now.since(slow.since)))),
    );
}

pub(super) fn running(view: &View<'_>, job: &Job, index: usize, attempt: &AttemptRecord) -> Explanation {
    let Some(stage) = job.stages.get(index) else { return Explanation::default() };
    let steps = job.stage_spec(index).map_or(0, |spec| spec.train.steps);
    let nodes = nodes_of(attempt);
    let mut findings = vec![format!(
        "{} on {}: {}",
        count(attempt.ranks.len(), "rank"),
        count(nodes.len(), "node"),
        nodes.iter().take(8).map(|node| node.as_str()).collect::<Vec<_>>().join(", ")
    )];
    let mut remedies = Vec::new();
    let unseen: Vec<&NodeId> = nodes
        .iter()
        .copied()
        .filter(|node| !view.seen.nodes.get(*node).is_some_and(|seen| view.decide_nodes().is_reachable(seen)))
        .collect();
    let gang = view.seen.gang(&attempt.attempt);
    let mut cause = "running";
    let mut summary = match gang {
        Some(gang) => format!(
            "trains {}: step {} of {steps}, the last step {} ago",
            stage.id.stage,
            gang.progress.step,
            span(view.now.since(gang.stepped_at))
        ),
        None => format!(
            "trains {}; its ranks have not been heard of since this controller began to lead",
            stage.id.stage
        ),
    };
    if !unseen.is_empty() {
        cause = "unseen";
        let list: Vec<String> = unseen.iter().map(|node| node_state(view, node)).collect();
        summary = format!("trains {}, with {} out of sight", stage.id.stage, count(unseen.len(), "node"));
        findings.push(list.join(", "));
        findings.push(format!(
            "out of sight is not failed: its ranks are given up only when it is silent and the gang has not stepped for {}",
            span(view.limits.ranks_lost_after)
        ));
        remedies.push("look at that machine and its network; nothing is lost if it comes back".to_owned());
    }
    if let Some(gang) = gang {
        pace(&gang.progress, &mut findings, &mut remedies);
        ranks(view, &gang.ranks, &mut findings, &mut remedies);
    }
    findings.extend(view.seen.last_hang(&attempt.attempt.stage_ref()).map(|(attempt, at, hang)| {
        format!("generation {} was ended {} ago: {hang}", attempt.generation, span(view.now.since(at)))
    }));
    if attempt.restarts > 0 {
        findings.push(format!(
            "restarted {}; {} in a row without a new checkpoint",
            times(attempt.restarts),
            times(attempt.failures_in_a_row)
        ));
    }
    match stage.newest_checkpoint() {
        Some(newest) => findings.push(format!(
            "the newest checkpoint is of step {}, {} ago",
            newest.step,
            span(view.wall_now().since(newest.committed_at))
        )),
        None => findings.push("there is no checkpoint of this stage yet".to_owned()),
    }
    findings.extend(later_stages(view, job, index));
    let grows = view.state.read_log(job, index).is_some_and(|log| !log.is_sealed());
    Explanation {
        cause,
        summary,
        findings,
        remedies,
        pairs: PairForecast::of(view, job, index).filter(|_| grows),
        goes_on_in: stage_ends_in(view, job, stage, attempt),
        ..Explanation::default()
    }
}

/// What there is to say of the stages after this one.
fn later_stages(view: &View<'_>, job: &Job, index: usize) -> Vec<String> {
    let mut findings = Vec::new();
    let after = job.stages.len().saturating_sub(index.saturating_add(1));
    if after > 0 {
        findings.push(format!(
            "{} after this one",
            if after == 1 { "1 stage comes".to_owned() } else { format!("{after} stages come") }
        ));
    }
    // The job is failed by it once it gets there; until then it can be mended.
    for later in job.stages.iter().skip(index.saturating_add(1)).filter(|later| !later.log.is_sealed()) {
        if let Some(PendingReason::Source { stage, told }) = sources::wait(&view.decide_nodes(), later) {
            findings.push(format!("{stage}, a later one, cannot be made as it is: {told}"));
        }
    }
    findings
}

/// Until the last step at the present pace; `None` if there is no pace.
pub(super) fn stage_ends_in(
    view: &View<'_>,
    job: &Job,
    stage: &Stage,
    attempt: &AttemptRecord,
) -> Option<Duration> {
    let at_the_latest = job.time_left(view.seen.counted(view.now));
    let spec = job.stage_spec(job.stage_index(stage.id.stage.as_str())?)?;
    let progress = view.seen.gang(&attempt.attempt).map(|gang| &gang.progress);
    let at_its_pace = progress.filter(|progress| progress.samples_per_sec > 0.0).and_then(|progress| {
        progress.time_for(spec.train.steps.saturating_sub(progress.step), spec.train.global_batch)
    });
    at_its_pace.into_iter().chain(at_the_latest).min()
}

fn nodes_of(attempt: &AttemptRecord) -> BTreeSet<&NodeId> {
    attempt.ranks.iter().map(|rank| &rank.node).collect()
}

/// `trainer-0 (silent for 40s)`.
fn node_state(view: &View<'_>, node: &NodeId) -> String {
    let seen = view.seen.nodes.get(node);
    if seen.is_some_and(|seen| view.decide_nodes().is_reachable(seen)) {
        return format!("{node} (connected)");
    }
    let heard = seen.map_or(view.seen.since, |seen| seen.last_heard);
    format!("{node} (silent for {})", span(view.now.since(heard)))
}

fn times(n: u32) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}
