//! Kind `schedule`: times for sampling and the training table.

use crescendo_model::schedule::{
    BASE_SHIFT, MAX_SHIFT, inference_image_tokens, inference_schedule, mu, schedule_tensor, time_shift,
    training_image_tokens, training_table,
};
use crescendo_model::tch::Tensor;
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;

#[derive(Deserialize)]
struct Config {
    image_seq_lens: Vec<i64>,
    /// (steps, tokens, base shift, max shift)
    custom: Vec<(i64, i64, f64, f64)>,
    /// (mu, sigma)
    time_shift: Vec<(f64, f64)>,
    train_resolutions: Vec<i64>,
    /// (width, height, steps)
    inference: Vec<(i64, i64, i64)>,
    inference_seq_len: Option<Vec<i64>>,
    train_seq_len: Option<Vec<i64>>,
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config: Config = fixture.part("config")?;
    for name in fixture.expected() {
        if let Some((steps, tokens, shift)) = name.strip_prefix("out.schedule.").and_then(plain_schedule) {
            checks.compare(&name, &schedule_tensor(steps, tokens, BASE_SHIFT, MAX_SHIFT, shift)?)?;
        }
    }
    for (i, &(steps, tokens, base, max)) in config.custom.iter().enumerate() {
        checks
            .compare(&format!("out.schedule.custom{i}"), &schedule_tensor(steps, tokens, base, max, true)?)?;
    }
    let mus: Vec<f64> =
        config.image_seq_lens.iter().map(|tokens| mu(*tokens, BASE_SHIFT, MAX_SHIFT)).collect();
    checks.compare("out.mu", &Tensor::f_from_slice(&mus)?)?;
    if !config.time_shift.is_empty() {
        let times = fixture.tensor("in.time_shift.t")?;
        for (i, &(mu, sigma)) in config.time_shift.iter().enumerate() {
            checks.compare(&format!("out.time_shift.{i}"), &time_shift(mu, sigma, &times)?)?;
        }
    }
    for resolution in &config.train_resolutions {
        checks.compare(&format!("out.train_table.res{resolution}"), &training_table(*resolution)?)?;
    }
    for (i, &(width, height, steps)) in config.inference.iter().enumerate() {
        let times = inference_schedule(steps, width, height)?;
        checks.compare(&format!("out.inference.{i}"), &Tensor::f_from_slice(&times)?)?;
    }
    // Token counts are given in words as well: hold both formulas to them.
    if let Some(expected) = &config.inference_seq_len {
        let counts: Vec<i64> =
            config.inference.iter().map(|(w, h, _)| inference_image_tokens(*w, *h)).collect();
        checks.require("config.inference_seq_len", counts == *expected, || {
            format!("{counts:?}, expected {expected:?}")
        });
    }
    if let Some(expected) = &config.train_seq_len {
        let counts: Vec<i64> = config.train_resolutions.iter().map(|r| training_image_tokens(*r)).collect();
        checks.require("config.train_seq_len", counts == *expected, || {
            format!("{counts:?}, expected {expected:?}")
        });
    }
    Ok(())
}

/// Steps, tokens and shift of a name like `steps25_len16_shift1`.
fn plain_schedule(name: &str) -> Option<(i64, i64, bool)> {
    let mut parts = name.split('_');
    let steps = parts.next()?.strip_prefix("steps")?.parse().ok()?;
    let tokens = parts.next()?.strip_prefix("len")?.parse().ok()?;
    let shift = parts.next()?.strip_prefix("shift")? != "0";
    Some((steps, tokens, shift))
}
