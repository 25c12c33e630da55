//! How a stage's pairs come, and what keeps them from coming, in words.

use std::time::Duration;

use crescendo_proto::v1::{CuratorCooldown, StageStatus, UnitFailure, UnitsUnderWay, WaitingCurator};

use super::words;

/// What curators are making now, e.g. `37 of 64 candidates drawn`, `32 compared`, `12 judged`, `9 accepted`; nothing if
/// they make nothing.
pub fn making(stage: &StageStatus) -> Vec<String> {
    let Some(UnitsUnderWay { units: _, candidates, drawn, filtered, judged, accepted }) = &stage.under_way
    else {
        return Vec::new();
    };
    // What is still made when there are enough is not needed.
    if stage.pairs_sealed {
        return Vec::new();
    }
    let mut parts = vec![format!("{drawn} of {candidates} candidates drawn")];
    let further = [(filtered, "compared"), (judged, "judged"), (accepted, "accepted")];
    parts.extend(further.iter().filter(|(n, _)| **n > 0).map(|(n, what)| format!("{n} {what}")));
    parts
}

/// How fast they come, e.g. `12.0 pairs a minute`, and when they are complete at that pace.
pub fn pace(stage: &StageStatus) -> Vec<String> {
    if stage.pairs_sealed || stage.pairs_per_minute <= 0.0 || !stage.pairs_per_minute.is_finite() {
        return Vec::new();
    }
    let mut parts = vec![format!("{:.1} pairs a minute", stage.pairs_per_minute)];
    let left = stage.pairs_target.saturating_sub(stage.pairs_committed) as f64;
    parts.extend(words::eta(60.0 * left / stage.pairs_per_minute).map(|left| format!("all in {left}")));
    parts
}

/// What goes wrong with its units and its curators, one line each. `later`: since this was told.
pub fn troubles(stage: &StageStatus, later: Duration) -> Vec<String> {
    let cooldowns = stage.cooldowns.iter().map(|cooldown| {
        let CuratorCooldown { node_id, reason, asked_again_in_seconds } = cooldown;
        let again = left(*asked_again_in_seconds, later).unwrap_or_else(|| "a moment".into());
        format!("{node_id} cannot open its source, asked again in {again}: {reason}")
    });
    // What a curator in cooldown said is told once.
    let told = |failure: &&UnitFailure| {
        !stage.cooldowns.iter().any(|b| b.node_id == failure.node_id && b.reason == failure.reason)
    };
    let failure = stage.last_failure.iter().filter(told).map(|failure| {
        let UnitFailure { unit, node_id, reason, ago_seconds, retry_in_seconds } = failure;
        let ago = Duration::try_from_secs_f64(*ago_seconds).unwrap_or_default() + later;
        let again = match left(*retry_in_seconds, later) {
            Some(left) => format!("tried again in {left}"),
            None => "tried again".to_owned(),
        };
        format!("unit {unit} failed on {node_id} {} ago: {reason}; {again}", words::span(ago))
    });
    let waiting = stage
        .waiting_curators
        .iter()
        .map(|WaitingCurator { node_id, reason }| format!("{node_id} waits and goes on by itself: {reason}"));
    failure.chain(cooldowns).chain(waiting).map(|line| words::one_line(&line)).collect()
}

/// What a person is to hear of a stage beside how far it is: its [`troubles`], and the last change of the kind of processor.
pub fn remarks(stage: &StageStatus, later: Duration) -> Vec<String> {
    let mut remarks = troubles(stage, later);
    remarks.extend(stage.kind_changes.last().map(|change| words::one_line(change)));
    remarks
}

/// What is left of a time; nothing if it is over.
fn left(seconds: f64, later: Duration) -> Option<String> {
    words::eta((seconds - later.as_secs_f64()).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_told_as_far_as_it_has_come() {
        let mut stage = StageStatus { pairs_target: 100, pairs_committed: 40, ..StageStatus::default() };
        assert_eq!((making(&stage), pace(&stage)), (vec![], vec![]));
        stage.under_way = Some(UnitsUnderWay { units: 1, candidates: 64, drawn: 37, ..Default::default() });
        stage.pairs_per_minute = 12.0;
        assert_eq!(making(&stage), ["37 of 64 candidates drawn"]);
        assert_eq!(pace(&stage), ["12.0 pairs a minute", "all in 5m"]);
        let under_way = stage.under_way.as_mut().unwrap();
        (under_way.filtered, under_way.accepted) = (32, 9);
        assert_eq!(making(&stage), ["37 of 64 candidates drawn", "32 compared", "9 accepted"]);
    }

    #[test]
    fn the_last_failure_ages_while_nothing_is_heard() {
        let failure = UnitFailure {
            unit: 3,
            node_id: "curator-1".into(),
            reason: "no\nanswer".into(),
            ago_seconds: 12.0,
            retry_in_seconds: 8.0,
        };
        let cooldowns = CuratorCooldown {
            node_id: "curator-2".into(),
            reason: "cannot read /x".into(),
            asked_again_in_seconds: 25.0,
        };
        let waiting = WaitingCurator { node_id: "curator-3".into(), reason: "judge: no\nanswer".into() };
        let stage = StageStatus {
            last_failure: Some(failure),
            cooldowns: vec![cooldowns],
            waiting_curators: vec![waiting],
            ..StageStatus::default()
        };
        let told = |later| troubles(&stage, Duration::from_secs(later));
        assert_eq!(
            told(0),
            [
                "unit 3 failed on curator-1 12s ago: no answer; tried again in 8s",
                "curator-2 cannot open its source, asked again in 25s: cannot read /x",
                "curator-3 waits and goes on by itself: judge: no answer",
            ]
        );
        let mut same = stage.clone();
        same.last_failure = same.last_failure.map(|failure| UnitFailure {
            node_id: "curator-2".into(),
            reason: "cannot read /x".into(),
            ..failure
        });
        assert_eq!(troubles(&same, Duration::ZERO).len(), 2, "said once");
        assert_eq!(told(30)[0], "unit 3 failed on curator-1 42s ago: no answer; tried again");
    }
}
