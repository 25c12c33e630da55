//! Objects on their way from this process, piece by piece as they are made: never whole in memory, and hashed as they go.

use std::time::Duration;

use bytes::Bytes;
use crescendo_dataset::digest::{Content, hex};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, WriteMultipart};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::with_causes;
use crate::runtime::backoff::{Backoff, random};

/// Parts under way at a time.
const PARTS_AT_A_TIME: usize = 4;
/// Limit of the wait for a part to be taken, for the next piece, and for the object's end.
const PART_DEADLINE: Duration = Duration::from_secs(600);
/// Tries to write an object that is one piece.
const TRIES: u32 = 6;

/// Some of an object's bytes. All but an object's last one must have the same length, of at least 5 MiB.
#[derive(Clone, Debug)]
pub struct Piece {
    pub bytes: Bytes,
    pub is_last: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("cannot write {key}: {reason}")]
    Store { key: String, reason: String },
    #[error("cannot write {key}: not written within {PART_DEADLINE:?}")]
    Late { key: String },
    /// Whoever makes the pieces has ended before the last one.
    #[error("cannot write {key}: its content was cut off")]
    Cut { key: String },
}

/// Writes one object from `pieces`, up to the first that is its last. The object is there once all of it is; when this
/// fails there is nothing, or what was there before. A large one is not sent again: its pieces are gone.
pub async fn upload(
    objects: &dyn ObjectStore,
    key: &str,
    pieces: &mut mpsc::Receiver<Piece>,
) -> Result<Content, UploadError> {
    let first = next(key, pieces).await?;
    if first.is_last {
        put(objects, key, &first.bytes).await?;
        return Ok(Content::of(&first.bytes));
    }
    let part_bytes = first.bytes.len();
    let upload = in_time(key, objects.put_multipart(&location(key)?)).await?;
    let mut writing = WriteMultipart::new_with_chunk_size(upload, part_bytes);
    match send(key, first, pieces, &mut writing).await {
        Ok(content) => {
            in_time(key, writing.finish()).await?;
            Ok(content)
        }
        Err(error) => {
            // Parts that stay behind cost space until the bucket's own rules remove them.
            if let Err(error) = in_time(key, writing.abort()).await {
                tracing::warn!(key, %error, "an upload cannot be taken back");
            }
            Err(error)
        }
    }
}

async fn send(
    key: &str,
    first: Piece,
    pieces: &mut mpsc::Receiver<Piece>,
    writing: &mut WriteMultipart,
) -> Result<Content, UploadError> {
    let (mut piece, mut hash, mut size_bytes) = (first, Sha256::new(), 0);
    loop {
        in_time(key, writing.wait_for_capacity(PARTS_AT_A_TIME)).await?;
        let Piece { bytes, is_last } = piece;
        size_bytes += bytes.len() as u64;
        writing.put(bytes.clone());
        // Ten milliseconds and more of a core: not on the runtime's own threads.
        let hashing = tokio::task::spawn_blocking(move || {
            hash.update(&bytes);
            hash
        });
        hash = hashing.await.map_err(|error| store(key, &error))?;
        if is_last {
            return Ok(Content { size_bytes, sha256: hex(&hash.finalize()) });
        }
        piece = next(key, pieces).await?;
    }
}

/// Writes one object, whose content is at hand: tried again where that may help.
pub async fn put(objects: &dyn ObjectStore, key: &str, content: &Bytes) -> Result<(), UploadError> {
    let location = location(key)?;
    let mut failures = 0;
    loop {
        let error = match in_time(key, objects.put(&location, content.clone().into())).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        failures += 1;
        if failures == TRIES {
            return Err(error);
        }
        tokio::time::sleep(Backoff::default().delay(failures, random())).await;
    }
}

async fn next(key: &str, pieces: &mut mpsc::Receiver<Piece>) -> Result<Piece, UploadError> {
    let piece = tokio::time::timeout(PART_DEADLINE, pieces.recv()).await;
    piece.map_err(|_| late(key))?.ok_or_else(|| UploadError::Cut { key: key.into() })
}

async fn in_time<T>(
    key: &str,
    call: impl Future<Output = object_store::Result<T>>,
) -> Result<T, UploadError> {
    let outcome = tokio::time::timeout(PART_DEADLINE, call).await.map_err(|_| late(key))?;
    outcome.map_err(|error| store(key, &error))
}

fn late(key: &str) -> UploadError {
    UploadError::Late { key: key.into() }
}

fn store(key: &str, error: &dyn std::error::Error) -> UploadError {
    UploadError::Store { key: key.into(), reason: with_causes(error) }
}

fn location(key: &str) -> Result<Path, UploadError> {
    Path::parse(key).map_err(|error| store(key, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE_BYTES: usize = 5 << 20;

    fn pieces(content: &[u8], whole: bool) -> mpsc::Receiver<Piece> {
        let (sender, receiver) = mpsc::channel(16);
        let all = content.chunks(PIECE_BYTES);
        let last = all.len() - 1;
        for (at, bytes) in all.enumerate() {
            let piece = Piece { bytes: Bytes::copy_from_slice(bytes), is_last: whole && at == last };
            sender.try_send(piece).unwrap();
        }
        receiver
    }

    #[tokio::test]
    async fn pieces_become_one_object_and_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::objects::open(&format!("file://{}/s", folder.path().display())).unwrap();
        for bytes in [3, PIECE_BYTES, 2 * PIECE_BYTES + 1] {
            let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
            let written = upload(&store, "a/b", &mut pieces(&content, true)).await.unwrap();
            assert_eq!(written, Content::of(&content));
            assert!(std::fs::read(folder.path().join("s/a/b")).unwrap() == content, "{bytes}");
        }
    }

    #[tokio::test]
    async fn an_object_that_is_cut_off_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let store = crate::objects::open(&format!("file://{}/s", folder.path().display())).unwrap();
        let cut = upload(&store, "a", &mut pieces(&vec![1; 2 * PIECE_BYTES], false)).await;
        assert_eq!(cut.unwrap_err().to_string(), "cannot write a: its content was cut off");
        assert_eq!(std::fs::read_dir(folder.path().join("s")).unwrap().count(), 0);
        let wrong = upload(&store, "a//b", &mut pieces(b"x", true)).await.unwrap_err();
        assert!(wrong.to_string().starts_with("cannot write a//b: "), "{wrong}");
    }
}
