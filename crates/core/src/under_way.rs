//! How far the units are that curators work on, as they say. Only looked at by people; nothing is decided by it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::ids::{NodeId, StageRef, Timestamp};

/// Stages and curators that are remembered together at most.
const MAX_UNITS: usize = 4096;

/// A unit in the making; without candidates where the curator waits before it has leased one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitProgress {
    pub unit: u64,
    pub candidates: CandidateCounts,
    /// What the curator waits for with it, such as an endpoint that is out of order, and why.
    pub waits_for: Option<String>,
    /// When it was said.
    pub at: Timestamp,
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
}

impl UnitsUnderWay {
    /// The curator says how far its unit is; one unit of a stage at a time.
    pub fn put(&mut self, stage: &StageRef, node: &NodeId, progress: UnitProgress) {
        let known = self.by_stage.get(stage).is_some_and(|of_stage| of_stage.contains_key(node));
        if known || self.by_stage.values().map(BTreeMap::len).sum::<usize>() < MAX_UNITS {
            self.by_stage.entry(stage.clone()).or_default().insert(node.clone(), progress);
        }
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
    ) -> impl Iterator<Item = (&NodeId, &str)> {
        self.lately(stage, limit, now)
            .filter_map(|(node, progress)| Some((node, progress.waits_for.as_deref()?)))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JobId, StageName};

    fn node(n: usize) -> NodeId {
        NodeId::parse(&format!("c{n}")).expect("valid")
    }

    fn drawn(drawn: u64, at: u64) -> UnitProgress {
        let candidates = CandidateCounts { planned: 64, drawn, ..CandidateCounts::default() };
        UnitProgress { unit: 3, candidates, waits_for: None, at: Timestamp(at) }
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
            units.waiting(&stage, limit, Timestamp(at)).map(|(node, why)| format!("{node}: {why}")).collect()
        };
        assert_eq!(waiting(&units, 2000), ["c0: no answer", "c1: no answer"]);
        assert_eq!(units.of(&stage, limit, Timestamp(2000)).0, 2, "one has leased no unit yet");
        units.put(&stage, &node(0), drawn(6, 2000));
        assert_eq!(waiting(&units, 2000), ["c1: no answer"]);
        assert_eq!(waiting(&units, 16_000), [""; 0]);
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
