//! The contract suite on the store that simulations use.

use std::sync::Arc;
use std::time::Duration;

use crescendo_store::contract::Fixture;
use crescendo_store::testing::{Calm, Fate, SimulatedServer, SimulatedStore, StoreCall, StoreLink};
use crescendo_store::{Revision, Store, StoreError, Txn, contract_suite};

struct Simulated {
    server: SimulatedServer,
    store: Arc<SimulatedStore>,
    other: Arc<SimulatedStore>,
}

fn client(server: &SimulatedServer) -> Arc<SimulatedStore> {
    Arc::new(SimulatedStore::new(server, Arc::new(Calm), Duration::from_secs(5)))
}

#[async_trait::async_trait]
impl Fixture for Simulated {
    async fn set_up() -> Option<Self> {
        let server = SimulatedServer::default();
        Some(Self { store: client(&server), other: client(&server), server })
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn other_client(&self) -> Arc<dyn Store> {
        self.other.clone()
    }

    async fn compact(&self, revision: Revision) {
        self.server.compact(revision);
    }
}

contract_suite!(Simulated);

/// Counts the calls of a client.
#[derive(Default)]
struct Counting(std::sync::atomic::AtomicU64);

impl StoreLink for Counting {
    fn fate(&self, _: StoreCall) -> Fate {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Fate::Carried { there: Duration::from_millis(1), back: Duration::from_millis(1) }
    }
}

/// The history since the leader's election is gone, as after every compaction of etcd: whoever stands by waits all the same.
#[tokio::test(start_paused = true)]
async fn a_standby_asks_no_more_after_a_compaction_than_before() {
    let server = SimulatedServer::default();
    let ttl = Duration::from_secs(5);
    let first = client(&server);
    let leader = first.campaign("controller", "one", ttl, ttl).await.unwrap();
    first.txn(Txn::new().put("a", "1")).await.unwrap();
    server.compact(Revision(u64::MAX));
    let calls = Arc::new(Counting::default());
    let standby = SimulatedStore::new(&server, calls.clone(), Duration::from_secs(5));
    let refused = standby.campaign("controller", "two", ttl, Duration::from_secs(60)).await;
    assert!(matches!(refused, Err(StoreError::NotElected { .. })), "{refused:?}");
    let count = calls.0.load(std::sync::atomic::Ordering::Relaxed);
    // Two at each look, every 5 s, and eight renewals of its lease in that time.
    assert!(count < 150, "{count} calls in a minute");
    assert!(!leader.is_lost());
}
