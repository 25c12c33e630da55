//! The object store, with a small object; and the store of records, if it is named.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crescendo_core::object_keys;
use crescendo_node::objects::with_causes;
use crescendo_store::{ConnectEtcd, KEY_PREFIX, StoreLocation};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};

use super::report::Check;
use crate::args::StoreTls;
use crate::failure::Failure;
use crate::objects::as_url;
use crate::settings::Tls;
use crate::wire::dialer;

const WITHIN: Duration = Duration::from_secs(30);
/// Below this an etcd is fast enough for every call to wait for it.
const STORE_SLOW: Duration = Duration::from_millis(100);

/// `named` by the user, the context or `up`; `told` by a controller, whose folders may be on other machines.
pub async fn objects(named: Option<&str>, told: Option<&str>) -> Vec<Check> {
    let name = "object store";
    let url = match (named.map(as_url), told) {
        (Some(Ok(url)), _) => url,
        (Some(Err(failure)), _) => {
            return vec![Check::failed(
                name,
                failure.to_string(),
                "name its folder or URL with --object-store",
            )];
        }
        (None, Some(told)) => {
            if let Some(folder) = told.strip_prefix("file://")
                && !Path::new(folder).is_dir()
            {
                let why = format!("the cluster's is {told}, a folder that this machine does not have");
                return vec![Check::skipped(name, why)];
            }
            told.to_owned()
        }
        (None, None) => return vec![Check::skipped(name, "not named; --object-store names it")],
    };
    let store = match crescendo_node::objects::open(&url) {
        Ok(store) => store,
        Err(error) => {
            return vec![Check::failed(
                name,
                with_causes(&error),
                "correct the URL, or the rights to that folder or bucket",
            )];
        }
    };
    let key = Key::from(object_keys::probe(&uuid::Uuid::new_v4().to_string()));
    let found = tokio::time::timeout(WITHIN, probe(&store, &key)).await;
    let check = match found {
        Err(_) => Check::failed(
            name,
            format!("{url}: no answer within {} s", WITHIN.as_secs()),
            "look at the network to it",
        ),
        Ok(Err((what, remedy))) => Check::failed(name, format!("{url}: {what}"), remedy),
        Ok(Ok(took)) => Check::ok(
            name,
            format!("{url}: written, refused a second time, read and deleted in {} ms", took.as_millis()),
        ),
    };
    vec![check]
}

/// What went wrong, and what to do.
type Wrong = (String, &'static str);

/// A commit rests on this: what was written is read, and is never written over.
async fn probe(store: &Arc<dyn ObjectStore>, key: &Key) -> Result<Duration, Wrong> {
    let began = Instant::now();
    let content = b"written by crescendo doctor".as_slice();
    let create = || {
        let payload = PutPayload::from_static(b"written by crescendo doctor");
        store.put_opts(key, payload, PutOptions::from(PutMode::Create))
    };
    let rights = "check the rights: this user must read, write and delete there";
    create().await.map_err(|error| (format!("cannot be written: {}", with_causes(&error)), rights))?;
    let again = match create().await {
        Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err((
            format!("a second write was not refused as it should be: {}", with_causes(&error)),
            CONDITIONAL,
        )),
        Ok(_) => Err(("it writes over what is there although it is asked not to".to_owned(), CONDITIONAL)),
    };
    let read = async { store.get(key).await?.bytes().await }.await;
    // Whatever the answers were, nothing is left behind.
    let deleted = store.delete(key).await;
    again?;
    let read = read.map_err(|error| (format!("cannot be read: {}", with_causes(&error)), rights))?;
    if read != content {
        return Err(("what was read is not what was written".into(), "do not use this store"));
    }
    deleted.map_err(|error| (format!("cannot be deleted: {}", with_causes(&error)), rights))?;
    Ok(began.elapsed())
}

const CONDITIONAL: &str = "use a store that honours conditional writes (If-None-Match): commits rest on them";

/// The store of records, as controllers are told of it.
pub async fn records(text: &str, files: &StoreTls) -> Check {
    let name = "store";
    let location: StoreLocation = match text.parse() {
        Ok(location) => location,
        Err(error) => {
            return Check::failed(name, with_causes(&error), "write it as the controllers are given it");
        }
    };
    if let StoreLocation::Embedded { dir } = &location {
        // Opening it would take it away from its controller.
        return match dir.metadata() {
            Ok(found) if found.is_dir() => {
                Check::ok(name, format!("{location} is there; one controller has it for itself"))
            }
            Ok(_) => Check::failed(name, format!("{location} is not a folder"), "name a folder"),
            Err(error) => Check::failed(
                name,
                format!("{location}: {error}"),
                "the controller makes it when it starts: has it ever?",
            ),
        };
    }
    let connect = match connect(&location, files).await {
        Ok(connect) => connect,
        Err(failure) => {
            return Check::failed(
                name,
                failure.to_string(),
                "correct --store-ca, --store-cert or --store-key",
            );
        }
    };
    let began = Instant::now();
    let read = async {
        let store = location.open(KEY_PREFIX, connect).await?;
        let opened = Instant::now();
        let page = store.list("jobs/", None, 1).await;
        let took = opened.elapsed();
        store.close().await;
        page.map(|_| took)
    };
    match tokio::time::timeout(WITHIN, read).await {
        Err(_) => Check::failed(
            name,
            format!("{location}: no answer within {} s", WITHIN.as_secs()),
            "look at the network to etcd",
        ),
        Ok(Err(error)) => Check::failed(
            name,
            format!("{location}: {} (after {} ms)", with_causes(&error), began.elapsed().as_millis()),
            "is etcd running, are its URLs right, and does it want a client certificate?",
        ),
        Ok(Ok(took)) if took > STORE_SLOW => Check::warning(
            name,
            format!("{location} answers a read in {} ms", took.as_millis()),
            "give etcd fast disks of its own: every submit and every checkpoint waits for it",
        ),
        Ok(Ok(took)) => Check::ok(name, format!("{location} answers a read in {} ms", took.as_millis())),
    }
}

/// For members at `https://`: by the files for the store, or the system's roots.
async fn connect(location: &StoreLocation, files: &StoreTls) -> Result<Option<ConnectEtcd>, Failure> {
    let StoreLocation::Etcd { endpoints } = location else { return Ok(None) };
    if !endpoints.iter().any(|url| url.starts_with("https://")) {
        return Ok(None);
    }
    let StoreTls { store_ca, store_cert, store_key } = files.clone();
    let dialer = dialer(&Tls { ca: store_ca, cert: store_cert, key: store_key }).await?;
    Ok(Some(Arc::new(move |endpoint| dialer.connect(endpoint))))
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    #[tokio::test]
    async fn a_folder_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        let [check] = &objects(Some(&path), None).await[..] else { panic!("one check") };
        assert_eq!(check.status, Status::Ok, "{check:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
        let missing = objects(None, Some("file:///nowhere/at/all")).await;
        assert_eq!(missing[0].status, Status::Skipped);
        assert_eq!(objects(Some("gopher://x"), None).await[0].status, Status::Failed);
        assert_eq!(objects(None, None).await[0].status, Status::Skipped);
    }

    #[tokio::test]
    async fn what_is_there_is_not_written_over() {
        let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        assert!(probe(&store, &Key::from("a")).await.is_ok());
        store.put(&Key::from("b"), "theirs".into()).await.unwrap();
        let (what, _) = probe(&store, &Key::from("b")).await.unwrap_err();
        assert!(what.contains("cannot be written"), "{what}");
    }

    #[tokio::test]
    async fn a_store_that_is_not_there_says_so() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let check = records(&format!("etcd:http://{free}"), &StoreTls::default()).await;
        assert_eq!(check.status, Status::Failed, "{check:?}");
        assert_eq!(records("redis:x", &StoreTls::default()).await.status, Status::Failed);
        assert_eq!(records("embedded:/nowhere", &StoreTls::default()).await.status, Status::Failed);
    }
}
