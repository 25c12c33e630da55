use crescendo_core::ids::Generation;
use crescendo_proto::convert;
use crescendo_proto::v1;
use crescendo_proto::v1::checkpoint_service_server::CheckpointService;
use tonic::{Request, Response, Status};

use crate::engine;
use crate::leadership::Link;
use crate::services::{checked, job_id, stage_ref};

/// The registry of checkpoints.
pub struct Checkpoints {
    link: Link,
}

impl Checkpoints {
    pub fn new(link: Link) -> Self {
        Self { link }
    }
}

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        let checkpoint = checked(convert::checkpoint(request.into_inner().checkpoint))?;
        let committed =
            self.link.ask(|reply| engine::Request::CommitCheckpoint { checkpoint, reply }).await?;
        Ok(Response::new(committed))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let v1::ListCheckpointsRequest { job_id: job, stage } = request.into_inner();
        let job = job_id(&job)?;
        let stage = (!stage.is_empty()).then_some(stage);
        let checkpoints =
            self.link.ask(|reply| engine::Request::ListCheckpoints { job, stage, reply }).await?;
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints }))
    }

    async fn mark_checkpoint_damaged(
        &self,
        request: Request<v1::MarkCheckpointDamagedRequest>,
    ) -> Result<Response<v1::MarkCheckpointDamagedResponse>, Status> {
        let v1::MarkCheckpointDamagedRequest { job_id, stage, generation, path, reason } =
            request.into_inner();
        let stage = stage_ref(&job_id, &stage)?;
        let generation = Generation(generation);
        self.link
            .ask(|reply| engine::Request::MarkDamaged { stage, generation, path, reason, reply })
            .await?;
        Ok(Response::new(v1::MarkCheckpointDamagedResponse {}))
    }
}
