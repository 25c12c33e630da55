//! For tests: certificates, made anew by each of them, and a listener between two ends of a connection.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crescendo_node::tls::{Identity, TlsFiles};

/// A moment at which [`Wanted::expired`] certificates were valid, Unix time: see [`crescendo_node::tls::Tls::load_as_of`].
pub const BEFORE_EXPIRY: i64 = 960_000_000;

/// An authority whose certificates are good for nothing outside a test.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
}

/// What a certificate says.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// Common name.
    pub name: &'a str,
    /// Host names and addresses.
    pub hosts: &'a [&'a str],
    pub uris: &'a [&'a str],
    /// Its validity ended long ago.
    pub expired: bool,
}

impl<'a> Wanted<'a> {
    /// For a node on this machine.
    pub fn node(name: &'a str) -> Self {
        Self { name, hosts: &["localhost", "127.0.0.1"], uris: &["urn:crescendo:role:node"], expired: false }
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let root_pem = params.self_signed(&key).expect("a root").pem();
        Self { issuer: Issuer::new(params, key), root_pem }
    }

    /// PEM of the root.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// PEM of a new certificate and its key.
    pub fn issue(&self, wanted: &Wanted<'_>) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, wanted.name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        for host in wanted.hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*host).try_into().expect("a host name")),
            });
        }
        for uri in wanted.uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().expect("a URI")));
        }
        if wanted.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes the root, a new certificate and its key into `folder` as `ca.pem`, `NAME.pem` and `NAME.key`.
    pub fn write(&self, folder: &Path, wanted: &Wanted<'_>) -> TlsFiles {
        let at = |suffix: &str| -> PathBuf { folder.join(format!("{}.{suffix}", wanted.name)) };
        let (cert, key) = self.issue(wanted);
        let identity = Identity { cert: at("pem"), key: at("key") };
        let ca = folder.join("ca.pem");
        std::fs::write(&identity.cert, cert).expect("write the certificate");
        std::fs::write(&identity.key, key).expect("write the key");
        std::fs::write(&ca, &self.root_pem).expect("write the root");
        TlsFiles { identity: Some(identity), ca: Some(ca) }
    }

    /// The same as command line arguments.
    pub fn write_args(&self, folder: &Path, wanted: &Wanted<'_>) -> Vec<String> {
        let files = self.write(folder, wanted);
        let text = |path: PathBuf| path.display().to_string();
        let mut args = Vec::new();
        if let Some(identity) = files.identity {
            args.extend(["--tls-cert".to_owned(), text(identity.cert)]);
            args.extend(["--tls-key".to_owned(), text(identity.key)]);
        }
        if let Some(ca) = files.ca {
            args.extend(["--tls-ca".to_owned(), text(ca)]);
        }
        args
    }
}

/// Passes one connection on, and keeps what the client says.
pub struct Recorder {
    /// 127.0.0.1:PORT, for the client.
    pub address: String,
    said: Arc<Mutex<Vec<u8>>>,
    _passing: JoinSet<io::Result<()>>,
}

impl Recorder {
    pub async fn before(server: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (kept, server) = (Arc::clone(&said), server.to_owned());
        let mut passing = JoinSet::new();
        passing.spawn(async move {
            let (client, _) = listener.accept().await?;
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = TcpStream::connect(server).await?.into_split();
            let up = async {
                let mut buffer = [0; 4096];
                loop {
                    let bytes = match from_client.read(&mut buffer).await? {
                        0 => return Ok(()),
                        count => buffer.get(..count).unwrap_or_default(),
                    };
                    kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
                    to_server.write_all(bytes).await?;
                }
            };
            let down = tokio::io::copy(&mut from_server, &mut to_client);
            tokio::try_join!(up, down).map(|_: ((), u64)| ())
        });
        Ok(Self { address, said, _passing: passing })
    }

    /// Says the same to a server over a connection of its own, and waits until the server has closed it.
    pub async fn replay(&self, server: &str) -> io::Result<usize> {
        let bytes = self.said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut stream = TcpStream::connect(server).await?;
        // The server may close before it has taken all, and with a reset: both are an end.
        let _ = stream.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Ok(bytes.len())
    }
}
