//! Leases.

use std::time::Duration;

use super::{Fixture, eventually, next};
use crate::{StoreError, Txn, WatchEvent};

/// The shortest that etcd grants.
const TTL: Duration = Duration::from_secs(1);

async fn until_absent(fixture: &impl Fixture, key: &str) {
    let store = fixture.store();
    eventually(&format!("{key} is gone"), || async { store.get(key).await.unwrap().is_none().then_some(()) })
        .await;
}

/// Well past its time, it is still there.
pub async fn a_lease_is_kept_alive(fixture: &impl Fixture) {
    let store = fixture.store();
    let lease = store.grant(TTL).await.unwrap();
    assert!(lease.ttl() >= TTL);
    store.txn(Txn::new().put_leased("nodes/a", "here", &lease)).await.unwrap();
    assert_eq!(store.get("nodes/a").await.unwrap().unwrap().lease, Some(lease.id()));
    // The one wait for time itself: that something goes on cannot be awaited.
    tokio::time::sleep(lease.ttl() * 3).await;
    assert!(store.get("nodes/a").await.unwrap().is_some());
    assert!(!lease.is_lost());
    lease.revoke().await;
}

/// As when its holder dies.
pub async fn a_lease_that_nobody_renews_takes_its_records_with_it(fixture: &impl Fixture) {
    let store = fixture.store();
    let lease = store.grant(TTL).await.unwrap();
    let put = store
        .txn(
            Txn::new()
                .put_leased("nodes/a", "here", &lease)
                .put_leased("nodes/b", "here", &lease)
                .put("nodes/c", ""),
        )
        .await
        .unwrap();
    let mut watch = store.watch("nodes/", Some(put));
    lease.abandon();
    let mut deleted = Vec::new();
    for _ in 0..2 {
        let event = next(&mut watch).await;
        let WatchEvent::Delete { key, revision } = event else { panic!("{event:?}") };
        assert!(revision > put);
        deleted.push(key);
    }
    deleted.sort();
    assert_eq!(deleted, ["nodes/a", "nodes/b"]);
    assert!(store.get("nodes/c").await.unwrap().is_some());
}

/// Revoking ends it before the call returns, dropping soon after.
pub async fn a_revoked_or_dropped_lease_takes_its_records_with_it(fixture: &impl Fixture) {
    let store = fixture.store();
    let hour = Duration::from_secs(3600);
    let lease = store.grant(hour).await.unwrap();
    store.txn(Txn::new().put_leased("nodes/a", "here", &lease)).await.unwrap();
    lease.revoke().await;
    assert_eq!(store.get("nodes/a").await.unwrap(), None);

    let lease = store.grant(hour).await.unwrap();
    store.txn(Txn::new().put_leased("nodes/b", "here", &lease)).await.unwrap();
    drop(lease);
    until_absent(fixture, "nodes/b").await;
}

/// A record belongs to the lease of its last write only.
pub async fn a_record_put_again_without_its_lease_stays(fixture: &impl Fixture) {
    let store = fixture.store();
    let lease = store.grant(TTL).await.unwrap();
    let other = store.grant(TTL).await.unwrap();
    store
        .txn(
            Txn::new()
                .put_leased("kept", "1", &lease)
                .put_leased("moved", "1", &lease)
                .put_leased("gone", "1", &lease),
        )
        .await
        .unwrap();
    store.txn(Txn::new().put("kept", "2").put_leased("moved", "2", &other)).await.unwrap();
    lease.revoke().await;
    assert_eq!(store.get("gone").await.unwrap(), None);
    assert_eq!(store.get("kept").await.unwrap().unwrap().lease, None);
    assert_eq!(store.get("moved").await.unwrap().unwrap().lease, Some(other.id()));
    other.revoke().await;
    assert_eq!(store.get("moved").await.unwrap(), None);
    assert!(store.get("kept").await.unwrap().is_some());
}

/// A put under a lease that ended is refused, with everything beside it.
pub async fn nothing_is_put_under_a_lease_that_ended(fixture: &impl Fixture) {
    let store = fixture.store();
    let lease = store.grant(TTL).await.unwrap();
    let late = Txn::new().put("beside", "1").put_leased("nodes/a", "here", &lease);
    let id = lease.id();
    lease.revoke().await;
    let error = store.txn(late).await.unwrap_err();
    assert!(matches!(error, StoreError::LeaseNotFound { lease } if lease == id.0), "{error:?}");
    assert_eq!(store.snapshot("").await.unwrap().items, []);
}
