//! Kind `owlv2`: the open-vocabulary detector, from pixels and token ids to boxes on pictures.

use anyhow::{Context, ensure};
use crescendo_model::owlv2::{
    Owlv2, Owlv2Config, Owlv2Queries, Owlv2TextConfig, Owlv2VisionConfig, detections,
};
use crescendo_model::tch::{Kind, Tensor};
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;

#[derive(Deserialize)]
struct Config {
    text: Owlv2TextConfig,
    vision: Owlv2VisionConfig,
    /// Width of a projected query.
    proj: i64,
    /// Queries of each picture.
    queries: i64,
    images: i64,
    threshold: f32,
    /// Height and width of each picture before padding, pixels.
    sizes: Vec<[u32; 2]>,
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let Config { text, vision, proj, queries, images, threshold, sizes } = fixture.part("config")?;
    let config = Owlv2Config { text_config: text, vision_config: vision, projection_dim: proj };
    let weights = fixture.group("model.")?;
    let network = Owlv2::from_tensors(&config, weights, &fixture.name, Kind::Float, fixture.device)?;
    checks.compare("mid.box_bias", network.box_bias())?;

    let mask = fixture.has("in.attention_mask").then(|| fixture.tensor("in.attention_mask")).transpose()?;
    let encoded = network.encode_queries(&fixture.tensor("in.input_ids")?, mask.as_ref())?;
    let count = encoded.vectors.size().first().copied().unwrap_or(0);
    ensure!(count == images * queries, "{count} queries are not {queries} for each of {images} pictures");
    // [images * queries, ..] -> [images, queries, ..]
    let encoded = Owlv2Queries {
        vectors: encoded.vectors.f_view([images, queries, proj])?,
        present: encoded.present.f_view([images, queries])?,
    };
    checks.compare("out.text_embeds", &encoded.vectors)?;

    let cells = network.encode_pictures(&fixture.tensor("in.pixel_values")?)?;
    let side = config.grid_side();
    // [images, cells, hidden] -> [images, rows, columns, hidden]
    checks.compare("out.image_embeds", &cells.f_view([images, side, side, -1])?)?;
    let output = network.read(&cells, &encoded)?;
    checks.compare("out.logits", &output.logits)?;
    checks.compare("out.class_embeds", &output.class_vectors)?;
    checks.compare("out.pred_boxes", &output.boxes)?;
    checks.compare("out.objectness_logits", &output.objectness)?;

    for (i, [height_px, width_px]) in (0i64..).zip(sizes) {
        let found = detections(&output, i, (width_px, height_px), threshold)?;
        let scores: Vec<f32> = found.iter().map(|one| one.score).collect();
        let labels = found
            .iter()
            .map(|one| i64::try_from(one.query).context("count queries"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let boxes: Vec<f32> = found
            .iter()
            .flat_map(|one| [one.bounds.left, one.bounds.top, one.bounds.right, one.bounds.bottom])
            .collect();
        let out = |part: &str| format!("out.post.image{i}.{part}");
        checks.compare(&out("scores"), &Tensor::f_from_slice(&scores)?)?;
        checks.compare(&out("labels"), &Tensor::f_from_slice(&labels)?)?;
        checks.compare(&out("boxes"), &Tensor::f_from_slice(&boxes)?.f_view([scores.len() as i64, 4])?)?;
    }
    Ok(())
}
