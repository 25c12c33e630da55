//! What a stage takes from an earlier one: its final checkpoint's weights, and its accepted pairs. Both are verified.

use crate::curate::mirror::LocalCopies;
use crate::pipeline::{Trained, TrainedFile};
use crate::serve::pair_log::LogState;
use crate::sources::recompose::ParentPairs;
use crescendo_core::object_keys;
use crescendo_dataset::checkpoint::{ADAPTER_FILE, EMA_FILE, MODEL_FILE, verify};
use crescendo_dataset::digest::sha256_hex;
use crescendo_dataset::shard::read_shard;
use crescendo_node::objects::cache::CacheError;
use crescendo_node::objects::download::{DownloadError, registered};
use crescendo_proto::v1::{Checkpoint, CheckpointFile, Shard};
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Limit of reading one shard.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// Limit of the wait for the first news of the earlier log.
const LOG_DEADLINE: Duration = Duration::from_secs(60);
/// Decoded shards that are kept: units follow each other, so the next one mostly goes on in the last.
const KEPT_SHARDS: usize = 2;

/// Why nothing can be taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ParentStageError {
    #[error("the controller named no checkpoint of stage {stage}")]
    NoCheckpoint { stage: String },
    #[error("checkpoint {path} has no trained weights")]
    NoWeights { path: String },
    #[error("{key}: {reason}")]
    Damaged { key: String, reason: String },
    #[error("cannot read {key}: {reason}")]
    Unreadable { key: String, reason: String },
    #[error("nothing is known of the pair log of stage {stage} after {LOG_DEADLINE:?}")]
    NoLog { stage: String },
}

/// An earlier stage, as one stage of this node sees it.
#[derive(Debug)]
pub struct ParentStage {
    pub stage: String,
    /// Final checkpoint, as the controller named it.
    pub checkpoint: Option<Checkpoint>,
    /// Whether its weights draw.
    pub draws: bool,
    /// Its pair log, if pairs are taken.
    pub log: Option<watch::Receiver<LogState>>,
    pub objects: Arc<dyn ObjectStore>,
    /// Where its weights are kept on this machine.
    pub copies: LocalCopies,
    /// Fetched at the first unit, and kept.
    pub trained: Mutex<Option<Trained>>,
    pub shards: Mutex<VecDeque<(String, Arc<Vec<crescendo_dataset::pair::Pair>>)>>,
}

impl ParentStage {
    /// The trained weights on this machine; fetched and verified if they are not here yet.
    pub async fn trained(&self) -> Result<Option<Trained>, ParentStageError> {
        if !self.draws {
            return Ok(None);
        }
        let mut kept = self.trained.lock().await;
        if kept.is_none() {
            let missing = || ParentStageError::NoCheckpoint { stage: self.stage.clone() };
            let checkpoint = self.checkpoint.as_ref().ok_or_else(missing)?;
            *kept = Some(fetch(self.objects.as_ref(), &self.copies, checkpoint, false).await?);
        }
        Ok(kept.clone())
    }

    /// The pairs at the place of unit `unit`: each pair of the earlier log is one candidate.
    ///
    /// The earlier stage is trained, and no one makes pairs of a trained stage any more, so its log no longer grows: what
    /// is readable is all there will be.
    pub async fn taken(&self, unit: u64, unit_size: u32) -> Result<ParentPairs, ParentStageError> {
        let Some(log) = &self.log else { return Ok(ParentPairs::default()) };
        let mut log = log.clone();
        let known = log.wait_for(|log| log.committed > 0 || log.sealed);
        let state = match tokio::time::timeout(LOG_DEADLINE, known).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) | Err(_) => return Err(ParentStageError::NoLog { stage: self.stage.clone() }),
        };
        let first = unit.saturating_mul(u64::from(unit_size));
        let end = first.saturating_add(u64::from(unit_size));
        let mut taken = ParentPairs { pairs: Vec::new(), exhausted: end >= state.committed };
        for index in first..end.min(state.committed) {
            // A gap between what is committed and what is known yet: the rest comes with the next message.
            let Some((shard, place)) = state.find(index) else {
                return Err(ParentStageError::NoLog { stage: self.stage.clone() });
            };
            let pairs = self.shard(&shard).await?;
            let pair = pairs.get(place).ok_or_else(|| ParentStageError::Damaged {
                key: shard.path.clone(),
                reason: format!("it has no pair {place}"),
            })?;
            taken.pairs.push(pair.clone());
        }
        Ok(taken)
    }

    async fn shard(
        &self,
        shard: &Shard,
    ) -> Result<Arc<Vec<crescendo_dataset::pair::Pair>>, ParentStageError> {
        let mut kept = self.shards.lock().await;
        if let Some((_, pairs)) = kept.iter().find(|(path, _)| *path == shard.path) {
            return Ok(pairs.clone());
        }
        let key = || shard.path.clone();
        let damaged = |reason: String| ParentStageError::Damaged { key: key(), reason };
        let location = object_store::path::Path::parse(&shard.path).map_err(|e| damaged(e.to_string()))?;
        let reading = async { self.objects.get(&location).await?.bytes().await };
        let bytes = match tokio::time::timeout(READ_DEADLINE, reading).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                return Err(ParentStageError::Unreadable { key: key(), reason: error.to_string() });
            }
            Err(_) => {
                let reason = format!("no answer within {READ_DEADLINE:?}");
                return Err(ParentStageError::Unreadable { key: key(), reason });
            }
        };
        let expected = shard.sha256.clone();
        let decoding = tokio::task::spawn_blocking(move || {
            if sha256_hex(&bytes) != expected {
                return Err("its content is not what was registered".to_owned());
            }
            read_shard(bytes.as_ref()).map_err(|e| e.to_string())
        });
        let pairs = decoding.await.map_err(|e| damaged(e.to_string()))?.map_err(damaged)?;
        let pairs = Arc::new(pairs);
        kept.push_back((key(), pairs.clone()));
        while kept.len() > KEPT_SHARDS {
            kept.pop_front();
        }
        Ok(pairs)
    }
}

/// A checkpoint's trained weights on this machine, or their moving average, through its cache; size and SHA-256 must be as
/// registered.
pub async fn fetch(
    objects: &dyn ObjectStore,
    copies: &LocalCopies,
    checkpoint: &Checkpoint,
    is_average: bool,
) -> Result<Trained, ParentStageError> {
    let missing = || ParentStageError::NoWeights { path: checkpoint.path.clone() };
    let file = |name: &str| checkpoint.files.iter().find(|file| file.name == name);
    let (trained, is_adapter) = match (file(ADAPTER_FILE), file(MODEL_FILE)) {
        (Some(file), _) => (file, true),
        (None, Some(file)) => (file, false),
        (None, None) => return Err(missing()),
    };
    let wanted = if is_average { file(EMA_FILE).ok_or_else(missing)? } else { trained };
    let fetched = Arc::new(fetch_file(objects, copies, &checkpoint.path, wanted).await?);
    Ok(if is_adapter { Trained::Adapter(fetched) } else { Trained::Network(fetched) })
}

async fn fetch_file(
    objects: &dyn ObjectStore,
    copies: &LocalCopies,
    folder: &str,
    file: &CheckpointFile,
) -> Result<TrainedFile, ParentStageError> {
    let key = object_keys::checkpoint_file(folder, &file.name);
    let damaged = |reason: String| ParentStageError::Damaged { key: key.clone(), reason };
    let expected = registered(file);
    let fetching = copies.cache.fetch(objects, &copies.url, &key, Some(&expected));
    let cached = fetching.await.map_err(|error| match error {
        CacheError::Download(DownloadError::Missing { .. }) => {
            damaged("it is not in the object store".to_owned())
        }
        CacheError::Different { found, .. } => match verify(&file.name, &expected, &found) {
            Err(damage) => damaged(damage.to_string()),
            Ok(()) => damaged("its content changes while it is read".to_owned()),
        },
        error => ParentStageError::Unreadable { key: key.clone(), reason: error.text() },
    })?;
    Ok(TrainedFile::new(cached.path().to_owned(), cached))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_dataset::shard::ShardWriter;
    use crescendo_node::objects::cache::Cache;
    use object_store::memory::InMemory;
    use std::path::Path;

    fn pair(n: u8) -> crescendo_dataset::pair::Pair {
        crescendo_dataset::pair::Pair {
            target: image::RgbImage::from_pixel(8, 8, image::Rgb([n; 3])),
            references: vec![],
            prompt: format!("thing {n}"),
            reference_words: vec![],
            scores: Default::default(),
            provenance: serde_json::Value::Null,
        }
    }

    fn file(name: &str, content: &[u8]) -> CheckpointFile {
        CheckpointFile { name: name.into(), size_bytes: content.len() as u64, sha256: sha256_hex(content) }
    }

    async fn stage(scratch: &Path, checkpoint: Option<Checkpoint>, log: Option<LogState>) -> ParentStage {
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        objects.put(&"c/dit_lora.safetensors".into(), b"weights".to_vec().into()).await.expect("put");
        let cache = Cache::new(scratch.join("cache"), 1 << 20);
        let copies = LocalCopies { url: "memory:".into(), scratch: scratch.into(), cache };
        ParentStage {
            stage: "stage-1".into(),
            checkpoint,
            draws: true,
            log: log.map(|log| watch::channel(log).1),
            objects,
            copies,
            trained: Mutex::default(),
            shards: Mutex::default(),
        }
    }

    fn checkpoint(files: Vec<CheckpointFile>) -> Option<Checkpoint> {
        Some(Checkpoint { path: "c".into(), files, ..Checkpoint::default() })
    }

    #[tokio::test]
    async fn only_registered_weights_are_taken() {
        let scratch = tempfile::tempdir().expect("make a folder");
        let good = stage(scratch.path(), checkpoint(vec![file(ADAPTER_FILE, b"weights")]), None).await;
        let Ok(Some(Trained::Adapter(kept))) = good.trained().await else { panic!("it is there") };
        assert_eq!(std::fs::read(kept.path()).expect("read"), b"weights");
        for (bad, expected) in [
            (None, "named no checkpoint of stage stage-1"),
            (checkpoint(vec![]), "has no trained weights"),
            (checkpoint(vec![file(ADAPTER_FILE, b"weightS")]), "content has SHA-256"),
            (checkpoint(vec![file(ADAPTER_FILE, b"weight")]), "7 bytes, registered with 6"),
            (checkpoint(vec![file(MODEL_FILE, b"network")]), "not in the object store"),
        ] {
            let error =
                stage(scratch.path(), bad, None).await.trained().await.expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn each_pair_of_the_log_is_taken_once_and_its_end_is_said() {
        let mut writers = [ShardWriter::default(), ShardWriter::default()];
        for n in 0..5u8 {
            writers[usize::from(n / 3)].push(&pair(n)).expect("push");
        }
        let shards = writers.map(|writer| writer.finish().expect("finish"));
        let records: Vec<Shard> = shards
            .iter()
            .zip(0u64..)
            .map(|(shard, unit)| Shard {
                unit,
                path: format!("u{unit}.tar"),
                pairs: shard.pairs,
                size_bytes: shard.bytes.len() as u64,
                sha256: shard.sha256.clone(),
                first_index: 3 * unit,
            })
            .collect();
        let scratch = tempfile::tempdir().expect("make a folder");
        let stage = stage(scratch.path(), None, Some(LogState::of(records.clone(), 5))).await;
        for (record, shard) in records.iter().zip(&shards) {
            let path = object_store::path::Path::from(record.path.as_str());
            stage.objects.put(&path, shard.bytes.clone().into()).await.expect("put");
        }
        let prompts = async |unit| {
            let taken = stage.taken(unit, 2).await.expect("taken");
            (taken.pairs.into_iter().map(|pair| pair.prompt).collect::<Vec<_>>(), taken.exhausted)
        };
        assert_eq!(prompts(0).await, (vec!["thing 0".to_owned(), "thing 1".to_owned()], false));
        assert_eq!(prompts(1).await, (vec!["thing 2".to_owned(), "thing 3".to_owned()], false));
        assert_eq!(prompts(2).await, (vec!["thing 4".to_owned()], true));
        assert_eq!(prompts(3).await, (Vec::new(), true));
        stage.shards.lock().await.clear();
        stage.objects.put(&"u1.tar".into(), b"other".to_vec().into()).await.expect("put");
        let error = stage.taken(2, 2).await.expect_err("damaged").to_string();
        assert!(error.contains("u1.tar"), "{error}");
    }
}
