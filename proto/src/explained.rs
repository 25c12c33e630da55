//! Why a job is where it is, as a message.

use std::time::Duration;

use crescendo_core::explain::{Blocker, Explanation, NodeRoom, PairForecast};

use crate::v1;

/// Everything but the job, its state and the log lines.
pub fn explanation(told: &Explanation) -> v1::ExplainJobResponse {
    // Every field is named, so that a new one is not forgotten here.
    let Explanation { cause, stage, summary, findings, remedies, pairs, nodes, blockers, goes_on_in } = told;
    v1::ExplainJobResponse {
        job_id: String::new(),
        state: v1::JobState::Unspecified.into(),
        cause: (*cause).to_owned(),
        stage: stage.clone(),
        summary: summary.clone(),
        findings: findings.clone(),
        remedies: remedies.clone(),
        pairs: pairs.as_ref().map(forecast),
        nodes: nodes.iter().map(room).collect(),
        blockers: blockers.iter().map(blocker).collect(),
        goes_on_in_seconds: seconds(*goes_on_in),
        log_lines: Vec::new(),
    }
}

fn seconds(span: Option<Duration>) -> f64 {
    span.map_or(0.0, |span| span.as_secs_f64())
}

fn forecast(pairs: &PairForecast) -> v1::PairForecast {
    let PairForecast { committed, needed, target, per_sec, enough_in } = pairs;
    v1::PairForecast {
        committed: *committed,
        needed: *needed,
        target: *target,
        per_sec: *per_sec,
        enough_in_seconds: seconds(*enough_in),
    }
}

fn room(room: &NodeRoom) -> v1::NodeRoom {
    let NodeRoom { node, device, slots, free, draining, silent_for } = room;
    v1::NodeRoom {
        node_id: node.to_string(),
        device: device.clone(),
        slots: *slots,
        free: *free,
        draining: *draining,
        silent: silent_for.is_some(),
        silent_seconds: seconds(*silent_for),
    }
}

fn blocker(blocker: &Blocker) -> v1::Blocker {
    let Blocker { job, priority, slots, stage_ends_in, stages_after, enough } = blocker;
    v1::Blocker {
        job_id: job.as_ref().map(ToString::to_string).unwrap_or_default(),
        priority: *priority,
        slots: *slots,
        stage_ends_in_seconds: seconds(*stage_ends_in),
        stages_after: u32::try_from(*stages_after).unwrap_or(u32::MAX),
        enough: *enough,
    }
}
