//! An upgrade and a rollback under a job that trains, with the programs of an earlier version: `make upgrade-test`
//! builds them and says where they are. Without them these tests say that they are left out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_tests::{Cluster, ClusterOptions, PROGRAMS_IN, base_spec};

const LIMIT: Duration = Duration::from_secs(240);
/// Steps of the job: enough that it trains through every change.
const STEPS: u64 = 1500;
/// Limit of an orderly stop: v0.1.0's curators take all of their two minutes.
const STOP: Duration = Duration::from_secs(150);

/// Folders with the programs of the earlier version and of this one.
fn versions() -> Result<Option<(PathBuf, PathBuf)>> {
    let Some(old) = std::env::var_os("CRESCENDO_OLD_BIN").map(PathBuf::from) else {
        eprintln!(
            "left out: CRESCENDO_OLD_BIN names no folder with an earlier version's programs; see make upgrade-test"
        );
        return Ok(None);
    };
    let new = crescendo_testing::binary("crescendo-controller")?;
    Ok(Some((old, new.parent().context("a folder")?.to_owned())))
}

async fn cluster_of(version: &Path) -> Result<Cluster> {
    let environment = vec![(PROGRAMS_IN.to_owned(), version.display().to_string())];
    Cluster::start(ClusterOptions { trainers: 1, environment, ..ClusterOptions::default() }).await
}

/// Restarts the controller as another version: its nodes go on, and so does the gang.
async fn change_controller(cluster: &mut Cluster, job_id: &str, to: &Path) -> Result<()> {
    let before = cluster.job(job_id).await?;
    cluster.controller.kill_9()?;
    cluster.controller.use_version_in(to)?;
    cluster.controller.start_again().await?;
    let step = before.stages[0].step;
    let after = cluster.await_step(job_id, 0, step + 20, LIMIT).await?;
    ensure!(
        after.stages[0].restarts == before.stages[0].restarts,
        "the controller of {} restarted a healthy gang",
        to.display()
    );
    Ok(())
}

/// Restarts the nodes as another version, one by one: the gang goes on from a checkpoint.
async fn change_nodes(cluster: &mut Cluster, job_id: &str, to: &Path) -> Result<()> {
    for index in 0..cluster.curators.len() + cluster.trainers.len() {
        let curators = cluster.curators.len();
        let node = match cluster.curators.get_mut(index) {
            Some(curator) => curator,
            None => &mut cluster.trainers[index - curators],
        };
        node.terminate(STOP).await?;
        node.use_version_in(to)?;
        node.start_again().await?;
    }
    let step = cluster.job(job_id).await?.stages[0].step;
    cluster.await_step(job_id, 0, step + 20, LIMIT).await?;
    Ok(())
}

async fn there_and_back(first: &Path, then: &Path) -> Result<()> {
    let mut cluster = cluster_of(first).await?;
    let job_id = cluster.submit("upgrade", &base_spec(STEPS).replace("gpus: 2", "gpus: 1")).await?;
    cluster.await_step(&job_id, 0, 20, LIMIT).await?;
    change_controller(&mut cluster, &job_id, then).await?;
    change_nodes(&mut cluster, &job_id, then).await?;
    change_controller(&mut cluster, &job_id, first).await?;
    change_nodes(&mut cluster, &job_id, first).await?;
    cluster.await_success(&job_id, LIMIT).await?;
    Ok(())
}

#[tokio::test]
async fn an_upgrade_and_its_rollback_cost_no_job() -> Result<()> {
    let Some((old, new)) = versions()? else { return Ok(()) };
    there_and_back(&old, &new).await
}

#[tokio::test]
async fn a_rollback_and_the_upgrade_again_cost_no_job() -> Result<()> {
    let Some((old, new)) = versions()? else { return Ok(()) };
    there_and_back(&new, &old).await
}
