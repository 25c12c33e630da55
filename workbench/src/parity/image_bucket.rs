//! Kind `image_preproc_bucket`: training sizes, and stretching to them.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use crescendo_dataset::pictures::bucket::choose_among;
use crescendo_model::pictures::bucket::stretch;
use crescendo_model::tch::Tensor;
use image::RgbImage;
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;
use super::picture_tensors as pictures;

#[derive(Deserialize)]
struct Config {
    buckets_at_512: Vec<(u32, u32)>,
}

#[derive(Deserialize)]
struct Batch {
    n: usize,
    resolution: u32,
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let Config { buckets_at_512: buckets } = fixture.part("config")?;
    if fixture.has("in.single") {
        let (numbers, width) = table(fixture, "in.single")?;
        ensure!(width == 3, "in.single has {width} columns");
        let chosen = numbers.chunks_exact(3).map(|row| choose_among(&buckets, &[(row[0], row[1])], row[2]));
        checks.compare("out.single", &sizes(chosen)?)?;
    }
    if fixture.has("in.groups") {
        let (numbers, width) = table(fixture, "in.groups")?;
        let (resolutions, _) = table(fixture, "in.groups.resolution")?;
        let groups: Vec<Vec<(u32, u32)>> = numbers
            .chunks_exact(width)
            .map(|group| {
                group.chunks_exact(2).map(|size| (size[0], size[1])).filter(|size| *size != (0, 0)).collect()
            })
            .collect();
        ensure!(groups.len() == resolutions.len(), "groups and their resolutions differ in number");
        let chosen = groups
            .iter()
            .zip(resolutions)
            .map(|(group, resolution)| choose_among(&buckets, group, resolution));
        checks.compare("out.groups", &sizes(chosen)?)?;
    }
    let batches: BTreeMap<String, Batch> = fixture.optional_part("resize")?.unwrap_or_default();
    for (name, batch) in &batches {
        let images = (0..batch.n)
            .map(|i| pictures::rgb(fixture, &format!("in.{name}.image{i}")))
            .collect::<anyhow::Result<Vec<RgbImage>>>()?;
        let of: Vec<(u32, u32)> = images.iter().map(|image| (image.height(), image.width())).collect();
        let size = choose_among(&buckets, &of, batch.resolution)?;
        let stretched =
            images.iter().map(|image| stretch(image, size)).collect::<Result<Vec<Tensor>, _>>()?;
        checks.compare(&format!("out.{name}"), &Tensor::f_stack(&stretched, 0)?)?;
    }
    Ok(())
}

/// The numbers of an int64 tensor, and how many belong to one index of its first axis.
fn table(fixture: &Fixture, name: &str) -> anyhow::Result<(Vec<u32>, usize)> {
    let stored = fixture.tensor(name)?;
    let width: i64 = stored.size().iter().skip(1).product();
    ensure!(width > 0, "{name} is empty");
    let numbers = Vec::<i64>::try_from(&stored.f_contiguous()?.f_reshape([-1])?)?
        .into_iter()
        .map(|number| u32::try_from(number).with_context(|| format!("{name} holds {number}")))
        .collect::<anyhow::Result<Vec<u32>>>()?;
    Ok((numbers, usize::try_from(width)?))
}

fn sizes(
    chosen: impl Iterator<Item = Result<(u32, u32), crescendo_dataset::pictures::PictureError>>,
) -> anyhow::Result<Tensor> {
    let sizes = chosen.collect::<Result<Vec<_>, _>>()?;
    let numbers: Vec<i64> =
        sizes.iter().flat_map(|(height, width)| [i64::from(*height), i64::from(*width)]).collect();
    Ok(Tensor::f_from_slice(&numbers)?.f_view([-1, 2])?)
}
