//! Real agents and ranks against a controller and a curator in this process.

mod starts;
mod support;

use crescendo_proto::v1::open_session_response::Message as Down;
use crescendo_proto::v1::{
    AttemptPhase, AttemptRef, AttemptReport, DrainAttempt, PairMarks, RankPlacement, StartAttempt,
};
use serde_json::json;
use support::*;

/// Trains to the end and returns the adapter's bytes.
async fn finish(cluster: &Cluster, folder: &std::path::Path, job_id: &str, steps: u64) -> Vec<u8> {
    let last = cluster.checkpoint(job_id, steps).await;
    assert!(last.r#final);
    object(folder, &last, "dit_lora.safetensors")
}

#[tokio::test]
async fn a_killed_rank_costs_steps_and_changes_no_bit() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    cluster.set_log(16, true);
    let (a, b) = (Agent::start(folder, &cluster, "node-a", 1), Agent::start(folder, &cluster, "node-b", 1));
    let agents = [&a, &b];
    for agent in agents {
        cluster.connected(&agent.node_id).await;
    }
    // Five steps of four read the log of 16 pairs once and a bit.
    let spec = spec(5, 2);
    start(folder, &cluster, &agents, "calm", 1, &spec, None);
    let undisturbed = finish(&cluster, folder, "calm", 5).await;
    for _ in agents {
        cluster.report("calm", 1, AttemptPhase::Succeeded).await;
    }
    let first = cluster.checkpoint("calm", 2).await;
    poll("deletion of the expired checkpoint", || !folder.join("objects").join(&first.path).exists()).await;

    // The log ends after three steps until the rank is dead.
    cluster.set_log(12, false);
    start(folder, &cluster, &agents, "shaken", 1, &spec, None);
    cluster
        .until("third step", |state| {
            state.reports.iter().find(|r| r.step == 3 && r.attempt == Some(attempt("shaken", 1))).cloned()
        })
        .await;
    let saved = cluster.checkpoint("shaken", 2).await;
    assert_ne!(object(folder, &saved, "dit_lora.safetensors"), undisturbed);
    kill(b.ranks()[0]);
    let failed = cluster.report("shaken", 1, AttemptPhase::Failed).await;
    assert!(failed.reason.contains("signal 9") && failed.failed_rank == 1 && !failed.permanent, "{failed:?}");
    cluster.state().newest_generation = 2;
    stop(&cluster, &agents, "shaken", 1);
    cluster.set_log(16, true);
    start(folder, &cluster, &agents, "shaken", 2, &spec, Some(saved));
    let resumed = finish(&cluster, folder, "shaken", 5).await;
    assert!(resumed == undisturbed, "the resumed run ends with other weights");
    let history = object(folder, &cluster.checkpoint("shaken", 5).await, "history.jsonl");
    assert_eq!(String::from_utf8(history).unwrap().lines().count(), 5);
    cluster
        .until("log line of rank 1", |state| {
            state
                .logs
                .iter()
                .find(|line| line.rank == 1 && line.job_id == "shaken" && line.generation == 2)
                .cloned()
        })
        .await;
}

#[tokio::test]
async fn broken_pair_streams_change_no_bit() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    start(folder, &cluster, &[&a], "calm", 1, &spec(4, 1), None);
    let undisturbed = finish(&cluster, folder, "calm", 4).await;
    cluster.report("calm", 1, AttemptPhase::Succeeded).await;

    for (job_id, committed) in [("shaken", 5), ("shaken-again", 10)] {
        cluster.set_log(committed, false);
        start(folder, &cluster, &[&a], job_id, 1, &spec(4, 1), None);
        let waits = |report: &&AttemptReport| {
            report.attempt == Some(attempt(job_id, 1)) && report.reason.contains("of the log")
        };
        cluster.until("wait for data", |state| state.reports.iter().find(waits).cloned()).await;
        cluster.break_streams();
        cluster.set_log(16, false);
        assert!(finish(&cluster, folder, job_id, 4).await == undisturbed, "{job_id} ends with other weights");
        cluster.report(job_id, 1, AttemptPhase::Succeeded).await;
    }
    let metrics = metrics(&a).await;
    for line in [
        "crescendo_trainer_step{slot=\"0\"} 4",
        "crescendo_trainer_rank_starts_total 3",
        "crescendo_trainer_rank_failures_total 0",
        "crescendo_trainer_attempts_total{outcome=\"succeeded\"} 3",
        "crescendo_trainer_checkpoint_write_seconds_count 6",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

/// Two ranks on a log of 6 pairs that never grows: they go round what they have, together, and a resumed gang knows it.
#[tokio::test]
async fn a_starving_gang_repeats_and_its_checkpoints_say_so() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(6).await;
    let (a, b) = (Agent::start(folder, &cluster, "node-a", 1), Agent::start(folder, &cluster, "node-b", 1));
    let agents = [&a, &b];
    for agent in agents {
        cluster.connected(&agent.node_id).await;
    }
    let mut spec = spec(5, 2);
    // A save that is due while another is under way comes later: the first one is that of step 4.
    spec.checkpoints.every = 4;
    spec.stages[0].train.on_starvation = crescendo_core::spec::OnStarvation::Repeat;
    start(folder, &cluster, &agents, "hungry", 1, &spec, None);
    let replay_passes = |checkpoint: &crescendo_proto::v1::Checkpoint| -> Vec<(u64, u64)> {
        let state: serde_json::Value =
            serde_json::from_slice(&object(folder, checkpoint, "state.json")).expect("JSON");
        let all = state["replayPasses"].as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|replay_pass| {
                (replay_pass["from"].as_u64().unwrap(), replay_pass["pairs"].as_u64().unwrap())
            })
            .collect()
    };
    let last = cluster.checkpoint("hungry", 5).await;
    // Four pairs a step: the second step would need pairs 6 and 7, and so would each one after it.
    assert_eq!(replay_passes(&last), [(4, 4), (8, 4), (12, 4), (16, 4)]);
    let saved = cluster.checkpoint("hungry", 4).await;
    assert_eq!(replay_passes(&saved), [(4, 4), (8, 4), (12, 4)]);
    let told = |report: &&AttemptReport| report.replay_passes == 4 && report.step == 5;
    cluster.until("replay passes in a report", |state| state.reports.iter().find(told).cloned()).await;
    for _ in agents {
        cluster.report("hungry", 1, AttemptPhase::Succeeded).await;
    }

    // Once there are pairs enough, a gang that resumes has the replay passes up to its checkpoint, and no more.
    cluster.state().newest_generation = 2;
    cluster.set_log(16, true);
    start(folder, &cluster, &agents, "hungry", 2, &spec, Some(saved));
    let fed = cluster
        .until("final checkpoint of the second attempt", |state| {
            state.checkpoints.iter().find(|c| c.job_id == "hungry" && c.generation == 2 && c.r#final).cloned()
        })
        .await;
    assert_eq!(replay_passes(&fed), [(4, 4), (8, 4), (12, 4)]);
}

/// What the checkpoint leaves out: from which position on, by which version of the marks, which pairs.
fn left_out(folder: &std::path::Path, checkpoint: &crescendo_proto::v1::Checkpoint) -> serde_json::Value {
    let state: serde_json::Value =
        serde_json::from_slice(&object(folder, checkpoint, "state.json")).expect("JSON");
    state["leftOut"].clone()
}

/// Two ranks go three times through a log of 8 pairs. What is marked is trained in the first epoch and in no other, and whoever
/// resumes reads on as it was read.
#[tokio::test]
async fn marked_pairs_are_left_out_of_the_next_epoch_and_a_resumed_gang_changes_no_bit() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(8).await;
    cluster.set_log(8, true);
    let (a, b) = (Agent::start(folder, &cluster, "node-a", 1), Agent::start(folder, &cluster, "node-b", 1));
    let agents = [&a, &b];
    for agent in agents {
        cluster.connected(&agent.node_id).await;
    }
    let mut spec = spec(6, 2);
    // A save that is due while another is under way comes later: the first one is that of step 4.
    spec.checkpoints.every = 4;
    let begin = |job_id: &str, generation, resume_from, marks| {
        let begins = Begins { resume_from, init_from: None, marks };
        start_from(folder, &cluster, &agents, (job_id, generation), &spec, begins);
    };
    let over = async |job_id: &str, generation| {
        for _ in agents {
            cluster.report(job_id, generation, AttemptPhase::Succeeded).await;
        }
    };
    let marked = |indices: &[u64]| PairMarks { indices: indices.to_vec(), bad: vec![true; indices.len()] };
    begin("plain", 1, None, vec![]);
    let plain = finish(&cluster, folder, "plain", 6).await;
    over("plain", 1).await;
    assert!(
        left_out(folder, &cluster.checkpoint("plain", 6).await).is_null(),
        "a run without marks says nothing of them"
    );

    // What one rank has not heard of is not left out: the gang agrees.
    begin("heard-by-one", 1, None, vec![marked(&[3])]);
    assert!(finish(&cluster, folder, "heard-by-one", 6).await == plain, "it ends with other weights");
    over("heard-by-one", 1).await;

    // Four positions a step: the second epoch has 8 to 14, the third begins at 15, within step 4.
    begin("marked", 1, None, vec![marked(&[3]), marked(&[3, 5])]);
    let undisturbed = finish(&cluster, folder, "marked", 6).await;
    over("marked", 1).await;
    assert!(undisturbed != plain, "it was left out");
    let first = json!([{ "from": 8, "version": 1, "pairs": 8, "indices": [3] }]);
    assert_eq!(left_out(folder, &cluster.checkpoint("marked", 6).await), first);
    let saved = cluster.checkpoint("marked", 4).await;
    assert_eq!(left_out(folder, &saved), first);
    // The same marks after a crash, once within the epoch and once where it begins.
    cluster.state().newest_generation = 2;
    begin("marked", 2, Some(saved.clone()), vec![marked(&[3]), marked(&[3])]);
    let resumed = |generation| {
        let cluster = &cluster;
        let is_last = move |c: &&crescendo_proto::v1::Checkpoint| {
            c.job_id == "marked" && c.generation == generation && c.r#final
        };
        async move {
            let last =
                cluster.until("the end", |state| state.checkpoints.iter().find(is_last).cloned()).await;
            (object(folder, &last, "dit_lora.safetensors"), left_out(folder, &last))
        }
    };
    assert!(
        resumed(2).await == (undisturbed.clone(), first.clone()),
        "the resumed run ends with other weights"
    );
    over("marked", 2).await;
    // More marks by then: they count from the next epoch on, which begins at 22, and what was read stays.
    cluster.state().newest_generation = 3;
    begin("marked", 3, Some(saved), vec![marked(&[3, 5]), marked(&[3, 5])]);
    let (weights, then) = resumed(3).await;
    assert!(weights != undisturbed);
    assert_eq!(then[0], first[0]);
    assert_eq!(then[1], json!({ "from": 22, "version": 2, "pairs": 8, "indices": [3, 5] }));
    over("marked", 3).await;
}

/// Its latents are no numbers, so that a step with it has no loss.
#[tokio::test]
async fn nothing_of_a_marked_pair_is_trained_after_the_first_epoch() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(8).await;
    cluster.set_log(8, true);
    cluster.state().poisoned = Some(3);
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    let mark = PairMarks { indices: vec![3], bad: vec![true] };
    for (job_id, marks, skipped) in [("poisoned", vec![], 3), ("healed", vec![mark], 1)] {
        let begins = Begins { marks, ..Begins::default() };
        start_from(folder, &cluster, &[&a], (job_id, 1), &spec(6, 1), begins);
        let history = object(folder, &cluster.checkpoint(job_id, 6).await, "history.jsonl");
        let history = String::from_utf8(history).expect("text");
        assert_eq!(history.matches("\"skipped\":true").count(), skipped, "{history}");
        cluster.report(job_id, 1, AttemptPhase::Succeeded).await;
    }
}

#[tokio::test]
async fn training_goes_on_while_nothing_can_be_registered() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    cluster.state().outage = true;
    start(folder, &cluster, &[&a], "patient", 1, &spec(4, 1), None);
    let last_step = |report: &&AttemptReport| report.step == 4 && report.reason.contains("registered");
    cluster.until("last step", |state| state.reports.iter().find(last_step).cloned()).await;
    cluster.until("second try", |state| (state.commits_in_outage >= 2).then_some(())).await;
    assert!(cluster.state().checkpoints.is_empty());
    cluster.state().outage = false;
    assert!(cluster.checkpoint("patient", 2).await.step < cluster.checkpoint("patient", 4).await.step);
    cluster.report("patient", 1, AttemptPhase::Succeeded).await;
}

/// One node of two drains while nothing can be registered: the ranks without rank 0 wait for its checkpoint.
#[tokio::test]
async fn no_rank_of_a_gang_has_drained_before_the_checkpoint_is_registered() {
    let folder = home();
    let folder = folder.path();
    // For three steps and a bit.
    let cluster = Cluster::start(14).await;
    let (a, b) = (Agent::start(folder, &cluster, "node-a", 1), Agent::start(folder, &cluster, "node-b", 1));
    let agents = [&a, &b];
    for agent in agents {
        cluster.connected(&agent.node_id).await;
    }
    let mut spec = spec(5, 2);
    spec.checkpoints.every = 100;
    start(folder, &cluster, &agents, "leaving", 1, &spec, None);
    let third = |report: &&AttemptReport| report.step == 3;
    cluster.until("third step", |state| state.reports.iter().find(third).cloned()).await;
    cluster.state().outage = true;
    // To the node that has not got rank 0.
    let drain = DrainAttempt { attempt: Some(attempt("leaving", 1)), reason: "the node drains".into() };
    cluster.send("node-b", Down::DrainAttempt(drain));
    cluster.until("second try", |state| (state.commits_in_outage >= 2).then_some(())).await;
    let drained = |state: &State| state.reports.iter().filter(|r| r.phase() == AttemptPhase::Drained).count();
    assert_eq!(drained(&cluster.state()), 0, "a node has drained, and nothing is registered");
    cluster.state().outage = false;
    let registered = |state: &State| state.checkpoints.iter().any(|c| c.job_id == "leaving" && c.step == 3);
    assert!(
        cluster.until("drained node", |state| (drained(state) > 0).then(|| registered(state))).await,
        "a node has drained, and nothing is registered"
    );
    cluster.until("both nodes drained", |state| (drained(state) >= 2).then_some(())).await;
}

#[tokio::test]
async fn stages_build_on_each_other() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    // A base from nothing, then an adapter on top of it.
    let mut two = spec(2, 1);
    two.model.weights = None;
    two.stages.push(two.stages[0].clone());
    two.stages[0].train.adapter = crescendo_core::spec::AdapterSpec::None;
    two.stages[1].name = "stage-2".into();
    start(folder, &cluster, &[&a], "built", 1, &two, None);
    let base = cluster.checkpoint("built", 2).await;
    assert!(base.files.iter().any(|file| file.name == "model.safetensors"));
    cluster.report("built", 1, AttemptPhase::Succeeded).await;

    let placed = |rank| RankPlacement { rank, node_id: "node-a".into(), device_index: 0 };
    let second = StartAttempt {
        attempt: Some(AttemptRef { job_id: "built".into(), stage: "stage-2".into(), generation: 1 }),
        stage_index: 1,
        ranks: vec![placed(0)],
        rendezvous_address: "127.0.0.1:1".into(),
        resolved_spec_json: serde_json::to_vec(&two).unwrap(),
        resume_from: None,
        init_from: Some(base),
        curator_addresses: vec![cluster.address.clone()],
        object_store_url: format!("file://{}", folder.join("objects").display()),
        reach: None,
        trace_parent: String::new(),
        pair_marks: None,
    };
    cluster.send("node-a", Down::StartAttempt(second));
    let adapter = cluster
        .until("final checkpoint of stage 2", |state| {
            state.checkpoints.iter().find(|c| c.stage == "stage-2" && c.r#final).cloned()
        })
        .await;
    assert!(adapter.files.iter().any(|file| file.name == "dit_lora.safetensors"));
}

#[tokio::test]
async fn a_refused_checkpoint_stops_the_rank() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    cluster.state().newest_generation = 5;
    start(folder, &cluster, &[&a], "stale", 4, &spec(4, 1), None);
    let failed = cluster.report("stale", 4, AttemptPhase::Failed).await;
    assert!(failed.reason.contains("a newer attempt runs"), "{failed:?}");
    assert!(cluster.state().checkpoints.is_empty());
    poll("end of the rank", || a.ranks().is_empty()).await;
}

#[tokio::test]
async fn a_damaged_checkpoint_is_marked_before_the_attempt_fails() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    start(folder, &cluster, &[&a], "torn", 1, &spec(4, 1), None);
    cluster.report("torn", 1, AttemptPhase::Succeeded).await;
    let saved = cluster.checkpoint("torn", 2).await;
    let path = folder.join("objects").join(&saved.path).join("optimizer.safetensors");
    let mut content = std::fs::read(&path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&path, content).unwrap();
    start(folder, &cluster, &[&a], "torn", 2, &spec(4, 1), Some(saved.clone()));
    let failed = cluster.report("torn", 2, AttemptPhase::Failed).await;
    assert!(failed.reason.contains("optimizer.safetensors") && !failed.permanent, "{failed:?}");
    let damaged = cluster.state().damaged.clone();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].0, saved.path);
    assert!(damaged[0].1.contains("content has SHA-256"), "{damaged:?}");
}

#[tokio::test]
async fn ranks_die_with_their_agent() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(4).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    start(folder, &cluster, &[&a], "orphan", 1, &spec(4, 1), None);
    cluster.report("orphan", 1, AttemptPhase::Running).await;
    let ranks = a.ranks();
    assert_eq!(ranks.len(), 1);
    kill(a.child.id());
    poll("end of the rank", || !alive(ranks[0])).await;
}

#[tokio::test]
async fn bad_weights_end_the_job_and_name_the_file() {
    let folder = home();
    let folder = folder.path();
    std::fs::write(folder.join("base.safetensors"), b"short").unwrap();
    let cluster = Cluster::start(4).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    start(folder, &cluster, &[&a], "bad", 1, &spec(4, 1), None);
    let failed = cluster.report("bad", 1, AttemptPhase::Failed).await;
    assert!(failed.permanent && failed.reason.contains("base.safetensors"), "{failed:?}");
}

/// One pair of rank 1 makes the third step's loss NaN. Both ranks skip that step, and a gang that resumes from before it
/// does so again: to the same bits. One that resumes right after it knows of it.
#[tokio::test]
async fn a_step_without_a_finite_loss_is_skipped_and_a_resume_repeats_that() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    cluster.set_log(16, true);
    // The third step has the pairs 8 to 11, the last two of them on rank 1.
    cluster.state().poisoned = Some(10);
    let (a, b) = (Agent::start(folder, &cluster, "node-a", 1), Agent::start(folder, &cluster, "node-b", 1));
    let agents = [&a, &b];
    for agent in agents {
        cluster.connected(&agent.node_id).await;
    }
    let mut spec = spec(4, 2);
    start(folder, &cluster, &agents, "before", 1, &spec, None);
    let undisturbed = finish(&cluster, folder, "before", 4).await;
    for _ in agents {
        cluster.report("before", 1, AttemptPhase::Succeeded).await;
    }
    let told = |report: &&AttemptReport| (report.step, report.skipped_steps) == (4, 1);
    cluster.until("skipped step in a report", |state| state.reports.iter().find(told).cloned()).await;
    let line = "crescendo_trainer_skipped_steps_total{slot=\"0\"} 1";
    assert!(metrics(&a).await.contains(line), "{}", metrics(&a).await);

    let last = cluster.checkpoint("before", 4).await;
    let state: serde_json::Value = serde_json::from_slice(&object(folder, &last, "state.json")).unwrap();
    assert_eq!(
        (&state["step"], &state["optimizerSteps"], &state["nextPosition"]),
        (&4.into(), &3.into(), &16.into())
    );
    let history = String::from_utf8(object(folder, &last, "history.jsonl")).unwrap();
    let skipped: Vec<(bool, bool)> = history
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|record| (record["skipped"] == true, record["loss"].is_null()))
        .collect();
    assert_eq!(skipped, [(false, false), (false, false), (true, true), (false, false)]);

    let saved = cluster.checkpoint("before", 2).await;
    resumes_to(&undisturbed, folder, &cluster, &agents, "before", &spec, saved).await;
    spec.checkpoints.every = 3;
    start(folder, &cluster, &agents, "after", 1, &spec, None);
    assert!(finish(&cluster, folder, "after", 4).await == undisturbed, "one run differs from the next");
    for _ in agents {
        cluster.report("after", 1, AttemptPhase::Succeeded).await;
    }
    let saved = cluster.checkpoint("after", 3).await;
    resumes_to(&undisturbed, folder, &cluster, &agents, "after", &spec, saved).await;
}

/// Generation 2 of a job of four steps ends with these weights.
async fn resumes_to(
    weights: &[u8],
    folder: &std::path::Path,
    cluster: &Cluster,
    agents: &[&Agent],
    job_id: &str,
    spec: &crescendo_core::spec::JobSpec,
    from: crescendo_proto::v1::Checkpoint,
) {
    let step = from.step;
    start(folder, cluster, agents, job_id, 2, spec, Some(from));
    let last = cluster
        .until("final checkpoint of the second attempt", |state| {
            state.checkpoints.iter().find(|c| c.job_id == job_id && c.generation == 2 && c.r#final).cloned()
        })
        .await;
    assert!(object(folder, &last, "dit_lora.safetensors") == weights, "resumed from {step}: other weights");
    for _ in agents {
        cluster.report(job_id, 2, AttemptPhase::Succeeded).await;
    }
}

#[tokio::test]
async fn too_many_skipped_steps_in_a_row_end_the_job() {
    let folder = home();
    let folder = folder.path();
    let cluster = Cluster::start(16).await;
    let a = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    let mut spec = spec(8, 1);
    // The first update throws the weights out of the range of float32: no step after it has a loss.
    spec.stages[0].train.learning_rate = 1e38;
    spec.checkpoints.every = 3;
    for (job_id, most) in [("strict", 0), ("patient", 2)] {
        spec.stages[0].train.max_skipped_steps = most;
        start(folder, &cluster, &[&a], job_id, 1, &spec, None);
        let failed = cluster.report(job_id, 1, AttemptPhase::Failed).await;
        let (step, limit) = (
            format!("step {}: the loss is", 2 + most),
            format!("spec.stages[0].train.maxSkippedSteps is {most}"),
        );
        assert!(
            failed.permanent && failed.reason.contains(&step) && failed.reason.contains(&limit),
            "{failed:?}"
        );
        assert!(!cluster.state().checkpoints.iter().any(|checkpoint| checkpoint.r#final));
    }
}

/// A process that is not there, or only waits to be reaped, is not alive.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}
