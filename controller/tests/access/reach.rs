//! A spec reaches only the files, keys and addresses that its tenant may.

use anyhow::Context as _;
use crescendo_proto::{status, v1};
use tonic::{Code, Status};

use super::cluster::{Guarded, Options, people};
use crescendo_testing::specs::SPEC;

/// [`SPEC`] with other subjects.
fn with_subjects(subjects: &str) -> String {
    SPEC.replace("subjects: subjects", &format!("subjects: \"{subjects}\""))
}

/// [`SPEC`] with an endpoint that writes its prompts.
fn with_endpoint(endpoint: &str) -> String {
    let endpoints = format!("  endpoints:\n    - {{name: vlm, model: m, {endpoint}}}\n  stages:");
    SPEC.replace("  stages:", &endpoints)
}

fn fields(refused: &Status) -> Vec<String> {
    let problems = status::spec_problems(refused).map(|list| list.problems).unwrap_or_default();
    problems.into_iter().map(|problem| problem.path).collect()
}

async fn refused(cluster: &Guarded, who: &str, spec: &str) -> Status {
    let refused = cluster.submit(who, "r-refused", spec).await.expect_err(spec);
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    refused
}

#[tokio::test]
async fn a_tenant_names_its_own_files_and_no_other_tenants() -> anyhow::Result<()> {
    let cluster = Guarded::start_with(Options {
        tokens: Some(people()),
        tenants: Some(
            "{shared: [open], tenants: {research: {roots: [/data/research]}, products: {}}}".to_owned(),
        ),
        ..Options::default()
    })
    .await?;
    let job = async |who: &str| -> anyhow::Result<String> {
        Ok(cluster.submit(who, "r-1", SPEC).await?.job.context("a job")?.job_id)
    };
    let (own, foreign) = (job("submitter-research").await?, job("submitter-products").await?);
    let others = format!("store:jobs/{foreign}/stage-1/pairs");
    for path in [
        others.as_str(),
        "store:tenants/products/x",
        "store:jobs",
        "/etc",
        "/data/products",
        "../other",
        "x/../../y",
        "store:tenants/research/../products",
    ] {
        let refused = refused(&cluster, "submitter-research", &with_subjects(path)).await;
        assert_eq!(fields(&refused), ["spec.stages[0].data.subjects"], "{path}: {refused:?}");
        assert!(refused.message().starts_with("line 11, column "), "{path}: {}", refused.message());
    }
    for (n, path) in [
        &format!("store:jobs/{own}/stage-1/pairs"),
        "store:tenants/research/x",
        "store:open/x",
        "/data/research/x",
        "libraries/x",
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!("r-good-{n}");
        cluster
            .submit("submitter-research", &request, &with_subjects(path))
            .await
            .with_context(|| path.to_owned())?;
    }
    // What is asked before submitting says the same.
    let check = v1::SubmitJobRequest {
        spec_yaml: with_subjects("/etc").into_bytes(),
        validate_only: true,
        ..Default::default()
    };
    let told: v1::SubmitJobResponse =
        cluster.ask("submitter-research", "JobService/SubmitJob", &check).await?;
    let told: Vec<(&str, u32)> =
        told.problems.iter().map(|found| (found.path.as_str(), found.line)).collect();
    assert_eq!(told, [("spec.stages[0].data.subjects", 11)]);
    // A spec that was taken once stays taken.
    assert!(cluster.submit("submitter-research", "r-1", SPEC).await?.already_submitted);
    Ok(())
}

#[tokio::test]
async fn keys_addresses_and_priorities_are_those_of_the_tenant() -> anyhow::Result<()> {
    let tenants = "
default: {endpoints: [\"vllm.llm.svc:8000\"], maxPriority: 5}
tenants: {research: {keys: [vlm], endpoints: [public]}}
";
    let cluster = Guarded::start_with(Options {
        tokens: Some(people()),
        tenants: Some(tenants.to_owned()),
        ..Options::default()
    })
    .await?;
    let public = with_endpoint("url: \"https://api.example.com/v1\", key: vlm");
    cluster.submit("submitter-research", "r-1", &public).await?;
    let told = refused(&cluster, "submitter-products", &public).await;
    assert_eq!(fields(&told), ["spec.endpoints[0].key", "spec.endpoints[0].url"]);
    for url in
        ["http://127.0.0.1:9/v1", "http://localhost/v1", "http://169.254.169.254/v1", "http://[::1]/v1"]
    {
        let told = refused(&cluster, "submitter-research", &with_endpoint(&format!("url: \"{url}\""))).await;
        assert_eq!(fields(&told), ["spec.endpoints[0].url"], "{url}");
    }
    cluster
        .submit("submitter-products", "r-1", &with_endpoint("url: \"http://vllm.llm.svc:8000/v1\""))
        .await?;
    let high = |priority: u32| SPEC.replace("  resources:", &format!("  priority: {priority}\n  resources:"));
    cluster.submit("submitter-products", "r-2", &high(5)).await?;
    let told = refused(&cluster, "submitter-products", &high(6)).await;
    assert_eq!(
        told.message(),
        "line 7, column 13: spec.priority: 6 is more than tenant products may have: at most 5"
    );
    cluster.submit("submitter-research", "r-2", &high(1000)).await?;
    Ok(())
}

#[tokio::test]
async fn without_a_file_the_default_tenant_is_the_operator_and_no_other() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    cluster.submit("root", "r-1", &with_subjects("/data/x")).await?;
    cluster.submit("root", "r-2", &with_endpoint("url: \"http://127.0.0.1:9/v1\", key: vlm")).await?;
    refused(&cluster, "submitter-research", &with_subjects("/data/x")).await;
    Ok(())
}
