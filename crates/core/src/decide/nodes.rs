//! The difference between what each node does and what it should do.

use std::sync::Arc;

use crate::decide::passes::Decided;
use crate::decide::{Change, Command, DecideContext, PairsFrom, PlanDraft, Send};
use crate::ids::{AttemptRef, StageRef};
use crate::observed::{NodeReport, NodeView};
use crate::records::{AttemptRecord, NodeKind, NodeRecord, Record};

/// Stages that a curator is assigned at once at most, and that are taken from it; the rest follow with the next decision, since
/// commands wait in a queue that has a bound.
const MOST_ASSIGNED: usize = 128;

/// A trainer whose GPU has failed, or on which job after job fails and on it alone, gets no new work, as long as another is open
/// to it.
pub(super) fn decide_cordons(nodes: &DecideContext<'_>, plan: &mut PlanDraft) {
    let mut open: Vec<&NodeRecord> =
        nodes.open_to_work(NodeKind::Trainer).map(|(record, _)| record).collect();
    let of_device = |record: &NodeRecord| {
        let view = nodes.view(&record.id)?;
        // Whoever has lifted the cordon for it knows of it.
        view.health.device_fault.clone().filter(|_| view.health.device_fault != view.forgiven_fault)
    };
    let bad: Vec<(&NodeRecord, String)> = open
        .iter()
        .filter_map(|record| {
            let of_jobs = || nodes.seen.failures.cordon_reason(&record.id, nodes.limits, nodes.now);
            Some((*record, of_device(record).or_else(of_jobs)?))
        })
        .collect();
    for (record, reason) in bad {
        if open.len() < 2 {
            return;
        }
        open.retain(|other| other.id != record.id);
        plan.change(Change::NodeCordoned { node: record.id.clone(), reason: reason.clone() });
        let record = NodeRecord { cordon: Some(reason), ..record.clone() };
        plan.write(Record::Node(record));
    }
}

/// What a trainer whose session is open is told. `gangs`: the active attempts with ranks on it, by stage; `served_at`: addresses of
/// the curators that serve a stage.
pub(super) fn trainer_sends<'a>(
    nodes: &DecideContext<'_>,
    (record, view): (&NodeRecord, &NodeView),
    decided: &Decided,
    gangs: &[Arc<AttemptRecord>],
    served_at: impl Fn(&StageRef) -> Vec<&'a str>,
    plan: &mut PlanDraft,
) {
    let mut send = |command| plan.sends.push(Send { node: record.id.clone(), command });
    let active = &decided.active;
    for running in &view.running {
        let wanted = active.get(&running.stage_ref()).filter(|attempt| attempt.attempt == *running);
        let needless = wanted.is_none_or(|attempt| !attempt.runs_on(&record.id));
        // Of a job that is halted it is not known what is wanted.
        let needless = needless && !nodes.is_halted(&running.job);
        if needless && !view.stops_sent.contains_key(running) && !is_finishing(nodes, running) {
            let newer = active.get(&running.stage_ref()).map(|attempt| attempt.attempt.generation);
            let hang = nodes.gang(running).and_then(|gang| gang.hang.as_ref());
            let reason = match (hang, newer) {
                (Some(hang), _) => hang.to_string(),
                (None, Some(generation)) => format!("generation {generation} runs instead"),
                (None, None) => "it is not wanted any more".to_owned(),
            };
            send(Command::StopAttempt(running.clone(), reason));
        }
    }
    for attempt in gangs {
        let stage = attempt.attempt.stage_ref();
        let curators = served_at(&stage);
        let marks = nodes.state.read_log_of(&stage).map_or(0, |log| log.marks_version());
        let pairs_from =
            || PairsFrom { curators: curators.iter().map(|address| (*address).to_owned()).collect(), marks };
        let leaves = decided.leaving.get(&stage).cloned();
        let leaves = leaves.or_else(|| record.drained.then(|| format!("node {} is drained", record.id)));
        let drain = leaves
            .filter(|_| !view.drains_sent.contains(&attempt.attempt))
            .map(|why| Command::DrainAttempt(attempt.attempt.clone(), why));
        if view.running.contains(&attempt.attempt) {
            drain.into_iter().for_each(&mut send);
            rescue(nodes, record, view, attempt).into_iter().for_each(&mut send);
            // With no curator in sight the ranks keep the addresses that they have.
            let sent = view.curators_sent.get(&attempt.attempt);
            if !curators.is_empty()
                && sent.is_none_or(|sent| sent.marks != marks || sent.curators != curators)
            {
                send(Command::UpdateCurators(attempt.attempt.clone(), pairs_from()));
            }
            continue;
        }
        let report = nodes.gang(&attempt.attempt).and_then(|gang| gang.nodes.get(&record.id));
        let over = match report {
            Some(
                NodeReport::Succeeded
                | NodeReport::Failed { .. }
                | NodeReport::Stopped
                | NodeReport::Drained { .. },
            ) => true,
            Some(NodeReport::Starting | NodeReport::Running) | None => false,
        };
        if !over {
            send(Command::StartAttempt(attempt.attempt.clone(), pairs_from()));
            // The gang is placed here and cannot be handed over before it has come together.
            drain.into_iter().for_each(&mut send);
        }
    }
}

/// The ranks on a node that is in sight wait for such as are lost: they are told so, once.
fn rescue(
    nodes: &DecideContext<'_>,
    record: &NodeRecord,
    view: &NodeView,
    attempt: &AttemptRecord,
) -> Option<Command> {
    let lost = &nodes.gang(&attempt.attempt)?.lost_nodes;
    let told = lost.is_empty() || lost.contains(&record.id) || view.rescues_sent.contains(&attempt.attempt);
    (!told).then(|| Command::RescueAttempt(attempt.attempt.clone(), lost.clone()))
}

/// Its stage has just got its final checkpoint from it: the ranks end by themselves.
fn is_finishing(nodes: &DecideContext<'_>, running: &AttemptRef) -> bool {
    let Some(stage) = nodes.state.stage(&running.stage_ref()) else { return false };
    let Some(last) = stage.final_checkpoint() else { return false };
    last.generation == running.generation
        && !nodes.has_passed(nodes.seen.finished(running), nodes.limits.finish_within)
}

/// What a curator that may be given work is told, which is to work on `wanted` or serve it; in order.
pub(super) fn curator_sends(
    nodes: &DecideContext<'_>,
    record: &NodeRecord,
    view: &NodeView,
    wanted: &[&StageRef],
    plan: &mut PlanDraft,
) {
    let mut send = |command| plan.sends.push(Send { node: record.id.clone(), command });
    // Most of the time they are the same.
    if view.curating.iter().eq(wanted.iter().copied()) {
        return;
    }
    let old = view.curating.iter().filter(|stage| wanted.binary_search(stage).is_err());
    for stage in old.take(MOST_ASSIGNED) {
        send(Command::ReleaseCuration(stage.clone(), "the stage needs this curator no more".to_owned()));
    }
    // One that has just refused a stage is asked again after a while.
    let asked = |stage: &&StageRef| nodes.refusal(stage, &record.id).is_none();
    let new = wanted.iter().copied().filter(|stage| !view.curating.contains(*stage)).filter(asked);
    for stage in new.take(MOST_ASSIGNED) {
        send(Command::AssignCuration(stage.clone()));
    }
}

/// One that has gone quiet, or is about to leave, keeps what it has; one that was drained does until others can do it.
pub(super) fn released(record: &NodeRecord, view: &NodeView, others: bool, plan: &mut PlanDraft) {
    if record.drained && !view.draining && others {
        for stage in view.curating.iter().take(MOST_ASSIGNED) {
            let command = Command::ReleaseCuration(stage.clone(), "the node is drained".to_owned());
            plan.sends.push(Send { node: record.id.clone(), command });
        }
    }
}
