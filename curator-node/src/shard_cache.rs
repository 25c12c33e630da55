//! Shards that were read lately, decoded, so that all ranks and all pairs of a shard share one read.

use crate::metrics::Metrics;
use crate::pair::Pair;
use crate::shard::{read_shard, sha256_hex};
use crescendo_proto::v1::Shard;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, Semaphore};

/// Limit of one read.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// Shards that are decoded at the same time.
const DECODING: usize = 2;

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

/// A bounded cache of decoded shards, by path.
#[derive(Debug)]
pub struct ShardCache {
    capacity_bytes: usize,
    kept: Mutex<Kept>,
    /// One load at a time: those who wait find it in the cache.
    loading: AsyncMutex<()>,
    decoding: Arc<Semaphore>,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Kept {
    /// Least recently used first.
    shards: VecDeque<(String, Arc<Vec<Pair>>, usize)>,
    size_bytes: usize,
}

impl ShardCache {
    /// Keeps shards up to `capacity_bytes` of decoded pixels, and always the last one.
    pub fn new(capacity_bytes: usize, metrics: Metrics) -> ShardCache {
        ShardCache {
            capacity_bytes,
            kept: Mutex::default(),
            loading: AsyncMutex::default(),
            decoding: Arc::new(Semaphore::new(DECODING)),
            metrics,
        }
    }

    /// The pairs of a registered shard; read and verified if they are not in the cache.
    pub async fn pairs(&self, objects: &dyn ObjectStore, shard: &Shard) -> Result<Arc<Vec<Pair>>, LoadError> {
        if let Some(pairs) = self.find(&shard.path) {
            return Ok(pairs);
        }
        let _one_at_a_time = self.loading.lock().await;
        if let Some(pairs) = self.find(&shard.path) {
            return Ok(pairs);
        }
        let loaded = self.load(objects, shard).await;
        match &loaded {
            Ok(pairs) => {
                self.metrics.shards_loaded.inc();
                self.keep(&shard.path, pairs);
            }
            Err(LoadError::Damaged { .. }) => self.metrics.shards_damaged.inc(),
            Err(LoadError::Unreadable { .. }) => {}
        }
        loaded
    }

    async fn load(&self, objects: &dyn ObjectStore, shard: &Shard) -> Result<Arc<Vec<Pair>>, LoadError> {
        let damaged = |reason: String| LoadError::Damaged { path: shard.path.clone(), reason };
        let unreadable = |reason: String| LoadError::Unreadable { path: shard.path.clone(), reason };
        let location = object_store::path::Path::parse(&shard.path).map_err(|e| damaged(e.to_string()))?;
        let reading = async { objects.get(&location).await?.bytes().await };
        let bytes = match tokio::time::timeout(READ_DEADLINE, reading).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(object_store::Error::NotFound { .. })) => {
                return Err(damaged("it is not in the object store".into()));
            }
            Ok(Err(error)) => return Err(unreadable(error.to_string())),
            Err(_) => return Err(unreadable(format!("no answer within {READ_DEADLINE:?}"))),
        };
        let permit = self.decoding.clone().acquire_owned().await.map_err(|e| unreadable(e.to_string()))?;
        let record = shard.clone();
        let decoded = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            verified_pairs(&record, &bytes)
        });
        decoded.await.map_err(|e| unreadable(e.to_string()))?.map(Arc::new).map_err(damaged)
    }

    fn find(&self, path: &str) -> Option<Arc<Vec<Pair>>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.shards.iter().position(|(name, ..)| name == path)?;
        let found = kept.shards.remove(place)?;
        let pairs = found.1.clone();
        kept.shards.push_back(found);
        Some(pairs)
    }

    fn keep(&self, path: &str, pairs: &Arc<Vec<Pair>>) {
        let size_bytes = pairs.iter().map(pixels_bytes).sum();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.shards.push_back((path.to_owned(), pairs.clone(), size_bytes));
        kept.size_bytes += size_bytes;
        while kept.size_bytes > self.capacity_bytes && kept.shards.len() > 1 {
            let Some((.., dropped)) = kept.shards.pop_front() else { break };
            kept.size_bytes -= dropped;
        }
    }
}

fn pixels_bytes(pair: &Pair) -> usize {
    pair.target.as_raw().len() + pair.references.iter().map(|r| r.as_raw().len()).sum::<usize>()
}

/// Decodes a shard after comparing it with its record.
fn verified_pairs(record: &Shard, bytes: &[u8]) -> Result<Vec<Pair>, String> {
    if bytes.len() as u64 != record.size_bytes {
        return Err(format!("it has {} bytes, {} are registered", bytes.len(), record.size_bytes));
    }
    if sha256_hex(bytes) != record.sha256 {
        return Err("its SHA-256 is not the registered one".to_owned());
    }
    let pairs = read_shard(bytes).map_err(|e| e.to_string())?;
    if pairs.len() as u64 != record.pairs {
        return Err(format!("it has {} pairs, {} are registered", pairs.len(), record.pairs));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::ShardWriter;
    use image::RgbImage;
    use object_store::memory::InMemory;

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
    async fn the_least_recently_used_goes_first() {
        let objects = InMemory::new();
        let cache = cache(2 * 2 * 8 * 8 * 3);
        let mut shards = Vec::new();
        for name in ["a", "b", "c"] {
            shards.push(stored(&objects, name, 2).await);
        }
        for (n, loads) in [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)] {
            let pairs = cache.pairs(&objects, &shards[n]).await.expect("load");
            assert_eq!((pairs.len(), cache.metrics.shards_loaded.get()), (2, loads));
        }
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
            (bytes::Bytes::from(flipped), "SHA-256"),
            (bytes::Bytes::new(), "0 bytes"),
        ] {
            objects.put(&"a".into(), content.into()).await.expect("put");
            let error = cache.pairs(&objects, &record).await.expect_err("it is damaged");
            assert!(matches!(error, LoadError::Damaged { .. }));
            assert!(error.to_string().contains(says) && error.to_string().contains("shard a"), "{error}");
        }
        objects.delete(&"a".into()).await.expect("delete");
        let error = cache.pairs(&objects, &record).await.expect_err("it is gone");
        assert!(error.to_string().contains("not in the object store"), "{error}");
        assert_eq!(cache.metrics.shards_damaged.get(), 4);
    }
}
