use crescendo_core::ids::Generation;
use crescendo_proto::convert;
use crescendo_proto::v1;
use crescendo_proto::v1::checkpoint_service_server::CheckpointService;
use tonic::{Request, Response, Status};

use crate::access::{caller_of, trail_of};
use crate::engine;
use crate::leadership::EngineHandle;
use crate::services::{checked, job_id, stage_ref};

/// The registry of checkpoints.
pub struct Checkpoints {
    engine: EngineHandle,
}

impl Checkpoints {
    pub fn new(engine: EngineHandle) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        let (by, trail) = (caller_of(&request)?.node, trail_of(&request));
        let checkpoint = checked(convert::checkpoint(request.into_inner().checkpoint))?;
        trail.on("checkpoint", format_args!("{}/step-{}", checkpoint.stage, checkpoint.step));
        let committed =
            self.engine.ask(|reply| engine::Request::CommitCheckpoint { checkpoint, by, reply }).await?;
        Ok(Response::new(committed))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::ListCheckpointsRequest { job_id: job, stage } = request.into_inner();
        let job = job_id(&job)?;
        trail.on("job", &job);
        let stage = (!stage.is_empty()).then_some(stage);
        let checkpoints =
            self.engine.ask(|reply| engine::Request::ListCheckpoints { job, scope, stage, reply }).await?;
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints }))
    }

    async fn keep_checkpoint(
        &self,
        request: Request<v1::KeepCheckpointRequest>,
    ) -> Result<Response<v1::KeepCheckpointResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::KeepCheckpointRequest { job_id, stage, step, release } = request.into_inner();
        let stage = stage_ref(&job_id, &stage)?;
        trail.on("checkpoint", format_args!("{stage}/step-{step}"));
        let keep = |reply| engine::DeletionRequest::Keep { stage, step, release, scope, reply };
        let checkpoint = self.engine.ask(|reply| engine::Request::Deletions(keep(reply))).await?;
        Ok(Response::new(v1::KeepCheckpointResponse { checkpoint: Some(checkpoint) }))
    }

    async fn mark_checkpoint_damaged(
        &self,
        request: Request<v1::MarkCheckpointDamagedRequest>,
    ) -> Result<Response<v1::MarkCheckpointDamagedResponse>, Status> {
        let (by, trail) = (caller_of(&request)?.node, trail_of(&request));
        let v1::MarkCheckpointDamagedRequest { job_id, stage, generation, path, reason } =
            request.into_inner();
        let stage = stage_ref(&job_id, &stage)?;
        let generation = Generation(generation);
        trail.on("stage", &stage);
        self.engine
            .ask(|reply| engine::Request::MarkDamaged { stage, generation, path, reason, by, reply })
            .await?;
        Ok(Response::new(v1::MarkCheckpointDamagedResponse {}))
    }
}
