//! What is measured. Labels come from fixed sets, never from ids.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::decide::Wait;
use crescendo_core::ids::JobId;
use crescendo_core::state::ClusterState;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// 0.1 ms to 6.5 s.
fn buckets() -> Vec<f64> {
    (0..17).map(|n| 0.0001 * f64::from(1u32 << n)).collect()
}

/// The controller's metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    jobs: IntGaugeVec,
    waiting: IntGaugeVec,
    sessions: IntGaugeVec,
    store_seconds: HistogramVec,
    rpc_seconds: HistogramVec,
    rpcs: IntCounterVec,
    pub rpcs_refused: IntCounter,
    pub decide_seconds: Histogram,
    pub leader: IntGauge,
    pub reloads: IntCounter,
    pub attempts_placed: IntCounter,
    pub attempts_ended: IntCounter,
    pub log_lines: IntCounter,
}

const STATES: [&str; 8] =
    ["queued", "placing", "running", "paused", "preempting", "succeeded", "failed", "cancelled"];
const WAITS: [&str; 11] = [
    "no_curator",
    "curators_busy",
    "pairs",
    "no_trainer",
    "slots",
    "behind",
    "backoff",
    "ranks",
    "paused",
    "preempted",
    "quota",
];

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge_vec = |name: &str, help: &str, label: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let metric = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let seconds = |name: &str, help: &str, labels: &[&str]| -> Result<HistogramVec, prometheus::Error> {
            let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets()), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let rpcs =
            IntCounterVec::new(Opts::new("crescendo_rpcs_total", "calls answered"), &["method", "code"])?;
        registry.register(Box::new(rpcs.clone()))?;
        let decide_seconds = Histogram::with_opts(
            HistogramOpts::new("crescendo_decide_seconds", "time to decide what to do next")
                .buckets(buckets()),
        )?;
        registry.register(Box::new(decide_seconds.clone()))?;
        let leader = IntGauge::new("crescendo_leader", "1 while this controller leads")?;
        registry.register(Box::new(leader.clone()))?;
        Ok(Self {
            jobs: gauge_vec("crescendo_jobs", "jobs by state", "state")?,
            waiting: gauge_vec(
                "crescendo_jobs_waiting",
                "open jobs that wait, by what they wait for",
                "reason",
            )?,
            sessions: gauge_vec("crescendo_node_sessions", "open sessions of nodes", "kind")?,
            store_seconds: seconds(
                "crescendo_store_call_seconds",
                "time of calls to the store",
                &["op", "outcome"],
            )?,
            rpc_seconds: seconds(
                "crescendo_rpc_seconds",
                "time until a call is answered or its stream opens",
                &["method"],
            )?,
            rpcs,
            rpcs_refused: counter(
                "crescendo_rpcs_over_limit_total",
                "calls refused because too many were being worked on",
            )?,
            decide_seconds,
            leader,
            reloads: counter(
                "crescendo_state_reloads_total",
                "times that the state was dropped and read again",
            )?,
            attempts_placed: counter(
                "crescendo_attempts_placed_total",
                "attempts to train a stage that were placed",
            )?,
            attempts_ended: counter(
                "crescendo_attempts_ended_total",
                "attempts that ended without a final checkpoint",
            )?,
            log_lines: counter("crescendo_log_lines_total", "log lines received from nodes")?,
        })
    }

    pub fn store_call(&self, op: &str, outcome: &str, time: Duration) {
        self.store_seconds.with_label_values(&[op, outcome]).observe(time.as_secs_f64());
    }

    pub fn rpc(&self, method: &str, code: &str, time: Duration) {
        self.rpc_seconds.with_label_values(&[method]).observe(time.as_secs_f64());
        self.rpcs.with_label_values(&[method, code]).inc();
    }

    pub fn sessions(&self, trainers: i64, curators: i64) {
        self.sessions.with_label_values(&["trainer"]).set(trainers);
        self.sessions.with_label_values(&["curator"]).set(curators);
    }

    pub fn jobs(&self, state: &ClusterState, waits: &BTreeMap<JobId, Wait>) {
        let mut by_state: BTreeMap<&str, i64> = STATES.iter().map(|name| (*name, 0)).collect();
        state.jobs().for_each(|job| *by_state.entry(job.record.state.name()).or_insert(0) += 1);
        by_state.into_iter().for_each(|(name, count)| self.jobs.with_label_values(&[name]).set(count));
        let mut by_wait: BTreeMap<&str, i64> = WAITS.iter().map(|name| (*name, 0)).collect();
        waits.values().for_each(|wait| *by_wait.entry(wait.label()).or_insert(0) += 1);
        by_wait.into_iter().for_each(|(name, count)| self.waiting.with_label_values(&[name]).set(count));
    }
}
