//! Writing checkpoints while training goes on: copies come in, files go out, and the registry decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crescendo_core::object_keys;
use crescendo_dataset::checkpoint::{
    HISTORY_FILE, MANIFEST_FILE, Manifest, ManifestFile, SPEC_FILE, STATE_FILE,
};
use crescendo_model::weights::{self, TensorMap};
use crescendo_node::runtime::backoff::{Backoff, random};
use crescendo_node::telemetry::trace;
use crescendo_proto::v1::{Checkpoint, RankCheckpointOutcome};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use super::RankError;
use super::link::Uplink;
use super::tfevents;
use super::train_state::{TrainState, deletable, to_wire};

/// Tries to write one file before the save is given up.
const WRITE_TRIES: u32 = 6;
/// Limit of writing one file.
const WRITE_TIMEOUT: Duration = Duration::from_secs(600);
/// Limit of writing the file for TensorBoard.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(30);

/// What to write: copies that no one else uses.
#[derive(Debug)]
pub struct SaveRequest {
    pub state: TrainState,
    /// File name and tensors, on the CPU.
    pub tensors: Vec<(&'static str, TensorMap)>,
    pub history: Vec<u8>,
    /// Training of the stage ends with this one.
    pub last: bool,
    /// Gets the outcome.
    pub done: oneshot::Sender<Result<(), RankError>>,
}

/// Writes and registers checkpoints, one at a time.
pub struct Saver {
    pub job_id: String,
    pub store: Arc<dyn ObjectStore>,
    pub resolved_spec_json: Vec<u8>,
    /// Samples of one step, for the speed that TensorBoard shows.
    pub global_batch: u32,
    pub uplink: Uplink,
    pub outcomes: mpsc::Receiver<RankCheckpointOutcome>,
}

impl Saver {
    /// Ends when the training thread is done.
    pub async fn run(mut self, mut requests: mpsc::Receiver<SaveRequest>) {
        while let Some(request) = requests.recv().await {
            let (step, last) = (request.state.step, request.last);
            let span = tracing::info_span!(target: trace::TARGET, "checkpoint", step, last);
            let (done, outcome) = self.save(request).instrument(span).await;
            if let Err(error) = &outcome {
                tracing::warn!(step, last, %error, "checkpoint is not saved");
            }
            // Training may have ended for another reason meanwhile.
            let _ = done.send(outcome);
        }
    }

    async fn save(
        &mut self,
        request: SaveRequest,
    ) -> (oneshot::Sender<Result<(), RankError>>, Result<(), RankError>) {
        let SaveRequest { state, tensors, history, last, done } = request;
        let outcome = self.write_and_register(state, tensors, history, last).await;
        (done, outcome)
    }

    async fn write_and_register(
        &mut self,
        state: TrainState,
        tensors: Vec<(&'static str, TensorMap)>,
        history: Vec<u8>,
        last: bool,
    ) -> Result<(), RankError> {
        let began = Instant::now();
        let spec = self.resolved_spec_json.clone();
        let (job_id, stage, generation, step) =
            (self.job_id.clone(), state.stage.clone(), state.generation, state.step);
        let next_position = state.next_position;
        let path = object_keys::checkpoint(&job_id, &stage, step, generation);
        let prepare = move || serialize(&state, &tensors, history, spec);
        let files = tokio::task::spawn_blocking(prepare).await.map_err(RankError::retryable)??;
        for (name, content, _) in &files {
            self.write(&object_keys::checkpoint_file(&path, name), content).await?;
        }
        let registered = files.iter().map(|(_, _, record)| to_wire(record)).collect();
        let size_bytes: u64 = files.iter().map(|(_, _, record)| record.size_bytes).sum();
        let checkpoint = Checkpoint {
            job_id,
            stage,
            generation,
            step,
            path,
            files: registered,
            committed_at: None,
            r#final: last,
            damaged: String::new(),
            next_position,
        };
        let seconds = began.elapsed().as_secs_f64();
        self.uplink.checkpoint(checkpoint.clone(), seconds).await?;
        let outcome = loop {
            // The agent repeats the commit until the controller has decided, however long that takes; if the agent
            // ends, so does this process.
            match self.outcomes.recv().await {
                Some(outcome) if outcome.step == step => break outcome,
                Some(_) => {}
                None => {
                    return Err(RankError::Retryable("the agent's session ended before the commit".into()));
                }
            }
        };
        if outcome.stale {
            return Err(RankError::Stopped(format!(
                "checkpoint of step {step} was refused: a newer attempt runs"
            )));
        }
        tracing::info!(step, last, size_bytes, seconds, path = checkpoint.path, "checkpoint is registered");
        let history =
            files.into_iter().find(|(name, ..)| name == HISTORY_FILE).map(|(_, content, _)| content);
        let events = self.write_events(&checkpoint, history.unwrap_or_default());
        match tokio::time::timeout(EVENTS_TIMEOUT, events).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(step, %error, "TensorBoard's file is not written"),
            Err(_) => tracing::warn!(step, "TensorBoard's file is not written in time"),
        }
        for old in deletable(&outcome.expired, &checkpoint) {
            if let Err(error) = self.delete(&old.path).await {
                tracing::warn!(path = old.path, %error, "expired checkpoint is not deleted");
            }
        }
        Ok(())
    }

    async fn write(&self, key: &str, content: &Bytes) -> Result<(), RankError> {
        let location = object_store::path::Path::parse(key).map_err(RankError::permanent)?;
        let mut failures = 0;
        loop {
            let put =
                tokio::time::timeout(WRITE_TIMEOUT, self.store.put(&location, content.clone().into())).await;
            let error = match put {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("not written within {WRITE_TIMEOUT:?}"),
            };
            failures += 1;
            if failures == WRITE_TRIES {
                return Err(RankError::Retryable(format!("cannot write {key}: {error}")));
            }
            tokio::time::sleep(Backoff::default().delay(failures, random())).await;
        }
    }

    /// One try: the next checkpoint's file has what is missing.
    async fn write_events(&self, checkpoint: &Checkpoint, history: Bytes) -> Result<(), RankError> {
        let folder = object_keys::events(&checkpoint.job_id, &checkpoint.stage);
        let folder = object_store::path::Path::parse(folder).map_err(RankError::permanent)?;
        let listing = self.store.list(Some(&folder)).try_collect();
        let there: Vec<object_store::ObjectMeta> = listing.await.map_err(RankError::retryable)?;
        let names = there.iter().filter_map(|object| object.location.filename());
        let (after, lost) = tfevents::beside(names, checkpoint.step);
        for name in lost {
            self.store.delete(&folder.clone().join(name)).await.map_err(RankError::retryable)?;
        }
        let global_batch = self.global_batch;
        let making = tokio::task::spawn_blocking(move || tfevents::of_history(&history, global_batch, after));
        let events = making.await.map_err(RankError::retryable)?;
        if !events.is_empty() {
            let location = folder.join(tfevents::name(checkpoint.step));
            self.store.put(&location, events.into()).await.map_err(RankError::retryable)?;
        }
        Ok(())
    }

    async fn delete(&self, path: &str) -> object_store::Result<()> {
        let prefix = object_store::path::Path::parse(path)?;
        let objects: Vec<_> = self.store.list(Some(&prefix)).try_collect().await?;
        for object in objects {
            self.store.delete(&object.location).await?;
        }
        Ok(())
    }
}

type File = (String, Bytes, ManifestFile);

/// Every file of the checkpoint in writing order: the manifest is last.
fn serialize(
    state: &TrainState,
    tensors: &[(&'static str, TensorMap)],
    history: Vec<u8>,
    spec: Vec<u8>,
) -> Result<Vec<File>, RankError> {
    let file = |name: &str, content: Vec<u8>| -> File {
        let record = ManifestFile::of(name, &content);
        (name.to_owned(), Bytes::from(content), record)
    };
    let mut files = Vec::with_capacity(tensors.len() + 4);
    for (name, tensors) in tensors {
        let content =
            weights::to_bytes(tensors, &weights::published_strings()).map_err(RankError::retryable)?;
        files.push(file(name, content));
    }
    files.push(file(STATE_FILE, serde_json::to_vec_pretty(state).map_err(RankError::permanent)?));
    files.push(file(HISTORY_FILE, history));
    files.push(file(SPEC_FILE, spec));
    let manifest = Manifest { files: files.iter().map(|(_, _, record)| record.clone()).collect() };
    files.push(file(MANIFEST_FILE, serde_json::to_vec_pretty(&manifest).map_err(RankError::permanent)?));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Tensor;

    #[test]
    fn the_manifest_is_last_and_names_the_rest() {
        let state = TrainState {
            stage: "one".into(),
            stage_index: 0,
            seed: 1,
            generation: 2,
            step: 3,
            next_position: 24,
            optimizer_steps: 3,
            replay_passes: Vec::new(),
        };
        let tensors = vec![(
            "dit_lora.safetensors",
            TensorMap::from([("a".to_owned(), Tensor::from_slice(&[1.0f32]))]),
        )];
        let files = serialize(&state, &tensors, b"{}\n".to_vec(), b"{}".to_vec()).unwrap();
        let names: Vec<&str> = files.iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(names, ["dit_lora.safetensors", STATE_FILE, HISTORY_FILE, SPEC_FILE, MANIFEST_FILE]);
        let (_, content, _) = files.last().unwrap();
        let manifest: Manifest = serde_json::from_slice(content).unwrap();
        assert_eq!(manifest.files.len(), 4);
        let again: TrainState = serde_json::from_slice(&files[1].1).unwrap();
        assert_eq!(again, state);
    }
}
