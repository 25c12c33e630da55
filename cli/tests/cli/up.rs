//! `crescendo up`, with scripts in place of the controller and the nodes.

#![allow(unsafe_code, reason = "processes are signalled")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crescendo_proto::v1::{Job, JobState, NodeKind, SpecProblem};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::fake::{Fake, Scene, Server, Then, job, node};
use crate::{DEADLINE, at, run};
use crescendo_testing::until;

/// A folder with `crescendo` and fake programs beside it, and a fake controller for them to point to.
struct Bench {
    folder: TempDir,
    fake: Fake,
    server: Server,
}

impl Bench {
    async fn new() -> Bench {
        // A hard link needs the same file system.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_crescendo"), folder.path().join("crescendo")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/fake-process.sh");
        for name in ["crescendo-controller", "crescendo-curator-node", "crescendo-trainer-node"] {
            symlink(&script, folder.path().join(name)).unwrap();
        }
        fs::create_dir(folder.path().join("notes")).unwrap();
        let fake = Fake::default();
        fake.part().nodes = vec![
            node("curator-0", NodeKind::Curator),
            node("trainer-0", NodeKind::Trainer),
            node("trainer-1", NodeKind::Trainer),
        ];
        let server = fake.serve().await;
        Bench { folder, fake, server }
    }

    fn command(&self) -> Command {
        let mut command = at(&self.folder.path().join("crescendo"), &self.folder.path().join("home"));
        command.current_dir(&self.folder).env("FAKE_DIR", self.folder.path().join("notes"));
        command.env("FAKE_GRPC", self.server.address.to_string());
        command
    }

    fn up(&self, args: &[&str]) -> Child {
        self.command().arg("up").args(args).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn state_path(&self) -> PathBuf {
        self.folder.path().join(".crescendo/up.json")
    }

    fn state(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&fs::read(self.state_path()).ok()?).ok()
    }

    /// Process ids of all that serve.
    fn pids(&self) -> Vec<i64> {
        let state = self.state().unwrap_or_default();
        let processes = state["processes"].as_array().cloned().unwrap_or_default();
        processes
            .iter()
            .filter(|process| !process["grpc"].is_null())
            .filter_map(|process| process["pid"].as_i64())
            .collect()
    }

    fn notes(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("notes").join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

async fn exit_code(up: &mut Child) -> Option<i32> {
    tokio::time::timeout(DEADLINE, up.wait()).await.expect("it ends in time").unwrap().code()
}

fn signal(pid: i64, signal: i32) {
    // SAFETY: plain system call on a process that this test has started.
    let done = unsafe { libc::kill(pid.try_into().unwrap(), signal) };
    assert_eq!(done, 0, "process {pid} is there");
}

fn runs(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie has ended; who waits for it is another question.
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim_start().starts_with('Z'))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_started_kept_and_stopped() {
    let bench = Bench::new().await;
    let mut up = bench.up(&["--slots", "3"]);
    until("all serve", || bench.pids().len() == 4).await.expect("in time");

    let starts = bench.notes("starts");
    let folder = bench.folder.path().canonicalize().unwrap();
    let dir = folder.join(".crescendo");
    assert!(starts[0].starts_with("crescendo-controller --store embedded:"), "{starts:?}");
    assert!(starts[0].contains(&format!("--object-store file://{}/objects", dir.display())), "{starts:?}");
    let trainers: Vec<&String> =
        starts.iter().filter(|start| start.starts_with("crescendo-trainer-node agent ")).collect();
    assert_eq!((starts.len(), trainers.len()), (4, 2));
    for option in ["--slots 3", "--device auto", &format!("--library-root {} ", folder.display())] {
        assert!(trainers[0].contains(option), "{option} in {trainers:?}");
    }
    assert!(trainers[0].contains(&format!("--controller {}", bench.server.address)), "{trainers:?}");

    // Other commands find the cluster by themselves, or by its folder.
    for args in [&["nodes"][..], &["nodes", "--dir", ".crescendo"]] {
        let (code, out, err) = run(bench.command().args(args)).await;
        assert_eq!((code, out.lines().count()), (0, 4), "{out}{err}");
    }
    // A second one in the same folder is refused.
    let (code, _, err) = run(bench.command().arg("up")).await;
    assert_eq!(code, 1);
    assert!(err.contains("another `crescendo up` runs in"), "{err}");

    // One that is killed is started again, at the address that the others know.
    let pids = bench.pids();
    signal(pids[0], libc::SIGKILL);
    let back = || bench.pids().len() == 4 && bench.pids()[0] != pids[0] && bench.notes("starts").len() == 5;
    until("the controller is back", back).await.expect("in time");
    // Only once it serves does it listen to SIGTERM.
    until("it serves", || bench.folder.path().join(".crescendo/run/controller.json").exists())
        .await
        .expect("in time");
    assert_eq!(bench.pids()[1..], pids[1..]);
    let again = bench.notes("starts").last().cloned().unwrap();
    assert!(
        again.starts_with("crescendo-controller ")
            && again.contains(&format!("--listen {}", bench.server.address)),
        "{again}"
    );
    assert_eq!(bench.state().unwrap()["processes"][0]["restarts"], 1);

    let pids = bench.pids();
    signal(up.id().unwrap().into(), libc::SIGTERM);
    assert_eq!(exit_code(&mut up).await, Some(0));
    assert!(pids.iter().all(|pid| !runs(*pid)));
    let stops = bench.notes("stops");
    assert_eq!(
        (stops.len(), stops[3].as_str()),
        (4, "crescendo-controller"),
        "the controller is stopped last: {stops:?}"
    );
    assert!(!bench.state_path().exists());
    assert_eq!(run(bench.command().arg("nodes")).await.0, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_killed_up() {
    let bench = Bench::new().await;
    let mut up = bench.up(&[]);
    until("all serve", || bench.pids().len() == 4).await.expect("in time");
    let pids = bench.pids();
    up.kill().await.unwrap();
    until("the processes have ended", || pids.iter().all(|pid| !runs(*pid))).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_standard_input_stops_the_cluster() {
    let bench = Bench::new().await;
    let mut up = bench.command().args(["up", "--stop-on-stdin-close"]).stdin(Stdio::piped()).spawn().unwrap();
    until("all serve", || bench.pids().len() == 4).await.expect("in time");
    drop(up.stdin.take());
    assert_eq!(exit_code(&mut up).await, Some(0));
    assert_eq!(bench.notes("stops").len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn run_ends_with_the_code_of_the_job() {
    let bench = Bench::new().await;
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nano.yaml"),
        bench.folder.path().join("job.yaml"),
    )
    .unwrap();
    for (state, expected) in [(JobState::Succeeded, 0), (JobState::Failed, 4)] {
        // What `get` answers has the resolved spec; what is watched has not.
        let whole = Job { resolved_spec_yaml: "kind: TrainingJob\n".into(), ..job("nano-1", state, 2, 10) };
        bench.fake.part().jobs = vec![whole];
        bench
            .fake
            .part()
            .watch
            .push_back(Scene { sends: vec![job("nano-1", state, 2, 10)], then: Then::Stay });
        let args = ["up", "--run", "job.yaml", "--result", "out/result.json"];
        let (code, out, err) = run(bench.command().args(args)).await;
        assert_eq!(code, expected, "{out}{err}");
        assert!(out.starts_with("nano-1\n"), "{out}");
        let result: serde_json::Value =
            serde_json::from_slice(&fs::read(bench.folder.path().join("out/result.json")).unwrap()).unwrap();
        assert_eq!(result["state"], if expected == 0 { "succeeded" } else { "failed" });
        assert_eq!(result["resolvedSpecYaml"], "kind: TrainingJob\n");
    }
    assert_eq!(bench.notes("stops").len(), 8, "everything was stopped after each");

    fs::write(bench.folder.path().join("job.yaml"), "kind: x\n").unwrap();
    let (code, _, err) = run(bench.command().args(["up", "--run", "job.yaml"])).await;
    assert_eq!(code, 3, "{err}");
    assert_eq!(bench.notes("starts").len(), 8, "nothing is started for a spec that is no good");
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_says_what_the_cluster_of_this_machine_says() {
    let bench = Bench::new().await;
    let spec = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/nano.yaml");
    let warning = SpecProblem {
        line: 10,
        column: 5,
        path: "spec.model.precision".into(),
        message: "bf16 crawls on this machine".into(),
    };
    bench.fake.part().warnings = vec![warning];
    let validate = async || {
        let (code, _, err) = run(bench.command().args(["validate", "--dir", ".crescendo"]).arg(&spec)).await;
        assert_eq!(code, 0, "{err}");
        err.contains("bf16 crawls on this machine")
    };
    assert!(!validate().await, "no cluster runs here");

    let mut up = bench.up(&[]);
    until("up.json is there", || bench.state().is_some()).await.expect("in time");
    assert!(validate().await);
    let submits = bench.fake.part().submits.clone();
    assert!(submits.iter().all(|submit| submit.validate_only) && !submits.is_empty());
    up.kill().await.unwrap();

    // What was left behind by a cluster that is gone holds nothing up.
    let mut state = bench.state().unwrap();
    state["controller"] = "127.0.0.1:1".into();
    fs::write(bench.state_path(), serde_json::to_vec(&state).unwrap()).unwrap();
    assert!(!validate().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_cannot_start_is_shown_with_its_log() {
    let bench = Bench::new().await;
    let (code, _, err) = run(bench.command().arg("up").env("FAKE_DIES", "crescendo-trainer-node")).await;
    assert_eq!(code, 1);
    assert!(
        err.contains("ended with code 7 before it served") && err.contains("\n  the disk is full"),
        "{err}"
    );
    let stops = bench.notes("stops");
    assert_eq!(
        stops.last().map(String::as_str),
        Some("crescendo-controller"),
        "what had started is stopped: {stops:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_named() {
    let bench = Bench::new().await;
    fs::remove_file(bench.folder.path().join("crescendo-curator-node")).unwrap();
    let (code, _, err) = run(bench.command().arg("up").env("PATH", "/usr/bin:/bin")).await;
    assert_eq!(code, 1);
    assert!(err.contains("there is no crescendo-curator-node in"), "{err}");
    assert!(bench.notes("starts").is_empty());
}
