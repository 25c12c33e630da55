//! Waiting for pairs: how many are missing, how fast they come, and what is turned down.

use std::time::Duration;

use super::words::{count, seconds, span};
use super::{Explanation, View};
use crate::cooldown::Cooldown;
use crate::ids::NodeId;
use crate::records::{FailureKind, NodeKind, UnitFailure, UnitState};
use crate::rejection::Rejection;
use crate::state::{Job, Stage};
use crate::under_way::{CandidateCounts, Waiting};

/// Share of the candidates that are turned down above which the filters are worth a look.
const STRICT: f64 = 0.9;

/// The pairs of a stage: there, wanted, and how they come.
#[derive(Clone, Debug, PartialEq)]
pub struct PairForecast {
    /// Pairs that can be read.
    pub committed: u64,
    /// Pairs that training starts with.
    pub needed: u64,
    /// Pairs that the spec asks for.
    pub target: u64,
    /// Over the last minutes; 0 if none came, or none has been seen to come yet.
    pub per_sec: f64,
    /// Until there are as many as training starts with.
    pub enough_in: Option<Duration>,
}

impl PairForecast {
    /// Of the log that stage `index` reads.
    pub(super) fn of(view: &View<'_>, job: &Job, index: usize) -> Option<PairForecast> {
        let log = view.state.read_log(job, index)?;
        let (needed, target) =
            job.stage_spec(index).map_or((0, 0), |spec| (spec.data.pairs_to_start(), spec.data.pairs));
        let committed = log.committed();
        let per_sec = view.seen.pairs_per_sec(&log.of.id, view.now);
        let missing = needed.saturating_sub(committed);
        #[allow(clippy::cast_precision_loss)] // an estimate
        let enough_in = if per_sec > 0.0 { seconds(missing as f64 / per_sec) } else { None };
        Some(PairForecast { committed, needed, target, per_sec, enough_in })
    }
}

pub(super) fn waiting(view: &View<'_>, job: &Job, index: usize, needed: u64) -> Explanation {
    let (Some(log), Some(forecast)) = (view.state.read_log(job, index), PairForecast::of(view, job, index))
    else {
        return Explanation::default();
    };
    let forecast = PairForecast { needed, ..forecast };
    if log.is_elsewhere {
        return waiting_for_another(view, log.of, forecast);
    }
    let stage = log.of;
    let name = &stage.id.stage;
    let missing = needed.saturating_sub(forecast.committed);
    let mut findings = vec![pace(view, stage, &forecast, missing)];
    findings.extend(under_way(view, stage));
    let cooling_down_says = |failure: &UnitFailure| {
        let cooldown = view.seen.cooldowns.get(&stage.id, &failure.node, view.limits, view.now);
        cooldown.is_some_and(|cooldown| cooldown.reason == failure.reason)
    };
    // What a curator in cooldown said is told once.
    if !stage.log.last_failure().is_some_and(|(_, failure)| cooling_down_says(failure)) {
        findings.extend(last_failure(view, stage));
    }
    findings.extend(cooldowns(view, stage));
    findings.extend(turned_down(stage));
    let empty = stage.log.empty_in_a_row();
    if empty > 0 {
        findings.push(format!(
            "the last {} gave no pair; after {} in a row the job fails",
            count(empty, "unit"),
            view.limits.max_empty_units
        ));
    }
    Explanation {
        summary: format!(
            "waits for {missing} more pairs of {name}: {} of the {needed} that training starts with are there",
            forecast.committed
        ),
        findings,
        remedies: remedies(view, job, index, stage, &forecast),
        goes_on_in: forecast.enough_in,
        pairs: Some(forecast),
        ..Explanation::default()
    }
}

/// The pairs are made by another job.
fn waiting_for_another(view: &View<'_>, of: &Stage, forecast: PairForecast) -> Explanation {
    let PairForecast { committed, needed, .. } = forecast;
    let missing = needed.saturating_sub(committed);
    let job = &of.id.job;
    Explanation {
        summary: format!(
            "waits for {missing} more pairs of {}: {committed} of the {needed} that training starts with are there",
            of.id
        ),
        findings: vec![
            format!(
                "job {job} makes them; it goes on by itself once there are enough, or that log is complete"
            ),
            pace(view, of, &forecast, missing),
        ],
        remedies: vec![format!("see how far that job is: crescendo explain {job}")],
        goes_on_in: forecast.enough_in,
        pairs: Some(forecast),
        ..Explanation::default()
    }
}

fn pace(view: &View<'_>, stage: &Stage, forecast: &PairForecast, missing: u64) -> String {
    match forecast.enough_in {
        Some(enough_in) => format!(
            "{:.1} pairs a minute come at present: {missing} take about {}",
            forecast.per_sec * 60.0,
            span(enough_in)
        ),
        None => match view.seen.pairs_watched_since(&stage.id) {
            Some(since) => format!("no pair has come for {}", span(view.now.since(since))),
            None => "no pair has come since this controller began to lead".to_owned(),
        },
    }
}

/// No curator can open what the stage is made of.
pub(super) fn without_source(view: &View<'_>, job: &Job, index: usize) -> Explanation {
    let (Some(stage), Some(forecast)) = (job.making_stage(index), PairForecast::of(view, job, index)) else {
        return Explanation::default();
    };
    let index = job.stage_index(stage.id.stage.as_str()).unwrap_or(index);
    let mut findings = cooldowns(view, stage);
    findings.push(format!(
        "{} of the {} pairs that training starts with are there; if this lasts the job fails",
        forecast.committed, forecast.needed
    ));
    Explanation {
        findings,
        remedies: vec![correct_source(index)],
        pairs: Some(forecast),
        ..Explanation::default()
    }
}

/// What to do about a source that cannot be opened.
pub(super) fn correct_source(index: usize) -> String {
    format!(
        "correct what the reason names: a path in spec.stages[{index}].data or spec.model (a relative one is below the curators' --library-root), or what lies there"
    )
}

/// `unit 3 failed on c-1 12s ago: …; it is tried again in 8s`.
pub(super) fn last_failure(view: &View<'_>, stage: &Stage) -> Option<String> {
    let (unit, failure) = stage.log.last_failure()?;
    let ended = view.state.job(&stage.id.job).is_some_and(|job| job.record.state.is_terminal());
    let next = match &unit.state {
        UnitState::Done(_) => "; it was quarantined".to_owned(),
        UnitState::Free { .. } | UnitState::Leased { .. } if ended => String::new(),
        UnitState::Free { from, .. } if *from > view.now => {
            format!("; it is tried again in {}", span(from.since(view.now)))
        }
        UnitState::Free { .. } => "; the next curator that is free tries it again".to_owned(),
        UnitState::Leased { node, .. } => format!("; {node} tries it again"),
    };
    let ago = span(view.now.since(failure.at));
    Some(format!("unit {} failed on {} {ago} ago: {}{next}", unit.unit, failure.node, failure.reason))
}

/// Curators that are not asked for the stage, with what they said.
pub(super) fn cooldowns(view: &View<'_>, stage: &Stage) -> Vec<String> {
    let cooldowns = view.seen.cooldowns.of(&stage.id, view.limits, view.now).take(super::MAX_NODES);
    let nodes = view.decide_nodes();
    let cooldowns = cooldowns.filter(|(node, _)| nodes.cooldown(&stage.id, node).is_some());
    let line = |(node, cooldown): (&NodeId, &Cooldown)| {
        let again = span(cooldown.until(view.limits).since(view.now));
        let what = match cooldown.kind {
            FailureKind::Source => "cannot open the source".to_owned(),
            FailureKind::Passing => {
                format!("is benched, after {} units that failed in a row", cooldown.times)
            }
        };
        format!("{node} {what}, and is asked again in {again}: {}", cooldown.reason)
    };
    let mut lines: Vec<String> = cooldowns.map(line).collect();
    let refusals = view.seen.nodes.keys().filter_map(|node| Some((node, nodes.refusal(&stage.id, node)?)));
    lines.extend(refusals.take(super::MAX_NODES).map(|(node, refusal)| {
        let again = span(refusal.until(view.limits).since(view.now));
        format!("{node} cannot take the stage up, and is asked again in {again}: {}", refusal.reason)
    }));
    lines
}

/// Units that curators hold, and those that had to be tried again.
fn under_way(view: &View<'_>, stage: &Stage) -> Vec<String> {
    let prefix = stage.log.prefix_units();
    let (failures, lost) = (stage.log.failures(), stage.log.lost_leases());
    let (mut held, mut done) = (0u64, 0u64);
    // Units that are tried again later, and the time until the first of them is.
    let mut later: Vec<Duration> = Vec::new();
    for unit in stage.log.open_units() {
        match &unit.state {
            UnitState::Leased { expires_at, .. } if *expires_at > view.now => held += 1,
            UnitState::Free { from, .. } if *from > view.now => later.push(from.since(view.now)),
            UnitState::Free { .. } | UnitState::Leased { .. } => {}
            // Done, and not readable before what comes first is done too.
            UnitState::Done(_) => done += 1,
        }
    }
    let nodes = view.decide_nodes();
    let making =
        nodes.reachable(NodeKind::Curator).filter(|(_, seen)| seen.curating.contains(&stage.id)).count();
    let mut findings = vec![format!(
        "{} at work on it, {} under way, {prefix} readable{}",
        if making == 1 { "1 curator is".to_owned() } else { format!("{making} curators are") },
        count(held, "unit"),
        if done > 0 { format!(", {done} done out of order") } else { String::new() },
    )];
    let (units, candidates) = view.seen.under_way.of(&stage.id, view.limits.silent_after, view.now);
    if units > 0 {
        let CandidateCounts { planned, drawn, filtered: _, judged: _, accepted } = candidates;
        findings.push(format!("{drawn} of {planned} candidates under way are drawn, {accepted} accepted"));
    }
    let waiting = view.seen.under_way.waiting(&stage.id, view.limits.silent_after, view.now);
    let waits = |Waiting { node, reason, since }: Waiting<'_>| {
        format!("{node} waits and goes on by itself: {reason}, for {} now", span(view.now.since(since)))
    };
    findings.extend(waiting.take(super::MAX_NODES).map(waits));
    if failures > 0 {
        findings.push(format!(
            "units were given back with an error {}; a unit is quarantined after {} of them, on two nodes or the only one",
            times(failures),
            view.limits.max_unit_failures
        ));
    }
    if let Some(first) = later.iter().min() {
        findings.push(format!(
            "{} {} until tried again, the first in {}",
            count(later.len(), "unit"),
            if later.len() == 1 { "waits" } else { "wait" },
            span(*first)
        ));
    }
    if lost > 0 {
        findings.push(format!("leases ran out {}: their curators ended or were out of sight", times(lost)));
    }
    findings
}

fn times(n: u64) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}

/// What became of the candidates, the most frequent reason first.
pub(super) fn turned_down(stage: &Stage) -> Option<String> {
    let rejected = stage.log.rejected();
    let total: u64 = rejected.values().fold(0, |sum, n| sum.saturating_add(*n));
    if total == 0 {
        return None;
    }
    let mut reasons: Vec<(&String, &u64)> = rejected.iter().collect();
    reasons.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let list: Vec<String> = reasons.iter().take(4).map(|(reason, n)| format!("{reason} {n}")).collect();
    Some(format!(
        "{:.0}% of the candidates were turned down: {total} of {} ({})",
        100.0 * share_turned_down(stage),
        total.saturating_add(stage.log.committed()),
        list.join(", ")
    ))
}

#[allow(clippy::cast_precision_loss)] // a share
fn share_turned_down(stage: &Stage) -> f64 {
    let total: u64 = stage.log.rejected().values().fold(0, |sum, n| sum.saturating_add(*n));
    let all = total.saturating_add(stage.log.committed());
    if all == 0 { 0.0 } else { total as f64 / all as f64 }
}

fn remedies(view: &View<'_>, job: &Job, index: usize, stage: &Stage, forecast: &PairForecast) -> Vec<String> {
    let id = &job.record.id;
    let mut remedies = Vec::new();
    let failing = stage.log.open_units().any(|unit| unit.failures > 0 && !unit.is_done());
    if failing {
        remedies.push(format!("see why units fail: crescendo logs {id}"));
    }
    if share_turned_down(stage) > STRICT {
        remedies.extend(loosen(job, index, stage));
    }
    let mut waiting = view.seen.under_way.waiting(&stage.id, view.limits.silent_after, view.now);
    let waits_for = waiting.next().map(|waiting| waiting.reason);
    if let Some(reason) = waits_for {
        remedies.push(format!("see to what is waited for: {reason}"));
    }
    let cooldowns: Vec<&str> =
        view.seen.cooldowns.of(&stage.id, view.limits, view.now).map(|(node, _)| node.as_str()).collect();
    if !cooldowns.is_empty() {
        remedies.push(format!("mend what is said above of {}, then restart it", cooldowns.join(", ")));
    }
    if forecast.enough_in.is_none_or(|wait| wait > Duration::from_secs(600)) {
        // More of those that fail would not help.
        if !failing && cooldowns.is_empty() && waits_for.is_none() {
            remedies.push(
                "add curators: pairs are made by all that work on the stage at the same time".to_owned(),
            );
        }
        if forecast.committed > 0 {
            remedies.push(format!(
                "or submit with spec.stages[{index}].data.minPairs at {} or less: training then starts with what is there",
                forecast.committed
            ));
        }
    }
    let silent = super::silent(view, NodeKind::Curator);
    if !silent.is_empty() {
        remedies.push(format!("bring silent curators back: {}", silent.join("; ")));
    }
    remedies
}

/// What to change when nearly everything is turned down, by the reason that turned down most.
pub(super) fn loosen(job: &Job, index: usize, stage: &Stage) -> Option<String> {
    let (reason, _) = stage.log.rejected().iter().max_by_key(|(_, n)| **n)?;
    let filter = format!("spec.stages[{index}].data.filter");
    let change = match Rejection::named(reason) {
        Some(Rejection::SimilarityLow) => format!("lower {filter}.similarity.min"),
        Some(Rejection::SimilarityHigh) => format!("raise {filter}.similarity.max"),
        Some(Rejection::JudgeLow) => format!("lower {filter}.judge.min"),
        Some(Rejection::JudgeRefused | Rejection::JudgeUnparseable) => {
            "look at what the judge's endpoint answers".to_owned()
        }
        Some(Rejection::ScoreLow | Rejection::ScoreInvalid | Rejection::ScoreDisagrees) => {
            format!(
                "look at the scores in the imported labels, or change spec.stages[{index}].data's minScore"
            )
        }
        Some(
            Rejection::MissingFile
            | Rejection::BadPath
            | Rejection::MalformedRecord
            | Rejection::UnreadableImage
            | Rejection::BadSize
            | Rejection::BadCaption
            | Rejection::DuplicateRecord,
        ) => "look at the imported files: paths, pictures or labels are not as they should be".to_owned(),
        Some(Rejection::UnitQuarantined) => {
            format!("see why whole units fail: crescendo logs {}", job.record.id)
        }
        Some(
            Rejection::TooSmall
            | Rejection::NoDivider
            | Rejection::SeveralDividers
            | Rejection::NoSecondSubject
            | Rejection::BoxSmall
            | Rejection::BoxLarge
            | Rejection::BoxOverlap
            | Rejection::BoxEdge,
        )
        | None => "look at the candidates that were turned down".to_owned(),
    };
    Some(format!(
        "{reason} turns down most: {change}; see them: crescendo pairs {} --rejected",
        job.record.id
    ))
}
