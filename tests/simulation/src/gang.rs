//! Ranks that step together, across nodes: what is between them here is this table, where a collective is in life.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crescendo_proto::v1::{AttemptRef, StartAttempt};

use crate::changes::Changes;

/// Job, stage, generation.
pub type GangKey = (String, String, u64);

pub fn key(attempt: &AttemptRef) -> GangKey {
    (attempt.job_id.clone(), attempt.stage.clone(), attempt.generation)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Meeting,
    Stepping,
    /// To save and leave at the next step.
    Draining,
    /// All is saved after a drain.
    Drained,
    /// The final checkpoint is registered.
    Done,
    /// A member is gone.
    Broken,
}

#[derive(Debug)]
struct Gang {
    size: usize,
    members: usize,
    mood: Mood,
    step: u64,
}

/// The gangs there are. Clones are the same.
#[derive(Clone, Default)]
pub struct Gangs {
    gangs: Arc<Mutex<BTreeMap<GangKey, Gang>>>,
    changes: Changes,
}

/// A rank's place in its gang; the gang is broken when it goes while they step.
pub struct Membership {
    gangs: Gangs,
    key: GangKey,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.gangs.update(&self.key, |gang| {
            gang.members -= 1;
            // Those who wait to meet it do not know: they wait until their time is up.
            if matches!(gang.mood, Mood::Stepping | Mood::Draining) {
                gang.mood = Mood::Broken;
            }
        });
    }
}

impl Gangs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GangKey, Gang>> {
        self.gangs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, key: &GangKey, update: impl FnOnce(&mut Gang) -> T) -> Option<T> {
        let result = self.lock().get_mut(key).map(update);
        self.changes.tell();
        result
    }

    /// Joins the gang of an assignment.
    pub fn join(&self, start: &StartAttempt, attempt: &AttemptRef) -> Membership {
        let key = key(attempt);
        let step = start.resume_from.as_ref().map_or(0, |checkpoint| checkpoint.step);
        self.lock().entry(key.clone()).or_insert(Gang {
            size: start.ranks.len(),
            members: 0,
            mood: Mood::Meeting,
            step,
        });
        self.update(&key, |gang| {
            gang.members += 1;
            if gang.mood == Mood::Meeting && gang.members == gang.size {
                gang.mood = Mood::Stepping;
            }
        });
        Membership { gangs: self.clone(), key }
    }
}

impl Membership {
    pub fn mood(&self) -> Mood {
        self.gangs.lock().get(&self.key).map_or(Mood::Broken, |gang| gang.mood)
    }

    pub fn step(&self) -> u64 {
        self.gangs.lock().get(&self.key).map_or(0, |gang| gang.step)
    }

    /// Called by rank 0: all have done a step.
    pub fn advance(&self) -> u64 {
        self.gangs
            .update(&self.key, |gang| {
                gang.step += 1;
                gang.step
            })
            .unwrap_or(0)
    }

    /// The gang goes on to another mood, unless it is over.
    pub fn become_(&self, mood: Mood) {
        self.gangs.update(&self.key, |gang| {
            let open = matches!(gang.mood, Mood::Meeting | Mood::Stepping | Mood::Draining);
            // Ranks that have not met save nothing.
            if open && !(mood == Mood::Draining && gang.mood == Mood::Meeting) {
                gang.mood = mood;
            }
        });
    }

    /// Waits until the gang's mood is another than `now`.
    pub async fn mood_other_than(&self, now: Mood) -> Mood {
        self.gangs.changes.until(|| Some(self.mood()).filter(|mood| *mood != now)).await
    }
}
