//! What a page shows, from a snapshot: parts of the list of jobs, one job, nodes, queues, and where curves come from.

use std::cmp::{Ordering, Reverse};

use crescendo_core::access::Scope;
use crescendo_core::error::RequestError;
use crescendo_core::ids::{JobId, Timestamp};
use crescendo_core::state::{Job, Stage};
use crescendo_dataset::checkpoint::HISTORY_FILE;
use crescendo_proto::v1;

use crate::curves::{CurveSource, HistoryFile};
use crate::engine::views::{Snapshot, is_wanted, visible_job};
use crate::to_proto;

/// Jobs of a part of the list unless asked otherwise, and at most.
const DEFAULT_JOBS: usize = 100;
const MAX_JOBS: usize = 500;

/// One job with what belongs to it.
pub struct ShownJob {
    pub job: v1::Job,
    pub explanation: v1::ExplainJobResponse,
    pub checkpoints: v1::ListCheckpointsResponse,
}

/// Where a job stands in an order; jobs that stand at the same place go by their age, the newest first.
#[derive(Clone, Debug, PartialEq, PartialOrd)]
enum Place<'a> {
    Text(&'a str),
    Number(i64),
    Part(f64),
}

type Placed<'a> = (Place<'a>, Reverse<Timestamp>, &'a JobId, &'a Job);

impl Snapshot {
    /// The jobs of a part of the list, in their order, and how many there are in all of it.
    pub fn part(&self, view: &v1::JobsView, scope: &Scope) -> Result<(Vec<v1::Job>, usize), RequestError> {
        let limit = match view.limit as usize {
            0 => DEFAULT_JOBS,
            limit if limit <= MAX_JOBS => limit,
            _ => return Err(RequestError::invalid("limit", format!("must be at most {MAX_JOBS}"))),
        };
        let text = view.text.to_lowercase();
        let has_text = |job: &Job| {
            text.is_empty()
                || job.record.id.as_str().contains(&text)
                || job.record.spec.name.to_lowercase().contains(&text)
        };
        let wanted =
            |job: &&Job| is_wanted(job, &view.states, &view.tenant, &view.labels, scope) && has_text(job);
        let mut found: Vec<Placed<'_>> =
            self.state.jobs().filter(wanted).map(|job| self.placed(job, view.order())).collect();
        let in_order = |left: &Placed<'_>, right: &Placed<'_>| {
            let by_place = left.0.partial_cmp(&right.0).unwrap_or(Ordering::Equal);
            let order = by_place.then_with(|| (left.1, left.2).cmp(&(right.1, right.2)));
            if view.reversed { order.reverse() } else { order }
        };
        let total = found.len();
        let end = (view.offset as usize).saturating_add(limit);
        if end < total {
            found.select_nth_unstable_by(end, in_order);
            found.truncate(end);
        }
        found.sort_by(in_order);
        let views = self.views();
        let shown = found.into_iter().skip(view.offset as usize).map(|(.., job)| {
            let mut message = views.job(job, false);
            for stage in &mut message.stages {
                stage.scores.clear();
            }
            message
        });
        Ok((shown.collect(), total))
    }

    fn placed<'a>(&self, job: &'a Job, order: v1::JobOrder) -> Placed<'a> {
        let record = &job.record;
        let place = match order {
            v1::JobOrder::Unspecified | v1::JobOrder::Submitted => Place::Number(0),
            v1::JobOrder::Name => Place::Text(&record.spec.name),
            v1::JobOrder::Priority => Place::Number(-i64::from(record.spec.priority)),
            v1::JobOrder::State => Place::Number(crescendo_proto::convert::job_state(&record.state) as i64),
            v1::JobOrder::Progress => Place::Part(-to_proto::done_part(job, &self.observed)),
        };
        (place, Reverse(record.submitted_at), &record.id, job)
    }

    pub fn job(&self, id: &JobId, scope: &Scope) -> Result<ShownJob, RequestError> {
        let job = visible_job(&self.state, id, scope)?;
        let views = self.views();
        let mut message = views.job(job, false);
        message.notes = to_proto::notes(&self.state, id);
        Ok(ShownJob {
            job: message,
            explanation: views.explained(job, scope, None),
            checkpoints: v1::ListCheckpointsResponse { checkpoints: to_proto::checkpoints(job, None)? },
        })
    }

    /// Every node, by id. How long one is silent is told in whole seconds, and of those that are not, not at all: what changes
    /// all the time is no news.
    pub fn nodes(&self, scope: &Scope) -> Vec<v1::Node> {
        let listed = to_proto::nodes(&self.state, &self.observed, &self.limits, scope, self.now);
        let quiet = |mut node: v1::Node| {
            let is_connected = node.reach() == v1::NodeReach::Connected;
            node.silent_seconds = if is_connected { 0.0 } else { node.silent_seconds.floor() };
            node
        };
        listed.nodes.into_iter().map(quiet).collect()
    }

    /// What is drawn of a job's stages.
    pub fn samplings(&self, id: &JobId, scope: &Scope) -> Result<Vec<v1::Sampling>, RequestError> {
        self.views().samplings(id, "", scope)
    }

    pub fn queues(&self, scope: &Scope) -> v1::ListQueuesResponse {
        let counted = self.observed.counted(self.now);
        to_proto::queues::queues(&self.state, &self.limits.quotas, scope, counted)
    }

    /// Stages of a job that have curves, or one of them; those that nobody has begun are left out.
    pub fn curve_sources(
        &self,
        id: &JobId,
        stage: &str,
        scope: &Scope,
    ) -> Result<Vec<CurveSource>, RequestError> {
        let job = visible_job(&self.state, id, scope)?;
        if !stage.is_empty() && job.stage_index(stage).is_none() {
            return Err(RequestError::NotFound { what: format!("stage {id}/{stage}") });
        }
        let wanted = |name: &str| stage.is_empty() || name == stage;
        let stages = job.stages.iter().enumerate().filter(|(_, known)| {
            wanted(known.id.stage.as_str())
                && (known.attempt.is_some() || known.newest_checkpoint().is_some())
        });
        Ok(stages.map(|(index, known)| source(job, index, known)).collect())
    }
}

fn source(job: &Job, index: usize, stage: &Stage) -> CurveSource {
    let history = stage.newest_checkpoint().and_then(|checkpoint| {
        let file = checkpoint.files.iter().find(|file| file.name == HISTORY_FILE)?;
        Some(HistoryFile {
            path: checkpoint.path.clone(),
            steps: checkpoint.step,
            size_bytes: file.size_bytes,
            sha256: file.sha256.clone(),
        })
    });
    let steps_total = job.stage_spec(index).map_or(0, |spec| spec.train.steps);
    CurveSource { stage: stage.id.clone(), steps_total, history }
}
