//! The adapter: a low-rank update on every attention projection, in the published file layout.
//!
//! Keys are `double_blocks.<i>.processor.{qkv_lora1,proj_lora1,qkv_lora2,proj_lora2}.{down,up}.weight`
//! (1 = image stream, 2 = text stream) and `single_blocks.<i>.processor.{qkv_lora,proj_lora}.{down,up}.weight`;
//! there is no alpha: y = W x + b + up(down(x)), and the rank is the number of rows of any `down`
//! (bytedance/UNO `uno/flux/modules/layers.py`). A file may hold a subset of the blocks; the others run
//! without adapter.

use std::collections::BTreeSet;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::config::FluxConfig;
use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::header::Header;
use crate::layers::{Linear, cast};
use crate::lora_names::{self, AdapterForm, Plan};
use crate::params::{Init, Loader, ParamSource};
use crate::randomness::NormalStream;
use crate::weight_files::WeightFiles;
use crate::weights::{self, TensorMap};

/// One low-rank update: `down` `[rank, in]`, `up` `[out, rank]`.
#[derive(Debug)]
pub(crate) struct LoraPair {
    down: Tensor,
    up: Tensor,
    /// Dtype of the two products; that of the weights if none is set.
    compute: Option<Kind>,
    /// Copies of both in that dtype, which whoever trains the weights keeps up to date.
    shadow: Option<(Tensor, Tensor)>,
    /// `down`'s copy in front of the frozen layer's weights, kept up to date likewise.
    joined: Option<Joined>,
}

/// A layer of `down`'s outputs and then a frozen layer's: one product gives both.
#[derive(Debug)]
pub(crate) struct Joined {
    pub layer: Linear,
    /// Outputs of `down`.
    pub rank: i64,
}

impl LoraPair {
    /// `down` and `up` in the dtype of the products, without their graph.
    pub fn factors(&self) -> Result<(Tensor, Tensor)> {
        match &self.shadow {
            Some((down, up)) => Ok((down.shallow_clone(), up.shallow_clone())),
            None => self.cast_factors(),
        }
    }

    pub fn joined(&self) -> Option<&Joined> {
        self.joined.as_ref()
    }

    /// Moves `layer`'s weights behind a copy of `down` in one tensor, of which `layer` keeps its part; returns the copy, which is
    /// to follow `down` from now on. Both are of one dtype and frozen or without their graph.
    pub fn join(&mut self, layer: &mut Linear) -> Result<Tensor> {
        let (down, _) = self.factors()?;
        let rank = down.size2()?.0;
        let own = |joined: &Tensor| -> Result<Tensor> {
            let outputs = joined.size().first().copied().unwrap_or(rank) - rank;
            Ok(joined.f_narrow(0, rank, outputs)?)
        };
        let weight = tch::no_grad(|| Tensor::f_cat(&[&down, &layer.weight], 0))?;
        layer.weight = own(&weight)?;
        let bias = match &mut layer.bias {
            Some(bias) => {
                let none = Tensor::f_zeros([rank], (bias.f_kind()?, bias.device()))?;
                let joined = Tensor::f_cat(&[&none, bias], 0)?;
                *bias = own(&joined)?;
                Some(joined)
            }
            None => None,
        };
        let copy = weight.f_narrow(0, 0, rank)?;
        self.joined = Some(Joined { layer: Linear { weight, bias, scale: None }, rank });
        Ok(copy)
    }

    fn cast_factors(&self) -> Result<(Tensor, Tensor)> {
        let compute = match self.compute {
            Some(compute) => compute,
            None => self.down.f_kind()?,
        };
        Ok((cast(&self.down, compute)?, cast(&self.up, compute)?))
    }

    /// up(down(x)), computed in the adapter's own dtype (or the one that was set) and cast back to that of `x`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (down, up) = self.cast_factors()?;
        let update =
            cast(x, down.f_kind()?)?.f_linear(&down, None::<&Tensor>)?.f_linear(&up, None::<&Tensor>)?;
        cast(&update, x.f_kind()?)
    }

    fn visit_mut(&mut self, name: &str, visit: &mut dyn FnMut(String, &mut Tensor)) {
        visit(format!("{name}.down.weight"), &mut self.down);
        visit(format!("{name}.up.weight"), &mut self.up);
    }
}

/// Updates of one double block.
#[derive(Debug)]
pub(crate) struct DoubleLora {
    pub qkv_img: LoraPair,
    pub proj_img: LoraPair,
    pub qkv_txt: LoraPair,
    pub proj_txt: LoraPair,
}

/// Updates of one single block.
#[derive(Debug)]
pub(crate) struct SingleLora {
    pub qkv: LoraPair,
    pub proj: LoraPair,
}

/// The blocks that an adapter covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSelection {
    pub double: BTreeSet<i64>,
    pub single: BTreeSet<i64>,
}

impl BlockSelection {
    /// Every block of a network, as published.
    pub fn all(config: &FluxConfig) -> Self {
        Self { double: (0..config.depth).collect(), single: (0..config.depth_single_blocks).collect() }
    }
}

/// Rank bounds: 1 up to what no network here can make use of.
const LARGEST_RANK: i64 = 16_384;

/// A LoRA over a network of a given configuration.
#[derive(Debug)]
pub struct LoraAdapter {
    rank: i64,
    double: Vec<Option<DoubleLora>>,
    single: Vec<Option<SingleLora>>,
}

impl LoraAdapter {
    /// A fresh adapter: `down` normal with standard deviation 1/rank, `up` zero, so that it changes nothing at first.
    /// Each tensor is drawn from (`seed`, its name) alone.
    pub fn init(
        config: &FluxConfig,
        rank: i64,
        blocks: &BlockSelection,
        seed: u64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        check_rank(rank)?;
        for (sort, chosen, depth) in
            [("double", &blocks.double, config.depth), ("single", &blocks.single, config.depth_single_blocks)]
        {
            if let Some(block) = chosen.iter().find(|i| !(0..depth).contains(*i)) {
                return Err(ModelError::Config {
                    field: "blocks",
                    reason: format!("{sort} block {block} does not exist, there are {depth}"),
                });
            }
        }
        Self::build(config, rank, blocks, &mut |name, shape| {
            if name.ends_with(".up.weight") {
                return Ok(Tensor::f_zeros(shape, (kind, device))?);
            }
            let normal = NormalStream::for_weight(seed, name).tensor(shape)?;
            Ok(normal.f_div_scalar(rank as f64)?.f_to_kind(kind)?.f_to_device(device)?)
        })
    }

    /// Loads an adapter file strictly: rank and covered blocks are read from the file, and every missing,
    /// unexpected or misshapen tensor, or one that is no float, is listed by name. Names of other trainers are read as those of
    /// [`lora_names`] are.
    pub fn load(config: &FluxConfig, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        let files = WeightFiles::open_adapter(path)?;
        let (header, origin) = (files.header(), lora_names::origin(&files));
        if let None | Some(AdapterForm::Published) = AdapterForm::of(&header) {
            return Self::from_loader(
                config,
                &shapes_of(&header),
                Loader::from_files(files, kind, device),
                &origin,
            );
        }
        Self::from_tensors(config, lora_names::published_tensors(&files)?, &origin, kind, device)
    }

    /// Holds the header of the adapter at `path` against `config`, as [`LoraAdapter::load`] would, and reads no tensor.
    pub fn check_files(config: &FluxConfig, path: &Path) -> Result<()> {
        let files = WeightFiles::open_adapter(path)?;
        let (mut header, origin) = (files.header(), lora_names::origin(&files));
        if let Some(AdapterForm::Kohya | AdapterForm::Peft) = AdapterForm::of(&header) {
            let plan = Plan::of(&header);
            header = plan.published(&header);
            if !plan.problems.is_empty() {
                return Err(ModelError::Weights { origin, problems: plan.problems });
            }
        }
        Self::from_loader(config, &shapes_of(&header), Loader::from_header(header), &origin)?;
        Ok(())
    }

    /// [`LoraAdapter::load`] from tensors in memory; `origin` is what an error calls their source.
    pub fn from_tensors(
        config: &FluxConfig,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let shapes: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
        Self::from_loader(config, &shapes, Loader::from_map(tensors, kind, device), origin)
    }

    fn from_loader(
        config: &FluxConfig,
        shapes: &[(String, Vec<i64>)],
        mut loader: Loader,
        origin: &str,
    ) -> Result<Self> {
        config.validate()?;
        let fail = |problems| Err(ModelError::Weights { origin: origin.to_owned(), problems });
        let mut blocks = BlockSelection { double: BTreeSet::new(), single: BTreeSet::new() };
        for (name, _) in shapes {
            if let Some(index) = block_index(name, "double_blocks.").filter(|i| *i < config.depth) {
                blocks.double.insert(index);
            } else if let Some(index) =
                block_index(name, "single_blocks.").filter(|i| *i < config.depth_single_blocks)
            {
                blocks.single.insert(index);
            }
        }
        let down = shapes.iter().find(|(name, shape)| name.ends_with(".down.weight") && shape.len() == 2);
        let Some((down_name, rank)) = down.map(|(name, shape)| (name, shape[0])) else {
            return fail(vec![TensorProblem {
                tensor: "double_blocks.0.processor.qkv_lora1.down.weight".to_owned(),
                kind: ProblemKind::Missing,
            }]);
        };
        check_rank(rank).map_err(|_| {
            ModelError::input(
                down_name.as_str(),
                format!("{origin} has rank {rank}, not within 1..={LARGEST_RANK}"),
            )
        })?;
        let adapter =
            Self::build(config, rank, &blocks, &mut |name, shape| loader.take(name, shape, Init::Zero))?;
        loader.finish(origin)?;
        Ok(adapter)
    }

    fn build(
        config: &FluxConfig,
        rank: i64,
        blocks: &BlockSelection,
        take: &mut dyn FnMut(&str, &[i64]) -> Result<Tensor>,
    ) -> Result<Self> {
        let (hidden, mlp) = (config.hidden_size, config.mlp_hidden());
        let mut pair = |name: String, input: i64, output: i64| -> Result<LoraPair> {
            Ok(LoraPair {
                down: take(&format!("{name}.down.weight"), &[rank, input])?,
                up: take(&format!("{name}.up.weight"), &[output, rank])?,
                compute: None,
                shadow: None,
                joined: None,
            })
        };
        let mut double = Vec::new();
        for i in 0..config.depth {
            let prefix = format!("double_blocks.{i}.processor");
            double.push(if blocks.double.contains(&i) {
                Some(DoubleLora {
                    qkv_img: pair(format!("{prefix}.qkv_lora1"), hidden, 3 * hidden)?,
                    proj_img: pair(format!("{prefix}.proj_lora1"), hidden, hidden)?,
                    qkv_txt: pair(format!("{prefix}.qkv_lora2"), hidden, 3 * hidden)?,
                    proj_txt: pair(format!("{prefix}.proj_lora2"), hidden, hidden)?,
                })
            } else {
                None
            });
        }
        let mut single = Vec::new();
        for i in 0..config.depth_single_blocks {
            let prefix = format!("single_blocks.{i}.processor");
            single.push(if blocks.single.contains(&i) {
                Some(SingleLora {
                    qkv: pair(format!("{prefix}.qkv_lora"), hidden, 3 * hidden)?,
                    proj: pair(format!("{prefix}.proj_lora"), hidden + mlp, hidden)?,
                })
            } else {
                None
            });
        }
        Ok(Self { rank, double, single })
    }

    /// Published name and shape of every weight of an adapter, in forward order.
    pub fn layout(
        config: &FluxConfig,
        rank: i64,
        blocks: &BlockSelection,
    ) -> Result<Vec<(String, Vec<i64>)>> {
        config.validate()?;
        check_rank(rank)?;
        let mut shapes = Vec::new();
        Self::build(config, rank, blocks, &mut |name, shape| {
            shapes.push((name.to_owned(), shape.to_vec()));
            Ok(Tensor::new())
        })?;
        Ok(shapes)
    }

    pub fn rank(&self) -> i64 {
        self.rank
    }

    /// Computes the update in `compute` whatever dtype the weights have: published training keeps float32 weights under
    /// bfloat16 arithmetic.
    pub fn set_compute_kind(&mut self, compute: Kind) {
        for (_, pair) in self.pairs_mut() {
            pair.compute = Some(compute);
        }
    }

    /// Computes with these copies of the weights, by published name, where no gradient is recorded.
    pub(crate) fn set_shadow(&mut self, parts: &TensorMap) -> Result<()> {
        let part = |name: String| {
            let part = parts.get(&name).map(Tensor::shallow_clone);
            part.ok_or_else(|| ModelError::input(name, "has no copy in the dtype of the arithmetic"))
        };
        for (name, pair) in self.pairs_mut() {
            pair.shadow = Some((part(format!("{name}.down.weight"))?, part(format!("{name}.up.weight"))?));
        }
        Ok(())
    }

    pub(crate) fn double(&self, index: usize) -> Option<&DoubleLora> {
        self.double.get(index)?.as_ref()
    }

    pub(crate) fn single(&self, index: usize) -> Option<&SingleLora> {
        self.single.get(index)?.as_ref()
    }

    /// Refuses an adapter made for a network with another number of blocks.
    pub(crate) fn check_blocks(&self, double: usize, single: usize) -> Result<()> {
        if (self.double.len(), self.single.len()) == (double, single) {
            Ok(())
        } else {
            Err(ModelError::input(
                "adapter",
                format!(
                    "is for {} double and {} single blocks, the network has {double} and {single}",
                    self.double.len(),
                    self.single.len()
                ),
            ))
        }
    }

    /// Calls `visit` with the published name and the tensor of every weight, in forward order.
    pub(crate) fn visit_mut(&mut self, visit: &mut dyn FnMut(String, &mut Tensor)) {
        for (name, pair) in self.pairs_mut() {
            pair.visit_mut(&name, visit);
        }
    }

    /// Every update under its published name, in forward order.
    pub(crate) fn pairs_mut(&mut self) -> impl Iterator<Item = (String, &mut LoraPair)> {
        let double = self.double.iter_mut().enumerate().filter_map(|(i, lora)| Some((i, lora.as_mut()?)));
        let double = double.flat_map(|(i, lora)| {
            let DoubleLora { qkv_img, proj_img, qkv_txt, proj_txt } = lora;
            let pairs = [
                ("qkv_lora1", qkv_img),
                ("proj_lora1", proj_img),
                ("qkv_lora2", qkv_txt),
                ("proj_lora2", proj_txt),
            ];
            pairs.map(|(name, pair)| (format!("double_blocks.{i}.processor.{name}"), pair))
        });
        let single = self.single.iter_mut().enumerate().filter_map(|(i, lora)| Some((i, lora.as_mut()?)));
        let single = single.flat_map(|(i, SingleLora { qkv, proj })| {
            [("qkv_lora", qkv), ("proj_lora", proj)]
                .map(|(name, pair)| (format!("single_blocks.{i}.processor.{name}"), pair))
        });
        double.chain(single)
    }

    /// Weights by published key (sharing storage with the adapter).
    pub fn tensors(&mut self) -> TensorMap {
        let mut map = TensorMap::new();
        self.visit_mut(&mut |name, tensor| {
            map.insert(name, tensor.shallow_clone());
        });
        map
    }

    /// Multiplies `down` and `up` alike by `weight`, as the published loading path with a multiplier
    /// does: the adapter's effect scales by `weight` squared.
    pub fn multiply(&mut self, weight: f64) -> Result<()> {
        let mut outcome = Ok(());
        tch::no_grad(|| {
            self.visit_mut(&mut |_, tensor| match tensor.f_mul_scalar(weight) {
                Ok(scaled) => *tensor = scaled,
                Err(error) => outcome = Err(error.into()),
            });
        });
        outcome
    }

    /// Scales the adapter's effect by `weight`: multiplies every `up`, and nothing else.
    pub fn scale_effect(&mut self, weight: f64) -> Result<()> {
        let mut outcome = Ok(());
        tch::no_grad(|| {
            self.visit_mut(&mut |name, tensor| {
                if name.ends_with(".up.weight") {
                    match tensor.f_mul_scalar(weight) {
                        Ok(scaled) => *tensor = scaled,
                        Err(error) => outcome = Err(error.into()),
                    }
                }
            });
        });
        outcome
    }

    /// Writes the adapter as published code reads it: bare keys, `{"format": "pt"}`, atomically.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        weights::save(path, &self.tensors(), &weights::published_strings())
    }
}

fn check_rank(rank: i64) -> Result<()> {
    if (1..=LARGEST_RANK).contains(&rank) {
        Ok(())
    } else {
        Err(ModelError::Config { field: "rank", reason: format!("{rank} is not within 1..={LARGEST_RANK}") })
    }
}

fn shapes_of(header: &Header) -> Vec<(String, Vec<i64>)> {
    header.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
}

fn block_index(name: &str, prefix: &str) -> Option<i64> {
    name.strip_prefix(prefix)?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config() -> FluxConfig {
        FluxConfig {
            depth: 1,
            depth_single_blocks: 2,
            hidden_size: 24,
            num_heads: 2,
            axes_dim: vec![4, 4, 4],
            ..FluxConfig::nano()
        }
    }

    fn adapter() -> LoraAdapter {
        LoraAdapter::init(&config(), 8, &BlockSelection::all(&config()), 3, Kind::Float, Device::Cpu).unwrap()
    }

    fn reload(tensors: TensorMap) -> Result<LoraAdapter> {
        LoraAdapter::from_tensors(&config(), tensors, "dit_lora.safetensors", Kind::Float, Device::Cpu)
    }

    #[test]
    fn a_fresh_adapter_has_the_published_names_and_changes_nothing() {
        let tensors = adapter().tensors();
        assert_eq!(tensors.len(), 8 + 2 * 4);
        assert_eq!(tensors["single_blocks.1.processor.proj_lora.down.weight"].size(), [8, 24 + 96]);
        for (name, tensor) in &tensors {
            if name.ends_with("up.weight") {
                assert_eq!(tensor.abs().max().double_value(&[]), 0.0, "{name}");
            } else {
                let std = tensor.std(true).double_value(&[]);
                assert!((std * 8.0 - 1.0).abs() < 0.3, "{name}: {std}");
            }
        }
        assert_eq!(tensors, adapter().tensors());
    }

    #[test]
    fn files_round_trip_with_any_subset_of_blocks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dit_lora.safetensors");
        adapter().save(&path).unwrap();
        let mut loaded = LoraAdapter::load(&config(), &path, Kind::Float, Device::Cpu).unwrap();
        assert_eq!((loaded.rank(), loaded.tensors()), (8, adapter().tensors()));
        let mut some = adapter().tensors();
        some.retain(|name, _| name.starts_with("single_blocks.1."));
        let partial = reload(some).unwrap();
        assert!(partial.double(0).is_none() && partial.single(0).is_none() && partial.single(1).is_some());
    }

    #[test]
    fn every_problem_of_a_file_is_listed_by_name() {
        let mut tensors = adapter().tensors();
        tensors.remove("double_blocks.0.processor.qkv_lora2.up.weight");
        let wrong = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        tensors.insert(
            "double_blocks.0.processor.proj_lora1.up.weight".to_owned(),
            wrong(&[24, 7], Kind::Float),
        );
        tensors.insert(
            "single_blocks.0.processor.qkv_lora.down.weight".to_owned(),
            wrong(&[8, 24], Kind::Int64),
        );
        tensors.insert(
            "single_blocks.5.processor.qkv_lora.down.weight".to_owned(),
            wrong(&[8, 24], Kind::Float),
        );
        tensors.insert("module.alpha".to_owned(), wrong(&[1], Kind::Float));
        let text = reload(tensors).unwrap_err().to_string();
        for part in [
            "dit_lora.safetensors",
            "double_blocks.0.processor.qkv_lora2.up.weight is missing",
            "double_blocks.0.processor.proj_lora1.up.weight has shape [24, 7], expected [24, 8]",
            "single_blocks.0.processor.qkv_lora.down.weight has dtype Int64",
            "single_blocks.5.processor.qkv_lora.down.weight is unexpected",
            "module.alpha is unexpected",
        ] {
            assert!(text.contains(part), "{part} not in: {text}");
        }
        assert!(reload(TensorMap::new()).is_err());
        let hollow = BTreeMap::from([(
            "single_blocks.0.processor.qkv_lora.down.weight".to_owned(),
            wrong(&[0, 24], Kind::Float),
        )]);
        assert!(reload(hollow).is_err());
    }

    #[test]
    fn ranks_and_blocks_out_of_range_are_refused() {
        let all = BlockSelection::all(&config());
        for rank in [0, -1, LARGEST_RANK + 1] {
            assert!(LoraAdapter::init(&config(), rank, &all, 0, Kind::Float, Device::Cpu).is_err());
        }
        let beyond = BlockSelection { double: BTreeSet::from([1]), ..all };
        assert!(LoraAdapter::init(&config(), 4, &beyond, 0, Kind::Float, Device::Cpu).is_err());
    }

    #[test]
    fn a_multiplier_acts_on_down_and_up() {
        let mut scaled = adapter();
        scaled.multiply(0.5).unwrap();
        for (name, tensor) in adapter().tensors() {
            assert_eq!(scaled.tensors()[&name], tensor * 0.5, "{name}");
        }
    }
}
