//! The pair log of a stage: units that are leased, done or free, and what can be read.
//!
//! ```text
//!  unit     0     1     2     3     4     5
//!         done  done  done leased done  free
//!         └── prefix: readable ──┘  └ invisible until 3 is done
//! ```
//!
//! The log is the results in the order of the units, cut at the wanted number of pairs. So its content depends on what
//! is in the units alone, not on who did them when.
//!
//! Of units that can be read numbers are kept alone. Once nobody works on a log any more its units are folded: one
//! [`SegmentRecord`] holds what many records of units have said. Whoever reads the log sees no difference.

mod prefix;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::histogram::ScoreCounts;
use crate::ids::{NodeId, StageRef, Timestamp};
use crate::pairlog::prefix::Prefix;
use crate::rejection::Rejection;
use crate::segment::{DoneUnit, SegmentRecord};
use crate::unit::{ShardRecord, UnitFailure, UnitRecord, UnitResult, UnitState};

pub use prefix::SEGMENT_UNITS;

/// How units are given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitPolicy {
    /// A lease that is not renewed ends after this.
    pub lease_ttl: Duration,
    /// Tries after which a unit is quarantined.
    pub max_failures: u32,
    /// Leases after which a unit is quarantined, unless they were given back for no fault of its own: it may be what its
    /// curators die of.
    pub max_leases: u64,
    /// Wait before a unit that has failed once is tried again; doubles with each further failure.
    pub retry_backoff: Duration,
    pub max_retry_backoff: Duration,
    /// Units past the readable prefix that may be under way.
    pub look_ahead: u64,
    /// The other curators that may make units of the stage: as long as there is one, no unit is given up on the word of a
    /// single node.
    pub peers: BTreeSet<NodeId>,
}

impl UnitPolicy {
    /// How long a unit that has failed `failures` times waits until it may be tried again.
    pub fn retry_after(&self, failures: u32) -> Duration {
        let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.retry_backoff.saturating_mul(factor).min(self.max_retry_backoff)
    }

    /// Whether enough nodes have failed at a unit to blame the unit: two, or the only one that there is.
    pub fn blames(&self, unit: &UnitRecord) -> bool {
        unit.failed_on.len() >= 2 || self.peers.is_empty()
    }

    /// Whether the unit is kept from a node that has failed at it, for another that has not tried it yet.
    fn kept_for_another(&self, unit: &UnitRecord, node: &NodeId, now: Timestamp) -> bool {
        let lately = match &unit.state {
            UnitState::Free { from, wait } => from.plus(self.max_retry_backoff) > now.plus(*wait),
            UnitState::Leased { expires_at, .. } => now.since(*expires_at) < self.max_retry_backoff,
            UnitState::Done(_) => false,
        };
        lately
            && unit.last_failure.is_some()
            && unit.failed_on.contains(node)
            && self.peers.iter().any(|peer| !unit.failed_on.contains(peer))
    }
}

/// What a curator that asks for work gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// The unit's record as it is to be written.
    Granted(UnitRecord),
    /// The next unit was leased too often. Its record as it is to be written; then there may be another.
    GivenUp(UnitRecord),
    /// Everything is out.
    Wait,
    /// Nothing is left to do.
    Sealed,
}

/// The units of a stage and the readable prefix, kept up to date by [`PairLog::put`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairLog {
    /// Pairs that the spec asks for.
    target: u64,
    /// Units that can be read.
    prefix: Prefix,
    /// The others that someone has worked on.
    open: BTreeMap<u64, UnitRecord>,
    /// Segments that do not go on where the prefix ends, by their first unit.
    apart: BTreeMap<u64, SegmentRecord>,
    /// Bytes of all committed shards, readable or not.
    stored_bytes: u64,
    sealed: bool,
}

impl PairLog {
    /// A log for `target` pairs; `segment_units` of its units are folded into one record once they are over.
    pub fn new(stage: &StageRef, target: u64, segment_units: u64) -> Self {
        Self {
            target,
            prefix: Prefix::new(stage, segment_units),
            open: BTreeMap::new(),
            apart: BTreeMap::new(),
            stored_bytes: 0,
            sealed: false,
        }
    }

    /// The log of a stage that makes no pairs: empty, and sealed.
    pub fn of_none(stage: &StageRef, segment_units: u64) -> Self {
        Self { sealed: true, ..Self::new(stage, 0, segment_units) }
    }

    /// Takes over a unit's record. A unit that is done stays as it is.
    pub fn put(&mut self, record: UnitRecord) {
        if record.unit < self.prefix.len() {
            self.prefix.note_record(record.unit);
            return;
        }
        let done = self.open.get(&record.unit).is_some_and(UnitRecord::is_done);
        if !done {
            let size_bytes = record.result().map_or(0, |result| result.shard.size_bytes);
            self.stored_bytes = self.stored_bytes.saturating_add(size_bytes);
            self.open.insert(record.unit, record);
            self.grow();
        }
    }

    /// Takes over a segment: of units that are here one by one, or instead of them.
    pub fn put_segment(&mut self, segment: SegmentRecord) {
        if segment.end() > self.folded_units() {
            self.apart.insert(segment.first_unit, segment);
            self.grow();
        }
    }

    /// Takes note that the record of a unit which a segment holds is gone.
    pub fn forget_record(&mut self, unit: u64) {
        self.prefix.forget_record(unit);
    }

    /// The next units to be folded into one record, as it is to be written: none while records of units that are folded are
    /// still to be deleted. For logs that nobody works on any more.
    pub fn next_segment(&self) -> Option<SegmentRecord> {
        if self.superfluous().next().is_some() { None } else { self.prefix.next_segment() }
    }

    /// Units whose own record says what a segment says, and can be deleted.
    pub fn superfluous(&self) -> impl Iterator<Item = u64> {
        self.prefix.superfluous()
    }

    /// Units that segments hold.
    pub fn folded_units(&self) -> u64 {
        self.prefix.folded()
    }

    /// Segments that do not belong where they are: there is a gap before them.
    pub fn segments_apart(&self) -> usize {
        self.apart.len()
    }

    /// Starts the term of every lease anew.
    pub(crate) fn renew_leases(&mut self, now: Timestamp, ttl: Duration) {
        for record in self.open.values_mut() {
            if let UnitState::Leased { expires_at, .. } = &mut record.state {
                *expires_at = now.plus(ttl);
            }
        }
    }

    /// Counts every wait from `now`; none is longer than `longest`.
    pub(crate) fn restart_waits(&mut self, now: Timestamp, longest: Duration) {
        for record in self.open.values_mut() {
            if let UnitState::Free { from, wait } = &mut record.state {
                *wait = longest.min(*wait);
                *from = now.plus(*wait);
            }
        }
    }

    fn grow(&mut self) {
        loop {
            if let Some(segment) = self.apart.remove(&self.folded_units()) {
                if self.prefix.can_fold(&segment) {
                    self.prefix.fold(&segment);
                    continue;
                }
                self.apart.insert(segment.first_unit, segment);
            }
            if self.sealed || !self.read_on() {
                return;
            }
            self.sealed = self.prefix.pairs >= self.target || self.prefix.exhausted;
        }
    }

    /// Takes what comes next into the prefix, if it is there.
    fn read_on(&mut self) -> bool {
        let next = self.prefix.len();
        if let Some(segment) = self.apart.remove(&next) {
            let behind = self.open.split_off(&segment.end());
            // What a segment holds may be here one by one too, behind a gap.
            let covered = std::mem::replace(&mut self.open, behind);
            let known = covered.values().filter_map(UnitRecord::result);
            let known = known.fold(0u64, |sum, result| sum.saturating_add(result.shard.size_bytes));
            let bytes = self.prefix.join(segment);
            self.stored_bytes = self.stored_bytes.saturating_sub(known).saturating_add(bytes);
            covered.keys().for_each(|unit| self.prefix.note_record(*unit));
            return true;
        }
        let done = self.open.get(&next).is_some_and(UnitRecord::is_done);
        if done
            && let Some(record) = self.open.remove(&next)
            && let UnitState::Done(result) = &record.state
        {
            self.prefix.push(&record, result);
        }
        done
    }

    /// Units that can be read, from unit 0.
    pub fn prefix_units(&self) -> u64 {
        self.prefix.len()
    }

    /// Pairs that can be read, from index 0.
    pub fn committed(&self) -> u64 {
        self.prefix.pairs.min(self.target)
    }

    /// Bytes of the committed shards in the object store.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    /// The log will not grow any more.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Someone has worked on it.
    pub fn is_begun(&self) -> bool {
        self.prefix.len() > 0 || !self.open.is_empty()
    }

    /// Pairs that were asked for.
    pub fn target(&self) -> u64 {
        self.target
    }

    /// Units of the prefix that nobody could make.
    pub fn given_up(&self) -> u64 {
        self.rejected().get(Rejection::UnitQuarantined.name()).copied().unwrap_or(0)
    }

    /// The source ended before there were as many pairs as were asked for.
    pub fn ends_short(&self) -> bool {
        self.sealed && self.committed() < self.target
    }

    /// Rejected candidates of the prefix, by reason.
    pub fn rejected(&self) -> &BTreeMap<String, u64> {
        &self.prefix.sums.rejected
    }

    /// Scores of the prefix's candidates, accepted or not.
    pub fn scores(&self) -> &ScoreCounts {
        &self.prefix.sums.scores
    }

    /// Units at the end of the prefix that gave no pair.
    pub fn empty_in_a_row(&self) -> u64 {
        self.prefix.empty_in_a_row
    }

    /// Times that units were given back with an error of their own.
    pub fn failures(&self) -> u64 {
        let open = self.open.values().map(|unit| u64::from(unit.failures));
        open.fold(self.prefix.sums.failures, u64::saturating_add)
    }

    /// Leases that ran out.
    pub fn lost_leases(&self) -> u64 {
        self.open
            .values()
            .map(UnitRecord::lost_leases)
            .fold(self.prefix.sums.lost_leases, u64::saturating_add)
    }

    /// Someone has made a unit of it: one that was not given up.
    pub fn has_made(&self) -> bool {
        let quarantined = Rejection::UnitQuarantined.name();
        let made = |result: &UnitResult| !result.rejected.contains_key(quarantined);
        self.prefix.sums.made > 0 || self.open.values().filter_map(UnitRecord::result).any(made)
    }

    /// The newest failure of a unit that has not been made, with the unit: it is tried again, or was quarantined.
    pub fn last_failure(&self) -> Option<(&UnitRecord, &UnitFailure)> {
        let units = self.open.values().chain(&self.prefix.last_failed);
        let failures = units.filter_map(|unit| Some((unit, unit.last_failure.as_ref()?)));
        failures.max_by_key(|(unit, failure)| (!unit.is_done(), failure.at, unit.unit))
    }

    /// A unit that someone has worked on and that cannot be read yet: it is not done, or lies behind one that is not.
    pub fn open_unit(&self, unit: u64) -> Option<&UnitRecord> {
        self.open.get(&unit)
    }

    /// All of these, by number.
    pub fn open_units(&self) -> impl Iterator<Item = &UnitRecord> {
        self.open.values()
    }

    pub fn is_done(&self, unit: u64) -> bool {
        unit < self.prefix.len() || self.open.get(&unit).is_some_and(UnitRecord::is_done)
    }

    /// What is kept of a unit that can be read.
    pub fn readable_unit(&self, unit: u64) -> Option<&DoneUnit> {
        self.prefix.done(unit)
    }

    /// The shard of a unit that can be read.
    pub fn shard(&self, unit: u64) -> Option<ShardRecord> {
        self.prefix.shard(unit)
    }

    /// The shard of a unit that is done, whether it can be read already or not.
    pub fn done_shard(&self, unit: u64) -> Option<ShardRecord> {
        let open = || Some(self.open_unit(unit)?.result()?.shard.clone());
        self.shard(unit).or_else(open)
    }

    /// Who holds units behind the readable ones.
    pub fn holders(&self, now: Timestamp) -> impl Iterator<Item = &NodeId> {
        self.open.values().filter_map(move |record| match &record.state {
            UnitState::Leased { node, expires_at } => (*expires_at > now).then_some(node),
            UnitState::Free { .. } | UnitState::Done(_) => None,
        })
    }

    /// Readable shards from unit `from` on, each with the index of its first pair.
    pub fn shards_from(&self, from: u64) -> impl Iterator<Item = (u64, ShardRecord, u64)> {
        let units = from..self.prefix.len().max(from);
        units.filter_map(|unit| Some((unit, self.prefix.shard(unit)?, self.prefix.first_index(unit)?)))
    }

    /// Gives `node` the lowest unit that no one holds and that can still be needed.
    pub fn lease(&self, stage: &StageRef, node: &NodeId, now: Timestamp, policy: &UnitPolicy) -> Lease {
        if self.sealed {
            return Lease::Sealed;
        }
        let prefix = self.prefix_units();
        let mut done_pairs = self.prefix.pairs;
        let mut ends = false;
        for unit in prefix..prefix.saturating_add(policy.look_ahead.max(1)) {
            // Past the end of the source, or with enough pairs below: never needed, whatever the open units bring.
            if ends || done_pairs >= self.target {
                break;
            }
            match self.open.get(&unit) {
                None => return Lease::Granted(granted(&UnitRecord::new(stage, unit), node, now, policy)),
                Some(record) => match &record.state {
                    UnitState::Done(result) => {
                        done_pairs = done_pairs.saturating_add(result.shard.pairs);
                        ends = result.exhausted;
                    }
                    UnitState::Leased { expires_at, .. } if *expires_at > now => {}
                    UnitState::Free { from, .. } if *from > now => {}
                    UnitState::Free { .. } | UnitState::Leased { .. }
                        if policy.kept_for_another(record, node, now) => {}
                    UnitState::Free { .. } | UnitState::Leased { .. }
                        if policy.blames(&expired(record))
                            && record.lease_generation.saturating_sub(record.released)
                                >= policy.max_leases =>
                    {
                        return Lease::GivenUp(record.quarantined());
                    }
                    UnitState::Free { .. } | UnitState::Leased { .. } => {
                        return Lease::Granted(granted(record, node, now, policy));
                    }
                },
            }
        }
        Lease::Wait
    }
}

/// The unit, with the holder whose lease has run out among those that failed at it: it may have died of it.
fn expired(record: &UnitRecord) -> UnitRecord {
    match &record.state {
        UnitState::Leased { node, .. } => record.failed_also_on(node),
        UnitState::Free { .. } | UnitState::Done(_) => record.clone(),
    }
}

fn granted(record: &UnitRecord, node: &NodeId, now: Timestamp, policy: &UnitPolicy) -> UnitRecord {
    let record = expired(record);
    UnitRecord {
        lease_generation: record.lease_generation + 1,
        state: UnitState::Leased { node: node.clone(), expires_at: now.plus(policy.lease_ttl) },
        ..record
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{JobId, StageName};

    fn stage() -> StageRef {
        StageRef { job: JobId::parse("j").expect("valid"), stage: StageName::parse("s").expect("valid") }
    }

    fn new_log(target: u64) -> PairLog {
        PairLog::new(&stage(), target, 3)
    }

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).expect("valid")
    }

    fn policy(look_ahead: u64) -> UnitPolicy {
        UnitPolicy {
            lease_ttl: Duration::from_secs(20),
            max_failures: 3,
            max_leases: 16,
            retry_backoff: Duration::from_secs(3),
            max_retry_backoff: Duration::from_secs(60),
            look_ahead,
            peers: BTreeSet::new(),
        }
    }

    pub(crate) fn done(unit: u64, pairs: u64, exhausted: bool) -> UnitRecord {
        let shard = ShardRecord {
            path: format!("unit-{unit}"),
            pairs,
            size_bytes: pairs * 10,
            sha256: String::new(),
        };
        let rejected = BTreeMap::from([("similarity_low".to_owned(), unit)]);
        let mut scores = ScoreCounts::default();
        scores.count("similarity", 0.5);
        UnitRecord {
            lease_generation: 1,
            state: UnitState::Done(UnitResult { shard, rejected, scores, exhausted }),
            ..UnitRecord::new(&stage(), unit)
        }
    }

    #[test]
    fn a_gap_hides_what_lies_behind_it() {
        let mut log = new_log(100);
        log.put(done(0, 5, false));
        log.put(done(2, 7, false));
        assert_eq!((log.prefix_units(), log.committed()), (1, 5));
        log.put(done(1, 0, false));
        assert_eq!((log.prefix_units(), log.committed()), (3, 12));
        let firsts: Vec<_> = log.shards_from(1).map(|(unit, _, first)| (unit, first)).collect();
        assert_eq!(firsts, [(1, 5), (2, 5)]);
    }

    #[test]
    fn the_log_is_cut_at_its_target_and_sealed() {
        let mut log = new_log(8);
        log.put(done(0, 5, false));
        log.put(done(1, 5, false));
        log.put(done(2, 5, false));
        assert!(log.is_sealed());
        assert_eq!((log.prefix_units(), log.committed()), (2, 8));
        assert_eq!(log.lease(&stage(), &node("a"), Timestamp(0), &policy(9)), Lease::Sealed);
    }

    #[test]
    fn an_expired_lease_goes_to_the_next_with_a_higher_generation() {
        let mut log = new_log(8);
        let Lease::Granted(first) = log.lease(&stage(), &node("a"), Timestamp(0), &policy(1)) else {
            panic!("granted")
        };
        log.put(first.clone());
        assert_eq!(log.lease(&stage(), &node("b"), Timestamp(19_999), &policy(1)), Lease::Wait);
        let Lease::Granted(second) = log.lease(&stage(), &node("b"), Timestamp(20_000), &policy(1)) else {
            panic!("granted")
        };
        assert_eq!((second.unit, second.lease_generation), (0, first.lease_generation + 1));
    }

    #[test]
    fn a_unit_whose_curators_keep_dying_is_given_up() {
        let mut log = new_log(8);
        let mut now = Timestamp(0);
        for generation in 1..=16 {
            let Lease::Granted(record) = log.lease(&stage(), &node("a"), now, &policy(1)) else {
                panic!("granted")
            };
            assert_eq!((record.unit, record.lease_generation), (0, generation));
            log.put(record);
            now = now.plus(Duration::from_secs(20));
        }
        let Lease::GivenUp(record) = log.lease(&stage(), &node("a"), now, &policy(1)) else {
            panic!("given up")
        };
        log.put(record);
        assert_eq!((log.prefix_units(), log.committed()), (1, 0));
        assert_eq!(log.rejected(), &BTreeMap::from([(Rejection::UnitQuarantined.name().to_owned(), 1)]));
        let Lease::Granted(next) = log.lease(&stage(), &node("a"), now, &policy(1)) else {
            panic!("granted")
        };
        assert_eq!(next.unit, 1);
    }

    #[test]
    fn a_unit_that_has_failed_waits_longer_each_time_while_others_go_on() {
        let (policy, now) = (policy(2), Timestamp(1000));
        let waits: Vec<u64> = (1..=6).map(|failures| policy.retry_after(failures).as_secs()).collect();
        assert_eq!(waits, [3, 6, 12, 24, 48, 60]);
        assert_eq!(policy.retry_after(u32::MAX).as_secs(), 60);
        let mut log = new_log(8);
        let Lease::Granted(record) = log.lease(&stage(), &node("a"), now, &policy) else { panic!("granted") };
        let wait = policy.retry_after(1);
        log.put(UnitRecord { failures: 1, state: UnitState::Free { from: now.plus(wait), wait }, ..record });
        let unit = |at| match log.lease(&stage(), &node("a"), Timestamp(at), &policy) {
            Lease::Granted(record) => Some(record.unit),
            Lease::GivenUp(_) | Lease::Wait | Lease::Sealed => None,
        };
        assert_eq!((unit(1000), unit(3999), unit(4000)), (Some(1), Some(1), Some(0)));
        // The clock of the controller that set the wait was an hour ahead: the one that reads it counts anew.
        log.put(UnitRecord {
            state: UnitState::Free { from: Timestamp(3_600_000), wait: Duration::from_secs(7000) },
            ..log.open_unit(0).expect("there").clone()
        });
        log.restart_waits(now, policy.max_retry_backoff);
        let unit = |at| match log.lease(&stage(), &node("a"), Timestamp(at), &policy) {
            Lease::Granted(record) => Some(record.unit),
            Lease::GivenUp(_) | Lease::Wait | Lease::Sealed => None,
        };
        assert_eq!((unit(1000), unit(60_999), unit(61_000)), (Some(1), Some(1), Some(0)));
    }

    #[test]
    fn no_new_unit_is_given_out_once_enough_pairs_lie_behind_a_gap() {
        let mut log = new_log(8);
        let Lease::Granted(first) = log.lease(&stage(), &node("a"), Timestamp(0), &policy(9)) else {
            panic!("granted")
        };
        log.put(first);
        log.put(done(1, 9, false));
        assert_eq!(log.lease(&stage(), &node("b"), Timestamp(1), &policy(9)), Lease::Wait);
    }

    #[test]
    fn nothing_is_given_out_past_the_end_of_the_source() {
        let mut log = new_log(100);
        let Lease::Granted(first) = log.lease(&stage(), &node("a"), Timestamp(0), &policy(9)) else {
            panic!("granted")
        };
        log.put(first);
        log.put(done(1, 3, true));
        assert_eq!(log.lease(&stage(), &node("b"), Timestamp(1), &policy(9)), Lease::Wait);
        log.put(done(0, 2, false));
        assert!(log.is_sealed());
        assert_eq!(log.committed(), 5);
        let counted: u64 = log.scores().scores().flat_map(|(_, counts)| counts).sum();
        assert_eq!(counted, 2, "each unit of the prefix has one");
    }

    proptest! {
        /// The log after all units are in does not depend on the order in which they came, and while they come it only
        /// grows, keeping every position.
        #[test]
        fn content_does_not_depend_on_the_order(
            pairs in prop::collection::vec(0u64..6, 1..12),
            target in 1u64..40,
            keys in prop::collection::vec(any::<u32>(), 12),
            end in any::<bool>(),
        ) {
            let last = pairs.len() - 1;
            let units: Vec<_> =
                pairs.iter().enumerate().map(|(i, &n)| done(i as u64, n, end && i == last)).collect();
            let mut in_order = new_log(target);
            units.iter().cloned().for_each(|unit| in_order.put(unit));

            let mut order: Vec<usize> = (0..units.len()).collect();
            order.sort_by_key(|&i| keys[i]);
            let mut shuffled = new_log(target);
            let mut before: Vec<(u64, u64)> = Vec::new();
            for i in order {
                shuffled.put(units[i].clone());
                let now: Vec<(u64, u64)> = shuffled.shards_from(0).map(|(unit, _, first)| (unit, first)).collect();
                prop_assert!(now.starts_with(&before), "positions moved");
                prop_assert!(shuffled.committed() <= target);
                before = now;
            }
            prop_assert_eq!(in_order, shuffled);
        }

        /// However leases are asked for, two curators never hold the same unit at a time.
        #[test]
        fn a_unit_has_one_holder(asks in prop::collection::vec((0u8..3, 0u64..30_000), 1..40), look_ahead in 1u64..6) {
            let mut log = new_log(1000);
            let mut now = Timestamp(0);
            let mut held: BTreeMap<u64, (Timestamp, u64)> = BTreeMap::new();
            for (who, wait) in asks {
                now = Timestamp(now.0 + wait);
                if let Lease::Granted(record) = log.lease(&stage(), &node(["a", "b", "c"][who as usize]), now, &policy(look_ahead)) {
                    if let Some((until, generation)) = held.get(&record.unit) {
                        prop_assert!(*until <= now, "unit {} is still held", record.unit);
                        prop_assert!(record.lease_generation > *generation);
                    }
                    prop_assert!(record.unit < look_ahead);
                    held.insert(record.unit, (now.plus(policy(1).lease_ttl), record.lease_generation));
                    log.put(record);
                }
            }
        }
    }
}
