//! Pairs of registered shards: read, verified, and kept decoded as long as there is room.
//!
//! ```text
//!  pair ─▶ kept decoded? ─▶ index of its shard known? ──▶ its own bytes, held to the index
//!              │                     └─ no ─▶ the whole shard, held to the registry; index and pairs are kept
//!              ▼
//!        Arc<Pair>
//! ```
//!
//! The first epoch of a log reads it in order, so a whole shard serves all that follows. Later epochs jump about: once a
//! log is larger than the cache, each pair would cost a shard if it were not for its index.

use crate::metrics::Metrics;
use bytes::Bytes;
use crescendo_dataset::digest::sha256_hex;
use crescendo_dataset::pair::Pair;
use crescendo_dataset::shard::read_shard;
use crescendo_dataset::shard_index::{Indices, ShardIndex};
use crescendo_proto::v1::Shard;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

/// Limit of one read.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// Reads that are decoded at the same time.
const DECODING: usize = 2;
/// Pairs whose place is remembered, about 60 bytes each.
const MAX_INDEXED_PAIRS: usize = 1 << 20;
/// What a kept pair takes beside its pixels, roughly: its prompt, and its places in the maps.
const PAIR_OVERHEAD_BYTES: usize = 1024;
/// A shard that is first asked for this far from its beginning is being read out of order.
const IN_ORDER_PLACES: usize = 32;

/// Why the pairs of a shard cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// What is stored is not what was registered, and never will be.
    #[error("shard {path}: {reason}")]
    Damaged { path: String, reason: String },
    /// It may work later.
    #[error("shard {path}: {reason}")]
    Unreadable { path: String, reason: String },
}

/// A bounded cache of decoded pairs, by shard and place.
#[derive(Debug)]
pub struct ShardCache {
    capacity_bytes: usize,
    kept: Mutex<Kept>,
    indices: Mutex<Indices>,
    /// One whole shard at a time: those who wait find it in the cache, or in its index.
    loading: AsyncMutex<()>,
    decoding: Arc<Semaphore>,
    metrics: Metrics,
}

type Key = (Arc<str>, usize);

#[derive(Debug, Default)]
struct Kept {
    pairs: HashMap<Key, (Arc<Pair>, u64)>,
    /// By time of last use.
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    size_bytes: usize,
}

impl Kept {
    fn find(&mut self, key: &Key) -> Option<Arc<Pair>> {
        let (pair, used) = self.pairs.get_mut(key)?;
        self.uses += 1;
        if let Some(key) = self.by_use.remove(used) {
            self.by_use.insert(self.uses, key);
        }
        *used = self.uses;
        Some(pair.clone())
    }

    fn keep(&mut self, key: Key, pair: Arc<Pair>, capacity_bytes: usize) {
        self.uses += 1;
        self.size_bytes += size_bytes(&pair);
        self.by_use.insert(self.uses, key.clone());
        if let Some((before, used)) = self.pairs.insert(key, (pair, self.uses)) {
            self.size_bytes -= size_bytes(&before);
            self.by_use.remove(&used);
        }
        while self.size_bytes > capacity_bytes && self.pairs.len() > 1 {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some((dropped, _)) = self.pairs.remove(&oldest) {
                self.size_bytes -= size_bytes(&dropped);
            }
        }
    }
}

impl ShardCache {
    /// Keeps decoded pairs up to `capacity_bytes`, and always the last one.
    pub fn new(capacity_bytes: usize, metrics: Metrics) -> ShardCache {
        ShardCache {
            capacity_bytes,
            kept: Mutex::default(),
            indices: Mutex::new(Indices::new(MAX_INDEXED_PAIRS)),
            loading: AsyncMutex::default(),
            decoding: Arc::new(Semaphore::new(DECODING)),
            metrics,
        }
    }

    /// The pair at `place` of a registered shard; read and verified if it is not in the cache.
    pub async fn pair(
        &self,
        objects: &dyn ObjectStore,
        shard: &Shard,
        place: usize,
    ) -> Result<Arc<Pair>, LoadError> {
        let key: Key = (shard.path.as_str().into(), place);
        if let Some(pair) = self.find(&key) {
            return Ok(pair);
        }
        let index = match self.index(&shard.path) {
            Some(index) => index,
            None => {
                let _one_at_a_time = self.loading.lock().await;
                if let Some(pair) = self.find(&key) {
                    return Ok(pair);
                }
                match self.index(&shard.path) {
                    Some(index) => index,
                    None => return self.counted(self.load_shard(objects, shard, place).await),
                }
            }
        };
        let loaded = self.counted(self.load_pair(objects, shard, place, index).await)?;
        self.keep(key, &loaded);
        Ok(loaded)
    }

    fn counted<T>(&self, loaded: Result<T, LoadError>) -> Result<T, LoadError> {
        if let Err(LoadError::Damaged { .. }) = &loaded {
            self.metrics.shards_damaged.inc();
        }
        loaded
    }

    /// Reads the whole shard, verifies it, remembers where its pairs are, and keeps what fits of those that follow.
    async fn load_shard(
        &self,
        objects: &dyn ObjectStore,
        shard: &Shard,
        place: usize,
    ) -> Result<Arc<Pair>, LoadError> {
        let failed = Failed(shard);
        let location = failed.location()?;
        let reading = async { objects.get(&location).await?.bytes().await };
        let bytes = failed.read(reading).await?;
        self.metrics.shards_loaded.inc();
        let (record, room_bytes) = (shard.clone(), self.capacity_bytes / 2);
        let (index, pairs) =
            self.decoded(failed, move || verified_shard(&record, &bytes, place, room_bytes)).await?;
        let path: Arc<str> = shard.path.as_str().into();
        self.indices.lock().unwrap_or_else(PoisonError::into_inner).keep(&path, Arc::new(index));
        let mut wanted = None;
        // The wanted pair last, so that it is kept whatever goes.
        for (place, pair) in pairs.into_iter().rev() {
            let pair = Arc::new(pair);
            self.keep((path.clone(), place), &pair);
            wanted = Some(pair);
        }
        wanted.ok_or_else(|| failed.damaged(format!("pair {place} is not in the shard")))
    }

    /// Reads the bytes of one pair.
    async fn load_pair(
        &self,
        objects: &dyn ObjectStore,
        shard: &Shard,
        place: usize,
        index: Arc<ShardIndex>,
    ) -> Result<Arc<Pair>, LoadError> {
        let failed = Failed(shard);
        let location = failed.location()?;
        let absent = || failed.damaged(format!("pair {place} is not in the shard"));
        let range = index.range(place).ok_or_else(absent)?;
        let bytes = failed.read(objects.get_range(&location, range)).await?;
        self.metrics.pairs_loaded.inc();
        let one = move || index.verified(place, &bytes).map_err(|reason| format!("pair {place}: {reason}"));
        self.decoded(failed, one).await.map(lean).map(Arc::new)
    }

    /// Does `work` off the async threads, with few others.
    async fn decoded<T: Send + 'static>(
        &self,
        failed: Failed<'_>,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, LoadError> {
        let permit = self.decoding.clone().acquire_owned().await;
        let permit = permit.map_err(|e| failed.unreadable(e.to_string()))?;
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        let done = working.await.map_err(|e| failed.unreadable(e.to_string()))?;
        done.map_err(|reason| failed.damaged(reason))
    }

    fn index(&self, path: &str) -> Option<Arc<ShardIndex>> {
        self.indices.lock().unwrap_or_else(PoisonError::into_inner).get(path)
    }

    fn find(&self, key: &Key) -> Option<Arc<Pair>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).find(key)
    }

    fn keep(&self, key: Key, pair: &Arc<Pair>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.keep(key, pair.clone(), self.capacity_bytes);
    }
}

/// Failures of a shard.
#[derive(Clone, Copy)]
struct Failed<'a>(&'a Shard);

impl Failed<'_> {
    fn damaged(self, reason: String) -> LoadError {
        LoadError::Damaged { path: self.0.path.clone(), reason }
    }

    fn unreadable(self, reason: String) -> LoadError {
        LoadError::Unreadable { path: self.0.path.clone(), reason }
    }

    fn location(self) -> Result<object_store::path::Path, LoadError> {
        object_store::path::Path::parse(&self.0.path).map_err(|e| self.damaged(e.to_string()))
    }

    async fn read(
        self,
        reading: impl Future<Output = object_store::Result<Bytes>>,
    ) -> Result<Bytes, LoadError> {
        match tokio::time::timeout(READ_DEADLINE, reading).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(object_store::Error::NotFound { .. })) => {
                Err(self.damaged("it is not in the object store".into()))
            }
            Ok(Err(error)) => Err(self.unreadable(error.to_string())),
            Err(_) => Err(self.unreadable(format!("no answer within {READ_DEADLINE:?}"))),
        }
    }
}

fn size_bytes(pair: &Pair) -> usize {
    let references: usize = pair.references.iter().map(|reference| reference.as_raw().len()).sum();
    PAIR_OVERHEAD_BYTES + pair.target.as_raw().len() + references
}

/// Without what is only of use to people: it may be larger than small pictures.
fn lean(mut pair: Pair) -> Pair {
    pair.provenance = serde_json::Value::Null;
    pair
}

/// A shard's index after comparing it with its record, and its pairs from `place` on: as many as have room, or that one
/// alone if the shard is not being read in order.
fn verified_shard(
    record: &Shard,
    bytes: &[u8],
    place: usize,
    room_bytes: usize,
) -> Result<(ShardIndex, Vec<(usize, Pair)>), String> {
    if bytes.len() as u64 != record.size_bytes {
        return Err(format!("it has {} bytes, {} are registered", bytes.len(), record.size_bytes));
    }
    if sha256_hex(bytes) != record.sha256 {
        return Err("its SHA-256 is not the registered one".to_owned());
    }
    let index = ShardIndex::of(bytes).map_err(|e| e.to_string())?;
    if index.len() as u64 != record.pairs {
        return Err(format!("it has {} pairs, {} are registered", index.len(), record.pairs));
    }
    let last = if place < IN_ORDER_PLACES { index.len() } else { (place + 1).min(index.len()) };
    let (mut pairs, mut used_bytes) = (Vec::new(), 0);
    for place in place..last {
        let range = index.range(place).unwrap_or_default();
        let content = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let content = content.and_then(|(start, end)| bytes.get(start..end)).unwrap_or_default();
        let pair = read_shard(content).map_err(|e| e.to_string())?.pop();
        let pair = lean(pair.ok_or_else(|| format!("pair {place} cannot be found"))?);
        used_bytes += size_bytes(&pair);
        if !pairs.is_empty() && used_bytes > room_bytes {
            break;
        }
        pairs.push((place, pair));
    }
    Ok((index, pairs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_dataset::shard::ShardWriter;
    use image::RgbImage;
    use object_store::memory::InMemory;

    /// Decoded bytes of a pair of the tests.
    const PAIR_BYTES: usize = 8 * 8 * 3 + PAIR_OVERHEAD_BYTES;

    async fn stored(objects: &InMemory, path: &str, pairs: u32) -> Shard {
        let mut writer = ShardWriter::default();
        for n in 0..pairs {
            let pair = Pair {
                target: RgbImage::new(8, 8),
                references: vec![],
                prompt: format!("{path} {n}"),
                reference_words: vec![],
                scores: Default::default(),
                provenance: serde_json::Value::Null,
            };
            writer.push(&pair).expect("write a pair");
        }
        let shard = writer.finish().expect("close");
        let record = Shard {
            path: path.into(),
            pairs: shard.pairs,
            size_bytes: shard.bytes.len() as u64,
            sha256: shard.sha256,
            ..Shard::default()
        };
        objects.put(&path.into(), shard.bytes.into()).await.expect("put");
        record
    }

    fn cache(capacity_bytes: usize) -> ShardCache {
        ShardCache::new(capacity_bytes, Metrics::register(&prometheus::Registry::new()).expect("register"))
    }

    #[tokio::test]
    async fn a_shard_is_read_whole_once_and_then_pair_by_pair() {
        let objects = InMemory::new();
        let cache = cache(4 * PAIR_BYTES);
        let shards = [stored(&objects, "a", 6).await, stored(&objects, "b", 6).await];
        // Shard, place; whole shards and single pairs read by then.
        for (shard, place, whole, single) in [
            (0, 0, 1, 0),
            // Half of the capacity is filled ahead.
            (0, 1, 1, 0),
            (0, 2, 1, 1),
            (0, 2, 1, 1),
            (1, 5, 2, 1),
            (0, 5, 2, 2),
            // Still kept; then what was used longest ago is not.
            (0, 2, 2, 2),
            (0, 0, 2, 3),
        ] {
            let pair = cache.pair(&objects, &shards[shard], place).await.expect("load");
            assert_eq!(pair.prompt, format!("{} {place}", ["a", "b"][shard]));
            let read = (cache.metrics.shards_loaded.get(), cache.metrics.pairs_loaded.get());
            assert_eq!(read, (whole, single), "at pair {place} of shard {shard}");
        }
        assert!(cache.pair(&objects, &shards[0], 6).await.is_err());
    }

    #[tokio::test]
    async fn a_jump_into_a_shard_decodes_one_pair() {
        let objects = InMemory::new();
        let cache = cache(1 << 20);
        let shard = stored(&objects, "a", 40).await;
        cache.pair(&objects, &shard, 35).await.expect("load");
        assert_eq!(cache.kept.lock().expect("unpoisoned").pairs.len(), 1);
        cache.pair(&objects, &shard, 36).await.expect("load");
        assert_eq!((cache.metrics.shards_loaded.get(), cache.metrics.pairs_loaded.get()), (1, 1));
    }

    #[tokio::test]
    async fn what_is_kept_stays_within_the_capacity() {
        let objects = InMemory::new();
        let cache = cache(10 * PAIR_BYTES);
        let shards = [stored(&objects, "a", 30).await, stored(&objects, "b", 30).await];
        for n in 0..200 {
            cache.pair(&objects, &shards[n % 2], n * 7 % 30).await.expect("load");
            let kept = cache.kept.lock().expect("unpoisoned");
            assert!(kept.size_bytes <= 10 * PAIR_BYTES);
            assert_eq!(
                (kept.pairs.len() * PAIR_BYTES, kept.by_use.len()),
                (kept.size_bytes, kept.pairs.len())
            );
        }
        assert_eq!(cache.metrics.shards_loaded.get(), 2);
    }

    #[tokio::test]
    async fn damage_is_told_from_what_may_pass() {
        let objects = InMemory::new();
        let cache = cache(1 << 20);
        let record = stored(&objects, "a", 2).await;
        let whole = objects.get(&"a".into()).await.expect("get").bytes().await.expect("read");
        let mut flipped = whole.to_vec();
        flipped[600] ^= 1;
        for (content, says) in [
            (whole.slice(..whole.len() / 2), "bytes, "),
            (Bytes::from(flipped.clone()), "SHA-256"),
            (Bytes::new(), "0 bytes"),
        ] {
            objects.put(&"a".into(), content.into()).await.expect("put");
            let error = cache.pair(&objects, &record, 0).await.expect_err("it is damaged");
            assert!(matches!(error, LoadError::Damaged { .. }));
            assert!(error.to_string().contains(says) && error.to_string().contains("shard a"), "{error}");
        }
        objects.delete(&"a".into()).await.expect("delete");
        let error = cache.pair(&objects, &record, 0).await.expect_err("it is gone");
        assert!(error.to_string().contains("not in the object store"), "{error}");
        assert_eq!(cache.metrics.shards_damaged.get(), 4);
    }

    #[tokio::test]
    async fn damage_after_the_first_read_is_seen_too() {
        let objects = InMemory::new();
        // Room for one pair.
        let cache = cache(PAIR_BYTES);
        let record = stored(&objects, "a", 3).await;
        cache.pair(&objects, &record, 0).await.expect("load");
        let mut spoilt = objects.get(&"a".into()).await.expect("get").bytes().await.expect("read").to_vec();
        let second = cache.index("a").expect("known").range(1).expect("there").start as usize;
        spoilt[second + 600] ^= 1;
        objects.put(&"a".into(), spoilt.into()).await.expect("put");
        let error = cache.pair(&objects, &record, 1).await.expect_err("it is damaged");
        assert!(
            matches!(&error, LoadError::Damaged { .. }) && error.to_string().contains("pair 1"),
            "{error}"
        );
        assert_eq!(cache.pair(&objects, &record, 2).await.expect("another pair").prompt, "a 2");
    }
}
