//! One job goes on where another has stopped: its optimizer, and its pairs without drawing any, through the command line and real
//! processes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_tests::{Cluster, ClusterOptions, lora_spec};

const LIMIT: Duration = Duration::from_secs(180);
const STEPS: u64 = 6;

#[tokio::test]
async fn a_job_goes_on_with_anothers_optimizer_and_pairs() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::default()).await?;
    let weights = cluster.train_base().await?;
    let first = cluster.submit("first", &lora_spec(&weights, 1, STEPS, 1000)).await?;
    let trained = cluster.await_success(&first, LIMIT).await?;
    ensure!(trained.stages[0].pairs_sealed, "20 pairs for 24 samples: {trained:?}");

    // Many steps, so that it is open while the other one is to be deleted.
    let (done, out, said) =
        cluster.crescendo(&["continue", &first, "--steps", "5000", "--name", "long"]).await?;
    ensure!(done, "{said}");
    let long = out.trim().to_owned();
    cluster.await_step(&long, 0, 1, LIMIT).await?;
    let (done, _, said) = cluster.crescendo(&["delete", &first]).await?;
    ensure!(!done && said.contains(&long) && said.contains("spec.stages[0].data.from"), "{said}");
    cluster.cancel(&long).await?;

    let (done, out, said) = cluster.crescendo(&["continue", &first, "--steps", "4"]).await?;
    ensure!(done, "{said}");
    let next = out.trim().to_owned();
    let job = cluster.await_success(&next, LIMIT).await?;
    let stage = &job.stages[0];
    ensure!((stage.step, stage.pairs_committed, stage.pairs_sealed) == (4, 20, true), "{stage:?}");
    let own = cluster.objects().join("jobs").join(&next).join("stage-1").join("pairs");
    ensure!(!own.exists(), "pairs were made for it: {}", own.display());
    let last = cluster.checkpoints(&next).await?.pop().context("it has a checkpoint")?;
    let state = std::fs::read(cluster.objects().join(&last.path).join("state.json"))?;
    let state: serde_json::Value = serde_json::from_slice(&state)?;
    ensure!((&state["step"], &state["optimizerSteps"]) == (&4.into(), &(STEPS + 4).into()), "{state}");

    let (done, _, said) = cluster.crescendo(&["delete", &first]).await?;
    ensure!(done, "{said}");
    Ok(())
}
