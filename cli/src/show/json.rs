//! Wire messages as JSON, named as in the protos, in camelCase. Times are RFC 3339, absent ones null.

use std::collections::BTreeMap;

use crescendo_core::estimate::{Estimate, StageEstimate};
use crescendo_core::spec::Problem;
use crescendo_proto::v1::{
    Checkpoint, CuratorCooldown, DeletionPhase, Histogram, Job, JobDeletion, JobNote, KeptParts, LogLine,
    Node, Sampling, SamplingState, StageStatus, StatedField, UnitFailure, UnitsUnderWay, WaitingCurator,
};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::words;

/// One document on standard output.
pub fn print(value: &Value) {
    // The alternate form of `Value` is indented JSON.
    super::outln(format_args!("{value:#}"));
}

pub fn time(at: Option<&Timestamp>) -> Value {
    match words::system_time(at) {
        Some(at) => humantime::format_rfc3339_millis(at).to_string().into(),
        None => Value::Null,
    }
}

/// Fields of a spec that are not at their defaults.
pub fn stated(fields: &[StatedField]) -> Value {
    let one = |field: &StatedField| {
        let default = Some(&field.default_value).filter(|value| !value.is_empty());
        json!({ "field": field.path, "value": field.value, "default": default })
    };
    fields.iter().map(one).collect()
}

pub fn job(job: &Job) -> Value {
    json!({
        "jobId": job.job_id,
        "name": job.name,
        "tenant": job.tenant,
        "priority": job.priority,
        "state": words::job_state(job.state()),
        "reason": job.reason,
        "stages": job.stages.iter().map(stage).collect::<Vec<_>>(),
        "submittedAt": time(job.submitted_at.as_ref()),
        "startedAt": time(job.started_at.as_ref()),
        "finishedAt": time(job.finished_at.as_ref()),
        "revision": job.revision,
        "requestId": job.request_id,
        "slotsHeld": job.slots_held,
        "labels": job.labels.iter().collect::<BTreeMap<_, _>>(),
        "notes": job.notes.iter().map(note).collect::<Vec<_>>(),
        "resolvedSpecYaml": job.resolved_spec_yaml,
        "deletion": job.deletion.as_ref().map(deletion),
    })
}

fn note(note: &JobNote) -> Value {
    let JobNote { at, by, text } = note;
    json!({ "at": time(at.as_ref()), "by": by, "text": text })
}

fn stage(stage: &StageStatus) -> Value {
    json!({
        "name": stage.name,
        "phase": words::stage_phase(stage.phase()),
        "generation": stage.generation,
        "restarts": stage.restarts,
        "step": stage.step,
        "stepsTotal": stage.steps_total,
        "loss": stage.loss,
        "gradNorm": stage.grad_norm,
        "learningRate": stage.learning_rate,
        "samplesPerSec": stage.samples_per_sec,
        "dataWaitFraction": stage.data_wait_fraction,
        "pairsCommitted": stage.pairs_committed,
        "pairsTarget": stage.pairs_target,
        "pairsRejected": stage.pairs_rejected,
        "pairsSealed": stage.pairs_sealed,
        "checkpointStep": stage.checkpoint_step,
        "finalCheckpoint": stage.final_checkpoint,
        "etaSeconds": stage.eta_seconds,
        "waitingFor": stage.waiting_for,
        "replayPasses": stage.replay_passes,
        "skippedSteps": stage.skipped_steps,
        "precision": stage.precision,
        "precisionReason": stage.precision_reason,
        "kindChanges": stage.kind_changes,
        "lastFailure": stage.last_failure.as_ref().map(failure),
        "cooldowns": stage.cooldowns.iter().map(cooldown).collect::<Vec<_>>(),
        "waitingCurators": stage.waiting_curators.iter().map(waiting).collect::<Vec<_>>(),
        "underWay": stage.under_way.as_ref().map(under_way),
        "pairsPerMinute": stage.pairs_per_minute,
        "scores": stage.scores.iter().map(|(name, histogram)| (name.clone(), self::histogram(histogram))).collect::<serde_json::Map<_, _>>(),
    })
}

fn failure(failure: &UnitFailure) -> Value {
    let UnitFailure { unit, node_id, reason, ago_seconds, retry_in_seconds } = failure;
    json!({
        "unit": unit,
        "nodeId": node_id,
        "reason": reason,
        "agoSeconds": ago_seconds,
        "retryInSeconds": retry_in_seconds,
    })
}

fn cooldown(cooldown: &CuratorCooldown) -> Value {
    let CuratorCooldown { node_id, reason, asked_again_in_seconds } = cooldown;
    json!({ "nodeId": node_id, "reason": reason, "askedAgainInSeconds": asked_again_in_seconds })
}

fn waiting(curator: &WaitingCurator) -> Value {
    let WaitingCurator { node_id, reason } = curator;
    json!({ "nodeId": node_id, "reason": reason })
}

fn under_way(units: &UnitsUnderWay) -> Value {
    let UnitsUnderWay { units, candidates, drawn, filtered, judged, accepted } = units;
    json!({
        "units": units,
        "candidates": candidates,
        "drawn": drawn,
        "filtered": filtered,
        "judged": judged,
        "accepted": accepted,
    })
}

fn histogram(histogram: &Histogram) -> Value {
    json!({ "least": histogram.least, "most": histogram.most, "counts": histogram.counts })
}

pub fn checkpoint(checkpoint: &Checkpoint) -> Value {
    let files: Vec<Value> = checkpoint
        .files
        .iter()
        .map(|file| json!({"name": file.name, "sizeBytes": file.size_bytes, "sha256": file.sha256}))
        .collect();
    json!({
        "jobId": checkpoint.job_id,
        "stage": checkpoint.stage,
        "generation": checkpoint.generation,
        "step": checkpoint.step,
        "path": checkpoint.path,
        "files": files,
        "committedAt": time(checkpoint.committed_at.as_ref()),
        "final": checkpoint.r#final,
        "damaged": checkpoint.damaged,
        "nextPosition": checkpoint.next_position,
        "kept": checkpoint.kept,
    })
}

/// What is drawn of a step, or is to be.
pub fn sampling(sampling: &Sampling) -> Value {
    let state = match sampling.state() {
        SamplingState::Wanted => "wanted",
        SamplingState::Drawn => "drawn",
        SamplingState::GivenUp => "given_up",
        SamplingState::Unspecified => "unknown",
    };
    let validation = sampling.validation.as_ref().map(
        |loss| json!({ "mean": loss.mean, "pairs": loss.pairs, "times": loss.times, "losses": loss.losses }),
    );
    let progress = sampling
        .progress
        .as_ref()
        .map(|progress| json!({ "nodeId": progress.node_id, "done": progress.done, "of": progress.of }));
    let file = sampling
        .file
        .as_ref()
        .map(|file| json!({ "name": file.name, "sizeBytes": file.size_bytes, "sha256": file.sha256 }));
    json!({
        "jobId": sampling.job_id,
        "stage": sampling.stage,
        "step": sampling.step,
        "generation": sampling.generation,
        "state": state,
        "reason": sampling.reason,
        "drawnAt": time(sampling.drawn_at.as_ref()),
        "pictures": sampling.pictures,
        "file": file,
        "validation": validation,
        "progress": progress,
    })
}

/// How far a deletion is.
pub fn deletion(deletion: &JobDeletion) -> Value {
    let KeptParts { checkpoints, pairs, logs } = deletion.keep.unwrap_or_default();
    let phase = match deletion.phase() {
        DeletionPhase::Files => "files",
        DeletionPhase::Records => "records",
        DeletionPhase::Gone => "gone",
        DeletionPhase::Unspecified => "unknown",
    };
    json!({
        "phase": phase,
        "keep": {"checkpoints": checkpoints, "pairs": pairs, "logs": logs},
        "requestedAt": time(deletion.requested_at.as_ref()),
        "goneAt": time(deletion.gone_at.as_ref()),
        "removedObjects": deletion.removed_objects,
        "removedBytes": deletion.removed_bytes,
        "keptBytes": deletion.kept_bytes,
        "byRetention": deletion.by_retention,
        "waitingFor": deletion.waiting_for,
    })
}

pub fn node(node: &Node) -> Value {
    let running: Vec<Value> = node
        .running
        .iter()
        .map(|attempt| json!({"jobId": attempt.job_id, "stage": attempt.stage, "generation": attempt.generation}))
        .collect();
    let curating: Vec<Value> =
        node.curating.iter().map(|stage| json!({"jobId": stage.job_id, "stage": stage.stage})).collect();
    json!({
        "nodeId": node.node_id,
        "kind": words::node_kind(node.kind()),
        "reach": words::node_reach(node.reach()),
        "slots": node.slots,
        "slotsUsed": node.slots_used,
        "device": node.device,
        "deviceMemoryBytes": (node.device_memory_bytes > 0).then_some(node.device_memory_bytes),
        "bf16Factor": (node.bf16_factor > 0.0).then_some(node.bf16_factor),
        "processor": node.arithmetic.as_ref().map(|arithmetic| &arithmetic.processor),
        "threadsPerRank": node.arithmetic.as_ref().map(|arithmetic| arithmetic.threads),
        "address": node.address,
        "labels": node.labels,
        "version": node.version,
        "draining": node.draining,
        "cordonReason": (!node.cordon_reason.is_empty()).then_some(&node.cordon_reason),
        "rivalAddress": (!node.rival_address.is_empty()).then_some(&node.rival_address),
        "stuckSlots": node.stuck_slots.iter().map(|stuck| json!({"slot": stuck.slot, "what": stuck.what})).collect::<Vec<_>>(),
        "storeFault": (!node.store_fault.is_empty()).then_some(&node.store_fault),
        "silentSeconds": node.silent_seconds,
        "running": running,
        "curating": curating,
    })
}

pub fn log_line(line: &LogLine) -> Value {
    json!({
        "at": time(line.at.as_ref()),
        "jobId": line.job_id,
        "stage": line.stage,
        "generation": line.generation,
        "nodeId": line.node_id,
        "rank": line.rank,
        "level": line.level,
        "message": line.message,
        "droppedBefore": line.dropped_before,
    })
}

/// What a job comes to.
pub fn estimate(estimate: &Estimate) -> Value {
    let stage = |stage: &StageEstimate| {
        json!({
            "stage": stage.stage,
            "samples": stage.samples,
            "trainFlops": stage.train_flops,
            "drawFlops": stage.draw_flops,
            "rankBytes": stage.rank_bytes,
            "checkpointBytes": stage.checkpoint_bytes,
            "storedBytes": stage.stored_bytes,
        })
    };
    json!({
        "trainSlotHours": estimate.train_hours(),
        "drawSlotHours": estimate.draw_hours(),
        "flopsPerSecond": estimate.rate,
        "rankBytes": estimate.rank_bytes(),
        "storedBytes": estimate.stored_bytes(),
        "stages": estimate.stages.iter().map(stage).collect::<Vec<_>>(),
    })
}

pub fn problems(problems: &[Problem]) -> Value {
    let one = |problem: &Problem| {
        json!({
            "line": problem.line,
            "column": problem.column,
            "path": problem.path,
            "message": problem.message,
        })
    };
    problems.iter().map(one).collect()
}
