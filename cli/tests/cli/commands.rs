//! Looking at things; and what goes wrong before a controller is asked.

use std::path::Path;

use crescendo_proto::v1::{
    AttemptRef, Checkpoint, CheckpointFile, DeleteJobResponse, DeletionPart, DeletionPhase,
    ExplainJobResponse, FinalCheckpoint, JobDeletion, JobState, Lineage, LogLine, Node, NodeKind, NodeReach,
    PlanContinuationRequest,
};
use prost_types::Timestamp;

use crate::fake::{Fake, job, node};
use crate::{at, crescendo, run};

const SPEC: &str = "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {name: uno}\nspec:\n  model: {preset: nano, weights: w}\n  stages:\n    - data: {source: compose, subjects: s}\n";

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_listed_over_pages() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = (0..5).map(|n| job(&format!("uno-{n}"), JobState::Running, 1, n)).collect();
    let server = fake.serve().await;
    let address = server.address.to_string();
    let (code, out, _) = run(crescendo(home.path()).args(["jobs", "--controller", &address])).await;
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 6, "{out}");
    assert!(lines[0].starts_with("JOB") && lines[5].starts_with("uno-4  running  stage-1  4/10"), "{out}");

    let args = ["jobs", "--limit", "3", "--state", "running,queued", "--name", "un", "-o", "json"];
    let (code, out, err) = run(crescendo(home.path()).args(args).env("CRESCENDO_CONTROLLER", &address)).await;
    assert_eq!(code, 0);
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert_eq!((&listed[2]["jobId"], &listed[2]["state"]), (&"uno-2".into(), &"running".into()));
    assert_eq!(listed[2]["stages"][0]["pairsRejected"]["similarity_low"], 3);
    assert!(err.contains("there are more"), "{err}");
    let last = fake.part().lists.last().cloned().unwrap();
    assert_eq!(last.states, [JobState::Running as i32, JobState::Queued as i32]);
    assert_eq!((last.name_prefix.as_str(), last.page_size), ("un", 1));
    let args = ["jobs", "--label", "team=vision", "--label", "nightly"];
    let (code, _, err) = run(crescendo(home.path()).args(args).env("CRESCENDO_CONTROLLER", &address)).await;
    assert_eq!(code, 0, "{err}");
    let last = fake.part().lists.last().cloned().unwrap();
    let wanted =
        [("nightly", ""), ("team", "vision")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(last.labels.into_iter().collect::<std::collections::BTreeMap<_, _>>(), wanted.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_is_shown_or_missing() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 4)];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let (code, out, _) = run(crescendo(home.path()).args(["get", "uno-1", "--controller", &address])).await;
    assert_eq!(code, 0);
    assert!(
        out.contains("state      running") && out.contains("64/128") && out.contains("3 similarity_low"),
        "{out}"
    );
    let (code, out, err) = run(crescendo(home.path()).args(["get", "no", "--controller", &address])).await;
    assert_eq!((code, out.as_str(), err.as_str()), (1, "", "error: there is no job no\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_spec_states_is_shown_beside_its_defaults() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 4)];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let get = ["get", "uno-1", "--stated", "--controller", &address];
    let (code, out, _) = run(crescendo(home.path()).args(get)).await;
    let expected = "FIELD           IS    DEFAULT\nresources.gpus  2     1\nmodel.preset    nano\n";
    assert_eq!((code, out.as_str()), (0, expected));
    let (code, out, _) = run(crescendo(home.path()).args(get).args(["-o", "json"])).await;
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let expected = serde_json::json!([
        { "field": "spec.resources.gpus", "value": "2", "default": "1" },
        { "field": "spec.model.preset", "value": "nano", "default": null },
    ]);
    assert_eq!((code, json), (0, expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_deleted_and_its_lineage_shown() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Succeeded, 1, 4)];
    let part = |part: &str, kept| DeletionPart { part: part.into(), objects: 3, bytes: 2048, kept };
    let deletion = JobDeletion {
        job_id: "uno-1".into(),
        phase: DeletionPhase::Files as i32,
        waiting_for: "node n has not stopped working on it".into(),
        ..JobDeletion::default()
    };
    fake.part().deletion = DeleteJobResponse {
        deletion: Some(deletion),
        parts: vec![part("checkpoints", true), part("pairs", false)],
        counted: true,
    };
    let file = CheckpointFile { name: "m.safetensors".into(), size_bytes: 2048, sha256: "ab".repeat(32) };
    let last =
        FinalCheckpoint { stage: "stage-1".into(), step: 7, path: "jobs/uno-1/x".into(), files: vec![file] };
    fake.part().lineage = Some(Lineage {
        job_id: "uno-1".into(),
        state: "failed".into(),
        reason: "worn out".into(),
        from: vec!["store:jobs/base-1/y".into()],
        final_checkpoints: vec![last],
        ..Lineage::default()
    });
    let server = fake.serve().await;
    let address = server.address.to_string();
    let call =
        async |args: &[&str]| run(crescendo(home.path()).args(args).args(["--controller", &address])).await;
    let (code, out, _) = call(&["delete", "uno-1", "--keep-checkpoints", "--dry-run"]).await;
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[1].starts_with("checkpoints") && lines[1].ends_with("stay"), "{out}");
    assert!(lines[2].starts_with("pairs") && lines[2].ends_with("go"), "{out}");
    let (code, out, _) = call(&["delete", "uno-1"]).await;
    let expected = "uno-1: is being deleted; it waits: node n has not stopped working on it\n";
    assert_eq!((code, out.as_str()), (0, expected));
    let asked = fake.part().deletes.clone();
    let keeps: Vec<(bool, bool, bool)> = asked
        .iter()
        .map(|asked| (asked.dry_run, asked.keep.unwrap().checkpoints, asked.keep.unwrap().pairs))
        .collect();
    assert_eq!(keeps, [(true, true, false), (false, false, false)]);
    let (code, out, _) = call(&["lineage", "uno-1"]).await;
    assert_eq!(code, 0);
    for line in
        ["state      failed: worn out", "from       store:jobs/base-1/y", "after 7 steps", "m.safetensors"]
    {
        assert!(out.contains(line), "{line} is not in:\n{out}");
    }
    let (_, out, _) = call(&["lineage", "uno-1", "-o", "json"]).await;
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["deletion"]["phase"], "files");
    assert_eq!(told["finalCheckpoints"][0]["files"][0]["sha256"], "ab".repeat(32));
    let (code, _, err) = call(&["lineage", "no"]).await;
    assert_eq!((code, err.as_str()), (1, "error: there is no job no\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_is_marked_and_released() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let path = "jobs/uno-1/stage-1/checkpoints/step-00000500-g1".to_owned();
    fake.part().checkpoints =
        vec![Checkpoint { stage: "stage-1".into(), step: 500, path: path.clone(), ..Checkpoint::default() }];
    let server = fake.serve().await;
    let address = server.address.to_string();
    for (action, is) in [("keep", "is kept"), ("release", "may expire")] {
        let args = ["checkpoints", action, "uno-1", "stage-1", "500", "--controller", &address];
        let (code, out, _) = run(crescendo(home.path()).args(args)).await;
        assert_eq!((code, out), (0, format!("{path} {is}\n")));
    }
    let marks: Vec<bool> = fake.part().keeps.iter().map(|asked| asked.release).collect();
    assert_eq!(marks, [false, true]);
    let args = ["checkpoints", "--controller", &address];
    let (code, _, err) = run(crescendo(home.path()).args(args)).await;
    assert!(code == 2 && err.contains("<JOB>"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_and_checkpoints_are_listed() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let silent = Node {
        reach: NodeReach::Silent as i32,
        silent_seconds: 75.0,
        ..node("curator-0", NodeKind::Curator)
    };
    fake.part().nodes =
        vec![Node { slots: 2, slots_used: 1, ..node("trainer-0", NodeKind::Trainer) }, silent];
    let file = |size_bytes| CheckpointFile { name: "f".into(), size_bytes, sha256: "00".into() };
    fake.part().checkpoints = vec![
        Checkpoint {
            stage: "stage-1".into(),
            step: 500,
            files: vec![file(1024), file(1024)],
            committed_at: Some(Timestamp { seconds: 0, nanos: 0 }),
            ..Checkpoint::default()
        },
        Checkpoint {
            stage: "stage-2".into(),
            damaged: "state.json is cut short".into(),
            ..Checkpoint::default()
        },
    ];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let (code, out, _) = run(crescendo(home.path()).args(["nodes", "--controller", &address])).await;
    assert_eq!(code, 0);
    assert!(out.contains("trainer-0  trainer  connected") && out.contains("1/2"), "{out}");
    assert!(out.contains("silent for 1m 15s"), "{out}");
    let (code, out, _) =
        run(crescendo(home.path()).args(["checkpoints", "j", "--controller", &address])).await;
    assert_eq!(code, 0);
    assert!(out.contains("stage-1  500   2.0 KiB  1970-01-01T00:00:00Z  ok"), "{out}");
    assert!(out.contains("damaged: state.json is cut short"), "{out}");
    let args = ["checkpoints", "j", "--stage", "stage-2", "-o", "json", "--controller", &address];
    let (_, out, _) = run(crescendo(home.path()).args(args)).await;
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["stage"]), (1, &"stage-2".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_and_taken_back() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().nodes = vec![Node {
        node_id: "trainer-0".into(),
        kind: NodeKind::Trainer.into(),
        reach: NodeReach::Connected.into(),
        running: vec![AttemptRef { job_id: "j".into(), stage: "s".into(), generation: 1 }],
        ..Node::default()
    }];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let (code, out, _) =
        run(crescendo(home.path()).args(["drain", "trainer-0", "--controller", &address])).await;
    assert_eq!((code, out.as_str()), (0, "trainer-0: draining\n"));
    fake.part().nodes[0].running.clear();
    let (_, out, _) = run(crescendo(home.path()).args(["nodes", "--controller", &address])).await;
    assert!(out.contains("drained"), "{out}");
    let args = ["drain", "trainer-0", "--undo", "--controller", &address];
    let (code, out, _) = run(crescendo(home.path()).args(args)).await;
    assert_eq!((code, out.as_str()), (0, "trainer-0: connected\n"));
    let (code, _, err) =
        run(crescendo(home.path()).args(["drain", "nobody", "--controller", &address])).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("node nobody does not exist"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_with_its_reason() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 4)];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let args = ["cancel", "uno-1", "--reason", "wrong seed", "--controller", &address];
    let (code, out, _) = run(crescendo(home.path()).args(args)).await;
    assert_eq!((code, out.as_str()), (0, "uno-1: cancelled\n"));
    assert_eq!(fake.part().cancels[0].reason, "wrong seed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_explained_with_its_last_lines() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Failed, 1, 4)];
    fake.part().explanation = ExplainJobResponse {
        cause: "failed".into(),
        stage: "stage-1".into(),
        summary: "has failed: loss is not finite".into(),
        findings: vec!["stage-1 was tried once".into()],
        remedies: vec!["correct what the reason and the log say".into()],
        log_lines: vec![LogLine {
            rank: 1,
            node_id: "n".into(),
            level: "ERROR".into(),
            message: "nan".into(),
            ..LogLine::default()
        }],
        ..ExplainJobResponse::default()
    };
    let server = fake.serve().await;
    let address = server.address.to_string();
    let (code, out, err) =
        run(crescendo(home.path()).args(["explain", "uno-1", "--controller", &address])).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with(
            "uno-1 (failed in stage-1) has failed: loss is not finite\n  - stage-1 was tried once\n"
        ),
        "{out}"
    );
    assert!(out.contains("What to do:\n  - correct") && out.contains("ERROR n/1: nan"), "{out}");
    let args = ["explain", "uno-1", "-o", "json", "--controller", &address];
    let (_, out, _) = run(crescendo(home.path()).args(args)).await;
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&told["cause"], &told["logLines"][0]["message"]), (&"failed".into(), &"nan".into()));
    let (code, _, err) = run(crescendo(home.path()).args(["explain", "no", "--controller", &address])).await;
    assert_eq!((code, err.as_str()), (1, "error: there is no job no\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn man_pages_and_completion_scripts_are_written() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("man");
    let (code, _, err) = run(crescendo(home.path()).arg("man").arg("--dir").arg(&dir)).await;
    assert_eq!(code, 0, "{err}");
    let page = std::fs::read_to_string(dir.join("crescendo-submit.1")).unwrap();
    for part in [".TH crescendo-submit 1", ".SH NAME", ".SH SYNOPSIS", "request\\-id", "nightly"] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    for name in ["crescendo.1", "crescendo-context-add.1", "crescendo-explain.1", "crescendo-doctor.1"] {
        assert!(dir.join(name).is_file(), "{name}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(crescendo(home.path()).args(["completion", shell])).await;
        assert!(code == 0 && out.contains("explain") && out.contains("crescendo jobs --limit"), "{shell}");
    }
    assert_eq!(run(crescendo(home.path()).args(["completion", "tcsh"])).await.0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_ends_with_its_reader() {
    let home = tempfile::tempdir().unwrap();
    let mut command = crescendo(home.path());
    // More than a pipe holds.
    command.args(["completion", "zsh"]).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ended = tokio::time::timeout(crate::DEADLINE, child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(141));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_controller_is_its_own_exit_code() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let server = fake.serve().await;
    let address = server.address.to_string();
    server.kill();
    let args = ["jobs", "--controller", &address, "--timeout", "300ms"];
    let (code, _, err) = run(crescendo(home.path()).args(args)).await;
    assert_eq!(code, 5);
    assert!(err.contains(&address) && err.contains("refused"), "{err}");
    let (code, _, err) = run(crescendo(home.path()).arg("nodes")).await;
    assert_eq!(code, 5);
    assert!(err.contains("crescendo up"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_is_exit_code_two() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &["job"][..],
        &["get"],
        &["jobs", "--limit", "0"],
        &["jobs", "--state", "happy"],
        &["jobs", "-o", "xml"],
    ] {
        assert_eq!(run(crescendo(home.path()).args(args)).await.0, 2, "{args:?}");
    }
    let (code, out, _) = run(crescendo(home.path()).arg("--help")).await;
    assert_eq!(code, 0);
    assert!(out.contains("Exit codes:") && out.contains("crescendo up --run examples/nano.yaml"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn specs_are_checked_without_a_cluster() {
    let home = tempfile::tempdir().unwrap();
    let (good, bad) = (home.path().join("good.yaml"), home.path().join("bad.yaml"));
    std::fs::write(&good, SPEC).unwrap();
    std::fs::write(&bad, SPEC.replace("preset: nano", "preset: nino").replace("kind: Tr", "kind: tr"))
        .unwrap();

    let (code, resolved, _) = run(crescendo(home.path()).arg("validate").arg(&good)).await;
    assert_eq!(code, 0);
    std::fs::write(&good, &resolved).unwrap();
    let (code, again, _) = run(crescendo(home.path()).arg("validate").arg(&good)).await;
    assert_eq!((code, again), (0, resolved));

    // What is hardly meant is said with its line, and fails nothing.
    std::fs::write(&good, format!("{SPEC}      train: {{steps: 30, warmupSteps: 120}}\n")).unwrap();
    let (code, out, err) = run(crescendo(home.path()).arg("validate").arg(&good)).await;
    assert!(code == 0 && out.contains("pairs: 480\n"), "{code} {out}");
    let long = "warning: line 8: spec.stages[0].train.warmupSteps: the warm-up of 120 steps is longer";
    assert!(err.lines().any(|line| line.starts_with(long)), "{err}");
    let (code, out, _) = run(crescendo(home.path()).args(["validate", "-o", "json"]).arg(&good)).await;
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    let warnings = answer["warnings"].as_array().unwrap();
    assert!(code == 0 && warnings.iter().any(|warning| warning["line"] == 8), "{answer}");

    let (code, out, err) = run(crescendo(home.path()).arg("validate").arg(&bad)).await;
    assert_eq!((code, out.as_str()), (3, ""));
    let place = format!("{}:5:19: spec.model.preset: expected ", bad.display());
    assert!(
        err.contains(&place) && err.contains("did you mean `nano`?\n 5 |   model: {preset: nino"),
        "{err}"
    );
    assert!(err.ends_with(&format!("2 problems in {}\n", bad.display())), "{err}");

    let (code, out, _) = run(crescendo(home.path()).args(["validate", "-o", "json"]).arg(&bad)).await;
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &answer["valid"], &answer["problems"][1]["line"]), (3, &false.into(), &5.into()));

    let (code, _, err) = run(crescendo(home.path()).args(["validate", "/nowhere/job.yaml"])).await;
    assert_eq!(code, 1);
    assert!(err.starts_with("error: read /nowhere/job.yaml"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workbench_is_handed_everything() {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = home.path().join("crescendo");
    std::fs::hard_link(env!("CARGO_BIN_EXE_crescendo"), &program).unwrap();
    let (code, _, err) = run(at(&program, home.path()).args(["parity", "fixtures"]).env("PATH", "")).await;
    assert_eq!(code, 1);
    assert!(err.contains("there is no crescendo-workbench in"), "{err}");

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/fake-workbench.sh");
    std::os::unix::fs::symlink(script, home.path().join("crescendo-workbench")).unwrap();
    let (code, out, _) =
        run(at(&program, home.path()).args(["parity", "fixtures", "--only", "flux", "-o", "json"])).await;
    assert_eq!((code, out.as_str()), (9, "workbench: parity fixtures --only flux -o json\n"));
    let (code, out, _) = run(at(&program, home.path()).args(["report", "--help"])).await;
    assert_eq!((code, out.as_str()), (9, "workbench: report --help\n"));
    for args in [
        ["inspect", "model.safetensors", "-o", "json"],
        ["lora", "convert", "a.safetensors", "--to"],
        ["bench", "step", "--references", "2"],
    ] {
        let (code, out, _) = run(at(&program, home.path()).args(args)).await;
        assert_eq!((code, out), (9, format!("workbench: {}\n", args.join(" "))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_paused_until_its_ranks_have_left_and_goes_on() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Paused, 1, 4)];
    fake.part().slots_held = 2;
    let server = fake.serve().await;
    let address = server.address.to_string();
    let run = async |args: &[&str]| {
        let (code, out, err) = run(crescendo(home.path()).args(args).args(["--controller", &address])).await;
        assert_eq!(code, 0, "{err}");
        out
    };
    let out = run(&["pause", "uno-1", "--reason", "lunch", "--keep-curating"]).await;
    assert_eq!(out, "uno-1: paused; 2 ranks save and leave\n");
    let request = fake.part().pauses[0].clone();
    assert_eq!((request.reason.as_str(), request.keep_curating), ("lunch", true));
    fake.part().slots_held = 2;
    assert_eq!(run(&["pause", "uno-1", "--wait"]).await, "uno-1: paused\n", "it waits until they have left");
    assert_eq!(run(&["resume", "uno-1"]).await, "uno-1: queued\n");
    assert_eq!(run(&["retry", "uno-1"]).await, "uno-1: queued\n");
    assert_eq!(run(&["note", "uno-1", "it looks right"]).await, "uno-1: 1 note\n");
    let noted: serde_json::Value =
        serde_json::from_str(&run(&["note", "uno-1", "so it does", "-o", "json"]).await).unwrap();
    let note = &noted["notes"][0];
    assert_eq!((&note["by"], &note["text"]), (&"ada".into(), &"so it does".into()), "{noted}");
    assert_eq!(note["at"], "2026-02-02T02:40:00.000Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_goes_on_with_the_spec_that_the_controller_plans() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    let server = fake.serve().await;
    let address = server.address.to_string();
    let go_on = async |more: &[&str]| {
        let mut command = crescendo(home.path());
        let args = ["continue", "uno-1", "--steps", "20", "--controller", &address];
        run(command.args(args).args(more)).await
    };
    fake.part().jobs = vec![job("uno-1", JobState::Succeeded, 1, 4)];
    fake.part().continuation = Some(Ok(SPEC.to_owned()));
    let (code, out, err) = go_on(&["--name", "more", "--request-id", "r-1"]).await;
    assert_eq!((code, out.as_str()), (0, "uno-1\n"), "{err}");
    let planned = PlanContinuationRequest { job_id: "uno-1".into(), steps: 20, name: "more".into() };
    assert_eq!(fake.part().continuations, [planned]);
    let submitted = fake.part().submits.last().unwrap().clone();
    assert_eq!((submitted.request_id.as_str(), submitted.spec_yaml.as_slice()), ("r-1", SPEC.as_bytes()));

    let before = fake.part().submits.len();
    let (code, out, err) = go_on(&["--dry-run", "--set", "seed=7"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("\"seed\": 7") && out.contains("source: compose"), "{out}");
    assert!(fake.part().submits[before..].iter().all(|submit| submit.validate_only), "it submitted");

    let refusal = "job uno-1 is running, and goes on by itself: wait";
    fake.part().continuation = Some(Err(tonic::Status::failed_precondition(refusal)));
    let (code, _, err) = go_on(&[]).await;
    assert!(code == 1 && err.contains(refusal), "{err}");
}
