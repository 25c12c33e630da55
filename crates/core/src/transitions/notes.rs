//! Notes of people on jobs.

use crate::error::RequestError;
use crate::ids::JobId;
use crate::note::{MAX_NOTE_CHARS, MAX_NOTES, Note, NotesRecord};
use crate::records::{Record, RecordKey, Write};
use crate::secret::redact;
use crate::state::ClusterState;

/// Adds a note to a job, whether it is open or has ended. The same text by the same person as the newest one adds nothing, so
/// that a note which is sent again is there once. Keys and tokens in it are not kept.
pub fn note_job(state: &ClusterState, id: &JobId, note: Note) -> Result<Vec<Write>, RequestError> {
    state.unreadable().check(&RecordKey::Notes(id.clone()).to_string())?;
    if state.job(id).is_none() {
        return Err(RequestError::NotFound { what: format!("job {id}") });
    }
    if state.deletion(id).is_some() {
        return Err(RequestError::TooLate { what: format!("job {id} is being deleted") });
    }
    let note = Note { text: note_text(&note.text)?, ..note };
    let mut notes = state.notes(id).map(|record| record.notes.clone()).unwrap_or_default();
    if notes.last().is_some_and(|last| last.by == note.by && last.text == note.text) {
        return Ok(Vec::new());
    }
    if notes.len() >= MAX_NOTES {
        return Err(RequestError::TooLate {
            what: format!("job {id} has {MAX_NOTES} notes, which is the most"),
        });
    }
    notes.push(note);
    Ok(vec![Write::Put(Record::Notes(NotesRecord { job: id.clone(), notes }))])
}

/// The text as it is kept: one line.
fn note_text(text: &str) -> Result<String, RequestError> {
    let text = redact(text);
    let words: Vec<&str> = text.split(|c: char| c.is_control() || c.is_whitespace()).collect();
    let line = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match line.chars().count() {
        0 => Err(RequestError::invalid("text", "must not be empty")),
        count if count > MAX_NOTE_CHARS => {
            let message = format!("must be at most {MAX_NOTE_CHARS} characters, and has {count}");
            Err(RequestError::invalid("text", message))
        }
        _ => Ok(line),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::{RequestId, Timestamp};
    use crate::job::JobState;
    use crate::records::JobRecord;

    fn id() -> JobId {
        JobId::parse("j").expect("valid")
    }

    fn with_a_job(job_state: JobState) -> ClusterState {
        let yaml = "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {name: uno}\nspec:\n  model: {preset: nano, weights: w}\n  stages: [{data: {source: compose, subjects: lib, pairs: 8}}]\n";
        let spec = Arc::new(crate::spec::parse(yaml.as_bytes()).expect("the spec is right"));
        let record = JobRecord {
            id: id(),
            request: RequestId::parse("r").expect("valid"),
            spec_json: Arc::from(&b"{}"[..]),
            spec,
            state: job_state,
            submitted_at: Timestamp(1),
            trace: None,
            started_at: None,
            finished_at: None,
        };
        let mut state = ClusterState::default();
        state.apply(Write::Put(Record::Job(record))).expect("it needs no other");
        state
    }

    fn note(state: &mut ClusterState, by: &str, text: &str) -> Result<usize, RequestError> {
        let note = Note { at: Timestamp(5), by: by.into(), text: text.into() };
        let writes = note_job(state, &id(), note)?;
        writes.into_iter().for_each(|write| state.apply(write).expect("its job is there"));
        Ok(state.notes(&id()).map_or(0, |record| record.notes.len()))
    }

    #[test]
    fn notes_are_kept_in_order_as_one_line_each_and_once() {
        let mut state = with_a_job(JobState::Succeeded);
        assert_eq!(note(&mut state, "ada", " blurred\nfrom  step 800 on\t"), Ok(1));
        assert_eq!(note(&mut state, "ada", "blurred from step 800 on"), Ok(1), "it was sent again");
        assert_eq!(note(&mut state, "bob", "blurred from step 800 on"), Ok(2), "another one says so too");
        let kept = &state.notes(&id()).expect("two").notes;
        let shown: Vec<(&str, &str)> =
            kept.iter().map(|note| (note.by.as_str(), note.text.as_str())).collect();
        assert_eq!(shown, [("ada", "blurred from step 800 on"), ("bob", "blurred from step 800 on")]);
        state.apply(Write::Delete(RecordKey::Job(id()))).expect("it goes");
        assert_eq!(state.notes(&id()), None, "they go with their job");
    }

    #[test]
    fn what_is_no_note_or_one_too_many_is_refused_with_the_bound() {
        let mut state = with_a_job(JobState::Queued);
        let said = |refused: Result<usize, RequestError>| refused.expect_err("refused").to_string();
        assert_eq!(said(note(&mut state, "ada", " \n ")), "text: must not be empty");
        let long = "é".repeat(MAX_NOTE_CHARS + 1);
        assert_eq!(
            said(note(&mut state, "ada", &long)),
            "text: must be at most 1000 characters, and has 1001"
        );
        assert_eq!(note(&mut state, "ada", &"é".repeat(MAX_NOTE_CHARS)), Ok(1));
        let secret = "with sk-proj-abcdefghijklmnopqrstuvwxyz0123456789ABCD";
        assert_eq!(note(&mut state, "ada", secret), Ok(2));
        let kept = state.notes(&id()).and_then(|record| record.notes.last()).expect("it is there");
        assert!(!kept.text.contains("abcdefghijklmnop"), "{kept:?}");
        for n in 2..MAX_NOTES {
            assert_eq!(note(&mut state, "ada", &n.to_string()), Ok(n + 1));
        }
        assert_eq!(said(note(&mut state, "ada", "more")), "job j has 32 notes, which is the most");
        let nobody = JobId::parse("k").expect("valid");
        let note = Note { at: Timestamp(5), by: "ada".into(), text: "t".into() };
        assert_eq!(note_job(&state, &nobody, note).expect_err("no job").to_string(), "job k does not exist");
    }
}
