//! For tests: a real etcd, a proxy that loses its connections and answers on demand, and a store in memory whose clients
//! suffer what a simulation has them suffer.

mod etcd;
mod proxy;
mod simulated;

pub use etcd::{EtcdProcess, EtcdTls};
pub use proxy::{FaultyProxy, Traffic};
pub use simulated::{Calm, Change, Fate, SimulatedServer, SimulatedStore, StoreCall, StoreLink};
