//! What a failed handshake means, and what to do about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use super::files::TlsFiles;

/// The first byte of a TLS alert, which a TLS server sends to whoever does not speak TLS. An HTTP/2 frame of a server
/// never begins with it: its first three bytes are a length, and the first frame is short.
pub(super) const TLS_ALERT: u8 = 0x15;

/// A failure at the client's end of a connection to `host`.
pub(super) fn as_client(error: &io::Error, host: &str, files: &TlsFiles) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    let mine = files.identity.as_ref().map(|identity| identity.cert.display().to_string());
    let mine = mine.as_deref().unwrap_or("(none)");
    let roots = match &files.ca {
        Some(path) => path.display().to_string(),
        None => "the system's roots".to_owned(),
    };
    Some(match error {
        Error::InvalidCertificate(reason) => {
            format!("the certificate of {host} {}", certificate(reason, &roots))
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => format!(
            "{host} does not speak TLS: it runs with --dev or is no gRPC server; start it with --tls-cert, --tls-key and --tls-ca"
        ),
        Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            format!("{host} speaks TLS but not HTTP/2: it is no gRPC server")
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{host} wants a client certificate: give --tls-cert and --tls-key")
        }
        Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::BadCertificate) => format!(
            "{host} refuses this client's certificate {mine}: its --tls-ca has no root that vouches for it"
        ),
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            format!("{host} says that this client's certificate {mine} has expired, or its clock is wrong")
        }
        Error::AlertReceived(alert) => {
            format!("{host} ends the handshake ({alert:?}); this client's certificate is {mine}")
        }
        other => format!("TLS with {host}: {other}"),
    })
}

/// A failure at the server's end: a word for counting, and text.
pub(super) fn as_server(error: &io::Error, roots: &str) -> (&'static str, String) {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return ("closed", error.to_string());
    };
    match error {
        Error::InvalidMessage(_) => ("not_tls", "it does not speak TLS".to_owned()),
        Error::NoCertificatesPresented => ("no_certificate", "it shows no certificate".to_owned()),
        Error::InvalidCertificate(reason) => {
            ("certificate", format!("its certificate {}", certificate(reason, roots)))
        }
        Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired),
        ) => ("refused_by_peer", format!("it refuses this server's certificate ({alert:?})")),
        other => ("handshake", other.to_string()),
    }
}

/// What is wrong with a certificate; goes on after "the certificate".
fn certificate(reason: &CertificateError, roots: &str) -> String {
    match reason {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has expired (or a clock is wrong): renew it".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet: is a clock wrong?".to_owned()
        }
        CertificateError::UnknownIssuer => {
            format!("is vouched for by no root in {roots}: issue it from one of them, or add its root there")
        }
        CertificateError::NotValidForName => "is for other names".to_owned(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            format!(
                "is for {}, not for {}: connect by one of its names, or issue it with this one",
                if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") },
                expected.to_str()
            )
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "is not for this end of a connection: issue it with extendedKeyUsage=serverAuth,clientAuth"
                .to_owned()
        }
        other => format!("cannot be accepted: {other}"),
    }
}

/// `DnsName("a.example")` as rustls tells it, to `a.example`.
fn bare(name: &str) -> &str {
    match name.split_once("(\"") {
        Some((_, rest)) => rest.trim_end_matches("\")"),
        None => name.trim(),
    }
}
