//! One connection: plain or TLS, and the token on every call.

use std::time::Duration;

use crescendo_node::objects::with_causes;
use crescendo_node::tls::{Dialer, Identity, TlsFiles};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::failure::Failure;
use crate::settings::token::Token;
use crate::settings::{Target, Tls};

/// Limit of opening a connection.
const CONNECT: Duration = Duration::from_secs(3);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection without a login.
pub type Plain = Channel;
/// A connection with the caller's token, if there is one.
pub type Wire = InterceptedService<Channel, Bearer>;

/// Puts the token on every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub fn with_token(channel: Plain, token: Option<&Token>) -> Result<Wire, Failure> {
    let value = match token {
        None => None,
        Some(token) => {
            let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.reveal())
                .parse()
                .map_err(|_| Failure::Usage("the token does not fit into a header".into()))?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(InterceptedService::new(channel, Bearer(value)))
}

/// How an address is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// With a port.
    pub host_port: String,
    pub tls: bool,
}

/// TLS where the address, a root, a certificate or a token says so. A token goes over a plain connection only within this
/// machine: `crescendo up` asks for none, so that sending one there tells no one.
pub fn place(address: &str, target: &Target) -> Result<Place, Failure> {
    let wrong = |why: &str| Failure::Usage(format!("`{address}` is not an address (host:port): {why}"));
    let (scheme, host_port) = match address.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (Some(scheme), rest.trim_end_matches('/')),
        Some(_) => return Err(wrong("only http:// and https:// are known")),
        None => (None, address),
    };
    let (host, port) = host_port.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    if host.is_empty() || host_port.contains(['/', '@', ' ']) {
        return Err(wrong("there must be a host, a colon and a port, and nothing else"));
    }
    port.parse::<u16>().map_err(|_| wrong("the port is not a number up to 65535"))?;
    let loopback = is_loopback(host);
    let secret = target.token.is_some();
    let tls = match scheme {
        Some("https") => true,
        Some(_) => false,
        None => target.tls.is_given() || secret && !loopback,
    };
    if !tls && secret && !loopback {
        return Err(Failure::Usage(format!(
            "the token is not sent to {address}: the connection would not be encrypted; give the address without http://"
        )));
    }
    if !tls && target.tls.is_given() {
        return Err(Failure::Usage(format!(
            "{address} asks for a plain connection, and --tls-ca or --tls-cert for an encrypted one; leave one of them out"
        )));
    }
    Ok(Place { host_port: host_port.to_owned(), tls })
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// TLS by these files. Each of them has to be right, and what is wrong with one is said.
pub async fn dialer(files: &Tls) -> Result<Dialer, Failure> {
    let identity = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => Some(Identity { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        (Some(_), None) => return Err(Failure::Usage("a certificate needs its key: give --tls-key".into())),
        (None, Some(_)) => return Err(Failure::Usage("a key needs its certificate: give --tls-cert".into())),
    };
    let loaded = crescendo_node::tls::Tls::load(TlsFiles { identity, ca: files.ca.clone() }).await;
    loaded.map(Dialer::tls).map_err(|error| Failure::Usage(with_causes(&error)))
}

/// A connection, made when it is first used.
pub fn open(place: &Place, tls: Option<&Dialer>) -> Result<Plain, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{}", place.host_port))
        .map_err(|error| {
            Failure::Usage(format!("`{}` is not an address (host:port): {error}", place.host_port))
        })?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let plain = Dialer::plain();
    let dialer = tls.filter(|_| place.tls).unwrap_or(&plain);
    Ok(dialer.connect(endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::token::TokenSource;

    fn target(token: bool, ca: bool) -> Target {
        Target {
            token: if token { TokenSource::Given("t".to_owned().into()) } else { TokenSource::None },
            tls: Tls { ca: ca.then(|| "/ca.pem".into()), ..Tls::default() },
            ..Target::default()
        }
    }

    #[test]
    fn a_token_never_goes_over_a_plain_connection_to_another_machine() {
        for (address, token, ca, expected) in [
            ("lab:7070", false, false, Some(false)),
            ("lab:7070", true, false, Some(true)),
            ("lab:7070", false, true, Some(true)),
            ("http://lab:7070", true, false, None),
            ("http://lab:7070", true, true, None),
            ("http://lab:7070", false, true, None),
            ("http://lab:7070", false, false, Some(false)),
            ("https://lab:7070/", true, false, Some(true)),
            ("127.0.0.1:7070", true, false, Some(false)),
            ("127.0.0.1:7070", true, true, Some(true)),
            ("http://127.0.0.1:7070", true, false, Some(false)),
            ("localhost:7070", true, false, Some(false)),
            ("[::1]:7070", true, false, Some(false)),
            ("127.0.0.1.example.com:7070", true, false, Some(true)),
            ("http://127.0.0.1.example.com:7070", true, false, None),
            ("http://localhost@evil:7070", true, false, None),
        ] {
            let found = place(address, &target(token, ca)).ok().map(|place| place.tls);
            assert_eq!(found, expected, "{address} token {token} ca {ca}");
        }
    }

    #[test]
    fn what_is_no_address_says_what_is_missing() {
        for (bad, why) in
            [("lab", "port"), ("lab:x", "port"), (":1", "host"), ("ftp://lab:1", "http"), ("lab:1/x", "host")]
        {
            let message = place(bad, &Target::default()).unwrap_err().to_string();
            assert!(message.contains(why) && message.contains(bad), "{message}");
        }
    }
}
