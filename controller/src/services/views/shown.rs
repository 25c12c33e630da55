//! What a view has told, and what is new.

use std::collections::BTreeMap;

use crescendo_core::access::Scope;
use crescendo_core::error::RequestError;
use crescendo_core::ids::JobId;
use crescendo_proto::v1::view::Shows;
use crescendo_proto::v1::watch_views_response::Shown;
use crescendo_proto::{convert, status, v1};
use tonic::Status;

use crate::curves::{self, Cursor, CurveHub, CurveSource};
use crate::engine::{ShownJob, Snapshot};

/// A view with what it has told so far.
pub enum Looking {
    Jobs(v1::JobsView, Box<JobsTold>),
    Job(v1::JobView, Box<v1::JobShown>),
    /// None before the first.
    Nodes(Option<BTreeMap<String, v1::Node>>),
    Queues(Option<v1::ListQueuesResponse>),
    Curves(v1::CurvesView, BTreeMap<String, Cursor>),
    /// None before the first.
    Samples(v1::SamplesView, Option<BTreeMap<(String, u64), v1::Sampling>>),
    /// Lines come by themselves.
    Log(v1::LogView),
    /// It has told why there is nothing to see; or is about to.
    Over(Option<Box<Shown>>),
}

#[derive(Default)]
pub struct JobsTold {
    jobs: BTreeMap<String, v1::Job>,
    /// None before the first.
    list: Option<(Vec<String>, u32)>,
}

/// What one look has come to.
#[derive(Default)]
pub struct News {
    pub answers: Vec<Shown>,
    /// Stages whose histories may be worth reading.
    pub histories: Vec<CurveSource>,
}

impl News {
    fn of(shown: Option<Shown>) -> Self {
        Self { answers: shown.into_iter().collect(), histories: Vec::new() }
    }
}

/// Why a view shows nothing more.
pub fn failed(status: &Status) -> Shown {
    Shown::Failed(v1::ViewFailed { code: status.code() as i32, message: status.message().to_owned() })
}

impl Looking {
    pub fn new(shows: Shows) -> Self {
        match shows {
            Shows::Jobs(view) => Self::Jobs(view, Box::default()),
            Shows::Job(view) => Self::Job(view, Box::default()),
            Shows::Nodes(v1::NodesView {}) => Self::Nodes(None),
            Shows::Queues(v1::QueuesView {}) => Self::Queues(None),
            Shows::Curves(view) => Self::Curves(view, BTreeMap::new()),
            Shows::Log(view) => Self::Log(view),
            Shows::Samples(view) => Self::Samples(view, None),
        }
    }

    pub fn refused(status: &Status) -> Self {
        Self::Over(Some(Box::new(failed(status))))
    }

    /// Ends the view, which says why.
    pub fn end(&mut self, refused: &Status) -> News {
        *self = Self::Over(None);
        News::of(Some(failed(refused)))
    }

    /// What is new since the look before.
    pub fn look(&mut self, snapshot: &Snapshot, curves: &CurveHub, scope: &Scope) -> News {
        let looked = match self {
            Self::Jobs(view, told) => {
                snapshot.part(view, scope).map(|(jobs, total)| News::of(told.take(jobs, total)))
            }
            Self::Job(view, told) => job_of(&view.job_id)
                .and_then(|job| snapshot.job(&job, scope))
                .map(|shown| News::of(told_job(told, shown))),
            Self::Nodes(told) => Ok(News::of(told_nodes(told, snapshot.nodes(scope)))),
            Self::Queues(told) => {
                let queues = snapshot.queues(scope);
                let is_news = told.as_ref() != Some(&queues);
                *told = Some(queues.clone());
                Ok(News::of(is_news.then_some(Shown::Queues(queues))))
            }
            Self::Curves(view, cursors) => told_curves(view, cursors, snapshot, curves, scope),
            Self::Samples(view, told) => job_of(&view.job_id)
                .and_then(|job| snapshot.samplings(&job, scope))
                .map(|samplings| News::of(told_samples(told, samplings))),
            Self::Log(_) => Ok(News::default()),
            Self::Over(last) => Ok(News::of(last.take().map(|last| *last))),
        };
        looked.unwrap_or_else(|refused| self.end(&status::refused(&refused)))
    }
}

fn job_of(text: &str) -> Result<JobId, RequestError> {
    convert::id("job_id", text, JobId::parse)
}

impl JobsTold {
    fn take(&mut self, jobs: Vec<v1::Job>, total: usize) -> Option<Shown> {
        let job_ids: Vec<String> = jobs.iter().map(|job| job.job_id.clone()).collect();
        let list = Some((job_ids.clone(), u32::try_from(total).unwrap_or(u32::MAX)));
        let before = std::mem::take(&mut self.jobs);
        let changed: Vec<v1::Job> =
            jobs.iter().filter(|job| before.get(&job.job_id) != Some(*job)).cloned().collect();
        self.jobs = jobs.into_iter().map(|job| (job.job_id.clone(), job)).collect();
        if changed.is_empty() && self.list == list {
            return None;
        }
        let total = list.as_ref().map_or(0, |(_, total)| *total);
        self.list = list;
        Some(Shown::Jobs(v1::JobsShown { job_ids, changed, total }))
    }
}

fn told_job(told: &mut v1::JobShown, now: ShownJob) -> Option<Shown> {
    let ShownJob { job, explanation, checkpoints } = now;
    let news = v1::JobShown {
        job: news_of(&mut told.job, job),
        explanation: news_of(&mut told.explanation, explanation),
        checkpoints: news_of(&mut told.checkpoints, checkpoints),
    };
    (news != v1::JobShown::default()).then_some(Shown::Job(news))
}

/// The present, if it is not what was told.
fn news_of<T: Clone + PartialEq>(told: &mut Option<T>, now: T) -> Option<T> {
    if told.as_ref() == Some(&now) {
        return None;
    }
    *told = Some(now.clone());
    Some(now)
}

fn told_nodes(told: &mut Option<BTreeMap<String, v1::Node>>, nodes: Vec<v1::Node>) -> Option<Shown> {
    let is_first = told.is_none();
    let mut before = told.take().unwrap_or_default();
    let mut now = BTreeMap::new();
    let mut changed = Vec::new();
    for node in nodes {
        if before.remove(&node.node_id).as_ref() != Some(&node) {
            changed.push(node.clone());
        }
        now.insert(node.node_id.clone(), node);
    }
    *told = Some(now);
    let gone: Vec<String> = before.into_keys().collect();
    // That there are none is news once.
    let is_news = is_first || !changed.is_empty() || !gone.is_empty();
    is_news.then_some(Shown::Nodes(v1::NodesShown { changed, gone }))
}

fn told_samples(
    told: &mut Option<BTreeMap<(String, u64), v1::Sampling>>,
    samplings: Vec<v1::Sampling>,
) -> Option<Shown> {
    let is_first = told.is_none();
    let before = told.take().unwrap_or_default();
    let now: BTreeMap<(String, u64), v1::Sampling> =
        samplings.into_iter().map(|sampling| ((sampling.stage.clone(), sampling.step), sampling)).collect();
    let is_news = |entry: &(&(String, u64), &v1::Sampling)| before.get(entry.0) != Some(entry.1);
    let samplings: Vec<v1::Sampling> =
        now.iter().filter(is_news).map(|(_, sampling)| sampling.clone()).collect();
    *told = Some(now);
    // That there are none is news once.
    (is_first || !samplings.is_empty()).then_some(Shown::Samples(v1::ListSamplesResponse { samplings }))
}

fn told_curves(
    view: &v1::CurvesView,
    cursors: &mut BTreeMap<String, Cursor>,
    snapshot: &Snapshot,
    hub: &CurveHub,
    scope: &Scope,
) -> Result<News, RequestError> {
    let most = curves::points_wanted(view.max_points)?;
    let sources = snapshot.curve_sources(&job_of(&view.job_id)?, &view.stage, scope)?;
    let mut grown = Vec::new();
    for source in &sources {
        let stage = source.stage.stage.as_str();
        if let Some((curve, cursor)) = hub.curve(source, most, cursors.get(stage).copied()) {
            cursors.insert(stage.to_owned(), cursor);
            grown.push(curve);
        }
    }
    let shown = (!grown.is_empty()).then_some(Shown::Curves(v1::CurvesShown { curves: grown }));
    let histories = sources.into_iter().filter(|source| hub.may_want(source)).collect();
    Ok(News { histories, ..News::of(shown) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str, priority: i32) -> v1::Job {
        v1::Job { job_id: id.into(), priority, ..v1::Job::default() }
    }

    #[test]
    fn of_a_list_only_what_has_changed_is_told_and_all_of_its_order() {
        let mut told = JobsTold::default();
        let mut tell = |jobs: Vec<v1::Job>, total| match told.take(jobs, total) {
            Some(Shown::Jobs(shown)) => {
                Some((shown.job_ids, shown.changed.into_iter().map(|job| job.job_id).collect::<Vec<_>>()))
            }
            _ => None,
        };
        let ids = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(tell(vec![], 0), Some((ids(&[]), ids(&[]))), "an empty list is told once");
        assert_eq!(tell(vec![], 0), None);
        assert_eq!(tell(vec![job("b", 1), job("a", 1)], 2), Some((ids(&["b", "a"]), ids(&["b", "a"]))));
        assert_eq!(tell(vec![job("a", 1), job("b", 2)], 2), Some((ids(&["a", "b"]), ids(&["b"]))));
        assert_eq!(tell(vec![job("a", 1), job("b", 2)], 2), None);
        assert_eq!(tell(vec![job("a", 1)], 2), Some((ids(&["a"]), ids(&[]))));
    }

    #[test]
    fn of_nodes_the_changed_and_the_gone_are_told() {
        let node = |id: &str, slots| v1::Node { node_id: id.into(), slots, ..v1::Node::default() };
        let mut told = None;
        let mut tell = |nodes| match told_nodes(&mut told, nodes) {
            Some(Shown::Nodes(shown)) => Some((shown.changed.len(), shown.gone)),
            _ => None,
        };
        assert_eq!(tell(vec![]), Some((0, vec![])), "that there are none is told once");
        assert_eq!(tell(vec![]), None);
        assert_eq!(tell(vec![node("a", 1), node("b", 1)]), Some((2, vec![])));
        assert_eq!(tell(vec![node("a", 1), node("b", 1)]), None);
        assert_eq!(tell(vec![node("a", 2)]), Some((1, vec!["b".to_owned()])));
    }
}
