//! The controller dies at any moment: nothing is lost, nothing is done twice, nothing that runs is disturbed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use crescendo_node::session::call::Controllers;
use crescendo_node::session::reports::ReportSink;
use crescendo_node::session::{Command, NodeSession};
use crescendo_node::telemetry::log_shipping::LogBuffer;
use crescendo_node::tls::Dialer;
use crescendo_proto::v1;
use crescendo_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_store::testing::EtcdProcess;
use crescendo_testing::controller::{Controller, FakeNode, checkpoint, hello, unit_result};
use crescendo_testing::{LIMIT, eventually};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use v1::lease_unit_response::Outcome;

const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: trial}
spec:
  model: {preset: nano, precision: f32, weights: base.safetensors}
  resources: {gpus: 1}
  stages:
    - name: stage-1
      references: 1
      data: {source: compose, subjects: subjects, pairs: 160, minPairs: 40, unitSize: 4}
      train: {adapter: {rank: 4}, steps: 60, globalBatch: 2}
    - name: stage-2
      references: 2
      data: {source: compose, subjects: subjects, pairs: 40, minPairs: 40, unitSize: 4}
      train: {adapter: {rank: 4}, steps: 30, globalBatch: 2}
  checkpoints: {every: 5, keepLast: 2}
";

/// Seconds that one try of a call may take.
const TRY: Duration = Duration::from_secs(5);

/// What the nodes have seen happen.
#[derive(Default)]
struct Seen {
    /// Starts by stage and generation.
    starts: BTreeMap<(String, u64), u32>,
    stops: u32,
    /// Commits that took, by stage and unit.
    commits: BTreeMap<(String, u64), u32>,
}

type Shared = Arc<Mutex<Seen>>;

/// A curator: leases, works a little, commits, until its stages are sealed.
async fn curate(controllers: Controllers, seen: Shared, stop: CancellationToken) {
    let reports = ReportSink::default();
    let hello = || hello("c-1", v1::NodeKind::Curator, 0, "only");
    let (session, mut commands) =
        NodeSession::new(controllers.clone(), reports, LogBuffer::new("c-1", 16), hello);
    let mut workers = JoinSet::new();
    let mut known = Vec::new();
    let running = session.run(stop.clone());
    let listening = async {
        while let Some(command) = commands.recv().await {
            let Command::AssignCuration(assign) = command else { continue };
            let Some(stage) = assign.stage else { continue };
            if !known.contains(&stage) {
                known.push(stage.clone());
                workers.spawn(work(controllers.clone(), stage, seen.clone(), stop.clone()));
            }
        }
    };
    let _ = tokio::join!(running, listening);
}

async fn work(controllers: Controllers, stage: v1::StageRef, seen: Shared, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let request = v1::LeaseUnitRequest {
            job_id: stage.job_id.clone(),
            stage: stage.stage.clone(),
            node_id: "c-1".into(),
        };
        let leased = controllers
            .call_until_decided("lease a unit", TRY, &stop, |channel| {
                let request = request.clone();
                async move { CurationServiceClient::new(channel).lease_unit(request).await }
            })
            .await;
        let Ok(leased) = leased else { return };
        match (leased.outcome(), leased.unit) {
            (Outcome::Leased, Some(unit)) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let commit = unit_result(&unit, "c-1", 4);
                let done = controllers
                    .call_until_decided("commit a unit", TRY, &stop, |channel| {
                        let commit = commit.clone();
                        async move { CurationServiceClient::new(channel).commit_unit(commit).await }
                    })
                    .await;
                // A lease of which the answer was lost runs out, and the unit is done by its next holder.
                if done.is_ok_and(|done| !done.done_already) {
                    let key = (stage.stage.clone(), unit.unit);
                    *seen.lock().expect("whole").commits.entry(key).or_insert(0) += 1;
                }
            }
            (Outcome::Sealed, _) => return,
            (Outcome::Leased | Outcome::Wait | Outcome::Unspecified, _) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A trainer with one rank, which steps and saves whether or not there is a controller.
async fn train(controllers: Controllers, seen: Shared, stop: CancellationToken) {
    let reports = ReportSink::default();
    let running: Arc<Mutex<Option<v1::AttemptRef>>> = Arc::default();
    let runs = running.clone();
    let hello = move || v1::Hello {
        running: runs.lock().expect("whole").iter().cloned().collect(),
        ..hello("t-1", v1::NodeKind::Trainer, 1, "only")
    };
    let logs = LogBuffer::new("t-1", 16);
    let (session, mut commands) = NodeSession::new(controllers.clone(), reports.clone(), logs, hello);
    let mut ranks = JoinSet::new();
    let listening = async {
        while let Some(command) = commands.recv().await {
            match command {
                Command::StartAttempt(start) => {
                    let Some(attempt) = start.attempt.clone() else { continue };
                    let mut now = running.lock().expect("whole");
                    if now.as_ref() == Some(&attempt) {
                        continue;
                    }
                    *now = Some(attempt.clone());
                    let key = (attempt.stage.clone(), attempt.generation);
                    *seen.lock().expect("whole").starts.entry(key).or_insert(0) += 1;
                    let rank = Rank {
                        controllers: controllers.clone(),
                        reports: reports.clone(),
                        stop: stop.clone(),
                    };
                    let running = running.clone();
                    ranks.spawn(async move {
                        rank.run(&start).await;
                        *running.lock().expect("whole") = None;
                        rank.report(&attempt, v1::AttemptPhase::Succeeded, 0);
                    });
                }
                Command::StopAttempt(stop) => {
                    if running.lock().expect("whole").as_ref() == stop.attempt.as_ref() {
                        seen.lock().expect("whole").stops += 1;
                    }
                }
                Command::DrainAttempt(_)
                | Command::RescueAttempt(_)
                | Command::UpdateCurators(_)
                | Command::AssignCuration(_)
                | Command::ReleaseCuration(_)
                | Command::ReadObject(_)
                | Command::ReadStoredPairs(_)
                | Command::CollectObjects(_)
                | Command::DrawSamples(_) => {}
            }
        }
    };
    let _ = tokio::join!(session.run(stop.clone()), listening);
}

struct Rank {
    controllers: Controllers,
    reports: ReportSink,
    stop: CancellationToken,
}

impl Rank {
    fn report(&self, attempt: &v1::AttemptRef, phase: v1::AttemptPhase, step: u64) {
        self.reports.put(v1::AttemptReport {
            attempt: Some(attempt.clone()),
            phase: phase.into(),
            step,
            failed_rank: -1,
            ..Default::default()
        });
    }

    async fn run(&self, start: &v1::StartAttempt) {
        let Some(attempt) = &start.attempt else { return };
        let steps = if start.stage_index == 0 { 60 } else { 30 };
        let first = start.resume_from.as_ref().map_or(0, |checkpoint| checkpoint.step) + 1;
        for step in first..=steps {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.report(attempt, v1::AttemptPhase::Running, step);
            if step % 5 == 0 {
                let request = v1::CommitCheckpointRequest {
                    checkpoint: Some(checkpoint(attempt, step, step == steps)),
                };
                let saved = self
                    .controllers
                    .call_until_decided("commit a checkpoint", TRY, &self.stop, |channel| {
                        let request = request.clone();
                        async move { CheckpointServiceClient::new(channel).commit_checkpoint(request).await }
                    })
                    .await;
                if saved.is_err() {
                    return;
                }
            }
        }
    }
}

/// Pauses between kills, milliseconds, drawn from `seed`.
fn pauses(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::from_fn(move || {
        // The 64-bit linear congruential generator of Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((state >> 40) % 250)
    })
}

async fn a_job_under_kills(seed: u64) -> anyhow::Result<()> {
    let mut controller = Controller::start_with(&["--unit-lease-seconds", "2"]).await?;
    let controllers = Controllers::new(&[&controller.address], &Dialer::plain())?;
    let stop = CancellationToken::new();
    let seen = Shared::default();
    let mut nodes = JoinSet::new();
    nodes.spawn(curate(controllers.clone(), seen.clone(), stop.clone()));
    nodes.spawn(train(controllers, seen.clone(), stop.clone()));
    let job = controller.submit("r-1", SPEC).await?.job.context("a job")?.job_id;

    for pause in pauses(seed).take(8) {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        controller.restart().await?;
        assert!(controller.submit("r-1", SPEC).await?.already_submitted, "an accepted job was lost");
        let job = controller.job(&job).await?;
        assert!(job.stages.iter().all(|stage| stage.restarts == 0), "training was disturbed: {job:?}");
    }
    let done = controller.job_when(&job, "the job ends", |job| job.finished_at.is_some()).await?;
    stop.cancel();
    while tokio::time::timeout(LIMIT, nodes.join_next()).await?.is_some() {}

    assert_eq!(done.state(), v1::JobState::Succeeded, "{}", done.reason);
    for stage in &done.stages {
        assert_eq!((stage.generation, stage.restarts), (1, 0), "{stage:?}");
        // Training may end before all pairs are made; it began with these.
        assert!(stage.pairs_committed >= 40, "{stage:?}");
    }
    let all = controller.jobs().list_jobs(v1::ListJobsRequest::default()).await?.into_inner();
    assert_eq!(all.jobs.len(), 1);
    let seen = seen.lock().expect("whole");
    assert!(seen.starts.values().all(|starts| *starts == 1), "started twice: {:?}", seen.starts);
    assert_eq!(seen.stops, 0, "something that ran was stopped");
    assert!(seen.commits.values().all(|commits| *commits == 1), "committed twice: {:?}", seen.commits);
    Ok(())
}

#[tokio::test]
async fn killed_at_random_moments_with_seed_1() -> anyhow::Result<()> {
    a_job_under_kills(1).await
}

#[tokio::test]
async fn killed_at_random_moments_with_seed_2() -> anyhow::Result<()> {
    a_job_under_kills(2).await
}

#[tokio::test]
async fn killed_at_random_moments_with_seed_3() -> anyhow::Result<()> {
    a_job_under_kills(3).await
}

#[tokio::test]
async fn a_standby_takes_over_from_a_leader_that_dies() -> anyhow::Result<()> {
    let Some(etcd) = EtcdProcess::start_or_skip().await else { return Ok(()) };
    let store = || Some(format!("etcd:{}", etcd.endpoint()));
    let flags = ["--leader-lease-seconds", "2"];
    let mut leader = Controller::start_process(store(), &flags).await?;
    leader.await_leading().await?;
    let mut standby = Controller::start_process(store(), &flags).await?;
    let job = leader.submit("r-1", SPEC).await?.job.context("a job")?.job_id;

    let refused = eventually("the standby knows who leads", async || {
        let refused = standby.submit("r-2", SPEC).await.err().context("a standby took a job")?;
        Ok(refused.metadata().contains_key(crescendo_proto::status::LEADER_TRAILER).then_some(refused))
    })
    .await?;
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains(&leader.address), "{refused}");

    leader.kill()?;
    standby.await_leading().await?;
    assert_eq!(standby.job(&job).await?.state(), v1::JobState::Queued);
    assert!(standby.submit("r-1", SPEC).await?.already_submitted);
    Ok(())
}

#[tokio::test]
async fn a_clean_stop_ends_open_streams_and_gives_leadership_up() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let job = controller.submit("r-1", SPEC).await?.job.context("a job")?.job_id;
    let _node = FakeNode::trainer(&controller, "t-1", 1).await?;
    let request = v1::WatchJobRequest { job_id: job.clone(), from_revision: 0 };
    let mut watch = controller.jobs().watch_job(request).await?.into_inner();
    let request = v1::ReadLogsRequest { job_id: job, tail_lines: 0, follow: true };
    let _logs = controller.jobs().read_logs(request).await?.into_inner();
    let status = controller.stop().await?;
    assert!(status.success(), "{status}");
    while let Ok(Some(_)) = watch.message().await {}
    controller.restart().await
}
