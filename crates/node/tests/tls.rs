//! Connections between real sockets, with certificates made here: who gets through, who does not, and what they are told.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::tls::{
    ClientCertificates, ConnectionMetrics, Dialer, NodesOnly, Peer, Security, Tls, TlsError, TlsFiles,
};
use crescendo_proto::v1::node_service_client::NodeServiceClient;
use crescendo_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use crescendo_proto::v1::{
    DrainNodeRequest, DrainNodeResponse, ForgetNodeRequest, ForgetNodeResponse, ListNodesRequest,
    ListNodesResponse, OpenSessionRequest, OpenSessionResponse,
};
use crescendo_testing::certificates::{Authority, Recorder, Wanted};
use crescendo_testing::until;
use prometheus::Registry;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(30);
/// A server with room for so many cuts off who says nothing for 50 ms.
const IMPATIENT: usize = 8;

/// Hands on who called.
struct Witness(mpsc::Sender<Peer>);

#[tonic::async_trait]
impl NodeService for Witness {
    type OpenSessionStream = ReceiverStream<Result<OpenSessionResponse, Status>>;

    async fn open_session(
        &self,
        _: Request<Streaming<OpenSessionRequest>>,
    ) -> Result<Response<Self::OpenSessionStream>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn forget_node(
        &self,
        _: Request<ForgetNodeRequest>,
    ) -> Result<Response<ForgetNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn drain_node(&self, _: Request<DrainNodeRequest>) -> Result<Response<DrainNodeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_nodes(
        &self,
        request: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        let peer = request.extensions().get::<Peer>().cloned().expect("every request has its peer");
        self.0.send(peer).await.expect("the test listens");
        Ok(Response::new(ListNodesResponse::default()))
    }
}

struct Server {
    /// 127.0.0.1:PORT
    address: String,
    callers: mpsc::Receiver<Peer>,
    registry: Registry,
    /// For a look at the files now.
    tls: Option<Tls>,
    _tasks: Tasks,
    _stop: DropGuard,
}

impl Server {
    async fn start(files: Option<TlsFiles>, clients: ClientCertificates, max_connections: usize) -> Self {
        let security = match files {
            Some(files) => Security::Tls(Tls::load(files).await.expect("right files")),
            None => Security::Dev,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let registry = Registry::new();
        let metrics = ConnectionMetrics::register(&registry).expect("register");
        let incoming = security.incoming(listener, clients, max_connections, metrics);
        let incoming = match max_connections {
            IMPATIENT => incoming.with_opening_timeout(Duration::from_millis(50)),
            _ => incoming,
        };
        let (sender, callers) = mpsc::channel(64);
        let (tasks, _) = Tasks::new();
        let stop = tasks.stop_token();
        let nodes_only = match clients {
            ClientCertificates::Required => security.nodes_only(),
            ClientCertificates::Asked => NodesOnly::new(false),
        };
        let serving = tonic::transport::Server::builder()
            .layer(nodes_only)
            .add_service(NodeServiceServer::new(Witness(sender)))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tasks.spawn(async move { serving.await.expect("the server") });
        let tls = match security {
            Security::Tls(tls) => Some(tls),
            Security::Dev => None,
        };
        Self { address, callers, registry, tls, _tasks: tasks, _stop: stop.drop_guard() }
    }

    async fn required(files: TlsFiles) -> Self {
        Self::start(Some(files), ClientCertificates::Required, 64).await
    }

    fn metric(&self, name: &str, reason: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric()).unwrap_or_default();
        metrics
            .iter()
            .filter(|metric| {
                reason.is_empty() || metric.get_label().iter().any(|label| label.value() == reason)
            })
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }

    fn refused(&self, reason: &str) -> f64 {
        self.metric("crescendo_connections_refused_total", reason)
    }

    /// Nobody got as far as the service.
    fn nothing_happened(&mut self) {
        assert!(self.callers.try_recv().is_err(), "a refused peer reached the service");
    }
}

async fn dialer(files: TlsFiles) -> Dialer {
    Dialer::tls(Tls::load(files).await.expect("right files"))
}

async fn call(channel: Channel) -> Result<(), Status> {
    let calling = async { NodeServiceClient::new(channel).list_nodes(ListNodesRequest {}).await };
    tokio::time::timeout(LIMIT, calling).await.expect("an answer in time").map(|_| ())
}

/// The error with all its causes.
fn story(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// A client below gRPC, which may show any certificate.
async fn handshake(
    address: &str,
    root_pem: &str,
    shown: Option<(&str, &str)>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root_pem.as_bytes()).unwrap()).unwrap();
    let builder =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
    let mut config = match shown {
        Some((cert, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    // With TLS 1.3 the server's refusal of a certificate comes after this end is done.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    let mut first = [0];
    stream.read_exact(&mut first).await?;
    Ok(stream)
}

#[tokio::test]
async fn a_node_is_known_to_the_server_by_its_certificate() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let mut server = Server::required(authority.write(folder.path(), &Wanted::node("curator-0"))).await;
    let uris = ["urn:crescendo:role:node", "urn:crescendo:node:trainer-0", "urn:crescendo:tenant:research"];
    let files = authority.write(folder.path(), &Wanted { uris: &uris, ..Wanted::node("trainer-0") });
    let channel = dialer(files).await.channel(&server.address).unwrap();
    call(channel.clone()).await.unwrap();
    let peer = server.callers.recv().await.unwrap();
    assert!(peer.addr.unwrap().ip().is_loopback());
    let certificate = peer.certificate.unwrap();
    assert_eq!(certificate.subject, "CN=trainer-0");
    assert_eq!(certificate.roles().collect::<Vec<_>>(), ["node"]);
    assert_eq!(certificate.nodes().collect::<Vec<_>>(), ["trainer-0"]);
    assert_eq!(certificate.tenants().collect::<Vec<_>>(), ["research"]);
    assert!(certificate.not_after_unix_secs > 1_700_000_000);
    assert_ne!(certificate.fingerprint_sha256, [0; 32]);
    assert_eq!(server.metric("crescendo_connections_open", ""), 1.0);
    drop(channel);
    until("the connection is given up", || server.metric("crescendo_connections_open", "") == 0.0)
        .await
        .expect("in time");
}

#[tokio::test]
async fn strangers_are_refused_and_told_why() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let mut server = Server::required(authority.write(folder.path(), &Wanted::node("server"))).await;
    let ca = folder.path().join("ca.pem");

    // No certificate at all.
    let none = dialer(TlsFiles { identity: None, ca: Some(ca.clone()) }).await;
    let status = call(none.channel(&server.address).unwrap()).await.unwrap_err();
    assert!(story(&status).contains("wants a client certificate: give --tls-cert and --tls-key"), "{status}");
    until("it is counted", || server.refused("no_certificate") == 1.0).await.expect("in time");

    // One of another authority.
    let foreign = Authority::new("theirs");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut files = foreign.write(elsewhere.path(), &Wanted::node("trainer-0"));
    files.ca = Some(ca.clone());
    let status = call(dialer(files).await.channel(&server.address).unwrap()).await.unwrap_err();
    assert!(story(&status).contains("refuses this client's certificate"), "{}", story(&status));
    until("it is counted", || server.refused("certificate") == 1.0).await.expect("in time");

    // One that has expired: a client of ours would not start with it, so this one is not ours.
    let (cert, key) = authority.issue(&Wanted { expired: true, ..Wanted::node("old") });
    let error = handshake(&server.address, authority.root_pem(), Some((&cert, &key))).await.unwrap_err();
    assert!(error.to_string().contains("CertificateExpired"), "{error}");
    until("it is counted", || server.refused("certificate") == 2.0).await.expect("in time");

    // The same client with a valid one gets through, so it is the certificate that was refused.
    let (cert, key) = authority.issue(&Wanted::node("new"));
    handshake(&server.address, authority.root_pem(), Some((&cert, &key))).await.unwrap();

    // A valid one for a person.
    let uris = ["urn:crescendo:role:admin"];
    let files = authority.write(folder.path(), &Wanted { uris: &uris, ..Wanted::node("alice") });
    let status = call(dialer(files).await.channel(&server.address).unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        status.message(),
        "this server is for nodes: the certificate of CN=alice has no urn:crescendo:role:node"
    );

    // None over TLS.
    let status = call(Dialer::plain().channel(&server.address).unwrap()).await.unwrap_err();
    assert!(story(&status).contains("speaks TLS, and this connection is without"), "{}", story(&status));
    until("it is counted", || server.refused("not_tls") == 1.0).await.expect("in time");
    server.nothing_happened();

    // A server that asks takes whoever comes without a certificate, but not with a wrong one.
    let asking = authority.write(folder.path(), &Wanted::node("controller"));
    let mut asking = Server::start(Some(asking), ClientCertificates::Asked, 64).await;
    call(none.channel(&asking.address).unwrap()).await.unwrap();
    assert!(asking.callers.recv().await.unwrap().certificate.is_none());
    let mut files = foreign.write(elsewhere.path(), &Wanted::node("trainer-0"));
    files.ca = Some(ca);
    call(dialer(files).await.channel(&asking.address).unwrap()).await.unwrap_err();
    asking.nothing_happened();
}

#[tokio::test]
async fn a_server_that_is_another_is_refused() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let client = authority.write(folder.path(), &Wanted::node("trainer-0"));
    let client = dialer(client).await;

    let foreign = tempfile::tempdir().unwrap();
    let mut server =
        Server::required(Authority::new("theirs").write(foreign.path(), &Wanted::node("s"))).await;
    let status = call(client.channel(&server.address).unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let text = story(&status);
    assert!(text.contains("is vouched for by no root in") && text.contains("ca.pem"), "{text}");
    until("it is counted", || server.refused("refused_by_peer") == 1.0).await.expect("in time");
    server.nothing_happened();

    let hosts = ["node-7.example"];
    let files = authority.write(folder.path(), &Wanted { hosts: &hosts, ..Wanted::node("node-7") });
    let mut server = Server::required(files.clone()).await;
    let status = call(client.channel(&server.address).unwrap()).await.unwrap_err();
    let text = story(&status);
    assert!(text.contains("node-7.example") && text.contains("not for 127.0.0.1"), "{text}");
    server.nothing_happened();
    // A process of that same node knows whom it looks for.
    call(dialer(files).await.to_own().channel(&server.address).unwrap()).await.unwrap();
    // Another node does not pass for it.
    call(client.to_own().channel(&server.address).unwrap()).await.unwrap_err();

    let plain = Server::start(None, ClientCertificates::Required, 64).await;
    let status = call(client.channel(&plain.address).unwrap()).await.unwrap_err();
    assert!(story(&status).contains("does not speak TLS: it runs with --dev"), "{}", story(&status));
    assert!(client.channel("http://127.0.0.1:1").is_err());
}

#[tokio::test]
async fn recorded_bytes_do_nothing_a_second_time() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let mut server = Server::required(authority.write(folder.path(), &Wanted::node("server"))).await;
    let recorder = Recorder::before(&server.address).await.unwrap();
    let client = dialer(authority.write(folder.path(), &Wanted::node("trainer-0"))).await;
    call(client.channel(&recorder.address).unwrap()).await.unwrap();
    server.callers.recv().await.unwrap();

    let replayed = tokio::time::timeout(LIMIT, recorder.replay(&server.address)).await;
    let bytes = replayed.expect("the server closes").unwrap();
    assert!(bytes > 500, "a handshake with a certificate, and a call: {bytes}");
    assert!(server.refused("") >= 1.0);
    server.nothing_happened();
    call(client.channel(&server.address).unwrap()).await.expect("others are served");
}

fn replace(folder: &Path, name: &str, (cert, key): (String, String)) {
    std::fs::write(folder.join(format!("{name}.pem")), cert).unwrap();
    std::fs::write(folder.join(format!("{name}.key")), key).unwrap();
}

/// Subject of the certificate that a new connection gets to see.
async fn shown(server: &Server, authority: &Authority) -> Vec<u8> {
    let (cert, key) = authority.issue(&Wanted::node("looker"));
    let stream = handshake(&server.address, authority.root_pem(), Some((&cert, &key))).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn files_are_replaced_under_way() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let folder = folder.path();
    let server = Server::required(authority.write(folder, &Wanted::node("server"))).await;
    let tls = server.tls.clone().unwrap();
    let first = shown(&server, &authority).await;
    let client = dialer(authority.write(folder, &Wanted::node("trainer-0"))).await;
    let old = client.channel(&server.address).unwrap();
    call(old.clone()).await.unwrap();
    assert!(!tls.reload().await.unwrap(), "nothing has changed");

    // In between the two files do not belong together: the old pair stays.
    let (cert, key) = authority.issue(&Wanted::node("server"));
    std::fs::write(folder.join("server.pem"), &cert).unwrap();
    assert!(matches!(tls.reload().await, Err(TlsError::KeyMismatch { .. })));
    assert_eq!(shown(&server, &authority).await, first);
    std::fs::write(folder.join("server.key"), key).unwrap();
    assert!(tls.reload().await.unwrap());
    let second = shown(&server, &authority).await;
    assert_ne!(second, first);
    call(old.clone()).await.expect("the connection from before lives on");
    until("no other is open", || server.metric("crescendo_connections_open", "") == 1.0)
        .await
        .expect("in time");

    std::fs::write(folder.join("server.pem"), "this is not PEM").unwrap();
    let error = tls.reload().await.unwrap_err().to_string();
    assert!(error.contains("server.pem has no certificate"), "{error}");
    std::fs::remove_file(folder.join("server.pem")).unwrap();
    assert!(matches!(tls.reload().await, Err(TlsError::Read { .. })));
    assert_eq!(shown(&server, &authority).await, second);

    // With another root, those whom the old one vouched for are strangers, and there is no old session to resume.
    let next = Authority::new("next");
    replace(folder, "server", next.issue(&Wanted::node("server")));
    std::fs::write(folder.join("ca.pem"), next.root_pem()).unwrap();
    assert!(tls.reload().await.unwrap());
    let (cert, key) = authority.issue(&Wanted::node("looker"));
    handshake(&server.address, next.root_pem(), Some((&cert, &key))).await.unwrap_err();
    let (cert, key) = next.issue(&Wanted::node("looker"));
    handshake(&server.address, next.root_pem(), Some((&cert, &key))).await.unwrap();
    call(old).await.expect("it still lives on");
}

#[tokio::test]
async fn a_failed_reload_is_counted_once() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let tls = Tls::load(authority.write(folder.path(), &Wanted::node("server"))).await.unwrap();
    let registry = Registry::new();
    let metrics = crescendo_node::tls::TlsMetrics::register(&registry).unwrap();
    let stop = CancellationToken::new();
    let looks = AtomicUsize::new(0);
    let value = |name: &str| {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family
            .get_metric()
            .iter()
            .map(|m| m.get_counter().get_value() + m.get_gauge().get_value())
            .collect::<Vec<_>>()
    };
    let watching = tls.watch(Some(metrics), Duration::from_millis(5), stop.clone());
    let test = async {
        until("both ends are shown", || {
            let ends = value("crescendo_tls_certificate_expiry_timestamp_seconds");
            ends.len() == 2 && ends.iter().all(|end| *end > 1.7e9)
        })
        .await
        .expect("in time");
        std::fs::write(folder.path().join("server.key"), "broken").unwrap();
        until("it is counted", || value("crescendo_tls_reload_failures_total") == [1.0])
            .await
            .expect("in time");
        // Many more looks at the same files.
        until("time has passed", || looks.fetch_add(1, Ordering::Relaxed) > 20).await.expect("in time");
        assert_eq!(value("crescendo_tls_reload_failures_total"), [1.0]);
        stop.cancel();
    };
    tokio::join!(watching, test);
}

#[tokio::test]
async fn whoever_says_nothing_is_cut_off() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let files = authority.write(folder.path(), &Wanted::node("server"));
    for files in [Some(files), None] {
        let mut server = Server::start(files, ClientCertificates::Required, IMPATIENT).await;
        let mut silent = TcpStream::connect(&server.address).await.unwrap();
        // Half of a beginning is as good as nothing.
        silent.write_all(&[0x16, 3, 1][..usize::from(server.tls.is_some()) * 3]).await.unwrap();
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, silent.read_to_end(&mut answer)).await.expect("it is closed");
        until("it is counted", || server.refused("timeout") == 1.0).await.expect("in time");
        server.nothing_happened();
    }
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let files = authority.write(folder.path(), &Wanted::node("server"));
    let client = dialer(authority.write(folder.path(), &Wanted::node("trainer-0"))).await;
    for (files, client) in [(Some(files), client), (None, Dialer::plain())] {
        let server = Server::start(files, ClientCertificates::Required, 2).await;
        let open: Vec<Channel> = (0..2).map(|_| client.channel(&server.address).unwrap()).collect();
        for channel in &open {
            call(channel.clone()).await.unwrap();
        }
        call(client.channel(&server.address).unwrap()).await.unwrap_err();
        assert!(server.refused("limit") >= 1.0);
        for channel in &open {
            call(channel.clone()).await.expect("those that are open are served");
        }
        drop(open);
        until("there is room", || server.metric("crescendo_connections_open", "") < 2.0)
            .await
            .expect("in time");
        call(client.channel(&server.address).unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn wrong_files_are_named_with_what_is_wrong() {
    let (authority, folder) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    let folder = folder.path();
    let files = || authority.write(folder, &Wanted::node("server"));
    let refusal = async |files: TlsFiles| {
        let error = Tls::load(files).await.expect_err("wrong files");
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    };

    let missing = TlsFiles { ca: Some(folder.join("nowhere.pem")), ..files() };
    let text = refusal(missing).await;
    assert!(text.contains("cannot read") && text.contains("nowhere.pem: No such file"), "{text}");

    let expired = authority.write(folder, &Wanted { expired: true, ..Wanted::node("old") });
    let text = refusal(expired).await;
    assert!(text.contains("old.pem (CN=old) has expired, on") && text.contains("2001"), "{text}");

    let mixed = files();
    replace(folder, "server", (authority.issue(&Wanted::node("a")).0, authority.issue(&Wanted::node("a")).1));
    let text = refusal(mixed).await;
    assert!(
        text.contains("server.key does not belong to the certificate") && text.contains("server.pem"),
        "{text}"
    );

    // The two flags given the wrong way round.
    let right = files();
    let identity = right.identity.clone().unwrap();
    let swapped = TlsFiles {
        identity: Some(crescendo_node::tls::Identity { cert: identity.key, key: identity.cert }),
        ..right
    };
    let text = refusal(swapped).await;
    assert!(text.contains("server.key has no certificate"), "{text}");

    let garbage = files();
    std::fs::write(folder.join("ca.pem"), [0x30, 0x82, 0xff]).unwrap();
    let text = refusal(garbage.clone()).await;
    assert!(text.contains("ca.pem has no certificate: it must be PEM"), "{text}");
    std::fs::write(folder.join("ca.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let text = refusal(garbage.clone()).await;
    assert!(text.contains("certificate 1 of") && text.contains("ca.pem is not a certificate"), "{text}");
    std::fs::write(folder.join("ca.pem"), vec![b'x'; 5 << 20]).unwrap();
    let text = refusal(garbage).await;
    assert!(text.contains("ca.pem is larger than"), "{text}");
}
