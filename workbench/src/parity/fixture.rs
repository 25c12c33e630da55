//! One fixture: a sidecar and its tensors.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use crescendo_model::FluxConfig;
use crescendo_model::tch::{Device, Tensor};
use crescendo_model::weights::{TensorFile, TensorMap};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A sidecar with its safetensors file opened.
pub struct Fixture {
    /// File name without extension.
    pub name: String,
    pub path: PathBuf,
    /// Where its tensors are handed out and its networks are built.
    pub device: Device,
    sidecar: Value,
    tensors: TensorFile,
}

/// How far a tensor may be off; at least one field is set for a tensor that is to be checked.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Tolerance {
    /// Absolute, element-wise.
    #[serde(rename = "tol_max_abs")]
    pub max_abs: Option<f64>,
    /// Relative L2 against the stored tensor.
    #[serde(rename = "tol_rel_l2_vs_this")]
    pub rel_l2_vs_this: Option<f64>,
    /// Relative L2 against the tensor that `yardstick` names.
    #[serde(rename = "tol_rel_l2_vs_yardstick")]
    pub rel_l2_vs_yardstick: Option<f64>,
    pub yardstick: Option<String>,
    /// Relative L2 of the change since the initial adapter.
    #[serde(rename = "tol_rel_l2_of_change")]
    pub rel_l2_of_change: Option<f64>,
}

impl Tolerance {
    pub fn is_set(&self) -> bool {
        self.max_abs.is_some()
            || self.rel_l2_vs_this.is_some()
            || self.rel_l2_vs_yardstick.is_some()
            || self.rel_l2_of_change.is_some()
    }
}

/// Reads a sidecar; `None` if the file is JSON of another sort.
pub fn read_sidecar(path: &Path) -> anyhow::Result<Option<(String, Value)>> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let value: Value = serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    let field = value.get("fixture").and_then(Value::as_str).map(str::to_owned);
    Ok(field.map(|field| (field, value)))
}

impl Fixture {
    /// Opens the fixture whose sidecar lies at `path`, for networks on `device`.
    pub fn open(path: &Path, device: Device) -> anyhow::Result<Self> {
        let Some((_, sidecar)) = read_sidecar(path)? else {
            bail!("{} has no field `fixture`", path.display());
        };
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let tensors = TensorFile::open(&path.with_extension("safetensors")).context("open tensors")?;
        Ok(Self { name, path: path.to_owned(), device, sidecar, tensors })
    }

    /// The part of the sidecar under `key`.
    pub fn part<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<T> {
        let value = self.sidecar.get(key).with_context(|| format!("sidecar has no `{key}`"))?;
        T::deserialize(value).with_context(|| format!("read `{key}` of the sidecar"))
    }

    /// The part of the sidecar under `key`, if it is there.
    pub fn optional_part<T: DeserializeOwned>(&self, key: &str) -> anyhow::Result<Option<T>> {
        match self.sidecar.get(key) {
            Some(_) => self.part(key).map(Some),
            None => Ok(None),
        }
    }

    pub fn config(&self) -> anyhow::Result<FluxConfig> {
        let config: FluxConfig = self.part("config")?;
        config.validate()?;
        Ok(config)
    }

    pub fn tensor(&self, name: &str) -> anyhow::Result<Tensor> {
        Ok(self.tensors.tensor(name)?.f_to_device(self.device)?)
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.info(name).is_some()
    }

    /// Shape of a stored tensor.
    pub fn shape(&self, name: &str) -> anyhow::Result<Vec<i64>> {
        let (shape, _) = self.tensors.info(name).with_context(|| format!("tensor {name} is missing"))?;
        Ok(shape)
    }

    /// `<prefix>0`, `<prefix>1`, … as far as they are stored.
    pub fn numbered(&self, prefix: &str) -> anyhow::Result<Vec<Tensor>> {
        (0..)
            .map(|i| format!("{prefix}{i}"))
            .take_while(|name| self.has(name))
            .map(|name| self.tensor(&name))
            .collect()
    }

    /// All tensors whose name starts with `prefix`, without it.
    pub fn group(&self, prefix: &str) -> anyhow::Result<TensorMap> {
        self.tensors
            .names()
            .iter()
            .filter_map(|name| Some((name, name.strip_prefix(prefix)?)))
            .map(|(name, bare)| Ok((bare.to_owned(), self.tensor(name)?)))
            .collect()
    }

    /// Names of the tensors that the sidecar or the file expects as results: `out.*` and `mid.*`.
    pub fn expected(&self) -> Vec<String> {
        let mut names = self.tensors.names();
        if let Some(listed) = self.sidecar.get("tensors").and_then(Value::as_object) {
            names.extend(listed.keys().cloned());
        }
        names.retain(|name| name.starts_with("out.") || name.starts_with("mid."));
        names.sort();
        names.dedup();
        names
    }

    /// The tolerance that the sidecar gives a tensor.
    pub fn tolerance(&self, name: &str) -> anyhow::Result<Tolerance> {
        match self.sidecar.get("tensors").and_then(|tensors| tensors.get(name)) {
            Some(entry) => {
                Tolerance::deserialize(entry).with_context(|| format!("read the tolerance of {name}"))
            }
            None => Ok(Tolerance::default()),
        }
    }
}
