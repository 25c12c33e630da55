//! A file of a checkpoint through the controller, which has a curator read it: for people who have no keys of the store.

use std::path::Path;
use std::time::Duration;

use crescendo_dataset::digest::{Content, hex};
use crescendo_proto::status::is_passing;
use crescendo_proto::v1::read_checkpoint_file_response::Message;
use crescendo_proto::v1::{
    Checkpoint, CheckpointFile, ReadCheckpointFileRequest, ReadCheckpointFileResponse,
};
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tonic::{Code, Status, Streaming};

use crate::connect::{self, Controller, brief};
use crate::failure::Failure;
use crate::show::words;

/// Limit of the wait for the next piece: more than the controller's own, whose reasons say more.
const PIECE_DEADLINE: Duration = Duration::from_secs(90);

/// Writes the file to `target`, at most one piece more than its registered size, and says what has come.
pub async fn receive(
    controller: &Controller,
    within: Duration,
    checkpoint: &Checkpoint,
    file: &CheckpointFile,
    target: &Path,
) -> Result<Content, Failure> {
    let request = ReadCheckpointFileRequest {
        job_id: checkpoint.job_id.clone(),
        path: checkpoint.path.clone(),
        name: file.name.clone(),
    };
    let opening = controller.call(within, |channel| {
        let request = request.clone();
        async move { connect::objects(channel).read_checkpoint_file(request).await }
    });
    let mut pieces = opening.await.map_err(|status| not_begun(controller, &status))?;
    let local = Failure::from_error(format!("write {}", target.display()));
    let mut to = File::create(target).await.map_err(local)?;
    let (mut hash, mut size_bytes) = (Sha256::new(), 0u64);
    while let Some(message) =
        next(&mut pieces).await.map_err(|status| broken_off(&status, file, size_bytes))?
    {
        // What is announced is what was registered, which the caller knows.
        let Some(Message::Chunk(chunk)) = message.message else { continue };
        hash.update(&chunk);
        size_bytes += chunk.len() as u64;
        let local = Failure::from_error(format!("write {}", target.display()));
        to.write_all(&chunk).await.map_err(local)?;
        if size_bytes > file.size_bytes {
            break;
        }
    }
    to.flush().await.map_err(Failure::from_error(format!("write {}", target.display())))?;
    if size_bytes < file.size_bytes {
        return Err(broken_off(&Status::unavailable("the stream has ended"), file, size_bytes));
    }
    Ok(Content { size_bytes, sha256: hex(&hash.finalize()) })
}

async fn next(
    pieces: &mut Streaming<ReadCheckpointFileResponse>,
) -> Result<Option<ReadCheckpointFileResponse>, Status> {
    match tokio::time::timeout(PIECE_DEADLINE, pieces.message()).await {
        Ok(message) => message,
        Err(_) => Err(Status::deadline_exceeded(format!("nothing has come for {PIECE_DEADLINE:?}"))),
    }
}

/// A controller that does not answer, or what one has answered.
fn not_begun(controller: &Controller, status: &Status) -> Failure {
    // An answer has no cause; a connection that fails does.
    let answered = std::error::Error::source(status).is_none();
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted if answered => {
            Failure::other(format!("{}; try again, or {DIRECTLY}", brief(status)))
        }
        Code::Unimplemented => {
            Failure::other(format!("this controller hands on no files of the object store; {DIRECTLY}"))
        }
        _ => controller.failure(status),
    }
}

const DIRECTLY: &str = "name the object store as it is reached from here with --object-store";

fn broken_off(status: &Status, file: &CheckpointFile, size_bytes: u64) -> Failure {
    let name = words::one_line(&file.name);
    let why = words::one_line(&brief(status));
    let again = if is_passing(status.code()) { "; try again" } else { "" };
    if size_bytes == 0 {
        return Failure::other(format!("{name} does not come: {why}{again}"));
    }
    let (came, whole) = (words::bytes(size_bytes), words::bytes(file.size_bytes));
    Failure::other(format!("{name} was broken off after {came} of {whole}: {why}{again}"))
}
