//! Where the ranks of an attempt meet: rank 0 publishes, the others wait. Generations never mix.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crescendo_proto::v1::AttemptRef;
use tokio::sync::watch;
use tonic::Status;

/// Largest token.
const MAX_TOKEN_BYTES: usize = 4096;
/// Stages remembered at most; the one touched longest ago goes.
const MAX_STAGES: usize = 1024;
/// Longest single wait.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Meeting {
    generation: u64,
    token: Option<Vec<u8>>,
    touched: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Rendezvous {
    meetings: Mutex<BTreeMap<(String, String), Meeting>>,
    changed: watch::Sender<u64>,
}

impl Default for Rendezvous {
    fn default() -> Self {
        Self { meetings: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Rendezvous {
    /// From now on, older generations of the stage meet no more here.
    pub fn open(&self, attempt: &AttemptRef) -> Result<(), Status> {
        self.enter(attempt, None)
    }

    pub fn publish(&self, attempt: &AttemptRef, token: Vec<u8>) -> Result<(), Status> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(Status::invalid_argument(format!("token: 1 to {MAX_TOKEN_BYTES} bytes")));
        }
        self.enter(attempt, Some(token))
    }

    fn enter(&self, attempt: &AttemptRef, token: Option<Vec<u8>>) -> Result<(), Status> {
        let mut meetings = self.meetings();
        let touched = *self.changed.borrow() + 1;
        let key = (attempt.job_id.clone(), attempt.stage.clone());
        let meeting = meetings.entry(key).or_insert(Meeting { generation: 0, token: None, touched });
        if meeting.generation > attempt.generation {
            return Err(old(meeting.generation));
        }
        if meeting.generation < attempt.generation {
            *meeting = Meeting { generation: attempt.generation, token: None, touched };
        }
        meeting.touched = touched;
        if token.is_some() {
            meeting.token = token;
        }
        if meetings.len() > MAX_STAGES {
            let oldest =
                meetings.iter().min_by_key(|(_, meeting)| meeting.touched).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                meetings.remove(&oldest);
            }
        }
        drop(meetings);
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// The token of exactly this generation, once it is there.
    pub async fn wait(&self, attempt: &AttemptRef, limit: Duration) -> Result<Vec<u8>, Status> {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            loop {
                changed.borrow_and_update();
                if let Some(token) = self.look(attempt)? {
                    return Ok(token);
                }
                if changed.changed().await.is_err() {
                    return Err(Status::unavailable("the agent stops"));
                }
            }
        };
        tokio::time::timeout(limit.min(MAX_WAIT), waiting)
            .await
            .map_err(|_| Status::deadline_exceeded("rank 0 has not published yet"))?
    }

    fn look(&self, attempt: &AttemptRef) -> Result<Option<Vec<u8>>, Status> {
        let meetings = self.meetings();
        match meetings.get(&(attempt.job_id.clone(), attempt.stage.clone())) {
            Some(meeting) if meeting.generation > attempt.generation => Err(old(meeting.generation)),
            Some(meeting) if meeting.generation == attempt.generation => Ok(meeting.token.clone()),
            _ => Ok(None),
        }
    }

    fn meetings(&self) -> MutexGuard<'_, BTreeMap<(String, String), Meeting>> {
        // Entries are replaced whole, so a panic elsewhere leaves nothing half done.
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn old(newest: u64) -> Status {
    Status::failed_precondition(format!("a newer generation meets here: {newest}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn attempt(generation: u64) -> AttemptRef {
        AttemptRef { job_id: "j".into(), stage: "s".into(), generation }
    }

    #[tokio::test]
    async fn the_others_wait_for_rank_0() {
        let rendezvous = Rendezvous::default();
        let at_2 = attempt(2);
        let (token, ()) = tokio::join!(rendezvous.wait(&at_2, Duration::from_secs(5)), async {
            // An older generation's token is not what they wait for.
            rendezvous.publish(&attempt(1), b"old".to_vec()).unwrap();
            rendezvous.publish(&attempt(2), b"new".to_vec()).unwrap();
        });
        assert_eq!(token.unwrap(), b"new");
    }

    #[tokio::test]
    async fn an_old_generation_is_turned_away() {
        let rendezvous = Rendezvous::default();
        rendezvous.open(&attempt(3)).unwrap();
        assert_eq!(
            rendezvous.publish(&attempt(2), b"t".to_vec()).unwrap_err().code(),
            Code::FailedPrecondition
        );
        let wait = rendezvous.wait(&attempt(2), Duration::from_secs(5)).await;
        assert_eq!(wait.unwrap_err().code(), Code::FailedPrecondition);
        let wait = rendezvous.wait(&attempt(3), Duration::from_millis(5)).await;
        assert_eq!(wait.unwrap_err().code(), Code::DeadlineExceeded);
        assert_eq!(rendezvous.publish(&attempt(3), vec![0; 5000]).unwrap_err().code(), Code::InvalidArgument);
    }
}
