//! Jobs that are paused or make room, and those that room is made for.

use super::words::{count, span};
use super::{Blocker, Explanation, MAX_NODES, View, capacity};
use crate::job::{JobState, Pause};
use crate::state::{Job, Stage};

pub(super) fn paused(job: &Job, slots: usize) -> Explanation {
    let id = &job.record.id;
    let curates = matches!(job.record.state, JobState::Paused(Pause { curates: true, .. }));
    let mut findings = vec![if slots == 0 {
        "it holds no slot".to_owned()
    } else {
        format!("it holds {} until its ranks have saved a checkpoint", count(slots, "slot"))
    }];
    findings.extend(resumes_from(job));
    findings.push(if curates { "its pairs are still made" } else { "no pairs are made for it" }.to_owned());
    Explanation {
        findings,
        remedies: vec![format!("let it go on: crescendo resume {id}")],
        ..Explanation::default()
    }
}

pub(super) fn preempted(view: &View<'_>, job: &Job, slots: usize) -> Explanation {
    let by = match &job.record.state {
        JobState::Preempting { by, .. } => view.state.job(by),
        JobState::Queued
        | JobState::Placing { .. }
        | JobState::Running { .. }
        | JobState::Paused(_)
        | JobState::Succeeded
        | JobState::Failed { .. }
        | JobState::Cancelled { .. } => None,
    };
    let mut findings = Vec::new();
    if let Some(by) = by {
        let (priority, own) = (by.record.spec.priority, job.record.spec.priority);
        findings.push(format!(
            "{} takes its place: it has priority {priority}, and this job has {own}",
            view.name(by)
        ));
    }
    findings.extend(resumes_from(job));
    findings.push("it keeps its place in the queue, and goes on by itself once there is room".to_owned());
    Explanation {
        findings,
        blockers: by.map(|by| capacity::blocker(view, by, 0, None)).into_iter().collect(),
        summary: format!("makes room for a job that goes first: {}", leaving(slots)),
        ..Explanation::default()
    }
}

/// The job has held slots for as long as it may.
pub(super) fn at_its_limit(job: &Job) -> Explanation {
    let mut findings: Vec<String> = resumes_from(job).into_iter().collect();
    findings.push("once its ranks have saved and left it has failed, and its slots are free".to_owned());
    let id = &job.record.id;
    let remedies = vec![format!("then give it as much time again: crescendo retry {id}")];
    Explanation { findings, remedies, ..Explanation::default() }
}

/// The job leaves to come back with more ranks.
pub(super) fn grows(job: &Job) -> Explanation {
    let mut findings = vec![
        "there are slots for more ranks that nobody waits for (spec.resources.gpus)".to_owned(),
        "it keeps its place in the queue: jobs that go before it come first".to_owned(),
    ];
    findings.extend(resumes_from(job));
    Explanation { findings, ..Explanation::default() }
}

/// How long a job may still hold slots, if that is limited.
pub(super) fn time_left(view: &View<'_>, job: &Job) -> Option<String> {
    let left = job.time_left(view.seen.counted(view.now))?;
    Some(format!("it may hold slots for {} more (spec.timeLimitMinutes)", span(left)))
}

pub(super) fn making_room(view: &View<'_>, job: &Job, index: usize) -> Explanation {
    let leaves = |job: &&Job| matches!(job.record.state, JobState::Preempting { .. } | JobState::Paused(_));
    let leaving: Vec<(&Job, usize)> = view
        .state
        .open_jobs()
        .filter(leaves)
        .filter_map(|other| {
            let ranks = other.stages.iter().find_map(|stage| Some(stage.active_attempt()?.ranks.len()))?;
            Some((other, ranks))
        })
        .collect();
    let line =
        |(other, ranks): &(&Job, usize)| format!("{} leaves {}", view.name(other), count(ranks, "slot"));
    let mut findings: Vec<String> = leaving.iter().take(MAX_NODES).map(line).collect();
    let since = leaving.iter().map(|(other, _)| view.seen.held_since(&other.record.id)).min();
    findings.extend(since.map(|since| {
        let most = view.limits.leave_within.saturating_sub(view.now.since(since));
        format!("they save first; what is not saved in {} is stopped", span(most))
    }));
    // Who holds slots is said as to who waits for them; whose end would be enough is settled.
    let waiting = capacity::waiting(view, job, index);
    let blockers = waiting.blockers.into_iter().map(|blocker| Blocker { enough: false, ..blocker });
    Explanation {
        summary: String::new(),
        findings,
        remedies: vec!["there is nothing to do but wait".to_owned()],
        blockers: blockers.collect(),
        ..waiting
    }
}

fn leaving(slots: usize) -> String {
    if slots == 0 {
        "its ranks have left".to_owned()
    } else {
        format!("{} save and leave", count(slots, "rank"))
    }
}

/// Where it goes on.
fn resumes_from(job: &Job) -> Option<String> {
    let stage = job.stages.get(job.current_stage()?)?;
    let newest = stage.newest_checkpoint()?;
    Some(format!("{} goes on from step {}", stage.id.stage, newest.step))
}

/// That it runs before its turn, and for how long.
pub(super) fn goes_ahead(view: &View<'_>, stage: &Stage) -> Option<String> {
    let first = view.state.job(stage.active_attempt()?.ahead_of.as_ref()?)?;
    let waits = !first.record.state.is_terminal()
        && first.stages.iter().all(|stage| stage.active_attempt().is_none());
    waits.then(|| {
        let name = view.name(first);
        format!("it runs ahead of its turn, in slots that are too few for {name}: once that fits, it saves and makes room")
    })
}
