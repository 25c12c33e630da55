//! Connections to other processes.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::address::{AddressError, endpoint};
use super::explain;
use super::files::TlsFiles;
use super::reload::Tls;

/// Limit of reaching a server, over all addresses of its name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(4);

/// How this process reaches others: over TLS with its own certificate, or plainly. Clones share the certificate.
#[derive(Clone, Debug)]
pub struct Dialer {
    tls: Option<Tls>,
    name: Name,
}

/// Whose certificate a server must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// That of the host in the address.
    OfAddress,
    /// One with the first name of this process's own certificate.
    Own,
}

impl Dialer {
    /// Without TLS.
    pub fn plain() -> Self {
        Self { tls: None, name: Name::OfAddress }
    }

    /// Over TLS. The server must show a certificate for the host in its address.
    pub fn tls(tls: Tls) -> Self {
        Self { tls: Some(tls), name: Name::OfAddress }
    }

    /// The same for a server on this machine that has this process's own certificate, whatever address it is reached by.
    ///
    /// A rank reaches its agent over loopback or the address that the agent listens on, for which the certificate need
    /// not be issued. Both have the same files, so the first name in the rank's own certificate is one of the agent's.
    /// Nothing weaker than a certificate of this node is accepted.
    pub fn to_own(&self) -> Self {
        Self { tls: self.tls.clone(), name: Name::Own }
    }

    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A connection to `host:port`, made when it is first used.
    pub fn channel(&self, address: &str) -> Result<Channel, AddressError> {
        Ok(self.connect(self.endpoint(address)?))
    }

    /// The endpoint for `host:port`, or for a URL whose scheme says what this dialer does anyway.
    pub fn endpoint(&self, address: &str) -> Result<Endpoint, AddressError> {
        let host_and_port = match (address.split_once("://"), self.is_tls()) {
            (None, _) => address,
            (Some(("https", rest)), true) | (Some(("http", rest)), false) => rest,
            (Some(("http", _)), true) => return Err(AddressError::Plain { address: address.into() }),
            (Some(("https", _)), false) => return Err(AddressError::Protected { address: address.into() }),
            (Some(_), _) => return Err(AddressError::Invalid { address: address.into() }),
        };
        endpoint(host_and_port)
    }

    /// A connection for an endpoint with limits of its own. Its URI is `http` or `https`, with a port; what this dialer
    /// does is not changed by it.
    pub fn connect(&self, endpoint: Endpoint) -> Channel {
        let dialer = self.clone();
        let endpoint = match https(endpoint.uri()) {
            Some(origin) if self.is_tls() => endpoint.origin(origin),
            _ => endpoint,
        };
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let dialer = dialer.clone();
            async move { dialer.dial(&uri).await.map(TokioIo::new) }
        }))
    }

    async fn dial(&self, uri: &Uri) -> io::Result<ClientStream> {
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{uri} has no host and port")));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let at = uri.authority().map_or(host, |authority| authority.as_str()).to_owned();
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host, port)));
        let stream = connecting
            .await
            .unwrap_or_else(|_| Err(timed_out(format!("no connection within {CONNECT_TIMEOUT:?}"))))
            .map_err(|error| io::Error::new(error.kind(), format!("cannot reach {at}: {error}")))?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(ClientStream { io: Io::Plain(stream), at, answered: false });
        };
        let name = match self.name {
            Name::OfAddress => ServerName::try_from(host.to_owned()).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{host} is no name that a certificate has"),
                )
            })?,
            Name::Own => tls.own_name().ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "this process's certificate is for no name at all",
                )
            })?,
        };
        let handshake = TlsConnector::from(tls.client()).connect(name, stream);
        let files = tls.files().clone();
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                Ok(ClientStream { io: Io::Tls { stream: Box::new(stream), files }, at, answered: false })
            }
            Ok(Err(error)) => Err(explained(error, &at, &files)),
            Err(_) => Err(timed_out(format!("no TLS handshake with {at} within {HANDSHAKE_TIMEOUT:?}"))),
        }
    }
}

/// The same address as `https`, for what requests say of where they go.
fn https(uri: &Uri) -> Option<Uri> {
    Uri::builder().scheme("https").authority(uri.authority()?.clone()).path_and_query("/").build().ok()
}

fn timed_out(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn explained(error: io::Error, at: &str, files: &TlsFiles) -> io::Error {
    match explain::as_client(&error, at, files) {
        Some(text) => io::Error::new(error.kind(), text),
        None => io::Error::new(error.kind(), format!("{at}: {error}")),
    }
}

/// The client's end of a connection. Its errors say what is likely wrong.
#[derive(Debug)]
pub struct ClientStream {
    io: Io,
    /// host:port, for errors.
    at: String,
    /// Whether anything has been read.
    answered: bool,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    /// With what the errors name.
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        files: TlsFiles,
    },
}

impl ClientStream {
    /// Address of this end.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.io {
            Io::Plain(stream) => stream.local_addr(),
            Io::Tls { stream, .. } => stream.get_ref().0.local_addr(),
        }
    }

    /// The certificates that the server has shown, its own first; none without TLS.
    pub fn server_certificates(&self) -> &[rustls::pki_types::CertificateDer<'static>] {
        match &self.io {
            Io::Plain(_) => &[],
            Io::Tls { stream, .. } => stream.get_ref().1.peer_certificates().unwrap_or_default(),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let first = !this.answered;
        match &mut this.io {
            Io::Plain(stream) => {
                ready!(Pin::new(stream).poll_read(context, buffer))?;
                if first && buffer.filled().get(before) == Some(&explain::TLS_ALERT) {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{} speaks TLS, and this connection is without: give --tls-ca", this.at),
                    )));
                }
            }
            // With TLS 1.3 a server looks at the client's certificate after the client's end of the handshake is done:
            // its refusal comes with the first read.
            Io::Tls { stream, files } => ready!(Pin::new(stream).poll_read(context, buffer))
                .map_err(|error| explained(error, &this.at, files))?,
        }
        this.answered = true;
        Poll::Ready(Ok(()))
    }
}

/// What a write comes to. A server that closes before its first answer may have said why, and who uses the connection
/// forgets the reason for everything else when a write fails: so it is left to the read, which fails as well.
fn left_to_the_read<T>(written: io::Result<T>, answered: bool, as_if: T) -> io::Result<T> {
    match written {
        Err(_) if !answered => Ok(as_if),
        written => written,
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Tls { stream, .. } => Pin::new(stream).poll_write(context, bytes),
        });
        Poll::Ready(left_to_the_read(written, this.answered, bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Io::Tls { stream, .. } => Pin::new(stream).poll_write_vectored(context, parts),
        });
        let all = parts.iter().map(|part| part.len()).sum();
        Poll::Ready(left_to_the_read(written, this.answered, all))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(stream) => stream.is_write_vectored(),
            Io::Tls { stream, .. } => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(match &mut this.io {
            Io::Plain(stream) => Pin::new(stream).poll_flush(context),
            Io::Tls { stream, .. } => Pin::new(stream).poll_flush(context),
        });
        Poll::Ready(left_to_the_read(flushed, this.answered, ()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Tls { stream, .. } => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_cannot_say_otherwise() {
        let plain = Dialer::plain();
        assert!(plain.endpoint("localhost:1").is_ok() && plain.endpoint("http://10.0.0.1:2").is_ok());
        assert!(matches!(plain.endpoint("https://a:1"), Err(AddressError::Protected { .. })));
        for bad in ["no-port", "a b:1", "ftp://a:1", "http://"] {
            assert!(matches!(plain.endpoint(bad), Err(AddressError::Invalid { .. })), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = Dialer::plain().dial(&format!("http://{address}").parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
