//! What is measured. Labels come from fixed sets, never from ids.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::decide::{Limits, NodeCounts, benched_curators, count_nodes, curation_backlog_units};
use crescendo_core::ids::Timestamp;
use crescendo_core::notices;
use crescendo_core::observed::Observed;
use crescendo_core::records::NodeKind;
use crescendo_core::standings::{self, DeviceStanding};
use crescendo_core::state::ClusterState;
use crescendo_core::unreadable::{self, UnreadableRecords};
use crescendo_node::telemetry::metrics_registry::{
    Label, Metric, Registrar, bounded, counter, gauge, histogram, words,
};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::pending_time::WaitClock;

/// 0.1 ms to 6.5 s.
fn buckets() -> Vec<f64> {
    (0..17).map(|n| 0.0001 * f64::from(1u32 << n)).collect()
}

const STATES: [&str; 8] =
    ["queued", "placing", "running", "paused", "preempting", "succeeded", "failed", "cancelled"];
const SAMPLINGS: [&str; 2] = ["drawn", "failed"];
const WAITS: [&str; 17] = [
    "no_curator",
    "unreadable",
    "curators_busy",
    "pairs",
    "no_trainer",
    "start",
    "processor",
    "slots",
    "making_room",
    "behind",
    "backoff",
    "ranks",
    "paused",
    "preempted",
    "time_limit",
    "growing",
    "quota",
];
/// What is counted of a queue's slots.
const QUEUE_SLOTS: [&str; 4] = ["guaranteed", "used", "borrowed", "pending"];
const KINDS: [&str; 2] = ["trainer", "curator"];
const NODE_STATES: [&str; 3] = ["connected", "draining", "silent"];
const STORE_CALLS: [&str; 2] = ["snapshot", "txn"];
const STORE_OUTCOMES: [&str; 5] = ["ok", "conflict", "not_leader", "unknown", "error"];
const CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];
const QUEUE: Label =
    bounded("queue", "a queue of the tenants file, at most 256, or `none` for the jobs that are in no queue");
const METHOD: Label = bounded("method", "a call that there is, as `package.Service/Call`, or `unknown`");

/// `no_secret`: not tried, for want of the secret to sign with. `given_up`: not tried any more.
const WEBHOOK_OUTCOMES: [&str; 4] = ["delivered", "failed", "no_secret", "given_up"];

/// Every metric of the controller.
pub const CATALOGUE: &[Metric] = &[
    gauge("crescendo_leader", "", &[], "1 while this controller leads."),
    gauge("crescendo_jobs", "", &[words("state", &STATES)], "Jobs by state. Leader only."),
    gauge(
        "crescendo_jobs_waiting",
        "",
        &[words("reason", &WAITS)],
        "Open jobs that wait, by what they wait for. Leader only.",
    ),
    gauge(
        "crescendo_jobs_oldest_wait_seconds",
        "seconds",
        &[words("reason", &WAITS)],
        "How long the job that has waited longest for this reason without a break has waited; a new leader counts from \
         its start. Leader only.",
    ),
    gauge(
        "crescendo_queue_slots",
        "",
        &[QUEUE, words("what", &QUEUE_SLOTS)],
        "Slots of a queue, of all kinds of devices: those that it is sure of, holds, has borrowed of these, and those that its waiting jobs \
         want at least. Leader only.",
    ),
    gauge(
        "crescendo_queue_oldest_wait_seconds",
        "seconds",
        &[QUEUE],
        "Time since the job of the queue was submitted that holds no slots and was submitted first; 0 if there is none. Leader only.",
    ),
    gauge("crescendo_node_sessions", "", &[words("kind", &KINDS)], "Open sessions of nodes. Leader only."),
    gauge(
        "crescendo_nodes",
        "",
        &[words("kind", &KINDS), words("state", &NODE_STATES)],
        "Nodes that are known; draining ones get no new work, silent ones have no session or said nothing lately. Leader only.",
    ),
    gauge(
        "crescendo_curation_backlog_units",
        "",
        &[],
        "Units that open jobs would still need if no pair were rejected, of the stages that can be curated now. Leader \
         only.",
    ),
    histogram(
        "crescendo_store_call_seconds",
        "seconds",
        &[words("op", &STORE_CALLS), words("outcome", &STORE_OUTCOMES)],
        "Time of calls to the store.",
    ),
    histogram(
        "crescendo_rpc_seconds",
        "seconds",
        &[METHOD],
        "Time until a call is answered or its stream opens.",
    ),
    counter("crescendo_rpcs_total", "", &[METHOD, words("code", &CODES)], "Calls answered."),
    counter(
        "crescendo_rpcs_over_limit_total",
        "",
        &[],
        "Calls refused because too many were being worked on.",
    ),
    histogram("crescendo_decide_seconds", "seconds", &[], "Time to decide what to do next."),
    counter("crescendo_state_reloads_total", "", &[], "Times that the state was dropped and read again."),
    gauge(
        "crescendo_store_refuses_writes",
        "",
        &[],
        "1 while the leader's store takes no writes, as with a full disk: what would be written is refused.",
    ),
    gauge(
        "crescendo_state_records_read",
        "",
        &[],
        "Records read so far while a controller that leads reads the state, and then how many there were.",
    ),
    gauge(
        "crescendo_records_unreadable",
        "",
        &[words("kind", &unreadable::KINDS)],
        "Stored records that this version cannot read: each is kept as it is and halts what it belongs to. Leader only.",
    ),
    gauge(
        "crescendo_nodes_cordoned",
        "",
        &[],
        "Nodes that the controller itself gives no new work, because job after job has failed there alone or a GPU of theirs has \
         failed. Leader only.",
    ),
    gauge(
        "crescendo_curators_benched",
        "",
        &[],
        "Curators that are asked for no units of a stage for a while because they failed at several in a row, once a stage. \
         Leader only.",
    ),
    counter("crescendo_attempts_placed_total", "", &[], "Attempts to train a stage that were placed."),
    counter("crescendo_attempts_ended_total", "", &[], "Attempts that ended without a final checkpoint."),
    counter(
        "crescendo_attempts_backfilled_total",
        "",
        &[],
        "Attempts that were placed before their turn, in slots that are too few for the job that goes first.",
    ),
    counter("crescendo_jobs_preempted_total", "", &[], "Times that a job made room for one that goes first."),
    counter(
        "crescendo_gangs_hung_total",
        "",
        &[],
        "Attempts that were ended because a rank did not go on; explain names the rank.",
    ),
    gauge(
        "crescendo_stragglers",
        "",
        &[],
        "Ranks that have computed half as long again as their gang's median, or longer, for a minute. Leader only.",
    ),
    gauge(
        "crescendo_slots_stuck",
        "",
        &[],
        "Slots of trainers that are held by a rank that was killed and does not die. Leader only.",
    ),
    counter(
        "crescendo_reports_refused_total",
        "",
        &[],
        "Reports of nodes on attempts that they have no rank of; they change nothing.",
    ),
    counter(
        "crescendo_node_name_clashes_total",
        "",
        &[],
        "Sessions that were refused because another process of the same name was connected.",
    ),
    counter("crescendo_log_lines_total", "", &[], "Log lines received from nodes."),
    counter(
        "crescendo_leftovers_removed_total",
        "",
        &[],
        "Objects that no record names and that were removed from the object store.",
    ),
    counter("crescendo_leftovers_removed_bytes_total", "bytes", &[], "Their size."),
    counter(
        "crescendo_leftovers_failed_total",
        "",
        &[],
        "Objects that no record names and that could not be removed; each is tried again the next time.",
    ),
    gauge(
        "crescendo_jobs_being_deleted",
        "",
        &[],
        "Jobs that are being deleted and not gone yet. Leader only.",
    ),
    gauge(
        "crescendo_deletion_oldest_seconds",
        "seconds",
        &[],
        "Time since the deletion was asked for that is not done and was asked for first; 0 if there is none. Leader only.",
    ),
    counter(
        "crescendo_jobs_deleted_total",
        "",
        &[],
        "Jobs that were deleted, their files and their records.",
    ),
    counter(
        "crescendo_samplings_total",
        "",
        &[words("outcome", &SAMPLINGS)],
        "Times that a curator was to draw with a checkpoint: it has drawn, or it has failed, which is tried again a few times.",
    ),
    counter(
        "crescendo_deleted_objects_total",
        "",
        &[],
        "Objects of deleted jobs that were removed from the object store.",
    ),
    counter("crescendo_deleted_bytes_total", "bytes", &[], "Their size."),
    counter(
        "crescendo_deleted_objects_failed_total",
        "",
        &[],
        "Objects of deleted jobs that could not be removed; each is tried again until it is gone.",
    ),
    counter(
        "crescendo_webhooks_total",
        "",
        &[words("outcome", &WEBHOOK_OUTCOMES)],
        "Tries to tell webhooks of the end of a job: delivered, failed, not sent for want of the secret to sign with; and deliveries that \
         were given up after a day, for an answer 410, because the webhook left the tenants file, or for newer ends of the same job.",
    ),
    gauge(
        "crescendo_webhooks_waiting",
        "",
        &[],
        "Ends of jobs that a webhook has not been told yet, once a webhook. Leader only.",
    ),
    gauge(
        "crescendo_webhooks_oldest_wait_seconds",
        "seconds",
        &[],
        "Time since the oldest end of a job that some webhook has not been told yet; 0 if there is none. Leader only.",
    ),
];

/// The controller's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    jobs: IntGaugeVec,
    waiting: IntGaugeVec,
    oldest_wait: IntGaugeVec,
    queue_slots: IntGaugeVec,
    queue_oldest_wait: IntGaugeVec,
    sessions: IntGaugeVec,
    nodes: IntGaugeVec,
    backlog: IntGaugeVec,
    unreadable: IntGaugeVec,
    benched: IntGaugeVec,
    cordoned: IntGaugeVec,
    store_seconds: HistogramVec,
    rpc_seconds: HistogramVec,
    rpcs: IntCounterVec,
    pub rpcs_refused: IntCounter,
    pub decide_seconds: Histogram,
    leader: IntGauge,
    pub reloads: IntCounter,
    pub store_refuses: IntGauge,
    pub records_read: IntGauge,
    pub attempts_placed: IntCounter,
    pub attempts_ended: IntCounter,
    pub attempts_backfilled: IntCounter,
    pub jobs_preempted: IntCounter,
    pub gangs_hung: IntCounter,
    stragglers: IntGaugeVec,
    stuck: IntGaugeVec,
    pub reports_refused: IntCounter,
    pub name_clashes: IntCounter,
    pub log_lines: IntCounter,
    pub leftovers_removed: IntCounter,
    pub leftover_bytes_removed: IntCounter,
    pub leftovers_failed: IntCounter,
    being_deleted: IntGaugeVec,
    oldest_deletion: IntGaugeVec,
    pub jobs_deleted: IntCounter,
    samplings: IntCounterVec,
    pub deleted_objects: IntCounter,
    pub deleted_bytes: IntCounter,
    pub deleted_failed: IntCounter,
    webhooks: IntCounterVec,
    webhooks_waiting: IntGaugeVec,
    webhooks_oldest_wait: IntGaugeVec,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let mut registrar = Registrar::new(registry, CATALOGUE);
        let metrics = Self {
            jobs: registrar.gauges("crescendo_jobs")?,
            waiting: registrar.gauges("crescendo_jobs_waiting")?,
            oldest_wait: registrar.gauges("crescendo_jobs_oldest_wait_seconds")?,
            queue_slots: registrar.gauges("crescendo_queue_slots")?,
            queue_oldest_wait: registrar.gauges("crescendo_queue_oldest_wait_seconds")?,
            sessions: registrar.gauges("crescendo_node_sessions")?,
            nodes: registrar.gauges("crescendo_nodes")?,
            backlog: registrar.passing_gauge("crescendo_curation_backlog_units")?,
            unreadable: registrar.gauges("crescendo_records_unreadable")?,
            cordoned: registrar.passing_gauge("crescendo_nodes_cordoned")?,
            benched: registrar.passing_gauge("crescendo_curators_benched")?,
            store_seconds: registrar.histograms("crescendo_store_call_seconds", buckets())?,
            rpc_seconds: registrar.histograms("crescendo_rpc_seconds", buckets())?,
            rpcs: registrar.counters("crescendo_rpcs_total")?,
            rpcs_refused: registrar.counter("crescendo_rpcs_over_limit_total")?,
            decide_seconds: registrar.histogram("crescendo_decide_seconds", buckets())?,
            leader: registrar.gauge("crescendo_leader")?,
            reloads: registrar.counter("crescendo_state_reloads_total")?,
            store_refuses: registrar.gauge("crescendo_store_refuses_writes")?,
            records_read: registrar.gauge("crescendo_state_records_read")?,
            attempts_placed: registrar.counter("crescendo_attempts_placed_total")?,
            attempts_ended: registrar.counter("crescendo_attempts_ended_total")?,
            attempts_backfilled: registrar.counter("crescendo_attempts_backfilled_total")?,
            jobs_preempted: registrar.counter("crescendo_jobs_preempted_total")?,
            gangs_hung: registrar.counter("crescendo_gangs_hung_total")?,
            stragglers: registrar.passing_gauge("crescendo_stragglers")?,
            stuck: registrar.passing_gauge("crescendo_slots_stuck")?,
            reports_refused: registrar.counter("crescendo_reports_refused_total")?,
            name_clashes: registrar.counter("crescendo_node_name_clashes_total")?,
            log_lines: registrar.counter("crescendo_log_lines_total")?,
            leftovers_removed: registrar.counter("crescendo_leftovers_removed_total")?,
            leftover_bytes_removed: registrar.counter("crescendo_leftovers_removed_bytes_total")?,
            leftovers_failed: registrar.counter("crescendo_leftovers_failed_total")?,
            being_deleted: registrar.passing_gauge("crescendo_jobs_being_deleted")?,
            oldest_deletion: registrar.passing_gauge("crescendo_deletion_oldest_seconds")?,
            jobs_deleted: registrar.counter("crescendo_jobs_deleted_total")?,
            deleted_objects: registrar.counter("crescendo_deleted_objects_total")?,
            deleted_bytes: registrar.counter("crescendo_deleted_bytes_total")?,
            deleted_failed: registrar.counter("crescendo_deleted_objects_failed_total")?,
            webhooks: registrar.counters("crescendo_webhooks_total")?,
            samplings: registrar.counters("crescendo_samplings_total")?,
            webhooks_waiting: registrar.passing_gauge("crescendo_webhooks_waiting")?,
            webhooks_oldest_wait: registrar.passing_gauge("crescendo_webhooks_oldest_wait_seconds")?,
        };
        registrar.finish()?;
        Ok(metrics)
    }

    pub fn store_call(&self, op: &str, outcome: &str, time: Duration) {
        self.store_seconds.with_label_values(&[op, outcome]).observe(time.as_secs_f64());
    }

    pub fn rpc(&self, method: &str, code: &str, time: Duration) {
        self.rpc_seconds.with_label_values(&[method]).observe(time.as_secs_f64());
        self.rpcs.with_label_values(&[method, code]).inc();
    }

    /// `outcome` is one of `WEBHOOK_OUTCOMES`.
    pub fn samplings(&self, outcome: &str) {
        self.samplings.with_label_values(&[outcome]).inc();
    }

    pub fn webhook(&self, outcome: &str) {
        self.webhooks.with_label_values(&[outcome]).inc();
    }

    pub fn lead(&self) {
        self.leader.set(1);
    }

    /// Takes away what only a leader knows: numbers of the past would be taken for today's.
    pub fn stand_by(&self) {
        self.leader.set(0);
        self.store_refuses.set(0);
        for gauges in [
            &self.jobs,
            &self.waiting,
            &self.oldest_wait,
            &self.queue_slots,
            &self.queue_oldest_wait,
            &self.sessions,
            &self.nodes,
            &self.backlog,
            &self.unreadable,
            &self.benched,
            &self.cordoned,
            &self.stragglers,
            &self.stuck,
            &self.being_deleted,
            &self.oldest_deletion,
            &self.webhooks_waiting,
            &self.webhooks_oldest_wait,
        ] {
            gauges.reset();
        }
    }

    pub fn sessions(&self, trainers: i64, curators: i64) {
        self.sessions.with_label_values(&["trainer"]).set(trainers);
        self.sessions.with_label_values(&["curator"]).set(curators);
    }

    /// Stored records that cannot be read.
    pub fn unreadable(&self, records: &UnreadableRecords) {
        for (kind, count) in records.counts() {
            self.unreadable.with_label_values(&[kind]).set(whole(count));
        }
    }

    /// What the queues have. `now` is the time that records carry.
    fn queues(&self, state: &ClusterState, limits: &Limits, now: Timestamp) {
        // One that is gone from the file is gone from here.
        self.queue_slots.reset();
        self.queue_oldest_wait.reset();
        if limits.quotas.queues.by_name.is_empty() {
            return;
        }
        for queue in standings::queues(state, &limits.quotas, &Scope::Everything) {
            let name = queue.queue.map_or("none", |_| queue.name);
            let sum = |of: &dyn Fn(&DeviceStanding) -> u32| {
                queue.devices.values().map(|device| i64::from(of(device))).sum()
            };
            let counts: [i64; 4] = [
                sum(&|device| device.guaranteed),
                sum(&|device| device.used),
                sum(&|device| device.borrowed),
                i64::from(queue.pending),
            ];
            for (what, count) in QUEUE_SLOTS.into_iter().zip(counts) {
                self.queue_slots.with_label_values(&[name, what]).set(count);
            }
            let oldest = queue.oldest_waiting.map_or(0, |since| now.since(since).as_secs());
            let oldest = i64::try_from(oldest).unwrap_or(i64::MAX);
            self.queue_oldest_wait.with_label_values(&[name]).set(oldest);
        }
    }

    /// What the leader has, sees and lacks.
    pub fn cluster(
        &self,
        state: &ClusterState,
        seen: &Observed,
        waits: &WaitClock,
        limits: &Limits,
        now: Timestamp,
    ) {
        let mut by_state: BTreeMap<&str, usize> = STATES.iter().map(|name| (*name, 0)).collect();
        state.jobs().for_each(|job| *by_state.entry(job.record.state.name()).or_insert(0) += 1);
        by_state.into_iter().for_each(|(name, jobs)| self.jobs.with_label_values(&[name]).set(whole(jobs)));
        for reason in WAITS {
            let waiting = waits.waiting(reason, now);
            self.waiting.with_label_values(&[reason]).set(whole(waiting.jobs));
            let oldest = i64::try_from(waiting.oldest.as_secs()).unwrap_or(i64::MAX);
            self.oldest_wait.with_label_values(&[reason]).set(oldest);
        }
        self.queues(state, limits, seen.wall(now));
        for (kind, name) in [(NodeKind::Trainer, "trainer"), (NodeKind::Curator, "curator")] {
            let NodeCounts { open, draining, silent } = count_nodes(state, seen, limits, kind, now);
            for (count, reach) in [open, draining, silent].into_iter().zip(NODE_STATES) {
                self.nodes.with_label_values(&[name, reach]).set(whole(count));
            }
        }
        let cordoned = state.nodes().filter(|node| node.cordon.is_some()).count();
        self.cordoned.with_label_values::<&str>(&[]).set(whole(cordoned));
        let stragglers = seen.stragglers(state, limits, now);
        self.stragglers.with_label_values::<&str>(&[]).set(whole(stragglers));
        self.stuck.with_label_values::<&str>(&[]).set(whole(seen.stuck_slots()));
        self.being_deleted.with_label_values::<&str>(&[]).set(whole(state.deleting().count()));
        self.webhooks_waiting.with_label_values::<&str>(&[]).set(whole(notices::waiting_count(state)));
        let wall = seen.wall(now);
        let since = |at: Option<Timestamp>| {
            at.map_or(0, |at| i64::try_from(wall.since(at).as_secs()).unwrap_or(i64::MAX))
        };
        let oldest_deletion = state.deleting().map(|deletion| deletion.requested_at).min();
        self.oldest_deletion.with_label_values::<&str>(&[]).set(since(oldest_deletion));
        let oldest_end = notices::oldest_waiting(state);
        self.webhooks_oldest_wait.with_label_values::<&str>(&[]).set(since(oldest_end));
        let benched = benched_curators(state, seen, limits, now);
        self.benched.with_label_values::<&str>(&[]).set(whole(benched));
        let backlog = curation_backlog_units(state);
        self.backlog.with_label_values::<&str>(&[]).set(i64::try_from(backlog).unwrap_or(i64::MAX));
    }
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_node::telemetry::metrics_registry::{check_document, check_gathered};

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics are text")
    }

    #[test]
    fn the_document_has_every_metric() {
        let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let all = [CATALOGUE, crate::access::CATALOGUE, crate::access::audit::CATALOGUE].concat();
        check_document(&docs, "the controller", &all).unwrap();
    }

    #[test]
    fn what_only_a_leader_knows_goes_with_its_leadership() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        metrics.lead();
        metrics.sessions(2, 1);
        metrics.unreadable(&UnreadableRecords::default());
        metrics.store_call("txn", "ok", Duration::from_millis(2));
        metrics.rpc("crescendo.v1.JobService/GetJob", "not_found", Duration::from_millis(1));
        metrics.cluster(
            &ClusterState::default(),
            &Observed::new(Timestamp(0)),
            &WaitClock::default(),
            &Limits::default(),
            Timestamp(1),
        );
        assert_eq!(check_gathered(&registry, CATALOGUE), Vec::<String>::new());
        let leaders_own = [
            "crescendo_jobs{state=\"queued\"} 0",
            "crescendo_jobs_waiting{reason=\"slots\"} 0",
            "crescendo_jobs_oldest_wait_seconds{reason=\"slots\"} 0",
            "crescendo_node_sessions{kind=\"trainer\"} 2",
            "crescendo_nodes{kind=\"curator\",state=\"silent\"} 0",
            "crescendo_curation_backlog_units 0",
            "crescendo_curators_benched 0",
            "crescendo_nodes_cordoned 0",
            "crescendo_stragglers 0",
            "crescendo_slots_stuck 0",
            "crescendo_jobs_being_deleted 0",
            "crescendo_deletion_oldest_seconds 0",
            "crescendo_webhooks_waiting 0",
            "crescendo_webhooks_oldest_wait_seconds 0",
            "crescendo_records_unreadable{kind=\"units\"} 0",
        ];
        let led = text(&registry);
        for line in leaders_own {
            assert!(led.lines().any(|found| found == line), "{line} is not in:\n{led}");
        }
        metrics.stand_by();
        let standing_by = text(&registry);
        for line in leaders_own {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            let found = standing_by.lines().any(|found| found.split(['{', ' ']).next() == Some(name));
            assert!(!found, "{name} is in:\n{standing_by}");
        }
        assert!(standing_by.contains("crescendo_leader 0"), "{standing_by}");
        assert!(standing_by.contains("crescendo_store_call_seconds_count"), "history stays");
    }
}
