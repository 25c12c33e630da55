//! What is printed: tables and JSON, the progress of a job, spec problems with their place.

pub mod explained;
pub mod job;
pub mod json;
pub mod problems;
pub mod progress;
pub mod table;
pub mod words;

use std::fmt::Display;
use std::io::Write as _;

// Whoever reads the output may have gone. That ends the commands that only print (SIGPIPE does), but not `up`, which
// then has no one to tell and goes on: so no error is made of it here.

/// On standard output, as it is.
pub fn out(text: impl Display) {
    let mut stdout = std::io::stdout().lock();
    let _ = write!(stdout, "{text}");
    let _ = stdout.flush();
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
