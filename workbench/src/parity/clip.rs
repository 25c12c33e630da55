//! Kinds `clip_text` and `clip_vision`: the text tower with both pooling rules, and the features of both towers.

use std::collections::BTreeMap;

use anyhow::Context;
use crescendo_model::clip::{Clip, ClipConfig, ClipText, ClipTextConfig, ClipVisionConfig, Pooling, pool};
use crescendo_model::tch::Kind;
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;

/// Prefix of a run's names within `out.`, and its dtype.
const RUNS: [(&str, Kind); 2] = [("", Kind::Float), ("bf16.", Kind::BFloat16)];

/// The runs that the fixture has results of.
fn runs(fixture: &Fixture) -> impl Iterator<Item = (&'static str, Kind)> {
    let expected = fixture.expected();
    RUNS.into_iter().filter(move |(run, kind)| {
        *kind == Kind::Float || expected.iter().any(|name| name.starts_with(&format!("out.{run}")))
    })
}

pub fn check_text(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config: ClipTextConfig = fixture.part("config")?;
    let inputs: Vec<String> = fixture.part("inputs")?;
    let ends: BTreeMap<String, i64> = fixture.part("eos_token_id")?;
    for (run, kind) in runs(fixture) {
        let weights = fixture.group("model.")?;
        let tower = ClipText::from_tensors(&config, weights, &fixture.name, kind, fixture.device)?;
        for input in &inputs {
            let ids = fixture.tensor(&format!("in.{input}"))?;
            let end = *ends.get(input).with_context(|| format!("`eos_token_id` has no {input}"))?;
            let states = tower.forward(&ids)?.last_hidden_state;
            let prefix = format!("out.{run}{input}");
            checks.compare(&format!("{prefix}.last_hidden_state"), &states)?;
            let highest = pool(&states, &ids, Pooling::HighestId)?;
            checks.compare(&format!("{prefix}.legacy.pooled"), &highest)?;
            checks.compare(&format!("{prefix}.pooled"), &highest)?;
            let first = pool(&states, &ids, Pooling::FirstEndOfText(end))?;
            checks.compare(&format!("{prefix}.first_eos.pooled"), &first)?;
        }
    }
    Ok(())
}

/// Sizes as the sidecar has them.
#[derive(Deserialize)]
struct Sizes {
    text: ClipTextConfig,
    vision: ClipVisionConfig,
    proj: i64,
}

pub fn check_vision(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let Sizes { text, vision, proj } = fixture.part("config")?;
    let config = ClipConfig { text_config: text, vision_config: vision, projection_dim: proj };
    let (ids, pixels) = (fixture.tensor("in.input_ids")?, fixture.tensor("in.pixel_values")?);
    for (run, kind) in runs(fixture) {
        let clip =
            Clip::from_tensors(&config, fixture.group("model.")?, &fixture.name, kind, fixture.device)?;
        let (text, vision) = (clip.text().forward(&ids)?, clip.vision().forward(&pixels)?);
        let (text_embeds, image_embeds) = (clip.text_embeds(&ids)?, clip.image_embeds(&pixels)?);
        for (name, tensor) in [
            ("text.last_hidden_state", &text.last_hidden_state),
            ("text.pooled", &text.pooled),
            ("vision.last_hidden_state", &vision.last_hidden_state),
            ("vision.pooled", &vision.pooled),
            ("text_features", &clip.text_features(&ids)?),
            ("image_features", &clip.image_features(&pixels)?),
            ("text_embeds", &text_embeds),
            ("image_embeds", &image_embeds),
            ("logits_per_image", &clip.logits_per_image(&image_embeds, &text_embeds)?),
        ] {
            checks.compare(&format!("out.{run}{name}"), tensor)?;
        }
    }
    Ok(())
}
