//! The object store behind a URL: a folder, or a bucket of S3 or of a server that speaks its protocol.
//!
//! ```text
//!   url ─▶ Location ─┬─ file:///DIR ────▶ LocalFileSystem, durable writes
//!                    └─ s3://BUCKET/PRE ─▶ prefix ─▶ InParts ─▶ AmazonS3 ─▶ Discreet ─▶ ConflictsPass ─▶ network
//!   environment ─▶ s3::Settings ──────────────────────────────────┘      no keys in errors, no conflict taken for "is there"
//! ```
//!
//! Keys of S3 come from the process's own environment, or from files that it names. They are never part of a URL, so
//! they are in no command line, record or message.

pub mod cache;
mod conflict;
mod credentials;
pub mod download;
mod in_parts;
mod location;
pub mod mark;
mod probe;
mod redacted_http;
mod s3;
pub mod torn;
pub mod upload;

use std::path::PathBuf;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::AmazonS3;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;

pub use location::Location;
pub use probe::{ProbeError, check_conditional_create};

#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    #[error("object store url {url}: {reason}")]
    Url { url: String, reason: String },
    #[error("cannot open object store {url}")]
    Open {
        url: String,
        #[source]
        source: object_store::Error,
    },
    #[error("cannot create the folder of object store {url}")]
    Folder {
        url: String,
        #[source]
        source: std::io::Error,
    },
    /// A variable of the environment that S3 is set up by.
    #[error("{name}: {reason}")]
    Setting { name: &'static str, reason: String },
}

/// Opens the store at `url`. `file:///ABSOLUTE/PATH` is a folder of this machine (made if it is missing, written durably);
/// `s3://BUCKET/PREFIX` is a bucket, set up by the variables of the environment that `s3.rs` beside this names. Nothing is sent yet.
pub fn open(url: &str) -> Result<Arc<dyn ObjectStore>, ObjectsError> {
    open_with(url, &|name| std::env::var(name).ok())
}

/// The same, with the variables of the environment as an argument.
pub fn open_with(
    url: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn ObjectStore>, ObjectsError> {
    match Location::parse(url)? {
        Location::Folder(folder) => open_folder(url, folder),
        Location::S3 { bucket, prefix } => {
            let settings = s3::Settings::from_environment(environment)?;
            let store =
                settings.open(&bucket).map_err(|source| ObjectsError::Open { url: url.into(), source })?;
            let store = in_parts::InParts::new(store);
            let store: Arc<dyn ObjectStore> = match prefix.as_str() {
                "" => Arc::new(store),
                prefix => Arc::new(PrefixStore::new(store, prefix)),
            };
            Ok(store)
        }
    }
}

fn open_folder(url: &str, folder: PathBuf) -> Result<Arc<dyn ObjectStore>, ObjectsError> {
    std::fs::create_dir_all(&folder).map_err(|source| ObjectsError::Folder { url: url.into(), source })?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|source| ObjectsError::Open { url: url.into(), source })?
        .with_fsync(true)
        // Deleting a checkpoint takes its folder along.
        .with_automatic_cleanup(true);
    Ok(Arc::new(store))
}

/// What only a request can tell of the store at `url`, before anything rests on it: that a bucket is there, honours conditions,
/// and that its prefix is no object's key. A folder's conditions are the library's own.
pub async fn verify(url: &str, store: &dyn ObjectStore) -> Result<(), ProbeError> {
    verify_with(url, store, &|name| std::env::var(name).ok()).await
}

/// The same, with the variables of the environment as an argument.
pub fn verify_with(
    url: &str,
    store: &dyn ObjectStore,
    environment: &dyn Fn(&str) -> Option<String>,
) -> impl Future<Output = Result<(), ProbeError>> + Send {
    // The environment is asked before anything is waited for.
    let whole = whole_bucket(url, environment);
    async move {
        match whole? {
            None => Ok(()),
            Some((bucket, prefix)) => {
                probe::check_prefix(&bucket, &prefix).await?;
                check_conditional_create(store).await
            }
        }
    }
}

/// The bucket without its prefix, and the prefix; nothing where the store is a folder.
fn whole_bucket(
    url: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<(AmazonS3, String)>, ProbeError> {
    let unknown = |error: &dyn std::error::Error| ProbeError::Unknown(with_causes(error));
    match Location::parse(url).map_err(|error| unknown(&error))? {
        Location::Folder(_) => Ok(None),
        Location::S3 { bucket, prefix } => {
            let settings = s3::Settings::from_environment(environment).map_err(|error| unknown(&error))?;
            Ok(Some((settings.open(&bucket).map_err(|error| unknown(&error))?, prefix)))
        }
    }
}

/// An error with its causes, on few lines: the store's own errors have what matters (the server's answer) in a cause, and
/// libtorch appends its stack to what it says.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    const STACK: &str = "\nException raised from ";
    let said = |error: &dyn std::error::Error| {
        let text = error.to_string();
        text.split_once(STACK).map_or(text.clone(), |(said, _)| said.to_owned())
    };
    let mut text = said(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = said(error);
        // Many errors repeat their cause in their own text.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt as _;

    #[tokio::test]
    async fn opens_a_new_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&format!("file://{}/a/b", folder.path().display())).unwrap();
        store.put(&"x/y".into(), "content".into()).await.unwrap();
        assert_eq!(std::fs::read(folder.path().join("a/b/x/y")).unwrap(), b"content");
        check_conditional_create(&store).await.unwrap();
    }

    #[test]
    fn causes_are_told_and_stacks_are_not() {
        let torch =
            "it does not fit\nException raised from f at a.cpp:7 (most recent call first):\nframe #0: g";
        let error = ProbeError::Access(torch.to_owned());
        assert_eq!(with_causes(&error), "the object store cannot be used: it does not fit");
        let cause = std::io::Error::other("no room");
        let error = ObjectsError::Folder { url: "file:///x".into(), source: cause };
        assert_eq!(with_causes(&error), "cannot create the folder of object store file:///x: no room");
    }

    #[test]
    fn a_bucket_needs_no_network_to_be_opened() {
        let variables = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("id".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("very secret".to_owned()),
            _ => None,
        };
        let store = open_with("s3://bucket/some/prefix", &variables).unwrap();
        assert!(!format!("{store:?}").contains("very secret"));
        assert!(store.to_string().contains("some/prefix"), "{store}");
    }
}
