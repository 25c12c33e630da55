use std::time::Duration;

use crescendo_core::error::RequestError;
use crescendo_core::histogram::Scale;
use crescendo_core::transitions::MarkOrder;
use crescendo_proto::v1::review_service_server::ReviewService;
use crescendo_proto::{status, v1};
use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::access::{caller_of, trail_of};
use crate::engine;
use crate::engine::PairsWanted;
use crate::leadership::EngineHandle;
use crate::relay::Relays;
use crate::services::{checked, stage_ref};

/// Pairs of an answer unless asked otherwise, and at most.
const DEFAULT_PAIRS: u32 = 24;
const MAX_PAIRS: u32 = 60;
/// Longest side of a picture unless asked otherwise.
const DEFAULT_PIXELS: u32 = 192;
const PIXELS: std::ops::RangeInclusive<u32> = 32..=1024;
/// Reasons of a filter.
const MAX_REASONS: usize = 64;
/// What a curator may send: 3 MiB, and what is around pictures and words.
const MAX_ANSWER_BYTES: usize = 3 << 20;
/// A curator has read by then.
const READ_DEADLINE: Duration = Duration::from_secs(30);
/// Hint to callers for whom there is no place.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Pairs for people to look at, read by curators.
pub struct Review {
    engine: EngineHandle,
    relays: Relays,
}

impl Review {
    pub fn new(engine: EngineHandle, relays: Relays) -> Self {
        Self { engine, relays }
    }
}

#[tonic::async_trait]
impl ReviewService for Review {
    async fn read_pairs(
        &self,
        request: Request<v1::ReadPairsRequest>,
    ) -> Result<Response<v1::ReadPairsResponse>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let request = request.into_inner();
        let stage = stage_ref(&request.job_id, &request.stage)?;
        trail.on("stage", &stage);
        let wanted = checked(wanted(request, stage))?;
        let scope = caller.scope();
        let busy = || status::exhausted("as many files are being read as may be at a time", RETRY_AFTER);
        let expected = self.relays.expect(caller.tenant).ok_or_else(busy)?;
        let read_id = expected.read_id.clone();
        let asked = self
            .engine
            .ask(|reply| {
                engine::Request::Objects(engine::ObjectRequest::ReadPairs { wanted, scope, read_id, reply })
            })
            .await?;
        if asked.read == 0 {
            return Ok(Response::new(v1::ReadPairsResponse { units: asked.units, ..Default::default() }));
        }
        let read = expected.collect(MAX_ANSWER_BYTES, READ_DEADLINE).await?;
        let found = v1::ReadPairsResponse::decode(read.as_slice())
            .map_err(|error| Status::data_loss(format!("a curator has sent what are no pairs: {error}")))?;
        let after = asked.next_unit.map(|unit| v1::PairPlace { unit, number: 0 });
        let v1::ReadPairsResponse { pairs, next, .. } = found;
        Ok(Response::new(v1::ReadPairsResponse { pairs, next: next.or(after), units: asked.units }))
    }

    async fn mark_pairs(
        &self,
        request: Request<v1::MarkPairsRequest>,
    ) -> Result<Response<v1::MarkPairsResponse>, Status> {
        let (caller, trail) = (caller_of(&request)?, trail_of(&request));
        let v1::MarkPairsRequest { job_id, stage, indices, undo, reason } = request.into_inner();
        let stage = stage_ref(&job_id, &stage)?;
        let (verb, first) = (if undo { "unmark" } else { "mark" }, indices.first().copied().unwrap_or(0));
        trail.on("pairs", format_args!("{stage} {verb} {} from {first}", indices.len()));
        let scope = caller.scope();
        let order = MarkOrder { stage, indices, bad: !undo, reason, by: caller.name };
        let mark = |reply| engine::MarksRequest::Mark { order, scope, reply };
        let marks = self.engine.ask(|reply| engine::Request::Marks(mark(reply))).await?;
        Ok(Response::new(v1::MarkPairsResponse { marks: Some(marks) }))
    }

    async fn list_pair_marks(
        &self,
        request: Request<v1::ListPairMarksRequest>,
    ) -> Result<Response<v1::ListPairMarksResponse>, Status> {
        let (scope, trail) = (caller_of(&request)?.scope(), trail_of(&request));
        let v1::ListPairMarksRequest { job_id, stage } = request.into_inner();
        let stage = stage_ref(&job_id, &stage)?;
        trail.on("stage", &stage);
        let list = |reply| engine::MarksRequest::List { stage, scope, reply };
        let marks = self.engine.ask(|reply| engine::Request::Marks(list(reply))).await?;
        Ok(Response::new(v1::ListPairMarksResponse { marks: Some(marks) }))
    }
}

fn wanted(
    request: v1::ReadPairsRequest,
    stage: crescendo_core::ids::StageRef,
) -> Result<PairsWanted, RequestError> {
    let v1::ReadPairsRequest { rejected, from, filter, limit, picture_pixels, .. } = request;
    let limit = if limit == 0 { DEFAULT_PAIRS } else { limit };
    if limit > MAX_PAIRS {
        return Err(RequestError::invalid("limit", format!("must be at most {MAX_PAIRS}")));
    }
    let picture_pixels = if picture_pixels == 0 { DEFAULT_PIXELS } else { picture_pixels };
    if !PIXELS.contains(&picture_pixels) {
        let (least, most) = (PIXELS.start(), PIXELS.end());
        return Err(RequestError::invalid("picture_pixels", format!("must be {least} to {most}")));
    }
    if let Some(filter) = &filter {
        check(filter)?;
    }
    Ok(PairsWanted { stage, rejected, from: from.unwrap_or_default(), filter, limit, picture_pixels })
}

fn check(filter: &v1::PairFilter) -> Result<(), RequestError> {
    if filter.reasons.len() > MAX_REASONS {
        return Err(RequestError::invalid("filter.reasons", format!("must be at most {MAX_REASONS}")));
    }
    if filter.score.is_empty() {
        return Ok(());
    }
    if Scale::of(&filter.score).is_none() {
        return Err(RequestError::invalid("filter.score", format!("{:?} is no score", filter.score)));
    }
    if filter.least.is_nan() || filter.most.is_nan() || filter.least > filter.most {
        return Err(RequestError::invalid("filter.least", "must be a number, and at most filter.most"));
    }
    Ok(())
}
