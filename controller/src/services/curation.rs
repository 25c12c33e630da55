use crescendo_proto::SILENCE_LIMIT;
use crescendo_proto::convert;
use crescendo_proto::v1;
use crescendo_proto::v1::curation_service_server::CurationService;
use tonic::{Request, Response, Status};

use crate::access::{caller_of, trail_of};
use crate::engine;
use crate::leadership::EngineHandle;
use crate::services::quiet::KeptAlive;
use crate::services::{checked, node_id, stage_ref};

/// Units and the registry of the pair log.
pub struct Curation {
    engine: EngineHandle,
}

impl Curation {
    pub fn new(engine: EngineHandle) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl CurationService for Curation {
    async fn lease_unit(
        &self,
        request: Request<v1::LeaseUnitRequest>,
    ) -> Result<Response<v1::LeaseUnitResponse>, Status> {
        let caller = caller_of(&request)?;
        let v1::LeaseUnitRequest { job_id, stage, node_id: node } = request.into_inner();
        let (stage, node) = (stage_ref(&job_id, &stage)?, node_id(&node)?);
        caller.check_acts_as(&node)?;
        let leased = self.engine.ask(|reply| engine::Request::LeaseUnit { stage, node, reply }).await?;
        Ok(Response::new(leased))
    }

    async fn renew_unit(
        &self,
        request: Request<v1::RenewUnitRequest>,
    ) -> Result<Response<v1::RenewUnitResponse>, Status> {
        let caller = caller_of(&request)?;
        let v1::RenewUnitRequest { lease, node_id: node } = request.into_inner();
        let (lease, node) = (checked(convert::lease(lease))?, node_id(&node)?);
        caller.check_acts_as(&node)?;
        let by = caller.node;
        let renewed = self.engine.ask(|reply| engine::Request::RenewUnit { lease, node, by, reply }).await?;
        Ok(Response::new(renewed))
    }

    async fn commit_unit(
        &self,
        request: Request<v1::CommitUnitRequest>,
    ) -> Result<Response<v1::CommitUnitResponse>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let request = request.into_inner();
        let node = node_id(&request.node_id)?;
        let commit = checked(convert::unit_commit(request))?;
        trail.on("unit", format_args!("{}/{}", commit.lease.stage, commit.lease.unit));
        caller.check_acts_as(&node)?;
        let by = caller.node;
        let committed =
            self.engine.ask(|reply| engine::Request::CommitUnit { commit, node, by, reply }).await?;
        Ok(Response::new(committed))
    }

    async fn fail_unit(
        &self,
        request: Request<v1::FailUnitRequest>,
    ) -> Result<Response<v1::FailUnitResponse>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let request = request.into_inner();
        let fate = checked(convert::unit_fate(&request))?;
        let v1::FailUnitRequest { lease, node_id: node, reason, .. } = request;
        let (lease, node) = (checked(convert::lease(lease))?, node_id(&node)?);
        trail.on("unit", format_args!("{}/{}", lease.stage, lease.unit));
        caller.check_acts_as(&node)?;
        let by = caller.node;
        let failed = self
            .engine
            .ask(|reply| engine::Request::FailUnit { lease, node, reason, fate, by, reply })
            .await?;
        Ok(Response::new(failed))
    }

    type WatchPairLogStream = KeptAlive<v1::WatchPairLogResponse>;

    async fn watch_pair_log(
        &self,
        request: Request<v1::WatchPairLogRequest>,
    ) -> Result<Response<Self::WatchPairLogStream>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::WatchPairLogRequest { job_id, stage, from_unit } = request.into_inner();
        let stage = stage_ref(&job_id, &stage)?;
        trail.on("stage", &stage);
        let watch =
            self.engine.ask(|reply| engine::Request::WatchPairLog { stage, scope, from_unit, reply }).await?;
        // How long the log is, again: its shards are known.
        let filler = |last: Option<&v1::WatchPairLogResponse>| {
            let known = last.map(|last| (last.committed, last.sealed)).unwrap_or_default();
            v1::WatchPairLogResponse { shards: Vec::new(), committed: known.0, sealed: known.1 }
        };
        Ok(Response::new(KeptAlive::new(watch, SILENCE_LIMIT, filler)))
    }
}
