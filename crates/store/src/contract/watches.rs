//! Watches.

use std::collections::BTreeMap;

use super::{Fixture, next};
use crate::{Revision, Txn, WatchEvent};

/// `after: None`.
pub async fn a_watch_from_nothing_begins_with_everything(fixture: &impl Fixture) {
    let store = fixture.store();
    let mut empty = store.watch("none/", None);
    let WatchEvent::Resync { items, .. } = next(&mut empty).await else { panic!("no resync") };
    assert_eq!(items, []);

    let revision =
        store.txn(Txn::new().put("jobs/a", "1").put("jobs/b", "1").put("other", "1")).await.unwrap();
    let mut watch = store.watch("jobs/", None);
    let first = next(&mut watch).await;
    assert_eq!(first.revision(), revision);
    let WatchEvent::Resync { items, .. } = first else { panic!("{first:?}") };
    assert_eq!(items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["jobs/a", "jobs/b"]);

    let revision = store.txn(Txn::new().put("jobs/c", "1")).await.unwrap();
    let WatchEvent::Put(record) = next(&mut watch).await else { panic!("no put") };
    assert_eq!((record.key.as_str(), record.mod_revision), ("jobs/c", revision));
}

/// Puts and deletes, of the watched prefix only, in the order of their revisions.
pub async fn a_watch_shows_changes_in_order(fixture: &impl Fixture) {
    let store = fixture.store();
    let start = store.txn(Txn::new().put("jobs/a", "0")).await.unwrap();
    let mut watch = store.watch("jobs/", Some(start));
    let mut expected = Vec::new();
    for n in 1..=20 {
        store.txn(Txn::new().put("other", n.to_string())).await.unwrap();
        let put = store.txn(Txn::new().put("jobs/a", n.to_string())).await.unwrap();
        let delete = fixture.other_client().txn(Txn::new().delete("jobs/a")).await.unwrap();
        expected.extend([(put, Some(n.to_string())), (delete, None)]);
    }
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        match next(&mut watch).await {
            WatchEvent::Put(record) => {
                let value = String::from_utf8(record.value.to_vec()).unwrap();
                seen.push((record.mod_revision, Some(value)));
            }
            WatchEvent::Delete { key, revision } => {
                assert_eq!(key, "jobs/a");
                seen.push((revision, None));
            }
            WatchEvent::Resync { .. } => panic!("a resync without need"),
        }
    }
    assert_eq!(seen, expected);
}

/// List, then watch from the page's revision: the way a cache is built.
pub async fn a_watch_misses_nothing_after_a_listing(fixture: &impl Fixture) {
    let store = fixture.store();
    store.txn(Txn::new().put("jobs/a", "1")).await.unwrap();
    let page = store.list("jobs/", None, 100).await.unwrap();
    let between = store.txn(Txn::new().put("jobs/b", "1").put("jobs/c", "1")).await.unwrap();
    let mut watch = store.watch("jobs/", Some(page.revision));
    let mut keys = Vec::new();
    for _ in 0..2 {
        let WatchEvent::Put(record) = next(&mut watch).await else { panic!("no put") };
        assert_eq!(record.mod_revision, between);
        keys.push(record.key);
    }
    keys.sort();
    assert_eq!(keys, ["jobs/b", "jobs/c"]);
}

/// A start that was compacted.
pub async fn a_watch_whose_history_is_gone_reads_everything(fixture: &impl Fixture) {
    let store = fixture.store();
    let start = store.txn(Txn::new().put("jobs/a", "1")).await.unwrap();
    store.txn(Txn::new().put("jobs/a", "2").put("jobs/gone", "1")).await.unwrap();
    store.txn(Txn::new().delete("jobs/gone")).await.unwrap();
    let last = store.txn(Txn::new().put("jobs/b", "1")).await.unwrap();
    fixture.compact(last).await;

    let mut watch = store.watch("jobs/", Some(start));
    let first = next(&mut watch).await;
    let WatchEvent::Resync { items, revision } = first else { panic!("{first:?}") };
    assert_eq!(revision, last);
    let state: Vec<_> = items.iter().map(|item| (item.key.as_str(), item.value.as_ref())).collect();
    assert_eq!(state, [("jobs/a", b"2".as_slice()), ("jobs/b", b"1".as_slice())]);

    let after = store.txn(Txn::new().delete("jobs/b")).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Delete { key: "jobs/b".to_owned(), revision: after });
}

/// A start that this store never reached: it was restored from an older state, or is another one.
pub async fn a_watch_from_a_revision_to_come_reads_everything(fixture: &impl Fixture) {
    let store = fixture.store();
    let revision = store.txn(Txn::new().put("jobs/a", "1")).await.unwrap();
    let mut watch = store.watch("jobs/", Some(Revision(revision.0 + 1000)));
    let first = next(&mut watch).await;
    assert!(matches!(&first, WatchEvent::Resync { items, .. } if items.len() == 1), "{first:?}");
}

/// A reader that does not read for a while reaches the same state as one that does.
pub async fn a_slow_reader_misses_nothing(fixture: &impl Fixture) {
    const ROUNDS: usize = 40;
    let store = fixture.store();
    let mut watch = store.watch("n/", None);
    next(&mut watch).await;
    let mut last = Revision(0);
    for round in 0..ROUNDS {
        let txn = (0..100).fold(Txn::new(), |txn, n| txn.put(format!("n/{n}"), format!("{round}")));
        last = store.txn(txn).await.unwrap();
    }
    let mut cache = BTreeMap::new();
    let mut at_last = 0;
    while at_last < 100 {
        match next(&mut watch).await {
            WatchEvent::Put(record) => {
                at_last += usize::from(record.mod_revision == last);
                cache.insert(record.key, record.value);
            }
            WatchEvent::Resync { items, revision } => {
                at_last = if revision == last { 100 } else { 0 };
                cache = items.into_iter().map(|item| (item.key, item.value)).collect();
            }
            WatchEvent::Delete { key, .. } => panic!("{key} was not deleted"),
        }
    }
    assert_eq!(cache.len(), 100);
    assert!(cache.values().all(|value| *value == (ROUNDS - 1).to_string()));
}
