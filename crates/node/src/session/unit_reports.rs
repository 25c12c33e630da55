//! How far curation units are, on their way to the controller: of each stage the newest word alone, and nothing is lost
//! with what is not sent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crescendo_proto::v1::UnitReport;

/// Stages of which a word waits at most.
const MAX_STAGES: usize = 256;

/// Where a curator puts its words; [`crate::session::NodeSession`] sends them. Never waits.
#[derive(Clone, Debug, Default)]
pub struct UnitReports(Arc<Mutex<BTreeMap<(String, String), UnitReport>>>);

impl UnitReports {
    /// Replaces what waits of the same stage. Whoever calls this does so at a bounded rate: what is put is sent within a
    /// fraction of a second.
    pub fn put(&self, report: UnitReport) {
        let Some(stage) = &report.stage else { return };
        let key = (stage.job_id.clone(), stage.stage.clone());
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MAX_STAGES || waiting.contains_key(&key) {
            waiting.insert(key, report);
        }
    }

    pub(crate) fn take(&self) -> Vec<UnitReport> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *waiting).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_proto::v1::StageRef;

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
    }
}
