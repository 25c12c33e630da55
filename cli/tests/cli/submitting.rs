//! `crescendo submit`.

use std::path::PathBuf;

use crescendo_proto::v1::{JobState, SpecProblem, SpecProblems};
use prost::Message as _;
use tempfile::TempDir;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::fake::{Fake, Scene, Then, job};
use crate::{crescendo, run};

/// A home with a file that the fake takes for a spec.
fn home() -> (TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("job.yaml");
    std::fs::write(&file, "kind: TrainingJob\nmetadata: {nmae: uno}\n").unwrap();
    (home, file)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_id_is_used_through_an_outage() {
    let ((home, file), fake) = (home(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Queued, 1, 0)];
    fake.part().swallow_submits = 3;
    let server = fake.serve().await;
    let address = server.address.to_string();
    let (code, out, err) =
        run(crescendo(home.path()).args(["submit", "--controller", &address]).arg(&file)).await;
    assert_eq!((code, out.as_str()), (0, "uno-1\n"), "{err}");
    assert!(err.contains("has been submitted before"), "{err}");
    let submits = fake.part().submits.clone();
    assert_eq!(submits.len(), 4);
    let id = &submits[0].request_id;
    assert!(!id.is_empty() && submits.iter().all(|submit| submit.request_id == *id), "{submits:?}");
    assert_eq!(submits[3].spec_yaml, std::fs::read(&file).unwrap());

    let args = ["submit", "--request-id", "nightly.7", "-o", "json", "--controller", &address];
    let (code, out, _) = run(crescendo(home.path()).args(args).arg(&file)).await;
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["jobId"], "uno-1");
    assert_eq!(fake.part().submits[4].request_id, "nightly.7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_comes_late_is_waited_for() {
    let ((home, file), fake) = (home(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Queued, 1, 0)];
    let server = fake.serve().await;
    let address = server.address;
    server.kill();
    let mut command = crescendo(home.path());
    command.args(["submit", "--controller", &address.to_string()]).arg(&file);
    let (submitted, server) = tokio::join!(run(&mut command), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        fake.serve_at(address).await
    });
    assert_eq!((submitted.0, submitted.1.as_str()), (0, "uno-1\n"), "{}", submitted.2);
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn problems_of_the_server_are_shown_at_their_place() {
    let ((home, file), fake) = (home(), Fake::default());
    let problem =
        SpecProblem { line: 2, column: 12, path: "metadata.nmae".into(), message: "unknown field".into() };
    let problems = SpecProblems { problems: vec![problem] }.encode_to_vec();
    let mut status = Status::new(Code::InvalidArgument, "the spec has 1 problem");
    status.metadata_mut().insert_bin("crescendo-problems-bin", MetadataValue::from_bytes(&problems));
    fake.part().refuse_submit = Some(status);
    let server = fake.serve().await;
    let address = server.address.to_string();
    let (code, out, err) =
        run(crescendo(home.path()).args(["submit", "--controller", &address]).arg(&file)).await;
    assert_eq!((code, out.as_str()), (3, ""));
    let file = file.display();
    let shown = " 2 | metadata: {nmae: uno}\n   |            ^\n";
    assert_eq!(err, format!("{file}:2:12: metadata.nmae: unknown field\n{shown}1 problem in {file}\n"));
    assert_eq!(fake.part().submits.len(), 1, "a refusal is not tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_ends_with_the_code_of_the_job() {
    let ((home, file), fake) = (home(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Queued, 1, 0)];
    let server = fake.serve().await;
    let address = server.address.to_string();
    for (state, reason, expected) in [
        (JobState::Succeeded, "", 0),
        (JobState::Failed, "weights are gone", 4),
        (JobState::Cancelled, "", 4),
    ] {
        let mut last = job("uno-1", state, 3, 10);
        last.reason = reason.into();
        last.stages[0].final_checkpoint = "jobs/uno-1/stage-1/checkpoints/step-00000010-g1".into();
        let sends = vec![job("uno-1", JobState::Running, 2, 1), last];
        fake.part().watch.push_back(Scene { sends, then: Then::Stay });
        let args = ["submit", "--watch", "--controller", &address];
        let (code, out, err) = run(crescendo(home.path()).args(args).arg(&file)).await;
        assert_eq!(code, expected, "{err}");
        assert!(
            out.starts_with("uno-1\njob uno-1 running\nstage-1: training, step 1/10, loss 0.5000"),
            "{out}"
        );
        assert!(out.contains("final checkpoint jobs/uno-1/stage-1/checkpoints/step-00000010-g1"), "{out}");
        assert!(err.contains(reason), "{err}");
    }
}
