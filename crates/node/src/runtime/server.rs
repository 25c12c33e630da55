//! The one start of the three kinds of process: logs first, then metrics, TLS and listeners; and their end.
//!
//! ```text
//!   Process::start ─▶ Process::listen ─▶ Server::run
//!    logs, metrics,    the ports are      the port file, /metrics;
//!    traces, TLS       bound              waits for the end
//! ```
//!
//! Between two of them a program does what is its own. A controller opens its store before it listens: who connects is refused
//! at once, and tries another.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use axum::response::IntoResponse;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic_reflection::server::{v1, v1alpha};

use super::args::ServerArgs;
use super::listen::{self, ListenError};
use super::ports;
use super::supervise::{Drain, Ended, Supervisor, Tasks};
use crate::telemetry;
use crate::telemetry::log_shipping::LogBuffer;
use crate::telemetry::logging::{self, LoggingError};
use crate::telemetry::metrics;
use crate::tls::{
    ClientCertificates, ConnectionMetrics, Incoming, NodesOnly, Security, SecurityError, TlsMetrics,
};

/// Between two questions whether the other end of a connection is still there, and how long it may take to answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a process does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Logging(#[from] LoggingError),
    #[error("register metrics")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot tell what address a listener is bound to")]
    Address(#[source] std::io::Error),
    #[error("write the port file {path}")]
    PortFile {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// A process that logs, measures and knows who it is.
pub struct Process {
    /// All that the process measures; served by [`Server::run`].
    pub registry: Registry,
    pub tasks: Tasks,
    pub security: Security,
    pub tls_metrics: TlsMetrics,
    args: ServerArgs,
    supervisor: Supervisor,
}

impl Process {
    /// `service` is the kind of process and `instance` which one, for traces. Lines of jobs go to `logs` as well.
    pub async fn start(
        service: &str,
        instance: &str,
        args: &ServerArgs,
        logs: Option<&LogBuffer>,
    ) -> Result<Self, ServerError> {
        let traces = logging::init(service, instance, &args.log, logs)?;
        let registry = Registry::new();
        let (tasks, supervisor) = Tasks::new();
        traces.register(&registry)?;
        telemetry::process::register(&registry)?;
        tasks.spawn(traces.export(tasks.stop_token()));
        let tls_metrics = TlsMetrics::register(&registry)?;
        let security = Security::start(&args.security, &tls_metrics, &tasks).await?;
        Ok(Self { registry, tasks, security, tls_metrics, args: args.clone(), supervisor })
    }

    /// A first SIGTERM asks for a hand-over, which may take `within`, before it stops the process.
    pub fn draining(self, within: Duration) -> (Self, Drain) {
        let drain = Drain::new(within);
        (Self { supervisor: self.supervisor.draining(drain.clone()), ..self }, drain)
    }

    /// Binds the addresses of gRPC and of metrics. Connections wait until somebody serves them.
    pub async fn listen(self, clients: ClientCertificates) -> Result<(Server, Incoming), ServerError> {
        let dev = self.args.security.dev;
        let grpc = listen::bind(self.args.listen, dev).await?;
        let metrics = listen::bind(self.args.metrics_listen, dev).await?;
        let grpc_at = grpc.local_addr().map_err(ServerError::Address)?;
        let metrics_at = metrics.local_addr().map_err(ServerError::Address)?;
        let connections = ConnectionMetrics::register(&self.registry)?;
        let incoming = self.security.incoming(grpc, clients, self.args.max_connections, connections);
        Ok((Server { grpc_at, metrics_at, process: self, metrics }, incoming))
    }
}

/// A process that listens.
pub struct Server {
    /// Where gRPC is bound.
    pub grpc_at: SocketAddr,
    metrics_at: SocketAddr,
    process: Process,
    metrics: TcpListener,
}

impl Server {
    /// `host:port` under which others reach its gRPC server.
    pub fn address(&self) -> String {
        listen::advertised(self.grpc_at, self.process.args.advertise_host.as_deref())
    }

    /// Serves metrics, says where it listens, and waits for the end; tasks then have `grace` to end.
    pub async fn run(self, grace: Duration) -> Result<(), ServerError> {
        let Process { registry, tasks, args, supervisor, .. } = self.process;
        let serving = metrics::serve(self.metrics, registry, tasks.stop_token());
        tasks.spawn_critical("metrics server", serving);
        if let Some(path) = &args.port_file {
            ports::write_port_file(path, self.grpc_at, self.metrics_at)
                .map_err(|source| ServerError::PortFile { path: path.display().to_string(), source })?;
        }
        tracing::info!(grpc = %self.grpc_at, metrics = %self.metrics_at, "serving");
        Ok(supervisor.run(grace).await?)
    }
}

/// Why a gRPC server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("build the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}

/// Reflection under both of its names: grpcurl up to 1.8.7, as Debian and PyPI have it, asks for v1alpha.
pub fn reflection() -> Result<
    (
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    tonic_reflection::server::Error,
> {
    let built = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crescendo_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok((built().build_v1()?, built().build_v1alpha()?))
}

/// Serves what a node has for other nodes, with health and reflection, until `stop`.
pub async fn serve_nodes<S>(
    service: S,
    nodes_only: NodesOnly,
    incoming: Incoming,
    stop: CancellationToken,
) -> Result<(), ServeError>
where
    S: tower::Service<http::Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
    S::Response: IntoResponse,
    S::Future: Send + 'static,
{
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(S::NAME, tonic_health::ServingStatus::Serving).await;
    let (reflection, reflection_v1alpha) = reflection()?;
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(nodes_only)
        .add_service(service)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(reflection_v1alpha)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await?;
    Ok(())
}
