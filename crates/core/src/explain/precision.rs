//! What a job's arithmetic has to do with where it is.

use crate::decide::stage_precision;
use crate::explain::{Explanation, MAX_NODES, View, capacity, silent_among};
use crate::precision;
use crate::processor::{self, GangKind};
use crate::records::{CheckpointRecord, NodeKind, NodeRecord};
use crate::state::{Job, Stage};

/// Nodes that can be given work.
fn open<'a>(view: &View<'a>) -> Vec<&'a NodeRecord> {
    let nodes = view.decide_nodes();
    let of = |kind| nodes.open_to_work(kind).map(|(record, _)| record).collect::<Vec<_>>();
    [of(NodeKind::Trainer), of(NodeKind::Curator)].concat()
}

/// The spec asks for the same bits, and no gang that gives them can be put together.
pub(super) fn without_processor(view: &View<'_>, job: &Job, stage: &Stage, gang: &GangKind) -> Explanation {
    let mut findings = Vec::new();
    let index = job.stage_index(stage.id.stage.as_str());
    let init_from = index.and_then(|index| view.state.init_checkpoint(job, index).ok().flatten());
    if let Some(wrote) = processor::required(&job.record.spec, view.state, stage, init_from)
        && let Some(CheckpointRecord { step, .. }) = stage.newest_checkpoint().or(init_from)
    {
        let whose = if stage.newest_checkpoint().is_some() {
            "its checkpoint"
        } else {
            "the checkpoint that it begins with,"
        };
        findings.push(format!("{whose} of step {step} was written by {wrote}"));
    }
    let trainers = open(view).into_iter().filter(|record| record.kind == NodeKind::Trainer);
    findings
        .extend(processor::kinds(view.state, trainers.map(|record| &record.id)).into_iter().take(MAX_NODES));
    let silent = silent_among(view, NodeKind::Trainer, |record| processor::has(gang, view.state, &record.id));
    let mut remedies = Vec::new();
    if !silent.is_empty() {
        remedies.push(format!("bring back what has that processor: {}", silent.join("; ")));
    }
    remedies.push(format!("start trainer nodes like those: {gang}"));
    remedies.push(
        "or cancel it and submit it with spec.reproducible: lenient, which goes on wherever there is room; a new job trains from \
         its first step"
            .to_owned(),
    );
    Explanation {
        findings,
        remedies,
        nodes: capacity::node_rooms(view, Some(&stage.id)),
        ..Explanation::default()
    }
}

/// Adds what slows the job's arithmetic down, and what changed it.
pub(super) fn add_findings(view: &View<'_>, job: &Job, stage: &Stage, explanation: &mut Explanation) {
    explanation.findings.extend(precision::crawls(&job.record.spec, open(view)));
    if stage_precision::is_open(&view.decide_nodes(), job, stage) {
        explanation.findings.push(
            "spec.model.precision: auto is settled by the trainers, and none was ever here: until then no pairs are made either"
                .to_owned(),
        );
    }
    let trains =
        |record: &NodeRecord| stage.active_attempt().is_some_and(|attempt| attempt.runs_on(&record.id));
    let curates = |record: &NodeRecord| {
        view.seen.nodes.get(&record.id).is_some_and(|seen| seen.curating.contains(&stage.id))
    };
    let at_work = open(view).into_iter().filter(|record| trains(record) || curates(record));
    explanation.findings.extend(precision::crawls_as_chosen(stage, at_work));
    explanation.findings.extend(processor::changes(stage).last().map(|change| change.to_string()));
}
