//! Why a job is where it is, with the numbers, and what it would take for it to go on.
//!
//! ```text
//!   ClusterState ─┐              ┌─ summary     one line
//!   Observed ─────┼─▶ explain ──▶├─ findings    the numbers behind it
//!   waits ────────┘              ├─ remedies    what a person can do
//!                                └─ pairs, nodes, blockers: the same as data
//! ```
//!
//! Nothing here decides anything: it asks the questions that [`decide`](crate::decide) asked, once more and in full. An
//! estimate is one: it says what happens at the present pace.

mod capacity;
mod deletion;
mod holding;
mod pairs;
mod precision;
mod progress;
#[cfg(test)]
mod tests;
mod words;

use std::time::Duration;

use capacity::TenantGpus;
pub use capacity::{Blocker, NodeRoom};
pub use pairs::PairForecast;
pub use progress::short_logs;

use crate::access::Scope;
use crate::decide::{DecideContext, Limits, PendingReason, Waits};
use crate::estimate::Estimate;
use crate::ids::Timestamp;
use crate::job::JobState;
use crate::observed::Observed;
use crate::queues::DEFAULT_QUEUE;
use crate::records::{NodeKind, NodeRecord};
use crate::state::{ClusterState, Job, Stage};
use words::{count, span};

/// What an explanation is made of.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub state: &'a ClusterState,
    pub seen: &'a Observed,
    /// Why each waiting job waits, from the last decision.
    pub waits: &'a Waits,
    pub limits: &'a Limits,
    pub now: Timestamp,
    /// What the reader may see: jobs of other tenants are counted, never named.
    pub scope: &'a Scope,
}

/// Why a job is where it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explanation {
    /// One word of a fixed set: that of [`PendingReason::label`], or one of `new`, `starting`, `running`, `unseen`,
    /// `succeeded`, `failed`, `cancelled`, `deleting`.
    pub cause: &'static str,
    /// The stage that it is about; empty if about none.
    pub stage: String,
    /// One line.
    pub summary: String,
    /// Facts with their numbers, one line each.
    pub findings: Vec<String>,
    /// What a person can do, one line each, the best first. Empty if there is nothing to do but wait.
    pub remedies: Vec<String>,
    /// Pairs that the stage waits for, or still makes.
    pub pairs: Option<PairForecast>,
    /// Trainer nodes, when it is about slots.
    pub nodes: Vec<NodeRoom>,
    /// Jobs that hold slots, or go first.
    pub blockers: Vec<Blocker>,
    /// Until it goes on, or is done if it runs; at the present pace.
    pub goes_on_in: Option<Duration>,
}

/// Explains one job.
pub fn explain(view: &View<'_>, job: &Job) -> Explanation {
    if let Some(deletion) = view.state.deletion(&job.record.id) {
        return deletion::deleting(view, deletion);
    }
    match &job.record.state {
        JobState::Succeeded => return progress::succeeded(job),
        JobState::Cancelled { reason } => return progress::cancelled(job, reason),
        JobState::Failed { reason } => return progress::failed(view, job, reason),
        JobState::Queued
        | JobState::Placing { .. }
        | JobState::Running { .. }
        | JobState::Paused(_)
        | JobState::Preempting { .. } => {}
    }
    let Some(index) = job.current_stage() else { return progress::succeeded(job) };
    let Some(stage) = job.stages.get(index) else { return progress::succeeded(job) };
    let mut explanation = match view.waits.get(&job.record.id) {
        Some(wait) => waiting(view, job, index, stage, wait),
        None => match stage.active_attempt() {
            Some(attempt) => progress::running(view, job, index, attempt),
            None => Explanation {
                cause: "new",
                summary: "was just accepted; it is looked at within a second".to_owned(),
                ..Explanation::default()
            },
        },
    };
    explanation.stage = stage.id.stage.to_string();
    explanation.findings.extend(holding::goes_ahead(view, stage));
    explanation.findings.extend(holding::time_left(view, job));
    if job.stages.iter().all(|stage| stage.attempt.is_none()) {
        explanation.findings.push(format!("by its spec it comes to {}", Estimate::of(&job.record.spec)));
    }
    precision::add_findings(view, job, stage, &mut explanation);
    // Whatever the job waits for: the stage's pairs may still be in the making, or only served, by fewer than there are.
    if !job.makes_pairs(index) || !stage.log.is_sealed() {
        for line in pairs::cooldowns(view, stage) {
            if !explanation.findings.contains(&line) {
                explanation.findings.push(line);
            }
        }
    }
    explanation
}

fn waiting(view: &View<'_>, job: &Job, index: usize, stage: &Stage, wait: &PendingReason) -> Explanation {
    let mut explanation = match wait {
        PendingReason::NoCurator => no_curator(view),
        PendingReason::Unreadable { .. } => unreadable(),
        PendingReason::CuratorsBusy => curators_busy(view, job),
        PendingReason::Pairs { needed, .. } => pairs::waiting(view, job, index, *needed),
        PendingReason::Source { .. } => pairs::without_source(view, job, index),
        PendingReason::NoSuchTrainer { needs } => capacity::no_such_trainer(view, job, needs),
        PendingReason::Start { from } => starts_from(from),
        PendingReason::NoTrainer => capacity::no_trainer(view),
        PendingReason::Processor { gang } => precision::without_processor(view, job, stage, gang),
        PendingReason::Slots { .. } => capacity::waiting(view, job, index),
        PendingReason::Behind { job: first } => capacity::behind(view, job, index, view.state.job(first)),
        PendingReason::BehindOthers => capacity::behind(view, job, index, first_waiting(view, job)),
        PendingReason::TenantGpus { tenant, wanted, used, limit } => {
            capacity::over_quota(view, &TenantGpus { tenant, wanted: *wanted, used: *used, limit: *limit })
        }
        PendingReason::QueueGpus { queue, device, wanted, limit, .. } => {
            capacity::queue_full(view, queue, device, (*wanted, *limit))
        }
        PendingReason::QueueGuarantee { queue, device, wanted, guaranteed, .. } => {
            capacity::nothing_borrowed(view, queue, device, (*wanted, *guaranteed))
        }
        PendingReason::TenantStorage { tenant, .. } => Explanation {
            findings: vec![
                "pairs and checkpoints count as long as they are registered, those of ended jobs too"
                    .to_owned(),
                "stages that have begun go on; no further one is begun".to_owned(),
            ],
            remedies: vec![
                "delete jobs that have ended: crescendo delete JOB --dry-run says what that frees".to_owned(),
                format!("ask an admin to raise maxStoredBytes of tenant {tenant}"),
                "or keep less: spec.checkpoints.keepLast of the jobs that run".to_owned(),
            ],
            ..Explanation::default()
        },
        PendingReason::Backoff { reason, failures } => progress::backoff(view, stage, reason, *failures),
        PendingReason::Ranks { .. } => progress::starting(view, stage),
        PendingReason::Paused { slots, .. } => holding::paused(job, *slots),
        PendingReason::Preempted { slots } => holding::preempted(view, job, *slots),
        PendingReason::TimeLimit { .. } => holding::at_its_limit(job),
        PendingReason::Grows { .. } => holding::grows(job),
        PendingReason::MakingRoom { .. } => holding::making_room(view, job, index),
    };
    explanation.findings.extend(troubles(view, wait));
    explanation.cause = wait.label();
    if explanation.summary.is_empty() {
        explanation.summary = wait.to_string();
    }
    explanation
}

/// The first job in the queue that waits for slots into which it would fit, or for what is left of the limit of both jobs' queue: no
/// later one takes them away.
fn first_waiting<'a>(view: &View<'a>, job: &Job) -> Option<&'a Job> {
    let own = view.limits.quotas.queues.of(&job.record.spec).map_or(DEFAULT_QUEUE, |(name, _)| name);
    let is_in = |queue: &str| queue == own;
    // In the turn of another queue it may be one that is later in the order.
    let jobs = view.decide_nodes().in_order().into_iter();
    jobs.filter(|other| other.record.id != job.record.id).find(|other| {
        match view.waits.get(&other.record.id) {
            Some(PendingReason::Slots { wanted, total, .. }) => wanted <= total,
            Some(PendingReason::MakingRoom { .. }) => true,
            Some(PendingReason::QueueGpus { queue, wanted, limit, .. }) => wanted <= limit && is_in(queue),
            Some(PendingReason::QueueGuarantee { queue, wanted, guaranteed, .. }) => {
                wanted <= guaranteed && is_in(queue)
            }
            Some(_) | None => false,
        }
    })
}

fn unreadable() -> Explanation {
    Explanation {
        findings: vec![
            "nothing of it is started, ended or written until all its records can be read; ranks that run go on"
                .to_owned(),
        ],
        remedies: vec![
            "if a newer controller wrote the record: run that version again".to_owned(),
            "else restore it from a backup of the store; docs/runbooks/CrescendoRecordUnreadable.md says how"
                .to_owned(),
            "or cancel the job, which gives up what the record said".to_owned(),
        ],
        ..Explanation::default()
    }
}

fn no_curator(view: &View<'_>) -> Explanation {
    let mut findings = silent(view, NodeKind::Curator);
    if findings.is_empty() {
        let known = view.state.nodes().any(|record| record.kind == NodeKind::Curator);
        findings.push(if known {
            "no curator that is connected takes new work".to_owned()
        } else {
            "no curator has ever connected to this cluster".to_owned()
        });
    }
    Explanation {
        findings,
        remedies: vec![
            "start a curator node, or find out why it does not connect: its log says what it tried"
                .to_owned(),
        ],
        ..Explanation::default()
    }
}

fn starts_from(from: &str) -> Explanation {
    let other = from.split_once('/').map(|(job, _)| job);
    Explanation {
        findings: vec!["it goes on by itself once that checkpoint is registered".to_owned()],
        remedies: other
            .map(|job| format!("see how far that job is: crescendo explain {job}"))
            .into_iter()
            .collect(),
        ..Explanation::default()
    }
}

fn curators_busy(view: &View<'_>, job: &Job) -> Explanation {
    let nodes = view.decide_nodes();
    let curators = nodes.open_to_work(NodeKind::Curator).count();
    let earlier = nodes
        .in_order()
        .into_iter()
        .take_while(|other| other.record.id != job.record.id)
        .filter(|other| other.stages.iter().any(|stage| !stage.log.is_sealed()))
        .count();
    Explanation {
        findings: vec![format!(
            "{} connected; {} that {} first still make{} pairs",
            count(curators, "curator"),
            count(earlier, "job"),
            if earlier == 1 { "goes" } else { "go" },
            if earlier == 1 { "s" } else { "" },
        )],
        remedies: vec![
            "add curators: each further one takes the next stage that lacks pairs".to_owned(),
            format!(
                "or submit with a higher spec.priority (it is {}): who is first in the queue is served first",
                job.record.spec.priority
            ),
        ],
        ..Explanation::default()
    }
}

/// What is wrong with nodes of the kind that the job waits for: where it would go if that were not so.
fn troubles(view: &View<'_>, wait: &PendingReason) -> Vec<String> {
    let kind = match wait {
        PendingReason::NoTrainer
        | PendingReason::NoSuchTrainer { .. }
        | PendingReason::Processor { .. }
        | PendingReason::Slots { .. }
        | PendingReason::MakingRoom { .. }
        | PendingReason::Behind { .. }
        | PendingReason::BehindOthers
        | PendingReason::Backoff { .. }
        | PendingReason::Ranks { .. } => NodeKind::Trainer,
        PendingReason::NoCurator
        | PendingReason::CuratorsBusy
        | PendingReason::Pairs { .. }
        | PendingReason::Source { .. } => NodeKind::Curator,
        PendingReason::Unreadable { .. }
        | PendingReason::Start { .. }
        | PendingReason::TenantGpus { .. }
        | PendingReason::QueueGpus { .. }
        | PendingReason::QueueGuarantee { .. }
        | PendingReason::TenantStorage { .. }
        | PendingReason::Paused { .. }
        | PendingReason::TimeLimit { .. }
        | PendingReason::Grows { .. }
        | PendingReason::Preempted { .. } => return Vec::new(),
    };
    let nodes = view.state.nodes().filter(|record| record.kind == kind);
    nodes.flat_map(|record| troubles_of(view, record)).take(MAX_NODES).collect()
}

fn troubles_of(view: &View<'_>, record: &NodeRecord) -> Vec<String> {
    let id = &record.id;
    let mut lines = Vec::new();
    if let Some(rival) = view.seen.rival(id, view.now) {
        lines.push(format!(
            "another process, at {}, calls itself node {id} too and is refused: give one of them another --node-id",
            rival.address
        ));
    }
    let Some(health) = view.seen.nodes.get(id).map(|seen| &seen.health) else { return lines };
    if let Some(fault) = &health.store_fault {
        lines.push(format!("node {id} gets no work, since it cannot use the object store: {fault}"));
    }
    if let Some(fault) = &health.device_fault {
        lines.push(format!("node {id} has a device that has failed: {fault}"));
    }
    lines.extend(health.stuck.iter().map(|(slot, what)| format!("slot {slot} of node {id} is held: {what}")));
    lines
}

/// Nodes of a kind that are known and cannot be given work.
fn silent(view: &View<'_>, kind: NodeKind) -> Vec<String> {
    silent_among(view, kind, |_| true)
}

fn silent_among(view: &View<'_>, kind: NodeKind, which: impl Fn(&NodeRecord) -> bool) -> Vec<String> {
    let nodes = view.decide_nodes();
    view.state
        .nodes()
        .filter(|record| record.kind == kind && which(record))
        .filter_map(|record| {
            let seen = view.seen.nodes.get(&record.id);
            if seen.is_some_and(|seen| nodes.is_reachable(seen)) {
                return None;
            }
            let heard = seen.map_or(view.seen.since, |seen| seen.last_heard);
            let slots = match kind {
                NodeKind::Trainer => format!(" ({})", count(record.slots, "slot")),
                NodeKind::Curator => String::new(),
            };
            Some(format!("node {}{slots} is silent for {}", record.id, span(view.now.since(heard))))
        })
        .take(MAX_NODES)
        .collect()
}

/// Nodes, and other jobs, that are listed at most.
const MAX_NODES: usize = 32;

impl<'a> View<'a> {
    fn decide_nodes(&self) -> DecideContext<'a> {
        DecideContext::new(self.state, self.seen, self.limits, self.now)
    }

    /// The time that those of records compare with.
    fn wall_now(&self) -> Timestamp {
        self.seen.wall(self.now)
    }

    /// May the reader know of this job?
    fn shows(&self, job: &Job) -> bool {
        self.scope.sees(&job.record.spec.tenant)
    }

    /// Its id, or what can be said of it.
    fn name(&self, job: &Job) -> String {
        if self.shows(job) { format!("job {}", job.record.id) } else { "a job of another tenant".to_owned() }
    }
}
