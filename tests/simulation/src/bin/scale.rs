//! How long a decision takes in a cluster of many nodes and jobs, without sockets and store: the table of docs/scale.md.
//!
//! Every node has 8 GPUs, and every slot is held; jobs that wait lack slots, or pairs. An event is applied to the state, and what
//! is timed is [`Decider::decide`] alone, as the engine calls it: with what the decision before has left, or with `--anew` as if there
//! had been none.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use crescendo_core::decide::{Command, Decider, Limits, Plan};
use crescendo_core::ids::{JobId, NodeId, RequestId, Timestamp};
use crescendo_core::observed::{NodeReport, Observed, Progress, Report};
use crescendo_core::records::{NodeKind, Record, UnitState, Write};
use crescendo_core::spec;
use crescendo_core::state::ClusterState;
use crescendo_core::transitions;
use crescendo_simulation::fixtures;

const SLOTS: u32 = 8;

/// Times decisions in a cluster of many nodes and jobs
#[derive(Parser)]
struct Args {
    /// Trainer nodes, of 8 GPUs each
    #[arg(long, default_value_t = 5000)]
    nodes: usize,
    /// Jobs that run, on all GPUs together
    #[arg(long, default_value_t = 2000)]
    running: usize,
    /// Jobs that wait: one half for slots, the other for pairs
    #[arg(long, default_value_t = 10_000)]
    queued: usize,
    #[arg(long, default_value_t = 200)]
    curators: usize,
    /// Decisions of each sort that are timed
    #[arg(long, default_value_t = 30)]
    rounds: usize,
    /// Looks at all there is in every decision
    #[arg(long)]
    anew: bool,
}

struct World {
    state: ClusterState,
    seen: Observed,
    limits: Limits,
    now: Timestamp,
    submitted: usize,
    decider: Decider,
    anew: bool,
    /// Jobs that lack pairs, of which nobody has been asked for more.
    lacking: Vec<JobId>,
}

impl World {
    fn new(nodes: usize, curators: usize, anew: bool) -> Result<Self> {
        let now = Timestamp(1_000_000);
        let mut world = Self {
            state: ClusterState::default(),
            seen: Observed::new(now),
            limits: Limits::default(),
            now,
            submitted: 0,
            decider: Decider::default(),
            anew,
            lacking: Vec::new(),
        };
        for index in 0..nodes {
            world.add_node(&format!("t{index:05}"), NodeKind::Trainer)?;
        }
        for index in 0..curators {
            world.add_node(&format!("c{index:05}"), NodeKind::Curator)?;
        }
        Ok(world)
    }

    fn add_node(&mut self, name: &str, kind: NodeKind) -> Result<()> {
        let record = fixtures::node(name, kind, if kind == NodeKind::Trainer { SLOTS } else { 0 })?;
        let (id, incarnation) = (record.id.clone(), record.incarnation.clone());
        self.seen.hello(id, incarnation, BTreeSet::new(), BTreeSet::new(), self.now);
        self.write(vec![Write::Put(Record::Node(record))])
    }

    fn write(&mut self, writes: Vec<Write>) -> Result<()> {
        for write in writes {
            if let Write::Put(record) = &write {
                self.seen.learn(record, self.now);
            }
            self.state.apply(write)?;
        }
        Ok(())
    }

    fn submit(&mut self, gpus: u32, has_pairs: bool) -> Result<JobId> {
        let yaml = fixtures::spec_yaml(gpus, self.submitted);
        let spec = spec::parse(yaml.as_bytes()).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        self.submitted += 1;
        let request = RequestId::parse(&format!("r{}", self.submitted))?;
        let submitted = fixtures::submit(&self.state, request, spec, self.now)?;
        self.write(submitted.writes)?;
        if has_pairs {
            let stage =
                self.state.job(&submitted.job).context("the job")?.stages.first().context("a stage")?;
            let unit = fixtures::all_pairs(&stage.id, 8000);
            self.write(vec![Write::Put(Record::Unit(unit))])?;
        }
        Ok(submitted.job)
    }

    fn decide(&mut self) -> (Plan, Duration) {
        self.now = self.now.plus(Duration::from_millis(250));
        let changed = self.state.take_changed();
        if self.anew {
            self.decider = Decider::default();
        }
        let began = Instant::now();
        let plan = self.decider.decide(&self.state, &changed, &self.seen, &self.limits, self.now);
        (plan, began.elapsed())
    }

    /// Carries a plan out; gangs report at once that they run, and leave when they are stopped.
    fn carry_out(&mut self, plan: Plan) -> Result<usize> {
        let mut placed = 0;
        self.write(plan.writes)?;
        for send in plan.sends {
            self.seen.sent(&send, self.now);
            let (attempt, phase) = match send.command {
                Command::StartAttempt(attempt, _) => {
                    placed += 1;
                    (attempt, NodeReport::Running)
                }
                Command::StopAttempt(attempt, _) => (attempt, NodeReport::Stopped),
                Command::DrainAttempt(..)
                | Command::RescueAttempt(..)
                | Command::UpdateCurators(..)
                | Command::AssignCuration(_)
                | Command::ReleaseCuration(..) => continue,
            };
            let progress = Some(Progress { step: 1, samples_per_sec: 1.0, ..Progress::default() });
            let report = Report { node: send.node, attempt, phase, progress, ranks: Vec::new() };
            self.seen.report(report, self.now);
        }
        Ok(placed)
    }

    fn hear_all(&mut self) {
        let nodes: Vec<NodeId> = self.state.nodes().map(|node| node.id.clone()).collect();
        nodes.iter().for_each(|node| self.seen.heard(node, self.now));
    }

    /// Until there is nothing more to do: how long each decision took.
    fn settle(&mut self) -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        loop {
            self.hear_all();
            let (plan, time) = self.decide();
            took.push(time);
            if plan.writes.is_empty() && plan.sends.is_empty() {
                return Ok(took);
            }
            self.carry_out(plan)?;
        }
    }

    /// A curator hands in a unit of a job that lacks pairs, and will go on to.
    fn commit_unit(&mut self) -> Result<()> {
        let job = self.lacking.pop().context("a job that lacks pairs")?;
        let stage = self.state.job(&job).and_then(|job| job.stages.first()).context("its stage")?;
        let mut unit = fixtures::all_pairs(&stage.id, 80);
        if let UnitState::Done(result) = &mut unit.state {
            result.exhausted = false;
        }
        self.write(vec![Write::Put(Record::Unit(unit))])
    }

    /// The gang of a job that runs steps.
    fn step(&mut self) -> Result<()> {
        let job = self.running().into_iter().next().context("a job")?;
        let stages = &self.state.job(&job).context("the job")?.stages;
        let attempt = stages.iter().find_map(|stage| stage.active_attempt()).context("its attempt")?;
        let node = attempt.ranks.first().context("a rank")?.node.clone();
        let step = self.seen.gang(&attempt.attempt).map_or(0, |gang| gang.progress.step);
        let progress = Some(Progress { step: step + 1, samples_per_sec: 1.0, ..Progress::default() });
        let (attempt, phase) = (attempt.attempt.clone(), NodeReport::Running);
        self.seen.report(Report { node, attempt, phase, progress, ranks: Vec::new() }, self.now);
        Ok(())
    }

    fn running(&self) -> Vec<JobId> {
        let holds = |job: &&crescendo_core::state::Job| {
            job.stages.iter().any(|stage| stage.active_attempt().is_some())
        };
        self.state.open_jobs().filter(holds).map(|job| job.record.id.clone()).collect()
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (mut world, began) = (World::new(args.nodes, args.curators, args.anew)?, Instant::now());
    let slots = args.nodes * SLOTS as usize;
    let each = u32::try_from((slots / args.running.max(1)).max(1))?.min(64);
    for _ in 0..args.running {
        world.submit(each, true)?;
    }
    let placing = world.settle()?.into_iter().sum::<Duration>();
    ensure!(world.running().len() == args.running, "{} of {} run", world.running().len(), args.running);
    println!("{} jobs of {each} ranks placed in {placing:.2?}", args.running);
    println!("{:.0} gangs a second", args.running as f64 / placing.as_secs_f64());
    for index in 0..args.queued {
        let job = world.submit(if index % 10 == 0 { 64 } else { 8 }, index % 2 == 0)?;
        if index % 2 == 1 {
            world.lacking.push(job);
        }
    }
    let first = world.settle()?.into_iter().sum::<Duration>();
    println!("the first look at {} more: {first:.2?}; set up in {:.1?}", args.queued, began.elapsed());
    println!("| event | p50 | p99 | and those after it, until nothing is to be done |\n|---|---|---|---|");
    time("nothing", &mut world, args.rounds, |_| Ok(()))?;
    time("a submit", &mut world, args.rounds, |world| world.submit(8, true).map(drop))?;
    time("a unit is committed", &mut world, args.rounds, World::commit_unit)?;
    time("a gang steps", &mut world, args.rounds, World::step)?;
    time("the end of a job, its slots given to another", &mut world, args.rounds, |world| {
        let job = world.running().into_iter().next().context("a job")?;
        let writes = transitions::cancel_job(&world.state, &job, "enough", world.now)?;
        world.write(writes)
    })
}

fn time(
    name: &str,
    world: &mut World,
    rounds: usize,
    mut event: impl FnMut(&mut World) -> Result<()>,
) -> Result<()> {
    let (mut times, mut after) = (Vec::with_capacity(rounds), Vec::new());
    for _ in 0..rounds {
        world.hear_all();
        event(world)?;
        let (plan, time) = world.decide();
        times.push(time);
        world.carry_out(plan)?;
        after.extend(world.settle()?);
    }
    let [half, most] = [50, 99].map(|share| percentile(&mut times, share));
    let [half_after, most_after] = [50, 99].map(|share| percentile(&mut after, share));
    println!("| {name} | {half:.2?} | {most:.2?} | {half_after:.2?}, {most_after:.2?} |");
    Ok(())
}

fn percentile(times: &mut [Duration], share: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
