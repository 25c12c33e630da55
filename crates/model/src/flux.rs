//! The FLUX-style diffusion transformer with reference images.
//!
//! ```text
//!  txt ─ txt_in ──────────────┐                                  ┌─ text, references: cut away
//!  target, ref 0.. ─ img_in ──┼─ double blocks ─ concat ─ single ┤
//!  time, guidance, pooled ────┴─ vec (modulates every block)     └─ target ─ final layer ─ velocity
//! ```
//!
//! Weights are held under the names of the published checkpoints. The order of tokens is text, target,
//! reference 0, reference 1, …; references go through the target's input projection and travel in the
//! image stream (bytedance/UNO `uno/flux/model.py`, `uno/flux/modules/layers.py`).
//!
//! The pieces (stem, blocks, head) are public to the crate, because training runs them one at a time.

mod arithmetic;
mod blocks;
#[cfg(test)]
mod full_width_tests;
mod layers;
mod placement;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use arithmetic::{StepTokens, forward_flops, step_flops};
pub(crate) use blocks::{DoubleBlock, Head, SingleBlock, Stem, Stream};
pub(crate) use layers::{NORM_EPS, fused_attention};
pub use placement::{LoadOptions, Offload, Storage};
use placement::{Placing, Staged, run_ahead, stage};
pub use rope::{RopeCache, RopeTable};

use crate::config::FluxConfig;
use crate::error::{ModelError, Result, TensorProblem};
use crate::header::Header;
use crate::lora::LoraAdapter;
use crate::naming::Network;
use crate::params::{Loader, Noise, Outline, ParamSource, SeededInit, check_files, none_of};
use crate::weight_files::WeightFiles;
use crate::weights::TensorMap;

/// The transformer: configuration and weights.
#[derive(Debug)]
pub struct Flux {
    config: FluxConfig,
    pub(crate) stem: Stem,
    pub(crate) double_blocks: Vec<DoubleBlock>,
    pub(crate) single_blocks: Vec<SingleBlock>,
    pub(crate) head: Head,
    /// Dtype that activations flow in; weights of another dtype are cast where they are used.
    compute: Kind,
    /// Whether the blocks' weights lie on the host and are brought to the device for each use.
    blocks_on_host: bool,
}

/// Inputs of one forward pass. All on the network's device; float dtypes are cast to the compute dtype.
#[derive(Debug)]
pub struct FluxInputs<'a> {
    /// Target tokens `[batch, target tokens, in_channels]`.
    pub img: &'a Tensor,
    /// Reference tokens, each `[batch, its tokens, in_channels]`; never noised.
    pub refs: &'a [Tensor],
    /// Text tokens `[batch, text tokens, context_in_dim]`.
    pub txt: &'a Tensor,
    /// Pooled text `[batch, vec_in_dim]`.
    pub vec: &'a Tensor,
    /// Times in [0, 1], `[batch]`. **Their dtype decides how the time sinusoid is rounded**: published
    /// bfloat16 models round 1000 · t to bfloat16 first, a float32 tensor keeps t exact.
    pub timesteps: &'a Tensor,
    /// Guidance values `[batch]`, dtype as `timesteps`; required if the network has the embedding, ignored otherwise.
    pub guidance: Option<&'a Tensor>,
    /// Rotary table of text, target and references in that order ([`RopeTable::from_ids`]).
    pub rope: &'a RopeTable,
}

/// Receives values inside the network by name: `img_in`, `txt_in`, `vec`, `double0.img`, `double0.txt`, …, `single0`, ….
pub type Trace<'a> = &'a mut dyn FnMut(&str, &Tensor);

impl Flux {
    /// Builds the network from tensors under published names, each checked for name, shape and float
    /// dtype; every problem is listed at once. `origin` is what the error calls the tensors' source.
    pub fn from_tensors(
        config: &FluxConfig,
        tensors: TensorMap,
        origin: &str,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        config.validate()?;
        let mut loader = Loader::from_map(tensors, kind, device);
        let flux = Self::build(config, kind, &mut loader)?;
        loader.finish(origin)?;
        Ok(flux)
    }

    /// Loads the network from a safetensors file, an index of several or a folder ([`WeightFiles::open`]) into `kind` on
    /// `device`, one tensor at a time.
    pub fn load(config: &FluxConfig, path: &Path, kind: Kind, device: Device) -> Result<Self> {
        config.validate()?;
        let files = Self::fitting(config, path)?;
        let origin = files.origin();
        let mut loader = Loader::from_files(files, kind, device);
        let flux = Self::build(config, kind, &mut loader)?;
        loader.finish(&origin)?;
        Ok(flux)
    }

    /// Holds the headers of the files at `path` against `config`, as [`Flux::load`] would, and reads no tensor.
    pub fn check_files(config: &FluxConfig, path: &Path) -> Result<()> {
        check_files(path, Network::Transformer, |header| Self::problems(config, header))
    }

    /// The opened files, once their headers fit: reading tens of gigabytes takes minutes, and so would the refusal.
    fn fitting(config: &FluxConfig, path: &Path) -> Result<WeightFiles> {
        let files = WeightFiles::open_as(path, Network::Transformer)?;
        none_of(Self::problems(config, files.header())?, &files.origin())?;
        Ok(files)
    }

    /// Everything in a header, under published names, that does not fit.
    pub(crate) fn problems(config: &FluxConfig, header: Header) -> Result<Vec<TensorProblem>> {
        config.validate()?;
        let mut loader = Loader::from_header(header);
        Self::build(config, Kind::Float, &mut loader)?;
        Ok(loader.into_problems())
    }

    /// [`Flux::load`] with a choice of how weights are stored and where they lie.
    pub fn load_with(config: &FluxConfig, path: &Path, options: &LoadOptions) -> Result<Self> {
        let files = Self::fitting(config, path)?;
        Self::placed(config, &files.origin(), options, |kind, device| Loader::from_files(files, kind, device))
    }

    /// [`Flux::from_tensors`] with a choice of how weights are stored and where they lie.
    pub fn from_tensors_with(
        config: &FluxConfig,
        tensors: TensorMap,
        origin: &str,
        options: &LoadOptions,
    ) -> Result<Self> {
        Self::placed(config, origin, options, |kind, device| Loader::from_map(tensors, kind, device))
    }

    fn placed(
        config: &FluxConfig,
        origin: &str,
        options: &LoadOptions,
        loader: impl FnOnce(Kind, Device) -> Loader,
    ) -> Result<Self> {
        config.validate()?;
        let mut loader = loader(options.kind_read(), options.device_read());
        let mut placing = Placing::new(&mut loader, options);
        let mut flux = Self::build(config, options.compute, &mut placing)?;
        let unfit = placing.finish(origin);
        loader.finish(origin)?;
        unfit?;
        flux.blocks_on_host = options.blocks == Offload::Host;
        Ok(flux)
    }

    /// A network of the right size and cost with weights that mean nothing, built on the device: for measuring.
    pub fn synthetic(config: &FluxConfig, seed: u64, options: &LoadOptions) -> Result<Self> {
        config.validate()?;
        let mut noise = Noise::new(seed, options.kind_read(), options.device_read())?;
        let mut placing = Placing::new(&mut noise, options);
        let mut flux = Self::build(config, options.compute, &mut placing)?;
        placing.finish("noise")?;
        flux.blocks_on_host = options.blocks == Offload::Host;
        Ok(flux)
    }

    /// Published name and shape of every weight of a network of this configuration, in forward order.
    pub fn layout(config: &FluxConfig) -> Result<Vec<(String, Vec<i64>)>> {
        config.validate()?;
        let mut outline = Outline::default();
        Self::build(config, Kind::Float, &mut outline)?;
        Ok(outline.shapes)
    }

    /// A fresh network: modulations and final layer zero, so that every block starts as the identity;
    /// other matrices normal with Xavier's variance; all drawn from `seed` alone, the same on every machine.
    pub fn init(config: &FluxConfig, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        config.validate()?;
        Self::build(config, kind, &mut SeededInit::new(seed, kind, device))
    }

    fn build(config: &FluxConfig, compute: Kind, source: &mut dyn ParamSource) -> Result<Self> {
        Ok(Self {
            stem: Stem::build(config, source)?,
            double_blocks: (0..config.depth)
                .map(|i| DoubleBlock::build(config, &format!("double_blocks.{i}"), source))
                .collect::<Result<_>>()?,
            single_blocks: (0..config.depth_single_blocks)
                .map(|i| SingleBlock::build(config, &format!("single_blocks.{i}"), source))
                .collect::<Result<_>>()?,
            head: Head::build(config, source)?,
            config: config.clone(),
            compute,
            blocks_on_host: false,
        })
    }

    /// Double block `index` on the network's device, if there is one.
    pub(crate) fn double(&self, index: usize) -> Result<Option<Staged<'_, DoubleBlock>>> {
        self.double_blocks.get(index).map(|block| stage(block, self.staging())).transpose()
    }

    /// Single block `index` on the network's device, if there is one.
    pub(crate) fn single(&self, index: usize) -> Result<Option<Staged<'_, SingleBlock>>> {
        self.single_blocks.get(index).map(|block| stage(block, self.staging())).transpose()
    }

    /// Where blocks are brought to before use; none if they lie there.
    fn staging(&self) -> Option<Device> {
        self.blocks_on_host.then(|| self.device())
    }

    /// Whether the weights are stored in a way that can only be read.
    pub(crate) fn is_frozen(&self) -> bool {
        self.blocks_on_host
            || self.stem.img_in.weight.kind() == Kind::Float8e4m3fn
            || self.has_scaled_weights()
    }

    /// Whether blocks use weights that are made for each use (brought from the host or cast), so that a graph which
    /// is kept keeps a copy of them.
    pub(crate) fn weights_are_copied(&self) -> bool {
        self.blocks_on_host || self.stem.img_in.weight.kind() != self.compute || self.has_scaled_weights()
    }

    fn has_scaled_weights(&self) -> bool {
        let first = self.single_blocks.first().map(|block| &block.linear1);
        let first = first.or_else(|| self.double_blocks.first().map(|block| &block.img.qkv));
        first.is_some_and(|layer| layer.scale.is_some())
    }

    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    pub fn compute_kind(&self) -> Kind {
        self.compute
    }

    /// Changes the dtype that activations flow in; weights keep theirs (mixed-precision training keeps
    /// float32 weights under bfloat16 activations).
    pub fn set_compute_kind(&mut self, compute: Kind) {
        self.compute = compute;
    }

    pub fn device(&self) -> Device {
        self.stem.img_in.weight.device()
    }

    /// Calls `visit` with the published name and the tensor of every weight, in forward order.
    pub(crate) fn visit_mut(&mut self, visit: &mut dyn FnMut(String, &mut Tensor)) {
        self.stem.visit_mut(visit);
        for (i, block) in self.double_blocks.iter_mut().enumerate() {
            block.visit_mut(&format!("double_blocks.{i}"), visit);
        }
        for (i, block) in self.single_blocks.iter_mut().enumerate() {
            block.visit_mut(&format!("single_blocks.{i}"), visit);
        }
        self.head.visit_mut(visit);
    }

    /// Weights by published name (sharing storage with the network).
    pub fn tensors(&mut self) -> TensorMap {
        let mut map = TensorMap::new();
        self.visit_mut(&mut |name, tensor| {
            map.insert(name, tensor.shallow_clone());
        });
        map
    }

    /// Number of weights.
    pub fn parameter_count(&mut self) -> usize {
        let mut count = 0;
        self.visit_mut(&mut |_, tensor| count += tensor.numel());
        count
    }

    /// The velocity (noise minus data) at the given times: `[batch, target tokens, in_channels]` in the
    /// compute dtype. Runs without recording gradients.
    pub fn forward(&self, inputs: &FluxInputs<'_>, adapter: Option<&LoraAdapter>) -> Result<Tensor> {
        self.forward_traced(inputs, adapter, None)
    }

    /// [`Flux::forward`] that shows values inside the network to `trace`.
    pub fn forward_traced(
        &self,
        inputs: &FluxInputs<'_>,
        adapter: Option<&LoraAdapter>,
        mut trace: Option<Trace<'_>>,
    ) -> Result<Tensor> {
        self.check(inputs)?;
        if let Some(adapter) = adapter {
            adapter.check_blocks(self.double_blocks.len(), self.single_blocks.len())?;
        }
        tch::no_grad(|| {
            let mut note = |name: &str, tensor: &Tensor| {
                if let Some(trace) = trace.as_mut() {
                    trace(name, tensor);
                }
            };
            let stem = self.stem.forward(inputs, self.compute)?;
            note("img_in", &stem.img);
            note("txt_in", &stem.txt);
            note("vec", &stem.vec);
            let vec_act = stem.vec.f_silu()?;
            let (mut img, mut txt) = (stem.img, stem.txt);
            run_ahead(&self.double_blocks, self.staging(), |i, block| {
                let lora = adapter.and_then(|a| a.double(i));
                (img, txt) = block.forward(&img, &txt, &vec_act, inputs.rope, lora)?;
                note(&format!("double{i}.img"), &img);
                note(&format!("double{i}.txt"), &txt);
                Ok(())
            })?;
            let text_tokens = inputs.txt.size()[1];
            let mut x = Tensor::f_cat(&[txt, img], 1)?;
            run_ahead(&self.single_blocks, self.staging(), |i, block| {
                let lora = adapter.and_then(|a| a.single(i));
                x = block.forward(&x, &vec_act, inputs.rope, lora)?;
                note(&format!("single{i}"), &x);
                Ok(())
            })?;
            let target = x.f_narrow(1, text_tokens, inputs.img.size()[1])?;
            self.head.forward(&target, &vec_act)
        })
    }

    /// Checks every input's shape before libtorch sees it.
    pub(crate) fn check(&self, inputs: &FluxInputs<'_>) -> Result<()> {
        let batch = match inputs.img.size().as_slice() {
            [batch, tokens, _] if *batch > 0 && *tokens > 0 => *batch,
            other => {
                return Err(ModelError::input(
                    "img",
                    format!("shape {other:?} is not [batch, tokens, channels]"),
                ));
            }
        };
        let tokens = |name: &str, tensor: &Tensor, width: i64| match tensor.size().as_slice() {
            [b, n, w] if *b == batch && *n > 0 && *w == width => Ok(*n),
            other => {
                Err(ModelError::input(name, format!("shape {other:?} is not [{batch}, tokens, {width}]")))
            }
        };
        let exact = |name: &str, tensor: &Tensor, shape: &[i64]| {
            if tensor.size() == shape {
                Ok(())
            } else {
                Err(ModelError::input(name, format!("shape {:?} is not {shape:?}", tensor.size())))
            }
        };
        let mut total = tokens("img", inputs.img, self.config.in_channels)?;
        for (i, reference) in inputs.refs.iter().enumerate() {
            total += tokens(&format!("ref{i}"), reference, self.config.in_channels)?;
        }
        total += tokens("txt", inputs.txt, self.config.context_in_dim)?;
        exact("vec", inputs.vec, &[batch, self.config.vec_in_dim])?;
        exact("timesteps", inputs.timesteps, &[batch])?;
        match (self.config.guidance_embed, inputs.guidance) {
            (true, Some(guidance)) => exact("guidance", guidance, &[batch])?,
            (true, None) => {
                return Err(ModelError::input("guidance", "is required by this network"));
            }
            (false, _) => {}
        }
        inputs.rope.check(batch, total, self.config.head_dim())
    }
}
