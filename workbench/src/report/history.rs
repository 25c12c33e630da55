//! `history.jsonl` of a checkpoint: one line an optimizer step, since the stage began.

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StepRecord {
    /// Steps done, from 1.
    pub step: u64,
    pub loss: f64,
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Wall time of the step.
    pub seconds: f64,
}

/// Reads all records; an unreadable line is an error that names it.
pub fn parse(text: &str) -> Result<Vec<StepRecord>> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(i, line)| {
            serde_json::from_str(line).with_context(|| format!("parse line {} of history.jsonl", i + 1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_is_named() {
        let good = r#"{"step":1,"loss":0.5,"grad_norm":1.0,"learning_rate":0.001,"seconds":0.2}"#;
        assert_eq!(parse(good).unwrap().len(), 1);
        let error = parse(&format!("{good}\n{{")).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }
}
