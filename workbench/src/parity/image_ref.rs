//! Kind `image_preproc_ref`: references for inference, from pixels of any mode.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use crescendo_dataset::pictures::reference::{FLUX_MULTIPLE, ReferenceLayout, prepare};
use crescendo_dataset::pictures::{Channels, Picture};
use crescendo_model::pictures::to_model_input;
use crescendo_model::tch::Tensor;
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;
use super::picture_tensors as pictures;

#[derive(Deserialize)]
struct Source {
    mode: String,
    long_sides: Vec<u32>,
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let sources: BTreeMap<String, Source> = fixture.part("sources")?;
    let to_tensor: Option<String> = fixture.optional_part("to_tensor")?;
    for (name, source) in &sources {
        let picture = picture(fixture, name, &source.mode).with_context(|| format!("read in.{name}"))?;
        for long in &source.long_sides {
            let prepared = prepare(name, &picture, *long, FLUX_MULTIPLE)?;
            let result = pictures::tensor(&prepared)?;
            pictures::compare(fixture, checks, &format!("out.{name}.{long}"), &result)?;
            if to_tensor.as_ref() == Some(name) {
                // Every 8th row and column of the long side that has the stored size.
                let thinned = to_model_input(&[&prepared])?
                    .f_squeeze_dim(0)?
                    .f_slice(1, None, None, 8)?
                    .f_slice(2, None, None, 8)?;
                if fixture.shape("out.model_input")? == thinned.size() {
                    checks.compare("out.model_input", &thinned)?;
                }
            }
        }
    }
    sizes(fixture, checks)
}

fn picture(fixture: &Fixture, name: &str, mode: &str) -> anyhow::Result<Picture> {
    let (height, width, count, bytes) = pictures::pixels(fixture, &format!("in.{name}"))?;
    let channels = match mode {
        "L" => Channels::Gray,
        "LA" => Channels::GrayAlpha,
        "RGB" => Channels::Rgb,
        "RGBA" => Channels::Rgba,
        "P" => Channels::Indexed,
        _ => bail!("mode {mode} is not known"),
    };
    ensure!(count == channels.count(), "{count} values a pixel are not mode {mode}");
    if channels != Channels::Indexed {
        return Ok(Picture::from_pixels(width, height, channels, bytes)?);
    }
    let (.., palette) = pictures::pixels(fixture, &format!("in.{name}.palette"))?;
    let colors = palette.chunks_exact(3).map(|color| [color[0], color[1], color[2]]).collect();
    Ok(Picture::from_palette(width, height, bytes, colors)?)
}

fn sizes(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    if !fixture.has("in.sizes") {
        return Ok(());
    }
    let stored = fixture.tensor("in.sizes")?.f_contiguous()?;
    ensure!(matches!(stored.size()[..], [_, 3]), "in.sizes has shape {:?}", stored.size());
    let mut rows = Vec::new();
    for row in Vec::<i64>::try_from(&stored.f_reshape([-1])?)?.chunks_exact(3) {
        let side = |i: usize| u32::try_from(row[i]).context("a size is out of range");
        let layout = ReferenceLayout::of(side(0)?, side(1)?, side(2)?, FLUX_MULTIPLE);
        let kept = layout.kept;
        let ends = (kept.left + kept.width, kept.top + kept.height);
        rows.extend([layout.width, layout.height, kept.left, kept.top, ends.0, ends.1].map(i64::from));
    }
    checks.compare("out.sizes", &Tensor::f_from_slice(&rows)?.f_view([-1, 6])?)
}
