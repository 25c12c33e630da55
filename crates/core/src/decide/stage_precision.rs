//! What is settled of a stage when the first node is set to work on it, and when a gang is placed.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::decide::passes::Active;
use crate::decide::{Change, DecideContext, PlanDraft};
use crate::ids::StageRef;
use crate::precision::{self, PrecisionChoice};
use crate::processor;
use crate::records::{AttemptRecord, NodeKind, NodeRecord, Record, StageRecord};
use crate::spec::Precision;
use crate::state::{Job, Stage};

/// Each of these stages that a node is about to work on has its record before the command leaves.
pub(super) fn decide_stages(
    nodes: &DecideContext<'_>,
    stages: &BTreeSet<StageRef>,
    active: &Active,
    plan: &mut PlanDraft,
) {
    for id in stages.iter().filter(|id| !nodes.is_halted(&id.job)) {
        let Some(job) = nodes.state.job(&id.job) else { continue };
        let Some(stage) = nodes.state.stage(id) else { continue };
        let before = stage.record.as_ref();
        let placed = active.get(id).filter(|attempt| attempt.attempt.generation > stage.generation());
        let chooses = |record: Option<&StageRecord>| {
            job.record.spec.model.precision == Precision::Auto
                && record.is_none_or(|record| record.precision.is_none())
        };
        // As it is for most.
        if before.is_some() && placed.is_none() && !chooses(before) {
            continue;
        }
        let mut record = before.cloned().unwrap_or_else(|| StageRecord {
            stage: id.clone(),
            precision: None,
            ran_on: Vec::new(),
        });
        if chooses(Some(&record)) {
            let draws = job.stage_index(id.stage.as_str()).and_then(|index| job.stage_spec(index));
            let choice = choose_precision(nodes, draws.is_some_and(|spec| spec.data.source.draws()));
            plan.change(Change::PrecisionChosen { stage: id.clone(), choice: choice.clone() });
            record.precision = Some(choice);
        }
        if let Some(AttemptRecord { attempt, ranks, resume_from, .. }) = placed.map(Arc::as_ref) {
            let gang = processor::of_gang(nodes.state, ranks);
            let change = processor::note(&mut record, attempt.generation, resume_from.as_ref(), gang);
            let told = change.map(|change| Change::KindChanged { attempt: attempt.clone(), change });
            told.into_iter().for_each(|change| plan.change(change));
        }
        if before != Some(&record) {
            plan.write(Record::Stage(record));
        }
    }
}

/// By the trainers, and by the curators too where they draw (`curators_draw`): elsewhere they only encode. A node that has not come
/// back since this controller began counts as it last introduced itself until it has had the time to; and trainers that
/// are out of sight do where no other is there, since the stage will be trained by some.
fn choose_precision(nodes: &DecideContext<'_>, curators_draw: bool) -> PrecisionChoice {
    let asked = |kind: NodeKind| -> Vec<&NodeRecord> {
        let coming_back = nodes.now.since(nodes.seen.since) < nodes.limits.silent_after;
        let known = nodes.known(kind).iter().filter(|(record, _)| !record.drained);
        let asked = known.filter(|(_, view)| match view {
            Some(view) => nodes.is_reachable(view) && !view.draining,
            None => coming_back,
        });
        asked.map(|(record, _)| *record).collect()
    };
    let mut trainers = asked(NodeKind::Trainer);
    if trainers.is_empty() {
        trainers.extend(trainers_known(nodes));
    }
    let curators = if curators_draw { asked(NodeKind::Curator) } else { Vec::new() };
    precision::choose(trainers.into_iter().chain(curators))
}

/// Trainers that have introduced themselves at some time and are not drained.
fn trainers_known<'a>(nodes: &DecideContext<'a>) -> impl Iterator<Item = &'a NodeRecord> {
    let known = nodes.known(NodeKind::Trainer).iter().map(|(record, _)| *record);
    known.filter(|record| !record.drained)
}

/// Whether nobody could say what the stage is to compute in, for good: it says `auto`, and no trainer was ever there.
pub(crate) fn is_open(nodes: &DecideContext<'_>, job: &Job, stage: &Stage) -> bool {
    trainers_known(nodes).next().is_none()
        && job.record.spec.model.precision == Precision::Auto
        && stage.precision_choice().is_none()
}
