//! The controller binary: parse, build, run.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use crescendo_controller::config::Args;
use crescendo_controller::{Config, Controller};
use crescendo_node::objects;
use crescendo_node::runtime::args::ServerArgs;
use crescendo_node::runtime::server::Process;
use crescendo_node::tls::ClientCertificates;
use crescendo_store::{KEY_PREFIX, StoreLocation};

/// Most time that it stays for nodes that are stopped with it.
const STAY_FOR_NODES: Duration = Duration::from_secs(15);
/// Time that a clean stop may take.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As it displays: a stack says nothing to who has mistyped a path.
            eprintln!("error: {}", objects::with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let process = Process::start("crescendo-controller", &instance(&args.server), &args.server, None).await?;
    let (process, drain) = process.draining(STAY_FOR_NODES);
    // The nodes get this URL as it is, so a mistake in it is best found here.
    objects::Location::parse(&args.object_store).context("read --object-store")?;
    let location: StoreLocation = args.store.parse().context("read --store")?;
    let (tasks, registry) = (process.tasks.clone(), process.registry.clone());
    let etcd = args
        .store_tls
        .connect(&location, process.tls_metrics.of_store(), &tasks)
        .await
        .context("prepare TLS with the store")?;
    let store = location.open(KEY_PREFIX, etcd).await.context("open the store")?;
    // People come with tokens.
    let (server, incoming) = process.listen(ClientCertificates::Asked).await?;
    let controller = Controller {
        config: Config::from(&args),
        access: args.access.resolve(args.server.security.dev)?,
        store: store.clone(),
        registry,
        address: server.address(),
        drain,
    };
    controller.start(incoming, &tasks)?;
    let ended = server.run(GRACE).await;
    store.close().await;
    Ok(ended?)
}

/// Which controller this is, in traces.
fn instance(server: &ServerArgs) -> String {
    server.advertise_host.clone().unwrap_or_else(|| server.listen.to_string())
}
