//! The history in a checkpoint, as a trace: one line a step since the stage began.

use crescendo_dataset::checkpoint::HISTORY_FILE;
use crescendo_dataset::digest::sha256_hex;
use serde::Deserialize;

use super::trace::{Point, Trace};

/// A line. A number that was not finite is written as null.
#[derive(Deserialize)]
struct Step {
    step: u64,
    loss: Option<f64>,
    #[serde(default)]
    grad_norm: Option<f64>,
    #[serde(default)]
    learning_rate: Option<f64>,
    #[serde(default)]
    seconds: f64,
}

/// Reads a whole history, if it is the one that is registered.
pub fn parse(content: &[u8], sha256: &str, most_buckets: usize) -> Result<Trace, String> {
    if sha256_hex(content) != sha256 {
        return Err(format!("{HISTORY_FILE} is not what is registered: its content has another SHA-256"));
    }
    let mut trace = Trace::new(most_buckets);
    let lines = content.split(|byte| *byte == b'\n').enumerate();
    for (at, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let Step { step, loss, grad_norm, learning_rate, seconds } = serde_json::from_slice(line)
            .map_err(|error| format!("line {} of {HISTORY_FILE}: {error}", at + 1))?;
        if step <= trace.last_step() {
            return Err(format!("line {} of {HISTORY_FILE}: step {step} is not in order", at + 1));
        }
        let known = |value: Option<f64>| value.unwrap_or(f64::NAN);
        let steps_per_sec = if seconds > 0.0 { seconds.recip() } else { f64::NAN };
        let values = [known(loss), known(grad_norm), known(learning_rate), steps_per_sec, f64::NAN];
        trace.push(&Point { step, values });
    }
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Trace, String> {
        parse(text.as_bytes(), &sha256_hex(text.as_bytes()), 100)
    }

    #[test]
    fn a_history_is_read_and_what_was_not_finite_is_unknown() {
        let text = concat!(
            "{\"step\":1,\"loss\":0.5,\"grad_norm\":1.25,\"learning_rate\":1e-4,\"seconds\":0.5,\"at_unix_secs\":7.5}\n",
            "{\"step\":2,\"loss\":null,\"grad_norm\":null,\"learning_rate\":1e-4,\"seconds\":0.25,\"skipped\":true}\n",
        );
        let trace = read(text).unwrap();
        let mut curve = crescendo_proto::v1::Curve::default();
        super::super::trace::points(trace.buckets(), 1, 0, &mut curve);
        assert_eq!(curve.steps, [1, 2]);
        assert_eq!(curve.steps_per_sec.unwrap().mean, [2.0, 4.0]);
        let loss = curve.loss.unwrap().mean;
        assert!(loss[0] == 0.5 && loss[1].is_nan(), "{loss:?}");
    }

    #[test]
    fn what_is_no_history_says_so() {
        assert!(parse(b"{}", &"0".repeat(64), 100).unwrap_err().contains("SHA-256"));
        assert!(read("{\n").unwrap_err().starts_with("line 1 of "));
        let twice = "{\"step\":1,\"loss\":1}\n{\"step\":1,\"loss\":1}\n";
        assert!(read(twice).unwrap_err().ends_with("step 1 is not in order"));
        assert_eq!(read("").unwrap().last_step(), 0);
    }
}
