//! Contexts and logins.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use crescendo_node::tls::Tls;
use crescendo_proto::v1::{JobState, WhoAmIResponse};
use crescendo_testing::certificates::{Authority, Wanted};
use tokio::io::AsyncWriteExt as _;

use crate::fake::{Fake, job};
use crate::{DEADLINE, crescendo, run};

fn ada() -> WhoAmIResponse {
    WhoAmIResponse {
        name: "ada".into(),
        role: "submitter".into(),
        tenant: "research".into(),
        leads: true,
        ..WhoAmIResponse::default()
    }
}

/// `crescendo login` with a token on standard input.
async fn login(home: &Path, args: &[&str], token: &str) -> (i32, String) {
    let mut child = crescendo(home)
        .arg("login")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(token.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_tried_kept_and_used() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().who = ada();
    fake.part().token = Some("s3cret".into());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 4)];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let folder = home.path().join("crescendo");

    let (code, err) = login(home.path(), &["--controller", &address], "wrong\n").await;
    assert_eq!(code, 6, "{err}");
    assert!(err.contains("the token is not known") && !err.contains("wrong"), "{err}");
    assert!(!folder.join("config.yaml").exists() && !folder.join("tokens").exists(), "nothing is kept of it");

    let (code, err) = login(home.path(), &["--context", "lab", "--controller", &address], "s3cret\n").await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("lab: logged in as ada (submitter of tenant research)"), "{err}");
    assert_eq!((mode(&folder.join("config.yaml")), mode(&folder.join("tokens/lab"))), (0o600, 0o600));
    let config = std::fs::read_to_string(folder.join("config.yaml")).unwrap();
    assert!(!config.contains("s3cret"), "{config}");

    // From now on commands go there, with the token.
    let (code, out, err) = run(crescendo(home.path()).arg("whoami")).await;
    assert_eq!((code, out.as_str()), (0, "ada (submitter of tenant research)\n"), "{err}");
    assert_eq!(fake.part().seen_tokens.last().unwrap().as_deref(), Some("Bearer s3cret"));
    let (code, out, _) = run(crescendo(home.path()).arg("jobs")).await;
    assert!(code == 0 && out.contains("uno-1"), "{out}");

    // To an address that is named the token of a context does not go.
    let (code, ..) = run(crescendo(home.path()).args(["whoami", "--controller", &address])).await;
    assert_eq!(code, 6);
    assert_eq!(fake.part().seen_tokens.last().unwrap(), &None);
    let (code, ..) = run(crescendo(home.path())
        .args(["whoami", "--controller", &address])
        .env("CRESCENDO_TOKEN", "s3cret"))
    .await;
    assert_eq!(code, 0);

    let (code, ..) = run(crescendo(home.path()).args(["login", "--forget"])).await;
    assert_eq!(code, 0);
    assert!(!folder.join("tokens/lab").exists());
    assert_eq!(run(crescendo(home.path()).arg("whoami")).await.0, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_not_sent_in_the_clear_to_another_machine() {
    let home = tempfile::tempdir().unwrap();
    // An address that no one answers at: nothing is to be sent, whoever might listen.
    let args = ["whoami", "--controller", "http://192.0.2.1:7070", "--timeout", "300ms"];
    let (code, _, err) = run(crescendo(home.path()).args(args).env("CRESCENDO_TOKEN", "s3cret")).await;
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("is not sent") && !err.contains("s3cret"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_added_used_listed_and_removed() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().jobs = vec![job("uno-1", JobState::Running, 1, 4)];
    let server = fake.serve().await;
    let address = server.address.to_string();
    let context = |args: &[&str]| {
        let mut command = crescendo(home.path());
        command.arg("context").args(args);
        command
    };
    assert_eq!(run(&mut context(&["add", "lab"])).await.0, 2, "it needs a controller");
    let (code, _, err) =
        run(&mut context(&["add", "lab", "--controller", &address, "--tenant", "research"])).await;
    assert_eq!((code, err.as_str()), (0, "commands go to lab now\n"));
    let (code, _, err) = run(&mut context(&["add", "lab", "--controller", "b:1"])).await;
    assert!(code == 2 && err.contains("--replace"), "{err}");
    let args = [
        "add",
        "prod",
        "--controller",
        "prod:1,prod:2",
        "--exec",
        "sso",
        "print-token",
        "--audience",
        "crescendo",
    ];
    let (code, _, err) = run(&mut context(&args)).await;
    assert_eq!((code, err.as_str()), (0, "use it with: crescendo context use prod\n"));

    let (_, out, _) = run(&mut context(&["list"])).await;
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[1].starts_with("*  lab") && lines[1].contains("research"), "{out}");
    assert!(lines[2].contains("prod:1,prod:2") && lines[2].contains("token from sso"), "{out}");
    let (_, out, _) = run(&mut context(&["list", "-o", "json"])).await;
    let listed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        listed[1]["context"]["exec"],
        serde_json::json!(["sso", "print-token", "--audience", "crescendo"])
    );

    // The context's tenant narrows what is listed.
    assert_eq!(run(crescendo(home.path()).arg("jobs")).await.0, 0);
    assert_eq!(fake.part().lists.last().unwrap().tenant, "research");
    let (_, _, err) =
        run(crescendo(home.path()).args(["--context", "prod", "jobs", "--timeout", "300ms"])).await;
    assert!(err.contains("get a token from `sso`"), "{err}");

    assert_eq!(run(&mut context(&["use", "nowhere"])).await.0, 2);
    assert_eq!(run(&mut context(&["use", "prod"])).await.0, 0);
    assert_eq!(run(&mut context(&["remove", "prod"])).await.0, 0);
    let (code, _, err) = run(crescendo(home.path()).arg("jobs")).await;
    assert!(code == 5 && err.contains("crescendo context add"), "{err}");
    let (code, _, err) = run(crescendo(home.path()).args(["jobs", "--context", "prod"])).await;
    assert!(code == 2 && err.contains("there are: lab"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_or_token_that_others_reach_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let token = home.path().join("token");
    std::fs::write(&token, "s3cret").unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o644)).unwrap();
    let args = ["whoami", "--controller", "127.0.0.1:9", "--timeout", "300ms", "--token-file"];
    let (_, _, err) = run(crescendo(home.path()).args(args).arg(&token)).await;
    assert!(err.contains("chmod 600") && !err.contains("s3cret"), "{err}");

    let config = home.path().join("config.yaml");
    std::fs::write(&config, "contexts: {}\n").unwrap();
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o646)).unwrap();
    let (code, _, err) = run(crescendo(home.path()).args(["jobs", "--config"]).arg(&config)).await;
    assert!(code == 2 && err.contains("chmod 600"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_over_tls_needs_the_right_roots_and_says_what_is_wrong_otherwise() {
    let (home, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().who = ada();
    fake.part().token = Some("s3cret".into());
    let authority = Authority::new("ours");
    let files = authority
        .write(home.path(), &Wanted { name: "controller", hosts: &["localhost"], ..Wanted::default() });
    let ca = files.ca.clone().unwrap().display().to_string();
    let other = home.path().join("other.pem");
    std::fs::write(&other, Authority::new("theirs").root_pem()).unwrap();
    let server = fake.serve_tls(Tls::load(files).await.unwrap()).await;
    let address = format!("localhost:{}", server.address.port());
    let by_number = server.address.to_string();

    let args = ["--context", "lab", "--controller", &address, "--tls-ca", &ca];
    let (code, err) = login(home.path(), &args, "s3cret\n").await;
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = run(crescendo(home.path()).arg("whoami")).await;
    assert_eq!((code, out.as_str()), (0, "ada (submitter of tenant research)\n"), "{err}");

    let whoami = |args: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["whoami", "--timeout", "300ms"]).args(args).env("CRESCENDO_TOKEN", "s3cret");
        command
    };
    for (args, why) in [
        (&["--controller", &address, "--tls-ca", &other.display().to_string()][..], "vouched for by no root"),
        (&["--controller", &by_number, "--tls-ca", &ca], "is for localhost, not for 127.0.0.1"),
        (&["--controller", &address], "speaks TLS, and this connection is without"),
    ] {
        let before = fake.part().seen_tokens.len();
        let (code, _, err) = run(&mut whoami(args)).await;
        assert!(code == 5 && err.contains(why), "{why}: {err}");
        assert_eq!(fake.part().seen_tokens.len(), before, "nothing got through");
    }
    let (code, _, err) = run(&mut whoami(&["--controller", &address, "--tls-ca", "/nowhere.pem"])).await;
    assert!(code == 2 && err.contains("/nowhere.pem"), "{err}");

    // A server without TLS is told apart from one that is not there.
    let plain = fake.serve().await;
    let address = format!("localhost:{}", plain.address.port());
    let (code, _, err) = run(&mut whoami(&["--controller", &address, "--tls-ca", &ca])).await;
    assert!(code == 5 && err.contains("does not speak TLS"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_a_key_of_another_certificate_and_one_that_has_ended() {
    let home = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let uris = &["urn:crescendo:role:submitter", "urn:crescendo:tenant:research"];
    let wanted = |name, expired| Wanted { name, uris, expired, ..Wanted::default() };
    let (good, ended) = (wanted("ada", false), wanted("bob", true));
    let (ada, bob) = (authority.write(home.path(), &good), authority.write(home.path(), &ended));
    let ca = ada.ca.clone().unwrap();
    let (ada, bob) = (ada.identity.unwrap(), bob.identity.unwrap());
    let doctor = |cert: &Path, key: &Path| {
        let mut command = crescendo(home.path());
        command.args(["doctor", "--controller", "127.0.0.1:9", "--tls-ca"]).arg(&ca);
        command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
        command
    };
    let (_, out, _) = run(&mut doctor(&ada.cert, &ada.key)).await;
    assert!(out.contains("ok       roots") && out.contains("ok       certificate"), "{out}");
    assert!(out.contains("urn:crescendo:role:submitter, urn:crescendo:tenant:research"), "{out}");
    let (_, out, _) = run(&mut doctor(&ada.cert, &bob.key)).await;
    assert!(out.contains("is the key of another certificate"), "{out}");
    let (_, out, _) = run(&mut doctor(&bob.cert, &bob.key)).await;
    assert!(out.contains("failed   certificate") && out.contains("ended on"), "{out}");
    let (_, out, _) = run(&mut doctor(&ca, &ada.key)).await;
    assert!(out.contains("failed   certificate"), "{out}");
}
