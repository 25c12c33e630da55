//! Answers that have been given, by the hash of what was asked.
//!
//! One object an answer, `endpoint/replies/of-<model>/<2 digits>/<hash>.json`, made under a conditional create. Whoever asks the
//! same of the same model at the same address reads it, in this job or in another. Only what was understood is written down:
//! a refusal, or an answer that nothing could be read from, would otherwise outlive its cause. One that was written down
//! and is not understood any more is replaced.

use crescendo_core::object_keys;
use crescendo_dataset::digest::{hex, of_model};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;

/// Limit of one access.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest record that is read: an answer of full size, escaped.
const MAX_RECORD_BYTES: u64 = 8 << 20;

/// An answer that was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recorded {
    pub text: String,
    pub input_tokens: u64,
    pub output_tokens: u64,
}

/// The hash of a request: its address and its body, which names the model.
pub fn question(url: &str, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    let url = url.trim_end_matches('/');
    hash.update((url.len() as u64).to_le_bytes());
    hash.update(url.as_bytes());
    hash.update(body);
    hex(&hash.finalize())
}

/// The answers of one model in an object store.
#[derive(Clone, Debug)]
pub struct ResponseCache {
    objects: Arc<dyn ObjectStore>,
    /// Digest of its address and name.
    model: String,
}

impl ResponseCache {
    pub fn new(objects: Arc<dyn ObjectStore>, url: &str, model: &str) -> ResponseCache {
        ResponseCache { objects, model: of_model(url, model) }
    }

    fn path(&self, question: &str) -> Path {
        Path::from(object_keys::reply(&self.model, question))
    }

    /// The answer to a question, if there has been one.
    pub async fn read(&self, question: &str) -> Result<Option<Recorded>, String> {
        for path in [self.path(question), Path::from(object_keys::older_reply(question))] {
            if let Some(bytes) = read_bounded(&*self.objects, &path, MAX_RECORD_BYTES).await? {
                return serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                    format!("{path} is damaged ({e}); delete it to have the question asked again")
                });
            }
        }
        Ok(None)
    }

    /// Writes an answer down in the place of one that is not understood.
    pub async fn replace(&self, question: &str, recorded: &Recorded) -> Result<(), String> {
        let bytes = serde_json::to_vec(recorded).map_err(|e| e.to_string())?;
        put(&*self.objects, &self.path(question), bytes).await
    }

    /// Writes an answer down, and gives the one that stands: this, or that of somebody who was faster.
    pub async fn write(&self, question: &str, recorded: Recorded) -> Result<Recorded, String> {
        let path = self.path(question);
        let bytes = serde_json::to_vec(&recorded).map_err(|e| e.to_string())?;
        if create(&*self.objects, &path, bytes).await? {
            return Ok(recorded);
        }
        self.read(question).await?.ok_or_else(|| format!("{path} is there and cannot be found"))
    }
}

/// The bytes of an object, if it is there.
pub(crate) async fn read_bounded(
    objects: &dyn ObjectStore,
    path: &Path,
    most: u64,
) -> Result<Option<bytes::Bytes>, String> {
    let reading = async {
        let found = objects.get(path).await?;
        if found.meta.size > most {
            return Ok(Err(format!("{path} has {} bytes, more than {most}", found.meta.size)));
        }
        found.bytes().await.map(Ok)
    };
    match tokio::time::timeout(DEADLINE, reading).await {
        Ok(Ok(bytes)) => bytes.map(Some),
        Ok(Err(object_store::Error::NotFound { .. })) => Ok(None),
        Ok(Err(error)) => Err(format!("cannot read {path}: {error}")),
        Err(_) => Err(format!("cannot read {path}: no answer within {DEADLINE:?}")),
    }
}

/// Makes an object; false where there is one already.
pub(crate) async fn create(objects: &dyn ObjectStore, path: &Path, bytes: Vec<u8>) -> Result<bool, String> {
    let creating = objects.put_opts(path, PutPayload::from(bytes), PutMode::Create.into());
    match tokio::time::timeout(DEADLINE, creating).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(object_store::Error::AlreadyExists { .. })) => Ok(false),
        Ok(Err(error)) => Err(format!("cannot write {path}: {error}")),
        Err(_) => Err(format!("cannot write {path}: no answer within {DEADLINE:?}")),
    }
}

/// Makes an object, or replaces the one that is there.
pub(crate) async fn put(objects: &dyn ObjectStore, path: &Path, bytes: Vec<u8>) -> Result<(), String> {
    match tokio::time::timeout(DEADLINE, objects.put(path, PutPayload::from(bytes))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("cannot write {path}: {error}")),
        Err(_) => Err(format!("cannot write {path}: no answer within {DEADLINE:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_answer_stands() {
        let folder = tempfile::tempdir().expect("make a folder");
        let objects = crescendo_node::objects::open(&format!("file://{}", folder.path().display()));
        let log = ResponseCache::new(objects.expect("open"), "https://host/v1", "m");
        let said = |text: &str| Recorded { text: text.into(), input_tokens: 3, output_tokens: 1 };
        let asked = question("https://host/v1/", b"{}");
        assert_eq!(asked, question("https://host/v1", b"{}"));
        assert_ne!(asked, question("https://host/v2", b"{}"));
        assert_eq!(log.read(&asked).await, Ok(None));
        assert_eq!(log.write(&asked, said("first")).await, Ok(said("first")));
        assert_eq!(log.write(&asked, said("second")).await, Ok(said("first")));
        assert_eq!(log.read(&asked).await, Ok(Some(said("first"))));
        log.replace(&asked, &said("third")).await.expect("replace it");
        assert_eq!(log.read(&asked).await, Ok(Some(said("third"))));
        let file = folder.path().join(log.path(&asked).as_ref());
        std::fs::write(file, "{\"text\":").expect("spoil it");
        assert!(log.read(&asked).await.expect_err("it is spoilt").contains("delete it"));
    }

    #[tokio::test]
    async fn what_was_written_before_answers_were_kept_by_model_is_read() {
        let folder = tempfile::tempdir().expect("make a folder");
        let objects = crescendo_node::objects::open(&format!("file://{}", folder.path().display()));
        let log = ResponseCache::new(objects.expect("open"), "https://host/v1", "m");
        let asked = question("https://host/v1/", b"{}");
        let file = folder.path().join(object_keys::older_reply(&asked));
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("make its folder");
        std::fs::write(file, r#"{"text":"yes","inputTokens":3,"outputTokens":1}"#).expect("write");
        assert_eq!(log.read(&asked).await.expect("read").expect("it is there").text, "yes");
    }
}
