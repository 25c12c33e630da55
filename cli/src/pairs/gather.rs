//! Picking pairs out of the object store, spread evenly over the log.

use std::time::Duration;

use crescendo_core::object_keys;
use crescendo_dataset::digest::sha256_hex;
use crescendo_dataset::shard::{StoredPair, read_stored, spread};
use crescendo_proto::v1::{Shard, StageStatus, WatchPairLogRequest};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::connect::{self, Controller};
use crate::failure::Failure;
use crate::show;

/// Limit of one read, and of the wait for the next part of the shard list.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// Shards that accepted pairs are taken from, at most.
const MOST_SHARDS: usize = 24;
/// Units whose rejected candidates are looked at, at most.
const MOST_SAMPLES: usize = 96;

/// An accepted pair or a rejected candidate.
#[derive(Clone, Debug)]
pub struct Found {
    pub unit: u64,
    /// Index in the pair log; none for a rejected one.
    pub index: Option<u64>,
    pub stored: StoredPair,
}

/// The shards of a stage that can be read now, and the pairs that the log has.
pub async fn shards(
    controller: &Controller,
    job: &str,
    stage: &StageStatus,
    within: Duration,
) -> Result<(Vec<Shard>, u64), Failure> {
    let request = WatchPairLogRequest { job_id: job.to_owned(), stage: stage.name.clone(), from_unit: 0 };
    let mut news = controller
        .call(within, |channel| {
            let request = request.clone();
            async move { connect::curation(channel).watch_pair_log(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    let (mut shards, mut committed) = (Vec::new(), 0);
    // The list comes in parts; it is whole when it has what the stage had a moment ago.
    loop {
        let part = tokio::time::timeout(READ_DEADLINE, news.message())
            .await
            .map_err(|_| Failure::other("the controller sends no shard list"))?
            .map_err(|status| controller.failure(&status))?;
        let Some(part) = part else { break };
        shards.extend(part.shards.into_iter().filter(|shard| shard.pairs > 0));
        committed = part.committed;
        if part.sealed || committed >= stage.pairs_committed {
            break;
        }
    }
    Ok((shards, committed))
}

/// At most `most` accepted pairs, evenly spread.
pub async fn accepted(
    objects: &dyn ObjectStore,
    shards: &[Shard],
    committed: u64,
    most: usize,
) -> Result<Vec<Found>, Failure> {
    let total = usize::try_from(committed).unwrap_or(usize::MAX);
    // All of a small log; else from a few shards, several of each, since a shard is read whole.
    let picked: Vec<&Shard> = if most >= total {
        shards.iter().collect()
    } else {
        spread(shards.len(), MOST_SHARDS.min(most)).into_iter().filter_map(|n| shards.get(n)).collect()
    };
    let mut found = Vec::new();
    for (n, record) in picked.iter().enumerate() {
        let share = (most - found.len()).div_ceil(picked.len() - n);
        let readable = record.pairs.min(committed.saturating_sub(record.first_index));
        let bytes = get(objects, &record.path).await?;
        if sha256_hex(&bytes) != record.sha256 {
            return Err(Failure::other(format!(
                "shard {}: its SHA-256 is not the registered one",
                record.path
            )));
        }
        let pairs =
            read_stored(bytes.as_slice()).map_err(Failure::from_error(format!("shard {}", record.path)))?;
        let readable = pairs.len().min(usize::try_from(readable).unwrap_or(usize::MAX));
        for place in spread(readable, share) {
            if let Some(stored) = pairs.get(place) {
                let index = Some(record.first_index + place as u64);
                found.push(Found { unit: record.unit, index, stored: stored.clone() });
            }
        }
    }
    Ok(found)
}

/// At most `most` of the rejected candidates that were kept, evenly spread over the units, of all reasons alike.
pub async fn rejected(
    objects: &dyn ObjectStore,
    job: &str,
    stage: &str,
    most: usize,
) -> Result<Vec<Found>, Failure> {
    let folder = object_store::path::Path::from(object_keys::rejected_samples(job, stage));
    let listing = objects.list(Some(&folder)).map_ok(|object| object.location).try_collect::<Vec<_>>();
    let listed = tokio::time::timeout(READ_DEADLINE, listing)
        .await
        .map_err(|_| Failure::other(format!("{folder} cannot be listed in time")))?;
    let mut tars = listed.map_err(Failure::from_error(format!("list {folder}")))?;
    tars.sort();
    let mut found = Vec::new();
    for n in spread(tars.len(), MOST_SAMPLES) {
        let Some(path) = tars.get(n) else { continue };
        let unit = object_keys::unit_of(path.as_ref()).unwrap_or_default();
        let bytes = get(objects, path.as_ref()).await?;
        match read_stored(bytes.as_slice()) {
            Ok(pairs) => found.extend(pairs.into_iter().map(|stored| Found { unit, index: None, stored })),
            // Nothing rests on a sample: the others are shown.
            Err(reason) => show::errln(format_args!("{path} is passed over: {reason}")),
        }
    }
    Ok(alike(found, most))
}

/// At most `most`, taking turns between the reasons; in the order of reasons.
fn alike(found: Vec<Found>, most: usize) -> Vec<Found> {
    let mut by_reason: std::collections::BTreeMap<String, Vec<Found>> = Default::default();
    for one in found {
        by_reason.entry(one.stored.facts.rejected().to_owned()).or_default().push(one);
    }
    let (mut left, mut groups) = (most, by_reason.len());
    let mut smallest_first: Vec<(String, Vec<Found>)> = by_reason.into_iter().collect();
    smallest_first.sort_by_key(|(_, group)| group.len());
    for (_, group) in &mut smallest_first {
        let kept = spread(group.len(), left / groups.max(1));
        *group = kept.into_iter().filter_map(|n| group.get(n).cloned()).collect();
        left -= group.len();
        groups -= 1;
    }
    smallest_first.sort_by(|a, b| a.0.cmp(&b.0));
    smallest_first.into_iter().flat_map(|(_, group)| group).collect()
}

/// Unit number of `unit-000007.tar`.
async fn get(objects: &dyn ObjectStore, path: &str) -> Result<Vec<u8>, Failure> {
    let location = object_store::path::Path::parse(path).map_err(Failure::from_error(path))?;
    let reading = async { objects.get(&location).await?.bytes().await };
    match tokio::time::timeout(READ_DEADLINE, reading).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(error)) => Err(Failure::other(format!("read {path}: {error}"))),
        Err(_) => Err(Failure::other(format!("read {path}: no answer within {READ_DEADLINE:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_reasons_are_not_crowded_out() {
        let one = |reason: &str, unit| {
            let provenance = serde_json::json!({ "rejected": reason });
            let facts = serde_json::from_value(serde_json::json!({ "prompt": "", "provenance": provenance }))
                .unwrap();
            Found { unit, index: None, stored: StoredPair { facts, target: vec![], references: vec![] } }
        };
        let mut found: Vec<Found> = (0..50).map(|unit| one("common", unit)).collect();
        found.push(one("rare", 50));
        let picked = alike(found, 10);
        assert_eq!(picked.len(), 10);
        assert_eq!(picked.last().map(|found| found.unit), Some(50));
    }
}
