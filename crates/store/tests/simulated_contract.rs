//! The contract suite on the store that simulations use.

use std::sync::Arc;
use std::time::Duration;

use crescendo_store::contract::Fixture;
use crescendo_store::testing::{Calm, SimulatedServer, SimulatedStore};
use crescendo_store::{Revision, Store, contract_suite};

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
