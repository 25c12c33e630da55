//! Pictures of checkpoints, between the controller and curators that draw them: asked for once, told on, handed in once, tried
//! again elsewhere.

use anyhow::{Context as _, Result};
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::v1::report_samples_request::Message as Said;
use crescendo_testing::controller::{Controller, FakeNode, checkpoint, commit_checkpoint, curate};
use tonic::{Code, Status};

const SPEC: &str = "apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: drawn}
spec:
  model: {preset: nano, weights: base.safetensors}
  resources: {gpus: 2}
  checkpoints: {every: 5}
  samples: {heldOut: 2, validationPairs: 4}
  stages:
    - name: stage-1
      data: {source: compose, subjects: lib, holdOutOneIn: 4, pairs: 8, unitSize: 8}
      train: {adapter: {rank: 4}, steps: 10, globalBatch: 2}
";

async fn order(curator: &mut FakeNode) -> Result<v1::DrawSamples> {
    loop {
        if let Down::DrawSamples(order) = curator.next().await? {
            return Ok(order);
        }
    }
}

async fn say(controller: &Controller, node: &str, order: &v1::DrawSamples, said: Said) -> Result<(), Status> {
    let request = v1::ReportSamplesRequest {
        draw_id: order.draw_id.clone(),
        node_id: node.into(),
        message: Some(said),
    };
    controller.samples().report_samples(request).await.map(drop)
}

async fn listed(controller: &Controller, job: &str) -> Result<Vec<v1::Sampling>> {
    let request = v1::ListSamplesRequest { job_id: job.into(), stage: String::new() };
    Ok(controller.samples().list_samples(request).await?.into_inner().samplings)
}

fn done(order: &v1::DrawSamples) -> Said {
    let name = format!("step-{:08}-g{}-{}.tar", order.step, order.generation, order.draw_id);
    let times = vec![0.1, 0.3, 0.5, 0.7, 0.9];
    let losses = vec![0.5; times.len()];
    Said::Done(v1::SamplesDone {
        file: Some(v1::CheckpointFile { name, size_bytes: 7, sha256: "a".repeat(64) }),
        pictures: 2,
        validation: Some(v1::ValidationLoss { mean: 0.5, pairs: 4, times, losses }),
    })
}

#[tokio::test]
async fn a_curator_is_asked_once_says_how_far_it_is_and_hands_in_once() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit("r-1", SPEC).await?.job.context("a job")?.job_id;
    curate(&controller, &job, "c-0").await?;
    let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
    let attempt = trainer.start_command().await?.attempt.context("an attempt")?;
    commit_checkpoint(&controller, checkpoint(&attempt, 5, false)).await?;
    let waits = listed(&controller, &job).await?;
    assert_eq!(
        waits.iter().map(|one| (one.step, one.state())).collect::<Vec<_>>(),
        [(0, v1::SamplingState::Wanted), (5, v1::SamplingState::Wanted)]
    );

    let mut curator = FakeNode::curator(&controller, "c-1").await?;
    let base = order(&mut curator).await?;
    assert_eq!((base.step, base.generation, base.checkpoint.is_none()), (0, 0, true));
    let progress = |done| Said::Progress(v1::SamplingProgress { node_id: "c-1".into(), done, of: 6 });
    say(&controller, "c-1", &base, progress(2)).await?;
    let now = listed(&controller, &job).await?[0].progress.clone().context("it is told")?;
    assert_eq!((now.node_id.as_str(), now.done, now.of), ("c-1", 2, 6));
    // Another's word does not count, nor one on what nobody draws.
    let status = say(&controller, "c-2", &base, done(&base)).await.expect_err("it is another's");
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    let other = v1::DrawSamples { draw_id: "made-up".into(), ..base.clone() };
    let status = say(&controller, "c-1", &other, progress(1)).await.expect_err("nobody draws it");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    // What is wrong is refused, and may still be handed in right.
    let Said::Done(right) = done(&base) else { unreachable!() };
    for (wrong, field) in [
        (
            v1::SamplesDone { validation: Some(v1::ValidationLoss::default()), ..right.clone() },
            "done.validation.times",
        ),
        (
            v1::SamplesDone {
                file: right.file.clone().map(|file| v1::CheckpointFile { name: "../x".into(), ..file }),
                ..right.clone()
            },
            "drawn.file.name",
        ),
    ] {
        let status = say(&controller, "c-1", &base, Said::Done(wrong)).await.expect_err("it is wrong");
        assert!(status.code() == Code::InvalidArgument && status.message().contains(field), "{status:?}");
    }
    say(&controller, "c-1", &base, done(&base)).await?;
    let status = say(&controller, "c-1", &base, done(&base)).await.expect_err("it is over");
    assert_eq!(status.code(), Code::NotFound, "{status:?}");

    // The next one is for the checkpoint. It fails there, and is drawn by another.
    let next = order(&mut curator).await?;
    let drawn_with = next.checkpoint.clone().context("a checkpoint")?;
    assert_eq!((next.step, drawn_with.step), (5, 5));
    say(&controller, "c-1", &next, Said::Failure("no\nmemory".into())).await?;
    let failed = listed(&controller, &job).await?.remove(1);
    assert_eq!((failed.state(), failed.reason.as_str()), (v1::SamplingState::Wanted, "c-1: no memory"));
    drop(curator);
    let mut other = FakeNode::curator(&controller, "c-2").await?;
    let again = order(&mut other).await?;
    assert!(again.step == 5 && again.draw_id != next.draw_id, "{again:?}");
    say(&controller, "c-2", &again, done(&again)).await?;
    let all = listed(&controller, &job).await?;
    assert!(all.iter().all(|one| one.state() == v1::SamplingState::Drawn && one.pictures == 2), "{all:#?}");
    let metrics = controller.metrics().await?;
    for line in
        ["crescendo_samplings_total{outcome=\"drawn\"} 2", "crescendo_samplings_total{outcome=\"failed\"} 1"]
    {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_curator_leaves_is_drawn_by_another() -> Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit("r-1", SPEC).await?.job.context("a job")?.job_id;
    curate(&controller, &job, "c-0").await?;
    let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
    let attempt = trainer.start_command().await?.attempt.context("an attempt")?;
    let mut curator = FakeNode::curator(&controller, "c-1").await?;
    commit_checkpoint(&controller, checkpoint(&attempt, 5, false)).await?;
    let first = order(&mut curator).await?;
    // The process is another: what it had begun is gone.
    drop(curator);
    let hello = crescendo_testing::controller::hello("c-1", v1::NodeKind::Curator, 0, "second");
    let mut curator = FakeNode::open(&controller, hello).await?;
    let again = loop {
        let again = order(&mut curator).await?;
        if again.step == first.step {
            break again;
        }
        say(&controller, "c-1", &again, done(&again)).await?;
    };
    assert_ne!(again.draw_id, first.draw_id);
    Ok(())
}
