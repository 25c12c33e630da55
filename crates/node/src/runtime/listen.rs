//! Listeners, which stay on loopback where connections are not protected.

use std::net::SocketAddr;

use tokio::net::TcpListener;

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{addr} can be reached from other machines, and with --dev there is neither encryption nor login: listen on 127.0.0.1 or [::1], or give --tls-cert, --tls-key and --tls-ca instead of --dev"
    )]
    NotLoopback { addr: SocketAddr },
    #[error("cannot listen on {addr}")]
    Bind {
        addr: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// Binds `addr`; with `dev`, one that other machines reach is refused.
pub async fn bind(addr: SocketAddr, dev: bool) -> Result<TcpListener, ListenError> {
    if !addr.ip().is_loopback() && dev {
        return Err(ListenError::NotLoopback { addr });
    }
    TcpListener::bind(addr).await.map_err(|source| ListenError::Bind { addr, source })
}

/// `host:port` under which others reach a listener bound to `bound`.
pub fn advertised(bound: SocketAddr, advertise_host: Option<&str>) -> String {
    match advertise_host {
        Some(host) if host.contains(':') => format!("[{host}]:{}", bound.port()),
        Some(host) => format!("{host}:{}", bound.port()),
        None => bound.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_machines_are_refused_where_nothing_is_protected() {
        let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert!(matches!(bind(everywhere, true).await, Err(ListenError::NotLoopback { .. })));
        assert!(bind(everywhere, false).await.is_ok());
        assert!(bind("127.0.0.1:0".parse().unwrap(), true).await.is_ok());
    }

    #[test]
    fn advertised_address() {
        let bound: SocketAddr = "127.0.0.1:77".parse().unwrap();
        assert_eq!(advertised(bound, None), "127.0.0.1:77");
        assert_eq!(advertised(bound, Some("node-1")), "node-1:77");
        assert_eq!(advertised(bound, Some("fd00::1")), "[fd00::1]:77");
    }
}
