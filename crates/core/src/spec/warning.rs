//! One thing that is said of a spec without failing it.

use std::fmt;

use super::{Problem, write_place};

/// One thing in a spec that is allowed and hardly meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// Line in the YAML, from 1; 0 when it concerns no line.
    pub line: u32,
    /// Column in the YAML, in characters from 1; 0 when it concerns no line.
    pub column: u32,
    /// Path of the field, e.g. `spec.stages[1].train.warmupSteps`; empty when it concerns the whole file.
    pub path: String,
    /// What will happen, and what to do about it.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, self.line, self.column, &self.path)?;
        f.write_str(&self.message)
    }
}

/// Both are shown, and travel, alike.
impl From<Warning> for Problem {
    fn from(Warning { line, column, path, message }: Warning) -> Problem {
        Problem { line, column, path, message }
    }
}
