//! Addresses of other processes.

use std::time::Duration;

use tonic::transport::Endpoint;

/// Limit of establishing a connection, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that answers no HTTP/2 ping for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("no controller address given")]
    None,
    #[error("address {address} is not host:port")]
    Invalid { address: String },
    #[error("address {address} is without TLS, and this process has certificates: write host:port")]
    Plain { address: String },
    #[error(
        "address {address} is with TLS, and this process has no certificates: give --tls-ca, or write host:port"
    )]
    Protected { address: String },
}

/// An endpoint for `host:port`, with the limits that all connections of a node have. How it is reached is the
/// dialer's matter.
pub(crate) fn endpoint(address: &str) -> Result<Endpoint, AddressError> {
    let invalid = || AddressError::Invalid { address: address.into() };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| invalid())?;
    if endpoint.uri().port().is_none() {
        return Err(invalid());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}
