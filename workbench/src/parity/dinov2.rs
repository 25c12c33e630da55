//! Kind `dinov2`: the DINOv2 backbone at several sizes, with both rules for its positions.

use crescendo_model::dinov2::{DinoV2, DinoV2Config, PositionRule};
use crescendo_model::tch::no_grad;

use super::compare::Checks;
use super::fixture::Fixture;

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config: DinoV2Config = fixture.part("config")?;
    let sizes: Vec<[i64; 2]> = fixture.part("resolutions")?;
    let patch = config.patch_size.max(1);
    let mut network = DinoV2::from_tensors(config, fixture.group("model.")?, &fixture.name, fixture.device)?;
    no_grad(|| {
        for [height, width] in sizes {
            let size = format!("{height}x{width}");
            let pixels = fixture.tensor(&format!("in.pixel_values_{size}"))?;
            let rules = [
                (PositionRule::ExplicitSize, size.clone()),
                (PositionRule::ScaleFactor, format!("{size}.scale_factor_rule")),
            ];
            for (rule, case) in rules {
                network.set_position_rule(rule);
                let positions = network.positions(height / patch, width / patch)?;
                checks.compare(&format!("mid.{case}.position_embeddings"), &positions)?;
                checks.compare(&format!("mid.{case}.embeddings"), &network.embed(&pixels)?)?;
                let output = network.forward(&pixels)?;
                checks.compare(&format!("out.{case}.last_hidden_state"), &output.last_hidden_state)?;
                checks.compare(&format!("out.{case}.pooled"), &output.pooled)?;
            }
        }
        Ok(())
    })
}
