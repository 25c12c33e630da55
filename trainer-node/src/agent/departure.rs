//! What an agent keeps of its last stop: the attempts that left with it, and checkpoints that it could not have registered,
//! because no controller was there any more. Said to the controller at the next introduction.

use std::collections::BTreeMap;
use std::path::Path;

use crescendo_attempts::StageKey;
use crescendo_dataset::whole_file;
use crescendo_proto::v1::{AttemptRef, Checkpoint, Departure, LeftAttempt};
use prost::Message as _;

/// In the scratch folder.
const FILE: &str = "departure";

/// Checkpoints that are written and not known to be registered, the newest of each stage.
#[derive(Debug, Default)]
pub struct Unregistered(BTreeMap<StageKey, Checkpoint>);

impl Unregistered {
    pub fn put(&mut self, checkpoint: Checkpoint) {
        self.0.insert((checkpoint.job_id.clone(), checkpoint.stage.clone()), checkpoint);
    }

    /// The controller has decided on it.
    pub fn decided(&mut self, job_id: &str, stage: &str, step: u64) {
        let key = (job_id.to_owned(), stage.to_owned());
        if self.0.get(&key).is_some_and(|waits| waits.step <= step) {
            self.0.remove(&key);
        }
    }

    /// What has left, each with its checkpoint if it has one.
    pub fn of(&self, left: Vec<AttemptRef>) -> Vec<LeftAttempt> {
        let with_checkpoint = |attempt: AttemptRef| {
            let saved = self.0.get(&(attempt.job_id.clone(), attempt.stage.clone()));
            let checkpoint = saved.filter(|saved| saved.generation == attempt.generation).cloned();
            LeftAttempt { attempt: Some(attempt), checkpoint }
        };
        left.into_iter().map(with_checkpoint).collect()
    }
}

/// What left at the last stop; nothing if that cannot be read.
pub fn read(scratch: &Path) -> Vec<LeftAttempt> {
    let bytes = match std::fs::read(scratch.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "what left at the last stop cannot be read");
            return Vec::new();
        }
    };
    Departure::decode(&*bytes).map(|departure| departure.left).unwrap_or_else(|error| {
        tracing::warn!(%error, "what left at the last stop is not understood");
        Vec::new()
    })
}

/// Keeps what leaves for the next start. A disk that takes nothing costs the steps since the last checkpoint that is registered.
pub fn write(scratch: &Path, left: Vec<LeftAttempt>) {
    let kept = scratch.join(FILE);
    if let Err(error) = whole_file::write(&kept, &Departure { left }.encode_to_vec()) {
        tracing::warn!(%error, path = %kept.display(), "what leaves cannot be kept for the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(job: &str, generation: u64) -> AttemptRef {
        AttemptRef { job_id: job.into(), stage: "s".into(), generation }
    }

    #[test]
    fn what_leaves_is_read_at_the_next_start_with_what_was_not_registered() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(read(scratch.path()), []);
        let saved = |job: &str, step| Checkpoint {
            job_id: job.into(),
            stage: "s".into(),
            generation: 2,
            step,
            ..Checkpoint::default()
        };
        let mut unregistered = Unregistered::default();
        for (job, step) in [("a", 5), ("a", 9), ("b", 4), ("c", 7)] {
            unregistered.put(saved(job, step));
        }
        unregistered.decided("b", "s", 4);
        unregistered.decided("a", "s", 5);
        let left = unregistered.of(vec![attempt("a", 2), attempt("b", 2), attempt("c", 3)]);
        write(scratch.path(), left.clone());
        assert_eq!(read(scratch.path()), left);
        let steps: Vec<Option<u64>> =
            left.iter().map(|left| left.checkpoint.as_ref().map(|saved| saved.step)).collect();
        assert_eq!(steps, [Some(9), None, None], "another generation's is not its own");
        std::fs::write(scratch.path().join(FILE), [255, 255]).unwrap();
        assert_eq!(read(scratch.path()), []);
    }
}
