//! Curation units as they are stored while they are made: one record each.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::histogram::ScoreCounts;
use crate::ids::{NodeId, StageRef, Timestamp};
use crate::rejection::Rejection;

/// Nodes that a unit remembers to have failed on: two of them are enough to blame the unit.
pub const MAX_FAILED_ON: usize = 4;

/// One curation unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitRecord {
    pub stage: StageRef,
    pub unit: u64,
    /// Grows with each lease.
    pub lease_generation: u64,
    /// Leases that were given back for no fault of the unit's.
    pub released: u64,
    /// Times that it was given back with an error of its own.
    pub failures: u32,
    /// The nodes on which it failed, or that held it when their lease ran out; each once, at most [`MAX_FAILED_ON`].
    pub failed_on: Vec<NodeId>,
    /// What was said when it was last given back with an error; none once it is committed.
    pub last_failure: Option<UnitFailure>,
    pub state: UnitState,
}

/// What a curator said of a unit that it could not make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFailure {
    pub node: NodeId,
    pub kind: FailureKind,
    /// One line, without secrets.
    pub reason: String,
    pub at: Timestamp,
}

/// What kind of failure kept a curator from making a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The unit's own, or one that may pass.
    Passing,
    /// The curator cannot open what the stage's units are made of or filtered with (a library, a path, an encoder): no other
    /// unit of the stage would fare better there.
    Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// May be leased again after `wait`, which is what is durable. `from` is when that is over for the controller that leads: it
    /// counts from when it learnt of it.
    Free { from: Timestamp, wait: Duration },
    /// `expires_at` is the time at the grant; renewals are kept in memory alone.
    Leased { node: NodeId, expires_at: Timestamp },
    /// Committed; never changes again.
    Done(UnitResult),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitResult {
    pub shard: ShardRecord,
    /// Candidates rejected, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Scores of its candidates, accepted or not.
    pub scores: ScoreCounts,
    /// The source has no more after this unit.
    pub exhausted: bool,
}

/// The accepted pairs of one unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardRecord {
    /// Key in the object store; empty if there is no pair.
    pub path: String,
    pub pairs: u64,
    pub size_bytes: u64,
    /// 64 lower-case hexadecimal digits; empty if there is no pair.
    pub sha256: String,
}

impl UnitRecord {
    /// A unit that no one has held yet.
    pub fn new(stage: &StageRef, unit: u64) -> UnitRecord {
        UnitRecord {
            stage: stage.clone(),
            unit,
            lease_generation: 0,
            released: 0,
            failures: 0,
            failed_on: Vec::new(),
            last_failure: None,
            state: UnitState::Free { from: Timestamp(0), wait: Duration::ZERO },
        }
    }

    /// The unit, with one more node that failed at it.
    #[must_use]
    pub fn failed_also_on(&self, node: &NodeId) -> UnitRecord {
        let mut record = self.clone();
        if !record.failed_on.contains(node) && record.failed_on.len() < MAX_FAILED_ON {
            record.failed_on.push(node.clone());
        }
        record
    }

    /// The unit, done without a pair.
    pub fn quarantined(&self) -> UnitRecord {
        let result = UnitResult {
            shard: ShardRecord::default(),
            rejected: BTreeMap::from([(Rejection::UnitQuarantined.name().to_owned(), 1)]),
            scores: ScoreCounts::default(),
            exhausted: false,
        };
        UnitRecord { state: UnitState::Done(result), ..self.clone() }
    }

    /// Leases that ran out: its curator ended, or was out of sight.
    pub fn lost_leases(&self) -> u64 {
        let given_back = self.released.saturating_add(self.failures.into());
        self.lease_generation.saturating_sub(1).saturating_sub(given_back)
    }

    pub fn is_done(&self) -> bool {
        self.result().is_some()
    }

    pub fn result(&self) -> Option<&UnitResult> {
        match &self.state {
            UnitState::Done(result) => Some(result),
            UnitState::Free { .. } | UnitState::Leased { .. } => None,
        }
    }
}
