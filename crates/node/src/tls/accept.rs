//! The connections to a server: bounded in number, each with a deadline for saying who it is and what it wants.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::telemetry::metrics_registry::{Metric, Registrar, counter, gauge, words};
use prometheus::{IntCounterVec, IntGauge, Registry};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::explain;
use super::peer::{Peer, PeerCertificate};
use super::reload::{ClientCertificates, Tls};

/// Handshakes at a time; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;
/// Limit of a handshake; and of the preface that every HTTP/2 connection begins with. What comes later is watched by pings.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// `PRI * HTTP/2.0` and what follows it.
const PREFACE_BYTES: usize = 24;
/// Pause after the system gave no connection, which it does when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Refusals come in floods: one line in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

const REFUSED: [&str; 8] = [
    "limit",
    "timeout",
    "not_tls",
    "no_certificate",
    "certificate",
    "refused_by_peer",
    "handshake",
    "closed",
];

/// Every metric of connections.
pub const CATALOGUE: &[Metric] = &[
    gauge("crescendo_connections_open", "", &[], "Connections to the gRPC server."),
    counter(
        "crescendo_connections_refused_total",
        "",
        &[words("reason", &REFUSED)],
        "Connections that were closed before their first call; `limit`: too many were open.",
    ),
];

/// What is counted of connections.
#[derive(Clone, Debug)]
pub struct ConnectionMetrics {
    open: IntGauge,
    refused: IntCounterVec,
}

impl ConnectionMetrics {
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let open = registrar.gauge("crescendo_connections_open")?;
        let refused = registrar.counters("crescendo_connections_refused_total")?;
        registrar.finish()?;
        Ok(Self { open, refused })
    }
}

/// A stream of connections that are ready for HTTP/2, for `serve_with_incoming_shutdown`. Never ends, never fails.
pub struct Incoming {
    listener: TcpListener,
    tls: Option<(Tls, ClientCertificates)>,
    places: Arc<Semaphore>,
    handshakes: JoinSet<Option<Connection>>,
    opening_timeout: Duration,
    metrics: ConnectionMetrics,
    pause: Option<Pin<Box<Sleep>>>,
    /// Time of the last log line about the limit.
    told: Option<Instant>,
}

impl Incoming {
    /// `max_connections` counts those in their handshake too.
    pub fn new(
        listener: TcpListener,
        tls: Option<(Tls, ClientCertificates)>,
        max_connections: usize,
        metrics: ConnectionMetrics,
    ) -> Self {
        let places = Arc::new(Semaphore::new(max_connections.clamp(1, Semaphore::MAX_PERMITS)));
        Self {
            listener,
            tls,
            places,
            handshakes: JoinSet::new(),
            opening_timeout: OPENING_TIMEOUT,
            metrics,
            pause: None,
            told: None,
        }
    }

    /// Another limit than 10 s for a handshake, and for the first bytes after it.
    pub fn with_opening_timeout(self, opening_timeout: Duration) -> Self {
        Self { opening_timeout, ..self }
    }

    /// A connection that can be used at once, or nothing.
    fn take(&mut self, stream: TcpStream, addr: SocketAddr) -> Option<Connection> {
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.refused.with_label_values(&["limit"]).inc();
            if self.told.is_none_or(|told| told.elapsed() >= LOG_INTERVAL) {
                tracing::warn!(%addr, "refused a connection: --max-connections are open");
                self.told = Some(Instant::now());
            }
            return None;
        };
        let place = Place::new(self.metrics.clone(), permit);
        // Fails for a connection that is gone already, which the first read finds out.
        let _ = stream.set_nodelay(true);
        let Some((tls, clients)) = self.tls.clone() else {
            let peer = Peer { addr: Some(addr), certificate: None };
            return Some(Connection::new(Io::Plain(stream), peer, place, self.opening_timeout));
        };
        let limit = self.opening_timeout;
        let metrics = self.metrics.clone();
        self.handshakes.spawn(async move {
            match shake_hands(stream, addr, &tls, clients, limit).await {
                Ok((stream, peer)) => Some(Connection::new(Io::Tls(Box::new(stream)), peer, place, limit)),
                Err((reason, text)) => {
                    metrics.refused.with_label_values(&[reason]).inc();
                    tracing::info!(%addr, reason, "refused a connection: {text}");
                    None
                }
            }
        });
        None
    }
}

async fn shake_hands(
    stream: TcpStream,
    addr: SocketAddr,
    tls: &Tls,
    clients: ClientCertificates,
    limit: Duration,
) -> Result<(TlsStream<TcpStream>, Peer), (&'static str, String)> {
    let config = tls.server(clients).ok_or(("handshake", "this process has no certificate".to_owned()))?;
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::time::timeout(limit, accepting)
        .await
        .map_err(|_| ("timeout", format!("no TLS handshake within {limit:?}")))?
        .map_err(|error| {
            let roots = tls.files().ca.as_ref().map(|path| path.display().to_string());
            explain::as_server(&error, roots.as_deref().unwrap_or("the system's roots"))
        })?;
    let certificate = match stream.get_ref().1.peer_certificates().and_then(|shown| shown.first()) {
        None => None,
        // One that was verified but cannot be read must not count as none.
        Some(shown) => Some(
            PeerCertificate::from_der(shown)
                .ok_or(("certificate", "its certificate cannot be read".to_owned()))?,
        ),
    };
    Ok((stream, Peer { addr: Some(addr), certificate }))
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match this.handshakes.poll_join_next(context) {
                Poll::Ready(Some(Ok(Some(connection)))) => return Poll::Ready(Some(Ok(connection))),
                // One that failed has said why.
                Poll::Ready(Some(_)) => continue,
                Poll::Ready(None) | Poll::Pending => {}
            }
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(context));
                this.pause = None;
            }
            if this.handshakes.len() >= MAX_HANDSHAKES {
                // The end of one wakes this up.
                return Poll::Pending;
            }
            match ready!(this.listener.poll_accept(context)) {
                Ok((stream, addr)) => {
                    if let Some(connection) = this.take(stream, addr) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    this.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

/// One of the connections that may be open.
struct Place {
    metrics: ConnectionMetrics,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(metrics: ConnectionMetrics, permit: OwnedSemaphorePermit) -> Self {
        metrics.open.inc();
        Self { metrics, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.open.dec();
    }
}

/// The server's end of a connection.
pub struct Connection {
    io: Io,
    peer: Peer,
    opening: Option<Opening>,
    place: Place,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is to come before a deadline.
struct Opening {
    missing_bytes: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connection {
    fn new(io: Io, peer: Peer, place: Place, limit: Duration) -> Self {
        let deadline = Box::pin(tokio::time::sleep(limit));
        Self { io, peer, opening: Some(Opening { missing_bytes: PREFACE_BYTES, deadline }), place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        };
        let Some(opening) = &mut this.opening else { return read };
        opening.missing_bytes = opening.missing_bytes.saturating_sub(buffer.filled().len() - before);
        if opening.missing_bytes == 0 {
            this.opening = None;
            return read;
        }
        if opening.deadline.as_mut().poll(context).is_ready() {
            this.opening = None;
            this.place.metrics.refused.with_label_values(&["timeout"]).inc();
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the HTTP/2 preface did not come in time",
            )));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Io::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
