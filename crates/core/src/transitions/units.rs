//! Leasing, renewing, committing and failing curation units.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::error::RequestError;
use crate::histogram::ScoreCounts;
use crate::ids::{NodeId, StageRef, Timestamp};
use crate::job::{JobEvent, JobState, Pause};
use crate::object_keys;
use crate::pairlog::{Lease, UnitPolicy};
use crate::records::{
    FailureKind, Record, RecordKey, ShardRecord, UnitFailure, UnitRecord, UnitResult, UnitState, Write,
};
use crate::rejection::Rejection;
use crate::state::{ClusterState, Stage};
use crate::transitions::digests::check_sha256;
use crate::transitions::jobs::{end_job, one_line};

/// Pairs that one unit may bring; far above any unit size.
const MAX_PAIRS_PER_UNIT: u64 = 1 << 20;

/// A lease as its holder names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitLeaseRef {
    pub stage: StageRef,
    pub unit: u64,
    pub lease_generation: u64,
}

/// A unit's result as its curator hands it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitCommit {
    pub lease: UnitLeaseRef,
    pub shard: ShardRecord,
    pub rejected: BTreeMap<String, u64>,
    pub scores: ScoreCounts,
    pub exhausted: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UnitCommitted {
    /// What was committed before stands.
    pub done_already: bool,
    pub writes: Vec<Write>,
}

/// Key of the shard that a lease writes.
pub fn shard_path(lease: &UnitLeaseRef) -> String {
    let UnitLeaseRef { stage, unit, lease_generation } = lease;
    object_keys::shard(stage.job.as_str(), stage.stage.as_str(), *unit, *lease_generation)
}

fn open_stage<'a>(state: &'a ClusterState, id: &StageRef) -> Result<&'a Stage, RequestError> {
    state.unreadable().check(&format!("jobs/{}", id.job))?;
    let job = state.job(&id.job).ok_or_else(|| RequestError::NotFound { what: format!("job {}", id.job) })?;
    let stage = state.stage(id).ok_or_else(|| RequestError::NotFound { what: format!("stage {id}") })?;
    if job.record.state.is_terminal() {
        return Err(RequestError::TooLate { what: format!("job {} is {}", id.job, job.record.state) });
    }
    Ok(stage)
}

/// Leases the next unit of a stage to `node`. A job that has ended counts as sealed.
pub fn lease_unit(
    state: &ClusterState,
    id: &StageRef,
    node: &NodeId,
    policy: &UnitPolicy,
    now: Timestamp,
) -> Result<(Lease, Vec<Write>), RequestError> {
    if state.node(node).is_some_and(|record| record.drained) {
        return Ok((Lease::Wait, Vec::new()));
    }
    let stage = match open_stage(state, id) {
        Ok(stage) => stage,
        Err(RequestError::TooLate { .. }) => return Ok((Lease::Sealed, Vec::new())),
        Err(refused) => return Err(refused),
    };
    let paused = state.job(&id.job).map(|job| &job.record.state);
    let paused = matches!(paused, Some(JobState::Paused(Pause { curates: false, .. })));
    if state.halted(&id.job).is_some() || paused {
        return Ok((Lease::Wait, Vec::new()));
    }
    let lease = stage.log.lease(id, node, now, policy);
    let writes = match &lease {
        Lease::Granted(record) | Lease::GivenUp(record) => vec![Write::Put(Record::Unit(record.clone()))],
        Lease::Wait | Lease::Sealed => Vec::new(),
    };
    Ok((lease, writes))
}

/// The unit's record with the lease extended, if `lease` still holds it. Kept in memory alone: a controller that
/// restarts grants every lease a full term again.
pub fn renew_unit(
    state: &ClusterState,
    lease: &UnitLeaseRef,
    node: &NodeId,
    policy: &UnitPolicy,
    now: Timestamp,
) -> Result<UnitRecord, RequestError> {
    let stage = open_stage(state, &lease.stage)?;
    check_unit(state, lease)?;
    let record = held(stage, lease)?;
    Ok(UnitRecord {
        state: UnitState::Leased { node: node.clone(), expires_at: now.plus(policy.lease_ttl) },
        ..record.clone()
    })
}

fn stale(lease: &UnitLeaseRef) -> RequestError {
    RequestError::StaleLease { unit: lease.unit, lease_generation: lease.lease_generation }
}

/// A unit whose record cannot be read may be anyone's.
fn check_unit(state: &ClusterState, lease: &UnitLeaseRef) -> Result<(), RequestError> {
    state.unreadable().check(&RecordKey::Unit(lease.stage.clone(), lease.unit).to_string())
}

fn held<'a>(stage: &'a Stage, lease: &UnitLeaseRef) -> Result<&'a UnitRecord, RequestError> {
    let record = stage.log.open_unit(lease.unit).ok_or_else(|| stale(lease))?;
    match record.state {
        UnitState::Leased { .. } if record.lease_generation == lease.lease_generation => Ok(record),
        UnitState::Leased { .. } | UnitState::Free { .. } | UnitState::Done(_) => Err(stale(lease)),
    }
}

/// Commits a unit's result, once.
pub fn commit_unit(state: &ClusterState, commit: UnitCommit) -> Result<UnitCommitted, RequestError> {
    let done_already = UnitCommitted { done_already: true, writes: Vec::new() };
    let stage = open_stage(state, &commit.lease.stage)?;
    check_unit(state, &commit.lease)?;
    if stage.log.is_done(commit.lease.unit) {
        return Ok(done_already);
    }
    stage.log.open_unit(commit.lease.unit).ok_or_else(|| stale(&commit.lease))?;
    // Past the seal nothing is read any more, so nothing has to be kept.
    if stage.log.is_sealed() {
        return Ok(done_already);
    }
    let record = held(stage, &commit.lease)?;
    check_result(&commit)?;
    let UnitCommit { shard, rejected, scores, exhausted, .. } = commit;
    let result = UnitResult { shard, rejected, scores, exhausted };
    let record = UnitRecord { state: UnitState::Done(result), last_failure: None, ..record.clone() };
    Ok(UnitCommitted { done_already: false, writes: vec![Write::Put(Record::Unit(record))] })
}

fn check_result(commit: &UnitCommit) -> Result<(), RequestError> {
    let shard = &commit.shard;
    if shard.pairs > MAX_PAIRS_PER_UNIT {
        return Err(RequestError::invalid("shard.pairs", format!("must be at most {MAX_PAIRS_PER_UNIT}")));
    }
    if shard.pairs > 0 {
        let wanted = shard_path(&commit.lease);
        if shard.path != wanted {
            return Err(RequestError::invalid("shard.path", format!("must be {wanted}")));
        }
        if shard.size_bytes == 0 {
            return Err(RequestError::invalid("shard.size_bytes", "must be more than 0"));
        }
        check_sha256("shard.sha256", &shard.sha256)?;
    }
    match commit.rejected.keys().find(|reason| Rejection::named(reason).is_none()) {
        Some(unknown) => {
            let known = Rejection::ALL.map(Rejection::name).join(", ");
            Err(RequestError::invalid("rejected", format!("{unknown:?} is not one of {known}")))
        }
        None => Ok(()),
    }
}

/// What becomes of a unit that its curator gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitFate {
    /// It may be tried again: after a while and a bounded number of times if the failure may be its own, at once if its
    /// curator is to blame.
    Failed(FailureKind),
    /// Nothing is wrong with it, its curator leaves: it may be tried again at once.
    Released,
    /// Nor can any other unit of its stage be made.
    JobFails,
}

/// Gives a unit back: it is tried again, quarantined or fails its job, as its `fate` says. Returns with the writes
/// whether it is quarantined: once it has failed `policy.max_failures` times, on two nodes or on the only one, it counts
/// as done, with no pairs.
pub fn fail_unit(
    state: &ClusterState,
    lease: &UnitLeaseRef,
    node: &NodeId,
    policy: &UnitPolicy,
    fate: UnitFate,
    reason: &str,
    now: Timestamp,
) -> Result<(bool, Vec<Write>), RequestError> {
    let stage = open_stage(state, &lease.stage)?;
    check_unit(state, lease)?;
    let record = held(stage, lease)?;
    let mut given_back = record.clone();
    if fate == UnitFate::Failed(FailureKind::Passing) {
        given_back = record.failed_also_on(node);
    }
    let wait = match fate {
        UnitFate::Failed(kind) => {
            let reason = one_line(reason);
            given_back.last_failure = Some(UnitFailure { node: node.clone(), kind, reason, at: now });
            match kind {
                FailureKind::Passing => {
                    given_back.failures = record.failures.saturating_add(1);
                    policy.retry_after(given_back.failures)
                }
                FailureKind::Source => {
                    given_back.released = record.released.saturating_add(1);
                    Duration::ZERO
                }
            }
        }
        UnitFate::Released => {
            given_back.released = record.released.saturating_add(1);
            Duration::ZERO
        }
        UnitFate::JobFails => {
            let reason =
                format!("curation of stage {} cannot go on: {}", lease.stage.stage, one_line(reason));
            let event = JobEvent::Fail { reason: reason.clone() };
            return Ok((false, end_job(state, &lease.stage.job, event, &reason, now)?));
        }
    };
    let quarantined = given_back.failures >= policy.max_failures && policy.blames(&given_back);
    given_back.state = UnitState::Free { from: now.plus(wait), wait };
    let record = if quarantined { given_back.quarantined() } else { given_back };
    Ok((quarantined, vec![Write::Put(Record::Unit(record))]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decide::Limits;
    use crate::ids::{JobId, RequestId, StageName};
    use crate::records::JobRecord;

    fn state() -> (ClusterState, StageRef) {
        let id = JobId::parse("j").expect("valid");
        let yaml = "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {name: uno}\nspec:\n  model: {preset: nano, weights: base.safetensors}\n  stages: [{data: {source: compose, subjects: lib, pairs: 8}}]\n";
        let record = JobRecord {
            id: id.clone(),
            request: RequestId::parse("r").expect("valid"),
            spec: Arc::new(crate::spec::parse(yaml.as_bytes()).expect("the spec is right")),
            spec_json: Arc::from(&b"{}"[..]),
            state: JobState::Running { stage: 0 },
            submitted_at: Timestamp(0),
            trace: None,
            started_at: None,
            finished_at: None,
        };
        let (state, orphans) = ClusterState::load(vec![Record::Job(record)]);
        assert!(orphans.is_empty());
        (state, StageRef { job: id, stage: StageName::parse("stage-1").expect("valid") })
    }

    fn curator() -> NodeId {
        NodeId::parse("c").expect("valid")
    }

    fn apply(state: &mut ClusterState, writes: Vec<Write>) {
        writes.into_iter().for_each(|write| state.apply(write).expect("its stage is there"));
    }

    fn leased(
        state: &mut ClusterState,
        stage: &StageRef,
        policy: &UnitPolicy,
        now: Timestamp,
    ) -> Option<UnitLeaseRef> {
        let (lease, writes) = lease_unit(state, stage, &curator(), policy, now).expect("the stage is open");
        apply(state, writes);
        let Lease::Granted(record) = lease else { return None };
        Some(UnitLeaseRef {
            stage: stage.clone(),
            unit: record.unit,
            lease_generation: record.lease_generation,
        })
    }

    #[test]
    fn a_unit_that_keeps_failing_waits_and_is_quarantined() {
        let (mut state, stage) = state();
        let policy = UnitPolicy { look_ahead: 1, ..Limits::default().unit_policy(1) };
        let mut now = Timestamp(5);
        for tries in 1..=policy.max_failures {
            let lease = leased(&mut state, &stage, &policy, now).expect("it may be tried");
            let (quarantined, writes) = fail_unit(
                &state,
                &lease,
                &curator(),
                &policy,
                UnitFate::Failed(FailureKind::Passing),
                "",
                now,
            )
            .expect("it is held");
            apply(&mut state, writes);
            assert_eq!((lease.unit, quarantined), (0, tries == policy.max_failures));
            if !quarantined {
                assert_eq!(leased(&mut state, &stage, &policy, now), None, "not at once");
            }
            now = now.plus(policy.retry_after(tries));
        }
        assert_eq!(leased(&mut state, &stage, &policy, now).map(|lease| lease.unit), Some(1));
    }

    #[test]
    fn a_stage_that_cannot_be_made_ends_its_job_with_the_reason() {
        let (mut state, stage) = state();
        let (policy, now) = (Limits::default().unit_policy(1), Timestamp(5));
        let lease = leased(&mut state, &stage, &policy, now).expect("a unit");
        let end = |state: &ClusterState, lease: &UnitLeaseRef, reason: &str| {
            fail_unit(state, lease, &curator(), &policy, UnitFate::JobFails, reason, now)
        };
        let stale = UnitLeaseRef { lease_generation: 9, ..lease.clone() };
        assert!(matches!(end(&state, &stale, "no"), Err(RequestError::StaleLease { .. })));
        let (quarantined, writes) = end(&state, &lease, "the money\nis spent").expect("it is held");
        assert!(!quarantined);
        apply(&mut state, writes);
        let job = &state.job(&stage.job).expect("there").record;
        let reason = "curation of stage stage-1 cannot go on: the money is spent".to_owned();
        assert_eq!((&job.state, job.finished_at), (&JobState::Failed { reason }, Some(now)));
        assert!(matches!(end(&state, &lease, "again"), Err(RequestError::TooLate { .. })));
        assert_eq!(leased(&mut state, &stage, &policy, now), None, "nothing is left to do");
    }
}
