//! For tests: a real etcd, and a proxy that loses its connections and answers on demand.

mod etcd;
mod proxy;

pub use etcd::{EtcdProcess, EtcdTls};
pub use proxy::{FaultyProxy, Traffic};
