//! What a curator says of its stages: that it cannot take one up, and how far curation units are, on their way to the controller: of each stage the newest word alone, and nothing is lost
//! with what is not sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crescendo_proto::v1::{AssignmentRefused, StageRef, UnitReport};

/// Stages of which a word waits at most.
const MAX_STAGES: usize = 256;

/// Where a curator puts its words; [`crate::session::NodeSession`] sends them. Never waits.
#[derive(Clone, Debug, Default)]
pub struct UnitReports(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    units: BTreeMap<(String, String), UnitReport>,
    refused: BTreeMap<(String, String), AssignmentRefused>,
}

impl UnitReports {
    /// Replaces what waits of the same stage. Whoever calls this does so at a bounded rate: what is put is sent within a
    /// fraction of a second.
    pub fn put(&self, report: UnitReport) {
        let Some(stage) = &report.stage else { return };
        let key = (stage.job_id.clone(), stage.stage.clone());
        let waiting = &mut self.0.lock().unwrap_or_else(PoisonError::into_inner).units;
        if waiting.len() < MAX_STAGES || waiting.contains_key(&key) {
            waiting.insert(key, report);
        }
    }

    /// The stage cannot be taken up. If no session hears of it, the next one says what is taken up and what is not.
    pub fn refuse(&self, stage: &StageRef, reason: String) {
        let key = (stage.job_id.clone(), stage.stage.clone());
        let waiting = &mut self.0.lock().unwrap_or_else(PoisonError::into_inner).refused;
        if waiting.len() < MAX_STAGES || waiting.contains_key(&key) {
            waiting.insert(key, AssignmentRefused { stage: Some(stage.clone()), reason });
        }
    }

    pub(crate) fn take(&self) -> Vec<UnitReport> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut waiting.units).into_values().collect()
    }

    pub(crate) fn take_refused(&self) -> Vec<AssignmentRefused> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut waiting.refused).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_stage_is_kept_and_no_more() {
        let reports = UnitReports::default();
        let report = |job: usize, drawn| UnitReport {
            stage: Some(StageRef { job_id: format!("j{job:04}"), stage: "s".into() }),
            drawn,
            ..UnitReport::default()
        };
        for job in 0..MAX_STAGES + 5 {
            reports.put(report(job, 1));
            reports.put(report(job, 2));
        }
        reports.put(UnitReport::default());
        let taken = reports.take();
        assert_eq!((taken.len(), taken[0].drawn), (MAX_STAGES, 2));
        assert!(reports.take().is_empty());
        let stage = StageRef { job_id: "j".into(), stage: "s".into() };
        reports.refuse(&stage, "no".into());
        reports.refuse(&stage, "still not".into());
        let refused = AssignmentRefused { stage: Some(stage), reason: "still not".into() };
        assert_eq!(reports.take_refused(), [refused]);
        assert!(reports.take_refused().is_empty());
    }
}
