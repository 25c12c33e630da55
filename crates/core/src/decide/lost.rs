//! Logs that ended with fewer pairs than were asked for, and those that no job can go on with.

use std::collections::BTreeMap;

use crate::decide::limits::Limits;
use crate::state::Stage;

/// Why a stage can never have the pairs that it needs, by what its log has already.
pub(crate) fn lost_log(limits: &Limits, stage: &Stage) -> Option<String> {
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
