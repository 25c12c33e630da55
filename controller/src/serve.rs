//! The controller's parts put together behind one listener.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use crescendo_core::ids::Timestamp;
use crescendo_node::runtime::random;
use crescendo_node::runtime::server::reflection;
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::tls::Incoming;
use crescendo_proto::DESCRIPTORS;
use crescendo_proto::v1::access_service_server::AccessServiceServer;
use crescendo_proto::v1::checkpoint_service_server::CheckpointServiceServer;
use crescendo_proto::v1::curation_service_server::CurationServiceServer;
use crescendo_proto::v1::job_service_server::JobServiceServer;
use crescendo_proto::v1::node_service_server::NodeServiceServer;
use crescendo_proto::v1::object_service_server::ObjectServiceServer;
use crescendo_proto::v1::queue_service_server::QueueServiceServer;
use crescendo_proto::v1::review_service_server::ReviewServiceServer;
use crescendo_proto::v1::sample_service_server::SampleServiceServer;
use crescendo_proto::v1::view_service_server::ViewServiceServer;
use crescendo_store::Store;
use prometheus::Registry;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::Layer;

use crate::access::{Access, AccessConfig, AccessLayer};
use crate::body_limit::{self, BodyLimit};
use crate::collections::{Collections, collect_now_and_then};
use crate::concurrency_limit::CallLimit;
use crate::config::Config;
use crate::curves::CurveHub;
use crate::deletions::delete_files;
use crate::engine::EngineDeps;
use crate::leadership::{self, EngineHandle, Role};
use crate::logs::LogHub;
use crate::metrics::Metrics;
use crate::page::PageLayer;
use crate::relay::Relays;
use crate::services::{
    Callers, Checkpoints, Curation, Jobs, Nodes, Objects, QueueStandings, Review, Samples, Sight, Views,
};
use crate::unit_board::UnitBoard;
use crate::webhooks::Webhooks;

/// Decisions that take longer hold up nobody who asks meanwhile.
const DECIDES_BESIDE: Duration = Duration::from_millis(5);
/// Largest message that is read: a batch of log lines is the largest that is sent.
const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Streams that one connection may have open.
const MAX_STREAMS_PER_CONNECTION: u32 = 1024;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

const SERVICES: [&str; 9] = [
    "crescendo.v1.JobService",
    "crescendo.v1.NodeService",
    "crescendo.v1.CheckpointService",
    "crescendo.v1.CurationService",
    "crescendo.v1.ObjectService",
    "crescendo.v1.SampleService",
    "crescendo.v1.QueueService",
    "crescendo.v1.ViewService",
    "crescendo.v1.ReviewService",
];

/// What a controller is made of.
pub struct Controller {
    pub config: Config,
    pub access: AccessConfig,
    pub store: Arc<dyn Store>,
    pub registry: Registry,
    /// host:port at which others reach this controller.
    pub address: String,
    /// Asked for when the process is to stop: it stays for nodes that stop with it.
    pub drain: Drain,
}

/// A controller at work.
pub struct Serving {
    /// Leading or standing by.
    pub role: watch::Receiver<Role>,
}

impl Controller {
    /// Starts everything as tasks: the campaign with the engine behind it, and the server for `incoming` connections. They
    /// end with the stop token of `tasks`.
    pub fn start(self, incoming: Incoming, tasks: &Tasks) -> anyhow::Result<Serving> {
        let Self { config, access, store, registry, address, drain } = self;
        let metrics = Metrics::register(&registry).context("register metrics")?;
        let guard = Access::start(&access, &registry, tasks)?;
        let (logs, units, relays) = (LogHub::default(), UnitBoard::default(), Relays::default());
        let curves = CurveHub::default();
        let controller_id = random::id();
        let (role, role_seen) = watch::channel(Role::Standby { leader: None, trouble: None });
        let handle = EngineHandle::new(role_seen.clone());
        let stop = tasks.stop_token();
        tasks.spawn(stay(handle.clone(), drain, stop.clone()));
        tell_webhooks(access.webhook_secrets, &handle, tasks)?;
        let collections = collections(&config, &metrics, &handle, tasks);
        let (object_store_url, web_page) = (config.object_store_url.clone(), config.web_page);
        let streams = client_streams()?;
        let call_limit = CallLimit::new(metrics.clone(), config.max_concurrent_calls, streams.clone());

        let around = EngineDeps {
            config: Arc::new(config),
            store,
            metrics: metrics.clone(),
            logs: logs.clone(),
            controller_id: controller_id.clone(),
            clock: Arc::new(wall_clock),
            quotas: guard.quotas(),
            units: units.clone(),
            curves: curves.clone(),
            decides_beside: DECIDES_BESIDE,
        };
        let identity = leadership::identity(&address, &controller_id);
        let campaign = leadership::run(around, identity, role, stop.clone());
        tasks.spawn_critical("campaign", async move {
            campaign.await;
            Ok::<(), std::convert::Infallible>(())
        });
        let (reporter, health) = tonic_health::server::health_reporter();
        tasks.spawn(report_health(reporter, role_seen.clone(), stop.clone()));
        let (of_jobs, collected) = (relays.clone(), collections.clone());
        let sight = Sight::new(handle.clone(), logs.clone(), relays.clone(), curves);
        let services = PeoplesServices {
            callers: Callers::new(handle.clone(), object_store_url, guard.login()?),
            jobs: Jobs::new(handle.clone(), logs.clone(), of_jobs, collected, tasks.clone()),
            nodes: Nodes::new(handle.clone(), logs, units, metrics, tasks.clone()),
            checkpoints: Checkpoints::new(handle.clone()),
            queues: QueueStandings::new(handle.clone()),
            review: Review::new(handle.clone(), relays.clone()),
            samples: Samples::new(handle.clone(), relays.clone(), tasks.clone()),
            objects: Objects::new(handle.clone(), relays, collections, tasks.clone()),
            views: Views::new(sight, tasks.clone()),
        };
        let (reflection, reflection_v1alpha) = reflection().context("build reflection")?;
        let curation = CurationServiceServer::new(Curation::new(handle));
        let routes = services
            .routes()
            .add_service(health)
            .add_service(reflection)
            .add_service(reflection_v1alpha)
            .add_service(curation.max_decoding_message_size(MAX_MESSAGE_BYTES));
        let router = Server::builder()
            // A browser without TLS speaks nothing newer.
            .accept_http1(web_page)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .max_concurrent_streams(Some(MAX_STREAMS_PER_CONNECTION))
            .layer(PageLayer::new(web_page, access.dev))
            // Strangers are turned away before room is kept for what they send.
            .layer(AccessLayer::new(guard))
            .layer(BodyLimit::new(streams))
            .layer(call_limit)
            .add_routes(routes);
        tasks.spawn_critical("grpc server", async move {
            // Open streams do not hold up the end: sessions and watches are closed by the engine.
            router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await
        });
        Ok(Serving { role: role_seen })
    }
}

/// The calls whose requests are streams.
fn client_streams() -> anyhow::Result<BTreeSet<String>> {
    let descriptors = [
        DESCRIPTORS,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    body_limit::client_streams(&descriptors).context("read the services' descriptors")
}

/// The services that people call, from programs over gRPC and from the page over gRPC-Web.
struct PeoplesServices {
    callers: Callers,
    jobs: Jobs,
    nodes: Nodes,
    checkpoints: Checkpoints,
    queues: QueueStandings,
    objects: Objects,
    samples: Samples,
    views: Views,
    review: Review,
}

impl PeoplesServices {
    fn routes(self) -> Routes {
        let Self { callers, jobs, nodes, checkpoints, queues, objects, samples, views, review } = self;
        let sized = MAX_MESSAGE_BYTES;
        Routes::new(web(AccessServiceServer::new(callers)))
            .add_service(web(JobServiceServer::new(jobs).max_decoding_message_size(sized)))
            .add_service(web(NodeServiceServer::new(nodes).max_decoding_message_size(sized)))
            .add_service(web(CheckpointServiceServer::new(checkpoints).max_decoding_message_size(sized)))
            .add_service(web(QueueServiceServer::new(queues).max_decoding_message_size(sized)))
            .add_service(web(ObjectServiceServer::new(objects).max_decoding_message_size(sized)))
            .add_service(web(SampleServiceServer::new(samples).max_decoding_message_size(sized)))
            .add_service(web(ViewServiceServer::new(views).max_decoding_message_size(sized)))
            .add_service(web(ReviewServiceServer::new(review).max_decoding_message_size(sized)))
    }
}

/// The service, for browsers too. Each by itself: around a whole server the layer turns away all else that comes over HTTP/1.1.
fn web<S>(service: S) -> GrpcWebService<S>
where
    GrpcWebLayer: Layer<S, Service = GrpcWebService<S>>,
{
    GrpcWebLayer::new().layer(service)
}

impl Serving {
    /// Waits until this controller leads.
    pub async fn leads(&mut self) -> anyhow::Result<()> {
        self.role
            .wait_for(|role| matches!(role, Role::Leading { .. }))
            .await
            .context("wait for leadership")?;
        Ok(())
    }
}

/// The process is healthy as long as it answers; its services only while it leads.
async fn report_health(
    reporter: HealthReporter,
    mut role: watch::Receiver<Role>,
    stop: tokio_util::sync::CancellationToken,
) {
    loop {
        let status = match &*role.borrow_and_update() {
            Role::Leading { .. } => ServingStatus::Serving,
            Role::Standby { .. } => ServingStatus::NotServing,
        };
        for service in SERVICES {
            reporter.set_service_status(service, status).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = role.changed() => if changed.is_err() { return },
        }
    }
}

/// Ends of jobs are told by whichever controller leads.
fn tell_webhooks(secrets: Option<PathBuf>, engine: &EngineHandle, tasks: &Tasks) -> anyhow::Result<()> {
    let webhooks = Webhooks::new(secrets, wall_clock).context("prepare webhooks")?;
    tasks.spawn(webhooks.run(engine.clone(), tasks.stop_token()));
    Ok(())
}

/// Collections of leftovers, which are made by themselves too if the configuration says so, and of files of deleted jobs.
fn collections(config: &Config, metrics: &Metrics, engine: &EngineHandle, tasks: &Tasks) -> Collections {
    let collections = Collections::new(metrics.clone());
    tasks.spawn(delete_files(collections.clone(), engine.clone(), tasks.stop_token()));
    if let Some(every) = config.collect_every {
        let stop = tasks.stop_token();
        tasks.spawn(collect_now_and_then(collections.clone(), engine.clone(), every, stop));
    }
    collections
}

/// See [`leadership::stay_for_nodes`].
async fn stay(engine: EngineHandle, drain: Drain, stop: tokio_util::sync::CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = leadership::stay_for_nodes(engine, drain) => {}
    }
}

fn wall_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}
