//! What people have noted on a job.

use crate::ids::{JobId, Timestamp};

/// Notes of one job at most.
pub const MAX_NOTES: usize = 32;
/// Characters of one note at most.
pub const MAX_NOTE_CHARS: usize = 1000;

/// One line that somebody has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub at: Timestamp,
    /// The name that its writer had logged in by.
    pub by: String,
    pub text: String,
}

/// The notes of a job; there is no record of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotesRecord {
    pub job: JobId,
    /// The oldest first; at most [`MAX_NOTES`].
    pub notes: Vec<Note>,
}
