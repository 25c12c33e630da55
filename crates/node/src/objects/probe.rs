//! Whether a store keeps its promise never to replace an object that is made under a condition. There are servers that
//! ignore the condition and answer that all is well; two curators would then take different answers for the same
//! question, and two writers' objects could be mixed.

use std::time::Duration;

use crescendo_core::object_keys;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};

use super::with_causes;

/// Limit of the whole check.
const DEADLINE: Duration = Duration::from_secs(150);

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "the object store ignores conditional writes: a second writer replaced the object of the first; use one that honours \
         `If-None-Match: *`"
    )]
    Ignored,
    #[error("the object store does not know conditional writes: {0}")]
    Unknown(String),
    /// Servers list such a bucket with gaps: some leave out what lies below an object's key, others end their list there.
    #[error(
        "the object store's prefix lies below an object: {key} is a key of the bucket, and cannot be a folder too; name another \
         prefix, or remove that object"
    )]
    PrefixIsObject { key: String },
    #[error("the object store cannot be used: {0}")]
    Access(String),
}

impl ProbeError {
    /// Whether another try may end otherwise.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Access(_))
    }
}

/// Makes an object of its own twice, below `probes/`, and deletes it.
pub async fn check_conditional_create(store: &dyn ObjectStore) -> Result<(), ProbeError> {
    let location = Path::from(object_keys::probe(&uuid::Uuid::new_v4().to_string()));
    match tokio::time::timeout(DEADLINE, check(store, &location)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ProbeError::Access(format!("no answer within {DEADLINE:?}"))),
    }
}

/// Whether `prefix`, or a folder that it lies in, is the key of an object. A user who may not ask is taken to be right.
pub async fn check_prefix(whole: &dyn ObjectStore, prefix: &str) -> Result<(), ProbeError> {
    let ends = prefix.match_indices('/').map(|(at, _)| at).chain(std::iter::once(prefix.len()));
    for folder in ends.filter_map(|end| prefix.get(..end)).filter(|folder| !folder.is_empty()) {
        let asked = tokio::time::timeout(DEADLINE, whole.head(&Path::from(folder))).await;
        match asked.map_err(|_| ProbeError::Access(format!("no answer within {DEADLINE:?}")))? {
            Ok(_) => return Err(ProbeError::PrefixIsObject { key: folder.to_owned() }),
            Err(Error::NotFound { .. } | Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) => {}
            Err(error) => return Err(failure(error)),
        }
    }
    Ok(())
}

async fn check(store: &dyn ObjectStore, location: &Path) -> Result<(), ProbeError> {
    let create = |text: &'static str| {
        store.put_opts(location, PutPayload::from_static(text.as_bytes()), PutMode::Create.into())
    };
    match create("first").await {
        // A try whose answer was lost has made it.
        Ok(_) | Err(Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(failure(error)),
    }
    let second = create("second").await;
    let read = async { store.get(location).await?.bytes().await };
    let standing = read.await;
    // What stays behind is small, and nothing depends on it.
    if let Err(error) = store.delete(location).await {
        tracing::warn!(%location, error = with_causes(&error), "the object of a check is not deleted");
    }
    match (second, standing) {
        (Err(Error::AlreadyExists { .. }), Ok(bytes)) if bytes == "first" => Ok(()),
        (Ok(_) | Err(Error::AlreadyExists { .. }), Ok(_)) => Err(ProbeError::Ignored),
        (Err(error), _) | (_, Err(error)) => Err(failure(error)),
    }
}

fn failure(error: Error) -> ProbeError {
    match error {
        Error::NotImplemented { .. } | Error::NotSupported { .. } => ProbeError::Unknown(with_causes(&error)),
        error if with_causes(&error).contains("501 Not Implemented") => {
            ProbeError::Unknown(with_causes(&error))
        }
        error => ProbeError::Access(with_causes(&error)),
    }
}
