//! What only a network can do: lost connections, lost answers, a restarted etcd.

use std::time::Duration;

use crescendo_store::testing::{EtcdProcess, FaultyProxy, Traffic};
use crescendo_store::{EtcdConfig, EtcdStore, Lease, Revision, Store, StoreError, Txn, Watch, WatchEvent};
use tokio::time::timeout;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(1);

/// An etcd, a store that reaches it through a faulty proxy, and one that reaches it directly.
struct Cluster {
    etcd: EtcdProcess,
    proxy: FaultyProxy,
    store: EtcdStore,
    direct: EtcdStore,
}

impl Cluster {
    async fn start() -> Option<Self> {
        let etcd = EtcdProcess::start_or_skip().await?;
        let proxy = FaultyProxy::start(etcd.address()).await.unwrap();
        let store = connect(&[proxy.endpoint()]).await;
        let direct = connect(&[etcd.endpoint()]).await;
        Some(Self { etcd, proxy, store, direct })
    }

    /// Waits until the store reaches etcd again.
    async fn until_reached(&self) {
        let reached = async { while self.store.get("anything").await.is_err() {} };
        timeout(PATIENCE, reached).await.unwrap();
    }
}

async fn connect(endpoints: &[String]) -> EtcdStore {
    let mut config = EtcdConfig::new(endpoints.to_vec(), "/test/v1/");
    config.call_timeout = Duration::from_millis(1500);
    config.connect_timeout = Duration::from_millis(300);
    EtcdStore::connect(config).await.unwrap()
}

async fn next(watch: &mut Watch) -> WatchEvent {
    timeout(PATIENCE, watch.next()).await.expect("no event in time").expect("the watch ended")
}

async fn until_lost(lease: &Lease) {
    timeout(PATIENCE, lease.lost()).await.expect("the loss was not noticed");
}

fn put_key(event: WatchEvent) -> (String, Revision) {
    match event {
        WatchEvent::Put(record) => (record.key, record.mod_revision),
        other => panic!("not a put: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_after_its_connection_was_cut() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let mut watch = cluster.store.watch("jobs/", None);
    assert!(matches!(next(&mut watch).await, WatchEvent::Resync { .. }));
    let before = cluster.direct.txn(Txn::new().put("jobs/before", "1")).await.unwrap();
    assert_eq!(put_key(next(&mut watch).await), ("jobs/before".to_owned(), before));

    for round in 0..3 {
        cluster.proxy.set(Traffic::Cut);
        let one = cluster.direct.txn(Txn::new().put("jobs/one", "1")).await.unwrap();
        let two = cluster.direct.txn(Txn::new().delete("jobs/one")).await.unwrap();
        cluster.proxy.set(Traffic::Passes);
        // Neither lost, nor repeated, nor replaced by a resync.
        assert_eq!(put_key(next(&mut watch).await), ("jobs/one".to_owned(), one), "round {round}");
        let delete = WatchEvent::Delete { key: "jobs/one".to_owned(), revision: two };
        assert_eq!(next(&mut watch).await, delete, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_history_went_while_it_was_cut_off_reads_everything() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    cluster.direct.txn(Txn::new().put("jobs/old", "1")).await.unwrap();
    let mut watch = cluster.store.watch("jobs/", None);
    assert!(matches!(next(&mut watch).await, WatchEvent::Resync { items, .. } if items.len() == 1));

    cluster.proxy.set(Traffic::Cut);
    cluster.direct.txn(Txn::new().delete("jobs/old").put("jobs/new", "1")).await.unwrap();
    let last = cluster.direct.txn(Txn::new().put("jobs/new", "2")).await.unwrap();
    cluster.direct.compact(last).await.unwrap();
    cluster.proxy.set(Traffic::Passes);

    let event = next(&mut watch).await;
    let WatchEvent::Resync { items, revision } = event else { panic!("{event:?}") };
    assert_eq!(revision, last);
    let keys: Vec<&str> = items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(keys, ["jobs/new"]);
    let after = cluster.direct.txn(Txn::new().put("jobs/after", "1")).await.unwrap();
    assert_eq!(put_key(next(&mut watch).await), ("jobs/after".to_owned(), after));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_and_the_records_outlive_a_restart_of_etcd() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    let before = cluster.store.txn(Txn::new().put("jobs/a", "1")).await.unwrap();
    let mut watch = cluster.store.watch("jobs/", Some(before));
    cluster.etcd.kill();
    cluster.etcd.run().await.unwrap();
    cluster.until_reached().await;
    assert_eq!(cluster.store.get("jobs/a").await.unwrap().unwrap().mod_revision, before);
    let after = cluster.store.txn(Txn::new().at_revision("jobs/a", before).put("jobs/a", "2")).await.unwrap();
    assert_eq!(put_key(next(&mut watch).await), ("jobs/a".to_owned(), after));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_a_cut_shorter_than_its_time() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let ttl = Duration::from_secs(6);
    let lease = cluster.store.grant(ttl).await.unwrap();
    cluster.store.txn(Txn::new().put_leased("nodes/a", "here", &lease)).await.unwrap();
    // Each cut ends the stream of renewals; what is shown is that a new one takes over, for longer than the lease lives.
    let until = tokio::time::Instant::now() + ttl * 3 / 2;
    while tokio::time::Instant::now() < until {
        cluster.proxy.set(Traffic::Cut);
        tokio::time::sleep(ttl / 12).await;
        cluster.proxy.set(Traffic::Passes);
        tokio::time::sleep(ttl / 2).await;
    }
    assert!(!lease.is_lost());
    assert!(cluster.direct.get("nodes/a").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_lost_when_it_cannot_be_renewed_in_time() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let lease = cluster.store.grant(TTL).await.unwrap();
    let put = cluster.store.txn(Txn::new().put_leased("nodes/a", "here", &lease)).await.unwrap();
    let mut watch = cluster.direct.watch("nodes/", Some(put));
    cluster.proxy.set(Traffic::Cut);
    until_lost(&lease).await;
    let event = next(&mut watch).await;
    assert!(matches!(&event, WatchEvent::Delete { key, .. } if key == "nodes/a"), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_lost_when_etcd_has_forgotten_it() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let lease = cluster.store.grant(Duration::from_secs(2)).await.unwrap();
    let mut client = etcd_client::Client::connect([cluster.etcd.endpoint()], None).await.unwrap();
    client.lease_revoke(i64::try_from(lease.id().0).unwrap()).await.unwrap();
    until_lost(&lease).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_learns_it_and_cannot_write_later() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let old = cluster.store.campaign("controller", "old", TTL, PATIENCE).await.unwrap();
    cluster.store.txn(Txn::new().put("jobs/a", "old").led_by(&old)).await.unwrap();
    cluster.proxy.set(Traffic::Cut);
    let new = cluster.direct.campaign("controller", "new", TTL, PATIENCE).await.unwrap();
    timeout(PATIENCE, old.lost()).await.expect("the loss was not noticed");
    assert!(new.elected_at() > old.elected_at());

    cluster.proxy.set(Traffic::Passes);
    cluster.until_reached().await;
    let refused = cluster.store.txn(Txn::new().put("jobs/a", "late").led_by(&old)).await;
    assert!(matches!(refused, Err(StoreError::NotLeader { .. })), "{refused:?}");
    assert_eq!(cluster.direct.get("jobs/a").await.unwrap().unwrap().value, "old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_unknown_and_may_be_there() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    cluster.proxy.set(Traffic::LosesAnswers);
    let error = cluster.store.txn(Txn::new().absent("jobs/a").put("jobs/a", "1")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unknown(_)), "{error:?}");
    assert!(!error.is_retryable());
    // It arrived: sent again as it was, it would meet itself.
    assert_eq!(cluster.direct.get("jobs/a").await.unwrap().unwrap().value, "1");

    // A read has nothing to be unknown about.
    let error = cluster.store.get("jobs/a").await.unwrap_err();
    assert!(matches!(error, StoreError::NotApplied(_)), "{error:?}");

    cluster.proxy.set(Traffic::Passes);
    cluster.until_reached().await;
    let error = cluster.store.txn(Txn::new().absent("jobs/a").put("jobs/a", "1")).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_cut_off_midway_is_unknown() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    cluster.proxy.set(Traffic::LosesAnswers);
    let txn = cluster.store.txn(Txn::new().put("jobs/a", "1"));
    let arrives_then_cut = async {
        let arrived = async { while cluster.direct.get("jobs/a").await.unwrap().is_none() {} };
        timeout(PATIENCE, arrived).await.unwrap();
        cluster.proxy.set(Traffic::Cut);
    };
    let (result, ()) = tokio::join!(txn, arrives_then_cut);
    assert!(matches!(result, Err(StoreError::Unknown(_))), "{result:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_finds_no_etcd_is_surely_not_applied() {
    let Some(mut cluster) = Cluster::start().await else {
        return;
    };
    let revision = cluster.direct.txn(Txn::new().put("jobs/a", "1")).await.unwrap();
    cluster.etcd.kill();
    // The first call may still find the old connection breaking.
    let _ = cluster.direct.get("jobs/a").await;
    let error = cluster.direct.txn(Txn::new().put("jobs/a", "2")).await.unwrap_err();
    assert!(matches!(error, StoreError::NotApplied(_)), "{error:?}");
    assert!(error.is_retryable());
    cluster.etcd.run().await.unwrap();
    let record = connect(&[cluster.etcd.endpoint()]).await.get("jobs/a").await.unwrap().unwrap();
    assert_eq!(record.mod_revision, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_down_is_passed_over() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let store = connect(&[nobody, cluster.etcd.endpoint()]).await;
    store.txn(Txn::new().absent("jobs/a").put("jobs/a", "1")).await.unwrap();
    let mut watch = store.watch("jobs/", None);
    assert!(matches!(next(&mut watch).await, WatchEvent::Resync { items, .. } if items.len() == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_campaign_survives_an_outage() {
    let Some(cluster) = Cluster::start().await else {
        return;
    };
    cluster.proxy.set(Traffic::Cut);
    let campaign = cluster.store.campaign("controller", "one", TTL, PATIENCE);
    let outage = async {
        // Longer than a call's deadline, so that the campaign meets the outage.
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.proxy.set(Traffic::Passes);
    };
    let (leadership, ()) = tokio::join!(campaign, outage);
    cluster.store.txn(Txn::new().put("a", "1").led_by(&leadership.unwrap())).await.unwrap();
}
