//! What is written to stderr, and what of it goes on to the controller.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{LogArgs, LogFormat};
use crate::forward::LogBuffer;

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("log filter {filter}: {reason}")]
    Filter { filter: String, reason: String },
    #[error("logging is set up already")]
    Twice,
}

/// Sets up the process's logging. With `forward`, lines inside a span (or of an event) that has a `job` field are also
/// kept there for the controller.
pub fn init(args: &LogArgs, forward: Option<&LogBuffer>) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(&args.log_filter).map_err(|error| LoggingError::Filter {
        filter: args.log_filter.clone(),
        reason: error.to_string(),
    })?;
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let stderr = match args.log_format {
        LogFormat::Text => stderr.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => stderr.json().flatten_event(false).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(stderr)
        .with(forward.map(LogBuffer::layer))
        .try_init()
        .map_err(|_| LoggingError::Twice)
}
