//! A controller whose embedded store is on a disk that fills up: what was accepted stays, what is refused says why, and once there
//! is room nobody has to restart anything.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crescendo_store::testing::EtcdProcess;
use crescendo_testing::controller::{Controller, FakeNode};
use crescendo_testing::specs::SPEC;
use crescendo_testing::{SmallDisk, eventually};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_new_jobs_with_its_reason_and_loses_none() -> Result<()> {
    let Some(disk) = SmallDisk::mount(16) else { return Ok(()) };
    let store = format!("embedded:{}", disk.path().join("store").display());
    let mut controller = Controller::start_process(Some(store), &["--max-open-jobs", "100000"]).await?;
    controller.await_leading().await?;
    let first = controller.submit_job("first").await?.job_id;
    let mut node = FakeNode::trainer(&controller, "t-1", 1).await?;
    disk.fill();
    let (accepted, refused) = fill_with_jobs(&controller).await?;
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("No space left on device"), "{refused:?}");
    // What there is can be read all the same, and nothing was half written.
    assert_eq!(controller.job(&first).await?.job_id, first);
    assert_eq!(jobs(&controller).await?, accepted + 1);
    assert!(controller.metrics().await?.contains("crescendo_store_refuses_writes 1"));
    // The session of a node stays as it is.
    assert!(node.quiet_for(Duration::from_millis(500)).await?.is_none());

    disk.free();
    let after =
        eventually("jobs are taken again", async || Ok(controller.submit_job("after").await.ok())).await?;
    eventually("no refusal is shown", async || {
        Ok(controller.metrics().await?.contains("crescendo_store_refuses_writes 0").then_some(()))
    })
    .await?;
    let log = std::fs::read_to_string(controller.folder().join("controller.log"))?;
    assert!(log.contains("the store takes writes again"), "{log}");
    let tries = log.matches("dropping the state in memory").count();
    assert!(tries < 30, "{tries} tries: it asks without pause");

    controller.restart().await?;
    assert_eq!(jobs(&controller).await?, accepted + 2);
    assert_eq!(controller.job(&after.job_id).await?.job_id, after.job_id);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_without_room_refuses_new_jobs_with_its_reason_and_loses_none() -> Result<()> {
    let Some(etcd) = EtcdProcess::start_or_skip().await else { return Ok(()) };
    let store = format!("etcd:{}", etcd.endpoint());
    let mut controller = Controller::start_process(Some(store), &[]).await?;
    controller.await_leading().await?;
    let first = controller.submit_job("first").await?.job_id;
    etcd.set_full(true).await?;
    let refused = controller.submit("second", SPEC).await.expect_err("there is no room");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("database space exceeded"), "{refused:?}");
    // For longer than a lease: it goes on leading, and telling.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        assert_eq!(controller.job(&first).await?.job_id, first);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    etcd.set_full(false).await?;
    eventually("jobs are taken again", async || Ok(controller.submit_job("second").await.ok())).await?;
    assert_eq!(jobs(&controller).await?, 2);
    Ok(())
}

/// Submits jobs until one is refused; returns how many were taken, and the refusal.
async fn fill_with_jobs(controller: &Controller) -> Result<(usize, tonic::Status)> {
    for number in 0..5000 {
        if let Err(refused) = controller.submit(&format!("r-{number}"), SPEC).await {
            return Ok((number, refused));
        }
    }
    anyhow::bail!("the disk took everything")
}

async fn jobs(controller: &Controller) -> Result<usize> {
    let mut found = 0;
    let mut request = crescendo_proto::v1::ListJobsRequest { page_size: 500, ..Default::default() };
    loop {
        let page = controller.jobs().list_jobs(request.clone()).await.context("list jobs")?.into_inner();
        found += page.jobs.len();
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        request.page_token = page.next_page_token;
    }
}
