use crescendo_core::error::RequestError;
use crescendo_proto::v1;
use crescendo_proto::v1::queue_service_server::QueueService;
use tonic::{Request, Response, Status};

use crate::access::caller_of;
use crate::engine;
use crate::leadership::EngineHandle;
use crate::services::checked;

/// Queues, and what was used.
pub struct QueueStandings {
    engine: EngineHandle,
}

impl QueueStandings {
    pub fn new(engine: EngineHandle) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl QueueService for QueueStandings {
    async fn list_queues(
        &self,
        request: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        let scope = caller_of(&request)?.scope();
        let queues = self.engine.look(|reply| engine::LookRequest::ListQueues { scope, reply }).await?;
        Ok(Response::new(queues))
    }

    async fn list_usage(
        &self,
        request: Request<v1::ListUsageRequest>,
    ) -> Result<Response<v1::ListUsageResponse>, Status> {
        let scope = caller_of(&request)?.scope();
        let v1::ListUsageRequest { from_month, to_month } = request.into_inner();
        for (field, month) in [("from_month", &from_month), ("to_month", &to_month)] {
            if !month.is_empty() && !is_month(month) {
                return checked(Err(RequestError::invalid(
                    field,
                    "must be a month such as 2026-11".to_owned(),
                )));
            }
        }
        let mut usage = self.engine.look(|reply| engine::LookRequest::ListUsage { scope, reply }).await?;
        // Four digits, a dash and two: their order is that of time.
        usage.retain(|one| one.month >= from_month && (to_month.is_empty() || one.month <= to_month));
        Ok(Response::new(v1::ListUsageResponse { usage }))
    }
}

fn is_month(text: &str) -> bool {
    let Some((year, month)) = text.split_once('-') else { return false };
    let are_digits =
        |part: &str, count| part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit());
    are_digits(year, 4) && are_digits(month, 2) && ("01"..="12").contains(&month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_four_digits_and_two() {
        let good = ["2026-11", "1970-01", "9999-12"];
        assert!(good.iter().all(|month| is_month(month)));
        let bad = ["2026", "2026-13", "2026-00", "26-11", "2026-1", "2026-11-01", "２026-11", ""];
        assert!(!bad.iter().any(|month| is_month(month)));
    }
}
