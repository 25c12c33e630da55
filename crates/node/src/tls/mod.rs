//! TLS between the processes of a cluster.

mod peer;

pub use peer::{NODE_ROLE, NODE_URI, Peer, PeerCertificate, ROLE_URI, TENANT_URI};
