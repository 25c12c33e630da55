//! How far the units are that curators work on, as they say. People look at it; of what it says only that a curator waits for
//! something outside decides anything: then it has time for another stage.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{NodeId, StageRef, Timestamp};

/// Stages and curators that are remembered together at most.
const MAX_UNITS: usize = 4096;

/// How long a wait is remembered at least.
const WAITS_KEPT: Duration = Duration::from_secs(600);

/// A unit in the making; without candidates where the curator waits before it has leased one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitProgress {
    pub unit: u64,
    pub candidates: CandidateCounts,
    /// What the curator waits for with it, such as an endpoint that is out of order, and why.
    pub waits_for: Option<String>,
    /// When it was said first that it waits; set by [`UnitsUnderWay::put`].
    pub waits_since: Option<Timestamp>,
    /// When it was said.
    pub at: Timestamp,
}

/// A curator that waits for something outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting<'a> {
    pub node: &'a NodeId,
    /// What for, and why.
    pub reason: &'a str,
    pub since: Timestamp,
}

/// Candidates of units that are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CandidateCounts {
    /// That there will be, if the source has as many.
    pub planned: u64,
    /// Made, or turned down, by the source.
    pub drawn: u64,
    /// Looked at by the similarity filter.
    pub filtered: u64,
    /// Looked at by the judge.
    pub judged: u64,
    pub accepted: u64,
}

/// What was last said of each unit that is under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UnitsUnderWay {
    by_stage: BTreeMap<StageRef, BTreeMap<NodeId, UnitProgress>>,
    /// When a curator last said that it waits. It outlives the unit: who has just waited may have to again.
    waited: BTreeMap<StageRef, BTreeMap<NodeId, Timestamp>>,
}

impl UnitsUnderWay {
    /// The curator says how far its unit is; one unit of a stage at a time.
    pub fn put(&mut self, stage: &StageRef, node: &NodeId, progress: UnitProgress) {
        let before = self.by_stage.get(stage).and_then(|of_stage| of_stage.get(node));
        let since = before.and_then(|before| before.waits_since).unwrap_or(progress.at);
        let waits_since = progress.waits_for.is_some().then_some(since);
        if before.is_some() || count(&self.by_stage) < MAX_UNITS {
            if waits_since.is_some() {
                if count(&self.waited) >= MAX_UNITS {
                    self.forget_older_waits(progress.at);
                }
                self.waited.entry(stage.clone()).or_default().insert(node.clone(), progress.at);
            }
            let progress = UnitProgress { waits_since, ..progress };
            self.by_stage.entry(stage.clone()).or_default().insert(node.clone(), progress);
        }
    }

    /// Some curator has waited with the stage.
    pub(crate) fn was_waited_with(&self, stage: &StageRef) -> bool {
        self.waited.contains_key(stage)
    }

    /// No curator has waited with any.
    pub(crate) fn has_no_waits(&self) -> bool {
        self.waited.is_empty()
    }

    /// Whether the curator said within `limit` that it waits with a unit of the stage.
    pub fn has_waited(&self, stage: &StageRef, node: &NodeId, limit: Duration, now: Timestamp) -> bool {
        let waited = self.waited.get(stage).and_then(|of_stage| of_stage.get(node));
        waited.is_some_and(|at| now.since(*at) < limit)
    }

    fn forget_older_waits(&mut self, now: Timestamp) {
        self.waited.retain(|_, of_stage| {
            of_stage.retain(|_, at| now.since(*at) < WAITS_KEPT);
            !of_stage.is_empty()
        });
    }

    /// The curator has ended its unit, well or not.
    pub fn ended(&mut self, stage: &StageRef, node: &NodeId) {
        if let Some(of_stage) = self.by_stage.get_mut(stage) {
            of_stage.remove(node);
            if of_stage.is_empty() {
                self.by_stage.remove(stage);
            }
        }
    }

    /// The curator is gone, or another process now.
    pub fn gone(&mut self, node: &NodeId) {
        self.by_stage.retain(|_, of_stage| {
            of_stage.remove(node);
            !of_stage.is_empty()
        });
        self.waited.retain(|_, of_stage| {
            of_stage.remove(node);
            !of_stage.is_empty()
        });
    }

    /// Units of a stage that were heard of within `limit`, and their candidates together.
    pub fn of(&self, stage: &StageRef, limit: Duration, now: Timestamp) -> (u64, CandidateCounts) {
        let leased = self.lately(stage, limit, now).filter(|(_, progress)| progress.candidates.planned > 0);
        leased.fold((0, CandidateCounts::default()), |(units, sum), (_, progress)| {
            let CandidateCounts { planned, drawn, filtered, judged, accepted } = progress.candidates;
            let sum = CandidateCounts {
                planned: sum.planned.saturating_add(planned),
                drawn: sum.drawn.saturating_add(drawn),
                filtered: sum.filtered.saturating_add(filtered),
                judged: sum.judged.saturating_add(judged),
                accepted: sum.accepted.saturating_add(accepted),
            };
            (units + 1, sum)
        })
    }

    /// Curators of a stage that said within `limit` that they wait, and for what.
    pub fn waiting(
        &self,
        stage: &StageRef,
        limit: Duration,
        now: Timestamp,
    ) -> impl Iterator<Item = Waiting<'_>> {
        self.lately(stage, limit, now).filter_map(|(node, progress)| {
            let since = progress.waits_since.unwrap_or(progress.at);
            Some(Waiting { node, reason: progress.waits_for.as_deref()?, since })
        })
    }

    fn lately(
        &self,
        stage: &StageRef,
        limit: Duration,
        now: Timestamp,
    ) -> impl Iterator<Item = (&NodeId, &UnitProgress)> {
        let of_stage = self.by_stage.get(stage).into_iter().flatten();
        of_stage.filter(move |(_, progress)| now.since(progress.at) < limit)
    }
}

fn count<T>(by_stage: &BTreeMap<StageRef, BTreeMap<NodeId, T>>) -> usize {
    by_stage.values().map(BTreeMap::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JobId, StageName};

    fn node(n: usize) -> NodeId {
        NodeId::parse(&format!("c{n}")).expect("valid")
    }

    fn drawn(drawn: u64, at: u64) -> UnitProgress {
        let candidates = CandidateCounts { planned: 64, drawn, ..CandidateCounts::default() };
        UnitProgress { unit: 3, candidates, at: Timestamp(at), ..UnitProgress::default() }
    }

    #[test]
    fn who_waits_is_told_until_it_goes_on_or_is_silent() {
        let stage =
            StageRef { job: JobId::parse("j").expect("valid"), stage: StageName::parse("s").expect("valid") };
        let limit = Duration::from_secs(15);
        let mut units = UnitsUnderWay::default();
        let waits = |candidates: CandidateCounts| UnitProgress {
            candidates,
            waits_for: Some("no answer".into()),
            at: Timestamp(1000),
            ..UnitProgress::default()
        };
        units.put(&stage, &node(0), waits(drawn(5, 0).candidates));
        units.put(&stage, &node(1), waits(CandidateCounts::default()));
        units.put(&stage, &node(2), drawn(1, 1000));
        let waiting = |units: &UnitsUnderWay, at| -> Vec<String> {
            units
                .waiting(&stage, limit, Timestamp(at))
                .map(|Waiting { node, reason, since: _ }| format!("{node}: {reason}"))
                .collect()
        };
        assert_eq!(waiting(&units, 2000), ["c0: no answer", "c1: no answer"]);
        assert_eq!(units.of(&stage, limit, Timestamp(2000)).0, 2, "one has leased no unit yet");
        units.put(&stage, &node(0), drawn(6, 2000));
        assert_eq!(waiting(&units, 2000), ["c1: no answer"]);
        assert_eq!(waiting(&units, 16_000), [""; 0]);
    }

    #[test]
    fn a_wait_counts_from_its_first_word_and_is_remembered_for_a_while() {
        let stage =
            StageRef { job: JobId::parse("j").expect("valid"), stage: StageName::parse("s").expect("valid") };
        let limit = Duration::from_secs(15);
        let mut units = UnitsUnderWay::default();
        for at in [1000, 5000, 9000] {
            let waits = UnitProgress { waits_for: Some("no answer".into()), ..drawn(1, at) };
            units.put(&stage, &node(0), waits);
        }
        let since: Vec<Timestamp> =
            units.waiting(&stage, limit, Timestamp(9000)).map(|waiting| waiting.since).collect();
        assert_eq!(since, [Timestamp(1000)]);
        units.put(&stage, &node(0), drawn(2, 10_000));
        units.ended(&stage, &node(0));
        let has_waited = |units: &UnitsUnderWay, at| units.has_waited(&stage, &node(0), limit, Timestamp(at));
        assert!(has_waited(&units, 23_999) && !has_waited(&units, 24_000));
        units.gone(&node(0));
        assert!(!has_waited(&units, 10_000));
    }

    #[test]
    fn units_add_up_and_are_forgotten_with_their_end() {
        let stage =
            StageRef { job: JobId::parse("j").expect("valid"), stage: StageName::parse("s").expect("valid") };
        let limit = Duration::from_secs(15);
        let mut units = UnitsUnderWay::default();
        units.put(&stage, &node(0), drawn(5, 1000));
        units.put(&stage, &node(0), drawn(7, 2000));
        units.put(&stage, &node(1), drawn(1, 12_000));
        let (count, sum) = units.of(&stage, limit, Timestamp(12_000));
        assert_eq!((count, sum.planned, sum.drawn), (2, 128, 8));
        assert_eq!(units.of(&stage, limit, Timestamp(17_000)).0, 1, "one is silent");
        units.ended(&stage, &node(0));
        units.gone(&node(1));
        assert_eq!(units, UnitsUnderWay::default());
        (0..MAX_UNITS + 9).for_each(|n| units.put(&stage, &node(n), drawn(1, 0)));
        assert_eq!(units.of(&stage, limit, Timestamp(0)).0, MAX_UNITS as u64);
    }
}
