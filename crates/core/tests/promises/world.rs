//! A cluster in memory: the real rules, with nodes that are played. Everything that a controller, its nodes or the
//! network between them can do at the wrong moment is one [`Act`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crescendo_core::RequestError;
use crescendo_core::classes::{PriorityClass, PriorityClasses};
use crescendo_core::decide::{
    Change, Command, Decider, Limits, PendingReason, Plan, Waits, decide, reachable_curators,
};
use crescendo_core::ids::{
    AttemptRef, Generation, Incarnation, JobId, NodeId, RequestId, StageRef, Timestamp,
};
use crescendo_core::invariants::check_invariants;
use crescendo_core::job::{JobState, Pause};
use crescendo_core::observed::{NodeFailure, NodeReport, Observed, Progress, Report};
use crescendo_core::pairlog::Lease;
use crescendo_core::quotas::{Quotas, TenantLimits};
use crescendo_core::records::{
    CheckpointRecord, FileRecord, NodeKind, NodeRecord, Record, ShardRecord, Write,
};
use crescendo_core::spec::{self, JobSpec};
use crescendo_core::state::{ClusterState, Job};
use crescendo_core::transitions::{self, QueueLimits, Submission, UnitCommit, UnitLeaseRef};

pub const TRAINERS: usize = 3;
pub const CURATORS: usize = 2;
const SLOTS: u32 = 2;

/// One thing that happens. Numbers are reduced to what there is.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    Submit {
        request: u8,
        gpus: u8,
        min_gpus: u8,
        stages: u8,
        priority: u8,
    },
    /// A person pauses a job, or lets it go on.
    Pause {
        job: u8,
        curates: bool,
    },
    Resume {
        job: u8,
    },
    Cancel {
        job: u8,
    },
    StartNode {
        node: u8,
    },
    KillNode {
        node: u8,
    },
    /// The node says that it is about to leave.
    Leave {
        node: u8,
    },
    /// A person empties a node, or takes that back.
    DrainNode {
        node: u8,
        undo: bool,
    },
    /// A gang with ranks on a node that leaves saves a checkpoint and leaves.
    Part {
        node: u8,
    },
    Disconnect {
        node: u8,
    },
    Reconnect {
        node: u8,
    },
    /// The node carries out what it was sent.
    Obey {
        node: u8,
    },
    /// The node tells what its ranks do.
    Tell {
        node: u8,
    },
    RankFails {
        node: u8,
    },
    Step {
        job: u8,
    },
    Checkpoint {
        job: u8,
        last: bool,
    },
    Damage {
        job: u8,
    },
    StaleCheckpoint {
        job: u8,
    },
    Lease {
        job: u8,
        node: u8,
    },
    CommitUnit {
        pick: u8,
        pairs: u8,
    },
    Wait {
        seconds: u8,
    },
    /// Time passes that the controller does not see.
    StandStill {
        seconds: u8,
    },
    /// The controller dies and comes back with what is durable.
    RestartController,
}

struct PlayedNode {
    id: NodeId,
    kind: NodeKind,
    alive: bool,
    connected: bool,
    /// It is about to leave.
    leaving: bool,
    incarnation: u32,
    /// Ranks really there, by attempt: the slots that they hold.
    ranks: BTreeMap<AttemptRef, Vec<u32>>,
    reports: Vec<(AttemptRef, NodeReport)>,
    inbox: Vec<Command>,
    curating: BTreeSet<StageRef>,
}

pub struct World {
    pub state: ClusterState,
    pub seen: Observed,
    limits: Limits,
    pub now: Timestamp,
    nodes: Vec<PlayedNode>,
    leases: Vec<UnitLeaseRef>,
    steps: BTreeMap<AttemptRef, u64>,
    ended: BTreeMap<JobId, JobState>,
    generations: BTreeMap<StageRef, Generation>,
    submitted: BTreeMap<RequestId, JobId>,
    /// All that was changed, oldest first.
    pub changes: Vec<Change>,
    /// Why each waiting job waits, by the last decision.
    pub waits: Waits,
    pub decider: Decider,
}

pub fn spec_of(gpus: u8, min_gpus: u8, stages: u8, priority: u8) -> JobSpec {
    let (gpus, stages) = ([1, 2, 4, 8][usize::from(gpus) % 4], 1 + usize::from(stages) % 2);
    let min_gpus = [1, 2, 4, 8][usize::from(min_gpus) % 4].min(gpus);
    let priority = [0, 1, 10, 20][usize::from(priority) % 4];
    let stage = |n: usize| {
        format!(
            "    - name: stage-{n}\n      references: {n}\n      data: {{source: compose, subjects: s, pairs: 8, minPairs: 4, unitSize: 4}}\n      train: {{adapter: {{rank: 4}}, steps: 20, globalBatch: 8}}\n"
        )
    };
    let stages: String = (1..=stages).map(stage).collect();
    let yaml = format!(
        "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: trial}}\nspec:\n  model: {{preset: nano, weights: base.safetensors}}\n  priority: {priority}\n  resources: {{gpus: {gpus}, minGpus: {min_gpus}}}\n  stages:\n{stages}  checkpoints: {{every: 5, keepLast: 2}}\n"
    );
    spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// Jobs of priority 10 and 20 take slots from those of 0 and 1; those of 20 lose theirs to nobody.
pub fn classes() -> PriorityClasses {
    let class =
        |name: &str, preemptible| PriorityClass { name: name.to_owned(), preempts: true, preemptible };
    PriorityClasses::new(BTreeMap::from([
        (0, class("normal", true)),
        (10, class("high", true)),
        (20, class("fixed", false)),
    ]))
}

impl World {
    pub fn new() -> Self {
        Self::of(Quotas { classes: classes(), ..Quotas::default() })
    }

    pub fn of(quotas: Quotas) -> Self {
        let node = |n: usize| PlayedNode {
            id: NodeId::parse(&format!("n{n}")).expect("valid"),
            kind: if n < TRAINERS { NodeKind::Trainer } else { NodeKind::Curator },
            alive: false,
            connected: false,
            leaving: false,
            incarnation: 0,
            ranks: BTreeMap::new(),
            reports: Vec::new(),
            inbox: Vec::new(),
            curating: BTreeSet::new(),
        };
        Self {
            state: ClusterState::default(),
            seen: Observed::new(Timestamp(1_000_000)),
            limits: Limits { max_failures_in_a_row: 1000, quotas: Arc::new(quotas), ..Limits::default() },
            now: Timestamp(1_000_000),
            nodes: (0..TRAINERS + CURATORS).map(node).collect(),
            leases: Vec::new(),
            steps: BTreeMap::new(),
            ended: BTreeMap::new(),
            generations: BTreeMap::new(),
            submitted: BTreeMap::new(),
            changes: Vec::new(),
            waits: Waits::default(),
            decider: Decider::default(),
        }
    }

    /// Lets one thing happen, then lets the controller decide, and checks everything.
    pub fn act(&mut self, act: Act) {
        self.now = self.now.plus(Duration::from_millis(10));
        self.perform(act);
        self.settle();
        self.check();
    }

    pub fn perform(&mut self, act: Act) {
        match act {
            Act::Submit { request, gpus, min_gpus, stages, priority } => {
                self.submit(request, spec_of(gpus, min_gpus, stages, priority))
            }
            Act::Pause { job, curates } => self.pause(job, curates),
            Act::Resume { job } => self.steer(job, transitions::resume_job),
            Act::Cancel { job } => self.cancel(job),
            Act::StartNode { node } => self.start_node(usize::from(node)),
            Act::KillNode { node } => {
                let killed = self.node(node);
                killed.alive = false;
                killed.ranks.clear();
                killed.reports.clear();
                killed.curating.clear();
                self.disconnect(usize::from(node));
            }
            Act::Leave { node } => {
                let node = self.node(node);
                node.leaving = node.alive;
                if node.connected && node.leaving {
                    let id = node.id.clone();
                    self.seen.drains(&id);
                }
            }
            Act::DrainNode { node, undo } => {
                let id = self.node(node).id.clone();
                if self.state.node(&id).is_some() {
                    let writes = transitions::drain_node(&self.state, &id, !undo).expect("it exists");
                    self.apply(writes);
                }
            }
            Act::Part { node } => {
                let node = self.node(node);
                if node.leaving {
                    let attempts: Vec<AttemptRef> = node.ranks.keys().cloned().collect();
                    attempts.iter().for_each(|attempt| self.part(attempt));
                }
            }
            Act::Disconnect { node } => self.disconnect(usize::from(node)),
            Act::Reconnect { node } => self.connect(usize::from(node)),
            Act::Obey { node } => self.obey(usize::from(node)),
            Act::Tell { node } => self.tell(usize::from(node)),
            Act::RankFails { node } => self.ranks_fail(node, NodeFailure::Retryable),
            Act::Step { job } => {
                if let Some(attempt) = self.running_gang(job) {
                    *self.steps.entry(attempt).or_insert(0) += 1;
                }
            }
            Act::Checkpoint { job, last } => {
                if let Some(attempt) = self.running_gang(job) {
                    self.checkpoint(&attempt, last);
                }
            }
            Act::Damage { job } => self.damage(job),
            Act::StaleCheckpoint { job } => self.stale_checkpoint(job),
            Act::Lease { job, node } => self.lease(job, node),
            Act::CommitUnit { pick, pairs } => self.commit_unit(pick, pairs),
            Act::Wait { seconds } => self.wait(Duration::from_secs(u64::from(seconds))),
            Act::StandStill { seconds } => self.stand_still(Duration::from_secs(u64::from(seconds))),
            Act::RestartController => {
                let before = self.state.clone();
                // Only what is durable is kept: sessions have to be opened again.
                self.seen = Observed::new(self.now);
                for node in &mut self.nodes {
                    node.connected = false;
                    node.inbox.clear();
                }
                assert_eq!(before, self.state);
            }
        }
    }

    fn cancel(&mut self, job: u8) {
        let now = self.now;
        self.steer(job, |state, id| transitions::cancel_job(state, id, "enough", now));
    }

    fn pause(&mut self, job: u8, curates: bool) {
        let pause = Pause { curates, reason: "a test".to_owned() };
        self.steer(job, |state, id| transitions::pause_job(state, id, pause));
    }

    /// Has a person's wish written down; it is refused for a job that has ended.
    fn steer(
        &mut self,
        job: u8,
        wish: impl FnOnce(&ClusterState, &JobId) -> Result<Vec<Write>, RequestError>,
    ) {
        let Some(id) = self.pick_job(job) else { return };
        match wish(&self.state, &id) {
            Ok(writes) => self.apply(writes),
            Err(refused) => {
                let has_ended = self.state.job(&id).is_some_and(|job| job.record.state.is_terminal());
                assert!(has_ended, "{refused}");
            }
        }
    }

    fn submit(&mut self, request: u8, spec: JobSpec) {
        self.submit_as(&format!("r{}", request % 4), spec);
    }

    pub fn submit_as(&mut self, request: &str, spec: JobSpec) -> JobId {
        let request = RequestId::parse(request).expect("valid");
        let spec_json: Arc<[u8]> = format!("{spec:?}").into_bytes().into();
        let submission =
            Submission { request: request.clone(), spec: Arc::new(spec), spec_json, trace: None };
        let limits = QueueLimits {
            max_open_jobs: 100,
            retry_after: Duration::from_secs(1),
            tenant: TenantLimits::default(),
        };
        match transitions::submit_job(&self.state, submission, limits, self.now) {
            Ok(submitted) => {
                let known = self.submitted.get(&request);
                assert_eq!(submitted.already, known.is_some(), "a request id makes one job");
                assert!(known.is_none_or(|known| *known == submitted.job), "a request id names one job");
                self.apply(submitted.writes);
                self.submitted.insert(request, submitted.job.clone());
                submitted.job
            }
            Err(RequestError::Exists { .. }) => self.submitted[&request].clone(),
            Err(refused) => panic!("{refused}"),
        }
    }

    /// A node of this kind, by its number.
    pub fn id_of(&self, kind: NodeKind, node: u8) -> NodeId {
        let of_kind: Vec<&PlayedNode> = self.nodes.iter().filter(|node| node.kind == kind).collect();
        of_kind[usize::from(node) % of_kind.len()].id.clone()
    }

    /// Ranks on the node end so.
    pub fn ranks_fail(&mut self, node: u8, kind: NodeFailure) {
        let node = self.node(node);
        if let Some(attempt) = node.ranks.keys().next().cloned() {
            node.ranks.remove(&attempt);
            let reason = "rank 0 ended: signal 9".to_owned();
            node.reports.push((attempt, NodeReport::Failed { reason, kind }));
        }
    }

    fn node(&mut self, node: u8) -> &mut PlayedNode {
        let count = self.nodes.len();
        &mut self.nodes[usize::from(node) % count]
    }

    fn start_node(&mut self, node: usize) {
        let at = node % self.nodes.len();
        if !self.nodes[at].alive {
            self.nodes[at].alive = true;
            self.nodes[at].leaving = false;
            self.nodes[at].incarnation += 1;
            self.connect(at);
        }
    }

    fn disconnect(&mut self, node: usize) {
        let at = node % self.nodes.len();
        self.nodes[at].connected = false;
        self.nodes[at].inbox.clear();
        self.seen.disconnected(&self.nodes[at].id);
    }

    /// A new session: hello, then every report again.
    fn connect(&mut self, node: usize) {
        let at = node % self.nodes.len();
        let now = self.now;
        let node = &mut self.nodes[at];
        if !node.alive {
            return;
        }
        node.connected = true;
        node.inbox.clear();
        let incarnation = Incarnation::parse(&format!("i{}", node.incarnation)).expect("valid");
        let record = NodeRecord {
            id: node.id.clone(),
            incarnation: incarnation.clone(),
            kind: node.kind,
            slots: if node.kind == NodeKind::Trainer { SLOTS } else { 0 },
            device: "cpu".into(),
            address: format!("{}:1", node.id),
            labels: BTreeMap::new(),
            version: "0".into(),
            drained: self.state.node(&node.id).is_some_and(|known| known.drained),
            cordon: self.state.node(&node.id).and_then(|known| known.cordon.clone()),
            arithmetic: None,
            device_memory_bytes: None,
        };
        let running = node.ranks.keys().cloned().collect();
        self.seen.hello(node.id.clone(), incarnation, running, node.curating.clone(), now);
        if self.nodes[at].leaving {
            let id = self.nodes[at].id.clone();
            self.seen.drains(&id);
        }
        self.apply(vec![Write::Put(Record::Node(record))]);
        self.tell(at);
    }

    fn obey(&mut self, node: usize) {
        let at = node % self.nodes.len();
        for command in std::mem::take(&mut self.nodes[at].inbox) {
            let state = &self.state;
            let node = &mut self.nodes[at];
            match command {
                Command::StartAttempt(attempt, _) if node.leaving => {
                    if node.ranks.contains_key(&attempt) {
                        continue;
                    }
                    let reason = "the node drains".to_owned();
                    node.reports.push((attempt, NodeReport::Drained { reason }));
                }
                Command::DrainAttempt(attempt, _) => self.part(&attempt),
                Command::StartAttempt(attempt, _) => {
                    let newer = node.ranks.keys().any(|known| {
                        known.stage_ref() == attempt.stage_ref() && known.generation > attempt.generation
                    });
                    let reported = node.reports.iter().any(|(known, _)| *known == attempt);
                    if newer || reported || node.ranks.contains_key(&attempt) {
                        continue;
                    }
                    // Older generations of the stage are stopped first.
                    node.ranks.retain(|known, _| known.stage_ref() != attempt.stage_ref());
                    let record = state.stage(&attempt.stage_ref()).and_then(|stage| stage.attempt.clone());
                    let Some(record) = record.filter(|record| record.attempt == attempt) else { continue };
                    let slots: Vec<u32> = record
                        .ranks
                        .iter()
                        .filter(|rank| rank.node == node.id)
                        .map(|rank| rank.device_index)
                        .collect();
                    for (other, held) in &node.ranks {
                        assert!(
                            held.iter().all(|slot| !slots.contains(slot)),
                            "{attempt} was started on slots of {other}, which still runs on {}",
                            node.id
                        );
                    }
                    node.ranks.insert(attempt, slots);
                }
                Command::StopAttempt(attempt, _) => {
                    let stopped: Vec<AttemptRef> = node
                        .ranks
                        .keys()
                        .filter(|known| {
                            known.stage_ref() == attempt.stage_ref() && known.generation <= attempt.generation
                        })
                        .cloned()
                        .collect();
                    for known in stopped {
                        node.ranks.remove(&known);
                        node.reports.push((known, NodeReport::Stopped));
                    }
                }
                Command::UpdateCurators(..) | Command::RescueAttempt(..) => {}
                Command::AssignCuration(stage) => {
                    node.curating.insert(stage);
                }
                Command::ReleaseCuration(stage, _) => {
                    node.curating.remove(&stage);
                }
            }
        }
        self.tell(at);
    }

    /// The ranks of an attempt save a checkpoint and leave. Where not all of its ranks are there, those on each node just end.
    fn part(&mut self, attempt: &AttemptRef) {
        let stage = self.state.stage(&attempt.stage_ref());
        let newest = stage.is_some_and(|stage| stage.generation() == attempt.generation && !stage.is_done());
        let record =
            stage.and_then(|stage| stage.active_attempt()).filter(|record| record.attempt == *attempt);
        let whole = record.is_some_and(|record| {
            record.ranks.iter().all(|rank| {
                self.nodes.iter().any(|node| node.id == rank.node && node.ranks.contains_key(attempt))
            })
        });
        if whole && newest {
            self.checkpoint(attempt, false);
        }
        for node in &mut self.nodes {
            if node.ranks.remove(attempt).is_some() {
                let reason = "a node of the gang drains".to_owned();
                node.reports.push((attempt.clone(), NodeReport::Drained { reason }));
            }
        }
    }

    fn tell(&mut self, node: usize) {
        let at = node % self.nodes.len();
        let node = &self.nodes[at];
        if !node.connected {
            return;
        }
        let running = node.ranks.keys().map(|attempt| (attempt.clone(), NodeReport::Running));
        let mut reports: BTreeMap<StageRef, (AttemptRef, NodeReport)> = BTreeMap::new();
        // The newest of each stage, as a node's table of reports keeps it.
        for (attempt, phase) in node.reports.iter().cloned().chain(running) {
            let newest =
                reports.entry(attempt.stage_ref()).or_insert_with(|| (attempt.clone(), phase.clone()));
            if attempt.generation >= newest.0.generation {
                *newest = (attempt, phase);
            }
        }
        self.seen.heard(&node.id, self.now);
        for (attempt, phase) in reports.into_values() {
            if self
                .state
                .stage(&attempt.stage_ref())
                .is_none_or(|stage| attempt.generation > stage.generation())
            {
                continue;
            }
            let step = self.steps.get(&attempt).copied().unwrap_or(0);
            let progress = Some(Progress { step, ..Progress::default() });
            self.seen.report(
                Report { node: node.id.clone(), attempt, phase, progress, ranks: Vec::new() },
                self.now,
            );
        }
    }

    /// The active attempt of a job, if every rank of it runs.
    fn running_gang(&self, job: u8) -> Option<AttemptRef> {
        let job = self.state.job(&self.pick_job(job)?)?;
        let attempt = job.stages.iter().find_map(|stage| stage.active_attempt())?;
        let runs = |node: &NodeId| {
            self.nodes.iter().any(|played| played.id == *node && played.ranks.contains_key(&attempt.attempt))
        };
        attempt.ranks.iter().all(|rank| runs(&rank.node)).then(|| attempt.attempt.clone())
    }

    fn record_of(attempt: &AttemptRef, step: u64) -> CheckpointRecord {
        let stage = attempt.stage_ref();
        CheckpointRecord {
            path: transitions::checkpoint_path(&stage, step, attempt.generation),
            stage,
            generation: attempt.generation,
            step,
            files: vec![FileRecord { name: "state.json".into(), size_bytes: 1, sha256: "a".repeat(64) }],
            committed_at: Timestamp(0),
            is_final: step == 20,
            damaged: None,
            next_position: step * 8,
        }
    }

    fn checkpoint(&mut self, attempt: &AttemptRef, last: bool) {
        let newest = self.state.stage(&attempt.stage_ref()).and_then(|stage| stage.newest_checkpoint());
        let newest = newest.map_or(0, |checkpoint| checkpoint.step);
        let step = if last { 20 } else { (newest + 5).min(15) };
        let committed = transitions::commit_checkpoint(&self.state, Self::record_of(attempt, step), self.now);
        let committed = committed.expect("the newest generation may");
        self.apply(committed.writes);
    }

    fn damage(&mut self, job: u8) {
        let Some(attempt) = self.running_gang(job) else { return };
        let stages = self.state.job(&attempt.job).map(|job| job.stages.clone()).unwrap_or_default();
        let Some(found) = stages.iter().flat_map(|stage| stage.checkpoints.values()).next() else { return };
        let stage = attempt.stage_ref();
        let writes = transitions::mark_checkpoint_damaged(
            &self.state,
            &stage,
            attempt.generation,
            &found.path,
            "torn",
        )
        .expect("newest");
        self.apply(writes);
    }

    /// An older generation tries everything, and changes nothing.
    fn stale_checkpoint(&mut self, job: u8) {
        let Some(id) = self.pick_job(job) else { return };
        let Some(job) = self.state.job(&id) else { return };
        let stale: Vec<AttemptRef> = job
            .stages
            .iter()
            .filter(|stage| stage.generation() > Generation(0))
            .map(|stage| AttemptRef {
                job: stage.id.job.clone(),
                stage: stage.id.stage.clone(),
                generation: Generation(stage.generation().0 - 1),
            })
            .collect();
        for attempt in stale {
            let known = self
                .state
                .stage(&attempt.stage_ref())
                .map(|stage| stage.checkpoints.clone())
                .unwrap_or_default();
            for step in [5, 20] {
                if known.contains_key(&(step, attempt.generation)) {
                    continue;
                }
                let refused =
                    transitions::commit_checkpoint(&self.state, Self::record_of(&attempt, step), self.now);
                assert!(refused.is_err(), "{attempt} is old and was let commit");
            }
            for checkpoint in known.values().filter(|checkpoint| checkpoint.damaged.is_none()) {
                let stage = attempt.stage_ref();
                let refused = transitions::mark_checkpoint_damaged(
                    &self.state,
                    &stage,
                    attempt.generation,
                    &checkpoint.path,
                    "torn",
                );
                assert!(refused.is_err(), "{attempt} is old and was let mark");
            }
        }
    }

    fn lease(&mut self, job: u8, node: u8) {
        let Some(id) = self.pick_job(job) else { return };
        let Some(stage) = self.state.job(&id).and_then(|job| {
            let at = job.current_stage()?;
            Some(job.stages.get(at)?.id.clone())
        }) else {
            return;
        };
        let node = self.node(node).id.clone();
        let policy =
            self.limits.unit_policy(reachable_curators(&self.state, &self.seen, &self.limits, self.now));
        let (lease, writes) =
            transitions::lease_unit(&self.state, &stage, &node, &policy, self.now).expect("it exists");
        if let Lease::Granted(record) = lease {
            self.leases.push(UnitLeaseRef {
                stage,
                unit: record.unit,
                lease_generation: record.lease_generation,
            });
        }
        self.apply(writes);
    }

    fn commit_unit(&mut self, pick: u8, pairs: u8) {
        if self.leases.is_empty() {
            return;
        }
        let lease = self.leases.remove(usize::from(pick) % self.leases.len());
        let before =
            self.state.stage(&lease.stage).and_then(|stage| stage.log.open_unit(lease.unit).cloned());
        let shard = ShardRecord {
            path: if pairs.is_multiple_of(5) { String::new() } else { transitions::shard_path(&lease) },
            pairs: u64::from(pairs % 5),
            size_bytes: 100,
            sha256: "a".repeat(64),
        };
        let commit = UnitCommit {
            lease: lease.clone(),
            shard,
            rejected: BTreeMap::new(),
            scores: Default::default(),
            exhausted: false,
        };
        match transitions::commit_unit(&self.state, commit) {
            Ok(committed) => {
                let newest = before.is_some_and(|unit| unit.lease_generation == lease.lease_generation);
                assert!(committed.done_already || newest, "an old lease committed");
                self.apply(committed.writes);
            }
            Err(RequestError::StaleLease { .. } | RequestError::TooLate { .. }) => {}
            Err(refused) => panic!("{refused}"),
        }
    }

    fn stand_still(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.seen.stood_still(self.now);
    }

    fn wait(&mut self, time: Duration) {
        self.wait_without(time, u8::MAX);
    }

    /// Time passes in which nothing is heard of one node, if there is one of that number.
    pub fn wait_without(&mut self, time: Duration, silent: u8) {
        self.now = self.now.plus(time);
        let heard = self.nodes.iter().zip(0u8..).filter(|(_, number)| *number != silent);
        for (node, _) in heard.filter(|(node, _)| node.connected) {
            self.seen.heard(&node.id, self.now);
        }
    }

    /// What picks the job.
    pub fn number_of(&self, job: &JobId) -> u8 {
        let at = self.submitted.values().position(|id| id == job).expect("it was submitted");
        u8::try_from(at).expect("few")
    }

    fn pick_job(&self, job: u8) -> Option<JobId> {
        let ids: Vec<&JobId> = self.submitted.values().collect();
        (!ids.is_empty()).then(|| ids[usize::from(job) % ids.len()].clone())
    }

    pub fn apply(&mut self, writes: Vec<Write>) {
        for write in writes {
            if let Write::Put(record) = &write {
                self.seen.learn(record, self.now);
            }
            self.state.apply(write).expect("nothing is written for what does not exist");
        }
    }

    /// Decides by what was kept of the decision before: as if all were looked at anew.
    pub fn decide(&mut self) -> Plan {
        let changed = self.state.take_changed();
        let plan = self.decider.decide(&self.state, &changed, &self.seen, &self.limits, self.now);
        let anew = decide(&self.state, &self.seen, &self.limits, self.now);
        assert_eq!(plan, anew, "what was kept decides something else");
        plan
    }

    /// Decides and carries out; deciding again has nothing to add.
    fn settle(&mut self) {
        let plan = self.decide();
        self.check_drains(&plan);
        let changes = plan.changes.clone();
        self.carry_out(plan);
        self.check_preemptions(&changes);
        let again = self.decide();
        assert!(again.writes.is_empty(), "deciding again writes {:?}", again.writes);
        assert!(again.sends.is_empty(), "deciding again sends {:?}", again.sends);
    }

    pub fn carry_out(&mut self, plan: Plan) {
        self.apply(plan.writes);
        self.waits = plan.waits;
        self.changes.extend(plan.changes);
        for send in plan.sends {
            self.seen.sent(&send, self.now);
            let node = self.nodes.iter_mut().find(|node| node.id == send.node && node.connected);
            if let Some(node) = node {
                node.inbox.push(send.command);
            }
        }
    }

    /// What drains gets nothing new, and handing over is no failure.
    fn check_drains(&self, plan: &Plan) {
        for write in &plan.writes {
            let Write::Put(Record::Attempt(record)) = write else { continue };
            let before =
                self.state.stage(&record.attempt.stage_ref()).and_then(|stage| stage.attempt.as_ref());
            if !record.is_active() {
                let handed_over = plan.changes.iter().any(|change| {
                    matches!(change, Change::AttemptEnded { attempt, handed_over: true, .. } if *attempt == record.attempt)
                });
                let failures = before.map_or(0, |before| before.failures_in_a_row);
                assert!(!handed_over || record.failures_in_a_row <= failures, "{} failed", record.attempt);
                continue;
            }
            for rank in &record.ranks {
                let drained = self.state.node(&rank.node).is_some_and(|node| node.drained);
                let leaves = self.seen.nodes.get(&rank.node).is_some_and(|view| view.draining);
                assert!(!drained && !leaves, "{} was placed on {}, which drains", record.attempt, rank.node);
            }
        }
    }

    /// Places are taken by higher classes alone, only if that makes a job fit, and no more of them than that takes.
    fn check_preemptions(&self, changes: &[Change]) {
        let victims: Vec<(&JobId, &JobId)> = changes
            .iter()
            .filter_map(|change| match change {
                Change::JobPreempted { job, by, .. } => Some((job, by)),
                _ => None,
            })
            .collect();
        let open: BTreeSet<&NodeId> = self
            .state
            .nodes()
            .filter(|record| record.kind == NodeKind::Trainer && !record.drained && record.cordon.is_none())
            .filter(|record| {
                self.seen.nodes.get(&record.id).is_some_and(|view| view.connected && !view.draining)
            })
            .map(|record| &record.id)
            .collect();
        // Slots there that a job holds for good, or until it has left.
        let held = |job: &Job, leaving: bool| {
            let leaves = matches!(job.record.state, JobState::Paused(_) | JobState::Preempting { .. });
            let attempts = job.stages.iter().filter_map(|stage| stage.active_attempt());
            let ranks = attempts.filter(|_| leaves == leaving).flat_map(|attempt| &attempt.ranks);
            ranks.filter(|rank| open.contains(&rank.node)).count()
        };
        let all = SLOTS as usize * open.len();
        let room = all - self.state.jobs().map(|job| held(job, false)).sum::<usize>();
        for (victim, by) in &victims {
            let job = |id: &JobId| self.state.job(id).expect("it is there");
            let (taker, holder) = (&job(by).record.spec, &job(victim).record.spec);
            let ahead = job(victim).stages.iter().filter_map(|stage| stage.active_attempt());
            let ahead = ahead.into_iter().any(|attempt| attempt.ahead_of.as_ref() == Some(*by));
            let higher = self.limits.quotas.classes.may_preempt(taker.priority, holder.priority);
            assert!(ahead || higher, "{victim} leaves for {by}");
            let least = taker.resources.min_gpus as usize;
            assert!(least <= room, "{victim} leaves for {by}, which does not fit even so");
            assert!(least > room - held(job(victim), true), "{victim} leaves for {by} for nothing");
        }
        // Whoever goes ahead of a job keeps it from nothing.
        for (id, wait) in self.waits.iter() {
            let PendingReason::Slots { wanted, .. } = wait else { continue };
            let ahead = |job: &&Job| {
                job.stages
                    .iter()
                    .filter_map(|stage| stage.active_attempt())
                    .any(|attempt| attempt.ahead_of.as_ref() == Some(id))
            };
            let after = self.state.jobs().filter(ahead).map(|job| held(job, false)).sum::<usize>();
            let is_active = |attempt: &AttemptRef| {
                let stage = self.state.stage(&attempt.stage_ref());
                stage
                    .and_then(|stage| stage.active_attempt())
                    .is_some_and(|active| active.attempt == *attempt)
            };
            let stopping =
                self.seen.nodes.values().flat_map(|view| &view.running).any(|attempt| !is_active(attempt));
            assert!(
                *wanted as usize > room + after || stopping,
                "{id} waits for those that went ahead of it"
            );
        }
    }

    fn check(&mut self) {
        let wrong = check_invariants(&self.state);
        assert!(wrong.is_empty(), "{wrong:?}");
        for job in self.state.jobs() {
            let id = &job.record.id;
            if let Some(end) = self.ended.get(id) {
                assert_eq!(*end, job.record.state, "{id} had ended");
            } else if job.record.state.is_terminal() {
                self.ended.insert(id.clone(), job.record.state.clone());
            }
            for stage in &job.stages {
                let known = self.generations.entry(stage.id.clone()).or_default();
                assert!(stage.generation() >= *known, "the generation of {} went back", stage.id);
                *known = stage.generation();
            }
        }
        assert_eq!(self.state.jobs().count(), self.submitted.len(), "a job was lost, or made twice");
    }

    /// From here on everything works: each job that can run must end.
    pub fn heal(&mut self) {
        for node in 0..self.nodes.len() {
            let number = u8::try_from(node).expect("few");
            self.act(Act::DrainNode { node: number, undo: true });
            if self.nodes[node].leaving {
                self.act(Act::KillNode { node: number });
            }
            self.start_node(node);
            self.connect(node);
        }
        for job in 0..4 {
            self.act(Act::Resume { job });
        }
        self.settle();
        for _round in 0..200 {
            if self.state.open_count() == 0 {
                return;
            }
            for job in 0..4u8 {
                for _ in 0..4 {
                    self.act(Act::Lease { job, node: 3 });
                }
                self.act(Act::Checkpoint { job, last: true });
            }
            while !self.leases.is_empty() {
                self.act(Act::CommitUnit { pick: 0, pairs: 4 });
            }
            for node in 0..self.nodes.len() {
                self.act(Act::Obey { node: u8::try_from(node).expect("few") });
            }
            // Leases that someone took and forgot run out.
            self.act(Act::Wait { seconds: 10 });
        }
        let stuck: Vec<_> = self.state.open_jobs().map(|job| job.record.clone()).collect();
        let waits = decide(&self.state, &self.seen, &self.limits, self.now).waits;
        // A gang that needs more slots than there are waits, and says so.
        for record in stuck {
            assert!(
                record.spec.resources.min_gpus > u32::try_from(TRAINERS).expect("few") * SLOTS,
                "{} is stuck in {:?}: {:?}",
                record.id,
                record.state,
                waits.get(&record.id).map(ToString::to_string)
            );
        }
    }
}
