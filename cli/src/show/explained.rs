//! Why a job is where it is, for people and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use crescendo_proto::v1::{Blocker, ExplainJobResponse, JobState, NodeRoom, PairForecast};
use serde_json::{Value, json};

use super::table::Table;
use super::{json as wire, words};
use crate::commands::logs;

/// The line that says it all, the facts, what to do, then the details.
pub fn text(told: &ExplainJobResponse) -> String {
    let mut out = String::new();
    let stage = if told.stage.is_empty() { String::new() } else { format!(" in {}", told.stage) };
    let state = words::job_state(told.state());
    let _ = writeln!(
        out,
        "{} ({state}{}) {}",
        told.job_id,
        words::one_line(&stage),
        words::one_line(&told.summary)
    );
    for finding in &told.findings {
        let _ = writeln!(out, "  - {}", words::one_line(finding));
    }
    if let Some(left) = words::eta(told.goes_on_in_seconds) {
        let what = match told.state() {
            JobState::Running if told.cause == "running" || told.cause == "unseen" => "the stage is done",
            _ => "it goes on",
        };
        let _ = writeln!(out, "\nAt the present pace {what} in about {left}.");
    }
    if !told.remedies.is_empty() {
        out.push_str("\nWhat to do:\n");
        for remedy in &told.remedies {
            let _ = writeln!(out, "  - {}", words::one_line(remedy));
        }
    }
    if !told.blockers.is_empty() {
        let _ = write!(out, "\n{}", blockers(&told.blockers));
    }
    if !told.nodes.is_empty() {
        let _ = write!(out, "\n{}", nodes(&told.nodes));
    }
    if !told.log_lines.is_empty() {
        out.push_str("\nLast lines:\n");
        for line in &told.log_lines {
            let _ = writeln!(out, "  {}", logs::text(line));
        }
    }
    out
}

fn blockers(blockers: &[Blocker]) -> Table {
    let mut table = Table::new(&["JOB", "PRIORITY", "SLOTS", "ITS STAGE ENDS IN", "STAGES AFTER", "ENOUGH"]);
    for blocker in blockers {
        table.row([
            if blocker.job_id.is_empty() { "(another tenant's)".into() } else { blocker.job_id.clone() },
            blocker.priority.to_string(),
            blocker.slots.to_string(),
            words::eta(blocker.stage_ends_in_seconds).unwrap_or_else(|| "unknown".into()),
            blocker.stages_after.to_string(),
            if blocker.enough { "yes".into() } else { "-".into() },
        ]);
    }
    table
}

fn nodes(nodes: &[NodeRoom]) -> Table {
    let mut table = Table::new(&["NODE", "DEVICE", "FREE", "STATE"]);
    for node in nodes {
        let silent = Duration::try_from_secs_f64(node.silent_seconds).unwrap_or_default();
        table.row([
            node.node_id.clone(),
            node.device.clone(),
            format!("{}/{}", node.free, node.slots),
            match (node.silent, node.draining) {
                (true, _) => format!("silent for {}", words::span(silent)),
                (false, true) => "draining".into(),
                (false, false) => "connected".into(),
            },
        ]);
    }
    table
}

pub fn as_json(told: &ExplainJobResponse) -> Value {
    let ExplainJobResponse {
        job_id,
        state: _,
        cause,
        stage,
        summary,
        findings,
        remedies,
        pairs,
        nodes,
        blockers,
        goes_on_in_seconds,
        log_lines,
    } = told;
    json!({
        "jobId": job_id,
        "state": words::job_state(told.state()),
        "cause": cause,
        "stage": stage,
        "summary": summary,
        "findings": findings,
        "remedies": remedies,
        "pairs": pairs.as_ref().map(forecast),
        "nodes": nodes.iter().map(room).collect::<Vec<_>>(),
        "blockers": blockers.iter().map(blocker).collect::<Vec<_>>(),
        "goesOnInSeconds": goes_on_in_seconds,
        "logLines": log_lines.iter().map(wire::log_line).collect::<Vec<_>>(),
    })
}

fn forecast(pairs: &PairForecast) -> Value {
    let PairForecast { committed, needed, target, per_sec, enough_in_seconds } = pairs;
    json!({
        "committed": committed,
        "needed": needed,
        "target": target,
        "perSec": per_sec,
        "enoughInSeconds": enough_in_seconds,
    })
}

fn room(node: &NodeRoom) -> Value {
    let NodeRoom { node_id, device, slots, free, silent, silent_seconds, draining } = node;
    json!({
        "nodeId": node_id,
        "device": device,
        "slots": slots,
        "free": free,
        "silent": silent,
        "draining": draining,
        "silentSeconds": silent_seconds,
    })
}

fn blocker(blocker: &Blocker) -> Value {
    let Blocker { job_id, priority, slots, stage_ends_in_seconds, stages_after, enough } = blocker;
    json!({
        "jobId": job_id,
        "priority": priority,
        "slots": slots,
        "stageEndsInSeconds": stage_ends_in_seconds,
        "stagesAfter": stages_after,
        "enough": enough,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_shown_and_nothing_moves_the_cursor() {
        let told = ExplainJobResponse {
            job_id: "uno-1".into(),
            state: JobState::Placing as i32,
            cause: "slots".into(),
            stage: "stage-1".into(),
            summary: "waits for 8 slots: 4 of 8 are free".into(),
            findings: vec!["needs 8 slots\u{1b}[2J".into()],
            remedies: vec!["wait".into()],
            nodes: vec![NodeRoom {
                node_id: "h100-3".into(),
                device: "cuda".into(),
                slots: 8,
                free: 4,
                ..NodeRoom::default()
            }],
            blockers: vec![
                Blocker {
                    job_id: "big-1".into(),
                    slots: 4,
                    stage_ends_in_seconds: 100.0,
                    enough: true,
                    ..Blocker::default()
                },
                Blocker { slots: 2, ..Blocker::default() },
            ],
            goes_on_in_seconds: 100.0,
            ..ExplainJobResponse::default()
        };
        assert_eq!(
            text(&told),
            "\
uno-1 (placing in stage-1) waits for 8 slots: 4 of 8 are free
  - needs 8 slots [2J

At the present pace it goes on in about 1m 40s.

What to do:
  - wait

JOB                 PRIORITY  SLOTS  ITS STAGE ENDS IN  STAGES AFTER  ENOUGH
big-1               0         4      1m 40s             0             yes
(another tenant's)  0         2      unknown            0             -

NODE    DEVICE  FREE  STATE
h100-3  cuda    4/8   connected
"
        );
        let value = as_json(&told);
        assert_eq!((&value["state"], &value["blockers"][0]["enough"]), (&"placing".into(), &true.into()));
        assert_eq!(value["pairs"], Value::Null);
    }
}
