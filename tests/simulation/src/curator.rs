//! A curator node: the real session and the real calls; making is played.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crescendo_node::runtime::supervise::Drain;
use crescendo_node::session::call::Controllers;
use crescendo_node::session::health::HealthReport;
use crescendo_node::session::reports::ReportSink;
use crescendo_node::session::{Command, NodeSession};
use crescendo_node::telemetry::log_shipping::{DEFAULT_CAPACITY, LogBuffer};
use crescendo_proto::v1;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::lease_unit_response::Outcome;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::checker::Checker;
use crate::objects::{Objects, STORE_ID, collect};
use crate::process::Process;
use crate::rng::SharedRng;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Stages that it works on, with the pairs of one unit.
type Assigned = BTreeMap<(String, String), u64>;

/// What is wrong with a curator.
#[derive(Debug, Default)]
pub struct CuratorFaults {
    /// Units fail.
    pub fail: AtomicBool,
    /// Units take for ever.
    pub hang: AtomicBool,
}

#[derive(Clone)]
pub struct CuratorParts {
    pub id: String,
    pub controllers: Controllers,
    pub faults: Arc<CuratorFaults>,
    pub rng: SharedRng,
    pub objects: Objects,
    pub checker: Checker,
    /// Asked for at a stop.
    pub drain: Drain,
    pub stop: CancellationToken,
}

/// Starts the node's tasks within `process`.
pub fn start(parts: CuratorParts, process: &Arc<Process>, hello: v1::Hello) {
    let (assigned, assigned_now) = watch::channel(Assigned::new());
    let told = assigned_now.clone();
    let hello = move || {
        let stages = told.borrow();
        let curating = stages
            .keys()
            .map(|(job_id, stage)| v1::StageRef { job_id: job_id.clone(), stage: stage.clone() });
        v1::Hello { curating: curating.collect(), ..hello.clone() }
    };
    let logs = LogBuffer::new(&parts.id, DEFAULT_CAPACITY);
    let (session, commands) = NodeSession::new(parts.controllers.clone(), ReportSink::default(), logs, hello);
    let health = HealthReport::default();
    health.update(|health| health.store_id = STORE_ID.to_owned());
    let (session, stop) = (session.draining(parts.drain.clone()).health(health), parts.stop.clone());
    process.spawn(async move {
        let _ = session.run(stop).await;
    });
    process.spawn(obey(commands, assigned, parts.clone(), process.clone()));
    process.spawn(make(parts, assigned_now));
}

async fn obey(
    mut commands: mpsc::Receiver<Command>,
    assigned: watch::Sender<Assigned>,
    parts: CuratorParts,
    process: Arc<Process>,
) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::AssignCuration(assign) => {
                if let Some(stage) = &assign.stage {
                    let key = (stage.job_id.clone(), stage.stage.clone());
                    let size = unit_size(&assign).unwrap_or(4);
                    assigned.send_modify(|stages| {
                        stages.insert(key, size);
                    });
                }
            }
            Command::ReleaseCuration(release) => {
                if let Some(stage) = release.stage {
                    assigned.send_modify(|stages| {
                        stages.remove(&(stage.job_id, stage.stage));
                    });
                }
            }
            Command::StartAttempt(_)
            | Command::StopAttempt(_)
            | Command::DrainAttempt(_)
            | Command::RescueAttempt(_)
            | Command::UpdateCurators(_)
            | Command::DrawSamples(_)
            | Command::ReadObject(_)
            | Command::ReadStoredPairs(_) => {}
            Command::CollectObjects(order) => {
                let CuratorParts { objects, controllers, checker, rng, .. } = parts.clone();
                process.spawn(collect(objects, controllers, checker, rng, order));
            }
        }
    }
}

fn unit_size(assign: &v1::AssignCuration) -> Option<u64> {
    let spec: crescendo_core::spec::JobSpec = serde_json::from_slice(&assign.resolved_spec_json).ok()?;
    Some(spec.stages.get(usize::try_from(assign.stage_index).ok()?)?.data.unit_size.into())
}

/// Makes units of the stages in turn.
async fn make(parts: CuratorParts, mut assigned: watch::Receiver<Assigned>) {
    let mut turn = 0;
    loop {
        // One that leaves begins no unit, and has none under way here.
        if parts.drain.asked().is_cancelled() {
            parts.drain.finish();
            return;
        }
        let stages: Vec<_> = assigned.borrow_and_update().clone().into_iter().collect();
        if stages.is_empty() {
            let asked = parts.drain.asked();
            tokio::select! {
                biased;
                () = asked.cancelled() => {}
                changed = assigned.changed() => if changed.is_err() { return },
            }
            continue;
        }
        turn += 1;
        let (stage, size) = &stages[turn % stages.len()];
        match one_unit(&parts, stage, *size).await {
            Ok(true) => {}
            Ok(false) | Err(_) => sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Whether there was one to make.
async fn one_unit(parts: &CuratorParts, stage: &(String, String), size: u64) -> Result<bool, Status> {
    let stop = CancellationToken::new();
    let node_id = parts.id.clone();
    let request =
        v1::LeaseUnitRequest { job_id: stage.0.clone(), stage: stage.1.clone(), node_id: node_id.clone() };
    let leased = parts
        .controllers
        .call_until_decided("lease unit", CALL_TIMEOUT, &stop, |channel| {
            let request = request.clone();
            async move { CurationServiceClient::new(channel).lease_unit(request).await }
        })
        .await?;
    let (Outcome::Leased, Some(lease)) = (leased.outcome(), leased.unit) else { return Ok(false) };
    let mut left = Duration::from_millis(parts.rng.draw(|rng| rng.between(400, 2500)));
    let renew_every = Duration::from_millis(u64::from(lease.ttl_millis) / 3);
    while !left.is_zero() {
        let wait = left.min(renew_every);
        sleep(wait).await;
        if !parts.faults.hang.load(Ordering::Relaxed) {
            left -= wait;
        }
        if !left.is_zero() {
            let request = v1::RenewUnitRequest { lease: Some(lease.clone()), node_id: node_id.clone() };
            // Refused: somebody else makes it.
            parts
                .controllers
                .call_until_decided("renew unit", CALL_TIMEOUT, &stop, |channel| {
                    let request = request.clone();
                    async move { CurationServiceClient::new(channel).renew_unit(request).await }
                })
                .await?;
        }
    }
    if parts.faults.fail.load(Ordering::Relaxed) {
        give_back(parts, lease).await?;
    } else {
        hand_in(parts, lease, size).await?;
    }
    Ok(true)
}

async fn give_back(parts: &CuratorParts, lease: v1::UnitLease) -> Result<(), Status> {
    let request = v1::FailUnitRequest {
        lease: Some(lease),
        node_id: parts.id.clone(),
        reason: "no space left on device".into(),
        kind: v1::UnitFailureKind::Passing.into(),
        ..Default::default()
    };
    let stop = CancellationToken::new();
    parts
        .controllers
        .call_until_decided("fail unit", CALL_TIMEOUT, &stop, |channel| {
            let request = request.clone();
            async move { CurationServiceClient::new(channel).fail_unit(request).await }
        })
        .await?;
    Ok(())
}

async fn hand_in(parts: &CuratorParts, lease: v1::UnitLease, size: u64) -> Result<(), Status> {
    let v1::UnitLease { job_id, stage, unit, lease_generation, .. } = &lease;
    parts.objects.put(crescendo_core::object_keys::shard(job_id, stage, *unit, *lease_generation));
    let rejected = parts.rng.draw(|rng| rng.below(2)).min(size.saturating_sub(1));
    let request = v1::CommitUnitRequest {
        node_id: parts.id.clone(),
        shard: Some(v1::Shard {
            unit: *unit,
            path: crescendo_core::object_keys::shard(job_id, stage, *unit, *lease_generation),
            pairs: size - rejected,
            size_bytes: 1000,
            sha256: "a".repeat(64),
            first_index: 0,
        }),
        rejected: [("similarity_low".to_owned(), rejected)].into(),
        lease: Some(lease),
        ..Default::default()
    };
    let stop = CancellationToken::new();
    parts
        .controllers
        .call_until_decided("commit unit", CALL_TIMEOUT, &stop, |channel| {
            let request = request.clone();
            async move { CurationServiceClient::new(channel).commit_unit(request).await }
        })
        .await?;
    Ok(())
}
