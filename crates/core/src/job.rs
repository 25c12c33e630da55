//! The life of a job as a state machine.
//!
//! ```text
//!            Place           Run
//!  Queued ─────────▶ Placing ─────▶ Running ──Succeed──▶ Succeeded
//!    ▲  ▲              ▲  └───Place──┘ │
//!    │  └──Yield── Preempting ◀─Preempt┤        Fail   ──▶ Failed      (from every
//!    └─────Resume── Paused ◀──Pause────┘        Cancel ──▶ Cancelled    open state)
//! ```
//!
//! | from | Place(k) | Run(k) | Pause | Resume | Preempt | Yield | Succeed | Fail | Cancel |
//! |---|---|---|---|---|---|---|---|---|---|
//! | Queued | Placing k | - | Paused | - | - | - | Succeeded | Failed | Cancelled |
//! | Placing | Placing k | Running k | Paused | - | Preempting | - | Succeeded | Failed | Cancelled |
//! | Running | Placing k | Running k | Paused | - | Preempting | - | Succeeded | Failed | Cancelled |
//! | Paused | - | - | Paused | Queued | - | - | Succeeded | Failed | Cancelled |
//! | Preempting | - | - | Paused | - | Preempting | Queued | Succeeded | Failed | Cancelled |
//! | Succeeded, Failed, Cancelled | - | - | - | - | - | - | - | - | - |
//!
//! `Succeed` is possible from every open state because a final checkpoint that arrives late, from the newest
//! generation, still ends the job well.

use std::fmt;

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
    Paused,
    /// Its gang is being stopped to make room for a more important job.
    Preempting { stage: usize },
    /// Every stage has its final checkpoint. Final.
    Succeeded,
    /// Cannot go on. Final.
    Failed { reason: String },
    /// Stopped by a person for good. Final.
    Cancelled { reason: String },
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
    Pause,
    Resume,
    Preempt,
    /// The preempted gang has stopped.
    Yield,
    Succeed,
    Fail {
        reason: String,
    },
    Cancel {
        reason: String,
    },
}

/// An event that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} does not take the event {event}")]
pub struct NotAllowed {
    pub from: &'static str,
    pub event: &'static str,
}

impl JobState {
    /// Terminal states are absorbing.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Queued
            | Self::Placing { .. }
            | Self::Running { .. }
            | Self::Paused
            | Self::Preempting { .. } => false,
            Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. } => true,
        }
    }

    /// Lower-case name, also the label in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Placing { .. } => "placing",
            Self::Running { .. } => "running",
            Self::Paused => "paused",
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
            (Self::Succeeded | Self::Failed { .. } | Self::Cancelled { .. }, _) => Err(refused),
            (_, JobEvent::Fail { reason }) => Ok(Self::Failed { reason }),
            (_, JobEvent::Cancel { reason }) => Ok(Self::Cancelled { reason }),
            (_, JobEvent::Succeed) => Ok(Self::Succeeded),
            (_, JobEvent::Pause) => Ok(Self::Paused),
            (Self::Queued | Self::Placing { .. } | Self::Running { .. }, JobEvent::Place { stage }) => {
                Ok(Self::Placing { stage })
            }
            (Self::Placing { .. } | Self::Running { .. }, JobEvent::Run { stage }) => {
                Ok(Self::Running { stage })
            }
            (
                Self::Placing { stage } | Self::Running { stage } | Self::Preempting { stage },
                JobEvent::Preempt,
            ) => Ok(Self::Preempting { stage: *stage }),
            (Self::Preempting { .. }, JobEvent::Yield) | (Self::Paused, JobEvent::Resume) => Ok(Self::Queued),
            (Self::Queued, JobEvent::Run { .. } | JobEvent::Preempt)
            | (Self::Paused | Self::Preempting { .. }, JobEvent::Place { .. } | JobEvent::Run { .. })
            | (Self::Paused, JobEvent::Preempt)
            | (Self::Queued | Self::Placing { .. } | Self::Running { .. } | Self::Paused, JobEvent::Yield)
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
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Preempt => "preempt",
            Self::Yield => "yield",
            Self::Succeed => "succeed",
            Self::Fail { .. } => "fail",
            Self::Cancel { .. } => "cancel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states() -> Vec<JobState> {
        vec![
            JobState::Queued,
            JobState::Placing { stage: 0 },
            JobState::Running { stage: 0 },
            JobState::Paused,
            JobState::Preempting { stage: 0 },
            JobState::Succeeded,
            JobState::Failed { reason: "r".into() },
            JobState::Cancelled { reason: "r".into() },
        ]
    }

    fn events() -> Vec<JobEvent> {
        vec![
            JobEvent::Place { stage: 1 },
            JobEvent::Run { stage: 1 },
            JobEvent::Pause,
            JobEvent::Resume,
            JobEvent::Preempt,
            JobEvent::Yield,
            JobEvent::Succeed,
            JobEvent::Fail { reason: "f".into() },
            JobEvent::Cancel { reason: "c".into() },
        ]
    }

    /// The table of the module's doc, row by row; `-` is refused.
    const TABLE: [[&str; 9]; 8] = [
        ["placing", "-", "paused", "-", "-", "-", "succeeded", "failed", "cancelled"],
        ["placing", "running", "paused", "-", "preempting", "-", "succeeded", "failed", "cancelled"],
        ["placing", "running", "paused", "-", "preempting", "-", "succeeded", "failed", "cancelled"],
        ["-", "-", "paused", "queued", "-", "-", "succeeded", "failed", "cancelled"],
        ["-", "-", "paused", "-", "preempting", "queued", "succeeded", "failed", "cancelled"],
        ["-"; 9],
        ["-"; 9],
        ["-"; 9],
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
