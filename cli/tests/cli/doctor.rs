//! `crescendo doctor` against a controller that plays a part.

use std::time::SystemTime;

use crescendo_proto::v1::{NodeKind, WhoAmIResponse};
use serde_json::Value;

use crate::fake::{Fake, node};
use crate::{crescendo, run};

fn leader() -> WhoAmIResponse {
    WhoAmIResponse {
        name: "ada".into(),
        role: "admin".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        leads: true,
        ..WhoAmIResponse::default()
    }
}

/// Verdict and finding of the first check of a name.
fn of<'r>(report: &'r Value, name: &str) -> (&'r str, &'r str) {
    let checks = report["checks"].as_array().unwrap();
    let check =
        checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {report:#}"));
    (check["status"].as_str().unwrap(), check["found"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_cluster_is_called_so() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().who = leader();
    let mut one = node("trainer-0", NodeKind::Trainer);
    one.version = env!("CARGO_PKG_VERSION").into();
    fake.part().nodes = vec![one];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let objects = home.path().join("objects");
    std::fs::create_dir(&objects).unwrap();
    let mut command = crescendo(home.path());
    command
        .args(["doctor", "-o", "json", "--controller", &address, "--disk", "/", "--object-store"])
        .arg(&objects);
    let (_, out, err) = run(&mut command).await;
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}"));
    for name in ["crescendo", "controller", "clock", "login", "leader", "nodes", "object store"] {
        assert_eq!(of(&report, name).0, "ok", "{report:#}");
    }
    assert!(of(&report, "login").1.contains("ada (admin of every tenant)"));
    assert!(of(&report, "controller").1.contains(&address));
    // Whatever this machine is like, each of these has a verdict.
    for name in ["gpus", "disk", "shared memory", "open files", "locked memory", "certificate"] {
        of(&report, name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_with_what_to_do_and_the_exit_code_says_so() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().who = WhoAmIResponse {
        leads: false,
        version: "9.9.9".into(),
        at: Some(SystemTime::UNIX_EPOCH.into()),
        ..leader()
    };
    let server = fake.serve().await;
    let address = server.address.to_string();
    let held = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = held.local_addr().unwrap().port().to_string();
    let junk = home.path().join("ca.pem");
    std::fs::write(&junk, "no certificate").unwrap();
    let args = ["doctor", "--controller", &address, "--port", &port, "--store", "redis:x"];
    let (code, out, err) = run(crescendo(home.path()).args(args)).await;
    assert_eq!(code, 1, "{out}");
    // The columns are as wide as this machine's names want them.
    let words = out.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "warning controller",
        "version 9.9.9, stands by; this is",
        "failed clock",
        "→ set the clocks by NTP",
        "failed leader no controller leads",
        "failed port",
        "→ find who has it",
        "failed store",
    ] {
        assert!(words.contains(part), "{part:?} is not in\n{out}");
    }
    assert!(err.contains("checks have failed"), "{err}");

    // A file that is no certificate is found even where the controller cannot be asked.
    let args = ["doctor", "-o", "json", "--controller", "127.0.0.1:9", "--tls-ca"];
    let (code, out, _) = run(crescendo(home.path()).args(args).arg(&junk)).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, of(&report, "roots").0, of(&report, "controller").0), (1, "failed", "failed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_cluster_is_looked_at_all_the_same() {
    let home = tempfile::tempdir().unwrap();
    let (_, out, _) = run(crescendo(home.path()).args(["doctor", "-o", "json"])).await;
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(of(&report, "controller").0, "skipped");
    of(&report, "disk");
}
