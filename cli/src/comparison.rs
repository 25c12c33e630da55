//! Jobs side by side: what differs in their specs, and what came of each. Pure; the Python client's `comparison` says the same.
//!
//! | part | what it does |
//! |---|---|
//! | `history` | the last steps of a stage, by the history in its checkpoint |
//! | `leaves` | the fields in which specs differ |
//! | `table` | both as tables and JSON |

pub mod history;
pub mod leaves;
pub mod table;

use std::collections::BTreeMap;

use crescendo_proto::v1::{Job, JobState, StagePhase, StageStatus};

use crate::show::words;
use history::Ending;
use leaves::{Difference, Leaves};

/// What a stage has come to. What nobody knows is absent.
#[derive(Clone, Debug, PartialEq)]
pub struct StageFigures {
    pub name: String,
    /// Optimizer steps done, of `steps_total`.
    pub steps: u64,
    pub steps_total: u64,
    /// Of the last step.
    pub loss: Option<f64>,
    /// Over the last steps of the newest checkpoint's history.
    pub mean_loss: Option<f64>,
    /// Norm of the last step's gradients before clipping.
    pub grad_norm: Option<f64>,
    /// Of the global batch.
    pub samples_per_sec: Option<f64>,
    /// That can be read.
    pub pairs: u64,
    /// Attempts after the first.
    pub restarts: u32,
}

/// What a job has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct JobFigures {
    pub job_id: String,
    pub name: String,
    pub state: JobState,
    /// From the first start of a stage to the job's end; none while it has not ended.
    pub duration_seconds: Option<f64>,
    pub stages: Vec<StageFigures>,
    /// Index of the stage that is under way, or else of the last.
    pub current: usize,
}

impl JobFigures {
    pub fn restarts(&self) -> u32 {
        self.stages.iter().fold(0, |sum, stage| sum.saturating_add(stage.restarts))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub jobs: Vec<JobFigures>,
    pub differences: Vec<Difference>,
}

/// Whether the stage's figures are those of the history: no rank has reported any, or will.
pub fn is_over(stage: &StageStatus) -> bool {
    stage.phase() == StagePhase::Done || known(stage.loss).is_none()
}

/// `endings` are by job and stage. `specs` are those of the jobs, in their order.
pub fn compare(jobs: &[Job], specs: &[Leaves], endings: &BTreeMap<(String, String), Ending>) -> Comparison {
    let figures = |(job, spec): (&Job, &Leaves)| JobFigures {
        job_id: job.job_id.clone(),
        name: job.name.clone(),
        state: job.state(),
        duration_seconds: duration_seconds(job),
        stages: job
            .stages
            .iter()
            .enumerate()
            .map(|(at, stage)| {
                let ending = endings.get(&(job.job_id.clone(), stage.name.clone()));
                stage_figures(stage, ending, spec.whole(&format!("spec.stages[{at}].train.globalBatch")))
            })
            .collect(),
        current: current(job),
    };
    Comparison {
        jobs: jobs.iter().zip(specs).map(figures).collect(),
        differences: leaves::differences(specs),
    }
}

fn current(job: &Job) -> usize {
    let open = job.stages.iter().position(|stage| stage.phase() != StagePhase::Done);
    open.unwrap_or(job.stages.len().saturating_sub(1))
}

fn duration_seconds(job: &Job) -> Option<f64> {
    let started = words::system_time(job.started_at.as_ref())?;
    let finished = words::system_time(job.finished_at.as_ref())?;
    finished.duration_since(started).ok().map(|took| took.as_secs_f64())
}

fn stage_figures(stage: &StageStatus, ending: Option<&Ending>, batch: Option<u64>) -> StageFigures {
    let mut figures = StageFigures {
        name: stage.name.clone(),
        steps: stage.step,
        steps_total: stage.steps_total,
        loss: known(stage.loss),
        mean_loss: ending.and_then(|ending| ending.mean_loss),
        grad_norm: known(stage.grad_norm),
        samples_per_sec: known(stage.samples_per_sec),
        pairs: stage.pairs_committed,
        restarts: stage.restarts,
    };
    if let Some(ending) = ending.filter(|_| is_over(stage)) {
        figures.loss = ending.loss;
        figures.grad_norm = ending.grad_norm;
        if let (Some(batch), Some(seconds)) = (batch, ending.step_seconds.filter(|seconds| *seconds > 0.0)) {
            figures.samples_per_sec = Some(batch as f64 / seconds);
        }
    }
    figures
}

/// A number that was not reported is 0: a controller that has been restarted knows it from the next report on.
fn known(reported: f64) -> Option<f64> {
    (reported.is_finite() && reported != 0.0).then_some(reported)
}

#[cfg(test)]
mod tests;
