//! A controller that cannot read the state gives the lead up to one that can.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crescendo_controller::access::AccessConfig;
use crescendo_controller::{Config, Controller};
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::tls::{ConnectionMetrics, Incoming};
use crescendo_store::{
    KEY_PREFIX, Lease, Page, Revision, SnapshotPages, Store, StoreError, StoreLocation, Txn, Versioned, Watch,
};
use crescendo_testing::eventually;
use prometheus::Registry;
use tokio::net::TcpListener;

/// The same store, of which everything can be read but all at once.
struct Unloadable(Arc<dyn Store>);

#[tonic::async_trait]
impl Store for Unloadable {
    async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.0.get(key).await
    }
    async fn list(&self, prefix: &str, page_after: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        self.0.list(prefix, page_after, limit).await
    }
    fn read_pages(&self, _: &str, _: usize) -> Box<dyn SnapshotPages> {
        Box::new(NoPages)
    }
    async fn txn(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.0.txn(txn).await
    }
    fn watch(&self, prefix: &str, after: Option<Revision>) -> Watch {
        self.0.watch(prefix, after)
    }
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.0.grant(ttl).await
    }
    async fn close(&self) {
        self.0.close().await;
    }
}

struct NoPages;

#[tonic::async_trait]
impl SnapshotPages for NoPages {
    async fn next_page(&mut self) -> Result<Page, StoreError> {
        Err(StoreError::NotApplied("no answer before the deadline".into()))
    }
}

/// A controller of this process.
async fn start(store: Arc<dyn Store>, tasks: &Tasks) -> Result<(crescendo_controller::Serving, String)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let registry = Registry::new();
    let incoming = Incoming::new(listener, None, 64, ConnectionMetrics::register(&registry)?);
    let (config, access) = (Config::new("file:///nowhere"), AccessConfig::dev());
    let drain = Drain::new(Duration::ZERO);
    let controller = Controller { config, access, store, registry, address: address.clone(), drain };
    Ok((controller.start(incoming, tasks)?, address))
}

#[tokio::test]
async fn one_that_cannot_load_resigns_and_another_leads() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let location: StoreLocation = format!("embedded:{}", folder.path().display()).parse()?;
    let store = location.open(KEY_PREFIX, None).await?;
    let (tasks, supervisor) = Tasks::new();
    let (_blind, there) = start(Arc::new(Unloadable(store.clone())), &tasks).await?;
    eventually("it is elected", async || {
        let leader = store.leader("controller").await?;
        Ok(leader.is_some_and(|leader| leader.identity.starts_with(&there)).then_some(()))
    })
    .await?;
    let (mut other, _) = start(store.clone(), &tasks).await?;
    tokio::time::timeout(crescendo_testing::LIMIT, other.leads()).await??;
    tasks.stop_token().cancel();
    supervisor.run(Duration::from_secs(10)).await?;
    store.close().await;
    Ok(())
}
