//! Curators that cannot open what a stage is made of, by their own word, or that keep failing at its units (they are benched):
//! for a while none of its units is given to them.
//!
//! Kept in memory alone: a controller that restarts learns it again, at the price of one unit that each of them gives back.

use std::collections::BTreeMap;

use crate::decide::Limits;
use crate::ids::{NodeId, StageRef, Timestamp};
use crate::records::FailureKind;
use crate::transitions::one_line;

/// Stages of which it is remembered; beyond it the one that was spoken of longest ago is forgotten.
const MAX_STAGES: usize = 1024;
/// Curators that are remembered of one stage.
const MAX_CURATORS: usize = 1024;

/// What a curator has said of a stage that it cannot open, or of its units when it failed at them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cooldown {
    /// Whether it cannot open the source, or fails at unit after unit.
    pub kind: FailureKind,
    /// One line, without secrets.
    pub reason: String,
    /// How often it has said so in a row.
    pub times: u32,
    /// First time of the row.
    pub since: Timestamp,
    /// Last time.
    pub at: Timestamp,
}

impl Cooldown {
    /// When it is asked again.
    pub fn until(&self, limits: &Limits) -> Timestamp {
        let first = match self.kind {
            FailureKind::Source => 1,
            FailureKind::Passing => limits.bench_after.max(1),
        };
        let Some(more) = self.times.checked_sub(first) else { return self.at };
        let factor = 1u32.checked_shl(more).unwrap_or(u32::MAX);
        self.at.plus(limits.cooldown.saturating_mul(factor).min(limits.max_cooldown))
    }
}

/// All of them. The number of stages and of curators is bounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cooldowns {
    stages: BTreeMap<StageRef, BTreeMap<NodeId, Cooldown>>,
}

impl Cooldowns {
    /// The curator gives a unit of the stage back: it cannot open the source, or has failed at the unit. What it says of one
    /// kind ends the row of the other.
    pub fn put(&mut self, stage: &StageRef, node: &NodeId, kind: FailureKind, reason: &str, now: Timestamp) {
        forget_one(&mut self.stages, stage, MAX_STAGES, |of_stage| {
            of_stage.values().map(|cooldown| cooldown.at).max().unwrap_or_default()
        });
        let of_stage = self.stages.entry(stage.clone()).or_default();
        forget_one(of_stage, node, MAX_CURATORS, |cooldown| cooldown.at);
        let before = of_stage.get(node).filter(|before| before.kind == kind);
        let cooldown = Cooldown {
            kind,
            reason: one_line(reason),
            times: before.map_or(0, |cooldown| cooldown.times).saturating_add(1),
            since: before.map_or(now, |cooldown| cooldown.since),
            at: now,
        };
        of_stage.insert(node.clone(), cooldown);
    }

    /// The curator has made a unit of the stage.
    pub fn lift(&mut self, stage: &StageRef, node: &NodeId) {
        if let Some(of_stage) = self.stages.get_mut(stage) {
            of_stage.remove(node);
            if of_stage.is_empty() {
                self.stages.remove(stage);
            }
        }
    }

    /// The curator is another process now: what it said before counts no more.
    pub(crate) fn lift_all_of(&mut self, node: &NodeId) {
        self.stages.retain(|_, of_stage| {
            of_stage.remove(node);
            !of_stage.is_empty()
        });
    }

    /// Nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Stages of which nothing is given to some curator now.
    pub(crate) fn stages(&self, limits: &Limits, now: Timestamp) -> impl Iterator<Item = &StageRef> {
        let hold = move |(_, of_stage): &(&StageRef, &BTreeMap<NodeId, Cooldown>)| {
            of_stage.values().any(|cooldown| now < cooldown.until(limits))
        };
        self.stages.iter().filter(hold).map(|(stage, _)| stage)
    }

    /// What the curator last said, if that still holds and it is not to be asked again yet.
    pub fn get(&self, stage: &StageRef, node: &NodeId, limits: &Limits, now: Timestamp) -> Option<&Cooldown> {
        self.stages.get(stage)?.get(node).filter(|cooldown| now < cooldown.until(limits))
    }

    /// Those of a stage that hold, by curator.
    pub fn of<'a>(
        &'a self,
        stage: &StageRef,
        limits: &'a Limits,
        now: Timestamp,
    ) -> impl Iterator<Item = (&'a NodeId, &'a Cooldown)> {
        let of_stage = self.stages.get(stage).into_iter().flatten();
        of_stage.filter(move |(_, cooldown)| now < cooldown.until(limits))
    }
}

/// Makes room for `key`: drops what was touched longest ago if there are `most` others already.
fn forget_one<K: Ord + Clone, V>(
    map: &mut BTreeMap<K, V>,
    key: &K,
    most: usize,
    touched: impl Fn(&V) -> Timestamp,
) {
    if map.contains_key(key) || map.len() < most {
        return;
    }
    let oldest = map.iter().min_by_key(|(_, value)| touched(value)).map(|(key, _)| key.clone());
    oldest.and_then(|oldest| map.remove(&oldest));
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureKind::{Passing, Source};

    use crate::ids::{JobId, StageName};

    fn stage(job: usize) -> StageRef {
        StageRef {
            job: JobId::parse(&format!("j{job}")).expect("valid"),
            stage: StageName::parse("s").expect("valid"),
        }
    }

    fn node(n: usize) -> NodeId {
        NodeId::parse(&format!("c{n}")).expect("valid")
    }

    #[test]
    fn it_holds_longer_each_time_and_ends_with_a_unit_or_a_new_process() {
        let (limits, at) = (Limits::default(), |seconds: u64| Timestamp(seconds * 1000));
        let mut cooldowns = Cooldowns::default();
        let (stage, node) = (stage(0), node(0));
        let holds = |cooldowns: &Cooldowns, now| cooldowns.get(&stage, &node, &limits, now).is_some();
        cooldowns.put(&stage, &node, Source, "cannot read\n/x", at(0));
        assert_eq!(cooldowns.get(&stage, &node, &limits, at(1)).expect("it holds").reason, "cannot read /x");
        assert_eq!((holds(&cooldowns, at(29)), holds(&cooldowns, at(30))), (true, false));
        cooldowns.put(&stage, &node, Source, "cannot read /x", at(31));
        assert_eq!((holds(&cooldowns, at(90)), holds(&cooldowns, at(91))), (true, false));
        assert_eq!(cooldowns.stages[&stage][&node].since, at(0), "since it said so first");
        for _ in 0..40 {
            cooldowns.put(&stage, &node, Source, "cannot read /x", at(100));
        }
        assert_eq!((holds(&cooldowns, at(699)), holds(&cooldowns, at(700))), (true, false));
        cooldowns.lift(&stage, &node);
        assert_eq!(cooldowns, Cooldowns::default());
        cooldowns.put(&stage, &node, Source, "cannot read /x", at(200));
        cooldowns.lift_all_of(&node);
        assert_eq!(cooldowns, Cooldowns::default());
    }

    #[test]
    fn one_that_keeps_failing_is_benched_from_the_third_unit_in_a_row_on() {
        let (limits, at) = (Limits::default(), |seconds: u64| Timestamp(seconds * 1000));
        let mut cooldowns = Cooldowns::default();
        let (stage, node) = (stage(0), node(0));
        let holds = |cooldowns: &Cooldowns, now| cooldowns.get(&stage, &node, &limits, now).is_some();
        for times in 1..=3 {
            assert!(!holds(&cooldowns, at(0)), "after {times} failures less one");
            cooldowns.put(&stage, &node, Passing, "signal 9", at(0));
        }
        assert_eq!((holds(&cooldowns, at(29)), holds(&cooldowns, at(30))), (true, false));
        cooldowns.put(&stage, &node, Passing, "signal 9", at(30));
        assert_eq!((holds(&cooldowns, at(89)), holds(&cooldowns, at(90))), (true, false));
        cooldowns.lift(&stage, &node);
        cooldowns.put(&stage, &node, Passing, "signal 9", at(90));
        assert!(!holds(&cooldowns, at(90)), "a unit that it made began the row anew");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut cooldowns = Cooldowns::default();
        for n in 0..MAX_STAGES + 10 {
            cooldowns.put(&stage(n), &node(0), Source, "", Timestamp(n as u64));
            cooldowns.put(&stage(MAX_STAGES), &node(n), Source, "", Timestamp(5_000_000 + n as u64));
        }
        assert_eq!(cooldowns.stages.len(), MAX_STAGES);
        assert_eq!(cooldowns.stages[&stage(MAX_STAGES)].len(), MAX_CURATORS);
        assert!(
            !cooldowns.stages.contains_key(&stage(0))
                && !cooldowns.stages[&stage(MAX_STAGES)].contains_key(&node(0))
        );
    }
}
