//! Marks of people on pairs.

use std::collections::BTreeSet;

use crate::error::RequestError;
use crate::ids::{StageRef, Timestamp};
use crate::marks::{MAX_MARK_CHANGES, MAX_MARK_REASON_CHARS, MAX_MARKS_AT_ONCE, MarkChange, MarksRecord};
use crate::records::{Record, RecordKey, Write};
use crate::secret::redact;
use crate::state::ClusterState;

/// What somebody wants marked, or taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkOrder {
    /// A stage that reads the log; the marks are those of the log, for all who read it.
    pub stage: StageRef,
    /// Of pairs that can be read.
    pub indices: Vec<u64>,
    pub bad: bool,
    pub reason: String,
    pub by: String,
}

/// Marks pairs of a log, or takes marks back. A pair that is as it is to be is left as it is, so that an order which is sent again
/// changes nothing. Keys and tokens in the reason are not kept.
pub fn mark_pairs(
    state: &ClusterState,
    order: MarkOrder,
    now: Timestamp,
) -> Result<Vec<Write>, RequestError> {
    let MarkOrder { stage, indices, bad, reason, by } = order;
    let missing = || RequestError::NotFound { what: format!("stage {stage}") };
    state.stage(&stage).ok_or_else(missing)?;
    let log = state.read_log_of(&stage).ok_or_else(missing)?;
    let of = &log.of.id;
    state.unreadable().check(&RecordKey::Marks(of.clone()).to_string())?;
    if let Some(job) = [&stage.job, &of.job].into_iter().find(|job| state.deletion(job).is_some()) {
        return Err(RequestError::TooLate { what: format!("job {job} is being deleted") });
    }
    if indices.is_empty() || indices.len() > MAX_MARKS_AT_ONCE {
        let message = format!("must be 1 to {MAX_MARKS_AT_ONCE}, and are {}", indices.len());
        return Err(RequestError::invalid("indices", message));
    }
    let committed = log.committed();
    if let Some(beyond) = indices.iter().find(|index| **index >= committed) {
        let message = format!("the log has no pair {beyond}: it has {committed} so far");
        return Err(RequestError::invalid("indices", message));
    }
    let reason = mark_reason(&reason)?;
    let mut record = log
        .of
        .marks
        .as_deref()
        .cloned()
        .unwrap_or_else(|| MarksRecord { stage: of.clone(), changes: Vec::new() });
    let marked: BTreeSet<u64> = record.marked().into_keys().collect();
    let wanted: BTreeSet<u64> = indices.into_iter().filter(|index| marked.contains(index) != bad).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    if bad && marked.len() as u64 + wanted.len() as u64 >= log.of.log.committed() {
        let what = format!("nothing of the log of {of} would be left to train on");
        return Err(RequestError::TooLate { what });
    }
    if record.changes.len() + wanted.len() > MAX_MARK_CHANGES {
        let what = format!(
            "the marks of {of} have been changed {} times, and may be {MAX_MARK_CHANGES} times",
            record.changes.len()
        );
        return Err(RequestError::TooLate { what });
    }
    let change = |index| MarkChange { at: now, by: by.clone(), index, bad, reason: reason.clone() };
    record.changes.extend(wanted.into_iter().map(change));
    Ok(vec![Write::Put(Record::Marks(record))])
}

/// The reason as it is kept: one line.
fn mark_reason(reason: &str) -> Result<String, RequestError> {
    let text = redact(reason);
    let words: Vec<&str> = text.split(|c: char| c.is_control() || c.is_whitespace()).collect();
    let line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match line.chars().count() {
        count if count > MAX_MARK_REASON_CHARS => {
            let message = format!("must be at most {MAX_MARK_REASON_CHARS} characters, and has {count}");
            Err(RequestError::invalid("reason", message))
        }
        _ => Ok(line),
    }
}
