//! `crescendo lineage`.

use std::fmt::Write as _;

use crescendo_proto::v1::{
    CheckpointFile, DeletionPhase, FinalCheckpoint, GetLineageRequest, JobDeletion, Lineage,
};
use serde_json::json;

use crate::args::{Common, JobArgs, Output};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::{self, json, words};

pub async fn run(common: &Common, args: &JobArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let request = GetLineageRequest { job_id: args.job.clone() };
    let answer = controller
        .call(common.timeout.unwrap_or(LOOK), |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).get_lineage(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    let lineage = answer.lineage.unwrap_or_default();
    match common.output {
        Output::Json => json::print(&as_json(&lineage, answer.deletion.as_ref())),
        Output::Table => show::out(details(&lineage, answer.deletion.as_ref())),
    }
    Ok(())
}

fn details(lineage: &Lineage, deletion: Option<&JobDeletion>) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<10} {}", words::one_line(value));
    };
    line("job", &lineage.job_id);
    line("name", &lineage.name);
    line("tenant", &lineage.tenant);
    let reason = if lineage.reason.is_empty() { String::new() } else { format!(": {}", lineage.reason) };
    line("state", &format!("{}{reason}", lineage.state));
    line("submitted", &words::time(lineage.submitted_at.as_ref()));
    if lineage.finished_at.is_some() {
        line("finished", &words::time(lineage.finished_at.as_ref()));
    }
    if let Some(deletion) = deletion {
        line("deleted", &deleted(deletion));
    }
    line("request", &lineage.request_id);
    line("spec", &format!("sha256 {}", lineage.spec_sha256));
    for from in &lineage.from {
        line("from", from);
    }
    for last in &lineage.final_checkpoints {
        line(&last.stage, &format!("{} after {} steps", last.path, last.step));
        for file in &last.files {
            line("", &format!("{} {} {}", file.sha256, words::bytes(file.size_bytes), file.name));
        }
    }
    out
}

fn deleted(deletion: &JobDeletion) -> String {
    let mut told = match deletion.phase() {
        DeletionPhase::Gone => words::time(deletion.gone_at.as_ref()),
        DeletionPhase::Files | DeletionPhase::Records | DeletionPhase::Unspecified => {
            "it is under way".to_owned()
        }
    };
    if deletion.kept_bytes > 0 {
        let _ = write!(told, "; {} were kept", words::bytes(deletion.kept_bytes));
    }
    if !deletion.by_retention.is_empty() {
        let _ = write!(told, "; by retention: {}", deletion.by_retention);
    }
    if !deletion.waiting_for.is_empty() {
        let _ = write!(told, "; waits: {}", deletion.waiting_for);
    }
    told
}

fn as_json(lineage: &Lineage, deletion: Option<&JobDeletion>) -> serde_json::Value {
    let file = |file: &CheckpointFile| json!({"name": file.name, "sizeBytes": file.size_bytes, "sha256": file.sha256});
    let last = |last: &FinalCheckpoint| json!({"stage": last.stage, "step": last.step, "path": last.path, "files": last.files.iter().map(file).collect::<Vec<_>>()});
    json!({
        "jobId": lineage.job_id,
        "tenant": lineage.tenant,
        "name": lineage.name,
        "requestId": lineage.request_id,
        "state": lineage.state,
        "reason": lineage.reason,
        "submittedAt": json::time(lineage.submitted_at.as_ref()),
        "finishedAt": json::time(lineage.finished_at.as_ref()),
        "specSha256": lineage.spec_sha256,
        "from": lineage.from,
        "finalCheckpoints": lineage.final_checkpoints.iter().map(last).collect::<Vec<_>>(),
        "deletion": deletion.map(json::deletion),
    })
}
