//! Marks of people on pairs.

use crescendo_core::access::Scope;
use crescendo_core::ids::{StageRef, Timestamp};
use crescendo_core::transitions::{self, MarkOrder};
use crescendo_proto::v1;

use crate::engine::Engine;
use crate::engine::request::{Answer, MarksRequest};
use crate::to_proto;

impl Engine {
    pub(super) fn handle_marks(&mut self, request: MarksRequest, now: Timestamp) {
        match request {
            MarksRequest::Mark { order, scope, reply } => {
                let answer = self.mark_pairs(order, &scope, now);
                self.hold(reply, answer);
            }
            MarksRequest::List { stage, scope, reply } => {
                let answer = self.list_marks(&stage, &scope);
                self.hold(reply, answer);
            }
        }
    }

    fn mark_pairs(&mut self, order: MarkOrder, scope: &Scope, now: Timestamp) -> Answer<v1::PairMarkList> {
        self.job(&order.stage.job, scope)?;
        let (stage, bad) = (order.stage.clone(), order.bad);
        let writes = transitions::mark_pairs(&self.state, order, self.observed.wall(now))?;
        if !writes.is_empty() {
            tracing::info!(job = %stage.job, stage = %stage.stage, bad, "marks of pairs are changed");
        }
        self.write_all(writes);
        self.list_marks(&stage, scope)
    }

    fn list_marks(&self, stage: &StageRef, scope: &Scope) -> Answer<v1::PairMarkList> {
        let job = self.job(&stage.job, scope)?;
        if job.stage_index(stage.stage.as_str()).is_none() {
            let what = format!("stage {stage}");
            return Err(crescendo_core::error::RequestError::NotFound { what }.into());
        }
        Ok(to_proto::marks(&self.state, stage))
    }
}
