//! The wire: messages and services of Crescendo, generated from `proto/crescendo/v1/*.proto`, and the messages that are
//! kept in the store, from `proto/crescendo/store/v1/*.proto`.
//!
//! | file | who talks to whom |
//! |---|---|
//! | `job.proto` | people and scripts → controller |
//! | `access.proto` | everyone → controller: who am I |
//! | `node.proto` | nodes ⇄ controller, one session each |
//! | `checkpoint.proto` | nodes and people → controller: the registry of checkpoints |
//! | `deletion.proto` | people → controller: ended jobs on their way out, and what stays of them |
//! | `queue.proto` | people → controller: queues, shares and what was used |
//! | `object.proto` | people → controller ← curators: files out of the object store |
//! | `curation.proto` | curators → controller: units and the pair log's registry |
//! | `review.proto` | people → controller ← curators: pairs to look at |
//! | `pair.proto` | ranks ⇄ curators: encoded pairs, with credits |
//! | `agent.proto` | ranks ⇄ agents |
//! | `records.proto` | controller ⇄ store |
//!
//! Beside them: [`convert`] between messages and the types of `crescendo-core`, with errors that name the field;
//! [`explained`], why a job waits; [`records`] between stored messages and core records; [`status`], the one map from refusals to gRPC codes.

/// Largest message that a client takes: a page of 500 jobs with their specs, a part of a pair log, or a pair of a curator, several
/// times over. What a server takes is its own affair, and much less.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// A stream that has nothing to say says so after this long: proxies and load balancers cut what is silent for a minute, and an
/// HTTP/2 ping is no word to most of them.
pub const SILENCE_LIMIT: std::time::Duration = std::time::Duration::from_secs(25);

pub mod convert;
pub mod deletions;
pub mod explained;
mod record_parts;
pub mod records;
pub mod samplings;
pub mod status;

/// Generated messages, clients and servers.
#[allow(clippy::all, clippy::pedantic, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("crescendo.v1");
}

/// Generated messages of the store.
#[allow(clippy::all, clippy::pedantic, missing_docs, rustdoc::all)]
pub mod store_v1 {
    tonic::include_proto!("crescendo.store.v1");
}

/// Descriptors of every message and service on the wire, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
