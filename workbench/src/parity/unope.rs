//! Kind `unope`: position ids, packing and unpacking.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use crescendo_model::packing;
use crescendo_model::tch::Tensor;
use crescendo_model::unope::{Grid, Layout, Offsets, PositionMode};
use serde::Deserialize;

use super::compare::Checks;
use super::fixture::Fixture;

#[derive(Deserialize)]
struct CaseSizes {
    batch: i64,
    latent_size: [i64; 2],
    ref_latent_sizes: Vec<[i64; 2]>,
    text_len: i64,
}

#[derive(Deserialize)]
struct Pack {
    prompts: i64,
}

#[derive(Deserialize)]
struct Unpack {
    height_px: i64,
    width_px: i64,
}

fn mode(letter: &str) -> anyhow::Result<PositionMode> {
    Ok(match letter {
        "d" => PositionMode::Diagonal,
        "h" => PositionMode::Height,
        "w" => PositionMode::Width,
        "o" => PositionMode::None,
        _ => bail!("position mode {letter} is not known"),
    })
}

fn grid([height, width]: [i64; 2]) -> Grid {
    let (rows, columns) = packing::grid(height, width);
    Grid { rows, columns }
}

fn repeated(tensor: &Tensor, batch: i64) -> anyhow::Result<Tensor> {
    Ok(tensor.f_expand([batch, -1, -1], false)?)
}

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let cases: BTreeMap<String, CaseSizes> = fixture.part("cases")?;
    for (case, sizes) in &cases {
        for letter in ["d", "h", "w", "o"] {
            let layout = Layout {
                text_tokens: sizes.text_len,
                target: grid(sizes.latent_size),
                references: sizes.ref_latent_sizes.iter().copied().map(grid).collect(),
                offsets: mode(letter)?.into(),
            };
            let ids = layout.ids(fixture.device)?;
            let prefix = format!("out.{case}.{letter}");
            checks.compare(&format!("{prefix}.txt_ids"), &repeated(&ids.text, sizes.batch)?)?;
            checks.compare(&format!("{prefix}.img_ids"), &repeated(&ids.target, sizes.batch)?)?;
            for (i, reference) in ids.references.iter().enumerate() {
                checks.compare(&format!("{prefix}.ref{i}_ids"), &repeated(reference, sizes.batch)?)?;
            }
        }
    }
    if let Some(Pack { prompts }) = fixture.optional_part("pack")? {
        pack(fixture, checks, prompts)?;
    }
    if let Some(Unpack { height_px, width_px }) = fixture.optional_part("unpack")? {
        let cells = |px: i64| (px + 15) / 16;
        let latent =
            packing::unpack(&fixture.tensor("in.unpack.tokens")?, cells(height_px), cells(width_px))?;
        checks.compare("out.unpack.latent", &latent)?;
    }
    Ok(())
}

/// One latent and one reference, repeated to the number of prompts.
fn pack(fixture: &Fixture, checks: &mut Checks<'_>, prompts: i64) -> anyhow::Result<()> {
    let latent = fixture.tensor("in.pack.latent")?;
    let reference = fixture.tensor("in.pack.ref")?;
    let text_tokens = *fixture.shape("out.pack.txt_ids")?.get(1).context("out.pack.txt_ids has no tokens")?;
    let layout = Layout {
        text_tokens,
        target: Grid::of_latent(&latent)?,
        references: vec![Grid::of_latent(&reference)?],
        offsets: Offsets::PUBLISHED,
    };
    let ids = layout.ids(fixture.device)?;
    checks.compare("out.pack.img_tokens", &repeated(&packing::pack(&latent)?, prompts)?)?;
    checks.compare("out.pack.ref_tokens", &repeated(&packing::pack(&reference)?, prompts)?)?;
    checks.compare("out.pack.txt_ids", &repeated(&ids.text, prompts)?)?;
    checks.compare("out.pack.img_ids", &repeated(&ids.target, prompts)?)?;
    if let Some(reference_ids) = ids.references.first() {
        checks.compare("out.pack.ref_ids", &repeated(reference_ids, prompts)?)?;
    }
    Ok(())
}
