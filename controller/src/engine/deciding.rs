//! When is decided, and where: in the engine, or in a large cluster beside it, while it goes on.
//!
//! ```text
//!   snapshot ─▶ decide, beside ─▶ plan ─▶ does it rest on what has changed meanwhile? ─ no ─▶ carry out
//!                                                                                      └ yes ▶ decide in place
//! ```
//!
//! Only plans give slots away and take them back, and there is one at a time. So what happens meanwhile can do no more than end
//! what the plan rests on: a job that it moves or names, a node that it places ranks on. Such a plan is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use crescendo_core::decide::{self, Command, Decider, Plan};
use crescendo_core::ids::{JobId, NodeId, Timestamp};
use crescendo_core::job::JobState;
use crescendo_core::records::{Record, RecordKey, Write};
use prometheus::Histogram;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::beside::beside;
use crate::engine::paced::Pace;
use crate::engine::views::Snapshot;
use crate::engine::{Engine, IN_TIME, PROMPTLY};

/// A decision that is being made beside the engine.
pub(super) struct Pending {
    /// With what is kept of it for the next one.
    plan: oneshot::Receiver<(Plan, Decider)>,
    /// Ends with this.
    _work: JoinSet<()>,
    began: Instant,
    /// What has changed since it was begun.
    changed: Changed,
}

/// What plans can rest on and has changed since one was begun.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Jobs, but for what was only added to their pairs.
    jobs: BTreeSet<JobId>,
    /// Nodes: their records, and what they are to the controller.
    nodes: BTreeSet<NodeId>,
    /// The time, or what tenants may use.
    everything: bool,
}

impl Changed {
    /// A record is written.
    fn record(&mut self, key: &RecordKey) {
        match key {
            // Pairs are only ever added: what is decided without the newest is decided again.
            RecordKey::Unit(..) | RecordKey::Segment(..) => {}
            RecordKey::Node(node) => {
                self.nodes.insert(node.clone());
            }
            key => self.jobs.extend(key.job().cloned()),
        }
    }

    /// Whether writes of the plan rest on what has changed.
    fn contradicts(&self, plan: &Plan) -> bool {
        self.everything || plan.writes.iter().any(|write| self.contradicts_write(write))
    }

    fn contradicts_write(&self, write: &Write) -> bool {
        if write.key().job().is_some_and(|job| self.jobs.contains(job)) {
            return true;
        }
        match write {
            Write::Put(Record::Attempt(attempt)) => {
                let init_from = attempt.init_from.as_ref().map(|checkpoint| &checkpoint.stage.job);
                let mut named = attempt.ahead_of.iter().chain(init_from);
                let placed = attempt.is_active();
                named.any(|job| self.jobs.contains(job))
                    || placed && attempt.ranks.iter().any(|rank| self.nodes.contains(&rank.node))
            }
            Write::Put(Record::Job(job)) => match &job.state {
                JobState::Preempting { by, .. } => self.jobs.contains(by),
                _ => false,
            },
            Write::Put(Record::Node(node)) => self.nodes.contains(&node.id),
            Write::Put(_) | Write::Delete(_) => false,
        }
    }

    /// Whether a command that was decided on is still right.
    fn allows(&self, send: &decide::Send) -> bool {
        let of_job = match &send.command {
            Command::StartAttempt(attempt, _)
            | Command::StopAttempt(attempt, _)
            | Command::DrainAttempt(attempt, _)
            | Command::RescueAttempt(attempt, _)
            | Command::UpdateCurators(attempt, _) => &attempt.job,
            Command::AssignCuration(stage) | Command::ReleaseCuration(stage, _) => &stage.job,
        };
        !self.everything && !self.nodes.contains(&send.node) && !self.jobs.contains(of_job)
    }
}

/// Jobs of which it is to be looked at whether they wait for something else than those who ask are told.
#[derive(Debug)]
pub(super) enum Retold {
    All,
    Some(BTreeSet<JobId>),
}

impl Retold {
    fn add<'a>(&mut self, jobs: Option<impl IntoIterator<Item = &'a JobId>>) {
        match (self, jobs) {
            (Self::All, _) => {}
            (Self::Some(known), Some(jobs)) => known.extend(jobs.into_iter().cloned()),
            (this @ Self::Some(_), None) => *this = Self::All,
        }
    }
}

impl Engine {
    /// What is to be sent, if it is time to decide, or what was decided beside is there: as soon as something that decisions rest
    /// on has changed, and now and then since time passes. In a cluster so large that a decision takes long, changes are gathered
    /// for a while.
    pub(super) fn decide_if_due(&mut self, now: Timestamp) -> Vec<decide::Send> {
        if let Some(mut pending) = self.pending.take() {
            return match pending.plan.try_recv() {
                Ok((plan, decider)) => {
                    self.retold.add(decider.told_anew());
                    self.decider = decider;
                    self.take_over(plan, pending, now)
                }
                Err(TryRecvError::Empty) => {
                    self.pending = Some(pending);
                    Vec::new()
                }
                // It panicked: here that ends this controller, and is not tried for ever.
                Err(TryRecvError::Closed) => self.decide_here(pending.began, now),
            };
        }
        if !self.deciding.is_due(self.pace()) {
            return Vec::new();
        }
        self.undecided = false;
        self.look_for_hangs(now);
        self.look_for_lost_nodes(now);
        if self.deciding.took() >= self.around.decides_beside {
            self.decide_beside(now);
            return Vec::new();
        }
        self.decide_here(Instant::now(), now)
    }

    fn pace(&self) -> Pace {
        if self.undecided { PROMPTLY } else { IN_TIME }
    }

    /// When the next decision is due for what has changed; none while one is being made, or with nothing to decide.
    pub(super) fn next_decision(&self) -> Option<Instant> {
        (self.undecided && self.pending.is_none()).then(|| self.deciding.due(PROMPTLY))
    }

    /// Something that decisions rest on has changed for all of them.
    pub(super) fn everything_changed(&mut self) {
        self.undecided = true;
        if let Some(pending) = &mut self.pending {
            pending.changed.everything = true;
        }
    }

    /// The node, or what is seen of it, has changed so that decisions may be others.
    pub(super) fn node_changed(&mut self, node: &NodeId) {
        self.undecided = true;
        if let Some(pending) = &mut self.pending {
            pending.changed.nodes.insert(node.clone());
        }
    }

    /// A record has changed.
    pub(super) fn record_changed(&mut self, key: &RecordKey) {
        self.undecided = true;
        if let Some(pending) = &mut self.pending {
            pending.changed.record(key);
        }
    }

    /// Decides while all else waits. `began`: when that was first tried.
    fn decide_here(&mut self, began: Instant, now: Timestamp) -> Vec<decide::Send> {
        let changed = self.state.take_changed();
        let plan = timed(&self.around.metrics.decide_seconds, || {
            self.decider.decide(&self.state, &changed, &self.observed, &self.limits, now)
        });
        self.retold.add(self.decider.told_anew());
        self.carry_out(plan, began, now)
    }

    fn decide_beside(&mut self, now: Timestamp) {
        let changed = self.state.take_changed();
        // Until this is decided whoever decides has to look at all there is.
        let mut decider = std::mem::take(&mut self.decider);
        // One that people were shown may be from before what is decided on.
        self.snapshot = None;
        let snapshot = self.snapshot(now);
        let (seconds, decided) = (self.around.metrics.decide_seconds.clone(), self.decided.clone());
        let (answer, plan) = oneshot::channel();
        let mut work = JoinSet::new();
        work.spawn(async move {
            let plan = beside(|| {
                let Snapshot { state, observed, limits, .. } = &*snapshot;
                timed(&seconds, || decider.decide(state, &changed, observed, limits, now))
            });
            // An engine that has read its state again, or is gone, does not want it any more.
            let _ = answer.send((plan, decider));
            decided.notify_one();
        });
        self.pending =
            Some(Pending { plan, _work: work, began: Instant::now(), changed: Changed::default() });
    }

    /// Carries out what was decided beside, as far as it is still right.
    fn take_over(&mut self, mut plan: Plan, pending: Pending, now: Timestamp) -> Vec<decide::Send> {
        let Pending { changed, began, .. } = pending;
        if changed.contradicts(&plan) {
            tracing::debug!("what was decided rests on what has changed meanwhile: it is decided again");
            return self.decide_here(began, now);
        }
        for job in &changed.jobs {
            // Why it waits now is not known yet: what was said of it stands, unless it is over.
            plan.waits.remove(job);
            let is_open = self.state.job(job).is_some_and(|job| !job.record.state.is_terminal());
            if let Some(wait) = self.waits.get(job).filter(|_| is_open) {
                plan.waits.insert(job.clone(), wait.clone());
            }
        }
        let decided = plan.sends.len();
        plan.sends.retain(|send| changed.allows(send));
        self.undecided |= plan.sends.len() < decided;
        self.retold.add(Some(&changed.jobs));
        let sends = self.carry_out(plan, began, now);
        // Of these the next decision may say what this one has said.
        self.retold.add(Some(&changed.jobs));
        sends
    }

    fn look_for_lost_nodes(&mut self, now: Timestamp) {
        for (attempt, nodes) in self.observed.find_lost_nodes(&self.state, now) {
            tracing::warn!(
                job = %attempt.job, stage = %attempt.stage, generation = attempt.generation.0, ?nodes,
                "nothing is heard of nodes, and their gang waits for them: the other ranks are told to save and end"
            );
        }
    }

    fn look_for_hangs(&mut self, now: Timestamp) {
        for (attempt, hang) in self.observed.find_hangs(&self.state, &self.limits, now) {
            self.around.metrics.gangs_hung.inc();
            tracing::error!(
                job = %attempt.job, stage = %attempt.stage, generation = attempt.generation.0, %hang,
                "a gang hangs: it is ended and started again"
            );
        }
    }

    fn carry_out(&mut self, plan: Plan, began: Instant, now: Timestamp) -> Vec<decide::Send> {
        let Plan { writes, sends, waits, changes } = plan;
        for write in writes {
            self.write(write);
        }
        match std::mem::replace(&mut self.retold, Retold::Some(BTreeSet::new())) {
            Retold::All => {
                let news = waits.iter().filter(|(job, _)| !waits.says_the_same(&self.waits, job));
                self.progressed.extend(news.map(|(job, _)| job.clone()));
                self.waiting.update(&waits, now);
            }
            Retold::Some(jobs) => {
                for job in jobs {
                    self.waiting.follow(&job, &waits, now);
                    if waits.get(&job).is_some() && !waits.says_the_same(&self.waits, &job) {
                        self.progressed.insert(job);
                    }
                }
            }
        }
        self.waits = Arc::new(waits);
        for change in &changes {
            self.tell(change);
        }
        self.deciding.done(began);
        sends
    }
}

fn timed<T>(seconds: &Histogram, work: impl FnOnce() -> T) -> T {
    let timer = seconds.start_timer();
    let done = work();
    timer.observe_duration();
    done
}

#[cfg(test)]
mod tests {
    use crescendo_core::ids::{AttemptRef, Generation, Incarnation, StageName, StageRef};
    use crescendo_core::records::{AttemptRecord, AttemptState, CheckpointRecord, RankPlacement};

    use super::*;

    fn job(name: &str) -> JobId {
        JobId::parse(name).expect("valid")
    }

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).expect("valid")
    }

    fn stage(name: &str) -> StageRef {
        StageRef { job: job(name), stage: StageName::parse("s").expect("valid") }
    }

    /// Of job `placed` on node `n`, before the turn of job `first`, from a checkpoint of job `other`.
    fn attempt(state: AttemptState) -> AttemptRecord {
        let StageRef { job, stage: name } = stage("placed");
        let incarnation = Incarnation::parse("i").expect("valid");
        let init_from = CheckpointRecord {
            stage: stage("other"),
            generation: Generation(1),
            step: 5,
            path: "p".into(),
            files: Vec::new(),
            committed_at: Timestamp(1),
            is_final: true,
            damaged: None,
            next_position: 20,
        };
        AttemptRecord {
            attempt: AttemptRef { job, stage: name, generation: Generation(2) },
            ranks: vec![RankPlacement { node: node("n"), incarnation, device_index: 0 }],
            state,
            started_at: Timestamp(2),
            restarts: 0,
            failures_in_a_row: 0,
            resume_from: None,
            init_from: Some(init_from),
            ran_millis: 0,
            ahead_of: Some(self::job("first")),
        }
    }

    fn plan_of(attempt: &AttemptRecord) -> Plan {
        let send = |command| decide::Send { node: node("n"), command };
        let start = send(Command::StartAttempt(attempt.attempt.clone(), decide::PairsFrom::default()));
        let assign = send(Command::AssignCuration(stage("curated")));
        Plan {
            writes: vec![Write::Put(Record::Attempt(attempt.clone()))],
            sends: vec![start, assign],
            ..Plan::default()
        }
    }

    /// Whether a plan that places the attempt is dropped, and which of its two commands stay otherwise.
    fn after(key: &RecordKey) -> (bool, [bool; 2]) {
        let plan = plan_of(&attempt(AttemptState::Active));
        let mut changed = Changed::default();
        changed.record(key);
        let [start, assign] = plan.sends.as_slice() else { panic!("two commands") };
        (changed.contradicts(&plan), [changed.allows(start), changed.allows(assign)])
    }

    #[test]
    fn a_plan_is_dropped_if_a_job_or_node_that_it_rests_on_has_changed() {
        assert_eq!(after(&RecordKey::Job(job("unrelated"))), (false, [true, true]));
        assert_eq!(after(&RecordKey::Node(node("unrelated"))), (false, [true, true]));
        assert_eq!(after(&RecordKey::Job(job("placed"))), (true, [false, true]));
        assert_eq!(after(&RecordKey::Checkpoint(stage("placed"), 3, Generation(1))), (true, [false, true]));
        assert_eq!(after(&RecordKey::Job(job("first"))), (true, [true, true]), "whom it goes ahead of");
        assert_eq!(after(&RecordKey::Job(job("other"))), (true, [true, true]), "whose checkpoint it takes");
        assert_eq!(after(&RecordKey::Node(node("n"))), (true, [false, false]));
        // Only a command of it rests on that.
        assert_eq!(after(&RecordKey::Job(job("curated"))), (false, [true, false]));
        // Pairs come all the time, and take nothing away.
        assert_eq!(after(&RecordKey::Unit(stage("placed"), 4)), (false, [true, true]));
    }

    #[test]
    fn an_attempt_may_end_whatever_has_become_of_its_nodes() {
        let ended = AttemptState::Ended { reason: "the node was lost".into(), at: Timestamp(3) };
        let plan = plan_of(&attempt(ended));
        let mut changed = Changed::default();
        changed.record(&RecordKey::Node(node("n")));
        assert!(!changed.contradicts(&plan));
    }

    #[test]
    fn what_changes_for_all_contradicts_every_plan() {
        let plan = plan_of(&attempt(AttemptState::Active));
        let changed = Changed { everything: true, ..Changed::default() };
        assert!(changed.contradicts(&plan));
        assert!(!plan.sends.iter().any(|send| changed.allows(send)));
    }
}
