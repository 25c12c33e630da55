//! What a decision may be set to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::pairlog::{SEGMENT_UNITS, UnitPolicy};
use crate::quotas::Quotas;
use crate::ranks::HangLimits;

/// Limits that the decisions depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A node that was not heard of for this long is silent: it gets no new work.
    pub silent_after: Duration,
    /// Ranks on a silent node are given up after this, if their gang has not stepped for as long.
    pub ranks_lost_after: Duration,
    /// Ranks that have saved their final checkpoint are left this long to end by themselves.
    pub finish_within: Duration,
    /// Ranks that are to save and leave, since their job is paused or makes room for another, are stopped after this.
    pub leave_within: Duration,
    /// A gang that has fewer ranks than its job asks for has them for this long before it leaves for more.
    pub grow_after: Duration,
    /// Failures of a stage without a new checkpoint in between after which its job fails.
    pub max_failures_in_a_row: u32,
    /// Wait before the third attempt; doubles with each further one.
    pub restart_backoff: Duration,
    pub max_restart_backoff: Duration,
    /// A failure is held against its node for this long.
    pub blame_for: Duration,
    /// Jobs that have failed on a node, and on no other, after which it gets no new work until a person says so.
    pub cordon_after: usize,
    /// Units without any pair, one after the other, after which the job fails.
    pub max_empty_units: u64,
    pub lease_ttl: Duration,
    pub max_unit_failures: u32,
    /// Leases of a unit, however they ended.
    pub max_unit_leases: u64,
    /// Wait before a unit is tried again after its first failure; doubles with each further one.
    pub unit_backoff: Duration,
    pub max_unit_backoff: Duration,
    /// A curator that cannot open a stage's source is asked again after this; twice as long each further time.
    pub cooldown: Duration,
    pub max_cooldown: Duration,
    /// Units that a curator gives back in a row, with an error of their own, after which it is benched: it is not asked for
    /// units of the stage for `cooldown`, twice as long with each further one, as long as another curator may make them.
    pub bench_after: u32,
    /// Percent of a stage's units that may have been given up when its source ends short of the pairs that were asked for;
    /// with more its job fails.
    pub max_given_up_percent: u64,
    /// Where a stage's source could be opened before, its job fails once no curator can for this long.
    pub source_lost_after: Duration,
    /// Units under way past the readable prefix: `base + per_curator * curators`.
    pub look_ahead_base: u64,
    pub look_ahead_per_curator: u64,
    /// Units of a stage that is over whose records become one.
    pub segment_units: u64,
    /// Records of units that are deleted at a time once a segment holds them.
    pub fold_deletes: usize,
    /// How long ranks may go without a move.
    pub hang: HangLimits,
    /// What each tenant may use.
    pub quotas: Arc<Quotas>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            silent_after: Duration::from_secs(15),
            ranks_lost_after: Duration::from_secs(60),
            finish_within: Duration::from_secs(20),
            leave_within: Duration::from_secs(300),
            grow_after: Duration::from_secs(300),
            max_failures_in_a_row: 10,
            restart_backoff: Duration::from_millis(500),
            max_restart_backoff: Duration::from_secs(30),
            blame_for: Duration::from_secs(30 * 60),
            cordon_after: 3,
            max_empty_units: 200,
            lease_ttl: Duration::from_secs(20),
            max_unit_failures: 3,
            max_unit_leases: 16,
            unit_backoff: Duration::from_secs(3),
            max_unit_backoff: Duration::from_secs(60),
            cooldown: Duration::from_secs(30),
            max_cooldown: Duration::from_secs(600),
            bench_after: 3,
            max_given_up_percent: 20,
            source_lost_after: Duration::from_secs(60),
            look_ahead_base: 4,
            look_ahead_per_curator: 2,
            segment_units: SEGMENT_UNITS,
            fold_deletes: 100,
            hang: HangLimits::default(),
            quotas: Arc::default(),
        }
    }
}

impl Limits {
    pub fn unit_policy(&self, curators: usize) -> UnitPolicy {
        UnitPolicy {
            lease_ttl: self.lease_ttl,
            max_failures: self.max_unit_failures,
            max_leases: self.max_unit_leases,
            retry_backoff: self.unit_backoff,
            max_retry_backoff: self.max_unit_backoff,
            look_ahead: self
                .look_ahead_base
                .saturating_add(self.look_ahead_per_curator.saturating_mul(curators as u64)),
            peers: BTreeSet::new(),
        }
    }
}
