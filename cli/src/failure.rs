//! What can go wrong, and the exit code of each. Scripts rely on the codes; `crescendo --help` lists them.

use std::fmt::Display;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Wrong use that clap cannot see.
    #[error("{0}")]
    Usage(String),
    /// The spec has problems, which have been printed.
    #[error("the spec is not valid")]
    InvalidSpec,
    /// The job ended, but not well.
    #[error("job {job_id} {state}{}", because(.reason))]
    JobEnded { job_id: String, state: &'static str, reason: String },
    /// The controller does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// No login, or one that may not do this.
    #[error("{0}")]
    NotAllowed(String),
    /// Stopped from the keyboard.
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Other(String),
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

impl Failure {
    pub fn other(message: impl Into<String>) -> Failure {
        Failure::Other(message.into())
    }

    /// For `map_err`: "what: cause".
    pub fn from_error<E: Display>(what: impl Display) -> impl FnOnce(E) -> Failure {
        move |error| Failure::Other(format!("{what}: {error}"))
    }

    /// What a controller refused.
    pub fn refused(status: &tonic::Status) -> Failure {
        let message = status.message();
        let message = if message.is_empty() { status.code().to_string() } else { message.to_owned() };
        match status.code() {
            tonic::Code::Unauthenticated => Failure::NotAllowed(format!(
                "{message}; log in with `crescendo login`, or give a token with --token-file or CRESCENDO_TOKEN"
            )),
            tonic::Code::PermissionDenied => {
                Failure::NotAllowed(format!("{message}; `crescendo whoami` shows who you are"))
            }
            _ => Failure::Other(message),
        }
    }

    /// The same failure, with what else is to be said.
    #[must_use]
    pub fn and(self, more: &str) -> Failure {
        let said = |message: &dyn Display| format!("{message}; {more}");
        match self {
            Failure::Usage(message) => Failure::Usage(said(&message)),
            Failure::Unreachable(message) => Failure::Unreachable(said(&message)),
            Failure::NotAllowed(message) => Failure::NotAllowed(said(&message)),
            Failure::InvalidSpec | Failure::JobEnded { .. } | Failure::Interrupted | Failure::Other(_) => {
                Failure::Other(said(&self))
            }
        }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Other(_) => 1,
            Failure::Usage(_) => 2,
            Failure::InvalidSpec => 3,
            Failure::JobEnded { .. } => 4,
            Failure::Unreachable(_) => 5,
            Failure::NotAllowed(_) => 6,
            Failure::Interrupted => 130,
        }
    }

    /// The line to print; nothing where all has been said.
    pub fn message(&self) -> Option<String> {
        match self {
            Failure::InvalidSpec | Failure::Interrupted => None,
            Failure::Usage(_)
            | Failure::JobEnded { .. }
            | Failure::Unreachable(_)
            | Failure::NotAllowed(_)
            | Failure::Other(_) => Some(self.to_string()),
        }
    }
}
