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

/// What the fake was sent to be submitted, in words.
fn sent(fake: &Fake) -> Vec<(String, String)> {
    let submits = fake.part().submits.clone();
    let real = submits.into_iter().filter(|submit| !submit.validate_only);
    real.map(|submit| (submit.request_id, String::from_utf8(submit.spec_yaml).unwrap())).collect()
}

const SPEC: &str = "kind: TrainingJob\nmetadata: {name: uno}\nspec:\n  # lucky\n  seed: 7\n";

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_set_and_problems_say_so() {
    let ((home, file), fake) = (home(), Fake::default());
    std::fs::write(&file, SPEC).unwrap();
    fake.part().jobs = vec![job("uno-1", JobState::Queued, 1, 0)];
    let server = fake.serve().await;
    let submit = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["submit", "--controller", &server.address.to_string()]).arg(&file).args(more);
        command
    };
    let (code, out, err) = run(&mut submit(&["--set", "seed=8", "--set", "metadata.name=dos"])).await;
    assert_eq!((code, out.as_str()), (0, "uno-1\n"), "{err}");
    assert_eq!(sent(&fake)[0].1, SPEC.replace("seed: 7", "seed: 8").replace("uno", "dos"));

    // A problem of what was set names it; one of the file has its line there, although a line was put before it.
    let problem =
        |line, column, path: &str| SpecProblem { line, column, path: path.into(), message: "bad".into() };
    let problems = SpecProblems { problems: vec![problem(4, 3, "spec.sed"), problem(6, 9, "spec.seed")] };
    let mut status = Status::new(Code::InvalidArgument, "the spec has 2 problems");
    let encoded = MetadataValue::from_bytes(&problems.encode_to_vec());
    status.metadata_mut().insert_bin("crescendo-problems-bin", encoded);
    fake.part().refuse_submit = Some(status);
    std::fs::write(&file, SPEC.replace("  # lucky\n", "")).unwrap();
    let (code, _, err) = run(&mut submit(&["--set", "sed=8"])).await;
    let shown = file.display();
    assert_eq!(code, 3);
    assert_eq!(
        err,
        format!(
            "{shown}: spec.sed: bad (by --set spec.sed=8)\n{shown}: spec.seed: bad\n2 problems in {shown}\n"
        )
    );
    for (more, words) in [
        (&["--set", "seed=1", "--set", "spec.seed=2"][..], "`spec.seed` is set twice"),
        (&["--set", "stages[0].name=a"], "--set spec.stages[0].name=a: the spec has no such list"),
        (&["--set", "seed"], "expected PATH=VALUE"),
        (&["--group", "g"], "--matrix"),
        (&["--matrix", "seed=1,2", "--watch"], "cannot be used with"),
    ] {
        let (code, _, err) = run(&mut submit(more)).await;
        assert!(code == 2 && err.contains(words), "{more:?}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_matrix_is_checked_whole_and_submitted_once() {
    let ((home, file), fake) = (home(), Fake::default());
    std::fs::write(&file, SPEC).unwrap();
    fake.part().makes = Some(("uno", 4));
    let server = fake.serve().await;
    let submit = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["submit", "--controller", &server.address.to_string()]).arg(&file);
        command.args(["--matrix", "seed=1,2,3", "--matrix", "priority=0,5"]).args(more);
        command
    };
    // One that is no good keeps all of them away.
    let problem = SpecProblem { line: 5, column: 9, path: "spec.seed".into(), message: "bad".into() };
    fake.part().problems = Some(("seed: 2", problem));
    let (code, out, err) = run(&mut submit(&["--group", "g"])).await;
    assert_eq!((code, out.as_str()), (3, ""), "{err}");
    let first = "nothing is submitted: 2 of 6 combinations are refused, the first being spec.seed=2 spec.priority=0\n";
    assert!(err.starts_with(first), "{err}");
    assert_eq!(sent(&fake), []);

    // What is cut short in the middle says what is there, and is completed by the same command.
    fake.part().problems = None;
    let (code, out, err) = run(&mut submit(&["--group", "g"])).await;
    assert_eq!((code, out.as_str()), (1, "uno-1\nuno-2\nuno-3\nuno-4\n"), "{err}");
    let said = "error: the tenant's queue is full; submitted so far: 4 of 6 jobs (uno-1, uno-2, uno-3, uno-4). The same \
                command with --group g goes on with the rest and submits none twice; another spec needs another --group\n";
    assert!(err.starts_with("group g: 6 jobs\n") && err.ends_with(said), "{err}");
    fake.part().makes = Some(("uno", 100));
    let (code, out, err) = run(&mut submit(&["--group", "g", "-o", "json"])).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("4 of them had been submitted before\n"), "{err}");
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> =
        lines.iter().map(|job| (job["jobId"].as_str(), job["alreadySubmitted"].as_bool())).collect();
    assert_eq!(
        told[3..],
        [(Some("uno-4"), Some(true)), (Some("uno-5"), Some(false)), (Some("uno-6"), Some(false))]
    );
    assert_eq!(lines[5]["combination"], serde_json::json!({"spec.seed": "3", "spec.priority": "5"}));
    assert_eq!(fake.part().jobs.len(), 6);

    let sent = sent(&fake);
    let ids: Vec<&str> = sent[sent.len() - 6..].iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["g.1", "g.2", "g.3", "g.4", "g.5", "g.6"]);
    let last: serde_json::Value = serde_yaml::from_str(&sent[sent.len() - 1].1).unwrap();
    assert_eq!(last["metadata"], serde_json::json!({"name": "uno-6", "labels": {"group": "g"}}));
    assert_eq!((&last["spec"]["seed"], &last["spec"]["priority"]), (&3.into(), &5.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_a_name_gets_one_and_too_many_jobs_are_refused() {
    let ((home, file), fake) = (home(), Fake::default());
    std::fs::write(&file, SPEC).unwrap();
    fake.part().makes = Some(("uno", 4));
    let server = fake.serve().await;
    let submit = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["submit", "--controller", &server.address.to_string()]).arg(&file).args(more);
        command
    };
    let (code, _, err) = run(&mut submit(&["--matrix", "seed=1,2"])).await;
    let group =
        err.strip_prefix("group ").and_then(|rest| rest.split_once(": 2 jobs\n")).expect("it is named").0;
    assert!(code == 0 && group.len() == 10 && group.starts_with("uno-"), "{err}");
    assert_eq!(sent(&fake)[1].0, format!("{group}.2"));
    let (_, _, err) = run(&mut submit(&["--matrix", "seed=1,2"])).await;
    assert!(!err.contains(group), "another one: {err}");

    let many = (0..257).map(|seed| seed.to_string()).collect::<Vec<_>>().join(",");
    let (code, _, err) = run(&mut submit(&["--matrix", &format!("seed={many}")])).await;
    assert_eq!(
        (code, err.as_str()),
        (2, "error: --matrix asks for 257 jobs; at most 256 are submitted at once\n")
    );
    for (more, words) in [
        ("metadata.name=a,b", "--matrix numbers the names of its jobs"),
        ("metadata.labels.group=a,b", "is set with --group"),
        ("seed=1,,2", "has an empty value"),
    ] {
        let (code, _, err) = run(&mut submit(&["--matrix", more])).await;
        assert!(code == 2 && err.contains(words), "{more}: {err}");
    }
    std::fs::write(&file, "spec: {seed: 7}\n").unwrap();
    let (code, _, err) = run(&mut submit(&["--matrix", "seed=1,2"])).await;
    assert!(code == 2 && err.contains("has no metadata.name"), "{err}");
    assert_eq!(sent(&fake).len(), 4, "nothing of these was sent");
}
