//! What is written to stderr, what of it goes on to the controller, and what becomes traces. Nothing of it has secrets in it
//! that can be known as such, but spans of traces, which name what they are about and nothing else.

use std::io::{self, Write};

use crescendo_core::secret::redact;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::runtime::args::{LogArgs, LogFormat};
use crate::telemetry::log_shipping::LogBuffer;
use crate::telemetry::trace::{self, Traces};

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
        let filter = EnvFilter::try_new(bounded(&args.log_filter)).map_err(|error| LoggingError::Filter {
            filter: args.log_filter.clone(),
            reason: error.to_string(),
        })?;
        // Spans of traces are there beside the log, and would only lengthen its lines.
        Ok(filter.and(filter_fn(|metadata| metadata.target() != trace::TARGET)))
    };
    let (traces, spans) = Traces::new(&args.trace, service, instance).map_err(LoggingError::Traces)?;
    let stderr = tracing_subscriber::fmt::layer().with_writer(Redacted::<io::Stderr>::stderr);
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

/// The filter without what peers can have logged as often as they like: the HTTP/2 library warns of each frame that
/// makes no sense. A filter that names the library is left as it is.
fn bounded(filter: &str) -> String {
    if filter.split(',').any(|part| ["h2=", "h2::", "h2["].iter().any(|name| part.trim().starts_with(name))) {
        return filter.into();
    }
    format!("{filter},h2=error")
}

/// Takes secrets out of what is written; each line comes as one piece.
struct Redacted<W>(W);

impl Redacted<io::Stderr> {
    fn stderr() -> Self {
        Self(io::stderr())
    }
}

impl<W: Write> Write for Redacted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(redact(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn peers_cannot_fill_the_log() {
        assert_eq!(bounded("info"), "info,h2=error");
        assert_eq!(bounded("warn,crescendo_node=debug"), "warn,crescendo_node=debug,h2=error");
        for own in ["info,h2=debug", "h2::proto=trace, info"] {
            assert_eq!(bounded(own), own);
            assert!(EnvFilter::try_new(bounded(own)).is_ok());
        }
    }

    #[test]
    fn no_format_lets_a_secret_through() {
        let out = Shared::default();
        for json in [false, true] {
            let out = out.clone();
            let layer = tracing_subscriber::fmt::layer().with_ansi(false);
            let layer = layer.with_writer(move || Redacted(out.clone()));
            let layer = if json { layer.json().boxed() } else { layer.boxed() };
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                let url = "https://me:hunter2@host/v1?token=hunter2";
                let span = tracing::info_span!("call", url, api_key = "hunter2 and more");
                let _entered = span.enter();
                let error = io::Error::other(format!("GET {url}: password=\"hunter2\""));
                tracing::warn!(url, error = &error as &dyn std::error::Error, "failed: {url} {error:?}");
            });
        }
        let written =
            String::from_utf8(out.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap();
        assert!(written.lines().count() == 2 && written.contains("[redacted]@host/v1"), "{written}");
        assert!(!written.contains("hunter2"), "{written}");
    }
}
