//! A node that speaks for what is over: the controller has to take none of it.

use std::time::Duration;

use crescendo_core::object_keys;
use crescendo_core::records::UnitState;
use crescendo_core::state::Job;
use crescendo_node::session::call::ControllerChannel;
use crescendo_proto::v1;
use crescendo_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::node_service_client::NodeServiceClient;
use crescendo_proto::v1::open_session_request::Message as Up;
use futures::{StreamExt as _, stream};
use tokio::time::{sleep, timeout};

/// Limit of one of its calls.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Lies {
    pub channel: ControllerChannel,
    pub hello: v1::Hello,
    /// The records as they are.
    pub jobs: Vec<Job>,
}

impl Lies {
    pub async fn tell(self) {
        let node = self.hello.node_id.clone();
        for attempt in self.older_attempts() {
            let v1::AttemptRef { job_id, stage, generation } = attempt;
            let checkpoint = v1::Checkpoint {
                path: object_keys::checkpoint(&job_id, &stage, 9999, generation),
                job_id,
                stage,
                generation,
                step: 9999,
                r#final: true,
                files: vec![v1::CheckpointFile {
                    name: "manifest.json".into(),
                    size_bytes: 1,
                    sha256: "c".repeat(64),
                }],
                ..Default::default()
            };
            let request = v1::CommitCheckpointRequest { checkpoint: Some(checkpoint) };
            // What comes of it is seen in the records.
            let mut client = CheckpointServiceClient::new(self.channel.clone());
            let _ = timeout(PATIENCE, client.commit_checkpoint(request)).await;
        }
        for lease in self.older_leases() {
            let request = v1::CommitUnitRequest {
                node_id: node.clone(),
                shard: Some(v1::Shard {
                    unit: lease.unit,
                    path: object_keys::shard(&lease.job_id, &lease.stage, lease.unit, lease.lease_generation),
                    pairs: 1,
                    size_bytes: 1,
                    sha256: "c".repeat(64),
                    first_index: 0,
                }),
                lease: Some(lease),
                ..Default::default()
            };
            let mut client = CurationServiceClient::new(self.channel.clone());
            let _ = timeout(PATIENCE, client.commit_unit(request)).await;
        }
        self.session().await;
    }

    /// A session that takes the place of the node's own for a moment, and reports failures of older generations.
    async fn session(mut self) {
        let attempts = self.older_attempts();
        let reports = attempts.into_iter().flat_map(|attempt| {
            [v1::AttemptPhase::Failed, v1::AttemptPhase::Drained, v1::AttemptPhase::Succeeded].map(|phase| {
                Up::AttemptReport(v1::AttemptReport {
                    attempt: Some(attempt.clone()),
                    phase: phase.into(),
                    step: 9999,
                    failed_rank: 0,
                    reason: "a lie".into(),
                    permanent: true,
                    ..Default::default()
                })
            })
        });
        self.hello.running.clear();
        let first = Up::Hello(self.hello.clone());
        let messages: Vec<_> = std::iter::once(first).chain(reports).collect();
        let lies = stream::iter(messages).map(|message| v1::OpenSessionRequest { message: Some(message) });
        // It stays a little, so that what it says is heard.
        let stays = stream::once(sleep(Duration::from_millis(500))).filter_map(|()| async { None });
        let mut client = NodeServiceClient::new(self.channel);
        if let Ok(Ok(down)) = timeout(PATIENCE, client.open_session(lies.chain(stays))).await {
            let mut down = down.into_inner();
            let _ =
                timeout(Duration::from_secs(1), async { while let Ok(Some(_)) = down.message().await {} })
                    .await;
        }
    }

    /// Of every stage the generation before its newest.
    fn older_attempts(&self) -> Vec<v1::AttemptRef> {
        let stages = self.jobs.iter().flat_map(|job| &job.stages).filter(|stage| stage.generation().0 > 1);
        stages
            .map(|stage| v1::AttemptRef {
                job_id: stage.id.job.to_string(),
                stage: stage.id.stage.to_string(),
                generation: stage.generation().0 - 1,
            })
            .collect()
    }

    /// Leases before the newest of units that are under way.
    fn older_leases(&self) -> Vec<v1::UnitLease> {
        let stages = self.jobs.iter().flat_map(|job| &job.stages);
        let units =
            stages.flat_map(|stage| (0..8).filter_map(move |unit| Some((stage, stage.log.open_unit(unit)?))));
        units
            .filter(|(_, unit)| matches!(unit.state, UnitState::Leased { .. }) && unit.lease_generation > 1)
            .map(|(stage, unit)| v1::UnitLease {
                job_id: stage.id.job.to_string(),
                stage: stage.id.stage.to_string(),
                unit: unit.unit,
                lease_generation: unit.lease_generation - 1,
                ttl_millis: 0,
            })
            .collect()
    }
}
