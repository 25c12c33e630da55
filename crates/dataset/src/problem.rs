//! What is wrong with a library or a folder of pictures.

use std::fmt::{self, Write as _};

/// Whether the rest can be used as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The subject or the picture cannot be used.
    Error,
    /// It can, but perhaps not as it is meant.
    Warning,
}

impl Severity {
    pub fn word(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// One thing that is wrong, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// What it is about: a file below the folder, an entry of the index, or the whole; e.g. "red-fox.png".
    pub place: String,
    pub reason: String,
}

impl Problem {
    pub fn error(place: impl Into<String>, reason: impl Into<String>) -> Problem {
        Problem { severity: Severity::Error, place: place.into(), reason: reason.into() }
    }

    pub fn warning(place: impl Into<String>, reason: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, place: place.into(), reason: reason.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names come from files: an escape in one is shown, and not done.
        for (n, text) in [&self.place, &self.reason].into_iter().enumerate() {
            if n > 0 {
                f.write_str(": ")?;
            }
            for character in text.chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    f.write_char(character)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_name_would_do_to_a_terminal_is_shown() {
        let problem = Problem::error("a\u{1b}[2Jb.png", "it is\nno picture: é");
        assert_eq!(problem.to_string(), "a\\u{1b}[2Jb.png: it is\\nno picture: é");
    }
}
