//! `crescendo cp` on an object store that is a folder, and what a job that was followed ends with.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crescendo_proto::v1::{Checkpoint, CheckpointFile, Job, JobState};
use crescendo_testing::S3Server;
use object_store::ObjectStoreExt as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::fake::{Fake, Scene, Then, job};
use crate::{at, crescendo, run};

/// A checkpoint whose only file has this content, below `objects`.
fn checkpoint(objects: &Path, stage: &str, step: u64, name: &str, content: &str) -> Checkpoint {
    checkpoint_of("uno-1", objects, stage, step, name, content)
}

pub fn checkpoint_of(
    job: &str,
    objects: &Path,
    stage: &str,
    step: u64,
    name: &str,
    content: &str,
) -> Checkpoint {
    let path = format!("jobs/{job}/{stage}/checkpoints/step-{step:08}-g1");
    fs::create_dir_all(objects.join(&path)).unwrap();
    fs::write(objects.join(&path).join(name), content).unwrap();
    let sha256 = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    let file = CheckpointFile { name: name.into(), size_bytes: content.len() as u64, sha256 };
    let (job_id, stage, files) = (job.into(), stage.into(), vec![file]);
    Checkpoint { job_id, stage, step, path, files, ..Checkpoint::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lora_is_copied_whole_and_verified() {
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    let lora = |stage: &str, step, content: &str| {
        checkpoint(objects.path(), stage, step, "dit_lora.safetensors", content)
    };
    fake.part().checkpoints = vec![
        lora("stage-1", 10, "one"),
        lora("stage-1", 20, "two"),
        checkpoint(objects.path(), "stage-2", 5, "model.safetensors", "all"),
    ];
    let server = fake.serve().await;
    let cp = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["cp", "--controller", &server.address.to_string(), "--object-store"]);
        command.arg(objects.path()).args(more).current_dir(home.path());
        command
    };
    let read = |name: &str| fs::read_to_string(home.path().join(name)).unwrap();

    let (code, out, err) = run(&mut cp(&["uno-1", "all.safetensors"])).await;
    assert_eq!((code, read("all.safetensors").as_str()), (0, "all"), "{out}{err}");
    assert_eq!(
        out, "all.safetensors: weights of stage stage-2, step 5, 3 B, SHA-256 verified\n",
        "the last checkpoint of the last stage"
    );
    let umask_honoured =
        fs::metadata(home.path().join("all.safetensors")).unwrap().permissions().mode() & 0o777;
    fs::write(home.path().join("plain"), "").unwrap();
    let plain = fs::metadata(home.path().join("plain")).unwrap().permissions().mode() & 0o777;
    assert_eq!(umask_honoured, plain);

    let (code, _, err) = run(&mut cp(&["uno-1:stage-1", "all.safetensors"])).await;
    assert_eq!((code, err.as_str()), (2, "error: all.safetensors is there already; --force replaces it\n"));
    let (code, out, _) =
        run(&mut cp(&["uno-1:stage-1", "all.safetensors", "--force", "--checkpoint", "10", "-o", "json"]))
            .await;
    let told: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, read("all.safetensors").as_str()), (0, "one"));
    assert_eq!(
        (&told["step"], &told["stage"], &told["format"]),
        (&10.into(), &"stage-1".into(), &"published".into())
    );

    // Nothing is asked of anyone where it could not be put.
    let (code, _, err) =
        run(&mut cp(&["uno-1", "none/lora.safetensors", "--controller", "127.0.0.1:1"])).await;
    assert_eq!((code, err.as_str()), (2, "error: there is no folder none\n"));
    let (code, _, err) = run(&mut cp(&["uno-1", "-", "--controller", "127.0.0.1:1"])).await;
    assert!(code == 2 && err.starts_with("error: - would be standard output"), "{err}");
    let mut elsewhere = crescendo(home.path());
    elsewhere.args(["cp", "uno-1", "a.safetensors", "--controller", &server.address.to_string()]);
    elsewhere.args(["--object-store", "file:///none"]).current_dir(home.path());
    let (code, _, err) = run(&mut elsewhere).await;
    assert!(code == 2 && err.contains("a folder that this machine does not have"), "{err}");

    // What is not as it was registered does not come.
    fs::write(
        objects.path().join("jobs/uno-1/stage-1/checkpoints/step-00000020-g1/dit_lora.safetensors"),
        "tWo",
    )
    .unwrap();
    let (code, _, err) = run(&mut cp(&["uno-1:stage-1", "torn.safetensors"])).await;
    assert!(code == 1 && err.contains("is not what was registered"), "{err}");
    let mut left: Vec<String> =
        fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    assert_eq!(left, ["all.safetensors", "plain"], "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lora_comes_out_of_a_bucket() {
    let Some(bucket) = S3Server::start_or_skip().await else { return };
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    let (url, variables) = (bucket.url("clusters/one"), bucket.environment());
    let variable =
        |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let store = crescendo_node::objects::open_with(&url, &variable).unwrap();
    let registered = checkpoint(objects.path(), "stage-1", 10, "dit_lora.safetensors", "from afar");
    let key = format!("{}/dit_lora.safetensors", registered.path);
    store.put(&key.as_str().into(), "from afar".into()).await.unwrap();
    fake.part().checkpoints = vec![registered];
    // Nobody names the bucket: the controller knows it.
    fake.part().who.object_store_url = url;
    let server = fake.serve().await;
    let cp = |file: &str| {
        let mut command = crescendo(home.path());
        command.args(["cp", "uno-1", file, "--controller", &server.address.to_string()]);
        command.current_dir(home.path()).envs(variables.iter().cloned());
        command
    };
    let (code, out, err) = run(&mut cp("a.safetensors")).await;
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(fs::read_to_string(home.path().join("a.safetensors")).unwrap(), "from afar");
    store.delete(&key.as_str().into()).await.unwrap();
    let (code, _, err) = run(&mut cp("b.safetensors")).await;
    assert!(code == 1 && err.contains("is not in the object store; perhaps a newer checkpoint"), "{err}");
    assert!(!err.contains(bucket.secret()), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_a_lora_comes_through_the_controller() {
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    let content = "from afar";
    fake.part().checkpoints =
        vec![checkpoint(objects.path(), "stage-1", 10, "dit_lora.safetensors", content)];
    fake.part().who.object_store_url = "s3://of-the-cluster/one".into();
    let server = fake.serve().await;
    let cp = || {
        let mut command = crescendo(home.path());
        command.args(["cp", "uno-1", "a.safetensors", "--controller", &server.address.to_string()]);
        command.args(["--timeout", "1s"]).current_dir(home.path());
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE"] {
            command.env_remove(name);
        }
        command
    };
    let comes = |pieces: &[&str], then| {
        let sends = pieces.iter().map(|piece| (*piece).to_owned()).collect();
        fake.part().files.push_back(Scene { sends, then });
    };
    comes(&["from ", "af"], Then::Break);
    let (code, _, err) = run(&mut cp()).await;
    let said = "error: dit_lora.safetensors was broken off after 7 B of 9 B: leaving; try again\n";
    assert_eq!((code, err.as_str()), (1, said));
    comes(&["from "], Then::Close);
    let (code, _, err) = run(&mut cp()).await;
    assert!(code == 1 && err.contains("after 5 B of 9 B: the stream has ended; try again"), "{err}");
    comes(&["from ", "AFAR"], Then::Close);
    let (code, _, err) = run(&mut cp()).await;
    assert!(code == 1 && err.contains("is not what was registered"), "{err}");
    comes(&["from afar", " and more"], Then::Stay);
    let (code, _, err) = run(&mut cp()).await;
    assert!(code == 1 && err.contains("is not what was registered"), "{err}");
    let (code, _, err) = run(&mut cp()).await;
    let said = "error: no curator is connected that could read it; try again, or name the object store as it is reached \
                from here with --object-store\n";
    assert_eq!((code, err.as_str()), (1, said));
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0, "nothing is left behind");

    comes(&["from ", "afar"], Then::Close);
    let (code, out, err) = run(&mut cp()).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.ends_with("stage-1, step 10, 9 B, SHA-256 verified\n"), "{out}");
    assert_eq!(fs::read_to_string(home.path().join("a.safetensors")).unwrap(), content);
    let asked = fake.part().reads.last().cloned().unwrap();
    let path = "jobs/uno-1/stage-1/checkpoints/step-00000010-g1";
    assert_eq!((asked.path.as_str(), asked.name.as_str()), (path, "dit_lora.safetensors"));
}

/// Where the environment has the keys of another bucket.
#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_does_not_let_these_keys_in_is_read_by_the_controller() {
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    fake.part().checkpoints =
        vec![checkpoint(objects.path(), "stage-1", 10, "dit_lora.safetensors", "from afar")];
    fake.part().who.object_store_url = "s3://of-the-cluster/one".into();
    let server = fake.serve().await;
    let bucket = forbidding_bucket();
    let cp = |more: &[&str]| {
        let mut command = crescendo(home.path());
        command.args(["cp", "uno-1", "a.safetensors", "--controller", &server.address.to_string()]);
        command.args(more).current_dir(home.path()).env("AWS_ACCESS_KEY_ID", "of-another");
        command.env("AWS_SECRET_ACCESS_KEY", "none").env("AWS_REGION", "us-east-1");
        command.env("AWS_ENDPOINT_URL", &bucket).env("AWS_ALLOW_HTTP", "true").env("NO_PROXY", "127.0.0.1");
        command
    };
    let (code, _, err) = run(&mut cp(&["--object-store", "s3://of-the-cluster/one"])).await;
    assert!(code == 1 && err.contains("403") && fake.part().reads.is_empty(), "what is named is used: {err}");

    let sends = vec!["from afar".to_owned()];
    fake.part().files.push_back(Scene { sends, then: Then::Close });
    let (code, _, err) = run(&mut cp(&[])).await;
    assert!(code == 0 && err.contains("asking the controller for it"), "{err}");
    assert_eq!(fs::read_to_string(home.path().join("a.safetensors")).unwrap(), "from afar");
}

/// The URL of a server that forbids everything.
fn forbidding_bucket() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let _ = connection.read(&mut [0; 4096]);
            let answer = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = connection.write_all(answer);
        }
    });
    format!("http://{address}")
}

#[tokio::test(flavor = "multi_thread")]
async fn other_formats_are_made_by_the_workbench() {
    // A hard link needs the same file system.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::hard_link(env!("CARGO_BIN_EXE_crescendo"), folder.path().join("crescendo")).unwrap();
    let (objects, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.part().checkpoints = vec![
        checkpoint(objects.path(), "stage-1", 10, "dit_lora.safetensors", "one"),
        checkpoint(objects.path(), "stage-2", 10, "model.safetensors", "all"),
    ];
    let server = fake.serve().await;
    let cp = |more: &[&str]| {
        let mut command = at(&folder.path().join("crescendo"), folder.path());
        command.args(["cp", "--controller", &server.address.to_string(), "--object-store"]);
        command.arg(objects.path()).args(more).current_dir(&folder).env("PATH", "/usr/bin:/bin");
        command
    };
    let convert = ["uno-1:stage-1", "a.safetensors", "--format", "comfyui"];
    let (code, _, err) = run(&mut cp(&convert)).await;
    assert!(code == 1 && err.contains("there is no crescendo-workbench"), "{err}");

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/fake-convert.sh");
    symlink(script, folder.path().join("crescendo-workbench")).unwrap();
    let (code, out, err) = run(&mut cp(&convert)).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(
        out,
        "a.safetensors: LoRA of stage stage-1, step 10, 3 B, SHA-256 verified, converted for comfyui\n"
    );
    assert_eq!(fs::read_to_string(folder.path().join("a.safetensors")).unwrap(), "comfyui of one\n");
    let (code, _, err) = run(cp(&convert).arg("--force").env("FAKE_REFUSES", "1")).await;
    assert!(code == 1 && err.contains("cannot be converted for comfyui: error: no adapter"), "{err}");
    let (code, _, err) = run(&mut cp(&["uno-1", "b.safetensors", "--format", "comfyui"])).await;
    assert!(code == 2 && err.contains("stage-2 trains all weights"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_has_succeeded_ends_with_what_to_do_next() {
    let (home, objects, fake) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Fake::default());
    let spec = "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {name: uno}\nspec:\n  model: {preset: nano, weights: base.safetensors}\n  \
                stages:\n    - {name: stage-1, references: 1, data: {source: compose, subjects: subjects}, train: {adapter: {rank: 4}}}\n";
    fs::write(home.path().join("base.safetensors"), "").unwrap();
    let done = job("uno-1", JobState::Succeeded, 3, 10);
    fake.part().jobs = vec![Job { resolved_spec_yaml: spec.into(), ..done.clone() }];
    fake.part().checkpoints = vec![checkpoint(objects.path(), "stage-1", 10, "dit_lora.safetensors", "one")];
    fake.part().who.object_store_url = format!("file://{}", objects.path().display());
    let server = fake.serve().await;
    let watch = |more: &[&str]| {
        fake.part().watch.push_back(Scene { sends: vec![done.clone()], then: Then::Stay });
        let mut command = crescendo(home.path());
        command.args(["watch", "uno-1", "--controller", &server.address.to_string()]).args(more);
        command.current_dir(home.path());
        command
    };
    let (code, out, err) = run(&mut watch(&[])).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.ends_with("job uno-1 succeeded\n"), "{out}");
    let lora = objects.path().join("jobs/uno-1/stage-1/checkpoints/step-00000010-g1/dit_lora.safetensors");
    assert!(err.contains(&format!("LoRA of stage-1, step 10:\n  {}\n", lora.display())), "{err}");
    assert!(err.contains(" cp uno-1:stage-1 uno-1.safetensors\n"), "{err}");
    assert!(err.contains("--weights base.safetensors \\\n") && err.contains("--out uno-1.png\n"), "{err}");
    // A script asks for itself.
    let (_, _, err) = run(&mut watch(&["-o", "json"])).await;
    assert_eq!(err, "");
    // What cannot be said in full is said in part.
    fake.part().jobs[0].resolved_spec_yaml = "kind: Other\n".into();
    let (code, _, err) = run(&mut watch(&[])).await;
    assert!(code == 0 && err.contains("crescendo cp uno-1 uno-1.safetensors"), "{err}");
}
