//! What happened, line by line, and one number that stands for all of it.

use std::fmt::Arguments;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines that are kept when not all are.
const TAIL: usize = 60;

#[derive(Debug, Default)]
struct Lines {
    hash: u64,
    count: u64,
    lines: std::collections::VecDeque<String>,
}

/// Clones are the same trace.
#[derive(Clone, Debug)]
pub struct Trace {
    began: Instant,
    keep_all: bool,
    lines: Arc<Mutex<Lines>>,
}

impl Trace {
    pub fn new(keep_all: bool) -> Self {
        Self { began: Instant::now(), keep_all, lines: Arc::default() }
    }

    /// Simulated time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn note(&self, what: Arguments<'_>) {
        let line = format!("{:>10.3} {what}", self.elapsed().as_secs_f64());
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        // FNV-1a.
        let start = if lines.count == 0 { 0xcbf2_9ce4_8422_2325 } else { lines.hash };
        lines.hash =
            line.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        lines.count += 1;
        if !self.keep_all && lines.lines.len() == TAIL {
            lines.lines.pop_front();
        }
        lines.lines.push_back(line);
    }

    /// Stands for every line so far.
    pub fn hash(&self) -> u64 {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).hash
    }

    pub fn count(&self) -> u64 {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).count
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).lines.iter().cloned().collect()
    }
}
