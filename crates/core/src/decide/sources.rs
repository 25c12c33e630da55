//! Whether anyone can open what a stage is made of.
//!
//! A curator that cannot is [in a cooldown](crate::cooldown) for the stage, and the others go on. Once all have said so the stage is
//! given up, under these conditions, so that no job is failed by who happens to be there:
//!
//! * every curator that is in sight has spoken, and every known one that may still come back after a restart of the
//!   controller or a short loss of its connection;
//! * none that has not holds a unit;
//! * if pairs of the stage were made before, or are trained on, somebody could open it once: then it is waited for
//!   [`Limits::source_lost_after`](super::Limits), and a gang that steps is left alone.

use std::time::Duration;

use crate::cooldown::Cooldown;
use crate::decide::{DecideContext, PendingReason};
use crate::ids::{NodeId, StageRef};
use crate::observed::Refusal;
use crate::records::{FailureKind, NodeKind, NodeRecord, UnitRecord, UnitState};
use crate::state::Stage;

/// Curators that a reason names at most.
const MAX_NAMED: usize = 3;

impl<'a> DecideContext<'a> {
    /// What the curator has said of the stage, if none of its units is to be given to it. One that keeps failing is benched
    /// only as long as another may make them.
    pub(crate) fn cooldown(&self, stage: &StageRef, node: &NodeId) -> Option<&'a Cooldown> {
        let cooldown = self.seen.cooldowns.get(stage, node, self.limits, self.now)?;
        match cooldown.kind {
            FailureKind::Source => Some(cooldown),
            FailureKind::Passing => self.peers(stage, node).next().map(|_| cooldown),
        }
    }

    /// Whether units of the stage may be given to the curator.
    pub(crate) fn may_make(&self, stage: &StageRef, node: &NodeId) -> bool {
        self.cooldown(stage, node).is_none() && self.refusal(stage, node).is_none()
    }

    /// Why the curator has not taken the stage up, if it is not to be asked again yet.
    pub(crate) fn refusal(&self, stage: &StageRef, node: &NodeId) -> Option<&'a Refusal> {
        let refusal = self.view(node)?.refused.get(stage)?;
        (!self.has_come(refusal.until(self.limits))).then_some(refusal)
    }

    /// Those whose units are not asked of them because they keep failing, by stage; with what they said.
    pub(crate) fn benched(&self, stage: &StageRef) -> impl Iterator<Item = (&'a NodeId, &'a Cooldown)> {
        let held = self.seen.cooldowns.of(stage, self.limits, self.now);
        let held: Vec<_> = held.filter(|(_, cooldown)| cooldown.kind == FailureKind::Passing).collect();
        held.into_iter().filter(|(node, _)| self.cooldown(stage, node).is_some())
    }

    /// The other curators that may make units of the stage: those that are at work, or were a moment ago and may be again,
    /// and have not failed at it in a row.
    pub(crate) fn peers(&self, stage: &StageRef, node: &NodeId) -> impl Iterator<Item = &'a NodeId> {
        let others =
            self.curators_heard_within(self.limits.ranks_lost_after).filter(|record| record.id != *node);
        let may = others
            .filter(|record| self.seen.cooldowns.get(stage, &record.id, self.limits, self.now).is_none());
        let may: Vec<_> = may.map(|record| &record.id).collect();
        may.into_iter()
    }

    /// Curators that are at work, or may be again: they were heard of, or this controller began, not longer ago.
    fn curators_heard_within(&self, longest: Duration) -> impl Iterator<Item = &'a NodeRecord> {
        let curators = self.known(NodeKind::Curator).iter().filter(|(record, _)| !record.drained);
        let heard = curators.filter(move |(_, view)| {
            !view.is_some_and(|view| view.draining)
                && self.now.since(view.map_or(self.seen.since, |view| view.last_heard)) < longest
        });
        heard.map(|(record, _)| *record)
    }

    /// What the curator has said of the stage if it cannot open its source.
    fn cannot_open(&self, stage: &StageRef, node: &NodeId) -> Option<&'a Cooldown> {
        self.cooldown(stage, node).filter(|cooldown| cooldown.kind == FailureKind::Source)
    }
}

/// Why the stage's pairs will never be made, if no curator can open its source. `needed`: pairs that training starts with.
pub(super) fn nobody_opens(nodes: &DecideContext<'_>, stage: &Stage, needed: u64) -> Option<String> {
    if stage.log.is_sealed() {
        return None;
    }
    let curators = nodes.curators_heard_within(nodes.limits.silent_after);
    let said: Vec<(&NodeId, &Cooldown)> = curators
        .map(|record| Some((&record.id, nodes.cannot_open(&stage.id, &record.id)?)))
        .collect::<Option<_>>()?;
    let since = said.iter().map(|(_, cooldown)| cooldown.since).max()?;
    let works = |unit: &UnitRecord| match &unit.state {
        UnitState::Leased { node, expires_at } => {
            *expires_at > nodes.now && nodes.cannot_open(&stage.id, node).is_none()
        }
        UnitState::Free { .. } | UnitState::Done(_) => false,
    };
    if stage.log.open_units().any(works) {
        return None;
    }
    let long_ago = |at| nodes.now.since(at) >= nodes.limits.source_lost_after;
    if stage.log.has_made() && !long_ago(since) {
        return None;
    }
    match stage.active_attempt() {
        Some(attempt) => {
            let stepped = nodes.gang(&attempt.attempt).map_or(nodes.seen.since, |gang| gang.stepped_at);
            if !long_ago(stepped.max(nodes.seen.began(&attempt.attempt))) {
                return None;
            }
        }
        // Training can begin with what is there.
        None if stage.log.committed() >= needed => return None,
        None => {}
    }
    Some(format!("stage {} cannot be made: {}", stage.id.stage, told(&said)?))
}

/// What the stage waits for, if every curator that could be given work is in a cooldown for it.
pub(crate) fn wait(nodes: &DecideContext<'_>, stage: &Stage) -> Option<PendingReason> {
    let curators = nodes.open_to_work(NodeKind::Curator);
    let said: Vec<(&NodeId, &Cooldown)> = curators
        .map(|(record, _)| Some((&record.id, nodes.cannot_open(&stage.id, &record.id)?)))
        .collect::<Option<_>>()?;
    Some(PendingReason::Source { stage: stage.id.stage.to_string(), told: told(&said)? })
}

/// `c-1 cannot open its source: …`, or of several `c-1, c-2 and 3 more cannot open …`; `None` of none.
fn told(said: &[(&NodeId, &Cooldown)]) -> Option<String> {
    let (_, newest) = said.iter().max_by_key(|(_, cooldown)| cooldown.at)?;
    let named: Vec<&str> = said.iter().take(MAX_NAMED).map(|(node, _)| node.as_str()).collect();
    let more = match said.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("{}{more} cannot open its source: {}", named.join(", "), newest.reason))
}
