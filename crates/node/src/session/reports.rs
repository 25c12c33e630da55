//! The newest report of each attempt on its way to the controller.
//!
//! A report says what *is*, not what happened, so a newer one of the same attempt replaces an older one that has not
//! been sent: progress coalesces, a state is never lost, and the table is as small as the number of stages that the
//! node works for. A new session sends everything again, because the controller may have forgotten it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crescendo_proto::v1::AttemptReport;
use tokio::sync::Notify;

/// Shortest time between two reports of an attempt that differ in progress only.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Stages that are remembered at most; beyond it the one reported longest ago is dropped.
const MAX_STAGES: usize = 1024;

#[derive(Debug)]
struct Entry {
    report: AttemptReport,
    /// Not sent yet in this session, or changed since.
    due: bool,
    /// Phase and time of the report sent last in this session.
    sent: Option<(i32, Instant)>,
    /// Order of the last change.
    changed: u64,
}

/// Pure table behind [`ReportSink`]; keyed by job and stage.
#[derive(Debug, Default)]
pub struct ReportTable {
    entries: BTreeMap<(String, String), Entry>,
    changes: u64,
}

impl ReportTable {
    /// Takes a report. One of an older generation than what is known is ignored.
    pub fn put(&mut self, report: AttemptReport) {
        let Some(attempt) = &report.attempt else { return };
        let key = (attempt.job_id.clone(), attempt.stage.clone());
        self.changes += 1;
        let mut sent = None;
        if let Some(known) = self.entries.get(&key) {
            let generation = known.report.attempt.as_ref().map_or(0, |known| known.generation);
            if attempt.generation < generation {
                return;
            }
            if attempt.generation == generation {
                sent = known.sent;
            }
        }
        self.entries.insert(key, Entry { report, due: true, sent, changed: self.changes });
        if self.entries.len() > MAX_STAGES {
            let oldest =
                self.entries.iter().min_by_key(|(_, entry)| entry.changed).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
    }

    /// Everything is due again: the other side of a new session knows nothing of it.
    pub fn session_opened(&mut self) {
        for entry in self.entries.values_mut() {
            entry.due = true;
            entry.sent = None;
        }
    }

    /// What is not sent yet is to be sent at once: there may be no later.
    pub fn hurry(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.due) {
            entry.sent = None;
        }
    }

    /// The next report to send at `now`: changes of phase at once, progress not more often than
    /// [`PROGRESS_INTERVAL`].
    pub fn take_due(&mut self, now: Instant) -> Option<AttemptReport> {
        let entry =
            self.entries.values_mut().filter(|entry| entry.is_due(now)).min_by_key(|entry| entry.changed)?;
        entry.due = false;
        entry.sent = Some((entry.report.phase, now));
        Some(entry.report.clone())
    }
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        self.due
            && match self.sent {
                Some((phase, at)) if phase == self.report.phase => {
                    now.saturating_duration_since(at) >= PROGRESS_INTERVAL
                }
                _ => true,
            }
    }
}

/// Where a node puts its reports; [`crate::session::NodeSession`] sends them. Never waits.
#[derive(Clone, Debug, Default)]
pub struct ReportSink {
    table: Arc<Mutex<ReportTable>>,
    changed: Arc<Notify>,
}

impl ReportSink {
    pub fn put(&self, report: AttemptReport) {
        self.table().put(report);
        self.changed.notify_one();
    }

    /// Waits for a call of [`ReportSink::put`]. Safe to cancel.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, ReportTable> {
        // The table is whole after every method, so a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crescendo_proto::v1::{AttemptPhase, AttemptRef};

    fn report(stage: &str, generation: u64, phase: AttemptPhase, step: u64) -> AttemptReport {
        AttemptReport {
            attempt: Some(AttemptRef { job_id: "job".into(), stage: stage.into(), generation }),
            phase: phase.into(),
            step,
            ..AttemptReport::default()
        }
    }

    #[test]
    fn progress_coalesces_and_states_are_sent_at_once() {
        let (mut table, start) = (ReportTable::default(), Instant::now());
        table.put(report("a", 1, AttemptPhase::Running, 1));
        assert_eq!(table.take_due(start).unwrap().step, 1);
        table.put(report("a", 1, AttemptPhase::Running, 2));
        table.put(report("a", 1, AttemptPhase::Running, 3));
        assert!(table.take_due(start).is_none());
        assert_eq!(table.take_due(start + PROGRESS_INTERVAL).unwrap().step, 3);
        assert!(table.take_due(start + PROGRESS_INTERVAL * 2).is_none());
        table.put(report("a", 1, AttemptPhase::Failed, 4));
        assert_eq!(table.take_due(start + PROGRESS_INTERVAL).unwrap().step, 4);
    }

    #[test]
    fn a_hurry_sends_what_is_left_and_no_more() {
        let (mut table, start) = (ReportTable::default(), Instant::now());
        table.put(report("a", 1, AttemptPhase::Running, 1));
        table.put(report("b", 1, AttemptPhase::Running, 1));
        assert!(table.take_due(start).is_some() && table.take_due(start).is_some());
        table.put(report("a", 1, AttemptPhase::Running, 2));
        assert!(table.take_due(start).is_none());
        table.hurry();
        assert_eq!(table.take_due(start).map(|report| report.step), Some(2));
        assert!(table.take_due(start).is_none());
    }

    #[test]
    fn a_new_session_sends_all_again() {
        let (mut table, start) = (ReportTable::default(), Instant::now());
        table.put(report("a", 1, AttemptPhase::Failed, 1));
        table.put(report("b", 1, AttemptPhase::Running, 1));
        assert!(table.take_due(start).is_some() && table.take_due(start).is_some());
        assert!(table.take_due(start).is_none());
        table.session_opened();
        assert!(table.take_due(start).is_some() && table.take_due(start).is_some());
    }

    #[test]
    fn an_older_generation_changes_nothing() {
        let (mut table, start) = (ReportTable::default(), Instant::now());
        table.put(report("a", 2, AttemptPhase::Starting, 0));
        table.put(report("a", 1, AttemptPhase::Failed, 9));
        assert_eq!(table.take_due(start).unwrap().attempt.unwrap().generation, 2);
        assert!(table.take_due(start + PROGRESS_INTERVAL).is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = ReportTable::default();
        for stage in 0..MAX_STAGES + 10 {
            table.put(report(&format!("{stage}"), 1, AttemptPhase::Stopped, 0));
        }
        assert_eq!(table.entries.len(), MAX_STAGES);
        assert!(!table.entries.contains_key(&("job".to_owned(), "0".to_owned())));
    }
}
