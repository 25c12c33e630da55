//! Writing checkpoints while training goes on: copies come in, files go out, and the registry decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crescendo_core::object_keys;
use crescendo_dataset::checkpoint::{
    HISTORY_FILE, MANIFEST_FILE, Manifest, ManifestFile, SPEC_FILE, STATE_FILE,
};
use crescendo_dataset::digest::Content;
use crescendo_model::training::snapshot::Reader;
use crescendo_node::objects::upload::{Piece, UploadError, put, upload};
use crescendo_node::objects::with_causes;
use crescendo_node::telemetry::trace;
use crescendo_proto::v1::{Checkpoint, RankCheckpointOutcome};
use futures::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tch::Device;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use super::RankError;
use super::copy_out;
use super::event_files::{EventFiles, EventFilesError};
use super::link::Uplink;
use super::tfevents::Run;
use super::train_state::{TrainState, deletable, to_wire};

/// Limit of writing the file for TensorBoard.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(30);

/// What to write.
#[derive(Debug)]
pub struct SaveRequest {
    pub state: TrainState,
    /// The tensors' files; copied while the next step runs.
    pub snapshot: Reader,
    /// Where the tensors are.
    pub device: Device,
    pub history: Vec<u8>,
    /// Training of the stage ends with this one.
    pub last: bool,
    /// Gets the outcome.
    pub done: oneshot::Sender<Result<(), RankError>>,
}

/// Writes and registers checkpoints, one at a time.
pub struct Saver {
    pub job_id: String,
    /// The rank that saves.
    pub rank: u32,
    pub store: Arc<dyn ObjectStore>,
    pub resolved_spec_json: Vec<u8>,
    /// Where TensorBoard looks.
    pub events: EventFiles,
    /// What TensorBoard shows of the stage beside its steps.
    pub run: Arc<Run>,
    pub uplink: Uplink,
    /// Of threads that give way to nobody, for the copying.
    pub copying: Handle,
    pub outcomes: mpsc::Receiver<RankCheckpointOutcome>,
}

impl Saver {
    /// Ends when the training thread is done.
    pub async fn run(mut self, mut requests: mpsc::Receiver<SaveRequest>) {
        while let Some(request) = requests.recv().await {
            let (step, last) = (request.state.step, request.last);
            let outcome = tracing::field::Empty;
            let span = tracing::info_span!(
                target: trace::TARGET, "checkpoint", step = trace::number(step), last, outcome
            );
            let (done, outcome) = self.save(request).instrument(span.clone()).await;
            match &outcome {
                Ok(()) => trace::end(&span, "registered", None),
                Err(error) => trace::end(&span, "failed", Some(&error.to_string())),
            }
            drop(span);
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
        let SaveRequest { state, snapshot, device, history, last, done } = request;
        let began = Instant::now();
        let history = Bytes::from(history);
        let outcome = async {
            let path = self.path(&state);
            let writer = Writer { store: self.store.as_ref(), path: &path, runtime: &self.copying };
            let files = writer.tensors(snapshot, device).await?;
            let files = writer.rest(files, &state, &history, &self.resolved_spec_json).await?;
            self.register(&state, &files, history, last, began).await
        }
        .await;
        (done, outcome)
    }

    fn path(&self, state: &TrainState) -> String {
        object_keys::checkpoint_by(self.rank, &self.job_id, &state.stage, state.step, state.generation)
    }

    async fn register(
        &mut self,
        state: &TrainState,
        files: &[ManifestFile],
        history: Bytes,
        last: bool,
        began: Instant,
    ) -> Result<(), RankError> {
        let (job_id, stage, generation, step) =
            (self.job_id.clone(), state.stage.clone(), state.generation, state.step);
        let path = self.path(state);
        let size_bytes: u64 = files.iter().map(|file| file.size_bytes).sum();
        let checkpoint = Checkpoint {
            job_id,
            stage,
            generation,
            step,
            path,
            files: files.iter().map(to_wire).collect(),
            committed_at: None,
            r#final: last,
            damaged: String::new(),
            next_position: state.next_position,
            kept: false,
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
        let events = self.write_events(&checkpoint, history);
        match tokio::time::timeout(EVENTS_TIMEOUT, events).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(step, error = with_causes(&error), "TensorBoard's file is not written");
            }
            Err(_) => tracing::warn!(step, "TensorBoard's file is not written in time"),
        }
        for old in deletable(&outcome.expired, &checkpoint) {
            if let Err(error) = self.delete(&old.path).await {
                tracing::warn!(path = old.path, %error, "expired checkpoint is not deleted");
            }
        }
        Ok(())
    }

    /// One try: what is missing then comes with the next checkpoint.
    async fn write_events(&self, checkpoint: &Checkpoint, history: Bytes) -> Result<(), EventFilesError> {
        let folder = object_keys::events(&checkpoint.job_id, &checkpoint.stage);
        self.events.write(&folder, checkpoint.step, history, &self.run, checkpoint.r#final).await
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

/// Writes the files of one checkpoint.
struct Writer<'a> {
    store: &'a dyn ObjectStore,
    /// Its folder in the object store.
    path: &'a str,
    /// Where the copying is done.
    runtime: &'a Handle,
}

impl Writer<'_> {
    /// Files of tensors go to the store while a thread of their own copies them.
    async fn tensors(&self, snapshot: Reader, device: Device) -> Result<Vec<ManifestFile>, RankError> {
        let names: Vec<&'static str> = snapshot.files().iter().map(|file| file.name).collect();
        // There is room for all: how many there are at a time is the snapshot's own bound.
        let (copied, mut pieces) = mpsc::channel::<Piece>(snapshot.chunks().max(1));
        // Training waits for it, so it does not give way as the rest here does.
        let copying = self.runtime.spawn_blocking(move || copy_out::run(snapshot, device, &copied));
        let mut files = Vec::with_capacity(names.len());
        let mut outcome = Ok(());
        for name in names {
            let key = object_keys::checkpoint_file(self.path, name);
            match upload(self.store, &key, &mut pieces).await {
                Ok(Content { size_bytes, sha256 }) => {
                    files.push(ManifestFile { name: name.into(), size_bytes, sha256 });
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        // Ends the copying if anything is left of it.
        drop(pieces);
        let copied = copying.await.map_err(RankError::retryable)?;
        match (outcome, copied) {
            (Ok(()), _) => Ok(files),
            (Err(UploadError::Cut { .. }), Err(error)) => Err(RankError::retryable(error)),
            (Err(error), _) => Err(RankError::retryable(error)),
        }
    }

    /// The files beside those of tensors, the manifest last. Returns all that are registered.
    async fn rest(
        &self,
        mut files: Vec<ManifestFile>,
        state: &TrainState,
        history: &Bytes,
        spec: &[u8],
    ) -> Result<Vec<ManifestFile>, RankError> {
        let state = serde_json::to_vec_pretty(state).map_err(RankError::permanent)?;
        let spec = Bytes::copy_from_slice(spec);
        for (name, content) in
            [(STATE_FILE, state.into()), (HISTORY_FILE, history.clone()), (SPEC_FILE, spec)]
        {
            files.push(self.whole(name, &content).await?);
        }
        let manifest = Manifest { files: files.clone() };
        let manifest = serde_json::to_vec_pretty(&manifest).map_err(RankError::permanent)?;
        files.push(self.whole(MANIFEST_FILE, &manifest.into()).await?);
        Ok(files)
    }

    async fn whole(&self, name: &str, content: &Bytes) -> Result<ManifestFile, RankError> {
        let key = object_keys::checkpoint_file(self.path, name);
        put(self.store, &key, content).await.map_err(RankError::retryable)?;
        Ok(ManifestFile::of(name, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_dataset::checkpoint::{ADAPTER_FILE, OPTIMIZER_FILE};
    use crescendo_model::training::snapshot::{SnapshotLimits, take};
    use crescendo_model::training::{AdamW, AdamWConfig, TrainOptions, TrainStep};
    use crescendo_model::{BlockSelection, Flux, FluxConfig, LoraAdapter, Preset};
    use tch::Kind;

    fn writer<'a>(store: &'a Arc<dyn ObjectStore>, runtime: &'a Handle) -> Writer<'a> {
        Writer { store: store.as_ref(), path: "jobs/j/one/checkpoints/c", runtime }
    }

    fn snapshot() -> Reader {
        let config: FluxConfig = Preset::Nano.config();
        let flux = Flux::init(&config, 0, Kind::Float, Device::Cpu).unwrap();
        let all = BlockSelection::all(&config);
        let adapter = LoraAdapter::init(&config, 2, &all, 0, Kind::Float, Device::Cpu).unwrap();
        let train_step = TrainStep::for_adapter(flux, adapter, TrainOptions::default()).unwrap();
        let optimizer = AdamW::new(AdamWConfig::default(), train_step.params()).unwrap();
        let limits = SnapshotLimits::new(0, Device::Cpu, 0);
        let (hold, reader) = take(train_step.params(), &optimizer, None, ADAPTER_FILE, limits).unwrap();
        // What trains is gone, and nothing changes any more.
        std::mem::forget(hold);
        reader
    }

    #[tokio::test]
    async fn the_manifest_is_last_and_names_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let store = crescendo_node::objects::open(&format!("file://{}", folder.path().display())).unwrap();
        let state = TrainState {
            stage: "one".into(),
            stage_index: 0,
            seed: 1,
            generation: 2,
            step: 3,
            next_position: 24,
            optimizer_steps: 3,
            replay_passes: Vec::new(),
            left_out: Vec::new(),
        };
        let runtime = Handle::current();
        let writer = writer(&store, &runtime);
        let tensors = writer.tensors(snapshot(), Device::Cpu).await.unwrap();
        let files = writer.rest(tensors, &state, &Bytes::from_static(b"{}\n"), b"{}").await.unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, [ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE, HISTORY_FILE, SPEC_FILE, MANIFEST_FILE]);
        let content = |name: &str| std::fs::read(folder.path().join(writer.path).join(name)).unwrap();
        for file in &files {
            assert_eq!(*file, ManifestFile::of(&file.name, &content(&file.name)));
        }
        let manifest: Manifest = serde_json::from_slice(&content(MANIFEST_FILE)).unwrap();
        assert_eq!(manifest.files, files[..5]);
        let again: TrainState = serde_json::from_slice(&content(STATE_FILE)).unwrap();
        assert_eq!(again, state);
    }

    #[tokio::test]
    async fn a_snapshot_that_is_spoiled_is_no_checkpoint_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let store = crescendo_node::objects::open(&format!("file://{}", folder.path().display())).unwrap();
        let runtime = Handle::current();
        let writer = writer(&store, &runtime);
        let error = writer.tensors(snapshot(), Device::Cuda(9)).await.unwrap_err();
        assert!(matches!(&error, RankError::Retryable(reason) if !reason.contains("cut off")), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
