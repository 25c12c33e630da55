//! What the controller sees of its nodes at the moment. None of it is durable: after a restart it is seen again, and
//! until then it is unknown, which is never read as failed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use crate::blame::NodeFailures;
use crate::cooldown::Cooldowns;
use crate::decide::{Limits, PairsFrom, Send};
use crate::ids::{AttemptRef, Incarnation, JobId, NodeId, StageRef, Timestamp};
use crate::learnt::Learnt;
use crate::ranks::{Hang, NODE_GAP, NODE_LOST_AFTER, RankViews, RankWord};
use crate::records::{AttemptRecord, FailureKind, RankPlacement, Record};
use crate::state::{ClusterState, Stage};
use crate::transitions::one_line;
use crate::under_way::UnitsUnderWay;

/// The nodes and gangs as seen since `since`. A clone shares what neither has changed since.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// When this controller began to look, or to look again; silence is never older than that.
    pub since: Timestamp,
    /// Milliseconds that wall time is ahead of the time that decisions are made by. Only what people are shown follows it.
    pub wall_ahead_millis: i64,
    pub nodes: BTreeMap<NodeId, NodeView>,
    pub gangs: BTreeMap<StageRef, Arc<GangView>>,
    /// Curators that cannot open a stage's source.
    pub cooldowns: Cooldowns,
    /// Where attempts have failed lately.
    pub failures: NodeFailures,
    /// How far the units are that curators work on.
    pub under_way: UnitsUnderWay,
    /// The newest hang of each stage, of the [`MAX_HANGS`] last ones.
    hangs: BTreeMap<StageRef, (AttemptRef, Timestamp, Hang)>,
    /// How the pairs of stages that are being made come; the [`MAX_TRENDS`] that were looked at last.
    trends: BTreeMap<StageRef, PairTrend>,
    learnt: Learnt,
    /// Second processes of a node's name, of [`MAX_RIVALS`] nodes at most.
    rivals: BTreeMap<NodeId, Rival>,
}

/// A process that calls itself by the name of another, and is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    incarnation: Incarnation,
    /// Where it says that it is reached.
    pub address: String,
    /// When it was last refused.
    at: Timestamp,
}

/// Nodes whose rivals are remembered.
const MAX_RIVALS: usize = 256;
/// One that was not refused for so long has gone.
const RIVAL_GONE_AFTER: Duration = Duration::from_secs(60);

/// Stages of which a hang is remembered.
const MAX_HANGS: usize = 1024;
/// How long the ranks of a gang may take to save what it had done before one of them died, beside it and elsewhere: they wait half a
/// minute for the one that saves.
pub const RESCUE_WITHIN: Duration = Duration::from_secs(45);
/// Stages whose pairs are counted over time.
const MAX_TRENDS: usize = 1024;
/// Counts that are kept of one stage.
const MAX_COUNTS: usize = 64;
/// Counts older than this say nothing about the present pace.
const TREND_WINDOW: Duration = Duration::from_secs(900);

/// Readable pairs of a stage over the last minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PairTrend {
    /// When there were how many, oldest first.
    counts: VecDeque<(Timestamp, u64)>,
}

/// A node through its newest session: when it was last heard of, which changes all the time, and what is known of it, which a
/// clone shares until one of them changes it.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    pub last_heard: Timestamp,
    facts: Arc<NodeFacts>,
}

impl NodeView {
    /// What the node is to others is the same: its process, session and health, and whether it is about to leave.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let ours = (&self.incarnation, self.connected, self.draining, &self.health, &self.forgiven_fault);
        let theirs =
            (&other.incarnation, other.connected, other.draining, &other.health, &other.forgiven_fault);
        ours == theirs
    }

    /// The very same facts: nothing but when the node was heard of has changed in between.
    pub(crate) fn shares_facts_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.facts, &other.facts)
    }
}

impl Deref for NodeView {
    type Target = NodeFacts;

    fn deref(&self) -> &NodeFacts {
        &self.facts
    }
}

impl DerefMut for NodeView {
    /// Makes the facts this view's own if another shares them.
    fn deref_mut(&mut self) -> &mut NodeFacts {
        Arc::make_mut(&mut self.facts)
    }
}

/// What is known of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    pub incarnation: Incarnation,
    /// Its session is open.
    pub connected: bool,
    /// Attempts that hold slots there: told in its hello or started since, and not reported as over.
    pub running: BTreeSet<AttemptRef>,
    pub curating: BTreeSet<StageRef>,
    /// Stages that it could not take up when it was last assigned to them.
    pub refused: BTreeMap<StageRef, Refusal>,
    /// It is about to leave, by its own word in this session.
    pub draining: bool,
    /// Sent in this session, and when first.
    pub stops_sent: BTreeMap<AttemptRef, Timestamp>,
    /// Slots of the attempts that were started there, as long as they run.
    pub slots: BTreeMap<AttemptRef, BTreeSet<u32>>,
    /// Where its attempts were told that their pairs come from.
    pub curators_sent: BTreeMap<AttemptRef, PairsFrom>,
    /// Attempts that it was told to save a checkpoint and leave.
    pub drains_sent: BTreeSet<AttemptRef>,
    /// Attempts that it was told to save what is left of, since a node of their gang is lost.
    pub rescues_sent: BTreeSet<AttemptRef>,
    pub health: NodeHealth,
    /// The fault of a device that a person knew of who has given it work again.
    pub forgiven_fault: Option<String>,
}

/// What is wrong with a node, by its own word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeHealth {
    /// Slots whose rank was killed and does not die, with what is known of it: they get no other.
    pub stuck: BTreeMap<u32, String>,
    /// What a GPU has come to since the node's process began.
    pub device_fault: Option<String>,
    /// Why it cannot use the object store, and so gets no new work.
    pub store_fault: Option<String>,
    /// What the mark in its object store's root says.
    pub store_id: Option<String>,
}

/// Why a curator has not taken up a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One line, without secrets.
    pub reason: String,
    /// How often in a row.
    pub times: u32,
    pub at: Timestamp,
}

impl Refusal {
    /// When it is asked again.
    pub fn until(&self, limits: &Limits) -> Timestamp {
        let factor = 1u32.checked_shl(self.times.saturating_sub(1)).unwrap_or(u32::MAX);
        self.at.plus(limits.cooldown.saturating_mul(factor).min(limits.max_cooldown))
    }
}

/// The ranks of a stage's attempt, as reported.
#[derive(Clone, Debug, PartialEq)]
pub struct GangView {
    pub attempt: AttemptRef,
    pub nodes: BTreeMap<NodeId, NodeReport>,
    pub progress: Progress,
    /// When the step counter last moved.
    pub stepped_at: Timestamp,
    pub ranks: RankViews,
    /// That it was found to hang; it is over then.
    pub hang: Option<Hang>,
    /// The nodes that its other ranks wait for, and of which nothing is heard.
    pub lost_nodes: BTreeSet<NodeId>,
    /// When the first rank was said to have died whose step others may save.
    pub rank_died_at: Option<Timestamp>,
}

/// What a node says of its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeFailure {
    /// It will come again on every try.
    Permanent,
    /// Trying again may help.
    Retryable,
    /// A rank on another node is gone; nothing is wrong here.
    PeerLost,
    /// The process of a rank is gone that stepped with others. Trying again may help, and ranks on other nodes may save what the gang
    /// had done before.
    RankDied,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeReport {
    Starting,
    Running,
    Succeeded,
    Failed {
        reason: String,
        kind: NodeFailure,
    },
    Stopped,
    /// What the gang had trained is saved, and it has left: one of its nodes drains.
    Drained {
        reason: String,
    },
}

/// Numbers that rank 0 reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    pub step: u64,
    pub loss: f64,
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Samples of the global batch per second.
    pub samples_per_sec: f64,
    /// 0 to 1.
    pub data_wait_fraction: f64,
    pub waiting_for: String,
    /// Times that the gang went round the readable log for want of new pairs.
    pub replay_passes: u64,
    /// Steps of the stage that updated nothing, because their loss or gradients were not finite.
    pub skipped_steps: u64,
}

impl Progress {
    /// How long so many steps take at the present pace; `None` if there is no pace.
    pub fn time_for(&self, steps: u64, global_batch: u32) -> Option<Duration> {
        #[allow(clippy::cast_precision_loss)] // an estimate
        let seconds = steps as f64 * f64::from(global_batch) / self.samples_per_sec;
        // No pace gives none, and so does one that is no number.
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// One report of a node on an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub node: NodeId,
    pub attempt: AttemptRef,
    pub phase: NodeReport,
    /// Only from the node that has rank 0.
    pub progress: Option<Progress>,
    /// What the ranks on the node say of themselves.
    pub ranks: Vec<RankWord>,
}

impl Observed {
    pub fn new(since: Timestamp) -> Self {
        Self {
            since,
            wall_ahead_millis: 0,
            nodes: BTreeMap::new(),
            gangs: BTreeMap::new(),
            cooldowns: Cooldowns::default(),
            failures: NodeFailures::default(),
            under_way: UnitsUnderWay::default(),
            hangs: BTreeMap::new(),
            trends: BTreeMap::new(),
            learnt: Learnt::default(),
            rivals: BTreeMap::new(),
        }
    }

    /// A node introduced itself: what it says replaces what was believed of it.
    pub fn hello(
        &mut self,
        node: NodeId,
        incarnation: Incarnation,
        running: BTreeSet<AttemptRef>,
        curating: BTreeSet<StageRef>,
        now: Timestamp,
    ) {
        self.heard(&node, now);
        if self.nodes.get(&node).is_some_and(|known| known.incarnation != incarnation) {
            self.cooldowns.lift_all_of(&node);
            self.under_way.gone(&node);
            self.failures.restarted(&node);
            let lost: Vec<StageRef> = self
                .nodes
                .get(&node)
                .into_iter()
                .flat_map(|known| &known.running)
                .filter(|attempt| !running.contains(*attempt))
                .map(AttemptRef::stage_ref)
                .collect();
            for stage in lost {
                self.failures.put(&node, &stage, "the node was restarted", false, true, now);
            }
        }
        if self.rivals.get(&node).is_some_and(|rival| rival.incarnation == incarnation) {
            self.rivals.remove(&node);
        }
        // Of those that still run it is remembered what they hold.
        let slots =
            self.nodes.get_mut(&node).map(|known| std::mem::take(&mut known.slots)).unwrap_or_default();
        let slots = slots.into_iter().filter(|(attempt, _)| running.contains(attempt)).collect();
        let known = self.nodes.get(&node).filter(|known| known.incarnation == incarnation);
        let forgiven_fault = known.and_then(|known| known.forgiven_fault.clone());
        let facts = NodeFacts {
            health: NodeHealth::default(),
            forgiven_fault,
            slots,
            incarnation,
            connected: true,
            running,
            curating,
            refused: BTreeMap::new(),
            draining: false,
            stops_sent: BTreeMap::new(),
            curators_sent: BTreeMap::new(),
            drains_sent: BTreeSet::new(),
            rescues_sent: BTreeSet::new(),
        };
        self.nodes.insert(node, NodeView { last_heard: now, facts: Arc::new(facts) });
    }

    /// A person trusts the node again, knowing what is wrong with it.
    pub fn forgive(&mut self, node: &NodeId) {
        self.failures.forgive(node);
        if let Some(view) = self.nodes.get_mut(node) {
            view.forgiven_fault = view.health.device_fault.clone();
        }
    }

    /// Slots of all nodes that are held by ranks that do not die.
    pub fn stuck_slots(&self) -> usize {
        self.nodes.values().map(|view| view.health.stuck.len()).sum()
    }

    /// The node has said how it is.
    pub fn health(&mut self, node: &NodeId, health: NodeHealth) {
        // A node says it again with every heartbeat.
        if let Some(view) = self.nodes.get_mut(node).filter(|view| view.health != health) {
            view.health = health;
        }
    }

    pub fn heard(&mut self, node: &NodeId, now: Timestamp) {
        let Some(view) = self.nodes.get_mut(node) else { return };
        let gap = now.since(view.last_heard);
        view.last_heard = view.last_heard.max(now);
        if gap >= NODE_GAP {
            // Those that were told of it, and no others, so that the rest stays shared.
            let of_node = self.gangs.values_mut().filter(|gang| gang.ranks.has_any_on(node));
            of_node.for_each(|gang| Arc::make_mut(gang).ranks.unheard(node, gap));
        }
    }

    /// The node has said that it is about to leave.
    pub fn drains(&mut self, node: &NodeId) {
        if let Some(view) = self.nodes.get_mut(node) {
            view.draining = true;
        }
    }

    /// The curator cannot take up a stage that it was assigned to.
    pub fn refuses(&mut self, node: &NodeId, stage: &StageRef, reason: &str, now: Timestamp) {
        let Some(view) = self.nodes.get_mut(node) else { return };
        if view.curating.remove(stage) {
            let times = view.refused.get(stage).map_or(0, |before| before.times).saturating_add(1);
            view.refused.insert(stage.clone(), Refusal { reason: one_line(reason), times, at: now });
        }
    }

    /// The node says that it cannot open the stage's source. What a process says that is not known is not kept: it could
    /// not be told from what comes after it.
    pub fn cannot_open(&mut self, stage: &StageRef, node: &NodeId, reason: &str, now: Timestamp) {
        self.failed_at(stage, node, FailureKind::Source, reason, now);
    }

    /// The node has given a unit of the stage back.
    pub fn failed_at(
        &mut self,
        stage: &StageRef,
        node: &NodeId,
        kind: FailureKind,
        reason: &str,
        now: Timestamp,
    ) {
        if self.nodes.contains_key(node) {
            self.cooldowns.put(stage, node, kind, reason, now);
        }
    }

    pub fn disconnected(&mut self, node: &NodeId) {
        if let Some(view) = self.nodes.get_mut(node) {
            view.connected = false;
        }
    }

    /// Takes over a report. Those of older generations only say that slots are free again.
    pub fn report(&mut self, report: Report, now: Timestamp) {
        self.heard(&report.node, now);
        if let Some(view) = self.nodes.get_mut(&report.node) {
            // A node stops older generations before it starts a newer one, and says only the newest of a stage.
            let (stage, generation) = (report.attempt.stage_ref(), report.attempt.generation);
            let is_over = |known: &AttemptRef| known.stage_ref() == stage && known.generation < generation;
            let runs = match report.phase {
                NodeReport::Starting | NodeReport::Running => true,
                NodeReport::Succeeded
                | NodeReport::Failed { .. }
                | NodeReport::Stopped
                | NodeReport::Drained { .. } => false,
            };
            // Most reports say of that what is known.
            if view.running.iter().any(is_over) {
                view.running.retain(|known| !is_over(known));
            }
            if runs && !view.running.contains(&report.attempt) {
                view.running.insert(report.attempt.clone());
            } else if !runs && view.running.contains(&report.attempt) {
                view.running.remove(&report.attempt);
            }
        }
        let stage = report.attempt.stage_ref();
        self.blame(&report, now);
        let begun = || Arc::new(GangView::new(report.attempt.clone(), now));
        let gang = Arc::make_mut(self.gangs.entry(stage).or_insert_with(begun));
        if report.attempt.generation < gang.attempt.generation {
            return;
        }
        if report.attempt.generation > gang.attempt.generation {
            *gang = GangView::new(report.attempt.clone(), now);
        }
        gang.ranks.take(&report.node, report.ranks, now);
        if let NodeReport::Failed { kind: NodeFailure::RankDied, .. } = &report.phase {
            gang.rank_died_at.get_or_insert(now);
        }
        gang.nodes.insert(report.node, report.phase);
        if let Some(progress) = report.progress {
            if progress.step != gang.progress.step {
                gang.stepped_at = now;
            }
            gang.progress = progress;
        }
    }

    /// Holds a failure against the node: the first of its gang, and each that says it is permanent. One whose peer is gone has
    /// done nothing. A node says the same again in every session.
    fn blame(&mut self, report: &Report, now: Timestamp) {
        let NodeReport::Failed { reason, kind } = &report.phase else { return };
        if *kind == NodeFailure::PeerLost {
            return;
        }
        let permanent = *kind == NodeFailure::Permanent;
        let stage = report.attempt.stage_ref();
        let gang = self.gangs.get(&stage);
        let of_newest = gang.filter(|gang| gang.attempt == report.attempt).map(|gang| &gang.nodes);
        let failed = |phase: &NodeReport| matches!(phase, NodeReport::Failed { kind, .. } if *kind != NodeFailure::PeerLost);
        let known = of_newest.and_then(|nodes| nodes.get(&report.node)).is_some_and(failed);
        // Whose an older attempt was is not known any more.
        if gang.is_some_and(|gang| gang.attempt.generation > report.attempt.generation) {
            return;
        }
        // What fails after a hang was found fails because of it.
        let hangs = gang.is_some_and(|gang| gang.attempt == report.attempt && gang.hang.is_some());
        let first = !hangs && !of_newest.is_some_and(|nodes| nodes.values().any(failed));
        if !known {
            self.failures.put(&report.node, &stage, reason, permanent, first, now);
        }
    }

    /// Looks for gangs that hang, and holds each against the node of the rank that does. What is returned is new.
    pub fn find_hangs(
        &mut self,
        state: &ClusterState,
        limits: &Limits,
        now: Timestamp,
    ) -> Vec<(AttemptRef, Hang)> {
        let mut found = Vec::new();
        for attempt in state.open_jobs().flat_map(|job| &job.stages).filter_map(Stage::active_attempt) {
            let stage = attempt.attempt.stage_ref();
            if !self.all_in_sight(attempt, now) {
                continue;
            }
            let Some(shared) = self.gangs.get_mut(&stage).filter(|gang| gang.attempt == attempt.attempt)
            else {
                continue;
            };
            let gang = &**shared;
            if gang.hang.is_some() || !gang.is_alive() {
                continue;
            }
            let Some(hang) = gang.ranks.hang(attempt.ranks.len(), &limits.hang, now) else { continue };
            Arc::make_mut(shared).hang = Some(hang.clone());
            if let Some(node) = &hang.node {
                self.failures.put(node, &stage, &hang.to_string(), false, true, now);
            }
            if self.hangs.len() >= MAX_HANGS && !self.hangs.contains_key(&stage) {
                let oldest =
                    self.hangs.iter().min_by_key(|(_, (_, at, _))| *at).map(|(stage, _)| stage.clone());
                oldest.and_then(|oldest| self.hangs.remove(&oldest));
            }
            self.hangs.insert(stage, (attempt.attempt.clone(), now, hang.clone()));
            found.push((attempt.attempt.clone(), hang));
        }
        found
    }

    /// Looks for gangs that wait for nodes of which nothing is heard any more, and holds that against those. What is returned is new.
    pub fn find_lost_nodes(
        &mut self,
        state: &ClusterState,
        now: Timestamp,
    ) -> Vec<(AttemptRef, BTreeSet<NodeId>)> {
        let mut found = Vec::new();
        // As it is most of the time: then no gang is looked at.
        if self.nodes.values().all(|view| now.since(view.last_heard) < NODE_LOST_AFTER) {
            return found;
        }
        for attempt in state.open_jobs().flat_map(|job| &job.stages).filter_map(Stage::active_attempt) {
            let gang = self.gang(&attempt.attempt).filter(|gang| gang.lost_nodes.is_empty());
            let Some(lost) = gang.and_then(|gang| self.lost_nodes(attempt, gang, now)) else { continue };
            let stage = attempt.attempt.stage_ref();
            if let Some(gang) = self.gangs.get_mut(&stage) {
                Arc::make_mut(gang).lost_nodes.clone_from(&lost);
            }
            for node in &lost {
                let reason = "nothing was heard of the node, and its gang waited for it";
                self.failures.put(node, &stage, reason, false, true, now);
            }
            found.push((attempt.attempt.clone(), lost));
        }
        found
    }

    /// The nodes of the gang that are out of sight, if all that the others do is to wait for them. One that this controller has never
    /// heard may be on its way.
    fn lost_nodes(
        &self,
        attempt: &AttemptRecord,
        gang: &GangView,
        now: Timestamp,
    ) -> Option<BTreeSet<NodeId>> {
        let unheard = |node: &NodeId| self.nodes.get(node).map(|view| now.since(view.last_heard));
        let nodes = attempt.by_node().filter_map(<[RankPlacement]>::first).map(|rank| &rank.node);
        let silent = nodes.filter(|node| unheard(node).is_none_or(|unheard| unheard >= NODE_GAP));
        let lost: BTreeSet<NodeId> = silent.cloned().collect();
        let are_lost =
            lost.iter().all(|node| unheard(node).is_some_and(|unheard| unheard >= NODE_LOST_AFTER));
        let waits = !lost.is_empty() && are_lost && gang.hang.is_none() && gang.ranks.wait_for(&lost, now);
        waits.then_some(lost)
    }

    /// The newest hang of a stage, if this controller has seen one.
    pub fn last_hang(&self, stage: &StageRef) -> Option<(&AttemptRef, Timestamp, &Hang)> {
        self.hangs.get(stage).map(|(attempt, at, hang)| (attempt, *at, hang))
    }

    /// Ranks of all gangs that are slower than theirs.
    pub fn stragglers(&self, state: &ClusterState, limits: &Limits, now: Timestamp) -> usize {
        let active = state.open_jobs().flat_map(|job| &job.stages).filter_map(Stage::active_attempt);
        let gangs = active.filter_map(|attempt| self.gang(&attempt.attempt));
        gangs.map(|gang| gang.ranks.stragglers(&limits.hang, now).len()).sum()
    }

    /// Every node of the gang was heard of just now.
    fn all_in_sight(&self, attempt: &AttemptRecord, now: Timestamp) -> bool {
        attempt.ranks.iter().all(|rank| {
            let view = self.nodes.get(&rank.node);
            view.is_some_and(|view| view.connected && now.since(view.last_heard) < NODE_GAP)
        })
    }

    /// An attempt is started on these slots of the node.
    pub fn holds(&mut self, node: &NodeId, attempt: &AttemptRef, slots: BTreeSet<u32>) {
        if let Some(view) = self.nodes.get_mut(node) {
            let view = &mut **view;
            let running = &view.running;
            view.slots.retain(|known, _| running.contains(known));
            view.slots.insert(attempt.clone(), slots);
        }
    }

    /// A second process of the node's name is refused. Whether that is news.
    pub fn refuse_rival(
        &mut self,
        node: &NodeId,
        incarnation: &Incarnation,
        address: &str,
        now: Timestamp,
    ) -> bool {
        let is_known = self.rival(node, now).is_some_and(|known| known.incarnation == *incarnation);
        self.rivals.retain(|_, rival| now.since(rival.at) < RIVAL_GONE_AFTER);
        if self.rivals.len() < MAX_RIVALS || self.rivals.contains_key(node) {
            let rival = Rival { incarnation: incarnation.clone(), address: address.to_owned(), at: now };
            self.rivals.insert(node.clone(), rival);
        }
        !is_known
    }

    /// The second process of the node's name, if one was refused lately.
    pub fn rival(&self, node: &NodeId, now: Timestamp) -> Option<&Rival> {
        self.rivals.get(node).filter(|rival| now.since(rival.at) < RIVAL_GONE_AFTER)
    }

    /// Forgets a node that is gone for good.
    pub fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
        self.cooldowns.lift_all_of(node);
        self.failures.forgive(node);
        self.under_way.gone(node);
    }

    /// The controller, or its whole machine, stood still until `now`. Nothing was heard in between, which says nothing of the
    /// nodes: they are listened to, for as long as a controller that has just begun listens, before they are judged.
    pub fn stood_still(&mut self, now: Timestamp) {
        self.since = now;
        self.learnt.stood_still(now);
        for view in self.nodes.values_mut() {
            view.last_heard = now;
            view.stops_sent.values_mut().for_each(|sent| *sent = now);
        }
        self.gangs.values_mut().map(Arc::make_mut).for_each(|gang| {
            gang.stepped_at = now;
            gang.ranks.times_mut().for_each(|at| *at = now);
        });
    }

    /// The time until which what runs is counted: a wall clock that is set forward adds nothing to it.
    pub fn counted(&self, now: Timestamp) -> Timestamp {
        self.wall(now).min(now)
    }

    /// The wall time for what people are shown.
    pub fn wall(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0.saturating_add_signed(self.wall_ahead_millis))
    }

    /// A record is written: what is decided by time counts from now.
    pub fn learn(&mut self, record: &Record, now: Timestamp) {
        self.learnt.take(record, now);
    }

    /// When the attempt was placed, as far as this controller knows.
    pub fn began(&self, attempt: &AttemptRef) -> Timestamp {
        self.learnt.began(attempt).unwrap_or(self.since)
    }

    /// When it ended, if it has.
    pub fn ended(&self, attempt: &AttemptRef) -> Timestamp {
        self.learnt.ended(attempt).unwrap_or(self.since)
    }

    /// When the final checkpoint that it wrote was registered, if there is one.
    pub fn finished(&self, attempt: &AttemptRef) -> Timestamp {
        self.learnt.finished(attempt).unwrap_or(self.since)
    }

    /// Since when the job is to give up its slots, as far as this controller knows.
    pub fn held_since(&self, job: &JobId) -> Timestamp {
        self.learnt.held(job).unwrap_or(self.since)
    }

    /// It has become another number once times that were learnt are not known any more.
    pub(crate) fn forgotten_times(&self) -> u64 {
        self.learnt.forgotten()
    }

    /// Remembers what was sent, so that it is sent once a session.
    pub fn sent(&mut self, send: &Send, now: Timestamp) {
        let Some(view) = self.nodes.get_mut(&send.node) else { return };
        match &send.command {
            crate::decide::Command::StartAttempt(attempt, pairs_from) => {
                view.running.insert(attempt.clone());
                view.curators_sent.insert(attempt.clone(), pairs_from.clone());
            }
            crate::decide::Command::StopAttempt(attempt, _) => {
                view.stops_sent.entry(attempt.clone()).or_insert(now);
            }
            crate::decide::Command::DrainAttempt(attempt, _) => {
                view.drains_sent.insert(attempt.clone());
            }
            crate::decide::Command::RescueAttempt(attempt, _) => {
                view.rescues_sent.insert(attempt.clone());
            }
            crate::decide::Command::UpdateCurators(attempt, pairs_from) => {
                view.curators_sent.insert(attempt.clone(), pairs_from.clone());
            }
            crate::decide::Command::AssignCuration(stage) => {
                view.curating.insert(stage.clone());
            }
            crate::decide::Command::ReleaseCuration(stage, _) => {
                view.curating.remove(stage);
            }
        }
    }

    /// Connected nodes that were told to stop something longer than `limit` ago and have not said that it is over. What
    /// they say in a new session will show how it stands.
    pub fn unresponsive(&self, limit: Duration, now: Timestamp) -> Vec<NodeId> {
        let is_unresponsive = |view: &NodeView| {
            let overdue = |(attempt, sent): (&AttemptRef, &Timestamp)| {
                view.running.contains(attempt) && now.since(*sent) >= limit
            };
            view.connected && view.stops_sent.iter().any(overdue)
        };
        self.nodes.iter().filter(|(_, view)| is_unresponsive(view)).map(|(node, _)| node.clone()).collect()
    }

    /// Takes note of how many pairs of a stage can be read now.
    pub fn pairs_counted(&mut self, stage: &StageRef, pairs: u64, now: Timestamp) {
        if !self.trends.contains_key(stage) && self.trends.len() >= MAX_TRENDS {
            let newest = |trend: &PairTrend| trend.counts.back().map(|(at, _)| *at);
            let oldest =
                self.trends.iter().min_by_key(|(_, trend)| newest(trend)).map(|(stage, _)| stage.clone());
            oldest.and_then(|oldest| self.trends.remove(&oldest));
        }
        let trend = self.trends.entry(stage.clone()).or_default();
        if trend.counts.back().is_none_or(|(_, before)| *before != pairs) {
            trend.counts.push_back((now, pairs));
        }
        while trend.counts.len() > MAX_COUNTS
            || trend.counts.len() > 2
                && trend.counts.get(1).is_some_and(|(at, _)| now.since(*at) > TREND_WINDOW)
        {
            trend.counts.pop_front();
        }
    }

    /// Readable pairs that have been added a second, over the last minutes; 0 if none, or if too little was seen.
    #[allow(clippy::cast_precision_loss)] // an estimate
    pub fn pairs_per_sec(&self, stage: &StageRef, now: Timestamp) -> f64 {
        let Some(counts) = self.trends.get(stage).map(|trend| &trend.counts) else { return 0.0 };
        let (Some((from, before)), Some((_, after))) = (counts.front(), counts.back()) else { return 0.0 };
        let passed = now.since(*from).as_secs_f64();
        if passed > 0.0 { after.saturating_sub(*before) as f64 / passed } else { 0.0 }
    }

    /// When the number of readable pairs last changed, or was first looked at.
    pub fn pairs_watched_since(&self, stage: &StageRef) -> Option<Timestamp> {
        self.trends.get(stage)?.counts.back().map(|(at, _)| *at)
    }

    /// The gang of exactly this attempt, if any of it was seen.
    pub fn gang(&self, attempt: &AttemptRef) -> Option<&GangView> {
        self.gangs.get(&attempt.stage_ref()).map(Arc::as_ref).filter(|gang| gang.attempt == *attempt)
    }
}

impl GangView {
    fn new(attempt: AttemptRef, now: Timestamp) -> Self {
        Self {
            attempt,
            nodes: BTreeMap::new(),
            progress: Progress::default(),
            stepped_at: now,
            ranks: RankViews::default(),
            hang: None,
            lost_nodes: BTreeSet::new(),
            rank_died_at: None,
        }
    }

    /// Whether ranks on some of these nodes may be saving what the gang had done before a rank died: no other end was told, and it has not
    /// taken them too long.
    pub fn is_being_rescued<'a>(&self, mut nodes: impl Iterator<Item = &'a NodeId>, now: Timestamp) -> bool {
        let of_death = |report: &NodeReport| match report {
            NodeReport::Starting | NodeReport::Running => true,
            NodeReport::Failed { kind, .. } => *kind == NodeFailure::RankDied,
            NodeReport::Succeeded | NodeReport::Stopped | NodeReport::Drained { .. } => false,
        };
        self.rank_died_at.is_some_and(|at| now.since(at) < RESCUE_WITHIN)
            && self.nodes.values().all(of_death)
            && nodes.any(|node| self.nodes.get(node) == Some(&NodeReport::Running))
    }

    /// Whether it has come no further than by steps.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let Self { attempt, nodes, hang, lost_nodes, rank_died_at, progress: _, stepped_at: _, ranks: _ } =
            self;
        *attempt == other.attempt
            && *nodes == other.nodes
            && *hang == other.hang
            && *lost_nodes == other.lost_nodes
            && *rank_died_at == other.rank_died_at
    }

    /// Some rank has been started.
    pub fn is_alive(&self) -> bool {
        self.nodes.values().any(|report| match report {
            NodeReport::Starting | NodeReport::Running | NodeReport::Succeeded => true,
            NodeReport::Failed { .. } | NodeReport::Stopped | NodeReport::Drained { .. } => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{JobId, StageName};

    fn stage(job: &str) -> StageRef {
        StageRef { job: JobId::parse(job).expect("valid"), stage: StageName::parse("s").expect("valid") }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp(seconds * 1000)
    }

    #[test]
    fn the_pace_of_pairs_is_that_of_the_last_minutes_and_falls_when_none_come() {
        let mut seen = Observed::new(at(0));
        assert_eq!(seen.pairs_per_sec(&stage("a"), at(1)), 0.0);
        for n in 0..=10 {
            seen.pairs_counted(&stage("a"), n * 8, at(n * 10));
        }
        assert_eq!(seen.pairs_per_sec(&stage("a"), at(100)), 0.8);
        assert_eq!(seen.pairs_per_sec(&stage("a"), at(200)), 0.4);
        assert_eq!(seen.pairs_watched_since(&stage("a")), Some(at(100)));
        // A clock that goes back gives no pace.
        assert_eq!(seen.pairs_per_sec(&stage("a"), at(0)), 0.0);
    }

    #[test]
    fn trends_are_bounded() {
        let mut seen = Observed::new(at(0));
        for n in 0..2000 {
            seen.pairs_counted(&stage("a"), n, at(n));
            seen.pairs_counted(&stage(&format!("b{n}")), n, at(n));
        }
        assert_eq!(seen.trends.len(), MAX_TRENDS);
        let counts = &seen.trends[&stage("a")].counts;
        assert!(counts.len() <= MAX_COUNTS, "{}", counts.len());
        assert_eq!(seen.pairs_per_sec(&stage("a"), at(2000)).round(), 1.0);
    }
}
