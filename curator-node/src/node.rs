//! The node: what the controller assigns, it works on and serves, until it is released.

use crate::counts::Counts;
use crate::curate::drawn_store::DrawnStore;
use crate::curate::mirror::{LocalCopies, Mirror, Purpose};
use crate::curate::parent_stage::ParentStage;
use crate::curate::{Curators, StageWorker};
use crate::llm::network::{LlmContext, Network};
use crate::metrics::Metrics;
use crate::paths::PathResolver;
use crate::pipeline::DrawingNetworks;
use crate::serve::collect::Collector;
use crate::serve::encode::EncoderSource;
use crate::serve::pair_log::{LogState, follow};
use crate::serve::send::Sender;
use crate::serve::{PairServer, ServedStage};
use crate::worker::Worker;
use crescendo_core::RequestError;
use crescendo_core::reach::Reach;
use crescendo_core::spec::JobSpec;
use crescendo_model::tch::Device;
use crescendo_node::objects;
use crescendo_node::objects::cache::Cache;
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_node::session::Command;
use crescendo_node::session::call::Controllers;
use crescendo_node::session::health::HealthReport;
use crescendo_node::session::unit_reports::UnitReports;
use crescendo_proto::convert;
use crescendo_proto::v1::{AssignCuration, Checkpoint, StageRef};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// What all stages on this node share.
#[derive(Clone)]
pub struct Node {
    pub node_id: String,
    pub library_root: PathBuf,
    /// Where networks compute.
    pub device: Device,
    pub controllers: Controllers,
    pub curation: Worker<Curators>,
    /// The transformer that all stages draw with.
    pub networks: DrawingNetworks,
    pub server: PairServer,
    /// Reads files of checkpoints for people.
    pub sender: Sender,
    /// Finds and removes what no record names.
    pub collector: Collector,
    /// What is wrong with this node.
    pub health: HealthReport,
    pub metrics: Metrics,
    /// Where it is said how far units are.
    pub units: UnitReports,
    /// What was drawn and is not committed.
    pub drawn: DrawnStore,
    /// Folder for files that are needed for a while, on the file system of `cache`.
    pub scratch: PathBuf,
    /// Weights and checkpoints of object stores.
    pub cache: Cache,
    pub network: Network,
    pub tasks: Tasks,
    pub drain: Drain,
    /// Work on stages, which ends before the node leaves.
    pub curations: TaskTracker,
}

/// Where what a parent stage made is taken from.
struct ParentSource {
    checkpoint: Option<Checkpoint>,
    objects: Arc<dyn object_store::ObjectStore>,
    copies: LocalCopies,
}

/// Time between looks whether ranks still have streams open here.
const STREAMS_LOOK: Duration = Duration::from_millis(200);

/// Why an assignment cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    #[error("the assignment names no stage")]
    NoStage,
    #[error("the resolved spec cannot be read: {0}")]
    Spec(#[from] serde_json::Error),
    #[error("the object store cannot be used from here: {fault}")]
    Store { fault: String },
    #[error(transparent)]
    Objects(#[from] objects::ObjectsError),
    #[error(transparent)]
    Path(#[from] crate::paths::PathError),
    #[error(transparent)]
    Reach(#[from] RequestError),
    #[error(transparent)]
    Mirror(#[from] crate::curate::mirror::MirrorError),
}

impl Node {
    /// Does what the controller says until the commands end.
    pub async fn run(self, mut commands: mpsc::Receiver<Command>) -> Result<(), &'static str> {
        let stop = self.tasks.stop_token();
        loop {
            let command = tokio::select! {
                // Looked at first: stopping ends the session, and with it the commands.
                biased;
                () = stop.cancelled() => return Ok(()),
                command = commands.recv() => command.ok_or("the session's commands ended")?,
            };
            match command {
                Command::AssignCuration(assignment) => {
                    let stage = assignment.stage.clone().unwrap_or_default();
                    let span = tracing::info_span!("curation", job = %stage.job_id, stage = %stage.stage, generation = 0);
                    let _entered = span.enter();
                    if let Err(error) = self.assign(*assignment) {
                        tracing::error!(%error, "the assignment cannot be taken up; it is asked for again");
                        self.units.refuse(&stage, error.to_string());
                    }
                }
                Command::ReleaseCuration(release) => {
                    let stage = release.stage.unwrap_or_default();
                    tracing::info!(job = %stage.job_id, stage = %stage.stage, reason = release.reason, "stage released");
                    self.server.remove(&stage);
                }
                Command::ReadObject(read) => self.sender.send(read),
                Command::ReadStoredPairs(read) => self.sender.send_pairs(read),
                Command::CollectObjects(order) => self.collector.collect(order),
                Command::DrawSamples(order) => self.draw_samples(*order),
                Command::StartAttempt(_)
                | Command::StopAttempt(_)
                | Command::DrainAttempt(_)
                | Command::RescueAttempt(_)
                | Command::UpdateCurators(_) => {
                    tracing::warn!("a command for trainers came to a curator");
                }
            }
        }
    }

    /// Once the node is asked to leave: the units under way are finished or released, and the pair log is served until
    /// the ranks have gone to other curators and what people read has been sent.
    pub async fn hand_over(self) {
        let stop = self.tasks.stop_token();
        let handing_over = async {
            self.drain.asked().cancelled().await;
            self.curations.close();
            self.curations.wait().await;
            tracing::info!("no unit is under way any more");
            while self.metrics.streams.get() > 0 || self.sender.is_busy() {
                tokio::time::sleep(STREAMS_LOOK).await;
            }
            self.drain.finish();
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = handing_over => {}
        }
    }

    /// Starts work on a stage and serving it; does nothing if both go on already.
    fn assign(&self, assignment: AssignCuration) -> Result<(), AssignError> {
        let stage: StageRef =
            assignment.stage.filter(|s| !s.job_id.is_empty()).ok_or(AssignError::NoStage)?;
        if self.server.stages().contains(&stage) {
            return Ok(());
        }
        let job: Arc<JobSpec> = Arc::new(serde_json::from_slice(&assignment.resolved_spec_json)?);
        let objects = self.objects(&assignment.object_store_url)?;
        let reach = convert::reach(assignment.reach.clone())?;
        let copies = LocalCopies {
            url: assignment.object_store_url.clone(),
            scratch: self.scratch.clone(),
            cache: self.cache.clone(),
        };
        let (paths, mirror) = self.paths(&job, assignment.stage_index, Purpose::Curating, &reach, &copies)?;
        let encoders = EncoderSource::of(&job.model, &paths, self.device)?;
        let stop = self.tasks.stop_token().child_token();
        let (log, followed) = watch::channel(LogState::default());
        self.server.add(
            &stage,
            ServedStage {
                encoders: encoders.clone(),
                log: followed,
                objects: objects.clone(),
                stop: stop.clone(),
            },
        );
        let span = tracing::Span::current();
        let following = follow(stage.clone(), self.controllers.clone(), log.clone(), stop.clone());
        let kept = (stop.clone(), mirror.clone());
        self.tasks.spawn(
            async move {
                following.await;
                // A sealed log is served until the stage is released, with the encoders that were copied for it.
                let (stop, mirror) = kept;
                stop.cancelled().await;
                drop((log, mirror));
            }
            .instrument(span.clone()),
        );
        let index = assignment.stage_index;
        let source =
            ParentSource { checkpoint: assignment.source_checkpoint, objects: objects.clone(), copies };
        let parent = self.parent(&stage, &job, index, source, &stop);
        let curation = StageWorker {
            node_id: self.node_id.clone(),
            llm: self.llm(&stage.job_id, &objects, reach),
            stage,
            stage_index: index,
            paths,
            device: self.device,
            encoders: Arc::new(self.server.encoders(encoders.clone())),
            networks: self.networks.clone(),
            parent,
            job,
            object_store_url: assignment.object_store_url,
            mirror,
            brought: Arc::default(),
            counts: Counts::default(),
            under_way: Default::default(),
            reports: self.units.clone(),
            drawn: self.drawn.clone(),
            inputs: Arc::default(),
            judge: Arc::default(),
            prompts: Arc::default(),
            objects,
            controllers: self.controllers.clone(),
            worker: self.curation.clone(),
            metrics: self.metrics.clone(),
            trace: assignment.trace_parent.parse().ok(),
            drain: self.drain.clone(),
            process_stops: self.tasks.stop_token(),
        };
        tracing::info!("stage assigned");
        self.tasks.spawn(self.curations.track_future(curation.run(stop).instrument(span)));
        Ok(())
    }

    /// The object store, if it is the one that it should be.
    pub fn objects(&self, url: &str) -> Result<Arc<dyn object_store::ObjectStore>, AssignError> {
        match self.health.now().store_fault {
            fault if fault.is_empty() => Ok(objects::open(url)?),
            fault => Err(AssignError::Store { fault }),
        }
    }

    /// Where a stage's paths lead, and the copies that those into a bucket lead to.
    pub fn paths(
        &self,
        job: &JobSpec,
        stage_index: u32,
        purpose: Purpose,
        reach: &Reach,
        copies: &LocalCopies,
    ) -> Result<(PathResolver, Option<Arc<Mirror>>), AssignError> {
        let paths = PathResolver::new(&self.library_root, &copies.url, reach.clone());
        if paths.store.is_some() {
            return Ok((paths, None));
        }
        Ok(match Mirror::of(job, stage_index as usize, purpose, reach, copies.clone())? {
            Some(mirror) => (paths.with_store_at(mirror.root()), Some(Arc::new(mirror))),
            None => (paths, None),
        })
    }

    /// The way to language models for a stage of a job.
    fn llm(&self, job_id: &str, objects: &Arc<dyn object_store::ObjectStore>, reach: Reach) -> LlmContext {
        LlmContext {
            network: self.network.clone(),
            objects: objects.clone(),
            job_id: job_id.to_owned(),
            reach,
            curators: Default::default(),
        }
    }

    /// What a stage takes from its parent stage, if it has one. Its log is followed as long as the stage is assigned.
    fn parent(
        &self,
        stage: &StageRef,
        job: &JobSpec,
        index: u32,
        taken: ParentSource,
        stop: &CancellationToken,
    ) -> Option<Arc<ParentStage>> {
        let source = &job.stages.get(index as usize)?.data.source;
        let (draws, reads) = (source.drawn_by(), source.reads_log_of());
        let name = draws.or(reads)?.to_owned();
        let log = reads.map(|from| {
            let (log, followed) = watch::channel(LogState::default());
            let from = StageRef { job_id: stage.job_id.clone(), stage: from.to_owned() };
            let (controllers, stop) = (self.controllers.clone(), stop.clone());
            self.tasks.spawn(
                async move {
                    follow(from, controllers, log.clone(), stop.clone()).await;
                    stop.cancelled().await;
                    drop(log);
                }
                .instrument(tracing::Span::current()),
            );
            followed
        });
        let ParentSource { checkpoint, objects, copies } = taken;
        Some(Arc::new(ParentStage {
            stage: name,
            checkpoint,
            draws: draws.is_some(),
            log,
            objects,
            copies,
            trained: Default::default(),
            shards: Default::default(),
        }))
    }
}
