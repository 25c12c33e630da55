//! The controller binary: parse, build, run.

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use crescendo_controller::config::Args;
use crescendo_controller::{Config, Controller};
use crescendo_node::args::ServerArgs;
use crescendo_node::supervise::Tasks;
use crescendo_node::tls::{ClientCertificates, ConnectionMetrics, Security, TlsMetrics};
use crescendo_node::{listen, logging, metrics, objects, ports};
use crescendo_store::{KEY_PREFIX, StoreLocation};
use prometheus::Registry;

/// Time that a clean stop may take.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let traces = logging::init("crescendo-controller", &instance(&args.server), &args.server.log, None)?;
    // The nodes get this URL as it is, so a mistake in it is best found here.
    objects::Location::parse(&args.object_store).context("read --object-store")?;
    let location: StoreLocation = args.store.parse().context("read --store")?;
    let (tasks, supervisor) = Tasks::new();
    let registry = Registry::new();
    traces.register(&registry)?;
    tasks.spawn(traces.export(tasks.stop_token()));
    let tls_metrics = TlsMetrics::register(&registry).context("register metrics")?;
    let security = Security::start(&args.server.security, &tls_metrics, &tasks).await?;
    let etcd = args
        .store_tls
        .connect(&location, tls_metrics.of_store(), &tasks)
        .await
        .context("prepare TLS with the store")?;
    let store = location.open(KEY_PREFIX, etcd).await.context("open the store")?;
    let grpc = listen::bind(args.server.listen, args.server.security.dev).await?;
    let metrics_listener = listen::bind(args.server.metrics_listen, args.server.security.dev).await?;
    let (grpc_at, metrics_at) = (grpc.local_addr()?, metrics_listener.local_addr()?);
    let incoming = security.incoming(
        grpc,
        // People come with tokens.
        ClientCertificates::Asked,
        args.server.max_connections,
        ConnectionMetrics::register(&registry).context("register metrics")?,
    );
    let controller = Controller {
        config: Config::from(&args),
        access: args.access.resolve(args.server.security.dev)?,
        store: store.clone(),
        registry: registry.clone(),
        address: listen::advertised(grpc_at, args.server.advertise_host.as_deref()),
    };
    controller.start(incoming, &tasks)?;
    tasks.spawn_critical("metrics server", metrics::serve(metrics_listener, registry, tasks.stop_token()));
    if let Some(path) = &args.server.port_file {
        ports::write_port_file(path, grpc_at, metrics_at).context("write the port file")?;
    }
    tracing::info!(%grpc_at, %metrics_at, store = args.store, "serving");
    let ended = supervisor.run(GRACE).await;
    store.close().await;
    Ok(ended?)
}

/// Which controller this is, in traces.
fn instance(server: &ServerArgs) -> String {
    server.advertise_host.clone().unwrap_or_else(|| server.listen.to_string())
}
