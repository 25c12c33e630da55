//! The file as it is open now. redb takes nothing more from a file after an error of its disk, until that is opened anew: here it
//! is, once there is room again, so that a full disk needs no restart.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redb::Database;

use super::file::{self, Failure};
use crate::error::StoreError;

/// Limit of the wait for reads that are under way.
const READS_END: Duration = Duration::from_secs(5);
const READS_LOOK: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Handle {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Open(Arc<Database>),
    Failed(Failed),
    Closed,
}

/// The disk has failed, and the file is not open anew yet.
#[derive(Debug)]
struct Failed {
    /// Kept until the reads that are under way are done with it: one process has the file open once.
    left: Option<Arc<Database>>,
    cause: String,
    /// Room may come back by itself; other failures want a person to look at the disk.
    passing: bool,
}

/// What a failure of the disk is, in words, and whether it may pass. None if the failure is none of the disk's, or only follows from
/// one: the first is noted where it happens, and alone says whether it may pass.
fn disk_failure(failure: &Failure) -> Option<(String, bool)> {
    match failure {
        Failure::Storage(redb::Error::Io(error)) => {
            let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::ReadOnlyFilesystem];
            Some((error.to_string(), full.contains(&error.kind())))
        }
        Failure::Storage(_) | Failure::Store(_) => None,
    }
}

impl Handle {
    pub fn new(path: PathBuf, db: Database) -> Self {
        Self { path, state: Mutex::new(State::Open(Arc::new(db))) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database, to be given back soon: the file is opened anew only once nobody has it.
    pub fn database(&self) -> Result<Arc<Database>, StoreError> {
        match &*self.state() {
            State::Open(db) => Ok(db.clone()),
            State::Failed(Failed { cause, passing, .. }) => {
                let path = self.path.display();
                let then = if *passing { "" } else { "; see to its disk, then restart this process" };
                Err(StoreError::NotApplied(format!("{path} cannot be used: {cause}{then}").into()))
            }
            State::Closed => Err(StoreError::Closed),
        }
    }

    /// Whether opening the file anew may help.
    pub fn wants_opening(&self) -> bool {
        matches!(&*self.state(), State::Failed(Failed { passing: true, .. }))
    }

    /// Notes a failure, if it is one of the disk: from then on nothing is read or written until the file is opened anew.
    pub fn note(&self, failure: &Failure) {
        let Some((cause, passing)) = disk_failure(failure) else { return };
        let mut state = self.state();
        if let State::Open(db) = &*state {
            let left = Some(db.clone());
            *state = State::Failed(Failed { left, cause, passing });
        }
    }

    /// Opens the file anew after a failure that may pass. Blocks for as long as that takes: the file is checked first.
    pub fn open_anew(&self) -> Result<(), StoreError> {
        let left = match &mut *self.state() {
            State::Failed(Failed { left, passing: true, .. }) => left.take(),
            State::Open(_) | State::Failed(_) | State::Closed => None,
        };
        if !self.wants_opening() {
            return self.database().map(drop);
        }
        let opened = match left.map(wait_for_reads) {
            Some(Err(left)) => Err(Some(left)),
            Some(Ok(())) | None => file::open_again(&self.path).map_err(|failure| {
                self.note_again(&failure);
                None
            }),
        };
        let mut state = self.state();
        // It may have been closed meanwhile.
        if let State::Failed(failed) = &mut *state {
            match opened {
                Ok(db) => {
                    *state = State::Open(Arc::new(db));
                    tracing::info!(path = %self.path.display(), "the embedded store is open again");
                }
                Err(left) => failed.left = left,
            }
        }
        drop(state);
        self.database().map(drop)
    }

    /// The file could not be opened anew for another reason than before.
    fn note_again(&self, failure: &Failure) {
        if let (Some((now, still_passing)), State::Failed(Failed { cause, passing, .. })) =
            (disk_failure(failure), &mut *self.state())
        {
            (*cause, *passing) = (now, still_passing);
        }
    }

    pub fn close(&self) {
        *self.state() = State::Closed;
    }
}

/// Closes the database once nobody reads from it any more, or gives it back.
fn wait_for_reads(db: Arc<Database>) -> Result<(), Arc<Database>> {
    let began = Instant::now();
    let mut db = db;
    loop {
        db = match Arc::try_unwrap(db) {
            Ok(_closed) => return Ok(()),
            Err(shared) if began.elapsed() >= READS_END => return Err(shared),
            Err(shared) => shared,
        };
        std::thread::sleep(READS_LOOK);
    }
}
