//! The contract suite on the embedded store.

use std::sync::Arc;

use crescendo_store::contract::Fixture;
use crescendo_store::{EmbeddedConfig, EmbeddedStore, Revision, Store, contract_suite};

struct Embedded {
    store: Arc<EmbeddedStore>,
    _dir: tempfile::TempDir,
}

#[async_trait::async_trait]
impl Fixture for Embedded {
    async fn set_up() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut config = EmbeddedConfig::new(dir.path(), "/test/v1/");
        // Small, so that a slow reader is outrun.
        config.watch_buffer_events = 64;
        config.history_events = 1000;
        let store = EmbeddedStore::open(config).await.unwrap();
        Some(Self { store: Arc::new(store), _dir: dir })
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn other_client(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn compact(&self, revision: Revision) {
        self.store.compact(revision);
    }
}

contract_suite!(Embedded);
