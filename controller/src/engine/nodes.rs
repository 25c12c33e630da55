//! Sessions of nodes: opened, replaced, closed; reports in, commands out.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::decide::{Command, Send};
use crescendo_core::error::RequestError;
use crescendo_core::ids::{AttemptRef, Generation, NodeId, StageRef, Timestamp};
use crescendo_core::observed::{NodeHealth, NodeReport, Progress, Report};
use crescendo_core::precision;
use crescendo_core::records::{MAX_STORES, NodeKind, NodeRecord, Record, UnitRecord, UnitState, Write};
use crescendo_core::spec::JobSpec;
use crescendo_core::state::Job;
use crescendo_core::transitions;
use crescendo_core::under_way::UnitProgress;
use crescendo_proto::convert::{self, Introduction, LeftAttempt};
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_response::Message as Down;
use tokio::sync::mpsc;
use tonic::Status;

use crate::curves::Point;
use crate::engine::Engine;
use crate::engine::request::{Answer, OpenedSession, Reply, SessionId};
use crate::to_proto;

/// Commands that wait for a node at most; a node that takes none for so long is better off with a new session.
const OUTGOING: usize = 1024;

/// The job's trace, for the nodes that work on it.
fn trace_parent(job: &Job) -> String {
    job.record.trace.map(|trace| trace.to_string()).unwrap_or_default()
}

/// The spec for those who work on a stage, with the precision that is settled for it.
fn spec_json(job: &Job, index: usize) -> Option<Vec<u8>> {
    match precision::spec_of_stage(&job.record.spec, job.stages.get(index)?) {
        Some(spec) => serde_json::to_vec(&spec).ok(),
        None => Some(job.record.spec_json.to_vec()),
    }
}

/// A process that was heard of within so many heartbeats is there.
const MISSED_HEARTBEATS: u32 = 3;

/// A node that was told to stop something says within this that it is over.
const STOP_WITHIN: Duration = Duration::from_secs(60);

type Outgoing = mpsc::Sender<Result<v1::OpenSessionResponse, Status>>;

/// The newest session of each node.
#[derive(Default)]
pub(super) struct Sessions {
    last_id: u64,
    open: BTreeMap<NodeId, (SessionId, Outgoing)>,
}

impl Sessions {
    pub fn is_newest(&self, node: &NodeId, session: SessionId) -> bool {
        self.open.get(node).is_some_and(|(newest, _)| *newest == session)
    }

    fn replace(&mut self, node: NodeId, outgoing: Outgoing) -> SessionId {
        self.last_id += 1;
        let id = SessionId(self.last_id);
        if let Some((_, old)) = self.open.insert(node, (id, outgoing)) {
            // If there is no room, its stream just ends.
            let _ = old.try_send(Err(Status::aborted("a newer session of this node was opened")));
        }
        id
    }

    pub fn close_all(&mut self, why: &str) {
        for (_, (_, outgoing)) in std::mem::take(&mut self.open) {
            let _ = outgoing.try_send(Err(Status::unavailable(why)));
        }
    }
}

impl Engine {
    pub(super) fn open_session(
        &mut self,
        introduction: Introduction,
        now: Timestamp,
    ) -> Answer<OpenedSession> {
        let Introduction { mut record, running, curating, draining, left, health } = introduction;
        let config = self.around.config.clone();
        self.state.unreadable().check_node(&record.id)?;
        let known = self.state.node(&record.id);
        if known.is_none() && self.state.nodes().count() >= config.max_nodes {
            let what = format!("{} nodes are known, which is the limit", config.max_nodes);
            return Err(RequestError::Full { what, retry_after: config.queue.retry_after }.into());
        }
        self.check_single(&record, now)?;
        let known = self.state.node(&record.id);
        record.drained = known.is_some_and(|known| known.drained);
        record.cordon = known.and_then(|known| known.cordon.clone());
        let node = record.id.clone();
        let heartbeat_millis = u32::try_from(config.heartbeat.as_millis()).unwrap_or(u32::MAX);
        let (outgoing, receiver) = mpsc::channel(OUTGOING);
        let welcome = v1::Welcome {
            controller_id: self.around.controller_id.clone(),
            heartbeat_millis,
            object_store_url: self.around.config.object_store_url.clone(),
            cluster_id: self.state.cluster().map(|cluster| cluster.id.clone()).unwrap_or_default(),
            store_id: self.store_id().cloned().unwrap_or_default(),
        };
        // There is room: the channel is new.
        let _ = outgoing.try_send(Ok(v1::OpenSessionResponse { message: Some(Down::Welcome(welcome)) }));
        tracing::info!(
            %node, kind = ?record.kind, slots = record.slots, address = record.address, running = running.len(),
            curating = curating.len(), "node is connected"
        );
        let incarnation = record.incarnation.clone();
        if known != Some(&record) {
            self.write(Write::Put(Record::Node(record)));
        }
        let running = running.into_iter().collect();
        let curating = curating.into_iter().collect();
        self.observed.hello(node.clone(), incarnation, running, curating, now);
        self.note_health(&node, health);
        if draining {
            self.observed.drains(&node);
        }
        left.into_iter().for_each(|left| self.take_left(&node, left, now));
        self.node_changed(&node);
        let id = self.sessions.replace(node, outgoing);
        Ok(OpenedSession { id, outgoing: receiver })
    }

    /// An attempt has left with the node's last process, which a person had asked to stop. What it had saved counts, even if no
    /// controller was there to register it, and its end is no failure. A node says it again and again: what is known changes
    /// nothing.
    fn take_left(&mut self, node: &NodeId, left: LeftAttempt, now: Timestamp) {
        let LeftAttempt { attempt, checkpoint } = left;
        let stage = self.state.stage(&attempt.stage_ref());
        let newest =
            stage.and_then(|stage| stage.active_attempt()).filter(|newest| newest.attempt == attempt);
        if !newest.is_some_and(|newest| newest.runs_on(node)) {
            return;
        }
        if let Some(checkpoint) = checkpoint
            && let Err(refused) = self.commit_checkpoint(checkpoint, &Some(node.clone()), now)
        {
            tracing::warn!(%node, %attempt, %refused, "a checkpoint that was saved at the node's stop is not taken");
        }
        let phase = NodeReport::Drained { reason: format!("node {node} was stopped") };
        self.observed
            .report(Report { node: node.clone(), attempt, phase, progress: None, ranks: vec![] }, now);
    }

    /// What the mark in the object store's root says, once a node has said so.
    pub(super) fn store_id(&self) -> Option<&String> {
        self.state.cluster()?.stores.get(&self.around.config.object_store_url)
    }

    /// Remembers what the root's mark says, from the first node that says it; one that finds another does not see the same store.
    fn check_store_id(&mut self, health: &mut NodeHealth) {
        let Some(found) = &health.store_id else { return };
        let url = self.around.config.object_store_url.clone();
        match (self.store_id(), self.state.cluster()) {
            (Some(known), _) if known != found && health.store_fault.is_none() => {
                health.store_fault = Some(format!(
                    "{url}: its mark says {found}, and that of the other nodes {known}: is it the same place on every machine?"
                ));
            }
            (None, Some(cluster)) if cluster.stores.len() < MAX_STORES => {
                tracing::info!(url, store = found, "the object store's root is marked");
                let mut cluster = cluster.clone();
                cluster.stores.insert(url, found.clone());
                self.write(Write::Put(Record::Cluster(cluster)));
            }
            (Some(_), _) | (None, _) => {}
        }
    }

    pub(super) fn take_health(&mut self, node: &NodeId, session: SessionId, health: NodeHealth) {
        if self.sessions.is_newest(node, session) {
            self.note_health(node, health);
        }
    }

    /// Takes note of what is wrong with a node, and says in the log what is new.
    pub(super) fn note_health(&mut self, node: &NodeId, mut health: NodeHealth) {
        self.check_store_id(&mut health);
        let Some(before) = self.observed.nodes.get(node).map(|view| view.health.clone()) else { return };
        for (slot, what) in &health.stuck {
            if !before.stuck.contains_key(slot) {
                tracing::error!(%node, slot, what, "a rank was killed and does not die: its slot is held until it does");
            }
        }
        for slot in before.stuck.keys().filter(|slot| !health.stuck.contains_key(slot)) {
            tracing::info!(%node, slot, "a slot is free again");
        }
        if let Some(fault) =
            health.device_fault.as_ref().filter(|_| health.device_fault != before.device_fault)
        {
            tracing::error!(%node, fault, "a device of the node has failed");
        }
        if let Some(fault) = health.store_fault.as_ref().filter(|_| health.store_fault != before.store_fault)
        {
            tracing::error!(%node, fault, "the node cannot use the object store and gets no new work");
        }
        if health != before {
            self.node_changed(node);
        }
        self.observed.health(node, health);
    }

    /// Whether a node hands over through this controller.
    pub(super) fn is_left(&self) -> bool {
        self.observed.nodes.values().any(|view| view.connected && view.draining)
    }

    /// Two processes of one name would end each other's ranks for ever: the one that is there stays, as long as it is heard.
    fn check_single(&mut self, hello: &NodeRecord, now: Timestamp) -> Result<(), RequestError> {
        let Some(known) = self.state.node(&hello.id) else { return Ok(()) };
        let alive =
            self.around.config.heartbeat.saturating_mul(MISSED_HEARTBEATS).min(self.limits.silent_after);
        let is_there = match self.observed.nodes.get(&hello.id) {
            Some(view) => {
                view.incarnation != hello.incarnation && view.connected && now.since(view.last_heard) < alive
            }
            // Nobody of this name has spoken since this controller leads. The one whose ranks train may be on its way; one
            // that comes from its address has taken its place.
            None => {
                known.incarnation != hello.incarnation
                    && known.address != hello.address
                    && now.since(self.observed.since) < self.limits.silent_after
                    && self.state.trains_on(&hello.id)
            }
        };
        if !is_there {
            return Ok(());
        }
        self.around.metrics.name_clashes.inc();
        let there = known.address.clone();
        if self.observed.refuse_rival(&hello.id, &hello.incarnation, &hello.address, now) {
            tracing::error!(node = %hello.id, there, refused = hello.address, "a second process calls itself by this name and is refused; give one of them another --node-id");
        }
        let what = format!(
            "node {}: a process of this name is connected, from {there}; give one of them another --node-id",
            hello.id
        );
        Err(RequestError::Exists { what })
    }

    pub(super) fn close_session(&mut self, node: &NodeId, session: SessionId) {
        if self.sessions.is_newest(node, session) {
            tracing::warn!(%node, "node is disconnected");
            self.drop_session(node);
        }
    }

    /// A curator cannot take up a stage that it was assigned to.
    pub(super) fn assignment_refused(
        &mut self,
        node: &NodeId,
        session: SessionId,
        stage: &StageRef,
        reason: &str,
        now: Timestamp,
    ) {
        if self.sessions.is_newest(node, session) {
            tracing::warn!(%node, job = %stage.job, stage = %stage.stage, reason, "the curator cannot take the stage up; it is asked again after a while");
            self.observed.refuses(node, stage, reason, now);
            self.node_changed(node);
            self.progressed.insert(stage.job.clone());
        }
    }

    /// A node is about to leave.
    pub(super) fn node_drains(&mut self, node: &NodeId, session: SessionId) {
        if self.sessions.is_newest(node, session) {
            tracing::info!(%node, "node drains");
            self.observed.drains(node);
            self.node_changed(node);
        }
    }

    pub(super) fn drain_node(
        &mut self,
        node: &NodeId,
        undo: bool,
        scope: &Scope,
        now: Timestamp,
    ) -> Answer<v1::Node> {
        self.write_all(transitions::drain_node(&self.state, node, !undo)?);
        if undo {
            self.observed.forgive(node);
            self.node_changed(node);
        }
        tracing::info!(%node, undo, "node is to be drained");
        to_proto::one_node(node, &self.state, &self.observed, &self.limits, scope, now)
            .ok_or_else(|| RequestError::NotFound { what: format!("node {node}") }.into())
    }

    pub(super) fn forget_node(&mut self, node: &NodeId, reply: Reply<()>) {
        let connected = self.sessions.open.contains_key(node);
        let forgotten = transitions::forget_node(&self.state, node, connected).map(|writes| {
            self.write_all(writes);
            self.observed.forget(node);
            tracing::info!(%node, "node is forgotten");
        });
        self.hold(reply, forgotten.map_err(Into::into));
    }

    fn drop_session(&mut self, node: &NodeId) {
        self.sessions.open.remove(node);
        self.observed.disconnected(node);
        self.observed.under_way.gone(node);
        self.node_changed(node);
    }

    pub(super) fn count_sessions(&self) {
        let kinds =
            self.sessions.open.keys().filter_map(|node| self.state.node(node)).map(|record| record.kind);
        let (mut trainers, mut curators) = (0, 0);
        kinds.for_each(|kind| match kind {
            NodeKind::Trainer => trainers += 1,
            NodeKind::Curator => curators += 1,
        });
        self.around.metrics.sessions(trainers, curators);
    }

    pub(super) fn take_report(&mut self, session: SessionId, mut report: Report, now: Timestamp) {
        if !self.sessions.is_newest(&report.node, session) {
            return;
        }
        let Some(stage) = self.state.stage(&report.attempt.stage_ref()) else {
            tracing::debug!(node = %report.node, attempt = %report.attempt, "report on a stage that does not exist");
            return;
        };
        if report.attempt.generation > stage.generation() {
            tracing::warn!(node = %report.node, attempt = %report.attempt, "report on a generation that does not exist");
            return;
        }
        // An attempt is spoken for by the nodes that it was placed on. Of an older one it is heard that its slots are free.
        let newest = stage.attempt.as_ref().filter(|newest| newest.attempt == report.attempt);
        if newest.is_some_and(|newest| !newest.runs_on(&report.node)) {
            tracing::warn!(node = %report.node, attempt = %report.attempt, "a node reports on an attempt that it has no rank of; the report is ignored");
            self.around.metrics.reports_refused.inc();
            return;
        }
        // Only the node with rank 0 knows the numbers.
        let leads = stage
            .attempt
            .as_ref()
            .and_then(|attempt| attempt.ranks.first())
            .is_some_and(|rank| rank.node == report.node);
        if !leads {
            report.progress = None;
        }
        // A rank is spoken for by the node that it was placed on.
        let node = &report.node;
        let here = |rank: u32| {
            let placed =
                newest.zip(usize::try_from(rank).ok()).and_then(|(newest, rank)| newest.ranks.get(rank));
            placed.is_some_and(|placed| placed.node == *node)
        };
        report.ranks.retain(|word| here(word.rank));
        if let Some(progress) = &report.progress {
            self.draw(&report.attempt, progress);
        }
        self.progressed.insert(report.attempt.job.clone());
        // Steps alone are nothing to decide about.
        let before = self.observed.gang(&report.attempt).and_then(|gang| gang.nodes.get(&report.node));
        self.undecided |= before != Some(&report.phase);
        self.observed.report(report, now);
    }

    /// Adds what rank 0 reports to the curves of its stage.
    fn draw(&self, attempt: &AttemptRef, progress: &Progress) {
        let stage = attempt.stage_ref();
        let job = self.state.job(&attempt.job);
        let spec = job.and_then(|job| job.stage_spec(job.stage_index(stage.stage.as_str())?));
        let Some(batch) = spec.map(|spec| f64::from(spec.train.global_batch)) else { return };
        let Progress { step, loss, grad_norm, learning_rate, samples_per_sec, data_wait_fraction, .. } =
            *progress;
        let values = [loss, grad_norm, learning_rate, samples_per_sec / batch.max(1.0), data_wait_fraction];
        self.around.curves.push(&stage, attempt.generation, &Point { step, values });
    }

    /// Takes note of how far units are, of those that are still in the making, and of who waits to begin one.
    pub(super) fn look_at_units(&mut self, now: Timestamp) {
        for (node, stage, session, progress) in self.around.units.take() {
            let unit = self.state.stage(&stage).and_then(|stage| stage.log.open_unit(progress.unit));
            let holds =
                |unit: &UnitRecord| matches!(&unit.state, UnitState::Leased { node: by, .. } if *by == node);
            let waits_to_begin = progress.candidates.planned == 0
                && progress.waits_for.is_some()
                && self.observed.nodes.get(&node).is_some_and(|seen| seen.curating.contains(&stage));
            if self.sessions.is_newest(&node, session) && (waits_to_begin || unit.is_some_and(holds)) {
                self.undecided |= progress.waits_for.is_some();
                self.observed.under_way.put(&stage, &node, UnitProgress { at: now, ..progress });
                self.progressed.insert(stage.job);
            }
        }
    }

    /// Sends commands. A node whose channel is full or closed loses its session and comes back with a new one.
    pub(super) fn send_all(&mut self, sends: Vec<Send>, now: Timestamp) {
        for send in sends {
            let Some(message) = self.message(&send.command) else {
                tracing::error!(node = %send.node, command = ?send.command, "a command is not sent: its job or stage is gone");
                continue;
            };
            if !self.send(&send.node, message) {
                continue;
            }
            tracing::debug!(node = %send.node, command = ?send.command, "sent");
            if let Command::StartAttempt(attempt, _) = &send.command {
                let stage = self.state.stage(&attempt.stage_ref());
                let ranks = stage
                    .and_then(|stage| stage.attempt.as_ref())
                    .into_iter()
                    .flat_map(|newest| &newest.ranks);
                let here =
                    ranks.filter(|rank| rank.node == send.node).map(|rank| rank.device_index).collect();
                self.observed.holds(&send.node, attempt, here);
            }
            self.observed.sent(&send, now);
        }
    }

    pub(super) fn drop_unresponsive(&mut self, now: Timestamp) {
        for node in self.observed.unresponsive(STOP_WITHIN, now) {
            tracing::warn!(%node, "node does not say that it has stopped; its session is closed");
            self.drop_session(&node);
        }
    }

    /// Whether the node has a session that took the message. A session that did not is closed.
    pub(super) fn send(&mut self, node: &NodeId, message: Down) -> bool {
        let Some((_, outgoing)) = self.sessions.open.get(node) else { return false };
        let taken = outgoing.try_send(Ok(v1::OpenSessionResponse { message: Some(message) })).is_ok();
        if !taken {
            tracing::warn!(%node, "node takes no commands; its session is closed");
            self.drop_session(node);
        }
        taken
    }

    fn message(&self, command: &Command) -> Option<Down> {
        Some(match command {
            Command::StartAttempt(attempt, pairs_from) => {
                Down::StartAttempt(self.start_message(attempt, &pairs_from.curators)?)
            }
            Command::StopAttempt(attempt, reason) => Down::StopAttempt(v1::StopAttempt {
                attempt: Some(convert::attempt_message(attempt)),
                reason: reason.clone(),
                hung_ranks: self.hung_ranks(attempt),
            }),
            Command::DrainAttempt(attempt, reason) => Down::DrainAttempt(v1::DrainAttempt {
                attempt: Some(convert::attempt_message(attempt)),
                reason: reason.clone(),
            }),
            Command::RescueAttempt(attempt, lost) => {
                let node_ids: Vec<String> = lost.iter().map(ToString::to_string).collect();
                Down::RescueAttempt(v1::RescueAttempt {
                    attempt: Some(convert::attempt_message(attempt)),
                    reason: format!("the ranks wait for {}, of which nothing is heard", node_ids.join(", ")),
                    node_ids,
                })
            }
            Command::UpdateCurators(attempt, pairs_from) => Down::UpdateCurators(v1::UpdateCurators {
                attempt: Some(convert::attempt_message(attempt)),
                curator_addresses: pairs_from.curators.clone(),
                pair_marks: to_proto::mark_changes(&self.state, &attempt.stage_ref()),
            }),
            Command::AssignCuration(stage) => Down::AssignCuration(self.assign_message(stage)?),
            Command::ReleaseCuration(stage, reason) => Down::ReleaseCuration(v1::ReleaseCuration {
                stage: Some(convert::stage_message(stage)),
                reason: reason.clone(),
            }),
        })
    }

    fn hung_ranks(&self, attempt: &AttemptRef) -> Vec<u32> {
        let hang = self.observed.gang(attempt).and_then(|gang| gang.hang.as_ref());
        hang.map(|hang| hang.ranks.clone()).unwrap_or_default()
    }

    fn start_message(&self, attempt: &AttemptRef, curators: &[String]) -> Option<v1::StartAttempt> {
        let job = self.state.job(&attempt.job)?;
        let index = job.stage_index(attempt.stage.as_str())?;
        let record = job.stages.get(index)?.attempt.as_ref().filter(|record| record.attempt == *attempt)?;
        let first = record.ranks.first()?;
        Some(v1::StartAttempt {
            attempt: Some(convert::attempt_message(attempt)),
            stage_index: u32::try_from(index).ok()?,
            ranks: convert::ranks_message(&record.ranks),
            rendezvous_address: self.state.node(&first.node)?.address.clone(),
            resolved_spec_json: spec_json(job, index)?,
            resume_from: record.resume_from.as_ref().map(convert::checkpoint_message),
            init_from: record.init_from.as_ref().map(convert::checkpoint_message),
            curator_addresses: curators.to_vec(),
            object_store_url: self.around.config.object_store_url.clone(),
            reach: Some(self.reach_message(&job.record.spec)),
            trace_parent: trace_parent(job),
            pair_marks: to_proto::mark_changes(&self.state, &attempt.stage_ref()),
        })
    }

    /// What the job may reach as the operator has it now, whatever it was when it was submitted.
    fn reach_message(&self, spec: &JobSpec) -> v1::Reach {
        convert::reach_message(&self.limits.quotas.reach.of(&spec.tenant, spec, &self.state))
    }

    /// What a curator needs to draw with a checkpoint of the stage, as if it were assigned to it; none if the checkpoint is gone.
    pub(super) fn sampling_message(
        &self,
        stage: &StageRef,
        step: u64,
        generation: Generation,
    ) -> Option<(v1::AssignCuration, Option<v1::Checkpoint>)> {
        let known = &self.state.stage(stage)?.checkpoints;
        let checkpoint = match step {
            0 => None,
            step => Some(known.get(&(step, generation)).filter(|known| known.damaged.is_none())?),
        };
        Some((self.assign_message(stage)?, checkpoint.map(convert::checkpoint_message)))
    }

    fn assign_message(&self, stage: &StageRef) -> Option<v1::AssignCuration> {
        let job = self.state.job(&stage.job)?;
        let index = job.stage_index(stage.stage.as_str())?;
        Some(v1::AssignCuration {
            stage: Some(convert::stage_message(stage)),
            stage_index: u32::try_from(index).ok()?,
            resolved_spec_json: spec_json(job, index)?,
            object_store_url: self.around.config.object_store_url.clone(),
            // Without it the stage is still served; units of it that need the checkpoint fail and say so.
            source_checkpoint: job.source_checkpoint(index).ok().flatten().map(convert::checkpoint_message),
            reach: Some(self.reach_message(&job.record.spec)),
            trace_parent: trace_parent(job),
        })
    }
}
