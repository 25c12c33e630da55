//! Kind `flux`: forward passes, in float32 or bfloat16, with and without adapter.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail};
use crescendo_model::flux::{LoadOptions, Storage};
use crescendo_model::tch::{Kind, Tensor};
use crescendo_model::{Flux, FluxConfig, FluxInputs, LoraAdapter, RopeTable};

use super::compare::Checks;
use super::fixture::Fixture;

/// Tensors of one `in.<case>.*` group.
pub struct CaseInputs {
    pub img: Tensor,
    pub refs: Vec<Tensor>,
    pub txt: Tensor,
    pub vec: Tensor,
    pub timesteps: Tensor,
    pub guidance: Tensor,
    /// Text, target, references: float32 `[batch, tokens, 3]`.
    pub ids: Tensor,
}

impl CaseInputs {
    pub fn read(fixture: &Fixture, case: &str) -> anyhow::Result<Self> {
        let get = |name: &str| fixture.tensor(&format!("in.{case}.{name}"));
        let mut refs = Vec::new();
        let mut ids = vec![get("txt_ids")?, get("img_ids")?];
        for i in 0.. {
            if !fixture.has(&format!("in.{case}.ref{i}")) {
                break;
            }
            refs.push(get(&format!("ref{i}"))?);
            ids.push(get(&format!("ref{i}_ids"))?);
        }
        Ok(Self {
            img: get("img")?,
            refs,
            txt: get("txt")?,
            vec: get("vec")?,
            timesteps: get("timesteps")?,
            guidance: get("guidance")?,
            ids: Tensor::f_cat(&ids, 1)?,
        })
    }

    /// Runs the network on these inputs; `trace` sees the values inside.
    pub fn run(
        &self,
        flux: &Flux,
        adapter: Option<&LoraAdapter>,
        rope: &RopeTable,
        trace: &mut dyn FnMut(&str, &Tensor),
    ) -> anyhow::Result<Tensor> {
        let inputs = FluxInputs {
            img: &self.img,
            refs: &self.refs,
            txt: &self.txt,
            vec: &self.vec,
            timesteps: &self.timesteps,
            guidance: Some(&self.guidance),
            rope,
        };
        Ok(flux.forward_traced(&inputs, adapter, Some(trace))?)
    }
}

/// What a name like `lora_bf16_ids_f32` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    adapter: bool,
    /// `None`: as the weights are stored.
    compute: Option<Kind>,
    /// The adapter stays float32 over a bfloat16 base.
    float_adapter: bool,
    /// Ids are rounded to bfloat16 first.
    rounded_ids: bool,
}

impl Variant {
    fn parse(name: &str) -> anyhow::Result<Self> {
        let (rest, rounded_ids) = if let Some(rest) = name.strip_suffix("_ids_bf16") {
            (rest, true)
        } else {
            (name.strip_suffix("_ids_f32").unwrap_or(name), false)
        };
        let (adapter, compute, float_adapter) = match rest {
            "base" => (false, None, false),
            "lora" => (true, None, false),
            "base_bf16" => (false, Some(Kind::BFloat16), false),
            "lora_bf16" => (true, Some(Kind::BFloat16), false),
            "base_f32" => (false, Some(Kind::Float), false),
            "lora_f32" => (true, Some(Kind::Float), false),
            "lora_f32_adapter" => (true, Some(Kind::BFloat16), true),
            _ => bail!("variant {name} is not known"),
        };
        Ok(Self { adapter, compute, float_adapter, rounded_ids })
    }
}

/// Networks of one fixture by dtype, built when first asked for.
struct Networks<'a> {
    fixture: &'a Fixture,
    config: FluxConfig,
    stored: Kind,
    flux: BTreeMap<bool, Flux>,
    adapters: BTreeMap<bool, LoraAdapter>,
    in_8_bits: Option<Flux>,
}

/// What `precision: fp8` may be off by, as a share of what bfloat16 gives: 0.05 to 0.085 here with rounded weights alone, and
/// the device may round activations too.
const FLOAT8_ERROR: f64 = 0.15;

impl Networks<'_> {
    /// The bfloat16 network with the blocks' weights in 8 bits.
    fn in_8_bits(&mut self) -> anyhow::Result<&Flux> {
        let flux = match self.in_8_bits.take() {
            Some(flux) => flux,
            None => {
                let options = LoadOptions {
                    storage: Storage::ScaledFloat8,
                    ..LoadOptions::resident(Kind::BFloat16, self.fixture.device)
                };
                let weights = self.fixture.group("model.")?;
                Flux::from_tensors_with(&self.config, weights, &self.fixture.name, &options)?
            }
        };
        Ok(self.in_8_bits.insert(flux))
    }

    fn kind(float: bool) -> Kind {
        if float { Kind::Float } else { Kind::BFloat16 }
    }

    fn flux(&mut self, float: bool) -> anyhow::Result<()> {
        if let Entry::Vacant(place) = self.flux.entry(float) {
            let (weights, origin) = (self.fixture.group("model.")?, &self.fixture.name);
            place.insert(Flux::from_tensors(
                &self.config,
                weights,
                origin,
                Self::kind(float),
                self.fixture.device,
            )?);
        }
        Ok(())
    }

    fn adapter(&mut self, float: bool) -> anyhow::Result<()> {
        if let Entry::Vacant(place) = self.adapters.entry(float) {
            let (weights, origin) = (self.fixture.group("lora.")?, &self.fixture.name);
            let adapter = LoraAdapter::from_tensors(
                &self.config,
                weights,
                origin,
                Self::kind(float),
                self.fixture.device,
            )?;
            place.insert(adapter);
        }
        Ok(())
    }
}

/// Runs every `out.<case>.<variant>` and `mid.<case>.<variant>.*`.
pub fn check(fixture: &Fixture, checks: &mut Checks<'_>) -> anyhow::Result<()> {
    let mut wanted = BTreeSet::new();
    for name in fixture.expected() {
        let mut parts = name.split('.').skip(1);
        if let (Some(case), Some(variant)) = (parts.next(), parts.next()) {
            wanted.insert((case.to_owned(), variant.to_owned()));
        }
    }
    let config = fixture.config()?;
    let stored = fixture.tensor("model.img_in.weight")?.kind();
    let mut networks = Networks {
        fixture,
        config,
        stored,
        flux: BTreeMap::new(),
        adapters: BTreeMap::new(),
        in_8_bits: None,
    };
    for (case, name) in wanted {
        let variant = Variant::parse(&name)?;
        let inputs =
            CaseInputs::read(fixture, &case).with_context(|| format!("read the inputs of {case}"))?;
        let float = variant.compute.unwrap_or(networks.stored) == Kind::Float;
        let float_adapter = float || variant.float_adapter;
        networks.flux(float)?;
        if variant.adapter {
            networks.adapter(float_adapter)?;
        }
        let flux = networks.flux.get(&float).context("network was not built")?;
        let adapter = if variant.adapter { networks.adapters.get(&float_adapter) } else { None };
        let ids = if variant.rounded_ids {
            inputs.ids.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?
        } else {
            inputs.ids.shallow_clone()
        };
        let rope = RopeTable::from_ids(&ids, flux.config())?;
        let mut inside = vec![("pe".to_owned(), rope.matrices()?)];
        let output = inputs.run(flux, adapter, &rope, &mut |point, tensor| {
            inside.push((point.to_owned(), tensor.shallow_clone()));
        })?;
        for (point, tensor) in inside {
            checks.compare(&format!("mid.{case}.{name}.{point}"), &tensor)?;
        }
        checks.compare(&format!("out.{case}.{name}"), &output)?;
        if flux.compute_kind() == Kind::BFloat16 && !variant.adapter {
            let approximate = inputs.run(networks.in_8_bits()?, None, &rope, &mut |_, _| {})?;
            checks.near(&format!("out.{case}.{name} in fp8"), &approximate, &output, FLOAT8_ERROR)?;
        }
    }
    Ok(())
}
