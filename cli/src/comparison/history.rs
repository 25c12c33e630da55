//! What the history in a checkpoint says of a stage's last steps: no controller remembers it after its restart.

use crescendo_dataset::checkpoint::HISTORY_FILE;
use serde::Deserialize;

/// Steps at the end of a history whose means count.
const LAST_STEPS: usize = 100;
/// Largest history that is fetched for a comparison: some 400,000 steps.
pub const MOST_BYTES: u64 = 64 << 20;

/// The last steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// Of the last step; none if it was not finite.
    pub loss: Option<f64>,
    /// Of those that were finite.
    pub mean_loss: Option<f64>,
    /// Of the last step; none if it was not finite.
    pub grad_norm: Option<f64>,
    /// Mean wall time of a step.
    pub step_seconds: Option<f64>,
}

/// A line. A number that is not finite is written as null.
#[derive(Deserialize)]
struct Step {
    loss: Option<f64>,
    #[serde(default)]
    grad_norm: Option<f64>,
    seconds: f64,
}

/// Reads the end of a `history.jsonl`.
pub fn ending(history: &[u8]) -> Result<Ending, String> {
    let lines: Vec<&[u8]> =
        history.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).collect();
    let first = lines.len().saturating_sub(LAST_STEPS);
    let mut steps: Vec<Step> = Vec::new();
    for (at, line) in lines.iter().enumerate().skip(first) {
        let step = serde_json::from_slice(line);
        steps.push(step.map_err(|error| format!("line {} of {HISTORY_FILE}: {error}", at + 1))?);
    }
    let last = steps.last();
    Ok(Ending {
        loss: last.and_then(|step| step.loss),
        mean_loss: mean(steps.iter().filter_map(|step| step.loss)),
        grad_norm: last.and_then(|step| step.grad_norm),
        step_seconds: mean(steps.iter().map(|step| step.seconds)),
    })
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}
