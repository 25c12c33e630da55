//! What happened at each step since the stage began; kept with every checkpoint as `history.jsonl`.

use serde::{Deserialize, Serialize};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimizer steps done, from 1.
    pub step: u64,
    /// Mean over the global batch.
    pub loss: f64,
    /// L2 norm of the averaged gradients before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Wall time of the step.
    pub seconds: f64,
    /// When it was done, seconds since the Unix epoch; 0 in histories from before this was kept.
    #[serde(default)]
    pub at_unix_secs: f64,
}

#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct HistoryError {
    line: usize,
    reason: String,
}

/// Lines of the steps 1 to n without gaps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    text: String,
    steps: u64,
}

impl History {
    /// Reads what a checkpoint of `step` steps kept.
    pub fn parse(content: &[u8], step: u64) -> Result<Self, HistoryError> {
        let problem = |line: usize, reason: String| HistoryError { line: line + 1, reason };
        let text = std::str::from_utf8(content).map_err(|error| problem(0, error.to_string()))?;
        let mut history = Self::default();
        for (number, line) in text.lines().enumerate() {
            let record: StepRecord =
                serde_json::from_str(line).map_err(|error| problem(number, error.to_string()))?;
            if record.step != history.steps + 1 {
                return Err(problem(number, format!("step {} follows step {}", record.step, history.steps)));
            }
            history.push(&record);
        }
        if history.steps != step {
            return Err(problem(
                text.lines().count(),
                format!("ends at step {}, not at {step}", history.steps),
            ));
        }
        Ok(history)
    }

    pub fn push(&mut self, record: &StepRecord) {
        // Not finite numbers have no JSON form; they end training before they get here.
        if let Ok(line) = serde_json::to_string(record) {
            self.text.push_str(&line);
            self.text.push('\n');
            self.steps = record.step;
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.text.clone().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord { step, loss: 0.5, grad_norm: 1.25, learning_rate: 1e-4, seconds: 0.1, at_unix_secs: 7.5 }
    }

    #[test]
    fn survives_a_checkpoint() {
        let mut history = History::default();
        history.push(&record(1));
        history.push(&record(2));
        assert_eq!(History::parse(&history.to_bytes(), 2).unwrap(), history);
    }

    #[test]
    fn a_gap_is_an_error() {
        let mut history = History::default();
        history.push(&record(1));
        history.push(&record(3));
        let error = History::parse(&history.to_bytes(), 3).unwrap_err();
        assert_eq!(error.to_string(), "line 2: step 3 follows step 1");
        assert!(History::parse(b"", 1).is_err());
        assert!(History::parse(b"{\n", 1).is_err());
        assert!(History::parse(b"\xff", 0).is_err());
    }
}
