//! The wire: messages and services of Crescendo, generated from `proto/crescendo/v1/*.proto`.
//!
//! | file | who talks to whom |
//! |---|---|
//! | `job.proto` | people and scripts → controller |
//! | `node.proto` | nodes ⇄ controller, one session each |
//! | `checkpoint.proto` | nodes and people → controller: the registry of checkpoints |
//! | `curation.proto` | curators → controller: units and the pair log's registry |
//! | `pair.proto` | ranks ⇄ curators: encoded pairs, with credits |
//! | `agent.proto` | ranks ⇄ agents |

/// Generated messages, clients and servers.
#[allow(clippy::all, clippy::pedantic, missing_docs, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("crescendo.v1");
}

/// Descriptors of every message and service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
