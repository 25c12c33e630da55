//! `history.jsonl` of a checkpoint: one line a step, since the stage began.

use anyhow::Context as _;
use serde::{Deserialize, Deserializer};

/// One step. Its loss and norm are NaN where they were not finite: then it was skipped.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct StepRecord {
    /// Steps done, from 1.
    pub step: u64,
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Wall time of the step.
    pub seconds: f64,
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Reads all records; an unreadable line is an error that names it.
pub fn parse(text: &str) -> anyhow::Result<Vec<StepRecord>> {
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
        let skipped =
            r#"{"step":1,"loss":null,"grad_norm":null,"learning_rate":0.001,"seconds":0.2,"skipped":true}"#;
        assert!(parse(skipped).unwrap()[0].loss.is_nan());
        let error = parse(&format!("{good}\n{{")).unwrap_err();
        assert!(format!("{error:#}").contains("line 2"), "{error:#}");
    }
}
