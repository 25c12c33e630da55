//! Which nodes attempts have failed on lately, so that one bad node ends no job.
//!
//! A failure counts against the node that reported it first in its gang, and only for a while. A failure that is said to be
//! permanent is believed once a second node says the same, or where there is no other to ask. Kept in memory alone: after a
//! restart of the controller it is learnt again, at the price of one attempt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::decide::Limits;
use crate::ids::{JobId, NodeId, StageRef, Timestamp};
use crate::transitions::one_line;

/// Nodes of which failures are remembered.
const MAX_NODES: usize = 4096;
/// Failures that are remembered of one node.
const MAX_FAILURES: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    stage: StageRef,
    at: Timestamp,
    /// It says that it will come again on every try.
    permanent: bool,
    /// It was the first of its gang; the others may have failed because of it.
    first: bool,
    reason: String,
}

/// The failures of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFailures {
    nodes: BTreeMap<NodeId, VecDeque<Failure>>,
}

impl NodeFailures {
    /// Ranks of the stage have failed on the node; `first` if no other node of the gang had failed before.
    pub fn put(
        &mut self,
        node: &NodeId,
        stage: &StageRef,
        reason: &str,
        permanent: bool,
        first: bool,
        now: Timestamp,
    ) {
        if !(first || permanent) || !self.nodes.contains_key(node) && self.nodes.len() >= MAX_NODES {
            return;
        }
        let failures = self.nodes.entry(node.clone()).or_default();
        failures.push_back(Failure {
            stage: stage.clone(),
            at: now,
            permanent,
            first,
            reason: one_line(reason),
        });
        if failures.len() > MAX_FAILURES {
            failures.pop_front();
        }
    }

    /// The node is another process: what it took for permanent may be mended. That it has failed still counts for a while.
    pub(crate) fn restarted(&mut self, node: &NodeId) {
        self.nodes.get_mut(node).into_iter().flatten().for_each(|failure| failure.permanent = false);
    }

    /// A person trusts the node again.
    pub fn forgive(&mut self, node: &NodeId) {
        self.nodes.remove(node);
    }

    /// Stages that are remembered to have failed somewhere.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &StageRef> {
        self.nodes.values().flatten().map(|failure| &failure.stage)
    }

    /// Nothing has failed anywhere.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn recent<'a>(
        &'a self,
        node: &NodeId,
        limits: &'a Limits,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a Failure> {
        let failures = self.nodes.get(node).into_iter().flatten();
        failures.filter(move |failure| now.since(failure.at) < limits.blame_for)
    }

    /// Nodes that have said lately that the stage fails for good there.
    pub fn permanent_on(&self, stage: &StageRef, limits: &Limits, now: Timestamp) -> BTreeSet<NodeId> {
        let says = |node: &&NodeId| {
            self.recent(node, limits, now).any(|failure| failure.permanent && failure.stage == *stage)
        };
        self.nodes.keys().filter(says).cloned().collect()
    }

    /// Whether the stage should rather not be placed on the node: it has just failed there, or several other jobs have.
    pub fn avoids(&self, node: &NodeId, stage: &StageRef, limits: &Limits, now: Timestamp) -> bool {
        self.recent(node, limits, now).any(|failure| failure.first && failure.stage == *stage)
            || self.held_against(node, limits, now).len() >= 2
    }

    /// Jobs that have failed on the node lately and on no other: what fails everywhere is no node's fault. With the newest
    /// reason of each.
    fn held_against<'a>(
        &'a self,
        node: &NodeId,
        limits: &'a Limits,
        now: Timestamp,
    ) -> BTreeMap<&'a JobId, &'a str> {
        let here = self.recent(node, limits, now).filter(|failure| failure.first);
        let mut jobs: BTreeMap<&JobId, &str> = BTreeMap::new();
        for failure in here {
            let elsewhere = self.nodes.keys().filter(|other| *other != node).any(|other| {
                self.recent(other, limits, now)
                    .any(|other| other.first && other.stage.job == failure.stage.job)
            });
            if !elsewhere {
                jobs.insert(&failure.stage.job, &failure.reason);
            }
        }
        jobs
    }

    /// Why the node should get no new work, if so many jobs fail there alone that it is the node.
    pub fn cordon_reason(&self, node: &NodeId, limits: &Limits, now: Timestamp) -> Option<String> {
        let jobs = self.held_against(node, limits, now);
        let newest = self.recent(node, limits, now).filter(|failure| failure.first).last()?;
        (jobs.len() >= limits.cordon_after).then(|| {
            format!(
                "{} jobs have failed on it and on no other node, the last with: {}",
                jobs.len(),
                newest.reason
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::StageName;

    fn stage(job: &str) -> StageRef {
        StageRef { job: JobId::parse(job).expect("valid"), stage: StageName::parse("s").expect("valid") }
    }

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).expect("valid")
    }

    #[test]
    fn what_fails_on_one_node_alone_is_held_against_it_and_what_fails_everywhere_is_not() {
        let (limits, now) = (Limits::default(), Timestamp(5));
        let mut failures = NodeFailures::default();
        let fail = |failures: &mut NodeFailures, at: &str, job: &str| {
            failures.put(&node(at), &stage(job), "no space left on device", false, true, now);
        };
        for job in ["a", "b", "c"] {
            assert_eq!(failures.cordon_reason(&node("bad"), &limits, now), None, "before {job}");
            fail(&mut failures, "bad", job);
        }
        let reason = failures.cordon_reason(&node("bad"), &limits, now).expect("three jobs");
        assert!(reason.ends_with("no space left on device"), "{reason}");
        assert!(failures.avoids(&node("bad"), &stage("new"), &limits, now), "for others too");
        let later = now.plus(limits.blame_for);
        assert_eq!(failures.cordon_reason(&node("bad"), &limits, later), None, "it decays");
        // The same job again is one job, and a job that fails elsewhere too is that job's fault.
        fail(&mut failures, "good", "c");
        fail(&mut failures, "bad", "a");
        assert_eq!(failures.cordon_reason(&node("bad"), &limits, now), None);
        assert!(failures.avoids(&node("good"), &stage("c"), &limits, now));
        assert!(!failures.avoids(&node("good"), &stage("new"), &limits, now));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut failures = NodeFailures::default();
        for n in 0..MAX_NODES + 10 {
            failures.put(&node(&format!("n{n}")), &stage("a"), "", false, true, Timestamp(0));
            failures.put(&node("n0"), &stage("a"), "", false, true, Timestamp(0));
        }
        assert_eq!((failures.nodes.len(), failures.nodes[&node("n0")].len()), (MAX_NODES, MAX_FAILURES));
    }
}
