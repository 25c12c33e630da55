//! What tenants see of each other: nothing.

use anyhow::Context as _;
use crescendo_proto::v1;
use tonic::{Code, Status};

use super::cluster::{Guarded, spec_of};
use crescendo_testing::specs::SPEC;

async fn get(cluster: &Guarded, name: &str, job_id: &str) -> Result<v1::Job, Status> {
    let request = v1::GetJobRequest { job_id: job_id.into() };
    let got: v1::GetJobResponse = cluster.ask(name, "JobService/GetJob", &request).await?;
    got.job.ok_or_else(|| Status::internal("no job"))
}

async fn list(cluster: &Guarded, name: &str, tenant: &str) -> anyhow::Result<Vec<String>> {
    let request = v1::ListJobsRequest { tenant: tenant.into(), ..Default::default() };
    let page: v1::ListJobsResponse = cluster.ask(name, "JobService/ListJobs", &request).await?;
    Ok(page.jobs.into_iter().map(|job| job.tenant).collect())
}

#[tokio::test]
async fn a_job_of_another_tenant_is_as_one_that_does_not_exist() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    let job = cluster.submit("submitter-research", "r-1", SPEC).await?.job.context("a job")?;
    assert_eq!(job.tenant, "research", "a spec without a tenant is of its submitter's");
    assert_eq!(get(&cluster, "viewer-research", &job.job_id).await?.job_id, job.job_id);
    assert_eq!(get(&cluster, "root", &job.job_id).await?.job_id, job.job_id);

    // The same length and the same alphabet, so that the whole message can be compared.
    let missing = format!("{}zzzzzz", &job.job_id[..job.job_id.len() - 6]);
    let foreign = get(&cluster, "viewer-products", &job.job_id).await.expect_err("foreign");
    let absent = get(&cluster, "viewer-products", &missing).await.expect_err("absent");
    assert_eq!(foreign.code(), Code::NotFound);
    assert_eq!(foreign.message().replace(&job.job_id, "JOB"), absent.message().replace(&missing, "JOB"));
    let keys = |status: &Status| {
        let mut keys: Vec<String> = status.metadata().keys().map(|key| format!("{key:?}")).collect();
        keys.sort();
        keys
    };
    assert_eq!((foreign.code(), keys(&foreign)), (absent.code(), keys(&absent)));
    Ok(())
}

#[tokio::test]
async fn lists_and_submits_are_those_of_the_tenant() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    cluster.submit("submitter-research", "r-1", SPEC).await?;
    cluster.submit("submitter-products", "r-1", SPEC).await?;
    cluster.submit("root", "r-1", SPEC).await?;
    assert_eq!(list(&cluster, "viewer-research", "").await?, ["research"]);
    assert_eq!(list(&cluster, "viewer-research", "research").await?, ["research"]);
    assert!(list(&cluster, "viewer-research", "products").await?.is_empty());
    let mut all = list(&cluster, "root", "").await?;
    all.sort();
    assert_eq!(all, ["default", "products", "research"], "an admin without a tenant gets the spec's default");
    assert_eq!(list(&cluster, "root", "products").await?, ["products"]);

    let refused =
        cluster.submit("submitter-research", "r-9", &spec_of("products")).await.expect_err("foreign");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "submitter-research submits for tenant research, and the spec is of tenant products"
    );
    let refused =
        cluster.submit("submitter-research", "r-9", &spec_of("default")).await.expect_err("foreign");
    assert_eq!(refused.code(), Code::PermissionDenied, "default is a tenant like any other");
    cluster.submit("root", "r-9", &spec_of("products")).await?;
    Ok(())
}

#[tokio::test]
async fn request_ids_of_tenants_do_not_meet() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    let research = cluster.submit("submitter-research", "nightly", SPEC).await?;
    let other = SPEC.replace("steps: 20", "steps: 40");
    let products = cluster.submit("submitter-products", "nightly", &other).await?;
    assert!(!products.already_submitted, "neither the same job nor a conflict");
    let ids = [&research, &products].map(|submitted| submitted.job.as_ref().map(|job| job.job_id.clone()));
    assert_ne!(ids[0], ids[1]);
    let again = cluster.submit("submitter-research", "nightly", SPEC).await?;
    assert!(again.already_submitted);
    assert_eq!(again.job.map(|job| job.job_id), ids[0]);
    let conflict = cluster.submit("submitter-research", "nightly", &other).await.expect_err("another spec");
    assert_eq!(conflict.code(), Code::AlreadyExists);
    Ok(())
}

#[tokio::test]
async fn everybody_is_told_who_they_are() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    let who = async |name: &str| -> anyhow::Result<v1::WhoAmIResponse> {
        Ok(cluster.ask(name, "AccessService/WhoAmI", &v1::WhoAmIRequest {}).await?)
    };
    let told = who("viewer-research").await?;
    assert_eq!(
        (told.name.as_str(), told.role.as_str(), told.tenant.as_str()),
        ("viewer-research", "viewer", "research")
    );
    assert!(told.leads && told.at.is_some() && told.object_store_url.starts_with("file://"), "{told:?}");
    let told = who("root").await?;
    assert_eq!((told.role.as_str(), told.tenant.as_str()), ("admin", ""));
    Ok(())
}

#[tokio::test]
async fn an_explanation_names_no_job_of_another_tenant() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    let job = cluster.submit("submitter-research", "r-1", SPEC).await?.job.context("a job")?.job_id;
    let request = v1::ExplainJobRequest { job_id: job.clone() };
    let told: v1::ExplainJobResponse =
        cluster.ask("viewer-research", "JobService/ExplainJob", &request).await?;
    assert_eq!((told.job_id.as_str(), told.cause.as_str()), (job.as_str(), "no_curator"), "{told:?}");
    assert!(!told.findings.is_empty() && !told.remedies.is_empty(), "{told:?}");
    let foreign: Result<v1::ExplainJobResponse, Status> =
        cluster.ask("viewer-products", "JobService/ExplainJob", &request).await;
    assert_eq!(foreign.expect_err("foreign").code(), Code::NotFound);
    Ok(())
}

#[tokio::test]
async fn a_view_shows_what_its_caller_may_see_and_no_more() -> anyhow::Result<()> {
    use v1::view::Shows;
    use v1::watch_views_response::Shown;
    let cluster = Guarded::start().await?;
    let job = cluster.submit("submitter-research", "r-1", SPEC).await?.job.context("a job")?.job_id;
    let first = async |name: &str, shows: Shows| -> anyhow::Result<Shown> {
        let request = v1::WatchViewsRequest { views: vec![v1::View { view_id: 7, shows: Some(shows) }] };
        let told: v1::WatchViewsResponse = cluster.ask(name, "ViewService/WatchViews", &request).await?;
        assert_eq!(told.view_id, 7);
        told.shown.context("something")
    };
    let of_job = || Shows::Job(v1::JobView { job_id: job.clone() });
    let of_curves = || Shows::Curves(v1::CurvesView { job_id: job.clone(), ..Default::default() });
    let of_log = || Shows::Log(v1::LogView { job_id: job.clone(), tail_lines: 1 });
    let failure = |shown: Shown| match shown {
        Shown::Failed(failed) => Some(Code::from(failed.code)),
        _ => None,
    };
    assert_eq!(failure(first("viewer-research", of_job()).await?), None);
    for shows in [of_job(), of_curves(), of_log()] {
        assert_eq!(
            failure(first("viewer-products", shows.clone()).await?),
            Some(Code::NotFound),
            "{shows:?}"
        );
    }
    let all = || Shows::Jobs(v1::JobsView::default());
    for (name, expected) in [("viewer-research", 1), ("viewer-products", 0), ("root", 1)] {
        let Shown::Jobs(jobs) = first(name, all()).await? else { anyhow::bail!("{name} sees no list") };
        assert_eq!((jobs.total, jobs.job_ids.len()), (expected, expected as usize), "{name}");
    }
    let nodes = || Shows::Nodes(v1::NodesView {});
    assert_eq!(failure(first("submitter-research", nodes()).await?), Some(Code::PermissionDenied));
    assert_eq!(failure(first("operator-research", nodes()).await?), None);
    let request = v1::ReadCurvesRequest { job_id: job.clone(), ..Default::default() };
    let foreign: Result<v1::ReadCurvesResponse, Status> =
        cluster.ask("viewer-products", "ViewService/ReadCurves", &request).await;
    assert_eq!(foreign.expect_err("foreign").code(), Code::NotFound);
    Ok(())
}
