//! Keys and passwords, written by someone in every place where text can be: they are refused or taken out, and are in no
//! answer, log or record.

use std::path::Path;

use anyhow::{Context as _, ensure};
use crescendo_proto::v1;
use crescendo_proto::v1::open_session_request::Message as Up;
use crescendo_testing::controller::{Controller, FakeNode, curate, leased};
use crescendo_testing::eventually;
use crescendo_testing::specs::SPEC;
use tonic::{Code, Status};

const KEY: &str = "sk-0123456789abcdefghijABCD";

/// Everything that a refusal carries.
fn said(status: &Status) -> String {
    let trailer = status.metadata().get_bin("crescendo-problems-bin").and_then(|value| value.to_bytes().ok());
    format!("{status:?} {}", String::from_utf8_lossy(&trailer.unwrap_or_default()))
}

fn files_below(folder: &Path, found: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files_below(&path, found)?;
        } else {
            found.push((path.display().to_string(), std::fs::read(&path)?));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_secret_that_someone_writes_somewhere_is_kept_nowhere() -> anyhow::Result<()> {
    let audit = tempfile::tempdir()?;
    let audit_file = audit.path().join("audit.jsonl").display().to_string();
    let controller = Controller::start_with(&["--audit-log", &audit_file]).await?;
    for (place, with) in [
        ("name: trial", format!("name: {KEY}")),
        ("name: trial", format!("name: trial, tenant: {KEY}")),
        ("name: trial", format!("name: trial, apiKey: {KEY}")),
        ("weights: base.safetensors", format!("weights: \"s3://id:{KEY}@bucket/base\"")),
        ("subjects: subjects", format!("subjects: \"https://host/x?token={KEY}\"")),
        ("name: stage-1", format!("name: {KEY}")),
        ("pairs: 8", format!("pairs: {KEY}")),
        (
            "resources: {gpus: 2}",
            format!("endpoints: [{{name: vlm, url: \"https://host/v1\", model: m, key: {KEY}}}]"),
        ),
        ("apiVersion: crescendo/v1", format!("apiVersion: {KEY}")),
        (
            "checkpoints:",
            format!("# fine in a comment, which is not kept: {KEY}\n  {KEY}: 3\n  checkpoints:"),
        ),
    ] {
        let spec = SPEC.replacen(place, &with, 1);
        ensure!(spec != SPEC, "{place} is not in the spec");
        let refused = controller.submit("r-1", &spec).await.err().context("it was let in")?;
        ensure!(refused.code() == Code::InvalidArgument, "{with}: {refused}");
        ensure!(!said(&refused).contains(KEY), "{with} comes back: {refused:?}");
    }
    let refused = controller.submit(KEY, SPEC).await.err().context("a key was taken for a request id")?;
    ensure!(refused.code() == Code::InvalidArgument && !said(&refused).contains(KEY), "{refused:?}");
    let get = v1::GetJobRequest { job_id: format!("https://u:{KEY}@h/") };
    let refused = controller.jobs().get_job(get).await.err().context("there is no such job")?;
    ensure!(!said(&refused).contains(KEY), "{refused:?}");

    // What nodes say may repeat what some server has told them.
    let job = controller.submit("r-1", SPEC).await?.job.context("a job")?.job_id;
    let curator = FakeNode::curator(&controller, "c-1").await?;
    let unit = leased(&controller, &job, "c-1").await?;
    let reason = format!("GET https://u:{KEY}@host/v1?key={KEY} failed: bad key {KEY}");
    let failed = v1::FailUnitRequest {
        lease: Some(unit),
        node_id: "c-1".into(),
        reason: reason.clone(),
        // So that it can be leased again at once.
        released: true,
        ..Default::default()
    };
    controller.curation().fail_unit(failed).await?;
    curate(&controller, &job, "c-1").await?;
    let mut trainer = FakeNode::trainer(&controller, "t-1", 2).await?;
    let attempt = trainer.start_command().await?.attempt.context("an attempt")?;
    let line = v1::LogLine { job_id: job.clone(), message: reason.clone(), ..Default::default() };
    trainer.send(Up::LogBatch(v1::LogBatch { lines: vec![line] })).await?;
    let report = v1::AttemptReport {
        attempt: Some(attempt),
        phase: v1::AttemptPhase::Failed.into(),
        reason: reason.clone(),
        permanent: true,
        ..Default::default()
    };
    trainer.send(Up::AttemptReport(report)).await?;
    let failed = controller.job_when(&job, "failed", |job| job.state() == v1::JobState::Failed).await?;
    ensure!(failed.reason.contains("[redacted]") && !failed.reason.contains(KEY), "{}", failed.reason);

    let second = controller.submit("r-2", SPEC).await?.job.context("a job")?.job_id;
    let cancel = v1::CancelJobRequest { job_id: second, reason: format!("leaked {KEY}") };
    let cancelled = controller.jobs().cancel_job(cancel).await?.into_inner().job.context("a job")?;
    ensure!(cancelled.reason == "leaked [redacted]", "{}", cancelled.reason);

    let lines = eventually("the log line", async || {
        let request = v1::ReadLogsRequest { job_id: job.clone(), ..Default::default() };
        let mut stream = controller.jobs().read_logs(request).await?.into_inner();
        let mut lines = Vec::new();
        while let Some(read) = stream.message().await? {
            lines.extend(read.line);
        }
        Ok((!lines.is_empty()).then_some(lines))
    })
    .await?;
    ensure!(lines.iter().any(|line| line.message.contains("[redacted]")), "{lines:?}");
    let listed = controller.jobs().list_jobs(v1::ListJobsRequest::default()).await?.into_inner();
    ensure!(!format!("{lines:?} {listed:?} {}", controller.metrics().await?).contains(KEY));
    drop((curator, trainer));

    // The store, the log of the process, the audit log, and whatever else it has written.
    let audited = eventually("the last line of the audit log", async || {
        let text = std::fs::read_to_string(&audit_file).unwrap_or_default();
        Ok(text.contains("CancelJob").then_some(text))
    })
    .await?;
    ensure!(audited.contains("request/[redacted]"), "the refused request is not there: {audited}");
    let mut files = Vec::new();
    files_below(controller.folder(), &mut files)?;
    files_below(audit.path(), &mut files)?;
    ensure!(files.iter().any(|(path, _)| path.ends_with("controller.log")), "no log was written");
    let needles = [KEY.as_bytes(), b"trial"];
    let holds = |needle: &[u8]| {
        let inside =
            |(_, content): &&(String, Vec<u8>)| content.windows(needle.len()).any(|part| part == needle);
        files.iter().filter(inside).map(|(path, _)| path.clone()).collect::<Vec<_>>()
    };
    ensure!(!holds(needles[1]).is_empty(), "the search finds nothing, not even the job's name");
    let leaked = holds(needles[0]);
    ensure!(leaked.is_empty(), "the key is in {leaked:?}");
    Ok(())
}
