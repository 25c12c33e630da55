//! Nodes that speak for what is not theirs: another's ranks, or another's name; and curators that cannot take a stage up.

use std::time::Duration;

use anyhow::{Context as _, Result};
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_testing::controller::{Controller, FakeNode, curate, hello};
use crescendo_testing::eventually;
use tonic::{Code, Status};
use v1::AttemptPhase::{Failed, Running};

async fn counted(controller: &Controller, metric: &str) -> Result<()> {
    eventually(metric, async || Ok(controller.metrics().await?.contains(metric).then_some(()))).await
}

#[tokio::test]
async fn a_report_counts_only_from_the_nodes_of_its_attempt() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
    curate(&controller, &job, "c-1").await?;
    let attempt = trainer.start_command().await?.attempt.context("an attempt")?;
    trainer.report(&attempt, Running, 3).await?;
    controller.job_when(&job, "it trains", |job| job.stages[0].step == 3).await?;

    let stranger = FakeNode::trainer(&controller, "t-22", 2).await?;
    let failed = v1::AttemptReport {
        attempt: Some(attempt.clone()),
        phase: Failed.into(),
        permanent: true,
        reason: "because I say so".into(),
        ..Default::default()
    };
    stranger.send(Up::AttemptReport(failed.clone())).await?;
    let curator = FakeNode::curator(&controller, "c-1").await?;
    curator.send(Up::AttemptReport(failed)).await?;
    counted(&controller, "crescendo_reports_refused_total 2").await?;
    trainer.report(&attempt, Running, 4).await?;
    let job = controller.job_when(&job, "it goes on", |job| job.stages[0].step == 4).await?;
    assert_eq!((job.state(), job.stages[0].generation), (v1::JobState::Running, 1));
    Ok(())
}

#[tokio::test]
async fn a_second_process_of_one_name_is_refused_and_the_first_goes_on() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut first = FakeNode::trainer(&controller, "t-1", 2).await?;
    curate(&controller, &job, "c-1").await?;
    let attempt = first.start_command().await?.attempt.context("an attempt")?;
    let second = || FakeNode::try_open(&controller, hello("t-1", v1::NodeKind::Trainer, 2, "second"));
    for step in 1..5 {
        first.report(&attempt, Running, step).await?;
        controller.job_when(&job, "it trains", |job| job.stages[0].step == step).await?;
        let refused = second().await.map(|_| ()).expect_err("the name is taken");
        let status = refused.downcast_ref::<Status>().context("a status")?;
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
        assert!(status.message().contains("node t-1: a process of this name is connected"), "{status}");
    }
    assert_eq!(first.quiet_for(Duration::from_millis(100)).await?, None, "its session stands");
    assert_eq!(controller.job(&job).await?.stages[0].generation, 1);
    counted(&controller, "crescendo_node_name_clashes_total 4").await?;
    // The first says nothing any more: its name is free.
    FakeNode::open(&controller, hello("t-1", v1::NodeKind::Trainer, 2, "second")).await?;
    controller.job_when(&job, "its ranks are lost", |job| job.stages[0].generation == 2).await?;
    Ok(())
}

#[tokio::test]
async fn a_curator_that_cannot_take_a_stage_up_is_named_and_another_is_asked() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut curator = FakeNode::curator(&controller, "c-1").await?;
    let stage = curator.assignment().await?.stage;
    let reason = "the resolved spec cannot be read".to_owned();
    curator.send(Up::AssignmentRefused(v1::AssignmentRefused { stage: stage.clone(), reason })).await?;
    eventually("it is told", async || {
        let request = v1::ExplainJobRequest { job_id: job.clone() };
        let told = controller.jobs().explain_job(request).await?.into_inner();
        let named = |line: &String| line.starts_with("c-1 cannot take the stage up, and is asked again in ");
        Ok(told.findings.iter().any(named).then_some(()))
    })
    .await?;
    let mut other = FakeNode::curator(&controller, "c-2").await?;
    assert_eq!(other.assignment().await?.stage, stage);
    Ok(())
}
