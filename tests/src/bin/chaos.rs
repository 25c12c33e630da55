//! Curators, ranks and agents killed at random while a job makes 10,000 pairs and trains on them twice; then every pair and
//! every position is counted. Prints one JSON line; fails if anything is missing or there twice.
//!
//! `chaos [PAIRS] [KILLS] [SEED]`, 10000, 60 and 1 if absent. Run by `make chaos`; takes some minutes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::{Job, JobState, Shard, WatchPairLogRequest};
use crescendo_tests::{Cluster, ClusterOptions, chaos_spec};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const LIMIT: Duration = Duration::from_secs(1800);
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
    let (pairs, kills, seed) = (number("PAIRS", 10_000)?, number("KILLS", 60)?, number("SEED", 1)?);
    let steps = (2 * pairs).div_ceil(GLOBAL_BATCH);
    let notes = tempfile::tempdir().context("make a folder for the notes of the ranks")?;
    let environment = vec![("CRESCENDO_POSITION_LOG".to_owned(), notes.path().display().to_string())];
    let options =
        ClusterOptions { curators: CURATORS, trainers: TRAINERS, environment, ..Default::default() };
    let mut cluster = Cluster::start(options).await?;
    let weights = cluster.train_base().await?;
    let began = Instant::now();
    let job_id = cluster.submit("chaos", &chaos_spec(&weights, pairs, steps)).await?;
    let killed = disturb(&mut cluster, &job_id, kills, seed, steps).await?;
    let job = cluster.await_success(&job_id, LIMIT).await?;
    let seconds = began.elapsed().as_secs_f64();

    let shards = shards(&cluster, &job_id, pairs).await?;
    let logged = check_log(cluster.objects(), &shards, pairs)?;
    let trained = check_positions(notes.path(), &job_id, pairs, steps)?;
    let stage = job.stages.first().context("the job has no stage")?;
    println!(
        "{}",
        serde_json::json!({
            "pairs": logged, "positions": trained, "kills": killed, "generations": stage.generation,
            "seconds": seconds.round(), "seed": seed,
        })
    );
    Ok(())
}

/// Kills until there were enough of them: up to half while pairs are made, the rest spread over the training.
async fn disturb(
    cluster: &mut Cluster,
    job_id: &str,
    kills: u64,
    seed: u64,
    steps: u64,
) -> Result<BTreeMap<&'static str, u64>> {
    let mut chance = Chance(seed);
    let mut killed: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut next_step = 1;
    loop {
        let done = killed.values().sum::<u64>();
        if done == kills {
            return Ok(killed);
        }
        tokio::time::sleep(Duration::from_millis(100 + chance.below(400))).await;
        let Ok(job) = cluster.job(job_id).await else { continue };
        ensure_goes_on(&job)?;
        let stage = job.stages.first().context("the job has no stage")?;
        ensure!(
            stage.step + PACE_STEPS < steps,
            "the job was faster than {kills} kills: {killed:?} by step {}",
            stage.step
        );
        if stage.pairs_sealed || 2 * done >= kills {
            // The last one by three quarters of the steps.
            let due = steps * 3 / 4 * (2 * done).saturating_sub(kills) / kills;
            if stage.step < due {
                continue;
            }
        }
        // A rank that dies before its gang got on is a failure that a job may have only a few of in a row.
        let ranks_may_die = stage.step >= next_step;
        let what = match chance.below(10) {
            0..6 if ranks_may_die && cluster.kill_9_rank(chance.below(TRAINERS as u64) as usize).is_ok() => {
                "rank"
            }
            6 if ranks_may_die => {
                let agent = &mut cluster.trainers[chance.below(TRAINERS as u64) as usize];
                agent.kill_9()?;
                agent.start_again().await?;
                "agent"
            }
            _ if !stage.pairs_sealed || chance.below(3) == 0 => {
                let curator = &mut cluster.curators[chance.below(CURATORS as u64) as usize];
                curator.kill_9()?;
                curator.start_again().await?;
                "curator"
            }
            _ => continue,
        };
        *killed.entry(what).or_default() += 1;
        if what != "curator" {
            next_step = stage.step + PACE_STEPS;
        }
        eprintln!("{what} killed at step {}, {} pairs", stage.step, stage.pairs_committed);
    }
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
