//! Everything killed, stopped and cut off at random while a job makes 10,000 pairs and trains on them twice: ranks, agents,
//! curators, controllers, etcd's members, what controllers say to etcd and nodes to controllers. Then every pair, every
//! position and every job is counted, and the same job undisturbed must end with the same bytes.
//!
//! `chaos [PAIRS] [FAULTS] [SEED]`, 10000, 150 and 1 if absent. Prints one JSON line; fails if anything is missing or there
//! twice, or if an attempt ended that no rank's or agent's death explains. Run by `make chaos`; takes some twenty minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::{Job, JobState, Shard, WatchPairLogRequest};
use crescendo_store::testing::Traffic;
use crescendo_tests::{Cluster, ClusterOptions, chaos_spec, waiting_spec};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const LIMIT: Duration = Duration::from_secs(3600);
/// Limit of the wait for a controller that leads, after the one that led was killed.
const FAILOVER_LIMIT: Duration = Duration::from_secs(60);
const CONTROLLERS: usize = 3;
const MEMBERS: usize = 3;
const CURATORS: usize = 3;
const TRAINERS: usize = 2;
const GLOBAL_BATCH: u64 = 16;
/// Steps that a gang has to do between two deaths: more than from one checkpoint to the next, so that a job that goes on
/// is not taken for one that fails again and again.
const PACE_STEPS: u64 = 6;
const STAGE: &str = "stage-1";

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |name: &str, default: u64| -> Result<u64> {
        arguments.next().map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}: {text}")))
    };
    let (pairs, faults, seed) = (number("PAIRS", 10_000)?, number("FAULTS", 150)?, number("SEED", 1)?);
    let steps = (2 * pairs).div_ceil(GLOBAL_BATCH);
    let notes = tempfile::tempdir().context("make a folder for the notes of the ranks")?;
    let environment = vec![("CRESCENDO_POSITION_LOG".to_owned(), notes.path().display().to_string())];
    let options = ClusterOptions {
        controllers: CONTROLLERS,
        etcd_members: MEMBERS,
        proxied: true,
        curators: CURATORS,
        trainers: TRAINERS,
        environment,
        ..Default::default()
    };
    let mut cluster = Cluster::start(options).await?;
    let weights = cluster.train_base().await?;
    let began = Instant::now();
    let spec = chaos_spec(&weights, pairs, steps);
    let job_id = cluster.submit("chaos", &spec).await?;
    let mut storm =
        Storm { chance: Chance(seed), done: BTreeMap::new(), failovers: vec![], submitted: vec![] };
    storm.disturb(&mut cluster, &job_id, faults, steps).await?;
    let job = cluster.await_success(&job_id, LIMIT).await?;
    let seconds = began.elapsed().as_secs_f64();

    let shards = shards(&cluster, &job_id, pairs).await?;
    let logged = check_log(cluster.objects(), &shards, pairs)?;
    let trained = check_positions(notes.path(), &job_id, pairs, steps)?;
    let stage = job.stages.first().context("the job has no stage")?;
    let died = storm.count("rank") + storm.count("agent");
    ensure!(
        stage.generation <= 1 + died,
        "{} attempts, but only {died} ranks and agents died: {:?}",
        stage.generation,
        storm.done
    );
    storm.check_submitted(&cluster).await?;
    let calm = cluster.submit("calm", &spec).await?;
    cluster.await_success(&calm, LIMIT).await?;
    let lora = async |job_id| cluster.final_file_sha256(job_id, STAGE, "dit_lora.safetensors").await;
    ensure!(lora(&job_id).await? == lora(&calm).await?, "the disturbed job's LoRA is another");
    storm.failovers.sort_by(f64::total_cmp);
    let failover = |share: f64| {
        let last = storm.failovers.len().checked_sub(1)?;
        storm
            .failovers
            .get((last as f64 * share).round() as usize)
            .map(|seconds| (seconds * 1e3).round() / 1e3)
    };
    println!(
        "{}",
        serde_json::json!({
            "pairs": logged, "positions": trained, "faults": storm.total(), "kinds": storm.done,
            "attempts": stage.generation, "jobs": storm.submitted.len() + 3,
            "failover_seconds": { "p50": failover(0.5), "p99": failover(0.99), "worst": failover(1.0) },
            "seconds": seconds.round(), "seed": seed,
        })
    );
    Ok(())
}

/// What has been done to the cluster so far.
struct Storm {
    chance: Chance,
    /// Faults by kind.
    done: BTreeMap<&'static str, u64>,
    /// Seconds from the death of the controller that led until another took a job.
    failovers: Vec<f64>,
    /// Request ids of jobs that were taken meanwhile, with the jobs' ids.
    submitted: Vec<(String, String)>,
}

impl Storm {
    fn count(&self, kind: &str) -> u64 {
        self.done.get(kind).copied().unwrap_or_default()
    }

    fn total(&self) -> u64 {
        self.done.values().sum()
    }

    /// Disturbs until there were enough faults: up to half while pairs are made, the rest spread over the training.
    async fn disturb(&mut self, cluster: &mut Cluster, job_id: &str, faults: u64, steps: u64) -> Result<()> {
        let mut next_step = 1;
        while self.total() < faults {
            tokio::time::sleep(Duration::from_millis(100 + self.chance.below(400))).await;
            let Ok(job) = cluster.job(job_id).await else { continue };
            ensure_goes_on(&job)?;
            let stage = job.stages.first().context("the job has no stage")?;
            let done = self.total();
            ensure!(
                stage.step + PACE_STEPS < steps,
                "the job was faster than {faults} faults: {:?} by step {}",
                self.done,
                stage.step
            );
            if stage.pairs_sealed || 2 * done >= faults {
                // The last one by three quarters of the steps.
                let due = steps * 3 / 4 * (2 * done).saturating_sub(faults) / faults;
                if stage.step < due {
                    continue;
                }
            }
            // A rank that dies before its gang got on is a failure that a job may have only a few of in a row.
            let may_die = stage.step >= next_step;
            let kind = match self.chance.below(4) {
                0 | 1 => self.of_workers(cluster, may_die, stage.pairs_sealed).await?,
                _ => Some(self.of_control_plane(cluster).await?),
            };
            let Some(kind) = kind else { continue };
            *self.done.entry(kind).or_default() += 1;
            if matches!(kind, "rank" | "agent") {
                next_step = stage.step + PACE_STEPS;
            }
            eprintln!("{kind} at step {}, {} pairs", stage.step, stage.pairs_committed);
        }
        Ok(())
    }

    /// The death of a rank, an agent or a curator.
    async fn of_workers(
        &mut self,
        cluster: &mut Cluster,
        may_die: bool,
        sealed: bool,
    ) -> Result<Option<&'static str>> {
        let trainer = self.chance.below(TRAINERS as u64) as usize;
        Ok(match self.chance.below(10) {
            0..6 if may_die && cluster.kill_9_rank(trainer).is_ok() => Some("rank"),
            6 if may_die => {
                let agent = &mut cluster.trainers[trainer];
                agent.kill_9()?;
                agent.start_again().await?;
                Some("agent")
            }
            _ if !sealed || self.chance.below(3) == 0 => {
                let curator = &mut cluster.curators[self.chance.below(CURATORS as u64) as usize];
                curator.kill_9()?;
                curator.start_again().await?;
                Some("curator")
            }
            _ => None,
        })
    }

    /// A fault of controllers, of etcd, or of the network between them and the nodes; it is over when this returns.
    async fn of_control_plane(&mut self, cluster: &mut Cluster) -> Result<&'static str> {
        let hold = Duration::from_millis(500 + self.chance.below(3500));
        let leading = cluster.leading();
        Ok(match self.chance.below(12) {
            0..3 => {
                cluster.controller_at(leading).kill_9()?;
                self.fail_over(cluster).await?;
                cluster.controller_at(leading).start_again().await?;
                "leader"
            }
            3 => {
                let standby = (leading + 1) % CONTROLLERS;
                cluster.controller_at(standby).kill_9()?;
                cluster.controller_at(standby).start_again().await?;
                "standby"
            }
            4 => {
                cluster.controller_at(leading).stand_still(true)?;
                tokio::time::sleep(hold).await;
                cluster.controller_at(leading).stand_still(false)?;
                "leader stands still"
            }
            5 | 6 => {
                let member = self.chance.below(MEMBERS as u64) as usize;
                let etcd = cluster.etcd.as_mut().context("there is an etcd")?;
                etcd.kill_9(member)?;
                tokio::time::sleep(hold).await;
                etcd.start_member(member)?;
                "etcd member"
            }
            7 | 8 => {
                let controller = self.chance.below(CONTROLLERS as u64) as usize;
                let how = self.traffic();
                cut(&cluster.to_store[controller], how, hold).await;
                "controller cut off from etcd"
            }
            _ => {
                let node = self.chance.below((CURATORS + TRAINERS) as u64) as usize;
                let how = self.traffic();
                cut(&cluster.to_controllers[node], how, 2 * hold).await;
                "node cut off from controllers"
            }
        })
    }

    fn traffic(&mut self) -> Traffic {
        if self.chance.below(3) == 0 { Traffic::LosesAnswers } else { Traffic::Cut }
    }

    /// The controller that led is dead: how long until another takes a job, which is then cancelled.
    async fn fail_over(&mut self, cluster: &Cluster) -> Result<()> {
        let died = Instant::now();
        let request = format!("meanwhile-{}", self.submitted.len());
        let job_id = cluster.submit_once_led(&request, &waiting_spec(), FAILOVER_LIMIT).await?;
        self.failovers.push(died.elapsed().as_secs_f64());
        // It may fail while the next one settles in; what waits at the end is cancelled then.
        let _ = cluster.cancel(&job_id).await;
        self.submitted.push((request, job_id));
        Ok(())
    }

    /// Every job that was taken is there, once.
    async fn check_submitted(&self, cluster: &Cluster) -> Result<()> {
        for (request, job_id) in &self.submitted {
            let again = cluster.submit(request, &waiting_spec()).await?;
            ensure!(again == *job_id, "request {request} is job {again} now, and was {job_id}");
            let job = cluster.job(job_id).await?;
            let kept = matches!(job.state(), JobState::Cancelled | JobState::Queued);
            ensure!(kept, "{job_id} is {:?}", job.state());
            if job.state() == JobState::Queued {
                cluster.cancel(job_id).await?;
            }
        }
        Ok(())
    }
}

/// Has connections fail for a while.
async fn cut(proxies: &[crescendo_store::testing::FaultyProxy], how: Traffic, hold: Duration) {
    proxies.iter().for_each(|proxy| proxy.set(how));
    tokio::time::sleep(hold).await;
    proxies.iter().for_each(|proxy| proxy.set(Traffic::Passes));
}

fn ensure_goes_on(job: &Job) -> Result<()> {
    match job.state() {
        JobState::Failed | JobState::Cancelled => bail!("the job ended: {}", job.reason),
        JobState::Succeeded => bail!("the job ended before there were enough kills"),
        _ => Ok(()),
    }
}

async fn shards(cluster: &Cluster, job_id: &str, pairs: u64) -> Result<Vec<Shard>> {
    let request = WatchPairLogRequest { job_id: job_id.to_owned(), stage: STAGE.into(), from_unit: 0 };
    // Asked first, so that the one that leads is the one that is watched.
    cluster.job(job_id).await?;
    let mut news = CurationServiceClient::new(cluster.channel()?).watch_pair_log(request).await?.into_inner();
    let mut shards = Vec::new();
    loop {
        let part = news.message().await?.context("the log ended before it had all pairs")?;
        shards.extend(part.shards);
        if part.committed >= pairs {
            return Ok(shards);
        }
    }
}

/// Every pair of the log, by the candidate that it was: each once, none missing.
fn check_log(objects: &Path, shards: &[Shard], pairs: u64) -> Result<u64> {
    let mut seen = BTreeSet::new();
    let mut expected_index = 0;
    for shard in shards {
        ensure!(shard.first_index == expected_index, "unit {} leaves a gap", shard.unit);
        expected_index += shard.pairs;
        let bytes =
            std::fs::read(objects.join(&shard.path)).with_context(|| format!("read {}", shard.path))?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(digest == shard.sha256, "{} is not what was registered", shard.path);
        let mut in_shard = 0;
        for entry in tar::Archive::new(bytes.as_slice()).entries()? {
            let entry = entry?;
            if !entry.path_bytes().ends_with(b".json") {
                continue;
            }
            let facts: serde_json::Value = serde_json::from_reader(entry)?;
            let source = &facts["provenance"];
            let (unit, candidate) = (source["unit"].as_u64(), source["candidate"].as_u64());
            let (unit, candidate) =
                unit.zip(candidate).context("a pair does not say which candidate it was")?;
            ensure!(unit == shard.unit, "a pair of unit {unit} is in the shard of unit {}", shard.unit);
            ensure!(
                seen.insert((unit, candidate)),
                "candidate {candidate} of unit {unit} is in the log twice"
            );
            in_shard += 1;
        }
        ensure!(
            in_shard == shard.pairs,
            "{} has {in_shard} pairs, {} are registered",
            shard.path,
            shard.pairs
        );
    }
    ensure!(seen.len() as u64 >= pairs, "the log has {} pairs, {pairs} are needed", seen.len());
    Ok(seen.len() as u64)
}

#[derive(Deserialize)]
struct Note {
    step: u64,
    positions: Vec<(u64, u64)>,
}

/// Every position of the run that the result came from, with the pair that was trained there. A generation that began at
/// a checkpoint undoes what those before it did beyond that.
fn check_positions(notes: &Path, job_id: &str, pairs: u64, steps: u64) -> Result<u64> {
    let prefix = format!("{job_id}-{STAGE}-g");
    // By generation, then step: what its ranks trained.
    let mut generations: BTreeMap<u64, BTreeMap<u64, Vec<(u64, u64)>>> = BTreeMap::new();
    for entry in std::fs::read_dir(notes)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((generation, _rank)) = name.strip_prefix(&prefix).and_then(|rest| rest.split_once("-r"))
        else {
            continue;
        };
        let of_generation = generations.entry(generation.parse()?).or_default();
        for line in std::fs::read_to_string(&path)?.lines() {
            let Note { step, positions } = serde_json::from_str(line)?;
            of_generation.entry(step).or_default().extend(positions);
        }
    }
    let mut trained: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for of_generation in generations.into_values() {
        if let Some(first) = of_generation.keys().next() {
            trained.split_off(first);
        }
        trained.extend(of_generation);
    }
    ensure!(trained.keys().copied().eq(0..steps), "not every step was trained");
    let mut by_position: BTreeMap<u64, u64> = BTreeMap::new();
    for (position, index) in trained.into_values().flatten() {
        ensure!(by_position.insert(position, index).is_none(), "position {position} was trained twice");
    }
    ensure!(by_position.keys().copied().eq(0..steps * GLOBAL_BATCH), "not every position was trained");
    let indices: Vec<u64> = by_position.into_values().collect();
    for (epoch, indices) in indices.chunks_exact(usize::try_from(pairs)?).enumerate() {
        let mut sorted = indices.to_vec();
        sorted.sort_unstable();
        ensure!(sorted.iter().copied().eq(0..pairs), "epoch {epoch} does not have every pair once");
    }
    Ok(indices.len() as u64)
}

/// Numbers from a linear congruential generator (constants of Knuth's MMIX).
struct Chance(u64);

impl Chance {
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % count.max(1)
    }
}
