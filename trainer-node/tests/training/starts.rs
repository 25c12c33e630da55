//! Stages that go on with the optimizer of what they start from.

use crescendo_core::spec::{JobSpec, StartSpec};
use crescendo_proto::v1::{AttemptPhase, Checkpoint};

use crate::support::*;

const FILES: [&str; 3] = ["dit_lora.safetensors", "optimizer.safetensors", "ema.safetensors"];

/// The spec of a job that starts from another's, with its optimizer.
fn goes_on(steps: u64) -> JobSpec {
    let mut spec = spec(steps, 1);
    let checkpoint = format!("source/{STAGE}");
    spec.stages[0].init_from = Some(StartSpec { checkpoint, optimizer: true });
    // One before the last: a save that is due while another is still being written is left out.
    spec.checkpoints.every = 2;
    spec
}

/// A cluster in which a job of four steps has ended, and its last checkpoint.
async fn trained(folder: &std::path::Path) -> (Cluster, Agent, Checkpoint) {
    let cluster = Cluster::start(16).await;
    cluster.set_log(16, true);
    let agent = Agent::start(folder, &cluster, "node-a", 1);
    cluster.connected("node-a").await;
    start(folder, &cluster, &[&agent], "source", 1, &spec(4, 1), None);
    let last = cluster.checkpoint("source", 4).await;
    cluster.report("source", 1, AttemptPhase::Succeeded).await;
    (cluster, agent, last)
}

fn optimizer_steps(folder: &std::path::Path, checkpoint: &Checkpoint) -> (u64, u64) {
    let state = object(folder, checkpoint, "state.json");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    (state["step"].as_u64().expect("a number"), state["optimizerSteps"].as_u64().expect("a number"))
}

async fn last_of(cluster: &Cluster, job_id: &str, generation: u64) -> Checkpoint {
    let found = cluster.until("final checkpoint", |state| {
        let mut all = state.checkpoints.iter();
        all.find(|c| c.job_id == job_id && c.generation == generation && c.r#final).cloned()
    });
    let last = found.await;
    cluster.report(job_id, generation, AttemptPhase::Succeeded).await;
    last
}

/// The first step of the jobs that go on has no loss, and changes nothing: the checkpoint of the job that has no other
/// step shows what they began with.
#[tokio::test]
async fn the_optimizer_is_taken_over_bit_by_bit_and_a_resume_keeps_it() {
    let folder = home();
    let folder = folder.path();
    let (cluster, agent, source) = trained(folder).await;
    let begins = || Begins { init_from: Some(source.clone()), ..Begins::default() };
    cluster.state().poisoned = Some(1);
    start_from(folder, &cluster, &[&agent], ("first", 1), &goes_on(1), begins());
    let first = last_of(&cluster, "first", 1).await;
    let spec = goes_on(3);
    start_from(folder, &cluster, &[&agent], ("next", 1), &spec, begins());
    let last = last_of(&cluster, "next", 1).await;
    for name in FILES {
        assert!(object(folder, &first, name) == object(folder, &source, name), "{name} began as another");
    }
    assert_eq!((optimizer_steps(folder, &first), optimizer_steps(folder, &last)), ((1, 4), (3, 6)));

    let saved = cluster.checkpoint("next", 2).await;
    let resumed = Begins { resume_from: Some(saved), init_from: Some(source.clone()), ..Begins::default() };
    cluster.state().newest_generation = 2;
    start_from(folder, &cluster, &[&agent], ("next", 2), &spec, resumed);
    let again = last_of(&cluster, "next", 2).await;
    for name in FILES {
        assert!(
            object(folder, &again, name) == object(folder, &last, name),
            "resumed, {name} ends as another"
        );
    }

    let mut weights = spec;
    weights.stages[0].init_from = Some(StartSpec::weights_of(format!("source/{STAGE}")));
    start_from(folder, &cluster, &[&agent], ("weights", 2), &weights, begins());
    let other = last_of(&cluster, "weights", 2).await;
    assert!(
        object(folder, &other, FILES[0]) != object(folder, &last, FILES[0]),
        "the moments make a difference"
    );
    assert_eq!(optimizer_steps(folder, &other), (3, 2));
}

#[tokio::test]
async fn an_optimizer_that_is_not_there_or_does_not_fit_ends_the_job_and_is_named() {
    let folder = home();
    let folder = folder.path();
    let (cluster, agent, source) = trained(folder).await;
    let mut without = source.clone();
    without.files.retain(|file| file.name != "optimizer.safetensors");
    // The averages in place of the moments: the same shapes under other names.
    let mut other = Checkpoint { path: format!("{}-other", source.path), ..source.clone() };
    let (from, to) = (folder.join("objects").join(&source.path), folder.join("objects").join(&other.path));
    std::fs::create_dir(&to).expect("a new folder");
    for file in &other.files {
        std::fs::copy(from.join(&file.name), to.join(&file.name)).expect("it is there");
    }
    std::fs::copy(from.join("ema.safetensors"), to.join("optimizer.safetensors")).expect("it is there");
    let average =
        source.files.iter().find(|file| file.name == "ema.safetensors").expect("it has one").clone();
    let file = other.files.iter_mut().find(|file| file.name == "optimizer.safetensors").expect("it has one");
    (file.size_bytes, file.sha256) = (average.size_bytes, average.sha256);

    let absent = format!("spec.stages[0].initFrom.optimizer: checkpoint {} has no", source.path);
    let unfit =
        format!("spec.stages[0].initFrom.optimizer: optimizer.safetensors of checkpoint {}", other.path);
    for (job_id, init_from, said) in [("without", without, absent), ("unfit", other, unfit)] {
        let begins = Begins { init_from: Some(init_from), ..Begins::default() };
        start_from(folder, &cluster, &[&agent], (job_id, 1), &goes_on(4), begins);
        let failed = cluster.report(job_id, 1, AttemptPhase::Failed).await;
        assert!(failed.permanent && failed.reason.contains(&said), "{failed:?}");
    }
    assert!(cluster.state().damaged.is_empty(), "nothing is wrong with the checkpoints themselves");
}
