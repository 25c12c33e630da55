//! A cluster of real processes on loopback, for tests that need all of them: the controller on the embedded store (or on a
//! real etcd), curators and trainers, each from the binaries that `cargo build --workspace --bins` made.
//!
//! ```text
//! Cluster ── Process × (controllers, curators, trainers)   kill -9, stop for a while, start again, read its log
//!    ├────── EtcdMembers, where an etcd of several is wanted
//!    └────── FaultyProxy × (controller to store, node to controller), where the network is to fail
//! Up ─────── `crescendo up`, and the same over its command line
//!    └────── subjects: small synthetic cut-outs, so that nothing has to be fetched
//! ```

mod cluster;
mod etcd_members;
mod http;
mod ports;
mod positions;
mod process;
mod specs;
mod subjects;
mod up;

pub use cluster::{Cluster, ClusterOptions};
pub use crescendo_testing::binary;
pub use etcd_members::EtcdMembers;
pub use http::http_get;
pub use positions::{no_step_twice, trained, trained_by};
pub use process::{PROGRAMS_IN, Process};
pub use specs::{base_spec, chaos_spec, lora_spec, waiting_spec};
pub use subjects::write_subjects;
pub use up::Up;
