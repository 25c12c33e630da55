//! Quotas, rates, and the audit log.

use anyhow::Context as _;
use crescendo_proto::{status, v1};
use tonic::Code;

use super::cluster::{Guarded, Options, people, token};
use crescendo_testing::eventually;
use crescendo_testing::specs::SPEC;

async fn with_tenants(text: &str) -> anyhow::Result<Guarded> {
    Guarded::start_with(Options {
        tokens: Some(people()),
        tenants: Some(text.to_owned()),
        ..Options::default()
    })
    .await
}

#[tokio::test]
async fn a_full_queue_refuses_with_a_hint_until_the_file_says_otherwise() -> anyhow::Result<()> {
    let cluster = with_tenants("tenants: {research: {maxQueuedJobs: 1}}").await?;
    cluster.submit("submitter-research", "r-1", SPEC).await?;
    let full = cluster.submit("submitter-research", "r-2", SPEC).await.expect_err("full");
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(full.message(), "tenant research has 1 of its 1 queued jobs");
    assert!(full.metadata().contains_key(status::RETRY_AFTER_TRAILER));
    assert!(cluster.submit("submitter-research", "r-1", SPEC).await?.already_submitted);
    cluster.submit("submitter-products", "r-1", SPEC).await?;

    let file = cluster.folder.path().join("tenants.yaml");
    std::fs::write(&file, "tenants: {research: {maxQueuedJob: 2}}")?;
    eventually("the broken file is counted", async || {
        let counted = counter(&cluster, "crescendo_access_reload_failures_total");
        Ok((counted > 0.0).then_some(()))
    })
    .await?;
    assert!(cluster.submit("submitter-research", "r-2", SPEC).await.is_err(), "what was read before stands");
    std::fs::write(&file, "tenants: {research: {maxQueuedJobs: 2}}")?;
    eventually("the new limit holds", async || {
        Ok(cluster.submit("submitter-research", "r-2", SPEC).await.ok())
    })
    .await?;
    Ok(())
}

fn counter(cluster: &Guarded, name: &str) -> f64 {
    let families = cluster.registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    family
        .into_iter()
        .flat_map(|family| family.get_metric())
        .map(|metric| metric.get_counter().get_value())
        .sum()
}

#[tokio::test]
async fn a_queue_is_seen_and_used_by_those_whom_it_is_for() -> anyhow::Result<()> {
    let cluster = with_tenants(
        "
queues: {open: {guaranteed: {cpu: 2}}, closed: {tenants: [products]}}
fairShare: {halfLife: 24h}
tenants: {research: {queue: open, share: 2}}
",
    )
    .await?;
    let in_queue = |queue: &str| SPEC.replace("spec:", &format!("spec:\n  queue: {queue}"));
    let refused = cluster.submit("submitter-research", "r-1", &in_queue("closed")).await.expect_err("closed");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("spec.queue"), "{refused:?}");
    assert!(
        refused.message().contains("closed is no queue for jobs of tenant research; those that are: open")
    );
    cluster.submit("submitter-research", "r-1", SPEC).await?;
    cluster.submit("submitter-products", "p-1", &in_queue("closed")).await?;
    let told = async |name: &str| {
        let request = v1::ListQueuesRequest {};
        cluster.ask::<v1::ListQueuesResponse>(name, "QueueService/ListQueues", &request).await
    };
    let seen = told("viewer-research").await?;
    let names: Vec<_> = seen.queues.iter().map(|queue| (queue.name.as_str(), queue.waiting_jobs)).collect();
    assert_eq!(names, [("open", 1)], "neither the queue of others nor their jobs");
    let tenants: Vec<_> = seen.tenants.iter().map(|one| (one.tenant.as_str(), one.share)).collect();
    assert_eq!((tenants, seen.fair_share, seen.half_life_seconds), (vec![("research", 2)], true, 86_400));
    let all = told("root").await?;
    assert_eq!(all.queues.len(), 2);
    assert_eq!(all.tenants.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_is_not_listed_submits_only_where_it_may() -> anyhow::Result<()> {
    let cluster = with_tenants("{unlisted: refuse, tenants: {research: {}}}").await?;
    cluster.submit("submitter-research", "r-1", SPEC).await?;
    let refused = cluster.submit("submitter-products", "r-1", SPEC).await.expect_err("not listed");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "tenant products is not one of those that may submit jobs");
    Ok(())
}

#[tokio::test]
async fn a_caller_that_is_too_fast_is_slowed_down_alone() -> anyhow::Result<()> {
    let cluster = with_tenants("tenants: {research: {callsPerSecond: 1, burst: 2}}").await?;
    let list = async |name: &str| {
        let request = v1::ListJobsRequest::default();
        cluster.ask::<v1::ListJobsResponse>(name, "JobService/ListJobs", &request).await
    };
    let mut slowed = None;
    for _ in 0..20 {
        if let Err(status) = list("viewer-research").await {
            slowed = Some(status);
            break;
        }
    }
    let slowed = slowed.context("never slowed down")?;
    assert_eq!(slowed.code(), Code::ResourceExhausted);
    assert!(slowed.message().contains("makes more than 1 calls a second"), "{slowed:?}");
    assert!(slowed.metadata().contains_key(status::RETRY_AFTER_TRAILER));
    list("operator-research").await?;
    for _ in 0..20 {
        list("viewer-products").await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_change_and_every_refusal_is_written_down() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    let job = cluster.submit("submitter-research", "r-1", SPEC).await?.job.context("a job")?.job_id;
    let cancel = v1::CancelJobRequest { job_id: job.clone(), reason: String::new() };
    let path = "JobService/CancelJob";
    let denied = cluster.ask::<v1::CancelJobResponse>("viewer-research", path, &cancel).await;
    assert!(denied.is_err());
    let foreign = cluster.ask::<v1::CancelJobResponse>("submitter-products", path, &cancel).await;
    assert!(foreign.is_err());
    let stranger = cluster.ask::<v1::CancelJobResponse>("nobody", path, &cancel).await;
    assert!(stranger.is_err());
    let look = v1::GetJobRequest { job_id: job.clone() };
    cluster.ask::<v1::GetJobResponse>("viewer-research", "JobService/GetJob", &look).await?;
    let check = v1::SubmitJobRequest {
        spec_yaml: SPEC.as_bytes().to_vec(),
        validate_only: true,
        ..Default::default()
    };
    cluster.ask::<v1::SubmitJobResponse>("submitter-research", "JobService/SubmitJob", &check).await?;
    cluster.ask::<v1::CancelJobResponse>("submitter-research", path, &cancel).await?;

    let lines = cluster.audit_when("the last call is written down", |lines| lines.len() >= 5).await?;
    let told: Vec<[&str; 6]> = lines
        .iter()
        .map(|line| {
            ["who", "role", "tenant", "call", "on", "result"]
                .map(|key| line[key].as_str().unwrap_or("missing"))
        })
        .collect();
    let on = format!("job/{job}");
    let expected = [
        ["submitter-research", "submitter", "research", "JobService/SubmitJob", &on, "ok"],
        ["viewer-research", "viewer", "research", "JobService/CancelJob", "", "permission_denied"],
        ["submitter-products", "submitter", "products", "JobService/CancelJob", &on, "not_found"],
        ["", "", "", "JobService/CancelJob", "", "unauthenticated"],
        ["submitter-research", "submitter", "research", "JobService/CancelJob", &on, "ok"],
    ];
    assert_eq!(told, expected, "a look and a dry run are not written down");
    for line in &lines {
        assert!(line["from"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{line}");
        assert!(humantime::parse_rfc3339(line["time"].as_str().unwrap_or_default()).is_ok(), "{line}");
    }
    let text = std::fs::read_to_string(cluster.folder.path().join("audit.jsonl"))?;
    assert!(!text.contains(&token("")), "no token is in it");
    Ok(())
}
