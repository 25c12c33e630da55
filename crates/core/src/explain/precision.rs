//! What a job's arithmetic has to do with where it is.

use crate::explain::{Explanation, MAX_NODES, View, room};
use crate::processor::{self, GangKind};
use crate::records::{NodeKind, NodeRecord};
use crate::state::{Job, Stage};
use crate::{precision, records};

/// Nodes that can be given work.
fn open<'a>(view: &View<'a>) -> Vec<&'a NodeRecord> {
    let nodes = view.decide_nodes();
    let of = |kind| nodes.open_to_work(kind).map(|(record, _)| record).collect::<Vec<_>>();
    [of(NodeKind::Trainer), of(NodeKind::Curator)].concat()
}

/// The spec asks for the same bits, and no gang that gives them can be put together.
pub(super) fn without_processor(view: &View<'_>, stage: &Stage, gang: &GangKind) -> Explanation {
    let mut findings = Vec::new();
    if let Some(records::CheckpointRecord { step, .. }) = stage.newest_checkpoint() {
        findings.push(format!("its checkpoint of step {step} was written by {gang}"));
    }
    let trainers = open(view).into_iter().filter(|record| record.kind == NodeKind::Trainer);
    findings
        .extend(processor::kinds(view.state, trainers.map(|record| &record.id)).into_iter().take(MAX_NODES));
    Explanation {
        findings,
        remedies: vec![
            format!("start trainer nodes like those: {gang}"),
            "or cancel it and submit it with spec.reproducible: lenient, which goes on wherever there is room".to_owned(),
        ],
        nodes: room::node_rooms(view, Some(&stage.id)),
        ..Explanation::default()
    }
}

/// Adds what slows the job's arithmetic down, and what changed it.
pub(super) fn add_findings(view: &View<'_>, job: &Job, stage: &Stage, explanation: &mut Explanation) {
    explanation.findings.extend(precision::crawls(&job.record.spec, open(view)));
    explanation.findings.extend(processor::changes(stage).last().map(ToString::to_string));
}
