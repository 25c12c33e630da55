//! Records and transactions.

use bytes::Bytes;
use tokio::task::JoinSet;

use super::Fixture;
use crate::{MAX_VALUE_BYTES, Revision, StoreError, Txn};

/// Create-if-absent: one of two creators wins, the other learns that it did not.
pub async fn a_record_is_created_once(fixture: &impl Fixture) {
    let store = fixture.store();
    assert_eq!(store.get("jobs/a").await.unwrap(), None);
    let revision = store.txn(Txn::new().absent("jobs/a").put("jobs/a", "first")).await.unwrap();
    let error =
        fixture.other_client().txn(Txn::new().absent("jobs/a").put("jobs/a", "second")).await.unwrap_err();
    assert!(matches!(&error, StoreError::Conflict { key } if key == "jobs/a"), "{error:?}");
    let record = store.get("jobs/a").await.unwrap().unwrap();
    assert_eq!((record.key.as_str(), record.value.as_ref()), ("jobs/a", b"first".as_slice()));
    assert_eq!(record.mod_revision, revision);
    assert_eq!(record.lease, None);
}

/// Compare-and-set on the revision of the last write.
pub async fn a_write_at_an_old_revision_is_a_conflict(fixture: &impl Fixture) {
    let store = fixture.store();
    let first = store.txn(Txn::new().put("jobs/a", "1")).await.unwrap();
    let second = store.txn(Txn::new().at_revision("jobs/a", first).put("jobs/a", "2")).await.unwrap();
    assert!(second > first);
    let stale = store.txn(Txn::new().at_revision("jobs/a", first).put("jobs/a", "3")).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
    let stale_delete = store.txn(Txn::new().at_revision("jobs/a", first).delete("jobs/a")).await;
    assert!(matches!(stale_delete, Err(StoreError::Conflict { .. })), "{stale_delete:?}");
    assert_eq!(store.get("jobs/a").await.unwrap().unwrap().value, Bytes::from("2"));

    // A record deleted and created again is another one.
    store.txn(Txn::new().at_revision("jobs/a", second).delete("jobs/a")).await.unwrap();
    let third = store.txn(Txn::new().absent("jobs/a").put("jobs/a", "2")).await.unwrap();
    assert!(third > second);
    let stale = store.txn(Txn::new().at_revision("jobs/a", second).put("jobs/a", "4")).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })), "{stale:?}");
}

/// The error names the first failed precondition.
pub async fn preconditions_are_reported_in_order(fixture: &impl Fixture) {
    let store = fixture.store();
    let revision = store.txn(Txn::new().put("a", "1")).await.unwrap();
    let cases = [
        (Txn::new().exists("a").exists("b").exists("c"), Some("b")),
        (Txn::new().absent("b").absent("a").exists("c"), Some("a")),
        (Txn::new().at_revision("a", revision).at_revision("c", revision), Some("c")),
        (Txn::new().exists("a").absent("b").at_revision("a", revision), None),
    ];
    for (txn, conflicting) in cases {
        match (store.txn(txn.clone()).await, conflicting) {
            (Ok(_), None) => {}
            (Err(StoreError::Conflict { key }), Some(expected)) => {
                assert_eq!(key, expected, "{txn:?}")
            }
            (result, expected) => panic!("{txn:?} gave {result:?}, expected {expected:?}"),
        }
    }
}

/// All of the writes at one revision, or none of them.
pub async fn a_transaction_is_applied_as_a_whole_or_not_at_all(fixture: &impl Fixture) {
    let store = fixture.store();
    store.txn(Txn::new().put("old", "1").put("guard", "1")).await.unwrap();
    let refused =
        store.txn(Txn::new().absent("guard").put("new/1", "1").put("new/2", "2").delete("old")).await;
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
    assert_eq!(store.snapshot("new/").await.unwrap().items, []);
    assert!(store.get("old").await.unwrap().is_some());

    let revision = store
        .txn(Txn::new().exists("guard").put("new/1", "1").put("new/2", "2").delete("old"))
        .await
        .unwrap();
    let snapshot = store.snapshot("new/").await.unwrap();
    let revisions: Vec<Revision> = snapshot.items.iter().map(|item| item.mod_revision).collect();
    assert_eq!(revisions, [revision, revision]);
    assert_eq!(store.get("old").await.unwrap(), None);
}

/// Without a change, the present revision comes back.
pub async fn a_transaction_that_changes_nothing_has_no_revision_of_its_own(fixture: &impl Fixture) {
    let store = fixture.store();
    let revision = store.txn(Txn::new().put("a", "1")).await.unwrap();
    assert_eq!(store.txn(Txn::new().exists("a")).await.unwrap(), revision);
    assert_eq!(store.txn(Txn::new().delete("b")).await.unwrap(), revision);
    assert!(store.txn(Txn::new().put("a", "1")).await.unwrap() > revision);
}

/// Many writers of one counter, each trying again after a conflict.
pub async fn concurrent_increments_lose_nothing(fixture: &impl Fixture) {
    const WRITERS: usize = 8;
    const INCREMENTS: usize = 10;
    fixture.store().txn(Txn::new().put("counter", "0")).await.unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = if writer % 2 == 0 { fixture.store() } else { fixture.other_client() };
        writers.spawn(async move {
            let mut done = 0;
            while done < INCREMENTS {
                let record = store.get("counter").await.unwrap().unwrap();
                let count: usize = std::str::from_utf8(&record.value).unwrap().parse().unwrap();
                let txn = Txn::new()
                    .at_revision("counter", record.mod_revision)
                    .put("counter", (count + 1).to_string());
                match store.txn(txn).await {
                    Ok(_) => done += 1,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
    }
    while let Some(joined) = writers.join_next().await {
        joined.unwrap();
    }
    let count = fixture.store().get("counter").await.unwrap().unwrap().value;
    assert_eq!(count, Bytes::from((WRITERS * INCREMENTS).to_string()));
}

/// Values are bytes: empty, not UTF-8, and as large as allowed.
pub async fn values_are_kept_byte_for_byte(fixture: &impl Fixture) {
    let store = fixture.store();
    let largest: Vec<u8> = (0..MAX_VALUE_BYTES).map(|n| (n % 251) as u8).collect();
    for value in [Vec::new(), vec![0, 255, 254, 0], largest] {
        store.txn(Txn::new().put("value", value.clone())).await.unwrap();
        assert_eq!(store.get("value").await.unwrap().unwrap().value, value);
    }
}

/// Paging: every record once, in key order, whatever the size of a page.
pub async fn pages_cover_everything_once_in_order(fixture: &impl Fixture) {
    let store = fixture.store();
    let mut txn = Txn::new().put("a", "before").put("z", "after");
    for n in 0..25 {
        txn = txn.put(format!("jobs/{n:02}"), format!("{n}"));
    }
    let revision = store.txn(txn).await.unwrap();
    for limit in [1, 4, 5, 24, 25, 26, 5000] {
        let mut keys = Vec::new();
        let mut after = None;
        loop {
            let page = store.list("jobs/", after.as_deref(), limit).await.unwrap();
            assert!(page.items.len() <= limit);
            assert_eq!(page.revision, revision);
            keys.extend(page.items.into_iter().map(|item| item.key));
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        let expected: Vec<String> = (0..25).map(|n| format!("jobs/{n:02}")).collect();
        assert_eq!(keys, expected, "limit {limit}");
    }
    // A key that is gone, or never was, is as good a place to go on from.
    let page = store.list("jobs/", Some("jobs/225"), 10).await.unwrap();
    assert_eq!(page.items.first().map(|item| item.key.as_str()), Some("jobs/23"));
    let page = store.list("jobs/", Some("jobs/24"), 10).await.unwrap();
    assert_eq!((page.items.len(), page.next), (0, None));
}

/// Prefixes are compared as text, so a caller ends them with a slash.
pub async fn a_prefix_matches_whole_beginnings_only(fixture: &impl Fixture) {
    let store = fixture.store();
    store
        .txn(Txn::new().put("jobs/a", "").put("jobs-old/a", "").put("jobs/ä", "").put("jobt", ""))
        .await
        .unwrap();
    let keys = |items: Vec<crate::Versioned>| items.into_iter().map(|item| item.key).collect::<Vec<_>>();
    assert_eq!(keys(store.snapshot("jobs/").await.unwrap().items), ["jobs/a", "jobs/ä"]);
    assert_eq!(keys(store.snapshot("jobs").await.unwrap().items), ["jobs-old/a", "jobs/a", "jobs/ä"]);
    assert_eq!(keys(store.snapshot("").await.unwrap().items).len(), 4);
    assert_eq!(keys(store.snapshot("none/").await.unwrap().items).len(), 0);
}

/// Records that do not fit into one answer together come in several, and all of them do come.
pub async fn large_records_are_paged_by_size(fixture: &impl Fixture) {
    let store = fixture.store();
    for n in 0..20 {
        store.txn(Txn::new().put(format!("large/{n:02}"), vec![n; MAX_VALUE_BYTES])).await.unwrap();
    }
    let mut seen = 0;
    let mut after = None;
    loop {
        let page = store.list("large/", after.as_deref(), 1000).await.unwrap();
        seen += page.items.len();
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, 20);
    let snapshot = store.snapshot("large/").await.unwrap();
    assert_eq!(snapshot.items.len(), 20);
    assert!(snapshot.items.iter().enumerate().all(|(n, item)| item.value == vec![n as u8; MAX_VALUE_BYTES]));
}

/// While a writer moves something to and fro, a snapshot never shows it twice or not at all.
pub async fn a_snapshot_shows_one_moment(fixture: &impl Fixture) {
    let store = fixture.store();
    // More than one page, so that the pages of one snapshot have to agree.
    for chunk in 0..12 {
        let txn = (0..100).fold(Txn::new(), |txn, n| txn.put(format!("m/{:04}", chunk * 100 + n), "filler"));
        store.txn(txn).await.unwrap();
    }
    store.txn(Txn::new().put("m/0000-token", "")).await.unwrap();
    let mover = fixture.other_client();
    let mut moving = JoinSet::new();
    moving.spawn(async move {
        for _ in 0..50 {
            mover
                .txn(Txn::new().exists("m/0000-token").delete("m/0000-token").put("m/9999-token", ""))
                .await
                .unwrap();
            mover
                .txn(Txn::new().exists("m/9999-token").delete("m/9999-token").put("m/0000-token", ""))
                .await
                .unwrap();
        }
    });
    let mut last = Revision(0);
    while moving.try_join_next().is_none() {
        let snapshot = store.snapshot("m/").await.unwrap();
        let tokens = snapshot.items.iter().filter(|item| item.key.ends_with("token")).count();
        assert_eq!((tokens, snapshot.items.len()), (1, 1201));
        assert!(snapshot.revision >= last);
        last = snapshot.revision;
    }
}

/// What is written between the pages of a snapshot is in none of them.
pub async fn pages_of_a_snapshot_show_one_moment(fixture: &impl Fixture) {
    let store = fixture.store();
    for limit in [1, 4, 5, 24, 25, 26, 5000] {
        let key = |n: usize| format!("of-{limit}/{n:02}");
        let txn = (0..25).fold(Txn::new(), |txn, n| txn.put(key(n), "before"));
        let revision =
            store.txn(txn.put(format!("of-{limit}"), "").put(format!("of-{limit}0"), "")).await.unwrap();
        let mut pages = store.read_pages(&format!("of-{limit}/"), limit);
        let mut items: Vec<crate::Versioned> = Vec::new();
        loop {
            let page = pages.next_page().await.unwrap();
            assert!(page.items.len() <= limit);
            assert_eq!(page.revision, revision, "limit {limit}");
            items.extend(page.items);
            let changes = Txn::new().put(key(24), "after").delete(key(23)).put(key(99), "after");
            fixture.other_client().txn(changes).await.unwrap();
            match page.next {
                Some(next) => assert_eq!(items.last().map(|item| &item.key), Some(&next)),
                None => break,
            }
        }
        let keys: Vec<String> = items.iter().map(|item| item.key.clone()).collect();
        assert_eq!(keys, (0..25).map(key).collect::<Vec<_>>(), "limit {limit}");
        assert!(items.iter().all(|item| item.value == "before" && item.mod_revision == revision));
    }
}

/// A snapshot whose revision is compacted between its pages says so, or goes on to show that revision: it never shows
/// another. Reading everything at once begins anew by itself.
pub async fn a_snapshot_whose_revision_is_gone_says_so(fixture: &impl Fixture) {
    let store = fixture.store();
    let txn = (0..25).fold(Txn::new(), |txn, n| txn.put(format!("jobs/{n:02}"), "before"));
    let revision = store.txn(txn).await.unwrap();
    let mut pages = store.read_pages("", 10);
    assert_eq!(pages.next_page().await.unwrap().revision, revision);
    let txn = (0..25).fold(Txn::new(), |txn, n| txn.put(format!("jobs/{n:02}"), "after"));
    let now = store.txn(txn).await.unwrap();
    fixture.compact(now).await;
    match pages.next_page().await {
        Ok(page) => assert!(page.items.iter().all(|item| item.value == "before")),
        Err(StoreError::Compacted { revision: gone }) => assert_eq!(gone, revision.0),
        Err(error) => panic!("{error:?}"),
    }
    let snapshot = store.snapshot("").await.unwrap();
    assert_eq!((snapshot.items.len(), snapshot.revision), (25, now));
    assert!(snapshot.items.iter().all(|item| item.value == "after"));
}

/// Records that do not fit into one answer together come in more pages, all at one revision.
pub async fn large_records_are_paged_by_size_at_one_revision(fixture: &impl Fixture) {
    let store = fixture.store();
    for n in 0..20 {
        store.txn(Txn::new().put(format!("large/{n:02}"), vec![n; MAX_VALUE_BYTES])).await.unwrap();
    }
    let revision = store.txn(Txn::new().put("small", "")).await.unwrap();
    let mut pages = store.read_pages("", 5000);
    let mut keys = Vec::new();
    loop {
        let page = pages.next_page().await.unwrap();
        assert_eq!(page.revision, revision);
        keys.extend(page.items.into_iter().map(|item| item.key));
        if page.next.is_none() {
            break;
        }
    }
    assert_eq!(keys.len(), 21);
    assert!(keys.is_sorted());
}

/// Limits, and requests that make no sense.
pub async fn what_is_over_a_limit_is_refused_before_it_is_sent(fixture: &impl Fixture) {
    let store = fixture.store();
    let too_large = store.txn(Txn::new().put("a", vec![0; MAX_VALUE_BYTES + 1])).await;
    assert!(matches!(too_large, Err(StoreError::TooLarge { .. })), "{too_large:?}");
    for txn in [
        Txn::new().put("", "1"),
        Txn::new().put("/a", "1"),
        Txn::new().put("a", "1").put("a", "2"),
        Txn::new().at_revision("a", Revision(0)).put("a", "1"),
    ] {
        let result = store.txn(txn).await;
        assert!(matches!(result, Err(StoreError::Invalid(_))), "{result:?}");
    }
    assert!(matches!(store.get("a//b").await, Err(StoreError::Invalid(_))));
    assert_eq!(store.snapshot("").await.unwrap().items, []);
}

/// Closing.
pub async fn a_closed_store_refuses_calls_and_ends_its_watches(fixture: &impl Fixture) {
    let store = fixture.store();
    store.txn(Txn::new().put("a", "1")).await.unwrap();
    let mut watch = store.watch("", None);
    super::next(&mut watch).await;
    store.close().await;
    assert_eq!(tokio::time::timeout(super::PATIENCE, watch.next()).await.unwrap(), None);
    assert!(matches!(store.get("a").await, Err(StoreError::Closed)));
    assert!(matches!(store.txn(Txn::new().put("a", "2")).await, Err(StoreError::Closed)));
    assert_eq!(store.watch("", None).next().await, None);
    store.close().await;
}
