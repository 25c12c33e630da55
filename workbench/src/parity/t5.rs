//! Kind `t5`: the text encoder in float32 and bfloat16, and its buckets of relative positions.

use crescendo_model::t5::{T5Config, T5Encoder, relative_buckets};
use crescendo_model::tch::Kind;

use super::compare::Checks;
use super::fixture::Fixture;

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config: T5Config = fixture.part("config")?;
    let expected = fixture.expected();
    if fixture.has("in.relative_position") {
        let buckets = relative_buckets(
            &fixture.tensor("in.relative_position")?,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )?;
        checks.compare("out.bucket", &buckets)?;
    }
    for (run, kind) in [("", Kind::Float), ("bf16.", Kind::BFloat16)] {
        if kind != Kind::Float && !expected.iter().any(|name| name.starts_with(&format!("out.{run}"))) {
            continue;
        }
        let weights = fixture.group("model.")?;
        let encoder = T5Encoder::from_tensors(&config, weights, &fixture.name, kind, fixture.device)?;
        // `in.input_ids` and `in.<case>.input_ids`
        for (name, ids) in fixture.group("in.")? {
            let Some(case) = name.strip_suffix("input_ids") else { continue };
            let mut inside = Vec::new();
            let output = encoder.forward_traced(
                &ids,
                Some(&mut |point, tensor| inside.push((point.to_owned(), tensor.shallow_clone()))),
            )?;
            for (point, tensor) in inside {
                checks.compare(&format!("mid.{run}{case}{point}"), &tensor)?;
            }
            checks.compare(&format!("out.{run}{case}last_hidden_state"), &output)?;
        }
    }
    Ok(())
}
