//! One precision a stage, and what a resume on another kind of processor is: a real controller, nodes played by the test.

use anyhow::Context as _;
use crescendo_proto::v1;
use crescendo_testing::controller::{Controller, FakeNode, checkpoint, commit_checkpoint, curate, hello};
use crescendo_testing::specs::SPEC;
use v1::AttemptPhase::{Failed, Running};

/// A trainer that runs bf16 at this many hundredths of f32's speed.
async fn trainer(
    controller: &Controller,
    id: &str,
    slots: u32,
    (processor, hundredths): (&str, u64),
) -> anyhow::Result<FakeNode> {
    let arithmetic = v1::Arithmetic {
        f32_nanos: 10_000 * hundredths,
        bf16_nanos: 1_000_000,
        processor: processor.into(),
        threads: 1,
    };
    let hello =
        v1::Hello { arithmetic: Some(arithmetic), ..hello(id, v1::NodeKind::Trainer, slots, "first") };
    FakeNode::open(controller, hello).await
}

const FAST: (&str, u64) = ("fast", 210);
const SLOW: (&str, u64) = ("slow", 12);

fn precision(start: &v1::StartAttempt) -> anyhow::Result<String> {
    let spec: serde_json::Value = serde_json::from_slice(&start.resolved_spec_json)?;
    Ok(spec["model"]["precision"].as_str().context("a precision")?.to_owned())
}

/// A job whose precision is settled by the nodes.
async fn submit(controller: &Controller) -> anyhow::Result<v1::Job> {
    let spec = SPEC.replace("precision: f32", "precision: auto");
    controller.submit("r-1", &spec).await?.job.context("a job")
}

#[tokio::test]
async fn a_mixed_gang_computes_in_one_precision() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let mut one = trainer(&controller, "t-1", 1, FAST).await?;
    let mut two = trainer(&controller, "t-2", 1, SLOW).await?;
    let job = submit(&controller).await?;
    curate(&controller, &job.job_id, "c-1").await?;
    let start = one.start_command().await?;
    assert_eq!(start, two.start_command().await?);
    assert_eq!(precision(&start)?, "f32");
    let stage = controller.job(&job.job_id).await?.stages[0].clone();
    assert_eq!(stage.precision, "f32");
    assert!(stage.precision_reason.contains("t-2 runs bf16 at 0.12 of f32"), "{}", stage.precision_reason);
    Ok(())
}

#[tokio::test]
async fn what_is_settled_stays_and_a_resume_on_another_kind_says_so() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let mut fast = trainer(&controller, "t-fast", 2, FAST).await?;
    let job = submit(&controller).await?;
    curate(&controller, &job.job_id, "c-1").await?;
    let start = fast.start_command().await?;
    // The curator has not said how fast it is: only what is known to be faster is taken.
    let settled = precision(&start)?;
    let attempt = start.attempt.context("an attempt")?;
    fast.report(&attempt, Running, 6).await?;
    commit_checkpoint(&controller, checkpoint(&attempt, 5, false)).await?;

    controller.restart().await?;
    drop(fast);
    let fast = trainer(&controller, "t-fast", 2, FAST).await?;
    let drain = v1::DrainNodeRequest { node_id: "t-fast".into(), undo: false };
    controller.nodes().drain_node(drain).await?;
    fast.report(&attempt, Failed, 6).await?;
    let mut slow = trainer(&controller, "t-slow", 2, SLOW).await?;
    let again = slow.start_command().await?;
    assert_eq!(precision(&again)?, settled);
    let told = controller.job_when(&job.job_id, "a change of kind", |job| {
        job.stages[0].kind_changes.iter().any(|line| line.contains("resumed at step 5 on"))
    });
    assert!(told.await?.stages[0].kind_changes[0].contains("slow"));
    Ok(())
}

#[tokio::test]
async fn strict_waits_for_the_kind_that_wrote_the_checkpoint() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let mut fast = trainer(&controller, "t-fast", 2, FAST).await?;
    let spec = SPEC.replace("  resources:", "  reproducible: strict\n  resources:");
    let job = controller.submit("r-1", &spec).await?.job.context("a job")?;
    curate(&controller, &job.job_id, "c-1").await?;
    let attempt = fast.start_command().await?.attempt.context("an attempt")?;
    fast.report(&attempt, Running, 6).await?;
    commit_checkpoint(&controller, checkpoint(&attempt, 5, false)).await?;
    let drain = v1::DrainNodeRequest { node_id: "t-fast".into(), undo: false };
    controller.nodes().drain_node(drain).await?;
    fast.report(&attempt, Failed, 6).await?;

    let _slow = trainer(&controller, "t-slow", 2, SLOW).await?;
    let reason = "which wrote its checkpoint (spec.reproducible: strict)";
    let waiting = controller.job_when(&job.job_id, "a wait", |job| job.reason.contains(reason)).await?;
    assert!(waiting.reason.contains("2 ranks of 1 thread on fast"), "{}", waiting.reason);

    let mut same = trainer(&controller, "t-same", 2, FAST).await?;
    assert_eq!(same.start_command().await?.resume_from.context("a checkpoint")?.step, 5);
    Ok(())
}
