//! TLS between the processes of a cluster: connections that no one else reads or changes, and a name for who is at the
//! other end.
//!
//! ```text
//!   --tls-cert, --tls-key, --tls-ca ──read again when they change──▶ Tls (one consistent set)
//!                                                                     │            │
//!   TcpListener ─▶ Incoming: bound, handshake with a deadline ◀───────┘            └──▶ Dialer ─▶ lazy Channel
//!                     │                                                                (verifies the server's name)
//!                     ▼
//!                 Connection ─▶ tonic ─▶ NodesOnly ─▶ services       Peer is in the extensions of every request
//! ```
//!
//! TLS 1.3 or 1.2 by rustls with ring. New connections use the newest files, old ones live on. Sessions are never resumed: a
//! resumed one would skip the look at the peer's certificate. Nothing is sent early, so recorded bytes are worth
//! nothing to whoever sends them again.
//!
//! With `--dev` the same loop and the same bounds serve plain connections, on loopback only.

mod accept;
mod address;
mod dial;
mod explain;
mod files;
mod peer;
mod reload;
mod roles;
mod security;

pub use accept::{CATALOGUE as CONNECTIONS_CATALOGUE, Connection, ConnectionMetrics, Incoming};
pub use address::AddressError;
pub use dial::{ClientStream, Dialer};
pub use files::{Identity, TlsError, TlsFiles};
pub use peer::{NODE_ROLE, NODE_URI, Peer, PeerCertificate, ROLE_URI, TENANT_URI};
pub use reload::{CATALOGUE as FILES_CATALOGUE, ClientCertificates, RELOAD_INTERVAL, Tls, TlsMetrics};
pub use roles::{NodesOnly, OnlyNodes};
pub use security::{Security, SecurityError};
