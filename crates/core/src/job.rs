//! The life of a job as a state machine.
//!
//! ```text
//!            Place           Run
//!  Queued ─────────▶ Placing ─────▶ Running ──Succeed──▶ Succeeded
//!    ▲  ▲              ▲  └───Place──┘ │
//!    │  └──Yield── Preempting ◀─Preempt┤        Fail   ──▶ Failed ──Retry──▶ Queued   (Fail and Cancel
//!    └─────Resume── Paused ◀──Pause────┘        Cancel ──▶ Cancelled          from every open state)
//! ```
//!
//! | from | Place(k) | Run(k) | Pause | Resume | Preempt | Yield | Succeed | Fail | Cancel | Retry |
//! |---|---|---|---|---|---|---|---|---|---|---|
//! | Queued | Placing k | - | Paused | - | - | - | Succeeded | Failed | Cancelled | - |
//! | Placing | Placing k | Running k | Paused | - | Preempting | - | Succeeded | Failed | Cancelled | - |
//! | Running | Placing k | Running k | Paused | - | Preempting | - | Succeeded | Failed | Cancelled | - |
//! | Paused | - | - | Paused | Queued | - | - | Succeeded | Failed | Cancelled | - |
//! | Preempting | - | - | Paused | - | - | Queued | Succeeded | Failed | Cancelled | - |
//! | Failed | - | - | - | - | - | - | - | - | - | Queued |
//! | Succeeded, Cancelled | - | - | - | - | - | - | - | - | - | - |
//!
//! `Succeed` is possible from every open state because a final checkpoint that arrives late, from the newest
//! generation, still ends the job well. A job that is paused or preempted keeps its gang until that has saved: the state says
//! what is wanted, and the attempt's record what is. Only a person takes a job out of `Failed`.

use std::fmt;

use crate::ids::JobId;

/// Where a job is. The stage is an index into the spec's stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Accepted, waits for its turn.
    Queued,
    /// Being given nodes for this stage.
    Placing { stage: usize },
    /// This stage is being curated or trained.
    Running { stage: usize },
    /// Stopped by a person, may go on.
    Paused(Pause),
    /// Its gang saves and leaves to make room for the job `by`, which goes first.
    Preempting { stage: usize, by: JobId },
    /// Every stage has its final checkpoint. Final.
    Succeeded,
    /// Cannot go on, unless a person has it tried again.
    Failed { reason: String },
    /// Stopped by a person for good. Final.
    Cancelled { reason: String },
}

/// What a person has said of a pause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Its pairs are still made.
    pub curates: bool,
    /// One line; may be empty.
    pub reason: String,
}

/// What happens to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEvent {
    /// Nodes are wanted for this stage.
    Place {
        stage: usize,
    },
    /// A node works on this stage.
    Run {
        stage: usize,
    },
    Pause(Pause),
    Resume,
    /// The job `by` is to have its place.
    Preempt {
        by: JobId,
    },
    /// The preempted gang has stopped.
    Yield,
    Succeed,
    Fail {
        reason: String,
    },
    Cancel {
        reason: String,
    },
    /// A person has a failed job tried again.
    Retry,
}

/// An event that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} does not take the event {event}")]
pub struct NotAllowed {
    pub from: &'static str,
    pub event: &'static str,
}

impl JobState {
    /// Nothing happens to it any more, but that a person may have a failed one tried again.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Queued
            | Self::Placing { .. }
            | Self::Running { .. }
            | Self::Paused(_)
            | Self::Preempting { .. } => false,
            Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// Why it has failed or was cancelled; empty otherwise.
    pub fn end_reason(&self) -> &str {
        match self {
            Self::Failed { reason } | Self::Cancelled { reason } => reason,
            Self::Queued
            | Self::Placing { .. }
            | Self::Running { .. }
            | Self::Paused(_)
            | Self::Preempting { .. }
            | Self::Succeeded => "",
        }
    }

    /// Lower-case name, also the label in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Placing { .. } => "placing",
            Self::Running { .. } => "running",
            Self::Paused(_) => "paused",
            Self::Preempting { .. } => "preempting",
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
            Self::Cancelled { .. } => "cancelled",
        }
    }

    /// The state after `event`, by the table above.
    pub fn step(&self, event: JobEvent) -> Result<JobState, NotAllowed> {
        let refused = NotAllowed { from: self.name(), event: event.name() };
        match (self, event) {
            (Self::Failed { .. }, JobEvent::Retry) => Ok(Self::Queued),
            (Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. }, _) | (_, JobEvent::Retry) => {
                Err(refused)
            }
            (_, JobEvent::Fail { reason }) => Ok(Self::Failed { reason }),
            (_, JobEvent::Cancel { reason }) => Ok(Self::Cancelled { reason }),
            (_, JobEvent::Succeed) => Ok(Self::Succeeded),
            (_, JobEvent::Pause(pause)) => Ok(Self::Paused(pause)),
            (Self::Queued | Self::Placing { .. } | Self::Running { .. }, JobEvent::Place { stage }) => {
                Ok(Self::Placing { stage })
            }
            (Self::Placing { .. } | Self::Running { .. }, JobEvent::Run { stage }) => {
                Ok(Self::Running { stage })
            }
            (Self::Placing { stage } | Self::Running { stage }, JobEvent::Preempt { by }) => {
                Ok(Self::Preempting { stage: *stage, by })
            }
            (Self::Preempting { .. }, JobEvent::Yield) | (Self::Paused(_), JobEvent::Resume) => {
                Ok(Self::Queued)
            }
            (Self::Queued, JobEvent::Run { .. } | JobEvent::Preempt { .. })
            | (
                Self::Paused(_) | Self::Preempting { .. },
                JobEvent::Place { .. } | JobEvent::Run { .. } | JobEvent::Preempt { .. },
            )
            | (
                Self::Queued | Self::Placing { .. } | Self::Running { .. } | Self::Paused(_),
                JobEvent::Yield,
            )
            | (
                Self::Queued | Self::Placing { .. } | Self::Running { .. } | Self::Preempting { .. },
                JobEvent::Resume,
            ) => Err(refused),
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl JobEvent {
    fn name(&self) -> &'static str {
        match self {
            Self::Place { .. } => "place",
            Self::Run { .. } => "run",
            Self::Pause(_) => "pause",
            Self::Resume => "resume",
            Self::Preempt { .. } => "preempt",
            Self::Yield => "yield",
            Self::Succeed => "succeed",
            Self::Fail { .. } => "fail",
            Self::Cancel { .. } => "cancel",
            Self::Retry => "retry",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> JobId {
        JobId::parse("urgent").expect("valid")
    }

    fn states() -> Vec<JobState> {
        vec![
            JobState::Queued,
            JobState::Placing { stage: 0 },
            JobState::Running { stage: 0 },
            JobState::Paused(Pause::default()),
            JobState::Preempting { stage: 0, by: job() },
            JobState::Succeeded,
            JobState::Failed { reason: "r".into() },
            JobState::Cancelled { reason: "r".into() },
        ]
    }

    fn events() -> Vec<JobEvent> {
        vec![
            JobEvent::Place { stage: 1 },
            JobEvent::Run { stage: 1 },
            JobEvent::Pause(Pause::default()),
            JobEvent::Resume,
            JobEvent::Preempt { by: job() },
            JobEvent::Yield,
            JobEvent::Succeed,
            JobEvent::Fail { reason: "f".into() },
            JobEvent::Cancel { reason: "c".into() },
            JobEvent::Retry,
        ]
    }

    /// The table of the module's doc, row by row; `-` is refused.
    const TABLE: [[&str; 10]; 8] = [
        ["placing", "-", "paused", "-", "-", "-", "succeeded", "failed", "cancelled", "-"],
        ["placing", "running", "paused", "-", "preempting", "-", "succeeded", "failed", "cancelled", "-"],
        ["placing", "running", "paused", "-", "preempting", "-", "succeeded", "failed", "cancelled", "-"],
        ["-", "-", "paused", "queued", "-", "-", "succeeded", "failed", "cancelled", "-"],
        ["-", "-", "paused", "-", "-", "queued", "succeeded", "failed", "cancelled", "-"],
        ["-"; 10],
        ["-", "-", "-", "-", "-", "-", "-", "-", "-", "queued"],
        ["-"; 10],
    ];

    #[test]
    fn transitions_are_those_of_the_table() {
        for (state, row) in states().iter().zip(TABLE) {
            for (event, wanted) in events().into_iter().zip(row) {
                let name = event.name();
                let got = state.step(event);
                let got = got.as_ref().map_or("-", JobState::name);
                assert_eq!(got, wanted, "{state} on {name}");
            }
        }
    }

    #[test]
    fn the_stage_of_the_event_is_taken_over() {
        let placed = JobState::Running { stage: 0 }.step(JobEvent::Place { stage: 1 }).expect("allowed");
        assert_eq!(placed, JobState::Placing { stage: 1 });
    }
}
