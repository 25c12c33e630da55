//! Records, watches, leases and leadership, over etcd or over one embedded file.
//!
//! ```text
//!        controller (and its tests)
//!                 │  Arc<dyn Store>
//!                 ▼
//!   Store ── get, list, read_pages, txn ── watch ── grant, campaign
//!     │                                    │            │
//!     │            Watch: Resync, Put, Delete      Lease, Leadership (renewed by a keeper task)
//!     ├── EmbeddedStore: writer thread ─▶ one redb file; history in memory
//!     └── EtcdStore: one channel an endpoint ─▶ etcd; watches and leases re-established here
//! ```
//!
//! - [`Store`] is the trait; its documentation says what is durable and what a failed call means.
//! - [`Txn`] is the only way to write: preconditions on revisions, writes, and the leadership that must still stand.
//! - [`StoreError`] sorts failures into *conflict*, *surely not applied* and *outcome unknown*.
//! - [`StoreLocation`] opens either backend from `embedded:DIR` or `etcd:URL`.
//! - `contract` (feature `testing`) is the suite that both backends pass; `testing` starts a real etcd for it.
//!
//! Keys are `/`-separated and kept under a prefix that is given when the store is opened, so that versions of the
//! records, and tests, can share one etcd.

mod election;
mod embedded;
mod error;
mod etcd;
mod lease;
mod location;
mod pages;
mod revision;
mod store;
mod tasks;
mod types;
mod watch;

#[cfg(feature = "testing")]
pub mod contract;
#[cfg(feature = "testing")]
pub mod testing;

pub use embedded::{EmbeddedConfig, EmbeddedStore};
pub use error::{BoxedCause, StoreError};
pub use etcd::{ConnectEtcd, EtcdConfig, EtcdStore};
pub use lease::{Fence, Leader, Leadership, Lease, LeaseId};
pub use location::{KEY_PREFIX, StoreLocation};
pub use pages::SnapshotPages;
pub use store::Store;
pub use types::{
    Expect, MAX_KEY_BYTES, MAX_PAGE_ITEMS, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES, Op, Page,
    Precondition, Revision, Snapshot, Txn, Versioned,
};
pub use watch::{Watch, WatchEvent};
