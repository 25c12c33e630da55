//! The scale of an adapter's updates: alpha / rank, where somebody tells alpha.

use serde::Deserialize;
use serde_json::Value;

use super::Update;
use crate::error::{ModelError, Result};
use crate::published::{not_usable, read_config};
use crate::weight_files::WeightFiles;

/// PEFT's description beside the weights.
const CONFIG_FILE: &str = "adapter_config.json";
/// diffusers' copy of it among the strings of the header, each key after the name of the network.
const STRINGS_KEY: &str = "lora_adapter_metadata";
const STRINGS_PREFIX: &str = "transformer.";

/// What PEFT's description says of scales.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Described {
    lora_alpha: Option<f64>,
    /// Whether the scale is alpha over the root of the rank.
    use_rslora: bool,
    use_dora: bool,
    alpha_pattern: serde_json::Map<String, Value>,
}

/// Where alphas come from, for updates that have none of their own.
#[derive(Debug, Default)]
pub(super) struct Alphas(Described);

impl Alphas {
    /// Reads what stands beside an adapter or in its header. The rank is each update's own.
    pub fn of(files: &WeightFiles) -> Result<Self> {
        let path = files.path();
        let beside = path.with_file_name(CONFIG_FILE);
        let described: Described = if let Some(text) = files.string(STRINGS_KEY) {
            let reason = |error| not_usable(path, format!("{STRINGS_KEY}: {error}"));
            let all: serde_json::Map<String, Value> = serde_json::from_str(&text).map_err(reason)?;
            let own = all
                .into_iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(STRINGS_PREFIX)?.to_owned(), value)));
            Described::deserialize(Value::Object(own.collect())).map_err(reason)?
        } else if files.names().any(|name| name.starts_with("base_model.")) && beside.is_file() {
            read_config(&beside, None)?
        } else {
            Described::default()
        };
        if described.use_dora {
            return Err(not_usable(path, "it is a DoRA, which scales columns too and is not read"));
        }
        if !described.alpha_pattern.is_empty() {
            return Err(not_usable(path, "its alpha_pattern, an alpha for some layers, is not read"));
        }
        Ok(Self(described))
    }

    /// The scale of an update of `rank`.
    pub fn scale(&self, files: &WeightFiles, update: &Update, rank: i64) -> Result<f64> {
        if let Some(name) = &update.alpha {
            let tensor = files.tensor(name)?;
            if tensor.numel() != 1 {
                let reason = format!("has shape {:?}, an alpha is one number", tensor.size());
                return Err(ModelError::input(name.as_str(), reason));
            }
            let alpha = tensor.f_reshape([1])?.f_double_value(&[0])?;
            return finite(name, alpha / rank as f64);
        }
        let Described { lora_alpha, use_rslora, .. } = &self.0;
        let divisor = if *use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        finite("lora_alpha", lora_alpha.map_or(1.0, |alpha| alpha / divisor))
    }
}

fn finite(name: &str, scale: f64) -> Result<f64> {
    if scale.is_finite() {
        return Ok(scale);
    }
    Err(ModelError::input(name, "is no number"))
}
