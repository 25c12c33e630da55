//! What a curator process shares between its stages: where waiting is done, keys, counters, and the clients with
//! their limits.

use super::EndpointError;
use super::client::Client;
use super::dialect::Dialect;
use super::keys::Keys;
use crate::metrics::Metrics;
use crescendo_core::reach::Reach;
use crescendo_core::spec::EndpointSpec;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::runtime::Handle;

/// One per process.
#[derive(Clone)]
pub struct Network {
    handle: Handle,
    keys: Arc<Keys>,
    metrics: Metrics,
    /// Clients in use, by job and endpoint as the spec has it.
    clients: Arc<Mutex<BTreeMap<String, Weak<Client>>>>,
    /// How endpoints want to be asked, by address and model, where that is not as usual.
    dialects: Arc<Mutex<BTreeMap<(String, String), Dialect>>>,
}

/// Endpoints of which it is remembered how they want to be asked.
const MAX_DIALECTS: usize = 1024;

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Network {
    pub fn new(handle: Handle, keys: Keys, metrics: Metrics) -> Network {
        Network { handle, keys: Arc::new(keys), metrics, clients: Arc::default(), dialects: Arc::default() }
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How the endpoint took the last question.
    pub(super) fn dialect(&self, spec: &EndpointSpec) -> Dialect {
        let dialects = self.dialects.lock().unwrap_or_else(PoisonError::into_inner);
        dialects.get(&(spec.url.clone(), spec.model.clone())).copied().unwrap_or_default()
    }

    /// Remembers how the endpoint took a question.
    pub(super) fn remember_dialect(&self, spec: &EndpointSpec, dialect: Dialect) {
        let mut dialects = self.dialects.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (spec.url.clone(), spec.model.clone());
        if dialects.get(&key).copied().unwrap_or_default() == dialect {
            return;
        }
        if dialects.len() >= MAX_DIALECTS {
            dialects.pop_first();
        }
        tracing::info!(
            endpoint = spec.name,
            ?dialect,
            "the endpoint wants to be asked in its own way, which is remembered"
        );
        dialects.insert(key, dialect);
    }

    /// The client of a job's endpoint: the one in use, or a new one.
    pub(super) fn shared(
        &self,
        job_id: &str,
        spec: &EndpointSpec,
        reach: &Reach,
        open: impl FnOnce() -> Result<Client, EndpointError>,
    ) -> Result<Arc<Client>, EndpointError> {
        // Debug output of plain data is as different as the data.
        let key = format!("{job_id} {spec:?} {reach:?}");
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|_, client| client.strong_count() > 0);
        if let Some(client) = clients.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        let client = Arc::new(open()?);
        clients.insert(key, Arc::downgrade(&client));
        Ok(client)
    }
}

pub use super::LlmContext;

/// A number of curators that is kept up to date; its clones share it.
#[derive(Clone, Debug)]
pub struct Curators(Arc<AtomicU32>);

impl Default for Curators {
    fn default() -> Self {
        Curators(Arc::new(AtomicU32::new(1)))
    }
}

impl Curators {
    pub fn set(&self, count: u32) {
        self.0.store(count.max(1), Ordering::Relaxed);
    }

    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}
