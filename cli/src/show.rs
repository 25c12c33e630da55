//! What is printed: tables and JSON, the progress of a job, spec problems with their place.

pub mod curation;
pub mod explained;
pub mod job;
pub mod json;
pub mod problems;
pub mod progress;
pub mod table;
pub mod width;
pub mod words;

use std::fmt::Display;
use std::io::{ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the command ends when no one reads its output any more.
static ENDS_WITH_READER: AtomicBool = AtomicBool::new(false);
/// As shells report a program that has died of SIGPIPE.
const READER_GONE: i32 = 141;

/// From now on `crescendo watch JOB | head -1` ends with `head`. Not for `up`, which has a cluster to keep.
///
/// The signal itself stays ignored: it would also come of a connection that a controller has just closed, and end the
/// command without a word.
pub fn end_with_the_reader() {
    ENDS_WITH_READER.store(true, Ordering::Relaxed);
}

/// On standard output, as it is.
pub fn out(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    let written = write!(stdout, "{text}").and_then(|()| stdout.flush());
    let gone = written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe);
    if gone && ENDS_WITH_READER.load(Ordering::Relaxed) {
        std::process::exit(READER_GONE);
    }
}

/// A line on standard output.
pub fn outln(text: impl Display) {
    out(format_args!("{text}\n"));
}

/// On standard error, as it is.
pub fn err(text: impl Display) {
    let _ = write!(std::io::stderr().lock(), "{text}");
}

/// A line on standard error.
pub fn errln(text: impl Display) {
    err(format_args!("{text}\n"));
}
