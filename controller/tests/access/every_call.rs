//! Each call with each credential that must not do: refused, and nothing changed in the store. Then the same bytes with
//! the right one, so that none of the refusals above was for something else.

use anyhow::Context as _;
use crescendo_core::access::{Role, Rule, Who};
use crescendo_proto::v1;
use prost::Message as _;
use tonic::Code;
use tonic::transport::Channel;

use super::cluster::{Guarded, NODE, ask_over, spec_of, token};
use super::raw::{call, controller_calls, path};
use crescendo_testing::controller::{FakeNode, hello};

/// A job of tenant research that trains, with a unit under way.
struct Scene {
    cluster: Guarded,
    nodes: Channel,
    job: String,
    attempt: v1::AttemptRef,
    lease: v1::UnitLease,
    _session: FakeNode,
}

fn unit_result(lease: &v1::UnitLease) -> v1::CommitUnitRequest {
    let v1::UnitLease { job_id, stage, unit, lease_generation, .. } = lease;
    let path = format!("jobs/{job_id}/{stage}/pairs/unit-{unit:06}-l{lease_generation}.tar");
    let shard =
        v1::Shard { unit: *unit, path, pairs: 4, size_bytes: 1000, sha256: "a".repeat(64), first_index: 0 };
    v1::CommitUnitRequest {
        lease: Some(lease.clone()),
        node_id: "c-1".into(),
        shard: Some(shard),
        ..Default::default()
    }
}

fn checkpoint(attempt: &v1::AttemptRef, generation: u64) -> v1::Checkpoint {
    let v1::AttemptRef { job_id, stage, .. } = attempt;
    let file =
        v1::CheckpointFile { name: "dit_lora.safetensors".into(), size_bytes: 10, sha256: "b".repeat(64) };
    v1::Checkpoint {
        job_id: job_id.clone(),
        stage: stage.clone(),
        generation,
        step: 5,
        path: format!("jobs/{job_id}/{stage}/checkpoints/step-00000005-g{generation}"),
        files: vec![file],
        next_position: 10,
        ..Default::default()
    }
}

/// One of its checkpoints is marked to be kept.
fn pause_request(job_id: String) -> v1::PauseJobRequest {
    v1::PauseJobRequest { job_id, reason: "lunch".into(), keep_curating: true }
}

fn continuation_request(job_id: String) -> v1::PlanContinuationRequest {
    v1::PlanContinuationRequest { job_id, steps: 8, name: String::new() }
}

fn file_request(job_id: String, attempt: &v1::AttemptRef) -> v1::ReadCheckpointFileRequest {
    let path = checkpoint(attempt, attempt.generation).path;
    v1::ReadCheckpointFileRequest { job_id, path, name: "dit_lora.safetensors".into() }
}

fn views_request(job_id: String) -> v1::WatchViewsRequest {
    let shows = Some(v1::view::Shows::Job(v1::JobView { job_id }));
    v1::WatchViewsRequest { views: vec![v1::View { view_id: 1, shows }] }
}

fn curves_request(job_id: String) -> v1::ReadCurvesRequest {
    v1::ReadCurvesRequest { job_id, ..Default::default() }
}

fn delete_request(job_id: String) -> v1::DeleteJobRequest {
    let keep = Some(v1::KeptParts { checkpoints: true, ..Default::default() });
    v1::DeleteJobRequest { job_id, keep, dry_run: false }
}

impl Scene {
    async fn new() -> anyhow::Result<Self> {
        let cluster = Guarded::start().await?;
        let submitted = cluster.submit("submitter-research", "r-1", &spec_of("research")).await?;
        let job = submitted.job.context("a job")?.job_id;
        let nodes = cluster.channel_as("some-node", NODE).await?;
        let lease = Self::lease(&nodes, &job).await?;
        let _: v1::CommitUnitResponse =
            ask_over(&nodes, None, "CurationService/CommitUnit", &unit_result(&lease)).await?;
        let mut session =
            FakeNode::open_over(nodes.clone(), hello("t-1", v1::NodeKind::Trainer, 2, "first")).await?;
        let attempt = session.start_command().await?.attempt.context("an attempt")?;
        let lease = Self::lease(&nodes, &job).await?;
        Ok(Self { cluster, nodes, job, attempt, lease, _session: session })
    }

    async fn lease(nodes: &Channel, job: &str) -> anyhow::Result<v1::UnitLease> {
        let request =
            v1::LeaseUnitRequest { job_id: job.into(), stage: "stage-1".into(), node_id: "c-1".into() };
        let leased: v1::LeaseUnitResponse =
            ask_over(nodes, None, "CurationService/LeaseUnit", &request).await?;
        leased.unit.context("a unit")
    }

    /// A request that does what the call is for.
    fn body(&self, rule: &Rule) -> Vec<u8> {
        let job_id = self.job.clone();
        let stage = self.lease.stage.clone();
        match rule.method {
            "SubmitJob" => v1::SubmitJobRequest {
                request_id: "r-2".into(),
                spec_yaml: spec_of("research").into_bytes(),
                validate_only: false,
            }
            .encode_to_vec(),
            "GetJob" => v1::GetJobRequest { job_id }.encode_to_vec(),
            "GetSpec" => v1::GetSpecRequest { job_id }.encode_to_vec(),
            "ListJobs" => v1::ListJobsRequest::default().encode_to_vec(),
            "WatchJob" => v1::WatchJobRequest { job_id, from_revision: 0 }.encode_to_vec(),
            "ExplainJob" => v1::ExplainJobRequest { job_id }.encode_to_vec(),
            "WhoAmI" => v1::WhoAmIRequest {}.encode_to_vec(),
            "CancelJob" => v1::CancelJobRequest { job_id, reason: "enough".into() }.encode_to_vec(),
            "PauseJob" => pause_request(job_id).encode_to_vec(),
            "ResumeJob" => v1::ResumeJobRequest { job_id }.encode_to_vec(),
            "RetryJob" => v1::RetryJobRequest { job_id }.encode_to_vec(),
            "NoteJob" => v1::NoteJobRequest { job_id, text: "seen".into() }.encode_to_vec(),
            "PlanContinuation" => continuation_request(job_id).encode_to_vec(),
            "DeleteJob" => delete_request(job_id).encode_to_vec(),
            "GetLineage" => v1::GetLineageRequest { job_id }.encode_to_vec(),
            "KeepCheckpoint" => {
                v1::KeepCheckpointRequest { job_id, stage, step: 5, release: false }.encode_to_vec()
            }
            "ReadLogs" => v1::ReadLogsRequest { job_id, tail_lines: 1, follow: false }.encode_to_vec(),
            "OpenSession" => {
                let hello = hello("t-2", v1::NodeKind::Trainer, 1, "first");
                v1::OpenSessionRequest { message: Some(v1::open_session_request::Message::Hello(hello)) }
                    .encode_to_vec()
            }
            "ListQueues" => v1::ListQueuesRequest {}.encode_to_vec(),
            "ListUsage" => v1::ListUsageRequest::default().encode_to_vec(),
            "ListNodes" => v1::ListNodesRequest {}.encode_to_vec(),
            "DrainNode" => v1::DrainNodeRequest { node_id: "t-1".into(), undo: false }.encode_to_vec(),
            "ForgetNode" => v1::ForgetNodeRequest { node_id: "t-1".into() }.encode_to_vec(),
            "CommitCheckpoint" => v1::CommitCheckpointRequest {
                checkpoint: Some(checkpoint(&self.attempt, self.attempt.generation)),
            }
            .encode_to_vec(),
            "ListCheckpoints" => v1::ListCheckpointsRequest { job_id, stage }.encode_to_vec(),
            "MarkCheckpointDamaged" => v1::MarkCheckpointDamagedRequest {
                job_id,
                stage,
                generation: self.attempt.generation,
                path: checkpoint(&self.attempt, self.attempt.generation).path,
                reason: "torn".into(),
            }
            .encode_to_vec(),
            "ReadCheckpointFile" => file_request(job_id, &self.attempt).encode_to_vec(),
            "SendObject" => {
                let message = Some(v1::send_object_request::Message::ReadId("nobody's".into()));
                v1::SendObjectRequest { message }.encode_to_vec()
            }
            "CollectLeftovers" => {
                v1::CollectLeftoversRequest { job_id: String::new(), dry_run: true }.encode_to_vec()
            }
            "JudgeObjects" => v1::JudgeObjectsRequest { collect_id: "nobody's".into(), ..Default::default() }
                .encode_to_vec(),
            // Lists the services.
            "ServerReflectionInfo" => vec![0x3a, 0],
            of_data => self.body_of_data(of_data),
        }
    }

    /// Of calls on units, pairs, curves and samples.
    fn body_of_data(&self, method: &str) -> Vec<u8> {
        let job_id = self.job.clone();
        let stage = self.lease.stage.clone();
        let node_id = "c-1".to_owned();
        match method {
            "LeaseUnit" => v1::LeaseUnitRequest { job_id, stage, node_id }.encode_to_vec(),
            "RenewUnit" => v1::RenewUnitRequest { lease: Some(self.lease.clone()), node_id }.encode_to_vec(),
            "CommitUnit" => unit_result(&self.lease).encode_to_vec(),
            "FailUnit" => {
                let lease = Some(self.lease.clone());
                let reason = "out of memory".into();
                v1::FailUnitRequest { lease, node_id, reason, ..Default::default() }.encode_to_vec()
            }
            "WatchViews" => views_request(job_id).encode_to_vec(),
            "ReadCurves" => curves_request(job_id).encode_to_vec(),
            "ReadPairs" => v1::ReadPairsRequest { job_id, stage, ..Default::default() }.encode_to_vec(),
            "MarkPairs" => {
                let indices = vec![0];
                v1::MarkPairsRequest { job_id, stage, indices, ..Default::default() }.encode_to_vec()
            }
            "ListPairMarks" => v1::ListPairMarksRequest { job_id, stage }.encode_to_vec(),
            "ListSamples" => v1::ListSamplesRequest { job_id, stage }.encode_to_vec(),
            "ReadSamples" => v1::ReadSamplesRequest { job_id, stage, step: 5 }.encode_to_vec(),
            "ReportSamples" => {
                v1::ReportSamplesRequest { draw_id: "nobody's".into(), node_id, message: None }
                    .encode_to_vec()
            }
            "WatchPairLog" => v1::WatchPairLogRequest { job_id, stage, from_unit: 0 }.encode_to_vec(),
            other => panic!("what does {other} take?"),
        }
    }

    async fn refuse(
        &self,
        rule: &Rule,
        channel: &Channel,
        token: Option<&str>,
        who: &str,
        codes: &[Code],
    ) -> anyhow::Result<()> {
        let before = self.cluster.dump().await?;
        let answer = call(channel, token, &path(rule), self.body(rule)).await;
        let status = answer.err().with_context(|| format!("{} is open to {who}", path(rule)))?;
        assert!(codes.contains(&status.code()), "{} by {who}: {status:?}", path(rule));
        if let Some(token) = token {
            assert!(!status.message().contains(token), "{who}: {}", status.message());
        }
        assert!(before == self.cluster.dump().await?, "{} by {who} has changed the store", path(rule));
        Ok(())
    }
}

#[tokio::test]
async fn a_call_without_the_right_credential_changes_nothing() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let cluster = &scene.cluster;
    let plain = cluster.channel().await?;
    let unnamed = cluster.channel_as("unnamed", &["https://example.org/somebody"]).await?;
    let viewer = ["urn:crescendo:role:viewer", "urn:crescendo:tenant:research"];
    let viewer = cluster.channel_as("viewer", &viewer).await?;
    let wrong = cluster.channel_as("wrong", &["urn:crescendo:role:root"]).await?;
    let unknown = [Code::Unauthenticated];
    let mut calls = 0;
    for rule in controller_calls() {
        calls += 1;
        scene.refuse(rule, &plain, None, "nobody", &unknown).await?;
        scene.refuse(rule, &unnamed, None, "a certificate without a role", &unknown).await?;
        scene.refuse(rule, &wrong, None, "a certificate with a role that is none", &unknown).await?;
        scene.refuse(rule, &plain, Some("token-of-nobody"), "an unknown token", &unknown).await?;
        scene.refuse(rule, &plain, Some(&token("former")), "an expired token", &unknown).await?;
        let root = token("root");
        scene.refuse(rule, &viewer, Some(&root), "certificate and token that disagree", &unknown).await?;
        scene.refuse(rule, &scene.nodes, Some(&root), "a node with a token", &unknown).await?;

        let denied = [Code::PermissionDenied];
        let below = match rule.who {
            Who::AtLeast(Role::Submitter) => Some("viewer-research"),
            Who::AtLeast(Role::Operator) => Some("submitter-research"),
            Who::AtLeast(Role::Admin) => Some("operator-research"),
            Who::Node => Some("root"),
            Who::Anyone | Who::AtLeast(_) | Who::NodeOr(_) => None,
        };
        if let Some(below) = below {
            scene.refuse(rule, &plain, Some(&token(below)), below, &denied).await?;
        }
        if matches!(rule.who, Who::AtLeast(_)) {
            scene.refuse(rule, &scene.nodes, None, "a node", &denied).await?;
        }
    }
    assert_eq!(calls, 45, "every call of the controller was tried");
    Ok(())
}

#[tokio::test]
async fn a_call_of_another_tenant_finds_nothing_to_change() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let cluster = &scene.cluster;
    let plain = cluster.channel().await?;
    for rule in controller_calls().filter(|rule| rule.service.starts_with("crescendo.v1.")) {
        // Every tenant sees the nodes, and who one is has an answer for everybody. Of views each says by itself that there is
        // nothing to see (`tenants`).
        if rule.who == Who::Node
            || matches!(
                rule.method,
                "ListJobs"
                    | "ListNodes"
                    | "ListQueues"
                    | "ListUsage"
                    | "WatchViews"
                    | "WhoAmI"
                    | "ServerReflectionInfo"
            )
        {
            continue;
        }
        for name in ["operator-products", "admin-products"] {
            let denied = ["SubmitJob", "DrainNode", "ForgetNode", "CollectLeftovers"].contains(&rule.method);
            let codes = if denied { [Code::PermissionDenied] } else { [Code::NotFound] };
            scene.refuse(rule, &plain, Some(&token(name)), name, &codes).await?;
        }
    }
    let jobs: v1::ListJobsResponse =
        cluster.ask("operator-products", "JobService/ListJobs", &v1::ListJobsRequest::default()).await?;
    assert_eq!(jobs.jobs, []);
    let queues: v1::ListQueuesResponse =
        cluster.ask("operator-products", "QueueService/ListQueues", &v1::ListQueuesRequest {}).await?;
    assert_eq!(queues.tenants, []);
    let usage: v1::ListUsageResponse =
        cluster.ask("operator-products", "QueueService/ListUsage", &v1::ListUsageRequest::default()).await?;
    assert_eq!(usage.usage, []);
    // The node says what runs on it.
    let mut running = hello("t-1", v1::NodeKind::Trainer, 2, "first");
    running.running = vec![scene.attempt.clone()];
    let _session = FakeNode::open_over(scene.nodes.clone(), running).await?;
    let nodes = async |name: &str| -> anyhow::Result<Vec<(u32, usize)>> {
        let list: v1::ListNodesResponse =
            cluster.ask(name, "NodeService/ListNodes", &v1::ListNodesRequest {}).await?;
        Ok(list.nodes.iter().map(|node| (node.slots_used, node.running.len())).collect())
    };
    assert_eq!(nodes("operator-research").await?, [(2, 1)]);
    assert_eq!(nodes("operator-products").await?, [(2, 0)], "slots are counted, jobs are not named");
    Ok(())
}

#[tokio::test]
async fn a_file_of_another_tenant_is_read_by_nobody() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let plain = scene.cluster.channel().await?;
    let of = |method: &str| controller_calls().find(|rule| rule.method == method).expect("a rule");
    call(&scene.nodes, None, &path(of("CommitCheckpoint")), scene.body(of("CommitCheckpoint"))).await?;
    let read = of("ReadCheckpointFile");
    for (name, code, says) in [
        ("viewer-research", Code::Unavailable, "no curator is connected"),
        ("admin-products", Code::NotFound, "job "),
    ] {
        let answer = call(&plain, Some(&token(name)), &path(read), scene.body(read)).await;
        let status = answer.expect_err("there is no curator");
        assert!(status.code() == code && status.message().starts_with(says), "{name}: {status:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_same_calls_work_for_those_who_may_make_them() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let plain = scene.cluster.channel().await?;
    let mut rules: Vec<&Rule> = controller_calls().collect();
    // The last ones end what the others work on.
    let last = ["CommitUnit", "MarkCheckpointDamaged", "CancelJob", "DeleteJob", "DrainNode"];
    rules.sort_by_key(|rule| last.iter().position(|name| *name == rule.method).map_or(0, |at| at + 1));
    for rule in rules {
        // The first fails the unit that CommitUnit needs; it has a test of its own below. The second goes on from a job that has
        // ended with a checkpoint, in `chain.rs`. The others need a curator and each other, and are in `reads.rs` and
        // `samples.rs`; a node is forgotten in `drains.rs`.
        let elsewhere = [
            "FailUnit",
            "PlanContinuation",
            "ReadCheckpointFile",
            "ReadPairs",
            "ReadSamples",
            "ReportSamples",
            "SendObject",
            "CollectLeftovers",
            "JudgeObjects",
            "ForgetNode",
        ];
        if elsewhere.contains(&rule.method) {
            continue;
        }
        let body = scene.body(rule);
        let answer = match rule.who {
            Who::Node => call(&scene.nodes, None, &path(rule), body).await,
            Who::AtLeast(Role::Admin) => call(&plain, Some(&token("root")), &path(rule), body).await,
            Who::AtLeast(role) | Who::NodeOr(role) => {
                let name = format!("{role}-research");
                call(&plain, Some(&token(&name)), &path(rule), body).await
            }
            Who::Anyone => call(&plain, None, &path(rule), body).await,
        };
        answer.with_context(|| path(rule))?;
    }
    Ok(())
}

#[tokio::test]
async fn a_request_of_a_node_that_is_sent_again_changes_nothing() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let Scene { cluster, nodes, attempt, lease, job, .. } = &scene;
    let of = |method: &str| controller_calls().find(|rule| rule.method == method).expect("a rule");
    // Released, a unit can be leased again at once.
    let fail = v1::FailUnitRequest {
        lease: Some(lease.clone()),
        node_id: "c-1".into(),
        released: true,
        ..Default::default()
    };
    let fail = fail.encode_to_vec();
    call(nodes, None, &path(of("FailUnit")), fail.clone()).await?;
    let newer = Scene::lease(nodes, job).await?;
    assert_eq!((newer.unit, newer.lease_generation), (lease.unit, lease.lease_generation + 1));
    let saved = scene.body(of("CommitCheckpoint"));
    call(nodes, None, &path(of("CommitCheckpoint")), saved.clone()).await?;

    let before = cluster.dump().await?;
    let stale = v1::CommitCheckpointRequest { checkpoint: Some(checkpoint(attempt, attempt.generation - 1)) };
    let damaged = v1::MarkCheckpointDamagedRequest {
        job_id: job.clone(),
        stage: "stage-1".into(),
        generation: attempt.generation - 1,
        path: checkpoint(attempt, attempt.generation).path,
        reason: "torn".into(),
    };
    let over = [
        ("FailUnit", fail),
        ("RenewUnit", scene.body(of("RenewUnit"))),
        ("CommitUnit", scene.body(of("CommitUnit"))),
        ("CommitCheckpoint", stale.encode_to_vec()),
        ("MarkCheckpointDamaged", damaged.encode_to_vec()),
    ];
    for (method, body) in over {
        let status = call(nodes, None, &path(of(method)), body).await.expect_err(method);
        assert_eq!(status.code(), Code::FailedPrecondition, "{method}: {status:?}");
    }
    // What is registered is answered as the first time.
    call(nodes, None, &path(of("CommitCheckpoint")), saved).await?;
    assert!(before == cluster.dump().await?, "a repeated request has changed the store");
    Ok(())
}

#[tokio::test]
async fn a_certificate_of_one_node_speaks_for_no_other() -> anyhow::Result<()> {
    let scene = Scene::new().await?;
    let uris = ["urn:crescendo:role:node", "urn:crescendo:node:c-2"];
    let other = scene.cluster.channel_as("c-2", &uris).await?;
    for rule in controller_calls().filter(|rule| {
        matches!(rule.method, "OpenSession" | "LeaseUnit" | "RenewUnit" | "CommitUnit" | "FailUnit")
    }) {
        scene.refuse(rule, &other, None, "another node", &[Code::PermissionDenied]).await?;
    }
    FakeNode::open_over(other.clone(), hello("c-2", v1::NodeKind::Curator, 0, "first")).await?;

    // Under its own name it takes nothing that belongs to another: neither a lease nor an attempt.
    let before = scene.cluster.dump().await?;
    let (lease, node_id) = (Some(scene.lease.clone()), "c-2".to_owned());
    let fail = v1::FailUnitRequest { lease: lease.clone(), node_id: node_id.clone(), ..Default::default() };
    let renew = v1::RenewUnitRequest { lease, node_id: node_id.clone() };
    let commit = v1::CommitUnitRequest { node_id, ..unit_result(&scene.lease) };
    let checkpoint = Some(checkpoint(&scene.attempt, scene.attempt.generation));
    let taken = [
        ("CurationService/FailUnit", fail.encode_to_vec()),
        ("CurationService/RenewUnit", renew.encode_to_vec()),
        ("CurationService/CommitUnit", commit.encode_to_vec()),
        ("CheckpointService/CommitCheckpoint", v1::CommitCheckpointRequest { checkpoint }.encode_to_vec()),
    ];
    for (method, body) in taken {
        let path = format!("/crescendo.v1.{method}");
        let status = call(&other, None, &path, body).await.expect_err(method);
        assert_eq!(status.code(), Code::PermissionDenied, "{method}: {status:?}");
    }
    assert!(before == scene.cluster.dump().await?);
    Ok(())
}
