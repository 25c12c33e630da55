//! Pictures of fixtures: stored pixels to pictures and back, and how many pixels may differ.

use anyhow::{Context, ensure};
use crescendo_model::tch::{Kind, Tensor};
use image::RgbImage;

use super::compare::Checks;
use super::fixture::Fixture;

/// Share of the values that another rounding of resampling weights may move, by the fixtures' notes.
const ROUNDED_SHARE: f64 = 0.02;

/// The bytes of a uint8 tensor with its `[height, width, values a pixel]`; a tensor of two axes has one value a pixel.
pub fn pixels(fixture: &Fixture, name: &str) -> anyhow::Result<(u32, u32, usize, Vec<u8>)> {
    let tensor = fixture.tensor(name)?;
    ensure!(tensor.f_kind()? == Kind::Uint8, "{name} is not uint8");
    let (height, width, count) = match tensor.size()[..] {
        [height, width] => (height, width, 1),
        [height, width, count] => (height, width, count),
        _ => anyhow::bail!("{name} has shape {:?}", tensor.size()),
    };
    let bytes = Vec::<u8>::try_from(&tensor.f_contiguous()?.f_reshape([-1])?)?;
    Ok((u32::try_from(height)?, u32::try_from(width)?, usize::try_from(count)?, bytes))
}

/// An RGB picture stored as uint8 `[height, width, 3]`.
pub fn rgb(fixture: &Fixture, name: &str) -> anyhow::Result<RgbImage> {
    let (height, width, count, bytes) = pixels(fixture, name)?;
    ensure!(count == 3, "{name} is no RGB picture");
    RgbImage::from_raw(width, height, bytes).with_context(|| format!("{name} is cut"))
}

/// `[height, width, 3]` uint8.
pub fn tensor(picture: &RgbImage) -> anyhow::Result<Tensor> {
    let size = [i64::from(picture.height()), i64::from(picture.width()), 3];
    Ok(Tensor::f_from_slice(picture.as_raw())?.f_view(size)?)
}

/// Compares 8-bit pixels by the sidecar's tolerance, and holds the share of those that differ at all to what rounding
/// can explain.
pub fn compare(
    fixture: &Fixture,
    checks: &mut Checks<'_>,
    name: &str,
    actual: &Tensor,
) -> anyhow::Result<()> {
    checks.compare(name, actual)?;
    if !fixture.has(name) {
        return Ok(());
    }
    let stored = fixture.tensor(name)?;
    if stored.size() == actual.size() && stored.numel() > 0 {
        let differing = stored.f_ne_tensor(actual)?.f_sum(Kind::Double)?.f_double_value(&[])?;
        let share = differing / stored.numel() as f64;
        checks.require(&format!("{name}.share"), share <= ROUNDED_SHARE, || {
            format!("{:.2} % of the values differ", 100.0 * share)
        });
    }
    Ok(())
}
