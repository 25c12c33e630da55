//! Kind `lora`: the adapter file and both published loading paths.

use std::collections::BTreeMap;

use anyhow::Context;
use crescendo_model::tch::{Kind, Tensor};
use crescendo_model::weights::TensorFile;
use crescendo_model::{Flux, FluxConfig, LoraAdapter, RopeTable};
use serde_json::Value;

use super::compare::Checks;
use super::fixture::Fixture;
use super::flux::CaseInputs;

pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let config = fixture.config()?;
    let cases: BTreeMap<String, Value> = fixture.part("cases")?;
    let case = cases.keys().next().context("sidecar has no case")?;
    let inputs = CaseInputs::read(fixture, case)?;
    let flux =
        Flux::from_tensors(&config, fixture.group("model.")?, &fixture.name, Kind::Float, fixture.device)?;
    let rope = RopeTable::from_ids(&inputs.ids, &config)?;
    let run = |adapter: Option<&LoraAdapter>| inputs.run(&flux, adapter, &rope, &mut |_, _| {});
    let stored = || -> anyhow::Result<LoraAdapter> {
        Ok(LoraAdapter::from_tensors(
            &config,
            fixture.group("lora.")?,
            &fixture.name,
            Kind::Float,
            fixture.device,
        )?)
    };

    checks.compare("out.base", &run(None)?)?;
    let loaded = match file(fixture, checks, &config)? {
        Some(adapter) => adapter,
        None => stored()?,
    };
    checks.compare("out.loaded_as_is", &run(Some(&loaded))?)?;

    let weights: Vec<Value> = fixture.part("weights")?;
    let partial: Vec<String> = fixture.optional_part("partial_blocks")?.unwrap_or_default();
    for (i, weight) in weights.iter().enumerate() {
        let factor = weight.as_f64().context("weight is no number")?;
        let mut adapter = stored()?;
        adapter.multiply(factor)?;
        if i == 0 {
            for (key, tensor) in adapter.tensors() {
                checks.compare(&format!("out.tensors_after_update.{key}"), &tensor)?;
            }
        }
        checks.compare(&format!("out.update_w{weight}"), &run(Some(&adapter))?)?;
        let mut chosen = fixture.group("lora.")?;
        chosen.retain(|key, _| partial.iter().any(|block| key.starts_with(block)));
        if chosen.is_empty() {
            continue;
        }
        let mut adapter =
            LoraAdapter::from_tensors(&config, chosen, &fixture.name, Kind::Float, fixture.device)?;
        adapter.multiply(factor)?;
        checks.compare(&format!("out.update_partial_w{weight}"), &run(Some(&adapter))?)?;
    }
    Ok(())
}

/// Loads the extra adapter file, holds it against the stored tensors, and holds a file that we write against it.
fn file(
    fixture: &Fixture,
    checks: &mut Checks<'_>,
    config: &FluxConfig,
) -> anyhow::Result<Option<LoraAdapter>> {
    let extra: Vec<String> = fixture.optional_part("extra_files")?.unwrap_or_default();
    let Some(name) = extra.first() else {
        return Ok(None);
    };
    let path = fixture.path.with_file_name(name);
    let mut adapter = LoraAdapter::load(config, &path, Kind::Float, fixture.device)?;
    let stored = fixture.group("lora.")?;
    let loaded = adapter.tensors();
    checks.require("file.keys", loaded.keys().eq(stored.keys()), || {
        "keys differ from the stored adapter's".to_owned()
    });
    for (key, tensor) in &loaded {
        if let Some(expected) = stored.get(key) {
            checks.equal(&format!("file.loaded.{key}"), tensor, expected)?;
        }
    }
    let folder = tempfile::tempdir().context("create a temporary folder")?;
    let written = folder.path().join(crescendo_dataset::checkpoint::ADAPTER_FILE);
    adapter.save(&written)?;
    let (ours, theirs) = (TensorFile::open(&written)?, TensorFile::open(&path)?);
    checks.require("file.header", ours.strings() == theirs.strings(), || {
        format!("{:?}, expected {:?}", ours.strings(), theirs.strings())
    });
    checks.require("file.names", ours.names() == theirs.names(), || "names differ".to_owned());
    for name in theirs.names() {
        checks.require(&format!("file.layout.{name}"), ours.info(&name) == theirs.info(&name), || {
            format!("{:?}, expected {:?}", ours.info(&name), theirs.info(&name))
        });
        let expected: Tensor = theirs.tensor(&name)?;
        checks.equal(&format!("file.saved.{name}"), &ours.tensor(&name)?, &expected)?;
    }
    Ok(Some(adapter))
}
