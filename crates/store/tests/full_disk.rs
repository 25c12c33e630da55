//! The embedded store on a disk that is full, read-only and free again.

use std::time::Duration;

use crescendo_store::{EmbeddedConfig, EmbeddedStore, Revision, Store, StoreError, Txn, WatchEvent};
use crescendo_testing::{SmallDisk, eventually};

async fn open(disk: &SmallDisk) -> EmbeddedStore {
    EmbeddedStore::open(EmbeddedConfig::new(disk.path().join("store"), "/test/")).await.expect("opens")
}

/// Writes records of 64 KiB, each once, until one is refused; returns how many there are and the error.
async fn write_until_refused(store: &EmbeddedStore) -> (u64, StoreError) {
    for number in 0..1000 {
        let key = format!("jobs/{number:04}");
        if let Err(error) = store.txn(Txn::new().absent(key.clone()).put(key, vec![7; 64 << 10])).await {
            return (number, error);
        }
    }
    panic!("the disk took everything");
}

async fn there_are(store: &EmbeddedStore) -> Option<u64> {
    store.snapshot("jobs/").await.ok().map(|snapshot| snapshot.items.len() as u64)
}

async fn goes_on(store: &EmbeddedStore, written: u64) {
    eventually("the store takes writes again", || async {
        Ok(store.txn(Txn::new().put("after", "x")).await.ok())
    })
    .await
    .expect("it does");
    assert_eq!(there_are(store).await, Some(written));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_once_there_is_room_all_goes_on() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    let store = open(&disk).await;
    let leadership = store.campaign("c", "me", Duration::from_secs(60), Duration::from_secs(5)).await;
    let leadership = leadership.expect("nobody else leads");
    let mut watch = store.watch("after", Some(Revision(0)));
    for _ in 0..2 {
        disk.fill();
        let (written, error) = write_until_refused(&store).await;
        assert!(
            matches!(&error, StoreError::NotApplied(cause) if cause.to_string().contains("No space left")),
            "{error:?}"
        );
        disk.free();
        goes_on(&store, written).await;
        // Deletions make room in the file for the next round.
        for number in 0..written {
            store.txn(Txn::new().delete(format!("jobs/{number:04}"))).await.expect("there is room");
        }
    }
    // Its leases have gone on, and so have its watches.
    let mut fenced = Txn::new().put("after", "y");
    fenced.fence = Some(leadership.fence().clone());
    store.txn(fenced).await.expect("it still leads");
    let mut seen = 0;
    while seen < 3 {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time");
        match event {
            Some(WatchEvent::Put(record)) => {
                assert_eq!(record.key, "after");
                seen += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_read_only_for_a_while_needs_no_restart() {
    let Some(disk) = SmallDisk::mount(16) else { return };
    let store = open(&disk).await;
    store.txn(Txn::new().put("jobs/a", "x")).await.expect("there is room");
    store.close().await;
    disk.read_only(true);
    let refused = EmbeddedStore::open(EmbeddedConfig::new(disk.path().join("store"), "/test/")).await;
    assert!(matches!(refused, Err(StoreError::Open { .. })));
    disk.read_only(false);
    let store = open(&disk).await;
    goes_on(&store, 1).await;
    store.close().await;
}
