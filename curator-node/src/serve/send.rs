//! Files of checkpoints, logs and pairs on their way to a person: read here, since only nodes have keys of the object store,
//! and sent to the controller, which hands them on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crescendo_core::object_keys::{is_checkpoint_file, is_pairs, is_samples, job_of_logs};
use crescendo_node::objects::{self, with_causes};
use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::session::call::Controllers;
use crescendo_node::telemetry::log_archive::{self, MAX_LOG_BYTES};
use crescendo_proto::v1::object_service_client::ObjectServiceClient;
use crescendo_proto::v1::send_object_request::Message;
use crescendo_proto::v1::{ReadObject, ReadStoredPairs, SendFailure, SendObjectRequest};
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::serve::failure::{lasting, passing};
use crate::serve::review;

/// Files that one curator sends at a time: as many as a controller hands on.
const MOST_READS: usize = 8;
/// Largest piece, bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Limit of the wait for the object store's next piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(50);
/// Limit of one file.
const FILE_DEADLINE: Duration = Duration::from_secs(3 * 3600);

/// Sends what the controller asks for.
#[derive(Clone)]
pub struct Sender {
    controllers: Controllers,
    tasks: Tasks,
    room: Arc<Semaphore>,
}

impl Sender {
    pub fn new(controllers: Controllers, tasks: Tasks) -> Self {
        Self { controllers, tasks, room: Arc::new(Semaphore::new(MOST_READS)) }
    }

    /// Whether a file is on its way.
    pub fn is_busy(&self) -> bool {
        self.room.available_permits() < MOST_READS
    }

    /// Begins to send a file, on a task of its own.
    pub fn send(&self, read: ReadObject) {
        self.begin(Wanted::File(read));
    }

    /// Begins to send pairs, on a task of its own.
    pub fn send_pairs(&self, read: ReadStoredPairs) {
        self.begin(Wanted::Pairs(read));
    }

    fn begin(&self, read: Wanted) {
        let room = Arc::clone(&self.room).try_acquire_owned();
        let controllers = self.controllers.clone();
        let stop = self.tasks.stop_token();
        self.tasks.spawn(async move {
            let (key, room) = (read.key().to_owned(), room);
            let sending = async {
                let (to, messages) = mpsc::channel(1);
                let mut client = ObjectServiceClient::new(controllers.channel());
                let call = client.send_object(ReceiverStream::new(messages));
                let reading = async {
                    let outcome = read_into(&read, room.is_ok(), &to).await;
                    if let Err(failure) = outcome {
                        tracing::warn!(key = read.key(), reason = failure.reason, "a file cannot be sent");
                        // The controller may have gone.
                        let _ = to.send(message(Message::Failure(failure))).await;
                    }
                    drop(to);
                };
                let (answer, ()) = tokio::join!(call, reading);
                match answer {
                    Ok(_) => tracing::debug!(key, "sent a file"),
                    Err(status) => tracing::info!(key, %status, "a file was not taken to its end"),
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                done = tokio::time::timeout(FILE_DEADLINE, sending) => {
                    if done.is_err() {
                        tracing::warn!("a file was not sent in time");
                    }
                }
            }
        });
    }
}

/// What is to be read.
enum Wanted {
    File(ReadObject),
    Pairs(ReadStoredPairs),
}

impl Wanted {
    /// The first key that is read.
    fn key(&self) -> &str {
        match self {
            Self::File(read) => &read.key,
            Self::Pairs(read) => read.tars.first().map_or("", |tar| &tar.key),
        }
    }

    fn read_id(&self) -> &str {
        match self {
            Self::File(read) => &read.read_id,
            Self::Pairs(read) => &read.read_id,
        }
    }

    /// Why it may not be read.
    fn check(&self) -> Result<(), SendFailure> {
        match self {
            Self::File(read) if job_of_logs(&read.key).is_some() => Ok(()),
            Self::File(read) if is_checkpoint_file(&read.key) || is_samples(&read.key) => Ok(()),
            Self::File(read) => {
                Err(lasting(format!("{} is neither a file of a checkpoint nor one of samples", read.key)))
            }
            Self::Pairs(read) => match read.tars.iter().find(|tar| !is_pairs(&tar.key)) {
                Some(tar) => Err(lasting(format!("{} holds no pairs", tar.key))),
                None => Ok(()),
            },
        }
    }
}

fn message(message: Message) -> SendObjectRequest {
    SendObjectRequest { message: Some(message) }
}

/// Reads the file in pieces, if there is room. Why it cannot be read is for the person who waits; one who has gone is no
/// failure.
async fn read_into(
    read: &Wanted,
    room: bool,
    to: &mpsc::Sender<SendObjectRequest>,
) -> Result<(), SendFailure> {
    if to.send(message(Message::ReadId(read.read_id().to_owned()))).await.is_err() {
        return Ok(());
    }
    read.check()?;
    if !room {
        return Err(passing("the curator sends as many files as it may at a time".to_owned()));
    }
    let open = |url: &str| objects::open(url).map_err(|error| lasting(with_causes(&error)));
    let mut whole = match read {
        Wanted::File(read) => {
            let store = open(&read.object_store_url)?;
            let Some(job) = job_of_logs(&read.key) else {
                return stream(store.as_ref(), &read.key, to).await;
            };
            let text = log_archive::read_tail(job, store.as_ref(), MAX_LOG_BYTES).await;
            text.map(Bytes::from).map_err(|reason| passing(format!("cannot read the log: {reason}")))?
        }
        Wanted::Pairs(read) => {
            let store = open(&read.object_store_url)?;
            review::read(store.as_ref(), read).await?
        }
    };
    while !whole.is_empty() {
        let chunk = whole.split_to(whole.len().min(CHUNK_BYTES));
        if to.send(message(Message::Chunk(chunk))).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn stream(
    store: &dyn ObjectStore,
    key: &str,
    to: &mpsc::Sender<SendObjectRequest>,
) -> Result<(), SendFailure> {
    let refused = |error: object_store::Error| match error {
        object_store::Error::NotFound { .. } => lasting(format!("{key} is not in the object store")),
        error => passing(format!("cannot read {key}: {}", with_causes(&error))),
    };
    let late = |_| passing(format!("cannot read {key}: no answer within {PIECE_DEADLINE:?}"));
    let location = object_store::path::Path::parse(key).map_err(|error| lasting(error.to_string()))?;
    let getting = tokio::time::timeout(PIECE_DEADLINE, store.get(&location)).await.map_err(late)?;
    let mut pieces = getting.map_err(refused)?.into_stream();
    while let Some(piece) = tokio::time::timeout(PIECE_DEADLINE, pieces.next()).await.map_err(late)? {
        let mut piece: Bytes = piece.map_err(refused)?;
        while !piece.is_empty() {
            let chunk = piece.split_to(piece.len().min(CHUNK_BYTES));
            if to.send(message(Message::Chunk(chunk))).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_comes_in_pieces_and_nothing_but_files_of_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let key = "jobs/a/s/checkpoints/step-1-g1/dit_lora.safetensors";
        let content: Vec<u8> = (0..2 * CHUNK_BYTES + 7).map(|n| (n % 251) as u8).collect();
        objects::open(&url).unwrap().put(&key.into(), content.clone().into()).await.unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        let read = async |key: &str, room: bool| {
            let (to, mut messages) = mpsc::channel(1);
            let read = ReadObject { read_id: "r".into(), key: key.into(), object_store_url: url.clone() };
            let read = Wanted::File(read);
            let reading = async {
                let outcome = read_into(&read, room, &to).await;
                drop(to);
                outcome
            };
            let taking = async {
                let mut taken = Vec::new();
                while let Some(message) = messages.recv().await {
                    taken.push(message.message.unwrap());
                }
                taken
            };
            tokio::join!(reading, taking)
        };
        let (outcome, taken) = read(key, true).await;
        assert_eq!((outcome, &taken[0]), (Ok(()), &Message::ReadId("r".into())));
        let mut came = Vec::new();
        for message in &taken[1..] {
            let Message::Chunk(chunk) = message else { panic!("{message:?}") };
            assert!(chunk.len() <= CHUNK_BYTES);
            came.extend_from_slice(chunk);
        }
        assert!(came == content, "it differs");
        let (outcome, _) = read("jobs/a/s/checkpoints/step-2-g1/dit_lora.safetensors", true).await;
        let failure = outcome.unwrap_err();
        assert!(failure.reason.ends_with("is not in the object store") && !failure.passing, "{failure:?}");
        let (outcome, taken) = read(key, false).await;
        assert!(outcome.unwrap_err().passing, "another may have room, or this one later");
        assert_eq!(taken.len(), 1);
        for other in ["secret", "jobs/a/s/checkpoints/../../../../secret"] {
            let (outcome, taken) = read(other, true).await;
            assert!(
                outcome.unwrap_err().reason.contains("is neither a file of a checkpoint nor one of samples")
            );
            assert_eq!(taken.len(), 1, "nothing of it is sent");
        }
    }
}
