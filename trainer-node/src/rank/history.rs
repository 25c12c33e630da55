//! What happened at each step since the stage began; kept with every checkpoint as `history.jsonl`.

use serde::{Deserialize, Deserializer, Serialize};

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done, from 1.
    pub step: u64,
    /// Mean over the global batch. JSON has no form for a number that is not finite: it is written as `null`.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// L2 norm of the averaged gradients before clipping; as `loss`.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Wall time of the step.
    pub seconds: f64,
    /// When it was done, seconds since the Unix epoch; 0 in histories from before this was kept.
    #[serde(default)]
    pub at_unix_secs: f64,
    /// The step updated nothing: its loss or its gradients were not finite.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
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
    skipped: u64,
    skipped_in_a_row: u64,
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
        // A plain record of numbers always has a form.
        if let Ok(line) = serde_json::to_string(record) {
            self.text.push_str(&line);
            self.text.push('\n');
            self.steps = record.step;
            self.skipped += u64::from(record.skipped);
            self.skipped_in_a_row = if record.skipped { self.skipped_in_a_row + 1 } else { 0 };
        }
    }

    /// Steps that updated nothing.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// How many of them are the last ones.
    pub fn skipped_in_a_row(&self) -> u64 {
        self.skipped_in_a_row
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        self.text.clone().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> StepRecord {
        StepRecord {
            step,
            loss: 0.5,
            grad_norm: 1.25,
            learning_rate: 1e-4,
            seconds: 0.1,
            at_unix_secs: 7.5,
            skipped: false,
        }
    }

    #[test]
    fn skipped_steps_survive_a_checkpoint_with_their_number_in_a_row() {
        let skipped = |step| StepRecord { loss: f64::NAN, skipped: true, ..record(step) };
        let mut history = History::default();
        history.push(&skipped(1));
        history.push(&record(2));
        history.push(&StepRecord { grad_norm: f64::INFINITY, ..skipped(3) });
        history.push(&skipped(4));
        let read = History::parse(&history.to_bytes(), 4).unwrap();
        assert_eq!(read, history);
        assert_eq!((read.skipped(), read.skipped_in_a_row()), (3, 2));
        let text = String::from_utf8(history.to_bytes()).unwrap();
        let third: StepRecord = serde_json::from_str(text.lines().nth(2).unwrap()).unwrap();
        assert!(third.skipped && third.loss.is_nan() && third.grad_norm.is_nan(), "{third:?}");
        history.push(&record(5));
        assert_eq!((history.skipped(), history.skipped_in_a_row()), (3, 0));
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
