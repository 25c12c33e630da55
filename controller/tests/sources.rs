//! Curators that cannot open what a stage is made of, and how far units are: what they say reaches people.

use anyhow::{Context as _, Result};
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_testing::controller::{Controller, FakeNode, commit, hello, lease, leased};
use crescendo_testing::{LIMIT, eventually};
use v1::UnitFailureKind::{self, Passing, Source};
use v1::lease_unit_response::Outcome;

const REASON: &str = "cannot read /library/subjectz/index.json: No such file or directory (os error 2)";

async fn fail(
    controller: &Controller,
    lease: v1::UnitLease,
    node: &str,
    kind: UnitFailureKind,
    reason: &str,
) -> Result<v1::FailUnitResponse> {
    let request = v1::FailUnitRequest {
        lease: Some(lease),
        node_id: node.into(),
        reason: reason.into(),
        kind: kind.into(),
        ..Default::default()
    };
    Ok(controller.curation().fail_unit(request).await?.into_inner())
}

#[tokio::test]
async fn a_curator_that_waits_for_something_outside_is_named_with_the_reason() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut curator = FakeNode::curator(&controller, "c-1").await?;
    curator.assignment().await?;
    // Before it has leased a unit.
    let waits = v1::UnitReport {
        stage: Some(v1::StageRef { job_id: job.clone(), stage: "stage-1".into() }),
        waits_for: "no answer\nfrom http://me:hunter2@store/".into(),
        ..Default::default()
    };
    curator.send(Up::UnitReport(waits)).await?;
    let waiting = eventually("it is told", async || {
        Ok(controller.job(&job).await?.stages.remove(0).waiting_curators.into_iter().next())
    })
    .await?;
    assert_eq!(waiting.node_id, "c-1");
    assert!(waiting.reason.starts_with("no answer from http://"), "{}", waiting.reason);
    assert!(!waiting.reason.contains("hunter2"), "{}", waiting.reason);
    let told = explained(&controller, &job).await?.findings;
    assert!(
        told.iter().any(|line| line.starts_with("c-1 waits and goes on by itself: no answer")),
        "{told:?}"
    );
    Ok(())
}

async fn explained(controller: &Controller, job: &str) -> Result<v1::ExplainJobResponse> {
    let request = v1::ExplainJobRequest { job_id: job.into() };
    Ok(controller.jobs().explain_job(request).await?.into_inner())
}

#[tokio::test]
async fn a_source_that_the_only_curator_cannot_open_fails_the_job_with_its_words() -> Result<()> {
    let mut controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut curator = FakeNode::curator(&controller, "c-1").await?;
    curator.assignment().await?;
    let unit = leased(&controller, &job, "c-1").await?;
    let secret = format!("{REASON}\nhttp://me:hunter2@store/ {}", "x".repeat(5000));
    let answer = fail(&controller, unit, "c-1", Source, &secret).await?;
    assert!(!answer.quarantined, "the unit is not to blame");
    let check = |failed: v1::Job| {
        assert_eq!(failed.state(), v1::JobState::Failed);
        let begins = format!("stage stage-1 cannot be made: c-1 cannot open its source: {REASON}");
        assert!(failed.reason.starts_with(&begins), "{}", failed.reason);
        assert!(!failed.reason.contains("hunter2") && failed.reason.len() < 500, "{}", failed.reason);
        assert!(!failed.reason.contains('\n'), "{}", failed.reason);
    };
    check(controller.job(&job).await?);
    assert_eq!(lease(&controller, &job, "c-1").await?.outcome(), Outcome::Sealed);
    controller.restart().await?;
    check(controller.job(&job).await?);
    let told = explained(&controller, &job).await?;
    assert!(told.remedies[0].starts_with("correct what the reason names"), "{:?}", told.remedies);
    assert!(told.findings.iter().any(|line| line.contains("unit 0 failed on c-1")), "{:?}", told.findings);
    Ok(())
}

#[tokio::test]
async fn one_of_two_that_says_so_cools_down_until_it_is_another_process() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let bad = FakeNode::curator(&controller, "bad").await?;
    let mut good = FakeNode::curator(&controller, "good").await?;
    good.assignment().await?;
    let unit = leased(&controller, &job, "bad").await?;
    fail(&controller, unit, "bad", Source, REASON).await?;
    let waits = lease(&controller, &job, "bad").await?;
    assert_eq!(waits.outcome(), Outcome::Wait, "it gets none for a while");
    let seen = controller.job(&job).await?;
    assert_ne!(seen.state(), v1::JobState::Failed);
    let cooldowns = &seen.stages[0].cooldowns;
    assert_eq!(
        (cooldowns.len(), cooldowns[0].node_id.as_str(), cooldowns[0].reason.as_str()),
        (1, "bad", REASON)
    );
    let again = cooldowns[0].asked_again_in_seconds;
    assert!(again > 0.0 && again <= 30.0, "{again}");
    let told = explained(&controller, &job).await?;
    assert!(told.findings.iter().any(|line| line.starts_with("bad cannot open the source")), "{told:?}");
    assert!(told.remedies.iter().all(|remedy| !remedy.contains("add curators")), "{:?}", told.remedies);

    let unit = leased(&controller, &job, "good").await?;
    assert_eq!(unit.unit, 0, "the same unit goes to the other");
    commit(&controller, &unit, "good", 4).await?;
    drop(bad);
    let _bad = FakeNode::open(&controller, hello("bad", v1::NodeKind::Curator, 0, "second")).await?;
    assert_eq!(lease(&controller, &job, "bad").await?.outcome(), Outcome::Leased);
    assert!(controller.job(&job).await?.stages[0].cooldowns.is_empty());
    Ok(())
}

#[tokio::test]
async fn the_last_failure_is_told_while_its_unit_waits() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let _curator = FakeNode::curator(&controller, "c-1").await?;
    let unit = leased(&controller, &job, "c-1").await?;
    fail(&controller, unit, "c-1", Passing, "the endpoint does not answer").await?;
    let stage = &controller.job(&job).await?.stages[0];
    let failure = stage.last_failure.as_ref().context("a failure")?;
    assert_eq!(
        (failure.unit, failure.node_id.as_str(), failure.reason.as_str()),
        (0, "c-1", "the endpoint does not answer")
    );
    assert!(failure.retry_in_seconds > 0.0 && failure.retry_in_seconds <= 3.0, "{failure:?}");
    let told = explained(&controller, &job).await?;
    let line =
        told.findings.iter().find(|line| line.starts_with("unit 0 failed on c-1")).context("a line")?;
    assert!(line.contains(" ago: the endpoint does not answer; it is tried again in "), "{line}");
    // Once it is made nothing is said of it any more.
    let unit = eventually("the unit may be tried again", async || {
        Ok(lease(&controller, &job, "c-1").await?.unit.filter(|unit| unit.unit == 0))
    })
    .await?;
    commit(&controller, &unit, "c-1", 4).await?;
    assert_eq!(controller.job(&job).await?.stages[0].last_failure, None);
    Ok(())
}

#[tokio::test]
async fn how_far_a_unit_is_reaches_those_who_watch_and_goes_with_it() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let curator = FakeNode::curator(&controller, "c-1").await?;
    let unit = leased(&controller, &job, "c-1").await?;
    let request = v1::WatchJobRequest { job_id: job.clone(), from_revision: 0 };
    let mut watch = controller.jobs().watch_job(request).await?.into_inner();
    let report = |unit: u64, drawn: u64| v1::UnitReport {
        stage: Some(v1::StageRef { job_id: job.clone(), stage: "stage-1".into() }),
        unit,
        candidates: 4,
        drawn,
        accepted: 1,
        ..Default::default()
    };
    // Of a unit that it does not hold, and of no stage at all: left out.
    curator.send(Up::UnitReport(report(7, 4))).await?;
    curator.send(Up::UnitReport(v1::UnitReport::default())).await?;
    curator.send(Up::UnitReport(report(0, 3))).await?;
    let seen = tokio::time::timeout(LIMIT, async {
        loop {
            let update = watch.message().await?.context("the stream goes on")?;
            let stage = update.job.context("a job")?.stages.remove(0);
            if let Some(under_way) = stage.under_way {
                return anyhow::Ok(under_way);
            }
        }
    })
    .await
    .context("nothing was told")??;
    let expected = v1::UnitsUnderWay { units: 1, candidates: 4, drawn: 3, accepted: 1, ..Default::default() };
    assert_eq!(seen, expected);
    commit(&controller, &unit, "c-1", 4).await?;
    assert_eq!(controller.job(&job).await?.stages[0].under_way, None);
    Ok(())
}
