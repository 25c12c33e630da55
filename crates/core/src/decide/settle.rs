//! What is settled of a stage when the first node is set to work on it, and when a gang is placed.

use std::collections::BTreeSet;

use crate::decide::curation::Curation;
use crate::decide::nodes::Active;
use crate::decide::{Change, Nodes, Plan};
use crate::ids::StageRef;
use crate::precision::{self, Settled};
use crate::processor::{self, GangKind};
use crate::records::{AttemptRecord, NodeKind, NodeRecord, Record, StageRecord, Write};
use crate::spec::Precision;

/// Every stage that a node is about to work on has its record before the command leaves.
pub(super) fn decide_stages(nodes: &Nodes<'_>, curation: &Curation, active: &Active, plan: &mut Plan) {
    let curated = curation.wanted.values().flatten();
    let stages: BTreeSet<&StageRef> = curated.chain(active.keys()).collect();
    for id in stages {
        let Some(job) = nodes.state.job(&id.job) else { continue };
        let Some(stage) = nodes.state.stage(id) else { continue };
        let before = stage.record.as_ref();
        let mut record = before.cloned().unwrap_or_else(|| StageRecord {
            stage: id.clone(),
            precision: None,
            ran_on: Vec::new(),
        });
        if job.record.spec.model.precision == Precision::Auto && record.precision.is_none() {
            let settled = settle(nodes);
            plan.changes.push(Change::PrecisionSettled { stage: id.clone(), settled: settled.clone() });
            record.precision = Some(settled);
        }
        let placed = active.get(id).filter(|attempt| attempt.attempt.generation > stage.generation());
        if let Some(AttemptRecord { attempt, ranks, resume_from, .. }) = placed {
            let gang = GangKind::of(nodes.state, ranks);
            let ran = processor::note(&mut record, attempt.generation, resume_from.as_ref(), gang);
            plan.changes.extend(ran.map(|ran| Change::KindChanged { attempt: attempt.clone(), ran }));
        }
        if before != Some(&record) {
            plan.writes.push(Write::Put(Record::Stage(record)));
        }
    }
}

/// By the nodes that can be given work; trainers that are out of sight count as they last introduced themselves where no
/// other is there, since the stage will be trained by some.
fn settle(nodes: &Nodes<'_>) -> Settled {
    let mut asked: Vec<&NodeRecord> =
        nodes.open_to_work(NodeKind::Trainer).map(|(record, _)| record).collect();
    if asked.is_empty() {
        asked
            .extend(nodes.state.nodes().filter(|record| record.kind == NodeKind::Trainer && !record.drained));
    }
    asked.extend(nodes.open_to_work(NodeKind::Curator).map(|(record, _)| record));
    precision::settle(asked)
}
