//! Logs that ended with fewer pairs than were asked for, and those that no job can go on with.

use std::collections::BTreeMap;

use crate::decide::limits::Limits;
use crate::state::{ClusterState, Job, Stage};

/// Why stage `index` of a job can never have the pairs that it needs, by what there is of the log that it reads.
pub(crate) fn lost_pairs(state: &ClusterState, limits: &Limits, job: &Job, index: usize) -> Option<String> {
    match job.making_stage(index) {
        Some(stage) => lost_log(limits, stage),
        None => lost_elsewhere(state, job, index),
    }
}

/// The same of one that takes another job's pairs.
fn lost_elsewhere(state: &ClusterState, job: &Job, index: usize) -> Option<String> {
    let log = job.stage_spec(index)?.data.source.log()?;
    let other = log.elsewhere()?;
    // A record that cannot be read may hold what is missing.
    if state.unreadable().of_job(&other.job).is_some() || state.unreadable().hides_job(&other.job) {
        return None;
    }
    let takes = || format!("stage {} takes the pairs of {other}", job.stages[index].id.stage);
    let Some(read) = state.read_log(job, index) else {
        return Some(format!("{}, which is not there any more", takes()));
    };
    if read.is_sealed() {
        return (read.committed() == 0).then(|| format!("{}, which has none", takes()));
    }
    let theirs = &state.job(&other.job)?.record.state;
    theirs.is_terminal().then(|| {
        format!(
            "{}, whose log is not complete: job {} is {theirs} with {} of them",
            takes(),
            other.job,
            read.committed()
        )
    })
}

/// Why a stage can never have the pairs that are made for it, by what its log has already.
fn lost_log(limits: &Limits, stage: &Stage) -> Option<String> {
    let log = &stage.log;
    let name = &stage.id.stage;
    let failure = || {
        log.last_failure().map_or_else(String::new, |(unit, failure)| {
            format!("; unit {} failed on {}: {}", unit.unit, failure.node, failure.reason)
        })
    };
    if log.is_sealed() && log.committed() == 0 {
        return Some(format!("stage {name} has no pairs: {}{}", rejections(log.rejected()), failure()));
    }
    // A short source, or a strict filter, is what was asked for; units that nobody could make are not.
    let (given_up, units) = (log.given_up(), log.prefix_units());
    let most = limits.max_given_up_percent;
    if log.ends_short() && given_up.saturating_mul(100) > units.saturating_mul(most) {
        return Some(format!(
            "{}; {given_up} of its {units} units were given up, which is more than {most} %{}",
            short_log(stage),
            failure()
        ));
    }
    let empty = log.empty_in_a_row();
    if !log.is_sealed() && empty >= limits.max_empty_units {
        let (rejected, failure) = (rejections(log.rejected()), failure());
        return Some(format!("the last {empty} units of stage {name} gave no pair: {rejected}{failure}"));
    }
    None
}

/// `stage s has 270 of the 640 pairs that were asked for: rejected …`, of a log that has ended short.
pub(crate) fn short_log(stage: &Stage) -> String {
    let log = &stage.log;
    let name = &stage.id.stage;
    let rejected = if log.rejected().is_empty() {
        "nothing was rejected".to_owned()
    } else {
        rejections(log.rejected())
    };
    format!(
        "the source of stage {name} has ended with {} of the {} pairs that were asked for: {rejected}",
        log.committed(),
        log.target()
    )
}

fn rejections(rejected: &BTreeMap<String, u64>) -> String {
    if rejected.is_empty() {
        return "the source is empty".to_owned();
    }
    let list: Vec<String> = rejected.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!("rejected {}", list.join(", "))
}
