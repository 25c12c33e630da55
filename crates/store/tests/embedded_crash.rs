//! `kill -9` of a process that writes to the embedded store, and what a second process is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crescendo_store::{EmbeddedConfig, EmbeddedStore, Revision, Store, StoreError, Txn, WatchEvent};

fn spawn_writer(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_store_bench"))
        .args(["write-forever", "--writers", "8", "--store"])
        .arg(format!("embedded:{}", dir.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills the writer after some acknowledgements and returns all that it gave: the last number of each writer, and the
/// last revision.
fn kill_after(mut child: Child, acknowledgements: usize) -> (BTreeMap<usize, u64>, Revision) {
    let mut last_numbers = BTreeMap::new();
    let mut last_revision = Revision(0);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut take = |line: String| {
        let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let [writer, number, revision] = words[..] else { panic!("not a line of the writer: {line:?}") };
        last_numbers.insert(writer as usize, number);
        last_revision = last_revision.max(Revision(revision));
    };
    for line in lines.by_ref().take(acknowledgements) {
        take(line.unwrap());
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had printed before it died was acknowledged too.
    for line in lines {
        take(line.unwrap());
    }
    (last_numbers, last_revision)
}

async fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(EmbeddedConfig::new(dir, "/crash/v1/")).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_transaction_outlives_kill_9_and_none_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let mut revision_before = Revision(0);
    for acknowledgements in [1, 37, 200, 411, 800] {
        let (last_numbers, last_revision) = kill_after(spawn_writer(dir.path()), acknowledgements);
        let store = open(dir.path()).await;
        let snapshot = store.snapshot("").await.unwrap();
        assert!(snapshot.revision >= last_revision, "{} < {last_revision}", snapshot.revision);
        assert!(last_revision > revision_before);
        revision_before = snapshot.revision;

        let records: BTreeMap<&str, &[u8]> =
            snapshot.items.iter().map(|item| (item.key.as_str(), item.value.as_ref())).collect();
        let mut logged = BTreeMap::<&str, u64>::new();
        for key in records.keys() {
            if let Some((writer, _)) = key.strip_prefix("log/").and_then(|rest| rest.split_once('/')) {
                *logged.entry(writer).or_default() += 1;
            }
        }
        for (writer, acknowledged) in last_numbers {
            let (left, right) = (records[&*format!("left/{writer}")], records[&*format!("right/{writer}")]);
            assert_eq!(left, right, "a torn transaction of writer {writer}");
            let number: u64 = std::str::from_utf8(left).unwrap().parse().unwrap();
            assert!(
                number >= acknowledged,
                "writer {writer}: {acknowledged} was acknowledged, {number} is there"
            );
            assert_eq!(logged[&*writer.to_string()], number, "writer {writer}");
        }
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let child = spawn_writer(dir.path());
    // Killed at the end of the scope, whatever happens.
    struct Killed(Child);
    impl Drop for Killed {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let mut child = Killed(child);
    // Kept to the end: a writer whose output nobody reads any more ends with a broken pipe, and closes its store.
    let mut acknowledged = BufReader::new(child.0.stdout.take().unwrap());
    acknowledged.read_line(&mut String::new()).unwrap();
    let Err(error) = EmbeddedStore::open(EmbeddedConfig::new(dir.path(), "/crash/v1/")).await else {
        panic!("two processes have the store open");
    };
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    assert!(error.to_string().contains("already open in another process"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_and_revisions_stay_and_leases_end_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let put = store.txn(Txn::new().put("jobs/a", "1")).await.unwrap();
    let old_lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    store.txn(Txn::new().put_leased("nodes/a", "here", &old_lease)).await.unwrap();
    let old_lease_id = old_lease.id();
    // As a crash leaves it: with the lease's record still in the file.
    old_lease.abandon();
    store.close().await;
    let bytes = std::fs::read(dir.path().join("store.redb")).unwrap();
    assert!(bytes.windows(7).any(|window| window == b"nodes/a"));

    let store = open(dir.path()).await;
    assert_eq!(store.get("jobs/a").await.unwrap().unwrap().mod_revision, put);
    assert_eq!(store.get("nodes/a").await.unwrap(), None);
    let now = store.snapshot("").await.unwrap().revision;
    assert!(now > put);
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    assert_ne!(lease.id(), old_lease_id);

    // A watch from before the restart cannot be given the changes in between, among them the lease's end.
    let mut watch = store.watch("", Some(put));
    let event = watch.next().await.unwrap();
    assert!(matches!(&event, WatchEvent::Resync { items, .. } if items.len() == 1), "{event:?}");
    let mut watch = store.watch("", Some(now));
    let next = store.txn(Txn::new().at_revision("jobs/a", put).put("jobs/a", "2")).await.unwrap();
    let event = watch.next().await.unwrap();
    assert!(matches!(&event, WatchEvent::Put(record) if record.mod_revision == next), "{event:?}");
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("store.redb"), b"not a store at all, but long enough to be read as one")
        .unwrap();
    let Err(error) = EmbeddedStore::open(EmbeddedConfig::new(dir.path(), "/crash/v1/")).await else {
        panic!("opened");
    };
    assert!(error.to_string().contains("store.redb"), "{error}");
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let Err(error) = EmbeddedStore::open(EmbeddedConfig::new(file.join("store"), "/crash/v1/")).await else {
        panic!("opened");
    };
    assert!(matches!(&error, StoreError::Open { path, .. } if path.starts_with(&file)), "{error:?}");
}
