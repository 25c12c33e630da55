//! On which kind of processor a stage is trained, as far as that shows in its numbers: AdamW and exponentials differ in
//! their last bits between instruction sets, and sums between numbers of threads and ranks.

use std::collections::BTreeSet;

pub use crate::arithmetic::{GangKind, GangPart, KindChange, RanOn};
use crate::ids::{Generation, NodeId};
use crate::records::{CheckpointRecord, RankPlacement, StageRecord};
use crate::spec::{JobSpec, Reproducible};
use crate::state::{ClusterState, Stage};

/// Changes of kind that a stage remembers; the oldest of them, but for where it began, are forgotten beyond that.
const MAX_RAN_ON: usize = 32;

/// The kind of a gang that is placed like this.
pub fn of_gang(state: &ClusterState, ranks: &[RankPlacement]) -> GangKind {
    let mut parts: Vec<GangPart> = Vec::new();
    for rank in ranks {
        let (processor, threads) = kind_of(state, &rank.node);
        match parts.last_mut() {
            Some(last) if last.processor == processor && last.threads == threads => last.ranks += 1,
            Some(_) | None => parts.push(GangPart { ranks: 1, processor: processor.to_owned(), threads }),
        }
    }
    GangKind { parts }
}

/// Some of the gang's ranks may run on the node.
pub fn has(gang: &GangKind, state: &ClusterState, node: &NodeId) -> bool {
    gang.parts.iter().any(|part| may_run_on(part, state, node))
}

/// A rank there gives the bits of these.
pub fn may_run_on(part: &GangPart, state: &ClusterState, node: &NodeId) -> bool {
    part.is_known() && kind_of(state, node) == (part.processor.as_str(), part.threads)
}

/// Processor and threads of a rank there.
fn kind_of<'s>(state: &'s ClusterState, node: &NodeId) -> (&'s str, u32) {
    let arithmetic = state.node(node).and_then(|record| record.arithmetic.as_ref());
    arithmetic.map_or(("", 0), |arithmetic| (arithmetic.processor.as_str(), arithmetic.threads))
}

/// The kind that wrote a checkpoint of the stage; `None` if it is not known.
pub fn wrote<'s>(stage: &'s Stage, checkpoint: &CheckpointRecord) -> Option<&'s GangKind> {
    let mut ran_on = stage.record.iter().flat_map(|record| &record.ran_on).rev();
    ran_on.find(|ran| ran.generation <= checkpoint.generation).map(|ran| &ran.gang)
}

/// The kind that the stage's next gang has to be of, if the spec asks for the same bits: that of the checkpoint that it goes on
/// from, its own or, before it has one, that of the stage that it begins with.
pub fn required<'s>(
    spec: &JobSpec,
    state: &'s ClusterState,
    stage: &'s Stage,
    init_from: Option<&CheckpointRecord>,
) -> Option<&'s GangKind> {
    match (spec.reproducible, stage.newest_checkpoint()) {
        (Reproducible::Lenient, _) => None,
        (Reproducible::Strict, Some(own)) => wrote(stage, own),
        (Reproducible::Strict, None) => {
            init_from.and_then(|earlier| wrote(state.stage(&earlier.stage)?, earlier))
        }
    }
}

/// Takes note that the attempt of this generation trains the stage, with a gang of this kind and from this checkpoint on.
/// What came of attempts since that checkpoint is lost, and so is their mark on the stage's numbers. Returns the change
/// of kind, if there is one.
pub fn note(
    record: &mut StageRecord,
    generation: Generation,
    resume_from: Option<&CheckpointRecord>,
    gang: GangKind,
) -> Option<KindChange> {
    record.ran_on.retain(|ran| resume_from.is_some_and(|checkpoint| ran.generation <= checkpoint.generation));
    if record.ran_on.last().is_some_and(|last| last.gang == gang) {
        return None;
    }
    let ran = RanOn { generation, from_step: resume_from.map_or(0, |checkpoint| checkpoint.step), gang };
    let before = record.ran_on.last().map(|last| last.gang.clone());
    record.ran_on.push(ran.clone());
    if record.ran_on.len() > MAX_RAN_ON {
        record.ran_on.remove(1);
    }
    before.map(|before| KindChange { before, since: ran })
}

/// The changes of kind that the stage's numbers went through, oldest first.
pub fn changes(stage: &Stage) -> impl Iterator<Item = KindChange> {
    let pairs = stage.record.iter().flat_map(|record| record.ran_on.iter().zip(record.ran_on.iter().skip(1)));
    pairs.map(|(before, since)| KindChange { before: before.gang.clone(), since: since.clone() })
}

/// The kinds of the nodes that are named, each once.
pub fn kinds<'n>(state: &ClusterState, nodes: impl Iterator<Item = &'n NodeId>) -> BTreeSet<String> {
    nodes
        .map(|node| {
            let (processor, threads) = kind_of(state, node);
            let part = GangPart { ranks: 1, processor: processor.to_owned(), threads };
            format!("node {node} has {part}")
        })
        .collect()
}
