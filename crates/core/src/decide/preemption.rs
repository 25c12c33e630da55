//! Which gangs leave so that a job that goes first fits.

use std::sync::Arc;

use crate::records::AttemptRecord;
use crate::state::Job;

/// What a gang loses by leaving beside its work since the last checkpoint: slot-milliseconds a rank to save, to start and to
/// load again.
const RESUME_MILLIS: u64 = 60_000;

/// A gang that may have to leave.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    pub job: &'a Job,
    pub attempt: Arc<AttemptRecord>,
    /// Lowest priority of its class; less than any if it has none, was placed before its turn, or has borrowed what the taker.s queue is sure of.
    pub class: i32,
    /// Slot-milliseconds of work that are lost, or done again, if it leaves now.
    pub cost: u64,
}

/// What leaving costs a gang of `ranks` that has worked for `unsaved_millis` since its last checkpoint.
pub(super) fn cost(ranks: usize, unsaved_millis: u64) -> u64 {
    RESUME_MILLIS.saturating_add(unsaved_millis).saturating_mul(ranks as u64)
}

/// The gangs that leave: of the lowest classes, then those that lose least, and none without which it would fit too. Empty if
/// it would not fit even without all of them. `fits` says whether it does once these have left; more slots never make it worse.
pub(super) fn choose<'a>(
    mut candidates: Vec<Candidate<'a>>,
    mut fits: impl FnMut(&[Candidate<'a>]) -> bool,
) -> Vec<Candidate<'a>> {
    candidates.sort_by_key(|one| (one.class, one.cost, one.attempt.attempt.stage_ref()));
    if candidates.is_empty() || !fits(&candidates) {
        return Vec::new();
    }
    // A single one that is enough may cost less than several that come first one by one.
    let single = candidates.iter().find(|one| fits(std::slice::from_ref(one))).cloned();
    let (mut fewest, mut enough) = (1, candidates.len());
    while fewest < enough {
        let half = fewest.midpoint(enough);
        if fits(candidates.get(..half).unwrap_or_default()) { enough = half } else { fewest = half + 1 }
    }
    candidates.truncate(enough);
    for at in (0..candidates.len()).rev() {
        let needless = candidates.remove(at);
        if candidates.is_empty() || !fits(&candidates) {
            candidates.insert(at, needless);
        }
    }
    let price = |chosen: &[Candidate<'_>]| {
        let class = chosen.iter().map(|one| one.class).max();
        (class, chosen.iter().fold(0u64, |sum, one| sum.saturating_add(one.cost)), chosen.len())
    };
    match single {
        Some(single) if price(std::slice::from_ref(&single)) < price(&candidates) => vec![single],
        Some(_) | None => candidates,
    }
}

/// Why a job leaves; a job of another tenant is not named.
pub(super) fn makes_room(job: &Job, by: Option<&Job>) -> String {
    match by.filter(|by| by.record.spec.tenant == job.record.spec.tenant) {
        Some(by) => format!("the job makes room for {}, which goes first", by.record.id),
        None => "the job makes room for one that goes first".to_owned(),
    }
}
