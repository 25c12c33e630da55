//! The mark in the root of an object store: which cluster's it is, and which store. It tells a store from the empty folder that is
//! there while a file system is not mounted, and from another machine's folder of the same path. Of a root that another cluster has
//! marked everything can be used; but who knows nothing of its jobs collects nothing there.
//!
//! The first node that uses a root marks it, by a conditional create that one of several wins; the controller remembers what the
//! mark says, so that it is missed when it is gone.

use std::fmt;

use crescendo_core::object_keys;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload};
use serde::{Deserialize, Serialize};

use super::with_causes;
use crate::runtime::random;

/// What a mark is made of, JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Id of the cluster that has made it.
    pub cluster: String,
    /// Id of the store, made up by whoever marked it.
    pub store: String,
    /// There were no jobs in it: all that are there now have been this cluster's.
    #[serde(default)]
    pub began_empty: bool,
}

/// What the mark has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub cluster: String,
    /// None as long as no node has seen or made a mark.
    pub store: Option<String>,
}

/// Why a root is not used. The text is for people: it says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MarkError {
    /// It had a mark, and has none.
    Missing { wanted: Mark },
    /// The mark is of another store.
    Another { found: String, wanted: String },
    /// The mark is none.
    Garbled { why: String },
    /// It is not known: the store does not answer as it should.
    Access(String),
}

impl fmt::Display for MarkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = object_keys::MARK;
        match self {
            Self::Missing { wanted } => {
                let content = serde_json::to_string(wanted).unwrap_or_default();
                write!(
                    f,
                    "its mark, {mark}, is gone: is it mounted? If it is the right one all the same, put this into that file: {content}"
                )
            }
            Self::Another { found, wanted } => write!(
                f,
                "its mark, {mark}, says {found}, and that of the other nodes {wanted}: is it the same place on every machine?"
            ),
            Self::Garbled { why } => write!(f, "its mark, {mark}, cannot be read: {why}"),
            Self::Access(why) => f.write_str(why),
        }
    }
}

impl MarkError {
    /// Another look may come to something else, although nothing has changed.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Access(_))
    }
}

/// Reads the mark in the root of `store`, or makes it if nothing is against that.
pub async fn check_mark(store: &dyn ObjectStore, expected: &Expected) -> Result<Mark, MarkError> {
    if let Some(found) = read_mark(store).await? {
        return judge(found, expected);
    }
    if let Some(wanted) = &expected.store {
        let (cluster, store) = (expected.cluster.clone(), wanted.clone());
        return Err(MarkError::Missing { wanted: Mark { cluster, store, began_empty: false } });
    }
    let began_empty = !root_names(store).await?.iter().any(|name| name == object_keys::JOBS);
    let mark = Mark { cluster: expected.cluster.clone(), store: random::id(), began_empty };
    let content = serde_json::to_vec(&mark).map_err(|error| MarkError::Garbled { why: error.to_string() })?;
    let place = Key::from(object_keys::MARK);
    match store.put_opts(&place, PutPayload::from(content), PutMode::Create.into()).await {
        Ok(_) => Ok(mark),
        // Another was first, or a try whose answer was lost was this one's.
        Err(Error::AlreadyExists { .. }) => match read_mark(store).await? {
            Some(found) => judge(found, expected),
            None => Err(MarkError::Access("its mark was made and is gone again".to_owned())),
        },
        Err(error) => Err(MarkError::Access(with_causes(&error))),
    }
}

/// The mark in the root of `store`, whatever it says.
pub async fn read_mark(store: &dyn ObjectStore) -> Result<Option<Mark>, MarkError> {
    let read = async { store.get(&Key::from(object_keys::MARK)).await?.bytes().await };
    match read.await {
        Ok(content) => match serde_json::from_slice(&content) {
            Ok(mark) => Ok(Some(mark)),
            Err(error) => Err(MarkError::Garbled { why: error.to_string() }),
        },
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(MarkError::Access(with_causes(&error))),
    }
}

/// Pure: whether the mark is the one that is expected.
fn judge(found: Mark, expected: &Expected) -> Result<Mark, MarkError> {
    match &expected.store {
        Some(wanted) if *wanted != found.store => {
            Err(MarkError::Another { found: found.store, wanted: wanted.clone() })
        }
        Some(_) | None => Ok(found),
    }
}

async fn root_names(store: &dyn ObjectStore) -> Result<Vec<String>, MarkError> {
    let listed = store.list_with_delimiter(None).await;
    let listed = listed.map_err(|error| MarkError::Access(with_causes(&error)))?;
    let objects = listed.objects.iter().map(|object| object.location.to_string());
    Ok(listed.common_prefixes.iter().map(Key::to_string).chain(objects).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::*;
    use crate::objects;

    fn expects(cluster: &str, store: Option<&str>) -> Expected {
        Expected { cluster: cluster.into(), store: store.map(str::to_owned) }
    }

    #[tokio::test]
    async fn an_empty_root_is_marked_once_and_known_again() {
        let store = InMemory::new();
        let mark = check_mark(&store, &expects("a", None)).await.expect("it is empty");
        assert!(mark.began_empty && mark.cluster == "a");
        for expected in [expects("a", None), expects("a", Some(&mark.store))] {
            assert_eq!(check_mark(&store, &expected).await.as_ref(), Ok(&mark));
        }
        // A cluster that was set up anew over old data, or that shares the root.
        for expected in [expects("b", None), expects("b", Some(&mark.store))] {
            assert_eq!(check_mark(&store, &expected).await.as_ref(), Ok(&mark));
        }
        let another = check_mark(&store, &expects("a", Some("other"))).await.expect_err("another store");
        assert!(another.to_string().contains("is it the same place on every machine?"), "{another}");
    }

    #[tokio::test]
    async fn a_folder_that_is_not_mounted_is_not_taken_for_an_empty_store() {
        let (mounted, empty) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = |folder: &tempfile::TempDir| {
            objects::open(&format!("file://{}", folder.path().display())).expect("a folder")
        };
        let mark = check_mark(&open(&mounted), &expects("a", None)).await.expect("it is empty");
        let error = check_mark(&open(&empty), &expects("a", Some(&mark.store))).await.expect_err("no mark");
        assert!(error.to_string().contains("is it mounted?") && !error.is_passing(), "{error}");
        assert!(empty.path().read_dir().expect("a folder").next().is_none(), "nothing was written");
        // As the error says, for one that is right all the same.
        let content = error.to_string().rsplit_once("into that file: ").expect("it says what").1.to_owned();
        std::fs::write(empty.path().join(object_keys::MARK), content).expect("written");
        check_mark(&open(&empty), &expects("a", Some(&mark.store))).await.expect("as it was told");
    }

    #[tokio::test]
    async fn a_root_that_holds_something_is_adopted_and_its_jobs_are_not_taken_for_this_clusters() {
        for (key, began_empty) in [
            ("jobs/j/s/pairs/unit-000000-l1.tar", false),
            // What people have put there for their specs to name.
            ("models/flux1-dev.safetensors", true),
            ("tenants/research/a.safetensors", true),
            ("letter.txt", true),
        ] {
            let store = InMemory::new();
            store.put(&key.into(), "x".into()).await.expect("written");
            let mark = check_mark(&store, &expects("a", None)).await.expect("nobody has marked it");
            assert_eq!(mark.began_empty, began_empty, "{key} {mark:?}");
        }
    }

    #[tokio::test]
    async fn of_two_that_mark_at_a_time_one_wins_and_both_know_it() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let expected = expects("a", None);
        let marks: Vec<Mark> =
            futures::future::join_all((0..8).map(|_| check_mark(store.as_ref(), &expected)))
                .await
                .into_iter()
                .collect::<Result<_, _>>()
                .expect("all may use it");
        assert!(marks.iter().all(|mark| *mark == marks[0]), "{marks:?}");
    }

    #[tokio::test]
    async fn a_mark_that_is_none_is_said_so() {
        let store = InMemory::new();
        store.put(&object_keys::MARK.into(), "{".into()).await.expect("written");
        let error = check_mark(&store, &expects("a", None)).await.expect_err("garbled");
        assert!(error.to_string().contains("crescendo.store, cannot be read"), "{error}");
    }
}
