//! On which kind of processor a stage is trained, as far as that shows in its numbers: AdamW and exponentials differ in
//! their last bits between instruction sets, and sums between numbers of threads and ranks.

use std::collections::BTreeSet;
use std::fmt;

use crate::ids::{Generation, NodeId};
use crate::records::{CheckpointRecord, RankPlacement, StageRecord};
use crate::spec::{JobSpec, Reproducible};
use crate::state::{ClusterState, Stage};

/// Changes of kind that a stage remembers; the oldest of them, but for where it began, are forgotten beyond that.
const MAX_RAN_ON: usize = 32;

/// What the last bits of a gang's results depend on: the same kind gives the same bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GangKind {
    /// By rank; ranks in a row that are alike are one.
    pub parts: Vec<GangPart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GangPart {
    pub ranks: u32,
    /// Empty if its node has not said.
    pub processor: String,
    /// Of one rank.
    pub threads: u32,
}

/// A stage was trained by gangs of this kind from a generation on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RanOn {
    pub generation: Generation,
    /// Step of the checkpoint that it went on from; 0 if it began the stage.
    pub from_step: u64,
    pub gang: GangKind,
}

impl GangKind {
    /// The kind of a gang that is placed like this.
    pub fn of(state: &ClusterState, ranks: &[RankPlacement]) -> Self {
        let mut parts: Vec<GangPart> = Vec::new();
        for rank in ranks {
            let (processor, threads) = kind_of(state, &rank.node);
            match parts.last_mut() {
                Some(last) if last.processor == processor && last.threads == threads => last.ranks += 1,
                Some(_) | None => parts.push(GangPart { ranks: 1, processor: processor.to_owned(), threads }),
            }
        }
        Self { parts }
    }

    pub fn ranks(&self) -> u32 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.ranks))
    }

    /// Some of its ranks may run on the node.
    pub fn has(&self, state: &ClusterState, node: &NodeId) -> bool {
        self.parts.iter().any(|part| part.may_run_on(state, node))
    }

    /// Its ranks by kind alone, wherever they stand in it; in the order in which the kinds come first.
    pub fn by_kind(&self) -> Vec<GangPart> {
        let mut kinds: Vec<GangPart> = Vec::new();
        for part in &self.parts {
            let alike =
                |known: &&mut GangPart| (&known.processor, known.threads) == (&part.processor, part.threads);
            match kinds.iter_mut().find(alike) {
                Some(known) => known.ranks = known.ranks.saturating_add(part.ranks),
                None => kinds.push(part.clone()),
            }
        }
        kinds
    }
}

impl GangPart {
    fn is_known(&self) -> bool {
        !self.processor.is_empty()
    }

    /// A rank there gives the bits of these.
    pub fn may_run_on(&self, state: &ClusterState, node: &NodeId) -> bool {
        self.is_known() && kind_of(state, node) == (self.processor.as_str(), self.threads)
    }
}

/// Processor and threads of a rank there.
fn kind_of<'s>(state: &'s ClusterState, node: &NodeId) -> (&'s str, u32) {
    let arithmetic = state.node(node).and_then(|record| record.arithmetic.as_ref());
    arithmetic.map_or(("", 0), |arithmetic| (arithmetic.processor.as_str(), arithmetic.threads))
}

impl fmt::Display for GangKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                f.write_str(" and ")?;
            }
            part.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for GangPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: u32| if n == 1 { "" } else { "s" };
        write!(f, "{} rank{} ", self.ranks, plural(self.ranks))?;
        if self.threads > 0 {
            write!(f, "of {} thread{} ", self.threads, plural(self.threads))?;
        }
        write!(f, "on {}", if self.is_known() { &self.processor } else { "an unknown processor" })
    }
}

/// A stage went on with gangs of another kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindChange {
    pub before: GangKind,
    pub since: RanOn,
}

impl fmt::Display for KindChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RanOn { from_step, gang, .. } = &self.since;
        write!(f, "resumed at step {from_step} on {gang}, before on {}: last bits may differ", self.before)
    }
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
