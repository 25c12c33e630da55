//! How far a drawing is, for those who wait for it: each step on a terminal, elsewhere a line now and then.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::{Duration, Instant};

/// Between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Tells of the steps of one picture, on the standard error.
pub struct Steps {
    on_terminal: bool,
    /// What stands before the steps: which picture of several.
    lead: String,
    told: Instant,
}

impl Steps {
    /// For picture `number` of `pictures`, from 0.
    pub fn of(number: usize, pictures: usize) -> Self {
        let lead =
            if pictures > 1 { format!("picture {} of {pictures}, ", number + 1) } else { String::new() };
        Self { on_terminal: stderr().is_terminal(), lead, told: Instant::now() }
    }

    /// Step `index` of `total` is done, from 0.
    pub fn done(&mut self, index: usize, total: usize) {
        let words = format!("{}step {} of {total}", self.lead, index + 1);
        if self.on_terminal {
            // Over the one before, which is never longer. What cannot be shown is no reason to stop drawing.
            let _ = write!(stderr(), "\r{words}").and_then(|()| stderr().flush());
        } else if self.told.elapsed() >= BETWEEN_LINES {
            self.told = Instant::now();
            eprintln!("{words}");
        }
    }

    /// Leaves the line to what comes next.
    pub fn end(self) {
        if self.on_terminal {
            let _ = write!(stderr(), "\r\x1b[K").and_then(|()| stderr().flush());
        }
    }
}
