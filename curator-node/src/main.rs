//! The `crescendo-curator-node` binary: parse, build, run.

use anyhow::Context;
use clap::Parser;
use crescendo_curator_node::endpoint::keys::Keys;
use crescendo_curator_node::endpoint::network::Network;
use crescendo_curator_node::metrics::Metrics;
use crescendo_curator_node::node::Node;
use crescendo_curator_node::send::Sender;
use crescendo_curator_node::serve::{EncoderSet, PairServer};
use crescendo_curator_node::shard_cache::ShardCache;
use crescendo_curator_node::studio::best_device;
use crescendo_curator_node::worker::Worker;
use crescendo_model::speed;
use crescendo_model::tch::{self, Device};
use crescendo_node::args::{NodeArgs, SecurityArgs, ServerArgs};
use crescendo_node::call::Controllers;
use crescendo_node::forward::{DEFAULT_CAPACITY, LogBuffer};
use crescendo_node::reports::ReportSink;
use crescendo_node::session::NodeSession;
use crescendo_node::supervise::{Drain, Tasks};
use crescendo_node::tls::{ClientCertificates, ConnectionMetrics, Security, TlsMetrics};
use crescendo_node::unit_reports::UnitReports;
use crescendo_node::{gpu, listen, logging, metrics, ports};
use crescendo_proto::convert::arithmetic_message;
use crescendo_proto::v1::pair_service_server::PairServiceServer;
use crescendo_proto::v1::{Hello, NodeKind};
use std::time::Duration;
use tonic::transport::Server;

/// Makes training pairs for jobs, and serves them to ranks.
#[derive(Debug, Parser)]
#[command(
    name = "crescendo-curator-node",
    version,
    after_help = "`crescendo-curator-node export --help`: a stage's pairs as a data set in UNO-1M's layout"
)]
struct Arguments {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    node: NodeArgs,
    /// Memory for decoded shards, MiB
    #[arg(long, env = "CRESCENDO_SHARD_CACHE_MIB", default_value_t = 256)]
    shard_cache_mib: usize,
    /// What networks that draw, compare and encode compute on
    #[arg(long, env = "CRESCENDO_DEVICE", value_enum, default_value = "auto")]
    device: DeviceChoice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DeviceChoice {
    /// The first GPU if there is one
    Auto,
    Cpu,
    Cuda,
}

impl DeviceChoice {
    fn device(self) -> anyhow::Result<Device> {
        match (self, best_device()) {
            (DeviceChoice::Cpu, _) => Ok(Device::Cpu),
            (DeviceChoice::Cuda, Device::Cpu) => {
                anyhow::bail!("--device cuda: there is no CUDA device, or this libtorch has no CUDA")
            }
            (DeviceChoice::Auto | DeviceChoice::Cuda, found) => Ok(found),
        }
    }
}

/// Time for tasks to end after a stop.
const GRACE: Duration = Duration::from_secs(8);
/// Pieces of work that wait for the curation thread, and for the encoding thread.
const QUEUE: usize = 64;
/// Largest request of a rank: it names a stage, or a range.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// A rank that answers no ping for this long has gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    crescendo_curator_node::memory::share_one_arena();
    let mut given: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if given.get(1).is_some_and(|first| first == "export") {
        given.remove(1);
        return export(ExportArguments::parse_from(given));
    }
    let arguments = Arguments::parse_from(given);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run(arguments));
    // Work on a named thread cannot be interrupted; it is not worth waiting for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { server: server_args, node: node_args, shard_cache_mib, device } = arguments;
    let device = device.device()?;
    let logs = LogBuffer::new(&node_args.node_id, DEFAULT_CAPACITY);
    let traces = logging::init("crescendo-curator-node", &node_args.node_id, &server_args.log, Some(&logs))?;
    tch::set_num_threads(1);

    let grpc = listen::bind(server_args.listen, server_args.security.dev).await?;
    let http = listen::bind(server_args.metrics_listen, server_args.security.dev).await?;
    let (grpc_address, http_address) = (grpc.local_addr()?, http.local_addr()?);
    let registry = prometheus::Registry::new();
    let counted = Metrics::register(&registry).context("register metrics")?;
    let (tasks, supervisor) = Tasks::new();
    traces.register(&registry).context("register metrics")?;
    tasks.spawn(traces.export(tasks.stop_token()));
    let gpus = match device {
        Device::Cpu => None,
        _ => Some(gpu::watch_if_there(&registry, tasks.stop_token()).context("watch the GPUs")?),
    };
    let gpu = gpus.as_ref().map(|gpus| gpus.first().map_or("", String::as_str));
    let (arithmetic, untimed) = speed::of_node(gpu, 1);
    if let Some(error) = untimed {
        tracing::warn!(%error, "a product could not be timed: stages whose precision is auto take f32 for it");
    }
    let arithmetic = arithmetic_message(&arithmetic);
    let drain = Drain::new(node_args.drain_within());
    let supervisor = supervisor.draining(drain.clone());
    let security = Security::start(&server_args.security, &TlsMetrics::register(&registry)?, &tasks).await?;
    let controllers = Controllers::new(&node_args.controller, &security.dialer())?;
    let incoming = security.incoming(
        grpc,
        ClientCertificates::Required,
        server_args.max_connections,
        ConnectionMetrics::register(&registry).context("register metrics")?,
    );

    let encoding = Worker::start("encoding", QUEUE, || {
        tch::set_num_threads(1);
        EncoderSet::default()
    })?;
    let curation = Worker::start("curation", QUEUE, || {
        tch::set_num_threads(1);
        Default::default()
    })?;
    let cache = ShardCache::new(shard_cache_mib << 20, counted.clone());
    let server = PairServer::new(cache, encoding, counted.clone(), tasks.clone());

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<PairServiceServer<PairServer>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crescendo_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("build the reflection service")?;
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .layer(security.nodes_only())
        .add_service(health_service)
        .add_service(reflection)
        .add_service(
            PairServiceServer::new(server.clone())
                .max_encoding_message_size(crescendo_proto::MAX_REPLY_BYTES)
                .max_decoding_message_size(MAX_REQUEST_BYTES),
        )
        .serve_with_incoming_shutdown(incoming, tasks.stop_token().cancelled_owned());
    tasks.spawn_critical("grpc server", serving);
    tasks.spawn_critical("metrics server", metrics::serve(http, registry, tasks.stop_token()));

    let (known, address) =
        (server.clone(), listen::advertised(grpc_address, server_args.advertise_host.as_deref()));
    let (node_id, labels) = (node_args.node_id.clone(), node_args.labels.clone());
    let incarnation = new_incarnation();
    let hello = move || Hello {
        node_id: node_id.clone(),
        incarnation: incarnation.clone(),
        kind: NodeKind::Curator as i32,
        slots: 0,
        device: if device == Device::Cpu { "cpu" } else { "cuda" }.to_owned(),
        address: address.clone(),
        labels: labels.iter().cloned().collect(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        running: Vec::new(),
        curating: known.stages(),
        // The session says so itself.
        draining: false,
        arithmetic: Some(arithmetic.clone()),
    };
    let (session, commands) = NodeSession::new(controllers.clone(), ReportSink::default(), logs, hello);
    let units = UnitReports::default();
    let session = session.draining(drain.asked()).units(units.clone());
    tasks.spawn_critical("session", session.run(tasks.stop_token()));
    let sender = Sender::new(controllers.clone(), tasks.clone());
    let node = Node {
        node_id: node_args.node_id.clone(),
        library_root: node_args.library_root,
        device,
        controllers,
        curation,
        server,
        sender,
        network: Network::new(
            tokio::runtime::Handle::current(),
            Keys::from_variables(
                // What is not text is about no key.
                std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
            ),
            counted.clone(),
        ),
        metrics: counted,
        units,
        tasks: tasks.clone(),
        drain,
        curations: Default::default(),
    };
    tasks.spawn(node.clone().hand_over());
    tasks.spawn_critical("node", node.run(commands));
    if let Some(path) = &server_args.port_file {
        ports::write_port_file(path, grpc_address, http_address)
            .with_context(|| format!("write the port file {}", path.display()))?;
    }
    tracing::info!(node = node_args.node_id, grpc = %grpc_address, metrics = %http_address, "curator serves");
    supervisor.run(GRACE).await?;
    Ok(())
}

/// Writes the pairs of a stage as a data set in UNO-1M's layout, with a card; `source: import` reads it again.
#[derive(Debug, Parser)]
#[command(name = "crescendo-curator-node export", version)]
struct ExportArguments {
    /// The job's id
    #[arg(long)]
    job: String,
    /// Name of the stage
    #[arg(long)]
    stage: String,
    /// Folder to write into; must be empty or not there
    #[arg(long, value_name = "DIR")]
    out: std::path::PathBuf,
    /// Addresses of the controllers, host:port, separated by commas
    #[arg(long, env = "CRESCENDO_CONTROLLER", value_delimiter = ',', required = true)]
    controller: Vec<String>,
    /// URL of the object store
    #[arg(long, env = "CRESCENDO_OBJECT_STORE", value_name = "URL")]
    object_store: String,
    #[command(flatten)]
    security: SecurityArgs,
}

fn export(arguments: ExportArguments) -> anyhow::Result<()> {
    let ExportArguments { job, stage, out, controller, object_store, security } = arguments;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let controllers = Controllers::new(&controller, &Security::load(&security).await?.dialer())?;
        let objects = crescendo_node::objects::open(&object_store)?;
        let exported = crescendo_curator_node::export::registered(&controllers, &job, &stage).await?;
        let counts = crescendo_curator_node::export::export(objects.as_ref(), &exported, &out).await?;
        println!("{}: {} pairs, {} left out", out.display(), counts.pairs, counts.left_out);
        Ok(())
    })
}

/// A name for this start of the process: its time and process id.
fn new_incarnation() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", since.as_nanos(), std::process::id())
}
