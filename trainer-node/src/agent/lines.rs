//! What a rank process writes to its stdout and stderr, as log lines of the agent: bounded in length and in rate.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// Longer lines are cut.
const MAX_LINE_BYTES: usize = 8 * 1024;
/// Lines of one stream logged per second; what is over is counted.
const MAX_LINES_PER_SEC: u32 = 200;

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub level: tracing::Level,
    pub text: String,
}

/// Ranks log JSON; anything else comes from libraries, and is taken as it is, at `fallback`.
pub fn understand(line: &str, fallback: tracing::Level) -> Line {
    let json: Option<Value> = serde_json::from_str(line).ok();
    let fields = json.as_ref().and_then(|json| json.get("fields")).and_then(Value::as_object);
    let level =
        json.as_ref().and_then(|json| json.get("level")).and_then(Value::as_str).and_then(|l| l.parse().ok());
    let (Some(fields), Some(level)) = (fields, level) else {
        return Line { level: fallback, text: line.to_owned() };
    };
    let mut text = fields.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    for (name, value) in fields.iter().filter(|(name, _)| *name != "message") {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!(" {name}={value}"));
    }
    Line { level, text }
}

/// How many lines the present second has seen.
#[derive(Debug)]
struct Rate {
    second: Instant,
    lines: u32,
    dropped: u64,
}

impl Rate {
    /// Whether a line at `now` is within the rate, and how many were dropped before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.second) >= Duration::from_secs(1) {
            *self = Self { second: now, lines: 0, dropped: self.dropped };
        }
        if self.lines >= MAX_LINES_PER_SEC {
            self.dropped += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Logs every line of `stream` in the current span, until it ends.
pub async fn log(stream: impl AsyncRead + Unpin, fallback: tracing::Level) {
    let mut reader = BufReader::with_capacity(MAX_LINE_BYTES, stream);
    let mut rate = Rate { second: Instant::now(), lines: 0, dropped: 0 };
    let mut line = Vec::new();
    loop {
        // By hand, because a line without end must not fill the memory.
        let buffer = match reader.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(buffer) => buffer,
        };
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let taken = end.unwrap_or(buffer.len());
        let room = MAX_LINE_BYTES.saturating_sub(line.len());
        line.extend_from_slice(&buffer[..taken.min(room)]);
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() {
            emit(&line, fallback, &mut rate);
            line.clear();
        }
    }
    if !line.is_empty() {
        emit(&line, fallback, &mut rate);
    }
    if rate.dropped > 0 {
        tracing::warn!(lines = rate.dropped, "the rank wrote too fast: lines are dropped");
    }
}

fn emit(line: &[u8], fallback: tracing::Level, rate: &mut Rate) {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    match rate.admit(Instant::now()) {
        None => return,
        Some(0) => {}
        Some(lines) => tracing::warn!(lines, "the rank wrote too fast: lines are dropped"),
    }
    let Line { level, text } = understand(text, fallback);
    match level {
        tracing::Level::ERROR => tracing::error!("{text}"),
        tracing::Level::WARN => tracing::warn!("{text}"),
        tracing::Level::INFO => tracing::info!("{text}"),
        tracing::Level::DEBUG => tracing::debug!("{text}"),
        tracing::Level::TRACE => tracing::trace!("{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn a_ranks_own_lines_keep_their_level_and_fields() {
        let line = r#"{"timestamp":"t","level":"WARN","fields":{"message":"slow","step":7,"why":"x"},"span":{"rank":1}}"#;
        assert_eq!(
            understand(line, Level::INFO),
            Line { level: Level::WARN, text: "slow step=7 why=x".into() }
        );
        for other in ["plain text", "{}", "[1]", r#"{"level":"WARN"}"#] {
            assert_eq!(understand(other, Level::INFO), Line { level: Level::INFO, text: other.into() });
        }
    }

    #[test]
    fn the_rate_is_bounded() {
        let start = Instant::now();
        let mut rate = Rate { second: start, lines: 0, dropped: 0 };
        let admitted = (0..MAX_LINES_PER_SEC + 5).filter(|_| rate.admit(start).is_some()).count();
        assert_eq!(admitted, MAX_LINES_PER_SEC as usize);
        assert_eq!(rate.admit(start + Duration::from_secs(1)), Some(5));
        assert_eq!(rate.admit(start + Duration::from_secs(1)), Some(0));
    }
}
