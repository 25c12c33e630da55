//! A job that was deleted leaves its lineage and nothing else, in the object store and among the records, whoever dies meanwhile:
//! through the command line and real processes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_store::{EmbeddedConfig, EmbeddedStore, KEY_PREFIX, Store as _};
use crescendo_tests::{Cluster, ClusterOptions, base_spec, lora_spec, waiting_spec};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Every file of a job: its part, as far as the folder says so, and its size.
fn files(root: &Path, job: &str) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("jobs").join(job)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(root)?.to_string_lossy().into_owned();
                found.push((path, entry.metadata()?.len()));
            }
        }
    }
    Ok(found)
}

/// Whether nothing lies there, but one chunk of the log at most that a node wrote too late: that goes with the leftovers.
fn nothing_is_left(root: &Path, job: &str) -> Result<bool> {
    let left = files(root, job)?;
    Ok(left.len() <= 1 && left.iter().all(|(path, _)| path.contains("/logs/")))
}

async fn json(cluster: &Cluster, args: &[&str]) -> Result<Value> {
    let (done, out, said) = cluster.crescendo(&[args, &["-o", "json"]].concat()).await?;
    ensure!(done, "{args:?}: {said}");
    serde_json::from_str(&out).with_context(|| out)
}

/// Waits until the job is gone, and gives its lineage.
async fn until_gone(cluster: &Cluster, job: &str) -> Result<Value> {
    let waiting = async {
        loop {
            let lineage = json(cluster, &["lineage", job]).await?;
            if lineage["deletion"]["phase"] == "gone" {
                return anyhow::Ok(lineage);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let waited = tokio::time::timeout(LIMIT, waiting).await;
    waited.with_context(|| format!("{job} is not deleted\n{}", cluster.logs()))?
}

#[tokio::test]
async fn a_deleted_job_leaves_its_lineage_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::default()).await?;
    let root = cluster.objects().to_owned();
    let weights = cluster.train_base().await?;
    let base = cluster.submit("base", &base_spec(2)).await?;
    let final_sha256 = cluster.final_file_sha256(&base, "base", "model.safetensors").await?;

    // What an open job needs, or is itself open, stays.
    let open = cluster.submit("open", &lora_spec(&weights, 1, 5000, 1000)).await?;
    for (job, says) in [(&base, "spec.model.weights of job"), (&open, "cancel it first")] {
        let (done, _, said) = cluster.crescendo(&["delete", job]).await?;
        ensure!(!done && said.contains(says), "{job}: {said}");
    }
    cluster.cancel(&open).await?;

    // A dry run tells what lies there, and changes nothing.
    let before = files(&root, &base)?;
    // Lines of the log may still be on their way.
    let is_settled = |path: &str| path.contains("/checkpoints/") || path.contains("/pairs/");
    let told = json(&cluster, &["delete", &base, "--dry-run"]).await?;
    ensure!(told["counted"] == true && told["deletion"].is_null(), "{told}");
    let parts = told["parts"].as_array().context("no parts")?;
    let settled = parts.iter().filter(|part| part["part"] == "checkpoints" || part["part"] == "pairs");
    let bytes: u64 = settled.filter_map(|part| part["bytes"].as_u64()).sum();
    let there: u64 = before.iter().filter(|(path, _)| is_settled(path)).map(|(_, bytes)| bytes).sum();
    ensure!(bytes == there && bytes > 0, "{told} {before:?}");
    ensure!(parts.len() == 4 && parts.iter().all(|part| part["kept"] == false), "{told}");
    let after = files(&root, &base)?;
    ensure!(
        before.iter().all(|(path, _)| after.iter().any(|(there, _)| there == path) || path.contains('#')),
        "{before:?} {after:?}"
    );
    ensure!(cluster.job(&base).await?.deletion.is_none(), "a dry run deletes");

    // The controller dies as soon as it has taken the order, and once more in between.
    json(&cluster, &["delete", &base]).await?;
    cluster.controller.kill_9()?;
    cluster.controller.start_again().await?;
    json(&cluster, &["delete", &open, "--keep-checkpoints", "--keep-logs"]).await?;
    cluster.controller.kill_9()?;
    cluster.controller.start_again().await?;
    let lineage = until_gone(&cluster, &base).await?;
    ensure!(lineage["deletion"]["removedObjects"].as_u64() > Some(0), "{lineage}");
    let files_of_final = &lineage["finalCheckpoints"][0]["files"];
    let sha256 = files_of_final.as_array().into_iter().flatten().map(|file| &file["sha256"]);
    ensure!(sha256.into_iter().any(|sha256| *sha256 == final_sha256), "{lineage}");
    ensure!(nothing_is_left(&root, &base)?, "{:?}", files(&root, &base)?);
    until_gone(&cluster, &open).await?;
    let kept = files(&root, &open)?;
    ensure!(kept.iter().all(|(path, _)| !path.contains("/pairs/")), "{kept:?}");
    ensure!(kept.iter().any(|(path, _)| path.contains("/logs/")), "{kept:?}");
    let (done, _, said) = cluster.crescendo(&["get", &base]).await?;
    ensure!(!done && said.contains("crescendo lineage"), "{said}");

    // Neither its request nor its files come back by another name.
    let refused = cluster.submit("base", &base_spec(2)).await.expect_err("its request is known");
    ensure!(format!("{refused:#}").contains("was deleted"), "{refused:#}");
    let refused =
        cluster.submit("late", &lora_spec(&weights, 1, 4, 4)).await.expect_err("its weights are gone");
    ensure!(format!("{refused:#}").contains("spec.model.weights"), "{refused:#}");
    cluster.submit("other", &waiting_spec()).await?;

    // Once more without what was kept.
    json(&cluster, &["delete", &open]).await?;
    until_gone(&cluster, &open).await?;
    ensure!(nothing_is_left(&root, &open)?, "{:?}", files(&root, &open)?);

    cluster.controller.kill_9()?;
    let store = EmbeddedStore::open(EmbeddedConfig::new(cluster.folder().join("store"), KEY_PREFIX)).await?;
    let keys: Vec<String> = store.snapshot("").await?.items.into_iter().map(|item| item.key).collect();
    for job in [&base, &open] {
        let left: Vec<&String> = keys.iter().filter(|key| key.contains(job.as_str())).collect();
        ensure!(left == [&format!("deletions/{job}")], "{left:?}");
    }
    let requests = ["requests/default/base", "requests/default/open"];
    ensure!(!keys.iter().any(|key| requests.contains(&key.as_str())), "requests are left: {keys:?}");
    Ok(())
}

/// What a person marks to be kept is neither expired nor deleted.
#[tokio::test]
async fn a_marked_checkpoint_outlives_the_next_ones() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let weights = cluster.train_base().await?;
    let job = cluster.submit("lora", &lora_spec(&weights, 1, 60, 5)).await?;
    cluster.await_step(&job, 0, 5, LIMIT).await?;
    let marking = async {
        loop {
            let listed = cluster.checkpoints(&job).await?;
            let Some(first) = listed.first() else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let step = first.step.to_string();
            let (done, _, said) = cluster.crescendo(&["checkpoints", "keep", &job, "stage-1", &step]).await?;
            // It may have expired in between.
            if done {
                return anyhow::Ok(first.clone());
            }
            ensure!(said.contains("does not exist"), "{said}");
        }
    };
    let kept = tokio::time::timeout(LIMIT, marking).await.context("no checkpoint comes")??;
    cluster.await_success(&job, LIMIT).await?;
    let listed = cluster.checkpoints(&job).await?;
    ensure!(listed.iter().any(|known| known.step == kept.step && known.kept), "{listed:?}");
    ensure!(listed.iter().filter(|known| !known.kept).count() <= 3, "the others have expired");
    let file = kept.files.first().context("a file")?;
    ensure!(cluster.objects().join(&kept.path).join(&file.name).is_file(), "its files are there");

    let step = kept.step.to_string();
    let (done, _, said) = cluster.crescendo(&["delete", &job]).await?;
    ensure!(!done && said.contains("crescendo checkpoints release"), "{said}");
    let (done, _, said) = cluster.crescendo(&["checkpoints", "release", &job, "stage-1", &step]).await?;
    ensure!(done, "{said}");
    let (done, _, said) = cluster.crescendo(&["delete", &job]).await?;
    ensure!(done, "{said}");
    until_gone(&cluster, &job).await?;
    Ok(())
}
