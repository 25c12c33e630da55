//! Which units hold the pairs that a person wants to see.

use crescendo_core::error::RequestError;
use crescendo_core::ids::StageRef;
use crescendo_core::object_keys;
use crescendo_core::state::ClusterState;
use crescendo_proto::v1;

/// Units that a curator looks through for one answer.
const MOST_SHARDS: usize = 16;
/// The same of those with candidates that were turned down, which are small.
const MOST_SAMPLES: usize = 64;

/// What is to be read; its bounds are checked.
#[derive(Clone, Debug)]
pub struct PairsWanted {
    pub stage: StageRef,
    pub rejected: bool,
    pub from: v1::PairPlace,
    pub filter: Option<v1::PairFilter>,
    pub limit: u32,
    pub picture_pixels: u32,
}

/// What a curator was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairsAsked {
    /// Units that there are.
    pub units: u64,
    /// Units that it looks through; 0 where no curator was asked.
    pub read: usize,
    /// The unit after those.
    pub next_unit: Option<u64>,
}

impl PairsWanted {
    pub fn command(
        &self,
        read_id: String,
        object_store_url: String,
        tars: Vec<v1::PairTar>,
    ) -> v1::ReadStoredPairs {
        let Self { from, filter, limit, picture_pixels, .. } = self.clone();
        let begins = tars.first().is_some_and(|first| first.unit == from.unit);
        let from_number = if begins { from.number } else { 0 };
        v1::ReadStoredPairs { read_id, object_store_url, tars, from_number, filter, limit, picture_pixels }
    }
}

/// The units that are read for one answer.
pub fn tars_of(
    state: &ClusterState,
    wanted: &PairsWanted,
) -> Result<(Vec<v1::PairTar>, PairsAsked), RequestError> {
    let missing = || RequestError::NotFound { what: format!("stage {}", wanted.stage) };
    let log = state.read_log_of(&wanted.stage).ok_or_else(missing)?;
    let (units, from) = (log.units(), wanted.from.unit);
    let mut found: Vec<v1::PairTar> = if wanted.rejected {
        let StageRef { job, stage } = &log.of.id;
        let key = |unit| object_keys::rejected_sample(job.as_str(), stage.as_str(), unit);
        let tar = |unit| v1::PairTar { unit, key: key(unit), ..v1::PairTar::default() };
        (from..units).take(MOST_SAMPLES + 1).map(tar).collect()
    } else {
        let committed = log.committed();
        let shards = log.shards_from(from).filter(|(_, shard, _)| shard.pairs > 0);
        let tar =
            |(unit, shard, first_index): (u64, crescendo_core::records::ShardRecord, u64)| v1::PairTar {
                unit,
                key: shard.path,
                sha256: shard.sha256,
                first_index,
                readable: shard.pairs.min(committed.saturating_sub(first_index)),
            };
        shards.take(MOST_SHARDS + 1).map(tar).collect()
    };
    let most = if wanted.rejected { MOST_SAMPLES } else { MOST_SHARDS };
    let next_unit = found.get(most).map(|tar| tar.unit);
    found.truncate(most);
    let asked = PairsAsked { units, read: found.len(), next_unit };
    Ok((found, asked))
}
