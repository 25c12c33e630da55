//! The contract suite on a real etcd.

use std::sync::Arc;

use crescendo_store::contract::Fixture;
use crescendo_store::testing::EtcdProcess;
use crescendo_store::{EtcdConfig, EtcdStore, Revision, Store, contract_suite};

struct Etcd {
    store: Arc<EtcdStore>,
    other_client: Arc<EtcdStore>,
    _process: EtcdProcess,
}

#[async_trait::async_trait]
impl Fixture for Etcd {
    async fn set_up() -> Option<Self> {
        let process = EtcdProcess::start_or_skip().await?;
        let connect = || async {
            let mut config = EtcdConfig::new(vec![process.endpoint()], "/test/v1/");
            config.watch_buffer_events = 64;
            Arc::new(EtcdStore::connect(config).await.unwrap())
        };
        let (store, other_client) = (connect().await, connect().await);
        Some(Self { store, other_client, _process: process })
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn other_client(&self) -> Arc<dyn Store> {
        self.other_client.clone()
    }

    async fn compact(&self, revision: Revision) {
        self.store.compact(revision).await.unwrap();
    }
}

contract_suite!(Etcd);
