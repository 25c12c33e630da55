//! Units that are done and will not be asked about one by one any more: what the log needs of each, and what is kept of
//! many together.

use std::collections::BTreeMap;

use crate::histogram::ScoreCounts;
use crate::ids::StageRef;
use crate::object_keys;
use crate::rejection::Rejection;
use crate::unit::{ShardRecord, UnitRecord, UnitResult};

/// Units of a stage whose training is over, from `first_unit` on, without a gap: instead of a record each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRecord {
    pub stage: StageRef,
    pub first_unit: u64,
    pub units: Vec<DoneUnit>,
    /// Shards that do not follow from their unit, by unit.
    pub odd_shards: BTreeMap<u64, ShardRecord>,
    pub sums: UnitSums,
    /// The source has no more after the last of them.
    pub exhausted: bool,
    /// The unit among them that failed last and was given up.
    pub last_failed: Option<UnitRecord>,
}

impl SegmentRecord {
    /// The unit behind its last.
    pub fn end(&self) -> u64 {
        self.first_unit.saturating_add(self.units.len() as u64)
    }

    /// The shard of one of its units; `None` of a unit that is not in it.
    pub fn shard(&self, unit: u64) -> Option<ShardRecord> {
        let done = self.units.get(usize::try_from(unit.checked_sub(self.first_unit)?).ok()?)?;
        Some(self.odd_shards.get(&unit).cloned().unwrap_or_else(|| done.shard(&self.stage, unit)))
    }
}

/// What a log keeps of a unit that is done: as numbers, because there may be a million of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DoneUnit {
    /// Of the lease that it was committed with.
    pub lease_generation: u64,
    pub pairs: u64,
    pub size_bytes: u64,
    /// Of its shard; zeros if it has no pair.
    pub sha256: [u8; 32],
}

impl DoneUnit {
    /// The unit as numbers, and its shard where that does not follow from them.
    pub fn of(record: &UnitRecord, result: &UnitResult) -> (Self, Option<ShardRecord>) {
        let shard = &result.shard;
        let done = Self {
            lease_generation: record.lease_generation,
            pairs: shard.pairs,
            size_bytes: shard.size_bytes,
            sha256: parse_sha256(&shard.sha256).unwrap_or_default(),
        };
        let follows = done.shard(&record.stage, record.unit) == *shard;
        (done, (!follows).then(|| shard.clone()))
    }

    /// Its shard, at the key that its lease had.
    pub fn shard(&self, stage: &StageRef, unit: u64) -> ShardRecord {
        let Self { lease_generation, pairs, size_bytes, sha256 } = self;
        if *pairs == 0 {
            return ShardRecord { size_bytes: *size_bytes, ..ShardRecord::default() };
        }
        ShardRecord {
            path: object_keys::shard(stage.job.as_str(), stage.stage.as_str(), unit, *lease_generation),
            pairs: *pairs,
            size_bytes: *size_bytes,
            sha256: sha256.iter().flat_map(|byte| [hex_digit(byte >> 4), hex_digit(byte & 15)]).collect(),
        }
    }
}

fn hex_digit(half: u8) -> char {
    char::from_digit(half.into(), 16).unwrap_or('0')
}

/// 64 lower-case hexadecimal digits.
fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16)?.try_into().ok()).collect::<Option<_>>()?;
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().fold(0, |byte, digit| byte << 4 | digit);
    }
    Some(bytes)
}

/// What is asked of units together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitSums {
    /// Candidates rejected, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Scores of the candidates, accepted or not.
    pub scores: ScoreCounts,
    /// Times that they were given back with an error of their own.
    pub failures: u64,
    /// Leases that ran out.
    pub lost_leases: u64,
    /// Units that were not given up.
    pub made: u64,
}

impl UnitSums {
    /// Counts a unit that is done.
    pub fn count(&mut self, record: &UnitRecord, result: &UnitResult) {
        let given_up = result.rejected.contains_key(Rejection::UnitQuarantined.name());
        add_counts(&mut self.rejected, &result.rejected);
        self.scores.add(&result.scores);
        self.failures = self.failures.saturating_add(record.failures.into());
        self.lost_leases = self.lost_leases.saturating_add(record.lost_leases());
        self.made = self.made.saturating_add(u64::from(!given_up));
    }

    pub fn add(&mut self, other: &Self) {
        add_counts(&mut self.rejected, &other.rejected);
        self.scores.add(&other.scores);
        self.failures = self.failures.saturating_add(other.failures);
        self.lost_leases = self.lost_leases.saturating_add(other.lost_leases);
        self.made = self.made.saturating_add(other.made);
    }

    /// Takes out what is counted elsewhere.
    pub fn subtract(&mut self, other: &Self) {
        for (reason, count) in &other.rejected {
            if let Some(mine) = self.rejected.get_mut(reason) {
                *mine = mine.saturating_sub(*count);
            }
        }
        self.rejected.retain(|_, count| *count > 0);
        self.scores.subtract(&other.scores);
        self.failures = self.failures.saturating_sub(other.failures);
        self.lost_leases = self.lost_leases.saturating_sub(other.lost_leases);
        self.made = self.made.saturating_sub(other.made);
    }
}

fn add_counts(sums: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) {
    for (reason, count) in counts {
        match sums.get_mut(reason) {
            Some(sum) => *sum = sum.saturating_add(*count),
            None => {
                sums.insert(reason.clone(), *count);
            }
        }
    }
}
