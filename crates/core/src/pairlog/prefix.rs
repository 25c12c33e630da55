//! The readable part of a log: units that are done, without a gap, as numbers.
//!
//! ```text
//!  unit     0            1000           2000    2417
//!           ├─ segment ──┼─ segment ────┼─ own records
//!           └ folded: one record each ──┘└ block: sums of what is not folded yet
//! ```

use std::collections::{BTreeMap, VecDeque};

use imbl::{OrdSet, Vector};

use crate::ids::StageRef;
use crate::segment::{DoneUnit, SegmentRecord, UnitSums};
use crate::unit::{ShardRecord, UnitFailure, UnitRecord, UnitResult};

/// Units of one record where many are folded into one.
pub const SEGMENT_UNITS: u64 = 1000;

/// The units from 0 on that are done. There may be a million, and one more comes while a snapshot is looked at: a clone shares
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    stage: StageRef,
    /// Units of a block, and so of a segment, at most.
    segment_units: u64,
    units: Vector<DoneUnit>,
    /// Shards that do not follow from their unit.
    odd_shards: BTreeMap<u64, ShardRecord>,
    /// Index in the log of each unit's first pair.
    first_indices: Vector<u64>,
    /// Pairs of all of them.
    pub pairs: u64,
    pub sums: UnitSums,
    pub last_failed: Option<UnitRecord>,
    /// Units at the end that gave no pair.
    pub empty_in_a_row: u64,
    /// The source has no more after the last unit.
    pub exhausted: bool,
    /// Units that segments hold.
    folded: u64,
    /// The units behind those.
    blocks: VecDeque<Block>,
    /// Units that segments hold, and whose own records are still in the store.
    superfluous: OrdSet<u64>,
}

/// Units in a row that go into one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Block {
    first: u64,
    units: u64,
    sums: UnitSums,
    last_failed: Option<UnitRecord>,
    /// Something of them cannot be summed, so they keep their records.
    stays: bool,
}

impl Prefix {
    pub fn new(stage: &StageRef, segment_units: u64) -> Self {
        Self {
            stage: stage.clone(),
            segment_units: segment_units.max(1),
            units: Vector::new(),
            odd_shards: BTreeMap::new(),
            first_indices: Vector::new(),
            pairs: 0,
            sums: UnitSums::default(),
            last_failed: None,
            empty_in_a_row: 0,
            exhausted: false,
            folded: 0,
            blocks: VecDeque::new(),
            superfluous: OrdSet::new(),
        }
    }

    /// Its number of units.
    pub fn len(&self) -> u64 {
        self.units.len() as u64
    }

    /// Index of a unit's first pair.
    pub fn first_index(&self, unit: u64) -> Option<u64> {
        self.first_indices.get(usize::try_from(unit).ok()?).copied()
    }

    pub fn done(&self, unit: u64) -> Option<&DoneUnit> {
        self.units.get(usize::try_from(unit).ok()?)
    }

    pub fn shard(&self, unit: u64) -> Option<ShardRecord> {
        let done = self.done(unit)?;
        Some(self.odd_shards.get(&unit).cloned().unwrap_or_else(|| done.shard(&self.stage, unit)))
    }

    /// Units that segments hold.
    pub fn folded(&self) -> u64 {
        self.folded
    }

    /// Takes the next unit.
    pub fn push(&mut self, record: &UnitRecord, result: &UnitResult) {
        let unit = self.len();
        let (done, odd_shard) = DoneUnit::of(record, result);
        self.odd_shards.extend(odd_shard.map(|shard| (unit, shard)));
        self.append(done);
        self.exhausted = result.exhausted;
        self.sums.count(record, result);
        note_failed(&mut self.last_failed, record);
        if self.blocks.back().is_none_or(|block| block.units >= self.segment_units) {
            self.blocks.push_back(Block { first: unit, ..Block::default() });
        }
        if let Some(block) = self.blocks.back_mut() {
            block.units += 1;
            block.sums.count(record, result);
            note_failed(&mut block.last_failed, record);
            block.stays |= !result.scores.is_known();
        }
    }

    fn append(&mut self, done: DoneUnit) {
        self.first_indices.push_back(self.pairs);
        self.pairs = self.pairs.saturating_add(done.pairs);
        self.empty_in_a_row = if done.pairs == 0 { self.empty_in_a_row + 1 } else { 0 };
        self.units.push_back(done);
    }

    /// Takes a segment that begins where the prefix ends; bytes of its shards.
    pub fn join(&mut self, segment: SegmentRecord) -> u64 {
        let end = segment.end();
        let SegmentRecord { units, odd_shards, sums, exhausted, last_failed, .. } = segment;
        let bytes = units.iter().fold(0u64, |sum, unit| sum.saturating_add(unit.size_bytes));
        units.into_iter().for_each(|unit| self.append(unit));
        self.odd_shards.extend(odd_shards);
        self.sums.add(&sums);
        self.exhausted = exhausted;
        if let Some(failed) = &last_failed {
            note_failed(&mut self.last_failed, failed);
        }
        // Behind units that have records of their own they are folded once those are: this one's record is written again then.
        if self.blocks.is_empty() {
            self.folded = end;
        } else {
            let first = segment.first_unit;
            self.blocks.push_back(Block { first, units: end - first, sums, last_failed, stays: false });
        }
        bytes
    }

    /// Whether a segment holds units that are here, and the first that is not folded.
    pub fn can_fold(&self, segment: &SegmentRecord) -> bool {
        segment.first_unit == self.folded && segment.end() > self.folded && segment.end() <= self.len()
    }

    /// Takes note that a segment holds units that are here: their own records are superfluous now.
    pub fn fold(&mut self, segment: &SegmentRecord) {
        let end = segment.end();
        self.superfluous.extend(self.folded..end);
        self.folded = end;
        // What is left of the blocks that it reaches into.
        let mut rest = Block { first: end, ..Block::default() };
        let mut reached = end;
        while let Some(block) = self.blocks.pop_front_if(|block| block.first < end) {
            reached = block.first + block.units;
            rest.sums.add(&block.sums);
            rest.stays |= block.stays;
            rest.last_failed = block.last_failed.or(rest.last_failed);
        }
        if reached > end {
            rest.sums.subtract(&segment.sums);
            self.blocks.push_front(Block { units: reached - end, ..rest });
        }
    }

    /// The next segment to be written, once nobody asks for the units one by one; `None` where all are folded, or a single one
    /// is left.
    pub fn next_segment(&self) -> Option<SegmentRecord> {
        let block = self.blocks.front().filter(|block| block.units > 1 && !block.stays)?;
        let (first, end) = (block.first, block.first + block.units);
        let (skipped, taken) = (usize::try_from(first).ok()?, usize::try_from(block.units).ok()?);
        Some(SegmentRecord {
            stage: self.stage.clone(),
            first_unit: first,
            units: self.units.skip(skipped).into_iter().take(taken).collect(),
            odd_shards: self
                .odd_shards
                .range(first..end)
                .map(|(unit, shard)| (*unit, shard.clone()))
                .collect(),
            sums: block.sums.clone(),
            exhausted: self.exhausted && end == self.len(),
            last_failed: block.last_failed.clone(),
        })
    }

    /// A unit of the prefix has a record of its own in the store.
    pub fn note_record(&mut self, unit: u64) {
        if unit < self.folded {
            self.superfluous.insert(unit);
        }
    }

    /// The record of a unit is gone from the store.
    pub fn forget_record(&mut self, unit: u64) {
        self.superfluous.remove(&unit);
    }

    pub fn superfluous(&self) -> impl Iterator<Item = u64> {
        self.superfluous.iter().copied()
    }
}

/// Keeps the one that failed last, of those that have failed.
fn note_failed(last: &mut Option<UnitRecord>, record: &UnitRecord) {
    let failed =
        |record: &UnitRecord| record.last_failure.as_ref().map(|UnitFailure { at, .. }| (*at, record.unit));
    if failed(record).is_some() && last.as_ref().and_then(failed) <= failed(record) {
        *last = Some(record.clone());
    }
}
