//! What is written to stderr, what of it goes on to the controller, and what becomes traces.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{LogArgs, LogFormat};
use crate::forward::LogBuffer;
use crate::trace::{self, Traces};

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("log filter {filter}: {reason}")]
    Filter { filter: String, reason: String },
    #[error("cannot make the counters of traces")]
    Traces(#[source] prometheus::Error),
    #[error("logging is set up already")]
    Twice,
}

/// Sets up the process's logging. With `forward`, lines inside a span (or of an event) that has a `job` field are also
/// kept there for the controller. `service` is the kind of process and `instance` which one, for traces: what is
/// returned has to be run for those to leave.
pub fn init(
    service: &str,
    instance: &str,
    args: &LogArgs,
    forward: Option<&LogBuffer>,
) -> Result<Traces, LoggingError> {
    let filter = || {
        let filter = EnvFilter::try_new(&args.log_filter).map_err(|error| LoggingError::Filter {
            filter: args.log_filter.clone(),
            reason: error.to_string(),
        })?;
        // Spans of traces are there beside the log, and would only lengthen its lines.
        Ok(filter.and(filter_fn(|metadata| metadata.target() != trace::TARGET)))
    };
    let (traces, spans) = Traces::new(&args.trace, service, instance).map_err(LoggingError::Traces)?;
    let stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let stderr = match args.log_format {
        LogFormat::Text => stderr.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => stderr.json().flatten_event(false).boxed(),
    };
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
    layers.extend(spans);
    layers.push(stderr.with_filter(filter()?).boxed());
    if let Some(buffer) = forward {
        layers.push(buffer.layer().with_filter(filter()?).boxed());
    }
    tracing_subscriber::registry().with(layers).try_init().map_err(|_| LoggingError::Twice)?;
    Ok(traces)
}
