//! How the ranks of one group find each other: rank 0 listens, everyone else is told where.

use crate::error::{CollectiveError, Result};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Between two tries to reach a rank 0 that does not listen yet.
const RETRY: Duration = Duration::from_millis(20);

/// One meeting place, good for one group. Whoever places the ranks carries the address of rank 0 to the others.
///
/// There is no authentication: the address must be on a network that only the cluster can reach.
#[derive(Debug)]
pub enum Rendezvous {
    /// Rank 0: the socket that the others connect to, already listening.
    Host { listener: TcpListener, address: SocketAddr },
    /// Every other rank: where rank 0 listens.
    Join { address: SocketAddr },
}

impl Rendezvous {
    /// Listens on a free port of `bind_ip`, the address of one network interface that the other ranks can reach.
    pub fn host(bind_ip: IpAddr) -> Result<Self> {
        if bind_ip.is_unspecified() {
            return Err(CollectiveError::InvalidArgument(format!(
                "rendezvous on {bind_ip}: name the address of one network interface, the other ranks connect to it"
            )));
        }
        let failed = |error: std::io::Error| CollectiveError::Backend {
            operation: "rendezvous",
            detail: format!("cannot listen on {bind_ip}: {error}"),
        };
        let listener = TcpListener::bind((bind_ip, 0)).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self::Host { listener, address })
    }

    /// Meets at the address that rank 0's [`address`](Self::address) told.
    pub fn join(address: SocketAddr) -> Self {
        Self::Join { address }
    }

    /// Where the other ranks connect to.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Host { address, .. } | Self::Join { address } => *address,
        }
    }

    /// Waits until rank 0 accepts connections, and returns what is left of `limit`. c10d would wait, too, but tells its
    /// failures on stderr, with a backtrace for each.
    pub(crate) fn await_host(&self, limit: Duration) -> Result<Duration> {
        let Self::Join { address } = self else {
            return Ok(limit);
        };
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            // Zero is not a timeout that a connection can have.
            let refused = match TcpStream::connect_timeout(address, left.max(RETRY)) {
                Ok(_) => return Ok(limit.saturating_sub(start.elapsed()).max(RETRY)),
                Err(error) => error,
            };
            if start.elapsed() + RETRY >= limit || refused.kind() == ErrorKind::InvalidInput {
                let detail = format!("rank 0 cannot be reached at {address}: {refused}");
                return Err(CollectiveError::Timeout { operation: "rendezvous", limit, detail });
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Address of the interface on this machine from which `address` is reached. Sends nothing.
    pub(crate) fn own_interface(&self) -> Result<IpAddr> {
        match self {
            Self::Host { address, .. } => Ok(address.ip()),
            Self::Join { address } => {
                let any: IpAddr = if address.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                UdpSocket::bind((any, 0))
                    .and_then(|socket| {
                        // Connecting a datagram socket only asks the routing table.
                        socket.connect(address)?;
                        socket.local_addr()
                    })
                    .map(|local| local.ip())
                    .map_err(|error| CollectiveError::Backend {
                        operation: "rendezvous",
                        detail: format!("no route to {address}: {error}"),
                    })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_tells_a_port_that_accepts() {
        let host = Rendezvous::host(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert_ne!(host.address().port(), 0);
        std::net::TcpStream::connect(host.address()).unwrap();
    }

    #[test]
    fn any_address_is_no_meeting_place() {
        let refused = Rendezvous::host(Ipv4Addr::UNSPECIFIED.into()).unwrap_err();
        assert!(refused.to_string().contains("network interface"), "{refused}");
    }

    #[test]
    fn the_interface_towards_this_machine_is_loopback() {
        let join = Rendezvous::join("127.0.0.1:9".parse().unwrap());
        assert_eq!(join.own_interface().unwrap(), IpAddr::from(Ipv4Addr::LOCALHOST));
    }
}
