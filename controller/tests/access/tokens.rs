//! Static tokens: in force while they are in the file.

use crescendo_proto::v1;
use tonic::{Code, Status};

use super::cluster::{Guarded, Options, ask_over, entry, people};
use crescendo_testing::eventually;

async fn list(cluster: &Guarded, name: &str) -> Result<v1::ListJobsResponse, Status> {
    cluster.ask(name, "JobService/ListJobs", &v1::ListJobsRequest::default()).await
}

#[tokio::test]
async fn a_token_is_good_while_it_is_in_the_file() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    list(&cluster, "viewer-research").await?;
    assert_eq!(list(&cluster, "newcomer").await.expect_err("unknown").code(), Code::Unauthenticated);

    let file = cluster.folder.path().join("tokens.yaml");
    std::fs::write(&file, entry("newcomer", "viewer", Some("research"), "never"))?;
    eventually("the new token is taken", async || Ok(list(&cluster, "newcomer").await.ok())).await?;
    let revoked = list(&cluster, "viewer-research").await.expect_err("revoked");
    assert_eq!((revoked.code(), revoked.message()), (Code::Unauthenticated, "the token is not known"));

    // A file that cannot be used changes nothing, and one that was being written is taken when it is whole.
    std::fs::write(&file, "- {name: newcomer, role: vie")?;
    std::fs::write(&file, people())?;
    eventually("the old tokens are back", async || Ok(list(&cluster, "viewer-research").await.ok())).await?;
    Ok(())
}

#[tokio::test]
async fn a_token_that_is_absurd_is_refused_and_the_next_call_is_answered() -> anyhow::Result<()> {
    let cluster = Guarded::start().await?;
    let channel = cluster.channel().await?;
    let request = v1::ListJobsRequest::default();
    for length in [9_000, 1_000_000] {
        let long = "a".repeat(length);
        let refused =
            ask_over::<v1::ListJobsResponse>(&channel, Some(&long), "JobService/ListJobs", &request).await;
        let status = refused.expect_err("too long");
        assert_ne!(status.code(), Code::Ok);
        assert!(!status.message().contains("aaaa"), "{}", status.message());
    }
    list(&cluster, "root").await?;
    Ok(())
}

#[tokio::test]
async fn without_any_way_to_log_in_nobody_is_let_in_but_health_answers() -> anyhow::Result<()> {
    let cluster = Guarded::start_with(Options::default()).await?;
    let refused = list(&cluster, "root").await.expect_err("there are no tokens");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let channel = cluster.channel().await?;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    health.check(request).await?;
    Ok(())
}
