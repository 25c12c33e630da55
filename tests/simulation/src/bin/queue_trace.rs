//! Runs one trace of jobs through the real decisions under several policies of the queue, in simulated time, and prints the table
//! of docs/scheduling.md.
//!
//! The trace has the shape of Microsoft's Philly trace as the authors of Gavel published it for their simulations (Narayanan and
//! others, OSDI 2020, section 7.1; `scheduler/utils.py` of their repository): 70 % of jobs on one GPU, 10 % on 2, 15 % on 4, 5 % on
//! 8; four in five run for 10^U(1.5, 3) minutes, the others for 10^U(3, 4); arrivals are Poisson. One job in ten is urgent, and
//! one in five is of a small team, which is ours.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use crescendo_core::classes::{PriorityClass, PriorityClasses};
use crescendo_core::decide::{Change, Command, Limits, decide};
use crescendo_core::ids::{AttemptRef, JobId, NodeId, RequestId, Timestamp};
use crescendo_core::invariants::check_invariants;
use crescendo_core::observed::{NodeReport, Observed, Progress, Report};
use crescendo_core::queues::{Queue, Queues};
use crescendo_core::quotas::{QueueOrder, Quotas};
use crescendo_core::records::{CheckpointRecord, FileRecord, NodeKind, Record, Write};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_core::transitions;
use crescendo_simulation::fixtures;
use crescendo_simulation::rng::Rng;

/// Steps of every job, whatever its length.
const STEPS: u64 = 100_000;
/// Milliseconds from the placing of a gang to its first step: weights are loaded.
const LOAD_MILLIS: u64 = 60_000;
/// Milliseconds that a gang takes to save and leave.
const SAVE_MILLIS: u64 = 20_000;
const URGENT: i32 = 100;

/// Runs one trace of jobs under several policies of the queue
#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 1000)]
    jobs: usize,
    /// Nodes of 8 GPUs
    #[arg(long, default_value_t = 8)]
    nodes: usize,
    /// GPU-seconds that arrive, as a share of those that there are
    #[arg(long, default_value_t = 0.95)]
    load: f64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A job of the trace.
#[derive(Clone, Debug)]
struct TraceJob {
    arrives: u64,
    gpus: u32,
    /// Milliseconds that it computes.
    works: u64,
    urgent: bool,
    small_team: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    FirstCome,
    Backfill,
    Preemption,
    /// With that, the small team is sure of a quarter of the GPUs, and the others of the rest.
    Queues,
    /// With preemption, gangs may be smaller.
    Elastic,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(usize),
    Done(AttemptRef),
    Saved(AttemptRef),
    /// Time has passed, which is all that some decisions wait for.
    Look,
}

/// A gang that runs.
#[derive(Clone, Debug)]
struct Gang {
    job: usize,
    placed_at: u64,
    /// Its ranks.
    ranks: u32,
    leaves: bool,
}

/// What a policy came to.
#[derive(Debug, Default)]
struct Outcome {
    makespan: u64,
    /// Milliseconds until the first placing, by job.
    waits: BTreeMap<usize, u64>,
    /// GPU-milliseconds of work until the last arrival.
    worked_until_last: u64,
    /// GPU-milliseconds that slots were held for anything else than work.
    lost: u64,
    preemptions: usize,
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // drawn numbers
fn trace(args: &Args) -> Vec<TraceJob> {
    let drawn = |mut rng: Rng| move || (rng.number() >> 11) as f64 / (1u64 << 53) as f64;
    let (mut unit, mut teams) = (drawn(Rng::new(args.seed)), drawn(Rng::new(!args.seed)));
    let mut jobs: Vec<TraceJob> = (0..args.jobs)
        .map(|_| {
            let size = unit();
            let gpus = match size {
                size if size < 0.7 => 1,
                size if size < 0.8 => 2,
                size if size < 0.95 => 4,
                _ => 8,
            };
            let (least, span) = if unit() < 0.8 { (1.5, 1.5) } else { (3.0, 1.0) };
            let minutes = 10f64.powf(least + span * unit());
            let urgent = unit() < 0.1;
            let (works, small_team) = ((minutes * 60_000.0) as u64, teams() < 0.2);
            TraceJob { arrives: 0, gpus, works, urgent, small_team }
        })
        .collect();
    let asked: f64 = jobs.iter().map(|job| f64::from(job.gpus) * job.works as f64).sum();
    let between = asked / args.jobs as f64 / (args.load * 8.0 * args.nodes as f64);
    let mut now = 0.0;
    for job in &mut jobs {
        job.arrives = now as u64;
        now += -between * (1.0 - unit()).ln();
    }
    jobs
}

struct World<'t> {
    trace: &'t [TraceJob],
    state: ClusterState,
    seen: Observed,
    limits: Limits,
    now: u64,
    events: BinaryHeap<std::cmp::Reverse<(u64, u64, Event)>>,
    count: u64,
    ids: BTreeMap<JobId, usize>,
    gangs: BTreeMap<AttemptRef, Gang>,
    /// Milliseconds of work that are left, by job.
    left: Vec<u64>,
    outcome: Outcome,
}

impl<'t> World<'t> {
    fn new(trace: &'t [TraceJob], nodes: usize, policy: Policy) -> Result<Self> {
        let class = |name: &str| PriorityClass { name: name.to_owned(), preempts: true, preemptible: true };
        let classes = match policy {
            Policy::Preemption | Policy::Queues | Policy::Elastic => {
                BTreeMap::from([(0, class("normal")), (URGENT, class("urgent"))])
            }
            Policy::FirstCome | Policy::Backfill => BTreeMap::new(),
        };
        let order = if policy == Policy::FirstCome { QueueOrder::Strict } else { QueueOrder::Backfill };
        let queues =
            if policy == Policy::Queues { queues(8 * u32::try_from(nodes)?) } else { Queues::default() };
        let quotas = Quotas { classes: PriorityClasses::new(classes), order, queues, ..Quotas::default() };
        let mut world = Self {
            trace,
            state: ClusterState::default(),
            seen: Observed::new(Timestamp(0)),
            limits: Limits { quotas: Arc::new(quotas), ..Limits::default() },
            now: 0,
            events: BinaryHeap::new(),
            count: 0,
            ids: BTreeMap::new(),
            gangs: BTreeMap::new(),
            left: trace.iter().map(|job| job.works).collect(),
            outcome: Outcome::default(),
        };
        for node in 0..nodes {
            world.add_node(&format!("n{node:03}"))?;
        }
        for (index, job) in trace.iter().enumerate() {
            world.at(job.arrives, Event::Arrives(index));
        }
        Ok(world)
    }

    fn add_node(&mut self, name: &str) -> Result<()> {
        let record = fixtures::node(name, NodeKind::Trainer, 8)?;
        let (id, incarnation) = (record.id.clone(), record.incarnation.clone());
        self.seen.hello(id, incarnation, BTreeSet::new(), BTreeSet::new(), Timestamp(0));
        self.write(vec![Write::Put(Record::Node(record))])
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.push(std::cmp::Reverse((time, self.count, event)));
    }

    fn time(&self) -> Timestamp {
        Timestamp(self.now)
    }

    fn write(&mut self, writes: Vec<Write>) -> Result<()> {
        for write in writes {
            if let Write::Put(record) = &write {
                self.seen.learn(record, self.time());
            }
            self.state.apply(write)?;
        }
        Ok(())
    }

    fn run(mut self, policy: Policy) -> Result<Outcome> {
        while let Some(std::cmp::Reverse((time, _, event))) = self.events.pop() {
            self.now = time;
            let nodes: Vec<NodeId> = self.state.nodes().map(|node| node.id.clone()).collect();
            nodes.iter().for_each(|node| self.seen.heard(node, Timestamp(time)));
            match event {
                Event::Arrives(index) => self.submit(index, policy)?,
                Event::Done(attempt) => self.done(&attempt)?,
                Event::Saved(attempt) => self.saved(&attempt)?,
                Event::Look => {}
            }
            self.settle()?;
        }
        ensure!(self.state.open_count() == 0, "{} jobs never end", self.state.open_count());
        Ok(self.outcome)
    }

    fn submit(&mut self, index: usize, policy: Policy) -> Result<()> {
        let job = self.trace.get(index).context("a job of the trace")?;
        let has_classes = !matches!(policy, Policy::FirstCome | Policy::Backfill);
        let priority = if has_classes && job.urgent { URGENT } else { 0 };
        let gpus = job.gpus;
        let least = if policy == Policy::Elastic { 1 } else { gpus };
        let queue = match (policy, job.small_team) {
            (Policy::Queues, true) => "  queue: small\n",
            (Policy::Queues, false) => "  queue: large\n",
            _ => "",
        };
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: j}}\nspec:\n{queue}  model: {{preset: nano, weights: w}}\n  priority: {priority}\n  resources: {{gpus: {gpus}, minGpus: {least}}}\n  stages:\n    - data: {{source: compose, subjects: s, pairs: 8, unitSize: 8}}\n      train: {{adapter: {{rank: 4}}, steps: {STEPS}, globalBatch: 8}}\n"
        );
        let spec = spec::parse(yaml.as_bytes()).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let request = RequestId::parse(&format!("r{index}"))?;
        let submitted = fixtures::submit(&self.state, request, spec, self.time())?;
        self.write(submitted.writes)?;
        let stage = self.state.job(&submitted.job).context("the job")?.stages.first().context("a stage")?;
        // Its pairs are there: this is about GPUs.
        let unit = fixtures::all_pairs(&stage.id, 8);
        self.ids.insert(submitted.job, index);
        self.write(vec![Write::Put(Record::Unit(unit))])
    }

    /// Decides until there is nothing more to do, and carries it out.
    fn settle(&mut self) -> Result<()> {
        loop {
            let plan = decide(&self.state, &self.seen, &self.limits, self.time());
            if plan.writes.is_empty() && plan.sends.is_empty() {
                return Ok(());
            }
            self.outcome.preemptions +=
                plan.changes.iter().filter(|change| matches!(change, Change::JobPreempted { .. })).count();
            self.write(plan.writes)?;
            for send in plan.sends {
                self.seen.sent(&send, self.time());
                match send.command {
                    Command::StartAttempt(attempt, _) => self.started(&send.node, attempt)?,
                    Command::DrainAttempt(attempt, _) => self.drained(attempt),
                    Command::StopAttempt(attempt, _) => {
                        self.report(&send.node, &attempt, NodeReport::Stopped)
                    }
                    Command::RescueAttempt(..)
                    | Command::UpdateCurators(..)
                    | Command::AssignCuration(_)
                    | Command::ReleaseCuration(..) => {}
                }
            }
        }
    }

    fn report(&mut self, node: &NodeId, attempt: &AttemptRef, phase: NodeReport) {
        self.report_with(node, attempt, phase, None);
    }

    fn report_with(
        &mut self,
        node: &NodeId,
        attempt: &AttemptRef,
        phase: NodeReport,
        progress: Option<Progress>,
    ) {
        let (node, attempt) = (node.clone(), attempt.clone());
        let report = Report { node, attempt, phase, progress, ranks: Vec::new() };
        self.seen.report(report, self.time());
    }

    fn started(&mut self, node: &NodeId, attempt: AttemptRef) -> Result<()> {
        let job = *self.ids.get(&attempt.job).context("a job of the trace")?;
        let TraceJob { arrives, gpus, works, .. } = *self.trace.get(job).context("the job")?;
        let ranks = self.state.stage(&attempt.stage_ref()).and_then(|stage| stage.active_attempt());
        let ranks = u32::try_from(ranks.context("the attempt")?.ranks.len())?;
        let left = *self.left.get(job).context("the job")?;
        let takes = left * u64::from(gpus) / u64::from(ranks);
        self.report_with(node, &attempt, NodeReport::Running, Some(pace(works, left, takes)));
        if self.gangs.contains_key(&attempt) {
            return Ok(());
        }
        self.outcome.waits.entry(job).or_insert(self.now - arrives);
        self.gangs.insert(attempt.clone(), Gang { job, placed_at: self.now, ranks, leaves: false });
        self.at(self.now + LOAD_MILLIS + takes, Event::Done(attempt));
        if ranks < gpus {
            let grows = u64::try_from(self.limits.grow_after.as_millis())?;
            self.at(self.now + grows, Event::Look);
        }
        Ok(())
    }

    fn drained(&mut self, attempt: AttemptRef) {
        if let Some(gang) = self.gangs.get_mut(&attempt).filter(|gang| !gang.leaves) {
            gang.leaves = true;
            self.at(self.now + SAVE_MILLIS, Event::Saved(attempt));
        }
    }

    fn done(&mut self, attempt: &AttemptRef) -> Result<()> {
        if self.gangs.get(attempt).is_none_or(|gang| gang.leaves) {
            return Ok(());
        }
        self.checkpoint(attempt, STEPS)?;
        // Events of gangs that have left come later.
        self.outcome.makespan = self.now;
        self.leave(attempt, 0, &NodeReport::Succeeded)
    }

    fn saved(&mut self, attempt: &AttemptRef) -> Result<()> {
        let Some(gang) = self.gangs.get(attempt) else { return Ok(()) };
        let computed = (self.now - gang.placed_at).saturating_sub(LOAD_MILLIS + SAVE_MILLIS);
        let (job, ranks) = (gang.job, u64::from(gang.ranks));
        let worked = computed * ranks / u64::from(self.trace.get(job).context("the job")?.gpus);
        let left = self.left.get(job).context("the job")?.saturating_sub(worked).max(1);
        let works = self.trace.get(job).context("the job")?.works;
        let step = STEPS - (STEPS * left).div_ceil(works);
        if step > 0 {
            self.checkpoint(attempt, step)?;
        }
        self.leave(attempt, left, &NodeReport::Drained { reason: "it makes room".into() })
    }

    /// The gang is gone, with `left` milliseconds of its work to be done.
    fn leave(&mut self, attempt: &AttemptRef, left: u64, phase: &NodeReport) -> Result<()> {
        let gang = self.gangs.remove(attempt).context("the gang")?;
        let before = std::mem::replace(self.left.get_mut(gang.job).context("the job")?, left);
        let (held, ranks) = (self.now - gang.placed_at, u64::from(gang.ranks));
        let gpus = u64::from(self.trace.get(gang.job).context("the job")?.gpus);
        // As long as its own ranks took.
        let worked = (before - left) * gpus / ranks;
        self.outcome.lost += held.saturating_sub(worked) * ranks;
        let last = self.trace.last().map_or(0, |job| job.arrives);
        let from = gang.placed_at + LOAD_MILLIS;
        self.outcome.worked_until_last += (from + worked).min(last).saturating_sub(from) * ranks;
        let stage = self.state.stage(&attempt.stage_ref()).context("the stage")?;
        let ranks = stage.attempt.iter().flat_map(|attempt| &attempt.ranks);
        let nodes: BTreeSet<NodeId> = ranks.map(|rank| rank.node.clone()).collect();
        nodes.iter().for_each(|node| self.report(node, attempt, phase.clone()));
        Ok(())
    }

    fn checkpoint(&mut self, attempt: &AttemptRef, step: u64) -> Result<()> {
        let stage = attempt.stage_ref();
        let known = self
            .state
            .stage(&stage)
            .is_some_and(|stage| stage.newest_checkpoint().is_some_and(|checkpoint| checkpoint.step >= step));
        if known {
            return Ok(());
        }
        let path = transitions::checkpoint_path(&stage, step, attempt.generation);
        let file = FileRecord { name: "state.json".into(), size_bytes: 1, sha256: "a".repeat(64) };
        let checkpoint = CheckpointRecord {
            stage,
            generation: attempt.generation,
            step,
            path,
            files: vec![file],
            committed_at: self.time(),
            is_final: step == STEPS,
            damaged: None,
            next_position: step * 8,
        };
        let committed = transitions::commit_checkpoint(&self.state, checkpoint, self.time())?;
        self.write(committed.writes)?;
        let wrong = check_invariants(&self.state);
        ensure!(wrong.is_empty(), "{wrong:?}");
        Ok(())
    }
}

/// The small team is sure of a quarter, and the others of the rest.
fn queues(gpus: u32) -> Queues {
    let queue =
        |sure: u32| Queue { guaranteed: BTreeMap::from([("cuda".to_owned(), sure)]), ..Queue::default() };
    let small = gpus / 4;
    let by_name =
        BTreeMap::from([("small".to_owned(), queue(small)), ("large".to_owned(), queue(gpus - small))]);
    Queues { by_name, ..Queues::default() }
}

/// What a gang reports that has so much of its work left and takes so long for it, milliseconds.
#[allow(clippy::cast_precision_loss)] // a pace
fn pace(works: u64, left: u64, takes: u64) -> Progress {
    let step = STEPS - (STEPS * left).div_ceil(works);
    let samples_per_sec = (STEPS - step) as f64 * 8.0 / (takes.max(1) as f64 / 1000.0);
    Progress { step, samples_per_sec, ..Progress::default() }
}

/// GPU-milliseconds of work until the last arrival if jobs could be cut into any pieces: what no policy can exceed.
#[allow(clippy::cast_precision_loss)] // a bound for people
fn most_work(trace: &[TraceJob], gpus: f64) -> f64 {
    let last = trace.last().map_or(0, |job| job.arrives) as f64;
    let mut left: Vec<f64> = trace.iter().map(|job| job.works as f64).collect();
    let (mut now, mut done) = (0.0, 0.0);
    while now < last {
        let next = trace.iter().map(|job| job.arrives as f64).find(|arrives| *arrives > now).unwrap_or(last);
        let open: Vec<usize> =
            (0..trace.len()).filter(|job| trace[*job].arrives as f64 <= now && left[*job] > 0.0).collect();
        // Longest first: whoever can use most for longest is held up least.
        let mut order = open;
        order.sort_by(|a, b| left[*b].total_cmp(&left[*a]));
        let mut free = gpus;
        let mut rates: Vec<(usize, f64)> = Vec::new();
        for job in order {
            let rate = free.min(f64::from(trace[job].gpus));
            free -= rate;
            if rate > 0.0 {
                rates.push((job, rate));
            }
        }
        let ends = rates.iter().map(|(job, rate)| left[*job] * f64::from(trace[*job].gpus) / rate);
        let step = ends.fold(next - now, f64::min).max(1.0);
        for (job, rate) in rates {
            let worked = (step * rate).min(left[job] * f64::from(trace[job].gpus));
            left[job] -= worked / f64::from(trace[job].gpus);
            if left[job] < 1.0 {
                left[job] = 0.0;
            }
            done += worked;
        }
        now += step;
    }
    done
}

#[allow(clippy::cast_precision_loss)] // for people
fn hours(millis: u64) -> f64 {
    millis as f64 / 3_600_000.0
}

/// `3.4 h`, or `36 s` of less than six minutes.
fn span(millis: u64) -> String {
    if millis < 360_000 { format!("{} s", millis / 1000) } else { format!("{:.1} h", hours(millis)) }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let trace = trace(&args);
    let gpus = 8 * args.nodes;
    #[allow(clippy::cast_precision_loss)]
    let most = most_work(&trace, gpus as f64);
    println!(
        "| policy | makespan | mean wait | p99 wait | urgent: mean | urgent: p99 | small team: mean | work of the most | loading and saving | preemptions |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let policies = [
        ("first come", Policy::FirstCome),
        ("back-fill", Policy::Backfill),
        ("back-fill and preemption", Policy::Preemption),
        ("the same, and two queues", Policy::Queues),
        ("preemption, gangs of any size", Policy::Elastic),
    ];
    for (name, policy) in policies {
        let outcome = World::new(&trace, args.nodes, policy)?.run(policy)?;
        ensure!(outcome.waits.len() == trace.len(), "not every job was placed");
        let of = |is_of: &dyn Fn(&TraceJob) -> bool| {
            let mut waits: Vec<u64> = outcome
                .waits
                .iter()
                .filter(|(job, _)| trace.get(**job).is_some_and(is_of))
                .map(|(_, wait)| *wait)
                .collect();
            waits.sort_unstable();
            let mean = waits.iter().sum::<u64>() / waits.len().max(1) as u64;
            let p99 = waits.get(waits.len() * 99 / 100).copied().unwrap_or(0);
            (span(mean), span(p99))
        };
        let (normal, urgent) = (of(&|job| !job.urgent), of(&|job| job.urgent));
        let small_team = of(&|job| job.small_team && !job.urgent);
        #[allow(clippy::cast_precision_loss)]
        let share = 100.0 * outcome.worked_until_last as f64 / most;
        println!(
            "| {name} | {:.0} h | {} | {} | {} | {} | {} | {share:.1} % | {:.0} GPU-h | {} |",
            hours(outcome.makespan),
            normal.0,
            normal.1,
            urgent.0,
            urgent.1,
            small_team.0,
            hours(outcome.lost),
            outcome.preemptions
        );
    }
    Ok(())
}
