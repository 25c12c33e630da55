//! One record in the store that cannot be read stops nobody but whom it belongs to.

use anyhow::{Context as _, Result};
use crescendo_proto::v1;
use crescendo_store::{KEY_PREFIX, Store, StoreLocation, Txn};
use crescendo_testing::controller::{Controller, FakeNode, checkpoint, commit_checkpoint, curate, leased};
use crescendo_testing::eventually;
use tonic::Code;

/// A protobuf that ends in the middle of a field.
const BROKEN: &[u8] = b"\x1a\xff\x01broken";

/// Looks at the store, or changes it, while no controller runs.
async fn with_store<T>(
    controller: &Controller,
    work: impl AsyncFnOnce(&dyn Store) -> Result<T>,
) -> Result<T> {
    let folder = controller.folder().join("store");
    let location: StoreLocation = format!("embedded:{}", folder.display()).parse()?;
    let opened = async || Ok(location.open(KEY_PREFIX, None).await.ok());
    let done = work(eventually("the store is open", opened).await?.as_ref()).await;
    let file = std::fs::File::open(folder.join("store.redb"))?;
    eventually("the store is closed", async || Ok(file.try_lock().ok())).await?;
    done
}

/// Writes `BROKEN` at a key.
async fn break_record(controller: &Controller, key: &str) -> Result<()> {
    with_store(controller, async |store| {
        store.txn(Txn::new().put(key, BROKEN)).await?;
        Ok(())
    })
    .await
}

async fn value(controller: &Controller, key: &str) -> Result<Vec<u8>> {
    with_store(controller, async |store| {
        Ok(store.snapshot(key).await?.items.first().context("it is kept")?.value.to_vec())
    })
    .await
}

/// The other job gets to its end.
async fn succeeds(controller: &Controller, request: &str, node: &str) -> Result<()> {
    let job = controller.submit_job(request).await?.job_id;
    let mut trainer = FakeNode::trainer(controller, node, 2).await?;
    curate(controller, &job, "c-1").await?;
    let start = trainer.start_command().await?.attempt.context("an attempt")?;
    assert_eq!(start.job_id, job);
    commit_checkpoint(controller, checkpoint(&start, 20, true)).await?;
    assert_eq!(controller.job(&job).await?.state(), v1::JobState::Succeeded);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_read_is_kept_and_halts_its_job_alone() -> Result<()> {
    let mut controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
    curate(&controller, &job, "c-1").await?;
    let running = trainer.start_command().await?.attempt.context("an attempt")?;
    controller.kill()?;
    let key = format!("attempts/{job}/stage-1");
    break_record(&controller, &key).await?;
    controller.restart().await?;

    let halted = controller.job_when(&job, "a reason", |job| !job.reason.is_empty()).await?;
    assert!(halted.reason.starts_with(&format!("is halted: its record {key} cannot be read")), "{halted:?}");
    let told =
        controller.jobs().explain_job(v1::ExplainJobRequest { job_id: job.clone() }).await?.into_inner();
    assert_eq!(told.cause, "unreadable");
    // Its ranks may go on: they are not told to stop, and what they save is not refused for good.
    let hello = v1::Hello {
        running: vec![running.clone()],
        ..crescendo_testing::controller::hello("t-1", v1::NodeKind::Trainer, 2, "first")
    };
    let mut trainer = FakeNode::open(&controller, hello).await?;
    let saved = commit_checkpoint(&controller, checkpoint(&running, 5, false)).await;
    assert_eq!(saved.expect_err("its generation is not known").code(), Code::Unavailable);

    succeeds(&controller, "r-2", "t-other").await?;
    let told = trainer.quiet_for(std::time::Duration::from_millis(600)).await?;
    assert_eq!(told, None, "the ranks are left alone, and their slots are not given to others");
    let metrics = controller.metrics().await?;
    assert!(metrics.contains("crescendo_records_unreadable{kind=\"attempts\"} 1"), "{metrics}");
    assert!(metrics.contains("crescendo_state_reloads_total 0"), "{metrics}");

    controller.kill()?;
    assert_eq!(value(&controller, &key).await?, BROKEN, "nothing is written over it");
    Ok(())
}

#[tokio::test]
async fn a_job_whose_own_record_cannot_be_read_is_not_denied_and_not_made_twice() -> Result<()> {
    let mut controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    leased(&controller, &job, "c-1").await?;
    controller.kill()?;
    break_record(&controller, &format!("jobs/{job}")).await?;
    break_record(&controller, "nodes/t-1").await?;
    controller.restart().await?;

    let get = controller.jobs().get_job(v1::GetJobRequest { job_id: job.clone() }).await;
    let refused = get.expect_err("it cannot be shown");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains(&format!("jobs/{job} cannot be read")), "{refused}");
    let again = controller.submit("r-1", crescendo_testing::specs::SPEC).await.expect_err("no second job");
    assert_eq!(again.code(), Code::Unavailable, "{again}");
    let node = FakeNode::trainer(&controller, "t-1", 2).await.map(|_| ());
    assert!(format!("{:?}", node.expect_err("its record would be lost")).contains("nodes/t-1"));

    succeeds(&controller, "r-2", "t-2").await?;
    eventually("it is counted", async || {
        let metrics = controller.metrics().await?;
        Ok(["jobs", "nodes"]
            .iter()
            .all(|kind| metrics.contains(&format!("crescendo_records_unreadable{{kind=\"{kind}\"}} 1")))
            .then_some(()))
    })
    .await?;
    assert!(controller.metrics().await?.contains("crescendo_state_reloads_total 0"));
    Ok(())
}

#[tokio::test]
async fn a_kind_of_record_that_only_a_newer_version_has_is_left_alone_and_counted_as_nothing() -> Result<()> {
    /// A record of version 1 that holds field 99 alone.
    const NEW_KIND: &[u8] = b"\x9a\x06\x01x\x78\x01";
    /// The same of a version that this one may not do without.
    const NEWER: &[u8] = b"\x9a\x06\x01x\x78\x63";
    let mut controller = Controller::start().await?;
    let job = controller.submit_job("r-1").await?.job_id;
    controller.kill()?;
    let key = format!("favourites/{job}");
    let put = [(key.as_str(), NEW_KIND), ("wishes/x", NEWER)];
    with_store(&controller, async |store| {
        store.txn(put.into_iter().fold(Txn::new(), |txn, (key, value)| txn.put(key, value))).await?;
        Ok(())
    })
    .await?;
    controller.restart().await?;
    succeeds(&controller, "r-2", "t-1").await?;
    let metrics = controller.metrics().await?;
    assert!(metrics.contains("crescendo_records_unreadable{kind=\"other\"} 1"), "{metrics}");
    controller.kill()?;
    assert_eq!(value(&controller, &key).await?, NEW_KIND, "nothing is written over it");
    Ok(())
}
