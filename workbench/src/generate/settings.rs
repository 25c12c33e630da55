//! How a picture is drawn, as given, as resolved, and as written into the picture.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use crescendo_core::spec::Orientation;
use crescendo_model::Preset;
use crescendo_model::unope::PositionMode;
use serde::Serialize;

use super::Parts;

/// Width and height are multiples of this for FLUX (two latent pixels of eight) and, smaller, for the others.
const LARGEST_SIDE: u32 = 8192;

/// Where the references lie relative to the picture (see UnoPE in the paper, section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    Diagonal,
    Height,
    Width,
    None,
    Frame,
}

impl From<Positions> for PositionMode {
    fn from(positions: Positions) -> Self {
        match positions {
            Positions::Diagonal => Self::Diagonal,
            Positions::Height => Self::Height,
            Positions::Width => Self::Width,
            Positions::None => Self::None,
            Positions::Frame => Self::Frame,
        }
    }
}

/// From which number of tokens the times are shifted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleRule {
    /// The tokens that the picture has, as in training
    #[default]
    True,
    /// As the published inference counts them: 64 times too few, so less of the drawing happens at high noise
    Published,
}

/// What can be set of a drawing.
#[derive(Clone, Debug, clap::Args)]
pub struct DrawSettings {
    /// Width and height, pixels: 512x512 [default: 512x512, nano: 32x32]
    #[arg(long, value_parser = parse_size, value_name = "WxH")]
    size: Option<(u32, u32)>,
    /// Steps from noise to picture
    #[arg(long, default_value_t = 25)]
    steps: u32,
    /// Guidance value, for networks that take one
    #[arg(long, default_value_t = 4.0)]
    guidance: f64,
    /// Classifier-free guidance away from having neither prompt nor references, for networks that are not distilled; 1 is
    /// none, more takes twice as long [default: 1, nano: 2]
    #[arg(long, value_name = "SCALE")]
    true_cfg: Option<f64>,
    /// Where the references lie
    #[arg(long, value_enum, default_value = "diagonal")]
    positions: Positions,
    /// Times the published offset, as `positionScale` of the spec
    #[arg(long, value_name = "SCALE", default_value_t = 1.0)]
    position_scale: f64,
    /// Token count that the times are shifted for; the published inference computes a wrong one, and `published` repeats it
    #[arg(long, value_enum, default_value = "true")]
    schedule: ScheduleRule,
    /// Long side of the references, pixels [default: 512 for one, 320 for several, nano: 32]
    #[arg(long, value_name = "PX")]
    pub reference_size: Option<u32>,
}

/// All of it, checked.
#[derive(Clone, Debug, Serialize)]
pub struct Resolved {
    pub width: u32,
    pub height: u32,
    pub steps: i64,
    pub guidance: f64,
    pub true_cfg: f64,
    pub positions: Positions,
    pub position_scale: f64,
    pub published_schedule: bool,
    #[serde(skip)]
    pub exact_times: bool,
}

impl DrawSettings {
    /// Fills in what the network decides, and checks the rest.
    pub fn resolved(&self, parts: &Parts) -> Result<Resolved> {
        let (width, height) = self.size.unwrap_or((parts.side(), parts.side()));
        let multiple = parts.multiple();
        for (name, side) in [("width", width), ("height", height)] {
            ensure!(
                side % multiple == 0 && (multiple..=LARGEST_SIDE).contains(&side),
                "--size: a {name} of {side} pixels is not a multiple of {multiple} of at most {LARGEST_SIDE}"
            );
        }
        ensure!(self.guidance.is_finite(), "--guidance: {} is not a number", self.guidance);
        ensure!(
            self.position_scale > 0.0 && self.position_scale <= 16.0,
            "--position-scale: {} is not above 0 and at most 16",
            self.position_scale
        );
        let true_cfg = self.true_cfg.unwrap_or(if parts.preset == Preset::Nano { 2.0 } else { 1.0 });
        ensure!((1.0..=100.0).contains(&true_cfg), "--true-cfg: {true_cfg} is not between 1 and 100");
        Ok(Resolved {
            true_cfg,
            width,
            height,
            steps: i64::from(self.steps),
            guidance: self.guidance,
            positions: self.positions,
            position_scale: self.position_scale,
            published_schedule: self.schedule == ScheduleRule::Published,
            exact_times: parts.preset.has_exact_times(),
        })
    }
}

fn parse_size(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is not WIDTHxHEIGHT, e.g. 512x512"))
}

/// What a picture says of itself.
#[derive(Debug, Serialize)]
pub struct Settings<'a> {
    pub prompt: &'a str,
    pub references: &'a [PathBuf],
    pub orientation: Orientation,
    pub preset: Preset,
    pub weights: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<&'a Path>,
    pub lora_weight: f64,
    pub seed: u64,
    #[serde(flatten)]
    pub draw: &'a Resolved,
    pub version: &'static str,
}
