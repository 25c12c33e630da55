//! `crescendo compare`.

use std::path::Path;

use crescendo_proto::v1::{Job, JobState, StagePhase};
use serde_json::{Value, json};

use crate::cp::checkpoint_of;
use crate::fake::{Fake, Scene, Then, job};
use crate::{crescendo, run};

fn history(losses: &[f64]) -> String {
    let line = |(at, loss): (usize, &f64)| {
        json!({"step": at + 1, "loss": loss, "grad_norm": 2.5, "learning_rate": 1e-5, "seconds": 0.5})
            .to_string()
    };
    losses.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

/// A job of a group whose only stage is over: nobody reports its figures any more.
fn ended(id: &str, rate: &str) -> Job {
    let mut ended = job(id, JobState::Succeeded, 3, 10);
    ended.labels.insert("group".into(), "rates".into());
    ended.resolved_spec_yaml = format!(
        "metadata: {{name: {id}}}\nspec: {{seed: 7, stages: [{{train: {{globalBatch: 8, learningRate: {rate}}}}}]}}\n"
    );
    ended.stages[0].phase = StagePhase::Done as i32;
    ended.stages[0].checkpoint_step = 10;
    ended.stages[0].loss = 0.0;
    ended.stages[0].samples_per_sec = 0.0;
    ended
}

fn save(fake: &Fake, objects: &Path, id: &str, losses: &[f64]) {
    let saved = checkpoint_of(id, objects, "stage-1", 10, "history.jsonl", &history(losses));
    fake.part().checkpoints.push(saved);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_stand_side_by_side_with_the_figures_of_their_histories() {
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![ended("uno-2", "8e-5"), ended("uno-1", "1e-5")];
    save(&fake, objects.path(), "uno-1", &[0.5, 0.25]);
    save(&fake, objects.path(), "uno-2", &[0.5, 0.75]);
    let server = fake.serve().await;
    let compare = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["compare", "--controller", &server.address.to_string()]).args(more);
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SHARED_CREDENTIALS_FILE");
        command
    };
    let store = ["--object-store", objects.path().to_str().unwrap()];
    let (code, out, err) = run(&mut compare(&[&["uno-1", "uno-2"], &store[..]].concat())).await;
    assert_eq!((code, err.as_str()), (0, ""));
    for line in [
        "state                              succeeded  succeeded",
        "stage-1 steps                      10/10      10/10",
        "stage-1 loss                       0.25       0.75",
        "stage-1 mean loss                  0.375      0.625",
        "stage-1 grad norm                  2.5        2.5",
        "stage-1 samples/s                  16         16",
        "spec.stages[0].train.learningRate  1e-5       8e-5",
    ] {
        assert!(out.lines().any(|shown| shown == line), "{line}\nin\n{out}");
    }
    assert!(!out.contains("spec.seed"), "what is the same is not told: {out}");
    let (_, out, _) = run(&mut compare(&[&["uno-1", "uno-2", "-o", "json"], &store[..]].concat())).await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["jobs"][1]["stages"][0]["meanLoss"], 0.625);
    assert_eq!(told["differences"][1]["values"], json!({"uno-1": 1e-5, "uno-2": 8e-5}));
    assert_eq!(told["unread"], json!([]));

    // A group is a row a job, the oldest first.
    let (code, out, err) = run(&mut compare(&[&["--group", "rates"], &store[..]].concat())).await;
    assert_eq!(
        (code, out.as_str()),
        (
            0,
            "\
JOB    spec.stages[0].train.learningRate  STATE      STAGE    STEP   LOSS  MEAN LOSS
uno-1  1e-5                               succeeded  stage-1  10/10  0.25  0.375
uno-2  8e-5                               succeeded  stage-1  10/10  0.75  0.625
"
        ),
        "{err}"
    );
    let (code, _, err) = run(&mut compare(&["--group", "none"])).await;
    assert!(code == 1 && err.contains("there is no job with the label group=none"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_said_and_never_a_zero() {
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![ended("uno-1", "1e-5"), ended("uno-2", "1e-5")];
    save(&fake, objects.path(), "uno-1", &[0.5, 0.25]);
    save(&fake, objects.path(), "uno-2", &[0.5]);
    fake.part().checkpoints[1].files[0].sha256 = "0".repeat(64);
    fake.part().who.object_store_url = "s3://of-the-cluster/one".into();
    let server = fake.serve().await;
    let compare = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["compare", "--controller", &server.address.to_string()]).args(more);
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SHARED_CREDENTIALS_FILE");
        command
    };
    // Out of reach from here, and a curator has the one: what comes of the other is not what was registered.
    let store = ["--object-store", objects.path().to_str().unwrap()];
    let (code, out, err) = run(&mut compare(&[&["uno-1", "uno-2"], &store[..]].concat())).await;
    assert_eq!(code, 0, "what is left is worth something: {err}");
    assert!(out.contains("stage-1 loss       0.25       ?\n"), "{out}");
    assert!(err.starts_with("uno-2 stage-1: its last steps are not known: "), "{err}");
    assert!(err.contains("is not what was registered") && err.lines().count() == 1, "{err}");

    fake.part().checkpoints.pop();
    let scene = Scene { sends: vec![history(&[0.5, 0.25])], then: Then::Close };
    fake.part().files.push_back(scene);
    let (code, out, err) = run(&mut compare(&["uno-1", "uno-2", "--timeout", "1s"])).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("stage-1 mean loss  0.375      ?\n"), "it came through the controller: {out}{err}");
    assert!(
        err.contains("uno-2 stage-1: its last steps are not known: job uno-2 has no checkpoint yet"),
        "{err}"
    );

    for (jobs, words) in [
        (&["uno-1"][..], "2 values required"),
        (&["uno-1", "uno-1"], "job uno-1 is named twice"),
        (&["uno-1", "uno-2", "--group", "g"], "cannot be used with"),
        (&[], "required"),
    ] {
        let (code, _, err) = run(&mut compare(jobs)).await;
        assert!(code == 2 && err.contains(words), "{jobs:?}: {err}");
    }
    let (code, _, err) = run(&mut compare(&["uno-1", "uno-9"])).await;
    assert!(code == 1 && err.contains("there is no job uno-9"), "{err}");
}
