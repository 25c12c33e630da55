//! Nodes that leave in order, and nodes that are emptied: what they work on goes on elsewhere, and nothing has failed.

use anyhow::Context as _;
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_testing::controller::{
    Controller, FakeNode, checkpoint, commit_checkpoint, curate, hello, lease, leased,
};
use crescendo_testing::eventually;
use tonic::Code;
use v1::AttemptPhase::{Drained, Running};
use v1::lease_unit_response::Outcome;

async fn node(controller: &Controller, id: &str) -> anyhow::Result<v1::Node> {
    let nodes = controller.nodes().list_nodes(v1::ListNodesRequest {}).await?.into_inner().nodes;
    nodes.into_iter().find(|node| node.node_id == id).context("the node is not listed")
}

async fn draining(controller: &Controller, id: &str) -> anyhow::Result<()> {
    eventually("the node drains", async || Ok(node(controller, id).await?.draining.then_some(()))).await
}

async fn drain(controller: &Controller, id: &str, undo: bool) -> anyhow::Result<v1::Node> {
    let request = v1::DrainNodeRequest { node_id: id.into(), undo };
    controller.nodes().drain_node(request).await?.into_inner().node.context("a node")
}

/// A gang of two single-slot nodes that runs the first generation, and a third node that idles.
async fn gang(controller: &Controller) -> anyhow::Result<([FakeNode; 3], String, v1::AttemptRef)> {
    let job = controller.submit_job("r-1").await?.job_id;
    let mut one = FakeNode::trainer(controller, "t-1", 1).await?;
    let mut two = FakeNode::trainer(controller, "t-22", 1).await?;
    curate(controller, &job, "c-1").await?;
    let attempt = one.start_command().await?.attempt.context("an attempt")?;
    two.start_command().await?;
    let third = FakeNode::trainer(controller, "t-333", 1).await?;
    for node in [&one, &two] {
        node.report(&attempt, Running, 7).await?;
    }
    controller.job_when(&job, "running", |job| job.stages[0].step == 7).await?;
    Ok(([one, two, third], job, attempt))
}

#[tokio::test]
async fn a_gang_moves_on_from_the_very_step_at_which_its_node_leaves() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let ([one, mut two, mut three], job, attempt) = gang(&controller).await?;
    one.send(Up::NodeDrains(v1::NodeDrains {})).await?;
    draining(&controller, "t-1").await?;
    // Its ranks end in their own time, with what they had trained saved.
    assert_eq!(controller.job(&job).await?.stages[0].generation, 1);
    commit_checkpoint(&controller, checkpoint(&attempt, 7, false)).await?;
    for node in [&one, &two] {
        node.report(&attempt, Drained, 7).await?;
    }
    for node in [&mut two, &mut three] {
        let start = node.start_command().await?;
        assert_eq!(start.attempt.context("attempt")?.generation, 2);
        assert_eq!(start.resume_from.context("a checkpoint")?.step, 7);
        assert!(start.ranks.iter().all(|rank| rank.node_id != "t-1"), "{:?}", start.ranks);
    }
    let metrics = controller.metrics().await?;
    assert!(metrics.contains("crescendo_attempts_ended_total 0"), "handing over counts as a failure");
    Ok(())
}

#[tokio::test]
async fn a_drained_node_stays_so_until_that_is_taken_back() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let ([one, mut two, three], job, attempt) = gang(&controller).await?;
    assert!(drain(&controller, "t-22", false).await?.draining);
    let told = loop {
        if let Down::DrainAttempt(told) = two.next().await? {
            break told;
        }
    };
    assert_eq!((told.attempt.as_ref(), told.reason.as_str()), (Some(&attempt), "node t-22 is drained"));
    // Doing it twice is doing it once.
    assert!(drain(&controller, "t-22", false).await?.draining);
    commit_checkpoint(&controller, checkpoint(&attempt, 8, false)).await?;
    for node in [&one, &two] {
        node.report(&attempt, Drained, 8).await?;
    }
    controller.job_when(&job, "a second attempt", |job| job.stages[0].generation == 2).await?;
    drop((one, two, three));

    controller.restart().await?;
    let mut two = FakeNode::open(&controller, hello("t-22", v1::NodeKind::Trainer, 1, "second")).await?;
    assert!(node(&controller, "t-22").await?.draining);
    let one = FakeNode::open(&controller, hello("t-1", v1::NodeKind::Trainer, 1, "second")).await?;
    // The third is not back: with one slot the gang waits, though the drained node is there.
    let waits = "waits for 2 slots";
    controller.job_when(&job, "waiting for slots", |job| job.reason.starts_with(waits)).await?;
    assert!(!drain(&controller, "t-22", true).await?.draining);
    assert_eq!(two.start_command().await?.resume_from.context("a checkpoint")?.step, 8);
    drop(one);

    let request = v1::DrainNodeRequest { node_id: "nobody".into(), undo: false };
    let refused = controller.nodes().drain_node(request).await.expect_err("there is no such node");
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "node nobody does not exist"));
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_gone_is_forgotten_and_one_that_works_is_not() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let (nodes, _, _) = gang(&controller).await?;
    let forget = async |controller: &Controller, id: &str| {
        let request = v1::ForgetNodeRequest { node_id: id.into() };
        controller
            .nodes()
            .forget_node(request)
            .await
            .map_err(|status| (status.code(), status.message().to_owned()))
    };
    let connected = (Code::FailedPrecondition, "node t-333 is connected: stop it first".to_owned());
    assert_eq!(forget(&controller, "t-333").await.expect_err("it is there"), connected);
    drop(nodes);
    eventually("all are gone", async || {
        let list = controller.nodes().list_nodes(v1::ListNodesRequest {}).await?.into_inner().nodes;
        Ok(list.iter().all(|node| node.reach() == v1::NodeReach::Silent).then_some(()))
    })
    .await?;
    let (code, why) = forget(&controller, "t-1").await.expect_err("its ranks may run");
    assert!(code == Code::FailedPrecondition && why.contains("still runs on node t-1"), "{why}");
    forget(&controller, "t-333").await.expect("nothing keeps it");
    assert_eq!(forget(&controller, "t-333").await.expect_err("once").0, Code::NotFound);
    controller.restart().await?;
    assert!(node(&controller, "t-333").await.is_err(), "it stays forgotten");
    FakeNode::trainer(&controller, "t-333", 1).await?;
    node(&controller, "t-333").await.map(|_| ())
}

#[tokio::test]
async fn a_drained_curator_keeps_its_stages_until_another_takes_them() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut first = FakeNode::curator(&controller, "c-1").await?;
    first.assignment().await?;
    leased(&controller, &job, "c-1").await?;
    drain(&controller, "c-1", false).await?;
    assert_eq!(lease(&controller, &job, "c-1").await?.outcome(), Outcome::Wait);
    assert_eq!(node(&controller, "c-1").await?.curating.len(), 1);
    let mut second = FakeNode::curator(&controller, "c-2").await?;
    second.assignment().await?;
    let Down::ReleaseCuration(released) = first.next().await? else { anyhow::bail!("not released") };
    assert_eq!(released.reason, "the node is drained");
    Ok(())
}

/// Everything is stopped, the controller first, so that nobody registers what the ranks save; then it is started again.
#[tokio::test]
async fn a_dozen_stops_fail_no_job_and_lose_no_step() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut node = FakeNode::trainer(&controller, "t-1", 2).await?;
    curate(&controller, &job, "c-1").await?;
    let mut attempt = node.start_command().await?.attempt.context("an attempt")?;
    for step in 1..=12 {
        node.report(&attempt, Running, step).await?;
        controller.job_when(&job, "it trains", |job| job.stages[0].step == step).await?;
        controller.restart().await?;
        let left = v1::LeftAttempt {
            attempt: Some(attempt.clone()),
            checkpoint: Some(checkpoint(&attempt, step, false)),
        };
        let incarnation = format!("after-{step}");
        let hello = hello("t-1", v1::NodeKind::Trainer, 2, &incarnation);
        node = FakeNode::open(&controller, v1::Hello { left: vec![left], ..hello }).await?;
        let start = node.start_command().await?;
        attempt = start.attempt.context("an attempt")?;
        assert_eq!(attempt.generation, step + 1);
        assert_eq!(start.resume_from.context("a checkpoint")?.step, step, "what was saved counts");
    }
    Ok(())
}

#[tokio::test]
async fn a_controller_stays_for_nodes_that_are_stopped_with_it() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let ([one, two, three], _, attempt) = gang(&controller).await?;
    one.send(Up::NodeDrains(v1::NodeDrains {})).await?;
    draining(&controller, "t-1").await?;
    let mut checkpoints = controller.checkpoints();
    let saving = async {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let request = v1::CommitCheckpointRequest { checkpoint: Some(checkpoint(&attempt, 7, false)) };
        let taken = checkpoints.commit_checkpoint(request).await;
        drop((one, two, three));
        taken
    };
    let (stopped, taken) = tokio::join!(controller.stop(), saving);
    taken.context("the controller is there")?;
    assert!(stopped?.success());
    Ok(())
}
