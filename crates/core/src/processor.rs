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
        let (processor, threads) = kind_of(state, node);
        self.parts
            .iter()
            .any(|part| part.is_known() && part.processor == processor && part.threads == threads)
    }
}

impl GangPart {
    fn is_known(&self) -> bool {
        !self.processor.is_empty()
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

impl fmt::Display for RanOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "resumed on another kind of processor at step {}, bits may differ: {}",
            self.from_step, self.gang
        )
    }
}

/// The kind that wrote a checkpoint of the stage; `None` if it is not known.
pub fn wrote<'s>(stage: &'s Stage, checkpoint: &CheckpointRecord) -> Option<&'s GangKind> {
    let mut ran_on = stage.record.iter().flat_map(|record| &record.ran_on).rev();
    ran_on.find(|ran| ran.generation <= checkpoint.generation).map(|ran| &ran.gang)
}

/// The kind that the stage's next gang has to be of: that of its checkpoint, if the spec asks for the same bits.
pub fn required<'s>(spec: &JobSpec, stage: &'s Stage) -> Option<&'s GangKind> {
    match spec.reproducible {
        Reproducible::Lenient => None,
        Reproducible::Strict => wrote(stage, stage.newest_checkpoint()?),
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
) -> Option<RanOn> {
    record.ran_on.retain(|ran| resume_from.is_some_and(|checkpoint| ran.generation <= checkpoint.generation));
    if record.ran_on.last().is_some_and(|last| last.gang == gang) {
        return None;
    }
    let ran = RanOn { generation, from_step: resume_from.map_or(0, |checkpoint| checkpoint.step), gang };
    record.ran_on.push(ran.clone());
    if record.ran_on.len() > MAX_RAN_ON {
        record.ran_on.remove(1);
    }
    (record.ran_on.len() > 1).then_some(ran)
}

/// The changes of kind that the stage's numbers went through, oldest first.
pub fn changes(stage: &Stage) -> impl Iterator<Item = &RanOn> {
    stage.record.iter().flat_map(|record| record.ran_on.iter().skip(1))
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
