//! How this process calls others over HTTP: over the network only with TLS, unless it is told otherwise, and never elsewhere than it
//! was told to.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Url};

/// A client that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BadClient {
    #[error("set up HTTP")]
    Http(#[source] reqwest::Error),
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
}

/// Follows no redirects; `deadline` is that of a whole exchange. Servers of https are verified by the roots of this machine.
pub fn client(scheme: &str, deadline: Duration) -> Result<Client, BadClient> {
    let mut builder = Client::builder()
        .redirect(Policy::none())
        .referer(false)
        .connect_timeout(deadline)
        .timeout(deadline)
        .user_agent(concat!("crescendo/", env!("CARGO_PKG_VERSION")));
    if scheme == "https" {
        // Only fails where there is a provider already, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    } else {
        // Nothing is verified, so no certificates of the system need to be there, and no proxy lies between.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(BadClient::Tls)?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        builder = builder.tls_backend_preconfigured(config).no_proxy();
    }
    builder.build().map_err(BadClient::Http)
}

/// Over the network only with TLS.
pub fn is_safe(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    url.scheme() == "https" || (url.scheme() == "http" && here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_a_server_is_on_this_machine() {
        let safe = |text: &str| is_safe(&Url::parse(text).expect("a URL"));
        for good in
            ["https://id.example.org/realm", "http://127.0.0.1:9/x", "http://localhost", "http://[::1]:9"]
        {
            assert!(safe(good), "{good}");
        }
        for bad in [
            "http://id.example.org",
            "http://127.0.0.1.example.org",
            "http://localhost.example.org",
            "ftp://localhost",
        ] {
            assert!(!safe(bad), "{bad}");
        }
    }
}
