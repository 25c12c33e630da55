//! The `crescendo-curator-node` binary: parse, build, run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use crescendo_core::precision::Arithmetic;
use crescendo_curator_node::curate::drawn_store::DrawnStore;
use crescendo_curator_node::llm::keys::Keys;
use crescendo_curator_node::llm::network::Network;
use crescendo_curator_node::metrics::Metrics;
use crescendo_curator_node::node::Node;
use crescendo_curator_node::pipeline::DrawingNetworks;
use crescendo_curator_node::serve::PairServer;
use crescendo_curator_node::serve::collect::Collector;
use crescendo_curator_node::serve::encoder_set::EncoderSet;
use crescendo_curator_node::serve::encoding_cache::EncodingCache;
use crescendo_curator_node::serve::send::Sender;
use crescendo_curator_node::serve::shard_cache::ShardCache;
use crescendo_curator_node::worker::Worker;
use crescendo_device::stream::prioritize_this_thread;
use crescendo_device::{DeviceChoice, load_cuda};
use crescendo_model::fused::Kernels;
use crescendo_model::speed;
use crescendo_model::tch::{self, Device};
use crescendo_node::objects::cache::Cache;
use crescendo_node::objects::with_causes;
use crescendo_node::runtime::args::{NodeArgs, SecurityArgs, ServerArgs};
use crescendo_node::runtime::server::{Process, serve_nodes};
use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::session::call::Controllers;
use crescendo_node::session::health::HealthReport;
use crescendo_node::session::reports::ReportSink;
use crescendo_node::session::store_watch::{NamedRoot, watch_store};
use crescendo_node::session::unit_reports::UnitReports;
use crescendo_node::session::{Computes, NodeSession, introduction, measured};
use crescendo_node::telemetry::gpu;
use crescendo_node::telemetry::log_archive;
use crescendo_node::telemetry::log_shipping::{DEFAULT_CAPACITY, LogBuffer};
use crescendo_node::tls::{ClientCertificates, Security};
use crescendo_proto::v1::pair_service_server::PairServiceServer;
use crescendo_proto::v1::{Hello, NodeKind};

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
    #[command(flatten)]
    scratch: ScratchArguments,
    /// What networks that draw, compare and encode compute on
    #[arg(long, env = "CRESCENDO_DEVICE", value_enum, default_value_t)]
    device: DeviceChoice,
}

#[derive(Debug, clap::Args)]
struct ScratchArguments {
    /// Folder for what is drawn and not committed yet; one that outlives the process keeps it through restarts [default: a
    /// temporary one]
    #[arg(long, env = "CRESCENDO_SCRATCH", value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// Size of drawn units that are kept there, MiB
    #[arg(long, env = "CRESCENDO_DRAWN_MIB", default_value_t = 1024)]
    drawn_mib: u64,
    /// Size of encoded prompts and pictures that are kept there, so that a second pass encodes nothing again, MiB
    #[arg(long, env = "CRESCENDO_ENCODINGS_MIB", default_value_t = 4096)]
    encodings_mib: u64,
    /// Size of base weights, encoders and checkpoints of object stores that are kept there, GiB; what was not used for longest
    /// goes first
    #[arg(long, env = "CRESCENDO_CACHE_GIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    cache_gib: u64,
}

/// Time for tasks to end after a stop.
const GRACE: Duration = Duration::from_secs(8);
/// Pieces of work that wait for the curation thread, and for the encoding thread.
const QUEUE: usize = 64;
/// Largest request of a rank: it names a stage, or a range.
const MAX_REQUEST_BYTES: usize = 64 << 10;

fn main() -> ExitCode {
    crescendo_curator_node::memory::share_one_arena();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As it displays: a stack says nothing to who has mistyped a path.
            eprintln!("error: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let mut given: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if given.get(1).is_some_and(|first| first == "export") {
        given.remove(1);
        return export(ExportArguments::parse_from(given));
    }
    let arguments = Arguments::parse_from(given);
    // What does not load is told where a GPU is wanted.
    let _ = load_cuda();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(run(arguments));
    // Work on a named thread cannot be interrupted; it is not worth waiting for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { server: server_args, node: node_args, shard_cache_mib, scratch: scratch_args, device } =
        arguments;
    let logs = LogBuffer::new(&node_args.node_id, DEFAULT_CAPACITY).keeping();
    let process =
        Process::start("crescendo-curator-node", &node_args.node_id, &server_args, Some(&logs)).await?;
    let (process, drain) = process.draining(node_args.drain_within());
    let (tasks, registry) = (process.tasks.clone(), process.registry.clone());
    tasks.spawn(log_archive::run(logs.clone(), tasks.stop_token()));
    let counted = Metrics::register(&registry).context("register metrics")?;
    let (device, arithmetic) = computes_on(device, &registry, &tasks)?;

    let scratch = Scratch::open(&scratch_args)?;
    let (drawn, encodings) = scratch.stores(&scratch_args)?;

    let controllers = Controllers::new(&node_args.controller, &process.security.dialer())?;
    let nodes_only = process.security.nodes_only();
    let (server, incoming) = process.listen(ClientCertificates::Required).await?;
    let of_encoding = counted.clone();
    let encoding = Worker::start("encoding", QUEUE, move || {
        tch::set_num_threads(1);
        // Ranks wait for these encodings; drawing, on the other thread, has minutes.
        if let Err(error) = prioritize_this_thread(device) {
            tracing::warn!(%error, "serving waits behind drawing");
        }
        EncoderSet::keeping(encodings, of_encoding)
    })?;
    let curation = Worker::start("curation", QUEUE, || {
        tch::set_num_threads(1);
        Default::default()
    })?;
    let cache = ShardCache::new(shard_cache_mib << 20, counted.clone());
    let pairs = PairServer::new(cache, encoding, counted.clone(), tasks.clone());

    let service = PairServiceServer::new(pairs.clone())
        .max_encoding_message_size(crescendo_proto::MAX_REPLY_BYTES)
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    tasks.spawn_critical("grpc server", serve_nodes(service, nodes_only, incoming, tasks.stop_token()));

    let known = pairs.clone();
    let computes = Computes::of_curator(crescendo_device::kind(device), &arithmetic);
    let identity = introduction(&node_args, NodeKind::Curator, server.address(), computes);
    let hello = move || Hello { curating: known.stages(), ..identity.clone() };
    let (session, commands) = NodeSession::new(controllers.clone(), ReportSink::default(), logs, hello);
    let units = UnitReports::default();
    let (health, root) = store_watched(&tasks);
    let session = session.draining(drain.clone()).units(units.clone()).health(health.clone()).root(root);
    tasks.spawn_critical("session", session.run(tasks.stop_token()));
    let node = Node {
        node_id: node_args.node_id.clone(),
        library_root: node_args.library_root,
        device,
        controllers: controllers.clone(),
        curation,
        networks: DrawingNetworks::default(),
        server: pairs,
        sender: Sender::new(controllers.clone(), tasks.clone()),
        collector: Collector::new(controllers, tasks.clone()),
        health,
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
        drawn,
        scratch: scratch.path().to_owned(),
        cache: Cache::new(scratch.path().join("cache"), scratch_args.cache_gib.saturating_mul(1 << 30)),
        tasks: tasks.clone(),
        drain,
        curations: Default::default(),
    };
    tasks.spawn(node.clone().hand_over());
    tasks.spawn_critical("node", node.run(commands));
    Ok(server.run(GRACE).await?)
}

/// The scratch folder; a temporary one goes with this.
enum Scratch {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Scratch {
    fn open(arguments: &ScratchArguments) -> anyhow::Result<Scratch> {
        match &arguments.scratch {
            Some(path) => Ok(Scratch::Kept(path.clone())),
            None => {
                let folder = tempfile::Builder::new().prefix("crescendo-scratch-").tempdir();
                Ok(Scratch::Temporary(folder.context("make a scratch folder")?))
            }
        }
    }

    /// What is kept in it.
    fn stores(&self, arguments: &ScratchArguments) -> anyhow::Result<(DrawnStore, EncodingCache)> {
        let ScratchArguments { scratch: _, drawn_mib, encodings_mib, cache_gib: _ } = arguments;
        let failed = || format!("open the scratch folder {}", self.path().display());
        let drawn = DrawnStore::open(&self.path().join("drawn"), drawn_mib << 20).with_context(failed)?;
        let encodings = EncodingCache::open(&self.path().join("encodings"), encodings_mib << 20);
        Ok((drawn, encodings.with_context(failed)?))
    }

    fn path(&self) -> &Path {
        match self {
            Scratch::Kept(path) => path,
            Scratch::Temporary(folder) => folder.path(),
        }
    }
}

/// Where it is said what is wrong with this node, and where the session puts the object store's root, which is looked at.
fn store_watched(tasks: &Tasks) -> (HealthReport, NamedRoot) {
    let (health, root) = (HealthReport::default(), NamedRoot::default());
    tasks.spawn(watch_store(root.clone(), health.clone(), tasks.stop_token()));
    (health, root)
}

/// The device, and what is said of its arithmetic.
fn computes_on(
    choice: DeviceChoice,
    registry: &prometheus::Registry,
    tasks: &Tasks,
) -> anyhow::Result<(Device, Arithmetic)> {
    let gpus = choice.gpus()?;
    if let Some(error) = &gpus.passed_over {
        tracing::warn!(%error, "the curator computes on the CPU");
    }
    let device = gpus.first();
    tch::set_num_threads(1);
    let named = match device {
        Device::Cpu => None,
        // A curator whose GPU fails gives its units back, and is benched for it.
        _ => Some(
            gpu::watch_if_there(registry, Box::new(|_| ()), tasks.stop_token()).context("watch the GPUs")?,
        ),
    };
    let first = named.as_ref().map(|names| names.first().map_or("", String::as_str));
    Ok((device, measured(speed::of_node(first, 1, Kernels::default()))))
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
