//! A real controller process, real gRPC, nodes played by the test.

use std::time::Duration;

use anyhow::Context as _;
use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::{status, v1};
use crescendo_testing::controller::{
    Controller, FakeNode, checkpoint, commit, commit_checkpoint, curate, hello, lease, leased, unit_result,
};
use crescendo_testing::eventually;
use crescendo_testing::specs::SPEC;
use tonic::Code;
use v1::AttemptPhase::{Failed, Running, Stopped};
use v1::lease_unit_response::Outcome;

/// A gang of two single-slot nodes that runs the first generation.
async fn running_gang(
    controller: &Controller,
    job: &str,
) -> anyhow::Result<(FakeNode, FakeNode, v1::AttemptRef)> {
    let mut one = FakeNode::trainer(controller, "t-1", 1).await?;
    let mut two = FakeNode::trainer(controller, "t-22", 1).await?;
    curate(controller, job, "c-1").await?;
    let start = one.start_command().await?;
    assert_eq!(start, two.start_command().await?, "the whole gang gets the same command");
    let attempt = start.attempt.context("an attempt")?;
    for node in [&one, &two] {
        node.report(&attempt, Running, 1).await?;
    }
    controller.job_when(job, "running", |job| job.stages[0].step == 1).await?;
    Ok((one, two, attempt))
}

#[tokio::test]
async fn a_job_goes_from_yaml_to_its_last_checkpoint() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?;
    assert_eq!(job.state(), v1::JobState::Queued);
    let waiting = controller.job_when(&job.job_id, "a reason", |job| !job.reason.is_empty()).await?;
    assert_eq!(waiting.reason, "waits for a curator: none is connected");

    let mut curator = FakeNode::curator(&controller, "c-1").await?;
    let assigned = curator.assignment().await?;
    assert_eq!(assigned.stage.context("stage")?.stage, "stage-1");
    let unit = leased(&controller, &job.job_id, "c-1").await?;
    commit(&controller, &unit, "c-1", 4).await?;
    // Enough to begin with, though the log is not sealed.
    let waiting =
        controller.job_when(&job.job_id, "placing", |job| job.state() == v1::JobState::Placing).await?;
    assert_eq!(waiting.reason, "waits for a trainer node: none is connected");

    let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
    let start = trainer.start_command().await?;
    assert_eq!(start.ranks.len(), 2);
    assert_eq!(start.curator_addresses.len(), 1);
    assert!(start.resume_from.is_none() && start.init_from.is_none());
    let spec: serde_json::Value = serde_json::from_slice(&start.resolved_spec_json)?;
    assert_eq!(spec["name"], "trial");
    let attempt = start.attempt.context("attempt")?;
    trainer.report(&attempt, Running, 7).await?;
    let training = controller.job_when(&job.job_id, "training", |job| job.stages[0].step == 7).await?;
    assert_eq!(
        (training.state(), training.stages[0].phase()),
        (v1::JobState::Running, v1::StagePhase::Training)
    );

    for step in [5, 10, 15] {
        commit_checkpoint(&controller, checkpoint(&attempt, step, false)).await?;
    }
    let last = commit_checkpoint(&controller, checkpoint(&attempt, 20, true)).await?;
    assert!(last.expired.is_empty());
    let done = controller.job(&job.job_id).await?;
    assert_eq!((done.state(), done.stages[0].phase()), (v1::JobState::Succeeded, v1::StagePhase::Done));
    assert!(done.stages[0].final_checkpoint.ends_with("step-00000020-g1"));
    let request = v1::ListCheckpointsRequest { job_id: job.job_id.clone(), stage: String::new() };
    let kept = controller.checkpoints().list_checkpoints(request).await?.into_inner().checkpoints;
    assert_eq!(
        kept.iter().map(|kept| kept.step).collect::<Vec<_>>(),
        [10, 15, 20],
        "the last two and the final one"
    );

    // Terminal stays terminal: neither a late failure nor a late cancel changes it.
    trainer.report(&attempt, Failed, 20).await?;
    let request = v1::CancelJobRequest { job_id: job.job_id.clone(), reason: "late".into() };
    let after = controller.jobs().cancel_job(request).await?.into_inner().job.context("job")?;
    assert_eq!(after.state(), v1::JobState::Succeeded);
    assert_eq!(controller.job(&job.job_id).await?.state(), v1::JobState::Succeeded);
    Ok(())
}

#[tokio::test]
async fn the_same_request_id_submits_once() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let first = controller.submit("r-1", SPEC).await?;
    let again = controller.submit("r-1", SPEC).await?;
    assert!(!first.already_submitted && again.already_submitted);
    controller.restart().await?;
    let after_restart = controller.submit("r-1", SPEC).await?;
    assert!(after_restart.already_submitted);
    let ids =
        [&first, &again, &after_restart].map(|answer| answer.job.as_ref().map(|job| job.job_id.clone()));
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids[0], ids[2]);
    let other = controller.submit("r-1", &SPEC.replace("steps: 20", "steps: 21")).await;
    assert_eq!(other.expect_err("another spec").code(), Code::AlreadyExists);
    let all = controller.jobs().list_jobs(v1::ListJobsRequest::default()).await?.into_inner();
    assert_eq!(all.jobs.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_bad_spec_is_refused_with_every_problem() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let bad = SPEC.replace("steps: 20", "steps: none").replace("pairs: 8", "pairz: 8");
    let status = controller.submit("r-1", &bad).await.expect_err("bad spec");
    assert_eq!(status.code(), Code::InvalidArgument);
    let problems = status::spec_problems(&status).context("problems in the trailer")?.problems;
    assert!(problems.len() >= 2, "{problems:?}");
    assert!(problems.iter().all(|problem| problem.line > 0 && !problem.path.is_empty()), "{problems:?}");

    let request =
        v1::SubmitJobRequest { spec_yaml: bad.into_bytes(), validate_only: true, ..Default::default() };
    let checked = controller.jobs().submit_job(request).await?.into_inner();
    assert_eq!(checked.problems, problems);
    assert!(controller.jobs().list_jobs(v1::ListJobsRequest::default()).await?.into_inner().jobs.is_empty());
    let status = controller.submit("bad id", SPEC).await.expect_err("bad request id");
    assert!(status.message().starts_with("request_id: "), "{status}");
    Ok(())
}

#[tokio::test]
async fn what_a_spec_hardly_means_is_said_and_fails_nothing() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let spec = SPEC.replace("steps: 20", "steps: 20, warmupSteps: 21");
    let submitted = controller.submit("r-1", &spec).await?;
    assert!(submitted.job.is_some());
    let warning = submitted
        .warnings
        .iter()
        .find(|warning| warning.path == "spec.stages[0].train.warmupSteps")
        .context("a warning about the warm-up")?;
    assert_eq!(warning.line, 12, "{warning:?}");

    let request =
        v1::SubmitJobRequest { spec_yaml: spec.into_bytes(), validate_only: true, ..Default::default() };
    let checked = controller.jobs().submit_job(request).await?.into_inner();
    assert_eq!((checked.warnings, checked.problems), (submitted.warnings, Vec::new()));
    Ok(())
}

#[tokio::test]
async fn bf16_where_it_crawls_is_warned_of() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let spec = SPEC.replace("precision: f32", "precision: bf16");
    let about = |answer: v1::SubmitJobResponse| {
        answer.warnings.into_iter().find(|warning| warning.path == "spec.model.precision")
    };
    assert_eq!(about(controller.submit("r-1", &spec).await?), None, "no node has said how fast it is");

    let slow = v1::Arithmetic { f32_nanos: 1_000, bf16_nanos: 8_000, ..Default::default() };
    let hello = v1::Hello { arithmetic: Some(slow), ..hello("t-slow", v1::NodeKind::Trainer, 2, "first") };
    let _node = FakeNode::open(&controller, hello).await?;
    let warning = about(controller.submit("r-2", &spec).await?).context("a warning")?;
    assert!(warning.line == 6 && warning.message.contains("t-slow"), "{warning:?}");
    assert_eq!(about(controller.submit("r-3", SPEC).await?), None, "auto takes f32 there");
    Ok(())
}

#[tokio::test]
async fn a_restarted_controller_adopts_what_runs() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?;
    let _curator = FakeNode::curator(&controller, "c-1").await?;
    let (_one, _two, attempt) = running_gang(&controller, &job.job_id).await?;
    commit_checkpoint(&controller, checkpoint(&attempt, 5, false)).await?;

    controller.restart().await?;
    let found = controller.job(&job.job_id).await?;
    assert_eq!(found.state(), v1::JobState::Running);
    assert_eq!((found.stages[0].generation, found.stages[0].checkpoint_step), (1, 5));
    assert_eq!((found.stages[0].pairs_committed, found.stages[0].pairs_sealed), (8, true));
    // Training goes on without the nodes being there: a checkpoint is accepted.
    commit_checkpoint(&controller, checkpoint(&attempt, 10, false)).await?;
    let mut nodes = Vec::new();
    for id in ["t-1", "t-22"] {
        let running = vec![attempt.clone()];
        let hello = v1::Hello { running, ..hello(id, v1::NodeKind::Trainer, 1, "first") };
        let node = FakeNode::open(&controller, hello).await?;
        node.report(&attempt, Running, 11).await?;
        nodes.push(node);
    }
    let adopted = controller.job_when(&job.job_id, "step 11", |job| job.stages[0].step == 11).await?;
    assert_eq!((adopted.stages[0].generation, adopted.stages[0].restarts), (1, 0));
    for node in &mut nodes {
        let told = node.quiet_for(Duration::from_millis(600)).await?;
        assert!(!matches!(told, Some(Down::StartAttempt(_) | Down::StopAttempt(_))), "{told:?}");
    }
    commit_checkpoint(&controller, checkpoint(&attempt, 20, true)).await?;
    assert_eq!(controller.job(&job.job_id).await?.state(), v1::JobState::Succeeded);
    Ok(())
}

#[tokio::test]
async fn a_failed_rank_raises_the_generation_once_and_resumes_from_the_last_checkpoint() -> anyhow::Result<()>
{
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?;
    let _curator = FakeNode::curator(&controller, "c-1").await?;
    let (mut one, mut two, old) = running_gang(&controller, &job.job_id).await?;
    commit_checkpoint(&controller, checkpoint(&old, 5, false)).await?;

    one.report(&old, Failed, 6).await?;
    let start = one.start_command().await?;
    let new = start.attempt.clone().context("attempt")?;
    assert_eq!(new.generation, 2);
    assert_eq!(start.resume_from.context("a checkpoint")?.step, 5);
    // The survivor is told to stop the old ranks, and to start the new ones.
    let (mut stopped, mut started) = (false, false);
    while !(stopped && started) {
        match two.next().await? {
            Down::StopAttempt(stop) => stopped = stop.attempt == Some(old.clone()),
            Down::StartAttempt(start) => started = start.attempt == Some(new.clone()),
            _ => {}
        }
    }
    // Both ends of the old gang say so again; nothing more happens.
    two.report(&old, Stopped, 6).await?;
    one.report(&old, Failed, 6).await?;
    one.report(&new, Running, 6).await?;
    let after = controller.job_when(&job.job_id, "step 6", |job| job.stages[0].step == 6).await?;
    assert_eq!((after.stages[0].generation, after.stages[0].restarts), (2, 1));

    // The old generation is refused everything.
    let late = commit_checkpoint(&controller, checkpoint(&old, 10, false)).await.expect_err("stale");
    assert_eq!(late.code(), Code::FailedPrecondition);
    let mark = v1::MarkCheckpointDamagedRequest {
        job_id: job.job_id.clone(),
        stage: "stage-1".into(),
        generation: 1,
        path: checkpoint(&old, 5, false).path,
        reason: "sha256 differs".into(),
    };
    let late = controller.checkpoints().mark_checkpoint_damaged(mark.clone()).await.expect_err("stale");
    assert_eq!(late.code(), Code::FailedPrecondition);

    // The new one may, and then nothing resumes from it any more.
    controller
        .checkpoints()
        .mark_checkpoint_damaged(v1::MarkCheckpointDamagedRequest { generation: 2, ..mark })
        .await?;
    one.report(&new, Failed, 6).await?;
    let start = one.start_command().await?;
    assert_eq!(start.attempt.context("attempt")?.generation, 3);
    assert!(start.resume_from.is_none(), "the only checkpoint is damaged");
    Ok(())
}

#[tokio::test]
async fn a_node_that_comes_back_as_another_process_has_lost_its_ranks() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?;
    let _curator = FakeNode::curator(&controller, "c-1").await?;
    let (one, mut two, old) = running_gang(&controller, &job.job_id).await?;
    // Out of sight alone changes nothing.
    drop(one);
    two.report(&old, Running, 2).await?;
    let silent = eventually("the node is silent", async || {
        let nodes = controller.nodes().list_nodes(v1::ListNodesRequest {}).await?.into_inner().nodes;
        Ok(nodes.into_iter().find(|node| node.node_id == "t-1" && node.reach() == v1::NodeReach::Silent))
    })
    .await?;
    assert_eq!(silent.slots_used, 1);
    assert_eq!(controller.job(&job.job_id).await?.stages[0].generation, 1);

    let mut back = FakeNode::open(&controller, hello("t-1", v1::NodeKind::Trainer, 1, "second")).await?;
    assert_eq!(back.start_command().await?.attempt.context("attempt")?.generation, 2);
    assert_eq!(two.stop_command().await?.attempt, Some(old));
    Ok(())
}

#[tokio::test]
async fn an_expired_lease_goes_to_another_curator_and_the_unit_is_done_once() -> anyhow::Result<()> {
    let controller = Controller::start_with(&["--unit-lease-seconds", "1"]).await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let first = leased(&controller, &job, "c-1").await?;
    assert_eq!((first.unit, first.lease_generation), (0, 1));
    let second = eventually("unit 0 is leased again", async || {
        Ok(lease(&controller, &job, "c-2").await?.unit.filter(|unit| unit.unit == 0))
    })
    .await?;
    assert_eq!(second.lease_generation, 2);
    let late = commit(&controller, &first, "c-1", 4).await.expect_err("the lease is old");
    assert_eq!(late.code(), Code::FailedPrecondition);
    let renew = v1::RenewUnitRequest { lease: Some(first.clone()), node_id: "c-1".into() };
    let late = controller.curation().renew_unit(renew).await.expect_err("the lease is old");
    assert_eq!(late.code(), Code::FailedPrecondition);
    assert!(!commit(&controller, &second, "c-2", 3).await?.done_already);
    assert!(commit(&controller, &second, "c-2", 3).await?.done_already, "the answer may have been lost");
    assert!(commit(&controller, &first, "c-1", 4).await?.done_already);
    assert_eq!(controller.job(&job).await?.stages[0].pairs_committed, 3);
    Ok(())
}

#[tokio::test]
async fn the_pair_log_is_watched_in_order_and_sealed() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let zero = leased(&controller, &job, "c-1").await?;
    let one = leased(&controller, &job, "c-2").await?;
    commit(&controller, &one, "c-2", 5).await?;
    let request = v1::WatchPairLogRequest { job_id: job.clone(), stage: "stage-1".into(), from_unit: 0 };
    let mut watch = controller.curation().watch_pair_log(request).await?.into_inner();
    let first = watch.message().await?.context("a message")?;
    assert_eq!(
        (first.shards.len(), first.committed, first.sealed),
        (0, 0, false),
        "unit 1 hides behind unit 0"
    );
    commit(&controller, &zero, "c-1", 4).await?;
    let grown = watch.message().await?.context("a message")?;
    let firsts: Vec<_> = grown.shards.iter().map(|shard| (shard.unit, shard.first_index)).collect();
    assert_eq!(firsts, [(0, 0), (1, 4)]);
    assert_eq!((grown.committed, grown.sealed), (8, true), "cut at the wanted 8");
    assert!(watch.message().await?.is_none(), "the stream ends with the seal");
    assert_eq!(lease(&controller, &job, "c-1").await?.outcome(), Outcome::Sealed);
    Ok(())
}

#[tokio::test]
async fn a_unit_that_keeps_failing_is_quarantined() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    // Released by a curator that leaves, it has not failed.
    for (tries, released) in [(0, true), (0, true), (0, true), (1, false), (2, false), (3, false)] {
        // Between two tries other units are given out.
        let unit = eventually("unit 0 is given out again", async || {
            let unit = lease(&controller, &job, "c-1").await?.unit;
            Ok(unit.filter(|unit| unit.unit == 0))
        })
        .await?;
        let request = v1::FailUnitRequest {
            lease: Some(unit),
            node_id: "c-1".into(),
            reason: "disk".into(),
            released,
            ..Default::default()
        };
        assert_eq!(controller.curation().fail_unit(request).await?.into_inner().quarantined, tries == 3);
    }
    assert_eq!(controller.job(&job).await?.stages[0].pairs_rejected["unit_quarantined"], 1);
    Ok(())
}

#[tokio::test]
async fn a_curator_that_finds_its_stage_hopeless_ends_the_job() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let leased = lease(&controller, &job, "c-1").await?;
    assert_eq!(leased.curators, 1);
    let request = v1::FailUnitRequest {
        lease: leased.unit,
        node_id: "c-1".into(),
        reason: "the spending limit is reached".into(),
        job_fails: true,
        ..Default::default()
    };
    controller.curation().fail_unit(request).await?;
    let failed = controller.job(&job).await?;
    assert_eq!(failed.state(), v1::JobState::Failed);
    assert_eq!(failed.reason, "curation of stage stage-1 cannot go on: the spending limit is reached");
    assert_eq!(lease(&controller, &job, "c-2").await?.outcome(), Outcome::Sealed);
    Ok(())
}

#[tokio::test]
async fn scores_of_committed_units_add_up() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let unit = leased(&controller, &job, "c-1").await?;
    let mut bad = unit_result(&unit, "c-1", 4);
    bad.scores.insert("beauty".into(), v1::ScoreCounts { counts: vec![1] });
    let refused = controller.curation().commit_unit(bad).await.expect_err("no such score");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("beauty"), "{}", refused.message());
    commit(&controller, &unit, "c-1", 4).await?;
    commit(&controller, &unit, "c-1", 4).await?;
    let unit = leased(&controller, &job, "c-1").await?;
    commit(&controller, &unit, "c-1", 4).await?;
    let stage = controller.job(&job).await?.stages[0].clone();
    let judge = &stage.scores["judge"];
    assert_eq!((judge.least, judge.most, &judge.counts), (0.0, 4.0, &vec![2; 16]));
    Ok(())
}

#[tokio::test]
async fn a_cancelled_job_is_stopped_and_its_slots_are_given_on() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let _curator = FakeNode::curator(&controller, "c-1").await?;
    let (mut one, two, attempt) = running_gang(&controller, &job).await?;
    let next = controller.submit_job("r-2").await?.job_id;
    curate(&controller, &next, "c-1").await?;
    let waiting = controller.job_when(&next, "placing", |job| job.state() == v1::JobState::Placing).await?;
    assert_eq!(waiting.reason, "waits for 2 slots: 0 of 2 are free");

    let request = v1::CancelJobRequest { job_id: job.clone(), reason: "wrong\nspec".into() };
    let cancelled = controller.jobs().cancel_job(request).await?.into_inner().job.context("job")?;
    assert_eq!((cancelled.state(), cancelled.reason.as_str()), (v1::JobState::Cancelled, "wrong spec"));
    assert_eq!(one.stop_command().await?.attempt, Some(attempt.clone()));
    let late =
        commit_checkpoint(&controller, checkpoint(&attempt, 20, true)).await.expect_err("the job has ended");
    assert_eq!(late.code(), Code::FailedPrecondition);
    // Nothing new on the slots before both nodes have stopped the old ranks.
    one.report(&attempt, Stopped, 1).await?;
    assert!(one.quiet_for(Duration::from_millis(600)).await?.is_none());
    two.report(&attempt, Stopped, 1).await?;
    assert_eq!(one.start_command().await?.attempt.context("attempt")?.job_id, next);
    Ok(())
}

#[tokio::test]
async fn a_watch_tells_every_change_and_goes_on_from_a_revision() -> anyhow::Result<()> {
    let mut controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let watch_from = |revision: u64| v1::WatchJobRequest { job_id: job.clone(), from_revision: revision };
    let mut watch = controller.jobs().watch_job(watch_from(0)).await?.into_inner();
    let first = watch.message().await?.and_then(|message| message.job).context("the present state")?;
    assert_eq!(first.state(), v1::JobState::Queued);
    controller.restart().await?;
    let mut watch = controller.jobs().watch_job(watch_from(first.revision)).await?.into_inner();
    let request = v1::CancelJobRequest { job_id: job.clone(), reason: String::new() };
    controller.jobs().cancel_job(request).await?;
    let mut states = Vec::new();
    while let Some(message) = watch.message().await? {
        let job = message.job.context("a job")?;
        states.push((job.state(), job.revision > first.revision));
    }
    assert_eq!(states.last(), Some(&(v1::JobState::Cancelled, true)), "{states:?}");
    let last = controller.job(&job).await?.revision;
    let mut again = controller.jobs().watch_job(watch_from(last)).await?.into_inner();
    assert!(again.message().await?.is_none(), "nothing is newer, and nothing will come");
    Ok(())
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.insert(0, controller.submit_job(&format!("r-{n}")).await?.job_id);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListJobsRequest { page_size: 2, page_token: token, ..Default::default() };
        let page = controller.jobs().list_jobs(request).await?.into_inner();
        assert!(page.jobs.len() <= 2);
        listed.extend(page.jobs.into_iter().map(|job| job.job_id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, ids);
    let request = v1::ListJobsRequest { page_token: "nonsense".into(), ..Default::default() };
    assert_eq!(
        controller.jobs().list_jobs(request).await.expect_err("bad token").code(),
        Code::InvalidArgument
    );
    let states = vec![v1::JobState::Succeeded.into()];
    let request = v1::ListJobsRequest { states, ..Default::default() };
    assert!(controller.jobs().list_jobs(request).await?.into_inner().jobs.is_empty());
    Ok(())
}

#[tokio::test]
async fn log_lines_reach_their_reader() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let node = FakeNode::trainer(&controller, "t-1", 1).await?;
    let line = |text: &str| v1::LogLine { job_id: job.clone(), message: text.into(), ..Default::default() };
    let batch = |lines| v1::open_session_request::Message::LogBatch(v1::LogBatch { lines });
    node.send(batch(vec![line("one"), line("two")])).await?;
    let request = v1::ReadLogsRequest { job_id: job.clone(), tail_lines: 10, follow: true };
    let mut lines = controller.jobs().read_logs(request).await?.into_inner();
    node.send(batch(vec![line("three")])).await?;
    let mut texts = Vec::new();
    while texts.len() < 3 {
        let line = lines.message().await?.and_then(|message| message.line).context("a line")?;
        assert_eq!(line.node_id, "t-1");
        texts.push(line.message);
    }
    assert_eq!(texts, ["one", "two", "three"]);
    controller.jobs().cancel_job(v1::CancelJobRequest { job_id: job, reason: String::new() }).await?;
    assert!(lines.message().await?.is_none(), "following ends with the job");
    Ok(())
}

#[tokio::test]
async fn a_full_queue_is_refused_with_a_hint() -> anyhow::Result<()> {
    let controller = Controller::start_with(&["--max-open-jobs", "2"]).await?;
    controller.submit_job("r-1").await?;
    controller.submit_job("r-2").await?;
    let full = controller.submit("r-3", SPEC).await.expect_err("full");
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert!(full.metadata().contains_key(status::RETRY_AFTER_TRAILER));
    assert!(controller.submit("r-2", SPEC).await?.already_submitted, "what was accepted is accepted");
    Ok(())
}

#[tokio::test]
async fn what_it_does_can_be_scraped() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    controller.submit_job("r-1").await?;
    let _node = FakeNode::trainer(&controller, "t-1", 1).await?;
    let metrics = controller.metrics().await?;
    for wanted in [
        "crescendo_leader 1",
        "crescendo_jobs{state=\"queued\"} 1",
        "crescendo_node_sessions{kind=\"trainer\"} 1",
        "crescendo_rpcs_total{code=\"ok\",method=\"crescendo.v1.JobService/SubmitJob\"} 1",
        "crescendo_store_call_seconds_count{op=\"txn\",outcome=\"ok\"}",
        "crescendo_jobs_waiting{reason=\"no_curator\"} 1",
        "crescendo_jobs_oldest_wait_seconds{reason=\"no_curator\"} ",
        "crescendo_nodes{kind=\"trainer\",state=\"connected\"} 1",
        // Eight pairs in units of four.
        "crescendo_curation_backlog_units 2",
    ] {
        assert!(metrics.contains(wanted), "{wanted} is not in:\n{metrics}");
    }
    // Whatever a process exports is in docs/metrics.md.
    let catalogue = include_str!("../../docs/metrics.md");
    for family in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = family.split(' ').next().unwrap_or_default();
        assert!(catalogue.contains(&format!("| `{name}` |")), "{name} is not in docs/metrics.md");
    }
    Ok(())
}

#[tokio::test]
async fn a_spec_comes_with_what_is_not_at_its_default() -> anyhow::Result<()> {
    let controller = Controller::start().await?;
    let job_id = controller.submit_job("r-1").await?.job_id;
    let request = v1::GetSpecRequest { job_id: job_id.clone() };
    let v1::GetSpecResponse { spec_yaml, stated_fields } =
        controller.jobs().get_spec(request).await?.into_inner();
    assert!(spec_yaml.contains("minGpus: 2") && spec_yaml.contains("seed: "), "{spec_yaml}");
    let of = |path: &str| stated_fields.iter().find(|field| field.path == path).cloned();
    let gpus =
        v1::StatedField { path: "spec.resources.gpus".into(), value: "2".into(), default_value: "1".into() };
    assert_eq!(of("spec.resources.gpus"), Some(gpus));
    assert_eq!(of("spec.stages[0].data.subjects").map(|field| field.default_value), Some(String::new()));
    assert_eq!(of("spec.seed"), None, "it is at its default");
    let unknown = controller.jobs().get_spec(v1::GetSpecRequest { job_id: "no".into() }).await;
    assert_eq!(unknown.expect_err("there is none").code(), Code::NotFound);
    Ok(())
}
